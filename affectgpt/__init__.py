"""AffectGPT: train and judge multimodal LLMs that explain human emotion in video.

    import affectgpt

    model = affectgpt.load("runs/fine")
    print(model.ask("video.mp4").text)

Importing the package loads no torch and touches no file. With transformers installed, its Auto classes know the model.
"""

from __future__ import annotations

from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

from affectgpt.autoclasses import register_with_transformers

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

register_with_transformers()


def load(checkpoint: str | PathLike[str] | None = None, *, runs: str | PathLike[str] = "runs", **options: Any) -> Any:
    """A checkpoint to ask: `affectgpt.inference.loading.LoadedModel`.

    Args:
        checkpoint: folder of a run, of a checkpoint or of a full model, or hub id; None = the last complete run.
        runs: where runs are.
        options: device, dtype, quantization, base_models, model; see `affectgpt.inference.loading.load`.
    """
    load_checkpoint = import_module("affectgpt.inference.loading").load
    return load_checkpoint(None if checkpoint is None else str(checkpoint), Path(runs), **options)
