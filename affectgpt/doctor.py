"""Check the installation and print a fix for each problem: `python -m affectgpt.doctor`.

Exit code 0 = usable, 1 = at least one problem. Each check returns findings, one line each. `known_mismatches` imports
nothing heavy and takes milliseconds, so every command calls it first: it explains a broken installation before
transformers fails with a misleading message.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from affectgpt.config import DoctorConfig
from affectgpt.runtime import n_cores

# name: (lowest supported version, first unsupported version or None), as in pyproject.toml; a test compares them.
CORE: Mapping[str, tuple[str, str | None]] = {
    "torch": ("2.6", "2.14"),
    "transformers": ("5.10", "6"),
    "accelerate": ("1.10", None),
    "peft": ("0.18", None),
    "safetensors": ("0.5", None),
    "sentencepiece": ("0.2", None),
    "protobuf": ("5", None),
    "hydra-core": ("1.3.2", "1.4"),
    "omegaconf": ("2.3", "2.4"),
    "av": ("15", None),
    "httpx": ("0.28", "1"),
    "wandb": ("0.19", None),
    "numpy": ("1.26", None),
    "pillow": ("10.3", None),
    "tqdm": ("4.66", None),
    "filelock": ("3.12", None),
    "packaging": ("23", None),
}
# extra: (purpose, packages), as in pyproject.toml; a test compares them.
EXTRAS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "vision": ("timm encoders", ("timm", "torchvision")),
    "decord": ("video decoder decord", ("decord",)),
    "cluster": ("caching and annotation on Ray", ("ray",)),
    "deepspeed": ("ZeRO-2 and ZeRO-3", ("deepspeed",)),
    "quantization": ("LLM in 4 or 8 bits", ("bitsandbytes",)),
    "slurm": ("jobs on SLURM", ("hydra-submitit-launcher",)),
    "tensorboard": ("TensorBoard logs", ("tensorboard",)),
    "serve": ("python -m affectgpt.serve", ("starlette", "uvicorn")),
    "evaluation": (
        "text metrics, Excel tables, plots",
        ("sacrebleu", "rouge-score", "jieba", "nltk", "openpyxl", "matplotlib"),
    ),
    "speech": ("speech segments of audio", ("silero-vad",)),
    "faces": ("a second face detector, dlib", ("dlib-bin",)),
    "structured": ("JSON schemas enforced for models in this process", ("llguidance",)),
    "gguf": ("LLMs in GGUF files", ("gguf",)),
    "datasets": ("data sets of the hub as data of training", ("datasets",)),
}
# Optional packages that belong to no extra: used if they are installed, or known to break imports (torchaudio).
OTHERS = ("torchaudio", "torchcodec", "flash-attn", "vllm")
_PYTHON = ("3.10", "3.14")


@dataclass(frozen=True)
class Finding:
    """One line of the report; `do` is the fix of a "warn" or "problem"."""

    level: Literal["ok", "warn", "problem"]
    topic: str
    found: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.level:8} {self.topic:14} {self.found}" + (f" -> {self.do}" if self.do else "")


def _parts(version: str) -> tuple[int, ...]:
    """
    >>> _parts("2.13.0+cpu"), _parts("5.0rc1")
    ((2, 13), (5,))
    """
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    parts = [int(number) for number in numbers.group().split(".")] if numbers else []
    while parts and parts[-1] == 0 and len(parts) > 1:  # 2.14.0 equals 2.14
        parts.pop()
    return tuple(parts)


def _minor(version: str) -> tuple[int, int]:
    major, minor, *_ = (*_parts(version), 0, 0)
    return major, minor


def _build(version: str) -> str:
    """Platform of a build of the torch family: "cpu", "cuda 13", "rocm 6" ..., or "" if the version does not say.

    >>> _build("2.13.0+cu130"), _build("2.13.0+cpu"), _build("2.13.0")
    ('cuda 13', 'cpu', '')
    """
    local = version.partition("+")[2]
    if cuda := re.match(r"cu(\d+)\d", local):
        return f"cuda {cuda.group(1)}"
    if rocm := re.match(r"rocm(\d+)", local):
        return f"rocm {rocm.group(1)}"
    return "cpu" if local.startswith("cpu") else ""


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the installed core and optional packages, without importing any.

    The metadata of PyPI wheels do not distinguish CPU and CUDA builds; the torch family's `version.py` does.
    """
    found = {"python": platform.python_version()}
    for name in (*CORE, *(name for _, names in EXTRAS.values() for name in names), *OTHERS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if name in ("torch", "torchvision", "torchaudio"):
            found[name] = _version_with_build(name) or found[name]
    return found


def _version_with_build(package: str) -> str | None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    values = dict(re.findall(r"^(\w+)(?::[^=]*)?\s*=\s*['\"]([^'\"]+)['\"]", text, flags=re.MULTILINE))
    version = values.get("__version__")
    if version and "+" not in version and package == "torch":
        version += f"+cu{values['cuda'].replace('.', '')}" if "cuda" in values else "" if "hip" in values else "+cpu"
    return version


def known_mismatches(versions: Mapping[str, str] | None = None) -> list[Finding]:
    """Combinations of versions that are known to break, each with its fix; takes milliseconds and imports nothing.

    Args:
        versions: None = those of `installed_versions`.
    """
    versions = installed_versions() if versions is None else versions
    findings = list(_out_of_bounds(versions))
    if "transformers" in versions:
        findings += [
            Finding("problem", name, "not installed, but required by transformers' tokenizers", f"pip install {name}")
            for name in ("sentencepiece", "protobuf")
            if name not in versions
        ]
    if torch := versions.get("torch"):
        for name in ("torchvision", "torchaudio"):
            if (version := versions.get(name)) and (why := _why_incompatible(torch, name, version)):
                wanted = _matching(name, torch)
                index = " --index-url https://download.pytorch.org/whl/cpu" if _build(torch) == "cpu" else ""
                findings.append(
                    Finding(
                        "problem",
                        name,
                        f"{version} with torch {torch}: {why}; imports of transformers, peft or timm may fail",
                        f"pip uninstall -y {name} (the core does not need it), or pip install '{wanted}'{index}",
                    )
                )
    if "timm" in versions and "torchvision" not in versions:
        findings.append(
            Finding("warn", "timm", "installed without torchvision, which it needs", "pip install 'affectgpt[vision]'")
        )
    return findings


def _out_of_bounds(versions: Mapping[str, str]) -> Iterator[Finding]:
    for name, (low, high) in {"python": _PYTHON, **CORE}.items():
        version = versions.get(name)
        if version is None:
            continue
        if _parts(version) < _parts(low) or (high and _parts(version) >= _parts(high)):
            wanted = f">={low}" + (f",<{high}" if high else "")
            do = f"use Python {wanted}" if name == "python" else f"pip install '{name}{wanted}'"
            yield Finding("problem", name, f"{version} is outside {wanted}", do)


def _why_incompatible(torch: str, name: str, version: str) -> str | None:
    """Why this torchvision or torchaudio is incompatible with this torch; None if the versions match."""
    ours, theirs = _build(torch), _build(version)
    if ours and theirs and ours != theirs:
        return f"a {theirs} build does not load with a {ours} torch"
    if name == "torchaudio" and _minor(version) >= (2, 11):
        # Since 2.11 it is built against torch's stable ABI: docs.pytorch.org/audio/2.11.0/installation.html
        return None if _minor(torch) >= (2, 11) else "it needs torch 2.11 or newer"
    wanted = _matching(name, torch)
    return None if _minor(version) == _minor(wanted.partition("==")[2]) else f"this torch needs {wanted}"


def _matching(name: str, torch: str) -> str:
    """
    >>> _matching("torchvision", "2.13.0"), _matching("torchaudio", "2.9.1")
    ('torchvision==0.28.*', 'torchaudio==2.9.*')
    """
    major, minor = _minor(torch)
    if name == "torchvision":
        return f"torchvision==0.{minor + 15}.*"
    return f"torchaudio=={major}.{min(minor, 11)}.*"


def check_packages(versions: Mapping[str, str]) -> list[Finding]:
    """Installed versions, missing core packages and extras that are not (completely) installed."""
    findings = [Finding("ok", "python", f"{versions['python']} at {sys.executable}")]
    for name in CORE:
        if name in versions:
            findings.append(Finding("ok", name, versions[name]))
        else:
            findings.append(Finding("problem", name, "not installed", "pip install affectgpt, or pip install -e ."))
    findings += [Finding("ok", name, version) for name, version in versions.items() if name not in {"python", *CORE}]
    for extra, (purpose, names) in EXTRAS.items():
        if missing := [name for name in names if name not in versions]:
            found = f"{extra} ({purpose}): {', '.join(missing)} not installed; pip install 'affectgpt[{extra}]'"
            findings.append(Finding("ok", "extra", found))
    if "deepspeed" in versions and not shutil.which("g++"):
        findings.append(
            Finding("warn", "deepspeed", "compiles code at its first run, but finds no g++", "install a C++ compiler")
        )
    return findings


def check_imports(timeout_s: float = 300) -> list[Finding]:
    """Import the training libraries in a subprocess, so that a crash of one is reported too."""
    code = "import torch, numpy, accelerate, peft, transformers; from transformers import Trainer, LlamaForCausalLM"
    try:
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return [
            Finding("problem", "imports", f"took over {timeout_s:.0f} s", "check for a slow or hanging file system")
        ]
    if run.returncode:
        last = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        return [
            Finding(
                "problem", "imports", f"transformers' models cannot be imported: {last}", f"run: python -c '{code}'"
            )
        ]
    return [Finding("ok", "imports", "torch, transformers, accelerate and peft import together")]


def check_devices() -> list[Finding]:
    """Cores, memory and GPUs."""
    usable = n_cores()
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    findings = [Finding("ok", "cpu", f"{usable} cores usable of {os.cpu_count()}, OMP_NUM_THREADS {threads}")]
    if (total_gb := _memory_gb()) is not None:
        findings.append(
            Finding("ok", "memory", f"{total_gb:.1f} GB")
            if total_gb >= 4
            else Finding("warn", "memory", f"{total_gb:.1f} GB", "the embedded demo needs about 4 GB")
        )
    shared = Path("/dev/shm")
    if shared.is_dir() and (shared_gb := shutil.disk_usage(shared).total / 1e9) < 1:
        findings.append(
            Finding("warn", "/dev/shm", f"{shared_gb:.2f} GB", "docker run --shm-size=8g, or stage.n_workers=0")
        )
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:
        return [*findings, Finding("problem", "torch", f"cannot be imported: {_first_line(error)}", "reinstall torch")]
    findings.append(Finding("ok", "torch threads", str(torch.get_num_threads())))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            bf16 = "bf16" if card.major >= 8 else "no bf16"
            facts = f"{card.name}, {card.total_memory / 1e9:.0f} GB, compute {card.major}.{card.minor}, {bf16}"
            findings.append(Finding("ok", f"cuda:{index}", facts))
    elif shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists():
        findings.append(
            Finding(
                "warn",
                "cuda",
                f"NVIDIA driver found, but torch {torch.__version__} finds no GPU",
                "install a CUDA build of torch (pytorch.org/get-started), or check nvidia-smi and CUDA_VISIBLE_DEVICES",
            )
        )
    else:
        findings.append(Finding("ok", "cuda", "no GPU: fine for the embedded demo, too slow for a 7B model"))
    return findings


def _memory_gb() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):  # no such name on Windows
        return None


