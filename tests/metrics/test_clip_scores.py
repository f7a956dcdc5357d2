"""Scores of single clips agree with the report, and say where a model is wrong."""

import json

import pytest

from affectgpt.metrics import evaluate, load_lexicon, random_labels
from affectgpt.metrics.clip_scores import (
    NO_SECTOR,
    WHEELS,
    differences,
    in_order,
    read_scores,
    score_clips,
    sector_confusion,
    sectors_of,
    select,
    wheel_order,
    write_scores,
)
from affectgpt.metrics.compare import compare
from affectgpt.metrics.evaluate import evaluate_samples, mean_sample_f
from affectgpt.metrics.faithfulness import absent_modality, clue_scores, consistency
from affectgpt.metrics.wheel import LEVEL1, WheelGrouping
from affectgpt.schema import Prediction

WORDS = ["happy", "sad", "angry", "scared", "surprised", "neutral"]
TRUTH = {f"s{i}": (word,) for i, word in enumerate(WORDS * 4)}
GUESS = [Prediction(key, "", labels=tuple(words)) for key, words in random_labels(TRUTH, seed=1).items()]
RIGHT = [Prediction(key, "", labels=words) for key, words in TRUTH.items()]


def test_clip_scores_average_to_the_precision_and_recall_of_the_report():
    rows, report = score_clips(GUESS, TRUTH), evaluate(GUESS, TRUTH, n_bootstrap=0)
    for place, name in enumerate(LEVEL1):
        for side in ("precision", "recall"):
            values = [getattr(row, f"{side}_by_wheel")[place] for row in rows]
            scored = [value for value in values if value is not None]
            assert len(scored) == report.scores[name].n
            assert sum(scored) / len(scored) == pytest.approx(getattr(report.scores[name], side))
    by_wheel = [[row.f_by_wheel[place] for row in rows if row.f_by_wheel[place] is not None] for place in range(5)]
    _, scores = evaluate_samples(GUESS, TRUTH, groupings=LEVEL1, n_bootstrap=0)
    assert sum(sum(column) / len(column) for column in by_wheel) / 5 == pytest.approx(mean_sample_f(scores))


def test_missing_unparsed_and_unscored_clips_are_told_apart():
    rows = score_clips(
        [Prediction("silent", "I cannot tell."), Prediction("neutral", "Emotions: happy")],
        {"gone": ["sad"], "silent": ["sad"], "neutral": ["neutral"]},
    )
    assert [(row.f, row.missing, row.unparsed) for row in rows] == [
        (0, True, False),
        (0, False, True),
        (None,) + (False,) * 2,
    ]
    assert rows[0].reading is None
    assert [row.id for row in select(rows, state="not scored")] == ["neutral"]
    assert [row.id for row in in_order(rows, "f", descending=True)][-1] == "neutral"  # no score is no high score


def test_a_clip_belongs_to_the_sector_of_most_of_its_labels_and_of_the_first_if_equal():
    grouping = WheelGrouping(load_lexicon())
    assert sectors_of(["proud", "angry", "furious"], 1, grouping)[0] == "mad"
    assert sectors_of(["proud", "angry"], 1, grouping)[0] == "happy"
    assert sectors_of(["angry", "proud"], 1, grouping)[0] == "mad"
    assert sectors_of(["neutral", "qwertz"], 1, grouping) == ()


def test_confusion_counts_each_clip_once_and_its_cells_filter_the_clips():
    rows = score_clips(GUESS[:-3], TRUTH)
    for wheel in WHEELS:
        confusion = sector_confusion(rows, wheel, wheel_order(load_lexicon(), wheel))
        assert confusion.counts.sum() == len(rows)
        assert confusion.sectors[-1] == NO_SECTOR
        for i, true in enumerate(confusion.sectors):
            for j, predicted in enumerate(confusion.sectors):
                found = select(rows, wheel=wheel, true_sector=true, predicted_sector=predicted)
                assert len(found) == confusion.counts[i, j]
    right = sector_confusion(score_clips(RIGHT, TRUTH))
    assert (right.agreement.count, right.agreement.n) == (20, 20)  # the neutral clips have no sector


