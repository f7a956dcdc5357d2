"""Detectors: pictures to face boxes. The points of a face come from the face mesh, whatever has found it."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from affectgpt.config import FacesConfig
from affectgpt.media.faces import mesh
from affectgpt.media.faces.mesh import Found
from affectgpt.runtime import InputError, MissingLibrary

Detect = Callable[[list[Image.Image]], list[list[Found]]]

_DLIB_LONG_SIDE_PX = 640
"""dlib's detector takes time in proportion to the pixels; it finds faces of 80 pixels in the picture that it gets."""


@dataclass(frozen=True)
class Detector:
    """A detector that is ready to use.

    Attributes:
        name: name and version, for records and keys.
        knows_eyes: whether its regions are turned with the face; else the mesh is run twice.
    """

    name: str
    detect: Detect
    knows_eyes: bool = False


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
    if "/" in name:
        return _transformers(name, settings.revision, 0.5 if settings.min_score is None else settings.min_score)
    raise InputError(f"faces.detector is {name!r}; expected blazeface, dlib, or the hub id or folder of a detector")


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
