"""The model: encoders -> projectors -> soft tokens among the words of an LLM.

Projectors train, with LoRA if set; encoders and LLM are frozen unless `set_trainable` names them.

    media or cached states --encoders--> states [N, T, E] --projectors--> soft tokens [N, Q, D]
    (a pre-fusion projector takes the states of several modalities: the slot "multi")
    input_ids [B, L] --embedding--> [B, L, D], placeholders replaced by the soft tokens --LLM--> logits, loss

Inputs are the batch dictionary that `processing_affectgpt` documents.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from affectgpt.config import SAMPLED
from affectgpt.models import backend
from affectgpt.models.auto import AUTO_MAP, InstalledCode, write_auto_file
from affectgpt.models.configuration_affectgpt import AffectGPTConfig
from affectgpt.models.encoders import Encoder, inject_lora
from affectgpt.models.integrity import check_finite, check_sums, follow_umask, write_sums
from affectgpt.models.processing_affectgpt import BATCH_MEDIA_KEYS, MEDIA_KEYS, pad_states
from affectgpt.models.projectors import projector_of
from affectgpt.models.quantize import n_weights
from affectgpt.runs import TRAINED_MANIFEST
from affectgpt.runtime import InputError, UserError, loading_models
from affectgpt.schema import MODALITIES, SLOTS
from affectgpt.tables import format_table

_LOSS_KEYS = {"num_items_in_batch"}
# Initial weights are drawn with seed + index in this tuple. The order never changes, so that a new kind of branch does
# not change the weights of the others.
_DRAWN = (
    *("audio", "frames", "motion", "lora", "face", "face_motion", "multi"),
    *("audio.lora", "frames.lora", "motion.lora", "face.lora", "face_motion.lora"),
)
_LAST = re.compile(r"(.+)\.last([1-9]\d*)")
_FROM_BASE = re.compile(r"language_model$|encoders\.[a-z_]+$")


@dataclass
class AffectGPTOutput(CausalLMOutputWithPast):
    """What `forward` returns; `log_probs` holds [n_i] log-probabilities of each sample's labels, if asked for."""

    log_probs: tuple[Tensor, ...] | None = None


