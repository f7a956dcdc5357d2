"""Trained-only checkpoints and full folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoProcessor

from affectgpt import bases as base_models
from affectgpt.config import LoraConfig
from affectgpt.models import (
    AffectGPTConfig,
    AffectGPTForConditionalGeneration,
    AffectGPTProcessor,
    CheckpointError,
    build,
    load_trained,
    load_trained_tensors,
    read_spec,
    save_trained,
)
from affectgpt.models.assemble import _pin
from affectgpt.models.checkpoint import TENSORS_NAME
from affectgpt.models.integrity import SUMS
from affectgpt.runs import COMPLETE, TRAINED_MANIFEST, RunRecord, mark_complete, replace_best
from tests.models import tiny
from tests.models.tiny import MODALITIES

LORA = LoraConfig(r=2, alpha=4, target_modules=["q_proj", "v_proj"])


def shaken(spec):
    """A model whose trained tensors are no longer those of its seed."""
    model, processor = build(spec)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval(), processor


def prompt(processor):
    row = processor.encode(tiny.question(*MODALITIES), tiny.media(*MODALITIES), answer="sad")
    return processor.collate([row])


@pytest.fixture
def saved(bases, tmp_path):
    """(folder, model, processor) of a checkpoint with LoRA."""
    model, processor = shaken(tiny.tiny_spec(bases, lora=LORA))
    save_trained(model, processor, tmp_path / "checkpoint")
    return tmp_path / "checkpoint", model, processor


def as_older_version(folder, **changes):
    """Rewrite the manifest as versions without checksums did, with changes."""
    manifest = json.loads((folder / TRAINED_MANIFEST).read_text()) | changes
    del manifest["sha256"], manifest["manifest_sha256"]
    (folder / TRAINED_MANIFEST).write_text(json.dumps(manifest))


# ---------------------------------------------------------------- trained-only


def test_a_loaded_checkpoint_gives_the_logits_of_the_saved_model(saved):
    folder, model, processor = saved
    again, its_processor = load_trained(folder)
    assert not again.training
    batch = prompt(processor)
    assert all(torch.equal(value, batch[key]) for key, value in prompt(its_processor).items())
    assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_a_checkpoint_holds_trained_tensors_only_frozen_or_not(saved):
    folder, model, processor = saved
    model.set_trainable(["projectors.audio"])
    save_trained(model, processor, folder)
    names = set(load_file(folder / TENSORS_NAME))
    assert names == {n for n, _ in model.named_parameters() if n.startswith("projectors.") or ".lora_" in n}
    assert sorted(path.name for path in folder.iterdir()) == sorted([TENSORS_NAME, TRAINED_MANIFEST])
    assert set(json.loads((folder / TRAINED_MANIFEST).read_text())["tensors"]) == names


def test_saving_twice_gives_the_same_bytes(saved):
    folder, model, processor = saved
    first = (folder / TENSORS_NAME).read_bytes()
    save_trained(model, processor, folder)
    assert (folder / TENSORS_NAME).read_bytes() == first


def test_the_spec_travels_through_the_manifest(saved, bases):
    assert read_spec(saved[0]) == tiny.tiny_spec(bases, lora=LORA)


def test_values_may_come_from_a_gathered_state_dict(saved, tmp_path):
    _, model, processor = saved
    values = {name: torch.full_like(value, 0.5) for name, value in model.state_dict().items()}
    save_trained(model, processor, tmp_path / "gathered", state_dict=values)
    assert all((value == 0.5).all() for value in load_file(tmp_path / "gathered" / TENSORS_NAME).values())
    with pytest.raises(CheckpointError, match=r"the state dict lacks \d+ trained tensors: language_model.*lora"):
        save_trained(model, processor, tmp_path / "gathered", state_dict={})


@pytest.mark.parametrize("change", ["missing", "surplus", "misshapen"])
def test_a_wrong_tensor_is_named_and_nothing_is_loaded(saved, change):
    folder, _, _ = saved
    name = "projectors.audio.project.output.weight"
    tensors = load_file(folder / TENSORS_NAME)
    if change == "missing":
        del tensors[name]
    elif change == "surplus":
        tensors["projectors.audio.extra"] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(2, 3)
    save_file(tensors, folder / TENSORS_NAME)
    as_older_version(folder, tensors={key: {} for key in tensors})
    expected = {
        "missing": f"1 missing: {name}",
        "surplus": "1 not in the model: projectors.audio.extra",
        "misshapen": f"1 of another shape: {name} \\[2, 3\\] instead of \\[32, 16\\]",
    }[change]
    model, _ = build(read_spec(folder))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=expected):
        load_trained_tensors(model, folder)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_tensors_and_manifest_of_two_checkpoints_are_not_mixed(saved):
    folder = saved[0]
    tensors = load_file(folder / TENSORS_NAME)
    tensors.popitem()
    save_file(tensors, folder / TENSORS_NAME)
    as_older_version(folder)
    with pytest.raises(CheckpointError, match="list different tensors"):
        load_trained(folder)


def test_a_cut_file_and_a_folder_without_manifest_are_named(saved, tmp_path):
    folder = saved[0]
    (folder / TENSORS_NAME).write_bytes((folder / TENSORS_NAME).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"trained.safetensors has changed since it was written; use another"):
        load_trained(folder)
    as_older_version(folder)
    with pytest.raises(CheckpointError, match=r"trained.safetensors cannot be read .* use another checkpoint"):
        load_trained(folder)
    (folder / TRAINED_MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="not a complete training checkpoint"):
        load_trained(folder)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


def zero_half(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def of_another_run(path):
    tensors = load_file(path)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, path)


@pytest.mark.parametrize("damage", [flip_a_bit, zero_half, of_another_run])
def test_changed_tensors_are_not_loaded(saved, damage):
    folder = saved[0]
    damage(folder / TENSORS_NAME)
    model, _ = build(read_spec(folder))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"checkpoint/trained\.safetensors has changed since it was written"):
        load_trained_tensors(model, folder)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 1', "affectgpt.json is not JSON"),
        ("[" * 100_000, "affectgpt.json is not JSON"),
        ("[1]", "format .* is unknown"),
        ('{"format": 1}', r"affectgpt.json has no \['spec', 'base_fingerprints', 'tensors'\]"),
        ('{"format": 1, "spec": {}, "base_fingerprints": {}, "tensors": {}}', "spec is not that of a model"),
        (None, "affectgpt.json has changed since it was written"),
    ],
)
def test_a_broken_or_changed_manifest_is_named(saved, text, message):
    path = saved[0] / TRAINED_MANIFEST
    path.write_text(path.read_text().replace('"alpha": 4', '"alpha": 6') if text is None else text)
    with pytest.raises(CheckpointError, match=message):
        load_trained(saved[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_neither_saved_nor_loaded(saved, value):
    folder, model, processor = saved
    tensors = load_file(folder / TENSORS_NAME)
    name = "projectors.audio.project.output.weight"
    tensors[name][0, 0] = value
    save_file(tensors, folder / TENSORS_NAME)
    as_older_version(folder)
    with pytest.raises(CheckpointError, match=f"1 tensors hold NaN or infinity: {name}"):
        load_trained_tensors(model, folder)
    with torch.no_grad():
        model.get_parameter(name)[0, 0] = value
    with pytest.raises(CheckpointError, match=f"is not written: 1 tensors hold NaN or infinity: {name}"):
        save_trained(model, processor, folder.with_name("new"))
    assert not list(folder.with_name("new").iterdir())


def test_a_checkpoint_of_an_older_version_loads_with_a_warning(saved, caplog):
    folder = saved[0]
    load_trained(folder)
    assert "older version" not in caplog.text
    as_older_version(folder)
    load_trained(folder)
    assert f"{folder} is of an older version: nothing shows whether its tensors have changed" in caplog.text


@pytest.mark.parametrize("name", ["best", "checkpoint-4"])
def test_a_checkpoint_of_a_run_without_its_marker_is_not_loaded(saved, tmp_path, name):
    RunRecord.start(tmp_path / "run", kind="train fine", config={})
    folder = tmp_path / "run" / name
    shutil.copytree(saved[0], folder)
    with pytest.raises(CheckpointError, match=f"{name} has no COMPLETE: the run was ended while it wrote"):
        load_trained(folder)
    (folder / COMPLETE).touch()
    load_trained(folder)


def test_files_follow_the_umask(saved, tmp_path):
    _, model, processor = saved
    before = os.umask(0o027)
    try:
        save_trained(model, processor, tmp_path / "new")
        model.save_pretrained(tmp_path / "full")
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "new").iterdir()}
    assert modes == {TENSORS_NAME: "0o640", TRAINED_MANIFEST: "0o640"}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "full").iterdir()} == {0o640}


def test_a_reader_never_meets_a_best_checkpoint_that_is_half_replaced(saved, bases, tmp_path):
    _, model, processor = saved
    RunRecord.start(tmp_path / "run", kind="train fine", config={})
    name, found, done = "projectors.audio.project.output.weight", set(), threading.Event()
    reader, _ = build(tiny.tiny_spec(bases, lora=LORA))

    def read():
        while not done.is_set():
            load_trained_tensors(reader, tmp_path / "run" / "best")
            found.add(reader.get_parameter(name)[0, 0].item())

    def write(number):
        with torch.no_grad():
            model.get_parameter(name)[0, 0] = number
        save_trained(model, processor, tmp_path / "run" / ".best.new")
        mark_complete(tmp_path / "run" / ".best.new", "step")
        replace_best(tmp_path / "run", tmp_path / "run" / ".best.new")

    write(0)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for number in range(1, 40):
            write(number)
        done.set()
        reading.result()
    assert len(found) > 3
    assert found <= set(range(40))


def test_a_stage_that_adds_lora_starts_from_projectors_alone_when_told_so(bases, tmp_path):
    model, processor = shaken(tiny.tiny_spec(bases))
    save_trained(model, processor, tmp_path)
    larger, _ = build(tiny.tiny_spec(bases, lora=LORA))
    with pytest.raises(CheckpointError, match=r"8 missing: language_model.*lora_A.*parts=\['projectors'\]"):
        load_trained_tensors(larger, tmp_path)
    load_trained_tensors(larger, tmp_path, parts=["projectors"])
    assert torch.equal(larger.eval()(**prompt(processor)).logits, model(**prompt(processor)).logits)


def test_a_checkpoint_of_fewer_branches_does_not_pass_as_the_whole(bases, tmp_path):
    model, processor = shaken(tiny.tiny_spec(bases, ("audio",)))
    save_trained(model, processor, tmp_path)
    larger, _ = build(tiny.tiny_spec(bases, ("audio", "frames")))
    with pytest.raises(CheckpointError, match=r"missing: projectors\.frames"):
        load_trained_tensors(larger, tmp_path, parts=["projectors"])
    load_trained_tensors(larger, tmp_path, parts=["projectors.audio"])


# ---------------------------------------------------------------- base models


def test_a_base_model_that_is_gone_is_named(bases, tmp_path):
    paths = {name: shutil.copytree(path, tmp_path / name) for name, path in bases.items()}
    model, processor = build(tiny.tiny_spec(paths))
    save_trained(model, processor, tmp_path / "checkpoint")
    shutil.move(paths["frames"], tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"frames: base model folder '.*frames' does not exist"):
        load_trained(tmp_path / "checkpoint")
    again, _ = load_trained(tmp_path / "checkpoint", base_models={"frames": str(tmp_path / "moved")})
    assert again.encoder_fingerprint("frames") == model.encoder_fingerprint("frames")
    with pytest.raises(CheckpointError, match=r"base_models \['video'\] are unknown; expected some of \['llm', "):
        load_trained(tmp_path / "checkpoint", base_models={"video": "x"})


@pytest.mark.parametrize("part", ["llm", "audio"])
def test_a_base_model_that_changed_under_the_same_path_is_refused(bases, tmp_path, part):
    paths = {name: shutil.copytree(path, tmp_path / name) for name, path in bases.items()}
    model, processor = build(tiny.tiny_spec(paths))
    save_trained(model, processor, tmp_path / "checkpoint")
    {"llm": tiny.write_llama, "audio": tiny.write_hubert}[part](paths[part], seed=1)  # same shapes, other weights
    with pytest.raises(CheckpointError, match=rf"base model {part} at .* is not the one used in training"):
        load_trained(tmp_path / "checkpoint")
    other, _ = build(tiny.tiny_spec(paths))
    with pytest.raises(CheckpointError, match=f"it was trained on another base model {part}"):
        load_trained_tensors(other, tmp_path / "checkpoint")


def test_a_hub_model_is_its_commit_and_pinned_to_it(bases, monkeypatch, tmp_path):
    commit = tmp_path / "snapshots" / "0123abc"
    shutil.copytree(bases["audio"], commit)
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: (asked.append((a, k)), str(commit))[1])
    spec = replace(tiny.tiny_spec(bases, ("audio",)).encoders["audio"], path="someone/hubert", revision="main")
    pinned, fingerprints = _pin(tiny.tiny_spec(bases, ("audio",), encoders={"audio": spec}))
    assert fingerprints["audio"] == "commit:0123abc"
    assert (pinned.encoders["audio"].path, pinned.encoders["audio"].revision) == ("someone/hubert", "0123abc")
    assert asked[0][1]["revision"] == "main"


def test_a_hub_model_that_cannot_be_had_is_named(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"llm: base model 'a/b' is not complete .*did not answer \(OSError\)"):
        base_models.fingerprint("a/b", "llm")


def test_the_fingerprint_of_a_large_file_sees_its_size_and_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(base_models, "_FULL_HASH_BYTES", 1000)
    monkeypatch.setattr(base_models, "_CHUNK_BYTES", 10)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"a" * 5000)
    first = base_models.fingerprint(str(tmp_path), "llm")
    weights.write_bytes(b"a" * 4990 + b"b" * 10)
    second = base_models.fingerprint(str(tmp_path), "llm")
    weights.write_bytes(b"a" * 4999)
    assert len({first, second, base_models.fingerprint(str(tmp_path), "llm")}) == 3
    (tmp_path / "README.md").write_text("not part of the model")
    weights.write_bytes(b"a" * 5000)
    assert base_models.fingerprint(str(tmp_path), "llm") == first


def test_encoder_fingerprints_follow_what_changes_the_states_and_nothing_else(bases, tmp_path):
    def of(**changes):
        model, _ = build(tiny.tiny_spec(bases, ("audio",), **changes), load_encoders=False)
        return model.encoder_fingerprint("audio")

    encoder = tiny.tiny_spec(bases).encoders["audio"]
    moved = replace(encoder, path=str(shutil.copytree(bases["audio"], tmp_path / "moved")))
    more_frames = replace(tiny.SAMPLING, n_frames=5)
    same = [of(), of(seed=3), of(lora=LORA), of(sampling=more_frames), of(encoders={"audio": moved})]
    assert len(set(same)) == 1
    others = [of(encoders={"audio": replace(encoder, **change)}) for change in ({"layers": 1}, {"pool": "window"})] + [
        of(sampling=replace(tiny.SAMPLING, window_s=0.2))
    ]
    assert len({*same, *others}) == 4


# ---------------------------------------------------------------- full folders


@pytest.mark.parametrize("name", ["llama-vicuna", "qwen2"])  # qwen2's embeddings are tied
@pytest.mark.parametrize("llm_dtype", ["float32", "bfloat16"])
def test_a_full_folder_round_trips_model_and_processor(llms, bases, tmp_path, name, llm_dtype):
    spec = tiny.tiny_spec(bases | {"llm": llms[name]}, lora=LORA, dtype=llm_dtype)
    model, processor = shaken(spec)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AffectGPTForConditionalGeneration.from_pretrained(tmp_path).eval()
    its_processor = AffectGPTProcessor.from_pretrained(tmp_path)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for key in before:
        assert before[key].dtype == after[key].dtype, key
        assert torch.equal(before[key], after[key]), key
    batch = prompt(processor)
    assert all(torch.equal(value, batch[key]) for key, value in prompt(its_processor).items())
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    inputs = processor.collate([{k: v[0] for k, v in batch.items() if k == "input_ids"}], for_generation=True)
    media = {key: value for key, value in batch.items() if key not in ("input_ids", "labels", "attention_mask")}
    assert torch.equal(
        again.generate(**inputs, **media, max_new_tokens=4), model.generate(**inputs, **media, max_new_tokens=4)
    )
    assert again.encoder_fingerprint("audio") == model.encoder_fingerprint("audio")
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


def test_encoders_keep_their_own_precision_in_a_full_folder(bases, tmp_path):
    half = {"audio": replace(tiny.tiny_spec(bases).encoders["audio"], dtype="bfloat16")}
    model, processor = build(tiny.tiny_spec(bases, ("audio",), encoders=half))
    model.save_pretrained(tmp_path)
    again = AffectGPTForConditionalGeneration.from_pretrained(tmp_path)
    row = processor.encode(tiny.question("audio"), tiny.media("audio"))
    states = model.encode(row)["audio"]
    assert states.dtype == torch.bfloat16
    assert torch.equal(again.encode(row)["audio"], states)


def test_the_auto_classes_know_a_full_folder(built, tmp_path):
    model, processor = built
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), AffectGPTConfig)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), AffectGPTProcessor)


def test_from_pretrained_refuses_a_trained_only_folder_and_says_what_loads_it(saved):
    with pytest.raises(ValueError, match=r"has trained tensors only, .*\.load_trained\('.*checkpoint'\)"):
        AffectGPTForConditionalGeneration.from_pretrained(saved[0])


@pytest.mark.parametrize("damage", [flip_a_bit, zero_half])
@pytest.mark.parametrize("name", ["model-00002-of-00003.safetensors", "config.json", "model.safetensors.index.json"])
def test_from_pretrained_refuses_a_full_folder_with_a_changed_file_in_any_shard(built, tmp_path, name, damage):
    built[0].save_pretrained(tmp_path, max_shard_size="80KB")
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    changed = shards[1] if name.startswith("model-") else name
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    AffectGPTForConditionalGeneration.from_pretrained(tmp_path)
    damage(tmp_path / changed)
    with pytest.raises(CheckpointError, match=f"{changed} has changed since it was written. Restore the folder"):
        AffectGPTForConditionalGeneration.from_pretrained(tmp_path)


def test_a_full_folder_of_an_older_version_loads_with_a_warning_if_its_weights_are_finite(built, tmp_path, caplog):
    built[0].save_pretrained(tmp_path)
    (tmp_path / SUMS).unlink()
    AffectGPTForConditionalGeneration.from_pretrained(tmp_path)
    assert f"has no {SUMS}" in caplog.text
    weights = load_file(tmp_path / "model.safetensors")
    weights["projectors.audio.project.queries"][:] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"NaN or infinity: projectors\.audio\.project\.queries"):
        AffectGPTForConditionalGeneration.from_pretrained(tmp_path)


def test_from_pretrained_refuses_a_full_folder_that_lacks_a_weight(built, tmp_path):
    built[0].save_pretrained(tmp_path)
    (tmp_path / SUMS).unlink()
    weights = load_file(tmp_path / "model.safetensors")
    del weights["projectors.audio.project.queries"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing: projectors\.audio\.project\.queries"):
        AffectGPTForConditionalGeneration.from_pretrained(tmp_path)


def test_a_model_without_a_spec_is_not_saved_as_a_training_checkpoint(built, tmp_path):
    config = AffectGPTConfig.from_dict({**built[0].config.to_dict(), "spec": None})
    model = AffectGPTForConditionalGeneration(config)
    with pytest.raises(CheckpointError, match="use save_pretrained"):
        save_trained(model, built[1], tmp_path)
