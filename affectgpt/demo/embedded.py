"""Resolve the names of the embedded demo in conf/ (`demo:coarse`, `demo:llm` ...), building the data on first use."""

from __future__ import annotations

import json
from pathlib import Path

from affectgpt.demo.corpus import build_corpus, corpus_folder, corpus_jobs, processes_for
from affectgpt.runtime import InputError, json_line, log, write_lines_atomic

MANIFESTS = ("coarse", "fine")
MODELS = ("hubert", "eva", "videomae", "llm")
SECOND_LLM = "llm_qwen2"
HELD_OUT = "held-out"
"""332 clips of other people, annotated like the fine set, for differences that 66 test clips would not show."""
_HELD_OUT = {"seed": 7, "n_coarse": 0}
PRETRAINED = "projectors"


def build(cache: Path) -> None:
    """Build corpus and base models below `cache` in one go, unless they exist."""
    from affectgpt.demo.models import in_one_thread, model_jobs, models_folder

    with corpus_jobs(corpus_folder(cache / "demo")) as clips, model_jobs(models_folder(cache / "demo")) as models:
        jobs = [*models, *clips]
        if jobs:
            trained = f" and {len(models)} base models trained" if models else ""
            log.info("=== on first use, %d clips are drawn%s", len(clips), trained)
        for _ in processes_for(len(jobs)).map(in_one_thread, jobs):
            pass


def path_of(name: str, cache: Path) -> Path:
    """Path of a manifest, base model or pretrained projectors, built below `cache` on first use.

    Raises:
        InputError: unknown name.
    """
    if name in MANIFESTS:
        corpus = corpus_folder(cache / "demo")
        build_corpus(corpus)
        return corpus / f"{name}.jsonl"
    if name == HELD_OUT:
        return _held_out(cache / "demo")
    if name == SECOND_LLM:
        from affectgpt.demo.models import build_second_llm

        return build_second_llm(cache / "demo")
    if name in MODELS:
        from affectgpt.demo.models import build_base_models, models_folder

        models = models_folder(cache / "demo")
        build_base_models(models)
        return models / name
    if name == PRETRAINED:
        from affectgpt.demo.projectors import build_projectors, projectors_folder

        folder = projectors_folder(cache / "demo")
        build_projectors(folder, path_of("llm", cache).parent)
        return folder
    known = [*MANIFESTS, HELD_OUT, *MODELS, SECOND_LLM, PRETRAINED]
    raise InputError(f"demo:{name} is not part of the embedded demo; expected one of {known}")


def _held_out(folder: Path) -> Path:
    """The manifest of the held-out clips. Their ids are their own, so that none is taken for a training clip."""
    corpus = corpus_folder(folder, **_HELD_OUT)
    build_corpus(corpus, **_HELD_OUT)
    path = corpus / f"{HELD_OUT}.jsonl"
    if not path.exists():
        rows = [json.loads(line) for line in (corpus / "fine.jsonl").read_text(encoding="utf-8").splitlines()]
        own = [row | {"id": row["id"].replace("fine", HELD_OUT), "split": "test"} for row in rows]
        write_lines_atomic(path, [json_line(row) for row in own])
    return path
