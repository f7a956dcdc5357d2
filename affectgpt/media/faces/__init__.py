"""Faces in a video: found, followed, cut out and measured; and face crops that other tools have saved."""

from affectgpt.media.faces.files import probe_faces, read_faces
from affectgpt.media.faces.measures import FaceMeasures, Movement, measure_face
from affectgpt.media.faces.reading import read_with_faces, track, track_and_keep
from affectgpt.media.faces.tracks import FaceTracks, Person

__all__ = [
    "FaceMeasures",
    "FaceTracks",
    "Movement",
    "Person",
    "measure_face",
    "probe_faces",
    "read_faces",
    "read_with_faces",
    "track",
    "track_and_keep",
]
