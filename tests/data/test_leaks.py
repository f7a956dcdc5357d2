import json
import os
import shutil

import pytest

from affectgpt.config import DataConfig, SourceConfig
from affectgpt.data import facts as facts_module
from affectgpt.data.facts import MediaFacts
from affectgpt.data.leaks import find_leaks, remove_leaks
from affectgpt.data.mixture import Source
from affectgpt.schema import Sample
from tests.data.conftest import write_clip


@pytest.fixture
def clips(tmp_path):
    """Three different clips, and a copy of the first under another name."""
    for number in range(3):
        write_clip(tmp_path / f"c{number}.mp4", seed=number)
    shutil.copy(tmp_path / "c0.mp4", tmp_path / "copy.mp4")
    return {name: Sample(id=name, video=str(tmp_path / f"{name}.mp4")) for name in ("c0", "c1", "c2", "copy")}


def data(folder, policy):
    (folder / "test.jsonl").write_text(
        json.dumps({"id": "c1", "video": "c1.mp4"}) + "\n" + json.dumps({"id": "copy", "video": "copy.mp4"})
    )
    return DataConfig(name="d", test=[SourceConfig(manifest=str(folder / "test.jsonl"))], leak_check=policy)


def test_the_same_id_and_the_same_bytes_are_leaks(clips):
    training = [clips["c0"], clips["c1"], clips["c2"]]
    found = find_leaks(training, [clips["copy"], clips["c1"]])
    assert [(leak.by, leak.training_id, leak.test_id) for leak in found] == [
        ("content", "c0", "copy"),
        ("id", "c1", "c1"),
    ]


def test_a_file_is_hashed_only_where_its_size_occurs_on_both_sides(clips, monkeypatch):
    hashed = []
    monkeypatch.setattr(facts_module, "sha256_of_file", lambda path: hashed.append(os.path.basename(path)) or "x")
    os.truncate(clips["c1"].video, 5)
    find_leaks([clips["c1"]], [clips["c2"]])
    assert hashed == []
    find_leaks([clips["c0"]], [clips["copy"]])
    assert sorted(hashed) == ["c0.mp4", "copy.mp4"]


ALL = ["c0", "c1", "c2"]


@pytest.mark.parametrize(("policy", "kept"), [("drop", ["c2"]), ("warn", ALL), ("off", ALL)])
def test_leaks_are_dropped_or_kept_by_policy(tmp_path, clips, policy, kept):
    (source,), bad = remove_leaks([Source([clips["c0"], clips["c1"], clips["c2"]])], data(tmp_path, policy))
    assert [sample.id for sample in source.samples] == kept
    assert len(source.samples) + len(bad) == 3


def test_by_default_training_on_the_test_set_is_refused_with_examples(tmp_path, clips):
    assert DataConfig().leak_check == "raise"
    with pytest.raises(
        ValueError, match=r"2 of 2 training samples are among the 2 test samples \(1 by id, 1 by content\)"
    ) as e:
        remove_leaks([Source([clips["c0"], clips["c1"]])], data(tmp_path, "raise"))
    assert "data.leak_check=drop" in str(e.value)


def test_an_unreadable_test_set_is_reported(tmp_path, clips):
    config = DataConfig(name="d", test=[SourceConfig(manifest=str(tmp_path / "gone.jsonl"))])
    with pytest.raises(ValueError, match=r"the test set cannot be read.*gone\.jsonl.*\n.*data\.leak_check=off"):
        remove_leaks([Source([clips["c0"]])], config)


def test_facts_are_stored_until_the_file_changes(tmp_path, clip, monkeypatch):
    looked = []
    probe = facts_module.probe
    monkeypatch.setattr(facts_module, "probe", lambda path: looked.append(path) or probe(path))
    for _ in range(2):
        facts = MediaFacts(tmp_path / "facts.jsonl")
        assert facts.info(str(clip)) == probe(str(clip))
        facts.save()
    assert len(looked) == 1
    write_clip(clip, seed=5, sound=False)
    assert not MediaFacts(tmp_path / "facts.jsonl").info(str(clip)).has_audio
    assert len(looked) == 2


def test_a_torn_line_of_a_killed_process_is_left_out_and_the_next_line_is_complete(tmp_path, clip, caplog):
    file = tmp_path / "facts.jsonl"
    file.write_text('["/x.mp4", 3, 4, {"info"')
    facts = MediaFacts(file)
    digest = facts.sha256(str(clip))
    facts.save()
    assert "1 damaged lines" in caplog.text
    again = MediaFacts(file)
    assert again.lists(str(clip), "sha256")
    assert again.sha256(str(clip)) == digest
