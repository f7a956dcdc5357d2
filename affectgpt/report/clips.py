"""Sections with clips: frames, subtitle, reference, and the answers of systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from affectgpt.config import ReportConfig
from affectgpt.metrics.clip_scores import ClipScore, differences
from affectgpt.metrics.faithfulness import explanation_of, marked
from affectgpt.report.figures import LANGS, MODALITIES, percent
from affectgpt.report.gather import Content, System
from affectgpt.report.html import Html, el, join
from affectgpt.report.pictures import frames
from affectgpt.runtime import InputError


def clips_section(clips: Sequence[ClipScore], system: System, config: ReportConfig) -> Html:
    return join(*(_clip(clip, {system.name: system}, config) for clip in clips))


def _clip(clip: ClipScore, systems: Mapping[str, System], config: ReportConfig) -> Html:
    """A clip: frames, subtitle, reference, and the answer of each system."""
    sample = next((found for system in systems.values() if (found := system.samples.get(clip.id))), None)
    lang = LANGS.get(clip.lang or (sample.lang if sample else "en"))
    facts = [
        ("Subtitle", sample.subtitle if sample else None),
        ("True labels", ", ".join(clip.true_labels)),
        ("Reference", sample.description if sample else None),
    ]
    answers = []
    for name, system in systems.items():
        score = next(item for item in system.clips if item.id == clip.id)
        answers.append(_answer(name if len(systems) > 1 else "Answer", score, system, config))
    known = [(el("dt", what), el("dd", value, lang=lang)) for what, value in facts if value]
    return el(
        "article",
        el("h3", clip.id, el("span", f"F {percent(clip.f, 0)} %", class_="badge") if len(systems) == 1 else None),
        frames(sample, config.n_frames) if config.n_frames else None,
        el("dl", *(item for pair in known for item in pair)),
        *answers,
        class_="clip",
    )


def _answer(name: str, score: ClipScore, system: System, config: ReportConfig) -> Html:
    prediction = system.predictions.get(score.id)
    sectors = f"sector {score.predicted_sector(config.k)}, true {score.true_sector(config.k)} (wheel {config.k})"
    rates = f"F {percent(score.f, 0)}, precision {percent(score.precision, 0)}, recall {percent(score.recall, 0)} %"
    if prediction is None:
        return join(el("h4", name), el("p", "No prediction.", class_="note"))
    faith = score.faithfulness
    found = []
    if faith and faith.unsupported:
        found.append("labels without support: " + ", ".join(faith.unsupported))
    if faith and faith.contradicting:
        found.append("emotions that contradict the labels: " + ", ".join(faith.contradicting))
    if faith and faith.clue_precision is not None:
        found.append(f"{round(faith.clue_precision * faith.n_clues)} of {faith.n_clues} clues are in the reference")
    return join(
        el("h4", name),
        el(
            "blockquote",
            _with_marks(explanation_of(prediction.text), marked(prediction).unsupported),
            lang=LANGS.get(prediction.lang),
        ),
        el("p", "Labels: ", el("b", ", ".join(score.predicted_labels) or "none", lang=LANGS.get(prediction.lang))),
        el("p", f"{rates}; {sectors}", class_="quiet"),
        el("p", "; ".join(found), class_="quiet") if found else None,
    )


def _with_marks(text: str, unsupported: Sequence[Mapping[str, str]]) -> Html:
    """The explanation, with sentences about what was not shown marked in words too."""
    parts: list[object] = []
    rest = text
    for item in unsupported:
        before, found, after = rest.partition(item["sentence"])
        if found:
            what = MODALITIES.get(item["modality"], item["modality"])
            parts += [before, el("mark", found), el("span", f" ({what} not shown)", class_="quiet")]
            rest = after
    return join(*parts, rest)


def differences_section(content: Content, config: ReportConfig) -> Html:
    systems = list(content.systems.values())
    if len(systems) < 2:
        return Html("")
    parts = []
    first, second = systems[:2]
    try:
        found = differences(first.clips, second.clips, n_resamples=0, seed=config.seed)
    except InputError:
        return Html("")
    clips = [clip for clip in found.clips if clip.difference][: config.n_clips]
    parts.append(el("p", f"The clips with the largest difference in F between {first.name} and {second.name}."))
    parts += [_clip(clip.first, {first.name: first, second.name: second}, config) for clip in clips]
    return join(*parts) if clips else Html("")
