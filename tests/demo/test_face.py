import numpy as np
import pytest

from affectgpt.demo.face import Looks, render_face
from affectgpt.demo.performance import ACTION_UNITS, Identity, Performance, Voice

SEEDS = (0, 1, 3, 10, 18)  # light and dark skin, several hair styles, beard and glasses


def constant(*values: float):
    return tuple(((0.0, float(value)),) for value in values)


def still(seed: int, *, size_px: int = 112, gaze=(0, 0), head=(0, 0, 0), **units: float) -> np.ndarray:
    """One picture, int [H, W, 3]."""
    curves = {unit: constant(value)[0] for unit, value in units.items()}
    performance = Performance(0.08, Identity(seed), curves, constant(*gaze), constant(*head))
    return render_face(performance, size_px=size_px)[0].astype(int)


def changed(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position in head units (x, y) of the pixels that changed visibly."""
    rows, columns = np.nonzero(np.abs(after - before).max(axis=2) > 12)
    size_px = before.shape[0]
    return ((columns + 0.5) / size_px - 0.5) / 0.36, (0.475 - (rows + 0.5) / size_px) / 0.36


# Highest and lowest place (head units) that each action unit may change.
REGIONS = {
    "AU01": (0.25, 0.8), "AU02": (0.2, 0.8), "AU04": (0.1, 0.5), "AU05": (-0.05, 0.5), "AU06": (-0.55, 0.35),
    "AU07": (-0.1, 0.35), "AU09": (-0.55, 0.5), "AU10": (-0.8, -0.1), "AU12": (-0.85, -0.05), "AU14": (-0.75, -0.4),
    "AU15": (-0.9, -0.1), "AU17": (-0.95, -0.35), "AU20": (-0.75, -0.35), "AU23": (-0.75, -0.35),
    "AU24": (-0.75, -0.35), "AU25": (-0.9, -0.4), "AU26": (-1.3, -0.05), "AU43": (-0.1, 0.35), "AU45": (-0.1, 0.35),
}  # fmt: skip


def test_every_action_unit_has_a_region():
    assert REGIONS.keys() == ACTION_UNITS.keys()


@pytest.mark.parametrize("unit", ACTION_UNITS)
def test_an_action_unit_changes_its_own_region_visibly_and_nothing_else(unit):
    low, high = REGIONS[unit]
    for seed in SEEDS:
        x, y = changed(still(seed), still(seed, **{unit: 1.0}))
        assert len(y) >= 40, f"person {seed}: only {len(y)} pixels changed"
        assert low - 0.03 <= y.min()
        assert y.max() <= high + 0.03
        assert np.abs(x).max() < 0.9
        assert (x < 0).sum() == pytest.approx((x > 0).sum(), rel=0.35)  # both halves of the face move


@pytest.mark.parametrize("unit", ACTION_UNITS)
def test_an_action_unit_grows_with_its_intensity(unit):
    neutral = still(3)
    sizes = [np.abs(still(3, **{unit: level}) - neutral).sum() for level in (0.0, 0.35, 1.0)]
    assert 0 == sizes[0] < sizes[1] < sizes[2]


def test_no_two_action_units_look_the_same_except_closed_eyes_and_a_blink():
    pictures = {unit: still(3, **{unit: 1.0}) for unit in ACTION_UNITS}
    for first in pictures:
        for second in pictures:
            if first < second and {first, second} != {"AU43", "AU45"}:
                assert len(changed(pictures[first], pictures[second])[0]) > 30, (first, second)


def eye_darkness(picture: np.ndarray) -> tuple[float, float]:
    """Centre (x, y) of the dark pixels in the right eye, in head units."""
    scale = 0.36 * picture.shape[0]
    left, top = round(0.5 * picture.shape[0] + 0.14 * scale), round(0.475 * picture.shape[0] - 0.16 * scale)
    eye = picture[top : top + round(0.2 * scale), left : left + round(0.34 * scale)].sum(axis=2)
    rows, columns = np.nonzero(eye < 300)
    return columns.mean() / scale, -rows.mean() / scale


def test_the_irises_follow_the_gaze():
    right, left = eye_darkness(still(0, size_px=336, gaze=(1, 0))), eye_darkness(still(0, size_px=336, gaze=(-1, 0)))
    assert right[0] > left[0] + 0.05
    up, down = eye_darkness(still(0, size_px=336, gaze=(0, 1))), eye_darkness(still(0, size_px=336, gaze=(0, -1)))
    assert up[1] > down[1] + 0.02


def test_yaw_pitch_and_roll_move_the_mouth_to_the_right_upwards_and_around_the_neck():
    def mouth(**pose) -> tuple[float, float]:
        x, y = changed(still(4, **pose), still(4, AU24=1.0, **pose))
        return float(np.median(x)), float(np.median(y))

    assert mouth(head=(15, 0, 0))[0] > mouth()[0] + 0.1 > mouth(head=(-15, 0, 0))[0] + 0.2
    assert mouth(head=(0, 12, 0))[1] > mouth()[1] + 0.1 > mouth(head=(0, -12, 0))[1] + 0.2
    # Clockwise: the crown goes to the right, and with it the mouth, which is above the neck.
    assert mouth(head=(0, 0, 15))[0] > mouth()[0] + 0.03 > mouth(head=(0, 0, -15))[0] + 0.06


def test_the_mouth_moves_while_the_voice_speaks_and_rests_in_breaks():
    voice = Voice(breaks=((1.0, 2.0),))
    frames = render_face(Performance(3.0, Identity(1), voice=voice, text="They told me this morning.")).astype(int)
    motion = np.abs(np.diff(frames, axis=0)).sum(axis=(1, 2, 3))  # between frames i and i + 1
    assert motion[:11].mean() > 1000
    assert not motion[13:24].any()


def test_one_blink_closes_the_eyes_for_a_moment_only():
    blink = ((0.7, 0.0), (0.8, 1.0), (0.9, 0.0))
    frames = render_face(Performance(1.6, Identity(1), {"AU45": blink})).astype(int)
    moving = np.flatnonzero(np.abs(frames - frames[0]).sum(axis=(1, 2, 3)))
    assert 1 <= len(moving) <= 3
    assert 10 in moving


def test_rendering_is_deterministic_and_has_the_shape_of_the_clip():
    performance = Performance(2.0, Identity(5), {"AU12": ((0.0, 0.0), (1.0, 1.0))}, voice=Voice(), text="Hello there.")
    frames = render_face(performance, size_px=112, rate_hz=12.5)
    assert frames.shape == (25, 112, 112, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, render_face(performance, size_px=112, rate_hz=12.5))
    assert render_face(Performance(0.01, Identity(5)), size_px=336).shape == (1, 336, 336, 3)


def test_a_large_image_shows_the_same_face_as_a_small_one():
    large, small = still(5, size_px=336), still(5, size_px=112)
    shrunk = large.reshape(112, 3, 112, 3, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small).mean() < 4


def test_people_differ():
    faces = np.stack([still(seed) for seed in range(12)])
    distances = np.abs(faces[:, None] - faces[None]).mean(axis=(2, 3, 4))
    assert distances[~np.eye(12, dtype=bool)].min() > 3
    assert len({Looks.of(Identity(seed)).style for seed in range(60)}) == 7
