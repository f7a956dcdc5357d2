"""model.init=pretrained: whole branches that fit exactly, the rest random, and a record of which is which."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from affectgpt.config import EncoderConfig, LLMConfig, LoraConfig, ProjectorConfig, SamplingConfig
from affectgpt.convert.conversion import convert
from affectgpt.models import CheckpointError, ModelSpec, build, save_trained
from affectgpt.models.pretrained import folder_of, start_from, start_of
from affectgpt.runtime import sha256_of_file
from tests.models import foreign, tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A converted sound branch, for HuBERT's 32 states and an LLM of 32."""
    folder = tmp_path_factory.mktemp("converted")
    torch.save({"model": foreign.audio_branch()}, folder / "a.pth")
    convert([folder / "a.pth"], folder / "base")
    return folder / "base"


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> ModelSpec:
    folder = tmp_path_factory.mktemp("bases")
    qformer = ProjectorConfig(n_queries=4, hidden_size=24, n_heads=12, max_positions=8)
    return ModelSpec(
        llm=LLMConfig(str(tiny.write_llama(folder / "llm"))),
        encoders={
            "audio": EncoderConfig(str(tiny.write_hubert(folder / "hubert")), pool="window"),
            "frames": EncoderConfig(str(tiny.write_eva(folder / "eva"))),
        },
        projectors={"audio": qformer, "frames": qformer},
        sampling=SamplingConfig(n_frames=2, window_s=2.0, max_windows=8),
    )


def built(spec):
    return build(spec, load_encoders=False)


def with_audio(spec, **changes):
    return replace(spec, projectors={**spec.projectors, "audio": replace(spec.projectors["audio"], **changes)})


def test_branches_of_the_folder_are_taken_and_the_others_stay_random(spec, base):
    model, _ = built(spec)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    started = start_from(model, base)
    published = foreign.audio_branch()
    torch.testing.assert_close(model.projectors["audio"].project.queries.detach(), published["audio_query_tokens"])
    same = [name for name, tensor in model.named_parameters() if torch.equal(tensor, before[name])]
    assert not [name for name in same if name.startswith("projectors.audio")]
    assert {name for name in before if not name.startswith("projectors.audio")} == set(same)
    assert started["pretrained"] == ["projectors.audio"]
    assert started["random"] == ["projectors.frames"]
    assert started["sources"]["projectors.audio"] == {
        "file": "a.pth",
        "sha256": sha256_of_file(base.parent / "a.pth"),
    }


@pytest.mark.parametrize("name", ["projectors.safetensors", "projectors.json"])
def test_a_conversion_that_changed_is_not_loaded_and_one_without_checksums_gives_a_warning(
    spec, base, tmp_path, caplog, name
):
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data.replace(b"0", b"1") if name.endswith(".json") else data[:-8] + bytes(8))
    model, _ = built(spec)
    with pytest.raises(CheckpointError, match=f"base: {name} has changed since it was written"):
        start_from(model, folder)
    (folder / name).write_bytes(data)
    (folder / "SHA256SUMS").unlink()
    start_from(model, folder)
    assert "has no SHA256SUMS" in caplog.text
    (folder / "projectors.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"projectors\.json is not JSON .* convert the published files again"):
        start_from(model, folder)


def test_a_checkpoint_remembers_what_its_training_started_from(spec, base, tmp_path):
    model, processor = built(spec)
    save_trained(model, processor, tmp_path / "random")
    assert start_of(tmp_path / "random") is None
    model.config.init = start_from(model, base)
    save_trained(model, processor, tmp_path / "pretrained")
    assert start_of(tmp_path / "pretrained") == model.config.init
    assert model.config.init["folder"] == base.name
    assert str(base.parent) not in (tmp_path / "pretrained" / "affectgpt.json").read_text()


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"n_queries": 6}, r"projectors\.audio\.project\.queries is \[1, 4, 24\] in the folder, \[1, 6, 24\] here"),
        (
            {"max_positions": 3},
            r"is \[8, 32\] in the folder, .* here \(set model.projectors.audio.max_positions=8",
        ),
        ({"n_layers": 1}, r"projectors\.audio\.project\.qformer\.encoder\.layer\.1\S+ is not in this model"),
        ({"n_layers": 3}, r"projectors\.audio\.project\.qformer\.encoder\.layer\.2\S+ is not in the folder"),
        ({"n_heads": 6}, "projectors.audio: n_heads is 12 in the folder, 6 here"),
    ],
)
def test_a_branch_that_does_not_fit_is_refused_by_name_and_nothing_is_copied(spec, base, changes, shown):
    model, _ = built(with_audio(spec, **changes))
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    with pytest.raises(CheckpointError, match=shown):
        start_from(model, base)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


