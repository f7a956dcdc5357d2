"""The trained parts: projectors of the branches, and adapters of the LLM."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from affectgpt.convert.outputs import Output, Source, entry_of, shapes_of, state_shapes
from affectgpt.convert.parts import BY_NAME, FUSED_V2, Recognised
from affectgpt.models.configuration_affectgpt import ProjectorArchitecture
from affectgpt.models.pretrained import PROJECTORS, PROJECTORS_JSON
from affectgpt.models.projectors import projector_of

# Settings that tensor shapes do not show.
N_BRANCH_LAYERS, N_BRANCH_HEADS = 2, 12  # Video-LLaMA's video and audio Q-Former
LORA_ALPHA = {"visual": 32, "views": 16}  # part -> alpha of the LoRA in the same file
GROUP_SIZE = 4  # patches that MiniGPT-v2 concatenates
MINIGPT_IMAGE_SIZE = 448
N_STREAM_STATES = 64  # of sound and of video in Emotion-LLaMA v2


def _architecture(part: str, branch: str, shapes: Mapping[str, tuple[int, ...]]) -> ProjectorArchitecture:
    """The architecture of a branch with tensors of these shapes; raises KeyError naming a tensor that is missing."""
    if part in ("frames", "audio"):
        queries = shapes["project.queries"]
        return ProjectorArchitecture(
            "qformer", shapes["project.qformer.encoder.layer.0.crossattention.attention.key.weight"][-1], queries[-2],
            hidden_size=queries[-1], n_layers=N_BRANCH_LAYERS, n_heads=N_BRANCH_HEADS,
            max_positions=shapes["positions.embedding.weight"][0],
        )  # fmt: skip
    if part == "multi":
        sizes = {
            name.split(".")[1]: shape[1] for name, shape in shapes.items() if re.fullmatch(r"embed\..*weight", name)
        }
        sources = tuple(sorted(sizes, key=lambda name: name == "audio"))  # the published order: visual, audio
        return ProjectorArchitecture(
            "attention", shapes["mix.weight"][0], 1, softmax=False, sources=sources,
            source_sizes=tuple(sizes[name] for name in sources), source_states=(8,) * len(sources),
        )  # fmt: skip
    if part == "fusion":
        width, n_queries = shapes["score.weight"][1], N_STREAM_STATES
        n_blocks = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
        sizes = [shapes[f"embed.{name}.0.weight"][1] for name in FUSED_V2]
        return ProjectorArchitecture(
            "conv", max(sizes), n_queries, hidden_size=width, n_layers=n_blocks, sources=FUSED_V2, source_sizes=sizes,
            source_states=(n_queries, 1 + (MINIGPT_IMAGE_SIZE // 14) ** 2, n_queries),
        )  # fmt: skip
    if part == "streams":
        return ProjectorArchitecture("linear", shapes["project.output.weight"][1], N_STREAM_STATES)
    if part in ("visual", "sound"):
        n_queries, size = shapes["project.score.weight"]
        return ProjectorArchitecture("attention", size, n_queries, softmax=False)
    size = shapes["project.output.weight"][1]
    if part == "views" and branch == "frames":
        n_class = int("project.class_output.weight" in shapes)
        n_groups = (MINIGPT_IMAGE_SIZE // 14) ** 2 // GROUP_SIZE
        return ProjectorArchitecture(
            "grouped", size // GROUP_SIZE, n_groups + n_class, group_size=GROUP_SIZE, n_class=n_class
        )
    return ProjectorArchitecture("linear", size, 1)


def projectors(sources: Mapping[str, Source], by_part: Mapping[str, Recognised]) -> Output:
    """`projectors.safetensors` in fp32, and a JSON file with the architecture and source of each branch."""
    output = Output("projectors", PROJECTORS)
    branches: dict[str, Any] = {}
    widths = set()
    for part, file in by_part.items():
        for branch in sorted({name.split(".")[1] for name in file.taken_by(part) if name.startswith("projectors.")}):
            prefix = f"projectors.{branch}."
            shapes = shapes_of(sources, prefix)
            try:
                config = _architecture(part, branch, shapes)
                width = shapes["output.weight" if config.sources else "project.output.weight"][0]
            except KeyError as error:
                output.missing.append(f"{prefix}{error.args[0]}")
                continue
            entries = {
                name: entry_of(name, source, torch.float32)
                for name, source in sources.items()
                if name.startswith(prefix)
            }
            output.fill(state_shapes(partial(projector_of, config, width), prefix), entries)
            widths.add(width)
            branches[branch] = {
                "projector": asdict(config),
                "part": BY_NAME[part].title,
                "file": file.weights.path.name,
                "sha256": file.weights.sha256,
            }
    if len(widths) > 1:
        output.misshapen.append(f"the branches belong to LLMs of different widths: {sorted(widths)}")
    output.settings[PROJECTORS_JSON] = {
        "format": 1,
        "llm_width": max(widths, default=None),
        "branches": branches,
        "tensors": {entry.name: list(entry.shape) for entry in output.entries},
    }
    return output


def lora(sources: Mapping[str, Source], by_part: Mapping[str, Recognised]) -> Output:
    """Adapters in peft's layout; alpha is taken from the published code."""
    output = Output("lora", "lora/adapter_model.safetensors")
    own = {name: source for name, source in sources.items() if ".lora_" in name}
    shapes = shapes_of(own)
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
    output.entries = [entry_of(name, source, torch.float32) for name, source in sorted(own.items())]
    alpha = next((alpha for part, alpha in LORA_ALPHA.items() if part in by_part), None)
    if alpha is None:
        output.needs = [
            "projectors of AffectGPT (2025), MiniGPT-v2 or Emotion-LLaMA in the same file, which determine alpha"
        ]
    weights = by_part["lora"].weights
    output.settings = {
        "adapter_config.json": {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": max(ranks, default=None), "lora_alpha": alpha,
            "lora_dropout": 0.05, "bias": "none", "inference_mode": True, "base_model_name_or_path": None,
            "target_modules": sorted({module.rpartition(".")[2] for module in adapted}),
        },
        "source.json": {"file": weights.path.name, "sha256": weights.sha256},
    }  # fmt: skip
    return output
