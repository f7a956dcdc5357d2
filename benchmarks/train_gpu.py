"""Measure speed and memory of training the full-size architecture with random weights.

    python benchmarks/train_gpu.py model=affectgpt [n_steps=10] [batch_size=8] [text_tokens=170] [answer_tokens=100]
    python benchmarks/train_gpu.py model=tiny            # the same code at a toy size, also without a GPU

Weights are random in the published shapes (nothing is downloaded), LLM and encoders in bf16, projectors in fp32.
Measured are all combinations of online or cached encoder states and padded or packed samples. The GPU's peak is
measured with a large matrix product; utilisation is the number of FLOPs (`affectgpt.plan.costs`) over time and that
peak.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from affectgpt.cli import compose
from affectgpt.config import EncoderConfig, LLMConfig, ProjectorConfig, SamplingConfig
from affectgpt.models import ModelSpec, model_spec
from affectgpt.models.assemble import build_hollow, hollow_settings
from affectgpt.models.processing_affectgpt import MEDIA_KEYS
from affectgpt.plan.command import GIB, Setup, total_flops
from affectgpt.plan.costs import count_sample
from affectgpt.runtime import quiet_libraries

DEFAULTS = {"model": "affectgpt", "n_steps": 10, "batch_size": 8, "text_tokens": 170, "answer_tokens": 100}


def tiny_spec(folder: str) -> ModelSpec:
    """A toy model with the same kinds of parts; its base models are written to `folder`."""
    from transformers import Blip2VisionConfig, Blip2VisionModel, LlamaConfig, LlamaForCausalLM

    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 160}
    Blip2VisionModel(Blip2VisionConfig(**small, image_size=28, patch_size=14)).save_pretrained(f"{folder}/eye")
    LlamaForCausalLM(LlamaConfig(**small, vocab_size=512)).save_pretrained(f"{folder}/llm")
    return ModelSpec(
        llm=LLMConfig(f"{folder}/llm"),
        encoders={"frames": EncoderConfig(f"{folder}/eye")},
        projectors={"frames": ProjectorConfig(n_queries=4, hidden_size=32, n_heads=4)},
        sampling=SamplingConfig(n_frames=2),
    )


def batches(
    model: Any, spec: ModelSpec, n: int, text_tokens: int, answer_tokens: int, states: dict[str, Tensor] | None
) -> dict[bool, dict[str, Tensor]]:
    """is packed -> a batch of `n` random samples whose answers differ in length by up to a half."""
    device = next(model.projectors.parameters()).device
    slots = [
        token
        for name, token in model.config.placeholder_token_ids.items()
        if name in spec.encoders
        for _ in range(spec.projectors[name].n_queries)
    ]
    rows = []
    for i in range(n):
        n_answer = max(1, round(answer_tokens * (0.75 + 0.5 * i / max(1, n - 1))))
        words = torch.randint(5, model.config.text_config.vocab_size - 1, (text_tokens - answer_tokens + n_answer,))
        ids = torch.cat([torch.tensor(slots), words])
        labels = torch.full_like(ids, -100)
        labels[-n_answer:] = ids[-n_answer:]
        rows.append((ids, labels))
    media: dict[str, Tensor] = {}
    for name in spec.modalities:
        if states is not None:
            media[f"{name}_states"] = states[name].expand(n, -1, -1)
            media[f"{name}_states_mask"] = torch.ones(n, states[name].shape[1], dtype=torch.bool, device=device)
        else:
            media[MEDIA_KEYS[name]] = example(spec, name).expand(n, *[-1] * (4 if name != "audio" else 2)).to(device)
            if name == "audio":
                media["input_lengths"] = torch.full((n, 1), media[MEDIA_KEYS[name]].shape[2], device=device)
    pad = torch.nn.utils.rnn.pad_sequence
    ids, labels = [row[0] for row in rows], [row[1] for row in rows]
    padded = {
        "input_ids": pad(ids, batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
        "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
    }
    packed = {
        "input_ids": torch.cat(ids)[None],
        "labels": torch.cat(labels)[None],
        "position_ids": torch.cat([torch.arange(len(row)) for row in ids])[None],
    }
    return {
        is_packed: {key: value.to(device) for key, value in text.items()} | media
        for is_packed, text in ((False, padded), (True, packed))
    }


def example(spec: ModelSpec, name: str) -> Tensor:
    """Random media of one sample: 4 s of audio [1, W, S], or images [1, T, 3, H, W]."""
    settings = hollow_settings(spec, name)
    if name == "audio":
        seconds = min(4.0, settings["window_s"])
        return torch.randn(1, 1, round(seconds * settings["rate_hz"]))
    return torch.randn(1, settings["n_frames"], 3, settings["height"], settings["width"])


def measure(model: Any, batch: dict[str, Tensor], n_steps: int) -> tuple[float, float]:
    """(seconds per step, peak memory in GiB or 0 on a CPU)."""
    device = batch["input_ids"].device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    for step in range(2 + n_steps):
        if step == 2:  # two warm-up steps
            if is_gpu:
                torch.cuda.synchronize()
            started = time.perf_counter()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if is_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / n_steps, torch.cuda.max_memory_allocated() / GIB if is_gpu else 0.0


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, the best of several runs."""
    n = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        started = time.perf_counter()
        for _ in range(4):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 4 * 2 * n**3 / (time.perf_counter() - started))
    return best


def main(arguments: list[str]) -> int:
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if set(given) - set(DEFAULTS) or len(given) != len(arguments):
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    options = {key: type(default)(given.get(key, default)) for key, default in DEFAULTS.items()}
    n, n_steps = options["batch_size"], options["n_steps"]
    text, answer = options["text_tokens"], options["answer_tokens"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        print("no GPU: these figures only show that the code runs" if options["model"] == "tiny" else
              "no GPU; use a machine with one, or model=tiny to check that the code runs")  # fmt: skip
        if options["model"] != "tiny":
            return 1
    quiet_libraries()
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        if options["model"] == "tiny":
            spec = tiny_spec(folder)
        else:
            spec = model_spec(compose("plan", [f"model={options['model']}"]).model, 42)
        cost = count_sample(build_hollow(spec), spec, sound_s=4.0, text_tokens=text, answer_tokens=answer)
        model = build_hollow(spec, device=device.type).train()
        model.set_trainable(["projectors"])
        with torch.no_grad():
            states = {}
            for name in spec.modalities:
                states[name] = model.encoders[name](example(spec, name)[0].to(device))[None]
        dtype = model.get_input_embeddings().weight.dtype
        peak = measured_peak(device, dtype)
        title = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        print(f"{title}, torch {torch.__version__}; measured matmul peak {peak / 1e12:.2f} TFLOP/s ({dtype})")
        print(f"model {options['model']}: {cost.tokens} tokens per sample, {n} samples per step, {n_steps} steps")
        print(f"{'encoders':<10}{'text':<8}{'samples/s':>11}{'tokens/s':>11}{'peak GiB':>10}{'of matmul peak':>16}")
        for online in (True, False):
            made = batches(model, spec, n, text, answer, None if online else states)
            for packed, batch in made.items():
                seconds, peak_gib = measure(model, batch, n_steps)
                useful = total_flops(cost, replace(Setup(), online=online))  # without padding
                row = f"{n / seconds:>11.2f}{n * cost.tokens / seconds:>11.0f}{peak_gib:>10.2f}"
                print(
                    f"{'online' if online else 'cached':<10}{'packed' if packed else 'padded':<8}{row}"
                    f"{useful * n / seconds / peak:>16.1%}"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
