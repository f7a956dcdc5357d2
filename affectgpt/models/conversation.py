"""The processor's interface as users of transformers know it: conversations, `videos=` and `audio=`.

A clip is a path, an http(s) address, or an array; its pictures and sound are read as in training, as far as the model
has branches for them.
"""

from __future__ import annotations

import contextlib
import os
import re
import reprlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from affectgpt.config import FacesConfig
from affectgpt.media import Frames, Waveform, probe, read_audio, read_frame_sets, short_clip_order, uniform_indices
from affectgpt.media.audio import resampled
from affectgpt.media.faces.reading import choose_crops, read_with_faces, speech_in
from affectgpt.media.faces.tracks import HEARD
from affectgpt.media.speech import RATE_HZ as SPEECH_HZ
from affectgpt.media.speech import find_speech
from affectgpt.models.auto import InstalledCode, write_auto_file
from affectgpt.prompts import Message, task_question, user_message
from affectgpt.runtime import InputError
from affectgpt.schema import MODALITIES, PLACEHOLDERS

MAX_DOWNLOAD_BYTES = 2 << 30
_DOWNLOAD_S = 60.0
_CLIPS = ("video", "audio")
_PARTS = (*_CLIPS, "text", "subtitle")
_FROM_VIDEO, _FACES = ("frames", "motion"), ("face", "face_motion")


class ModelInputs(BatchFeature):
    """A batch for `model.generate(**inputs)`. `to` changes the device; encoders take their input in fp32."""

    def to(self, *args: Any, **kwargs: Any) -> ModelInputs:
        kwargs.pop("dtype", None)
        places = [each for each in args if not isinstance(each, torch.dtype)]
        return super().to(*places, **kwargs) if places or kwargs else self


class _Prompt(str):
    """A finished prompt, also where it shows no media and so looks like a question."""

    __slots__ = ()


def messages_of(
    conversation: Sequence[Mapping[str, Any]],
    lang: str,
    prompt_format: str,
    shown_of: Callable[[Collection[str]], Sequence[str]],
) -> list[Message]:
    """The messages of a conversation about one clip.

    Args:
        conversation: turns with `role` and `content`: a text, or parts `{"type": "video", "video": clip}`,
            `{"type": "audio", "audio": clip}`, `{"type": "subtitle", "text": words}`, `{"type": "text", "text":
            question}`. A clip may also be under "path" or "url". A turn without a text asks the model's own question.
        shown_of: kinds of clips in a turn -> the modalities that it shows.

    Raises:
        InputError: another role or part, a part without its text, more than one video or audio, or no user.
    """
    messages: list[Message] = []
    seen: set[str] = set()
    for number, turn in enumerate(conversation):
        parts, role = _parts_of(number, turn), turn.get("role")
        if role not in ("system", "user", "assistant"):
            raise InputError(f"turn {number}: the role is {role!r}; expected system, user or assistant")
        here: set[str] = set()
        texts: list[str] = []
        subtitle: str | None = None
        for part in parts:
            kind = part.get("type")
            if kind not in _PARTS or (role != "user" and kind != "text"):
                raise InputError(f"turn {number}: a part of type {kind!r} in the turn of {role}; expected {_PARTS}")
            if kind not in _CLIPS and not isinstance(part.get("text"), str):
                raise InputError(f"turn {number}: a part {reprlib.repr(dict(part))}; expected a string under 'text'")
            if kind == "text":
                texts.append(part["text"])
            elif kind == "subtitle":
                subtitle = part["text"]
            elif kind in seen:
                raise InputError(f"turn {number}: a second {kind}; a conversation is about one clip")
            else:
                seen.add(kind)
                here.add(kind)
        text = "\n".join(texts)
        if role == "user":
            shown = shown_of(here) if here else ()
            question = text or task_question("both", lang)
            messages.append(user_message(shown, question, subtitle, lang, prompt_format))
        else:
            messages.append(Message(role, text))
    if not any(message.role == "user" for message in messages):
        found = f"a conversation of {[message.role for message in messages]}" if messages else "an empty conversation"
        raise InputError(f"{found}; expected at least one turn of the user")
    return messages


