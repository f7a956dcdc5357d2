"""The fast ways through the LLM: packed training step, generation. Imports nothing else of the package.

The folder can be deleted: everything then runs through transformers, slower and with the same results. Other rooms
therefore ask `affectgpt.models.backend` for the engine.

layout.py       where samples are in a packed row, and how it is cut
kernels.py      attention per sample, norm, gate and losses, on any device
cpu.py          the versions for CPUs
layers.py       the decoder layers of the supported LLMs on packed samples
lora.py         LoRA adapters, and their dropout
packing.py      loss and log-probabilities of packed samples
generation.py   greedy answers to many prompts
groups.py       several answers to each of many prompts
buffers.py      keys and values of what is being generated
activations.py  what the layers save for the backward pass
"""

from affectgpt.engine.activations import Kept, kept_bytes, kept_tensors
from affectgpt.engine.generation import Prompt, can_generate, greedy
from affectgpt.engine.groups import Group, continue_groups
from affectgpt.engine.layers import FAMILIES, supports
from affectgpt.engine.packing import SampleTooLong, packed_log_probs, packed_loss, packed_token_loss

__all__ = [
    "FAMILIES",
    "Group",
    "Kept",
    "Prompt",
    "SampleTooLong",
    "can_generate",
    "continue_groups",
    "greedy",
    "kept_bytes",
    "kept_tensors",
    "packed_log_probs",
    "packed_loss",
    "packed_token_loss",
    "supports",
]
