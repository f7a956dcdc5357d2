"""Encoders that need more than AutoModel: image Q-Former, ViTMAE, Whisper; other picture sizes; thinned-out states."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Blip2ForConditionalGeneration,
    ViTMAEModel,
    WavLMConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from affectgpt.config import EncoderConfig, ProjectorConfig
from affectgpt.models import build, encoders, shapes
from affectgpt.models.configuration_affectgpt import EncoderArchitecture
from tests.models import tiny
from tests.models.test_encoders import CLIP_FRAMES, FRAMES, MOTION, SOUND, encoder


@pytest.fixture(scope="module")
def blip2(tmp_path_factory):
    return tiny.write_blip2(tmp_path_factory.mktemp("blip2"))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return tiny.write_whisper(tmp_path_factory.mktemp("whisper"))


def load_as(modality, folder, dtype="float32", **options) -> encoders.Encoder:
    pool = options.get("pool", "tokens")
    config = EncoderArchitecture(base=encoders.load_config(str(folder), pool=pool), dtype=dtype, **options)
    return encoders.Encoder(modality, config, encoders.load(str(folder), dtype=dtype, pool=pool))


# ---------------------------------------------------------------- image Q-Former


def test_queries_are_what_blip2s_qformer_reads_from_each_frame(blip2):
    whole = Blip2ForConditionalGeneration.from_pretrained(blip2).eval()
    theirs = whole.get_image_features(FRAMES).qformer_outputs.last_hidden_state  # [2, 4, 24]
    ours = load_as("frames", blip2, pool="queries")(FRAMES)
    assert ours.shape == (2 * 4, 24)
    # BLIP-2's own norm before the Q-Former has eps 1e-5, transformers takes 1e-6.
    torch.testing.assert_close(ours, theirs.flatten(0, 1), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(ours[:4], ours[4:], atol=1e-2)


def test_the_qformer_stays_in_full_precision_beside_a_half_precision_vision_model(blip2):
    model = load_as("frames", blip2, dtype="bfloat16", pool="queries")
    states = model(FRAMES)
    dtypes = {name.split(".")[0]: p.dtype for name, p in model.model.named_parameters()}
    assert dtypes["qformer"] == dtypes["query_tokens"] == torch.float32
    assert model.model.vision_model.embeddings.patch_embedding.weight.dtype == torch.bfloat16
    assert model.model.vision_model.post_layernorm.weight.dtype == torch.float32
    assert states.dtype == torch.bfloat16  # what is cached
    full = load_as("frames", blip2, pool="queries")(FRAMES)
    torch.testing.assert_close(states.float(), full, rtol=0.2, atol=0.2)


@pytest.mark.parametrize("lost", ["query_tokens", "qformer.layernorm.weight", "vision_model.post_layernorm.bias"])
def test_a_blip2_that_lacks_a_part_is_refused_by_its_name(blip2, tmp_path, lost):
    weights = load_file(blip2 / "model.safetensors")
    key = next(name for name in weights if name.endswith(lost))
    save_file({name: each for name, each in weights.items() if name != key}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((blip2 / "config.json").read_bytes())
    with pytest.raises(ValueError, match=rf"lacks 1 weights of ImageQFormer \({lost}"):
        encoders.load(str(tmp_path), pool="queries")


def test_queries_need_a_blip2(bases):
    with pytest.raises(ValueError, match="pool 'queries' needs a BLIP-2, found a model of type 'blip_2_vision_model'"):
        encoders.load(str(bases["frames"]), pool="queries")


def test_a_projector_behind_the_image_qformer_counts_time_in_frames(blip2, bases):
    spec = tiny.tiny_spec(bases | {"frames": blip2}, ("frames",))
    spec = replace(spec, encoders={"frames": EncoderConfig(str(blip2), pool="queries")})
    model, processor = build(spec)
    config = model.config.projector("frames")
    assert (config.input_size, config.max_positions, config.tokens_per_position) == (24, 2, 4)
    row = processor.encode(tiny.question("frames"), tiny.media("frames"))
    assert model.encode(row)["frames"].shape == (2 * 4, 24)


# ---------------------------------------------------------------- ViTMAE


def test_vit_mae_sees_the_whole_picture_in_order_and_draws_nothing(tmp_path):
    folder = tiny.write_vit_mae(tmp_path)
    model = encoder("face", folder)
    first = model(CLIP_FRAMES)
    assert first.shape == (2 * 5, 32)
    assert torch.equal(first, model(CLIP_FRAMES))
    theirs = ViTMAEModel.from_pretrained(folder, mask_ratio=0.0).eval()
    output = theirs(CLIP_FRAMES)  # shuffled by noise; ids_restore says where each patch went
    order = output.ids_restore[..., None].expand(-1, -1, 32)
    restored = output.last_hidden_state[:, 1:].gather(1, order)
    torch.testing.assert_close(first.unflatten(0, (2, 5))[:, 1:], restored)
    assert torch.equal(encoder("face", folder, pool="cls")(CLIP_FRAMES), first.unflatten(0, (2, 5))[:, 0])


# ---------------------------------------------------------------- Whisper


def test_whispers_spectrum_is_that_of_its_feature_extractor(whisper):
    sound = np.random.default_rng(0).normal(size=16000).astype(np.float32) * np.linspace(
        0.01, 1, 16000, dtype=np.float32
    )
    theirs = WhisperFeatureExtractor(feature_size=8)(sound, sampling_rate=16000, return_tensors="pt").input_features
    ours = load_as("audio", whisper).model.spectrogram(torch.from_numpy(sound)[None])
    assert ours.shape == (1, 8, 3000)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_whisper_hands_over_the_states_of_the_sound_and_none_of_the_silence_behind_it(whisper):
    sound = SOUND[:1, :1600]
    features = WhisperFeatureExtractor(feature_size=8)(sound[0].numpy(), sampling_rate=16000, return_tensors="pt")
    theirs = WhisperForConditionalGeneration.from_pretrained(whisper).model.encoder.eval()
    hidden = theirs(features.input_features).last_hidden_state  # [1, 1500, 32]
    ours = load_as("audio", whisper)(sound)
    assert ours.shape == (5, 32)
    torch.testing.assert_close(ours, hidden[0, :5], rtol=1e-3, atol=1e-3)
    last = load_as("audio", whisper, layers="last2_mean", pool="mean")(sound)
    assert last.shape == (1, 32)


def test_whisper_is_fed_sound_as_it_is_in_one_window_of_30_s(whisper, bases):
    spec = tiny.tiny_spec(bases | {"audio": whisper}, ("audio",))
    spec = replace(spec, sampling=replace(spec.sampling, window_s=30.0, max_windows=1))
    model, processor = build(spec)
    assert processor.branches["audio"]["normalize"] is False
    row = processor.encode(tiny.question("audio"), tiny.media("audio"))
    assert row["input_values"].shape == (1, 4000)
    assert model.encode(row)["audio"].shape == (13, 32)  # ceil(4000 / 320)
    with pytest.raises(ValueError, match=r"Whisper takes at most 30 s per window, found 31 s; set sampling.window_s"):
        model.encoders["audio"](torch.zeros(1, 31 * 16000))


def test_whisper_in_half_precision_still_listens_in_full(whisper):
    half, full = (load_as("audio", whisper, dtype=dtype)(SOUND[:1]) for dtype in ("bfloat16", "float32"))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.1, atol=0.1)


# ---------------------------------------------------------------- other sizes, fewer states


@pytest.mark.parametrize("kind", ["eva", "clip", "vit_mae", "dinov2"])
def test_a_picture_of_another_size_gives_more_patches_with_positions_between_those_learned(tmp_path, bases, kind):
    write = {"clip": tiny.write_clip, "vit_mae": tiny.write_vit_mae, "dinov2": tiny.write_dinov2}
    folder = bases["frames"] if kind == "eva" else write[kind](tmp_path)
    size, patch = (56, 14) if kind in ("eva", "dinov2") else (32, 8)
    spec = tiny.tiny_spec(bases, ("frames",), encoders={"frames": EncoderConfig(str(folder), image_size=size)})
    model, processor = build(spec)
    row = processor.encode(tiny.question("frames"), tiny.media("frames"))
    assert row["pixel_values"].shape == (2, 3, size, size)
    states = model.encode(row)["frames"]
    assert states.shape == (2 * (1 + (size // patch) ** 2), 32)
    assert states.isfinite().all()
    plain = build(replace(spec, encoders={"frames": EncoderConfig(str(folder))}))[0]
    assert plain.encoder_fingerprint("frames") != model.encoder_fingerprint("frames")


def test_grid_averages_neighbouring_patches_of_each_step(bases, tmp_path):
    model = encoder("motion", bases["motion"], grid=1)
    tokens = encoder("motion", bases["motion"])(MOTION).unflatten(0, (2, 4))
    torch.testing.assert_close(model(MOTION), tokens.mean(dim=1))
    four = torch.randn(2, 3, 56, 56)
    patches = encoder("frames", bases["frames"])(four).unflatten(0, (2, 17))[:, 1:].unflatten(1, (4, 4))
    coarse = encoder("frames", bases["frames"], grid=2)(four).unflatten(0, (2, 2, 2))
    torch.testing.assert_close(coarse[:, 0, 1], patches[:, :2, 2:].mean(dim=(1, 2)))


def test_stride_averages_sound_in_time_and_the_last_group_over_what_there_is(bases):
    tokens = encoder("audio", bases["audio"])(SOUND).unflatten(0, (2, 4))
    thin = encoder("audio", bases["audio"], stride=3)(SOUND).unflatten(0, (2, 2))
    torch.testing.assert_close(thin[:, 0], tokens[:, :3].mean(dim=1))
    torch.testing.assert_close(thin[:, 1], tokens[:, 3])


def test_thinning_out_goes_with_all_tokens_only(bases):
    with pytest.raises(ValueError, match="stride and grid thin out pool 'tokens', found pool 'mean'"):
        EncoderArchitecture(base={}, pool="mean", stride=2)
    with pytest.raises(ValueError, match="frames: stride is for audio; use grid for images and video"):
        encoder("frames", bases["frames"], stride=2)(FRAMES)
    with pytest.raises(ValueError, match="stride is 2 and grid 4; stride thins out by a factor, grid to a number"):
        EncoderArchitecture(base={}, stride=2, grid=4)


def test_a_grid_brings_the_states_of_a_sound_to_a_number(bases):
    """As torch's adaptive average pooling: state i is the mean of those from floor(i*T/n) to ceil((i+1)*T/n)."""
    all_states = encoder("audio", bases["audio"])(SOUND)
    few = encoder("audio", bases["audio"], grid=2)(SOUND)
    n = len(all_states)
    expected = torch.stack([all_states[: -(-n // 2)].mean(dim=0), all_states[n // 2 :].mean(dim=0)])
    torch.testing.assert_close(few, expected)


def test_an_image_encoder_sees_a_video_frame_by_frame_if_asked_to(bases):
    frames = torch.randn(4, 3, 28, 28, generator=torch.manual_seed(0))
    states = encoder("motion", bases["frames"], grid=1, per_frame=True)(frames)
    each = [encoder("frames", bases["frames"], grid=1)(frame[None]) for frame in frames]
    torch.testing.assert_close(states, torch.cat(each), rtol=0, atol=1e-6)


def test_the_mean_of_pooled_vectors_is_one_vector(tmp_path):
    folder = tiny.write_clip(tmp_path)
    each = encoder("frames", folder, pool="pooled")(CLIP_FRAMES)
    torch.testing.assert_close(encoder("frames", folder, pool="pooled_mean")(CLIP_FRAMES), each.mean(dim=0)[None])


def test_states_cached_before_there_were_grid_stride_and_size_stay_valid(built):
    """Their key holds exactly what it held: base model, layers, pool, precision and sampling."""
    import hashlib
    import json

    model, _ = built
    sampling = model.config.spec["sampling"]
    identity = {
        "base": model.config.base_fingerprints["frames"], "layers": -1, "pool": "tokens", "dtype": "float32",
        "n_frames": sampling["n_frames"],
    }  # fmt: skip
    assert (
        model.encoder_fingerprint("frames") == hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    )


def test_each_thinning_has_its_own_fingerprint(bases):
    prints = set()
    for options in ({}, {"grid": 1}, {"grid": 2}, {"pool": "frame"}):
        spec = tiny.tiny_spec(bases, ("frames",), encoders={"frames": EncoderConfig(str(bases["frames"]), **options)})
        prints.add(build(spec, load_encoders=False)[0].encoder_fingerprint("frames"))
    assert len(prints) == 4


# ---------------------------------------------------------------- face crops


def test_face_crops_are_stretched_and_normalised_like_frames(bases, tmp_path):
    folder = tiny.write_clip(tmp_path)
    spec = tiny.tiny_spec(bases | {"frames": folder, "face": folder}, ("frames", "face"))
    model, processor = build(spec)
    crops = tiny.media("face")["face"]
    media = {"frames": crops, "face": crops}
    row = processor.encode(tiny.question("frames", "face"), media)
    assert torch.equal(row["pixel_values"], row["pixel_values_faces"])
    states = model.encode(row)
    assert torch.equal(states["frames"], states["face"])
    text = processor.tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert text.index("<frames>") < text.index("<face>")


def test_a_film_of_faces_goes_through_a_video_encoder(bases):
    spec = tiny.tiny_spec(bases | {"face_motion": bases["motion"]}, ("face_motion",))
    model, processor = build(spec)
    row = processor.encode(tiny.question("face_motion"), tiny.media("face_motion"))
    assert model.encode(row)["face_motion"].shape == (2 * 4, 32)
    spec = tiny.tiny_spec(bases | {"face_motion": bases["frames"]}, ("face_motion",))
    with pytest.raises(
        ValueError,
        match=r"face_motion: Blip2VisionModel is not a video encoder.*configure it as face, or set per_frame",
    ):
        build(spec)


def test_grouped_states_lie_side_by_side_behind_the_class_token(bases):
    """Emotion-LLaMA's visual tokens in small: 56 px, 16 patches by four -> 4 tokens, and the class token."""
    spec = tiny.tiny_spec(
        bases, ("frames",),
        encoders={"frames": EncoderConfig(str(bases["frames"]), image_size=56)},
        projectors={"frames": ProjectorConfig("grouped", n_queries=5, group_size=4)},
        sampling=replace(tiny.SAMPLING, n_frames=1),
    )  # fmt: skip
    model, processor = build(spec)
    media = {"frames": tiny.media("frames")["frames"][:1]}
    states = model.encode(processor.encode(tiny.question("frames"), media))["frames"]  # [17, 32]
    project = model.projectors["frames"].project
    tokens = model.soft_tokens("frames", {"frames_states": states[None]})[0]
    torch.testing.assert_close(tokens[0], project.class_output(states[0]))
    torch.testing.assert_close(tokens[2], project.output(torch.cat(list(states[5:9]))))
    wrong = replace(spec, projectors={"frames": ProjectorConfig("grouped", n_queries=4)})
    with pytest.raises(
        ValueError, match=r"1 class tokens and 16 other states in groups of 4 give 5 soft tokens.*n_queries is 4"
    ):
        build(wrong)


def test_wavlm_large_normalises_first_like_hubert_large():
    config = shapes.published_config("microsoft/wavlm-large")
    assert isinstance(config, WavLMConfig)
    assert config.do_stable_layer_norm
