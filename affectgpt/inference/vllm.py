"""Answers from vLLM, which gets prompt embeddings and loads its own copy of the frozen LLM.

vLLM (https://docs.vllm.ai, prompt embedding inputs) is not a dependency of this package. Its kernels round differently,
so greedy answers may differ from those of engine=auto where two tokens are nearly equally likely.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from affectgpt.config import GenerateConfig
from affectgpt.inference.answers import Answer, answer_of, prompt_embeds, stop_ids
from affectgpt.runtime import UserError

# Batches of prompts passed to vLLM at once, which schedules them itself.
_BATCHES_AT_ONCE = 8


class VllmEngine:
    """The `answer` of `predict` that uses vLLM; loads the LLM into vLLM.

    Args:
        model: its LLM must be a base model as published, without LoRA and not quantized.

    Raises:
        UserError: vLLM is not installed, or it cannot run this model.
    """

    def __init__(self, model: Any) -> None:
        _check(model)
        try:
            import vllm
        except ImportError as error:
            raise UserError("engine=vllm needs the package vllm: pip install vllm; or use engine=auto") from error
        spec = model.config.spec
        dtype = model.get_input_embeddings().weight.dtype
        # Only the word embeddings are needed here; the layers free their memory for those that vLLM loads.
        device = model.get_input_embeddings().weight.device
        model.language_model.to("cpu")
        model.get_input_embeddings().to(device)
        self._vllm = vllm
        self._llm = vllm.LLM(
            model=spec["llm"],
            revision=spec["llm_revision"],
            dtype=str(dtype).removeprefix("torch."),
            enable_prompt_embeds=True,
            generation_config="vllm",  # no sampling values from the base model's own file
        )

    def __call__(
        self, model: Any, processor: Any, inputs: Iterable[Mapping[str, Any]], generate: GenerateConfig
    ) -> Iterator[Answer]:
        if generate.num_beams > 1:
            raise UserError("engine=vllm has no beam search; set generate.num_beams=1, or engine=auto")
        if generate.compile:
            raise UserError("engine=vllm compiles on its own; leave generate.compile out")
        if generate.constrain:
            raise UserError(
                "engine=vllm cannot constrain answers to candidates; leave out generate.constrain, or engine"
            )
        parameters = self._vllm.SamplingParams(**sampling_values(model, generate))
        source = iter(inputs)
        while rows := list(islice(source, _BATCHES_AT_ONCE * generate.batch_size)):
            prompts = []
            for start in range(0, len(rows), generate.batch_size):
                prompts += prompt_embeds(model, processor, rows[start : start + generate.batch_size])
            outputs = self._llm.generate(
                [{"prompt_embeds": each.cpu()} for each in prompts], parameters, use_tqdm=False
            )
            yield from (answer_of(processor, list(output.outputs[0].token_ids)) for output in outputs)


def sampling_values(model: Any, generate: GenerateConfig) -> dict[str, Any]:
    """The generation settings as arguments of vLLM's SamplingParams."""
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


def _check(model: Any) -> None:
    """Raise UserError if vLLM cannot run this model's LLM."""
    spec = model.config.spec
    if model.config.lora:
        raise UserError("engine=vllm runs the LLM as published, but this checkpoint has LoRA adapters; use engine=auto")
    if spec is None:
        raise UserError(
            "engine=vllm loads the LLM from its own folder, which a full model does not name; use engine=auto"
        )
    if kind := spec.get("llm_quantization"):
        raise UserError(f"engine=vllm runs the LLM as published, but this one is quantized ({kind}); use engine=auto")
