"""What each technique gains in the training step: python benchmarks/step.py [--size brief|brief-4s|demo] [--threads N]

The first row trains as published code does: encoders run in every step (at size brief 8 frames of 224 px and 8 windows
of 2 s of sound, as AffectGPT samples a clip), batch 3, padded, fp32, logits of all positions.
Each further row adds one technique. All rows train the same weights on the same samples; their losses and gradients
are compared before anything is timed. Rows take turns (1 2 3 ... 1 2 3 ...) and a row's time is the median of its
turns, so that other work on the machine affects all of them alike; --clock cpu with --threads 1 measures processor
time, which other work affects least.

Operations are those that a row performs, with encoders and projections (a multiplication and an addition are 2),
counted by torch. The peaks are measured in the same run: matrix products of the LLM's shapes, and a large square one.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import Blip2VisionConfig, HubertConfig, LlamaConfig, VideoMAEConfig

from affectgpt.engine import layers, packed_loss
from affectgpt.engine.layout import Pack, find_spans, make_packs
from affectgpt.models import AffectGPTConfig, AffectGPTForConditionalGeneration
from affectgpt.models.configuration_affectgpt import EncoderArchitecture, ProjectorArchitecture
from affectgpt.models.modeling_affectgpt import MEDIA_KEYS
from affectgpt.models.processing_affectgpt import pad_states

LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}


@dataclass(frozen=True)
class Size:
    """Shapes of the models and of a sample.

    Attributes:
        prompt, answer: text tokens, the mean over samples.
        n_pictures: modality -> pictures per sample.
        n_windows, window_s: sound windows per sample, and their length.
    """

    llm: LlamaConfig
    encoders: dict[str, Any]
    projector: dict[str, int]
    prompt: int
    answer: int
    n_pictures: dict[str, int]
    n_windows: int
    window_s: float


SIZES = {
    "brief": Size(
        LlamaConfig(
            vocab_size=8000, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
            max_position_embeddings=1024,
        ),
        {
            "audio": HubertConfig(
                hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=1024,
                feat_extract_norm="layer", conv_bias=True, do_stable_layer_norm=True,
            ),
            "frames": Blip2VisionConfig(
                image_size=224, patch_size=14, hidden_size=384, num_hidden_layers=12, num_attention_heads=6,
                intermediate_size=1536,
            ),
        },
        {"n_queries": 32, "hidden_size": 256, "n_layers": 2, "n_heads": 4},
        prompt=142, answer=60, n_pictures={"frames": 8}, n_windows=8, window_s=2.0,
    ),
    "demo": Size(
        LlamaConfig(
            vocab_size=1200, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
            max_position_embeddings=1024, tie_word_embeddings=True,
        ),
        {
            "audio": HubertConfig(
                hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=384, conv_dim=(128, 128),
                conv_kernel=(400, 4), conv_stride=(160, 2), conv_bias=True, feat_extract_norm="layer",
                num_conv_pos_embeddings=31, num_conv_pos_embedding_groups=8, do_stable_layer_norm=True,
            ),
            "frames": Blip2VisionConfig(
                image_size=112, patch_size=16, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
                intermediate_size=384,
            ),
            "motion": VideoMAEConfig(
                image_size=56, patch_size=14, num_frames=16, tubelet_size=2, hidden_size=96, num_hidden_layers=2,
                num_attention_heads=4, intermediate_size=288,
            ),
        },
        {"n_queries": 8, "hidden_size": 128, "n_layers": 2, "n_heads": 4},
        prompt=90, answer=55, n_pictures={"frames": 8, "motion": 16}, n_windows=1, window_s=4.0,
    ),
}  # fmt: skip
# The same with as little work for the encoders as a clip could need: one window of sound, larger patches.
_COARSE = Blip2VisionConfig(**SIZES["brief"].encoders["frames"].to_dict() | {"patch_size": 16})
SIZES["brief-4s"] = replace(
    SIZES["brief"], encoders=SIZES["brief"].encoders | {"frames": _COARSE}, n_windows=1, window_s=4.0
)


def make_model(size: Size, *, dtype: torch.dtype, lora: bool) -> AffectGPTForConditionalGeneration:
    """The model with random weights, the same for every precision."""
    branches = {}
    for name, base in size.encoders.items():
        encoder = EncoderArchitecture(base=base.to_dict(), pool="tokens", grid=4 if name == "frames" else 0)
        projector = ProjectorArchitecture(kind="qformer", input_size=base.hidden_size, dropout=0.0, **size.projector)
        branches[name] = {"encoder": asdict(encoder), "projector": asdict(projector)}
    torch.manual_seed(0)
    model = AffectGPTForConditionalGeneration(
        AffectGPTConfig(
            text_config=size.llm,
            branches=branches,
            placeholder_token_ids={name: size.llm.vocab_size + i for i, name in enumerate(branches)},
            lora=LORA if lora else None,
        )
    )
    model.language_model.to(dtype)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.manual_seed(1)
            parameter.data = 0.02 * torch.randn(
                parameter.shape
            )  # LoRA is zero at first, and half its gradients with it
    return model.train()


def make_samples(size: Size, n: int, *, seed: int = 0) -> list[dict[str, Tensor]]:
    """Samples as the processor encodes them; texts are random tokens, 0.8 to 1.2 of the mean length."""
    rng = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(n):
        prompt, answer = (
            round(mean * (0.8 + 0.4 * float(torch.rand((), generator=rng)))) for mean in (size.prompt, size.answer)
        )
        words = torch.randint(3, size.llm.vocab_size, (prompt + answer,), generator=rng)
        slots = [torch.full((size.projector["n_queries"],), size.llm.vocab_size + i) for i in range(len(size.encoders))]
        ids = torch.cat([*slots, words])
        labels = ids.clone()
        labels[: len(ids) - answer] = -100
        sample = {"input_ids": ids, "labels": labels}
        window = round(16000 * size.window_s)
        sample["input_values"] = torch.randn(size.n_windows, window, generator=rng)
        sample["input_lengths"] = torch.full((size.n_windows,), window)
        for name, n_pictures in size.n_pictures.items():
            edge = size.encoders[name].image_size
            sample[MEDIA_KEYS[name]] = torch.randn(n_pictures, 3, edge, edge, generator=rng)
        samples.append(sample)
    return samples


def collate(samples: list[dict[str, Tensor]], *, packed: bool, cached: bool) -> dict[str, Tensor]:
    """A batch as `processor.collate` returns it."""
    batch: dict[str, Tensor] = {}
    if packed:
        batch["position_ids"] = torch.cat([torch.arange(len(row["input_ids"])) for row in samples])[None]
    else:
        masks = [torch.ones_like(row["input_ids"]) for row in samples]
        batch["attention_mask"] = nn.utils.rnn.pad_sequence(masks, batch_first=True)
    for key, padding in (("input_ids", 0), ("labels", -100)):
        values = [row[key] for row in samples]
        batch[key] = (
            torch.cat(values)[None]
            if packed
            else nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=padding)
        )
    for key in samples[0]:
        if key.endswith("_states") and cached:
            batch[key], batch[f"{key}_mask"] = pad_states([row[key] for row in samples])
        elif key not in ("input_ids", "labels") and not key.endswith("_states") and not cached:
            batch[key] = torch.stack([row[key] for row in samples])
    return batch


# ---------------------------------------------------------------- rows


@dataclass
class Row:
    """One line of the table.

    Attributes:
        loss: batch -> loss, the mean over its labels.
        times: seconds per sample, one for each turn.
    """

    name: str
    model: AffectGPTForConditionalGeneration
    batch_size: int
    packed: bool
    cached: bool
    loss: Callable[[AffectGPTForConditionalGeneration, dict[str, Tensor]], Tensor]
    times: list[float] = field(default_factory=list)
    flops: float = 0.0
    tokens: float = 0.0
    memory_mb: float = 0.0

    @property
    def is_bf16(self) -> bool:
        return self.model.get_input_embeddings().weight.dtype == torch.bfloat16

    def batch(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return collate(samples, packed=self.packed, cached=self.cached)


def padded_all_logits(model: AffectGPTForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch, logits_to_keep=0).loss


def packed_all_logits(model: AffectGPTForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    return _packed(model, batch, only_answers=False)


def packed_answer_logits(model: AffectGPTForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    return _packed(model, batch, only_answers=True)


def _packed(model: AffectGPTForConditionalGeneration, batch: dict[str, Tensor], *, only_answers: bool) -> Tensor:
    """The packed step with the loss by autograd, over all positions or those of answers."""
    embeds = model.embed(batch["input_ids"], batch)
    targets = functional.pad(batch["labels"], (0, 1), value=-100)[0, 1:]
    pack = one_pack(batch, targets)
    if not only_answers:
        pack = pack.with_all_queries()
    states = layers.final_states(model.language_model, embeds, batch["position_ids"], pack)
    at = pack.queries()
    if only_answers:
        states, at = states[targets[at] != -100], at[targets[at] != -100]
    logits = model.language_model.lm_head(states).float()
    return functional.cross_entropy(logits, targets[at], ignore_index=-100)


def one_pack(batch: dict[str, Tensor], targets: Tensor) -> Pack:
    """The complete row as one pack."""
    (pack,) = make_packs(*find_spans(batch["position_ids"], targets != -100), limit=len(targets))
    return pack


def fused(model: AffectGPTForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


def make_rows(size: Size, batch_size: int) -> list[Row]:
    fp32, lora = make_model(size, dtype=torch.float32, lora=False), make_model(size, dtype=torch.float32, lora=True)
    bf16, lora_bf16 = (make_model(size, dtype=torch.bfloat16, lora=wanted) for wanted in (False, True))
    for model in (fp32, lora, bf16, lora_bf16):
        model.token_budget = 4096
    n = batch_size
    return [
        Row("online, padded, fp32, batch 3", fp32, 3, False, False, padded_all_logits),
        Row("+ cached features", fp32, 3, False, True, padded_all_logits),
        Row(f"+ batch {n}", fp32, n, False, True, padded_all_logits),
        Row("+ packed", fp32, n, True, True, packed_all_logits),
        Row("+ only answers", fp32, n, True, True, packed_answer_logits),
        Row("+ loss in chunks", fp32, n, True, True, fused),
        Row("+ bf16 LLM", bf16, n, True, True, fused),
        Row("LoRA: online, padded, fp32, batch 3", lora, 3, False, False, padded_all_logits),
        Row("LoRA: all of the above, fp32", lora, n, True, True, fused),
        Row("LoRA: all of the above, bf16 LLM", lora_bf16, n, True, True, fused),
    ]


# ---------------------------------------------------------------- measuring


def counter() -> FlopCounterMode:
    """Counts operations of this thread; torch's own table lacks products that accumulate in place."""

    def added(into: Any, left: Any, right: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return 2 * math.prod(left) * right[-1]

    in_place = {torch.ops.aten.addmm_: added, torch.ops.aten.baddbmm_: added}
    return FlopCounterMode(display=False, custom_mapping=in_place)


def step(row: Row, samples: list[dict[str, Tensor]], optimizer: torch.optim.Optimizer) -> None:
    row.loss(row.model, row.batch(samples)).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def check_equal(rows: list[Row], samples: list[dict[str, Tensor]]) -> str:
    """Compare losses and gradients of every row on the same samples with those of the first row of its kind."""
    found: dict[bool, tuple[float, Tensor]] = {}
    worst = {False: (0.0, 0.0), True: (0.0, 0.0)}
    for row in rows:
        row.model.zero_grad()
        loss = row.loss(row.model, row.batch(samples[:3]))
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in row.model.parameters() if p.grad is not None])
        row.model.zero_grad()
        reference = found.setdefault(row.name.startswith("LoRA"), (loss.item(), gradient))
        off = (abs(loss.item() / reference[0] - 1), float((gradient - reference[1]).norm() / reference[1].norm()))
        allowed = (2e-3, 0.1) if row.is_bf16 else (1e-5, 1e-5)
        if off[0] > allowed[0] or off[1] > allowed[1]:
            raise SystemExit(f"{row.name}: loss off by {off[0]:.1e}, gradients by {off[1]:.1e}; allowed {allowed}")
        worst[row.is_bf16] = tuple(map(max, worst[row.is_bf16], off))  # type: ignore[assignment]
    return (
        f"equal to the first row: fp32 losses to {worst[False][0]:.0e}, gradients to {worst[False][1]:.0e}; "
        f"bf16 to {worst[True][0]:.0e} and {worst[True][1]:.0e}"
    )


