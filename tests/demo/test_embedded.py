from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from affectgpt.demo import embedded, models
from affectgpt.demo.corpus import MARKER, build_corpus, build_once, corpus_folder, corpus_jobs
from affectgpt.runtime import InputError
from affectgpt.schema import read_samples

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


def test_the_held_out_clips_are_other_clips_of_other_people_under_other_ids(tmp_path, monkeypatch):
    assert embedded._HELD_OUT["seed"] != 0  # that of the corpus: a seed has its own people
    monkeypatch.setattr(embedded, "_HELD_OUT", {"seed": 7, "n_coarse": 0, "n_fine": 3, "size_px": 32})
    samples, _ = read_samples(embedded.path_of("held-out", tmp_path))
    assert [sample.id for sample in samples] == ["held-out_0000", "held-out_0001", "held-out_0002"]
    fine, _ = read_samples(Path(samples[0].video).parents[2] / "fine.jsonl")
    assert [replace(own, id=other.id, split=other.split) for own, other in zip(samples, fine, strict=True)] == fine
    assert {sample.split for sample in samples} == {"test"}
    assert Path(samples[2].video).is_file()
    with pytest.raises(InputError, match=r"demo:held is not part of the embedded demo; expected one of .*held-out"):
        embedded.path_of("held", tmp_path)