def check_media() -> list[Finding]:
    """Write a short clip, then decode its frames with every backend and its audio."""
    try:
        import av
        import numpy as np

        from affectgpt.media import MediaError, read_audio, read_frames
    except (ImportError, OSError) as error:
        return [Finding("problem", "media", f"cannot be imported: {_first_line(error)}", "pip install av numpy")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        try:
            _write_clip(path)
        except (av.FFmpegError, av.codec.codec.UnknownCodecError) as error:
            do = "reinstall av from PyPI: pip install --force-reinstall av"
            return [Finding("problem", "media", f"PyAV cannot write h264 and aac: {_first_line(error)}", do)]
        findings = []
        for backend in ("pyav", "decord", "torchcodec"):
            try:
                frames = read_frames(path, 4, backend=backend)
            except ImportError as error:
                if importlib.util.find_spec(backend):
                    findings.append(Finding("warn", backend, _first_line(error), "use backend pyav"))
                continue
            except MediaError as error:
                level: Literal["warn", "problem"] = "problem" if backend == "pyav" else "warn"
                findings.append(Finding(level, backend, _first_line(error), f"pip install --force-reinstall {backend}"))
                continue
            right = np.abs(frames.images[:, 0, 0].mean(axis=-1) - [40, 80, 120, 160]).max() < 10
            findings.append(
                Finding("ok", backend, f"decodes {frames.n_source_frames} frames of a test clip")
                if right
                else Finding("problem", backend, "decodes wrong frames of a test clip", "use another backend")
            )
        try:
            audio = read_audio(path)
            findings.append(Finding("ok", "audio", f"decodes {audio.duration_s:.2f} s at {audio.rate_hz} Hz"))
        except MediaError as error:
            findings.append(Finding("problem", "audio", _first_line(error), "pip install --force-reinstall av"))
    return findings


def _write_clip(path: Path) -> None:
    """Four grey frames of increasing brightness at 4 Hz (h264) and 1 s of audio (aac)."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=4)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = container.add_stream("aac", rate=16000)
        for brightness in (40, 80, 120, 160):
            picture = np.full((64, 64, 3), brightness, dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        tone = np.sin(np.arange(16000, dtype=np.float32) * 0.2)[None]
        sound = av.AudioFrame.from_ndarray(0.5 * tone, format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))


def check_caches(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Location, size and free space of the cache of base models and of the project's own cache."""
    home = Path(environment.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    hub = Path(environment.get("HF_HUB_CACHE") or home / "hub").expanduser()
    own = Path(environment.get("AFFECTGPT_CACHE") or "~/.cache/affectgpt").expanduser()
    offline = environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    n_models = len(list(hub.glob("models--*")))
    network = "offline (HF_HUB_OFFLINE): no others can be used" if offline else "others are downloaded on demand"
    findings = [Finding("ok", "model cache", f"{hub}: {n_models} models, {_size_gb(hub):.2f} GB; {network}")]
    findings.append(Finding("ok", "cache", f"{own}: {_size_gb(own):.2f} GB (AFFECTGPT_CACHE)"))
    for name, variable, folder in (("model cache", "HF_HOME", hub), ("cache", "AFFECTGPT_CACHE", own)):
        there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        if not os.access(there, os.W_OK):
            findings.append(
                Finding("problem", name, f"{there} is not writable", f"set {variable} to a writable folder")
            )
        elif (free_gb := shutil.disk_usage(there).free / 1e9) < 2:
            findings.append(
                Finding("warn", name, f"only {free_gb:.1f} GB free at {there}", f"free some space, or set {variable}")
            )
    return findings


def _size_gb(folder: Path) -> float:
    """Size of all files but those that vanish meanwhile; symbolic links, as in the model cache, are not followed."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total / 1e9


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def examine() -> list[Finding]:
    """All checks."""
    versions = installed_versions()
    mismatches = known_mismatches(versions)
    findings = check_packages(versions)
    faulty = {finding.topic for finding in mismatches}  # these get no "ok" line
    findings = [finding for finding in findings if finding.topic not in faulty] + mismatches
    return [*findings, *check_imports(), *check_devices(), *check_media(), *check_caches()]


def summary(findings: Sequence[Finding]) -> str:
    n_problems = sum(finding.level == "problem" for finding in findings)
    n_warnings = sum(finding.level == "warn" for finding in findings)
    verdict = "not usable until the problems are fixed" if n_problems else "usable"
    return f"{verdict} (problems: {n_problems}, warnings: {n_warnings})"


def run(config: DoctorConfig) -> int:
    """Print the report; returns 1 if there is a problem, else 0."""
    findings = examine()
    usable = all(finding.level != "problem" for finding in findings)
    if config.json:
        report: dict[str, Any] = {"usable": usable, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(report, indent=2))
    else:
        print(*findings, summary(findings), sep="\n")
    return 0 if usable else 1


if __name__ == "__main__":
    from affectgpt.cli import main

    main("doctor")
