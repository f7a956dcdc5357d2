"""The cost of one sample: parameters, FLOPs and saved bytes, counted on a model without memory for its weights.

FLOPs are counted by torch's `FlopCounterMode` while the real modules run on the meta device, and the projectors on the
CPU; a multiplication and an addition count as 2. Saved bytes are those of the tensors that autograd saves for the
backward pass, found by running the LLM on fake tensors with the fused attention kernel. Nothing is estimated from a
parameter count, so LoRA, grouped-query attention and other LLMs are counted correctly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # torch documents it under this name; there is no public one
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, PreTrainedModel

from affectgpt.engine import kept_tensors
from affectgpt.media import audio_windows
from affectgpt.models import AffectGPTForConditionalGeneration, ModelSpec
from affectgpt.models.assemble import hollow_settings

GIB = 1 << 30


@dataclass(frozen=True)
class PartSize:
    """Parameters of one part of the model.

    Attributes:
        trainable_16bit: those of the trainable ones in 16 bits, which have fp32 masters.
        dtype: of the largest share of the parameters.
        bytes: size of all parameters.
    """

    name: str
    parameters: int
    trainable: int
    trainable_16bit: int
    dtype: str
    bytes: int


@dataclass(frozen=True)
class EncoderCost:
    """FLOPs and output of one encoder for one sample.

    Attributes:
        flops, backward: of the forward pass, and of the backward pass if it trains.
        kept_bytes: saved for the backward pass.
        states: (T, E).
        bytes: size of the states, in the cache too.
    """

    flops: int
    backward: int
    kept_bytes: int
    trains: bool
    dtype: str
    states: tuple[int, int]
    bytes: int


@dataclass(frozen=True)
class PassCost:
    """FLOPs of one forward and one backward pass, and the bytes saved for the backward pass."""

    forward: int
    backward: int
    kept_bytes: int


@dataclass(frozen=True)
class SampleCost:
    """The cost of one sample.

    Attributes:
        soft_tokens: branch -> Q.
        text_tokens: tokens of prompt and answer.
        head_positions: number of positions with logits in `llm`.
        encoders: modality -> cost; projectors: branch -> cost of training it (frozen ones have no backward pass).
        llm: cost of all tokens, with logits at `head_positions`.
        head_flops, head_backward_flops: FLOPs of one position's logits in the forward and in the backward pass.
        llm_bytes_per_token: bytes that the LLM's `n_layers` layers save for each token, the same in each layer.
        vocab_size, hidden_bytes: V, and the bytes of one token's hidden state.
    """

    soft_tokens: Mapping[str, int]
    text_tokens: int
    head_positions: int
    encoders: Mapping[str, EncoderCost]
    projectors: Mapping[str, PassCost]
    llm: PassCost
    head_flops: int
    head_backward_flops: int
    llm_bytes_per_token: int
    n_layers: int
    vocab_size: int
    hidden_bytes: int
    llm_dtype: str

    @property
    def tokens(self) -> int:
        return sum(self.soft_tokens.values()) + self.text_tokens


def parameters(model: AffectGPTForConditionalGeneration) -> list[PartSize]:
    """The size of each part, in the model's order."""
    found = []
    for name, tensors in model.parts().items():
        by_dtype: dict[str, int] = {}
        trained = [tensor for tensor in tensors.values() if tensor.requires_grad]
        for tensor in tensors.values():
            dtype = str(tensor.dtype).removeprefix("torch.")
            by_dtype[dtype] = by_dtype.get(dtype, 0) + tensor.numel()
        found.append(
            PartSize(
                name,
                sum(tensor.numel() for tensor in tensors.values()),
                sum(tensor.numel() for tensor in trained),
                sum(tensor.numel() for tensor in trained if tensor.element_size() == 2),
                max(by_dtype, key=lambda dtype: by_dtype[dtype]) if by_dtype else "",
                sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
            )
        )
    return found


def linear_weights(model: AffectGPTForConditionalGeneration) -> int:
    """The number of weights that quantization affects: linear layers of the LLM's blocks, without LoRA and head."""
    head = model.get_output_embeddings()
    return sum(
        module.weight.numel()
        for name, module in model.language_model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and ".lora_" not in name
    )


