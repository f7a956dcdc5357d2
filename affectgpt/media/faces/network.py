"""Run MediaPipe's face networks in torch: a list of operators and their tensors, from a safetensors file."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS = Path(__file__).parent / "weights"


class Network:
    """One network, as `convert.py` stores it. Runs on a CPU, in 32 bits.

    Attributes:
        size: height and width of its input.
    """

    def __init__(self, file: Path) -> None:
        import torch
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            graph = json.loads(opened.metadata()["graph"])
            tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
        # Channels last: depthwise convolutions of a batch of 8 take half the time (on a CPU, torch 2.13).
        last = torch.channels_last
        self._tensors = {n: t.contiguous(memory_format=last) if t.ndim == 4 else t for n, t in tensors.items()}
        self._input, self._outputs = graph["input"], graph["outputs"]
        self._operators: list[dict[str, Any]] = graph["operators"]
        self.size: int = graph["shape"][1]
        last_use = {number: place for place, step in enumerate(self._operators) for number in step["in"]}
        self._done = [
            [n for n in step["in"] if last_use[n] == place and n not in self._outputs]
            for place, step in enumerate(self._operators)
        ]
        self._torch = torch

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """float32 [N,H,W,3] -> its outputs, each float32 [N, values]."""
        torch = self._torch
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
            values = {self._input: x}
            for step, done in zip(self._operators, self._done, strict=True):
                made = self._run(step, [values[number] for number in step["in"]])
                values[step["out"]] = torch.relu_(made) if step.get("relu") else made
                for number in done:
                    del values[number]
            return [values[number].reshape(len(images), -1).numpy() for number in self._outputs]

    def _run(self, step: dict[str, Any], inputs: list[Any]) -> Any:
        functional = self._torch.nn.functional
        kind, x = step["op"], inputs[0]
        if kind in ("conv_2d", "depthwise_conv_2d"):
            weight, stride = self._tensors[step["weight"]], step["stride"]
            if step["same"]:
                pads = [_same(n, k, stride) for n, k in zip(x.shape[2:], weight.shape[2:], strict=True)]
                (top, bottom), (left, right) = pads
                if (top, left) == (bottom, right):
                    return self._convolve(x, step, stride, (top, left))
                x = functional.pad(x, (left, right, top, bottom))
            return self._convolve(x, step, stride, (0, 0))
        if kind == "add":
            return x + inputs[1]
        if kind == "relu":
            return self._torch.relu(x)
        if kind == "prelu":
            return functional.prelu(x, self._tensors[step["weight"]])
        if kind == "max_pool_2d":
            return functional.max_pool2d(x, 2)
        if kind == "pad":
            (_, _), (top, bottom), (left, right), (front, back) = step["value"]
            return functional.pad(x, (left, right, top, bottom, front, back))
        if kind == "resize_bilinear":
            assert step["half_pixel"]
            return functional.interpolate(x, size=tuple(step["value"]), mode="bilinear", align_corners=False)
        if kind == "reshape":  # of [N,H,W,C]
            return x.permute(0, 2, 3, 1).reshape(len(x), *step["value"][1:])
        assert kind == "concatenation", kind
        return self._torch.cat(inputs, dim=step["axis"])

    def _convolve(self, x: Any, step: dict[str, Any], stride: int, padding: tuple[int, int]) -> Any:
        weight, bias = self._tensors[step["weight"]], self._tensors[step["bias"]]
        groups = len(weight) if step["op"] == "depthwise_conv_2d" else 1
        return self._torch.nn.functional.conv2d(x, weight, bias, stride=stride, padding=padding, groups=groups)


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding "same": (before, after)."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


@functools.cache
def network(name: str) -> Network:
    """The network `detector`, `mesh` or `iris`; loaded once per process."""
    return Network(WEIGHTS / f"{name}.safetensors")
