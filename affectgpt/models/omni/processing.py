"""Messages and media of a sample -> the inputs of an omni model, in its own chat template, and batches of them.

Keys of a batch beside `input_ids`, `labels`, `attention_mask` and `position_ids` of `processing_affectgpt`:

    rope_ids             [3, B, L]     int64    positions in time, height and width; rows have those of the prompt,
                                                [3, L], and `collate` continues them over the answer
    input_features       [N, M, T]     float32  log-mel spectrograms of the samples with sound, padded with zeros
    feature_lengths      [N]           int64    their mel frames
    pixel_values_videos  [P, E]        float32  patches of all samples with frames, one after the other
    video_grid_thw       [N, 3]        int64    their patches in time, height and width
    <m>_states, <m>_states_mask        [N, S, D], [N, S] bool   the towers' tokens instead of that modality's media
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from affectgpt.config import OmniConfig, SamplingConfig
from affectgpt.media import audio_windows
from affectgpt.models.omni import layout
from affectgpt.models.processing_affectgpt import TEXT_KEYS, AffectGPTProcessor
from affectgpt.prompts import Message, split_placeholders
from affectgpt.runtime import InputError

_PART = {"audio": "audio", "frames": "video"}  # modality -> type of a part of a message
_MARK = "AffectGPTText"


class OmniProcessor(AffectGPTProcessor):
    """Turns messages and media into the inputs of an `OmniForConditionalGeneration`.

    Args:
        tokenizer: with the model's chat template.
        config: transformers' configuration of the thinker.
        sound: its feature extractor.
        pixels: mean and std of the frames.
    """

    def __init__(
        self,
        tokenizer: Any,
        config: Any,
        sound: Any,
        pixels: Mapping[str, Sequence[float]],
        omni: OmniConfig,
        sampling: SamplingConfig,
    ) -> None:
        windows = {key: getattr(sampling, key) for key in ("rate_hz", "window_s", "max_windows", "window_mode")}
        branches = {"audio": {"n_tokens": 0, **windows}, "frames": {"n_tokens": 0, "n_frames": sampling.n_frames}}
        super().__init__(
            tokenizer,
            {name: branches[name] for name in branches if name in omni.modalities},
            "chat",
            max_tokens=config.text_config.max_position_embeddings,
        )
        self._thinker, self._sound, self._pixels, self._omni = config, sound, dict(pixels), omni
        self.placeholder_token_ids = {
            name: token
            for name, token in (("audio", config.audio_token_id), ("frames", config.video_token_id))
            if name in self.branches
        }
        self.media_token_ids += [config.audio_token_id, config.video_token_id, config.image_token_id]
        self._ends = {"<": config.audio_start_token_id, ">": config.audio_end_token_id}
        self._marks = {name: self._mark_of(_PART[name]) for name in self.branches}

    # ---------------------------------------------------------------- text

    def _mark_of(self, part: str) -> str:
        """What the chat template writes for a part of this type."""
        texts = [
            self.tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
            for content in ([{"type": part}, {"type": "text", "text": _MARK}], _MARK)
        ]
        start = texts[1].index(_MARK)
        return texts[0][start : texts[0].index(_MARK)]

    def _turns(self, messages: Sequence[Message], complete: bool = False) -> list[tuple[str, str]]:
        turns = []
        for message in messages:
            shown, rest = split_placeholders(message.content) if message.role == "user" else ((), message.content)
            for name in shown:
                self._branch(name)  # refuses what the model is not shown
            written = ("frames",) if self._is_interleaved(shown) else ("frames", "audio")
            media = "".join(self._marks[name] for name in written if name in shown)
            turns.append((message.role, media + self.plain(rest).removeprefix("\n")))
        return turns

    def _is_interleaved(self, shown: Iterable[str]) -> bool:
        return self._omni.interleave and {"audio", "frames"} <= set(shown)

    # ---------------------------------------------------------------- media

    def _heard(self, samples: np.ndarray, rate_hz: int) -> dict[str, Tensor]:
        """Mono samples [S] -> `input_features` [M, T]: the spectrogram without the padding that transformers adds."""
        branch = self.branches["audio"]
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 1 or rate_hz != branch["rate_hz"]:
            raise ValueError(
                f"audio: found {rate_hz} Hz with shape {samples.shape}; expected mono at {branch['rate_hz']}"
            )
        ((start, stop),) = audio_windows(
            len(samples), rate_hz, window_s=branch["window_s"], max_windows=1, mode=branch["window_mode"]
        )
        samples, hop = samples[start : min(stop, len(samples))], self._sound.hop_length
        n_mel = -(-len(samples) // hop)
        if layout.n_audio_tokens(n_mel) < 1:
            raise InputError(
                f"audio: {len(samples)} samples ({len(samples) / rate_hz:.4f} s) give no token; remove audio from this "
                "sample's modalities"
            )
        # A spectrum reaches half a window beyond its frame, where transformers has zeros, too.
        padded = np.pad(samples, (0, self._sound.n_fft + n_mel * hop - len(samples)))
        features = self._sound(padded, sampling_rate=rate_hz, padding="do_not_pad", return_tensors="pt").input_features
        return {"input_features": features[0, :, :n_mel].contiguous()}

    def _seen(self, images: np.ndarray) -> dict[str, Tensor]:
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"frames: found {images.dtype} {images.shape}; expected RGB frames uint8 [T, H, W, 3]")
        limits = {"min_pixels": self._omni.min_pixels, "max_pixels": self._omni.max_pixels}
        flat, grid = layout.patches(images, **limits, **self._pixels, config=self._thinker.vision_config)
        return {"pixel_values_videos": flat, "video_grid_thw": grid}

    # ---------------------------------------------------------------- samples and batches

    def encode(
        self,
        messages: Sequence[Message],
        media: Mapping[str, Any] | None = None,
        answer: str | None = None,
        text: Mapping[str, Tensor] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """One sample's tensors, without batch dimension.

        Args:
            media: "audio" -> waveform (`samples`, `rate_hz`), "frames" -> uint8 [T, H, W, 3].
            text: is not used: the number of tokens depends on the media.
            facts: "frames" -> `times_s`, if there are frames.
        """
        messages, media = list(messages), dict(media or {})
        if answer is None and messages[-1].role == "assistant":
            answer = messages.pop().content
        shown = self._shown(messages, media)
        row: dict[str, Tensor] = {}
        n_mel, seconds = None, 1.0
        if "audio" in shown:
            row |= self._heard(media["audio"].samples, media["audio"].rate_hz)
            n_mel = torch.tensor(row["input_features"].shape[1])
        if "frames" in shown:
            row |= self._seen(media["frames"])
            if not facts or "times_s" not in facts.get("frames", {}):
                raise InputError("frames: an omni model needs their times, which are not known here")
            depth = self._thinker.vision_config.temporal_patch_size
            seconds = depth * layout.seconds_per_frame(facts["frames"]["times_s"])
        prompt = self.prompt_text(messages)
        short = self._ids(prompt)
        ids = self._expanded(short, row.get("video_grid_thw"), n_mel, seconds)
        together = self._is_interleaved(shown)
        grid = row.get("video_grid_thw")
        row["rope_ids"] = layout.positions(torch.tensor(ids), grid, n_mel, seconds, together, self._thinker)
        if answer is not None:
            answer_ids = self._answer_ids(prompt, short, answer)
            row["labels"] = torch.tensor([-100] * len(ids) + answer_ids)
            ids = ids + answer_ids
        if self.max_tokens is not None and len(ids) > self.max_tokens:
            raise InputError(
                f"prompt and answer have {len(ids)} tokens, the LLM takes {self.max_tokens}; lower "
                "model.sampling.n_frames or model.omni.max_pixels, or shorten the text"
            )
        row["input_ids"] = torch.tensor(ids)
        return row

    def _expanded(self, ids: Sequence[int], grid: Tensor | None, n_mel: Tensor | None, seconds: float) -> list[int]:
        """A prompt's ids with as many tokens in the place of each medium as its tower gives."""
        audio, video = self._thinker.audio_token_id, self._thinker.video_token_id
        n_audio = 0 if n_mel is None else layout.n_audio_tokens(int(n_mel))
        fill = {audio: [audio] * n_audio}
        if grid is not None:
            fill[video] = [video] * (int(grid.prod()) // self._thinker.vision_config.spatial_merge_size**2)
            if n_audio and audio not in ids:
                token = {**self._ends, "v": video, "a": audio}
                fill[video] = [token[each] for each in layout.interleaved(grid, n_audio, seconds, self._thinker)]
        return [new for token in ids for new in fill.get(token, (token,))]

    def collate(
        self, rows: Iterable[Mapping[str, Tensor]], *, for_generation: bool = False, packed: bool = False
    ) -> dict[str, Tensor]:
        rows = list(rows)
        kept = (*TEXT_KEYS, "audio_states", "frames_states")
        texts = [{key: row[key] for key in kept if key in row} for row in rows]
        batch = super().collate(texts, for_generation=for_generation, packed=packed)
        places = [_continued(row["rope_ids"], len(row["input_ids"])) for row in rows]
        if packed:
            batch["rope_ids"] = torch.cat(places, dim=1)[:, None]
        else:
            longest = batch["input_ids"].shape[1]
            sides = [(longest - each.shape[1], 0)[:: 1 if for_generation else -1] for each in places]
            padded = [functional.pad(each, side) for each, side in zip(places, sides, strict=True)]
            batch["rope_ids"] = torch.stack(padded, dim=1)
        if heard := [row["input_features"] for row in rows if "input_features" in row]:
            lengths = [each.shape[1] for each in heard]
            batch["input_features"] = torch.stack(
                [functional.pad(each, (0, max(lengths) - each.shape[1])) for each in heard]
            )
            batch["feature_lengths"] = torch.tensor(lengths)
        if seen := [row for row in rows if "pixel_values_videos" in row]:
            batch["pixel_values_videos"] = torch.cat([row["pixel_values_videos"] for row in seen])
            batch["video_grid_thw"] = torch.stack([row["video_grid_thw"] for row in seen])
        return batch

    # ---------------------------------------------------------------- what is not built

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise InputError(_NOT_BUILT)

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        raise InputError(_NOT_BUILT)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        raise InputError(_NOT_BUILT)


_NOT_BUILT = (
    "an omni model is not built for conversations of transformers and full folders; ask it with infer.py, "
    "affectgpt.loading.load(...).ask or a manifest"
)


def _continued(places: Tensor, length: int) -> Tensor:
    """Positions of a prompt [3, P] and of the text after it, [3, length]."""
    after = places[:, -1:].amax() + 1 + torch.arange(length - places.shape[1])
    return torch.cat([places, after.expand(3, -1)], dim=1)
