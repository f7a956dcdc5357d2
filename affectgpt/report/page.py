"""The page: one self-contained HTML file without scripts; nothing in it is loaded from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from affectgpt import __version__
from affectgpt.config import ReportConfig
from affectgpt.metrics.clip_scores import in_order, select
from affectgpt.plots import Panel, draw_curves
from affectgpt.report.clips import clips_section, differences_section
from affectgpt.report.figures import duration, n_of, percent, range_of
from affectgpt.report.gather import Content, System
from affectgpt.report.html import Html, el, join, sections, table
from affectgpt.report.pictures import plot
from affectgpt.report.scores import (
    answers_section,
    faithfulness_section,
    scores_section,
    sectors_section,
    systems_section,
)

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # nothing is loaded, no script runs
_STYLE = Path(__file__).with_name("style.css")


def page(content: Content, config: ReportConfig) -> str:
    """The complete HTML file."""
    first = next(iter(content.systems.values()), None)
    parts = [("summary", "Summary", _summary(content, first))]
    if len(content.systems) > 1:
        parts.append(("systems", "Systems", systems_section(content, config)))
    if first is not None:
        parts += [
            ("scores", "Scores", scores_section(first, config)),
            ("sectors", "Emotion wheel", sectors_section(first, content, config)),
            ("faithfulness", "Explanations", faithfulness_section(first)),
            ("answers", "Answers", answers_section(first, config)),
        ]
    parts.append(("training", "Training", _training(content, config)))
    if first is not None:
        scored = select(first.clips, state="scored")
        worst = in_order(scored, "f")[: config.n_clips]
        chosen = {clip.id for clip in worst}
        best = [clip for clip in in_order(scored, "f", descending=True) if clip.id not in chosen][: config.n_clips]
        parts += [
            ("worst", "Clips with the lowest F", clips_section(worst, first, config)),
            ("best", "Clips with the highest F", clips_section(best, first, config)),
        ]
    parts += [("differences", "Where systems differ", differences_section(content, config))]
    parts += [("record", "Run record", _records(content))]
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", content.title),
        el("style", Html(_STYLE.read_text(encoding="utf-8"))),
    )  # fmt: skip
    top = el("header", el("h1", content.title), *(el("p", note, class_="note") for note in content.notes))
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    foot = el(
        "footer", el("p", f"Made by affectgpt {__version__}, {made}. Frames and texts are those of the data set.")
    )
    body = el("body", el("a", "Skip to the summary", href="#summary", class_="skip"), top, sections(*parts), foot)
    return "<!doctype html>\n" + el("html", head, body, lang="en") + "\n"


def _summary(content: Content, first: System | None) -> Html:
    if first is None:
        best = [
            f"{name}: best {_metric(run)} by validation {percent(run.get('best_validation_score'))} %"
            for name, run in content.records.items()
        ]
        return join(*(el("p", line) for line in best))
    primary, counts = first.report["primary"], first.report["counts"]
    faith = (first.report.get("extras") or {}).get("faithfulness", {})
    cards = [
        (
            f"{percent(primary['f_score'])} %",
            f"F_S, {primary['name']}; 95 % interval {range_of(primary.get('interval'))}",
        )
    ]
    cards.append((n_of(primary), f"scored clips of {counts['references']}"))
    cards.append((f"{percent(primary['precision'])} / {percent(primary['recall'])} %", "precision / recall"))
    unsupported = faith.get("consistency", {}).get("unsupported", {})
    if unsupported.get("n"):
        cards.append(
            (
                f"{percent(unsupported['value'])} %",
                f"of {unsupported['n']} labels have no support in their explanation",
            )
        )
    lost = [
        f"{counts[key]} {what}"
        for key, what in (
            ("missing", "without a prediction"),
            ("unparsed", "without labels"),
            ("extra", "predictions without a reference"),
        )
        if counts[key]
    ]
    return join(
        el("p", f"Shown in detail: {first.name}.") if len(content.systems) > 1 else None,
        el("dl", *(el("div", el("dt", what), el("dd", figure)) for figure, what in cards), class_="cards"),
        el(
            "p",
            "Not complete: " + ", ".join(lost) + "; these count as wrong, predictions without a reference do not."
            if lost
            else "Every reference has a prediction with labels.",
            class_="quiet",
        ),
    )


def _metric(run: Mapping[str, Any]) -> str:
    """The name of a run's score by validation; a run that has not finished does not know it."""
    return run.get("validation_metric", "score")


