"""python -m affectgpt.ensemble: the predictions of several systems as those of one, with the origin of every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from affectgpt.config import EnsembleConfig
from affectgpt.metrics import load_lexicon, read_predictions, read_references
from affectgpt.metrics.classification import to_class
from affectgpt.metrics.clip_scores import NO_SECTOR, score_clips, sectors_of
from affectgpt.metrics.compare import named_after_files
from affectgpt.metrics.ensemble import Routing, majority, plurality, route, votes
from affectgpt.metrics.evaluate import labels_by_id
from affectgpt.metrics.lexicon import Lexicon
from affectgpt.metrics.preference import check_rows, published_choice, read_answers
from affectgpt.metrics.report import percent
from affectgpt.metrics.wheel import GROUPINGS, WheelGrouping
from affectgpt.runtime import InputError, json_line, sha256_of_file, write_json_atomic, write_lines_atomic
from affectgpt.schema import Prediction, to_row
from affectgpt.tables import cell_text, format_table, id_of, read_rows, write_csv

HOW = ("union", "majority", "vote", "routing")
BY = ("all", "modalities", "sector")
Row = tuple[Prediction, dict[str, Any]]
"""A prediction and its origin."""


def run(config: EnsembleConfig) -> int:
    """Write the predictions of the ensemble, and next to them `<out>.ensemble.json` about how they were made."""
    _check(config)
    out = Path(str(config.out))
    files = named_after_files(config.files)
    facts: dict[str, Any] = {"how": config.how, "files": _hashes(files)}
    if config.pairs:
        facts["n"] = _vote_on_pairs(files, out)
        print(f"{out}: {facts['n']} rows, the vote of {len(files)} systems")
    else:
        lexicon = load_lexicon(config.lexicon, config.label_reading)
        systems = {name: _by_id(path) for name, path in files.items()}
        _check_ids(systems)
        if config.how == "routing":
            rows, made = _routed(config, systems, lexicon)
        else:
            rows, made = _combined(config, systems, lexicon)
        write_lines_atomic(out, (json_line(to_row(row) | {"ensemble": origin}) for row, origin in rows))
        facts |= made | {"n": len(rows), "n_without_labels": sum(row.labels == () for row, _ in rows)}
        print(f"{out}: {len(rows)} clips, {facts['n_without_labels']} without a label; {made['rule']}")
    write_json_atomic(out.with_name(f"{out.name}.ensemble.json"), facts)
    return 0


def _check(config: EnsembleConfig) -> None:
    if config.how not in HOW:
        raise InputError(f"how is {config.how!r}; expected one of {list(HOW)}")
    if not config.files or config.out is None:
        raise InputError("give prediction files, and out=, the file to write; --help shows how")
    if config.pairs and config.how != "vote":
        raise InputError(f"pairs=true is for how=vote, found how={config.how}")
    if config.how == "majority" and not 1 <= _at_least(config) <= len(config.files):
        raise InputError(f"at_least={config.at_least}; expected a number of systems, 1 to {len(config.files)}")
    if config.equal not in ("word", *GROUPINGS):
        raise InputError(f"equal is {config.equal!r}; expected word or a grouping: {', '.join(GROUPINGS)}")
    routing = config.validation, config.references
    if config.how == "routing" and not all(routing):
        raise InputError("how=routing needs validation=[...], predictions on labelled clips, and their references=")
    if config.how != "routing" and any(routing):
        raise InputError("validation= and references= are for how=routing")
    if config.how == "routing" and len(config.validation) != len(config.files):
        raise InputError(
            f"{len(config.files)} files and {len(config.validation)} in validation=; expected one of each system, in "
            "the same order"
        )


def _at_least(config: EnsembleConfig) -> int:
    return len(config.files) // 2 + 1 if config.at_least is None else config.at_least


def _hashes(files: Mapping[str, Path]) -> dict[str, Any]:
    return {name: {"path": str(path), "sha256": sha256_of_file(path)} for name, path in files.items()}


def _by_id(path: Path) -> dict[str, Prediction]:
    return {row.id: row for row in read_predictions(path)}


def _check_ids(systems: Mapping[str, Mapping[str, Prediction]]) -> None:
    """Raise InputError unless all systems have predicted the same clips: a missing one would silently lose its vote."""
    (first, known), *others = systems.items()
    for name, rows in others:
        if differ := sorted(set(rows) ^ set(known)):
            raise InputError(
                f"{first} and {name} are not about the same clips: {len(differ)} are in one of them only, such as "
                f"{differ[0]!r}; predict these clips first"
            )


# ---- union, majority, vote -------------------------------------------------------------------------------------------


def _combined(
    config: EnsembleConfig, systems: Mapping[str, Mapping[str, Prediction]], lexicon: Lexicon
) -> tuple[list[Row], dict[str, Any]]:
    labels = {name: labels_by_id(rows.values(), lexicon)[0] for name, rows in systems.items()}
    same, at_least = _same(config.equal, lexicon), _at_least(config)
    name = {
        "union": "union of {systems}",
        "majority": f"labels of {at_least} or more of {{systems}}",
        "vote": "vote of {systems}",
    }[config.how].format(systems=", ".join(systems))
    rows: list[Row] = []
    silent: Counter[str] = Counter()  # clips without a vote of a system
    for key, row in next(iter(systems.values())).items():
        given = {system: found[key] for system, found in labels.items()}
        if config.how == "vote":
            classes = {system: _class_of(words, config.classes, lexicon) for system, words in given.items()}
            voting = {system: word for system, word in classes.items() if word is not None}
            silent.update(system for system in classes if system not in voting)
            choice, by = plurality(voting) if voting else ("", ())
            found = {choice: by} if choice else {}
            chosen = tuple(found)
        else:
            found = votes(given, same)
            chosen = tuple(found) if config.how == "union" else majority(found, at_least)
        made = Prediction(
            key, ", ".join(chosen), labels=chosen, task="labels", lang=row.lang, modalities=row.modalities,
            subtitle=row.subtitle, model=name, person=row.person,
        )  # fmt: skip
        rows.append((made, {"how": config.how, "votes": {label: list(found[label]) for label in chosen}}))
    equal = "" if config.how == "vote" else f"; labels are equal by {config.equal}"
    facts = {"equal": config.equal, "at_least": at_least, "classes": list(config.classes), "without_vote": dict(silent)}
    if silent:
        equal += "; clips without a vote: " + ", ".join(f"{system} {n}" for system, n in silent.items())
    return rows, {"rule": name + equal, **facts}


def _same(equal: str, lexicon: Lexicon) -> Callable[[str], Hashable]:
    """When two labels count as one: the same word in any case, or the same group; words without one by the word."""
    if equal == "word":
        return lambda label: label.strip().lower()
    grouping = WheelGrouping(lexicon)
    return lambda label: grouping.groups(label).get(equal, label.strip().lower())


def _class_of(labels: Sequence[str], classes: Sequence[str], lexicon: Lexicon) -> str | None:
    """The class of a system's labels; without `classes`, its first label."""
    if classes:
        return to_class(labels, classes, lexicon)
    return labels[0].lower() if labels else None


