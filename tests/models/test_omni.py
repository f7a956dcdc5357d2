"""An omni model computes what transformers' own thinker computes on the same inputs."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import Qwen2_5OmniThinkerForConditionalGeneration, WhisperFeatureExtractor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from affectgpt.config import EncoderConfig, GenerateConfig, LLMConfig, OmniConfig, ProjectorConfig, SamplingConfig
from affectgpt.inference.answers import Sampling, answers, sample_groups
from affectgpt.models import CheckpointError, ModelSpec, backend, build, load_trained, save_trained
from affectgpt.models.omni import layout
from affectgpt.prompts import Message
from affectgpt.runtime import InputError
from affectgpt.schema import PLACEHOLDERS
from tests.models.tiny import Sound
from tests.models.tiny_omni import PIXELS, omni_spec, write_omni

TIMES = {"frames": {"times_s": [0.0, 1.5, 3.0, 4.5]}}  # a grid of two frames every 3 s: longer than a chunk of 2 s
CASES = (("audio", "frames"), ("frames",), ("audio",), ())


def clip(*shown: str, seed: int = 0, seconds: float = 5.0) -> dict:
    rng = np.random.default_rng(seed)
    found = {
        "audio": Sound((rng.normal(size=round(16000 * seconds)) * 0.1).astype(np.float32)),
        "frames": rng.integers(0, 256, (4, 30, 50, 3), dtype=np.uint8),
    }
    return {name: found[name] for name in shown}


def row_of(processor, shown, answer: str | None = "happy and calm", seed: int = 0) -> dict:
    messages = [Message("user", "".join(PLACEHOLDERS[name] for name in shown) + "\nWhat does the person feel?")]
    return processor.encode(messages, clip(*shown, seed=seed), answer=answer, facts=TIMES)


def thinker_inputs(row: dict) -> dict:
    """The row as the inputs of transformers' model, which finds the positions itself."""
    inputs = {"input_ids": row["input_ids"][None], "attention_mask": torch.ones_like(row["input_ids"])[None]}
    if "input_features" in row:
        inputs["input_features"] = row["input_features"][None]
        inputs["feature_attention_mask"] = torch.ones(1, row["input_features"].shape[1], dtype=torch.int64)
    if "pixel_values_videos" in row:
        inputs |= {"pixel_values_videos": row["pixel_values_videos"], "video_grid_thw": row["video_grid_thw"][None]}
        inputs["video_second_per_grid"] = torch.tensor([3.0])
    return inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_omni(tmp_path_factory.mktemp("omni"))


@pytest.fixture(scope="module")
def built(folder):
    model, processor = build(omni_spec(folder))
    with torch.no_grad():  # adapters that do something are checked against a thinker with the same sums
        for name, tensor in model.named_parameters():
            assert tensor.requires_grad == (".lora_" in name)
    return model.eval(), processor


