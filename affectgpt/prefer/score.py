"""python -m affectgpt.prefer score: choices of models against those of people, and against exchanged descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from affectgpt.config import PreferScoreConfig
from affectgpt.metrics.classification import Classification, weighted_f1_interval
from affectgpt.metrics.compare import named_after_files
from affectgpt.metrics.preference import (
    AnsweredPair,
    check_rows,
    published_choice,
    rank_models,
    read_answers,
    score_choices,
    swap_consistency,
    true_choices,
)
from affectgpt.metrics.report import percent
from affectgpt.runtime import UserError, write_json_atomic
from affectgpt.tables import cell_text, format_table, id_of, read_rows


def run_score(config: PreferScoreConfig) -> int:
    """Print the scores of each file, and write them to `out` if it is set."""
    if not config.files or not (config.references or config.reversed or config.names):
        raise UserError("give files of answers, and references=, reversed= or names=; --help shows how")
    if config.reversed and len(config.files) != 1:
        raise UserError(f"reversed= is about one file of answers, found {config.files}")
    systems = {name: read_answers(path) for name, path in named_after_files(config.files).items()}
    result: dict[str, Any] = {name: {"rows": len(rows)} for name, rows in systems.items()}
    if config.references:
        _score(config, systems, result)
    if config.names:
        result["ranking"] = _rank(config, systems)
    if config.reversed:
        (name,) = systems
        exchanged = read_answers(Path(config.reversed))
        check_rows(exchanged, _rows(systems[name]), config.files[0], exchanged=True)
        answers = [[row.answer for row in rows] for rows in (systems[name], exchanged)]
        rate = swap_consistency(*answers)
        n_same = sum({*map(published_choice, pair)} == {"same"} for pair in zip(*answers, strict=True))
        low, high = rate.interval or (0.0, 0.0)
        print(
            f"swap consistency: {percent(rate.value or 0.0)} % [{percent(low)}, {percent(high)}] "
            f"({rate.count} of {rate.n} rows, {n_same} of them same, or without a choice, in both orders)"
        )
        result[name]["swap_consistency"] = rate.to_dict() | {"same_in_both": n_same}
    if config.out:
        write_json_atomic(Path(config.out), result)
    return 0


def _rows(answers: Sequence[AnsweredPair]) -> list[tuple[str, str | None, str | None]]:
    return [(row.name, row.a1, row.a2) for row in answers]


def _score(config: PreferScoreConfig, systems: dict[str, list[AnsweredPair]], result: dict[str, Any]) -> None:
    references = read_answers(Path(str(config.references)))
    truths = true_choices(references)
    table: list[Sequence[str]] = [("", "weighted F1", "95 % interval", "accuracy", "n", "unread")]
    notes = []
    for name, rows in systems.items():
        check_rows(rows, _rows(references), str(config.references))
        scores = score_choices(truths, [row.answer for row in rows])
        kinds = {"two-class": scores.two, "three-class": scores.three, "two-class, strict": scores.strict}
        for kind, scored in kinds.items():
            interval = weighted_f1_interval(scored, n_bootstrap=config.n_bootstrap, seed=config.seed)
            shown = f"[{percent(interval.low)}, {percent(interval.high)}]" if interval else "-"
            unread = str(scored.unparsed) if scored is scores.strict else ""
            figures = (percent(scored.weighted_f1), shown, percent(scored.accuracy), str(scored.n), unread)
            table.append((f"{name}: {kind}", *figures))
            result[name][kind] = _to_dict(scored) | {"interval": asdict(interval) if interval else None}
        read = scores.read
        notes.append(
            f"{name}: {len(rows)} rows, {scores.n_same} of them same for people; {read['beginning'] + read['first']} "
            f"choices read from longer answers, {read['none']} answers without a choice, which count as same"
        )
        result[name] |= {"true_same": scores.n_same, "read": dict(read)}
    print(format_table(table))
    print("\n".join(notes))


def _rank(config: PreferScoreConfig, systems: dict[str, list[AnsweredPair]]) -> dict[str, Any]:
    """Bradley-Terry strengths of the models that wrote the descriptions by people and by each system, without ties."""
    table = Path(str(config.names))
    names: list[tuple[str, str, str]] = []
    for where, row in read_rows(table, known=("a1", "a2")):
        first, second = cell_text(row.get("a1")), cell_text(row.get("a2"))
        if first is None or second is None:
            raise UserError(f"{where}: expected name, a1 and a2, the models that wrote the descriptions")
        names.append((id_of(row, where), first, second))
    choices = {name: [published_choice(row.answer) for row in rows] for name, rows in systems.items()}
    for rows in systems.values():
        check_rows(rows, [(name, None, None) for name, _, _ in names], str(table))
    if config.references:
        choices = {"people": true_choices(read_answers(Path(config.references))), **choices}
    found = {}
    for by, chosen in choices.items():
        pairs = [(first, second, choice) for (_, first, second), choice in zip(names, chosen, strict=True)]
        found[by] = rank_models(pairs, n_bootstrap=0)
    models = list(dict.fromkeys(model for ranking in found.values() for model in ranking.strengths))
    rows: list[Sequence[str]] = [("strength, %", *found)]
    for model in models:
        shown = (ranking.strengths.get(model) for ranking in found.values())
        rows.append((model, *("-" if value is None else percent(value) for value in shown)))
    print(format_table(rows))
    for by, ranking in found.items():
        if ranking.undetermined:
            weaker, stronger = ranking.undetermined
            print(f"by {by}, no chain of wins leads from {weaker} to {stronger}: their distance is not determined")
    return {by: asdict(ranking) for by, ranking in found.items()}


def _to_dict(scored: Classification) -> dict[str, Any]:
    return {
        "weighted_f1": scored.weighted_f1, "accuracy": scored.accuracy, "macro_f1": scored.macro_f1, "n": scored.n,
        "unread": scored.unparsed, "classes": list(scored.classes), "confusion": scored.confusion.tolist(),
    }  # fmt: skip
