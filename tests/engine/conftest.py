"""The tiny models of tests/models."""

from tests.models.conftest import bases, built, fresh, llm, llms

__all__ = ["bases", "built", "fresh", "llm", "llms"]
