"""Load a checkpoint, and ask it."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from affectgpt import bases
from affectgpt.cache.reader import ClipReader, clip_reader, face_needs_of
from affectgpt.chat.streaming import TextCallback
from affectgpt.config import GenerateConfig, LoraConfig, ModelConfig, QuestionConfig
from affectgpt.data.faces import FaceNeeds
from affectgpt.data.facts import MediaFacts
from affectgpt.data.sources import probe_samples, samples_from_paths
from affectgpt.inference.answers import answers
from affectgpt.inference.prediction import predict
from affectgpt.models import (
    AffectGPTForConditionalGeneration,
    AffectGPTProcessor,
    CheckpointError,
    ModelSpec,
    build,
    load_trained,
    model_spec,
    quantize,
)
from affectgpt.models.checkpoint import read_manifest, respecified
from affectgpt.models.integrity import read_sums
from affectgpt.models.pretrained import ADAPTERS, PROJECTORS_JSON, start_from
from affectgpt.prompts import PROMPT_VERSION
from affectgpt.runs import TRAINED_MANIFEST, chosen_checkpoint
from affectgpt.runtime import UserError, quiet_libraries, sha256_of_file, stable_hash, torch_device
from affectgpt.schema import Prediction, Sample

log = logging.getLogger("affectgpt")


@dataclass(frozen=True)
class LoadedModel:
    """A loaded checkpoint.

    Attributes:
        name: the model's name in predictions: run and folder of the checkpoint, or its hub id.
        weights_sha256: of the file with the trained tensors, or of the weights of a full model (of several files: of
            their names and hashes).
        dtype: precision of the LLM, if it was loaded in another one than its checkpoint or preset names.
    """

    folder: Path
    name: str
    model: Any
    processor: Any
    weights_sha256: str
    dtype: str | None = None

    def reader(
        self,
        *,
        backend: str,
        cache_folder: Path | None,
        limit_gb: float | None = None,
        facts: MediaFacts | None = None,
    ) -> ClipReader:
        return clip_reader(
            self.model, self.processor, backend=backend, cache_folder=cache_folder, limit_gb=limit_gb, facts=facts
        )

    def face_needs(self, backend: str = "pyav") -> FaceNeeds | None:
        """What probing needs to know to find faces in videos; None if the model takes none."""
        return face_needs_of(self.model, self.processor, backend=backend)

    def ask(self, clip: str | Path | Sample, subtitle: str | None = None, **options: Any) -> Prediction:
        """The answer about one clip; `options` as of `ask_all`."""
        return next(self.ask_all([_sample(clip, subtitle)], **options))

    def ask_all(
        self,
        clips: Iterable[str | Path | Sample],
        *,
        attribution: bool = False,
        generate: GenerateConfig | None = None,
        backend: str = "pyav",
        on_text: TextCallback | None = None,
        **question: Any,
    ) -> Iterator[Prediction]:
        """Answers about several clips, in their order, generated in batches.

        Args:
            clips: media files, or samples, of a manifest for example (`affectgpt.data.sources.read_manifest`).
            attribution: also compute what each clause rests on.
            generate: how answers are generated; None = greedily.
            on_text: gets the text of the first answer so far, while it is generated.
            question: fields of `affectgpt.config.QuestionConfig`: task, lang, candidates, modalities, use_subtitle.

        Raises:
            InputError: a clip cannot be read, or has nothing that this model is shown.
        """
        facts = MediaFacts()
        asked = [_sample(clip, None) for clip in clips]
        samples, _ = probe_samples(asked, facts=facts, faces=self.face_needs(backend))
        return predict(
            self.model,
            self.processor,
            samples,
            self.reader(backend=backend, cache_folder=None, facts=facts),
            question=QuestionConfig(**question),
            generate=generate or GenerateConfig(),
            name=self.name,
            attribution=attribution,
            answer=answers if on_text is None else partial(answers, callbacks={0: on_text}),
        )

    def stream(self, clip: str | Path | Sample, subtitle: str | None = None, **options: Any) -> Iterator[str]:
        """The text of the answer about one clip, in pieces, while it is generated; `options` as of `ask_all`."""
        pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()

        def ask() -> Prediction:
            try:
                return next(self.ask_all([_sample(clip, subtitle)], on_text=pieces.put, **options))
            finally:
                pieces.put(None)

        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(ask)
            n_sent = 0
            while (text := pieces.get()) is not None:
                yield text[n_sent:]
                n_sent = len(text)
            yield answer.result().text[n_sent:]


def _sample(clip: str | Path | Sample, subtitle: str | None) -> Sample:
    if isinstance(clip, Sample):
        return clip if subtitle is None else replace(clip, subtitle=subtitle)
    (sample,) = samples_from_paths([clip], subtitle)
    return sample


def load(
    checkpoint: str | None,
    runs: Path,
    *,
    device: str = "auto",
    dtype: str | None = None,
    quantization: str | None = None,
    base_models: Mapping[str, str] | None = None,
    model: ModelConfig | None = None,
) -> LoadedModel:
    """Load a checkpoint folder, a run (its best by validation, else its last), or the newest complete run (None).

    An omni model (`model.omni`) needs no checkpoint: without one it answers as it was published.

    Args:
        dtype: precision of the frozen LLM; None = as in training.
        quantization: quantization of the frozen LLM (nf4, int8, none); None = as in training.
        base_models: "llm" or modality -> folder of base models that were moved since training.
        model: only if `checkpoint` is a folder of converted weights: the preset to which they belong.

    Raises:
        UserError: a folder of converted weights without a preset, or a preset without such a folder.
        CheckpointError: the weights do not fit the preset, or leave a part of it without weights.
    """
    quiet_libraries()
    if model is not None and model.omni is not None and checkpoint is None:
        return _load_published(model, runs, device, base_models, dtype, quantization)
    converted = checkpoint is not None and (Path(checkpoint) / PROJECTORS_JSON).is_file()
    if converted and model is None:
        raise UserError(
            f"{checkpoint} holds converted weights, which need a model: add model=affectgpt_v1, affectgpt_v2, "
            "emotion_llama or emotion_llama_v2, or another file of conf/model"
        )
    if model is not None:
        if not converted:
            raise UserError(
                f"model={model.name} is for a folder of `python -m affectgpt.convert`, or an omni model without a "
                f"checkpoint; checkpoint is {checkpoint!r}. "
                "A trained checkpoint has its own model: leave model= out"
            )
        spec = respecified(model_spec(model, seed=0), base_models, llm_dtype=dtype, llm_quantization=quantization)
        converted_model = _load_converted(Path(str(checkpoint)), model.name, spec, device)
        return replace(converted_model, dtype=_unless_same(dtype, model.llm.dtype))
    published = None if checkpoint is None or (runs / checkpoint).exists() else bases.release(checkpoint)
    folder, why = (published, "downloaded") if published else chosen_checkpoint(runs, checkpoint)
    log.info("checkpoint %s (%s)", folder, why)
    other_dtype = None
    if (folder / TRAINED_MANIFEST).is_file():
        loaded, processor = load_trained(
            folder, base_models=base_models, llm_dtype=dtype, llm_quantization=quantization
        )
        other_dtype = _unless_same(dtype, ModelSpec.from_dict(read_manifest(folder)["spec"]).llm.dtype)
    else:
        _refuse_for_full_model(folder, dtype, quantization, base_models)
        loaded = AffectGPTForConditionalGeneration.from_pretrained(folder)
        processor = AffectGPTProcessor.from_pretrained(folder)
    _ready(loaded, device)
    name = f"{folder.resolve().parent.name}/{folder.name}" if published is None else str(checkpoint)
    return LoadedModel(folder, name, loaded, processor, _weights_sha256(folder), other_dtype)


def _unless_same(dtype: str | None, own: str) -> str | None:
    return None if dtype == own else dtype


def _load_published(
    config: ModelConfig,
    runs: Path,
    device: str,
    base_models: Mapping[str, str] | None,
    dtype: str | None,
    quantization: str | None,
) -> LoadedModel:
    """An omni model without any training; what is made of it belongs below runs/<its name>/."""
    untrained = replace(config, llm=replace(config.llm, lora=LoraConfig()))
    spec = respecified(model_spec(untrained, seed=0), base_models, llm_dtype=dtype, llm_quantization=quantization)
    log.info("%s as it was published, from %s", config.name, spec.llm.path)
    model, processor = build(spec)
    _ready(model, device)
    weights = model.config.base_fingerprints["llm"]
    other_dtype = _unless_same(dtype, config.llm.dtype)
    return LoadedModel(runs / config.name / "published", config.name, model, processor, weights, other_dtype)


def _refuse_for_full_model(
    folder: Path, dtype: str | None, quantization: str | None, base_models: Mapping[str, str] | None
) -> None:
    """Raise UserError for settings that a full model, which holds its own base models, cannot follow."""
    if quantization not in (None, "none"):
        raise UserError(f"{folder} is a full model; quantization needs a training checkpoint")
    if dtype is not None:
        raise UserError(
            f"{folder} is a full model, whose precision is fixed; leave dtype={dtype} out, or write it again: "
            f"python -m affectgpt.export <training checkpoint> out=... dtype={dtype}"
        )
    if base_models:
        raise UserError(
            f"{folder} is a full model, which contains its base models; "
            f"leave base_models= ({', '.join(base_models)}) out"
        )


def _ready(model: Any, device: str) -> None:
    quantize.check_shapes(model, torch_device(device))
    model.to(torch_device(device))
    model.eval()


def _load_converted(folder: Path, name: str, spec: ModelSpec, device: str) -> LoadedModel:
    """The model of `spec` with converted weights; every trained part must be among them."""
    log.info("converted weights %s", folder)
    model, processor = build(spec)
    started = start_from(model, folder)
    if started["random"]:
        raise CheckpointError(
            f"{folder} has no weights of {', '.join(started['random'])}, without which model={name} cannot answer; "
            "convert the complete checkpoint, or train the missing parts (model.init=pretrained)"
        )
    _ready(model, device)
    files = sorted([*folder.glob("*.safetensors"), *(folder / ADAPTERS).glob("*.safetensors")])
    weights = stable_hash({path.name: sha256_of_file(path) for path in files})
    return LoadedModel(folder, f"{folder.resolve().name}/{name}", model, processor, weights)


def _weights_sha256(folder: Path) -> str:
    """The recorded checksums, which loading has just compared, or those of a folder that has none."""
    if (folder / TRAINED_MANIFEST).is_file():
        recorded = read_manifest(folder).get("sha256", {})
    else:
        recorded = read_sums(folder) or {}
    found = {path.name: recorded.get(path.name) or sha256_of_file(path) for path in folder.glob("*.safetensors")}
    return next(iter(found.values())) if len(found) == 1 else stable_hash(found)


def is_omni(model: Any) -> bool:
    return "omni" in (model.config.spec or {})


def refuse_for_omni(model: Any, asked: Mapping[str, bool]) -> None:
    """Raise UserError if something is asked for that is not built for omni models: its name -> whether it is."""
    if (name := next((name for name, wanted in asked.items() if wanted), None)) and is_omni(model):
        raise UserError(f"{name} is not built for omni models (docs/models.md); leave it out")


def settings_of(
    loaded: LoadedModel,
    question: QuestionConfig,
    generate: GenerateConfig,
    seed: int,
    engine: str = "auto",
    backend: str = "pyav",
) -> dict[str, Any]:
    """Everything that decides the answers, for `prediction.predict_to_file`; batch size and speed do not.

    Settings that older files do not name are left out where they are as they were then; of `prediction.LATER` it is
    not known.
    """
    values = {field.name: getattr(question, field.name) for field in fields(QuestionConfig)}
    values |= {key: value for key, value in asdict(generate).items() if key not in ("batch_size", "compile")}
    values |= {"prompt_version": PROMPT_VERSION, "model": loaded.name, "weights": loaded.weights_sha256, "seed": seed}
    if not generate.constrain:
        del values["constrain"]
    # With vLLM, older versions drew from all tokens.
    if generate.top_k == GenerateConfig.top_k and not (engine == "vllm" and generate.do_sample):
        del values["top_k"]
    if quantization := (loaded.model.config.spec or {}).get("llm_quantization"):
        values["quantization"] = quantization
    if engine != "auto":
        values["engine"] = engine
    return {**values, "dtype": loaded.dtype, "backend": backend}
