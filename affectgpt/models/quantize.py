"""The frozen LLM in fewer bits: its linear layers as nf4 (4.1 bits a weight) or int8 (8 bits), by bitsandbytes.

Only what is frozen is quantized. Embeddings and the vocabulary matrix keep their precision, soft tokens and LoRA pass
through as ever, and gradients reach the projections through the layers that are unpacked for each product.
QLoRA (Dettmers et al., 2023) for nf4, LLM.int8() (Dettmers et al., 2022) for int8.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import nn

from affectgpt.runtime import InputError

QUANTIZATIONS = ("nf4", "int8")


def loading_options(quantization: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` of an LLM is told; nothing if `quantization` is None.

    Args:
        dtype: in which the unpacked weights are multiplied (nf4; int8 multiplies 8-bit numbers).

    Raises:
        ValueError: an unknown name, or bitsandbytes is not installed.
    """
    if quantization is None:
        return {}
    if quantization not in QUANTIZATIONS:
        raise InputError(f"quantization {quantization!r} is unknown; expected null or one of {list(QUANTIZATIONS)}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"quantization {quantization} needs bitsandbytes: pip install 'affectgpt[quantization]'")
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,  # the scales are quantized too: 0.4 bits a weight less
        )
    return {"quantization_config": config, "device_map": {"": "cpu"}}  # the caller moves it, as any other model


def check_shapes(model: nn.Module, device: torch.device) -> None:
    """Refuse, before anything is computed, nf4 layers that `device` cannot answer with.

    On CPUs with AVX-512 BF16 bitsandbytes packs them anew at the first answer, in tiles of 32 rows and 64 columns
    (`bitsandbytes.functional._convert_weight_packed_for_cpu`, 0.50). GPUs, other CPUs and training take any shape.

    Raises:
        ValueError: names the first layer that does not fit, its shape, and how many there are.
    """
    if device.type != "cpu":
        return
    misfits = {
        name: [module.out_features, module.in_features]
        for name, module in model.named_modules()
        if getattr(module, "support_avx512bf16_for_cpu", False)
        and (module.out_features % 32 or module.in_features % 64)
    }
    if misfits:
        name, shape = next(iter(misfits.items()))
        more = f" (and {len(misfits) - 1} more layers)" if len(misfits) > 1 else ""
        raise InputError(
            f"nf4: {name} is {shape}{more}; on this CPU rows must be a multiple of 32 and columns one of 64. "
            "Take model.llm.quantization=int8, which has no such limit, leave the LLM unpacked "
            "(null in training, none in inference), or run on a GPU"
        )


def n_weights(parameter: torch.Tensor) -> int:
    """How many numbers `parameter` stands for; two of them share a byte in nf4."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of the parameters of `module`, with the scales of quantized ones."""
    total = 0
    for parameter in module.parameters():
        total += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        scales = [getattr(parameter, "SCB", None)]
        if state is not None:
            scales += [state.absmax, state.code]
            if state.nested:
                scales += [state.state2.absmax, state.state2.code]
        total += sum(scale.numel() * scale.element_size() for scale in scales if scale is not None)
    return total
