"""A model's description and the formats that depend on it: checkpoints on disk and addresses in the cache."""

import json
from dataclasses import replace

import pytest

from affectgpt.cache.reader import clip_reader
from affectgpt.config import EncoderConfig, LLMConfig, LoraConfig, ModelConfig, ProjectorConfig, SamplingConfig
from affectgpt.models import ModelSpec, build, model_spec
from affectgpt.runtime import InputError
from affectgpt.schema import MODALITIES
from tests.models import tiny

STORED = (
    '{"llm": "org/llm", "encoders": {"audio": {"name": "org/audio", "revision": "abc", "layers": "last4_mean", '
    '"pool": "tokens", "dtype": "float32", "stride": 3, "grid": 0, "image_size": null}}, "projectors": {"audio": '
    '{"kind": "qformer", "n_queries": 32, "hidden_size": 768, "n_layers": 2, "n_heads": 12, "dropout": 0.1, '
    '"max_positions": null, "softmax": true, "group_size": 4, "sources": [], "unless": null}}, "llm_revision": null, '
    '"llm_dtype": "bfloat16", "llm_quantization": null, "sampling": {"n_frames": 8, "n_motion_frames": 16, '
    '"n_faces": 8, "n_motion_faces": 16, "rate_hz": 16000, "window_s": 10.0, "max_windows": 3, '
    '"window_mode": "cover"}, "lora": {"r": 4, "alpha": 32, "dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}, '
    '"prompt_format": "auto", "seed": 7}'
)
"""The description in affectgpt.json as the first release wrote it."""


def described(**changes) -> ModelConfig:
    values = {
        "llm": LLMConfig("org/llm", dtype="bfloat16", lora=LoraConfig(r=4)),
        "encoders": {"audio": EncoderConfig("org/audio", "abc", layers="last4_mean", stride=3)},
        "projectors": {"audio": ProjectorConfig()},
    }
    return ModelConfig(**{**values, **changes})


def test_the_stored_form_of_a_description_stays_what_it_was():
    spec = model_spec(described(), seed=7)
    assert json.dumps(spec.to_dict()) == STORED
    assert ModelSpec.from_dict(json.loads(STORED)) == spec


def test_without_adapters_none_are_stored():
    spec = model_spec(described(llm=LLMConfig("org/llm")), seed=7)
    assert spec.to_dict()["lora"] is None
    assert ModelSpec.from_dict(spec.to_dict()) == spec


def test_a_description_does_not_follow_later_changes_of_the_configuration():
    config = described()
    spec = model_spec(config, seed=0)
    config.encoders["audio"].pool = "mean"
    config.llm.lora.target_modules.append("k_proj")
    assert spec == model_spec(described(), seed=0)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"projectors": {}}, r"encoders name \['audio'\], projectors \[\]; a modality needs both"),
        ({"projectors": {"audio": ProjectorConfig("none")}}, "a modality needs both"),
        (
            {"encoders": {"smell": EncoderConfig()}, "projectors": {"smell": ProjectorConfig()}},
            r"modalities \['smell'\] are unknown",
        ),
        ({"projectors": {"audio": ProjectorConfig(unless="face")}}, r"audio: sources and unless name \['face'\]"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(changes, shown):
    with pytest.raises(InputError, match=shown):
        model_spec(described(**changes), seed=0)


FINGERPRINTS = {
    "audio": "5bf600c3c32baf796d6c64f69e668a97fc045d8a535e1118fc2bc142ce70b9ec",
    "frames": "83874e93f80b3a596bd0b293246b1f7327c5e86a169509d605e955898863cb45",
    "motion": "e418272559bff057a279c6735d58b642e025968b36852e739c7f056a14597bc5",
    "face": "05c11e18b9f2498c55b3765e15a3830afbad959f1d67a4fe3df7e667c28a162a",
    "face_motion": "dc7917118ce5350b5729861b03f7cd7a664ff4653bd7f3eb174297ce2ccc8b00",
}
ADDRESSES = {
    "audio": "863b84bd6bb23abb",
    "frames": "5c052690ceea789f",
    "motion": "4d7896d2764ac655",
    "face": "750a0637f54f985b",
    "face_motion": "ce381c07c99e872c",
}


LAST_TWO = {"address": "c91d56d74f61512a", "of the first release": "97fb02362bc26558"}
"""Speech states with the last layer: they depended on the installed transformers, now they have the final norm."""


def test_cached_states_stay_where_the_first_release_put_them(tmp_path):
    paths = tiny.write_base_models(tmp_path / "base", modalities=MODALITIES)
    encoders = tiny.tiny_spec(paths, MODALITIES).encoders
    make = lambda layers: tiny.tiny_spec(  # noqa: E731
        paths,
        MODALITIES,
        encoders={
            **encoders,
            "audio": replace(encoders["audio"], layers=layers, stride=3),
            "frames": replace(encoders["frames"], grid=2, image_size=56),
        },
        sampling=SamplingConfig(
            n_frames=2, n_motion_frames=4, n_faces=2, n_motion_faces=4, window_s=0.1, max_windows=3
        ),
    )

    def stores(layers):
        model, processor = build(make(layers), load_llm=False)
        model.config.base_fingerprints = {name: f"sha256:{name}" for name in ("llm", *MODALITIES)}
        return model, clip_reader(model, processor, cache_folder=tmp_path / "cache")._cache._stores

    model, found = stores(-2)
    assert {name: model.encoder_fingerprint(name) for name in MODALITIES} == FINGERPRINTS
    assert {name: store.folder for name, store in found.items()} == {
        name: tmp_path / "cache" / "features" / name / address for name, address in ADDRESSES.items()
    }
    assert stores("last2_mean")[1]["audio"].folder.name == LAST_TWO["address"]
