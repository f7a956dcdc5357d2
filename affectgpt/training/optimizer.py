"""Learning rates by part, and fp32 masters of trained 16-bit weights: steps of 1e-5 vanish in bf16, whose neighbours
are a 256th apart.

    gradients (16 bits) -> fp32 --AdamW--> masters (fp32) --rounded--> weights that compute (16 bits)

Projectors and adapters are in fp32 themselves. DeepSpeed keeps masters of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

_KEY = "masters"


def split_groups(optimizer: torch.optim.Optimizer, key: Callable[[nn.Parameter], Any]) -> None:
    """Split the groups of a new optimizer by what `key` gives for their parameters, in order of appearance."""
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        by_key: dict[Any, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_key.setdefault(key(parameter), []).append(parameter)
        groups += [{**group, "params": parameters} for parameters in by_key.values() or [[]]]
    optimizer.param_groups[:] = groups


def set_rates(optimizer: torch.optim.Optimizer, factors: Mapping[int, float]) -> None:
    """Multiply the learning rate of some parameters of a new optimizer.

    Args:
        factors: id of a parameter -> factor; the others have 1.
    """
    split_groups(optimizer, lambda parameter: factors.get(id(parameter), 1.0))
    for group in optimizer.param_groups:
        if group["params"]:
            group["lr"] *= factors.get(id(group["params"][0]), 1.0)


def keep_masters(optimizer: torch.optim.Optimizer) -> None:
    """Let a new optimizer step fp32 copies of its 16-bit parameters; its state then contains them.

    A resumed run goes on from the masters, a later stage from the rounded weights.
    """
    masters: list[tuple[nn.Parameter, nn.Parameter]] = []  # (16 bits, fp32)
    for group in optimizer.param_groups:
        for number, parameter in enumerate(group["params"]):
            if parameter.dtype in (torch.bfloat16, torch.float16):
                master = nn.Parameter(parameter.detach().float())
                group["params"][number] = master
                masters.append((parameter, master))
    if not masters:
        return

    def take_gradients(*_: Any) -> None:
        for parameter, master in masters:
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None  # at most one complete set of gradients is in memory

    @torch.no_grad()
    def round_weights(*_: Any) -> None:
        for parameter, master in masters:
            parameter.copy_(master)
            master.grad = None

    def add_masters(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, _KEY: [master.detach() for _, master in masters]}

    @torch.no_grad()
    def load_masters(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        for (_, master), value in zip(masters, state[_KEY], strict=True):
            master.copy_(value)
        return {key: value for key, value in state.items() if key != _KEY}

    optimizer.register_step_pre_hook(take_gradients)
    optimizer.register_step_post_hook(round_weights)
    optimizer.register_state_dict_post_hook(add_masters)
    optimizer.register_load_state_dict_pre_hook(load_masters)
