"""GGUF files (llama.cpp's format) to folders that transformers reads: weights, configuration, tokenizer.

transformers reads the file (`gguf_file=`) and dequantizes its tensors; the folder is an ordinary base model, so that
training, caching and checkpoints treat it as any other.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
import struct
from pathlib import Path

from affectgpt.bases import update_digest
from affectgpt.convert.files import ConvertError
from affectgpt.journal.locks import held
from affectgpt.models.integrity import follow_umask, write_sums
from affectgpt.runtime import MissingLibrary, NotFound, folder_at_once, quiet_libraries, write_json_atomic

log = logging.getLogger("affectgpt")

SOURCE = "gguf.json"
_VERSION = "1"
"""Changes whenever the same file gives another folder."""
# What transformers' reader raises for damaged files and for architectures that it does not know.
_UNREADABLE = (ValueError, OSError, LookupError, OverflowError, NotImplementedError, struct.error)
_EXACT_BELOW = 1_000_000_000  # parameters; larger models are written in bfloat16, in half the space


def base_model(name: str, cache: Path) -> str:
    """The folder of a GGUF file below `cache`, converted unless it is there.

    Raises:
        NotFound: no such file.
        ConvertError, MissingLibrary: as of `convert_gguf`.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise NotFound(f"model.llm.path: the file {name} does not exist")
    digest = hashlib.sha256(f"{_VERSION}:{path.name}".encode())
    update_digest(digest, path)
    folder = cache / "gguf" / f"{re.sub(r'[^A-Za-z0-9._-]', '_', path.stem)}-{digest.hexdigest()[:12]}"
    if not (folder / SOURCE).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with held(folder.with_name(f".{folder.name}.lock"), what=f"{path} is being converted to {folder}"):
            if not (folder / SOURCE).is_file():
                log.info("converting %s to %s", path, folder)
                convert_gguf(path, folder)
    return str(folder)


def convert_gguf(path: Path, folder: Path) -> int:
    """Write `folder` from a GGUF file, in place of what it held; returns the number of parameters.

    Models below one billion parameters are written in float32, exactly as dequantized, larger ones in bfloat16.

    Raises:
        MissingLibrary: the package gguf is not installed.
        ConvertError: not a GGUF file, or one of an architecture that transformers does not read.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ConvertError(f"{path} is not a GGUF file: it does not begin with GGUF")
    if importlib.util.find_spec("gguf") is None:
        raise MissingLibrary(f"reading {path} needs the package gguf: pip install 'affectgpt[gguf]'")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    quiet_libraries()
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        config = AutoConfig.from_pretrained(**source)
        tokenizer = AutoTokenizer.from_pretrained(**source)
        with torch.random.fork_rng(devices=[]):
            read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    except _UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConvertError(f"{path} cannot be read by transformers: {reason}") from error
    n_parameters = sum(parameter.numel() for parameter in read.parameters())
    dtype = torch.float32 if n_parameters < _EXACT_BELOW else torch.bfloat16
    # A model that was read from GGUF counts as quantized and refuses to be saved.
    fields = {key: value for key, value in config.to_dict().items() if key not in ("_name_or_path", "dtype")}
    plain_config = type(config)(**{key: value for key, value in fields.items() if not key.startswith("_")})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(plain_config, dtype=dtype)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in read.state_dict().items()}, assign=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    with folder_at_once(folder) as target:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        about = {"file": path.name, "bytes": path.stat().st_size, "dtype": str(dtype).removeprefix("torch.")}
        write_json_atomic(target / SOURCE, {**about, "parameters": n_parameters})
        for weights in target.glob("*.safetensors"):
            follow_umask(weights)
        write_sums(target)
    return n_parameters


def report_text(folder: Path) -> str:
    """What a conversion has written, for the terminal."""
    about = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
    return f"{folder}: {about['parameters']:,} parameters of {about['file']} in {about['dtype']}, with its tokenizer"
