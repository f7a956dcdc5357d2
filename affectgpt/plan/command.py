"""Memory and speed of a training run before it is started: `python -m affectgpt.plan model=affectgpt`.

Parameters, FLOPs and saved bytes are counted on the real modules (`plan.costs`); memory and time are computed from them
and from the data sheet of a GPU. Times are bounds from arithmetic, memory traffic and links at a given share of the
peak; data loading, kernel launches and synchronisation are not included.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from affectgpt.runtime import UserError, quiet_libraries
from affectgpt.tables import format_table

if TYPE_CHECKING:
    from affectgpt.config import PlanConfig
    from affectgpt.engine import Kept
    from affectgpt.plan.costs import PartSize, SampleCost

log = logging.getLogger("affectgpt")

GIB = 1 << 30


@dataclass(frozen=True)
class GPU:
    """A GPU, from its vendor's data sheet.

    Attributes:
        memory_gib: as reported by the driver.
        bf16_tflops, fp32_tflops: dense peak, accumulating in fp32; fp32 without TF32, which torch does not use by
            default.
        bandwidth_gb_s: of its memory. link_gb_s: to another GPU, in one direction (NVLink, else PCIe).
    """

    name: str
    memory_gib: float
    bf16_tflops: float
    fp32_tflops: float
    bandwidth_gb_s: float
    link_gb_s: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("a100", 79.2, 312, 19.5, 2039, 300),  # SXM, 80 GB
        GPU("a100-40", 39.4, 312, 19.5, 1555, 300),  # SXM, 40 GB
        GPU("h100", 79.1, 989, 67, 3350, 450),  # SXM, 80 GB
        GPU("h200", 139.8, 989, 67, 4800, 450),  # SXM
        GPU("l40s", 44.4, 362, 91.6, 864, 32),  # PCIe 4.0 x 16
        GPU("a10", 22.2, 125, 31.2, 600, 32),
        GPU("rtx3090", 23.6, 71, 35.6, 936, 32),
        GPU("rtx4090", 23.5, 165, 82.6, 1008, 32),
        GPU("rtx5090", 31.4, 209.5, 104.8, 1792, 64),  # PCIe 5.0 x 16
    )
}
SHOWN = ("a100", "h100", "rtx4090")
HOST_GB_S = 25.0  # to and from CPU memory: PCIe 4.0 x 16 in typical copy benchmarks
CONTEXT_BYTES = GIB  # CUDA context and cuBLAS workspace
FRAGMENTED = 0.04  # share of GPU memory that the allocator cannot use

# Bytes per logit at the loss: bf16 from the LLM, its fp32 copy, and log-softmax or its gradient.
LOGIT_BYTES = {"bfloat16": 2 + 4 + 4, "float16": 2 + 4 + 4, "float32": 4 + 4}
ADAM_BYTES = 8  # two fp32 moments per trained parameter
QUANTIZED_BYTES = {
    "nf4": 4.127 / 8,
    "int8": 1.002,
}  # per weight, with its scales (QLoRA, 2023, section 3; one per row)


@dataclass(frozen=True)
class Setup:
    """The settings of a run that affect its cost.

    Attributes:
        batch_size: samples per GPU and step, before `accumulation`.
        checkpointing: share of the LLM's layers with gradient checkpointing.
        token_budget: packed tokens in the LLM at once; None = the complete batch.
        packed: true = no padding; false = every sample is padded to `padding` times the mean length.
        answer_logits: true = logits only at positions with labels; false = at all positions.
        loss_chunk: number of positions whose logits exist at once; None = all.
        online: true = encoders run in every step; false = states are read from the cache.
        quantization: None, "nf4" or "int8" weights in the LLM's linear layers.
        share: fraction of the GPU's peak that matrix products reach.
    """

    strategy: str = "single"
    n_gpus: int = 1
    batch_size: int = 3
    accumulation: int = 1
    offload_optimizer: bool = False
    offload_parameters: bool = False
    checkpointing: float = 0.0
    token_budget: int | None = None
    packed: bool = True
    padding: float = 1.15
    answer_logits: bool = True
    loss_chunk: int | None = None
    online: bool = False
    quantization: str | None = None
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.strategy not in ("single", "ddp", "zero2", "zero3"):
            raise UserError(f"strategy is {self.strategy!r}; expected single, ddp, zero2 or zero3")
        if self.strategy == "single" and self.n_gpus != 1:
            raise UserError(f"strategy=single uses one GPU, n_gpus is {self.n_gpus}; add strategy=ddp or zero2")
        if not 0 < self.share <= 1:
            raise UserError(f"share is {self.share}; expected a fraction above 0 and up to 1")

    @property
    def n_passes(self) -> float:
        """Passes over the LLM's weights per step: forward, recomputation, and backward to the inputs."""
        return 2 + self.checkpointing

    def tokens(self, cost: SampleCost) -> float:
        """Positions per sample in the LLM."""
        return cost.tokens * (1.0 if self.packed else self.padding)

    def head_positions(self, cost: SampleCost) -> float:
        return cost.head_positions if self.answer_logits else self.tokens(cost)


