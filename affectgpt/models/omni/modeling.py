"""An omni model in the form of this package's own: towers and aligners -> tokens among the words of its text model.

    sound --audio tower, its projection--> [S_i, D]     video --vision tower, its merger--> [S_i, D]
    input_ids [B, L] --embedding--> [B, L, D], the tokens of the media in their places --text model--> logits, loss

The aligners (the audio tower's `proj`, the vision tower's `merger`) are its projectors: stage.trainable=[projectors]
trains them. All else of the towers stays frozen. LoRA, packing, objectives, checkpoints and generation are those of
`modeling_affectgpt`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniTextConfig

from affectgpt.models.configuration_affectgpt import AffectGPTConfig, EncoderArchitecture
from affectgpt.models.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.models.processing_affectgpt import pad_states
from affectgpt.runtime import InputError
from affectgpt.schema import MODALITIES

_ALIGNER = {"audio": "proj.", "frames": "merger."}  # modality -> the tensors of its tower that are the aligner
_MEDIA = {
    "audio": ("input_features",),
    "frames": ("pixel_values_videos", "video_grid_thw"),
}  # what a tower takes of a row


class OmniModelConfig(AffectGPTConfig):
    """Configuration of `OmniForConditionalGeneration`; arguments beyond those of `AffectGPTConfig`:

    Args:
        shown: the modalities that the model is shown.
    """

    model_type = "affectgpt_omni"

    def __init__(self, *args: Any, shown: Sequence[str] = (), **kwargs: Any) -> None:
        self.shown = list(shown)
        super().__init__(*args, **kwargs)

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.shown)

    def encoder(self, modality: str) -> EncoderArchitecture:
        return EncoderArchitecture(base={})


class ThinkerLLM(PreTrainedModel):
    """The text model of a thinker with its head, as a causal language model."""

    config_class = Qwen2_5OmniTextConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: Any, model: nn.Module, lm_head: nn.Module) -> None:
        super().__init__(config)
        self.model, self.lm_head = model, lm_head

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self, inputs_embeds: Tensor | None = None, logits_to_keep: int | Tensor = 0, **kwargs: Any
    ) -> CausalLMOutputWithPast:
        output = self.model(inputs_embeds=inputs_embeds, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        fields = {name: value for name, value in output.items() if name != "last_hidden_state"}
        return CausalLMOutputWithPast(logits=self.lm_head(output.last_hidden_state[:, kept]), **fields)


class Tower(nn.Module):
    """A tower with its aligner, always in eval mode, frozen but for the aligner if it is told to train."""

    def __init__(self, modality: str, model: nn.Module) -> None:
        super().__init__()
        self.modality, self.model = modality, model
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Tower:
        return super().train(False)

    @property
    def trains(self) -> bool:
        return any(tensor.requires_grad for tensor in self.parameters())

    def aligner(self) -> dict[str, nn.Parameter]:
        """Its tensors by name."""
        start = f"model.{_ALIGNER[self.modality]}"
        return {name: tensor for name, tensor in self.named_parameters() if name.startswith(start)}

    def forward(self, media: Tensor, grid: Tensor | None = None) -> Tensor:
        """The tokens of one sample, [S, D].

        Args:
            media: a spectrogram [M, T], or patches [P, E] with their grid [3].
        """
        dtype = next(self.model.parameters()).dtype
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains):
            if grid is not None:
                return self.model(media.to(dtype), grid_thw=grid[None]).pooler_output
            n_mel = torch.tensor([media.shape[1]], device=media.device)
            return self.model(media.to(dtype), feature_lens=n_mel).last_hidden_state


class OmniForConditionalGeneration(AffectGPTForConditionalGeneration):
    """A thinker: towers, aligners and text model of an omni model; `affectgpt.models.build` makes it."""

    config: OmniModelConfig
    config_class = OmniModelConfig
    base_model_prefix = "affectgpt_omni"
    new_parts = ()
    cacheable = False

    def _new_encoder(self, name: str, loaded: nn.Module | None) -> Tower:
        assert loaded is not None, "an omni model is made by affectgpt.models.build"
        return Tower(name, loaded)

    def tensors_of(self, part: str) -> dict[str, nn.Parameter]:
        aligners = {
            f"projectors.{name}": {f"encoders.{name}.{key}": tensor for key, tensor in tower.aligner().items()}
            for name, tower in self.every_encoder().items()
        }
        if part == "projectors":
            return {name: tensor for tensors in aligners.values() for name, tensor in tensors.items()}
        if part in aligners:
            return aligners[part]
        known = ["projectors", *aligners, *(["lora"] if self.config.lora else []), "llm"]
        if part not in known:
            raise InputError(
                f"trainable parts {[part]} are unknown to an omni model, whose towers stay frozen; expected some of "
                f"{known} (lora needs model.llm.lora.r)"
            )
        return super().tensors_of(part)

    def embed(self, input_ids: Tensor, batch: Mapping[str, Tensor], copies: int = 1) -> Tensor:
        embeds = self.get_input_embeddings()(input_ids)
        for name, tower in self.every_encoder().items():
            each = self._tokens(name, tower, batch)
            if not each and self.training and tower.trains:
                # Gradients are then zero instead of missing, so that processes stay in step.
                embeds = embeds + sum(t.sum() * 0.0 for t in tower.aligner().values()).to(embeds.dtype)
            places = (input_ids == self.config.placeholder_token_ids[name]).flatten().nonzero()[:, 0]
            n_tokens = copies * sum(map(len, each))
            if len(places) != n_tokens:
                raise ValueError(
                    f"{name}: the text has {len(places)} placeholder tokens, the media of {len(each)} samples give "
                    f"{n_tokens}; make both with the processor of this model"
                )
            if each:
                new = torch.cat([tokens for tokens in each for _ in range(copies)]).to(embeds.dtype)
                embeds = embeds.flatten(0, 1).index_copy(0, places, new).view_as(embeds)
        return embeds

    @torch.no_grad()
    def encoded(self, row: Mapping[str, Tensor]) -> dict[str, Tensor]:
        made = dict(row)
        for name, tower in self.every_encoder().items():
            if not tower.trains and _MEDIA[name][0] in row:
                made[f"{name}_states"] = tower(*(made.pop(key).to(self.device) for key in _MEDIA[name]))
        return made

    def with_states(self, batch: Mapping[str, Tensor], modalities: Iterable[str] = MODALITIES) -> dict[str, Tensor]:
        """The batch with the towers' tokens `<m>_states` [N, S, D] and their masks instead of the media."""
        made = dict(batch)
        for name, tower in self.every_encoder().items():
            if name in modalities and (each := self._tokens(name, tower, batch)):
                replaced = {*_MEDIA[name], *(("feature_lengths",) if name == "audio" else ())}
                made = {key: value for key, value in made.items() if key not in replaced}
                made[f"{name}_states"], made[f"{name}_states_mask"] = pad_states(each)
        return made

    @staticmethod
    def _tokens(name: str, tower: nn.Module, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """The tokens [S_i, D] of each sample that has the modality; a tower sees one sample at a time."""
        if (states := batch.get(f"{name}_states")) is not None:
            return [tokens[mask] for tokens, mask in zip(states, batch[f"{name}_states_mask"], strict=True)]
        if name == "audio":
            heard = zip(batch.get("input_features", ()), batch.get("feature_lengths", ()), strict=True)
            return [tower(features[:, :length]) for features, length in heard]
        grids = batch.get("video_grid_thw")
        if grids is None:
            return []
        parts = batch["pixel_values_videos"].split(grids.prod(dim=1).tolist())
        return [tower(media, grid) for media, grid in zip(parts, grids, strict=True)]

    def soft_tokens(self, slot: str, batch: Mapping[str, Tensor]) -> Tensor | None:
        raise InputError(f"{slot}: attributions are not built for omni models; leave attribute=true out")

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        raise InputError(
            "an omni model is not written as a full folder; its checkpoints hold what was trained, and "
            "affectgpt.loading.load adds the base model"
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        raise InputError(
            f"{pretrained_model_name_or_path}: an omni model is loaded with affectgpt.loading.load, or with model="
        )
