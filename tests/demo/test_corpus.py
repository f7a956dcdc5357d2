import json
import multiprocessing
import time
from collections import Counter

import pytest

from affectgpt.demo.corpus import MARKER, build_corpus, build_once, corpus_folder, draw_scenes
from affectgpt.demo.emotions import FEELINGS, Scene
from affectgpt.demo.text import checked_clues
from affectgpt.media import probe
from affectgpt.runtime import sha256_of_file
from affectgpt.schema import read_samples

TINY = {"n_coarse": 3, "n_fine": 5, "size_px": 48}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = corpus_folder(tmp_path_factory.mktemp("cache"), **TINY)
    build_corpus(folder, **TINY, n_processes=1)
    return folder


@pytest.fixture(scope="module")
def scenes():
    return draw_scenes(seed=0, n_coarse=720, n_fine=332)


def test_manifests_load_as_samples_with_texts_in_both_languages(corpus):
    coarse, fine = (read_samples(corpus / f"{name}.jsonl")[0] for name in ("coarse", "fine"))
    assert [len(coarse), len(fine)] == [3, 5]
    for sample in coarse + fine:
        assert sample.subtitle
        assert sample.labels
        assert sample.in_language("zh").description.endswith("。")
        assert len(sample.in_language("zh").labels) == len(sample.labels)
    assert [sample.split for sample in fine] == ["train"] * 4 + ["test"]


def test_clips_are_real_files_with_video_and_audio(corpus):
    for sample in read_samples(corpus / "fine.jsonl")[0]:
        info = probe(sample.video)
        assert (info.video_codec, info.audio_codec) == ("h264", "aac")
        assert (info.width, info.height) == (48, 48)
        assert 2 < info.duration_s < 4


def test_truth_jsonl_lists_scenes_and_errors_and_fine_clips_have_no_errors(corpus):
    rows = [json.loads(line) for line in (corpus / "truth.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert all(not row["errors"] for row in rows if row["id"].startswith("fine_"))
    scenes = {row["id"]: Scene(**row["scene"]) for row in rows}
    for sample in read_samples(corpus / "fine.jsonl")[0]:
        assert sample.labels == checked_clues(scenes[sample.id]).labels


def test_the_fine_set_splits_into_266_and_66_and_its_test_split_covers_every_feeling(scenes):
    assert len(scenes["fine"]) == 332
    train, test = scenes["fine"][:266], scenes["fine"][266:]
    assert {scene.feeling for scene in test} == set(FEELINGS)
    counts = Counter(scene.feeling for scene in train)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_no_person_and_no_performance_occurs_twice(scenes):
    everything = [scene for part in scenes.values() for scene in part]
    assert len({scene.person for scene in everything}) == len(everything)
    other_seed = draw_scenes(seed=1, n_coarse=720, n_fine=332)
    assert not {scene.person for part in other_seed.values() for scene in part} & {scene.person for scene in everything}


def test_only_some_coarse_clips_have_no_audio(scenes):
    silent = {name: sum(not scene.voiced for scene in part) for name, part in scenes.items()}
    assert 0 < silent["coarse"] < 0.06 * 720
    assert silent["fine"] == 0


def test_the_same_parameters_give_the_same_files_with_any_number_of_processes(corpus, tmp_path):
    build_corpus(tmp_path / "again", **TINY, n_processes=2)
    for path in sorted(corpus.rglob("*.*")):
        assert sha256_of_file(path) == sha256_of_file(tmp_path / "again" / path.relative_to(corpus)), path


def test_an_existing_corpus_is_not_rebuilt(corpus):
    before = (corpus / MARKER).stat().st_mtime_ns
    build_corpus(corpus, **TINY)
    assert (corpus / MARKER).stat().st_mtime_ns == before


def test_other_parameters_use_another_folder_and_never_overwrite(corpus, tmp_path):
    assert corpus_folder(tmp_path, **TINY) != corpus_folder(tmp_path, **TINY, seed=1)
    with pytest.raises(ValueError, match=r"was built with .* remove it or use another folder"):
        build_corpus(corpus, **TINY, seed=1)
    with pytest.raises(ValueError, match="unknown parameters \\['n_clips'\\]; expected some of"):
        corpus_folder(tmp_path, n_clips=3)


def test_a_folder_that_was_not_built_here_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match=f"has no {MARKER}, so it was not built by this command"):
        build_corpus(tmp_path / "mine", **TINY)


def test_a_failed_build_leaves_nothing_and_the_next_one_succeeds(tmp_path):
    folder = tmp_path / "thing"
    with pytest.raises(FileNotFoundError), build_once(folder, {}) as target:
        (target / "no such folder" / "file").write_text("half")
    assert not folder.exists()
    (tmp_path / ".thing.tmpkilled").mkdir()  # what a kill -9 leaves behind
    with build_once(folder, {}) as target:
        (target / "whole").write_text("done")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".thing.lock", "thing"]


def build_slowly(folder, log):
    with build_once(folder, {}) as target:
        if target is not None:
            time.sleep(0.3)
            with log.open("a") as file:
                file.write("built\n")


def test_of_two_processes_only_one_builds(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=build_slowly, args=(tmp_path / "thing", tmp_path / "log")) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert (tmp_path / "log").read_text() == "built\n"
