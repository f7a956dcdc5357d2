"""infer.py: explain videos, for people, as JSON lines, or into a predictions file."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.config import GenerateConfig, InferConfig, QuestionConfig, SourceConfig
from affectgpt.prompts import LABEL_LINE, LABEL_SEPARATOR, task_question
from affectgpt.runtime import UserError, gc_paused, seed_everything
from affectgpt.schema import BadSample, Prediction, Sample, to_json
from affectgpt.tables import format_table, is_table

if TYPE_CHECKING:
    from affectgpt.data.faces import FaceNeeds
    from affectgpt.data.facts import MediaFacts

log = logging.getLogger("affectgpt")

NOT_SHOWN = {
    "visual": "the model was shown no pictures",
    "acoustic": "the model was given no sound",
    "lexical": "the model was given no words",
}


def run_inference(config: InferConfig) -> int:
    """Explain every input: print the predictions, or append them to `out`. Exit code 3 if samples were left out."""
    check_engine(config.engine)
    if config.attribute and config.engine == "vllm":
        raise UserError("attribute=true needs the model in this process: leave out engine=vllm")
    check_question(config, config.generate)
    from affectgpt.data.facts import MediaFacts, facts_in

    facts = MediaFacts()
    samples, bad = _samples(config, facts)  # unreadable files are named before the model is loaded
    with gc_paused():  # importing torch and transformers takes a sixth longer with it
        from affectgpt.inference.loading import load, refuse_for_omni, settings_of
        from affectgpt.inference.prediction import check_modalities, predict, predict_to_file
        from affectgpt.inference.vllm import engine_named
    loaded = load(
        config.checkpoint,
        Path(config.paths.runs),
        device=config.device,
        dtype=config.dtype,
        quantization=config.quantization,
        base_models=config.base_models,
        model=config.model,
    )
    cache = Path(config.paths.cache) if config.cache_features else None
    if cache is not None:
        facts = facts_in(cache)
    if (faces := loaded.face_needs(config.backend)) is not None:
        samples, bad = _samples(config, facts, faces)
    check_modalities(config, loaded.model.modalities)
    refuse_for_omni(loaded.model, {"attribute=true": config.attribute})
    predictions = partial(
        predict,
        loaded.model,
        loaded.processor,
        reader=loaded.reader(
            backend=config.backend, cache_folder=cache, limit_gb=config.paths.cache_limit_gb, facts=facts
        ),
        question=config,
        generate=config.generate,
        name=loaded.name,
        on_bad=config.on_bad,
        bad=bad,
        attribution=config.attribute,
        answer=engine_named(config.engine, loaded, Path(config.paths.cache), config.vllm, config.seed),
    )
    seed_everything(config.seed)
    if config.out is None:
        by_id = {sample.id: sample for sample in samples}
        for prediction in predictions(samples):
            print(to_json(prediction) if config.json else f"{format_prediction(prediction, by_id[prediction.id])}\n")
    else:
        settings = settings_of(loaded, config, config.generate, config.seed, config.engine, config.backend)
        if config.person is not None:
            settings["person"] = config.person
        done = predict_to_file(predictions, samples, Path(config.out), settings=settings)
        log.info("%d predictions in %s", len(done), config.out)
    _report(bad, config.out)
    return 3 if bad else 0


def check_engine(engine: str) -> None:
    """Raise UserError for an unknown generation backend."""
    if engine not in ("auto", "vllm"):
        raise UserError(f"engine is {engine!r}; expected auto or vllm")


def check_question(question: QuestionConfig, generate: GenerateConfig) -> None:
    """Raise UserError for an unknown task, missing candidates, and settings of another task: no clip is at fault."""
    task_question(question.task, question.lang, question.candidates)
    if generate.constrain and question.task != "fixed":
        raise UserError(
            f"generate.constrain=true lets the model write one of candidates= only, but task is {question.task!r}; set "
            "task=fixed and candidates=[happy,sad,...], or leave it out"
        )


def _samples(
    config: InferConfig, facts: MediaFacts, faces: FaceNeeds | None = None
) -> tuple[list[Sample], list[BadSample]]:
    """The inputs with probed media, and those that cannot be used."""
    from affectgpt.data.sources import probe_samples, read_manifest, read_source, samples_from_paths, with_person

    if config.format is not None and (config.input or config.subtitle is not None):
        raise UserError(f"format={config.format} reads a data set; leave out subtitle= and the input {config.input}")
    if not config.input and config.format is None:
        raise UserError("no input given: python infer.py video.mp4 (or a folder, or a manifest); see --help")
    manifests = [path for path in config.input if is_table(path)]
    if manifests and len(config.input) > 1:
        raise UserError(f"give one manifest, or media files and folders, not both; found {config.input}")
    bad: list[BadSample] = []
    if config.format is not None:
        source = SourceConfig(
            format=config.format, folder=config.folder, options=config.options, columns=config.columns,
            split=config.split,
        )  # fmt: skip
        rows = read_source(source, ".", on_bad=config.on_bad)
        samples, bad = rows.samples, rows.bad
    elif not manifests:
        samples = samples_from_paths(config.input, config.subtitle)
    elif config.subtitle is not None:
        raise UserError("subtitle= is for media files; a manifest has its own subtitle column")
    else:
        samples, bad = read_manifest(manifests[0], split=config.split, on_bad=config.on_bad, columns=config.columns)
    asked = with_person(samples, config.person)
    usable, bad_media = probe_samples(asked, on_bad=config.on_bad, facts=facts, faces=faces)
    return usable, bad + bad_media


def _report(bad: list[BadSample], out: str | None) -> None:
    """List samples that were left out: next to `out`, or in the log."""
    from affectgpt.data.sources import report_bad

    if out is not None:
        report_bad(bad, Path(out).parent)
    elif bad:
        listed = "\n".join(f"  {item.id}: {item.reason}" for item in bad)
        log.warning("left out %d bad samples:\n%s", len(bad), listed)


def format_prediction(prediction: Prediction, sample: Sample) -> str:
    """A prediction for the terminal: what the model saw and heard, the explanation, the labels."""
    width = 100
    lines = [sample.video or sample.audio or sample.id]
    media = prediction.media
    if frames := media.get("frames"):
        times = frames["times_s"]
        lines.append(f"  saw    {len(times)} frames from {times[0]:.2f} to {times[-1]:.2f} s")
    if motion := media.get("motion"):
        lines.append(f"  saw    the motion of {len(motion['times_s'])} frames")
    if faces := media.get("face", media.get("face_motion")):
        shown = faces.get("n_frames_with_face") or faces["n_crops"]
        lines.append(f"  saw    a face, in {shown} {'frames' if 'detector' in faces else 'saved crops'}")
    if sound := media.get("audio"):
        lines.append(f"  heard  {sound['heard_s']:.1f} of {sound['duration_s']:.1f} s of sound")
    if prediction.person is not None:
        lines.append(f"  about  the {prediction.person}")
    if prediction.subtitle and "text" in prediction.modalities:
        lines.append(f"  read   {prediction.subtitle!r}")
    unused = [name for name in sample.modalities or () if name not in prediction.modalities]
    if unused:
        lines.append(f"  left out {', '.join(unused)}")
    lines.append("")
    paragraphs = prediction.text.splitlines() or [""]
    has_labels = prediction.task == "both" and prediction.labels
    if has_labels and paragraphs[-1].startswith(LABEL_LINE[prediction.lang].strip()):
        paragraphs.pop()  # the labels are printed below
    for paragraph in paragraphs:
        lines += textwrap.wrap(paragraph, width, initial_indent="  ", subsequent_indent="  ") or [""]
    if has_labels:
        lines += ["", f"  labels: {LABEL_SEPARATOR[prediction.lang].join(prediction.labels or ())}"]
    if prediction.attribution:
        lines += ["", *_attribution_lines(prediction, media)]
    for row in prediction.unsupported:
        lines.append(f"  unsupported: {row['sentence']} ({NOT_SHOWN[row['modality']]})")
    if prediction.finish == "length":
        lines.append(f"  (cut after {prediction.n_tokens} tokens; raise generate.max_new_tokens)")
    return "\n".join(lines)


def _duration_s(name: str, media: Mapping[str, Any]) -> float | None:
    """Seconds over which the shares of a modality run: of the sound, or of the film; None for crops, which are taken
    only of the frames that show the face."""
    from affectgpt.data.faces import FACE_MODALITIES

    if name in FACE_MODALITIES:
        return None
    sound_s = media.get("audio", {}).get("duration_s")
    if name == "audio":
        return sound_s
    times = next((media[key]["times_s"] for key in (name, "frames", "motion") if "times_s" in media.get(key, {})), [])
    n = len(set(times))  # each frame begins one of as many equal parts
    return max(times) * n / (n - 1) if n > 1 else sound_s


_INPUT_NAMES = {"visual": "pictures", "acoustic": "sound", "lexical": "words"}


def _attribution_lines(prediction: Prediction, media: Mapping[str, Any]) -> list[str]:
    """One line per clause: the loss of log-probability without each input, and the most used part of sound and film."""
    rows = [
        ("  rests on (nats per token)", *(_INPUT_NAMES[name] for name in prediction.attribution[0]["drop"]), "most at")
    ]
    for clause in prediction.attribution:
        places = []
        for name, shares in clause["over_time"].items():
            duration_s = _duration_s(name, media)
            if duration_s and clause["drop"].get("acoustic" if name == "audio" else "visual", 0.0) >= 0.1:
                best = max(range(len(shares)), key=shares.__getitem__)
                start, stop = (duration_s * place / len(shares) for place in (best, best + 1))
                places.append(f"{name} {start:.1f}-{stop:.1f} s")
        text = textwrap.shorten(clause["text"], 60, placeholder="...")
        drops = (f"{value:.2f}" for value in clause["drop"].values())
        rows.append((f"  {text}", *drops, ", ".join(places)))
    return format_table(rows, "l" + "r" * len(prediction.attribution[0]["drop"]) + "l").splitlines()
