"""Training speed of the published LoRA recipe: python benchmarks/lora.py [--dropout 0.05] [--batch-size 16]

Rank 16 on all seven projections of an LLM with the shapes of SmolLM2-135M (30 layers x 576, random weights), packed,
with cached encoder states and the projectors of size `brief`. Rows: with and without dropout, in fp32 and with a bf16
LLM, by the fused adapters of affectgpt.engine and by the modules of peft, whose packs run one after the other if there
is dropout. Losses and gradients without dropout are compared before anything is timed. Rows take turns and a row's time
is the median of its turns. Wall and processor time stand side by side: on a busy machine the latter, with --threads 1,
says more.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import step as benchmark
import torch
from generate import states_of
from step import SIZES, both_clocks, collate, cpu_name, make_samples, write_figures
from torch import Tensor, nn
from transformers import LlamaConfig

from affectgpt.engine import lora, packing

SMOLLM2 = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True,
)  # fmt: skip
SIZE = replace(SIZES["brief"], llm=SMOLLM2)


def make_model(dtype: torch.dtype, dropout: float) -> Any:
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    benchmark.LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": dropout, "target_modules": targets}
    model = benchmark.make_model(SIZE, dtype=dtype, lora=True)
    model.token_budget = 4096
    return model


@contextmanager
def modules_of_peft() -> Iterator[None]:
    """Every adapter runs itself."""
    found = lora.adapter_of
    lora.adapter_of = packing.adapter_of = lambda linear: None
    try:
        yield
    finally:
        lora.adapter_of = packing.adapter_of = found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = make_model(torch.float32, options.dropout).to(options.device)
    drops = [module for module in model.language_model.modules() if isinstance(module, nn.Dropout)]
    samples = make_samples(SIZE, options.batch_size)
    states, generator = states_of(model, samples[0]), torch.Generator().manual_seed(0)
    for sample in samples:
        for name, each in states.items():
            sample[f"{name}_states"] = each + 0.1 * torch.randn(each.shape, generator=generator)
    batch = {key: value.to(options.device) for key, value in collate(samples, packed=True, cached=True).items()}
    print(
        f"SmolLM2-135M's shapes, r 16 on seven projections, batch {options.batch_size} of "
        f"{batch['input_ids'].numel() / len(samples):.0f} tokens; {cpu_name()}, {os.cpu_count()} cores, "
        f"{options.threads} threads, torch {torch.__version__}; load average before "
        f"{', '.join(f'{value:.1f}' for value in os.getloadavg())}"
    )

    def run() -> tuple[Tensor, Tensor]:
        model.zero_grad(set_to_none=True)
        loss = model(**batch).loss
        loss.backward()
        if options.device == "cuda":
            torch.cuda.synchronize()
        return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def use(dtype: torch.dtype, p: float) -> None:
        model.language_model.to(dtype)
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.float()
        for drop in drops:
            drop.p = p

    use(torch.float32, 0.0)
    mine = run()
    with modules_of_peft():
        theirs = run()
    off = float((mine[1] - theirs[1]).norm() / theirs[1].norm())
    print(f"fp32 without dropout: losses differ by {abs(float(mine[0] - theirs[0])):.0e}, gradients by {off:.0e}")
    if off > 1e-4:
        raise SystemExit("gradients differ")
    kinds = [(kind, p) for kind in ("peft", "fused") for p in (0.0, options.dropout)]
    rows = [(dtype, kind, p) for dtype in map(vars(torch).get, options.dtypes) for kind, p in kinds]
    times: dict[Any, list[tuple[float, float]]] = {row: [] for row in rows}
    for _ in range(options.rounds):
        for dtype, kind, p in rows:
            use(dtype, p)
            with modules_of_peft() if kind == "peft" else nullcontext():
                times[dtype, kind, p].append(both_clocks(run))
    seconds = {row: [statistics.median(clock) for clock in zip(*each, strict=True)] for row, each in times.items()}
    print(f"\n{'':<28}{'wall':>28}{'processor time':>28}")
    print(f"{'LLM':<10}{'adapters':<10}{'dropout':>8}" + f"{'s per sample':>16}{'of dropout':>12}" * 2)
    for dtype, kind, p in rows:
        line = f"{str(dtype)[6:]:<10}{kind:<10}{p:>8}"
        for took, without in zip(seconds[dtype, kind, p], seconds[dtype, kind, 0.0], strict=True):
            line += f"{took / len(samples):>16.3f}" + (f"{took / without - 1:>+12.1%}" if p else " " * 12)
        print(line)
    print(f"load average after {', '.join(f'{value:.1f}' for value in os.getloadavg())}")
    figures = [
        {"dtype": str(dtype)[6:], "adapters": kind, "dropout": p, "samples_s": len(samples) / took}
        for (dtype, kind, p), (took, _) in seconds.items()
    ]
    write_figures(options.json, {"rows": figures})


if __name__ == "__main__":
    main()
