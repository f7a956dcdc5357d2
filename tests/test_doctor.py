import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from affectgpt import doctor
from affectgpt.cli import run
from affectgpt.doctor import CORE, EXTRAS, Finding, check_caches, check_media, check_packages, installed_versions
from affectgpt.doctor import known_mismatches as mismatches

GOOD = {
    "python": "3.11.9",
    "torch": "2.13.0+cpu",
    "transformers": "5.23.0",
    "sentencepiece": "0.2.1",
    "protobuf": "6.30",
    "numpy": "2.2.0",
}


def test_a_good_installation_has_no_mismatch():
    assert mismatches(GOOD) == []


@pytest.mark.parametrize(
    ("name", "version"),
    [("torchvision", "0.28.0+cu130"), ("torchaudio", "2.13.0+cu130"), ("torchaudio", "2.11.0+cu126")],
)
def test_a_cuda_build_beside_a_cpu_torch_is_reported_with_its_fix(name, version):
    (finding,) = mismatches({**GOOD, name: version})
    assert (finding.level, finding.topic) == ("problem", name)
    assert f"{version} with torch 2.13.0+cpu" in finding.found
    assert "build does not load with a cpu torch" in finding.found
    assert f"pip uninstall -y {name}" in finding.do
    assert "--index-url https://download.pytorch.org/whl/cpu" in finding.do


@pytest.mark.parametrize(
    ("torch", "name", "version", "wanted"),
    [
        ("2.13.0+cu130", "torchvision", "0.27.1+cu130", "torchvision==0.28.*"),
        ("2.6.0", "torchvision", "0.22.0", "torchvision==0.21.*"),
        ("2.9.1+cu128", "torchaudio", "2.8.0+cu128", "torchaudio==2.9.*"),
        ("2.10.0", "torchaudio", "2.11.0", "it needs torch 2.11 or newer"),
        ("2.12.0", "torchaudio", "2.9.0", "torchaudio==2.11.*"),
    ],
)
def test_versions_that_do_not_match_torch_are_named(torch, name, version, wanted):
    (finding,) = mismatches({**GOOD, "torch": torch, name: version})
    assert (finding.level, finding.topic) == ("problem", name)
    assert wanted in finding.found


@pytest.mark.parametrize(
    ("torch", "name", "version"),
    [
        ("2.13.0+cpu", "torchvision", "0.28.0+cpu"),
        ("2.13.0+cu130", "torchvision", "0.28.0+cu130"),
        ("2.13.0+cu126", "torchaudio", "2.11.0+cu128"),  # CUDA 12 with CUDA 12
        ("2.9.1", "torchaudio", "2.9.0"),
        ("2.13.0+cpu", "torchvision", "0.28.0"),  # macOS: no build in the version
    ],
)
def test_matching_pairs_are_left_alone(torch, name, version):
    assert mismatches({**GOOD, "torch": torch, name: version}) == []


@pytest.mark.parametrize(
    ("name", "version", "wanted"),
    [
        ("torch", "2.14.0+cu130", ">=2.6,<2.14"),
        ("torch", "2.5.1", ">=2.6,<2.14"),
        ("transformers", "4.57.3", ">=5.10,<6"),
        ("transformers", "5.9.2", ">=5.10,<6"),
        ("numpy", "1.24.4", ">=1.26"),
    ],
)
def test_a_version_out_of_bounds_is_named_with_the_bounds(name, version, wanted):
    (finding,) = mismatches({**GOOD, name: version})
    assert finding == Finding("problem", name, f"{version} is outside {wanted}", f"pip install '{name}{wanted}'")


def test_a_python_out_of_bounds_is_named():
    (finding,) = mismatches({**GOOD, "python": "3.14.0"})
    assert str(finding) == "problem  python         3.14.0 is outside >=3.10,<3.14 -> use Python >=3.10,<3.14"


@pytest.mark.parametrize("name", ["sentencepiece", "protobuf"])
def test_what_the_tokenizers_need_is_missed(name):
    (finding,) = mismatches({key: value for key, value in GOOD.items() if key != name})
    assert str(finding).startswith(f"problem  {name}")
    assert finding.do == f"pip install {name}"


def test_timm_without_torchvision_is_a_warning():
    (finding,) = mismatches({**GOOD, "timm": "1.0.20"})
    assert (finding.level, finding.topic) == ("warn", "timm")


def test_a_missing_core_package_is_a_problem_and_a_missing_optional_one_is_not():
    findings = check_packages(GOOD)
    assert {finding.topic for finding in findings if finding.level == "problem"} == CORE.keys() - GOOD.keys()
    extras = [finding for finding in findings if finding.topic == "extra"]
    assert {finding.level for finding in extras} == {"ok"}
    wanted = "vision (timm encoders): timm, torchvision not installed; pip install 'affectgpt[vision]'"
    assert wanted in [finding.found for finding in extras]


def packages(requirements: str) -> set[str]:
    return set(re.findall(r'"([\w-]+)', requirements))


