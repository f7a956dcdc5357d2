"""Sections about scores: systems and their tests, groupings, the wheel, explanations, answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from affectgpt.config import ReportConfig
from affectgpt.metrics.clip_scores import NO_SECTOR, differences, extents, sector_confusion, wheel_order
from affectgpt.metrics.stats import Rate
from affectgpt.metrics.wheel import WheelGrouping, label_shares
from affectgpt.plots import draw_bars, draw_wheel
from affectgpt.report.figures import MODALITIES, n_of, percent, range_of
from affectgpt.report.gather import Content, System
from affectgpt.report.html import Html, el, join, table
from affectgpt.report.pictures import plot
from affectgpt.runtime import InputError


def _score_rows(report: Mapping[str, Any]) -> list[tuple[object, ...]]:
    return [
        (
            name,
            percent(row["f_score"]),
            range_of(row.get("interval")),
            percent(row["precision"]),
            percent(row["recall"]),
            n_of(row),
        )
        for name, row in report["scores"].items()
    ]


def scores_section(system: System, config: ReportConfig) -> Html:
    report = system.report
    head = ("Grouping", "F_S, %", "95 % interval", "Precision, %", "Recall, %", "Clips")
    wheels = {name: row for name, row in report["scores"].items() if name.endswith("-L1")}
    picture = None
    if config.pictures and wheels:
        values = {
            key: [100 * row[of] for row in wheels.values()]
            for key, of in (("F_S", "f_score"), ("precision", "precision"), ("recall", "recall"))
        }
        spans = {"F_S": [_interval(row) for row in wheels.values()]}
        none: list[Any] = [None] * len(wheels)
        names = [name.removeprefix("M3-").removesuffix("-L1").replace("W", "wheel ") for name in wheels]
        picture = plot(
            draw_bars, names, values, title="Scores by wheel, level 1", unit="%, interval of F_S at 95 %",
            intervals={**spans, "precision": none, "recall": none},
            alt="Bars of F_S, precision and recall on each of the five wheels; the table has the same figures",
        )  # fmt: skip
    rows = _score_rows(report)
    lexicon, boot = report["lexicon"], report["bootstrap"]
    read = f"Lexicon {lexicon['name']} ({lexicon['sha256'][:12]}), labels read {report.get('label_reading', 'exact')}"
    more = table("Scores by grouping, in percent", head, rows[3:])
    return join(
        table("Scores in percent; the first row is the primary score", head, rows[:3] or rows),
        picture,
        el("details", el("summary", "Every grouping"), more) if more else None,
        el("p", f"{read}, intervals from {boot['n']} resamples of the clips, seed {boot['seed']}.", class_="quiet"),
    )


def _interval(row: Mapping[str, Any]) -> tuple[float, float] | None:
    found = row.get("interval")
    return None if found is None else (100 * found["low"], 100 * found["high"])


def systems_section(content: Content, config: ReportConfig) -> Html:
    systems = content.systems
    rows = []
    for name, system in systems.items():
        row, counts = system.report["primary"], system.report["counts"]
        rows.append(
            (
                name,
                percent(row["f_score"]),
                range_of(row.get("interval")),
                percent(row["precision"]),
                percent(row["recall"]),
                n_of(row),
                counts["missing"],
                counts["unparsed"],
            )
        )
    picture = None
    if config.pictures:
        primary = [system.report["primary"] for system in systems.values()]
        picture = plot(
            draw_bars,
            list(systems),
            {"F_S": [100 * row["f_score"] for row in primary]},
            title="F_S of the systems",
            unit="level 1 mean, %, with 95 % intervals",
            intervals={"F_S": [_interval(row) for row in primary]},
            horizontal=True,
            alt="Bars of the F_S of each system with its interval; the table has the same figures",
        )
    head = ("System", "F_S, %", "95 % interval", "Precision, %", "Recall, %", "Clips", "Missing", "Without labels")
    return join(table("Systems on the same references", head, rows), picture, _tests(content, config))


def _tests(content: Content, config: ReportConfig) -> Html:
    """Paired tests of the first system against every other."""
    (first, *others) = content.systems.values()
    rows: list[tuple[object, ...]] = []
    reasons = []
    for other in others:
        try:
            found = differences(first.clips, other.clips, n_resamples=config.n_bootstrap, seed=config.seed)
        except InputError as error:
            reasons.append(f"{first.name} and {other.name}: {error}")
            continue
        test = found.test
        span = f"{100 * test.interval.low:+.1f} to {100 * test.interval.high:+.1f}"
        counts = (found.n_first_better, found.n_second_better, found.n_equal)
        pair = f"{first.name} − {other.name}"
        rows.append((pair, f"{100 * test.difference:+.1f}", span, f"{test.p_value:.4f}", *counts))
    head = ("Difference", "F_S, points", "95 % interval", "p", "First better", "Second better", "Equal")
    note = f"{len(rows)} pairs were tested; multiply p by that for a cautious reading." if len(rows) > 1 else None
    return join(
        table("Paired bootstrap tests on the same clips, and clips by which system has the higher F", head, rows),
        el("p", note, class_="quiet") if note else None,
        *(el("p", reason, class_="note") for reason in reasons),
    )


def sectors_section(system: System, content: Content, config: ReportConfig) -> Html:
    k = config.k
    order = wheel_order(content.lexicon, k)
    scored = [clip for clip in system.clips if clip.f is not None]
    found = sector_confusion(scored, k, order)
    picture = _wheel(system, content, config) if config.pictures and scored else None
    rows = []
    for place, (name, row) in enumerate(zip(found.sectors, found.counts, strict=True)):
        if row.sum():
            right = None if name == NO_SECTOR else place
            cells = [_cell(count, row.sum(), n == right) for n, count in enumerate(row)]
            rows.append(el("tr", el("th", name, scope="row"), *cells, el("td", int(row.sum()), class_="n")))
    names = [el("th", name, scope="col", class_="n") for name in (*found.sectors, "clips")]
    top = el("tr", el("th", "True sector", scope="col"), *names)
    caption = f"Wheel {k}: scored clips by true sector (rows) and predicted sector (columns); the diagonal is right"
    matrix = el("table", el("caption", el("span", caption)), el("thead", top), el("tbody", *rows), class_="matrix")
    agreement = found.agreement
    low, high = agreement.interval or (None, None)
    share = f"{percent(agreement.value)} % of {agreement.n} clips, 95 % interval {percent(low)} to {percent(high)}"
    rule = "A clip belongs to the sector of most of its labels; with equal numbers, to that of the label listed first."
    return join(
        picture,
        el("div", matrix, class_="scroll", role="region", aria_label=caption, tabindex="0"),
        el("p", f"In their true sector: {share}. {rule}", class_="quiet"),
    )


def _wheel(system: System, content: Content, config: ReportConfig) -> Html:
    """The wheel with shares of all true and of all predicted labels."""
    order = wheel_order(content.lexicon, config.k)
    sides = [[clip.true_labels for clip in system.clips], [clip.predicted_labels for clip in system.clips]]
    found = label_shares(
        *sides, WheelGrouping(content.lexicon), config.k, n_bootstrap=config.n_bootstrap, seed=config.seed
    )
    true, answered = found.side(0), found.side(1)
    shown = [f"{name} {percent(true.get(name, 0))} and {percent(answered.get(name, 0))}" for name in order]
    return plot(
        draw_wheel,
        true,
        answered,
        title=f"Wheel {config.k}" + (", with 95 % intervals" if found.intervals is not None else ""),
        intervals=found.ranges(),
        order=order,
        alt=f"The sectors of wheel {config.k} with their shares of all true and of all predicted labels, in percent: "
        + "; ".join(shown),
    )


def _cell(count: int, total: int, right: bool) -> Html:
    """A cell shaded by its share of the row; always dark text on a light ground."""
    share = count / total if total else 0.0
    return el(
        "td", int(count), class_="n right" if right else "n", style=f"background:rgba(0,114,178,{0.42 * share:.2f})"
    )


def faithfulness_section(system: System) -> Html:
    faith = (system.report.get("extras") or {}).get("faithfulness")
    if not faith:
        return Html("")
    clues: list[tuple[object, ...]] = []
    for name, row in faith.get("clues", {}).items():
        if row["n_predicted"] or row["n_reference"]:
            precision = (percent(row["precision"]), range_of(row.get("precision_interval")), row["n_predicted"])
            recall = (percent(row["recall"]), range_of(row.get("recall_interval")), row["n_reference"])
            clues.append((MODALITIES.get(name, name), *precision, *recall))
    names = {
        "unsupported": "labels that the explanation does not support",
        "contradicting": "explanations that contradict their labels",
        "silent": "explanations without an emotion word",
    }
    rates = [
        (f"explanations with a statement about {MODALITIES[name]}, not shown", row)
        for name, row in faith.get("absent_modality", {}).items()
        if row["n"] and name != "any"
    ]
    rates += [(names[name], row) for name, row in faith.get("consistency", {}).items() if row["n"]]
    rates += [
        (f"explanations with {what}", faith["explanations"][name])
        for name, what in (
            ("eea", "a true emotion (EEA)"),
            ("epc", "a predicted emotion (EPC)"),
            ("fcr", "both right (FCR)"),
        )
        if name in faith.get("explanations", {})
    ]
    rows = [(what, percent(row["value"]), range_of(row), row["count"], row["n"]) for what, row in rates if row.get("n")]
    return join(
        table(
            "Clues of the explanations against those of the references",
            ("Clues from", "Precision, %", "95 % interval", "Clues", "Recall, %", "95 % interval", "True clues"),
            clues,
        ),
        table("Explanations and labels", ("What", "Share, %", "95 % interval", "Count", "Of"), rows),
        el(
            "p",
            "Statements are found by rules; docs/faithfulness.md says what these figures do not show.",
            class_="quiet",
        ),
    )


def _extents(system: System) -> Html:
    """Bars of the numbers of labels and of the lengths of explanations, as shares of the clips with intervals."""
    found = extents([system.clips])

    def bars(title: str, names: list[str], series: Mapping[str, Sequence[int]], unit: str) -> Html:
        rates = {key: [Rate(n, sum(counts)) for n in counts] for key, counts in series.items()}
        values = {key: [100 * (rate.value or 0.0) for rate in each] for key, each in rates.items()}
        spans = {
            key: [None if rate.interval is None else (100 * rate.interval[0], 100 * rate.interval[1]) for rate in each]
            for key, each in rates.items()
        }
        told = "; ".join(
            f"{key}: " + ", ".join(f"{name}: {n}" for name, n in zip(names, counts, strict=True))
            for key, counts in series.items()
        )
        return plot(draw_bars, names, values, title=title, unit=unit, intervals=spans, alt=f"{title}, in clips: {told}")

    labels = {"true": found.true, "predicted": found.predicted[0]}
    return join(
        bars("Labels of a clip", found.numbers(), labels, "% of clips, with 95 % intervals"),
        bars("Characters of an explanation", found.spans(), {"explanations": found.lengths[0]},
             "% of explanations, with 95 % intervals") if found.lengths[0] else None,
    )  # fmt: skip


def answers_section(system: System, config: ReportConfig) -> Html:
    clips = system.clips
    given = [clip for clip in clips if not clip.missing]
    rows = []
    for what, values in (
        ("true labels of a clip", [clip.n_true for clip in clips]),
        ("predicted labels of a clip", [clip.n_predicted for clip in given]),
        ("characters of an explanation", [clip.n_characters for clip in given if clip.n_characters]),
        ("tokens of an answer", [clip.n_tokens for clip in given if clip.n_tokens is not None]),
    ):
        if values:
            low, middle, high = np.quantile(values, [0.05, 0.5, 0.95], method="inverted_cdf")
            rows.append((what, f"{np.mean(values):.1f}", f"{low:g}", f"{middle:g}", f"{high:g}", len(values)))
    shown = Counter(", ".join(clip.modalities) or "not recorded" for clip in given)
    readings = Counter(clip.reading or "" for clip in given)
    by_inputs = []
    for inputs, n in shown.most_common():
        scored = [
            clip.f for clip in given if (", ".join(clip.modalities) or "not recorded") == inputs and clip.f is not None
        ]
        by_inputs.append((inputs, n, percent(float(np.mean(scored)) if scored else None)))
    return join(
        _extents(system) if config.pictures and given else None,
        table("Numbers and lengths", ("Of", "Mean", "5 %", "Median", "95 %", "n"), rows),
        table("By the inputs that the model was shown", ("Inputs", "Clips", "Mean F of the clips, %"), by_inputs),
        table("How the labels were read", ("Way", "Clips"), [(way, n) for way, n in readings.most_common()]),
    )
