"""eval.py: score predictions files, or a checkpoint after it has written one. Scoring a file needs no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.config import BenchmarkConfig, EvalConfig, LlmConfig, SourceConfig
from affectgpt.runs import RunRecord, is_checkpoint_name
from affectgpt.runs.boards import boards
from affectgpt.runtime import UserError, json_line, redacted, write_lines_atomic
from affectgpt.schema import BadSample, Prediction, Sample, true_labels

if TYPE_CHECKING:
    from affectgpt.chat.served import ChatClient
    from affectgpt.data.faces import FaceNeeds
    from affectgpt.metrics import Lexicon, Report
    from affectgpt.metrics.clip_scores import ClipScore
    from affectgpt.metrics.faithfulness import Matcher
    from affectgpt.metrics.judge import LlmGrouping

log = logging.getLogger("affectgpt")

_N_SHOWN = 20  # clips on wandb and TensorBoard


def run_evaluation(config: EvalConfig, members: Sequence[BenchmarkConfig] = ()) -> int:
    """Score, print the table and write report.json and scores.jsonl.

    Args:
        members: of `config.benchmark`, if it is a mean of several benchmarks.
    """
    files = _prediction_files(config)
    if config.benchmark.name:
        _run_benchmark(config, files, members)
    elif config.compare or len(files) > 1:
        _compare(config, files)
    else:
        report, out = evaluate_config(config)
        print(report.table())
        log.info("report: %s", out / "report.json")
    return 0


def evaluate_config(config: EvalConfig) -> tuple[Report, Path]:
    """The report on one predictions file or checkpoint, and the folder that it was written to."""
    from affectgpt.metrics import load_lexicon, read_predictions
    from affectgpt.metrics.clip_scores import SCORES, write_scores

    files = _prediction_files(config)
    if files and config.checkpoint is not None:
        raise UserError("give checkpoint= or predictions=, not both")
    if config.llm.clues and not config.llm.model:
        raise UserError("llm.clues=true needs a chat model: llm.model=...")
    lexicon = load_lexicon(config.lexicon, config.label_reading)
    references, tables = references_of(config, published_splitting(lexicon))  # before hours of prediction
    file = files[0] if files else _predict(config)
    out = Path(config.out) if config.out else file.parent
    rows = read_predictions(file)
    extras: dict[str, Any] = {}
    with RunRecord.start(out, kind="eval", config=asdict(config), inputs=[file, *tables]) as record:
        if config.llm.model or config.llm.groups:
            rows, extras = _ask_llm(config, lexicon, rows, references, out)
        report, clips = score_rows(config, lexicon, rows, references, out, extras)
        write_scores(out / SCORES, clips)
        report.write(out / "report.json")
        record.finish("finished", f_s=report.primary.f_score, n=report.primary.n)
    _show(config, out, "eval", lambda board: _show_report(board, report, clips))
    return report, out


def _show(config: EvalConfig, out: Path, job: str, show: Callable[[Any], None]) -> None:
    """Show numbers on the boards that the settings ask for, in the group of the run that they are about."""
    about = Path(config.checkpoint) if config.checkpoint else out if config.predictions else out.parent
    run = about.parent if is_checkpoint_name(about.name) else about
    tags = [job, config.data.name, f"seed {config.seed}"]
    with boards(config.logging, out, job=job, group=run.name, tags=tags, config=asdict(config)) as shown:
        for board in shown:
            show(board)


def _show_report(board: Any, report: Report, clips: Sequence[ClipScore]) -> None:
    from affectgpt.metrics.clip_scores import in_order

    board.figures(report.figures())
    columns = ["id", "F", "true labels", "predicted labels", "true sector", "predicted sector", "inputs"]
    worst = [clip for clip in in_order(clips, "f") if clip.f is not None][:_N_SHOWN]
    rows = [
        (clip.id, clip.f, ", ".join(clip.true_labels), ", ".join(clip.predicted_labels), clip.true_sector(),
         clip.predicted_sector(), ", ".join(clip.modalities))
        for clip in worst
    ]  # fmt: skip
    board.rows("test/lowest F", columns, rows)


def score_rows(
    config: EvalConfig,
    lexicon: Lexicon,
    rows: list[Prediction],
    references: Mapping[str, tuple[str, ...]],
    out: Path,
    extras: Mapping[str, Any] | None = None,
) -> tuple[Report, list[ClipScore]]:
    """The report on predictions, with strict scores and faithfulness, and the scores of the clips.

    Args:
        out: folder for the answers of a language model, if one compares clues.
        extras: further results for the report.
    """
    from affectgpt.metrics import evaluate
    from affectgpt.metrics.clip_scores import score_clips
    from affectgpt.metrics.evaluate import strict_extras

    found = {**(extras or {}), "strict": strict_extras(rows, references, lexicon=lexicon)}
    descriptions, match = None, None
    if config.faithfulness and any(row.text and row.task in ("both", "description") for row in rows):
        descriptions, match = descriptions_of(config), _clue_matcher(config, out)
        found["faithfulness"] = _faithfulness(config, lexicon, rows, references, descriptions, match)
    report = evaluate(rows, references, lexicon=lexicon, seed=config.seed, n_bootstrap=config.n_bootstrap, extras=found)
    return report, score_clips(rows, references, lexicon=lexicon, descriptions=descriptions, match=match)


def read_test_samples(config: EvalConfig, faces: FaceNeeds | None = None) -> tuple[list[Sample], list[BadSample]]:
    """The samples of `references` or of the test sources, with probed modalities, and those that cannot be used."""
    from affectgpt.data.facts import facts_in
    from affectgpt.data.sources import probe_samples, read_source, with_person

    samples: list[Sample] = []
    bad: list[BadSample] = []
    for source in reference_sources(config):
        rows = read_source(source, config.data.folder, on_bad=config.data.on_bad)
        facts = facts_in(Path(config.paths.cache))
        asked = with_person(rows.samples, config.person)
        usable, bad_media = probe_samples(asked, on_bad=config.data.on_bad, facts=facts, faces=faces)
        samples += usable
        bad += rows.bad + bad_media
    return samples, bad


def _predict(config: EvalConfig) -> Path:
    """Let the checkpoint predict all test samples; returns the predictions file."""
    from affectgpt.cache.reader import cache_mode
    from affectgpt.data.facts import facts_in
    from affectgpt.data.sources import report_bad
    from affectgpt.inference.infer import check_engine, check_question
    from affectgpt.inference.loading import load, settings_of
    from affectgpt.inference.prediction import check_modalities, predict, predict_to_file
    from affectgpt.inference.vllm import engine_named
    from affectgpt.runtime import seed_everything

    check_engine(config.engine)
    check_question(config, config.generate)
    loaded = load(
        config.checkpoint, Path(config.paths.runs), device=config.device, base_models=config.base_models,
        model=config.model,
    )  # fmt: skip
    check_modalities(config, loaded.model.modalities)
    samples, bad = read_test_samples(config, loaded.face_needs(config.data.backend))
    cache = None if cache_mode(config.data.cache_features) == "off" else Path(config.paths.cache)
    predictions = partial(
        predict,
        loaded.model,
        loaded.processor,
        reader=loaded.reader(
            backend=config.data.backend,
            cache_folder=cache,
            limit_gb=config.paths.cache_limit_gb,
            facts=facts_in(Path(config.paths.cache)),
        ),
        question=config,
        generate=config.generate,
        name=loaded.name,
        on_bad=config.data.on_bad,
        bad=bad,
        answer=engine_named(config.engine, loaded, Path(config.paths.cache), config.vllm, config.seed),
    )
    seed_everything(config.seed)
    out = Path(config.out) if config.out else loaded.folder.parent / f"eval-{loaded.folder.name}"
    file = out / "predictions.jsonl"
    settings = settings_of(loaded, config, config.generate, config.seed, config.engine, config.data.backend)
    if config.person is not None:
        settings["person"] = config.person
    predict_to_file(predictions, samples, file, settings=settings)
    report_bad(bad, out)
    return file


def _prediction_files(config: EvalConfig) -> list[Path]:
    """The files of `predictions`: none, one or several."""
    given = config.predictions
    if not isinstance(given, (str, list, type(None))) or (isinstance(given, list) and not given):
        raise UserError(f"predictions={given!r}: expected a file, or a list like predictions=[a.jsonl,b.jsonl]")
    return [Path(item) for item in ([given] if isinstance(given, str) else given or [])]


def reference_sources(config: EvalConfig) -> list[SourceConfig]:
    """Where the true labels are: the file `references`, else the test sources of `data`."""
    if config.references is not None:
        return [SourceConfig(manifest=config.references, columns=config.columns, split=config.split)]
    if not config.data.test:
        raise UserError(f"data {config.data.name!r} has no test sources; name a manifest with references=")
    return config.data.test


def references_of(
    config: EvalConfig, split_text: Callable[[str], Iterable[str]] | None
) -> tuple[dict[str, tuple[str, ...]], list[Path]]:
    """True labels by id, and the files that they were read from.

    Args:
        split_text: how a manifest's cells of text are split; None = by our own parser.
    """
    from affectgpt.data.sources import read_source
    from affectgpt.metrics import read_references

    references: dict[str, tuple[str, ...]] = {}
    files: list[Path] = []
    for source in reference_sources(config):
        if source.manifest is not None and source.split_file is None and source.limit is None:
            references |= read_references(
                source.manifest, split=source.split, lang=config.lang, split_text=split_text, columns=source.columns
            )
            files.append(Path(source.manifest))
        else:
            rows = read_source(source, config.data.folder, on_bad=config.data.on_bad)
            references |= {sample.id: true_labels(sample, config.lang) for sample in rows.samples}
            files += rows.files
    return references, files


def published_splitting(lexicon: Lexicon) -> Callable[[str], Iterable[str]] | None:
    """Split references as the published code does, where the lexicon is the published one."""
    from affectgpt.metrics.lexicon import split_published

    return split_published if lexicon.label_splitting == "published" else None


def descriptions_of(config: EvalConfig) -> dict[str, Any]:
    """id -> description or clauses of the references in `config.lang`, where they have one."""
    from affectgpt.data.sources import read_source
    from affectgpt.metrics.io import read_descriptions

    texts: dict[str, Any] = {}
    for source in reference_sources(config):
        if source.manifest is not None and source.split_file is None and source.limit is None:
            texts |= read_descriptions(source.manifest, split=source.split, lang=config.lang, columns=source.columns)
        else:
            for sample in read_source(source, config.data.folder, on_bad=config.data.on_bad).samples:
                localized = sample.in_language(config.lang, strict=False)
                texts[sample.id] = localized.clauses or localized.description or ""
    return texts


def _clue_matcher(config: EvalConfig, out: Path) -> Matcher | None:
    """A language model that compares clues; its answers are stored, so that it is asked once. None = by words."""
    from affectgpt.metrics.judge import match_by_llm

    return match_by_llm(_client(config.llm, out)) if config.llm.clues else None


def _faithfulness(
    config: EvalConfig,
    lexicon: Lexicon,
    rows: list[Prediction],
    references: Mapping[str, tuple[str, ...]],
    texts: Mapping[str, Any],
    match: Matcher | None,
) -> dict[str, Any]:
    """Scores of the explanations; clues are compared with those of the descriptions `texts`."""
    from affectgpt.metrics.evaluate import labels_by_id
    from affectgpt.metrics.faithfulness import faithfulness
    from affectgpt.metrics.reasoning import score_explanations

    known = [row for row in rows if row.id in texts] or rows
    labels, _ = labels_by_id(known, lexicon)
    scores = faithfulness(known, labels, texts, lexicon, match=match, n_bootstrap=config.n_bootstrap, seed=config.seed)
    explained = score_explanations(known, references, labels, lexicon)
    return {
        **scores,
        "clues_matched_by": config.llm.model if config.llm.clues else "words",
        **({"explanations": explained.to_dict()} if explained else {}),
    }


def _compare(config: EvalConfig, files: list[Path]) -> None:
    """Score several predictions files on the same references, with paired tests; writes comparison.json."""
    from affectgpt.metrics import load_lexicon, read_predictions
    from affectgpt.metrics.compare import compare, named_after_files

    if len(files) < 2:
        raise UserError("compare=true needs two or more predictions files: predictions=[a.jsonl,b.jsonl]")
    out = Path(config.out) if config.out else files[0].parent
    lexicon = load_lexicon(config.lexicon, config.label_reading)
    references, _ = references_of(config, published_splitting(lexicon))
    systems = {name: read_predictions(file) for name, file in named_after_files(files).items()}
    result = compare(systems, references, lexicon=lexicon, seed=config.seed, n_bootstrap=config.n_bootstrap)
    print(result.table())
    result.write(out / "comparison.json")
    _show(config, out, "compare", lambda board: board.figures(result.figures()))
    log.info("comparison: %s", out / "comparison.json")


def _run_benchmark(config: EvalConfig, files: list[Path], parts: Sequence[BenchmarkConfig]) -> None:
    """Score predictions on a published test set; a mean of several (`parts`) takes a file for each, named after it."""
    from affectgpt.metrics import load_lexicon, read_predictions
    from affectgpt.metrics.benchmarks import BenchmarkResult, mean_result, read_valences, run_benchmark, truth_files
    from affectgpt.metrics.clip_scores import benchmark_scores, write_scores
    from affectgpt.metrics.question_benchmarks import QUESTION_KINDS

    benchmark = config.benchmark
    if not files and not benchmark.members and config.data.name == benchmark.name:
        truth_files(benchmark)  # before hours of prediction
        if benchmark.kind in QUESTION_KINDS and config.task != "description":
            raise UserError(
                f"{benchmark.name} has questions of its own, which task=description asks; found {config.task}"
            )
        files = [_predict(config)]
    if len(files) != 1:
        raise UserError("a benchmark scores one predictions= (a folder of <member>.jsonl files, if it has members)")
    source = files[0]
    members = [(benchmark, source)]
    if benchmark.members:
        if not source.is_dir():
            raise UserError(f"{benchmark.name} is a mean: predictions= must be a folder of <member>.jsonl files")
        members = [(part, _member_file(source, part.name)) for part in parts]
    out = Path(config.out) if config.out else (source if source.is_dir() else source.parent)
    answers = [read_predictions(file) for _, file in members]
    inputs = [path for member, file in members for path in (file, *truth_files(member))]
    client = _client(config.llm, out) if config.llm.model else None
    divider = _client(replace(config.llm, model=config.llm.steps_model), out) if config.llm.steps_model else None
    lexicon = load_lexicon(config.lexicon, config.label_reading)
    results = []

    def add(result: BenchmarkResult, name: str) -> None:
        print(result.table())
        result.write(out / f"benchmark-{name}.json")
        if result.clips:
            write_scores(benchmark_scores(out, name), result.clips)
        if result.answers:
            write_lines_atomic(out / f"answers-{name}.jsonl", map(json_line, result.answers))
        results.append(result)

    with RunRecord.start(out, kind="benchmark", config=asdict(config), inputs=inputs) as record:
        for (member, file), rows in zip(members, answers, strict=True):
            extraction: dict[str, Any] = {}
            if client is not None and config.llm.extract:
                rows, extraction = _extract(client, lexicon, rows)
            result = run_benchmark(
                member, rows, lexicon=lexicon, seed=config.seed, n_bootstrap=config.n_bootstrap, client=client,
                valences=read_valences(file) if member.kind == "classes_valence" else None, groups=config.llm.groups,
                divider=divider, n_frames=config.llm.n_frames,
            )  # fmt: skip
            if extraction:
                read = f"{extraction['read']} of {extraction['asked']} texts without a list"
                result = replace(result, details={**result.details, "labels read by the LLM": read})
            add(result, member.name)
        if benchmark.members:
            add(mean_result(results, benchmark.name, benchmark.title, benchmark.published), benchmark.name)
        record.finish("finished", benchmark=benchmark.name, value=results[-1].value, n=results[-1].n)
    values = {f"benchmark/{item.name}": item.value for item in results}
    _show(config, out, "benchmark", lambda board: board.figures(values))


def _member_file(folder: Path, name: str) -> Path:
    for suffix in (".jsonl", ".csv", ".npz"):
        if (path := folder / f"{name}{suffix}").is_file():
            return path
    raise UserError(f"{folder} has no predictions for {name}: expected {name}.jsonl, .csv or .npz")


def _client(llm: LlmConfig, out: Path) -> ChatClient:
    """The language model; its answers are stored in `out` unless `llm.cache` names another file."""
    from affectgpt.chat.served import ChatClient

    assert llm.model is not None
    return ChatClient(
        llm.model,
        base_url=llm.base_url,
        cache=llm.cache or out / "llm-answers.jsonl",
        concurrency=llm.concurrency,
        max_tokens_name=llm.max_tokens_name,
        temperature=llm.temperature,
        offline=llm.offline,
    )


def _extract(client: ChatClient, lexicon: Lexicon, rows: list[Prediction]) -> tuple[list[Prediction], dict[str, int]]:
    """Let a language model read the labels of the texts in which the parser finds none."""
    from affectgpt.metrics.evaluate import labels_by_id
    from affectgpt.metrics.judge import extract_by_llm

    labels, readings = labels_by_id(rows, lexicon)
    asked = {row.id: row.text for row in rows if not labels[row.id] and readings[row.id] == "nothing"}
    found = extract_by_llm(asked, client)
    rows = [replace(row, labels=found[row.id].labels or None) if row.id in found else row for row in rows]
    return rows, {"asked": len(asked), "read": sum(bool(item.labels) for item in found.values())}


def _ask_llm(
    config: EvalConfig,
    lexicon: Lexicon,
    rows: list[Prediction],
    references: Mapping[str, tuple[str, ...]],
    out: Path,
) -> tuple[list[Prediction], dict[str, Any]]:
    """Score the grouping of synonyms by an LLM, or by published answers of one; let it read labels if it shall."""
    from affectgpt.metrics.evaluate import labels_by_id
    from affectgpt.metrics.judge import llm_grouping_score

    llm = config.llm
    extras: dict[str, Any] = {}
    client = _client(llm, out) if llm.model else None
    if client is not None:
        extras["llm"] = {"model": llm.model, "server": redacted(llm.base_url or "api.openai.com")}
        if llm.extract:
            rows, extras["llm_extraction"] = _extract(client, lexicon, rows)
    if llm.groups is not None:
        grouped = _score_published_groups(config, rows, lexicon, Path(llm.groups))
        extras["llm"] = {**extras.get("llm", {}), "groups": llm.groups}
    else:
        assert client is not None
        grouped = llm_grouping_score(references, labels_by_id(rows, lexicon)[0], client)
    extras["llm_grouping"] = {
        "by": grouped.model,
        "f_score": grouped.score.f_score,
        "precision": grouped.score.precision,
        "recall": grouped.score.recall,
        "avg": grouped.score.avg,
        "intervals": grouped.intervals(n_bootstrap=config.n_bootstrap, seed=config.seed),
        "n": grouped.score.n,
        "prompt_version": grouped.prompt_version,
        "questions": grouped.n_questions,
        "unparsed": grouped.unparsed,
        "missing": grouped.missing,
        "refused": grouped.refused,
    }
    return rows, extras


def _score_published_groups(config: EvalConfig, rows: list[Prediction], lexicon: Lexicon, path: Path) -> LlmGrouping:
    from affectgpt.metrics.evaluate import labels_by_id
    from affectgpt.metrics.judge import labels_as_published, published_grouping_score, read_stored_answers
    from affectgpt.metrics.lexicon import split_published_2024

    answers = read_stored_answers(path)
    references, _ = references_of(config, split_published_2024)
    labels = labels_as_published(rows, labels_by_id(rows, lexicon)[0])
    return published_grouping_score(references, labels, answers, source=path.name)
