"""The trained parts: projections of the branches, and adapters of the LLM."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from affectgpt.convert.files import Entry
from affectgpt.convert.outputs import Output, Source, entry_of, shapes_of, state_shapes
from affectgpt.convert.parts import BY_NAME, Recognised
from affectgpt.models.configuration_affectgpt import ProjectorArchitecture
from affectgpt.models.pretrained import PROJECTORS, PROJECTORS_JSON
from affectgpt.models.projectors import PreFusion, Projector
from affectgpt.schema import MODALITIES

# What tensors do not show.
N_BRANCH_LAYERS, N_BRANCH_HEADS = 2, 12  # Video-LLaMA's video and audio Q-Former
LORA_ALPHA = {"visual": 32, "views": 16}  # part -> alpha of the LoRA that came with it; the tensors do not show it
GROUP_SIZE = 4  # patches that MiniGPT-v2 puts side by side
MINIGPT_IMAGE_SIZE = 448


def _projector_config(part: str, branch: str, shapes: Mapping[str, tuple[int, ...]]) -> ProjectorArchitecture:
    """What the tensors `shapes` of a branch belong to; raises KeyError naming one that it cannot be told without."""
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
        sources = tuple(sorted(sizes, key=MODALITIES.index))
        return ProjectorArchitecture(
            "attention", shapes["mix.weight"][0], 1, softmax=False, sources=sources,
            source_sizes=tuple(sizes[name] for name in sources), source_states=(8,) * len(sources),
        )  # fmt: skip
    if part in ("visual", "sound"):
        n_queries, size = shapes["project.score.weight"]
        return ProjectorArchitecture("attention", size, n_queries, softmax=False)
    size = shapes["project.output.weight"][1]
    if branch == "frames":
        n_class = int("project.class_output.weight" in shapes)
        n_groups = (MINIGPT_IMAGE_SIZE // 14) ** 2 // GROUP_SIZE
        return ProjectorArchitecture(
            "grouped", size // GROUP_SIZE, n_groups + n_class, group_size=GROUP_SIZE, n_class=n_class
        )
    return ProjectorArchitecture("linear", size, 1)


def projectors(sources: Mapping[str, Source], homes: Mapping[str, Recognised]) -> Output:
    """`projectors.safetensors` in fp32, and a JSON file that says what each branch is and where it comes from."""
    output = Output("projectors", PROJECTORS)
    branches: dict[str, Any] = {}
    widths = set()
    for part, home in homes.items():
        for branch in sorted({name.split(".")[1] for name in home.taken_by(part) if name.startswith("projectors.")}):
            prefix = f"projectors.{branch}."
            shapes = shapes_of(sources, prefix)
            try:
                config = _projector_config(part, branch, shapes)
                width = shapes["output.weight" if config.sources else "project.output.weight"][0]
            except KeyError as error:
                output.missing.append(f"{prefix}{error.args[0]}")
                continue
            entries = {
                name: entry_of(name, source, torch.float32)
                for name, source in sources.items()
                if name.startswith(prefix)
            }
            make = PreFusion if config.sources else Projector
            output.fill(state_shapes(partial(make, config, width), prefix), _audio_first(entries))
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


def lora(sources: Mapping[str, Source], homes: Mapping[str, Recognised]) -> Output:
    """Adapters in peft's own layout; `alpha` is known from the code that they come with."""
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
