"""Published checkpoints -> base-model folders and projector files of this package.

A file is recognised by the names of its tensors, never by its own name, and may hold several *parts*: an image encoder,
an image Q-Former, projections of one branch, adapters. Each part is a table of names, theirs to ours. What a part must
hold is not written down here: it is asked from the model itself, built without memory in the sizes that the file shows,
so that a missing, surplus or misshapen tensor cannot pass.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import Blip2Config, Blip2QFormerConfig, Blip2QFormerModel, Blip2VisionConfig, Blip2VisionModel

from affectgpt.models.configuration_affectgpt import ProjectorConfig
from affectgpt.models.projectors import PreFusion, Projector
from affectgpt.prompts import MODALITIES
from affectgpt.runtime import sha256_of_file, write_json_atomic

PROJECTORS, PROJECTORS_JSON, REPORT = "projectors.safetensors", "projectors.json", "report.json"

# What tensors do not show; the configurations of EVA-CLIP ViT-g and of BERT-base.
N_EVA_BLOCKS, N_EVA_HEADS = 39, 16
N_QFORMER_LAYERS, N_QFORMER_HEADS = 12, 12
N_BRANCH_LAYERS = 2  # Video-LLaMA's video and audio Q-Former
CLIP_PIXELS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
LORA_ALPHA = {"visual": 32, "views": 16}  # part -> alpha of the LoRA that came with it; the tensors do not show it
VISUAL = "<visual>"  # stands for the branch that AffectGPT's (2025) one visual projection was trained on
GROUP_SIZE = 4  # patches that MiniGPT-v2 puts side by side
MINIGPT_IMAGE_SIZE = 448


class ConvertError(ValueError):
    """A file cannot be converted; the message says which, why, and what to do."""


# ---- files -----------------------------------------------------------------------------------------------------------


@dataclass
class Weights:
    """The named tensors of one file, read when asked for.

    Attributes:
        shapes: name -> shape, of every tensor.
        dtypes: name -> torch dtype.
        load: name -> tensor. Of files that can be mapped, only what is asked for gets into memory.
        remarks: what a person should know about the file itself.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    load: Callable[[str], Tensor]
    remarks: list[str] = field(default_factory=list)

    @cached_property
    def sha256(self) -> str:
        return sha256_of_file(self.path)


