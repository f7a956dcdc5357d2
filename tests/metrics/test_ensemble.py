"""Ensembles: what one system, equal systems and validation guarantee."""

import itertools

import numpy as np
import pytest

from affectgpt.config import EnsembleConfig
from affectgpt.ensemble import _classes
from affectgpt.metrics.ensemble import majority, plurality, route, union, votes
from affectgpt.runtime import InputError

SETS = [("sad", "tired"), ("angry", "sad"), ("calm",)]


def test_the_union_of_one_system_is_itself_and_the_order_of_systems_changes_no_set():
    assert union(votes({"x": SETS[0]})) == SETS[0]
    unions = {frozenset(union(votes(dict(enumerate(order))))) for order in itertools.permutations(SETS)}
    assert unions == {frozenset(("sad", "tired", "angry", "calm"))}


def test_the_majority_of_three_equal_systems_is_one_of_them_and_grows_as_less_is_asked():
    equal = votes(dict.fromkeys("xyz", SETS[0]))
    assert majority(equal, 2) == majority(equal, 3) == SETS[0]
    found = votes(dict(zip("xyz", SETS, strict=True)))
    kept = [set(majority(found, n)) for n in (3, 2, 1)]
    assert kept == [set(), {"sad"}, set(union(found))]


def test_a_label_that_one_system_repeats_is_one_vote_and_groups_make_labels_equal():
    assert votes({"x": ["sad", "Sad"], "y": ["sorrow"]}) == {"sad": ("x",), "sorrow": ("y",)}
    assert votes({"x": ["sad"], "y": ["sorrow"]}, lambda label: "low") == {"sad": ("x", "y")}


def test_a_vote_of_equal_systems_is_their_choice_and_ties_go_to_the_first():
    assert plurality(dict.fromkeys("xyz", "a2")) == ("a2", ("x", "y", "z"))
    assert plurality({"x": "a1", "y": "a2", "z": "same"})[0] == "a1"


@pytest.mark.parametrize("seed", range(5))
def test_routing_is_never_worse_on_validation_than_the_best_single_system(seed):
    rng = np.random.default_rng(seed)
    scores = {name: rng.random(60).tolist() for name in "xyz"}
    groups = rng.choice(["p", "q", "r", "s"], 60, p=[0.5, 0.3, 0.15, 0.05]).tolist()
    found = route(scores, groups, min_clips=5)
    assert found.value >= max(found.singles.values()) == found.singles[found.best]
    for group, each in found.routes.items():
        assert each.n == groups.count(group)
        assert each.system == (found.best if each.too_few else max(each.scores, key=each.scores.get))
    assert found.system_of("unseen") == found.best


def test_one_group_is_the_best_single_system_and_a_clear_difference_holds_on_held_out_clips():
    scores = {"x": [1.0, 0.0] * 20, "y": [0.0, 1.0] * 20}
    one = route({"x": [0.5] * 12, "y": [0.4] * 12}, ["all"] * 12)
    assert (one.best, one.value, one.held_out) == ("x", 0.5, 0.5)
    found = route(scores, ["p", "q"] * 20, min_clips=5)
    assert (found.value, found.held_out) == (1.0, 1.0)
    assert route({"x": [1.0]}, ["p"]).held_out is None


def test_scores_must_be_complete():
    with pytest.raises(InputError, match="1 systems, 2 validation clips"):
        route({"x": [1.0]}, ["p", "q"])
    with pytest.raises(InputError, match="has no score"):
        route({"x": [float("nan")]}, ["p"])


def test_the_split_of_the_true_classes_may_be_a_number(tmp_path):
    path = tmp_path / "truth.jsonl"
    path.write_text('{"id": "a", "label": "sad", "split": 1}\n{"id": "b", "label": "sad", "split": 2}\n', "utf-8")
    config = EnsembleConfig(references=str(path), classes=["sad"], split="1")
    assert _classes(config) == {"a": ("sad",)}
