"""Makes the model known to transformers' Auto classes without importing torch or transformers.

`import affectgpt` must stay cheap, and transformers asks its Auto classes only when a folder is loaded. So stand-ins
are registered, as soon as transformers has imported the tables of these classes; a stand-in that is used imports
`affectgpt.models`, which registers the classes themselves.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def _real(name: str) -> Any:
    return getattr(importlib.import_module("affectgpt.models"), name)


class AffectGPTConfig:
    """Stands in for `affectgpt.models.AffectGPTConfig`."""

    model_type = "affectgpt"

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return _real("AffectGPTConfig")(*args, **kwargs)

    @classmethod
    def from_dict(cls, *args: Any, **kwargs: Any) -> Any:
        return _real("AffectGPTConfig").from_dict(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        return _real("AffectGPTConfig").from_pretrained(*args, **kwargs)


class AffectGPTProcessor:
    """Stands in for `affectgpt.models.AffectGPTProcessor`."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        return _real("AffectGPTProcessor").from_pretrained(*args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Do nothing, as the class itself."""


_REGISTER: dict[str, Callable[[Any], None]] = {
    "transformers.models.auto.configuration_auto": lambda module: module.AutoConfig.register(
        AffectGPTConfig.model_type, AffectGPTConfig
    ),
    "transformers.models.auto.processing_auto": lambda module: module.AutoProcessor.register(
        AffectGPTConfig, AffectGPTProcessor
    ),
}
"""Module of transformers -> what to do when it was imported."""


def register_with_transformers() -> None:
    """Register the stand-ins, now or after the import of transformers' tables."""
    for name, register in _REGISTER.items():
        if name in sys.modules:
            register(sys.modules[name])
        else:
            sys.meta_path.insert(0, _AfterImport(name, register))


class _AfterImport(MetaPathFinder, Loader):
    """Calls a function with a module after its import; finds and loads it in the usual way."""

    def __init__(self, name: str, function: Callable[[Any], None]) -> None:
        self._name, self._function = name, function

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._function(module)
