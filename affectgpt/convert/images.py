"""EVA's image encoder and BLIP-2's image Q-Former as base models in the layout of transformers' BLIP-2."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2Config, Blip2QFormerConfig, Blip2QFormerModel, Blip2VisionConfig, Blip2VisionModel

from affectgpt.convert.files import ConvertError, Entry
from affectgpt.convert.outputs import Output, Source, entry_of, shapes_of, state_shapes
from affectgpt.convert.parts import BY_NAME, N_EVA_BLOCKS, PARTS, Recognised
from affectgpt.models.encoders import FINAL_NORM_EPS, LN_VISION_EPS

# Settings that tensor shapes do not show, from the configurations of EVA-CLIP ViT-g and BERT-base.
N_EVA_HEADS = 16
N_QFORMER_LAYERS, N_QFORMER_HEADS = 12, 12
CLIP_PIXELS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
IMAGENET_PIXELS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_FIRST = "qformer.encoder.layer.0"


def eva_qformer(sources: Mapping[str, Source], by_part: Mapping[str, Recognised], image_size: int | None) -> Output:
    """EVA + ln_vision + image Q-Former in the layout of transformers' BLIP-2."""
    output = Output("eva_qformer", "eva_qformer/model.safetensors")
    lacking = [part for part in PARTS if part.name in ("eva", "blip2") and part.name not in by_part]
    if lacking:
        output.needs = [f"{part.title} (published as {part.found_in})" for part in lacking]
        return output
    vision_config = _vision_config(shapes_of(sources, "vision_model."), output)
    shapes = shapes_of(sources)
    anchors = (
        "query_tokens",
        f"{_FIRST}.crossattention.attention.key.weight",
        f"{_FIRST}.intermediate_query.dense.weight",
    )
    output.missing += [name for name in anchors if name not in shapes]
    if vision_config is None or output.missing:
        return output
    queries, key, wide = (shapes[name] for name in anchors)
    qformer_config = Blip2QFormerConfig(
        hidden_size=queries[-1], num_hidden_layers=N_QFORMER_LAYERS, num_attention_heads=N_QFORMER_HEADS,
        intermediate_size=wide[0], encoder_hidden_size=key[-1], cross_attention_frequency=2,
    )  # fmt: skip
    if key[-1] != vision_config.hidden_size:
        output.misshapen.append(
            f"the image Q-Former takes states of width {key[-1]}, EVA gives {vision_config.hidden_size}: "
            "the two files belong to different models"
        )
    expected = {
        "query_tokens": (1, queries[-2], queries[-1]),
        **state_shapes(lambda: Blip2VisionModel(vision_config), "vision_model."),
        **state_shapes(lambda: Blip2QFormerModel(qformer_config), "qformer."),
    }
    own = {name: source for name, source in sources.items() if name.startswith(("qformer.", "query_tokens"))}
    entries = {name: entry_of(name, source) for name, source in own.items()}
    output.fill(expected, _vision_entries(sources) | entries)
    _resize(output, vision_config, image_size)
    config = Blip2Config(
        vision_config=vision_config.to_dict(), qformer_config=qformer_config.to_dict(), num_query_tokens=queries[-2]
    )
    output.settings = _image_settings(config, vision_config.image_size)
    return output


def eva(sources: Mapping[str, Source], by_part: Mapping[str, Recognised], image_size: int) -> Output:
    """EVA as used by MiniGPT-v2 and Emotion-LLaMA: larger images, and a final norm without loaded weights.

    Their code freezes ln_vision and reads no file that contains it, so its weight is 1 and its bias 0.
    """
    output = Output("eva", "eva/model.safetensors")
    vision_config = _vision_config(shapes_of(sources, "vision_model."), output)
    if vision_config is None:
        return output
    setattr(vision_config, FINAL_NORM_EPS, LN_VISION_EPS)
    entries = _vision_entries(sources)
    own = by_part["views"].taken
    for name, value in (("weight", 1.0), ("bias", 0.0)):
        key, shape = f"vision_model.post_layernorm.{name}", (vision_config.hidden_size,)
        if key in own:
            entries[key] = entry_of(key, (by_part["views"].weights, own[key]))
        else:
            entries[key] = Entry(key, shape, torch.float32, partial(torch.full, shape, value))
    output.fill(state_shapes(lambda: Blip2VisionModel(vision_config), "vision_model."), entries)
    output.entries = [replace(entry, name=entry.name.removeprefix("vision_model.")) for entry in output.entries]
    _resize(output, vision_config, image_size)
    output.settings = _image_settings(vision_config, vision_config.image_size)
    return output