def open_weights(path: Path) -> Weights:
    """Look into a .safetensors file or a file of `torch.save`, whatever it is called.

    Raises:
        ConvertError: it is neither, it holds more than tensors and plain values, or it holds no named tensors.
    """
    if not path.is_file():
        raise ConvertError(f"{path} does not exist or is no file")
    with path.open("rb") as file:
        head = file.read(9)
    if len(head) == 9 and head[8:] == b"{":  # eight bytes of length, then JSON
        return _open_safetensors(path)
    remarks = []
    try:
        if head.startswith(b"PK"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:  # before torch 1.6 files were one pickle, which cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
            remarks.append("in torch's old format, so it was read whole into memory")
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)|Unsupported (?:global|class|operand)[^\n]*", str(error))
        raise ConvertError(
            f"{path} is refused ({refused[0] if refused else str(error).splitlines()[0]}): it holds objects besides "
            "tensors, or is no checkpoint, and opening such objects runs code from the file. If you trust its source, "
            "open it in the program that wrote it, keep the tensors only and convert that file: "
            "torch.save({'model': {k: v for k, v in checkpoint['model'].items()}}, 'tensors.pth')"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise ConvertError(
            f"{path} cannot be read ({reason[0] if reason else type(error).__name__}); "
            "is the download complete, and is it a checkpoint at all?"
        ) from error
    tensors = _tensors_of(content, path, remarks)
    return Weights(
        path,
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {name: tensor.dtype for name, tensor in tensors.items()},
        tensors.__getitem__,
        remarks,
    )


def _open_safetensors(path: Path) -> Weights:
    shapes, dtypes = {}, {}
    try:
        file = safe_open(path, framework="pt")
        for name in file.keys():  # noqa: SIM118  (not a mapping)
            part = file.get_slice(name)
            shapes[name] = tuple(part.get_shape())
            dtypes[name] = _DTYPES[part.get_dtype()]
    except SafetensorError as error:
        raise ConvertError(f"{path} cannot be read ({error}); is the download complete?") from error
    return Weights(path, shapes, dtypes, file.get_tensor)


def _tensors_of(content: Any, path: Path, remarks: list[str]) -> dict[str, Tensor]:
    """The state dict in what `torch.load` gave: the dictionary itself, or the one it keeps under a usual name."""
    for key in ("model", "state_dict", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            if others := sorted(str(name) for name in content if name != key):
                remarks.append(f"beside {key!r} it holds {', '.join(others)}: not used")
            content = content[key]
            break
    tensors = (
        {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise ConvertError(f"{path} holds no dictionary of named tensors but {type(content).__name__}")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor to write; `load` makes it when its turn has come."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]


def write_safetensors(path: Path, entries: Sequence[Entry]) -> int:
    """Write tensors one after another, so that memory holds one at a time; returns the bytes of the file.

    The library's own writer wants all of them at once. Format: eight bytes of header length, a JSON header with the
    place of each tensor, then the bytes (github.com/huggingface/safetensors, Format).
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        size = math.prod(entry.shape) * entry.dtype.itemsize
        header[entry.name] = {
            "dtype": _DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            tensor = entry.load().detach().to(entry.dtype).contiguous()
            if tuple(tensor.shape) != entry.shape:
                raise ConvertError(f"{entry.name} is {list(tensor.shape)}, announced as {list(entry.shape)}")
            file.write(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return path.stat().st_size


# ---- parts -----------------------------------------------------------------------------------------------------------

Rule = tuple[str, str]
"""(pattern of their whole name, our name) or (pattern, reason to leave it out)."""


@dataclass(frozen=True)
class Part:
    """Something that a published file may hold.

    Attributes:
        marks: a file holds the part if each of these patterns is one of its names.
        takes: their names -> ours.
        drops: names that are left out on purpose, with the reason.
        found_in: the published file that holds it, for messages.
        unless: a name that speaks against it.
    """

    name: str
    title: str
    found_in: str
    marks: tuple[str, ...]
    takes: tuple[Rule, ...]
    drops: tuple[Rule, ...] = ()
    unless: str | None = None

    def is_in(self, names: Iterable[str]) -> bool:
        names = list(names)
        return all(any(re.fullmatch(mark, name) for name in names) for mark in self.marks) and not (
            self.unless and any(re.fullmatch(self.unless, name) for name in names)
        )


def _qformer(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A Q-Former as a BERT with cross-attention -> transformers' `Blip2QFormerModel`."""
    layer = rf"{theirs}\.bert\.encoder\.layer\.(\d+)"
    return (
        (rf"{theirs}\.bert\.embeddings\.LayerNorm\.(\w+)", rf"{ours}.layernorm.\1"),
        (
            rf"{layer}\.(cross)?attention\.self\.(query|key|value)\.(\w+)",
            rf"{ours}.encoder.layer.\1.\2attention.attention.\3.\4",
        ),
        (
            rf"{layer}\.(cross)?attention\.output\.(dense|LayerNorm)\.(\w+)",
            rf"{ours}.encoder.layer.\1.\2attention.output.\3.\4",
        ),
        (
            rf"{layer}\.(intermediate|output)_query\.(dense|LayerNorm)\.(\w+)",
            rf"{ours}.encoder.layer.\1.\2_query.\3.\4",
        ),
    )


def _not_of_queries(qformer: str) -> tuple[Rule, ...]:
    return (
        (rf"{qformer}\.bert\.embeddings\.position_ids", "counter, no weight"),
        (rf"{qformer}\.bert\.embeddings\.(word|position)_embeddings\..*", "word embeddings; queries are no words"),
        (rf"{qformer}\.cls\..*", "head that predicts words"),
        (rf"{qformer}\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..*", "feed-forward of text tokens"),
    )


def _branch(theirs: str, ours: str, positions: str, output: str) -> tuple[Rule, ...]:
    """A Q-Former branch of Video-LLaMA -> our projector of kind qformer."""
    target = f"projectors.{ours}"
    return (
        (rf"{theirs}_query_tokens", f"{target}.project.queries"),
        (rf"{positions}\.weight", f"{target}.positions.embedding.weight"),
        *_qformer(f"{theirs}_Qformer", f"{target}.project.qformer"),
        (rf"{output}\.(weight|bias)", rf"{target}.project.output.\1"),
    )


def _linear(theirs: str, ours: str) -> Rule:
    return (rf"{theirs}\.(weight|bias)", rf"{ours}.\1")


STRAY: tuple[Rule, ...] = (
    (r".*rotary_emb\.inv_freq", "counter, no weight"),
    (r".*position_ids", "counter, no weight"),
)

_LORA = r"llama_model\.base_model\.model\.(.+)"
_BLOCK = r"(?:visual_encoder\.)?blocks\.(\d+)"
_LAYER = r"vision_model.encoder.layers.\1"
_LAST_BLOCK = "block behind the 39th, whose output is what BLIP-2 and its successors read"

PARTS: tuple[Part, ...] = (
    Part(
        "eva",
        "EVA-CLIP ViT-g image encoder",
        "eva_vit_g.pth",
        marks=(r"(visual_encoder\.)?patch_embed\.proj\.weight", r"(visual_encoder\.)?blocks\.0\.attn\.q_bias"),
        takes=(
            (r"(?:visual_encoder\.)?cls_token", "vision_model.embeddings.class_embedding"),
            (r"(?:visual_encoder\.)?pos_embed", "vision_model.embeddings.position_embedding"),
            _linear(r"(?:visual_encoder\.)?patch_embed\.proj", "vision_model.embeddings.patch_embedding"),
            (rf"{_BLOCK}\.norm([12])\.(weight|bias)", rf"{_LAYER}.layer_norm\2.\3"),
            (rf"{_BLOCK}\.attn\.qkv\.weight", rf"{_LAYER}.self_attn.qkv.weight"),
            (rf"{_BLOCK}\.attn\.([qv])_bias", rf"{_LAYER}.self_attn.\2_bias"),  # joined by _join_biases
            (rf"{_BLOCK}\.attn\.proj\.(weight|bias)", rf"{_LAYER}.self_attn.projection.\2"),
            (rf"{_BLOCK}\.mlp\.fc([12])\.(weight|bias)", rf"{_LAYER}.mlp.fc\2.\3"),
        ),
        drops=(
            (rf"(?:visual_encoder\.)?blocks\.(?:{N_EVA_BLOCKS}|[4-9]\d|\d{{3,}})\..*", _LAST_BLOCK),
            (r"(?:visual_encoder\.)?(fc_norm|norm|head|lm_head)\..*", "norm or head of another use of EVA"),
            (r"(?:visual_encoder\.)?mask_token", "token of EVA's own pretraining"),
        ),
    ),
    Part(
        "blip2",
        "BLIP-2: ln_vision and image Q-Former",
        "blip2_pretrained_flant5xxl.pth",
        marks=(r"query_tokens", r"Qformer\.bert\.encoder\.layer\.0\.attention\.self\.query\.weight"),
        takes=(
            (r"query_tokens", "query_tokens"),
            _linear("ln_vision", "vision_model.post_layernorm"),
            *_qformer("Qformer", "qformer"),
        ),
        drops=(
            *_not_of_queries("Qformer"),
            (r"(t5|opt|llm)_proj\..*", "projection to BLIP-2's own LLM"),
            (r"(t5|opt|llm)_model\..*", "BLIP-2's own LLM"),
            (r"(vision_proj|text_proj|itm_head)\..*|temp", "head of BLIP-2's first stage"),
        ),
    ),
    Part(
        "frames",
        "Q-Former projections of the frames (Video-LLaMA visual branch)",
        "the visual branch of Video-LLaMA, VL_LLaMA_2_7B_*.pth",
        marks=(r"video_query_tokens",),
        takes=_branch("video", "frames", "video_frame_position_embedding", "(?:llama|affectgpt)_proj"),
        drops=(
            *_not_of_queries("video_Qformer"),
            (r"image_llama_proj\..*", "projection of single images, which no prompt here uses"),
        ),
    ),
    Part(
        "audio",
        "Q-Former projections of the sound (Video-LLaMA audio branch)",
        "the audio branch of Video-LLaMA, AL_LLaMA_2_7B_*.pth",
        marks=(r"audio_query_tokens",),
        takes=_branch("audio", "audio", "audio_position_embedding", "audio_llama_proj"),
        drops=_not_of_queries("audio_Qformer"),
    ),
    Part(
        "visual",
        "weighted sum of the face crops or frames (AffectGPT, 2025)",
        "checkpoint_*.pth of an AffectGPT run of 2025",
        marks=(r"video_attention_mlp\.weight", r"affectgpt_proj\.weight"),
        takes=(
            _linear("video_attention_mlp", f"projectors.{VISUAL}.project.score"),
            _linear("affectgpt_proj", f"projectors.{VISUAL}.project.output"),
        ),
        drops=((r"image_llama_proj\..*", "projection of single images, which no prompt here uses"),),
    ),
    Part(
        "sound",
        "weighted sum of the sound windows (AffectGPT, 2025)",
        "checkpoint_*.pth of an AffectGPT run of 2025",
        marks=(r"audio_attention_mlp\.weight", r"audio_llama_proj\.weight"),
        takes=(
            _linear("audio_attention_mlp", "projectors.audio.project.score"),
            _linear("audio_llama_proj", "projectors.audio.project.output"),
        ),
    ),
    Part(
        "multi",
        "pre-fusion by attention (AffectGPT, 2025)",
        "checkpoint_*.pth of an AffectGPT run of 2025",
        marks=(r"attention_mlp\.weight", r"fc_att\.weight", r"multi_llama_proj\.weight"),
        takes=(
            _linear("multi_audio_embs", "projectors.multi.embed.audio"),
            _linear("multi_video_embs", f"projectors.multi.embed.{VISUAL}"),
            _linear("attention_mlp", "projectors.multi.mix"),
            _linear("fc_att", "projectors.multi.score"),
            _linear("multi_llama_proj", "projectors.multi.output"),
        ),
    ),
    Part(
        "views",
        "grouped patches (MiniGPT-v2, Emotion-LLaMA)",
        "minigptv2_checkpoint.pth or a checkpoint of Emotion-LLaMA",
        marks=(r"llama_proj\.weight", rf"{_LORA}\.lora_A(\.default)?\.weight"),
        unless=r"video_query_tokens",
        takes=(
            _linear("llama_proj", "projectors.frames.project.output"),
            _linear("cls_tk_llama_proj", "projectors.frames.project.class_output"),
            _linear("ln_vision", "vision_model.post_layernorm"),
        ),
        drops=(
            (r"attention\.(feats_prep|attention_mlp|fc_att|fc_out)\..*", "classifier of six emotions beside the LLM"),
        ),
    ),
    Part(
        "utterance",
        "utterance vectors of MAE, VideoMAE and HuBERT (Emotion-LLaMA)",
        "a checkpoint of Emotion-LLaMA",
        marks=(r"feats_llama_proj1\.weight",),
        takes=(
            _linear("feats_llama_proj1", "projectors.face.project.output"),
            _linear("feats_llama_proj2", "projectors.face_motion.project.output"),
            _linear("feats_llama_proj3", "projectors.audio.project.output"),
        ),
    ),
    Part(
        "lora",
        "LoRA adapters of the LLM",
        "checkpoints of AffectGPT (2025), MiniGPT-v2 or Emotion-LLaMA",
        marks=(rf"{_LORA}\.lora_A(\.default)?\.weight",),
        takes=((rf"{_LORA}\.lora_([AB])(?:\.default)?\.weight", r"base_model.model.\1.lora_\2.weight"),),
    ),
)


BY_NAME = {part.name: part for part in PARTS}


@dataclass
class Recognised:
    """What one file gives.

    Attributes:
        taken: our name -> theirs.
        part_of: our name -> the part that it belongs to.
        dropped: reason -> their names.
        unexpected: their names that no part knows.
    """

    weights: Weights
    parts: list[Part]
    taken: dict[str, str] = field(default_factory=dict)
    part_of: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)

    def taken_by(self, part: str) -> list[str]:
        """Our names of one part's tensors."""
        return [name for name, own in self.part_of.items() if own == part]


def recognise(weights: Weights, visual: str = "face") -> Recognised:
    """Find the parts of a file and sort its tensors into taken, left out on purpose and unexpected.

    Args:
        visual: what the one visual branch of AffectGPT (2025) was trained on, "face" or "frames"; its tensors are named
            alike for both.

    Raises:
        ConvertError: no part is in it; lists what it holds and which parts exist.
    """
    parts = [part for part in PARTS if part.is_in(weights.shapes)]
    if not parts:
        names = sorted(weights.shapes)
        shown = ", ".join(f"{name} {list(weights.shapes[name])}" for name in names[:8])
        known = "\n".join(f"  {part.title}: {', '.join(map(_readable, part.marks))}" for part in PARTS)
        raise ConvertError(
            f"{weights.path} is not recognised. It holds {len(names)} tensors: {shown}{' ...' if names[8:] else ''}\n"
            f"Known are files with these tensors:\n{known}"
        )
    found = Recognised(weights, parts)
    drops = [*STRAY, *(rule for part in parts for rule in part.drops)]
    for name in weights.shapes:
        if reason := next((reason for pattern, reason in drops if re.fullmatch(pattern, name)), None):
            found.dropped.setdefault(reason, []).append(name)
            continue
        for part in parts:
            if rule := next((rule for rule in part.takes if re.fullmatch(rule[0], name)), None):
                ours = re.sub(rule[0], rule[1].replace(VISUAL, visual), name)
                if ours in found.taken:
                    raise ConvertError(f"{weights.path}: {found.taken[ours]} and {name} are both {ours}; keep one")
                found.taken[ours], found.part_of[ours] = name, part.name
                break
        else:
            found.unexpected.append(name)
    return found


def _readable(pattern: str) -> str:
    return re.sub(r"\([^)]*\)\?", "", pattern).replace("\\", "")


# ---- what comes out --------------------------------------------------------------------------------------------------


@dataclass
class Output:
    """One thing to write: a folder with its tensors and settings.

    Attributes:
        name: "eva_qformer", "eva", "projectors" or "lora".
        weights: file of the tensors, below the folder of the conversion.
        entries: tensors by our names.
        missing, misshapen: what keeps it from being complete.
        needs: in words, what must be given along.
        settings: file name beside the tensors -> JSON value.
    """

    name: str
    weights: str
    entries: list[Entry] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return bool(self.entries) and not (self.missing or self.misshapen or self.needs)

    def fill(self, expected: Mapping[str, tuple[int, ...]], entries: Mapping[str, Entry]) -> None:
        """Take the entries and note how they differ from the tensors that the model has."""
        self.entries += list(entries.values())
        self.missing += sorted(set(expected) - set(entries))
        self.misshapen += [
            f"{name} is {list(entries[name].shape)}, not {list(shape)}"
            for name, shape in sorted(expected.items())
            if name in entries and entries[name].shape != shape
        ]
        self.misshapen += [f"{name} has no place in the model" for name in sorted(set(entries) - set(expected))]


Source = tuple[Weights, str]
"""A file and the name of a tensor in it."""


def outputs_of(files: Sequence[Recognised], *, image_size: int | None = None) -> list[Output]:
    """What the files give together.

    Args:
        image_size: pixels that the image encoder shall take; None = as in the file, 448 beside MiniGPT-v2's parts.

    Raises:
        ConvertError: two files hold the same part.
    """
    sources: dict[str, Source] = {}
    homes: dict[str, Recognised] = {}
    for file in files:
        for part in file.parts:
            if part.name in homes:
                raise ConvertError(
                    f"{homes[part.name].weights.path} and {file.weights.path} both hold: {part.title}; give one"
                )
            homes[part.name] = file
        for ours, theirs in file.taken.items():
            if ours in sources and not ours.startswith("vision_model.post_layernorm"):
                raise ConvertError(
                    f"{sources[ours][0].path} and {file.weights.path} both give {ours}; convert them apart"
                )
            sources.setdefault(ours, (file.weights, theirs))
    results = []
    if "blip2" in homes or ("eva" in homes and "views" not in homes):
        results.append(_eva_qformer(sources, homes, image_size))
    if "eva" in homes and "views" in homes:
        results.append(_eva(sources, homes, image_size or MINIGPT_IMAGE_SIZE))
    if any(name.startswith("projectors.") for name in sources):
        results.append(_projectors(sources, homes))
    if "lora" in homes:
        results.append(_lora(sources, homes))
    return results


def _shapes(sources: Mapping[str, Source], prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {
        name.removeprefix(prefix): weights.shapes[theirs]
        for name, (weights, theirs) in sources.items()
        if name.startswith(prefix)
    }


def _entry(name: str, source: Source, dtype: torch.dtype | None = None) -> Entry:
    weights, theirs = source
    return Entry(name, weights.shapes[theirs], dtype or weights.dtypes[theirs], lambda: weights.load(theirs))


def _state_shapes(make: Callable[[], nn.Module], prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Name -> shape of a module's tensors, built without memory."""
    with torch.device("meta"):
        return {f"{prefix}{name}": tuple(tensor.shape) for name, tensor in make().state_dict().items()}


# ---- image encoder and image Q-Former


def _eva_qformer(sources: Mapping[str, Source], homes: Mapping[str, Recognised], image_size: int | None) -> Output:
    """EVA + ln_vision + image Q-Former in the layout of transformers' BLIP-2."""
    output = Output("eva_qformer", "eva_qformer/model.safetensors")
    lacking = [part for part in PARTS if part.name in ("eva", "blip2") and part.name not in homes]
    if lacking:
        output.needs = [f"{part.title} (published as {part.found_in})" for part in lacking]
        return output
    vision_config = _vision_config(_shapes(sources, "vision_model."), output)
    shapes = _shapes(sources)
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
            f"the image Q-Former reads states {key[-1]} wide, EVA gives {vision_config.hidden_size}: "
            "the two files belong to different models"
        )
    expected = {
        "query_tokens": (1, queries[-2], queries[-1]),
        **_state_shapes(lambda: Blip2VisionModel(vision_config), "vision_model."),
        **_state_shapes(lambda: Blip2QFormerModel(qformer_config), "qformer."),
    }
    own = {name: source for name, source in sources.items() if name.startswith(("qformer.", "query_tokens"))}
    entries = {name: _entry(name, source) for name, source in own.items()}
    output.fill(expected, _vision_entries(sources) | entries)
    _resize(output, vision_config, image_size)
    config = Blip2Config(
        vision_config=vision_config.to_dict(), qformer_config=qformer_config.to_dict(), num_query_tokens=queries[-2]
    )
    output.settings = _image_settings(config, vision_config.image_size)
    return output


_FIRST = "qformer.encoder.layer.0"


def _eva(sources: Mapping[str, Source], homes: Mapping[str, Recognised], image_size: int) -> Output:
    """EVA as MiniGPT-v2 and Emotion-LLaMA run it: larger pictures, and a final norm that was never loaded.

    Their ln_vision is frozen and stands in no file that they read, so it does nothing but normalise.
    """
    output = Output("eva", "eva/model.safetensors")
    vision_config = _vision_config(_shapes(sources, "vision_model."), output)
    if vision_config is None:
        return output
    entries = _vision_entries(sources)
    own = homes["views"].taken
    for name, value in (("weight", 1.0), ("bias", 0.0)):
        key, shape = f"vision_model.post_layernorm.{name}", (vision_config.hidden_size,)
        if key in own:
            entries[key] = _entry(key, (homes["views"].weights, own[key]))
        else:
            entries[key] = Entry(key, shape, torch.float32, partial(torch.full, shape, value))
    output.fill(_state_shapes(lambda: Blip2VisionModel(vision_config), "vision_model."), entries)
    output.entries = [replace(entry, name=entry.name.removeprefix("vision_model.")) for entry in output.entries]
    _resize(output, vision_config, image_size)
    output.settings = _image_settings(vision_config, vision_config.image_size)
    return output


def _vision_config(shapes: Mapping[str, tuple[int, ...]], output: Output) -> Blip2VisionConfig | None:
    """EVA's sizes out of its shapes; None, with what is missing noted, if they cannot be told."""
    names = ("embeddings.position_embedding", "embeddings.patch_embedding.weight", "encoder.layers.0.mlp.fc1.weight")
    output.missing += [f"vision_model.{name}" for name in names if name not in shapes]
    if output.missing:
        return None
    positions, patches, wide = (shapes[name] for name in names)
    side = math.isqrt(max(0, positions[1] - 1))
    if side * side != positions[1] - 1:
        output.misshapen.append(f"pos_embed is {list(positions)}: {positions[1] - 1} patches are no square")
        return None
    return Blip2VisionConfig(
        hidden_size=positions[2], num_hidden_layers=N_EVA_BLOCKS, num_attention_heads=N_EVA_HEADS,
        intermediate_size=wide[0], patch_size=patches[-1], image_size=side * patches[-1], qkv_bias=True,
    )  # fmt: skip


def _vision_entries(sources: Mapping[str, Source]) -> dict[str, Entry]:
    """Tensors of `Blip2VisionModel`; the biases of queries and values become one, with zeros for the keys between."""
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
            entries[name] = _entry(name, source)
    return entries


def _join_biases(queries: Source, values: Source) -> Tensor:
    q, v = (weights.load(name) for weights, name in (queries, values))
    return torch.cat([q, torch.zeros_like(q), v])  # EVA's keys have no bias


def _resize(output: Output, config: Blip2VisionConfig, image_size: int | None) -> None:
    """Make encoder and position embeddings fit another size of picture."""
    if image_size is None or image_size == config.image_size:
        return
    if image_size % config.patch_size:
        raise ConvertError(f"image_size={image_size} is no multiple of EVA's patches of {config.patch_size} pixels")
    side = image_size // config.patch_size
    config.image_size = image_size
    for place, entry in enumerate(output.entries):
        if entry.name.endswith("embeddings.position_embedding"):
            shape = (1, side * side + 1, entry.shape[-1])
            output.entries[place] = replace(entry, shape=shape, load=partial(_interpolated, entry, side))


def _interpolated(entry: Entry, side: int) -> Tensor:
    """Position embeddings for side x side patches; the class token keeps its own."""
    table = entry.load().float()  # [1, 1 + n*n, E]
    n = math.isqrt(table.shape[1] - 1)
    grid = table[:, 1:].unflatten(1, (n, n)).permute(0, 3, 1, 2)  # [1, E, n, n]
    grid = nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)  # [1, 1 + side*side, E]


def _image_settings(config: Any, image_size: int) -> dict[str, Any]:
    size = {"height": image_size, "width": image_size}
    pixels = {"image_processor_type": "BlipImageProcessor", "size": size, **CLIP_PIXELS}
    return {"config.json": json.loads(config.to_json_string()), "preprocessor_config.json": pixels}


# ---- projectors and adapters


def _projector_config(part: str, branch: str, shapes: Mapping[str, tuple[int, ...]]) -> ProjectorConfig:
    """What the tensors `shapes` of a branch belong to; raises KeyError naming one that it cannot be told without."""
    if part in ("frames", "audio"):
        queries = shapes["project.queries"]
        return ProjectorConfig(
            "qformer", shapes["project.qformer.encoder.layer.0.crossattention.attention.key.weight"][-1], queries[-2],
            hidden_size=queries[-1], n_layers=N_BRANCH_LAYERS, n_heads=N_QFORMER_HEADS,
            max_positions=shapes["positions.embedding.weight"][0],
        )  # fmt: skip
    if part == "multi":
        sizes = {
            name.split(".")[1]: shape[1] for name, shape in shapes.items() if re.fullmatch(r"embed\..*weight", name)
        }
        sources = tuple(sorted(sizes, key=MODALITIES.index))
        return ProjectorConfig(
            "attention", shapes["mix.weight"][0], 1, softmax=False, sources=sources,
            source_sizes=tuple(sizes[name] for name in sources), source_states=(8,) * len(sources),
        )  # fmt: skip
    if part in ("visual", "sound"):
        n_queries, size = shapes["project.score.weight"]
        return ProjectorConfig("attention", size, n_queries, softmax=False)
    size = shapes["project.output.weight"][1]
    if branch == "frames":
        n_class = int("project.class_output.weight" in shapes)
        n_groups = (MINIGPT_IMAGE_SIZE // 14) ** 2 // GROUP_SIZE
        return ProjectorConfig(
            "grouped", size // GROUP_SIZE, n_groups + n_class, group_size=GROUP_SIZE, n_class=n_class
        )
    return ProjectorConfig("linear", size, 1)


def _projectors(sources: Mapping[str, Source], homes: Mapping[str, Recognised]) -> Output:
    """`projectors.safetensors` in fp32, and a JSON file that says what each branch is and where it comes from."""
    output = Output("projectors", PROJECTORS)
    branches: dict[str, Any] = {}
    widths = set()
    for part, home in homes.items():
        for branch in sorted({name.split(".")[1] for name in home.taken_by(part) if name.startswith("projectors.")}):
            prefix = f"projectors.{branch}."
            shapes = _shapes(sources, prefix)
            try:
                config = _projector_config(part, branch, shapes)
                width = shapes["output.weight" if config.sources else "project.output.weight"][0]
            except KeyError as error:
                output.missing.append(f"{prefix}{error.args[0]}")
                continue
            entries = {
                name: _entry(name, source, torch.float32) for name, source in sources.items() if name.startswith(prefix)
            }
            make = PreFusion if config.sources else Projector
            output.fill(_state_shapes(partial(make, config, width), prefix), _audio_first(entries))
            widths.add(width)
            branches[branch] = {
                "projector": asdict(config),
                "part": BY_NAME[part].title,
                "file": home.weights.path.name,
                "sha256": home.weights.sha256,
            }
    if len(widths) > 1:
        output.misshapen.append(f"the branches end at LLMs of different widths: {sorted(widths)}")
    output.settings[PROJECTORS_JSON] = {
        "format": 1,
        "llm_width": max(widths, default=None),
        "branches": branches,
        "tensors": {entry.name: list(entry.shape) for entry in output.entries},
    }
    return output


def _audio_first(entries: dict[str, Entry]) -> dict[str, Entry]:
    """AffectGPT's pre-fusion puts the pictures before the sound, ours the sound first: exchange the halves."""
    for name, dim in (("mix.weight", 1), ("score.weight", 0), ("score.bias", 0)):
        if (entry := entries.get(f"projectors.multi.{name}")) is not None:
            entries[entry.name] = replace(entry, load=partial(_halves_exchanged, entry, dim))
    return entries


def _halves_exchanged(entry: Entry, dim: int) -> Tensor:
    first, second = entry.load().chunk(2, dim=dim)
    return torch.cat([second, first], dim=dim)


def _lora(sources: Mapping[str, Source], homes: Mapping[str, Recognised]) -> Output:
    """Adapters in peft's own layout; `alpha` is known from the code that they come with."""
    output = Output("lora", "lora/adapter_model.safetensors")
    own = {name: source for name, source in sources.items() if ".lora_" in name}
    shapes = _shapes(own)
    modules = sorted({re.sub(r"\.lora_[AB]\.weight$", "", name) for name in own})
    pairs = [(f"{module}.lora_A.weight", f"{module}.lora_B.weight") for module in modules]
    output.missing += [name for pair in pairs for name in pair if name not in shapes]
    ranks = {shapes[a][0] for a, _ in pairs if a in shapes} | {shapes[b][1] for _, b in pairs if b in shapes}
    if len(ranks) > 1:
        output.misshapen.append(f"the adapters have different ranks: {sorted(ranks)}")
    layers: dict[str, set[str]] = {}
    for module in modules:
        if match := re.fullmatch(r"base_model\.model\.model\.layers\.(\d+)\.(.+)", module):
            layers.setdefault(match[1], set()).add(match[2])
    adapted = set().union(*layers.values())
    n_layers = max(map(int, layers), default=-1) + 1
    for layer in map(str, range(n_layers)):
        output.missing += [
            f"adapter of layer {layer}, {module}" for module in sorted(adapted - layers.get(layer, set()))
        ]
    output.entries = [_entry(name, source, torch.float32) for name, source in sorted(own.items())]
    alpha = next((alpha for part, alpha in LORA_ALPHA.items() if part in homes), None)
    if alpha is None:
        output.needs = [
            "projections of AffectGPT (2025), MiniGPT-v2 or Emotion-LLaMA in the same file, which tell alpha"
        ]
    home = homes["lora"].weights
    output.settings = {
        "adapter_config.json": {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": max(ranks, default=None), "lora_alpha": alpha,
            "lora_dropout": 0.05, "bias": "none", "inference_mode": True, "base_model_name_or_path": None,
            "target_modules": sorted({module.rpartition(".")[2] for module in adapted}),
        },
        "source.json": {"file": home.path.name, "sha256": home.sha256},
    }  # fmt: skip
    return output


# ---- the whole conversion --------------------------------------------------------------------------------------------


def convert(
    paths: Sequence[Path], folder: Path, *, image_size: int | None = None, visual: str = "face"
) -> dict[str, Any]:
    """Convert published files into the new folder `folder`; returns the report, which `report.json` there repeats.

    An output that lacks something is not written, only reported; `report["complete"]` says whether all is well. If
    nothing can be written there is no folder.

    Args:
        image_size: as in `outputs_of`.
        visual: as in `recognise`.

    Raises:
        ConvertError: a file cannot be read or is not recognised, or two hold the same part.
    """
    files = [recognise(open_weights(path), visual) for path in paths]
    outputs = outputs_of(files, image_size=image_size)
    report: dict[str, Any] = {
        "format": 1,
        "files": [
            {
                "path": str(file.weights.path),
                "sha256": file.weights.sha256,
                "bytes": file.weights.path.stat().st_size,
                "recognised": [part.title for part in file.parts],
                "taken": len(file.taken),
                "dropped": file.dropped,
                "unexpected": file.unexpected,
                "remarks": file.weights.remarks,
            }
            for file in files
        ],
        "outputs": [
            {
                "name": output.name,
                "complete": output.is_complete,
                "tensors": len(output.entries),
                "missing": output.missing,
                "misshapen": output.misshapen,
                "needs": output.needs,
            }
            for output in outputs
        ],
        "complete": all(output.is_complete for output in outputs) and not any(file.unexpected for file in files),
    }
    if not any(output.is_complete for output in outputs):
        return report
    folder.parent.mkdir(parents=True, exist_ok=True)
    target = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp", dir=folder.parent))
    try:
        for output in outputs:
            if output.is_complete:
                _write(output, target)
        write_json_atomic(target / REPORT, report)
        os.chmod(target, 0o755)  # mkdtemp keeps others out
        if folder.is_dir():  # an older conversion that may be replaced, or an empty folder
            shutil.rmtree(folder)
        os.replace(target, folder)
    finally:
        if target.exists():
            shutil.rmtree(target)
    return report


def _write(output: Output, target: Path) -> None:
    path = target / output.weights
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, output.entries)
    for name, value in output.settings.items():
        write_json_atomic(path.parent / name, value)
