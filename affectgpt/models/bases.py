"""Base models on disk: where they are, and whether they are still the same."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TEXT_FILES = ("*.json", "*.model", "*.jinja", "*.txt")
_WEIGHT_FILES = ("*.safetensors", "*.bin")
_WHOLE_BYTES = 64 << 20  # weight files up to this size are hashed in full
_CHUNK_BYTES, _N_CHUNKS = 1 << 16, 64


def resolve(name: str, what: str, revision: str | None = None) -> Path | None:
    """The local folder of a base model; None for `timm:` names. Raises FileNotFoundError that names `what` and `name`.

    A hub model is looked up in the local cache or fetched (its configuration only); its folder's name is its commit.
    """
    if name.startswith("timm:"):
        return None
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"{what}: base model folder {name!r} does not exist; put it there or name another")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["config.json"]))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{what}: base model {name!r} is neither a folder here nor a model that the hub gives ({error})"
        ) from error


def is_local(name: str) -> bool:
    return not name.startswith("timm:") and Path(name).expanduser().is_dir()


def fingerprint(name: str, what: str, revision: str | None = None) -> str:
    """What identifies a base model's content, wherever it lies.

    A hub model is its commit. A folder is the sha256 of its small files and of its weights: in full up to 64 MiB a
    file, else the file's size, its head (which lists the tensors) and 64 samples spread over it.
    """
    folder = resolve(name, what, revision)
    if folder is None:
        return name
    if not is_local(name):
        return f"commit:{folder.name}"
    digest = hashlib.sha256()
    files = {path for pattern in _TEXT_FILES + _WEIGHT_FILES for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        with path.open("rb") as file:
            if size <= _WHOLE_BYTES or path.suffix not in (".safetensors", ".bin"):
                while block := file.read(1 << 20):
                    digest.update(block)
                continue
            for i in range(_N_CHUNKS):
                file.seek(i * (size - _CHUNK_BYTES) // (_N_CHUNKS - 1))
                digest.update(file.read(_CHUNK_BYTES))
    return f"sha256:{digest.hexdigest()}"