def _parts_of(number: int, turn: Any) -> Sequence[Mapping[str, Any]]:
    """The parts of a turn; a text is one."""
    if not isinstance(turn, Mapping):
        raise InputError(f"turn {number}: found {reprlib.repr(turn)}; expected a mapping with role and content")
    content = turn.get("content") or ()
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, (list, tuple)) or not all(isinstance(part, Mapping) for part in content):
        raise InputError(
            f"turn {number}: the content is {reprlib.repr(content)}; expected a text, or a list of parts such as "
            "{'type': 'text', 'text': ...}"
        )
    return content


def clip_of(part: Mapping[str, Any]) -> Any:
    """The clip in a part of type video or audio."""
    found = next((part[key] for key in (part["type"], "path", "url") if part.get(key) is not None), None)
    if found is None:
        raise InputError(f"no {part['type']} in a part with {sorted(part)}; give it under {part['type']!r}")
    return found


def clips_of(conversation: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
    """The video and the audio of a conversation; None where it has none."""
    parts = [part for number, turn in enumerate(conversation) for part in _parts_of(number, turn)]
    found = {part["type"]: clip_of(part) for part in reversed(parts) if part.get("type") in _CLIPS}
    return found.get("video"), found.get("audio")


class ClipMedia:
    """A clip in this process: what it shows of a model's branches, read at most once.

    Args:
        video: path, uint8 array or tensor [T, H, W, 3] or [T, 3, H, W], or a list of images.
        audio: path, or float samples [S]; None = the video's own sound.
        rate_hz: of samples; None = the rate of the model.
    """

    def __init__(
        self, video: Any, audio: Any, branches: Mapping[str, Mapping[str, Any]], rate_hz: int | None = None
    ) -> None:
        self._video, self._audio, self._branches, self._rate_hz = video, audio, branches, rate_hz
        self._counts = {name: branches[name]["n_frames"] for name in _FROM_VIDEO if name in branches}
        self._faces = [name for name in _FACES if name in branches]
        self._media: dict[str, Any] | None = None
        self._heard: Waveform | None = None

    @property
    def is_empty(self) -> bool:
        return self._video is None and self._audio is None

    def modalities(self, kinds: Collection[str] = _CLIPS) -> tuple[str, ...]:
        """The modalities that the clip has and the model has branches for.

        Args:
            kinds: the parts of the clip that are shown, video or audio.
        """
        found: set[str] = {"audio"} if self._audio is not None and "audio" in kinds else set()
        if self._video is not None and "video" in kinds:
            info = probe(self._video) if isinstance(self._video, (str, Path)) else None
            found |= {"audio"} if info is not None and info.has_audio else set()
            if info is None or info.has_video:
                found |= set(_FROM_VIDEO)
                found |= {name for name in self._faces if name in self._pictures()}
        return tuple(name for name in self._branches if name in found)

    def read(self, modalities: Sequence[str]) -> dict[str, Any]:
        """Media of `modalities` as `processor.encode` takes them."""
        pictures = self._pictures() if set(modalities) - {"audio"} else {}
        media = {name: pictures[name] for name in modalities if name != "audio"}
        if "audio" in modalities:
            media["audio"] = self._sound()
        return media

    def _pictures(self) -> dict[str, Any]:
        if self._media is None and not isinstance(self._video, (str, Path)):
            if self._faces:
                raise InputError("video: this model looks for faces in files; give the path of the video")
            images = _frames(self._video)
            self._media = {
                name: images[uniform_indices(len(images), n)[self._order(name, len(images), n)]]
                for name, n in self._counts.items()
            }
        elif self._media is None and self._faces:
            settings = FacesConfig(**next((s for n in self._faces if (s := self._branches[n].get("faces"))), {}))
            reading = read_with_faces(self._video, self._counts, settings)
            crops = reading.crops_of(settings.person, self._speech_s() if settings.person in HEARD else ())
            self._media = self._ordered(reading.sets)
            if crops.n and crops.images is not None:
                ns = {name: self._branches[name]["n_frames"] for name in self._faces}
                self._media |= {
                    name: crops.images[choose_crops(crops, n)[self._order(name, len(crops.indices), n)]]
                    for name, n in ns.items()
                }
        elif self._media is None:
            self._media = self._ordered(read_frame_sets(self._video, self._counts) if self._counts else {})
        return self._media

    def _ordered(self, sets: Mapping[str, Frames]) -> dict[str, Any]:
        return {
            name: frames.images[self._order(name, frames.n_source_frames, len(frames.indices))]
            for name, frames in sets.items()
        }

    def _order(self, name: str, n_source: int, n: int) -> Any:
        return short_clip_order(n_source, n, self._branches[name].get("short_clips", "even"))

    def _speech_s(self) -> Sequence[tuple[float, float]]:
        """Where somebody speaks; the sound that the model takes is decoded in the same pass."""
        sound = self._video if self._audio is None else self._audio
        if not isinstance(sound, (str, Path)):
            return find_speech(resampled(self._sound(), SPEECH_HZ)).segments_s
        segments_s, self._heard = speech_in(sound, self._branches.get("audio", {}).get("rate_hz"))
        return segments_s

    def _sound(self) -> Waveform:
        expected_hz = self._branches.get("audio", {}).get("rate_hz", SPEECH_HZ)
        sound = self._video if self._audio is None else self._audio
        if isinstance(sound, (str, Path)):
            self._heard = self._heard or read_audio(sound, expected_hz)
            return self._heard
        samples = np.asarray(sound, dtype=np.float32)
        if samples.ndim != 1 or self._rate_hz not in (None, expected_hz):
            raise InputError(
                f"audio: samples of shape {samples.shape} at {self._rate_hz or 'an unknown rate'} Hz; expected mono "
                f"samples [S] at {expected_hz} Hz, or the path of a file"
            )
        return Waveform(samples, expected_hz, len(samples) / expected_hz, expected_hz, 1)


def _frames(video: Any) -> np.ndarray:
    if isinstance(video, (list, tuple)):
        frames = [np.asarray(image) for image in video]
        if len(shapes := sorted({frame.shape for frame in frames})) != 1:
            raise InputError(f"video: {len(frames)} images of the shapes {shapes}; expected RGB images of one size")
        video = np.stack(frames)
    images = video.cpu().numpy() if isinstance(video, torch.Tensor) else np.asarray(video)
    if images.ndim == 4 and images.shape[-1] != 3 and images.shape[1] == 3:
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise InputError(
            f"video: an array {images.dtype} {list(images.shape)}; expected RGB frames uint8 [T, H, W, 3], or a path"
        )
    return np.ascontiguousarray(images)


@contextlib.contextmanager
def local(*clips: Any) -> Iterator[list[Any]]:
    """The clips, those at http(s) addresses downloaded to a temporary folder; arrays and paths stay as they are."""
    found: list[Any] = []
    with contextlib.ExitStack() as stack:
        for number, clip in enumerate(clips):
            address = _address_of(clip)
            if address is not None and address.scheme == "file":
                clip = unquote(address.path)
            elif address is not None:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="affectgpt-"))
                path = Path(folder) / f"clip{number}{Path(address.path).suffix[:8]}"
                _download(str(clip), path)
                clip = path
            found.append(clip)
        yield found


