"""Lets transformers' Auto classes load a full folder where `affectgpt` was not imported.

A full folder has a file with `AUTO_MAP`'s classes, which `trust_remote_code=True` allows to run. It only imports them
from this package, so a folder always runs the installed code, and transformers names the package where it is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from affectgpt.runtime import write_text_atomic

_FILE = "affectgpt_auto"
AUTO_MAP = {
    "AutoConfig": f"{_FILE}.AffectGPTConfig",
    "AutoModelForMultimodalLM": f"{_FILE}.AffectGPTForConditionalGeneration",
    "AutoModelForImageTextToText": f"{_FILE}.AffectGPTForConditionalGeneration",
    "AutoProcessor": f"{_FILE}.AffectGPTProcessor",
}
_SOURCE = '''"""The classes of this model for transformers' Auto classes; they are in the Python package affectgpt."""

from affectgpt.models import AffectGPTConfig, AffectGPTForConditionalGeneration, AffectGPTProcessor

__all__ = ["AffectGPTConfig", "AffectGPTForConditionalGeneration", "AffectGPTProcessor"]
'''


def write_auto_file(folder: Path) -> None:
    write_text_atomic(folder / f"{_FILE}.py", _SOURCE)


class InstalledCode:
    """A class that is always imported from this package."""

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Do nothing: after this call, saving would copy modules of this package into the folder."""
