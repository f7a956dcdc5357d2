import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from affectgpt import config as conf
from affectgpt.cli import compose
from affectgpt.engine import kept_tensors
from affectgpt.models import model_spec
from affectgpt.models.assemble import build_hollow
from affectgpt.plan.command import (
    GIB,
    GPUS,
    Setup,
    activation_bytes,
    largest_batch,
    make_plan,
    memory,
    run_plan,
    sample_flops,
    step_time,
    text_of,
    total_flops,
)
from affectgpt.plan.costs import _llm_bytes_per_token, _llm_flops, count_sample, linear_weights, parameters
from affectgpt.runtime import UserError

ROOT = Path(__file__).parents[2]
D, F, N, H, V = 64, 160, 3, 4, 100  # width, feed-forward width, blocks, heads, vocabulary
LLAMA = LlamaConfig(
    hidden_size=D, intermediate_size=F, num_hidden_layers=N, num_attention_heads=H, num_key_value_heads=H, vocab_size=V
)


@pytest.fixture(scope="module")
def published():
    """(parts, linear weights, cost) of `affectgpt` at full size with all tokens: 8 frames, 4 s of sound, 266 tokens."""
    all_tokens = ("audio.stride=1", "frames.pool=tokens", "motion.grid=0")
    config = compose("plan", ["model=affectgpt", *(f"model.encoders.{setting}" for setting in all_tokens)])
    spec = model_spec(config.model, 42)
    model = build_hollow(spec)
    cost = count_sample(model, spec, sound_s=4.0, text_tokens=170, answer_tokens=100)
    return parameters(model), linear_weights(model), cost


# ---------------------------------------------------------------- counting


@pytest.mark.parametrize("n_tokens", [7, 50])
def test_operations_counted_on_the_meta_device_equal_the_closed_formula(n_tokens):
    with torch.device("meta"):
        llm = LlamaForCausalLM(LLAMA).requires_grad_(False)
    weights = N * (4 * D * D + 3 * D * F)
    attention = N * 2 * 2 * n_tokens**2 * D  # scores and weighted sum
    forward, backward = _llm_flops(llm, n_tokens, head_positions=5)
    assert forward == 2 * weights * n_tokens + attention + 2 * 5 * D * V
    # Frozen: one product a weight, to the inputs. Attention has two gradients for each of its two products.
    assert backward == 2 * weights * n_tokens + 2 * attention + 2 * 5 * D * V


def test_a_trained_weight_costs_a_third_pass():
    with torch.device("meta"):
        llm = LlamaForCausalLM(LLAMA).requires_grad_(False)
    _, frozen = _llm_flops(llm, 50, head_positions=1)
    llm.model.layers[1].mlp.up_proj.weight.requires_grad_(True)
    assert _llm_flops(llm, 50, head_positions=1)[1] - frozen == 2 * 50 * D * F


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "tied", "qwen3"])
def test_bytes_counted_without_memory_equal_those_that_a_real_forward_pass_keeps(kind, dtype):
    if kind in ("llama", "tied"):
        make, config = LlamaForCausalLM, LlamaConfig(**{**LLAMA.to_dict(), "tie_word_embeddings": kind == "tied"})
    else:
        shape = LLAMA.to_dict()
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        make, config = (
            Qwen3ForCausalLM,
            Qwen3Config(**{name: shape[name] for name in names}, num_key_value_heads=2, head_dim=16),
        )
    with torch.device("meta"):
        hollow = make(config).to(dtype).requires_grad_(False)
    n_tokens = 96
    counted = _llm_bytes_per_token(hollow, n_tokens)
    llm = make(config).to(dtype).requires_grad_(False).train()
    embeds = torch.randn(1, n_tokens, D, dtype=dtype, requires_grad=True)
    with kept_tensors(llm.parameters()) as kept:
        llm(inputs_embeds=embeds, use_cache=False, logits_to_keep=1)
    assert counted == sum(kept.values()) // n_tokens


