"""Clips like those of tests/data."""

from tests.data.conftest import clip, write_clip

__all__ = ["clip", "write_clip"]
