"""Quantization of the frozen LLM: its linear layers in nf4 (4.1 bits per weight) or int8 (8 bits), by bitsandbytes.

Embeddings and the vocabulary matrix keep their precision. Weights are dequantized for each product, so gradients reach
projectors and LoRA as without quantization. QLoRA (Dettmers et al., 2023) for nf4, LLM.int8() (Dettmers et al., 2022)
for int8.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import nn

from affectgpt.runtime import InputError, MissingLibrary

QUANTIZATIONS = ("nf4", "int8")


def loading_options(quantization: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments for an LLM's `from_pretrained`; none if `quantization` is None.

    Args:
        dtype: precision of the products (only nf4; int8 multiplies 8-bit numbers).

    Raises:
        InputError: an unknown name.
        MissingLibrary: bitsandbytes is not installed.
    """
    if quantization is None:
        return {}
    if quantization not in QUANTIZATIONS:
        raise InputError(f"quantization {quantization!r} is unknown; expected null or one of {list(QUANTIZATIONS)}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingLibrary(f"quantization {quantization} needs bitsandbytes: pip install 'affectgpt[quantization]'")
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,  # also quantizes the scales, saving 0.4 bits per weight
        )
    return {"quantization_config": config, "device_map": {"": "cpu"}}  # the caller moves the model


def check_shapes(model: nn.Module, device: torch.device) -> None:
    """Refuse nf4 layers whose shapes do not work for inference on `device`.

    On CPUs with AVX-512 BF16, bitsandbytes 0.50 repacks the weights at the first inference, in tiles of 32 rows and 64
    columns. GPUs, other CPUs and training support all shapes.

    Raises:
        InputError: names the first layer with another shape, its shape, and how many there are.
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
            "Set model.llm.quantization=int8, which has no such limit, turn quantization off (null in training, none "
            "in inference), or run on a GPU"
        )


def n_weights(parameter: torch.Tensor) -> int:
    """The number of weights in `parameter`, of which nf4 packs two into a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
