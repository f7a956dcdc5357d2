from contextlib import contextmanager
from functools import partial

import pytest

from affectgpt.demo import embedded, models
from affectgpt.demo.corpus import MARKER, build_corpus, build_once, corpus_folder, corpus_jobs

TINY = {"n_coarse": 2, "n_fine": 3, "size_px": 32}


def fail():
    raise ArithmeticError("a training that fails")


@pytest.fixture
def one_model(tmp_path, monkeypatch):
    """In place of the base models one file, made by the job that is set; and a corpus of five clips."""

    @contextmanager
    def jobs(folder):
        with build_once(folder, {}) as target:
            yield [] if target is None else [job or (target / "llm").touch]

    job = None
    monkeypatch.setattr(models, "models_folder", lambda cache: cache / "models")
    monkeypatch.setattr(models, "model_jobs", jobs)
    monkeypatch.setattr(embedded, "corpus_folder", partial(corpus_folder, **TINY))
    monkeypatch.setattr(embedded, "corpus_jobs", partial(corpus_jobs, **TINY))

    def set_job(new):
        nonlocal job
        job = new

    return set_job


def test_corpus_and_base_models_that_are_made_together_are_those_that_are_made_apart(one_model, tmp_path):
    embedded.build(tmp_path)
    together = corpus_folder(tmp_path / "demo", **TINY)
    build_corpus(tmp_path / "apart", **TINY, n_processes=1)
    files = {path.relative_to(together): path.read_bytes() for path in together.rglob("*.*") if path.is_file()}
    assert len(files) == 5 + 3 + 1
    assert files == {name: (tmp_path / "apart" / name).read_bytes() for name in files}
    assert (tmp_path / "demo" / "models" / "llm").is_file()
    one_model(fail)
    embedded.build(tmp_path)  # what exists is not made again


def test_neither_is_complete_if_a_job_fails(one_model, tmp_path):
    one_model(fail)
    with pytest.raises(ArithmeticError):
        embedded.build(tmp_path)
    assert not list(tmp_path.rglob(MARKER))
