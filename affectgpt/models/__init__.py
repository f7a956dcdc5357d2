"""The model, its processor and its checkpoints."""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

from affectgpt.models.assemble import build, build_hollow
from affectgpt.models.checkpoint import (
    CheckpointError,
    load_trained,
    load_trained_tensors,
    read_spec,
    save_trained,
    trained_tensors,
)
from affectgpt.models.configuration_affectgpt import AffectGPTConfig
from affectgpt.models.modeling_affectgpt import AffectGPTForConditionalGeneration, trainable_table
from affectgpt.models.processing_affectgpt import AffectGPTProcessor
from affectgpt.models.spec import ModelSpec, model_spec

AutoConfig.register("affectgpt", AffectGPTConfig, exist_ok=True)
AutoProcessor.register(AffectGPTConfig, AffectGPTProcessor, exist_ok=True)
for auto_class in (AutoModelForMultimodalLM, AutoModelForImageTextToText):
    auto_class.register(AffectGPTConfig, AffectGPTForConditionalGeneration, exist_ok=True)

__all__ = [
    "AffectGPTConfig",
    "AffectGPTForConditionalGeneration",
    "AffectGPTProcessor",
    "CheckpointError",
    "ModelSpec",
    "build",
    "build_hollow",
    "load_trained",
    "load_trained_tensors",
    "model_spec",
    "read_spec",
    "save_trained",
    "trainable_table",
    "trained_tensors",
]
