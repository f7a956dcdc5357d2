"""Base models on disk: where they are, and whether they are still the same."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from affectgpt.config import EncoderConfig, LLMConfig
from affectgpt.runtime import NotFound

PREPROCESSOR = "preprocessor_config.json"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TEXT_FILES = ("*.json", "*.model", "*.jinja", "*.txt")
_WEIGHT_FILES = ("*.safetensors", "*.bin")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_FULL_HASH_BYTES = 64 << 20  # weight files up to this size are hashed in full
_CHUNK_BYTES, _N_CHUNKS = 1 << 16, 64


def is_local(name: str) -> bool:
    return not name.startswith("timm:") and Path(name).expanduser().is_dir()


def resolve(name: str, what: str, revision: str | None = None) -> Path:
    """The local folder of a base model; of a hub model, its cached snapshot with at least the configuration files.

    Raises:
        NotFound: no such folder, or the hub and its cache do not have the model; names `what` and `name`.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.endswith(".gguf"):
        raise NotFound(
            f"{what}: {name} is a GGUF file; convert it with `python -m affectgpt.convert {name} out=FOLDER`, and name "
            "the folder; model.llm.path= on a command line does that on its own"
        )
    if not _HUB_ID.fullmatch(name):
        raise NotFound(f"{what}: base model folder {name!r} does not exist; put it there or name another")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["config.json", PREPROCESSOR]))
    except (OSError, ValueError) as error:
        raise _unavailable(name, what, revision, ["config.json"], error) from error


def fetch(name: str, what: str, revision: str | None = None) -> Path:
    """The folder of a hub model with its configuration, weights and tokenizer, downloaded unless they are cached.

    If a repository has its weights in two formats, only safetensors are downloaded.

    Raises:
        NotFound: offline, without a network, or refused by the hub; lists the missing files and the command to fetch
            them.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    failure: Exception | None = None
    try:
        info = HfApi().model_info(name, revision=revision)
        wanted = wanted_files([file.rfilename for file in info.siblings or []])
        folder = Path(snapshot_download(name, revision=info.sha, allow_patterns=wanted))
    except (OSError, ValueError, OfflineModeIsEnabled, *connection_errors()) as error:
        failure = error
        try:
            folder = Path(
                snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=["config.json"])
            )
        except (OSError, ValueError):
            raise _unavailable(name, what, revision, ["config.json"], error) from error
    if missing := missing_files(folder, with_tokenizer=what == "llm"):
        raise _unavailable(name, what, revision, missing, failure) from failure
    return folder


def connection_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub lets through if the hub cannot be reached: errors of httpx, in newer versions httpx2."""
    return tuple(sys.modules[name].HTTPError for name in ("httpx", "httpx2") if name in sys.modules)


def fetch_all(parts: Mapping[str, LLMConfig | EncoderConfig]) -> None:
    """`fetch` every base model, "llm" or modality -> its settings, that is not a local folder."""
    for what, part in parts.items():
        if not part.path.startswith("timm:") and not is_local(part.path):
            fetch(part.path, what, part.revision)


def wanted_files(files: Iterable[str]) -> list[str]:
    """The files of a model repository that transformers reads: settings, tokenizer, and one format of the weights.

    >>> wanted_files(["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx", "README.md"])
    ['config.json', 'model.safetensors']
    """
    top = [file for file in files if "/" not in file]
    texts = [file for file in top if any(fnmatch(file, pattern) for pattern in _TEXT_FILES)]
    weights = [file for file in top if fnmatch(file, "model*.safetensors")]
    return texts + (weights or [file for file in top if fnmatch(file, "pytorch_model*.bin")])


