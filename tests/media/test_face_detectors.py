import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

from affectgpt.config import FacesConfig
from affectgpt.media.faces import detectors, track
from affectgpt.media.faces.detectors import detector_of
from affectgpt.media.faces.mesh import Region, cut, mesh
from affectgpt.runtime import InputError, MissingLibrary
from tests.media.faces import IRISES, empty, scene
from tests.media.media_files import write_media


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_media(tmp_path_factory.mktemp("film") / "film.mp4", [scene(100 + 2 * step) for step in range(6)])


def test_dlib_finds_the_face_and_the_mesh_its_points(film):
    pytest.importorskip("dlib")
    found, default = track(film, FacesConfig(detector="dlib")), track(film)
    assert found.detector.startswith("dlib-hog 20")
    np.testing.assert_allclose(found.persons[0].five, default.persons[0].five, atol=4)


def test_without_dlib_one_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(MissingLibrary, match=r"faces\.detector=dlib needs dlib .*: pip install 'affectgpt\[faces\]'"):
        detector_of(FacesConfig(detector="dlib"))


def write_yolos(folder, labels):
    """A random detector in the real format."""
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[64, 64],
        patch_size=16, num_detection_tokens=5, id2label=dict(enumerate(labels)),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessor(size={"height": 64, "width": 64}, do_pad=False).save_pretrained(folder)
    return folder


def test_a_detector_of_transformers_gives_boxes_of_faces_in_pixels(tmp_path):
    path = write_yolos(tmp_path / "yolos", ["Human face", "car"])
    detector = detector_of(FacesConfig(detector=str(path), min_score=0.01))
    (found,) = detector.detect([Image.fromarray(scene())])
    assert 0 < len(found) <= 5
    assert [face.score for face in found] == sorted((face.score for face in found), reverse=True)
    boxes = np.array([face.box for face in found])
    assert boxes.min() > -480
    assert (boxes[:, 2] > boxes[:, 0]).all()
    assert np.abs(boxes).max() > 2  # pixels, no shares of the picture


def test_a_detector_without_faces_and_a_folder_without_a_detector_are_named(tmp_path):
    with pytest.raises(InputError, match=r"finds \['car', 'tree'\], none of which is a face"):
        detector_of(FacesConfig(detector=str(write_yolos(tmp_path / "yolos", ["car", "tree"]))))
    with pytest.raises(InputError, match=r"faces\.detector '.*none' cannot be loaded as an object detector"):
        detector_of(FacesConfig(detector=str(tmp_path / "none")))
    with pytest.raises(InputError, match=r"faces\.detector is 'opencv'; expected blazeface, dlib, a \.task file"):
        detector_of(FacesConfig(detector="opencv"))


def test_without_mediapipe_a_task_file_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(MissingLibrary, match=r"face\.task needs mediapipe 1\.x .*: pip install mediapipe"):
        detector_of(FacesConfig(detector="face.task"))


TASK = "AFFECTGPT_FACE_TASK"
"""Environment variable: MediaPipe's face_landmarker.task."""


def test_a_real_task_file_gives_points_and_blendshapes_of_the_face(film):
    pytest.importorskip("mediapipe")
    if not Path(task := os.environ.get(TASK, "")).is_file():
        pytest.skip(f"{TASK} names no face_landmarker.task")
    tracks = track(film, FacesConfig(detector=task))
    (person,) = tracks.persons
    assert len(person) == tracks.n_frames
    assert tracks.detector.startswith("mediapipe 1.")
    np.testing.assert_allclose(person.five[0, :2], IRISES + np.array([100, 20]), atol=6)
    assert person.blendshapes.shape == (len(person), 52)
    assert ((person.blendshapes >= 0) & (person.blendshapes <= 1)).all()  # NaN for a name that it does not give
    closed = person.blendshapes[:, detectors._BLENDSHAPES.index("eyeBlinkLeft")]
    assert closed.max() < 0.5


def test_points_and_blendshapes_of_a_landmarker_are_taken_as_they_are(film, monkeypatch):
    """What FaceLandmarker returns, made of our own mesh, where its model file is not at hand."""
    smile = detectors._BLENDSHAPES.index("mouthSmileLeft")

    def detect(images):
        found = []
        for image in images:
            points, _ = mesh([(image, Region(260, 180, 300))])
            shares = points[0] / [image.width, image.height, image.width]
            landmarks = [SimpleNamespace(x=x, y=y, z=z) for x, y, z in [*shares, *[(0.5, 0.5, 0.0)] * 10]]
            shapes = [SimpleNamespace(category_name="mouthSmileLeft", score=0.7)]
            result = SimpleNamespace(face_landmarks=[landmarks], face_blendshapes=[shapes])
            found.append(detectors._landmarks(result, image.size))
        return found

    made = detectors.Detector("mediapipe 1.2", detect, knows_eyes=True, blendshape_names=detectors._BLENDSHAPES)
    monkeypatch.setattr("affectgpt.media.faces.follow.detector_of", lambda settings: made)
    tracks = track(film)
    (person,) = tracks.persons
    assert len(person) == tracks.n_frames
    assert tracks.detector == "mediapipe 1.2, following 1"
    assert person.blendshapes[:, smile] == pytest.approx(0.7)
    assert tracks.blendshape_names[smile] == "mouthSmileLeft"
    np.testing.assert_allclose(person.five[0, :2], IRISES + np.array([100, 20]), atol=6)


def test_cutting_a_region_out_is_what_pillow_does_without_turning_and_keeps_places_when_shrunk():
    image = Image.fromarray(scene())
    box = np.asarray(image.crop((120, 40, 312, 232)))
    np.testing.assert_array_equal(cut(image, Region(216, 136, 192), 192), box)
    small = cut(image, Region(240, 180, 360), 90)  # averaged first
    reference = np.asarray(image.crop((60, 0, 420, 360)).resize((90, 90), Image.Resampling.BOX))
    assert np.abs(small.astype(int) - reference).max() <= 1
    assert not cut(Image.fromarray(empty()), Region(-900, -900, 50), 20).any()