@pytest.fixture(scope="module")
def thinker(folder):
    return Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def rows(built):
    return [row_of(built[1], shown, seed=n) for n, shown in enumerate(CASES)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("by_engine", [True, False])
def test_log_probabilities_are_those_of_transformers_model(built, thinker, rows, packed, by_engine, monkeypatch):
    if not by_engine:
        monkeypatch.setattr(backend, "engine", None)
    model, processor = built
    with torch.no_grad():
        found = model(**processor.collate(rows, packed=packed), log_probs=True).log_probs
        for row, shown, ours in zip(rows, CASES, found, strict=True):
            logits = thinker(**thinker_inputs(row), use_audio_in_video=len(shown) == 2).logits[0, :-1]
            labels = row["labels"][1:]
            theirs = -functional.cross_entropy(logits, labels, reduction="none")[labels != -100]
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_the_loss_is_the_one_that_transformers_returns(built, thinker, rows):
    model, processor = built
    with torch.no_grad():
        ours = model(**processor.collate(rows[:1], packed=True)).loss
        theirs = thinker(**thinker_inputs(rows[0]), labels=rows[0]["labels"][None], use_audio_in_video=True).loss
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_sound_after_the_frames_is_another_prompt_with_the_loss_of_transformers(folder, thinker):
    model, processor = build(omni_spec(folder, interleave=False))
    row = row_of(processor, ("audio", "frames"))
    text = processor.tokenizer.decode(row["input_ids"])
    assert (
        text.index("<|VIDEO|>") < text.index("<|vision_eos|>") < text.index("<|audio_bos|>") < text.index("What does")
    )
    with torch.no_grad():
        ours = model.eval()(**processor.collate([row], packed=True)).loss
        theirs = thinker(**thinker_inputs(row), labels=row["labels"][None]).loss
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("by_engine", [True, False])
def test_greedy_answers_are_those_of_transformers_generate(built, thinker, by_engine, monkeypatch):
    if not by_engine:
        monkeypatch.setattr(backend, "engine", None)
    model, processor = built
    prompts = [row_of(processor, shown, None, seed=n) for n, shown in enumerate(CASES)]
    found = list(answers(model, processor, prompts, GenerateConfig(batch_size=3, max_new_tokens=6)))
    stop, never = model.generation_config.eos_token_id, model.generation_config.suppress_tokens
    for prompt, shown, ours in zip(prompts, CASES, found, strict=True):
        theirs = thinker.generate(
            **thinker_inputs(prompt), use_audio_in_video=len(shown) == 2, max_new_tokens=6, do_sample=False,
            eos_token_id=stop, pad_token_id=processor.tokenizer.pad_token_id, suppress_tokens=never,
        )  # fmt: skip
        assert list(ours.tokens) == theirs[0, len(prompt["input_ids"]) :].tolist()


def test_sampled_answers_do_not_depend_on_the_engine(built, monkeypatch):
    model, processor = built
    prompts = [row_of(processor, shown, None, seed=n) for n, shown in enumerate(CASES[:2])]
    draw = partial(sample_groups, model, processor, prompts, [[1, 2], [3]], Sampling(max_new_tokens=5))
    ours = draw()
    monkeypatch.setattr(backend, "engine", None)
    assert [[each.tokens for each in group] for group in draw()] == [[each.tokens for each in group] for group in ours]


def test_answers_of_a_group_share_the_media_of_their_prompt(built, rows):
    model, processor = built
    texts = ["happy", "sad and tired"]
    whole = [row_of(processor, CASES[0], text) for text in texts]
    prompt = row_of(processor, CASES[0], None)
    batch = processor.collate([prompt], packed=True)
    alone = [{key: row[key] for key in ("input_ids", "labels", "rope_ids")} for row in whole]
    with torch.no_grad():
        shared = model(**{**batch, **processor.collate(alone, packed=True)}, copies=2, log_probs=True).log_probs
        apart = model(**processor.collate(whole, packed=True), log_probs=True).log_probs
    for ours, theirs in zip(shared, apart, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_towers_that_ran_before_give_the_same_log_probabilities(built, rows):
    model, processor = built
    with torch.no_grad():
        direct = model(**processor.collate(rows, packed=True), log_probs=True).log_probs
        encoded = [model.encoded(row) for row in rows]
        assert not {"input_features", "pixel_values_videos"} & {key for row in encoded for key in row}
        for batch in (processor.collate(encoded, packed=True), model.with_states(processor.collate(rows, packed=True))):
            assert "frames_states" in batch
            assert not {"input_features", "feature_lengths", "pixel_values_videos"} & batch.keys()
            for ours, theirs in zip(model(**batch, log_probs=True).log_probs, direct, strict=True):
                assert torch.equal(ours, theirs)


def test_the_spectrogram_is_the_one_that_transformers_pads(built, folder):
    sound = clip("audio", seconds=1.2345)["audio"]
    ours = built[1].encode([Message("user", "<audio>\nWhat?")], {"audio": sound})["input_features"]
    whole = WhisperFeatureExtractor.from_pretrained(folder)(
        sound.samples, sampling_rate=16000, padding="max_length", return_attention_mask=True, return_tensors="pt"
    )
    assert ours.shape[1] == int(whole.attention_mask.sum()) == 124
    torch.testing.assert_close(ours, whole.input_features[0, :, :124])


def test_patches_of_a_still_are_those_of_the_image_processor():
    image = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    pixels = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    size = {"shortest_edge": 256, "longest_edge": 2048}
    theirs = Qwen2VLImageProcessorPil(patch_size=4, size=size, **pixels)(image, return_tensors="pt")

    class Vision:
        patch_size, spatial_merge_size, temporal_patch_size = 4, 2, 2

    ours, grid = layout.patches(
        image[None], min_pixels=256, max_pixels=2048, mean=pixels["image_mean"], std=pixels["image_std"], config=Vision
    )
    assert grid.tolist() == theirs.image_grid_thw[0].tolist()
    torch.testing.assert_close(ours, theirs.pixel_values, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- what trains, checkpoints


def test_a_checkpoint_holds_lora_and_names_the_base(folder, tmp_path):
    model, processor = build(omni_spec(folder))
    assert model.set_trainable(["lora"]) == sum(t.numel() for n, t in model.named_parameters() if ".lora_" in n)
    with torch.no_grad():
        for tensor in model.own_tensors().values():
            tensor.add_(0.1)
    save_trained(model, processor, tmp_path / "c")
    loaded, _ = load_trained(tmp_path / "c")
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in loaded.own_tensors()} == {
        "q_proj", "v_proj", "down_proj"
    }  # fmt: skip
    assert all(torch.equal(t, loaded.own_tensors()[n]) for n, t in model.own_tensors().items())
    assert loaded.config.spec["omni"]["max_pixels"] == PIXELS["max_pixels"]
    with pytest.raises(CheckpointError, match="not the one used in training"):
        load_trained(tmp_path / "c", base_models={"llm": str(write_omni(tmp_path / "other", seed=1))})


def test_the_aligners_are_the_projectors(folder, tmp_path):
    model, processor = build(omni_spec(folder))
    model.set_trainable(["projectors"])
    model.train()
    trained = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    assert trained
    assert all(".merger." in name or ".proj." in name for name in trained)
    batch = processor.collate([row_of(processor, ("audio",))], packed=True)
    model(**batch).loss.backward()
    gradients = {name: t.grad.abs().sum().item() for name, t in model.named_parameters() if t.requires_grad}
    assert all((value > 0) == name.startswith("encoders.audio") for name, value in gradients.items())
    with torch.no_grad():
        for tensor in model.tensors_of("projectors").values():
            tensor.add_(0.1)
    save_trained(model, processor, tmp_path / "c")
    loaded, _ = load_trained(tmp_path / "c")
    assert set(loaded.own_tensors()) == set(model.own_tensors()) >= trained
    assert all(
        torch.equal(tensor, loaded.tensors_of("projectors")[n]) for n, tensor in model.tensors_of("projectors").items()
    )


def test_towers_train_in_no_other_part(built):
    model, _ = built
    for part in ("encoders.audio", "projectors.motion"):
        with pytest.raises(
            InputError, match=r"towers stay frozen; expected some of \['projectors', 'projectors.audio'"
        ):
            model.tensors_of(part)


# ---------------------------------------------------------------- refusals


def test_settings_that_an_omni_model_does_not_have_are_refused():
    own = SamplingConfig(max_windows=1)
    for change, said in (
        ({"encoders": {"audio": EncoderConfig("x")}, "projectors": {"audio": ProjectorConfig()}}, "its own towers"),
        ({"llm": LLMConfig("y", quantization="nf4")}, "float32 or bfloat16"),
        ({"omni": OmniConfig(modalities=["face"])}, r"has \['face'\]"),
        ({"sampling": SamplingConfig()}, "max_windows=1"),
    ):
        fields = {"llm": LLMConfig("y"), "encoders": {}, "projectors": {}, "sampling": own, "omni": OmniConfig()}
        with pytest.raises(InputError, match=said):
            ModelSpec(**{**fields, **change})


def test_another_model_at_its_place_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="is of type 'llama', which is not built"):
        build(omni_spec(tmp_path))


def test_clips_that_the_towers_cannot_take_are_named(built):
    _, processor = built
    with pytest.raises(InputError, match="remove audio from this sample"):
        processor.encode([Message("user", "<audio>\nWhat?")], {"audio": Sound(np.zeros(100, dtype=np.float32))})
    wide = {"frames": np.zeros((4, 1, 300, 3), dtype=np.uint8)}
    with pytest.raises(InputError, match="absolute aspect ratio"):
        processor.encode([Message("user", "<frames>\nWhat?")], wide, facts=TIMES)
    with pytest.raises(InputError, match="or shorten the text"):
        row_of(processor, ("audio", "frames"), "happy " * 400)
    with pytest.raises(InputError, match="not built for conversations"):
        processor.apply_chat_template([])
