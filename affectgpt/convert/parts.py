"""The contents of published files: for each part, a table from their tensor names to ours.

A file is recognised by its tensor names, not by its file name, and may contain several parts: an image encoder, an
image Q-Former, projectors of a branch, adapters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from affectgpt.convert.files import ConvertError, Weights

N_EVA_BLOCKS = 39
FUSED_V2 = ("audio", "frames", "motion")
"""The sources of Emotion-LLaMA v2's pre-fusion in the order of its tensors."""
VISUAL = "<visual>"  # placeholder for the branch that the visual projection of AffectGPT (2025) was trained on


Rule = tuple[str, str]
"""(regular expression for their name, our name) or (regular expression, reason to leave the tensor out)."""


@dataclass(frozen=True)
class Part:
    """A part that a published file may contain.

    Attributes:
        marks: a file contains the part if each of these patterns matches one of its tensor names.
        takes: their names -> ours.
        drops: names that are left out on purpose, with the reason.
        found_in: the published file with this part, for messages.
        unless: a file with a matching name does not contain the part.
        visual: the part is converted only if the run was trained on this input, "face" or "frames"; None = always.
    """

    name: str
    title: str
    found_in: str
    marks: tuple[str, ...]
    takes: tuple[Rule, ...]
    drops: tuple[Rule, ...] = ()
    unless: str | None = None
    visual: str | None = None

    def is_in(self, names: Iterable[str]) -> bool:
        names = list(names)
        return all(any(re.fullmatch(mark, name) for name in names) for mark in self.marks) and not (
            self.unless and any(re.fullmatch(self.unless, name) for name in names)
        )


