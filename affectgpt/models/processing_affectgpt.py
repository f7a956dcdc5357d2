"""Text and media of a sample -> the model's input tensors, and batches of them.

All preprocessing for training, caching and inference is here: chat format, placeholders, image size and normalisation,
audio windows and normalisation.

The batch dictionary. B = samples in the batch; N_m = samples that have modality m, in batch order: a sample without the
modality has no row. W audio windows of S samples, T frames, L text tokens:

    input_ids            [B, L]  int64    each placeholder repeated once per soft token
    attention_mask       [B, L]  int64    1 = real, also for a real end-of-turn token that equals the padding token
    labels               [B, L]  int64    -100 except on the answer and its end-of-turn token
    input_values         [N_audio, W, S]  float32    normalised audio at 16 kHz
    input_lengths        [N_audio, W]     int64      number of real samples in each window, 0 = no such window
    pixel_values              [N_frames, T, 3, H, W]       float32
    pixel_values_videos       [N_motion, T, 3, H, W]       float32
    pixel_values_faces        [N_face, T, 3, H, W]         float32    face crops, resized and normalised like frames
    pixel_values_face_videos  [N_face_motion, T, 3, H, W]  float32
    <m>_states, <m>_states_mask    [N_m, T, E], [N_m, T] bool    cached encoder states instead of that modality's media
    multi_rows                [N_multi, S] int64    models with a pre-fusion: for each sample with any of the S fused
                                                    modalities, its row in each of them; -1 = it lacks this one

    position_ids              [B, L]  int64    only if the format masks absent branches and one is absent (see below)

In a format that masks absent branches, their soft tokens are left out and the positions of all others stay the same,
which is what masking them does. A packed batch has B = 1, `position_ids` [1, L] that restart at 0 with each sample,
and no attention_mask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from affectgpt.media import audio_windows
from affectgpt.models.auto import AUTO_MAP
from affectgpt.models.conversation import ConversationMixin
from affectgpt.prompts import PUBLISHED, Message, Slot, published_parts, split_placeholders
from affectgpt.runtime import InputError
from affectgpt.schema import MODALITIES, PLACEHOLDERS, SLOTS

MEDIA_KEYS = {
    "audio": "input_values",
    "frames": "pixel_values",
    "motion": "pixel_values_videos",
    "face": "pixel_values_faces",
    "face_motion": "pixel_values_face_videos",
}
OMNI_KEYS = ("input_features", "feature_lengths", "video_grid_thw")
"""Further keys of the media of omni models, see `affectgpt.models.omni.processing`."""
TEXT_KEYS = ("input_ids", "labels", "position_ids")
"""What `encode` makes of the text alone."""
BATCH_MEDIA_KEYS = (
    "input_lengths",
    "multi_rows",
    *OMNI_KEYS,
    *MEDIA_KEYS.values(),
    *(f"{name}_states{suffix}" for name in MODALITIES for suffix in ("", "_mask")),
)

PROMPT_FORMATS = ("auto", "chat", "vicuna", *PUBLISHED)
VICUNA_SYSTEM = "A chat between a person with a question and an assistant who watches, listens and explains with care."
# Llama 3's templates put today's date into the prompt unless a date is given; prompts must not change from day to day.
_TEMPLATE_VALUES = {"enable_thinking": False, "date_string": "26 Jul 2024"}
_SENTINEL = "AffectGPTAnswer"


class AffectGPTProcessor(ConversationMixin):
    """Turns messages and media into model inputs.

    Args:
        tokenizer: the LLM's tokenizer. Placeholders are added as special tokens; the LLM's embedding is not resized.
        branches: slot -> settings. All have `n_tokens` (soft tokens per sample). audio: `rate_hz`, `window_s`,
            `max_windows`, `window_mode` ("cover", "fixed" or "published"), `normalize` (zero mean, unit variance),
            `min_samples`. images and video: `n_frames`, `height`, `width`, `mean`, `std`; and `channels`, `resize` and
            `short_clips` if they are not the usual ones, and `n_class` if class tokens come last. multi: `sources`,
            the fused modalities. `unless` names a modality: samples that have it do not show this branch (frames as a
            substitute for a face).
        prompt_format: "chat" = the tokenizer's chat template, "vicuna" = Vicuna's USER / ASSISTANT text, "auto" = chat
            if the tokenizer has a template; or the format that published weights were trained on, a key of
            `affectgpt.prompts.PUBLISHED`.
        max_tokens: maximum number of text tokens; None = unlimited.
    """

    def __init__(
        self,
        tokenizer: Any,
        branches: Mapping[str, Mapping[str, Any]] | None = None,
        prompt_format: str = "auto",
        max_tokens: int | None = None,
        chat_template: str | None = None,
    ) -> None:
        if prompt_format not in PROMPT_FORMATS:
            raise InputError(f"prompt_format is {prompt_format!r}; expected one of {list(PROMPT_FORMATS)}")
        if prompt_format == "auto":
            prompt_format = "chat" if tokenizer.chat_template else "vicuna"
        if prompt_format == "chat" and not tokenizer.chat_template:
            raise InputError("prompt_format is 'chat', but the tokenizer has no chat template; use 'vicuna' or 'auto'")
        super().__init__(tokenizer, chat_template=chat_template)
        self.auto_map = dict(AUTO_MAP)
        self.branches = {name: dict(branches[name]) for name in SLOTS if name in (branches or {})}
        self.prompt_format = prompt_format
        self.max_tokens = max_tokens
        slots = (*MODALITIES, "multi")  # oldest first, so that the ids in older saved tokenizers stay valid
        tokenizer.add_special_tokens(
            {"extra_special_tokens": [PLACEHOLDERS[name] for name in slots]}, replace_extra_special_tokens=False
        )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token  # padding is identified by position, so the two may share an id
        self.placeholder_token_ids = {name: tokenizer.convert_tokens_to_ids(PLACEHOLDERS[name]) for name in slots}
        self.media_token_ids = list(self.placeholder_token_ids.values())
        added = sorted((str(token) for token in tokenizer.get_added_vocab() if token.strip()), key=len, reverse=True)
        self._control = re.compile("|".join(re.escape(token) for token in added))
        self._placeholder = re.compile("(" + "|".join(re.escape(PLACEHOLDERS[name]) for name in slots) + ")")
        self.end_ids = self._end_of_turn()

    # ---------------------------------------------------------------- text

    def plain(self, text: str) -> str:
        """`text` with control tokens and placeholders made harmless: `<audio>` becomes `< audio>`."""
        return self._control.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def prompt_text(self, messages: Sequence[Message], complete: bool = False) -> str:
        """The text up to the answer, each placeholder repeated once per soft token.

        Args:
            complete: published formats: with the places of all branches of the model, also of absent ones.
        """
        messages = list(messages)
        if messages[-1].role == "assistant":
            messages.pop()
        return self._format(self._turns(messages, complete))

    def _turns(self, messages: Sequence[Message], complete: bool = False) -> list[tuple[str, str]]:
        """(role, text) of each message, with its soft tokens."""
        turns: list[tuple[str, str]] = []
        for message in messages:
            shown, rest = split_placeholders(message.content) if message.role == "user" else ((), message.content)
            slots = self.slots_of(shown)
            if self.prompt_format in PUBLISHED and message.role == "user" and (shown or not turns):
                slots = tuple(self.branches) if complete else slots
                told = None if message.subtitle is None else self.plain(message.subtitle)
                parts = published_parts(self.prompt_format, slots, told, self.plain(rest).strip())
                text = "".join(part if isinstance(part, str) else self._soft(part) for part in parts)
            else:
                text = "".join(self._soft(Slot(name)) for name in slots) + self.plain(rest)
            turns.append((message.role, text))
        return turns

    def _soft(self, slot: Slot) -> str:
        """The placeholder of a branch, once per soft token."""
        branch = self._branch(slot.name)
        n_class = branch.get("n_class", 0)
        n = {"all": branch["n_tokens"], "class": n_class, "patches": branch["n_tokens"] - n_class}[slot.part]
        return PLACEHOLDERS[slot.name] * n

    def visible(self, modalities: Iterable[str]) -> tuple[str, ...]:
        """The modalities of a sample that its prompt shows: all but those hidden by their branch's `unless`."""
        modalities = tuple(modalities)
        return tuple(name for name in modalities if self.branches.get(name, {}).get("unless") not in modalities)

    def slots_of(self, shown: Iterable[str]) -> tuple[str, ...]:
        """The branches with soft tokens in a prompt that shows these modalities; the pre-fusion comes first."""
        shown = tuple(shown)
        sources = self.branches.get("multi", {}).get("sources", ())
        fused = self._needed_of(sources)([name in shown for name in sources]) if sources else False
        return ("multi", *shown) if fused else shown

    def _needed_of(self, sources: Sequence[str]) -> Callable[[Iterable[Any]], bool]:
        """Whether the pre-fusion needs `any` of its sources or `all` of them."""
        published = PUBLISHED.get(self.prompt_format)
        return all if published is not None and published.fuses_all else any

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's token ids, the same in training and inference."""
        return self._prompt(messages)[1]

    @property
    def masks_absent(self) -> bool:
        """Whether absent branches keep the positions of their soft tokens."""
        return self.prompt_format in PUBLISHED and PUBLISHED[self.prompt_format].masks_absent

    def _prompt(self, messages: Sequence[Message]) -> tuple[str, list[int], list[int] | None]:
        """(text, token ids, their positions if some are left out) of the prompt."""
        text = self.prompt_text(messages)
        if not self.masks_absent:
            return text, self._ids(text), None
        complete = self._ids(self.prompt_text(messages, complete=True))
        absent = {token for name, token in self.placeholder_token_ids.items() if PLACEHOLDERS[name] not in text}
        places = [place for place, token in enumerate(complete) if token not in absent]
        return text, [complete[place] for place in places], places if len(places) < len(complete) else None

    def _format(self, turns: Sequence[tuple[str, str]], answered: bool = False) -> str:
        """The chat text; `answered` = the last turn is a complete answer of the assistant."""
        if self.prompt_format == "chat":
            return self.tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in turns],
                tokenize=False,
                add_generation_prompt=not answered,
                **_TEMPLATE_VALUES,
            )
        if self.prompt_format in PUBLISHED:
            return self._published(turns, answered)
        speaker = {"user": "USER: {} ", "assistant": f"ASSISTANT: {{}}{self.tokenizer.eos_token}", "system": "{} "}
        opening = "" if turns[0][0] == "system" else f"{VICUNA_SYSTEM} "
        text = opening + "".join(speaker[role].format(content) for role, content in turns)
        return text if answered else f"{text}ASSISTANT:"

    def _published(self, turns: Sequence[tuple[str, str]], answered: bool) -> str:
        """The chat text of a published format. Its code has one question and one answer; later turns continue it."""
        eos, end = self.tokenizer.eos_token, PUBLISHED[self.prompt_format].end
        if self.prompt_format.startswith("emotion_llama"):
            speaker = {"user": "[INST] {} [/INST]", "assistant": f"{{}}{eos}", "system": "{} "}
            return "".join(speaker[role].format(content) for role, content in turns)
        speaker = {"user": f"{end}Human: {{}} ", "assistant": f"{end}Assistant: {{}}", "system": "{} "}
        text = "".join(speaker[role].format(content) for role, content in turns)
        return text + (f"{end}{eos}" if answered else f"{end}Assistant: ")

    def _ids(self, text: str) -> list[int]:
        """Token ids of a formatted text. Chat templates include the beginning-of-sequence token."""
        if self.prompt_format in PUBLISHED:
            # Each text between soft tokens is tokenized alone, as the published code does.
            ids = [] if (bos := self._bos()) is None else [bos]
            for place, piece in enumerate(self._placeholder.split(text)):
                if place % 2:
                    ids.append(self.tokenizer.convert_tokens_to_ids(piece))
                elif piece:
                    ids += self.tokenizer(piece, add_special_tokens=False)["input_ids"]
            return ids
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if self.prompt_format == "vicuna" and self.tokenizer.bos_token_id is not None:
            ids = [self.tokenizer.bos_token_id, *ids]
        return ids

    def _bos(self) -> int | None:
        """The token that begins a sequence; the published code of AffectGPT takes Qwen's <|im_start|>."""
        if self.tokenizer.bos_token_id is not None:
            return self.tokenizer.bos_token_id
        return self.tokenizer.get_vocab().get("<|im_start|>")

    def _end_of_turn(self) -> list[int]:
        """Ids that end an answer: the text that the template adds after it if it is all control tokens, else eos."""
        if self.prompt_format in PUBLISHED and self.tokenizer.eos_token_id is not None:
            return [self.tokenizer.eos_token_id]
        text = self._format([("user", _SENTINEL), ("assistant", _SENTINEL)], answered=True)
        end = text.rpartition(_SENTINEL)[2].strip()
        ids = self.tokenizer(end, add_special_tokens=False)["input_ids"] if end else []
        if ids and all(token in self.tokenizer.added_tokens_decoder for token in ids):
            return ids
        if self.tokenizer.eos_token_id is None:
            raise InputError("neither the tokenizer nor its chat template has an end-of-turn token")
        return [self.tokenizer.eos_token_id]

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end generation."""
        stops = [self.end_ids[0], self.tokenizer.eos_token_id]
        if self.prompt_format in PUBLISHED and (end := PUBLISHED[self.prompt_format].end):
            ids = self.tokenizer(end, add_special_tokens=False)["input_ids"]
            stops += ids if len(ids) == 1 else []
        return sorted({token for token in stops if token is not None})

    def _answer_ids(self, prompt: str, prompt_ids: list[int], answer: str) -> list[int]:
        """Ids of the answer after this prompt, with its end-of-turn token."""
        if self.prompt_format in PUBLISHED:  # tokenized apart from the prompt, as the published code does
            text = self.plain(answer) + PUBLISHED[self.prompt_format].end
            return self.tokenizer(text, add_special_tokens=False)["input_ids"] + self.end_ids
        text = self.plain(answer.strip())
        gap = "" if prompt[-1:].isspace() else " "
        joint = self._ids(prompt + gap + text)
        if joint[: len(prompt_ids)] == prompt_ids:
            ids = joint[len(prompt_ids) :]
        else:  # the tokenizer would merge the start of the answer with the prompt
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids + self.end_ids

    def answer_ids(self, messages: Sequence[Message], answers: Sequence[str]) -> list[list[int]]:
        """Ids of possible answers to a prompt, each with its end-of-turn token, as `encode` writes them in training."""
        prompt = self.prompt_text(messages)
        ids = self._ids(prompt)
        return [self._answer_ids(prompt, ids, answer) for answer in answers]

    def answer_text(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens, without stop tokens and without the text that ends an answer."""
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        published = PUBLISHED.get(self.prompt_format)
        return (text.partition(published.end)[0] if published is not None and published.end else text).strip()

    # ---------------------------------------------------------------- media

    def _branch(self, modality: str) -> dict[str, Any]:
        if modality not in self.branches:
            raise InputError(
                f"the prompt shows {modality!r}, but this model has only {list(self.branches)}; "
                "render the prompt with those modalities"
            )
        return self.branches[modality]

    def audio(self, samples: np.ndarray, rate_hz: int) -> dict[str, Tensor]:
        """Mono samples [S] -> `input_values` [W, S'] and `input_lengths` [W].

        Normalised before it is cut into windows, so that a quiet window stays quieter than a loud one. In the window
        mode "published" it is padded, then cut, and then all windows are normalised together, as AffectGPT's code does.
        """
        branch = self._branch("audio")
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 1 or rate_hz != branch["rate_hz"]:
            raise ValueError(
                f"audio: found {rate_hz} Hz with shape {samples.shape}; expected mono samples [S] at "
                f"{branch['rate_hz']} Hz, as from affectgpt.media.read_audio"
            )
        published = branch["window_mode"] == "published"
        if len(samples) < (1 if published else branch["min_samples"]):
            raise InputError(
                f"audio: {len(samples)} samples ({len(samples) / rate_hz:.4f} s) are too few for the encoder, which "
                f"needs {branch['min_samples']}; remove audio from this sample's modalities"
            )
        if branch["normalize"] and not published:
            samples = _standardized(samples)
        window_s = branch["window_s"]
        if branch["window_mode"] != "cover":
            samples = np.pad(samples, (0, max(0, round(window_s * rate_hz) - len(samples))))
        ranges = audio_windows(
            len(samples), rate_hz, window_s=window_s, max_windows=branch["max_windows"], mode=branch["window_mode"]
        )
        if branch["normalize"] and published:
            cut = _standardized(np.stack([samples[start:stop] for start, stop in ranges]))
            return {"input_values": torch.from_numpy(cut), "input_lengths": torch.tensor([len(each) for each in cut])}
        windows = [torch.from_numpy(np.ascontiguousarray(samples[start:stop])) for start, stop in ranges]
        return {
            "input_values": torch.nn.utils.rnn.pad_sequence(windows, batch_first=True),  # [W, S']
            "input_lengths": torch.tensor([len(window) for window in windows]),  # [W]
        }

    def images(self, modality: str, images: np.ndarray) -> Tensor:
        """RGB frames uint8 [T, H, W, 3] of any size -> [T, 3, H', W'], resized and normalised."""
        branch = self._branch(modality)
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"{modality}: found {images.dtype} {images.shape}; expected RGB frames uint8 [T, H, W, 3]")
        if len(images) != branch["n_frames"]:
            raise ValueError(f"{modality}: found {len(images)} frames; this model takes {branch['n_frames']}")
        if branch.get("channels", "rgb") == "bgr":
            images = images[..., ::-1]
        height, width = branch["height"], branch["width"]
        if branch.get("resize") == "bilinear":
            pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
            scaled = functional.interpolate(pixels, (height, width), mode="bilinear").round() / 255  # [T, 3, H', W']
        else:
            pictures = [Image.fromarray(np.ascontiguousarray(image)) for image in images]
            resized = np.stack(
                [np.asarray(each.resize((width, height), Image.Resampling.BICUBIC)) for each in pictures]
            )
            scaled = torch.from_numpy(resized).permute(0, 3, 1, 2).float() / 255  # [T, 3, H', W']
        mean, std = (torch.tensor(branch[key]).view(3, 1, 1) for key in ("mean", "std"))
        return ((scaled - mean) / std).contiguous()

    def media(self, modality: str, value: Any) -> dict[str, Tensor]:
        """Tensors of one modality, from decoded audio or frames, or from cached encoder states [T, E]."""
        if isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point():
            return {f"{modality}_states": value}
        if modality == "audio":
            return self.audio(value.samples, value.rate_hz)
        return {MEDIA_KEYS[modality]: self.images(modality, value)}

    # ---------------------------------------------------------------- samples and batches

    def encode(
        self,
        messages: Sequence[Message],
        media: Mapping[str, Any] | None = None,
        answer: str | None = None,
        text: Mapping[str, Tensor] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """One sample's tensors, without batch dimension (`collate` batches them).

        Args:
            messages: from `affectgpt.prompts.render`; a last assistant message is the answer.
            media: modality -> waveform (with `samples` and `rate_hz`), frames uint8 [T, H, W, 3], or cached encoder
                states [T, E]; exactly the modalities whose placeholders the messages show.
            answer: the target text; None and no assistant message = a prompt for generation, without labels.
            text: the `TEXT_KEYS` of the messages and the answer, if already tokenised.
            facts: about the media, as `data.clips.load_clip` gives them; for models that use the time of a frame.
        """
        messages, media = list(messages), dict(media or {})
        if answer is None and messages[-1].role == "assistant":
            answer = messages.pop().content
        shown = self._shown(messages, media)
        features = self._tokens(*self._prompt(messages), answer) if text is None else dict(text)
        for name in shown:
            features.update(self.media(name, media[name]))
        return features

    def check_length(self, messages: Sequence[Message], answer: str | None) -> None:
        """Raise InputError if prompt and answer (None = the prompt alone) have more than `max_tokens` tokens."""
        self._tokens(*self._prompt(list(messages)), answer)

    def _shown(self, messages: Sequence[Message], media: Mapping[str, Any]) -> list[str]:
        """The modalities whose placeholders the messages show; raises ValueError unless they are those of `media`."""
        asked = [message.content for message in messages if message.role == "user"]
        shown = [name for content in asked for name in split_placeholders(content)[0]]
        for name in sorted({*shown, *media}):
            if shown.count(name) != (name in media):
                raise ValueError(
                    f"{name}: the prompt has {shown.count(name)} placeholders for it, the media are {sorted(media)}; "
                    "each modality needs one placeholder and its media"
                )
        return shown

    def _tokens(self, prompt: str, ids: list[int], places: list[int] | None, answer: str | None) -> dict[str, Tensor]:
        """`input_ids` [L] of a prompt, or of prompt and answer with their `labels` [L]; see `_prompt`."""
        features: dict[str, Tensor] = {}
        if answer is not None:
            answer_ids = self._answer_ids(prompt, ids, answer)
            features["labels"] = torch.tensor([-100] * len(ids) + answer_ids)
            ids = ids + answer_ids
        if self.max_tokens is not None and len(ids) > self.max_tokens:
            raise InputError(
                f"the text has {len(ids)} tokens, the LLM takes {self.max_tokens}; shorten the subtitle or the answer"
            )
        features["input_ids"] = torch.tensor(ids)
        if places is not None:
            places += range(places[-1] + 1, places[-1] + 1 + len(ids) - len(places))
            features["position_ids"] = torch.tensor(places)
        return features

    def collate(
        self, rows: Iterable[Mapping[str, Tensor]], *, for_generation: bool = False, packed: bool = False
    ) -> dict[str, Tensor]:
        """Batch the results of `encode`; the module's docstring lists keys and shapes.

        Args:
            for_generation: pad on the left, so that all answers start at the same position; labels are dropped.
            packed: put all samples into one row without padding, separated by `position_ids`.
        """
        rows = list(rows)
        if not rows:
            raise ValueError("a batch needs at least one sample")
        if for_generation:
            rows = [{key: value for key, value in row.items() if key != "labels"} for row in rows]
        if len({"labels" in row for row in rows}) != 1:
            raise ValueError("some samples of the batch have an answer and others do not; batch them separately")
        text = {"input_ids": self.tokenizer.pad_token_id, "labels": -100, "attention_mask": 0, "position_ids": 0}
        batch: dict[str, Tensor] = {}
        for key, padding in text.items():
            if key == "position_ids" and (packed or any(key in row for row in rows)):
                values = [row.get(key, torch.arange(len(row["input_ids"]))) for row in rows]
            elif key == "attention_mask" and not packed:
                values = [torch.ones_like(row["input_ids"]) for row in rows]
            elif key in rows[0]:
                values = [row[key] for row in rows]
            else:
                continue
            if packed:
                batch[key] = torch.cat(values)[None]
            else:
                side = "left" if for_generation else "right"
                batch[key] = torch.nn.utils.rnn.pad_sequence(
                    values, batch_first=True, padding_value=padding, padding_side=side
                )
        for name in MODALITIES:
            states = [row[f"{name}_states"] for row in rows if f"{name}_states" in row]
            raw = [row for row in rows if MEDIA_KEYS[name] in row]
            if states and raw:
                raise ValueError(
                    f"{name}: {len(states)} samples have cached states, {len(raw)} have media; use one kind"
                )
            if states:
                batch[f"{name}_states"], batch[f"{name}_states_mask"] = pad_states(states)
            elif raw and name == "audio":
                batch["input_values"], batch["input_lengths"] = _pad_windows(raw)
            elif raw:
                batch[MEDIA_KEYS[name]] = torch.stack([row[MEDIA_KEYS[name]] for row in raw])
        if sources := self.branches.get("multi", {}).get("sources"):
            has = torch.tensor(
                [[f"{name}_states" in row or MEDIA_KEYS[name] in row for name in sources] for row in rows]
            )  # [B, S]
            places = torch.where(has, has.cumsum(dim=0) - 1, -1)
            needed = torch.tensor([self._needed_of(sources)(row) for row in has.tolist()])  # [B]
            if needed.any():
                batch["multi_rows"] = places[needed]
        return batch


def _standardized(samples: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over all samples, as transformers' Wav2Vec2FeatureExtractor computes it."""
    return (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)


def pad_states(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """States of several samples, each [T_i, E] -> ([N, T, E] padded with zeros, mask [N, T] True = real)."""
    padded = torch.nn.utils.rnn.pad_sequence(list(states), batch_first=True)
    lengths = torch.tensor([len(state) for state in states], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device)[None] < lengths[:, None]


def _pad_windows(rows: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Audio windows of several samples, each [W_i, S_i] -> ([N, W, S], real lengths [N, W])."""
    n_windows, n_samples = (max(row["input_values"].shape[axis] for row in rows) for axis in (0, 1))
    values = torch.zeros(len(rows), n_windows, n_samples)
    lengths = torch.zeros(len(rows), n_windows, dtype=torch.int64)
    for row, into, length in zip(rows, values, lengths, strict=True):
        w, s = row["input_values"].shape
        into[:w, :s] = row["input_values"]
        length[:w] = row["input_lengths"]
    return values, lengths
