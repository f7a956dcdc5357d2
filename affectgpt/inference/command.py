"""What infer.py and eval.py do once their configuration is read; returns exit codes, prints for people."""

from __future__ import annotations

import logging
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from affectgpt.config import BenchmarkConfig, EvalConfig, GenerateConfig, InferConfig, SourceConfig
from affectgpt.prompts import LABEL_LINE, LABEL_SEPARATOR
from affectgpt.runs import RunRecord
from affectgpt.runtime import UserError
from affectgpt.schema import BadSample, Prediction, Sample, to_json, true_labels

if TYPE_CHECKING:
    from affectgpt.inference.loading import LoadedModel
    from affectgpt.metrics import Report

log = logging.getLogger("affectgpt")


def run_inference(config: InferConfig) -> int:
    """Explain every input; print, or append to `out`. Exit code 0, or 3 if samples were left out."""
    from affectgpt.data.sources import probe_samples, read_manifest, report_bad, samples_from_paths

    if config.engine not in ("auto", "vllm"):
        raise UserError(f"engine is {config.engine!r}; expected auto or vllm")
    if not config.input:
        raise UserError("nothing to look at: python infer.py video.mp4 (or a folder, or a manifest); --help shows more")
    manifests = [path for path in config.input if Path(path).suffix in (".jsonl", ".csv")]
    if manifests and len(config.input) > 1:
        raise UserError(f"give one manifest, or media files and folders, not both; found {config.input}")
    bad: list[BadSample] = []
    if manifests:
        if config.subtitle is not None:
            raise UserError("subtitle= is for media files; a manifest has its own subtitle column")
        samples, bad = read_manifest(manifests[0], split=config.split, on_bad=config.on_bad)
    else:
        samples = samples_from_paths(config.input, config.subtitle)
    samples, bad_media = probe_samples(samples, on_bad=config.on_bad)
    bad += bad_media

    loaded = _load(config, config.dtype, config.quantization)
    rows = _predict(loaded, samples, config, bad, backend=config.backend, cache=config.cache_features)
    if config.out is None:
        by_id = {sample.id: sample for sample in samples}
        for prediction in rows:
            print(to_json(prediction) if config.json else human(prediction, by_id[prediction.id]))
            if not config.json:
                print()
    else:
        out = Path(config.out)
        settings = _settings(loaded, config)
        done = _predict_to_file(loaded, samples, out, config, bad, settings, config.backend, config.cache_features)
        log.info("%d predictions in %s", len(done), out)
    if config.out is not None:
        report_bad(bad, Path(config.out).parent)
    elif bad:
        listed = "\n".join(f"  {item.id}: {item.reason}" for item in bad)
        log.warning("left out %d bad samples:\n%s", len(bad), listed)
    return 3 if bad else 0


def human(prediction: Prediction, sample: Sample) -> str:
    """A prediction for the terminal: what was seen and heard, the explanation, the labels."""
    width = 100
    lines = [sample.video or sample.audio or sample.id]
    media = prediction.media
    if frames := media.get("frames"):
        times = frames["times_s"]
        lines.append(f"  saw    {len(times)} frames from {times[0]:.2f} to {times[-1]:.2f} s")
    if motion := media.get("motion"):
        lines.append(f"  saw    the motion of {len(motion['times_s'])} frames")
    if sound := media.get("audio"):
        lines.append(f"  heard  {sound['heard_s']:.1f} of {sound['duration_s']:.1f} s of sound")
    if prediction.subtitle and "text" in prediction.modalities:
        lines.append(f"  read   {prediction.subtitle!r}")
    unused = [name for name in sample.modalities or () if name not in prediction.modalities]
    if unused:
        lines.append(f"  left out {', '.join(unused)}")
    lines.append("")
    paragraphs = prediction.text.splitlines() or [""]
    if (
        prediction.task == "both"
        and prediction.labels
        and paragraphs[-1].startswith(LABEL_LINE[prediction.lang].strip())
    ):
        paragraphs.pop()  # the labels come below
    for paragraph in paragraphs:
        lines += textwrap.wrap(paragraph, width, initial_indent="  ", subsequent_indent="  ") or [""]
    if prediction.task == "both" and prediction.labels:
        lines += ["", f"  labels: {LABEL_SEPARATOR[prediction.lang].join(prediction.labels)}"]
    if prediction.finish == "length":
        lines.append(f"  (cut after {prediction.n_tokens} tokens; raise generate.max_new_tokens)")
    return "\n".join(lines)