def peaks(size: Size, n_tokens: int, clock: Callable[[], float]) -> dict[torch.dtype, tuple[float, float]]:
    """dtype -> (operations per second of the LLM's products, of a 2048^3 product), the best of several tries."""
    config, found = size.llm, {}
    d, wide = config.hidden_size, config.intermediate_size
    for dtype in (torch.float32, torch.bfloat16):
        x, x_wide = torch.randn(n_tokens, d, dtype=dtype), torch.randn(n_tokens, wide, dtype=dtype)
        square, up, down = (torch.randn(*shape, dtype=dtype) for shape in ((d, d), (wide, d), (d, wide)))

        def layer(x=x, x_wide=x_wide, square=square, up=up, down=down) -> None:
            """Forward and backward products of one layer: four square ones, two up, one down."""
            for _ in range(4):
                functional.linear(x, square)
                x @ square
            for _ in range(2):
                functional.linear(x, up)
                x_wide @ up
            functional.linear(x_wide, down)
            x @ down

        big = torch.randn(2048, 2048, dtype=dtype)
        flops = 4 * n_tokens * (4 * d * d + 3 * d * wide)
        found[dtype] = (flops / best(layer, clock), 2 * 2048**3 / best(lambda big=big: big @ big, clock))
    return found


def best(call: Callable[[], Any], clock: Callable[[], float], n: int = 7) -> float:
    times = []
    for _ in range(n):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)


