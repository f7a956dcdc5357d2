"""Each shipped preset takes the folder that the converter makes of the weights published for it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from affectgpt.cli import compose
from affectgpt.convert.conversion import convert
from affectgpt.models import CheckpointError, build, encoders, model_spec
from affectgpt.models.integrity import SUMS
from affectgpt.models.pretrained import start_from
from tests.models import foreign, reference, tiny

HUBERT, CLIP = 32, 24  # widths of the tiny encoders
QFORMER = ("n_queries=4", "hidden_size=24")
# What published adapters are attached to, and the widths of the tiny Qwen2's layers.
V2_LAYERS = {
    "self_attn.q_proj": (32, 32), "self_attn.k_proj": (32, 16), "self_attn.v_proj": (32, 16),
    "self_attn.o_proj": (32, 32), "mlp.gate_proj": (32, 64), "mlp.up_proj": (32, 64), "mlp.down_proj": (64, 32),
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny_bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {
        "llama": tiny.write_llama(folder / "llama"),
        "qwen2": tiny.write_qwen2(folder / "qwen2"),
        "hubert": tiny.write_hubert(folder / "hubert", n_layers=4),
        "clip": tiny.write_clip(folder / "clip"),
        "mae": tiny.write_vit_mae(folder / "mae"),
        "videomae": tiny.write_videomae(folder / "videomae"),
        "whisper": tiny.write_whisper(folder / "whisper"),
    }


def model_of(preset: str, *overrides: str):
    """The preset with tiny base models: what the overrides change are paths and sizes, never what the weights mean."""
    spec = model_spec(compose("train", [f"model={preset}", "model.llm.dtype=float32", *overrides]).model, seed=42)
    return build(spec, load_encoders=False)[0]


def published(tmp_path, state, *more, **options):
    files = [foreign.save(state, tmp_path / "run.pth"), *more]
    assert convert(files, tmp_path / "base", **options)["complete"]
    return tmp_path / "base"


@pytest.fixture(autouse=True)
def _widths(monkeypatch):
    monkeypatch.setattr(foreign, "SEEN_WIDTH", CLIP)
    monkeypatch.setattr(foreign, "HEARD_WIDTH", HUBERT)


@pytest.fixture
def rank(monkeypatch):
    """Sets the rank of published adapters."""
    n_layers, _, infix = foreign.lora.__defaults__
    return lambda r: monkeypatch.setattr(foreign.lora, "__defaults__", (n_layers, r, infix))


@pytest.fixture
def affectgpt_2025(rank):
    rank(16)
    return foreign.affectgpt_2025(targets=V2_LAYERS)


def v2(bases, *overrides: str):
    return model_of(
        "affectgpt_v2",
        f"model.llm.path={bases['qwen2']}",
        f"model.encoders.audio.path={bases['hubert']}",
        *(["model/visual=frames"] if "frames" in overrides else [f"model.encoders.face.path={bases['clip']}"]),
        f"model.encoders.frames.path={bases['clip']}",
        *[each for each in overrides if each != "frames"],
    )


def emotion_llama(bases, base):
    return model_of(
        "emotion_llama",
        f"model.llm.path={bases['llama']}",
        f"model.encoders.audio.path={bases['hubert']}",
        f"model.encoders.frames.path={base / 'eva'}",
        f"model.encoders.face.path={bases['mae']}",
        f"model.encoders.face_motion.path={bases['videomae']}",
        "model.sampling.n_motion_faces=4",
    )


def test_affectgpt_v2_on_faces_takes_every_published_tensor(tiny_bases, affectgpt_2025, tmp_path):
    state = affectgpt_2025
    model = v2(tiny_bases)
    started = start_from(model, published(tmp_path, state))
    assert started["random"] == []
    assert started["pretrained"] == [
        "projectors.multi", "projectors.audio", "projectors.frames", "projectors.face", "lora",
    ]  # fmt: skip
    image = model.projectors["frames"].project.output
    torch.testing.assert_close(image.weight.detach(), state["image_llama_proj.weight"])
    seen, heard = torch.randn(2, 8, CLIP), torch.randn(2, 8, HUBERT)
    sources = {"face": (seen, torch.ones(2, 8)), "audio": (heard, torch.ones(2, 8))}
    fusion = model.projectors["multi"]
    with torch.no_grad():
        found = fusion([sources[name] for name in fusion.config.sources], torch.tensor([[0, 0], [1, 1]]))
    torch.testing.assert_close(found, reference.prefusion(seen, heard, state), rtol=1e-5, atol=1e-5)


def test_affectgpt_v2_on_frames_takes_a_run_that_was_trained_on_frames(tiny_bases, affectgpt_2025, tmp_path):
    base = published(tmp_path, affectgpt_2025, visual="frames")
    started = start_from(v2(tiny_bases, "frames"), base)
    assert (started["random"], len(started["pretrained"])) == ([], 4)
    reasons = json.loads((base / "report.json").read_text())["files"][0]["dropped"]
    assert [names for reason, names in reasons.items() if "single images" in reason] == [
        ["image_llama_proj.weight", "image_llama_proj.bias"]
    ]


def test_the_order_in_which_a_folder_names_the_fused_sources_does_not_matter(tiny_bases, affectgpt_2025, tmp_path):
    """Earlier conversions have audio first; their halves are the other way round."""
    base = published(tmp_path, affectgpt_2025)
    expected = v2(tiny_bases)
    start_from(expected, base)
    described = json.loads((base / "projectors.json").read_text())
    tensors = load_file(base / "projectors.safetensors")
    fusion = described["branches"]["multi"]["projector"]
    for key in ("sources", "source_sizes"):
        fusion[key] = fusion[key][::-1]
    for name, dim in (("mix.weight", 1), ("score.weight", 0), ("score.bias", 0)):
        first, second = tensors[f"projectors.multi.{name}"].chunk(2, dim=dim)
        tensors[f"projectors.multi.{name}"] = torch.cat([second, first], dim=dim)
    save_file(tensors, base / "projectors.safetensors")
    (base / "projectors.json").write_text(json.dumps(described))
    (base / SUMS).unlink()  # neither had they checksums
    model = v2(tiny_bases)
    start_from(model, base)
    for name, tensor in model.projectors["multi"].state_dict().items():
        torch.testing.assert_close(tensor, expected.projectors["multi"].state_dict()[name], rtol=0, atol=0)


def test_a_prefusion_of_other_sources_is_refused(tiny_bases, affectgpt_2025, tmp_path):
    base = published(tmp_path, affectgpt_2025, visual="frames")
    with pytest.raises(CheckpointError, match=r"sources is \['frames', 'audio'\] in the folder, \['face', 'audio'\]"):
        start_from(v2(tiny_bases), base)


def test_affectgpt_v1_takes_both_branches_of_video_llama(tiny_bases, base):
    model = model_of(
        "affectgpt_v1",
        f"model.llm.path={tiny_bases['llama']}",
        f"model.encoders.audio.path={tiny_bases['hubert']}",
        f"model.encoders.frames.path={base / 'eva_qformer'}",
        *(f"model.projectors.{name}.{size}" for name in ("audio", "frames") for size in QFORMER),
    )
    started = start_from(model, base)
    assert (started["pretrained"], started["random"]) == (["projectors.audio", "projectors.frames"], [])


def test_emotion_llama_takes_its_own_checkpoint_completely(tiny_bases, rank, tmp_path):
    rank(64)
    eva = foreign.save(foreign.eva(), tmp_path / "eva.pth", key=None)
    base = published(tmp_path, foreign.emotion_llama(), eva)
    started = start_from(emotion_llama(tiny_bases, base), base)
    assert started["random"] == []
    assert started["pretrained"][-1] == "lora"


def test_minigpt_v2_starts_emotion_llama_and_leaves_random_what_it_does_not_have(tiny_bases, rank, tmp_path):
    """The published first stage: MiniGPT-v2's patches and adapters, and new maps of the class token and the vectors."""
    rank(64)
    eva, state = foreign.save(foreign.eva(), tmp_path / "eva.pth", key=None), foreign.minigpt_v2()
    base = published(tmp_path, state, eva)
    model = emotion_llama(tiny_bases, base)
    before = model.projectors["frames"].project.class_output.weight.detach().clone()
    started = start_from(model, base)
    assert started["pretrained"] == ["projectors.frames", "lora"]
    assert started["random"] == [
        "projectors.audio", "projectors.face", "projectors.face_motion", "projectors.frames.project.class_output",
    ]  # fmt: skip
    project = model.projectors["frames"].project
    torch.testing.assert_close(project.output.weight.detach(), state["llama_proj.weight"])
    torch.testing.assert_close(project.class_output.weight.detach(), before, rtol=0, atol=0)