def test_the_bytes_of_a_llama_token_are_the_sum_over_its_blocks():
    with torch.device("meta"):
        llm = LlamaForCausalLM(LLAMA).to(torch.bfloat16).requires_grad_(False)
    norms = 2 * 4 * D  # each norm keeps its input in fp32
    attention = 4 * 2 * D + 4 * H  # queries, keys, values, output; the log of each row's sum in fp32
    feed_forward = 3 * 2 * F  # gate, its activation, up
    per_block = norms + attention + feed_forward
    rotations = 2 * 2 * D // H  # once for all blocks
    scales = 4 * (2 * N + 1)  # one number a norm
    # The last norm stands outside the blocks.
    assert _llm_bytes_per_token(llm) == pytest.approx(N * per_block + 4 * D + rotations + scales, abs=2)


# ---------------------------------------------------------------- the published size


def test_the_published_size_costs_what_arithmetic_says(published):
    parts, _, cost = published
    assert cost.tokens == 266
    assert {name: encoder.states for name, encoder in cost.encoders.items()} == {
        "audio": (199, 1024),
        "frames": (8 * 257, 1408),
        "motion": (8 * 196, 1024),
    }
    cached = total_flops(cost, Setup())
    blocks = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert cached == pytest.approx(2 * 2 * blocks * 266, rel=0.04)  # + attention, answer logits, projectors
    assert cached == pytest.approx(6.6e12, rel=0.09)
    for padding in (1.0, 1.15):
        everything = total_flops(cost, Setup(online=True, packed=False, padding=padding, answer_logits=False))
        assert 11.9e12 < everything < 14.3e12
    assert GPUS["a100"].bf16_tflops * 1e12 / cached == pytest.approx(47, rel=0.08)
    assert GPUS["h100"].bf16_tflops * 1e12 / cached == pytest.approx(150, rel=0.08)
    assert sum(part.parameters for part in parts) == pytest.approx(8.41e9, rel=0.001)


def test_a_7b_keeps_three_megabytes_a_token_and_one_more_for_its_norms(published):
    cost = published[2]
    norms = 2 * 32 * 4 * 4096 + 4 * 4096
    assert cost.llm_bytes_per_token - norms == pytest.approx(3.16e6, rel=0.01)
    assert cost.llm_bytes_per_token == pytest.approx(4.24e6, rel=0.01)


def test_the_cache_of_all_tokens_takes_more_than_a_terabyte(published):
    sizes = {name: encoder.bytes / 1e6 for name, encoder in published[2].encoders.items()}
    assert sizes == pytest.approx({"audio": 0.41, "frames": 5.79, "motion": 3.21}, abs=0.01)
    assert sum(sizes.values()) * 115595 > 1e6


def test_a_7b_trains_on_24_gb(published):
    assert largest_batch(*published, Setup(), GPUS["rtx4090"]) >= 1
    assert largest_batch(*published, Setup(quantization="nf4"), GPUS["rtx4090"]) > largest_batch(
        *published, Setup(), GPUS["rtx4090"]
    )


# ---------------------------------------------------------------- memory


def test_strategies_split_what_they_are_made_to_split(published):
    ddp, zero2, zero3 = (
        memory(*published, Setup(strategy=name, n_gpus=8)) for name in ("ddp", "zero2", "zero3")
    )  # fmt: skip
    assert zero2["gradients"] == ddp["gradients"] / 8
    assert zero2["optimizer state"] < ddp["optimizer state"] / 4
    assert zero2["LLM weights"] == ddp["LLM weights"]
    assert zero3["LLM weights"] == ddp["LLM weights"] / 8
    assert zero3["gathered layers"] == pytest.approx(2 * ddp["LLM weights"] / 32)
    offloaded = memory(*published, Setup(strategy="zero3", n_gpus=8, offload_optimizer=True, offload_parameters=True))
    assert offloaded["optimizer state"] == offloaded["LLM weights"] == 0


def test_nf4_weights_take_about_a_quarter_of_bf16(published):
    whole, packed = (memory(*published, Setup(quantization=kind))["LLM weights"] for kind in (None, "nf4"))
    embeddings = 2 * 32000 * 4096 * 2
    assert packed - embeddings == pytest.approx((whole - embeddings) * 4.127 / 16, rel=0.001)


