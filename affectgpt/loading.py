"""The former place of `affectgpt.inference.loading`, whose names are promised here."""

from affectgpt.inference.loading import load, model_spec

__all__ = ["load", "model_spec"]
