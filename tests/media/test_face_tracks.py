from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from affectgpt.config import FacesConfig
from affectgpt.media import read_frame_sets
from affectgpt.media.faces import FaceTracks, Person, read_with_faces, track
from affectgpt.media.faces.tracks import HEARD, check_person
from affectgpt.runtime import InputError
from affectgpt.schema import PERSONS
from tests.media.faces import IRISES, MOUTH, empty, real_clip, scene
from tests.media.media_files import write_media


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """moving: the face moves 60 pixels to the right in 1 s; away: 1 s of the face, then 1 s without."""
    folder = tmp_path_factory.mktemp("films")
    moving = [scene(60 + round(2.4 * step)) for step in range(25)]
    write_media(folder / "moving.mp4", moving)
    write_media(folder / "away.mp4", [*[scene()] * 25, *[empty()] * 25])
    write_media(folder / "empty.mp4", [empty()] * 25)
    pair = Image.fromarray(scene(0, 20, width=640))
    pair.paste(Image.fromarray(scene(0, 20, size=200, width=200)), (420, 60))
    write_media(folder / "pair.mp4", [np.asarray(pair)] * 10)
    return folder


@pytest.fixture(scope="module")
def moving(films):
    return read_with_faces(films / "moving.mp4", {"frames": 4}, FacesConfig(), irises=True)


def test_a_face_is_followed_through_every_frame_that_is_looked_at(moving):
    tracks = moving.tracks
    assert tracks.n_frames == 15  # of 25 in one second
    assert tracks.main == 0
    assert len(tracks.persons) == 1
    assert tracks.share_of(0) == 1
    middle = tracks.persons[0].boxes[:, [0, 2]].mean(axis=1)
    expected = middle[0] + 60 * tracks.times_s
    assert np.abs(middle - expected).max() < 3


def test_points_are_where_eyes_nose_and_mouth_are(moving):
    person = moving.tracks.persons[0]
    shift = [60, 20]  # of the portrait in the first frame
    np.testing.assert_allclose(person.points[0, [468, 473], :2], IRISES + shift, atol=2.5)
    np.testing.assert_allclose(person.five[0, :2], IRISES + shift, atol=5)
    np.testing.assert_allclose(person.five[0, 3:], MOUTH + shift, atol=5)
    assert MOUTH[0, 0] < person.five[0, 2, 0] - shift[0] < MOUTH[1, 0]  # the tip of the nose


def test_frames_of_the_same_pass_are_those_without_faces(films, moving):
    alone = read_frame_sets(films / "moving.mp4", {"frames": 4})["frames"]
    np.testing.assert_array_equal(moving.sets["frames"].images, alone.images)
    np.testing.assert_array_equal(moving.sets["frames"].times_s, alone.times_s)


def test_a_face_is_seen_only_while_it_is_there(films):
    tracks = track(films / "away.mp4")
    assert len(tracks.persons) == 1
    assert tracks.times_of(0).max() < 1.0
    assert tracks.share_of(0) == pytest.approx(0.5, abs=0.02)


def test_a_face_that_is_hidden_for_a_moment_is_the_same_person(films):
    film = write_media(films / "hidden.mp4", [*[scene()] * 8, *[empty()] * 8, *[scene(110)] * 8])
    (person,) = track(film).persons
    rows = person.rows.tolist()
    assert rows[0] == 0
    assert rows[-1] >= 13
    assert 8 <= len(rows) <= 11  # of 15; a third of the film is without the face


def test_of_many_frames_every_second_is_a_candidate_for_crops_so_that_memory_is_bounded(films):
    film = write_media(films / "long.mp4", [scene()] * 75)
    reading = read_with_faces(film, {}, FacesConfig(size_px=16))
    (crops,) = reading.crops
    assert (crops.n, len(crops.indices), len(crops.images)) == (45, 23, 23)
    assert list(crops.indices) == reading.tracks.indices[::2].tolist()
    assert reading.crops_of("1").n == 0


def test_no_face_is_a_fact_and_no_error(films):
    tracks = track(films / "empty.mp4")
    assert tracks.persons == ()
    assert (tracks.main, tracks.absent) == (None, "no_face")
    assert tracks.choose_or_say("speaker") == (None, "no_face")
    assert tracks.n_frames == 15


