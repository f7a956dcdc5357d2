"""The configuration of the assembled model: the LLM's configuration, and an encoder and a projector for each modality.

It holds the resolved architecture, with all sizes; the settings that it is resolved from are in `affectgpt.config`. A
modality that is absent from `branches` has no encoder, no projector and no placeholder in the prompt. The branch
"multi" has only a projector, which fuses the states of other branches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from affectgpt.config import EncoderConfig, ProjectorConfig
from affectgpt.models.auto import InstalledCode
from affectgpt.runtime import InputError
from affectgpt.schema import SLOTS

IMAGES, VIDEOS = ("frames", "face"), ("motion", "face_motion")
"""Modalities encoded image by image, and modalities encoded as a short video."""
POOLS = {
    "audio": ("tokens", "window", "mean"),
    **dict.fromkeys(IMAGES, ("tokens", "frame", "cls", "pooled", "mean", "pooled_mean", "queries")),
    **dict.fromkeys(VIDEOS, ("tokens", "frame", "cls", "pooled", "mean")),
}
"""Possible outputs of an encoder. A *step* is one audio window, one frame, or one tubelet of a video encoder.

tokens: all tokens of all steps; window / frame: the mean of each step's tokens, without the class token; cls: the class
token of each step; pooled: the model's own pooled vector of each step (CLIP's projected embedding); mean: the mean of
all tokens; pooled_mean: the mean of the pooled vectors; queries: the outputs of BLIP-2's image Q-Former for each frame.
"""
PROJECTORS = ("qformer", "linear", "attention", "grouped")
FUSIONS = ("attention", "qformer", "conv")
_LAYERS = re.compile(r"last([1-9]\d*)_mean")


def check_pool(modality: str, pool: str) -> None:
    if pool not in POOLS[modality]:
        raise InputError(f"{modality}: pool {pool!r} is not one of {list(POOLS[modality])}")


def layers_to_average(layers: int | str) -> int | None:
    """The number of last layers that `layers` averages ("last4_mean" -> 4); None for a single layer."""
    if isinstance(layers, int):
        return None
    if match := _LAYERS.fullmatch(layers):
        return int(match[1])
    raise InputError(f"layers is {layers!r}; expected a layer index such as -1 or 12, or 'last4_mean'")


@dataclass(frozen=True)
class EncoderArchitecture:
    """One encoder with the configuration of its base model.

    Attributes:
        base: the base model's own configuration as a dictionary with `model_type`, or `{"timm": name}`.
        layers: -1 = the model's last hidden state (with its final norm); another integer = that entry of
            `hidden_states` (0 is the embedding, in timm models the first block); "last4_mean" = the mean of the last
            four entries. The last entry is, of speech models, the output with the final norm; of image and video
            models, the output of the last block.
        pool: see `POOLS`.
        dtype: precision of the encoder's weights and states.
        stride: audio with pool "tokens": number of consecutive tokens averaged to one state.
        grid: with pool "tokens": the patches of a step are averaged to grid x grid states, without the class token, or
            the states of all audio windows together to `grid` states; 0 = all tokens.
        per_frame: video with an image encoder: each frame is a step of its own.
        lora: fields of peft's LoraConfig, or None.
    """

    base: Mapping[str, Any]
    layers: int | str = EncoderConfig.layers
    pool: str = EncoderConfig.pool
    dtype: str = EncoderConfig.dtype
    stride: int = EncoderConfig.stride
    grid: int = EncoderConfig.grid
    per_frame: bool = EncoderConfig.per_frame
    lora: Mapping[str, Any] | None = None

    @property
    def takes_final_norm(self) -> bool:
        """Whether the selected hidden states include the final norm of a pre-norm speech model."""
        if not self.base.get("do_stable_layer_norm") or self.layers == -1:
            return False
        return not isinstance(self.layers, int) or self.layers == self.base.get("num_hidden_layers")

    def __post_init__(self) -> None:
        layers_to_average(self.layers)
        if (self.stride != 1 or self.grid) and self.pool != "tokens":
            raise InputError(f"stride and grid thin out pool 'tokens', found pool {self.pool!r}; leave them out")
        if self.stride > 1 and self.grid:
            raise InputError(
                f"stride is {self.stride} and grid {self.grid}; stride thins out by a factor, grid to a number: set one"
            )
        if self.stride < 1 or self.grid < 0:
            raise InputError(f"stride is {self.stride}, grid {self.grid}; expected at least 1 and at least 0")


@dataclass(frozen=True)
class ProjectorArchitecture:
    """One trained projector with the sizes that follow from its encoder: states [B, T, E] -> soft tokens [B, Q, D].

    What a kind does not use has a neutral value.

    Attributes:
        kind: "qformer" (learned queries attend to the states), "linear" (one soft token per state), "attention"
            (learned weighted sums of the states) or "grouped" (consecutive states concatenated to one soft token).
        input_size: E, width of the encoder's states; of a pre-fusion, the common width of its sources.
        n_queries: Q, soft tokens per sample. For "linear" also the number of states that a sample must have.
        hidden_size, n_layers, n_heads, dropout: shape of the Q-Former; its feed-forward width is 4 * hidden_size. Of a
            pre-fusion by convolution, width of each source, and number of convolutions.
        max_positions: size of the table of temporal positions; 0 = no position embedding.
        tokens_per_position: consecutive states that share a position (the patches of one frame).
        softmax: "attention" only; true = weights sum to 1, false = the raw scores are the weights.
        group_size, n_class: "grouped" only; states per group, and number of class tokens before them, which have a
            linear map of their own.
        class_last: "grouped" only; whether the soft tokens of class tokens come after the others.
        class_token: "grouped" only; whether class tokens become soft tokens at all.
        sources, source_sizes, source_states: pre-fusion only; the fused modalities, the width of their states, and
            the maximum number of states per sample.
    """

    kind: str
    input_size: int
    n_queries: int
    hidden_size: int = ProjectorConfig.hidden_size
    n_layers: int = ProjectorConfig.n_layers
    n_heads: int = ProjectorConfig.n_heads
    dropout: float = ProjectorConfig.dropout
    max_positions: int = 0
    tokens_per_position: int = 1
    softmax: bool = ProjectorConfig.softmax
    group_size: int = 1
    n_class: int = 0
    class_last: bool = ProjectorConfig.class_last
    class_token: bool = ProjectorConfig.class_token
    sources: Sequence[str] = ()
    source_sizes: Sequence[int] = ()
    source_states: Sequence[int] = ()

    def __post_init__(self) -> None:
        kinds = FUSIONS if self.sources else PROJECTORS
        if self.kind not in kinds:
            what = "pre-fusion" if self.sources else "projector"
            raise InputError(f"{what} kind {self.kind!r} is unknown; expected one of {list(kinds)}")

    @property
    def n_states(self) -> int | None:
        """The number of states that a sample must have; None = any number."""
        if self.kind == "grouped":
            return self.n_class + (self.n_queries - self.n_class * self.class_token) * self.group_size
        return self.n_queries if self.kind == "linear" else None


class AffectGPTConfig(InstalledCode, PreTrainedConfig):
    """Configuration of `AffectGPTForConditionalGeneration`.

    Args:
        text_config: the LLM's configuration (any causal LM), as an object or a dictionary.
        branches: modality -> {"encoder": fields of EncoderArchitecture, "projector": fields of ProjectorArchitecture};
            a pre-fusion is "multi" -> {"projector": ...}.
        placeholder_token_ids: slot -> id of its placeholder in the tokenizer. The ids may be outside the LLM's
            vocabulary: they are replaced before the embedding lookup, so the frozen embedding is never resized.
        lora: fields of peft's LoraConfig (r, lora_alpha, lora_dropout, target_modules, and use_dora or use_rslora
            if they are on), or None.
        seed: for the initial weights of projectors and LoRA.
        spec, base_fingerprints: what the model was built from (`ModelSpec.to_dict`; "llm" or modality -> identity of
            the base model's content). Checkpoints and feature caches depend on them.
        init: the origin of the initial weights (`affectgpt.models.pretrained.start_from`); None = random.
        tuned: names of the tensors of base models that were trained, so that they are no longer those of the base.
    """

    model_type = "affectgpt"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  (transformers reads it from the class)

    def __init__(
        self,
        text_config: PreTrainedConfig | Mapping[str, Any] | None = None,
        branches: Mapping[str, Any] | None = None,
        placeholder_token_ids: Mapping[str, int] | None = None,
        lora: Mapping[str, Any] | None = None,
        seed: int = 42,
        spec: Mapping[str, Any] | None = None,
        base_fingerprints: Mapping[str, str] | None = None,
        init: Mapping[str, Any] | None = None,
        tuned: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        if text_config is None:
            text_config = {"model_type": "llama"}  # transformers builds a default config to find the fields that differ
        if isinstance(text_config, Mapping):
            fields = dict(text_config)
            text_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        branches = branches or {}
        if unknown := sorted(set(branches) - set(SLOTS)):
            raise InputError(f"branches {unknown} are unknown; expected some of {list(SLOTS)}")
        self.text_config = text_config
        self.branches = {
            name: {part: _fields(fields) for part, fields in branches[name].items()}
            for name in SLOTS
            if name in branches
        }
        self.placeholder_token_ids = dict(placeholder_token_ids or {})
        self.lora = dict(lora) if lora else None
        self.seed = seed
        self.spec = dict(spec) if spec else None
        self.base_fingerprints = dict(base_fingerprints or {})
        self.init = dict(init) if init else None
        self.tuned = sorted(tuned)
        for name in self.slots:
            if name != "multi":
                check_pool(name, self.encoder(name).pool)
            if name not in self.placeholder_token_ids:
                raise InputError(f"{name} has no id in placeholder_token_ids {self.placeholder_token_ids}")
            self.projector(name)
        kwargs.setdefault("tie_word_embeddings", text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    @property
    def slots(self) -> tuple[str, ...]:
        """The branches that give soft tokens, in prompt order."""
        return tuple(self.branches)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The branches with an encoder: all but the pre-fusion."""
        return tuple(name for name in self.branches if name != "multi")

    def encoder(self, modality: str) -> EncoderArchitecture:
        return EncoderArchitecture(**self.branches[modality]["encoder"])

    def projector(self, slot: str) -> ProjectorArchitecture:
        return ProjectorArchitecture(**self.branches[slot]["projector"])


def _fields(part: Any) -> dict[str, Any]:
    return dict(part) if isinstance(part, Mapping) else asdict(part)
