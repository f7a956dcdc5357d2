"""The shipped presets at full size, on the meta device: sizes, soft tokens and states are the published ones."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from affectgpt.cli import compose
from affectgpt.models import build_hollow, model_spec

LLMS = {
    "llama2_7b_chat": 4096, "vicuna_7b": 4096, "llama3_8b": 4096, "qwen25_7b": 3584, "qwen3_8b": 4096,
    "smollm2_135m": 576, "smollm2_360m": 960, "qwen3_0_6b": 1024,
}  # fmt: skip
# preset -> soft tokens that a clip with all of the shown media gives, trained parameters, LoRA's among them
PUBLISHED = {
    "affectgpt": ({"audio": 32, "frames": 32, "motion": 32}, 67_828_736, 0),  # this project's own, not published
    "small": ({"audio": 16, "frames": 32, "motion": 16}, 25_802_816, 8_683_520),  # this project's own
    "affectgpt_v1": ({"audio": 8, "frames": 32}, 44_959_744, 0),
    "affectgpt_v2": ({"multi": 1, "audio": 1, "face": 1}, 57_168_644, 40_370_176),
    "emotion_llama": ({"audio": 1, "frames": 257, "face": 1, "face_motion": 1}, 74_993_664, 33_554_432),
    "emotion_llama_v2": ({"multi": 64, "audio": 64, "frames": 256, "motion": 64}, 71_536_387, 33_554_432),
}
STATES = {
    "affectgpt": {"audio": (3 * 63, 1024), "frames": (8 * 32, 768), "motion": (8 * 16, 1024)},
    "small": {"audio": (3 * 63, 768), "frames": (8 * 16, 768), "motion": (8 * 16, 768)},
    "affectgpt_v1": {"audio": (8, 1024), "frames": (8 * 32, 768)},
    "affectgpt_v2": {"audio": (8, 1024), "frames": (1, 768), "face": (8, 768)},
    "emotion_llama": {"audio": (1, 1024), "frames": (1025, 1408), "face": (1, 1024), "face_motion": (1, 1024)},
    "emotion_llama_v2": {"audio": (64, 1280), "frames": (1025, 1408), "motion": (64, 1408)},
}
COUNTS = {"frames": "n_frames", "motion": "n_motion_frames", "face": "n_faces", "face_motion": "n_motion_faces"}


def spec_of(preset: str, *overrides: str):
    return model_spec(compose("train", [f"model={preset}", *overrides]).model, seed=42)


@cache
def hollow(preset: str, *overrides: str):
    return build_hollow(spec_of(preset, *overrides))


def states_of(model, modality: str) -> torch.Tensor:
    """The states of the longest clip."""
    sampling, encoder = model.config.spec["sampling"], model.config.spec["encoders"][modality]
    if modality == "audio":
        n_windows, n_samples = sampling["max_windows"], round(sampling["window_s"] * sampling["rate_hz"])
        return model.encoders["audio"](torch.zeros(n_windows, n_samples, device="meta"))
    size = encoder["image_size"] or 224
    return model.encoders[modality](torch.zeros(sampling[COUNTS[modality]], 3, size, size, device="meta"))


def trained(model, part: str = "") -> int:
    return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and part in name)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_trained_parameters_are_as_many_as_published(preset):
    _, n_trained, n_lora = PUBLISHED[preset]
    assert (trained(hollow(preset)), trained(hollow(preset), ".lora_")) == (n_trained, n_lora)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_clip_gives_the_published_soft_tokens(preset):
    config, spec = hollow(preset).config, spec_of(preset)
    hidden = {name for name, projector in spec.projectors.items() if projector.unless in spec.modalities}
    assert {name: config.projector(name).n_queries for name in config.slots if name not in hidden} == PUBLISHED[preset][
        0
    ]


@pytest.mark.parametrize("preset", PUBLISHED)
def test_encoders_hand_over_states_of_the_published_shapes(preset):
    model = hollow(preset)
    assert {name: tuple(states_of(model, name).shape) for name in model.modalities} == STATES[preset]
    assert {name: model.config.projector(name).input_size for name in model.modalities} == {
        name: width for name, (_, width) in STATES[preset].items()
    }


@pytest.mark.parametrize("preset", PUBLISHED)
def test_the_states_of_a_clip_are_at_most_about_a_megabyte(preset):
    """Emotion-LLaMA puts 1025 x 1408 values side by side without losing one; its files say so."""
    model = hollow(preset)
    n_bytes = sum(states.numel() * states.element_size() for states in (states_of(model, m) for m in model.modalities))
    assert n_bytes < {"emotion_llama": 3e6, "emotion_llama_v2": 3.3e6}.get(preset, 1.05e6)


def test_the_parts_of_the_first_affectgpt_are_those_of_its_paper():
    model = hollow("affectgpt_v1")
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(model.projectors["frames"].project.qformer) == 18_905_088
    assert count(model.projectors["audio"].project.qformer) == 19_691_520
    assert {count(projector.project.output) for projector in model.projectors.values()} == {3_149_824}
    assert count(model.encoders["frames"].model.qformer) == 105_137_664


def test_the_parts_of_emotion_llama_v2_are_those_of_its_paper():
    model = hollow("emotion_llama_v2")
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    fusion = model.projectors["multi"]
    assert {name: count(model.projectors[name]) for name in ("audio", "frames", "motion")} == {
        "audio": 5_246_976, "frames": 23_072_768, "motion": 5_771_264,
    }  # fmt: skip
    assert (count(fusion) - count(fusion.output), count(fusion.output)) == (2_838_275, 1_052_672)
    assert (count(fusion.embed), count(fusion.blocks), count(fusion.entry)) == (2_295_680, 197_120, 49_280)


@pytest.mark.parametrize(("llm", "width"), LLMS.items())
@pytest.mark.usefixtures("few_layers")
def test_each_llm_goes_with_the_preset(llm, width):
    model = build_hollow(spec_of("affectgpt_v1", f"model/llm={llm}"))
    assert {projector.project.output.out_features for projector in model.projectors.values()} == {width}
    assert model.language_model.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


# Ablations of the ICML 2025 paper. 57,168,644 without the pre-fusion's 7,610,882; LoRA is r x 2,523,136.
@pytest.mark.parametrize(
    ("overrides", "slots", "n_trained"),
    [
        (["model.projectors.multi.kind=none"], "audio frames face", 57_168_644 - 7_610_882),
        (["model.projectors.multi.kind=qformer"], "multi audio frames face", None),
        (["model.llm.lora.r=0"], "multi audio frames face", 57_168_644 - 40_370_176),
        (["model.llm.lora.r=8"], "multi audio frames face", 57_168_644 - 40_370_176 // 2),
        (["model.llm.lora.r=32"], "multi audio frames face", 57_168_644 + 40_370_176),
        (["model/visual=frames"], "multi audio frames", 57_168_644 - 2_756_096),
    ],
)
def test_ablations_are_settings(overrides, slots, n_trained):
    model = hollow("affectgpt_v2", *overrides)
    assert " ".join(model.projectors) == slots
    assert n_trained is None or trained(model) == n_trained


@pytest.mark.parametrize("preset", PUBLISHED)
def test_every_field_of_a_preset_arrives(preset):
    import yaml

    from affectgpt.cli.parser import conf_folder

    config = compose("train", [f"model={preset}"]).model
    values = yaml.safe_load((conf_folder() / "model" / f"{preset}.yaml").read_text())
    groups = {key: name for entry in values.pop("defaults") if isinstance(entry, dict) for key, name in entry.items()}
    check(values, config, preset)
    llm = yaml.safe_load((conf_folder() / "model/llm" / f"{groups['llm']}.yaml").read_text())
    check(llm | values.get("llm", {}), config.llm, "llm")
    if "visual" in groups:
        check(
            yaml.safe_load((conf_folder() / "model/visual" / f"{groups['visual']}.yaml").read_text()), config, "visual"
        )


def check(written, composed, where: str) -> None:
    for key, value in written.items():
        arrived = composed[key] if isinstance(composed, dict) else getattr(composed, key)
        if isinstance(value, dict):
            check(value, arrived, f"{where}.{key}")
        else:
            assert arrived == value, f"{where}.{key}"


@pytest.mark.parametrize(
    ("preset", "stage", "values"),
    [
        ("small", "coarse", {"trainable": ["projectors", "lora"], "batch_size": 16, "epochs": 22}),
        ("small", "fine", {"trainable": ["projectors", "lora"], "batch_size": 16, "init_from": "coarse"}),
        ("affectgpt_v1", "coarse", {"trainable": ["projectors"], "learning_rate": 3e-5, "iterations_per_epoch": 1000}),
        ("affectgpt_v2", "coarse", {"trainable": ["projectors", "lora"], "learning_rate": 1e-5, "epochs": 60}),
        (
            "emotion_llama",
            "coarse",
            {"min_learning_rate": 1e-6, "tasks": {"both": 0.0, "fixed": 0.5, "description": 0.5}},
        ),
        ("emotion_llama", "fine", {"trainable": ["projectors", "lora"], "learning_rate": 1e-6, "epochs": 30}),
        ("affectgpt_v1", "fine", {"tasks": {"both": 0.0, "description": 1.0}, "max_grad_norm": 0.0}),
        (
            "affectgpt_v2",
            "coarse",
            {"tasks": {"both": 0.0, "description": 0.5, "labels": 0.5}, "max_grad_norm": 0.0, "warmup_steps": 0},
        ),
        ("emotion_llama", "coarse", {"batch_size": 1, "accumulation": 2, "max_grad_norm": 0.0, "warmup_steps": 1000}),
    ],
)
def test_a_preset_trains_by_its_own_recipe(preset, stage, values):
    config = compose("train", [f"stage={stage}", f"model={preset}"]).stage
    assert {name: getattr(config, name) for name in values} == values


@pytest.mark.parametrize(
    ("recipe", "n_steps", "tasks"),
    [
        ("affectgpt_v2_ovmerd", 60 * 500, {"both": 0.0, "description": 0.5, "labels": 0.5}),
        ("affectgpt_v2_mer2026", 60 * 5000, {"both": 0.0, "labels": 1.0}),
        ("affectgpt_v2_mer2026_human", 60 * 500, {"both": 0.0, "labels": 1.0}),
    ],
)
def test_further_published_recipes_are_chosen_by_name(recipe, n_steps, tasks):
    stage = compose("train", ["model=affectgpt_v2", f"recipe={recipe}"]).stage
    assert (stage.epochs * stage.iterations_per_epoch, stage.tasks, stage.batch_size) == (n_steps, tasks, 3)
    assert (stage.learning_rate, stage.min_learning_rate, stage.max_grad_norm) == (1e-5, 1e-5, 0.0)
