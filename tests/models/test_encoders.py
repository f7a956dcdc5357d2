"""Frozen encoders: what they hand over, and that nothing moves them."""

from __future__ import annotations

import builtins
from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModel,
    Blip2VisionModel,
    CLIPVisionModelWithProjection,
    HubertModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from affectgpt.config import EncoderConfig, ProjectorConfig
from affectgpt.models import build, encoders
from affectgpt.models.configuration_affectgpt import EncoderArchitecture
from tests.models import tiny

SOUND = torch.randn(2, 1600, generator=torch.Generator().manual_seed(0))
FRAMES = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
CLIP_FRAMES = FRAMES[..., :16, :16]
SMALL_VIT = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
MOTION = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def encoder(modality, folder, **options) -> encoders.Encoder:
    config = EncoderArchitecture(base=encoders.load_config(str(folder)), **options)
    return encoders.Encoder(modality, config, encoders.load(str(folder)))


# ---------------------------------------------------------------- layers and pools


def test_eva_hands_over_all_tokens_of_blip2s_vision_model(bases):
    theirs = Blip2VisionModel.from_pretrained(bases["frames"]).eval()(FRAMES).last_hidden_state  # [2, 5, 32]
    assert torch.equal(encoder("frames", bases["frames"])(FRAMES), theirs.flatten(0, 1))


def test_automodel_builds_the_eva_layout(bases):
    assert isinstance(AutoModel.from_pretrained(bases["frames"]), Blip2VisionModel)


def test_frame_pool_is_the_mean_of_a_frames_patches_and_cls_its_class_token(bases):
    tokens = encoder("frames", bases["frames"])(FRAMES).unflatten(0, (2, 5))
    torch.testing.assert_close(encoder("frames", bases["frames"], pool="frame")(FRAMES), tokens[:, 1:].mean(dim=1))
    assert torch.equal(encoder("frames", bases["frames"], pool="cls")(FRAMES), tokens[:, 0])
    mean = encoder("frames", bases["frames"], pool="mean")(FRAMES)
    torch.testing.assert_close(mean, tokens[:, 1:].mean(dim=(0, 1))[None])


def test_videomae_gives_a_state_a_tubelet(bases):
    tokens = encoder("motion", bases["motion"])(MOTION)
    assert tokens.shape == (2 * 4, 32)  # 2 tubelets of 2 x 2 patches
    frames = encoder("motion", bases["motion"], pool="frame")(MOTION)
    torch.testing.assert_close(frames, tokens.unflatten(0, (2, 4)).mean(dim=1))


def test_last4_mean_averages_the_last_hidden_states_and_window_pools_time(bases):
    """The acoustic features of AffectGPT (ICML 2025), with two layers for four."""
    model = HubertModel.from_pretrained(bases["audio"]).eval()
    output = model(SOUND, output_hidden_states=True)
    hidden = (*output.hidden_states[:-1], output.last_hidden_state)
    theirs = torch.stack(hidden[-2:]).mean(dim=0).mean(dim=1)
    torch.testing.assert_close(encoder("audio", bases["audio"], layers="last2_mean", pool="window")(SOUND), theirs)
    one = encoder("audio", bases["audio"], layers=1)(SOUND)
    torch.testing.assert_close(one, hidden[1].flatten(0, 1))


def test_pooled_is_clips_projected_embedding(tmp_path):
    folder = tiny.write_clip(tmp_path)
    theirs = CLIPVisionModelWithProjection.from_pretrained(folder).eval()(CLIP_FRAMES).image_embeds
    ours = encoder("frames", folder, pool="pooled")(CLIP_FRAMES)
    assert ours.shape == (2, 24)
    torch.testing.assert_close(ours, theirs)


def test_the_mean_over_unequal_windows_is_the_mean_over_time(bases):
    padded = torch.stack([SOUND[0], torch.cat([SOUND[1, :800], torch.zeros(800)])])
    lengths = torch.tensor([1600, 800])
    tokens = encoder("audio", bases["audio"])(padded, lengths)
    mean = encoder("audio", bases["audio"], pool="mean")(padded, lengths)
    torch.testing.assert_close(mean[0], tokens.mean(dim=0))


