"""Public names for loading: `load` a checkpoint, `model_spec` for `affectgpt.models.build`."""

from affectgpt.inference.loading import load
from affectgpt.models import model_spec

__all__ = ["load", "model_spec"]