class AffectGPTForConditionalGeneration(InstalledCode, PreTrainedModel, GenerationMixin):
    """Encoders, projectors and LLM.

    Args:
        config: see `AffectGPTConfig`.
        language_model: a loaded LLM; None builds an untrained one from `config.text_config`.
        encoders: modality -> loaded base encoder; None builds untrained ones. A modality that is missing here gets no
            encoder; its states must then come from a cache.

    `affectgpt.models.build` builds it from base models, `affectgpt.models.load_trained` from a training checkpoint and
    `from_pretrained` from a full folder.
    """

    config: AffectGPTConfig
    config_class = AffectGPTConfig
    base_model_prefix = "affectgpt"
    main_input_name = "input_ids"
    input_modalities = ("audio", "image", "video", "text")
    supports_gradient_checkpointing = True
    new_parts: tuple[str, ...] = ("projectors",)
    """What does not come from a base model and therefore trains unless told otherwise."""
    cacheable = True
    """Whether states of its encoders can be cached."""
    in_lockstep = False
    """True where processes share the projectors' weights (ZeRO-3): generation then also runs all of them."""
    token_budget: int | None = None
    """Tokens of a packed batch that go through the LLM at once; None = all. Without the engine it has no effect."""
    # Underscored, but the interface by which a model class of transformers declares what it supports.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012
    # What trains stays in fp32 next to a bf16 LLM: steps of 3e-5 vanish in bf16 weights. Encoders have their own dtype.
    _keep_in_fp32_modules_strict = ["projectors", "lora_A", "lora_B", "lora_magnitude_vector", "encoders"]  # noqa: RUF012

    def __init__(
        self,
        config: AffectGPTConfig,
        language_model: PreTrainedModel | None = None,
        encoders: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__(config)
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.language_model = language_model
        self.encoders = nn.ModuleDict()
        for name in config.modalities:
            if encoders is None or name in encoders:
                self.encoders[name] = self._new_encoder(name, None if encoders is None else encoders[name])
        self.encoders_aside: dict[str, Encoder] = {}
        self.encoder_sums: dict[str, str] = {}
        self.projectors = nn.ModuleDict()
        width = language_model.get_input_embeddings().weight.shape[1]
        for name in config.slots:
            # Each projector has its own seed, so that leaving a branch out changes no other branch's weights.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed + _DRAWN.index(name))
                self.projectors[name] = projector_of(config.projector(name), width).float()
        if config.lora:
            fields = {"task_type": "CAUSAL_LM", **config.lora}
            inject_lora(self.language_model, fields, config.seed + _DRAWN.index("lora"), what="model.llm")
        self.set_trainable([*self.new_parts, "lora"] if config.lora else self.new_parts)
        self.post_init()

    def _new_encoder(self, name: str, loaded: nn.Module | None) -> Any:
        """The encoder of a modality around its base model; without one, untrained."""
        seed = self.config.seed + _DRAWN.index(f"{name}.lora")
        return Encoder(name, self.config.encoder(name), loaded, seed)

    def init_weights(self) -> None:
        """Keep the weights of all parts: `post_init` calls this, and transformers' own version draws anew whatever it
        did not load itself, that is projectors, LoRA and encoders of other libraries."""
        self.tie_weights()

    # ---------------------------------------------------------------- parts

    @property
    def modalities(self) -> tuple[str, ...]:
        """The branches of this model, in prompt order."""
        return self.config.modalities

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def named_tensors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """`named_parameters`, with those of encoders that were set aside."""
        yield from self.named_parameters()
        for name, encoder in self.encoders_aside.items():
            yield from encoder.named_parameters(prefix=f"encoders.{name}")

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """Part -> its parameters by name.

        The parts are "language_model", "lora" (its adapters), "encoders.audio", "encoders.audio.lora",
        "projectors.audio" ... A layer with adapters has the names that it has without.
        """
        parts: dict[str, dict[str, nn.Parameter]] = {"language_model": {}}
        for name, parameter in self.named_tensors():
            name = name.replace(".base_layer.", ".")
            parts.setdefault(part_of(name), {})[name] = parameter
        return parts

    def own_parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """What is not as in the base models, frozen or not: projectors, adapters, and what was trained of the base."""
        tuned, own = set(self.config.tuned), {}
        for part, tensors in self.parts().items():
            mine = {name: tensors[name] for name in tensors if name in tuned} if is_of_base(part) else tensors
            if mine:
                own[part] = mine
        return own

    def own_tensors(self) -> dict[str, nn.Parameter]:
        """`own_parts` in one dictionary."""
        return {name: tensor for tensors in self.own_parts().values() for name, tensor in tensors.items()}

    def set_trainable(self, parts: Iterable[str]) -> int:
        """Freeze all but `parts`; returns the number of parameters that train.

        From then on checkpoints contain what trains of the base models, also once it is frozen again.

        Args:
            parts: projectors, projectors.<slot>, lora, llm, encoders.<name> (all weights that its states depend on),
                encoders.<name>.last<N> (its last N blocks), encoders.<name>.lora.

        Raises:
            InputError: a part is unknown, or its weights are quantized.
        """
        chosen = [tensor for part in parts for tensor in self.tensors_of(part).items()]
        if packed := [name for name, tensor in chosen if not tensor.is_floating_point()]:
            raise InputError(
                f"llm: {len(packed)} weights are quantized ({packed[0]} ...), and only floating-point weights can be "
                "trained; set model.llm.quantization=null, or train lora"
            )
        self.requires_grad_(False)
        for _, tensor in chosen:
            tensor.requires_grad_(True)
        new = {name for name, _ in chosen if is_of_base(part_of(name))}
        self.config.tuned = sorted({*self.config.tuned, *new})
        return sum(tensor.numel() for tensor in self.parameters() if tensor.requires_grad)

    def tensors_of(self, part: str) -> dict[str, nn.Parameter]:
        """Name -> tensor of one of the parts that `set_trainable` takes."""
        parts, found = self.parts(), _LAST.fullmatch(part)
        own = [name for name in parts if not is_of_base(name)]
        if part == "projectors":
            return {name: t for each in own if each.startswith("projectors.") for name, t in parts[each].items()}
        if part in own:
            if part.startswith("encoders."):
                encoder = self.encoders[part.split(".")[1]]
                if idle := {name for name, _ in encoder.named_parameters() if ".lora_" in name} - encoder.used():
                    raise InputError(
                        f"{part}: the states do not depend on {len(idle)} of its tensors ({min(idle)} ...), so they "
                        "would not learn; leave these layers out of lora.target_modules"
                    )
            return parts[part]
        if part == "llm":
            return parts["language_model"]
        name = found[1] if found else part
        if name not in parts or not name.startswith("encoders."):
            blocks = {each: len(encoder.blocks()) for each, encoder in self.encoders.items()}
            raise InputError(
                f"trainable parts {[part]} are unknown; expected some of {['projectors', *own, 'llm']}, "
                + ", ".join(f"encoders.{each}, encoders.{each}.last1 to last{n}" for each, n in blocks.items())
                + " (adapters need lora.r in the settings of the LLM or the encoder)"
            )
        encoder = self.encoders[name.removeprefix("encoders.")]
        used = {f"{name}.{tensor}".replace(".base_layer.", ".") for tensor in encoder.used()}
        tensors = {tensor: parameter for tensor, parameter in parts[name].items() if tensor in used}
        if found is None:
            return tensors
        blocks = list(encoder.blocks())
        if int(found[2]) > len(blocks):
            raise InputError(
                f"{part}: the states of this encoder pass through {len(blocks)} blocks; name fewer, or {name} for all"
            )
        last = tuple(f"{name}.{block}." for block in blocks[-int(found[2]) :])
        return {tensor: parameter for tensor, parameter in tensors.items() if tensor.startswith(last)}

    def checkpoint_layers(self, n: int | None = None) -> None:
        """Turn on gradient checkpointing in the first `n` layers of the LLM; None = in all."""
        # Before transformers 5.24 the method had its other, now deprecated name.
        enable = getattr(self, "activation_checkpointing_enable", None) or self.gradient_checkpointing_enable
        enable()
        if n is not None:
            for layer in self.language_model.model.layers[n:]:
                layer.gradient_checkpointing = False

    def set_encoders_aside(self) -> nn.ModuleDict:
        """Make frozen encoders no submodules of the model any more, and return them.

        They still work, but moving, wrapping or splitting the model does not affect them: ZeRO-3 would gather their
        weights in collective calls whose number depends on a process's samples.
        """
        for name in [name for name, encoder in self.encoders.items() if not encoder.trains]:
            self.encoders_aside[name] = self.encoders.pop(name)
        return nn.ModuleDict(self.encoders_aside)

    def every_encoder(self) -> dict[str, Encoder]:
        """Modality -> encoder, also of those that were set aside."""
        return {**dict(self.encoders.items()), **self.encoders_aside}

    def training_encoders(self) -> tuple[str, ...]:
        """Modalities whose encoder trains, so that its states change with every step."""
        return tuple(name for name, encoder in self.encoders.items() if encoder.trains)

    # ---------------------------------------------------------------- media -> soft tokens

    def encoder_fingerprint(self, modality: str) -> str:
        """Identity of what `encode` returns for `modality`: base model, layers, pool, precision and sampling, and the
        values of weights that are not as in the base model.

        With the identity of the medium it is the key of cached states; it is the same on all machines.

        Raises:
            InputError: the encoder trains, so that its states must not be cached, or the model has no spec.
        """
        if modality in self.training_encoders():
            raise InputError(
                f"{modality}: its encoder trains, so its states change with every step and cannot be cached; leave "
                f"encoders.{modality} out of stage.trainable, or do not cache this modality"
            )
        encoder, spec = self.config.encoder(modality), self.config.spec
        if spec is None or modality not in self.config.base_fingerprints:
            raise InputError(f"{modality}: no fingerprint, since the model was not built by affectgpt.models.build")
        # Settings that were added later count only where they are used, so that older cached states stay valid.
        later = {
            "stride": encoder.stride if encoder.stride > 1 else None,
            "grid": encoder.grid or None,
            "per_frame": encoder.per_frame or None,
            "image_size": spec["encoders"][modality].get("image_size"),
            "last": "normed" if encoder.takes_final_norm else None,
            "own": self.encoder_sum(modality),
        }
        identity = {
            "base": self.config.base_fingerprints[modality],
            **{key: getattr(encoder, key) for key in ("layers", "pool", "dtype")},
            **{key: spec["sampling"][key] for key in SAMPLED[modality]},
            **{key: value for key, value in later.items() if value is not None},
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def encoder_sum(self, modality: str) -> str | None:
        """Hash of the weights of an encoder that are not as in its base model, with its LoRA; None = all are.

        Of a model that was loaded without its encoders, the one that its checkpoint states.
        """
        if modality not in self.every_encoder():
            return self.encoder_sums.get(modality)
        own, part = self.own_parts(), f"encoders.{modality}"
        if not (tensors := {**own.get(part, {}), **own.get(f"{part}.lora", {})}):
            return None
        digest = hashlib.sha256(json.dumps(self.config.encoder(modality).lora, sort_keys=True).encode())
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def encode(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encoder states of one sample, modality -> [T, E], from the unbatched output of the processor's `encode`."""
        return {
            name: self._encoder(name)(features[key], features.get("input_lengths") if name == "audio" else None)
            for name, key in MEDIA_KEYS.items()
            if key in features
        }

    def _encoder(self, modality: str) -> Encoder:
        every = self.every_encoder()
        if modality not in every:
            reason = "was built without encoders" if modality in self.modalities else "has no such branch"
            raise ValueError(
                f"{modality}: the batch has media, but this model {reason} (it encodes {list(every)}); "
                f"pass cached {modality}_states, or build it with its encoders"
            )
        return every[modality]

    def with_states(self, batch: Mapping[str, Tensor], modalities: Iterable[str] = MODALITIES) -> dict[str, Tensor]:
        """The batch with `<m>_states` [N, T, E] and their masks instead of the media of `modalities`."""
        batch = dict(batch)
        for name in modalities:
            media = batch.pop(MEDIA_KEYS[name], None)
            if media is None or f"{name}_states" in batch:
                continue
            lengths = batch.get("input_lengths") if name == "audio" else None
            encoder = self._encoder(name)
            # One sample at a time, as in the cache: its states then do not depend on the rest of the batch.
            each = [encoder(row, None if lengths is None else lengths[i]) for i, row in enumerate(media)]
            batch[f"{name}_states"], batch[f"{name}_states_mask"] = pad_states(each)
        return batch

    @torch.no_grad()
    def encoded(self, row: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A row of the processor with states in place of the media of frozen encoders, which so run once for it."""
        names = [name for name, key in MEDIA_KEYS.items() if key in row and name not in self.training_encoders()]
        lengths = row.get("input_lengths")
        states = {
            f"{name}_states": self._encoder(name)(row[MEDIA_KEYS[name]], lengths if name == "audio" else None)
            for name in names
        }
        replaced = media_keys(names)
        return {**{key: value for key, value in row.items() if key not in replaced}, **states}

    def soft_tokens(self, slot: str, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Projected tokens [N, Q, D] of the samples that have `slot`; None if no sample of the batch has it."""
        if slot == "multi":
            return self._fused(batch)
        batch = self.with_states(batch, [slot])
        states = batch.get(f"{slot}_states")
        if states is None:
            return None
        if slot not in self.projectors:
            raise ValueError(f"{slot}: the batch has it, but this model has only {list(self.modalities)}")
        return self.projectors[slot](states, _mask_of(slot, batch))

    def _fused(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Tokens [N, Q, D] of the pre-fusion; `batch["multi_rows"]` maps samples to rows of the states."""
        rows = batch.get("multi_rows")
        if rows is None:
            return None
        if "multi" not in self.projectors:
            raise ValueError("multi: the batch has it, but this model has no pre-fusion; use the model's own processor")
        sources = self.config.projector("multi").sources
        batch = self.with_states(batch, sources)
        states = [
            (batch[f"{name}_states"], _mask_of(name, batch)) if f"{name}_states" in batch else None for name in sources
        ]
        return self.projectors["multi"](states, rows)

    def embed(self, input_ids: Tensor, batch: Mapping[str, Tensor], copies: int = 1) -> Tensor:
        """Word embeddings with the soft tokens at the positions of the placeholders.  [B, L] -> [B, L, D]

        Args:
            copies: texts in a row that share the media of one sample; the projectors run once for them.
        """
        slots = {name: input_ids == token for name, token in self.config.placeholder_token_ids.items()}
        embeds = self.get_input_embeddings()(_without_placeholders(input_ids, slots))
        if self.training:
            for name in self.training_encoders():
                if f"{name}_states" in batch:
                    raise ValueError(f"{name}: its encoder trains, but the batch has states of it instead of media")
                if MEDIA_KEYS[name] not in batch:  # its gradients are then zero instead of missing, see `_idle`
                    trained = [tensor for tensor in self.encoders[name].parameters() if tensor.requires_grad]
                    embeds = embeds + sum(tensor.sum() * 0.0 for tensor in trained).to(embeds.dtype)
        batch = self.with_states(batch)
        for name in SLOTS:
            tokens = self.soft_tokens(name, batch)
            if tokens is not None and copies > 1:
                tokens = tokens.repeat_interleave(copies, dim=0)
            places = slots[name].flatten().nonzero()[:, 0] if name in slots else None
            n_slots = 0 if places is None else len(places)
            n_tokens = 0 if tokens is None else tokens.shape[0] * tokens.shape[1]
            if n_slots != n_tokens:
                shape = "no sample" if tokens is None else f"{tokens.shape[0]} samples x {tokens.shape[1]} tokens"
                raise ValueError(
                    f"{name}: the text has {n_slots} placeholder tokens, the media give {n_tokens} ({shape}); "
                    "make both with the processor of this model"
                )
            if tokens is not None:
                flat, new = embeds.flatten(0, 1), tokens.flatten(0, 1).to(embeds.dtype)
                embeds = flat.index_copy(0, places, new).view_as(embeds)
            elif name in self.projectors and (self.training or self.in_lockstep):
                embeds = embeds + self._idle(name, embeds.device).to(embeds.dtype)
        return embeds

    # ---------------------------------------------------------------- LLM

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor | None = None,
        log_probs: bool = False,
        token_loss: Callable[[Tensor, slice], Tensor] | None = None,
        copies: int = 1,
        rope_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> AffectGPTOutput:
        """Logits; with labels also the loss, or the labels' log-probabilities.

        A batch is padded, or packed: one row [1, T] of samples without a mask, whose positions restart at 0.

        Args:
            logits_to_keep: 0 = logits of all positions; n = of the last n; a tensor = of these positions. None = all
                without labels, and with labels only the positions that predict one [B, K, V], which saves most of the
                output layer; a packed batch then gives no logits where the engine supports the LLM. The loss is always
                that of all labels: positions that leave out one that predicts a label are an error.
            copies: see `embed`.
            rope_ids: [3, B, L] positions in time, height and width of an LLM with multimodal rotary embedding.
            log_probs: return the log-probabilities of the labels, sample by sample and with gradients, instead of the
                loss; memory is bounded as for the loss.
            token_loss: (log-probabilities of some labels [n], which of all labels these are) -> a loss of each [n] that
                depends on its own log-probability alone. `loss` is then the sum of these, which a packed batch takes no
                longer for than for its usual loss, and `log_probs` are without gradients.
            kwargs: media or cached states (`BATCH_MEDIA_KEYS`), `num_items_in_batch` (labels in the complete optimizer
                step: the loss is then a sum divided by it, so that accumulation equals one large batch), and arguments
                of the LLM. Keys and values come as `cache`, from transformers before 5.24 as `past_key_values`.
        """
        batch = {key: kwargs.pop(key) for key in BATCH_MEDIA_KEYS if key in kwargs}
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        n_cached = 0 if cache is None else int(cache.get_seq_length())
        if inputs_embeds is None and n_cached and not batch:
            inputs_embeds = self.get_input_embeddings()(input_ids)  # words only: skips the count of placeholders
        elif inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, batch, copies)
        n_new = inputs_embeds.shape[1]
        if position_ids is None and attention_mask is not None and attention_mask.shape[1:] == (n_cached + n_new,):
            position_ids = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)  # left padding shifts nothing
            position_ids = position_ids[:, n_cached:]
        is_packed = attention_mask is None and position_ids is not None and len(position_ids) == 1
        needs_logits = labels is None or logits_to_keep is not None or use_cache or kwargs.keys() - _LOSS_KEYS
        engine = backend.engine
        if is_packed and not needs_logits and engine is not None and engine.supports(self.language_model):
            return self._packed(
                inputs_embeds, position_ids, labels, rope_ids, log_probs=log_probs, token_loss=token_loss, **kwargs
            )
        targets = None
        if labels is not None:
            targets = functional.pad(labels, (0, 1), value=-100)[:, 1:]  # position t predicts token t + 1
            if logits_to_keep is None:
                logits_to_keep = (targets != -100).any(dim=0).nonzero()[:, 0]
                targets = targets[:, logits_to_keep]
            else:
                n_targets = int((targets != -100).sum())
                last = isinstance(logits_to_keep, int)
                targets = targets[:, slice(-logits_to_keep, None) if last else logits_to_keep]
                if (n_kept := int((targets != -100).sum())) != n_targets:
                    raise ValueError(
                        f"logits_to_keep keeps the positions that predict {n_kept} of {n_targets} labels; leave it "
                        "out, or keep all of these"
                    )
        if use_cache is None and (self.training or labels is not None):
            use_cache = False  # nothing is continued, and with a cache the LLM would not see that a batch is packed
        loss_kwargs = {key: kwargs.pop(key) for key in _LOSS_KEYS if key in kwargs}
        places = position_ids
        if rope_ids is not None:
            # transformers takes the order of the tokens, by which it finds packed samples, as the first of four axes.
            assert position_ids is not None, "rope_ids come with position_ids or a mask"
            places = torch.cat([position_ids.expand(rope_ids.shape[1:])[None], rope_ids])
        output = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=places,
            use_cache=use_cache,
            logits_to_keep=0 if logits_to_keep is None else logits_to_keep,
            **kwargs,
        )
        found: dict[str, Any] = {}
        if targets is not None and (log_probs or token_loss is not None):
            logits = output.logits.float().flatten(0, 1)
            flat = -functional.cross_entropy(logits, targets.flatten(), ignore_index=-100, reduction="none")
            flat = flat[targets.flatten() != -100]
            if token_loss is not None:
                found["loss"], flat = token_loss(flat, slice(0, len(flat))).sum(), flat.detach()
            found["log_probs"] = _by_sample(flat, labels, position_ids if is_packed else None)
        elif targets is not None:
            found["loss"] = self.loss_function(
                logits=output.logits,
                labels=None,
                shift_labels=targets.contiguous(),
                vocab_size=output.logits.shape[-1],
                **loss_kwargs,
            )
        names = AffectGPTOutput.__dataclass_fields__
        return AffectGPTOutput(**found, **{name: value for name, value in output.items() if name in names})

    def _packed(
        self,
        embeds: Tensor,
        position_ids: Tensor,
        labels: Tensor,
        rope_ids: Tensor | None = None,
        *,
        log_probs: bool,
        token_loss: Callable[[Tensor, slice], Tensor] | None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> AffectGPTOutput:
        """The loss, or the log-probabilities, of a packed batch from the engine."""
        rows = (self.language_model, embeds, position_ids, labels)
        options = {"token_budget": self.token_budget, "rope_ids": rope_ids}
        try:
            if token_loss is not None:
                loss, flat = backend.engine.packed_token_loss(*rows, token_loss, **options)
                return AffectGPTOutput(loss=loss, log_probs=_by_sample(flat, labels, position_ids))
            if log_probs:
                flat = backend.engine.packed_log_probs(*rows, **options)
                return AffectGPTOutput(log_probs=_by_sample(flat, labels, position_ids))
            loss = backend.engine.packed_loss(*rows, num_items_in_batch=num_items_in_batch, **options)
            return AffectGPTOutput(loss=loss)
        except backend.engine.SampleTooLong as error:
            raise InputError(f"{error}; shorten the samples, or set stage.packing=false") from error

    def _idle(self, slot: str, device: torch.device) -> Tensor:
        """Zero, computed by the projector of a slot that no sample of the batch has.

        Every batch thus runs the same modules in the same order. Gradients of unused projectors are zero instead of
        missing, so a batch of text alone can be differentiated, and processes that train together stay in step:
        DeepSpeed reduces gradients in the order in which they arrive, whichever parameter they belong to.
        """
        projector = self.projectors[slot]
        config = projector.config
        sizes = config.source_sizes if slot == "multi" else [config.input_size]
        n_states = config.n_queries if config.kind == "conv" else config.n_states or 1
        states = [torch.zeros(1, n_states, size, device=device) for size in sizes]
        some = [(each, torch.ones(each.shape[:2], dtype=torch.bool, device=device)) for each in states]
        tokens = (
            projector(some, torch.zeros(1, len(some), dtype=torch.int64, device=device))
            if slot == "multi"
            else projector(*some[0])
        )
        return tokens.sum() * 0.0

    @torch.no_grad()
    def generate(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """Generate from a batch of `processor.collate(rows, for_generation=True)`; returns prompts + new tokens.

        Encoders and projectors run once, before beams are expanded. Greedy unless the settings say otherwise.
        """
        batch = {key: kwargs.pop(key) for key in BATCH_MEDIA_KEYS if key in kwargs}
        if (rope_ids := kwargs.pop("rope_ids", None)) is not None:
            kwargs["position_ids"] = rope_ids  # transformers continues each of their three axes
        if input_ids is None:
            return super().generate(**kwargs)
        slots = {name: input_ids == token for name, token in self.config.placeholder_token_ids.items()}
        # Logits processors index the vocabulary with the prompt's ids, so they must not see placeholders beyond it.
        output = super().generate(
            _without_placeholders(input_ids, slots), inputs_embeds=self.embed(input_ids, batch), **kwargs
        )
        sequences = output if isinstance(output, Tensor) else output.sequences
        n_copies = len(sequences) // len(input_ids)
        sequences[:, : input_ids.shape[1]] = input_ids.repeat_interleave(n_copies, dim=0)
        return output

    # ---------------------------------------------------------------- disk

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write a full folder, with the checksums of what is in it; after `add_adapter`, the adapter alone."""
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)
        self._complete(Path(save_directory))

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        """What `push_to_hub` calls inside `save_pretrained`: the folder is completed before it is uploaded."""
        self._complete(Path(working_dir))
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _complete(self, folder: Path) -> None:
        """Add to a full folder what is ours."""
        if getattr(self, "_hf_peft_config_loaded", False):
            return  # transformers then writes the adapters alone
        write_auto_file(folder)
        for path in folder.glob("*.safetensors"):
            follow_umask(path)
        write_sums(
            folder, ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "*.py")
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a full folder that `save_pretrained` has written; every weight must be in it, and no file changed."""
        folder = str(pretrained_model_name_or_path)
        if os.path.isfile(os.path.join(folder, TRAINED_MANIFEST)):
            raise InputError(
                f"{folder} has trained tensors only, not a full model; "
                f"load it with affectgpt.models.load_trained({folder!r}), which adds the base models"
            )
        if os.path.isdir(folder):
            check_sums(Path(folder))
        wants_info = kwargs.pop("output_loading_info", False)
        with loading_models():
            model, info = super().from_pretrained(folder, *args, output_loading_info=True, **kwargs)
        kinds = {"missing": "missing_keys", "surplus": "unexpected_keys", "of another shape": "mismatched_keys"}
        if wrong := {kind: sorted(map(str, info[key])) for kind, key in kinds.items() if info[key]}:
            raise InputError(
                f"{folder} does not have this model's weights: "
                + "; ".join(f"{len(names)} {kind}: {', '.join(names[:5])}" for kind, names in wrong.items())
            )
        model.set_trainable(["projectors", "lora"] if model.config.lora else ["projectors"])
        own = model.own_parts().values()
        check_finite({name: tensor.detach() for tensors in own for name, tensor in tensors.items()}, folder)
        for name, encoder in model.encoders.items():
            encoder.cast(getattr(torch, model.config.encoder(name).dtype))
        return (model, info) if wants_info else model


def _by_sample(flat: Tensor, labels: Tensor, position_ids: Tensor | None) -> tuple[Tensor, ...]:
    """Split values of all labels [K] by sample.

    Args:
        labels: [B, L], or [1, T] of a packed batch with these position_ids [1, T]; -100 = none.
    """
    counts = (labels != -100).sum(dim=1)
    if position_ids is not None:
        sample = (position_ids[0] == 0).cumsum(dim=0) - 1  # [T]
        counts = torch.zeros(int(sample[-1]) + 1, dtype=torch.int64, device=labels.device)
        counts.index_add_(0, sample, (labels[0] != -100).long())
    return flat.split(counts.tolist())


def _mask_of(name: str, batch: Mapping[str, Tensor]) -> Tensor:
    """Which states [N, T] of modality `name` are no padding; without a mask in the batch, all."""
    states, mask = batch[f"{name}_states"], batch.get(f"{name}_states_mask")
    return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device) if mask is None else mask


def _without_placeholders(input_ids: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
    """`input_ids` with id 0 instead of placeholders, which may be beyond the LLM's vocabulary."""
    for slot in slots.values():
        input_ids = input_ids.masked_fill(slot, 0)
    return input_ids


def media_keys(modalities: Collection[str]) -> set[str]:
    """The keys of a row that only the encoders of these modalities read.

    >>> sorted(media_keys(["frames"])), sorted(media_keys(["audio"]))
    (['pixel_values'], ['input_lengths', 'input_values'])
    """
    return {MEDIA_KEYS[name] for name in modalities} | ({"input_lengths"} if "audio" in modalities else set())


def part_of(name: str) -> str:
    """The part that a tensor belongs to.

    >>> part_of("language_model.model.norm.weight"), part_of("encoders.audio.model.encoder.layers.0.lora_A.weight")
    ('language_model', 'encoders.audio.lora')
    """
    top, second = name.split(".")[:2]
    is_adapter = ".lora_" in name
    if top == "language_model":
        return "lora" if is_adapter else top
    return f"{top}.{second}.lora" if is_adapter else f"{top}.{second}"


def is_of_base(part: str) -> bool:
    """Whether a part comes from a base model: the LLM or an encoder, without adapters."""
    return _FROM_BASE.fullmatch(part) is not None


def merge_lora_into(model: AffectGPTForConditionalGeneration) -> None:
    """Merge the adapters into the LLM's weights, in place, and remove them.

    The sum is rounded to the LLM's precision, so logits change slightly in bf16.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [(name, part) for name, part in model.language_model.named_modules() if isinstance(part, BaseTunerLayer)]
    if not adapted:
        raise UserError("merge_lora=true, but this checkpoint has no LoRA; leave merge_lora out")
    for name, layer in adapted:
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.language_model.get_submodule(parent), child, layer.get_base_layer())
    model.config.lora = None
    if model.config.spec is not None:
        model.config.spec = {**model.config.spec, "lora": None}


def lora_kind(fields: Mapping[str, Any]) -> str:
    """What kind of adapters fields of peft's LoraConfig give.

    >>> lora_kind({"r": 16}), lora_kind({"r": 8, "use_dora": True, "use_rslora": True})
    ('r 16', 'r 8, DoRA, rsLoRA')
    """
    named = {"use_dora": "DoRA", "use_rslora": "rsLoRA"}
    return ", ".join([f"r {fields['r']}", *(name for key, name in named.items() if fields.get(key))])


def trainable_table(model: AffectGPTForConditionalGeneration) -> str:
    """Parameters by part, in total and trainable, as aligned text."""
    rows = [("part", "kind", "parameters", "trainable")]
    totals = [0, 0]
    for part, tensors in model.parts().items():
        if part.startswith("projectors."):
            kind = model.config.projector(part.split(".")[1]).kind
        elif part.endswith("lora"):
            kind = lora_kind(model.config.lora if part == "lora" else model.config.encoder(part.split(".")[1]).lora)
        else:
            kind = type(model.get_submodule(f"{part}.model" if part.startswith("encoders.") else part)).__name__
        trained = [t.numel() for t in tensors.values() if t.requires_grad]
        counts = [sum(n_weights(t) for t in tensors.values()), sum(trained)]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        rows.append((part, kind, f"{counts[0]:,}", f"{counts[1]:,}"))
    rows.append(("all", "", f"{totals[0]:,}", f"{totals[1]:,}"))
    return format_table(rows, "llrr")
