"""MMEVerse: its tables, its mixture, and the general vision sets with questions of their own."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from affectgpt.cli import compose
from affectgpt.data.formats import FormatError, read_format
from affectgpt.data.stream import TrainingStream
from affectgpt.prompts import render, target_text
from affectgpt.training.samples import training_sources
from tests.data import layouts
from tests.data.layouts import NAMES

COLUMNS = (
    "video_id", "emotion_label", "english", "MER2023_mode", "response_Qwen2Audio", "response_Qwen25vl_72B",
    "gpt-4o-mini_Emotion",
)  # fmt: skip
ROWS = (
    (NAMES[0], "happy", "Hi.", "train", "A bright voice.", "A smile.", "He smiles. He is happy."),
    (NAMES[1], "neutral", "", "train", "", "Nothing.", "word " * 201),
    (NAMES[2], "angry", "No!", "test1", "Loud.", "A frown.", "He frowns."),
)
READ = {"file": "MER2024_merged.csv", "mode": "MER2023_mode"}


@pytest.fixture
def folder(tmp_path):
    layouts.media(tmp_path / "MER2024", real=True)
    layouts.write_csv(tmp_path / "MER2024" / "MER2024_merged.csv", COLUMNS, *ROWS)
    return tmp_path


def read(folder, **options):
    return read_format("mmeverse", folder / "MER2024", READ | options)[0]


def test_a_table_gives_label_words_and_split(folder):
    first, second, third = read(folder)
    assert (first.label, first.subtitle, first.split, first.description) == ("happy", "Hi.", "train", None)
    assert (second.subtitle, third.split, first.modalities) == (None, "test1", None)
    assert [sample.split for sample in read(folder, train=["test1"])] == ["train", "train", "train"]


def test_rows_without_a_usable_explanation_are_left_out_and_counted(folder, caplog):
    first, third = read(folder, explanation="gpt-4o-mini_Emotion")
    assert (first.description, first.labels, third.id) == ("He smiles. He is happy.", ("happy",), NAMES[2])
    assert "left out 1 rows: no gpt-4o-mini_Emotion of 1 to 200 words" in caplog.text


def test_clues_show_one_stream(folder):
    assert [sample.modalities for sample in read(folder, explanation="response_Qwen2Audio", clue="audio")] == [
        ("audio",)
    ] * 2
    assert read(folder, explanation="response_Qwen25vl_72B", clue="image")[0].modalities == ("frames",)
    with pytest.raises(FormatError, match="clue is 'video'; expected audio, image or nothing"):
        read(folder, clue="video")


def test_the_published_shares_of_the_draws():
    data = compose("train", ["data=mmeverse", "model=emotion_llama_v2"]).data
    weights = {stage: sum(source.weight for source in getattr(data, stage)) for stage in ("coarse", "fine")}
    assert weights == pytest.approx({"coarse": 2041, "fine": 2237}, abs=1e-3)
    assert sum(source.weight for source in data.coarse if source.format == "llava") == 541
    shares = Counter()
    for source in data.coarse:
        shares[source.folder] += source.weight
    assert (round(shares["E3"]), round(shares["CMU-MOSEI"]), round(shares["MC-EIU"])) == (195, 240, 120)


@pytest.mark.parametrize(
    ("stage", "tasks"), [("coarse", {"fixed", "description"}), ("fine", {"fixed", "description", "think"})]
)
def test_a_stage_draws_its_tasks(folder, stage, tasks):
    config = compose(
        "train",
        [f"stage={stage}", f"recipe=emotion_llama_v2_{stage}", "model=emotion_llama_v2", "data=mmeverse",
         f"data.folder={folder}", f"paths.cache={folder / 'cache'}"],
    )  # fmt: skip
    sources = [source for source in getattr(config.data, stage) if source.folder == "MER2024"]
    setattr(config.data, stage, sources)
    mixture, bad = training_sources(config)
    assert not bad
    stream = TrainingStream(mixture, modalities=("audio", "frames", "motion"), length=60, seed=1)
    draws = [stream[n] for n in range(60)]
    assert {draw.task for draw in draws} == tasks
    assert all(draw.sample.split == "train" for draw in draws)
    if stage == "coarse":
        shown = Counter((draw.task, draw.modalities) for draw in draws)
        assert set(shown) == {
            ("fixed", ("audio", "frames", "motion")), ("description", ("audio",)), ("description", ("frames",)),
        }  # fmt: skip
        assert all(10 < count < 30 for count in shown.values())


def test_a_thought_and_its_tag(folder):
    sample = read(folder, explanation="gpt-4o-mini_Emotion")[0].with_modalities(("audio",))
    asked = render(sample, task="think", prompt_format="emotion_llama_v2")[0].content
    assert "[think] " in asked
    answer = target_text(sample, "think", prompt_format="emotion_llama_v2")
    assert answer == "<think>he smiles he is happy </think><answer>happy</answer>"


def test_a_vision_set_asks_its_own_questions(tmp_path):
    layouts.llava(tmp_path)
    for questions, expected in ((True, "How does he feel?"), (False, None)):
        rows, _ = read_format("llava", tmp_path, {"file": "train.json", "questions": questions})
        assert rows[0].question == expected
    asked = rows[0].with_modalities(("frames",))
    assert "How does he feel" not in render(asked, task="description")[0].content
    sample = read_format("llava", tmp_path, {"file": "train.json", "questions": True})[0][0]
    shown = sample.with_modalities(("frames",))
    assert render(shown, task="description")[0].content == "<frames>\nHow does he feel?"
    assert "How does he feel" not in render(shown, task="description", question="Why?")[0].content
    entries = json.loads((tmp_path / "train.json").read_text())
    entries[0]["conversations"] = entries[0]["conversations"][1:2]
    (tmp_path / "train.json").write_text(json.dumps(entries))
    rows, _ = read_format("llava", tmp_path, {"file": "train.json", "questions": True})
    assert "no question" in rows[0].reason