@pytest.mark.parametrize(
    ("modality", "options", "text"),
    [
        ("frames", {"layers": 7}, "frames: layers is 7, the encoder has 3 hidden states"),
        ("audio", {"layers": "last9_mean"}, "the encoder has 3 hidden states"),
        ("motion", {"pool": "cls"}, "motion: this encoder has no class token; use pool 'frame' or 'mean'"),
        ("motion", {"pool": "pooled"}, "motion: VideoMAEModel has no pooled output"),
        ("frames", {"pool": "pooled", "layers": 1}, "pool 'pooled' needs layers -1"),
    ],
)
def test_what_an_encoder_does_not_have_is_named(bases, modality, options, text):
    with pytest.raises(ValueError) as error:
        encoder(modality, bases[modality], **options)({"audio": SOUND, "frames": FRAMES, "motion": MOTION}[modality])
    assert text in str(error.value)


def test_unknown_layers_and_pools_are_errors(bases):
    with pytest.raises(ValueError, match="layers is 'last'; expected a layer index"):
        EncoderArchitecture(base={}, layers="last")
    spec = tiny.tiny_spec(bases, ("audio",), encoders={"audio": EncoderConfig(str(bases["audio"]), pool="cls")})
    with pytest.raises(ValueError, match=r"audio: pool 'cls' is not one of \['tokens', 'window', 'mean'\]"):
        build(spec)


# ---------------------------------------------------------------- frozen


def test_padding_of_a_batch_never_enters_the_encoder(bases):
    model = encoder("audio", bases["audio"])
    alone = model(SOUND[:1, :1000], torch.tensor([1000]))
    beside_longer = model(torch.cat([SOUND[:1, :1000], torch.zeros(1, 600)], dim=1), torch.tensor([1000]))
    absent_window = model(torch.cat([SOUND[:1], torch.zeros(1, 1600)])[:, :1000], torch.tensor([1000, 0]))
    assert torch.equal(alone, beside_longer)
    assert torch.equal(alone, absent_window)


