"""Files of two formats give the same, and none runs code, is half read or fills the memory."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from affectgpt.cli import run
from affectgpt.convert.conversion import convert
from affectgpt.convert.files import ConvertError, Entry, open_weights, write_safetensors
from tests.models import foreign


def test_safetensors_give_the_same_as_pickles(states, base, tmp_path):
    paths = []
    for name, state in states.items():
        paths.append(tmp_path / f"{name}.safetensors")
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, paths[-1])
    assert convert(paths, tmp_path / "base")["complete"]
    once, again = (load_file(folder / "projectors.safetensors") for folder in (base, tmp_path / "base"))
    assert once.keys() == again.keys()
    assert all(torch.equal(once[key], again[key]) for key in once)


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self):
        return os.system, ("touch trapped",)


def test_a_pickle_with_objects_is_refused_without_running_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": foreign.audio_branch(), "config": Trap()}, "a.pth")
    assert run("convert", ["a.pth", "out=base"]) == 2
    error = capsys.readouterr().err
    assert "a.pth is refused" in error
    assert "posix.system" in error
    assert "save only the tensors" in error
    assert not Path("trapped").exists()
    assert not Path("base").exists()


def test_broken_and_absent_files_are_named(tmp_path, files, capsys):
    half = tmp_path / "half.pth"
    half.write_bytes(files["audio"].read_bytes()[:3000])
    assert run("convert", [str(half), f"out={tmp_path / 'base'}"]) == 2
    assert "half.pth cannot be read" in capsys.readouterr().err
    assert run("convert", [str(tmp_path / "none.pth"), f"out={tmp_path / 'base'}"]) == 2
    assert "none.pth does not exist" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_no_damage_to_a_file_ends_in_a_traceback(tmp_path, zipped):
    draw = random.Random(0)
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    data = (tmp_path / "a.pth").read_bytes()
    n_refused = 0
    for _ in range(500):
        damaged = bytearray(data)
        damaged[draw.randrange(len(data))] = draw.randrange(256)
        (tmp_path / "b.pth").write_bytes(damaged[: draw.choice([len(data), draw.randrange(len(data))])])
        try:
            open_weights(tmp_path / "b.pth")
        except ConvertError:
            n_refused += 1
    assert n_refused > 250


def test_a_dtype_that_is_not_converted_is_named_with_its_tensor(tmp_path):
    eighth = {"w": torch.ones(2).to(torch.float8_e4m3fn)}
    save_file(eighth, tmp_path / "a.safetensors")
    with pytest.raises(ConvertError, match=r"a\.safetensors: tensor w is F8_E4M3; expected one of F64, F32"):
        open_weights(tmp_path / "a.safetensors")
    entry = Entry("w", (2,), torch.float8_e4m3fn, lambda: eighth["w"])
    with pytest.raises(ConvertError, match=r"tensor w is torch\.float8_e4m3fn; expected one of F64, F32"):
        write_safetensors(tmp_path / "b.safetensors", [entry])


def test_tensors_without_names_are_no_checkpoint(tmp_path):
    torch.save({0: torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(ConvertError, match=r"a\.pth contains dict instead of a dictionary of named tensors"):
        open_weights(tmp_path / "a.pth")


def test_memory_does_not_grow_with_the_file(tmp_path):
    """RssAnon leaves out mapped file pages, which the system takes back at will."""
    state = foreign.eva(n_blocks=39)
    for number in range(39):  # 4 MB a block
        state[f"blocks.{number}.mlp.fc1.weight"] = torch.zeros(10922, 48)
        state[f"blocks.{number}.mlp.fc1.bias"] = torch.zeros(10922)
        state[f"blocks.{number}.mlp.fc2.weight"] = torch.zeros(48, 10922)
    files = [foreign.save(state, tmp_path / "eva.pth", key=None), foreign.save(foreign.blip2(), tmp_path / "blip2.pth")]
    code = f"""
import threading, time
from pathlib import Path
from affectgpt.convert.conversion import convert
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