def eva_video(by_part: Mapping[str, Recognised]) -> Output:
    """EVA as Emotion-LLaMA v2 encodes video with it: all 40 blocks and EVA's own final norm, at the size of the file.

    The published code builds timm's model of 40 blocks and loads what the file has of it: without a norm in the file,
    the weight stays 1 and the bias 0.
    """
    output = Output("eva_video", "eva_video/model.safetensors")
    file, part = by_part["eva"], BY_NAME["eva"]
    sources: dict[str, Source] = {}
    for name in file.weights.shapes:
        rules = (*part.takes, (r"(?:visual_encoder\.)?norm\.(weight|bias)", r"vision_model.post_layernorm.\1"))
        if rule := next((rule for rule in rules if re.fullmatch(rule[0], name)), None):
            sources[re.sub(rule[0], rule[1], name)] = (file.weights, name)
    config = _vision_config(shapes_of(sources, "vision_model."), output, n_blocks=N_EVA_BLOCKS + 1)
    if config is None:
        return output
    entries = _vision_entries(sources)
    for name, value in (("weight", 1.0), ("bias", 0.0)):
        key, shape = f"vision_model.post_layernorm.{name}", (config.hidden_size,)
        entries.setdefault(key, Entry(key, shape, torch.float32, partial(torch.full, shape, value)))
    output.fill(state_shapes(lambda: Blip2VisionModel(config), "vision_model."), entries)
    output.entries = [replace(entry, name=entry.name.removeprefix("vision_model.")) for entry in output.entries]
    output.settings = _image_settings(config, config.image_size, IMAGENET_PIXELS)
    used = {theirs for _, theirs in sources.values()}
    for reason, names in list(file.dropped.items()):  # of these, some are taken after all
        file.taken.update({f"eva_video: {name}": name for name in names if name in used})
        if not (kept := [name for name in names if name not in used]):
            del file.dropped[reason]
        else:
            file.dropped[reason] = kept
    return output


def _vision_config(
    shapes: Mapping[str, tuple[int, ...]], output: Output, n_blocks: int = N_EVA_BLOCKS
) -> Blip2VisionConfig | None:
    """EVA's sizes, from its tensor shapes; None if they cannot be determined (the reason is added to `output`)."""
    names = ("embeddings.position_embedding", "embeddings.patch_embedding.weight", "encoder.layers.0.mlp.fc1.weight")
    output.missing += [f"vision_model.{name}" for name in names if name not in shapes]
    if output.missing:
        return None
    positions, patches, wide = (shapes[name] for name in names)
    side = math.isqrt(max(0, positions[1] - 1))
    if side * side != positions[1] - 1:
        output.misshapen.append(f"pos_embed is {list(positions)}: {positions[1] - 1} is not a square number of patches")
        return None
    return Blip2VisionConfig(
        hidden_size=positions[2], num_hidden_layers=n_blocks, num_attention_heads=N_EVA_HEADS,
        intermediate_size=wide[0], patch_size=patches[-1], image_size=side * patches[-1], qkv_bias=True,
    )  # fmt: skip


def _vision_entries(sources: Mapping[str, Source]) -> dict[str, Entry]:
    """Tensors of `Blip2VisionModel`; the biases of queries, keys (zero) and values become one tensor."""
    entries = {}
    vision = {name: source for name, source in sources.items() if name.startswith("vision_model.")}
    for name, source in vision.items():
        if name.endswith(".q_bias"):
            values = vision.get(name.replace(".q_bias", ".v_bias"))
            if values is not None:
                weights, theirs = source
                shape = (3 * weights.shapes[theirs][0],)
                joined = name.replace(".q_bias", ".qkv.bias")
                entries[joined] = Entry(joined, shape, weights.dtypes[theirs], partial(_join_biases, source, values))
        elif not name.endswith(".v_bias"):
            entries[name] = entry_of(name, source)
    return entries


def _join_biases(queries: Source, values: Source) -> Tensor:
    q, v = (weights.load(name) for weights, name in (queries, values))
    return torch.cat([q, torch.zeros_like(q), v])  # EVA's keys have no bias


def _resize(output: Output, config: Blip2VisionConfig, image_size: int | None) -> None:
    """Set another image size and interpolate the position embeddings to it."""
    if image_size is None or image_size == config.image_size:
        return
    if image_size % config.patch_size:
        raise ConvertError(f"image_size={image_size} is not a multiple of EVA's patch size {config.patch_size}")
    side = image_size // config.patch_size
    config.image_size = image_size
    for place, entry in enumerate(output.entries):
        if entry.name.endswith("embeddings.position_embedding"):
            shape = (1, side * side + 1, entry.shape[-1])
            output.entries[place] = replace(entry, shape=shape, load=partial(_interpolated, entry, side))


def _interpolated(entry: Entry, side: int) -> Tensor:
    """Position embeddings for side x side patches; that of the class token is unchanged."""
    table = entry.load().float()  # [1, 1 + n*n, E]
    n = math.isqrt(table.shape[1] - 1)
    grid = table[:, 1:].unflatten(1, (n, n)).permute(0, 3, 1, 2)  # [1, E, n, n]
    grid = nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)  # [1, 1 + side*side, E]


def _image_settings(config: Any, image_size: int, normalisation: Mapping[str, Any] = CLIP_PIXELS) -> dict[str, Any]:
    size = {"height": image_size, "width": image_size}
    pixels = {"image_processor_type": "BlipImageProcessor", "size": size, **normalisation}
    return {"config.json": json.loads(config.to_json_string()), "preprocessor_config.json": pixels}