def _training(content: Content, config: ReportConfig) -> Html:
    parts: list[Html] = []
    if not config.pictures:
        return Html("")
    loss = {name: (c["loss"].steps, c["loss"].values) for name, c in content.curves.items() if "loss" in c}
    score = {
        name: (c["eval_score"].steps, [100 * value for value in c["eval_score"].values])
        for name, c in content.curves.items()
        if "eval_score" in c
    }
    metric = ", ".join(sorted({_metric(run) for run in content.records.values()}))
    panels = [Panel("Training loss", "step", "loss", loss)] if loss else []
    panels += [Panel("Validation", "step", f"{metric}, %", score)] if score else []
    rewards: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {}
    for name, found in content.curves.items():
        for key, curve in found.items():
            if "reward" in key or key == "kl":
                rewards.setdefault(key, {})[name] = (curve.steps, curve.values)
    panels += [Panel(key, "step", key, lines) for key, lines in rewards.items()]
    if panels:
        ends = "; ".join(f"{name} ends with loss {values[-1]:.3f}" for name, (_, values) in loss.items())
        best = "; ".join(
            f"{name} has at best {_metric(content.records.get(name, {}))} {max(ys):.1f} percent"
            for name, (_, ys) in score.items()
        )
        parts.append(plot(draw_curves, panels, n_columns=2, alt=f"Curves over the steps of training: {ends}; {best}"))
    rows: list[tuple[object, ...]] = []
    for name, values in content.records.items():
        settings = [_setting(values, *path) for path in (("stage", "name"), ("model", "name"), ("data", "name"))]
        best_value = values.get("best_validation_score")
        best_score = percent(best_value) if best_value is None else f"{_metric(values)} {percent(best_value)}"
        ending = (values.get("steps", "–"), best_score, values.get("status", "–"), duration(values.get("duration_s")))
        rows.append((name, *settings, *ending))
    head = ("Run", "Stage", "Model", "Data", "Steps", "Best by validation, %", "Status", "Duration")
    return join(*parts, table("Training runs", head, rows, numbers_from=4))


def _setting(record: Mapping[str, Any], *path: str) -> str:
    found: Any = record.get("config") or {}
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return "–" if found is None else str(found)


def _records(content: Content) -> Html:
    of_systems = [(system.name, system.record) for system in content.systems.values() if system.record]
    return join(*(_record(name, record) for name, record in [*content.records.items(), *of_systems]))


def _record(name: str, record: Mapping[str, Any]) -> Html:
    facts = [
        (key, record.get(key)) for key in ("kind", "status", "started", "ended", "commit", "init_from", "num_processes")
    ]
    rows: list[tuple[object, ...]] = [(key, value) for key, value in facts if value is not None]
    if isinstance(record.get("command"), list):
        rows.append(("command", " ".join(map(str, record["command"]))))
    parts = {key: record[key] for key in ("versions", "machine") if isinstance(record.get(key), Mapping)}
    rows += [(key, ", ".join(f"{part} {value}" for part, value in found.items())) for key, found in parts.items()]
    inputs = record.get("inputs") if isinstance(record.get("inputs"), Mapping) else {}
    config = json.dumps(record.get("config"), indent=1, ensure_ascii=False)
    return el(
        "details",
        el("summary", name),
        table(f"Record of {name}", ("Field", "Value"), rows, numbers_from=2, class_="long"),
        table(f"Inputs of {name}", ("File", "sha256"), list((inputs or {}).items()), numbers_from=2, class_="long"),
        el("details", el("summary", "Configuration"), el("pre", config)),
    )
