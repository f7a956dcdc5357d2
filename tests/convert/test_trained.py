"""Converted projections and adapters compute what the published ones compute."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from affectgpt.config import EncoderConfig, LLMConfig, ProjectorConfig, SamplingConfig
from affectgpt.convert.conversion import convert
from affectgpt.models import ModelSpec, build, encoders
from affectgpt.models.configuration_affectgpt import ProjectorArchitecture
from affectgpt.models.pretrained import start_from
from affectgpt.models.projectors import PreFusion, Projector
from affectgpt.runtime import sha256_of_file
from tests.models import foreign, reference, tiny


def projector_of(folder: Path, branch: str, **changes) -> Projector | PreFusion:
    described = json.loads((folder / "projectors.json").read_text())
    config = ProjectorArchitecture(**described["branches"][branch]["projector"] | changes)
    module = (PreFusion if config.sources else Projector)(config, described["llm_width"])
    prefix = f"projectors.{branch}."
    tensors = load_file(folder / "projectors.safetensors")
    module.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    return module.eval()


def run_projector(module: Projector, states: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(states, torch.ones(states.shape[:2], dtype=torch.bool))


def test_converted_sound_branch_computes_what_video_llama_computes(base, states):
    windows = torch.randn(2, 6, foreign.SOUND_WIDTH)
    found = run_projector(projector_of(base, "audio"), windows)
    torch.testing.assert_close(found, reference.video_llama_audio(windows, states["audio"]), rtol=1e-5, atol=1e-5)


def test_pictures_become_the_soft_tokens_of_the_published_chain(base, states, tmp_path):
    """Image -> EVA -> ln_vision -> image Q-Former -> + position of the frame -> video Q-Former -> linear."""
    spec = ModelSpec(
        llm=LLMConfig(str(tiny.write_llama(tmp_path / "llm"))),
        encoders={"frames": EncoderConfig(str(base / "eva_qformer"), pool="queries")},
        projectors={"frames": ProjectorConfig(n_queries=4, hidden_size=24, n_heads=12, max_positions=32)},
        sampling=SamplingConfig(n_frames=3),
    )
    model, _ = build(spec)
    start_from(model, base)
    frames = torch.randn(1, 3, 3, 28, 28)
    with torch.no_grad():
        found = model.eval().soft_tokens("frames", {"pixel_values": frames})
    expected = reference.video_llama_visual(frames[0], states["eva"], states["blip2"], states["video"])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_affectgpt_2025_projections_compute_what_its_code_computes(tmp_path):
    state = foreign.affectgpt_2025()
    convert([foreign.save(state, tmp_path / "run.pth", epoch=1)], tmp_path / "base")
    seen, heard = torch.randn(2, 8, foreign.SEEN_WIDTH), torch.randn(2, 6, foreign.HEARD_WIDTH)
    for branch, states, names in (
        ("face", seen, ("video_attention_mlp", "affectgpt_proj")),
        ("audio", heard, ("audio_attention_mlp", "audio_llama_proj")),
    ):
        found = run_projector(projector_of(tmp_path / "base", branch), states)
        torch.testing.assert_close(found, reference.weighted_sum(states, state, *names), rtol=1e-5, atol=1e-5)
    fusion = projector_of(tmp_path / "base", "multi")
    assert tuple(fusion.config.sources) == ("face", "audio")
    masks = [torch.ones(each.shape[:2], dtype=torch.bool) for each in (seen, heard)]
    with torch.no_grad():
        found = fusion([(seen, masks[0]), (heard, masks[1])], torch.tensor([[0, 0], [1, 1]]))
    torch.testing.assert_close(found, reference.prefusion(seen, heard, state), rtol=1e-5, atol=1e-5)


def test_the_visual_branch_of_affectgpt_2025_can_be_one_of_frames(tmp_path):
    file = foreign.save(foreign.affectgpt_2025(), tmp_path / "run.pth")
    convert([file], tmp_path / "base", visual="frames")
    described = json.loads((tmp_path / "base" / "projectors.json").read_text())
    assert set(described["branches"]) == {"audio", "frames", "multi"}
    assert described["branches"]["multi"]["projector"]["sources"] == ["frames", "audio"]
    projector_of(tmp_path / "base", "multi")


def test_emotion_llama_sees_larger_pictures_through_a_norm_without_weights(tmp_path):
    eva, state = foreign.eva(), foreign.emotion_llama()
    files = [foreign.save(state, tmp_path / "emotion.pth"), foreign.save(eva, tmp_path / "eva.pth", key=None)]
    assert convert(files, tmp_path / "base", image_size=56)["complete"]
    model = encoders.load(str(tmp_path / "base" / "eva"))
    assert model.config.image_size == 56
    pixels = torch.randn(2, 3, 56, 56)
    # The library interpolates the original table by itself when asked to.
    table = eva["pos_embed"][:, 1:].reshape(1, 2, 2, -1).permute(0, 3, 1, 2)
    table = torch.nn.functional.interpolate(table, size=(4, 4), mode="bicubic", align_corners=False)
    eva["pos_embed"] = torch.cat([eva["pos_embed"][:, :1], table.permute(0, 2, 3, 1).reshape(1, 16, -1)], dim=1)
    with torch.no_grad():
        states = model(pixels).last_hidden_state
    # How many groups there are depends on the size of the picture, not on the tensors: here 4, and the class token.
    found = run_projector(projector_of(tmp_path / "base", "frames", n_queries=5), states)
    torch.testing.assert_close(found, torch.cat(reference.grouped(pixels, eva, state), dim=1), rtol=1e-5, atol=1e-5)
    for branch, number in (("face", 1), ("face_motion", 2), ("audio", 3)):
        vectors = torch.randn(2, 1, foreign.HEARD_WIDTH)
        found = run_projector(projector_of(tmp_path / "base", branch), vectors)
        torch.testing.assert_close(
            found, reference.linear(vectors, state, f"feats_llama_proj{number}"), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("infix", ["", ".default"])
def test_converted_adapters_load_into_peft_and_change_the_llm_as_their_product_says(tmp_path, infix):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    state = foreign.minigpt_v2(infix=infix)
    assert convert([foreign.save(state, tmp_path / "m.pth")], tmp_path / "base")["complete"]
    llm = AutoModelForCausalLM.from_pretrained(tiny.write_llama(tmp_path / "llm"))
    before = llm.model.layers[1].self_attn.v_proj.weight.detach().clone()
    merged = PeftModel.from_pretrained(llm, tmp_path / "base" / "lora").merge_and_unload()
    at = "llama_model.base_model.model.model.layers.1.self_attn.v_proj.lora_"
    product = state[f"{at}B{infix}.weight"] @ state[f"{at}A{infix}.weight"] * (16 / 4)  # alpha / r
    torch.testing.assert_close(merged.model.layers[1].self_attn.v_proj.weight, before + product, rtol=1e-5, atol=1e-5)


def test_projectors_json_names_source_shapes_and_llm_width(base, files):
    described = json.loads((base / "projectors.json").read_text())
    assert described["llm_width"] == foreign.LLM_WIDTH
    assert described["branches"]["frames"]["file"] == files["video"].name
    assert described["branches"]["frames"]["sha256"] == sha256_of_file(files["video"])
    assert described["tensors"]["projectors.frames.positions.embedding.weight"] == [32, foreign.QFORMER_WIDTH]
