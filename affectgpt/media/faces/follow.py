"""Follow faces through the frames of a video while it is decoded.

The detector looks at about five frames a second. Between them, a face is looked for where it is expected, and the
presence that the face mesh states decides whether it is there. So a face that turns away from the detector is kept, and
a false detection is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from affectgpt.config import FacesConfig
from affectgpt.media.faces import mesh
from affectgpt.media.faces.align import ALIGNMENT, crop_region
from affectgpt.media.faces.detectors import detector_of
from affectgpt.media.faces.mesh import Found, Region
from affectgpt.media.faces.tracks import FaceTracks, Person, check_person
from affectgpt.media.video import Frames
from affectgpt.runtime import InputError, sha256_of_file

RULES = "following 1"
"""Version of what is written in this file; part of the keys of crops."""

DETECTIONS_HZ = 5.0
MAX_CROPS = 32
"""Of each person; of more, every second, fourth ... is kept."""
_MAX_SIDE_PX = 1920  # larger frames are made smaller
KEPT_BYTES = 256 << 20
"""Memory for pictures of one video; of more, every second, fourth ... looked-at frame is kept."""
_HOLD_S = 2.0  # a face is looked for where it was last seen, after the last detection
_LOST_S = 4.0  # a face that appears where one was lost is the same person
_MIN_ROWS = 3  # persons that are seen in fewer frames are dropped, unless the video is that short
_DETECTIONS_PER_BLOCK = 4


@dataclass
class _Track:
    region: Region  # last known
    detected_row: int  # last detection
    seen_row: int
    keys: dict[int, Found] = field(default_factory=dict)  # detections by row, of the current block
    rows: list[int] = field(default_factory=list)
    points: list[np.ndarray] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    blendshapes: list[np.ndarray] = field(default_factory=list)
    crop_every: int = 1
    crops: dict[int, tuple[int, Region, np.ndarray | None]] = field(default_factory=dict)  # place in rows -> row, ...


@dataclass(frozen=True)
class Crops:
    """The candidates for crops of one person.

    Attributes:
        n: number of frames in which the person is seen.
        indices: source frames of the candidates, at most `MAX_CROPS`.
        regions: the squares to cut out of them.
        shrunk: frames are made smaller by this factor first.
        images: uint8 [k,size,size,3] RGB; None if they were not cut out.
        absent: if there are no candidates, a name in `tracks.ABSENT`.
    """

    n: int
    indices: tuple[int, ...] = ()
    regions: tuple[Region, ...] = ()
    shrunk: int = 1
    images: np.ndarray | None = None
    absent: str = ""


class Cutter:
    """Cuts out crops while a video is decoded, which are those that a `Follower` has cut out."""

    def __init__(self, crops: Crops, chosen: Sequence[int], size_px: int) -> None:
        self._regions = {crops.indices[place]: crops.regions[place] for place in chosen}
        self._shrunk, self._size_px = crops.shrunk, size_px
        self.restart()

    def restart(self) -> None:
        self.images: dict[int, np.ndarray] = {}

    def wants(self, index: int, time_s: float) -> bool:
        return index in self._regions

    def see(self, index: int, time_s: float, image: np.ndarray) -> None:
        picture = Image.fromarray(image)
        picture = picture.reduce(self._shrunk) if self._shrunk > 1 else picture
        self.images[index] = mesh.cut(picture, self._regions[index], self._size_px)

    def end(self, time_s: float) -> None: ...


class Follower:
    """Takes the frames of one video in order. See `track` for a complete video.

    Args:
        size_px: height and width of aligned crops; None = none are cut out.
        irises: refine eyes and find irises; costs as much as the rest.
        keep: keep pictures for `nearest`, at most `KEPT_BYTES` of them.
    """

    def __init__(
        self, settings: FacesConfig, *, size_px: int | None = None, irises: bool = True, keep: bool = False
    ) -> None:
        if not settings.rate_hz > 0:
            raise InputError(f"faces.rate_hz is {settings.rate_hz}; expected a number above 0")
        check_person(settings.person)
        self._rate_hz, self._size_px, self._irises, self._keep = settings.rate_hz, size_px, irises, keep
        self._detector = detector_of(settings)
        self._gives_points = bool(self._detector.blendshape_names)
        self._every = 1 if self._gives_points else max(round(settings.rate_hz / DETECTIONS_HZ), 1)
        self.restart()

    def restart(self) -> None:
        """Forget everything; the next frame is the first one of the video."""
        self._next_s = self._end_s = 0.0
        self._times_s: list[float] = []
        self._indices: list[int] = []
        self._block: list[tuple[int, Image.Image]] = []
        self._known: dict[int, list[Found]] = {}  # detections by row
        self._tracks: list[_Track] = []
        self._size, self._shrunk = (0, 0), 1
        self._kept: dict[int, np.ndarray] = {}  # row -> uint8 [H,W,3] RGB
        self._keep_every, self._n_source = 1, 0

    def wants(self, index: int, time_s: float) -> bool:
        """Whether the frame at this time is to be looked at: the first one, then one in each 1 / rate_hz seconds."""
        self._n_source = index + 1
        return time_s >= self._next_s - 1e-6

    def see(self, index: int, time_s: float, image: np.ndarray) -> None:
        """Look at a frame: uint8 [H,W,3] RGB, upright, with square pixels."""
        self._next_s = (np.floor(time_s * self._rate_hz + 1e-6) + 1) / self._rate_hz
        picture = Image.fromarray(image)
        if not self._times_s:
            self._size = picture.size
            self._shrunk = -(-max(picture.size) // _MAX_SIDE_PX)
        if self._shrunk > 1:
            picture = picture.reduce(self._shrunk)
        if self._keep and len(self._times_s) % self._keep_every == 0:
            self._kept[len(self._times_s)] = image if self._shrunk == 1 else np.asarray(picture)
            if len(self._kept) > 1 and len(self._kept) * self._kept[0].nbytes > KEPT_BYTES:
                self._keep_every *= 2
                self._kept = {row: kept for row, kept in self._kept.items() if row % self._keep_every == 0}
        self._block.append((len(self._times_s), picture))
        self._times_s.append(time_s)
        self._indices.append(index)
        if len(self._block) > _DETECTIONS_PER_BLOCK * self._every:
            self._look(is_last=False)

    def end(self, time_s: float) -> None:
        """The time of the last frame."""
        self._end_s = time_s

    def finish(self) -> tuple[FaceTracks, list[Crops]]:
        """The persons and their crops, after the last frame."""
        if self._block:
            self._look(is_last=True)
        least = min(_MIN_ROWS, len(self._times_s))
        tracks = sorted((track for track in self._tracks if len(track.rows) >= least), key=lambda t: t.rows[0])
        found = FaceTracks(
            times_s=np.array(self._times_s),
            indices=np.array(self._indices, np.int64),
            persons=tuple(self._person(track) for track in tracks),
            main=None,
            width=self._size[0],
            height=self._size[1],
            duration_s=self._end_s,
            detector=", ".join([self._detector.name, *([] if self._gives_points else [mesh.MESH_VERSION]), RULES]),
            blendshape_names=self._detector.blendshape_names,
        )
        main, absent = found.choose_or_say()
        found = replace(found, main=main, absent=absent)
        return found, [self._crops_of(track) for track in tracks]

    def nearest(self, time_s: float) -> Frames:
        """Of the kept frames, the one nearest to a time. Frames above 1920 pixels were made smaller."""
        row = min(self._kept, key=lambda row: abs(self._times_s[row] - time_s))
        time, index = np.array([self._times_s[row]]), np.array([self._indices[row]], np.int64)
        return Frames(self._kept[row][None], time, index, self._n_source)

    # ---------------------------------------------------------------- blocks

    def _look(self, *, is_last: bool) -> None:
        """Detect and follow in the frames of the block; its last frame also starts the next block."""
        pictures = dict(self._block)
        last = self._block[-1][0]
        new = [row for row in pictures if row % self._every == 0 and row not in self._known]
        self._known |= dict(zip(new, self._detector.detect([pictures[row] for row in new]), strict=True))
        for row in new:
            self._assign(row, self._known[row])
        rows = [row for row in pictures if is_last or row < last]
        if self._gives_points:
            self._take(pictures, rows)
        else:
            self._search(pictures, rows)
        for track in self._tracks:
            track.keys = {row: found for row, found in track.keys.items() if row >= last}
        self._block = [] if is_last else self._block[-1:]

    def _take(self, pictures: dict[int, Image.Image], rows: list[int]) -> None:
        """Add the points that the detector has given."""
        for row in rows:
            for track in self._tracks:
                if (found := track.keys.get(row)) is not None:
                    assert found.points is not None
                    assert found.blendshapes is not None
                    track.blendshapes.append(found.blendshapes)
                    self._add(track, row, pictures[row], found.points, found.score)

    def _search(self, pictures: dict[int, Image.Image], rows: list[int]) -> None:
        """Look for the faces of all tracks with the mesh."""
        hold = round(_HOLD_S * self._rate_hz)
        wanted = [
            (row, track, region)
            for row in rows
            for track in self._tracks
            if (region := _expected(track, row, self._every, hold)) is not None
        ]
        points, presence = mesh.mesh([(pictures[row], region) for row, _, region in wanted])
        if wanted and not self._detector.knows_eyes:
            regions = [_region_around(found) for found in points]
            points, presence = mesh.mesh([(pictures[w[0]], region) for w, region in zip(wanted, regions, strict=True)])
        for row in rows:
            present = presence >= mesh.MIN_PRESENCE
            here = [place for place, each in enumerate(wanted) if each[0] == row and present[place]]
            for place in _without_twins(here, points, [wanted[place][1] for place in here]):
                self._add(wanted[place][1], row, pictures[row], points[place], float(presence[place]))
        self._refine(pictures)

    def _assign(self, row: int, faces: list[Found]) -> None:
        """Give each detected face to the track that was last seen nearest to it, or to a new one."""
        lost = round(_LOST_S * self._rate_hz)
        pairs = []
        for number, face in enumerate(faces):
            for track in self._tracks:
                side, other = face.region.side, track.region.side
                away = float(np.hypot(face.region.x - track.region.x, face.region.y - track.region.y))
                # Sides are 1.5 times the face: nearer than half of a face, and of about its size.
                if away < 0.35 * max(side, other) and 0.5 < side / other < 2 and row - track.seen_row <= lost:
                    pairs.append((away / side, number, track))
        given: set[int] = set()
        for _, number, track in sorted(pairs, key=lambda pair: pair[0]):
            if number not in given and row not in track.keys:
                given.add(number)
                self._key(track, row, faces[number])
        for number, face in enumerate(faces):
            if number not in given:
                self._tracks.append(_Track(face.region, row, row))
                self._key(self._tracks[-1], row, face)

    @staticmethod
    def _key(track: _Track, row: int, face: Found) -> None:
        track.keys[row] = face
        track.region, track.detected_row, track.seen_row = face.region, row, row

    def _add(self, track: _Track, row: int, picture: Image.Image, points: np.ndarray, presence: float) -> None:
        place = len(track.rows)
        track.rows.append(row)
        track.points.append(points)
        track.confidence.append(presence)
        if row >= track.seen_row:
            track.seen_row = row
            if row > track.detected_row:
                track.region = _region_around(points)
        if place % track.crop_every == 0:
            region = crop_region(points)
            crop = None if self._size_px is None else mesh.cut(picture, region, self._size_px)
            track.crops[place] = (row, region, crop)
            if len(track.crops) > MAX_CROPS:
                track.crop_every *= 2
                track.crops = {key: value for key, value in track.crops.items() if key % track.crop_every == 0}

    def _refine(self, pictures: dict[int, Image.Image]) -> None:
        """Add irises to the points that were found in these pictures."""
        if not self._irises:
            return
        places = [(t, n) for t in self._tracks for n in range(len(t.rows)) if t.points[n].shape[0] == 468]
        if places:
            seen = [mesh.eye_pictures(pictures[t.rows[n]], t.points[n]) for t, n in places]
            refined = mesh.with_irises(
                np.stack([t.points[n] for t, n in places]), np.stack([s[0] for s in seen]), [s[1] for s in seen]
            )
            for (track, number), points in zip(places, refined, strict=True):
                track.points[number] = points

    # ---------------------------------------------------------------- results

    def _person(self, track: _Track) -> Person:
        points = np.stack(track.points).astype(np.float32) * self._shrunk
        if points.shape[1] == 468:
            points = np.concatenate([points, np.full((len(points), 10, 3), np.nan, np.float32)], axis=1)
        boxes = np.concatenate([points[:, :468, :2].min(axis=1), points[:, :468, :2].max(axis=1)], axis=1)
        shapes = np.stack(track.blendshapes) if track.blendshapes else None
        return Person(np.array(track.rows, np.int64), boxes, points, np.array(track.confidence, np.float32), shapes)

    def _crops_of(self, track: _Track) -> Crops:
        chosen = list(track.crops.values())
        images = None if self._size_px is None else np.stack([crop for _, _, crop in chosen if crop is not None])
        indices = tuple(self._indices[row] for row, _, _ in chosen)
        regions = tuple(region for _, region, _ in chosen)
        return Crops(len(track.rows), indices, regions, self._shrunk, images)


def key_of(settings: FacesConfig) -> list[object]:
    """Everything that decides the crops of a video, apart from the video."""
    version = {"blazeface": mesh.VERSION}.get(settings.detector, settings.detector)
    if version.endswith(".task") and Path(version).is_file():
        version = sha256_of_file(version)
    return [
        version, settings.revision, settings.min_score, settings.rate_hz, settings.person, settings.size_px,
        mesh.MESH_VERSION, RULES, ALIGNMENT,
    ]  # fmt: skip


def _region_around(points: np.ndarray) -> Region:
    """The region in which the mesh finds a face with these points [n,3] again."""
    one, other = points[33, :2], points[263, :2]
    box = np.concatenate([points[:468, :2].min(axis=0), points[:468, :2].max(axis=0)])
    return mesh.region_of(box, float(np.arctan2(other[1] - one[1], other[0] - one[0])))


def _expected(track: _Track, row: int, every: int, hold: int) -> Region | None:
    """Where the face of a track is expected in a frame; None = it is not looked for."""
    before = max((key for key in track.keys if key <= row), default=None)
    after = min((key for key in track.keys if key > row), default=None)
    if before is not None and after is not None:
        weight = (row - before) / (after - before)
        return track.keys[before].region.toward(track.keys[after].region, weight)
    if before is not None:
        return track.keys[before].region
    if after is not None and (after - row < every or (track.rows and row - track.rows[-1] <= hold)):
        return track.keys[after].region
    # Not detected in this block: where it was last seen, for a while.
    is_held = after is None and bool(track.rows) and 0 < row - track.detected_row <= hold
    return track.region if is_held else None


def _without_twins(places: list[int], points: np.ndarray, tracks: list[_Track]) -> list[int]:
    """Of two tracks whose faces coincide in a frame, only the one that was detected last."""
    order = sorted(zip(places, tracks, strict=True), key=lambda each: (-each[1].detected_row, -len(each[1].rows)))
    kept: list[int] = []
    boxes: list[np.ndarray] = []
    for place, _ in order:
        box = np.concatenate([points[place, :, :2].min(axis=0), points[place, :, :2].max(axis=0)])
        if all(mesh.overlap(box, other) < 0.4 for other in boxes):
            kept.append(place)
            boxes.append(box)
    return kept
