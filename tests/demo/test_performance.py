import itertools

import numpy as np
import pytest

from affectgpt.demo.performance import (
    Identity,
    Performance,
    Voice,
    sample_curve,
    speaking_mouth,
    spoken_syllables,
    syllables,
)


def speaking(duration_s: float = 3.0, text: str = "They told me this morning.", **voice) -> Performance:
    return Performance(duration_s, Identity(1), voice=Voice(**voice), text=text)


def test_a_curve_is_linear_between_its_knots_and_constant_outside():
    curve = ((1.0, 0.0), (2.0, 10.0))
    assert sample_curve(curve, np.array([0.0, 1.0, 1.25, 2.0, 9.0])).tolist() == [0.0, 0.0, 2.5, 10.0, 10.0]


def test_a_curve_without_knots_or_with_knots_out_of_order_is_refused():
    with pytest.raises(ValueError, match="no knots"):
        sample_curve((), np.zeros(1))
    with pytest.raises(ValueError, match="not in temporal order"):
        sample_curve(((1.0, 0.0), (0.5, 1.0)), np.zeros(1))


def test_unknown_action_units_and_impossible_durations_are_refused_with_what_is_possible():
    with pytest.raises(ValueError, match=r"unknown action units \['AU99'\]; expected some of AU01, AU02"):
        Performance(1.0, Identity(0), {"AU99": ((0.0, 1.0),)})
    with pytest.raises(ValueError, match=r"duration_s is 0\.0; it must be positive"):
        Performance(0.0, Identity(0))
    with pytest.raises(ValueError, match="syllable_rate_hz is 0"):
        Performance(1.0, Identity(0), voice=Voice(syllable_rate_hz=0))


def test_identities_spread_over_the_range_of_human_pitch_and_follow_from_the_seed():
    pitches = [Identity(seed).base_pitch_hz for seed in range(200)]
    assert 90 <= min(pitches) < 100
    assert 215 < max(pitches) <= 240
    assert pitches == [Identity(seed).base_pitch_hz for seed in range(200)]


@pytest.mark.parametrize(
    ("text", "count"),
    [("Take the bus.", 3), ("They told me this morning.", 6), ("他们说会打电话来。", 8), ("", 0), ("...", 0)],
)
def test_the_text_sets_the_number_of_syllables_in_any_script(text, count):
    assert len(spoken_syllables(text)) == count


@pytest.mark.parametrize("rate_hz", [2.5, 4.2, 7.5])
def test_syllables_come_at_the_rate_of_the_voice_until_the_clip_ends(rate_hz):
    spoken = syllables(speaking(syllable_rate_hz=rate_hz))
    assert len(spoken) == pytest.approx(3.0 * rate_hz, abs=2)
    assert all(a.stop_s <= b.start_s for a, b in itertools.pairwise(spoken))
    assert spoken[0].start_s >= 0
    assert spoken[-1].stop_s <= 3.0


def test_no_syllable_reaches_into_a_break():
    breaks = ((0.9, 1.3), (1.2, 1.5), (2.0, 2.05))  # they may overlap
    spoken = syllables(speaking(breaks=breaks))
    assert spoken
    for syllable in spoken:
        for start_s, stop_s in breaks:
            assert syllable.stop_s <= start_s or syllable.start_s >= stop_s


def test_the_mouth_opens_in_the_middle_of_a_syllable_and_closes_in_breaks_and_without_a_voice():
    performance = speaking(breaks=((1.0, 1.5),))
    middles = np.array([(s.start_s + s.stop_s) / 2 for s in syllables(performance)])
    opening, rounding = speaking_mouth(performance, middles)
    assert (opening > 0.3).all()
    assert rounding.max() > 0.5
    assert not speaking_mouth(performance, np.linspace(1.0, 1.5, 20))[0].any()
    assert not speaking_mouth(Performance(3.0, Identity(1), text="Hello"), middles)[0].any()