def test_the_extras_are_those_of_pyproject():
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^\[project.optional-dependencies\]\n(.*?)^\[", text, flags=re.MULTILINE | re.DOTALL).group(1)
    wanted = dict(re.findall(r"^(\w+) = \[(.+)\]$", listed, flags=re.MULTILINE))
    assert set(EXTRAS) == wanted.keys() - {"all", "studio"}  # studio is serve
    for extra, (_, names) in EXTRAS.items():
        assert set(names) == packages(wanted[extra]), extra


def test_bounds_are_never_looser_than_those_of_pyproject():
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL).group(1)
    wanted = dict(re.findall(r'^\s*"([\w-]+)>=([^"]+)"', listed, flags=re.MULTILINE))
    assert wanted.keys() == CORE.keys()
    for name, bounds in wanted.items():
        low, _, high = bounds.partition(",<")
        assert doctor._parts(CORE[name][0]) >= doctor._parts(low), name
        assert CORE[name][1] == (high or None), name


def test_the_build_of_torch_is_found_without_importing_it():
    code = (
        "import sys; from affectgpt.doctor import installed_versions, known_mismatches\n"
        "versions = installed_versions(); known_mismatches(versions)\n"
        "assert not {'torch', 'torchvision', 'torchaudio', 'transformers', 'numpy'} & sys.modules.keys()\n"
        "print(versions['torch'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"2\.\d+\.\d+\S*\+\w+", run.stdout.strip())


def write_package(folder: Path, name: str, version_py: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise ImportError('must not be imported')")
    (folder / name / "version.py").write_text(version_py)


def test_the_build_of_torchvision_is_read_from_its_file(tmp_path, monkeypatch):
    write_package(tmp_path, "torchvision", "__version__ = '0.28.0+cu130'\ngit_version = 'abc'\nfrom x import y\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor._version_with_build("torchvision") == "0.28.0+cu130"


@pytest.mark.parametrize(
    ("cuda", "expected"), [("None", "2.13.0+cpu"), ("'12.8'", "2.13.0+cu128"), ('"13.0"', "2.13.0+cu130")]
)
def test_a_torch_without_a_build_in_its_version_tells_by_its_cuda(tmp_path, monkeypatch, cuda, expected):
    text = f"from typing import Optional\n__version__ = '2.13.0'\ncuda: Optional[str] = {cuda}\nhip = None\n"
    write_package(tmp_path, "torch", text)
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: type("Spec", (), {"origin": tmp_path / name / "__init__.py"})
    )
    assert doctor._version_with_build("torch") == expected


def test_pyav_decodes_frames_and_audio_of_a_clip_that_it_wrote():
    findings = {finding.topic: finding for finding in check_media()}
    assert findings["pyav"].level == "ok"
    assert findings["pyav"].found == "decodes 4 frames of a test clip"
    assert findings["audio"].level == "ok"


def test_caches_follow_the_environment_and_count_what_is_there(tmp_path):
    blob = tmp_path / "hf" / "hub" / "models--a--b" / "blobs" / "x"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(bytes(20_000_000))
    environment = {
        "HF_HOME": str(tmp_path / "hf"),
        "AFFECTGPT_CACHE": str(tmp_path / "own"),
        "HF_HUB_OFFLINE": "1",
    }
    models, own, *rest = check_caches(environment)
    assert "1 models, 0.02 GB; offline (HF_HUB_OFFLINE)" in models.found
    assert str(tmp_path / "own") in own.found
    assert not [finding for finding in rest if finding.level == "problem"]
    assert not (tmp_path / "own").exists()


def test_a_file_that_vanishes_while_a_cache_is_measured_does_not_count(tmp_path, monkeypatch):
    (tmp_path / "stays").write_bytes(bytes(1000))
    monkeypatch.setattr(doctor.os, "walk", lambda folder: [(folder, [], ["vanished", "stays"])])
    assert doctor._size_gb(tmp_path) == 1e-6


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 0), ("problem", 1)])
def test_the_exit_code_tells_whether_there_is_a_problem(monkeypatch, capsys, level, code):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding(level, "torch", "found", "fix it")])
    assert run("doctor", []) == code
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{level:8} torch          found -> fix it"
    assert printed[-1].startswith("not usable" if code else "usable")
    assert run("doctor", ["--json"]) == code
    report = json.loads(capsys.readouterr().out)
    assert report["usable"] is (code == 0)
    assert report["findings"] == [{"level": level, "topic": "torch", "found": "found", "do": "fix it"}]


def test_a_package_with_trouble_is_not_also_called_fine(monkeypatch):
    monkeypatch.setattr(doctor, "installed_versions", lambda: {**GOOD, "torchvision": "0.28.0+cu130"})
    for check in ("check_imports", "check_devices", "check_media", "check_caches"):
        monkeypatch.setattr(doctor, check, list)
    assert [finding.level for finding in doctor.examine() if finding.topic == "torchvision"] == ["problem"]


def test_an_import_that_fails_is_reported_with_its_last_line(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nOSError: libcudart.so.13: cannot open\n")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *arguments, **options: failed)
    (finding,) = doctor.check_imports()
    assert finding.level == "problem"
    assert finding.found.endswith("OSError: libcudart.so.13: cannot open")


def test_installed_versions_leave_out_what_is_absent():
    versions = installed_versions()
    assert versions["python"].startswith("3.")
    assert None not in versions.values()