def test_checkpointing_keeps_inputs_of_blocks_and_pays_with_a_forward_pass(published):
    cost = published[2]
    assert activation_bytes(cost, Setup(checkpointing=True)) == pytest.approx(
        266 * (32 * 2 * 4096 + cost.llm_bytes_per_token / 32)
    )
    # Of half of the layers: half of the pass, and the other half keeps what it kept.
    half = activation_bytes(cost, Setup(checkpointing=0.5))
    assert half == pytest.approx(
        (activation_bytes(cost, Setup()) + cost.tokens * cost.n_layers * cost.hidden_bytes) / 2
    )
    assert Setup(checkpointing=0.5).n_passes == 2.5
    plain, again = (sample_flops(cost, Setup(checkpointing=c))["LLM"]["bfloat16"] for c in (False, True))
    assert again / plain == pytest.approx(1.5, rel=0.01)


def test_a_token_budget_bounds_what_is_kept_and_reads_the_weights_once_a_turn(published):
    cost = published[2]
    whole = Setup(batch_size=32)
    turns = replace(whole, token_budget=2 * cost.tokens)
    kept = [memory(*published, setup)["LLM activations"] for setup in (whole, turns)]
    assert kept[1] == pytest.approx(kept[0] / 16)
    slow = [step_time(*published, setup, GPUS["a100"]).memory_s for setup in (whole, turns)]
    assert slow[1] - slow[0] > 15 * 2 * 13e9 / 2039e9 * 0.9


def test_the_largest_batch_fits_and_one_more_does_not(published):
    for setup in (Setup(), Setup(checkpointing=True, loss_chunk=2048), Setup(answer_logits=False)):
        for gpu in GPUS.values():
            n = largest_batch(*published, setup, gpu)
            room = gpu.memory_gib * GIB * 0.96
            if n:
                assert sum(memory(*published, replace(setup, batch_size=n)).values()) <= room
            assert sum(memory(*published, replace(setup, batch_size=n + 1)).values()) > room


def test_gathering_a_frozen_llm_over_pcie_limits_the_step(published):
    setup = Setup(strategy="zero3", n_gpus=8)
    assert step_time(*published, setup, GPUS["rtx4090"]).limit == "link"
    assert step_time(*published, replace(setup, strategy="zero2"), GPUS["rtx4090"]).limit == "matmul"


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def small_plan(base_models):
    projector = conf.ProjectorConfig(n_queries=3, hidden_size=16, n_layers=2, n_heads=2)
    model = conf.ModelConfig(
        name="tiny",
        llm=conf.LLMConfig(path=str(base_models["llm"])),
        encoders={"frames": conf.EncoderConfig(path=str(base_models["frames"]))},
        projectors={"frames": projector},
    )
    stage = conf.StageConfig(name="coarse", epochs=2, iterations_per_epoch=5, batch_size=3)
    return conf.PlanConfig(stage=stage, model=model, gpu="rtx4090", text_tokens=20, answer_tokens=10)


def test_local_folders_are_planned_from_their_own_configuration(small_plan):
    plan = make_plan(small_plan)
    assert plan["sample"]["tokens"] == 23
    assert plan["stage_samples"] == 30
    assert [gpu["name"] for gpu in plan["cards"]] == ["rtx4090"]
    assert plan["cards"][0]["fits"]
    json.dumps(plan)


def test_the_text_fits_100_columns_and_names_every_part(small_plan):
    text = text_of(
        make_plan(replace(small_plan, gpu=None, online=True, stage=replace(small_plan.stage, packing=False)))
    )
    assert max(map(len, text.splitlines())) <= 100
    for word in ("projectors.frames", "LLM activations", "a100", "h100", "rtx4090", "cached states", "23 tokens"):
        assert word in text


def test_an_unknown_card_and_a_wrong_number_of_cards_are_named(small_plan):
    with pytest.raises(UserError, match="'tpu'; expected one of a100"):
        make_plan(replace(small_plan, gpu="tpu"))
    with pytest.raises(UserError, match="strategy=single uses one GPU, n_gpus is 8; add strategy=ddp"):
        make_plan(replace(small_plan, n_gpus=8))