def test_train_does_not_wake_an_encoder(bases):
    """HuBERT in training mode has dropout, SpecAugment and LayerDrop."""
    model = encoder("audio", bases["audio"])
    before = model(SOUND)
    torch.nn.Sequential(model).train()
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(SOUND), before)
    assert not before.requires_grad
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_autocast_around_the_model_does_not_change_states(bases):
    model = encoder("frames", bases["frames"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model(FRAMES)
    assert torch.equal(inside, model(FRAMES))


# ---------------------------------------------------------------- other encoders


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm"])
def test_other_speech_models_work_by_automodel(tmp_path, bases, kind):
    config_class, model_class = {"wav2vec2": (Wav2Vec2Config, Wav2Vec2Model), "wavlm": (WavLMConfig, WavLMModel)}[kind]
    config = config_class(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=[8] * 7,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    model_class(config).save_pretrained(tmp_path)
    spec = tiny.tiny_spec(bases | {"audio": tmp_path}, ("audio",))
    model, processor = build(spec)
    row = processor.encode(tiny.question("audio"), tiny.media("audio"))
    assert model.encode(row)["audio"].shape == (3 * 4, 32)  # 4 states a window of 0.1 s


@pytest.mark.parametrize("kind", ["clip", "dinov2", "siglip"])
def test_other_image_models_work_by_automodel(tmp_path, bases, kind):
    if kind == "siglip":
        config = SiglipVisionConfig(**SMALL_VIT)
        SiglipVisionModel(config).save_pretrained(tmp_path)
    else:
        {"clip": tiny.write_clip, "dinov2": tiny.write_dinov2}[kind](tmp_path)
    spec = tiny.tiny_spec(bases | {"frames": tmp_path}, ("frames",))
    pooled = replace(spec, encoders={"frames": EncoderConfig(str(tmp_path), pool="frame")})
    for spec_, n_states in ((spec, 2 * (4 + (kind != "siglip"))), (pooled, 2)):
        model, processor = build(spec_)
        row = processor.encode(tiny.question("frames"), tiny.media("frames"))
        assert model.encode(row)["frames"].shape == (n_states, 32)


def test_the_image_side_of_a_whole_clip_is_taken(tmp_path):
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    text = CLIPTextConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    vision = CLIPVisionConfig(**SMALL_VIT)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    whole = CLIPModel(config).eval()
    whole.save_pretrained(tmp_path)
    theirs = whole.get_image_features(CLIP_FRAMES).pooler_output
    torch.testing.assert_close(encoder("frames", tmp_path, pool="pooled")(CLIP_FRAMES), theirs)


def test_the_vision_model_of_a_whole_blip2_is_taken(tmp_path, bases):
    """The published BLIP-2 repositories are where EVA-CLIP ViT-g is found in transformers' format."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2QFormerConfig, OPTConfig

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = OPTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, word_embed_proj_dim=16)
    config = Blip2Config(
        vision_config=encoders.base_config(encoders.load_config(str(bases["frames"]))).to_dict(),
        qformer_config=Blip2QFormerConfig(**small).to_dict(),
        text_config=text.to_dict(),
    )
    whole = Blip2ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    theirs = whole.vision_model(FRAMES).last_hidden_state.flatten(0, 1)
    assert torch.equal(encoder("frames", tmp_path)(FRAMES), theirs)


def test_a_checkpoint_of_another_model_is_refused_by_the_names_of_its_missing_weights(tmp_path, bases):
    tiny.write_hubert(tmp_path)
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model.safetensors")
    save_file({f"other.{key}": value for key, value in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks \d+ weights of HubertModel \(encoder\."):
        encoders.load(str(tmp_path))


def test_a_missing_pooler_matters_only_where_it_is_used(tmp_path):
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(**SMALL_VIT), add_pooling_layer=False).save_pretrained(tmp_path)
    encoders.load(str(tmp_path))
    with pytest.raises(ValueError, match=r"lacks 2 weights of ViTModel \(pooler\.dense\.bias, pooler\.dense\.weight"):
        encoders.load(str(tmp_path), pool="pooled")


def test_an_image_encoder_cannot_see_motion(bases):
    spec = tiny.tiny_spec(bases | {"motion": bases["frames"]}, ("motion",))
    with pytest.raises(ValueError, match="motion: Blip2VisionModel is not a video encoder; use one such as VideoMAE"):
        build(spec)


def test_timm_that_does_not_import_is_named_with_the_fix(bases, monkeypatch):
    genuine = builtins.__import__

    def without_timm(name, *args, **kwargs):
        if name == "timm":
            raise RuntimeError("operator torchvision::nms does not exist")
        return genuine(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    eva = EncoderConfig("timm:eva_giant_patch14_224.clip_ft_in1k")
    spec = tiny.tiny_spec(bases, ("frames",), encoders={"frames": eva})
    with pytest.raises(ImportError, match=r"nms does not exist.*install `affectgpt\[vision\]`"):
        build(spec)


def test_a_timm_model_gives_layers_and_pools_as_the_others(bases):
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm cannot be imported: {error}")
    name = "vit_tiny_patch16_224"
    reference = timm.create_model(name, num_classes=0).eval()
    model = encoders.TimmEncoder(name)
    model.model.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 224, 224)
    tokens = reference.forward_features(images)

    def run(**options):
        return encoders.Encoder("frames", EncoderArchitecture(base={"timm": name}, **options), model)(images)

    torch.testing.assert_close(run(), tokens.flatten(0, 1))
    torch.testing.assert_close(run(pool="cls"), tokens[:, 0])
    torch.testing.assert_close(run(pool="frame"), tokens[:, 1:].mean(dim=1))
    assert run(layers="last2_mean", pool="cls").shape == run(layers=-2, pool="cls").shape == (2, 192)
    eva = EncoderArchitecture(base={"timm": "eva_giant_patch14_224.clip_ft_in1k"})
    with torch.device("meta"):
        giant = encoders.Encoder("frames", eva).to("meta")
    assert giant(torch.zeros(1, 3, 224, 224, device="meta")).shape == (257, 1408)


def test_projectors_are_sized_by_the_encoder(bases):
    model, _ = build(tiny.tiny_spec(bases), load_encoders=False)
    audio, frames, motion = (model.config.projector(name) for name in ("audio", "frames", "motion"))
    assert (audio.max_positions, audio.tokens_per_position) == (3, 4)  # windows; states a window
    assert (frames.max_positions, frames.tokens_per_position) == (2, 5)  # frames; patches and class token
    assert (motion.max_positions, motion.tokens_per_position) == (2, 4)  # tubelets; patches


def test_a_linear_projector_needs_a_fixed_number_of_states(bases):
    linear = {"frames": ProjectorConfig("linear", n_queries=1)}
    spec = tiny.tiny_spec(bases, ("frames",), projectors=linear)
    with pytest.raises(ValueError, match="pool 'tokens' gives 10 states, n_queries is 1"):
        build(spec)
    build(replace(spec, encoders={"frames": EncoderConfig(str(bases["frames"]), pool="mean")}))
