"""Converted files compute what the published architecture computes, and a file that is not whole does not pass."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Blip2QFormerModel, Blip2VisionModel

from affectgpt.convert import main
from affectgpt.models import EncoderSpec, ModelSpec, ProjectorSpec, SamplingSpec, build, encoders
from affectgpt.models import convert as converting
from affectgpt.models.configuration_affectgpt import EncoderConfig, ProjectorConfig
from affectgpt.models.projectors import PreFusion, Projector
from affectgpt.models.shapes import published_config
from tests.models import foreign, reference, tiny

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def save(state, path: Path, key: str | None = "model", **others) -> Path:
    torch.save({key: state, **others} if key else state, path)
    return path


@pytest.fixture(scope="module")
def states():
    return {
        "eva": foreign.eva(n_blocks=40),
        "blip2": foreign.blip2(),
        "video": foreign.video_branch(),
        "audio": foreign.audio_branch(),
    }


@pytest.fixture(scope="module")
def files(states, tmp_path_factory) -> dict[str, Path]:
    """Under names that lie about their content, two of them exchanged."""
    folder = tmp_path_factory.mktemp("published")
    return {
        "eva": save(states["eva"], folder / "blip2_pretrained_flant5xxl.pth", key=None),
        "blip2": save(states["blip2"], folder / "eva_vit_g.pth"),
        "video": save(states["video"], folder / "video_llama_audio.pth", optimizer={"lr": 0.1}, epoch=3),
        "audio": save(states["audio"], folder / "video_llama_video.pth"),
    }


@pytest.fixture(scope="module")
def base(files, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "base"
    report = converting.convert(list(files.values()), folder)
    assert report["complete"]
    return folder


def projector_of(folder: Path, branch: str, **changes) -> Projector | PreFusion:
    described = json.loads((folder / "projectors.json").read_text())
    config = ProjectorConfig(**described["branches"][branch]["projector"] | changes)
    module = (PreFusion if config.sources else Projector)(config, described["llm_width"])
    prefix = f"projectors.{branch}."
    tensors = load_file(folder / "projectors.safetensors")
    module.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    return module.eval()


def run_projector(module: Projector, states: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(states, torch.ones(states.shape[:2], dtype=torch.bool))


# ---- the forward pass is the published one


def test_converted_eva_and_ln_vision_compute_what_eva_computes(base, states):
    pixels = torch.randn(2, 3, 28, 28)
    model = encoders.load(str(base / "eva_qformer"))
    assert isinstance(model, Blip2VisionModel)
    expected = reference.norm(reference.eva(pixels, states["eva"]), states["blip2"], "ln_vision", 1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).last_hidden_state, expected, **TOLERANCE)


def test_converted_image_qformer_computes_what_blip2_computes(base, states):
    seen = torch.randn(2, 5, foreign.EVA_WIDTH)
    model, info = Blip2QFormerModel.from_pretrained(
        base / "eva_qformer",
        config=encoders.AutoConfig.from_pretrained(base / "eva_qformer").qformer_config,
        key_mapping={r"^qformer\.": ""},
        output_loading_info=True,
    )
    assert not info["missing_keys"]
    queries = states["blip2"]["query_tokens"]
    with torch.no_grad():
        found = model.eval()(query_embeds=queries.expand(2, -1, -1), encoder_hidden_states=seen).last_hidden_state
    torch.testing.assert_close(found, reference.qformer(queries, seen, states["blip2"], "Qformer", 12, 2), **TOLERANCE)


def test_an_encoder_with_pool_queries_reads_pictures_as_blip2_does(base, states):
    folder = str(base / "eva_qformer")
    config = EncoderConfig(base=encoders.load_config(folder, pool="queries"), pool="queries")
    encoder = encoders.FrozenEncoder("frames", config, encoders.load(folder, pool="queries"))
    frames = torch.randn(3, 3, 28, 28)
    expected = reference.image_tokens(frames, states["eva"], states["blip2"]).flatten(0, 1)
    torch.testing.assert_close(encoder(frames), expected, **TOLERANCE)


def test_converted_sound_branch_computes_what_video_llama_computes(base, states):
    windows = torch.randn(2, 6, foreign.SOUND_WIDTH)
    found = run_projector(projector_of(base, "audio"), windows)
    torch.testing.assert_close(found, reference.video_llama_audio(windows, states["audio"]), **TOLERANCE)


def test_pictures_become_the_soft_tokens_of_the_published_chain(base, states, tmp_path):
    """Image -> EVA -> ln_vision -> image Q-Former -> + position of the frame -> video Q-Former -> linear."""
    spec = ModelSpec(
        llm=str(tiny.write_llama(tmp_path / "llm")),
        encoders={"frames": EncoderSpec(str(base / "eva_qformer"), pool="queries")},
        projectors={"frames": ProjectorSpec(n_queries=4, hidden_size=24, n_heads=12, max_positions=32)},
        sampling=SamplingSpec(n_frames=3),
    )
    model, _ = build(spec)
    pretrained(model, base)
    frames = torch.randn(1, 3, 3, 28, 28)
    with torch.no_grad():
        found = model.eval().soft_tokens("frames", {"pixel_values": frames})
    expected = reference.video_llama_visual(frames[0], states["eva"], states["blip2"], states["video"])
    torch.testing.assert_close(found, expected, **TOLERANCE)


def pretrained(model, folder):
    from affectgpt.models.pretrained import start_from

    return start_from(model, folder)


def test_affectgpt_2025_projections_compute_what_its_code_computes(tmp_path):
    state = foreign.affectgpt_2025()
    converting.convert([save(state, tmp_path / "run.pth", epoch=1)], tmp_path / "base")
    seen, heard = torch.randn(2, 8, foreign.SEEN_WIDTH), torch.randn(2, 6, foreign.HEARD_WIDTH)
    for branch, states, names in (
        ("face", seen, ("video_attention_mlp", "affectgpt_proj")),
        ("audio", heard, ("audio_attention_mlp", "audio_llama_proj")),
    ):
        found = run_projector(projector_of(tmp_path / "base", branch), states)
        torch.testing.assert_close(found, reference.weighted_sum(states, state, *names), **TOLERANCE)
    fusion = projector_of(tmp_path / "base", "multi")
    assert tuple(fusion.config.sources) == ("audio", "face")
    masks = [torch.ones(each.shape[:2], dtype=torch.bool) for each in (heard, seen)]
    with torch.no_grad():
        found = fusion([(heard, masks[0]), (seen, masks[1])], torch.tensor([[0, 0], [1, 1]]))
    torch.testing.assert_close(found, reference.prefusion(seen, heard, state), **TOLERANCE)


def test_the_visual_branch_of_affectgpt_2025_can_be_one_of_frames(tmp_path):
    file = save(foreign.affectgpt_2025(), tmp_path / "run.pth")
    converting.convert([file], tmp_path / "base", visual="frames")
    described = json.loads((tmp_path / "base" / "projectors.json").read_text())
    assert set(described["branches"]) == {"audio", "frames", "multi"}
    assert described["branches"]["multi"]["projector"]["sources"] == ["audio", "frames"]
    projector_of(tmp_path / "base", "multi")


def test_emotion_llama_sees_larger_pictures_through_a_norm_without_weights(tmp_path):
    eva, state = foreign.eva(), foreign.emotion_llama()
    files = [save(state, tmp_path / "emotion.pth"), save(eva, tmp_path / "eva.pth", key=None)]
    assert converting.convert(files, tmp_path / "base", image_size=56)["complete"]
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
    torch.testing.assert_close(found, torch.cat(reference.grouped(pixels, eva, state), dim=1), **TOLERANCE)
    for branch, number in (("face", 1), ("face_motion", 2), ("audio", 3)):
        vectors = torch.randn(2, 1, foreign.HEARD_WIDTH)
        found = run_projector(projector_of(tmp_path / "base", branch), vectors)
        torch.testing.assert_close(found, reference.linear(vectors, state, f"feats_llama_proj{number}"), **TOLERANCE)


@pytest.mark.parametrize("infix", ["", ".default"])
def test_converted_adapters_load_into_peft_and_change_the_llm_as_their_product_says(tmp_path, infix):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    state = foreign.minigpt_v2(infix=infix)
    assert converting.convert([save(state, tmp_path / "m.pth")], tmp_path / "base")["complete"]
    llm = AutoModelForCausalLM.from_pretrained(tiny.write_llama(tmp_path / "llm"))
    before = llm.model.layers[1].self_attn.v_proj.weight.detach().clone()
    merged = PeftModel.from_pretrained(llm, tmp_path / "base" / "lora").merge_and_unload()
    at = "llama_model.base_model.model.model.layers.1.self_attn.v_proj.lora_"
    product = state[f"{at}B{infix}.weight"] @ state[f"{at}A{infix}.weight"] * (16 / 4)  # alpha / r
    torch.testing.assert_close(merged.model.layers[1].self_attn.v_proj.weight, before + product, **TOLERANCE)


# ---- recognition and report


def test_files_are_recognised_by_their_tensors_in_any_order_whatever_they_are_called(files, base, tmp_path):
    converting.convert(list(reversed(files.values())), tmp_path / "again")
    for name in ("projectors.safetensors", "eva_qformer/model.safetensors"):
        once, again = load_file(base / name), load_file(tmp_path / "again" / name)
        assert once.keys() == again.keys()
        assert all(torch.equal(once[key], again[key]) for key in once)


def test_the_report_counts_what_is_taken_and_says_what_is_left_out_and_why(base, files, states):
    report = json.loads((base / "report.json").read_text())
    by_path = {file["path"]: file for file in report["files"]}
    eva, blip2, video = (by_path[str(files[name])] for name in ("eva", "blip2", "video"))
    assert eva["taken"] + sum(map(len, eva["dropped"].values())) == len(states["eva"])
    assert len(eva["dropped"]["block behind the 39th, whose output is what BLIP-2 and its successors read"]) == 13
    assert blip2["dropped"]["projection to BLIP-2's own LLM"] == ["t5_proj.weight", "t5_proj.bias"]
    assert len(blip2["dropped"]["feed-forward of text tokens"]) == 12 * 6
    assert "llama_model.model.layers.0.self_attn.rotary_emb.inv_freq" in video["dropped"]["counter, no weight"]
    assert video["remarks"] == ["beside 'model' it holds epoch, optimizer: not used"]
    assert not any(file["unexpected"] for file in report["files"])


def test_projectors_json_names_source_shapes_and_llm_width(base, files):
    described = json.loads((base / "projectors.json").read_text())
    assert described["llm_width"] == foreign.LLM_WIDTH
    assert described["branches"]["frames"]["file"] == files["video"].name
    assert described["branches"]["frames"]["sha256"] == converting.sha256_of_file(files["video"])
    assert described["tensors"]["projectors.frames.positions.embedding.weight"] == [32, foreign.QFORMER_WIDTH]


def test_safetensors_give_the_same_as_pickles(states, base, tmp_path):
    paths = []
    for name, state in states.items():
        paths.append(tmp_path / f"{name}.safetensors")
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, paths[-1])
    assert converting.convert(paths, tmp_path / "base")["complete"]
    once, again = (load_file(folder / "projectors.safetensors") for folder in (base, tmp_path / "base"))
    assert once.keys() == again.keys()
    assert all(torch.equal(once[key], again[key]) for key in once)


def test_one_of_eva_and_blip2_alone_says_that_the_other_is_needed(files, tmp_path, capsys):
    assert main([str(files["eva"]), f"out={tmp_path / 'base'}"]) == 1
    assert "needs BLIP-2: ln_vision and image Q-Former" in capsys.readouterr().out
    assert main([str(files["blip2"]), f"out={tmp_path / 'base'}"]) == 1
    assert "needs EVA-CLIP ViT-g image encoder (published as eva_vit_g.pth)" in capsys.readouterr().out
    assert not (tmp_path / "base").exists()


def test_what_is_complete_is_written_though_something_else_is_not(files, tmp_path):
    assert main([str(files["eva"]), str(files["audio"]), f"out={tmp_path / 'base'}"]) == 1
    assert sorted(path.name for path in (tmp_path / "base").iterdir()) == [
        "projectors.json", "projectors.safetensors", "report.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda s: s.pop("video_Qformer.bert.encoder.layer.1.crossattention.self.key.weight"),
         "missing  1: projectors.frames.project.qformer.encoder.layer.1.crossattention.attention.key.weight"),
        (lambda s: s.update({"video_query_tokens": torch.zeros(1, 4, 36)}),
         "misshapen  55"),
        (lambda s: s.update({"llama_proj.bias": torch.zeros(7)}),
         "projectors.frames.project.output.bias is [7], not [32]"),
        (lambda s: s.update({"video_Qformer.bert.extra": torch.zeros(1)}), "UNEXPECTED  1: video_Qformer.bert.extra"),
    ],
    ids=["missing", "other width", "other shape", "unexpected"],
)  # fmt: skip
def test_a_tensor_that_is_missing_surplus_or_misshapen_fails_the_conversion(tmp_path, capsys, change, shown):
    state = foreign.video_branch()
    change(state)
    code = main([str(save(state, tmp_path / "v.pth")), f"out={tmp_path / 'base'}"])
    out = capsys.readouterr().out
    assert code == 1
    assert shown in out


def test_a_missing_block_of_eva_is_named(tmp_path, files, capsys):
    path = save(foreign.eva(n_blocks=38), tmp_path / "eva.pth", key=None)
    assert main([str(path), str(files["blip2"]), f"out={tmp_path / 'base'}"]) == 1
    assert "vision_model.encoder.layers.38" in capsys.readouterr().out


def test_a_qformer_of_another_eva_is_refused(tmp_path, files, monkeypatch, capsys):
    monkeypatch.setattr(foreign, "EVA_WIDTH", 64)
    path = save(foreign.eva(), tmp_path / "eva.pth", key=None)
    assert main([str(path), str(files["blip2"]), f"out={tmp_path / 'base'}"]) == 1
    assert "the image Q-Former reads states 48 wide, EVA gives 64" in capsys.readouterr().out


def test_an_unknown_file_is_refused_with_what_it_holds_and_what_is_known(tmp_path, capsys):
    path = save({"conv1.weight": torch.zeros(2, 3)}, tmp_path / "resnet.pth")
    assert main([str(path), f"out={tmp_path / 'base'}"]) == 2
    error = capsys.readouterr().err
    assert "is not recognised. It holds 1 tensors: conv1.weight [2, 3]" in error
    assert "Q-Former projections of the frames (Video-LLaMA visual branch): video_query_tokens" in error


def test_two_files_with_the_same_part_are_refused(files, tmp_path, capsys):
    other = save(foreign.audio_branch(seed=9), tmp_path / "b.pth")
    assert main([str(files["audio"]), str(other), f"out={tmp_path / 'base'}"]) == 2
    assert "both hold: Q-Former projections of the sound" in capsys.readouterr().err


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self):
        return os.system, ("touch trapped",)


def test_a_pickle_with_objects_is_refused_without_running_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": foreign.audio_branch(), "config": Trap()}, "a.pth")
    assert main(["a.pth", "out=base"]) == 2
    error = capsys.readouterr().err
    assert "a.pth is refused" in error
    assert "posix.system" in error
    assert "keep the tensors only" in error
    assert not Path("trapped").exists()
    assert not Path("base").exists()


def test_broken_and_absent_files_are_named(tmp_path, files, capsys):
    half = tmp_path / "half.pth"
    half.write_bytes(files["audio"].read_bytes()[:3000])
    assert main([str(half), f"out={tmp_path / 'base'}"]) == 2
    assert "half.pth cannot be read" in capsys.readouterr().err
    assert main([str(tmp_path / "none.pth"), f"out={tmp_path / 'base'}"]) == 2
    assert "none.pth does not exist" in capsys.readouterr().err


def test_an_earlier_conversion_is_replaced_only_when_asked_and_other_folders_never(files, tmp_path, capsys):
    out = tmp_path / "base"
    assert main([str(files["audio"]), f"out={out}"]) == 0
    assert main([str(files["video"]), f"out={out}"]) == 2
    assert "overwrite=true" in capsys.readouterr().err
    assert main([str(files["video"]), f"out={out}", "overwrite=true"]) == 0
    assert set(json.loads((out / "projectors.json").read_text())["branches"]) == {"frames"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    assert main([str(files["video"]), f"out={tmp_path / 'mine'}", "overwrite=true"]) == 2
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "words"


def test_a_failed_write_leaves_the_earlier_conversion_as_it_was(files, tmp_path, monkeypatch):
    out = tmp_path / "base"
    main([str(files["audio"]), f"out={out}"])
    before = (out / "projectors.safetensors").read_bytes()

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(converting, "write_safetensors", fail)
    with pytest.raises(OSError, match="disk full"):
        main([str(files["video"]), f"out={out}", "overwrite=true"])
    assert (out / "projectors.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_memory_does_not_grow_with_the_file(tmp_path):
    """RssAnon leaves out mapped file pages, which the system takes back at will."""
    state = foreign.eva(n_blocks=39)
    for number in range(39):  # 4 MB a block
        state[f"blocks.{number}.mlp.fc1.weight"] = torch.zeros(10922, 48)
        state[f"blocks.{number}.mlp.fc1.bias"] = torch.zeros(10922)
        state[f"blocks.{number}.mlp.fc2.weight"] = torch.zeros(48, 10922)
    files = [save(state, tmp_path / "eva.pth", key=None), save(foreign.blip2(), tmp_path / "blip2.pth")]
    code = f"""