def test_the_next_step_is_the_cache_only_if_states_are_cached(small_plan, capsys, caplog):
    caplog.set_level("INFO", "affectgpt")
    assert run_plan(small_plan) == 0
    assert "next: python -m affectgpt.cache, then python train.py" in caplog.text
    caplog.clear()
    trained = replace(small_plan, stage=replace(small_plan.stage, trainable=["projectors", "encoders.frames"]))
    assert run_plan(trained) == 0
    assert "next: python train.py, with the same settings" in caplog.text
    assert "nothing to do" in capsys.readouterr().out


def test_help_answers_without_torch():
    command = [sys.executable, "-X", "importtime", "-m", "affectgpt.plan", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "stage.batch_size" in shown.stdout
    assert "torch" not in {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}


def test_the_gpu_benchmark_runs_as_a_toy_and_says_when_there_is_no_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    main = runpy.run_path(str(ROOT / "benchmarks" / "train_gpu.py"))["main"]
    assert main(["model=tiny", "n_steps=1", "batch_size=2", "text_tokens=12", "answer_tokens=6"]) == 0
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert rows[-4:] == [["online", "padded"], ["online", "packed"], ["cached", "padded"], ["cached", "packed"]]
    assert main(["model=affectgpt"]) == 1
    assert "no GPU; use a machine with one" in capsys.readouterr().out


def test_a_limit_of_activations_checkpoints_as_few_layers_as_it_asks_for(small_plan):
    plain = make_plan(small_plan)
    whole, least = (plain["memory"][name]["LLM activations"] for name in ("plain", "checkpointing"))
    assert least < whole
    loose, tight = (
        make_plan(replace(small_plan, stage=replace(small_plan.stage, activation_gb=limit / 1e9)))
        for limit in (1.01 * whole, 0.99 * whole)
    )
    assert loose["setup"]["checkpointing"] == 0
    assert tight["setup"]["checkpointing"] == 1 / plain["sample"]["n_layers"]
    assert "of its layers checkpointed" in text_of(tight)
    assert "checkpointed" not in text_of(loose)
    with pytest.raises(UserError, match=r"tokens at once need at least .* stage\.token_budget to at most \d+ tokens"):
        make_plan(replace(small_plan, stage=replace(small_plan.stage, activation_gb=0.5 * least / 1e9)))
    with pytest.raises(UserError, match=r"stage\.activation_gb is -1; expected GB above 0, auto, or null"):
        make_plan(replace(small_plan, stage=replace(small_plan.stage, activation_gb=-1)))


def test_parts_that_train_are_counted_with_their_memory_and_not_cached(small_plan):
    base, encoder, llm = (
        make_plan(replace(small_plan, stage=replace(small_plan.stage, trainable=["projectors", *more])))
        for more in ([], ["encoders.frames.last1"], ["llm"])
    )
    plain, with_encoder, with_llm = (plan["memory"]["plain"] for plan in (base, encoder, llm))
    assert plain["encoder weights"] == plain["encoder activations"] == 0
    assert with_encoder["encoder weights"] > 0
    (cost,) = encoder["sample"]["encoders"].values()
    assert 0 < cost["backward"] < cost["flops"] * 2
    assert with_encoder["encoder activations"] == 3 * cost["kept_bytes"] > 0
    assert encoder["cache_bytes"] == {}
    assert "read from the cache, in every step of frames, which trains" in text_of(encoder)
    (part,) = [part for part in llm["parts"] if part["name"] == "language_model"]
    assert part["trainable"] == part["parameters"]
    assert with_llm["optimizer state"] - plain["optimizer state"] == 8 * part["trainable"]
    assert with_llm["LLM activations"] > plain["LLM activations"]
    flops = [plan["sample"]["flops"]["LLM"]["float32"] for plan in (base, llm)]
    assert 1.3 * flops[0] < flops[1] < 1.5 * flops[0]  # three products a weight instead of two; attention is the same
    logits = [plan["sample"]["flops"]["logits"]["float32"] for plan in (base, llm)]
    assert logits[1] == 1.5 * logits[0]
    refused = replace(
        small_plan,
        stage=replace(small_plan.stage, trainable=["encoders.frames"]),
        strategy=conf.StrategyConfig(name="zero2"),
    )
    with pytest.raises(UserError, match="strategy=zero2 does not train encoders"):
        make_plan(refused)
