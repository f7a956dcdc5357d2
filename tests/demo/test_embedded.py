from dataclasses import replace
from pathlib import Path

import pytest

from affectgpt.demo import embedded
from affectgpt.demo.corpus import build_corpus
from affectgpt.runtime import InputError
from affectgpt.schema import read_samples

TINY = {"n_coarse": 2, "n_fine": 3, "size_px": 32}


def test_the_clips_of_each_stage_are_drawn_when_it_needs_them_and_are_those_of_one_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "build_corpus", lambda folder, **given: build_corpus(folder, **{**TINY, **given}))
    fine = embedded.path_of("fine", tmp_path)
    assert not list(tmp_path.rglob("coarse*"))
    coarse = embedded.path_of("coarse", tmp_path)
    build_corpus(tmp_path / "whole", **TINY, n_processes=1)
    for manifest, n_clips in ((fine, 3), (coarse, 2)):
        files = [manifest, *manifest.parent.rglob("*.mp4")]
        assert len(files) == 1 + n_clips
        for path in files:
            assert path.read_bytes() == (tmp_path / "whole" / path.relative_to(manifest.parent)).read_bytes()


def test_the_held_out_clips_are_other_clips_of_other_people_under_other_ids(tmp_path, monkeypatch):
    parameters = embedded.CORPORA["held-out"]
    assert parameters["seed"] != 0  # that of the corpus: a seed has its own people
    monkeypatch.setitem(embedded.CORPORA, "held-out", {**parameters, "n_fine": 3, "size_px": 32})
    samples, _ = read_samples(embedded.path_of("held-out", tmp_path))
    assert [sample.id for sample in samples] == ["held-out_0000", "held-out_0001", "held-out_0002"]
    fine, _ = read_samples(Path(samples[0].video).parents[2] / "fine.jsonl")
    assert [replace(own, id=other.id, split=other.split) for own, other in zip(samples, fine, strict=True)] == fine
    assert {sample.split for sample in samples} == {"test"}
    assert Path(samples[2].video).is_file()
    with pytest.raises(InputError, match=r"demo:held is not part of the embedded demo; expected one of .*held-out"):
        embedded.path_of("held", tmp_path)