# ---------------------------------------------------------------- memory


def memory(parts: Sequence[PartSize], n_linear: int, cost: SampleCost, setup: Setup) -> dict[str, float]:
    """Peak memory of a step on one GPU in bytes, by purpose.

    Args:
        n_linear: number of weights that quantization affects.
    """
    n = setup.n_gpus
    trained, masters = (sum(getattr(part, key) for part in parts) for key in ("trainable", "trainable_16bit"))
    training = trained_encoders(cost)
    weights = {"LLM weights": 0.0, "projector and LoRA weights": 0.0}
    encoders = 0.0  # removed from the GPU once states are cached; not sharded by any strategy
    for part in parts:
        kind, *names = part.name.split(".")
        if kind == "encoders":
            encoders += part.bytes if setup.online or names[0] in training else 0.0
        else:
            weights["LLM weights" if kind == "language_model" else "projector and LoRA weights"] += part.bytes
    if setup.quantization:
        width = _bytes_of(cost.llm_dtype)
        weights["LLM weights"] -= n_linear * (width - QUANTIZED_BYTES[setup.quantization])
    if setup.strategy == "zero3":
        layer = weights["LLM weights"] / cost.n_layers
        split = 0.0 if setup.offload_parameters else 1 / n
        weights = {kind: size * split for kind, size in weights.items()}
        weights["gathered layers"] = 2 * layer  # the current layer and the prefetched next one
    sharded = setup.strategy in ("zero2", "zero3")
    gradients = 4.0 * trained  # of 16-bit weights, while the optimizer steps
    if setup.accumulation > 1 and at_once(cost, setup) < setup.batch_size:
        # Those of a batch are summed pack by pack before they are added to those of the batches before it.
        gradients += 4.0 * sum(part.trainable - part.trainable_16bit for part in parts if part.name == "language_model")
    buffers = 0.0 if setup.strategy == "single" else 4.0 * trained  # gradients are averaged in flat buckets
    return {
        **weights,
        "encoder weights": encoders,
        "gradients": gradients / (n if sharded else 1),
        "optimizer state": 0.0
        if setup.offload_optimizer
        # DeepSpeed updates a flat fp32 copy of its shard of the trained weights.
        # Elsewhere weights in 16 bits have fp32 masters.
        else (ADAM_BYTES + 4) * trained / n
        if sharded
        else ADAM_BYTES * trained + 4 * masters,
        "gradient buckets": buffers,
        "LLM activations": at_once(cost, setup) * activation_bytes(cost, setup),
        "encoder activations": setup.batch_size * sum(each.kept_bytes for each in cost.encoders.values()),
        "projector activations": setup.batch_size * sum(part.kept_bytes for part in cost.projectors.values()),
        "logits": logit_bytes(cost, setup),
        "CUDA context": float(CONTEXT_BYTES),
    }


def trained_encoders(cost: SampleCost) -> tuple[str, ...]:
    """Modalities whose encoder trains; it then runs in every step, and its states are not cached."""
    return tuple(name for name, encoder in cost.encoders.items() if encoder.trains)