def _address_of(clip: Any) -> SplitResult | None:
    """The http(s) or file address of a clip; None for paths and arrays."""
    if not isinstance(clip, str) or not re.match("(https?|file):", clip, re.IGNORECASE):
        return None
    try:
        return urlsplit(clip)
    except ValueError as error:
        raise InputError(f"{clip}: {error}; expected an http(s) address, or the path of a file") from error


def _download(url: str, path: Path) -> None:
    import httpx

    n_bytes = 0
    try:
        with (
            httpx.stream("GET", url, follow_redirects=True, timeout=_DOWNLOAD_S) as response,
            path.open("wb") as file,
        ):
            response.raise_for_status()
            for chunk in response.iter_bytes():
                n_bytes += len(chunk)
                if n_bytes > MAX_DOWNLOAD_BYTES:
                    raise InputError(f"{url}: more than {MAX_DOWNLOAD_BYTES >> 30} GB; download it and give its path")
                file.write(chunk)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InputError(f"{url}: {error}; check the address, or download it and give its path") from error


class ConversationMixin(InstalledCode, ProcessorMixin):
    """`__call__` and `apply_chat_template` of the processor."""

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Write the processor's files, with the one by which Auto classes find this class."""
        saved = super().save_pretrained(os.fspath(save_directory), *args, **kwargs)
        write_auto_file(Path(save_directory))
        return saved

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        """What `push_to_hub` calls inside `save_pretrained`: the folder is completed before it is uploaded."""
        write_auto_file(Path(working_dir))
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def __call__(
        self,
        text: str | Sequence[str] | Sequence[Message] | None = None,
        media: Mapping[str, Any] | None = None,
        answer: str | Sequence[str] | None = None,
        *,
        videos: Any = None,
        audio: Any = None,
        images: Any = None,
        sampling_rate: int | None = None,
        lang: str = "en",
        return_tensors: str | None = "pt",
        padding: bool | str = True,
    ) -> ModelInputs:
        """A batch for `model.generate(**processor(...))`, or with answers for `model(**processor(...)).loss`.

        Args:
            text: for each clip, a question, or a prompt of `apply_chat_template`; None asks the model's own question.
                A text without a clip is a prompt. Or the messages of one sample (`affectgpt.prompts.render`), with its
                decoded `media`.
            answer: the targets; None = prompts for generation, padded on the left.
            videos, audio: a clip or a list of them, as `affectgpt.models.conversation.ClipMedia` takes them, or http(s)
                addresses. The sound of a video is heard too; `audio` replaces it.
            sampling_rate: of `audio` samples in Hz; None = the rate of the model.
            lang: of the model's own question.

        Raises:
            InputError: images, neither text nor clip, several clips for one text, or soft tokens in a text that do not
                fit the clip.
        """
        if images is not None or return_tensors not in (None, "pt") or padding not in (True, "longest"):
            raise InputError("the processor takes text, videos and audio, pads to the longest, returns torch tensors")
        if text is not None and not isinstance(text, str) and text and isinstance(text[0], Message):
            rows = [self.encode(text, media, answer)]  # type: ignore[arg-type]
        else:
            clips = [_listed(videos), _listed(audio)]
            texts = [text] if isinstance(text, str) else [None] * max(map(len, clips)) if text is None else list(text)
            if not texts and not any(clips):
                raise InputError("no text, videos or audio; expected at least one text or clip")
            answers = [answer] if isinstance(answer, str) else answer or [None] * len(texts)
            columns = [texts, *(each or [None] * len(texts) for each in clips), answers]
            if len({len(column) for column in columns}) != 1:
                raise InputError(
                    "text, videos, audio and answer must have equal lengths; found "
                    + ", ".join(map(str, map(len, columns)))
                )
            with contextlib.ExitStack() as stack:
                rows = [
                    self._row(text, self._clip(stack, video, sound, sampling_rate), answer, lang)
                    for text, video, sound, answer in zip(*columns, strict=True)
                ]
        return ModelInputs(self.collate(rows, for_generation="labels" not in rows[0]))

    def _clip(self, stack: contextlib.ExitStack, video: Any, sound: Any, rate_hz: int | None) -> ClipMedia:
        if isinstance(video, ClipMedia):
            return video
        return ClipMedia(*stack.enter_context(local(video, sound)), self.branches, rate_hz)

    def _row(self, text: str | None, clip: ClipMedia, answer: str | None, lang: str) -> dict[str, Tensor]:
        """One encoded sample of `__call__`."""
        if text is not None and (isinstance(text, _Prompt) or clip.is_empty or self._placeholder.search(text)):
            shown = [name for name in MODALITIES if PLACEHOLDERS[name] in text]
            if self.masks_absent and set(shown) < set(self.branches) - {"multi"}:
                raise InputError("this model masks absent streams, which a text cannot show; ask with a question")
            prompt = (text, self._ids(text), None)
        else:
            shown = list(self.visible(clip.modalities()))
            asked = task_question("both", lang) if text is None else text
            prompt = self._prompt([user_message(shown, asked, None, lang, self.prompt_format)])
        for name in shown:
            n, expected = prompt[0].count(PLACEHOLDERS[name]), self._branch(name)["n_tokens"]
            if n != expected:
                raise InputError(f"{name}: the text has {n} soft tokens, expected {expected}; use apply_chat_template")
        if lacking := [name for name in shown if name not in clip.modalities()]:
            raise InputError(f"the text shows {lacking}, which the clip lacks; pass the clip of this text")
        features = self._tokens(*prompt, answer)
        for name, value in clip.read(shown).items():
            features |= self.media(name, value)
        return features

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "pt",
        lang: str = "en",
        modalities: Sequence[str] | None = None,
        sampling_rate: int | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The prompt of a conversation, or with `tokenize` a batch for `model.generate`.

        Args:
            conversation: one, or a list of them; see `affectgpt.models.conversation.messages_of`.
            modalities: what the model is shown of the clips; None = all that they have.

        Raises:
            InputError: another chat template than the processor's own, on which the model was trained; a malformed
                conversation.
        """
        if chat_template is not None:
            raise InputError("this model was trained with its own chat template; leave chat_template out")
        if isinstance(conversation, (str, Mapping)) or not conversation:
            raise InputError(
                f"the conversation is {reprlib.repr(conversation)}; expected a list of turns, or a list of such lists"
            )
        single = isinstance(conversation[0], Mapping)
        prompts, clips = [], []
        with contextlib.ExitStack() as stack:
            for each in [conversation] if single else conversation:
                clips.append(clip := self._clip(stack, *clips_of(each), sampling_rate))  # type: ignore[arg-type]

                def shown_of(kinds: Collection[str], clip: ClipMedia = clip) -> tuple[str, ...]:
                    found = self.visible(clip.modalities(kinds))
                    return tuple(name for name in found if modalities is None or name in modalities)

                messages = messages_of(each, lang, self.prompt_format, shown_of)  # type: ignore[arg-type]
                prompts.append(self._conversation_text(messages, add_generation_prompt, continue_final_message))
            if not tokenize:
                return prompts[0] if single else prompts
            batch = self(prompts, videos=clips, return_tensors=return_tensors, **(processor_kwargs or {}))
        return batch if return_dict else batch["input_ids"]

    def _conversation_text(self, messages: Sequence[Message], add_generation_prompt: bool, continued: bool) -> _Prompt:
        is_answered = messages[-1].role == "assistant"
        if continued and not is_answered:
            raise InputError("continue_final_message needs a conversation that ends with a turn of the assistant")
        if continued:
            prompt = self.prompt_text(messages)
            return _Prompt(prompt + ("" if prompt[-1:].isspace() else " ") + self.plain(messages[-1].content))
        if is_answered or not add_generation_prompt:
            return _Prompt(self._format(self._turns(messages), answered=True))
        return _Prompt(self.prompt_text(messages))


def _listed(clips: Any) -> list[Any]:
    """Clips as a list with one entry for each text; transformers nests them, as one list for each text."""
    if clips is None:
        return []
    return [_only(each) if _are_many(each) else each for each in (clips if _are_many(clips) else [clips])]


def _are_many(clips: Any) -> bool:
    """Whether this is a list of clips; a list of images is one clip."""
    return isinstance(clips, (list, tuple)) and not (clips and isinstance(clips[0], Image.Image))


def _only(clips: Sequence[Any]) -> Any:
    if len(clips) != 1:
        raise InputError(f"{len(clips)} clips for one text; expected one (for a text without a clip, None)")
    return clips[0]