import threading, time
from pathlib import Path
from affectgpt.models.convert import convert
def used():
    return int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1]) / 1000
start, peak, done = used(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, used()); time.sleep(0.005)
thread = threading.Thread(target=watch); thread.start()
report = convert([Path(p) for p in {[str(f) for f in files]}], Path({str(tmp_path / "base")!r}))
done = True; thread.join()
print(report['complete'], round(peak - start))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    complete, grown_mb = result.stdout.split()
    assert complete == "True"
    assert (tmp_path / "base" / "eva_qformer" / "model.safetensors").stat().st_size > 150e6
    assert int(grown_mb) < 60, f"{grown_mb} MB for a file of 165 MB"


# ---- published sizes


def written(*states) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all that would be written for tensors that take no memory."""
    files = []
    for number, state in enumerate(states):
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        dtypes = {name: tensor.dtype for name, tensor in state.items()}
        weights = converting.Weights(Path(f"hollow{number}.pth"), shapes, dtypes, state.__getitem__)
        weights.__dict__["sha256"] = "none"  # there is no file
        files.append(converting.recognise(weights))
    outputs = converting.outputs_of(files)
    assert not any(file.unexpected for file in files)
    assert all(output.is_complete for output in outputs)
    return {entry.name: entry.shape for output in outputs for entry in output.entries}


def n_parameters(shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


@pytest.fixture
def hollow(monkeypatch):
    monkeypatch.setattr(foreign.Draw, "__call__", lambda self, *shape: torch.empty(*shape, device="meta"))

    def sizes(**values):
        for name, value in values.items():
            monkeypatch.setattr(foreign, name, value)

    return sizes


def test_both_branches_of_video_llama_have_the_published_44959744_parameters(hollow):
    hollow(QFORMER_WIDTH=768, LLM_WIDTH=4096, N_QUERIES=32)
    video = n_parameters(written(foreign.video_branch()))
    hollow(SOUND_WIDTH=1024, N_QUERIES=8)
    assert video + n_parameters(written(foreign.audio_branch())) == 44_959_744


def test_eva_and_blip2_in_published_sizes_become_the_image_side_of_the_published_blip2(hollow):
    hollow(EVA_WIDTH=1408, EVA_MLP=6144, QFORMER_WIDTH=768, N_QUERIES=32)
    shapes = written(foreign.eva(n_blocks=40, side=16), foreign.blip2())
    config = published_config("Salesforce/blip2-opt-2.7b")
    with torch.device("meta"):
        parts = {
            "vision_model": Blip2VisionModel(config.vision_config),
            "qformer": Blip2QFormerModel(config.qformer_config),
        }
    expected = {
        f"{part}.{name}": tuple(tensor.shape)
        for part, model in parts.items()
        for name, tensor in model.state_dict().items()
    }
    assert shapes == expected | {"query_tokens": (1, 32, 768)}
    qformer = {name: shape for name, shape in shapes.items() if name.startswith("qformer.")}
    assert n_parameters(qformer) == 105_137_664


def test_an_affectgpt_run_of_2025_has_the_published_57168644_parameters(hollow, monkeypatch):
    hollow(SEEN_WIDTH=768, HEARD_WIDTH=1024)
    attention = {"q_proj": (3584, 3584), "k_proj": (3584, 512), "v_proj": (3584, 512), "o_proj": (3584, 3584)}
    targets = {f"self_attn.{name}": sizes for name, sizes in attention.items()}
    targets |= {"mlp.gate_proj": (3584, 18944), "mlp.up_proj": (3584, 18944), "mlp.down_proj": (18944, 3584)}
    monkeypatch.setattr(foreign.lora, "__defaults__", (28, 16, ".default"))
    state = foreign.affectgpt_2025(width=3584, targets=targets)
    assert n_parameters({name: tensor.shape for name, tensor in state.items()}) == 57_168_644
    of_single_images = 768 * 3584 + 3584
    assert n_parameters(written(state)) == 57_168_644 - of_single_images


def test_emotion_llama_has_the_published_74993664_parameters(hollow, monkeypatch):
    hollow(EVA_WIDTH=1408, HEARD_WIDTH=1024)
    monkeypatch.setattr(foreign.lora, "__defaults__", (32, 64, ".default"))
    assert n_parameters(written(foreign.emotion_llama(width=4096))) == 74_993_664