def run_evaluation(config: EvalConfig, members: Sequence[BenchmarkConfig] = ()) -> int:
    """Score a predictions file, or a checkpoint after letting it predict; writes report.json and prints the table."""
    files = prediction_files(config)
    if config.benchmark.name:
        return _run_benchmark(config, files, members)
    if config.compare or len(files) > 1:
        return _compare(config, files)
    report, out = evaluate_config(config)
    print(report.table())
    log.info("report: %s", out / "report.json")
    return 0


def evaluate_config(config: EvalConfig) -> tuple[Report, Path]:
    """The report of `config` and the folder that holds it."""
    if files := prediction_files(config):
        if config.checkpoint is not None:
            raise UserError("give checkpoint= or predictions=, not both")
        return _score(config, files[0], Path(config.out) if config.out else files[0].parent)

    from affectgpt.cache.reader import cache_mode
    from affectgpt.data.facts import facts_in
    from affectgpt.data.sources import probe_samples, read_source, report_bad

    loaded = _load(config, None)
    samples: list[Sample] = []
    bad: list[BadSample] = []
    for source in _reference_sources(config):
        rows = read_source(source, config.data.folder, on_bad=config.data.on_bad)
        facts = facts_in(Path(config.paths.cache))
        usable, bad_media = probe_samples(rows.samples, on_bad=config.data.on_bad, facts=facts)
        samples += usable
        bad += rows.bad + bad_media
    out = Path(config.out) if config.out else loaded.folder.parent / f"eval-{loaded.folder.name}"
    file = out / "predictions.jsonl"
    settings = _settings(loaded, config)
    cache = cache_mode(config.data.cache_features) != "off"
    _predict_to_file(loaded, samples, file, config, bad, settings, config.data.backend, cache)
    report_bad(bad, out)
    return _score(config, file, out)


def _score(config: EvalConfig, predictions: Path, out: Path) -> tuple[Report, Path]:
    """Score a predictions file against the references of `config`; needs no torch."""
    from affectgpt.metrics import evaluate, read_predictions
    from affectgpt.metrics.evaluate import strict_extras

    rows = read_predictions(predictions)
    references, tables = _references(config)
    files = [predictions, *tables]
    record = RunRecord.start(out, kind="eval", config=asdict(config), inputs=files)
    extras: dict[str, Any] = {}
    if config.llm.model:
        rows, extras = _ask_llm(config, rows, references, out)
    extras["strict"] = strict_extras(rows, references, lexicon=config.lexicon)
    report = evaluate(
        rows, references, lexicon=config.lexicon, seed=config.seed, n_bootstrap=config.n_bootstrap, extras=extras
    )
    report.write(out / "report.json")
    record.finish("finished", f_s=report.primary.f_score, n=report.primary.n)
    return report, out


def prediction_files(config: EvalConfig) -> list[Path]:
    """The files of `predictions`: none, one or several."""
    given = config.predictions
    if not isinstance(given, (str, list, type(None))) or (isinstance(given, list) and not given):
        raise UserError(f"predictions={given!r}: expected a file, or a list like predictions=[a.jsonl,b.jsonl]")
    return [Path(item) for item in ([given] if isinstance(given, str) else given or [])]