def at_once(cost: SampleCost, setup: Setup) -> float:
    """Number of samples whose activations exist at once: the batch, or as many as fit the token budget."""
    if setup.token_budget is None:
        return setup.batch_size
    return min(float(setup.batch_size), max(1.0, setup.token_budget / setup.tokens(cost)))


def activation_bytes(cost: SampleCost, setup: Setup) -> float:
    """Bytes that the LLM saves for one sample until its backward pass.

    With gradient checkpointing each block saves its input, and one block at a time is recomputed.
    """
    return setup.tokens(cost) * kept_of(cost).of(round(setup.checkpointing * cost.n_layers))


def kept_of(cost: SampleCost) -> Kept:
    """What the LLM saves per token."""
    from affectgpt.engine import Kept

    return Kept(cost.n_layers, cost.llm_bytes_per_token / cost.n_layers, cost.hidden_bytes)


def logit_bytes(cost: SampleCost, setup: Setup) -> float:
    positions = at_once(cost, setup) * setup.head_positions(cost)
    if setup.loss_chunk is not None:
        positions = min(positions, setup.loss_chunk)
    return positions * cost.vocab_size * LOGIT_BYTES[cost.llm_dtype]


def largest_batch(parts: Sequence[PartSize], n_linear: int, cost: SampleCost, setup: Setup, gpu: GPU) -> int:
    """The largest batch per step that fits the GPU; 0 = not even one sample."""
    available = gpu.memory_gib * GIB * (1 - FRAGMENTED)
    with_one, with_two = (sum(memory(parts, n_linear, cost, replace(setup, batch_size=b)).values()) for b in (1, 2))
    if with_one > available:
        return 0
    n = 1 + int((available - with_one) / (with_two - with_one))
    while sum(memory(parts, n_linear, cost, replace(setup, batch_size=n + 1)).values()) <= available:
        n += max(1, n // 64)  # a chunked loss stops growing at its chunk size
    while sum(memory(parts, n_linear, cost, replace(setup, batch_size=n)).values()) > available:
        n -= 1
    return n


def _bytes_of(dtype: str) -> int:
    return {"float32": 4, "bfloat16": 2, "float16": 2}[dtype]


# ---------------------------------------------------------------- time


def sample_flops(cost: SampleCost, setup: Setup) -> dict[str, dict[str, float]]:
    """FLOPs of one sample, part -> dtype -> count.

    Frozen weights get no gradient, so the LLM's backward pass takes one product per weight instead of two: 2 passes in
    total instead of the 3 of full training.
    """
    head, head_backward = cost.head_flops, cost.head_backward_flops
    longer = setup.tokens(cost) / cost.tokens  # attention grows faster, but is less than 2 % of the total
    forward = (cost.llm.forward - head * cost.head_positions) * longer
    backward = (cost.llm.backward - head_backward * cost.head_positions) * longer
    flops: dict[str, dict[str, float]] = {
        "LLM": {cost.llm_dtype: forward * (setup.n_passes - 1) + backward},
        "logits": {cost.llm_dtype: (head + head_backward) * setup.head_positions(cost)},
        "projectors": {"float32": float(sum(part.forward + part.backward for part in cost.projectors.values()))},
    }
    running = [encoder for encoder in cost.encoders.values() if setup.online or encoder.trains]
    if running:
        flops["encoders"] = {}
    for encoder in running:
        both = encoder.flops + encoder.backward
        flops["encoders"][encoder.dtype] = flops["encoders"].get(encoder.dtype, 0.0) + both
    return flops


def total_flops(cost: SampleCost, setup: Setup) -> float:
    return sum(sum(by_dtype.values()) for by_dtype in sample_flops(cost, setup).values())


@dataclass(frozen=True)
class Step:
    """Time of one step on one GPU under each of three limits; the step takes the longest."""

    matmul_s: float
    memory_s: float
    link_s: float

    @property
    def seconds(self) -> float:
        return max(self.matmul_s, self.memory_s, self.link_s)

    @property
    def limit(self) -> str:
        named = {"matmul": self.matmul_s, "memory": self.memory_s, "link": self.link_s}
        return max(named, key=lambda name: named[name])


def step_time(parts: Sequence[PartSize], n_linear: int, cost: SampleCost, setup: Setup, gpu: GPU) -> Step:
    """Time bounds of one step with `setup.batch_size` samples per GPU."""
    matmul_s = 0.0
    for by_dtype in sample_flops(cost, setup).values():
        for dtype, count in by_dtype.items():
            peak = gpu.fp32_tflops if dtype == "float32" else gpu.bf16_tflops
            matmul_s += setup.batch_size * count / (peak * 1e12 * setup.share)
    held = memory(parts, n_linear, cost, replace(setup, strategy="single", n_gpus=1, offload_parameters=False))
    trained = sum(part.trainable for part in parts)
    weights = held["LLM weights"]
    n_chunks = setup.batch_size / at_once(cost, setup)  # each chunk of the batch reads the weights again
    moved = (
        weights * setup.n_passes * n_chunks
        + 2 * n_chunks * (held["LLM activations"] + held["logits"])  # written, then read
        + 2 * held["projector activations"]
        + 28 * trained  # AdamW reads weight, gradient and two moments, and writes three of them
    )
    others = (setup.n_gpus - 1) / setup.n_gpus
    shared = 2 * 4 * trained * others if setup.strategy != "single" else 0.0  # a ring sends each gradient twice
    if setup.strategy == "zero3":
        shared += weights * setup.n_passes * others
    link_s = shared / (gpu.link_gb_s * 1e9)
    if setup.offload_optimizer:
        link_s += 8 * trained / (HOST_GB_S * 1e9)  # gradients out, weights back
    if setup.offload_parameters:
        link_s += weights * setup.n_passes / setup.n_gpus / (HOST_GB_S * 1e9)
    return Step(matmul_s, moved / (gpu.bandwidth_gb_s * 1e9), link_s)


# ---------------------------------------------------------------- the plan


def make_plan(config: PlanConfig) -> dict[str, Any]:
    """The plan as JSON-like values."""
    from affectgpt.models import build_hollow, model_spec
    from affectgpt.models.backend import require_engine

    require_engine("python -m affectgpt.plan")  # whose training step is counted
    from affectgpt.plan.costs import count_sample, linear_weights, parameters
    from affectgpt.training.distributed import check_trained
    from affectgpt.training.memory import check_activation_gb, layers_to_checkpoint

    check_activation_gb(config.stage, config.strategy.name)
    gpus = [GPUS[name] for name in SHOWN] if config.gpu is None else [_gpu(config.gpu)]
    setup = setup_of(config)
    quiet_libraries()
    spec = model_spec(config.model, seed=0)  # the seed changes no count
    model = build_hollow(spec)
    model.set_trainable(config.stage.trainable)
    parts, n_linear = parameters(model), linear_weights(model)
    check_trained(config.strategy, model.training_encoders(), sum(part.trainable_16bit for part in parts))
    cost = count_sample(
        model, spec, sound_s=config.sound_s, text_tokens=config.text_tokens, answer_tokens=config.answer_tokens
    )
    stage = config.stage
    if stage.activation_gb not in (None, "auto"):
        tokens = round(at_once(cost, setup) * setup.tokens(cost))
        n = layers_to_checkpoint(kept_of(cost), tokens, 1e9 * stage.activation_gb)
        setup = replace(setup, checkpointing=n / cost.n_layers)
    samples = stage.epochs * stage.iterations_per_epoch * setup.batch_size * setup.accumulation * setup.n_gpus
    rows = []
    for gpu in gpus:
        fits = {
            name: largest_batch(
                parts, n_linear, cost, replace(setup, checkpointing=checkpointing, token_budget=None), gpu
            )
            for name, checkpointing in (("plain", 0.0), ("checkpointing", 1.0))
        }
        step = step_time(parts, n_linear, cost, setup, gpu)
        rate = setup.batch_size / step.seconds
        needed = sum(memory(parts, n_linear, cost, setup).values())
        rows.append(
            {
                **dataclasses.asdict(gpu),
                "largest_batch": fits,
                "largest_tokens": {name: int(n * setup.tokens(cost)) for name, n in fits.items()},
                "fits": needed <= gpu.memory_gib * GIB * (1 - FRAGMENTED),
                "matmul_limit_samples_s": gpu.bf16_tflops * 1e12 / total_flops(cost, setup),
                "samples_s": rate * setup.n_gpus,
                "limited_by": step.limit,
                "stage_hours": samples / (rate * setup.n_gpus) / 3600,
                "pass_hours": config.n_clips / (rate * setup.n_gpus) / 3600,
            }
        )
    published = replace(setup, online=True, packed=False, answer_logits=False, checkpointing=0.0, token_budget=None)
    return {
        "model": config.model.name,
        "stage": stage.name,
        "setup": dataclasses.asdict(setup),
        "parts": [dataclasses.asdict(part) for part in parts],
        "sample": {
            **dataclasses.asdict(cost),
            "tokens": cost.tokens,
            "sound_s": config.sound_s,
            "flops": sample_flops(cost, setup),
            "flops_total": total_flops(cost, setup),
            "flops_online_padded_all_logits": total_flops(cost, published),
        },
        "memory": {
            name: memory(parts, n_linear, cost, replace(setup, checkpointing=checkpointing))
            for name, checkpointing in (("plain", 0.0), ("checkpointing", 1.0))
        },
        "stage_samples": samples,
        "n_clips": config.n_clips,
        "cache_bytes": {}
        if config.model.omni
        else {name: encoder.bytes for name, encoder in cost.encoders.items() if not encoder.trains},
        "cards": rows,
    }


def setup_of(config: PlanConfig) -> Setup:
    """The settings of a run that affect its cost."""
    stage, strategy = config.stage, config.strategy
    return Setup(
        strategy=strategy.name,
        n_gpus=config.n_gpus or strategy.num_processes or (1 if strategy.name == "single" else 8),
        batch_size=stage.batch_size,
        accumulation=stage.accumulation,
        offload_optimizer=strategy.offload_optimizer,
        offload_parameters=strategy.offload_parameters,
        checkpointing=float(stage.gradient_checkpointing),
        packed=stage.packing,
        token_budget=stage.token_budget if stage.packing and strategy.name != "zero3" else None,
        padding=config.padding,
        online=config.online or config.model.omni is not None,  # whose states are not cached
        quantization=config.model.llm.quantization,
        share=config.share,
    )


def _gpu(name: str) -> GPU:
    if name not in GPUS:
        raise UserError(f"gpu is {name!r}; expected one of {', '.join(GPUS)}")
    return GPUS[name]


def run_plan(config: PlanConfig) -> int:
    """Print the plan."""
    plan = make_plan(config)
    print(json.dumps(plan, indent=1) if config.json else text_of(plan))
    first = "python -m affectgpt.cache, then " if plan["cache_bytes"] else ""
    log.info("next: %spython train.py, with the same settings", first)
    return 0


# ---------------------------------------------------------------- text


def text_of(plan: Mapping[str, Any]) -> str:
    """The plan as text of at most 100 columns."""
    blocks = [_head(plan), _parameter_table(plan), _operations(plan), _memory_table(plan), _gpu_table(plan)]
    return "\n\n".join([*blocks, _cache(plan)])


def _head(plan: Mapping[str, Any]) -> str:
    setup, sample = plan["setup"], plan["sample"]
    n = setup["n_gpus"]
    training = [name for name, encoder in sample["encoders"].items() if encoder["trains"]]
    soft = " + ".join(f"{count} {name}" for name, count in sample["soft_tokens"].items())
    return "\n".join(
        [
            f"model {plan['model']}, stage {plan['stage']}, strategy {setup['strategy']} on {n} GPU{'s' * (n > 1)}",
            "encoders " + ("in every step" if setup["online"] else "read from the cache")
            + (f", in every step of {', '.join(training)}, which trains" if training and not setup["online"] else "")
            + (", packed samples" if setup["packed"] else f", samples padded to {setup['padding']:g} x the mean length")
            + (f", {setup['quantization']} LLM" if setup["quantization"] else "")
            + (f", {setup['checkpointing']:.0%} of its layers checkpointed" if setup["checkpointing"] else ""),
            f"per sample: {sample['tokens']} tokens = {soft} + {sample['text_tokens']} text, "
            f"{sample['head_positions']} of them in the answer; {sample['sound_s']:g} s of audio",
        ]
    )  # fmt: skip


def _parameter_table(plan: Mapping[str, Any]) -> str:
    rows = [("parameters", "all", "trainable", "dtype", "GiB")]
    for part in plan["parts"]:
        counts = [f"{part[key]:,}" for key in ("parameters", "trainable")]
        rows.append((part["name"], *counts, part["dtype"], f"{part['bytes'] / GIB:.2f}"))
    totals = [sum(part[key] for part in plan["parts"]) for key in ("parameters", "trainable", "bytes")]
    rows.append(("all", f"{totals[0]:,}", f"{totals[1]:,}", "", f"{totals[2] / GIB:.2f}"))
    return format_table(rows)


def _operations(plan: Mapping[str, Any]) -> str:
    sample = plan["sample"]
    rows = [("FLOPs per sample", "TFLOP", "share")]
    for name, by_dtype in sample["flops"].items():
        count = sum(by_dtype.values())
        rows.append((f"{name} ({', '.join(by_dtype)})", f"{count / 1e12:.2f}", f"{count / sample['flops_total']:.0%}"))
    rows.append(("all", f"{sample['flops_total'] / 1e12:.2f}", ""))
    published = f"{sample['flops_online_padded_all_logits'] / 1e12:.2f}"
    rows.append(("with encoders in every step, padding, all logits", published, ""))
    return format_table(rows)


def _memory_table(plan: Mapping[str, Any]) -> str:
    plain, checkpointing = plan["memory"]["plain"], plan["memory"]["checkpointing"]
    title = f"memory per GPU, {plan['setup']['batch_size']} samples (GiB)"
    rows = [(title, "plain", "gradient checkpointing")]
    for kind, size in plain.items():
        if size or checkpointing[kind]:
            rows.append((kind, f"{size / GIB:.2f}", f"{checkpointing[kind] / GIB:.2f}"))
    rows.append(("all", *(f"{sum(kinds.values()) / GIB:.2f}" for kinds in (plain, checkpointing))))
    return format_table(rows)


def _gpu_table(plan: Mapping[str, Any]) -> str:
    setup = plan["setup"]
    rows = [
        ("GPU", "GiB", "largest", "with ckpt.", "max. tokens", "samples/s", "limit", "by", "stage h", "pass h"),
        ("", "", "batch", "batch", "per step", f"x {setup['n_gpus']}", "x 1", "", "", ""),
    ]
    for gpu in plan["cards"]:
        rate = [f"{gpu['samples_s']:.1f}", f"{gpu['matmul_limit_samples_s']:.1f}", gpu["limited_by"]]
        hours = [f"{gpu['stage_hours']:.1f}", f"{gpu['pass_hours']:.2f}"]
        if not gpu["fits"]:
            rate, hours = ["-", f"{gpu['matmul_limit_samples_s']:.1f}", "no room"], ["-", "-"]
        rows.append(
            (
                gpu["name"],
                f"{gpu['memory_gib']:g}",
                str(gpu["largest_batch"]["plain"]),
                str(gpu["largest_batch"]["checkpointing"]),
                f"{max(gpu['largest_tokens'].values()):,}",
                *rate,
                *hours,
            )
        )
    return (
        f"{format_table(rows)}\n"
        f"samples/s at {setup['share']:.0%} of the peak with stage.batch_size={setup['batch_size']}; "
        "limit: at the full bf16 peak\n"
        f"stage h: {plan['stage_samples']:,} samples; pass h: one pass over {plan['n_clips']:,} clips"
    )


def _cache(plan: Mapping[str, Any]) -> str:
    if not (sizes := plan["cache_bytes"]):
        return "no states are cached: python -m affectgpt.cache has nothing to do"
    total = sum(sizes.values())
    each = ", ".join(f"{name} {size / 1e6:.2f}" for name, size in sizes.items())
    return f"cached states per clip: {each} MB; for {plan['n_clips']:,} clips {total * plan['n_clips'] / 1e9:,.0f} GB"