def _vote_on_pairs(files: Mapping[str, Path], out: Path) -> int:
    """Vote on the choices of track 3, row by row; returns the number of rows."""
    systems = {name: read_answers(path) for name, path in files.items()}
    (first, rows), *others = systems.items()
    wanted = [(row.name, row.a1, row.a2) for row in rows]
    for _, answers in others:
        check_rows(answers, wanted, first)
    table: list[Sequence[str]] = [("name", "a1", "a2", "preference", "by")]
    for number, (name, a1, a2) in enumerate(wanted):
        choice, by = plurality({key: published_choice(answers[number].answer) for key, answers in systems.items()})
        table.append((name, a1 or "", a2 or "", choice, " + ".join(by)))
    write_csv(out, table)
    return len(wanted)


# ---- routing ---------------------------------------------------------------------------------------------------------


def _routed(
    config: EnsembleConfig, systems: Mapping[str, Mapping[str, Prediction]], lexicon: Lexicon
) -> tuple[list[Row], dict[str, Any]]:
    checks = {name: _by_id(Path(path)) for name, path in zip(systems, config.validation, strict=True)}
    _check_ids(checks)
    scores, keys = _clip_scores(config, checks, lexicon)
    first = next(iter(systems))
    groups = _groups(config, checks[first], lexicon)
    routing = route(scores, [groups[key] for key in keys], min_clips=config.min_clips, seed=config.seed)
    _print(routing)
    of = _groups(config, systems[first], lexicon)
    rows: list[Row] = []
    for key in systems[first]:
        system = routing.system_of(of[key])
        row = systems[system][key]
        row = replace(row, model=f"{row.model or system} (chosen by routing)")
        rows.append((row, {"how": "routing", "system": system, "group": of[key]}))
    unseen = sorted(set(of.values()) - set(routing.routes))
    if unseen:
        n = sum(group in unseen for group in of.values())
        print(f"{n} clips are in groups without a validation clip, {', '.join(unseen)}: {routing.best} answers")
    rule = (
        f"routing by {config.by}: the best of {', '.join(systems)} on the {len(keys)} validation clips of the clip's "
        f"group, and {routing.best}, the best on all of them, for groups of fewer than {config.min_clips}"
    )
    return rows, {
        "rule": rule, "by": config.by, "min_clips": config.min_clips, "routing": routing.to_dict(),
        "groups_without_validation": unseen, "classes": list(config.classes), "n_validation": len(keys),
        "validation": _hashes(dict(zip(systems, map(Path, config.validation), strict=True))),
        "references": _hashes({"references": Path(str(config.references))})["references"],
    }  # fmt: skip