def emotion_llama_v2(bases, base, *more: str):
    return model_of(
        "emotion_llama_v2",
        f"model.llm.path={bases['llama']}",
        f"model.encoders.audio.path={bases['whisper']}",
        f"model.encoders.frames.path={base / 'eva'}",
        f"model.encoders.motion.path={base / 'eva_video'}",
        "model.encoders.motion.image_size=null",
        f"model.projectors.multi.hidden_size={foreign.HIDDEN_V2}",
        *more,
    )


def test_emotion_llama_v2_takes_its_own_checkpoint_completely(tiny_bases, rank, tmp_path):
    rank(64)
    eva, state = foreign.save(foreign.eva(n_blocks=40), tmp_path / "eva.pth", key=None), foreign.emotion_llama_v2()
    base = published(tmp_path, state, eva)
    model = emotion_llama_v2(tiny_bases, base)
    started = start_from(model, base)
    assert (started["random"], started["pretrained"][0]) == ([], "projectors.multi")
    heard, (seen, video) = torch.randn(2, 64, HUBERT), (torch.randn(2, n, foreign.EVA_WIDTH) for n in (1025, 64))
    sources = [(states, torch.ones(states.shape[:2])) for states in (heard, seen, video)]
    with torch.no_grad():
        found = model.eval().projectors["multi"](sources, torch.tensor([[0, 0, 0], [1, 1, -1], [-1, 0, 1]]))
    nothing = torch.zeros(64, foreign.EVA_WIDTH)
    expected = reference.conv_prefusion(
        torch.stack([heard[0], heard[1], torch.zeros(64, HUBERT)]),
        torch.stack([seen[0, 0], seen[1, 0], seen[0, 0]]),
        torch.stack([video[0], nothing, video[1]]),
        state,
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_minigpt_v2_starts_emotion_llama_v2(tiny_bases, rank, tmp_path):
    """The published first stage: its patches and adapters; the class token has no map of its own."""
    rank(64)
    eva = foreign.save(foreign.eva(), tmp_path / "eva.pth", key=None)
    base = published(tmp_path, foreign.minigpt_v2(), eva)
    model = emotion_llama_v2(tiny_bases, base, f"model.encoders.motion.path={base / 'eva'}")
    started = start_from(model, base)
    assert started["pretrained"] == ["projectors.frames", "lora"]
    assert started["random"] == ["projectors.multi", "projectors.audio", "projectors.motion"]


def test_the_video_encoder_of_emotion_llama_v2_has_all_blocks_and_its_own_norm(tmp_path):
    state = foreign.eva(n_blocks=40) | foreign.Draw(9).norm("norm", foreign.EVA_WIDTH)
    base = published(tmp_path, foreign.emotion_llama_v2(), foreign.save(state, tmp_path / "eva.pth", key=None))
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        found = encoders.load(str(base / "eva_video"))(pixels).last_hidden_state
    expected = reference.norm(reference.eva(pixels, state, n_blocks=40), state, "norm", 1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    settings = json.loads((base / "eva_video" / "preprocessor_config.json").read_text())
    assert settings["image_mean"] == [0.485, 0.456, 0.406]
    assert not [
        reason for reason in json.loads((base / "report.json").read_text())["files"][1]["dropped"] if "39th" in reason
    ]


def test_the_final_norm_of_a_converted_eva_has_the_published_epsilon(tmp_path):
    """Where the states are small, it shows; the other norms keep 1e-6."""
    state = foreign.eva()
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
        state[name] = state[name] * 1e-3
    for name in [
        name for name in state if name.endswith(("attn.proj.weight", "mlp.fc2.weight", "proj.bias", "fc2.bias"))
    ]:
        state[name] = state[name] * 1e-3
    base = published(
        tmp_path, foreign.emotion_llama(), foreign.save(state, tmp_path / "eva.pth", key=None), image_size=28
    )
    loaded = encoders.load(str(base / "eva"))
    fresh = encoders.from_config(encoders.load_config(str(base / "eva")))
    assert (loaded.post_layernorm.eps, fresh.post_layernorm.eps) == (1e-5, 1e-5)
    pixels, ones = torch.randn(2, 3, 28, 28), {"n.weight": torch.ones(48), "n.bias": torch.zeros(48)}
    with torch.no_grad():
        found = loaded(pixels).last_hidden_state
    torch.testing.assert_close(
        found, reference.norm(reference.eva(pixels, state), ones, "n", 1e-5), rtol=1e-4, atol=1e-4
    )
    assert (found - reference.norm(reference.eva(pixels, state), ones, "n", 1e-6)).abs().max() > 1e-3


def test_this_projects_own_preset_takes_video_llamas_visual_branch_with_its_32_positions(tiny_bases, tmp_path):
    base = published(tmp_path, foreign.video_branch())
    overrides = (
        f"model.llm.path={tiny_bases['llama']}",
        f"model.encoders.audio.path={tiny_bases['hubert']}",
        f"model.encoders.frames.path={tiny.write_blip2(tmp_path / 'blip2')}",
        f"model.encoders.motion.path={tiny_bases['videomae']}",
        "model.encoders.motion.grid=2",
        "model.sampling.n_motion_frames=4",
        *(f"model.projectors.frames.{size}" for size in QFORMER),
    )
    with pytest.raises(CheckpointError, match=r"set model\.projectors\.frames\.max_positions=32"):
        start_from(model_of("affectgpt", *overrides), base)
    model = model_of("affectgpt", *overrides, "model.projectors.frames.max_positions=32")
    assert start_from(model, base)["pretrained"] == ["projectors.frames"]