def count_sample(
    model: AffectGPTForConditionalGeneration,
    spec: ModelSpec,
    *,
    sound_s: float,
    text_tokens: int,
    answer_tokens: int | None,
) -> SampleCost:
    """Count the cost of one sample on `model`, made by `build_hollow`; it can only be used for counting afterwards.

    Args:
        sound_s: duration of the audio in seconds.
        text_tokens: tokens of prompt and answer, without soft tokens.
        answer_tokens: positions with logits; None = all.
    """
    encoders, projectors, soft_tokens = (_towers if spec.omni else _branches)(model, spec, sound_s)
    n_tokens = sum(soft_tokens.values()) + text_tokens
    positions = n_tokens if answer_tokens is None else min(answer_tokens, n_tokens)
    llm = model.language_model
    hidden = llm.get_input_embeddings().weight
    forward, backward = _llm_flops(llm, n_tokens, positions)
    one_more, one_more_backward = _llm_flops(llm, n_tokens, positions + 1)
    kept = _llm_bytes_per_token(llm)
    config = llm.config.get_text_config()
    return SampleCost(
        soft_tokens=soft_tokens,
        text_tokens=text_tokens,
        head_positions=positions,
        encoders=encoders,
        projectors=projectors,
        llm=PassCost(forward, backward, kept * n_tokens),
        head_flops=one_more - forward,
        head_backward_flops=one_more_backward - backward,
        llm_bytes_per_token=kept,
        n_layers=config.num_hidden_layers,
        vocab_size=llm.get_output_embeddings().weight.shape[0],
        hidden_bytes=hidden.shape[1] * hidden.element_size(),
        llm_dtype=str(hidden.dtype).removeprefix("torch."),
    )


_Costs = tuple[dict[str, EncoderCost], dict[str, PassCost], dict[str, int]]
"""Of encoders and projectors, and the soft tokens of each branch."""


def _towers(model: Any, spec: ModelSpec, sound_s: float) -> _Costs:
    """The towers of an omni model with their aligners."""
    from affectgpt.plan import omni  # loads modules of transformers that no other model needs

    found, soft_tokens = {}, omni.tokens_of(model, spec, sound_s)
    for name, n_tokens in soft_tokens.items():
        tower = model.encoders[name]
        if name == "audio":
            flops, aligner = omni.audio_flops(tower.model, 4 * n_tokens), tower.model.proj
        else:
            flops, aligner = omni.video_flops(tower.model, omni.grid_of(spec, tower.model.config)), tower.model.merger
        backward, kept = omni.aligner_backward(aligner, n_tokens) if tower.trains else (0, 0)
        weight = next(tower.parameters())
        width = model.get_input_embeddings().weight.shape[1]
        n_bytes = n_tokens * width * weight.element_size()
        dtype = str(weight.dtype).removeprefix("torch.")
        found[name] = EncoderCost(flops, backward, kept, tower.trains, dtype, (n_tokens, width), n_bytes)
    return found, {}, soft_tokens


def _branches(model: AffectGPTForConditionalGeneration, spec: ModelSpec, sound_s: float) -> _Costs:
    encoders, states = {}, {}
    for name in spec.modalities:
        encoders[name] = _encoder(model, spec, name, sound_s)
        states[f"{name}_states"] = torch.zeros(1, *encoders[name].states)
        states[f"{name}_states_mask"] = torch.ones(1, encoders[name].states[0], dtype=torch.bool)
    if "multi" in spec.projectors:
        states["multi_rows"] = torch.zeros(1, len(model.config.projector("multi").sources), dtype=torch.long)
    # A branch hidden by its `unless` is not in the prompt of a sample with all modalities.
    shown = [name for name in model.projectors if spec.projectors[name].unless not in spec.encoders]
    projectors, soft_tokens = _projectors(model, shown, states)
    return encoders, projectors, soft_tokens


def _encoder(model: AffectGPTForConditionalGeneration, spec: ModelSpec, name: str, sound_s: float) -> EncoderCost:
    encoder, sampling = model.encoders[name], spec.sampling
    weight = next(encoder.parameters())
    if name == "audio":
        windows = audio_windows(
            round(sound_s * sampling.rate_hz), sampling.rate_hz, window_s=sampling.window_s,
            max_windows=sampling.max_windows, mode=sampling.window_mode,
        )  # fmt: skip
        media = torch.zeros(len(windows), windows[0][1] - windows[0][0], device=weight.device)
    else:
        settings = hollow_settings(spec, name)
        media = torch.zeros(
            settings["n_frames"], 3, settings["height"], settings["width"], device=weight.device
        )  # [T, 3, H, W]
    with FlopCounterMode(display=False) as counter:
        states = encoder(media)  # [T, E]
        flops = counter.get_total_flops()
        if encoder.trains:
            states.sum().backward()
    backward = counter.get_total_flops() - flops
    encoder.zero_grad(set_to_none=True)
    kept = _encoder_bytes(encoder, media) if encoder.trains else 0
    dtype = str(weight.dtype).removeprefix("torch.")
    n_bytes = states.numel() * states.element_size()
    return EncoderCost(flops, backward, kept, encoder.trains, dtype, tuple(states.shape), n_bytes)