def _references(config: EvalConfig) -> tuple[dict[str, tuple[str, ...]], list[Path]]:
    """True labels by id, and the files they stand in."""
    from affectgpt.data.sources import read_source
    from affectgpt.metrics import read_references

    references: dict[str, tuple[str, ...]] = {}
    files: list[Path] = []
    for source in _reference_sources(config):
        if source.manifest is not None and source.split_file is None and source.limit is None:
            references |= read_references(source.manifest, split=source.split, lang=config.lang)
            files.append(Path(source.manifest))
        else:
            rows = read_source(source, config.data.folder, on_bad=config.data.on_bad)
            references |= {sample.id: true_labels(sample, config.lang) for sample in rows.samples}
            files += rows.files
    return references, files


def _compare(config: EvalConfig, files: list[Path]) -> int:
    """Score several prediction files on the same references, with paired tests; writes comparison.json."""
    from affectgpt.metrics import read_predictions
    from affectgpt.metrics.compare import compare, named_after_files

    if len(files) < 2:
        raise UserError("compare=true needs two prediction files or more: predictions=[a.jsonl,b.jsonl]")
    out = Path(config.out) if config.out else files[0].parent
    references, _ = _references(config)
    systems = {name: read_predictions(file) for name, file in named_after_files(files).items()}
    result = compare(systems, references, lexicon=config.lexicon, seed=config.seed, n_bootstrap=config.n_bootstrap)
    print(result.table())
    result.write(out / "comparison.json")
    log.info("comparison: %s", out / "comparison.json")
    return 0


def _run_benchmark(config: EvalConfig, files: list[Path], parts: Sequence[BenchmarkConfig]) -> int:
    """Score predictions on a published test set; one with `parts` (members) takes a file for each, named after it."""
    from affectgpt.metrics import read_predictions
    from affectgpt.metrics.benchmarks import mean_result, run_benchmark, truth_path

    benchmark = config.benchmark
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
    inputs = [path for member, file in members for path in (file, truth_path(member))]
    record = RunRecord.start(out, kind="benchmark", config=asdict(config), inputs=inputs)
    results = []
    for (member, _), predictions in zip(members, answers, strict=True):
        result = run_benchmark(
            member,
            predictions,
            lexicon=config.lexicon,
            seed=config.seed,
            n_bootstrap=config.n_bootstrap,
        )
        print(result.table())
        result.write(out / f"benchmark-{member.name}.json")
        results.append(result)
    if benchmark.members:
        whole = mean_result(results, benchmark.name, benchmark.title)
        print(whole.table())
        whole.write(out / f"benchmark-{benchmark.name}.json")
        results.append(whole)
    record.finish("finished", benchmark=benchmark.name, value=results[-1].value, n=results[-1].n)
    return 0


def _member_file(folder: Path, name: str) -> Path:
    for suffix in (".jsonl", ".csv", ".npz"):
        if (path := folder / f"{name}{suffix}").is_file():
            return path
    raise UserError(f"{folder} has no predictions for {name}: expected {name}.jsonl, .csv or .npz")


def _ask_llm(
    config: EvalConfig, rows: list[Prediction], references: dict[str, tuple[str, ...]], out: Path
) -> tuple[list[Prediction], dict[str, Any]]:
    """Let an LLM read the labels where the parser finds none, and score its grouping of synonyms."""
    from affectgpt.chat.served import ChatClient
    from affectgpt.metrics.evaluate import labels_by_id
    from affectgpt.metrics.judge import extract_by_llm, llm_grouping_score
    from affectgpt.metrics.lexicon import load_lexicon

    llm = config.llm
    assert llm.model is not None
    client = ChatClient(
        llm.model,
        base_url=llm.base_url,
        cache=llm.cache or out / "llm-answers.jsonl",
        concurrency=llm.concurrency,
        offline=llm.offline,
    )
    tables = load_lexicon(config.lexicon)
    extras: dict[str, Any] = {"llm": {"model": llm.model, "server": llm.base_url or "api.openai.com"}}
    if llm.extract:
        labels, readings = labels_by_id(rows, tables)
        asked = {row.id: row.text for row in rows if not labels[row.id] and readings[row.id] == "nothing"}
        found = extract_by_llm(asked, client)
        rows = [replace(row, labels=found[row.id].labels or None) if row.id in found else row for row in rows]
        extras["llm_extraction"] = {"asked": len(asked), "read": sum(bool(item.labels) for item in found.values())}
    labels, _ = labels_by_id(rows, tables)
    grouped = llm_grouping_score(references, labels, client)
    extras["llm_grouping"] = {
        "f_score": grouped.score.f_score,
        "precision": grouped.score.precision,
        "recall": grouped.score.recall,
        "n": grouped.score.n,
        "prompt_version": grouped.prompt_version,
        "questions": grouped.n_questions,
        "unparsed": grouped.unparsed,
    }
    return rows, extras


