"""Answers from vLLM, which gets prompt embeddings and loads its own copy of the LLM.

vLLM (https://docs.vllm.ai, prompt embedding inputs) is not a dependency of this package. Its kernels round differently,
so greedy answers may differ from those of engine=auto where two tokens are nearly equally likely. It loads an LLM with
LoRA from a folder in which the adapters are merged, which is written on first use.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from affectgpt.config import GenerateConfig
from affectgpt.inference.answers import SAMPLE_ID, Answer, answer_of, answers, prompt_embeds, stop_ids
from affectgpt.inference.loading import LoadedModel, refuse_for_omni
from affectgpt.journal.locks import held
from affectgpt.models.checkpoint import read_manifest
from affectgpt.models.integrity import follow_umask
from affectgpt.models.modeling_affectgpt import merge_lora_into
from affectgpt.runs import TRAINED_MANIFEST
from affectgpt.runtime import UserError, folder_at_once

log = logging.getLogger("affectgpt")

# Batches of prompts passed to vLLM at once, which schedules them itself.
_BATCHES_AT_ONCE = 8


class VllmEngine:
    """The `answer` of `predict` that uses vLLM; loads the LLM into vLLM.

    Args:
        loaded: its LLM must not be quantized. Adapters are merged into it, in place.
        folder: where an LLM that differs from its base model is written, once for each checkpoint.
        options: further arguments of `vllm.LLM`.
        seed: of sampled answers. Each has a seed of its own, made of this one and the sample's id.

    Raises:
        UserError: vLLM is not installed, it cannot run this model, or `options` names what is set here.
    """

    def __init__(
        self, loaded: LoadedModel, folder: Path, options: Mapping[str, Any] | None = None, seed: int = 42
    ) -> None:
        try:
            import vllm
        except ImportError as error:
            raise UserError("engine=vllm needs the package vllm: pip install vllm; or use engine=auto") from error
        model = loaded.model
        values: dict[str, Any] = {
            **dict(zip(("model", "revision"), llm_of(loaded, folder), strict=True)),
            "dtype": str(model.get_input_embeddings().weight.dtype).removeprefix("torch."),
            "enable_prompt_embeds": True,
            "skip_tokenizer_init": True,  # no text goes in or out
            "generation_config": "vllm",  # no sampling values from the base model's own file
        }
        if taken := sorted(values.keys() & (options or {}).keys()):
            raise UserError(f"vllm.{taken[0]} is set by the checkpoint; leave it out")
        # Only the word embeddings are needed here; the layers free their memory for those that vLLM loads.
        device = model.get_input_embeddings().weight.device
        model.language_model.to("cpu")
        model.get_input_embeddings().to(device)
        self._vllm = vllm
        self._seed = seed
        self._llm = vllm.LLM(**values, **(options or {}))

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
        values, make = sampling_values(model, generate), self._vllm.SamplingParams
        source = enumerate(inputs)
        while taken := list(islice(source, _BATCHES_AT_ONCE * generate.batch_size)):
            rows = [row for _, row in taken]
            parameters = make(**values)
            if generate.do_sample:
                ids = (row.get(SAMPLE_ID, number) for number, row in taken)
                parameters = [make(**values, seed=_seed_of(self._seed, name)) for name in ids]
            prompts = []
            for start in range(0, len(rows), generate.batch_size):
                prompts += prompt_embeds(model, processor, rows[start : start + generate.batch_size])
            outputs = self._llm.generate(
                [{"prompt_embeds": each.cpu()} for each in prompts], parameters, use_tqdm=False
            )
            yield from (answer_of(processor, list(output.outputs[0].token_ids)) for output in outputs)


def _seed_of(seed: int, sample_id: Any) -> int:
    """Seed from 0 to 2**63 - 1 of the answer to a sample."""
    digest = hashlib.blake2b(f"{seed} {sample_id}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def engine_named(
    name: str, loaded: LoadedModel, folder: Path, options: Mapping[str, Any] | None = None, seed: int = 42
) -> Callable[..., Iterator[Answer]]:
    """The `answer` of `predict` for engine=auto or engine=vllm; the rest as for `VllmEngine`."""
    refuse_for_omni(loaded.model, {f"engine={name}": name == "vllm"})
    return VllmEngine(loaded, folder, options, seed) if name == "vllm" else answers


def sampling_values(model: Any, generate: GenerateConfig) -> dict[str, Any]:
    """The generation settings as arguments of vLLM's SamplingParams."""
    values: dict[str, Any] = {
        "max_tokens": generate.max_new_tokens,
        "temperature": generate.temperature if generate.do_sample else 0.0,
        "stop_token_ids": stop_ids(model),
        "detokenize": False,
    }
    if generate.do_sample:
        values |= {"top_p": generate.top_p, "top_k": generate.top_k or -1}  # -1 = all, in every version
    if suppressed := model.generation_config.suppress_tokens:
        values["logit_bias"] = dict.fromkeys(suppressed, -100.0)
    return values


def llm_of(loaded: LoadedModel, folder: Path) -> tuple[str, str | None]:
    """Folder or hub id, and revision, of the LLM of a checkpoint: its base model, if no tensor of it is trained.

    Else, or if the checkpoint is a full model, the LLM is written below `folder`, its adapters merged.

    Raises:
        UserError: the LLM is quantized.
    """
    model = loaded.model
    spec = model.config.spec or {}
    if kind := spec.get("llm_quantization"):
        raise UserError(f"engine=vllm cannot run a quantized LLM ({kind}); load it without, or use engine=auto")
    if (loaded.folder / TRAINED_MANIFEST).is_file():
        own = any(name.startswith("language_model.") for name in read_manifest(loaded.folder)["tensors"])
    else:  # a full model, or converted weights around base models
        own = (loaded.folder / "config.json").is_file() or bool(model.config.lora)
    if not own:
        return spec["llm"], spec["llm_revision"]
    dtype = str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
    out = folder / "vllm" / f"{loaded.weights_sha256[:16]}-{dtype}"
    if model.config.lora:
        merge_lora_into(model)
    if not out.is_dir():
        out.parent.mkdir(parents=True, exist_ok=True)
        with held(out.with_name(f".{out.name}.lock"), what=f"the LLM of {loaded.name} is being written to {out}"):
            if not out.is_dir():
                with folder_at_once(out) as target:
                    model.language_model.save_pretrained(target)
                    for weights in target.glob("*.safetensors"):
                        follow_umask(weights)
                n_bytes = sum(path.stat().st_size for path in out.iterdir())
                log.info("%s: the LLM of %s for vLLM, %.2f GB", out, loaded.name, n_bytes / 1e9)
    return str(out), None
