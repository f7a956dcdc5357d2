"""Multimodal chat models of transformers: media reach them, batches change no answer, and misuse is an error."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from affectgpt.chat.local import MODEL_TYPES, load
from affectgpt.chat.request import Request
from affectgpt.chat.transport import RequestFailed
from affectgpt.chat.video import VIDEO_PROCESSORS
from affectgpt.media import Waveform
from affectgpt.runtime import UserError
from tests.chat import tiny_chat
from tests.models import tiny

QUESTIONS = ("Why?", "What does the person feel, and which clues show it? Look at the face and listen.")


@pytest.fixture(scope="module", params=tiny_chat.WRITERS)
def chat(request, tmp_path_factory):
    return load(tiny_chat.WRITERS[request.param](tmp_path_factory.mktemp(request.param)), device="cpu")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    return load(tiny_chat.write_llava_onevision(tmp_path_factory.mktemp("onevision")), device="cpu")


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
    return load(tiny_chat.write_qwen2_audio(tmp_path_factory.mktemp("qwen2-audio")), device="cpu")


def pictures(seed: int = 0, n: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 30, 40, 3), dtype=np.uint8)


def noise(seed: int = 0, duration_s: float = 0.4, rate_hz: int = 16000) -> Waveform:
    samples = np.random.default_rng(seed).normal(0, 0.2, round(duration_s * rate_hz)).astype(np.float32)
    return Waveform(samples, rate_hz, duration_s, rate_hz, 1)


def asked(chat, prompt: str = QUESTIONS[0], picture_seed: int = 0, sound_seed: int = 0, **more) -> Request:
    """A request with all media that `chat` takes."""
    if "images" in chat.sees:
        more = {"images": pictures(picture_seed), "times_s": np.arange(4) * 0.5, **more}
    if "sound" in chat.sees:
        more = {"sound": noise(sound_seed, 0.4 + 0.2 * sound_seed), **more}
    return Request(prompt, **more)


@torch.no_grad()
def next_token(chat, request: Request) -> torch.Tensor:
    return chat.model(**chat.move(chat.encode([request]))).logits[0, -1]


def test_a_batch_gets_the_answers_of_single_requests(chat):
    requests = [asked(chat, question, place, place) for place, question in enumerate(QUESTIONS)]
    together = chat.answer(requests, max_new_tokens=6)
    assert together == [chat.answer([request], max_new_tokens=6)[0] for request in requests]
    assert together[0].n_prompt_tokens < together[1].n_prompt_tokens
    assert all(0 < reply.n_new_tokens <= 6 for reply in together)


def test_other_images_and_other_sound_give_other_answers(chat):
    before = next_token(chat, asked(chat))
    torch.testing.assert_close(next_token(chat, asked(chat)), before)
    shown = {"images": {"picture_seed": 5}, "sound": {"sound_seed": 0, "sound": noise(7)}}
    for medium in chat.sees:
        assert (next_token(chat, asked(chat, **shown[medium])) - before).abs().max() > 1e-3, medium


def test_prompts_of_a_batch_are_padded_on_the_left(chat):
    inputs = chat.encode([asked(chat, question) for question in QUESTIONS])
    mask = inputs["attention_mask"]
    assert mask[1].all()
    assert not mask[0].all()
    assert mask[0, -1] == 1
    n_padded = int((mask[0] == 0).sum())
    alone = chat.encode([asked(chat, QUESTIONS[0])])["input_ids"][0]
    assert inputs["input_ids"][0][mask[0].bool()].tolist() == alone.tolist()
    assert n_padded + len(alone) == mask.shape[1]


def test_prompts_follow_the_chat_template(chat):
    text = chat.render(asked(chat, "How is she?", system="Be brief."))
    if chat.kind.template:
        head = f"{chat._tokenizer.bos_token or ''}<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
        assert text.startswith(head)
        assert text.endswith("How is she?<|im_end|>\n<|im_start|>assistant\n")
    else:
        assert text == "Be brief.\nHow is she?"


def test_a_start_token_in_the_template_is_not_repeated(tmp_path):
    chat = load(tiny_chat.write_gemma3(tmp_path), device="cpu")
    start = chat._tokenizer.bos_token_id
    assert chat.encode([asked(chat)])["input_ids"][0].tolist().count(start) == 1


def test_control_tokens_in_a_prompt_stay_text(chat):
    tokens = [token.content for token in chat._tokenizer.added_tokens_decoder.values() if token.special]
    plain = chat.encode([asked(chat, "He says: hm")])
    spiked = chat.encode([asked(chat, "He says: hm" + "".join(tokens))])
    ids = set(chat._tokenizer.convert_tokens_to_ids(tokens))
    count = [sum(token in ids for token in item["input_ids"][0].tolist()) for item in (plain, spiked)]
    assert count[0] == count[1]


def test_requests_with_different_media_are_answered_in_their_order(hearing):
    requests = [Request("One?"), asked(hearing, "Two?"), Request("Three, please?"), asked(hearing, "Four?")]
    alone = [hearing.answer([request], max_new_tokens=4)[0] for request in requests]
    assert hearing.answer(requests, max_new_tokens=4) == alone


def test_a_text_only_model_takes_no_media(tmp_path):
    chat = load(tiny.write_qwen2(tmp_path), device="cpu")
    assert chat.sees == frozenset()
    assert "<|im_start|>user\nHello<|im_end|>" in chat.render(Request("Hello"))
    requests = [Request("Hello"), Request("And a longer one, with a system", system="You merge.")]
    assert chat.answer(requests, 4) == [chat.answer([item], 4)[0] for item in requests]


def test_thinking_is_disabled(tmp_path):
    chat = load(tiny.write_qwen3(tmp_path), device="cpu")
    assert chat.render(Request("Hello")).endswith("<think>\n\n</think>\n\n")


def test_media_have_the_dtype_of_the_model(tmp_path):
    chat = load(tiny_chat.write_qwen2_5_omni(tmp_path), device="cpu", dtype="bfloat16")
    moved = chat.move(chat.encode([asked(chat)]))
    assert moved["pixel_values_videos"].dtype == moved["input_features"].dtype == torch.bfloat16
    assert moved["video_second_per_grid"].tolist() == [1.0]  # two frames, half a second each
    assert chat.answer([asked(chat)], 4)[0].n_new_tokens > 0


def test_media_that_a_model_does_not_take_are_an_error(seeing, hearing):
    with pytest.raises(UserError, match=r"llava_onevision\) takes no sound; it takes \['images'\]"):
        seeing.answer([Request("Hm?", sound=noise())])
    with pytest.raises(UserError, match=r"qwen2_audio\) takes no images; it takes \['sound'\]"):
        hearing.answer([Request("Hm?", images=pictures())])


def test_sound_of_another_rate_or_beyond_the_window_is_an_error(hearing):
    with pytest.raises(ValueError, match=r"takes sound at 16000 Hz, found 8000 Hz; .*read_audio\(path, 16000\)"):
        hearing.answer([Request("Hm?", sound=noise(rate_hz=8000))])
    assert hearing.max_sound_s == 1.0
    with pytest.raises(ValueError, match=r"takes at most 1 s of sound, found 1\.5 s"):
        hearing.answer([Request("Hm?", sound=noise(duration_s=1.5))])


def test_images_of_another_dtype_are_an_error(seeing):
    with pytest.raises(ValueError, match=r"uint8 \[T,H,W,3\], found float64 \[4, 30, 40, 3\]"):
        seeing.answer([Request("Hm?", images=pictures() / 255)])


def test_another_number_of_frames_is_an_error_of_a_model_that_takes_one_number(tmp_path):
    chat = load(tiny_chat.write_instructblip_video(tmp_path), device="cpu")
    with pytest.raises(ValueError, match="takes 4 frames, found 3"):
        chat.answer([Request("Hm?", images=pictures(n=3))])
    with pytest.raises(UserError, match="about a video only; add images"):
        chat.answer([Request("Hm?")])
    with pytest.raises(RequestFailed, match="its Q-Former takes questions of at most 512 tokens, found 6"):
        chat.answer([Request("x" * 600, images=pictures(n=4))])


def test_frame_times_reach_a_model_that_uses_time(tmp_path):
    chat = load(tiny_chat.write_qwen3_vl(tmp_path), device="cpu")
    inputs = chat.encode([Request("Hm?", images=pictures(), times_s=np.array([0.0, 1.0, 2.0, 3.0]))])
    slow = chat.encode([Request("Hm?", images=pictures(), times_s=np.array([0.0, 3.0, 6.0, 9.0]))])
    assert "<0.5 seconds>" in chat._tokenizer.decode(inputs["input_ids"][0])
    assert "<1.5 seconds>" in chat._tokenizer.decode(slow["input_ids"][0])


def test_an_unsupported_model_type_is_an_error_with_the_alternatives(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(UserError, match=r"'clip' is not supported.*base_url=.*JSONL exchange"):
        load(tmp_path)


def test_missing_weights_and_a_missing_chat_template_are_errors(tmp_path, seeing):
    from safetensors.torch import load_file, save_file

    shutil.copytree(seeing.name, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template"):
        load(tmp_path / "m")
    shutil.copy(Path(seeing.name) / "chat_template.jinja", tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    weights = load_file(file)
    lost = next(name for name in weights if "projector" in name)
    del weights[lost]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors are missing or have another shape, such as .*projector"):
        load(tmp_path / "m")


def test_every_type_that_takes_a_video_has_its_video_processor():
    assert {name for name, kind in MODEL_TYPES.items() if kind.frames == "video"} == set(VIDEO_PROCESSORS)


def test_a_still_video_gives_the_patches_of_its_image():
    """Qwen's video path against transformers' own image path, which repeats a picture over the temporal patch."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    sizes = {"patch_size": 7, "merge_size": 2, "temporal_patch_size": 2}
    limits = {"min_pixels": 14 * 14, "max_pixels": 56 * 56}
    smooth = np.kron(np.random.default_rng(0).integers(0, 256, (5, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    image = Qwen2VLImageProcessorPil(**sizes, **limits)(images=[smooth], return_tensors="pt")
    video = VIDEO_PROCESSORS["qwen2_5_vl"](**sizes, **limits)(videos=[np.stack([smooth] * 2)], return_tensors="pt")
    assert video["video_grid_thw"].tolist() == image["image_grid_thw"].tolist()
    # Two implementations of bicubic on 8 bits: one grey level is 1 / 255 / 0.27.
    torch.testing.assert_close(video["pixel_values_videos"], image["pixel_values"], atol=0.03, rtol=0)


def test_cropping_pads_small_images_with_zeros():
    processor = VIDEO_PROCESSORS["video_llava"](
        do_resize=False, do_normalize=False, crop_size={"height": 8, "width": 4}
    )
    frames = np.full((1, 5, 8, 3), 255, np.uint8)
    cropped = processor(videos=[frames], return_tensors="pt")["pixel_values_videos"][0, 0, 0]
    assert cropped.shape == (8, 4)
    assert cropped[:, 0].tolist() == [0, 1, 1, 1, 1, 1, 0, 0]


def test_an_unknown_name_is_an_error_with_the_download_command(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"nobody/nothing: its configuration cannot be read .*hf download nobody/nothing"
    ):
        load("nobody/nothing")


def test_a_device_or_a_precision_that_is_not_there_is_refused_first(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="device is 'gpu'; expected auto, cpu or cuda"):
        load("nobody/nothing", device="gpu")
    with pytest.raises(UserError, match="device=cuda, but torch finds no GPU"):
        load("nobody/nothing", device="cuda")
    with pytest.raises(UserError, match="dtype is 'int8'; expected auto, float32, bfloat16 or float16"):
        load("nobody/nothing", device="cpu", dtype="int8")


def test_instructblip_published_for_images_answers_about_videos(tmp_path):
    as_video = tiny_chat.write_instructblip_video(tmp_path / "video")
    shutil.copytree(as_video, tmp_path / "image")
    config = json.loads((as_video / "config.json").read_text())
    renamed = json.dumps(config).replace('"instructblipvideo', '"instructblip')
    (tmp_path / "image" / "config.json").write_text(renamed)
    request = Request("What does she feel?", images=pictures())
    replies = [load(folder, device="cpu").answer([request], 4) for folder in (as_video, tmp_path / "image")]
    assert replies[0] == replies[1]
    del config["video_token_index"]
    (tmp_path / "image" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"<video> is token \d+, but the configuration has video_token_index=None"):
        load(tmp_path / "image")