def llm_share(
    row: Row, size: Size, samples: list[dict[str, Tensor]], clock: Callable[[], float]
) -> tuple[float, float]:
    """(operations that the packed LLM step needs, seconds that it takes), from input embeddings to their gradient.

    Counted are products with weights, forward and to the input (weights get no gradient), in the last layer only where
    its output is used, logits of answers, and causal attention; nothing twice.
    """
    batch, config, model = row.batch(samples), size.llm, row.model
    embeds = model.embed(batch["input_ids"], batch).detach()

    def run() -> None:
        packed_loss(
            model.language_model, embeds.requires_grad_(), batch["position_ids"], batch["labels"],
            token_budget=model.token_budget,
        ).backward()  # fmt: skip
        embeds.grad = None

    targets = functional.pad(batch["labels"], (0, 1), value=-100)[0, 1:]
    pack = one_pack(batch, targets)
    d, wide, n_layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    n_tokens, n_queries = sum(pack.lengths), sum(pack.n_queries)
    weights = (n_layers - 1) * n_tokens * (4 * d * d + 3 * d * wide)
    weights += n_tokens * 2 * d * d + n_queries * (2 * d * d + 3 * d * wide) + len(pack.answers) * d * config.vocab_size
    pairs = (n_layers - 1) * sum(n * (n + 1) / 2 for n in pack.lengths)
    pairs += sum(n * (n + 1) / 2 - f * (f + 1) / 2 for n, f in zip(pack.lengths, pack.firsts, strict=True))
    run()
    return 4 * weights + 12 * pairs * d, best(run, clock, 5)