def missing_files(folder: Path, with_tokenizer: bool = False) -> list[str]:
    """The files that a model folder lacks: configuration, shards listed in an index, tokenizer."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    indices = [folder / "model.safetensors.index.json", folder / "pytorch_model.bin.index.json"]
    if index := next((path for path in indices if path.is_file()), None):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing += sorted(shard for shard in shards if not (folder / shard).is_file())
    elif not any((folder / file).is_file() for file in ("model.safetensors", "pytorch_model.bin")):
        missing.append("model.safetensors")
    if with_tokenizer and not any((folder / file).is_file() for file in _TOKENIZERS):
        missing.append("tokenizer.json")
    return missing


def _unavailable(name: str, what: str, revision: str | None, missing: list[str], error: Exception | None) -> NotFound:
    """An error with the reason why a hub model is not available, and the command to fetch it."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    model = f"{what}: base model {name!r}" + (f" at revision {revision}" if revision else "")
    if isinstance(error, GatedRepoError):
        page = f"{constants.ENDPOINT}/{name}"
        return NotFound(f"{model} is gated: request access at {page}, then run `hf auth login`")
    if isinstance(error, RepositoryNotFoundError):
        return NotFound(
            f"{model} is neither a local folder nor a model on the hub; correct the name, "
            "or run `hf auth login` if the model is private"
        )
    if isinstance(error, RevisionNotFoundError):
        return NotFound(f"{model}: the hub has the model, but not this revision; its page lists the commits")
    if constants.HF_HUB_OFFLINE:
        reason = "offline mode is on (HF_HUB_OFFLINE)"
    elif error is None:
        reason = f"the hub {constants.ENDPOINT} does not list them"
    else:
        reason = f"the hub {constants.ENDPOINT} did not answer ({type(error).__name__})"
    command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    return NotFound(
        f"{model} is not complete in the cache {constants.HF_HUB_CACHE}: {', '.join(missing)} missing, and {reason}; "
        f"with a network connection run `{command}`, or `python -m affectgpt.hub fetch model=...` for all base models "
        "of a preset"
    )


def release(name: str) -> Path | None:
    """The downloaded folder of a published checkpoint `user/name` or `user/name@revision`.

    None if `name` is no hub id, or a path in a local folder.

    Raises:
        NotFound: neither the hub nor its cache has the checkpoint; gives the command to fetch it.
    """
    repo, _, revision = name.partition("@")
    if repo.count("/") != 1 or not _HUB_ID.fullmatch(repo) or Path(name).exists():
        return None
    if Path(repo).parent.is_dir():  # a path in a local folder, mistyped
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision or None))
    except (OSError, ValueError) as error:
        command = f"hf download {repo}" + (f" --revision {revision}" if revision else "")
        raise NotFound(
            f"checkpoint {name!r} is not a local folder, and the hub did not provide it ({type(error).__name__}); "
            f"with a network connection run `{command}`"
        ) from error


def fingerprint(name: str, what: str, revision: str | None = None) -> str:
    """Identity of a base model's content, independent of its location.

    A hub model is identified by its commit, a folder by the sha256 of its small files and of its weights. Weight files
    up to 64 MiB are hashed in full; of larger ones the size, the head (which lists the tensors) and 64 samples.
    """
    if name.startswith("timm:"):
        return name
    folder = resolve(name, what, revision)
    if not is_local(name):
        return f"commit:{folder.name}"
    digest = hashlib.sha256()
    files = {path for pattern in _TEXT_FILES + _WEIGHT_FILES for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(files):
        update_digest(digest, path)
    return f"sha256:{digest.hexdigest()}"


def update_digest(digest: Any, path: Path) -> None:
    """Add name, size and content of a file to a hash of hashlib: of weights above 64 MiB the head and 64 samples."""
    size = path.stat().st_size
    digest.update(f"{path.name}:{size}\n".encode())
    with path.open("rb") as file:
        if size <= _FULL_HASH_BYTES or path.suffix not in (".safetensors", ".bin", ".gguf"):
            while block := file.read(1 << 20):
                digest.update(block)
            return
        for i in range(_N_CHUNKS):
            file.seek(i * (size - _CHUNK_BYTES) // (_N_CHUNKS - 1))
            digest.update(file.read(_CHUNK_BYTES))
