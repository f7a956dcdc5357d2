"""Agreement, against published examples and hand calculations."""

from __future__ import annotations

import pytest

from affectgpt.annotate.review import agreement
from affectgpt.annotate.review.agreement import alpha, jaccard_distance, masi_distance

# Krippendorff (2011), section on nominal data with four observers, and the three-coder example of the same text.
FOUR = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
THREE = (".....34121133.3", "1.213343.......", "..21344.21133.4")


def singletons(rows):
    return [[{value} for value in unit if value != "."] for unit in zip(*rows, strict=True)]


@pytest.mark.parametrize("distance", [jaccard_distance, masi_distance])
def test_with_single_labels_alpha_is_the_published_nominal_alpha(distance):
    assert alpha(singletons(FOUR), distance) == pytest.approx(0.743, abs=5e-4)
    assert alpha(singletons(THREE), distance) == pytest.approx(0.691, abs=5e-4)


def test_alpha_on_sets_equals_the_hand_calculation():
    # Two clips, two annotators: {a,b} {a} | {b} {b}. Jaccard: observed = 2 * (1/2) / 4 = 1/4. Ordered pairs of the four
    # values: ab-a 1/2, ab-b 1/2 twice, a-b 1 twice, b-b 0; expected = 2 * (1/2 + 1 + 2) / 12 = 7/12; 1 - 3/7 = 4/7.
    units = [[{"a", "b"}, {"a"}], [{"b"}, {"b"}]]
    assert alpha(units, jaccard_distance) == pytest.approx(4 / 7)
    # MASI: 1 - 1/2 * 2/3 = 2/3 for a subset: observed = 2 * (2/3) / 4 = 1/3; expected = 2 * (2/3 + 4/3 + 2) / 12 = 2/3.
    assert alpha(units, masi_distance) == pytest.approx(1 / 2)


def test_alpha_is_one_for_equal_sets_undefined_without_pairs_and_estimated_for_many(monkeypatch):
    assert alpha([[{"a"}, {"a"}], [{"b"}, {"b"}]]) == 1.0
    assert alpha([[{"a"}], [{"b"}]]) is None
    assert alpha([[{"a"}, {"a"}]]) is None
    units = [[{str(n)}, {str(n), "x"}] for n in range(60)]
    exact = alpha(units)
    monkeypatch.setattr(agreement, "MAX_PAIRS", 5000)
    assert alpha(units) == pytest.approx(exact, abs=0.02)


def test_the_dissenting_annotator_has_the_lowest_agreement():
    clips = [{"a": ["Sad"], "b": ["sad "], "c": ["happy"]}, {"a": ["calm"], "b": ["calm"], "c": ["angry"]}]
    result = agreement.label_agreement(clips)
    assert result.by_annotator == {"a": 0.5, "b": 0.5, "c": 0.0}
    assert result.overlap == pytest.approx(1 / 3)
    assert "2 clips" in result.line()
