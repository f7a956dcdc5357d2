"""python -m affectgpt.prefer: which of two descriptions of a clip fits better (EmoPrefer, track 3 of MER2026).

    S1  the model sees the clip and both descriptions, and answers a1, a2 or same
    S2  the model describes the clip, then compares its description with both
    S3  as S2, but a text LLM compares
    S4  as S3, but the LLM gives reasons first, then answers

Every step appends to a file in `<out>.steps` and skips what is in it, so a run that was killed resumes. The last step
writes `out`, in the order of the rows. A clip in several rows is described once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from affectgpt.chat.request import Request
from affectgpt.config import PreferConfig
from affectgpt.data.sources import report_bad
from affectgpt.inference.prediction import predict_to_file
from affectgpt.metrics import read_predictions
from affectgpt.metrics.preference import NOT_ANSWERED
from affectgpt.prefer import prompts
from affectgpt.prefer.askers import Asker, ChatAsker, OwnAsker, describing_version
from affectgpt.prefer.rows import Pair, read_pairs, write_answers
from affectgpt.runs import RunRecord
from affectgpt.runtime import InputError, UserError, sha256_of_file
from affectgpt.schema import LANGUAGES, BadSample, Prediction, Sample

log = logging.getLogger("affectgpt")

STRATEGIES = ("s1", "s2", "s3", "s4")


def run(config: PreferConfig) -> int:
    """Ask about every row and write the answers; exit code 0, or 3 if rows were not answered."""
    check(config)
    assert config.out is not None
    out = Path(config.out)
    folder = out.with_name(f"{out.name}.steps")
    sees = config.descriptions is None
    pairs, files = read_pairs(
        Path(config.folder).expanduser(),
        config.file,
        options=config.options,
        subtitles=config.subtitles,
        with_media=sees,
        exchange=config.reversed,
        limit=config.limit,
    )
    inputs = [*files, *([] if sees else [Path(str(config.descriptions))])]
    with RunRecord.start(folder, kind="prefer", config=asdict(config), inputs=inputs) as record:
        n_missing = _run_recorded(config, pairs, sha256_of_file(files[0]), out, folder, record)
    table = Path(config.folder) / config.file
    if config.reversed:
        log.info("next: python -m affectgpt.prefer score ANSWERS.csv references=%s reversed=%s", table, out)
    elif config.file == PreferConfig.file:
        log.info("next: python -m affectgpt.submit track=3 %s answer.zip candidates=%s", out, table)
    else:
        log.info("next: python -m affectgpt.prefer score %s references=%s", out, table)
    return 3 if n_missing else 0


def _run_recorded(
    config: PreferConfig, pairs: Sequence[Pair], table_sha256: str, out: Path, folder: Path, record: RunRecord
) -> int:
    """Returns the number of rows that were not answered."""
    sees = config.descriptions is None
    bad: list[BadSample] = []
    asker = _asker(config, folder)
    clips = _clips(pairs, asker, config, bad) if asker is not None and sees else {}
    settings = {
        "prompt_version": prompts.VERSION, "strategy": config.strategy, "reversed": config.reversed,
        "lang": config.lang, "table": table_sha256, "max_answer_tokens": config.max_answer_tokens,
    }  # fmt: skip
    steps = _Steps(config, folder, settings, bad)
    if config.strategy == "s1":
        assert asker is not None
        answers = steps.about_clips(pairs, clips, asker)
    else:
        answers = steps.about_descriptions(pairs, steps.describe(clips, asker), asker)
    counts = write_answers(out, pairs, answers)
    n_read = counts.get("beginning", 0) + counts.get("first", 0)
    n_missing = counts.get(NOT_ANSWERED, 0)
    chosen = ", ".join(f"{choice} {counts.get(choice, 0)}" for choice in ("a1", "a2", "same"))
    print(
        f"{out}: {len(pairs)} rows: {chosen}; {n_read} choices read from longer answers, {counts.get('none', 0)} "
        f"answers without a choice and {n_missing} rows not answered, which count as same"
    )
    report_bad(bad, folder)
    record.finish("finished", n=len(pairs), counts=counts, n_bad=len(bad))
    return n_missing


def check(config: PreferConfig) -> None:
    """Raise UserError where settings are missing or contradict each other."""
    if config.strategy not in STRATEGIES:
        raise UserError(f"strategy is {config.strategy!r}; expected one of {list(STRATEGIES)}")
    if config.lang not in LANGUAGES:
        raise UserError(f"lang is {config.lang!r}; expected one of {list(LANGUAGES)}")
    if config.on_bad not in ("raise", "skip"):
        raise UserError(f"on_bad is {config.on_bad!r}; expected raise or skip")
    if config.out is None:
        raise UserError("out= is missing: the CSV file to write")
    if config.model and config.checkpoint:
        raise UserError("give model= or checkpoint=, not both")
    asks = bool(config.model or config.checkpoint)
    by_judge = config.strategy in ("s3", "s4")
    if config.strategy == "s1" and config.descriptions:
        raise UserError("strategy=s1 asks about the clip itself; descriptions= is for s2 to s4")
    if not asks and not (by_judge and config.descriptions):
        raise UserError("give model= or checkpoint=, the model that is asked; s3 and s4 can do with descriptions=")
    if by_judge != bool(config.judge):
        raise UserError(
            f"strategy={config.strategy} "
            + ("needs judge=, the text LLM that compares" if by_judge else "takes no judge=; that is for s3 and s4")
        )


def _asker(config: PreferConfig, folder: Path) -> Asker | None:
    """The model that sees clips; None if descriptions are given and the judge compares them."""
    if config.checkpoint:
        return OwnAsker(config.checkpoint, config)
    return ChatAsker(config.model, config.base_url, folder, config) if config.model else None


def _clips(pairs: Sequence[Pair], asker: Asker, config: PreferConfig, bad: list[BadSample]) -> dict[str, Sample]:
    """The usable clips by name."""
    clips = {pair.name: pair.clip for pair in pairs}
    unusable = [clip for clip in clips.values() if isinstance(clip, BadSample)]
    if unusable and config.on_bad == "raise":
        first = unusable[0]
        raise InputError(f"{first.where}: {first.id!r}: {first.reason}; fix it, or set on_bad=skip")
    bad += unusable
    usable = asker.probe([clip for clip in clips.values() if isinstance(clip, Sample)], bad)
    return {clip.id: clip for clip in usable}


class _Steps:
    """The steps of the strategies, each with its file in `folder`."""

    def __init__(self, config: PreferConfig, folder: Path, settings: Mapping[str, Any], bad: list[BadSample]) -> None:
        self._config, self._folder, self._settings, self._bad = config, folder, settings, bad
        self._describer: dict[str, Any] = {}  # where the descriptions come from

    def about_clips(self, pairs: Sequence[Pair], clips: Mapping[str, Sample], asker: Asker) -> dict[str, Prediction]:
        """S1: row -> answer."""
        asked = [replace(clips[pair.name], id=pair.key) for pair in pairs if pair.name in clips]
        questions = {pair.key: prompts.about_clip(pair.a1, pair.a2, self._config.lang) for pair in pairs}
        make = partial(asker.about, questions=questions, bad=self._bad)
        return self._step("choices", make, asked, {**self._settings, **asker.settings()})

    def describe(self, clips: Mapping[str, Sample], asker: Asker | None) -> dict[str, str]:
        """name -> description, of the file of descriptions or by the model."""
        config = self._config
        if config.descriptions is not None:
            rows = read_predictions(config.descriptions)
            self._describer = {"file": sha256_of_file(config.descriptions)}
            return {row.id: row.text for row in rows if row.text.strip()}
        assert asker is not None  # see check
        settings = {
            "prompt_version": describing_version(asker), "lang": config.lang, "max_new_tokens": config.max_new_tokens,
            **asker.settings(),
        }  # fmt: skip
        self._describer = settings
        made = self._step("descriptions", partial(asker.describe, bad=self._bad), list(clips.values()), settings)
        return {name: row.text for name, row in made.items() if row.text.strip()}

    def about_descriptions(
        self, pairs: Sequence[Pair], descriptions: Mapping[str, str], asker: Asker | None
    ) -> dict[str, Prediction]:
        """S2 to S4: row -> answer."""
        config = self._config
        lacking = [pair for pair in pairs if pair.name not in descriptions]
        if lacking and config.on_bad == "raise":
            raise InputError(
                f"row {lacking[0].key}: no description of {lacking[0].name!r} ({len(lacking)} of {len(pairs)} rows); "
                "describe these clips, or count such rows as same with on_bad=skip"
            )
        self._bad += [BadSample(pair.key, pair.name, "its clip has no description") for pair in lacking]
        known = [pair for pair in pairs if pair.name in descriptions]
        if config.judge is not None:
            if asker is not None:
                asker.release()
            asker = ChatAsker(config.judge, config.judge_base_url, self._folder, config)
        assert asker is not None
        of = {pair.key: descriptions[pair.name] for pair in known}
        settings = {**self._settings, **asker.settings(), "descriptions": self._describer}
        asked = [Sample(id=pair.key) for pair in known]

        def requests(reason: bool) -> dict[str, Request]:
            return {
                pair.key: Request(prompts.about_description(of[pair.key], pair.a1, pair.a2, config.lang, reason=reason))
                for pair in known
            }

        if config.strategy != "s4":
            return self._tell("choices", asker, asked, requests(reason=False), config.max_answer_tokens, settings)
        reasons = self._tell("reasons", asker, asked, requests(reason=True), config.max_new_tokens, settings)
        so = prompts.so_which(config.lang)
        then = {
            key: replace(request, turns=(reasons[key].text, so))
            for key, request in requests(reason=True).items()
            if key in reasons and reasons[key].text.strip()
        }
        answers = self._tell(
            "choices", asker, [item for item in asked if item.id in then], then, config.max_answer_tokens, settings
        )
        silent = {key: row for key, row in reasons.items() if key not in then}  # no reasons, and so no choice
        return {**silent, **answers}

    def _tell(
        self, name: str, asker: Asker, asked: Sequence[Sample], requests: Mapping[str, Request], n_tokens: int,
        settings: Mapping[str, Any],
    ) -> dict[str, Prediction]:  # fmt: skip
        make = partial(asker.tell, requests=requests, bad=self._bad, n_tokens=n_tokens)
        return self._step(name, make, asked, settings)

    def _step(
        self,
        name: str,
        make: Callable[[Sequence[Sample]], Iterator[Prediction] | Iterable[Prediction]],
        asked: Sequence[Sample],
        settings: Mapping[str, Any],
    ) -> dict[str, Prediction]:
        rows = predict_to_file(make, asked, self._folder / f"{name}.jsonl", settings=settings, what=name)
        return {row.id: row for row in rows}
