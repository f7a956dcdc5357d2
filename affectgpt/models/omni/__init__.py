"""Whole omni models of transformers (Qwen2.5-Omni's thinker) with this package's training, generation and checkpoints.

Its text model is the LLM, its towers with their aligners take the place of encoders and projectors: `modeling`. Prompts
follow its own chat template; soft tokens vary in number and have places in time, height and width: `processing`,
`layout`. docs/models.md says what fits and what does not.
"""

from affectgpt.models.omni.assemble import assemble, build_hollow
from affectgpt.models.omni.modeling import OmniForConditionalGeneration, OmniModelConfig
from affectgpt.models.omni.processing import OmniProcessor

__all__ = ["OmniForConditionalGeneration", "OmniModelConfig", "OmniProcessor", "assemble", "build_hollow"]