def test_of_two_persons_the_larger_one_is_the_main_one_and_both_can_be_chosen(films):
    tracks = track(films / "pair.mp4")
    assert len(tracks.persons) == 2
    large = int(np.argmax([person.heights_px.mean() for person in tracks.persons]))
    assert tracks.main == tracks.choose("largest") == large
    assert tracks.choose("1") == 1
    assert tracks.choose("2") is None
    with pytest.raises(InputError, match=r"faces\.person is 'mother'; expected one of"):
        tracks.choose("mother")


def talking(left, opening):
    """A person at a place whose lips open and close by `opening` pixels in every second frame."""
    points = np.zeros((20, 478, 3), np.float32)
    points[:, [33, 133], 0], points[:, [362, 263], 0] = left, left + 60
    points[::2, 14, 1] = opening
    boxes = np.tile(np.array([left - 50, 100, left + 110, 260], np.float32), (20, 1))
    return Person(np.arange(20), boxes, points, np.ones(20, np.float32))


def test_the_speaker_moves_the_mouth_while_speech_is_heard_and_the_listener_is_another():
    quiet, speaks = talking(200, 1), talking(500, 12)
    tracks = FaceTracks(np.arange(20) / 10, np.arange(20), (quiet, speaks), 0, 640, 360, 2.0, "test")
    speech = ((0.0, 1.0),)
    assert (tracks.choose("speaker", speech), tracks.choose("listener", speech)) == (1, 0)
    for which in ("speaker", "listener"):
        assert tracks.choose_or_say(which) == (None, f"no_speech_for_{which}")
    assert (tracks.choose("main"), tracks.choose("main", speech)) == (0, 1)
    assert tracks.choose_or_say("speaker", ((5.0, 6.0),)) == (None, "no_moving_mouth")  # nobody is seen then
    assert tracks.choose_or_say("2") == (None, "too_few_persons")
    alone = replace(tracks, persons=(speaks,))
    assert (alone.choose("speaker", speech), alone.choose_or_say("listener", speech)) == (0, (None, "nobody_else"))


@pytest.mark.parametrize("word", ["²", "-1", "main speaker", ""])
def test_a_person_who_is_not_known_is_refused_by_name(word):
    with pytest.raises(InputError, match=r"faces\.person is '.*'; expected one of \['main', .*, or a number from 0"):
        check_person(word)
    assert HEARD == PERSONS


def test_crops_have_the_eyes_at_the_places_of_the_template(films, moving):
    (crops,) = moving.crops
    assert crops.n == 15
    assert crops.images.shape == (15, 224, 224, 3)
    again = track(write_media(films / "crops.mp4", crops.images[:6], rate_hz=15))
    eyes = again.persons[0].five[:, :2] / 224
    np.testing.assert_allclose(eyes.mean(axis=0), [[0.295, 0.267], [0.705, 0.267]], atol=0.03)


@pytest.mark.parametrize("turned", ["rotated", "anamorphic"])
def test_faces_of_rotated_and_anamorphic_videos_are_upright(films, turned):
    from fractions import Fraction

    if turned == "rotated":
        frame, options = np.rot90(scene()), {"display": {"degrees": 270}}
    else:
        frame = np.asarray(Image.fromarray(scene()).resize((240, 360)))
        options = {"pixel_aspect": Fraction(2, 1)}
    film = write_media(films / f"{turned}.mp4", [np.ascontiguousarray(frame)] * 5, **options)
    found, upright = track(film), track(write_media(films / "upright.mp4", [scene()] * 5))
    assert (found.width, found.height) == (480, 360)
    np.testing.assert_allclose(found.persons[0].five, upright.persons[0].five, atol=4)


@pytest.mark.parametrize(
    ("name", "first_s", "last_s", "share"),
    [("single_face.mp4", 0, 2.33, 1.0), ("face_noface.mov", 0, 2.4, 0.38), ("noface_face.mov", 3.9, 6.3, 0.38)],
)
def test_on_real_clips_the_face_is_found_where_it_is(name, first_s, last_s, share):
    tracks = track(real_clip(name))
    assert len(tracks.persons) == 1
    times = tracks.times_of(0)
    assert (times[0], times[-1]) == (pytest.approx(first_s, abs=0.1), pytest.approx(last_s, abs=0.1))
    assert tracks.share_of(0) == pytest.approx(share, abs=0.03)


def test_on_a_real_clip_without_a_face_none_is_found():
    assert track(real_clip("no_face.mp4")).persons == ()