def _qformer(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A Q-Former implemented as BERT with cross-attention -> transformers' `Blip2QFormerModel`."""
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


def _unused_in(qformer: str) -> tuple[Rule, ...]:
    return (
        (rf"{qformer}\.bert\.embeddings\.position_ids", "buffer, not a weight"),
        (rf"{qformer}\.bert\.embeddings\.(word|position)_embeddings\..*", "word embeddings, not used by queries"),
        (rf"{qformer}\.cls\..*", "language-modelling head"),
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
    (r".*rotary_emb\.inv_freq", "buffer, not a weight"),
    (r".*position_ids", "buffer, not a weight"),
)

_LORA = r"llama_model\.base_model\.model\.(.+)"
_BLOCK = r"(?:visual_encoder\.)?blocks\.(\d+)"
_LAYER = r"vision_model.encoder.layers.\1"
_FUSION = "conv_pro_module"
_LAST_BLOCK = "block after the 39th, whose output is what BLIP-2 and its successors use"

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
            (r"(?:visual_encoder\.)?(fc_norm|norm|head|lm_head)\..*", "norm or head that BLIP-2 does not use"),
            (r"(?:visual_encoder\.)?mask_token", "mask token of EVA's pretraining"),
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
            *_unused_in("Qformer"),
            (r"(t5|opt|llm)_proj\..*", "projection to BLIP-2's own LLM"),
            (r"(t5|opt|llm)_model\..*", "BLIP-2's own LLM"),
            (r"(vision_proj|text_proj|itm_head)\..*|temp", "head of BLIP-2's first stage"),
        ),
    ),
    Part(
        "frames",
        "Q-Former projector of the frames (Video-LLaMA visual branch)",
        "the visual branch of Video-LLaMA, VL_LLaMA_2_7B_*.pth",
        marks=(r"video_query_tokens",),
        takes=_branch("video", "frames", "video_frame_position_embedding", "(?:llama|affectgpt)_proj"),
        drops=(
            *_unused_in("video_Qformer"),
            (r"image_llama_proj\..*", "projection of single images, which no prompt uses"),
        ),
    ),
    Part(
        "audio",
        "Q-Former projector of the audio (Video-LLaMA audio branch)",
        "the audio branch of Video-LLaMA, AL_LLaMA_2_7B_*.pth",
        marks=(r"audio_query_tokens",),
        takes=_branch("audio", "audio", "audio_position_embedding", "audio_llama_proj"),
        drops=_unused_in("audio_Qformer"),
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
    ),
    Part(
        "image",
        "projection of single images (AffectGPT, 2025)",
        "checkpoint_*.pth of an AffectGPT run of 2025",
        marks=(r"video_attention_mlp\.weight", r"image_llama_proj\.weight"),
        takes=(_linear("image_llama_proj", "projectors.frames.project.output"),),
        visual="face",
    ),
    Part(
        "sound",
        "weighted sum of the audio windows (AffectGPT, 2025)",
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
        drops=((r"attention\.(feats_prep|attention_mlp|fc_att|fc_out)\..*", "auxiliary classifier of six emotions"),),
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
        "streams",
        "projections of sound and video (Emotion-LLaMA v2)",
        "a checkpoint of Emotion-LLaMA v2",
        marks=(rf"{_FUSION}\.fc_final\.weight", r"llama_proj_fusion\.weight"),
        takes=(
            _linear("llama_proj_video", "projectors.motion.project.output"),
            _linear("llama_proj_audio", "projectors.audio.project.output"),
        ),
    ),
    Part(
        "fusion",
        "pre-fusion by convolution (Emotion-LLaMA v2)",
        "a checkpoint of Emotion-LLaMA v2",
        marks=(rf"{_FUSION}\.fc_final\.weight", r"llama_proj_fusion\.weight"),
        takes=(
            *(
                (
                    rf"{_FUSION}\.feats_prep\.{place}\.(\d+)\.(weight|bias)",
                    rf"projectors.multi.embed.{name}.\1.\2",
                )
                for place, name in enumerate(FUSED_V2)
            ),
            (rf"{_FUSION}\.attention_mlp\.(\d+)\.(weight|bias)", r"projectors.multi.mix.\1.\2"),
            _linear(rf"{_FUSION}\.fc_att", "projectors.multi.score"),
            _linear(rf"{_FUSION}\.conv_entry", "projectors.multi.entry"),
            (
                rf"{_FUSION}\.conv_module\.conv_blocks\.(\d+)\.conv_block\.0\.(weight|bias)",
                r"projectors.multi.blocks.\1.\2",
            ),
            _linear(rf"{_FUSION}\.fc_final", "projectors.multi.final"),
            _linear("llama_proj_fusion", "projectors.multi.output"),
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
    """A file and its parts.

    Attributes:
        taken: our name -> theirs.
        part_of: our name -> name of the part.
        dropped: reason -> their names.
        unexpected: their names that match no rule.
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
        visual: the input that the visual branch of AffectGPT (2025) was trained on, "face" or "frames"; the tensor
            names are the same for both.

    Raises:
        ConvertError: it contains no known part; lists its tensors and the known parts.
    """
    parts = [part for part in PARTS if part.is_in(weights.shapes)]
    if not parts:
        names = sorted(weights.shapes)
        shown = ", ".join(f"{name} {list(weights.shapes[name])}" for name in names[:8])
        known = "\n".join(f"  {part.title}: {', '.join(map(_readable, part.marks))}" for part in PARTS)
        raise ConvertError(
            f"{weights.path} is not recognised; it has {len(names)} tensors: {shown}{' ...' if names[8:] else ''}\n"
            f"Known parts and the tensors that identify them:\n{known}"
        )
    skipped = [part for part in parts if part.visual not in (None, visual)]
    parts = [part for part in parts if part not in skipped]
    found = Recognised(weights, parts)
    drops = [*STRAY, *(rule for part in parts for rule in part.drops)]
    drops += [
        (name, f"{part.title}, which a model of {visual} does not have") for part in skipped for name, _ in part.takes
    ]
    for name in weights.shapes:
        if reason := next((reason for pattern, reason in drops if re.fullmatch(pattern, name)), None):
            found.dropped.setdefault(reason, []).append(name)
            continue
        for part in parts:
            if rule := next((rule for rule in part.takes if re.fullmatch(rule[0], name)), None):
                ours = re.sub(rule[0], rule[1].replace(VISUAL, visual), name)
                if ours in found.taken:
                    raise ConvertError(f"{weights.path}: {found.taken[ours]} and {name} both become {ours}; keep one")
                found.taken[ours], found.part_of[ours] = name, part.name
                break
        else:
            found.unexpected.append(name)
    return found


def _readable(pattern: str) -> str:
    return re.sub(r"\([^)]*\)\?", "", pattern).replace("\\", "")
