"""Zero-shot runs: which questions each system gets, in which order, and where the answers are stored.

    S0    the model explains the clip without the subtitle
    S1    the model explains the clip with the subtitle
    S2    the model explains the clip without the subtitle, then an LLM merges the explanation with the subtitle
    pair  an audio and a video model describe their clues, then an LLM merges them (with the subtitle in S2)

Every step appends to its own file and skips the rows in it, so a run that was killed resumes. The last step writes
`out`; earlier steps, answers of servers, bad samples and the run record are in the folder `<out>.steps`.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from affectgpt.chat.completion import REFUSED
from affectgpt.chat.request import Request
from affectgpt.chat.served import ChatClient
from affectgpt.chat.transport import RequestFailed
from affectgpt.config import AskConfig, SourceConfig, ZeroShotConfig
from affectgpt.data.sources import attempt, probe_samples, read_source, report_bad, with_person
from affectgpt.inference.prediction import predict_to_file
from affectgpt.metrics.extract import read_labels
from affectgpt.runs import RunRecord
from affectgpt.runtime import InputError, UserError, write_text_atomic
from affectgpt.schema import BadSample, Prediction, Sample
from affectgpt.zeroshot import prompts
from affectgpt.zeroshot.systems import Model, System, open_system, read_answers

log = logging.getLogger("affectgpt")

Item = TypeVar("Item")
STRATEGIES = ("s0", "s1", "s2")
_SHOWN = {"images": "frames", "sound": "audio"}  # what can be shown -> modality that the clip needs
_OF_KIND = {"whole": ("images", "sound"), "audio": ("sound",), "video": ("images",)}


def run(config: ZeroShotConfig) -> int:
    """Ask, or export the questions; exit code 0, or 3 if samples were left out."""
    check(config)
    samples, bad, files = _samples(config)
    assert config.out is not None
    out = Path(config.out)
    if config.action == "export":
        n = export(config, samples, out)
        report_bad(bad, out.parent)
        log.info("%d questions in %s; write the answers as {id, text} lines and `import` that file", n, out)
        return 3 if bad else 0

    folder = out.with_name(f"{out.name}.steps")
    with RunRecord.start(folder, kind="zeroshot", config=asdict(config), inputs=files) as record:
        _run_recorded(config, samples, bad, out, folder, record)
    truth = f"references={config.manifest}" if config.manifest else f"data={config.data.name}"
    log.info("next: python eval.py predictions=%s %s", out, truth)
    return 3 if bad else 0


def _run_recorded(
    config: ZeroShotConfig, samples: list[Sample], bad: list[BadSample], out: Path, folder: Path, record: RunRecord
) -> None:
    models = _models_of(config)
    is_merged = config.ask.strategy == "s2" or "whole" not in models
    used = [*models.values(), *([(config.ask.merge_model or "", config.ask.merge_base_url)] if is_merged else [])]
    _warn_of_unknown_ids(used, {item.id for item in (*samples, *bad)})
    samples = _with_media(samples, config, bad)
    notes = {kind: _ask(kind, *who, samples, out, folder, config, bad) for kind, who in models.items()}
    rows = _merge(notes, samples, out, folder, config, bad) if is_merged else notes["whole"]
    n_unlabelled = sum(not row.labels for row in rows)
    n_refused = sum(row.finish in REFUSED for row in rows)
    n_empty = sum(not row.text.strip() for row in rows if row.finish not in REFUSED)
    log.info("%d predictions in %s; the parser found no label in %d", len(rows), out, n_unlabelled)
    if n_refused or n_empty:
        log.warning(
            "%d of them are refusals and %d are empty; both count as predictions without labels", n_refused, n_empty
        )
    report_bad(bad, folder)
    record.finish(
        "finished",
        n=len(rows),
        n_without_labels=n_unlabelled,
        n_refused=n_refused,
        n_empty=n_empty,
        n_bad=len(bad),
    )


def _warn_of_unknown_ids(models: Sequence[tuple[str, str | None]], known: set[str]) -> None:
    """Warn of ids in answer files that are not among the clips: most often of another split or export."""
    for name, base_url in models:
        if base_url is None and name.endswith(".jsonl") and (unknown := sorted(set(read_answers(Path(name))) - known)):
            log.warning("%s: %d ids are not among the clips, such as %r", name, len(unknown), unknown[0])


def _with_media(samples: Sequence[Sample], config: ZeroShotConfig, bad: list[BadSample]) -> list[Sample]:
    """The clips with video or sound; others raise, or are added to `bad`."""

    def check_media(sample: Sample) -> Sample:
        if not _has(sample) and sample.question is None:
            raise InputError("it has neither video nor sound, so there is nothing to show")
        return sample

    return _usable([attempt(check_media, sample, on_bad=config.data.on_bad) for sample in samples], bad)


def _usable(results: Sequence[Item | BadSample], bad: list[BadSample]) -> list[Item]:
    """The results that are no bad samples, which are added to `bad`."""
    bad += [item for item in results if isinstance(item, BadSample)]
    return [item for item in results if not isinstance(item, BadSample)]


def _ask(
    kind: str,
    name: str,
    base_url: str | None,
    samples: Sequence[Sample],
    out: Path,
    folder: Path,
    config: ZeroShotConfig,
    bad: list[BadSample],
) -> list[Prediction]:
    """The answers to one kind of question: the last step of a single system, else a step before merging."""
    own = next((item.id for item in samples if item.question is not None), None)
    if own is not None and (kind != "whole" or config.ask.strategy == "s2"):
        raise UserError(
            f"sample {own!r} has a question of its own, and answers to it cannot be merged: give one model= and "
            "strategy=s0 or s1"
        )
    askable = [item for item in samples if kind == "whole" or set(_has(item)) & set(_OF_KIND[kind])]
    if len(askable) < len(samples):
        log.info("%d of %d clips have no %s", len(samples) - len(askable), len(samples), _OF_KIND[kind][0])
    return _step(
        lambda todo: ask_clips(
            todo, lambda: open_system(name, base_url, folder, config), kind=kind, config=config, bad=bad
        ),
        askable,
        out if kind == "whole" and config.ask.strategy != "s2" else folder / f"{kind}.jsonl",
        {**_settings(config), "kind": kind, "model": name},
        kind,
    )


def _merge(
    notes: Mapping[str, Sequence[Prediction]],
    samples: Sequence[Sample],
    out: Path,
    folder: Path,
    config: ZeroShotConfig,
    bad: list[BadSample],
) -> list[Prediction]:
    """One description per clip, merged from its notes; clips with an unreadable part are left out."""
    by_id: dict[str, dict[str, Prediction]] = {}
    for kind, rows in notes.items():
        for row in rows:
            by_id.setdefault(row.id, {})[kind] = row
    left_out = {item.id for item in bad}
    ask, merge_model = config.ask, config.ask.merge_model
    assert merge_model is not None  # see check
    return _step(
        lambda todo: merge_notes(
            todo, by_id, lambda: open_system(merge_model, ask.merge_base_url, folder, config), config=config, bad=bad
        ),
        [item for item in samples if item.id not in left_out],
        out,
        {**_settings(config), "models": [ask.model, ask.audio_model, ask.video_model], "merge": ask.merge_model},
        "merging",
    )


def check(config: ZeroShotConfig) -> None:
    """Raise UserError where settings are missing or contradict each other."""
    if config.action not in ("run", "export", "import"):
        raise UserError(f"action is {config.action!r}; expected run, export or import")
    if config.ask.strategy not in STRATEGIES:
        raise UserError(f"strategy is {config.ask.strategy!r}; expected one of {list(STRATEGIES)}")
    if config.out is None:
        raise UserError("out= is missing: the predictions.jsonl to write (export: the requests.jsonl)")
    if config.ask.show is not None and (not config.ask.show or set(config.ask.show) - set(_SHOWN)):
        raise UserError(f"show is {config.ask.show}; expected some of {list(_SHOWN)}")
    if config.action == "export":
        if config.kind not in prompts.KINDS:
            raise UserError(f"kind is {config.kind!r}; expected one of {list(prompts.KINDS)}")
        return
    pair = (config.ask.audio_model, config.ask.video_model)
    if bool(config.ask.model) == bool(all(pair)) or (any(pair) and not all(pair)):
        raise UserError(f"give model=, or both audio_model= and video_model=; found {config.ask.model!r} and {pair}")
    if (config.ask.strategy == "s2" or all(pair)) and not config.ask.merge_model:
        raise UserError("strategy=s2 and pairs need merge_model=, an LLM that merges the descriptions")


def _models_of(config: ZeroShotConfig) -> dict[str, tuple[str, str | None]]:
    """Kind of question -> (model, server)."""
    if config.ask.model:
        return {"whole": (config.ask.model, config.ask.base_url)}
    assert config.ask.audio_model is not None
    assert config.ask.video_model is not None
    return {
        "audio": (config.ask.audio_model, config.ask.audio_base_url),
        "video": (config.ask.video_model, config.ask.video_base_url),
    }


def _samples(config: ZeroShotConfig) -> tuple[list[Sample], list[BadSample], list[Path]]:
    """The clips with probed modalities, the bad samples, and the files that were read."""
    sources = config.data.test
    if config.manifest:
        sources = [SourceConfig(manifest=config.manifest, columns=config.columns, split=config.split)]
    if not sources:
        raise UserError(f"data {config.data.name!r} has no test sources; name a manifest with manifest=")
    samples: list[Sample] = []
    bad: list[BadSample] = []
    files: list[Path] = []
    for source in sources:
        rows = read_source(source, config.data.folder, on_bad=config.data.on_bad)
        usable, bad_media = probe_samples(with_person(rows.samples, config.person), on_bad=config.data.on_bad)
        samples += usable
        bad += rows.bad + bad_media
        files += rows.files
    return samples, bad, files


def _step(
    make: Callable[[Sequence[Sample]], Iterator[Prediction]],
    samples: Sequence[Sample],
    file: Path,
    settings: dict[str, Any],
    what: str,
) -> list[Prediction]:
    made = predict_to_file(make, samples, file, settings=settings, what=what)
    gc.collect()  # free the step's model before the next one is loaded
    return made


def _settings(config: ZeroShotConfig) -> dict[str, Any]:
    """The settings that affect the answers, except the models."""
    kept = {name: value for name, value in asdict(config.ask).items() if not name.endswith(("model", "base_url"))}
    for name in ("temperature", "max_tokens_name"):  # unknown to files of earlier releases
        if kept[name] == getattr(AskConfig, name):
            del kept[name]
    return {"prompt_version": prompts.VERSION, **kept, **({"person": config.person} if config.person else {})}


def _has(sample: Sample) -> list[str]:
    return [name for name, modality in _SHOWN.items() if modality in (sample.modalities or ())]


def wanted(kind: str, show: Sequence[str] | None, *, is_served: bool = False) -> tuple[str, ...]:
    """What a question shows, limited by `show`. By default a served system gets images only: few servers take sound,
    and most refuse a request with sound instead of ignoring it."""
    allowed = ("images",) if show is None and is_served and kind == "whole" else show or _OF_KIND[kind]
    return tuple(name for name in _OF_KIND[kind] if name in allowed)


Question = Callable[[Sample, Sequence[str], str | None], str]
"""(clip, what is shown of it, its subtitle or None) -> the prompt."""


class _Asked(NamedTuple):
    """A clip with its request, the media and the subtitle in it, and facts about the media."""

    sample: Sample
    shown: tuple[str, ...]
    subtitle: str | None
    request: Request
    facts: dict[str, Any]


def ask_clips(
    samples: Sequence[Sample],
    make: Callable[[], System],
    *,
    kind: str,
    config: ZeroShotConfig,
    bad: list[BadSample],
    question: Question | None = None,
) -> Iterator[Prediction]:
    """One answer per clip; with on_bad=skip, clips that cannot be read and clips that a server does not answer are left
    out and listed in `bad`, else they raise.

    Args:
        make: opens the system; called only if there are clips.
        question: takes the place of the question of this kind; labels are then not read from the answers.
    """
    if not samples:
        return
    system = make()
    is_served = isinstance(system, Model) and isinstance(system.chat, ChatClient)
    show = wanted(kind, config.ask.show, is_served=is_served)
    has_labels = kind == "whole" and question is None

    def prepare(sample: Sample) -> _Asked:
        shown = tuple(name for name in show if name in system.sees and name in _has(sample))
        if not shown and (_has(sample) or sample.question is None):
            raise InputError(
                f"it has {_has(sample)}, {system.name} takes {sorted(system.sees)}, and the question shows "
                f"{list(show)}: nothing is left to show"
            )
        subtitle = _subtitle(sample, config) if config.ask.strategy == "s1" else None
        if question is None:
            prompt = prompts.question(
                kind, shown, lang=config.ask.lang, subtitle=subtitle, person=sample.person, own=sample.question
            )
        else:
            prompt = question(sample, shown, subtitle)
        return _Asked(sample, shown, subtitle, *system.request(sample, shown, prompt))

    for start in range(0, len(samples), system.batch_size):
        chunk = samples[start : start + system.batch_size]
        asked = _usable([attempt(prepare, sample, on_bad=config.data.on_bad) for sample in chunk], bad)
        replies = system.answer([item.sample.id for item in asked], [item.request for item in asked])
        for (sample, shown, subtitle, _, facts), reply in zip(asked, replies, strict=True):
            if isinstance(reply, RequestFailed):
                bad.append(unanswered(sample, system, reply))
                continue
            yield Prediction(
                id=sample.id,
                text=reply.text,
                labels=read_labels(reply.text).labels if has_labels and sample.question is None else None,
                task="both" if has_labels and sample.question is None else "description",
                lang=config.ask.lang,
                modalities=(*(_SHOWN[name] for name in shown), *(["text"] if subtitle else [])),
                subtitle=subtitle,
                media=facts,
                n_tokens=reply.n_new_tokens or None,
                finish=reply.finish,
                model=system.name,
                strategy=config.ask.strategy,
                prompt_version=prompts.VERSION,
                person=sample.person,
            )


def merge_notes(
    samples: Sequence[Sample],
    notes: Mapping[str, Mapping[str, Prediction]],
    make: Callable[[], System],
    *,
    config: ZeroShotConfig,
    bad: list[BadSample],
) -> Iterator[Prediction]:
    """One merged description per clip. A description of the whole clip without a subtitle to merge is kept as it is.

    With on_bad=skip, clips whose merging a server or a file of answers does not answer are left out and listed in
    `bad`.
    """
    if not samples:
        return
    system = make()

    def merged_subtitle(sample: Sample) -> str | None:
        return _subtitle(sample, config) if config.ask.strategy == "s2" else None

    def prepare(sample: Sample) -> tuple[Sample, Request | None]:
        parts, subtitle = notes[sample.id], merged_subtitle(sample)
        if "whole" in parts and not subtitle:
            return sample, None
        texts = {kind: row.text for kind, row in parts.items()}
        prompt = prompts.merge(texts, lang=config.ask.lang, subtitle=subtitle, person=sample.person)
        return sample, system.request(sample, (), prompt)[0]

    for start in range(0, len(samples), system.batch_size):
        chunk = samples[start : start + system.batch_size]
        prepared = _usable([attempt(prepare, sample, on_bad=config.data.on_bad) for sample in chunk], bad)
        requests = {sample.id: request for sample, request in prepared if request is not None}
        answers = system.answer([*requests], [*requests.values()]) if requests else []
        replies = dict(zip(requests, answers, strict=True))
        for sample, _ in prepared:
            parts = notes[sample.id]
            reply, subtitle = replies.get(sample.id), merged_subtitle(sample)
            if isinstance(reply, RequestFailed):
                bad.append(unanswered(sample, system, reply))
                continue
            shown_subtitle = next((row.subtitle for row in parts.values() if row.subtitle), subtitle)
            text = reply.text if reply else parts["whole"].text
            used = {name for row in parts.values() for name in row.modalities} | ({"text"} if subtitle else set())
            yield Prediction(
                id=sample.id,
                text=text,
                labels=read_labels(text).labels,
                lang=config.ask.lang,
                modalities=tuple(name for name in ("audio", "frames", "text") if name in used),
                subtitle=shown_subtitle,
                media={key: value for row in parts.values() for key, value in row.media.items()},
                n_tokens=(reply.n_new_tokens or None) if reply else parts["whole"].n_tokens,
                finish=reply.finish if reply else parts["whole"].finish,
                model=" + ".join(
                    [*(row.model or "?" for row in parts.values()), *([f"merged by {system.name}"] if reply else [])]
                ),
                strategy=config.ask.strategy,
                prompt_version=prompts.VERSION,
                person=sample.person,
            )


def unanswered(sample: Sample, system: System, error: RequestFailed) -> BadSample:
    return BadSample(sample.id, str(sample.video or sample.audio), f"{system.name} does not answer: {error}")


def _subtitle(sample: Sample, config: ZeroShotConfig) -> str | None:
    return sample.in_language(config.ask.lang, strict=False).subtitle


def export(config: ZeroShotConfig, samples: Sequence[Sample], out: Path) -> int:
    """Write one question per line, with the paths of the media, for models that need their own environment."""
    rows = []
    for sample in samples:
        shown = [name for name in wanted(config.kind, config.ask.show) if name in _has(sample)]
        if not shown and (_has(sample) or sample.question is None):
            continue
        subtitle = _subtitle(sample, config) if config.ask.strategy == "s1" else None
        row = {
            "id": sample.id,
            "prompt": prompts.question(
                config.kind, shown, lang=config.ask.lang, subtitle=subtitle, person=sample.person, own=sample.question
            ),
            "show": shown,
            "video": sample.video and str(Path(sample.video).resolve()),
            "audio": sample.audio and str(Path(sample.audio).resolve()),
            "n_frames": config.ask.n_frames,
            "kind": config.kind,
            "strategy": config.ask.strategy,
            "lang": config.ask.lang,
            "prompt_version": prompts.VERSION,
        }
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    if len(rows) < len(samples):
        log.info("%d of %d clips have no media for kind=%s", len(samples) - len(rows), len(samples), config.kind)
    write_text_atomic(out, "".join(rows))
    return len(rows)
