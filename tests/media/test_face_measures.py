from dataclasses import replace

import numpy as np
import pytest

from affectgpt.media.faces import measure_face, track
from affectgpt.media.faces.measures import upright
from affectgpt.media.faces.tracks import FaceTracks, Person
from affectgpt.runtime import InputError
from tests.media.faces import real_clip, scene
from tests.media.media_files import write_media

RATE_HZ, N = 15, 30


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """Mesh points [478,3] of a real face."""
    film = write_media(tmp_path_factory.mktemp("film") / "still.mp4", [scene()] * 3)
    return track(film).persons[0].points[0].astype(np.float64)


def tracks_of(points):
    """Two seconds of a face with these points [30,478,3]."""
    person = Person(np.arange(N), np.zeros((N, 4), np.float32), points, np.ones(N, np.float32))
    return FaceTracks(np.arange(N) / RATE_HZ, np.arange(N), (person,), 0, 480, 360, N / RATE_HZ, "test")


def changed(still, numbers, *, up, first=12, last=24):
    """The still face, with some points moved up by a part of the eye distance in some frames."""
    points = np.repeat(still[None], N, axis=0)
    eyes = np.linalg.norm(still[[33, 133], :2].mean(axis=0) - still[[362, 263], :2].mean(axis=0))
    points[first : last + 1, numbers, 1] -= up * eyes
    return points


def turned(points, degrees, axis):
    """Turned around an axis of the camera: 0 = x, 1 = y, 2 = depth."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    rotation = np.eye(3)
    rotation[[i, j], [i, j]], rotation[i, j], rotation[j, i] = cos, -sin, sin
    centre = points[:, [1]]
    return (points - centre) @ rotation.T + centre


@pytest.mark.parametrize("degrees", [0, 20])
def test_raised_corners_of_the_mouth_are_found_with_size_and_time_whichever_way_the_head_is_turned(still, degrees):
    points = turned(changed(still, [61, 291], up=0.14), degrees, axis=1)
    found = measure_face(tracks_of(points))
    (raised,) = [each for each in found.movements if each.name == "mouth_corners_raised"]
    assert raised.value == pytest.approx(0.14, abs=0.015)
    assert (raised.start_s, raised.end_s) == (pytest.approx(0.8), pytest.approx(1.6))
    assert raised.unit == "eye distances"
    assert raised.start_s <= found.peak_s <= raised.end_s


def test_a_still_face_has_no_movements_and_no_peak(still):
    found = measure_face(tracks_of(np.repeat(still[None], N, axis=0)))
    assert found.movements == ()
    assert found.peak_s is None
    assert found.version == "face-measures 1"


def test_lowered_brows_are_the_opposite_of_raised_ones(still):
    found = measure_face(tracks_of(changed(still, [107, 55, 336, 285], up=-0.1)))
    assert [each.name for each in found.movements] == ["inner_brows_lowered"]


@pytest.mark.parametrize(("last", "name"), [(14, "blink"), (24, "eyes_closed")])
def test_short_closings_of_the_eyes_are_blinks(still, last, name):
    points = np.repeat(still[None], N, axis=0)
    for upper, lower in ((160, 144), (159, 145), (158, 153), (387, 373), (386, 374), (385, 380)):
        points[12 : last + 1, upper] = points[12 : last + 1, lower]
    (closing,) = [each for each in measure_face(tracks_of(points)).movements if each.name in ("blink", "eyes_closed")]
    assert (closing.name, closing.start_s, closing.end_s) == (name, 0.8, last / RATE_HZ)


@pytest.mark.parametrize(("axis", "place"), [(1, 0), (0, 1), (2, 2)])
def test_turns_of_the_head_are_measured_in_degrees(still, axis, place):
    before, after = (upright(turned(still[None], degrees, axis))[1][0] for degrees in (0, 12))
    assert abs(after[place] - before[place]) == pytest.approx(12, abs=1.5)


def test_frames_with_the_head_turned_away_are_left_out_and_counted(still):
    points = np.repeat(still[None], N, axis=0)
    points[:10] = turned(points[:10], 60, axis=1)
    found = measure_face(tracks_of(points))
    assert found.n_left_out == 10
    assert len(found.times_s) == 20


def test_tracks_without_persons_have_no_measures_and_a_wrong_number_is_an_error(still):
    tracks = tracks_of(np.repeat(still[None], N, axis=0))
    assert measure_face(replace(tracks, persons=(), main=None)) is None
    with pytest.raises(InputError, match="person 3 of 1"):
        measure_face(tracks, 3)


def test_the_smile_of_the_real_clip_begins_when_one_sees_it():
    found = measure_face(track(real_clip("single_face.mp4")))
    smile = [each for each in found.movements if each.name == "mouth_corners_raised"]
    assert len(smile) == 1
    assert smile[0].start_s == pytest.approx(0.65, abs=0.15)  # seen: none at 0.53 s, broad with teeth at 0.8 s
    assert smile[0].end_s > 2.2
    assert smile[0].start_s < found.peak_s < smile[0].end_s
    assert not [each for each in found.movements if "brows" in each.name]


def test_closed_eyes_lowered_brows_and_laughter_of_the_real_clip_are_found():
    found = measure_face(track(real_clip("WolfgangLanger_Pexels.mp4")))
    longest = {}
    for each in found.movements:
        longest[each.name] = max(longest.get(each.name, each), each, key=lambda m: m.end_s - m.start_s)
    # Seen: eyes closed from 0.6 to 5.6 s, brows lowered from about 1 to 5.5 s, laughter with teeth from 9.6 s on.
    assert longest["eyes_closed"].start_s == pytest.approx(0.6, abs=0.2)
    assert longest["eyes_closed"].end_s == pytest.approx(5.6, abs=0.3)
    assert longest["outer_brows_lowered"].start_s < 2
    assert longest["lips_apart"].start_s == pytest.approx(9.6, abs=0.2)
    assert longest["mouth_corners_raised"].start_s == pytest.approx(9.6, abs=0.2)
