"""Resolve the names of the embedded demo in conf/ (`demo:coarse`, `demo:llm` ...), building the data on first use."""

from __future__ import annotations

import json
from pathlib import Path

from affectgpt.demo.corpus import build_corpus, corpus_folder
from affectgpt.runtime import InputError, json_line, write_lines_atomic

HELD_OUT = "held-out"
"""332 clips of other people, annotated like the fine set, for differences that 66 test clips would not show."""
CORPORA = {"coarse": {"n_fine": 0}, "fine": {"n_coarse": 0}, HELD_OUT: {"seed": 7, "n_coarse": 0}}
"""Parameters of the corpus of each manifest. Each is drawn when it is first used: fine training need not wait for 720
coarse clips."""
MODELS = ("hubert", "eva", "videomae", "llm")
SECOND_LLM = "llm_qwen2"
PRETRAINED = "projectors"


def path_of(name: str, cache: Path) -> Path:
    """Path of a manifest, base model or pretrained projectors, built below `cache` on first use.

    Raises:
        InputError: unknown name.
    """
    if name in CORPORA:
        corpus = corpus_folder(cache / "demo", **CORPORA[name])
        build_corpus(corpus, **CORPORA[name])
        return _held_out(corpus) if name == HELD_OUT else corpus / f"{name}.jsonl"
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
    known = [*CORPORA, *MODELS, SECOND_LLM, PRETRAINED]
    raise InputError(f"demo:{name} is not part of the embedded demo; expected one of {known}")


def _held_out(corpus: Path) -> Path:
    """The manifest of the held-out clips. Their ids are their own, so that none is taken for a training clip."""
    path = corpus / f"{HELD_OUT}.jsonl"
    if not path.exists():
        rows = [json.loads(line) for line in (corpus / "fine.jsonl").read_text(encoding="utf-8").splitlines()]
        own = [row | {"id": row["id"].replace("fine", HELD_OUT), "split": "test"} for row in rows]
        write_lines_atomic(path, [json_line(row) for row in own])
    return path
