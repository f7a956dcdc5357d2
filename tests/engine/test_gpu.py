"""What only a GPU can show; `make gpu` runs these tests. Elsewhere they are skipped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from affectgpt.engine import kernels, lora
from affectgpt.inference import answers as answering
from affectgpt.models import backend, build
from tests.engine.test_generation import by_engine, encoded, with_adapters
from tests.engine.test_packing import LORA, largest_difference, loss_and_gradients, randomize_lora, samples
from tests.models import tiny

DEVICE = "cuda"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def moved(batch):
    return {key: value.to(DEVICE) for key, value in batch.items()}


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("dtype", "loss_off", "gradients_off"), [("float32", 1e-4, 1e-3), ("bfloat16", 0.02, 0.2)])
def test_the_packed_step_of_a_gpu_is_that_of_a_cpu(tmp_path, dtype, loss_off, gradients_off):
    """In 16 bits attention over samples of unequal length is FlashAttention."""
    paths = tiny.write_base_models(tmp_path)
    model, processor = build(tiny.tiny_spec(paths, lora=LORA))
    randomize_lora(model)
    batch = processor.collate(samples(processor), packed=True)
    expected = loss_and_gradients(model, batch)
    model.to(DEVICE)
    model.language_model.to(getattr(torch, dtype))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    loss, gradients = loss_and_gradients(model, moved(batch))
    assert float(loss) == pytest.approx(float(expected[0]), rel=loss_off)
    assert largest_difference({name: each.cpu() for name, each in gradients.items()}, expected[1]) < gradients_off
    if dtype == "bfloat16":
        assert kernels._flash_varlen() is not None


@pytest.mark.gpu
@needs_gpu
def test_greedy_answers_of_a_gpu_are_those_of_a_cpu_also_compiled(tmp_path):
    model, processor = with_adapters("llama3-gqa", tmp_path, lora=True)
    rows, limits = encoded(processor, 5), [9, 3, 14, 5, 8]
    expected = by_engine(model, processor, rows, limits, [], 3)
    model.to(DEVICE)
    assert by_engine(model, processor, rows, limits, [], 3) == expected
    assert by_engine(model, processor, rows, limits, [], 3, compiled=True) == expected


@pytest.mark.gpu
@needs_gpu
def test_rollouts_of_a_gpu_are_repeatable_and_those_of_any_batch_and_of_a_cpu(tmp_path):
    model, processor = with_adapters("llama", tmp_path, lora=True)
    rows, seeds = encoded(processor, 3), [[1, 2, 3], [4, 5], [6]]
    sampling = answering.Sampling(temperature=0.8, top_p=0.95, top_k=20, max_new_tokens=8)
    expected = answering.sample_groups(model, processor, rows, seeds, sampling)
    model.to(DEVICE)
    for batch_size in (64, 64, 2):
        assert answering.sample_groups(model, processor, rows, seeds, sampling, batch_size=batch_size) == expected


@pytest.mark.gpu
@needs_gpu
def test_an_llm_in_4_bits_trains_and_writes(tmp_path):
    pytest.importorskip("bitsandbytes")
    paths = tiny.write_base_models(tmp_path)
    model, processor = build(tiny.tiny_spec(paths, lora=LORA, dtype="bfloat16", quantization="nf4"))
    model.to(DEVICE).train()
    batch = moved(processor.collate(samples(processor), packed=True))
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert backend.engine.can_generate(model.eval())
    rows, sampling = encoded(processor, 1), answering.Sampling(max_new_tokens=4)
    found = answering.sample_groups(model, processor, rows, [[1, 2]], sampling)
    assert [len(answer.tokens) > 0 for answer in found[0]] == [True, True]


@pytest.mark.gpu
@needs_gpu
def test_masks_of_dropout_on_a_gpu_are_repeatable_and_have_their_share():
    dropout = lora.Dropout(7, 3, [0, 40], [40, 60], [40, 60])
    dropped = dropout.dropped(1, 100, 50, 0.1, torch.device(DEVICE))
    assert torch.equal(dropped, dropout.dropped(1, 100, 50, 0.1, torch.device(DEVICE)))
    share = float((dropped < 5000).double().sum()) / 5000
    assert share == pytest.approx(0.1, abs=4 * (0.09 / 5000) ** 0.5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_make_gpu_without_a_gpu_says_so_in_one_line():
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("make gpu needs an NVIDIA GPU")
    assert len(done.stderr.splitlines()) == 1
