"""Answers by vLLM: it is fed with prompts of embeddings and brings its own copy of the frozen LLM.

vLLM (https://docs.vllm.ai, prompt embedding inputs) is no dependency of this package. Greedy answers may differ from
those of the other engine where two tokens are nearly equally likely, since its kernels round otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from affectgpt.config import GenerateConfig
from affectgpt.inference.answers import Answer, answer_of, prompt_embeds, stop_ids
from affectgpt.runtime import UserError

# Prompts handed over at once: vLLM batches within them by itself.
_BATCHES_AT_ONCE = 8


class VllmEngine:
    """An engine of `inference.predict`; loads the LLM into vLLM.

    Args:
        model: its LLM must be a base model as published: without LoRA, not quantized.

    Raises:
        UserError: vLLM is not installed, or it cannot run this model.
    """

    def __init__(self, model: Any) -> None:
        check(model)
        vllm = _import()
        spec = model.config.spec
        dtype = model.get_input_embeddings().weight.dtype
        # Only the word embeddings are needed here; the layers make room for those that vLLM loads.
        device = model.get_input_embeddings().weight.device
        model.language_model.to("cpu")
        model.get_input_embeddings().to(device)
        self._vllm = vllm
        self._llm = vllm.LLM(
            model=spec["llm"],
            revision=spec["llm_revision"],
            dtype=str(dtype).removeprefix("torch."),
            enable_prompt_embeds=True,
            generation_config="vllm",  # no sampling values of the base model's own file
        )

    def __call__(
        self, model: Any, processor: Any, inputs: Iterable[Mapping[str, Any]], generate: GenerateConfig
    ) -> Iterator[Answer]:
        if generate.num_beams > 1:
            raise UserError("engine=vllm searches no beams; set generate.num_beams=1, or engine=auto")
        if generate.compile:
            raise UserError("engine=vllm compiles by itself; leave generate.compile out")
        wanted = self._vllm.SamplingParams(**sampling_values(model, generate))
        source = iter(inputs)
        while rows := list(islice(source, _BATCHES_AT_ONCE * generate.batch_size)):
            prompts = []
            for start in range(0, len(rows), generate.batch_size):
                prompts += prompt_embeds(model, processor, rows[start : start + generate.batch_size])
            outputs = self._llm.generate([{"prompt_embeds": each.cpu()} for each in prompts], wanted, use_tqdm=False)
            yield from (answer_of(processor, list(output.outputs[0].token_ids)) for output in outputs)


def sampling_values(model: Any, generate: GenerateConfig) -> dict[str, Any]:
    """`generate` in vLLM's words: the arguments of its SamplingParams."""
    values: dict[str, Any] = {
        "max_tokens": generate.max_new_tokens,
        "temperature": generate.temperature if generate.do_sample else 0.0,
        "stop_token_ids": stop_ids(model),
        "detokenize": False,
    }
    if generate.do_sample:
        values["top_p"] = generate.top_p
    if suppressed := model.generation_config.suppress_tokens:
        values["logit_bias"] = dict.fromkeys(suppressed, -100.0)
    return values


def check(model: Any) -> None:
    """Raise UserError if vLLM would not run this model's LLM as it is."""
    spec = model.config.spec
    if model.config.lora:
        raise UserError(
            "engine=vllm takes the LLM as published, but this checkpoint has LoRA adapters; use engine=auto"
        )
    if spec is None:
        raise UserError(
            "engine=vllm loads the LLM by its own folder, which a full model does not name; use engine=auto"
        )
    if packed := spec.get("llm_quantization"):
        raise UserError(f"engine=vllm takes the LLM as published, but this one is packed as {packed}; use engine=auto")


def _import() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise UserError("engine=vllm needs the package vllm: pip install vllm; or use engine=auto") from error
    return vllm