def _clip_scores(
    config: EnsembleConfig, checks: Mapping[str, Mapping[str, Prediction]], lexicon: Lexicon
) -> tuple[dict[str, list[float]], list[str]]:
    """system -> score of each scored validation clip, and their ids.

    The score is the clip's F, the mean over the wheels; with `classes`, 1 if the class is right, else 0.
    """
    truth = read_references(str(config.references), split=config.split) if not config.classes else _classes(config)
    keys = [key for key in truth if key in next(iter(checks.values()))]
    if not keys:
        raise InputError(f"no clip of validation= is in {config.references}; are both of one data set?")
    scores: dict[str, list[float | None]] = {}
    for name, rows in checks.items():
        if config.classes:
            found = labels_by_id(rows.values(), lexicon)[0]
            scores[name] = [float(to_class(found[key], config.classes, lexicon) == truth[key][0]) for key in keys]
        else:
            clips = score_clips([rows[key] for key in keys], {key: truth[key] for key in keys}, lexicon=lexicon)
            scores[name] = [clip.f for clip in clips]
    scored = [place for place in range(len(keys)) if all(values[place] is not None for values in scores.values())]
    return (
        {name: [value for place in scored if (value := values[place]) is not None] for name, values in scores.items()},
        [keys[place] for place in scored],
    )


def _classes(config: EnsembleConfig) -> dict[str, tuple[str, ...]]:
    """id -> its one true label, from a column label, discrete or labels."""
    found = {}
    for where, row in read_rows(Path(str(config.references)), known=("label", "discrete", "labels", "split")):
        if config.split is not None and cell_text(row.get("split")) != config.split:
            continue
        label = next((text for name in ("label", "discrete", "labels") if (text := cell_text(row.get(name)))), None)
        if label is None or label.lower() not in config.classes:
            raise InputError(f"{where}: the true label is {label!r}; expected one of {list(config.classes)}")
        found[id_of(row, where)] = (label.lower(),)
    return found


def _groups(config: EnsembleConfig, rows: Mapping[str, Prediction], lexicon: Lexicon) -> dict[str, str]:
    """id -> the group of a clip, from what is known about it without its truth."""
    if config.by == "all":
        return dict.fromkeys(rows, "all")
    if config.by == "modalities":
        if lacking := [key for key, row in rows.items() if not row.modalities]:
            raise InputError(f"by=modalities: the predictions do not tell what was shown of {lacking[0]!r}")
        return {key: "+".join(row.modalities) for key, row in rows.items()}
    if config.by == "sector":
        grouping, labels = WheelGrouping(lexicon), labels_by_id(rows.values(), lexicon)[0]
        return {key: next(iter(sectors_of(labels[key], 1, grouping)), NO_SECTOR) for key in rows}
    rows_of_table = read_rows(Path(config.by), known=("group",))
    table = {id_of(row, where): cell_text(row.get("group")) for where, row in rows_of_table}
    if lacking := [key for key in rows if not table.get(key)]:
        raise InputError(
            f"by={config.by}: no group of {lacking[0]!r} ({len(lacking)} of {len(rows)} clips); expected one of "
            f"{list(BY)}, or a table with name and group"
        )
    return {key: str(table[key]) for key in rows}


def _print(routing: Routing) -> None:
    names = list(routing.singles)
    rows: list[Sequence[str]] = [("group", "system", "n", *names)]
    for group, each in routing.routes.items():
        chosen = f"{each.system} (too few clips)" if each.too_few else each.system
        rows.append((group, chosen, str(each.n), *(percent(each.scores[name]) for name in names)))
    n = sum(each.n for each in routing.routes.values())
    rows.append(("all", routing.best, str(n), *(percent(routing.singles[name]) for name in names)))
    print(format_table(rows, "ll"))
    held = "" if routing.held_out is None else f", {percent(routing.held_out)} on held-out fifths of them"
    print(
        f"mean score of the validation clips: {percent(routing.value)} routed, "
        f"{percent(routing.singles[routing.best])} by {routing.best} alone{held}"
    )


if __name__ == "__main__":
    from affectgpt.cli import main

    main("ensemble")