def test_a_folder_without_a_branch_of_the_model_is_refused(spec, base):
    only = {"frames": spec.projectors["frames"]}
    model, _ = built(replace(spec, encoders={"frames": spec.encoders["frames"]}, projectors=only))
    with pytest.raises(CheckpointError, match=r"projectors of \['audio'\], this model of \['frames'\]"):
        start_from(model, base)


def test_scores_without_softmax_do_not_start_a_projection_with_softmax(spec, tmp_path):
    state = foreign.affectgpt_2025(targets={"self_attn.q_proj": (32, 32)})
    state = {name: tensor for name, tensor in state.items() if name.startswith("audio")}
    torch.save({"model": state}, tmp_path / "a.pth")
    convert([tmp_path / "a.pth"], tmp_path / "base")
    described = json.loads((tmp_path / "base" / "projectors.json").read_text())
    assert described["branches"]["audio"]["projector"]["softmax"] is False
    model, _ = built(with_audio(spec, kind="attention", n_queries=1, max_positions=0))
    with pytest.raises(CheckpointError, match=r"projectors\.audio: softmax is False in the folder, True here"):
        start_from(model, tmp_path / "base")


def emotion_llama(spec, tmp_path, **lora):
    wide = tiny.write_hubert(tmp_path / "wide")
    return replace(
        spec,
        encoders={"audio": EncoderConfig(str(wide), pool="mean")},
        projectors={"audio": ProjectorConfig(kind="linear", n_queries=1)},
        llm=replace(spec.llm, lora=LoraConfig(**{"r": 4, "alpha": 16, **lora})),
    )


def test_adapters_are_taken_with_the_projections(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "HEARD_WIDTH", 32)
    torch.save({"model": foreign.emotion_llama()}, tmp_path / "e.pth")
    convert([tmp_path / "e.pth"], tmp_path / "base")
    model, _ = built(emotion_llama(spec, tmp_path))
    started = start_from(model, tmp_path / "base")
    assert started["pretrained"] == ["projectors.audio", "lora"]
    mine = dict(model.named_parameters())
    for name, tensor in foreign.emotion_llama().items():
        if ".lora_" in name:
            torch.testing.assert_close(
                mine[name.replace("llama_model.base_model.model.", "language_model.")].data, tensor
            )
    with pytest.raises(CheckpointError, match="lora: lora_alpha is 16 in the folder, 32 here"):
        start_from(built(emotion_llama(spec, tmp_path, alpha=32))[0], tmp_path / "base")


@pytest.mark.parametrize(
    ("init", "init_from", "shown"),
    [
        ("pretrained", None, "model.init=pretrained needs model.init_from"),
        ("trained", None, "model.init is 'trained'; expected random or pretrained"),
        (
            "pretrained",
            "nowhere",
            "nowhere has no projectors.json; set model.init_from to a folder written by `python -m affectgpt.convert`",
        ),
    ],
)
def test_a_start_that_cannot_be_is_named(init, init_from, shown):
    with pytest.raises(CheckpointError, match=shown):
        folder_of(init, init_from)
    assert folder_of("random", init_from) is None
