"""A conversion appears whole or not at all, and its report tells everything."""

import json
import subprocess
import sys

import pytest

from affectgpt.cli import run
from affectgpt.config import EncoderConfig, LLMConfig, ProjectorConfig, SamplingConfig
from affectgpt.convert import conversion
from affectgpt.models import CheckpointError, ModelSpec, build
from tests.models import foreign, tiny


def test_the_report_counts_what_is_taken_and_says_what_is_left_out_and_why(base, files, states):
    report = json.loads((base / "report.json").read_text())
    by_path = {file["path"]: file for file in report["files"]}
    eva, blip2, video = (by_path[str(files[name])] for name in ("eva", "blip2", "video"))
    assert eva["taken"] + sum(map(len, eva["dropped"].values())) == len(states["eva"])
    assert len(eva["dropped"]["block after the 39th, whose output is what BLIP-2 and its successors use"]) == 13
    assert blip2["dropped"]["projection to BLIP-2's own LLM"] == ["t5_proj.weight", "t5_proj.bias"]
    assert len(blip2["dropped"]["feed-forward of text tokens"]) == 12 * 6
    assert "llama_model.model.layers.0.self_attn.rotary_emb.inv_freq" in video["dropped"]["buffer, not a weight"]
    assert video["remarks"] == ["besides 'model' it contains epoch, optimizer: not used"]
    assert not any(file["unexpected"] for file in report["files"])


def test_what_is_complete_is_written_though_something_else_is_not(files, tmp_path):
    assert run("convert", [str(files["eva"]), str(files["audio"]), f"out={tmp_path / 'base'}"]) == 1
    assert sorted(path.name for path in (tmp_path / "base").iterdir()) == [
        "SHA256SUMS", "projectors.json", "projectors.safetensors", "report.json",
    ]  # fmt: skip
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "base", check=True)


def test_an_encoder_that_changed_after_its_conversion_is_refused(files, tmp_path):
    run("convert", [str(files["eva"]), str(files["blip2"]), f"out={tmp_path / 'base'}"])
    weights = tmp_path / "base" / "eva_qformer" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 4
    weights.write_bytes(data)
    spec = ModelSpec(
        llm=LLMConfig(str(tiny.write_llama(tmp_path / "llm"))),
        encoders={"frames": EncoderConfig(str(weights.parent), pool="queries")},
        projectors={"frames": ProjectorConfig(n_queries=4, hidden_size=24, n_heads=12, max_positions=32)},
        sampling=SamplingConfig(n_frames=3),
    )
    build(spec, load_encoders=False)
    with pytest.raises(CheckpointError, match=r"eva_qformer: model\.safetensors has changed since it was written"):
        build(spec)


def test_two_files_with_the_same_part_are_refused(files, tmp_path, capsys):
    other = foreign.save(foreign.audio_branch(seed=9), tmp_path / "b.pth")
    assert run("convert", [str(files["audio"]), str(other), f"out={tmp_path / 'base'}"]) == 2
    assert "both contain: Q-Former projector of the audio" in capsys.readouterr().err


def test_two_conversions_to_one_folder_do_not_run_at_once(files, tmp_path, capsys):
    lock = tmp_path / ".base.lock"
    hold = "import sys, time; from pathlib import Path; from affectgpt.journal.locks import held\n"
    hold += "with held(Path(sys.argv[1]), what=''): print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert run("convert", [str(files["audio"]), f"out={tmp_path / 'base'}"]) == 2
        other.kill()
    assert f"another conversion to {tmp_path / 'base'} is running" in capsys.readouterr().err
    assert not (tmp_path / "base").exists()


def test_an_earlier_conversion_is_replaced_only_when_asked_and_other_folders_never(files, tmp_path, capsys):
    out = tmp_path / "base"
    assert run("convert", [str(files["audio"]), f"out={out}"]) == 0
    assert run("convert", [str(files["video"]), f"out={out}"]) == 2
    assert "overwrite=true" in capsys.readouterr().err
    assert run("convert", [str(files["video"]), f"out={out}", "overwrite=true"]) == 0
    assert set(json.loads((out / "projectors.json").read_text())["branches"]) == {"frames"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    assert run("convert", [str(files["video"]), f"out={tmp_path / 'mine'}", "overwrite=true"]) == 2
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "words"


def test_an_incomplete_conversion_replaces_nothing(files, tmp_path, capsys):
    out = tmp_path / "base"
    assert run("convert", [str(files["eva"]), str(files["blip2"]), f"out={out}"]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert run("convert", [str(files["eva"]), str(files["audio"]), f"out={out}", "overwrite=true"]) == 2
    error = capsys.readouterr().err
    assert f"{out} is left as it was, because the new conversion is incomplete: eva_qformer needs BLIP-2" in error
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (tmp_path / "empty").mkdir()
    assert run("convert", [str(files["eva"]), str(files["audio"]), f"out={tmp_path / 'empty'}"]) == 1
    assert (tmp_path / "empty" / "projectors.safetensors").is_file()


def test_a_failed_write_leaves_the_earlier_conversion_as_it_was(files, tmp_path, monkeypatch):
    out = tmp_path / "base"
    run("convert", [str(files["audio"]), f"out={out}"])
    before = (out / "projectors.safetensors").read_bytes()

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(conversion, "write_safetensors", fail)
    with pytest.raises(OSError, match="disk full"):
        run("convert", [str(files["video"]), f"out={out}", "overwrite=true"])
    assert (out / "projectors.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
