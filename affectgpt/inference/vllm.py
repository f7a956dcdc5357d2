"""Answers by vLLM: it is fed with prompts of embeddings and brings its own copy of the frozen LLM.

vLLM (https://docs.vllm.ai, prompt embedding inputs) is no dependency of this package. Greedy answers may differ from
those of the other engine where two tokens are nearly equally likely, since its kernels round otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from affectgpt.inference.prediction import Answer, Decoding, answer_of, prompt_embeds
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
        self, model: Any, processor: Any, inputs: Iterable[Mapping[str, Any]], decoding: Decoding
    ) -> Iterator[Answer]:
        if decoding.num_beams > 1:
            raise UserError("engine=vllm searches no beams; set generate.num_beams=1, or engine=auto")
        if decoding.compile:
            raise UserError("engine=vllm compiles by itself; leave generate.compile out")
        wanted = self._vllm.SamplingParams(**sampling_values(model, decoding))
        source = iter(inputs)
        while rows := list(islice(source, _BATCHES_AT_ONCE * decoding.batch_size)):
            prompts = []
            for start in range(0, len(rows), decoding.batch_size):
                prompts += prompt_embeds(model, processor, rows[start : start + decoding.batch_size])
            outputs = self._llm.generate([{"prompt_embeds": each.cpu()} for each in prompts], wanted, use_tqdm=False)
            yield from (answer_of(processor, list(output.outputs[0].token_ids)) for output in outputs)


def sampling_values(model: Any, decoding: Decoding) -> dict[str, Any]:
    """`decoding` in vLLM's words: the arguments of its SamplingParams."""
    stops = model.generation_config.eos_token_id
    values: dict[str, Any] = {
        "max_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature if decoding.do_sample else 0.0,
        "stop_token_ids": stops if isinstance(stops, list) else [] if stops is None else [stops],
        "detokenize": False,
    }
    if decoding.do_sample:
        values["top_p"] = decoding.top_p
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
