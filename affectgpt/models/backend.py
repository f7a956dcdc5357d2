"""The one switch between affectgpt/engine and transformers: `engine` is None if that folder has been deleted.

The engine only makes training and greedy generation faster. Without it the same batches go through transformers.
"""

from __future__ import annotations

from typing import Any

from affectgpt.runtime import UserError

engine: Any
try:
    import affectgpt.engine.packing  # a file: of a deleted folder, __pycache__ may be left, which can be imported
except ModuleNotFoundError as error:
    if error.name not in ("affectgpt.engine", "affectgpt.engine.packing"):
        raise
    engine = None
else:
    engine = affectgpt.engine


def require_engine(user: str) -> Any:
    """The engine, for a feature that transformers does not offer; `user` is the setting or command that needs it."""
    if engine is None:
        raise UserError(f"{user} needs the folder affectgpt/engine, which is missing; restore it, or do without {user}")
    return engine
