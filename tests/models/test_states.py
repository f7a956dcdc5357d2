"""Hidden states are those that the layers compute, whatever the installed transformers calls its hidden states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    Dinov2Config,
    Dinov2Model,
    HubertConfig,
    HubertModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    VideoMAEConfig,
    VideoMAEModel,
    ViTMAEConfig,
    ViTMAEModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
)
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionConfig, Blip2VisionModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from affectgpt.models.configuration_affectgpt import EncoderArchitecture
from affectgpt.models.encoders import Encoder, WhisperAudio

N_LAYERS, WIDTH = 4, 32
SIZES = {
    "hidden_size": WIDTH, "num_hidden_layers": N_LAYERS, "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip
SPEECH = {
    **SIZES, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
    "initializer_range": 0.2,
}  # fmt: skip
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
PIXELS = {"image_size": 16, "patch_size": 8}


def first(output) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def through(states: Tensor, layers: nn.ModuleList, *args, **kwargs) -> list[Tensor]:
    """The input of the first layer and the output of each."""
    every = [states]
    for layer in layers:
        every.append(first(layer(every[-1], *args, **kwargs)))
    return every


def speech(model, sound: Tensor) -> tuple[list[Tensor], Tensor]:
    convolved = model.feature_extractor(sound).transpose(1, 2)
    states = first(model.feature_projection(convolved))
    encoder = model.encoder
    states = states + encoder.pos_conv_embed(states)
    if model.config.do_stable_layer_norm if hasattr(model.config, "do_stable_layer_norm") else False:
        every = through(states, encoder.layers)
        return every, encoder.layer_norm(every[-1])
    every = through(encoder.layer_norm(states), encoder.layers)
    return every, every[-1]


def wavlm(model, sound: Tensor) -> tuple[list[Tensor], Tensor]:
    """Its first layer computes the relative positions that the others reuse."""
    states = first(model.feature_projection(model.feature_extractor(sound).transpose(1, 2)))
    every, bias = [states + model.encoder.pos_conv_embed(states)], None
    for number, layer in enumerate(model.encoder.layers):
        output = layer(every[-1], attention_mask=None, position_bias=bias, output_attentions=False, index=number)
        every.append(output[0])
        bias = output[1]
    return every, model.encoder.layer_norm(every[-1])


def whisper(model, sound: Tensor) -> tuple[list[Tensor], Tensor]:
    encoder, n_states = model.encoder, -(-sound.shape[1] // 320)
    convolved = nn.functional.gelu(encoder.conv1(model.spectrogram(sound)))
    convolved = nn.functional.gelu(encoder.conv2(convolved)).transpose(1, 2)
    every = through(convolved + encoder.embed_positions.weight, encoder.layers, None)
    return [each[:, :n_states] for each in every], encoder.layer_norm(every[-1])[:, :n_states]


def clip(model, images: Tensor) -> tuple[list[Tensor], Tensor]:
    vision = getattr(model, "vision_model", model)
    every = through(vision.pre_layrnorm(vision.embeddings(images)), vision.encoder.layers, attention_mask=None)
    return every, every[-1]


def siglip(model, images: Tensor) -> tuple[list[Tensor], Tensor]:
    vision = getattr(model, "vision_model", model)
    every = through(vision.embeddings(images), vision.encoder.layers, attention_mask=None)
    return every, vision.post_layernorm(every[-1])


def eva(model, images: Tensor) -> tuple[list[Tensor], Tensor]:
    every = through(model.embeddings(images), model.encoder.layers)
    return every, model.post_layernorm(every[-1])


def vit(model, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """DINOv2, VideoMAE and MAE without a mask."""
    if isinstance(model, VideoMAEModel):
        states = model.embeddings(images, None)
    elif isinstance(model, ViTMAEModel):
        table, patches = model.embeddings.position_embeddings, model.embeddings.patch_embeddings(images)
        cls = (model.embeddings.cls_token + table[:, :1]).expand(len(images), -1, -1)
        states = torch.cat([cls, patches + table[:, 1:]], dim=1)
    else:
        states = model.embeddings(images)
    (blocks,) = (part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == N_LAYERS)
    every = through(states, blocks)
    norm = getattr(model, "layernorm", None)
    return every, every[-1] if norm is None else norm(every[-1])


def _whisper_encoder():
    config = WhisperConfig(
        d_model=WIDTH, encoder_layers=N_LAYERS, encoder_attention_heads=2, encoder_ffn_dim=64, num_mel_bins=80,
        init_std=0.2,
    )  # fmt: skip
    return WhisperAudio(WhisperEncoder(config))


_DATA2VEC = {key: value for key, value in SPEECH.items() if key != "initializer_range"}
MODELS = {
    "chinese-hubert-large": ("audio", lambda: HubertModel(HubertConfig(**SPEECH, **LARGE)), speech),
    "hubert-base": ("audio", lambda: HubertModel(HubertConfig(**SPEECH)), speech),
    "wav2vec2-large": ("audio", lambda: Wav2Vec2Model(Wav2Vec2Config(**SPEECH, **LARGE)), speech),
    "wav2vec2-base": ("audio", lambda: Wav2Vec2Model(Wav2Vec2Config(**SPEECH)), speech),
    "wavlm-large": ("audio", lambda: WavLMModel(WavLMConfig(**SPEECH, **LARGE)), wavlm),
    "data2vec": ("audio", lambda: Data2VecAudioModel(Data2VecAudioConfig(**_DATA2VEC)), speech),
    "whisper": ("audio", _whisper_encoder, whisper),
    "clip": ("frames", lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZES, **PIXELS)), clip),
    "siglip": ("frames", lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES, **PIXELS)), siglip),
    "eva": ("frames", lambda: Blip2VisionModel(Blip2VisionConfig(**SIZES, **PIXELS)), eva),
    "dinov2": ("frames", lambda: Dinov2Model(Dinov2Config(**_dino(), **PIXELS)), vit),
    "mae": ("frames", lambda: ViTMAEModel(ViTMAEConfig(**SIZES, **PIXELS, mask_ratio=0.0)), vit),
    "videomae": (
        "motion",
        lambda: VideoMAEModel(VideoMAEConfig(**SIZES, **PIXELS, num_frames=4, use_mean_pooling=False)),
        vit,
    ),
}


def _dino():
    return {key: value for key, value in SIZES.items() if key != "intermediate_size"} | {"mlp_ratio": 2}


@pytest.fixture(scope="module", params=MODELS)
def kind(request):
    """(modality, model, inputs, hidden states by hand, output by hand)"""
    modality, make, by_hand = MODELS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "norm.bias")):  # a fresh norm could be applied twice unnoticed
                nn.init.normal_(parameter, mean=0.5, std=0.5)
        inputs = (
            torch.randn(2, 4000) if modality == "audio" else torch.randn(4 if modality == "motion" else 2, 3, 16, 16)
        )
    with torch.no_grad():
        every, last = by_hand(model, inputs[None] if modality == "motion" else inputs)
    return modality, model, inputs, every, last


def states(kind, layers) -> Tensor:
    modality, model, inputs, *_ = kind
    base = {"model_type": model.config.model_type} | {key: SIZES[key] for key in ("num_hidden_layers",)}
    return Encoder(modality, EncoderArchitecture(base=base, layers=layers), model)(inputs)


def test_the_last_hidden_state_has_the_final_norm(kind):
    *_, last = kind
    torch.testing.assert_close(states(kind, -1), last.flatten(0, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_a_layer_is_the_input_of_its_block(kind, layer):
    *_, every, _ = kind
    for index in (layer, layer - N_LAYERS - 1):
        torch.testing.assert_close(states(kind, index), every[layer].flatten(0, 1), rtol=1e-4, atol=1e-4)


def test_the_mean_of_the_last_four_has_the_final_norm_of_speech_models(kind):
    modality, *_, every, last = kind
    final = last if modality == "audio" else every[-1]
    expected = torch.stack([*every[-4:-1], final]).mean(dim=0).flatten(0, 1)
    torch.testing.assert_close(states(kind, "last4_mean"), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(states(kind, N_LAYERS), final.flatten(0, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("base", "layers", "differs"),
    [
        (LARGE, "last4_mean", True),
        (LARGE, N_LAYERS, True),
        (LARGE, -1, False),
        (LARGE, -2, False),
        (LARGE, 2, False),
        ({}, "last4_mean", False),
    ],
)
def test_only_states_that_depended_on_the_version_of_transformers_have_a_new_address(base, layers, differs):
    fields = {"model_type": "hubert", "num_hidden_layers": N_LAYERS, **base}
    assert EncoderArchitecture(base=fields, layers=layers).takes_final_norm is differs
