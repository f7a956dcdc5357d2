"""AffectGPT: train and judge multimodal LLMs that explain human emotion in video.

Importing the package loads no torch and touches no file; import the module you need, for example
``from affectgpt.schema import Sample`` or ``from affectgpt.models import AffectGPTForConditionalGeneration``.
"""

__version__ = "0.1.0"