def _reference_sources(config: EvalConfig) -> list[SourceConfig]:
    """Where the true labels are: a file of the user's, else the test sources of `data`."""
    if config.references is not None:
        return [SourceConfig(manifest=config.references, split=config.split)]
    if not config.data.test:
        raise UserError(f"data {config.data.name!r} has no test sources; name a manifest with references=")
    return config.data.test


def _load(config: InferConfig | EvalConfig, dtype: str | None, quantization: str | None = None) -> LoadedModel:
    from affectgpt.inference.loading import load

    return load(
        config.checkpoint,
        Path(config.paths.runs),
        device=config.device,
        dtype=dtype,
        quantization=quantization,
        base_models=config.base_models,
    )


def _asking_and_decoding(config: InferConfig | EvalConfig) -> tuple[Any, Any]:
    from affectgpt.inference.prediction import Asking, Decoding

    generate: GenerateConfig = config.generate
    asking = Asking(
        config.task,
        config.lang,
        tuple(getattr(config, "candidates", ())),
        None if config.modalities is None else tuple(config.modalities),
        config.use_subtitle,
    )
    return asking, Decoding(**asdict(generate))


def _settings(loaded: LoadedModel, config: InferConfig | EvalConfig) -> dict[str, Any]:
    from affectgpt.inference.prediction import settings_of

    asking, decoding = _asking_and_decoding(config)
    packed = (loaded.model.config.spec or {}).get("llm_quantization")
    more = {"quantization": packed} if packed else {}
    if isinstance(config, InferConfig) and config.engine != "auto":
        more["engine"] = config.engine
    return settings_of(asking, decoding, model=loaded.name, weights=loaded.weights_sha256, seed=config.seed, **more)


def _predict(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    config: InferConfig | EvalConfig,
    bad: list[BadSample],
    *,
    backend: str,
    cache: bool,
) -> Iterator[Prediction]:
    from affectgpt.inference.prediction import predict
    from affectgpt.runtime import seed_everything

    seed_everything(config.seed)
    asking, decoding = _asking_and_decoding(config)
    engine = {}
    if isinstance(config, InferConfig) and config.engine == "vllm":
        from affectgpt.inference.vllm import VllmEngine

        engine = {"engine": VllmEngine(loaded.model)}
    return predict(
        loaded.model,
        loaded.processor,
        samples,
        loaded.reader(
            backend=backend,
            cache_folder=Path(config.paths.cache) if cache else None,
            limit_gb=config.paths.cache_limit_gb,
        ),
        asking=asking,
        decoding=decoding,
        name=loaded.name,
        on_bad=config.data.on_bad if isinstance(config, EvalConfig) else config.on_bad,
        bad=bad,
        **engine,
    )


def _predict_to_file(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    out: Path,
    config: InferConfig | EvalConfig,
    bad: list[BadSample],
    settings: dict[str, Any],
    backend: str,
    cache: bool,
) -> list[Prediction]:
    from affectgpt.inference.prediction import predict_to_file

    return predict_to_file(
        lambda todo: _predict(loaded, todo, config, bad, backend=backend, cache=cache),
        samples,
        out,
        settings=settings,
        progress=lambda rows, done, total: tqdm(rows, "predicting", total, initial=done, file=sys.stderr),
    )