def test_two_systems_differ_where_one_is_right_and_the_test_is_that_of_the_comparison():
    first, second = score_clips(RIGHT, TRUTH), score_clips(GUESS, TRUTH)
    found = differences(first, second, n_resamples=200)
    assert found.test == compare({"a": RIGHT, "b": GUESS}, TRUTH, n_bootstrap=200).tests["a", "b"]
    assert found.n_first_better > 0
    assert found.n_second_better == 0
    assert found.n_first_better + found.n_equal == 20
    sizes = [abs(clip.difference) for clip in found.clips if clip.difference is not None]
    assert sizes == sorted(sizes, reverse=True)
    assert [clip.difference for clip in found.clips[-4:]] == [None] * 4
    reverse = differences(second, first, n_resamples=200)
    assert reverse.test.difference == -found.test.difference
    with pytest.raises(ValueError, match="different clips"):
        differences(first, second[1:])
    with pytest.raises(ValueError, match="other true labels"):
        differences(first, score_clips(GUESS, dict.fromkeys(TRUTH, ("sad",))))


EXPLAINED = [
    Prediction("a", "The brows rise. She seems afraid.\nEmotions: scared", modalities=("frames",)),
    Prediction(
        "b", "The lips smile. The voice is soft. He seems happy.\nEmotions: happy, furious", modalities=("frames",)
    ),
    Prediction("c", "她皱眉，感到难过。\n情绪：难过", lang="zh", modalities=("frames", "audio", "text")),
    Prediction("d", "sad", task="labels", modalities=("frames",)),
]
DESCRIBED = {"a": "The brows rise and the eyes widen.", "b": "The eyes close.", "c": "她皱眉，声音低沉。"}


def test_faithfulness_of_clips_adds_up_to_that_of_the_report():
    truth = {row.id: ("happy",) for row in EXPLAINED}
    rows = score_clips(EXPLAINED, truth, descriptions=DESCRIBED)
    faith = {row.id: row.faithfulness for row in rows}
    assert faith["d"] is None
    assert (faith["a"].absent, faith["b"].absent, faith["c"].absent) == ((), ("acoustic",), None)
    rates = absent_modality(EXPLAINED)
    assert rates["any"].count == sum(bool(found.absent) for found in faith.values() if found)
    clues = clue_scores(EXPLAINED, DESCRIBED, n_bootstrap=0)["all"]
    assert clues.n_predicted == sum(found.n_clues for found in faith.values() if found)
    assert clues.n_reference == sum(found.n_true_clues for found in faith.values() if found)
    assert faith["a"].clue_recall == 1 / 2
    labels = {row.id: row.predicted_labels for row in rows}
    agreement = consistency(EXPLAINED, labels, load_lexicon())
    assert faith["b"].unsupported == ("furious",)
    assert agreement.unsupported.count == sum(len(found.unsupported or ()) for found in faith.values() if found)
    assert [row.id for row in select(rows, fault="absent")] == ["b"]
    assert [row.id for row in in_order(rows, "clue_recall", descending=True)][:1] == ["a"]


def test_written_scores_are_read_back_equal(tmp_path):
    truth = {row.id: ("happy", "proud") for row in EXPLAINED} | {"gone": ("sad",), "neutral": ("neutral",)}
    rows = score_clips(EXPLAINED, truth, descriptions=DESCRIBED)
    write_scores(tmp_path / "scores.jsonl", rows)
    assert read_scores(tmp_path / "scores.jsonl") == rows
    line = json.loads((tmp_path / "scores.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert (line["n_true"], line["n_predicted"]) == (2, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"f_by_wheel": [1]},
        {"f": "high"},
        {"true_labels": [1]},
        {"id": ""},
        {"faithfulness": {"odd": 1}},
        {"true_sectors": 3},
    ],
)
def test_a_line_that_is_no_score_is_named(tmp_path, change):
    rows = [row.to_dict() for row in score_clips(RIGHT[:2], {key: TRUTH[key] for key in ("s0", "s1")})]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(row | change) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"scores\.jsonl:1"):
        read_scores(tmp_path / "scores.jsonl")


@pytest.mark.parametrize("wrong", [{"state": "odd"}, {"fault": "odd"}, {"wheel": 6, "true_sector": "sad"}])
def test_unknown_filters_and_sort_keys_name_the_known_ones(wrong):
    rows = score_clips(RIGHT, TRUTH)
    with pytest.raises(ValueError, match="expected"):
        select(rows, **wrong)
    with pytest.raises(ValueError, match="clue_recall"):
        in_order(rows, "beauty")
