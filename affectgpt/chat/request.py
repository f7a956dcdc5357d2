"""What a chat model is asked and what it answers, wherever it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from affectgpt.media import Waveform, read_audio, read_frames

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        prompt: the question; a model's control tokens in it are plain text, never media or turns.
        images: uint8 [T,H,W,3] RGB, frames of one clip in order.
        times_s: [T] seconds of the frames, for models that use time; None = one frame a second.
        sound: mono, at the sampling rate of the model (`Chat.rate_hz`).
        system: a system message.
        turns: what followed the prompt, alternately the model's answer and the user's reply.
        schema: JSON schema of the answer, for models in this process (`constrained.py`); None = free text.
    """

    prompt: str
    images: np.ndarray | None = None
    times_s: np.ndarray | None = None
    sound: Waveform | None = None
    system: str | None = None
    turns: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        n_prompt_tokens, n_new_tokens: of this request alone, without padding; 0 = not counted.
        finish: "eos", "length", "refusal", or a server's own word.
        facts: what a server of this project reports next to the answer.
    """

    text: str
    n_prompt_tokens: int
    n_new_tokens: int
    finish: str
    facts: Mapping[str, Any] = field(default_factory=dict)


class Chat(Protocol):
    """A chat model.

    Attributes:
        sees: subset of {"images", "sound"}.
        n_frames: the one number of frames that it takes; None = any.
        rate_hz: sampling rate of its audio input; None = any, or no audio input.
        max_sound_s: longest sound that it takes; None = no limit, or no audio input.
    """

    name: str
    sees: frozenset[str]
    n_frames: int | None
    rate_hz: int | None
    max_sound_s: float | None

    def answer(self, requests: Sequence[Request], max_new_tokens: int) -> list[Reply]:
        """Answers in the order of `requests`; UserError where there is none."""


def with_media(
    request: Request, chat: Chat, *, video: str | None, audio: str | None, n_frames: int, backend: str
) -> tuple[Request, dict[str, Any]]:
    """`request` with evenly spread frames of `video` and the sound of `audio`, and what of them it holds."""
    facts: dict[str, Any] = {}
    if video is not None:
        frames = read_frames(video, chat.n_frames or n_frames, backend=backend)
        request = replace(request, images=frames.images, times_s=frames.times_s)
        facts["frames"] = {"times_s": [round(float(time), 3) for time in frames.times_s]}
    if audio is not None:
        sound = read_audio(audio, chat.rate_hz or 16000)
        heard = first_seconds(sound, chat.max_sound_s)
        request = replace(request, sound=heard)
        facts["audio"] = {"heard_s": round(heard.duration_s, 3), "duration_s": round(sound.duration_s, 3)}
    return request, facts


def first_seconds(sound: Waveform, seconds: float | None) -> Waveform:
    """The beginning of `sound`; None = all of it."""
    if seconds is None:
        return sound
    samples = sound.samples[: int(seconds * sound.rate_hz)]
    return replace(sound, samples=samples, duration_s=len(samples) / sound.rate_hz)