def peak_memory_mb(call: Callable[[], None]) -> float:
    """By how much the memory of the process grows while `call` runs (Linux); 0 elsewhere."""
    if not os.path.exists("/proc/self/clear_refs"):
        return 0.0
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status_mb("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the high-water mark (man 5 proc)
    call()
    return _status_mb("VmHWM") - before


def _status_mb(key: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(key))


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except OSError:
        return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="brief")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    size = SIZES[options.size]
    began = time.perf_counter()

    rows = make_rows(size, options.batch_size)
    samples = make_samples(size, options.batch_size)
    for sample in samples:
        sample |= {f"{name}_states": states for name, states in rows[0].model.encode(sample).items()}
    tokens = statistics.mean(len(sample["input_ids"]) for sample in samples)
    print(
        f"size {options.size}: LLM {size.llm.num_hidden_layers} x {size.llm.hidden_size}, "
        f"{tokens:.0f} tokens per sample"
    )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{cpu_name()}, {os.cpu_count()} cores, {options.threads} threads, torch {torch.__version__}; "
        f"{options.clock} time; load average before {load}"
    )
    top = peaks(size, round(options.batch_size * tokens), clock)
    for dtype, (own, large) in top.items():
        name = str(dtype).removeprefix("torch.")
        print(f"{name:<8} peak: LLM's shapes {own / 1e9:.0f}, 2048^3 {large / 1e9:.0f} GFLOP/s")
    print(check_equal(rows, samples))

    # One optimizer per row, so that no momentum is shared; the learning rate is 0, so that rows stay comparable.
    optimizers = [torch.optim.AdamW([p for p in row.model.parameters() if p.requires_grad], lr=0.0) for row in rows]
    for row, optimizer in zip(rows, optimizers, strict=True):
        mine = samples[: row.batch_size]
        torch.set_num_threads(1)  # the counter does not see other threads
        with counter() as counted:
            step(row, mine, optimizer)
        torch.set_num_threads(options.threads)
        step(row, mine, optimizer)
        row.memory_mb = peak_memory_mb(lambda row=row, mine=mine, optimizer=optimizer: step(row, mine, optimizer))
        row.flops = counted.get_total_flops() / len(mine)
        row.tokens = sum(len(sample["input_ids"]) for sample in mine) / len(mine)
    for number in range(options.rounds):
        for row, optimizer in zip(rows, optimizers, strict=True):
            first = (number * row.batch_size) % (len(samples) - row.batch_size + 1)
            mine = samples[first : first + row.batch_size]
            start = clock()
            step(row, mine, optimizer)
            row.times.append((clock() - start) / len(mine))

    print()
    header = ("", "samples/s", "ratio", "tokens/s", "GFLOP/sample", "of peak", "memory MB")
    lines, reference = [header], 0.0
    figures: dict[str, Any] = {"rows": {}, "llm_share_of_peak": {}}
    for row in rows:
        seconds = statistics.median(row.times)
        if row.name.split(": ")[-1].startswith("online"):
            reference = seconds
        own = top[torch.bfloat16 if row.is_bf16 else torch.float32][0]
        share = "-" if not row.cached else f"{row.flops / seconds / own:.0%}"
        cells = (1 / seconds, reference / seconds, row.tokens / seconds, row.flops / 1e9)
        formats = ("{:.2f}", "{:.2f}", "{:.0f}", "{:.1f}")
        numbers = [layout.format(cell) for layout, cell in zip(formats, cells, strict=True)]
        lines.append((row.name, *numbers, share, f"{row.memory_mb:.0f}"))
        figures["rows"][row.name] = {
            "samples_s": 1 / seconds,
            "ratio": reference / seconds,
            "gflop": row.flops / 1e9,
            "share_of_peak": row.flops / seconds / own if row.cached else None,
            "memory_mb": row.memory_mb,
        }
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]))
    print()
    for name in ("+ loss in chunks", "+ bf16 LLM"):
        row = next(row for row in rows if row.name == name)
        flops, seconds = llm_share(row, size, samples, clock)
        own = top[torch.bfloat16 if row.is_bf16 else torch.float32][0]
        figures["llm_share_of_peak"]["bf16" if row.is_bf16 else "fp32"] = flops / seconds / own
        print(
            f"LLM alone, {'bf16' if row.is_bf16 else 'fp32'}: {flops / len(samples) / 1e9:.1f} GFLOP needed per "
            f"sample, {len(samples) / seconds:.2f} samples/s, {flops / seconds / own:.0%} of the peak at its shapes"
        )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"took {time.perf_counter() - began:.0f} s; load average after {load}")
    write_figures(options.json, figures)


def both_clocks(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a call: on the wall, and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def write_figures(path: Path | None, figures: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