def _encoder_bytes(encoder: nn.Module, media: Tensor) -> int:
    """Bytes that an encoder saves for the backward pass of one sample."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = {name: _fake(tensor) for name, tensor in encoder.state_dict(keep_vars=True).items()}
        fake |= {name: _fake(buffer) for name, buffer in encoder.named_buffers()}
        with kept_tensors(fake.values()) as kept:
            torch.func.functional_call(encoder, fake, (_fake(media),))
    return sum(kept.values())


def _projectors(
    model: AffectGPTForConditionalGeneration, shown: Iterable[str], states: Mapping[str, Tensor]
) -> tuple[dict[str, PassCost], dict[str, int]]:
    """(cost, soft tokens) of each branch. Projectors check the values of the mask, so they run on the CPU."""
    if next(model.projectors.parameters()).is_meta:
        model.projectors.to_empty(device="cpu")
    costs, soft_tokens = {}, {}
    for name in shown:
        projector = model.projectors[name]
        trains = any(weight.requires_grad for weight in projector.parameters())
        with FlopCounterMode(display=False) as counter, kept_tensors(projector.parameters()) as kept:
            tokens = model.soft_tokens(name, states)  # [1, Q, D]
            forward = counter.get_total_flops()
            if trains:
                tokens.sum().backward()
        costs[name] = PassCost(forward, counter.get_total_flops() - forward, sum(kept.values()))
        soft_tokens[name] = tokens.shape[1]
        projector.zero_grad(set_to_none=True)
    return costs, soft_tokens


def _llm_flops(llm: PreTrainedModel, n_tokens: int, head_positions: int) -> tuple[int, int]:
    """FLOPs (forward, backward) of one sample in the LLM, with gradients for its inputs and for trained LoRA."""
    embeds = _embeds(llm, n_tokens, "meta")
    _use_fused_attention(llm)
    with FlopCounterMode(display=False) as counter:
        output = llm(
            inputs_embeds=embeds, use_cache=False,
            logits_to_keep=torch.zeros(head_positions, dtype=torch.long, device="meta"),
        )  # fmt: skip
        forward = counter.get_total_flops()
        output.logits.sum().backward()
    llm.zero_grad(set_to_none=True)
    return forward, counter.get_total_flops() - forward


def _llm_bytes_per_token(llm: PreTrainedModel, n_tokens: int = 64) -> int:
    """Bytes that the LLM's layers save per token in training, with fused attention and logits at one position."""
    was_training = llm.training
    llm.train()
    _use_fused_attention(llm)
    # Fake tensors claim to be on the CPU, where scaled_dot_product_attention selects its fused kernel; on the meta
    # device it would fall back to separate products and save L x L weights, unlike on a GPU.
    with FakeTensorMode(allow_non_fake_inputs=True):
        made: dict[int, Tensor] = {}  # one for each tensor: tied ones must stay one
        fake = {
            name: made.setdefault(id(tensor), _fake(tensor)) for name, tensor in llm.state_dict(keep_vars=True).items()
        }
        embeds = _embeds(llm, n_tokens, "cpu")
        with kept_tensors(fake.values()) as kept:
            torch.func.functional_call(
                llm,
                {**fake, **{name: _fake(buffer) for name, buffer in llm.named_buffers()}},
                kwargs={"inputs_embeds": embeds, "use_cache": False, "logits_to_keep": 1},
            )
    llm.train(was_training)
    return sum(kept.values()) // n_tokens


def _use_fused_attention(llm: PreTrainedModel) -> None:
    """Set causal attention without a mask tensor, as in training on packed samples.

    To make a mask, transformers would read values, which tensors without memory do not have; for a registered attention
    without a mask function it makes none.
    """
    AttentionInterface.register("affectgpt_fused", _causal)
    llm.set_attn_implementation("affectgpt_fused")


def _causal(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Fused causal attention with transformers' signature.  [B, H, L, d] -> [B, L, H, d]"""
    output = nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=kwargs.get("scaling"), enable_gqa=query.shape[1] != key.shape[1]
    )
    return output.transpose(1, 2).contiguous(), None


def _fake(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype).requires_grad_(tensor.requires_grad)


def _embeds(llm: nn.Module, n_tokens: int, device: str) -> Tensor:
    """Input embeddings [1, L, D] that require a gradient, as soft tokens do."""
    weight = llm.get_input_embeddings().weight
    return torch.empty(1, n_tokens, weight.shape[1], dtype=weight.dtype, device=device, requires_grad=True)
