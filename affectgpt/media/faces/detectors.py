"""Detectors: pictures to face boxes. The points of a face come from the face mesh, whatever has found it."""

from __future__ import annotations

import functools
import importlib.metadata
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from affectgpt.config import FacesConfig
from affectgpt.media.faces import mesh
from affectgpt.media.faces.mesh import Found
from affectgpt.runtime import InputError, MissingLibrary, sha256_of_file

Detect = Callable[[list[Image.Image]], list[list[Found]]]

_DLIB_LONG_SIDE_PX = 640
"""dlib's detector takes time in proportion to the pixels; it finds faces of 80 pixels in the picture that it gets."""

_MAX_FACES = 8  # that FaceLandmarker looks for
_BLENDSHAPES = (
    "_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight",
    "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight",
    "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight",
)  # fmt: skip
"""The 52 blendshapes of MediaPipe, in the order of its model."""


@dataclass(frozen=True)
class Detector:
    """A detector that is ready to use.

    Attributes:
        name: name and version, for records and keys.
        knows_eyes: whether its regions are turned with the face; else the mesh is run twice.
        blendshape_names: not empty = it gives points and blendshapes, so that the mesh is not run.
    """

    name: str
    detect: Detect
    knows_eyes: bool = False
    blendshape_names: tuple[str, ...] = ()


def detector_of(settings: FacesConfig) -> Detector:
    """The detector that `settings.detector` names.

    Raises:
        MissingLibrary: its library is not installed.
        InputError: no such detector, or a model that finds no faces.
    """
    name = settings.detector
    if name == "blazeface":
        min_score = mesh.MIN_SCORE if settings.min_score is None else settings.min_score
        return Detector(mesh.VERSION, functools.partial(mesh.detect, min_score=min_score), knows_eyes=True)
    if name == "dlib":
        return _dlib(settings.min_score or 0.0)
    if name.endswith(".task"):
        return _landmarker(name, 0.5 if settings.min_score is None else settings.min_score)
    if "/" in name:
        return _transformers(name, settings.revision, 0.5 if settings.min_score is None else settings.min_score)
    raise InputError(
        f"faces.detector is {name!r}; expected blazeface, dlib, a .task file of MediaPipe, or the hub id or folder of "
        "a detector"
    )


def _dlib(min_score: float) -> Detector:
    try:
        import dlib
    except ImportError as error:
        raise MissingLibrary(f"faces.detector=dlib needs dlib ({error}): pip install 'affectgpt[faces]'") from error
    detector = dlib.get_frontal_face_detector()

    def detect(images: list[Image.Image]) -> list[list[Found]]:
        found = []
        for image in images:
            scale = _DLIB_LONG_SIDE_PX / max(image.size)
            size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
            boxes, scores, _ = detector.run(np.asarray(image.resize(size, Image.Resampling.BILINEAR)), 0, min_score)
            rows = [np.array([box.left(), box.top(), box.right(), box.bottom()]) / scale for box in boxes]
            # The score is the distance to the plane of a support vector machine; sure faces have 1 and more.
            found.append(
                [Found(row, mesh.region_of(row), min(score, 1.0)) for row, score in zip(rows, scores, strict=True)]
            )
        return found

    return Detector(f"dlib-hog {_version('dlib-bin', 'dlib')}", detect)


def _landmarker(path: str, min_score: float) -> Detector:
    """MediaPipe's FaceLandmarker 1.x, whose model the user brings (`face_landmarker.task`)."""
    try:
        import mediapipe
        from mediapipe.tasks.python import BaseOptions, vision
    except ImportError as error:
        raise MissingLibrary(f"faces.detector={path} needs mediapipe 1.x ({error}): pip install mediapipe") from error
    try:
        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=path),
            output_face_blendshapes=True,
            num_faces=_MAX_FACES,
            min_face_detection_confidence=min_score,
        )
        landmarker = vision.FaceLandmarker.create_from_options(options)
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        raise InputError(
            f"faces.detector {path!r} cannot be loaded ({str(error).splitlines()[0]}); expected MediaPipe's "
            "face_landmarker.task"
        ) from error

    def detect(images: list[Image.Image]) -> list[list[Found]]:
        found = []
        for image in images:
            picture = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image))
            found.append(_landmarks(landmarker.detect(picture), image.size))
        return found

    # Before the interpreter takes its modules apart: MediaPipe's own __del__ fails then.
    weakref.finalize(detect, landmarker.close)
    blank = detect([Image.new("RGB", (64, 64))])  # a task file of another kind fails here
    assert blank == [[]]
    name = f"mediapipe {mediapipe.__version__} {sha256_of_file(path)[:12]}"
    return Detector(name, detect, knows_eyes=True, blendshape_names=_BLENDSHAPES)


def _landmarks(result: Any, size: tuple[int, int]) -> list[Found]:
    """What FaceLandmarker gives for a picture of this width and height."""
    found = []
    shapes = result.face_blendshapes or [None] * len(result.face_landmarks)
    for landmarks, categories in zip(result.face_landmarks, shapes, strict=True):
        # x and depth are in widths of the picture, y in heights.
        points = np.array([[p.x * size[0], p.y * size[1], p.z * size[0]] for p in landmarks], np.float32)
        box = np.concatenate([points[:468, :2].min(axis=0), points[:468, :2].max(axis=0)])
        by_name = {category.category_name: category.score for category in categories or ()}
        values = np.array([by_name.get(name, np.nan) for name in _BLENDSHAPES], np.float32)
        found.append(Found(box, mesh.region_of(box), 1.0, points, values))
    return found


@functools.cache
def _transformers(path: str, revision: str | None, min_score: float) -> Detector:
    import torch
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    try:
        processor = AutoImageProcessor.from_pretrained(path, revision=revision)
        model = AutoModelForObjectDetection.from_pretrained(path, revision=revision, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise InputError(
            f"faces.detector {path!r} cannot be loaded as an object detector of transformers with safetensors "
            f"({str(error).splitlines()[0]}); expected the hub id or folder of one, blazeface or dlib"
        ) from error
    labels = {int(number): str(label).lower() for number, label in model.config.id2label.items()}
    faces = {number for number, label in labels.items() if "face" in label}
    if not faces and len(labels) == 1:
        faces = set(labels)
    if not faces:
        raise InputError(
            f"faces.detector {path!r} finds {sorted(labels.values())[:5]}, none of which is a face; expected a "
            "detector with a class 'face', or with one class"
        )

    def detect(images: list[Image.Image]) -> list[list[Found]]:
        with torch.inference_mode():
            outputs = model(**processor(images=images, return_tensors="pt"))
        sizes = [(image.height, image.width) for image in images]
        results = processor.post_process_object_detection(outputs, threshold=min_score, target_sizes=sizes)
        return [_found(result, faces) for result in results]

    commit = getattr(model.config, "_commit_hash", None) or revision
    return Detector(f"{path}@{commit[:12]}" if commit else path, detect)


def _found(result: dict[str, Any], faces: set[int]) -> list[Found]:
    rows = zip(result["boxes"].numpy(), result["scores"].tolist(), result["labels"].tolist(), strict=True)
    found = [Found(box, mesh.region_of(box), score) for box, score, label in rows if label in faces]
    return sorted(found, key=lambda face: -face.score)


def _version(*packages: str) -> str:
    for package in packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "?"
