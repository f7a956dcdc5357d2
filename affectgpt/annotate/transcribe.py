"""Transcripts by a Whisper-type model of transformers in this process, with times of words if the model has them."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import astuple
from typing import Any

from affectgpt.annotate.annotators import CODE_VERSION
from affectgpt.annotate.clips import ClipMedia
from affectgpt.annotate.store import Store
from affectgpt.annotate.words import words_of
from affectgpt.journal import get_or_make
from affectgpt.runtime import UserError, loading_models, stable_hash, torch_device

log = logging.getLogger("affectgpt")

_SHORTEST_TIMED_S = 0.2
LANGUAGES = {"en": "english", "zh": "chinese"}


class Transcriber:
    """A speech recognition model by hub id or folder, loaded on its first clip; transcripts are stored like answers.

    Without a store, `transcribe` is all that can be asked.

    An answer has the field `words`, [text, start_s, end_s] each; null = the model's generation config has no
    `alignment_heads`, the sound is shorter than 0.2 s, or the attention has no path through it.
    """

    def __init__(self, name: str, store: Store | None, *, revision: str | None = None, device: str = "auto") -> None:
        self.name, self._store, self._revision, self._device = name, store, revision, device
        self._lock = asyncio.Lock()
        self._loaded: tuple[Any, Any, Any] | None = None  # model, feature extractor, tokenizer

    async def answer(self, step: str, clip: ClipMedia, lang: str) -> tuple[dict[str, Any], bool]:
        """The stored or new transcript of a clip, and whether it is new."""
        request = {"model": self.name, "revision": self._revision, "language": lang}
        assert self._store is not None
        key = stable_hash([CODE_VERSION, clip.sha256, step, request])

        async def make() -> dict[str, Any]:
            async with self._lock:  # one model, one clip at a time
                found = await asyncio.to_thread(self.transcribe, clip, lang)
            return {"step": step, "model": self.name, "media_sha256": clip.sha256, "request": request, **found}

        return await get_or_make(self._store.answers, self._store.claims, key, make)

    def transcribe(self, clip: ClipMedia, lang: str) -> dict[str, Any]:
        """A new transcript of a clip, for one caller at a time."""
        import torch

        model, extractor, tokenizer = self._load()
        started = time.monotonic()
        sound = clip.sound(extractor.sampling_rate)
        inputs = extractor(
            sound.samples,
            sampling_rate=sound.rate_hz,
            return_tensors="pt",
            return_attention_mask=True,
            truncation=False,
            padding="longest" if sound.duration_s > 30 else "max_length",  # Whisper takes 30 s or more
        ).to(model.device)
        options: dict[str, Any] = {"language": LANGUAGES[lang], "task": "transcribe"} if _is_multilingual(model) else {}
        if sound.duration_s > 30:
            options["return_timestamps"] = True  # Whisper's way beyond its window
        timed = has_word_times(model) and sound.duration_s >= _SHORTEST_TIMED_S
        if timed:
            options["return_token_timestamps"] = True  # does not change the text
        with torch.inference_mode():
            found = model.generate(**inputs, **options)
        tokens = found["sequences"] if timed else found
        text = tokenizer.batch_decode(tokens, skip_special_tokens=True)[0]
        words = None
        if timed:
            first_time = getattr(model.generation_config, "no_timestamps_token_id", None)

            def decode(some: list[int]) -> str:
                if first_time is not None and some[-1] > first_time:  # a time is no text
                    return ""
                return tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False)

            times_s = found["token_timestamps"][0].tolist()
            if all(0 <= time_s <= sound.duration_s + 0.5 for time_s in times_s):  # a path that failed ends before 0
                words = [astuple(word) for word in words_of(tokens[0].tolist(), times_s, decode)]
        return {
            "text": text,
            "words": words,
            "finish": "eos",
            "tokens_in": 0,
            "tokens_out": int(tokens.shape[-1]),
            "cost": 0.0,
            "seconds": round(time.monotonic() - started, 3),
        }

    @loading_models()
    def _load(self) -> tuple[Any, Any, Any]:
        if self._loaded is None:
            import transformers

            device = torch_device(self._device)
            log.info("loading %s", self.name)
            try:
                model = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(self.name, revision=self._revision)
                extractor = transformers.AutoFeatureExtractor.from_pretrained(self.name, revision=self._revision)
                tokenizer = transformers.AutoTokenizer.from_pretrained(self.name, revision=self._revision)
            except (OSError, ValueError, KeyError) as error:  # transformers' classes for missing and foreign files
                raise UserError(
                    f"transcriber={self.name}: no speech recognition model of transformers ({error}); expected a hub "
                    "id or a folder, such as openai/whisper-large-v3"
                ) from error
            self._loaded = model.to(device).eval(), extractor, tokenizer
        return self._loaded


def has_word_times(model: Any) -> bool:
    """Whether it is known which heads of the attention follow the sound, as for the published models of Whisper."""
    return bool(getattr(model.generation_config, "alignment_heads", None))


def _is_multilingual(model: Any) -> bool:
    return bool(getattr(model.generation_config, "is_multilingual", False))
