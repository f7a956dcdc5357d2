"""Decode media files to numpy arrays: timestamped video frames, audio, face crops. No torch, no models."""

from affectgpt.media.audio import Waveform, audio_windows, read_audio
from affectgpt.media.container import MediaInfo, measure, probe
from affectgpt.media.errors import (
    DamagedMedia,
    EmptyMedia,
    MediaError,
    MissingMedia,
    NoAudioStream,
    NoVideoStream,
    TruncatedMedia,
)
from affectgpt.media.faces import probe_faces, read_faces
from affectgpt.media.isolated import DecoderCrashed, isolatable, isolated_media
from affectgpt.media.openface import ActionUnits, read_openface
from affectgpt.media.playback import why_not_played, write_playable
from affectgpt.media.video import Frames, read_frame_sets, read_frames, short_clip_order, uniform_indices

__all__ = [
    "ActionUnits",
    "DamagedMedia",
    "DecoderCrashed",
    "EmptyMedia",
    "Frames",
    "MediaError",
    "MediaInfo",
    "MissingMedia",
    "NoAudioStream",
    "NoVideoStream",
    "TruncatedMedia",
    "Waveform",
    "audio_windows",
    "isolatable",
    "isolated_media",
    "measure",
    "probe",
    "probe_faces",
    "read_audio",
    "read_faces",
    "read_frame_sets",
    "read_frames",
    "read_openface",
    "short_clip_order",
    "uniform_indices",
    "why_not_played",
    "write_playable",
]
