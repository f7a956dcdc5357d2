"""`python -m affectgpt.analyze faithfulness`: answer every clip again with changed inputs, and see what changes.

- For every subset of pictures, sound and words: F_S, explanations about something that was not shown, clues.
- Interventions: the sound of another clip, the subtitle of another clip (both with other emotions), one modality left
  out. A faithful explanation changes exactly the clauses of that modality; its conclusion may change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt.cache.reader import cache_mode
from affectgpt.clauses import BRANCHES, split
from affectgpt.config import EvalConfig, QuestionConfig
from affectgpt.data.facts import facts_in
from affectgpt.inference.evaluate import read_test_samples
from affectgpt.inference.loading import load, refuse_for_omni
from affectgpt.inference.prediction import predict
from affectgpt.inference.probes import probe_clues
from affectgpt.metrics import evaluate, load_lexicon
from affectgpt.metrics.evaluate import labels_by_id
from affectgpt.metrics.faithfulness import explanation_of, faithfulness, phrases
from affectgpt.metrics.lexicon import Lexicon
from affectgpt.metrics.report import percent
from affectgpt.metrics.stats import Rate
from affectgpt.metrics.wheel import LEVEL1, WheelGrouping
from affectgpt.plots import draw_heat_map
from affectgpt.runtime import InputError, UserError, seed_everything, write_json_atomic
from affectgpt.schema import CLUES, Prediction, Sample, true_labels
from affectgpt.tables import format_table

log = logging.getLogger("affectgpt")

_TITLES = {"visual": "pictures", "acoustic": "sound", "lexical": "subtitle"}
_PARTS = (*CLUES, "conclusion")


def run_faithfulness(config: EvalConfig) -> int:
    """Print the tables; write faithfulness.json and a picture to `out`."""
    result, out = measure(config)
    print(table(result))
    draw(out / "faithfulness", result)
    log.info("figures: %s, picture: faithfulness.png, .svg, .pdf", out / "faithfulness.json")
    return 0


def measure(config: EvalConfig) -> tuple[dict[str, Any], Path]:
    """The scores of a checkpoint, written to faithfulness.json, and the folder of that file."""
    if config.predictions is not None:
        raise UserError(
            "analyze faithfulness asks a model again: give checkpoint=, not predictions= (eval.py scores those)"
        )
    loaded = load(
        config.checkpoint,
        Path(config.paths.runs),
        device=config.device,
        base_models=config.base_models,
        model=config.model,
    )
    refuse_for_omni(loaded.model, {"analyze faithfulness": True})
    samples, bad = read_test_samples(config, loaded.face_needs(config.data.backend))
    samples = [sample for sample in samples if sample.modalities]
    if len(samples) < 2:
        raise UserError(f"found {len(samples)} usable clips with media; interventions need two or more")
    cache = Path(config.paths.cache)
    reader = loaded.reader(
        backend=config.data.backend,
        cache_folder=None if cache_mode(config.data.cache_features) == "off" else cache,
        limit_gb=config.paths.cache_limit_gb,
        facts=facts_in(cache),
    )

    def answer(question: QuestionConfig, asked: Sequence[Sample]) -> list[Prediction]:
        seed_everything(config.seed)
        rows = predict(
            loaded.model, loaded.processor, asked, reader, question=question, generate=config.generate, name=loaded.name
        )
        return list(rows)

    lexicon, references = load_lexicon(config.lexicon), _descriptions(samples, config.lang)
    result = analyse(samples, answer, loaded.model.modalities, config, lexicon, references)
    others = contrasting({sample.id: true_labels(sample, config.lang) for sample in samples}, lexicon)
    log.info("probing the clues of %d clips", len(samples))
    probes = probe_clues(
        loaded.model, loaded.processor, reader, samples, references, others, QuestionConfig(lang=config.lang)
    )
    result["probes"] = {name: {case: rate.to_dict() for case, rate in row.items()} for name, row in probes.items()}
    result |= {"checkpoint": str(loaded.folder), "n_bad": len(bad), "config": asdict(config.generate)}
    out = Path(config.out) if config.out else loaded.folder.parent / f"faithfulness-{loaded.folder.name}"
    write_json_atomic(out / "faithfulness.json", result)
    return result, out


def analyse(
    samples: Sequence[Sample],
    answer: Callable[[QuestionConfig, Sequence[Sample]], list[Prediction]],
    model_has: Sequence[str],
    config: EvalConfig,
    lexicon: Lexicon,
    references: Mapping[str, Any],
) -> dict[str, Any]:
    """Scores of every subset of inputs, and what changes under every intervention.

    Args:
        answer: (question, samples) -> their predictions.
        model_has: the modalities of the model.
        references: id -> reference description or clauses.

    Raises:
        InputError: the model can be shown nothing of any clip.
    """
    question = QuestionConfig(task="both", lang=config.lang)
    truth = {sample.id: true_labels(sample, config.lang) for sample in samples}
    answers: dict[tuple[str, ...], list[Prediction]] = {}
    rows = {}
    for size in (3, 2, 1):
        for shown in combinations(CLUES, size):
            branches = [[name for name in BRANCHES[clue] if name in model_has] for clue in shown if clue in BRANCHES]
            names = [name for each in branches for name in each]
            asked = [sample for sample in samples if _has(sample, names, "lexical" in shown)]
            if not all(branches) or not asked:
                continue
            log.info("asking %d clips with %s", len(asked), " and ".join(_TITLES[clue] for clue in shown))
            found = answer(replace(question, modalities=names, use_subtitle="lexical" in shown), asked)
            answers[shown] = found
            labels, _ = labels_by_id(found, lexicon)
            score = evaluate(found, {key: truth[key] for key in labels}, lexicon=lexicon, n_bootstrap=0).primary
            scores = faithfulness(found, labels, references, lexicon, n_bootstrap=0)
            rows["+".join(shown)] = {"n": len(found), "f_s": score.f_score, "n_scored": score.n, **scores}
    if not answers:
        raise InputError(
            f"none of the {len(samples)} clips has a subtitle or an input that the model takes: {', '.join(model_has)}"
        )
    whole = next(iter(answers.values()))
    everything = next(iter(answers))
    return {
        "subsets": rows,
        "interventions": _interventions(
            samples, answer, answers, whole, everything, question, model_has, truth, lexicon
        ),
        "lang": config.lang,
        "seed": config.seed,
    }


def _has(sample: Sample, names: Sequence[str], subtitle: bool) -> bool:
    return bool(set(names) & set(sample.modalities or ())) or (subtitle and bool(sample.subtitle))


def _interventions(
    samples: Sequence[Sample],
    answer: Callable[[QuestionConfig, Sequence[Sample]], list[Prediction]],
    answers: Mapping[tuple[str, ...], list[Prediction]],
    whole: Sequence[Prediction],
    everything: tuple[str, ...],
    question: QuestionConfig,
    model_has: Sequence[str],
    truth: Mapping[str, Sequence[str]],
    lexicon: Lexicon,
) -> dict[str, Any]:
    """Intervention -> share of answers whose clauses changed, by modality, and whether only the right ones did."""
    before = {row.id: row for row in whole}
    others = contrasting(truth, lexicon)
    by_id = {sample.id: sample for sample in samples}
    changed: dict[str, tuple[str, list[Prediction]]] = {}
    for clue in everything:
        rest = tuple(name for name in everything if name != clue)
        if rest in answers:
            changed[f"no {_TITLES[clue]}"] = clue, answers[rest]
    with_sound = [sample for sample in samples if "audio" in (sample.modalities or ())]
    if "acoustic" in everything and len(with_sound) > 1:
        sources = {sample.id: by_id[others[sample.id]] for sample in with_sound}
        swapped = [
            replace(sample, audio=sources[sample.id].audio or sources[sample.id].video)
            for sample in with_sound
            if "audio" in (sources[sample.id].modalities or ())
        ]
        log.info("asking %d clips with the sound of another", len(swapped))
        changed["sound of another clip"] = "acoustic", answer(question, swapped)
    spoken = [sample for sample in samples if sample.subtitle and by_id[others[sample.id]].subtitle]
    if "lexical" in everything and spoken:
        swapped = [_with_subtitle_of(sample, by_id[others[sample.id]]) for sample in spoken]
        log.info("asking %d clips with the subtitle of another", len(swapped))
        changed["subtitle of another clip"] = "lexical", answer(question, swapped)
    return {name: {"modality": clue, **_changes(before, rows, clue)} for name, (clue, rows) in changed.items()}


def contrasting(truth: Mapping[str, Sequence[str]], lexicon: Lexicon) -> dict[str, str]:
    """id -> the next id whose labels share the fewest level-1 categories of the five wheels with it."""
    grouping = WheelGrouping(lexicon)
    categories = {
        key: {(name, group) for name in LEVEL1 for group in grouping.map(labels, name)} for key, labels in truth.items()
    }
    ids = list(truth)
    found = {}
    for place, key in enumerate(ids):
        order = ids[place + 1 :] + ids[:place]
        found[key] = min(order, key=lambda other, own=categories[key]: len(own & categories[other]))
    return found


def _with_subtitle_of(sample: Sample, other: Sample) -> Sample:
    translations = {
        lang: {**texts, "subtitle": other.in_language(lang, strict=False).subtitle}
        for lang, texts in sample.translations.items()
    }
    return replace(sample, subtitle=other.in_language(sample.lang, strict=False).subtitle, translations=translations)


def _changes(before: Mapping[str, Prediction], after: Sequence[Prediction], clue: str) -> dict[str, Any]:
    counts = dict.fromkeys(_PARTS, 0)
    exact = n = 0
    for row in after:
        if row.id not in before:
            continue
        n += 1
        old, new = _by_modality(before[row.id]), _by_modality(row)
        moved = {name for name in _PARTS if old[name] != new[name]}
        for name in moved:
            counts[name] += 1
        exact += moved - {"conclusion"} == {clue}
    return {
        "exact": Rate(exact, n).to_dict(),
        "changed": {name: Rate(count, n).to_dict() for name, count in counts.items()},
    }


def _by_modality(prediction: Prediction) -> dict[str, frozenset[str]]:
    """The single clues of an explanation by modality; relations of several modalities count for the conclusion."""
    found: dict[str, set[str]] = {name: set() for name in _PARTS}
    for clause in split(explanation_of(prediction.text), prediction.lang):
        name = clause.modality if clause.modality in CLUES else "conclusion"
        found[name].update(phrases(clause.text, prediction.lang))
    return {name: frozenset(parts) for name, parts in found.items()}


def _descriptions(samples: Sequence[Sample], lang: str) -> dict[str, Any]:
    texts = {sample.id: sample.in_language(lang, strict=False) for sample in samples}
    return {key: text.clauses or text.description for key, text in texts.items() if text.clauses or text.description}


def table(result: Mapping[str, Any]) -> str:
    """Two tables: subsets of the inputs, and interventions."""
    return (
        f"{table_of_subsets(result)}\n\n{_table_of_interventions(result)}\n\n{_table_of_probes(result)}\n"
        "not shown: % of explanations with a statement about that modality, where it was not shown\n"
        "exact: % of answers in which the clues of exactly the modality of the intervention changed\n"
        "probes: % of pairs in which the clip's own clue is more likely than that of another clip; 50 = chance"
    )


def table_of_subsets(result: Mapping[str, Any]) -> str:
    """F_S, statements about what was not shown, and precision and recall of clues, by what was shown."""
    lines = [("shown", "n", "F_S", "not shown: visual", "acoustic", "lexical", "clues P", "clues R")]
    for name, row in result["subsets"].items():
        title = ", ".join(_TITLES[clue] for clue in name.split("+"))
        absent = [_share(row["absent_modality"][clue]) for clue in CLUES]
        clues = [row["clues"]["all"][key] for key in ("precision", "recall")]
        shown = ["-" if value is None else percent(value) for value in clues]
        lines.append((title, str(row["n"]), percent(row["f_s"]), *absent, *shown))
    return format_table(lines, "lrrrrrrr")


def _table_of_interventions(result: Mapping[str, Any]) -> str:
    changed = [("intervention", "n", "exact", *(f"{name} changed" for name in _PARTS))]
    for name, row in result["interventions"].items():
        shares = [_share(row["changed"][part]) for part in _PARTS]
        changed.append((name, str(row["exact"]["n"]), _share(row["exact"]), *shares))
    return format_table(changed, "lrrrrrr")


def _table_of_probes(result: Mapping[str, Any]) -> str:
    lines = [("probes", "n", "modality shown", "hidden")]
    for name, row in result.get("probes", {}).items():
        lines.append((name, str(row["shown"]["n"]), _share(row["shown"]), _share(row["hidden"])))
    return format_table(lines, "lrrr")


def _share(row: Mapping[str, Any]) -> str:
    return "-" if row["value"] is None else percent(row["value"])


def draw(path: Path, result: Mapping[str, Any]) -> None:
    """A heat map: interventions against the share of answers in which the clauses of a modality changed."""
    rows = result["interventions"]
    shares = [[rows[name]["changed"][part]["value"] for part in _PARTS] for name in rows]
    values = np.array([[np.nan if share is None else share for share in row] for row in shares])
    if len(values):
        title = "Answers whose clauses change, %"
        draw_heat_map(path, 100 * values, list(rows), list(_PARTS), title=title, fmt="{:.0f}", low=0, high=100)
