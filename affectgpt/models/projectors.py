"""Trained projectors: frozen encoder states -> soft tokens in the LLM's embedding space.

All projectors have the signature `forward(states [B, T, E], mask [B, T]) -> [B, Q, D]`, and masked states have no
effect. The pre-fusion (`PreFusion`) takes the states of several modalities. All projectors compute in fp32, independent
of the precision of the encoders and the LLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerMultiHeadAttention

from affectgpt.models.configuration_affectgpt import ProjectorArchitecture
from affectgpt.runtime import InputError


class Positions(nn.Module):
    """Add a learned vector to each state by its time step.  [B, T, E] -> [B, T, E]"""

    def __init__(self, config: ProjectorArchitecture) -> None:
        super().__init__()
        self.tokens_per_position = config.tokens_per_position
        self.embedding = nn.Embedding(config.max_positions, config.input_size)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, states: Tensor) -> Tensor:
        steps = torch.arange(states.shape[1], device=states.device) // self.tokens_per_position  # [T]
        needed = -(-states.shape[1] // self.tokens_per_position)
        if needed > self.embedding.num_embeddings:
            raise InputError(
                f"the states span {needed} time steps, the position table holds {self.embedding.num_embeddings}; "
                "use fewer frames or windows, or train with a larger max_positions"
            )
        return states + self.embedding(steps)


class CrossAttention(Blip2QFormerMultiHeadAttention):
    """Cross-attention of few queries to many states, with the order of products that takes the fewest operations.

    Keys and values of T states cost T*E*H*d multiplications each. The score of a query and a state is (q Wk) s, and the
    weighted sum of values is (sum w s) Wv: if there are no more queries than a head has dimensions, it is cheaper to
    multiply Wk and Wv with the queries, and the gradients of Wk and Wv are products over queries instead of states. The
    key bias adds the same value to all scores of a query and cancels in the softmax: it is left out, and its gradient
    is exactly zero.
    """

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        n_samples, n_queries = hidden_states.shape[:2]
        heads, head_dim, states = self.num_attention_heads, self.attention_head_size, encoder_hidden_states
        masked = encoder_attention_mask
        supported = masked is None or (masked.dtype == torch.bool and masked.shape[1] == 1)
        # ZeRO-3 gathers a weight for the module that owns it, and for this one only after a first training step.
        partitioned = self.key.weight.numel() == 0
        if n_queries > head_dim or states is None or not supported or partitioned:
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, **kwargs
            )
        query = (self.query(hidden_states) * self.scaling).view(-1, heads, head_dim).transpose(0, 1)  # [H, B*Q, d]
        query = torch.bmm(query, self.key.weight.view(heads, head_dim, -1))  # [H, B*Q, E]
        query = query.view(heads, n_samples, n_queries, -1).transpose(0, 1).flatten(1, 2)  # [B, H*Q, E]
        scores = torch.bmm(query, states.transpose(1, 2))  # [B, H*Q, T]
        if masked is not None:
            scores = scores.view(n_samples, heads, n_queries, -1).masked_fill(~masked, float("-inf")).flatten(1, 2)
        weights = scores.softmax(dim=-1)
        if self.training and self.attention_dropout:
            weights = functional.dropout(weights, self.attention_dropout)
        mixed = torch.bmm(weights, states).view(n_samples, heads, n_queries, -1).transpose(0, 1).flatten(1, 2)
        mixed = torch.bmm(mixed, self.value.weight.view(heads, head_dim, -1).transpose(1, 2))  # [H, B*Q, d]
        sums = weights.sum(dim=-1).view(n_samples, heads, n_queries).transpose(0, 1).reshape(heads, -1, 1)
        mixed = mixed + sums * self.value.bias.view(heads, 1, head_dim)  # the sums are 1 without dropout
        mixed = mixed + 0.0 * self.key.bias.view(heads, 1, head_dim)
        return mixed.view(heads, n_samples, n_queries, head_dim).permute(1, 2, 0, 3).flatten(2), None


class QFormer(nn.Module):
    """Learned queries that cross-attend to the states in every layer, then a linear map to the LLM.

    The architecture of Video-LLaMA's video and audio Q-Former (AffectGPT, 2024: two layers, 32 or 8 queries), as
    transformers' `Blip2QFormerModel` with cross-attention in each layer.
    """

    def __init__(self, config: ProjectorArchitecture, output_size: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, config.n_queries, config.hidden_size))
        nn.init.normal_(self.queries, std=0.02)
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=config.hidden_size,
                num_hidden_layers=config.n_layers,
                num_attention_heads=config.n_heads,
                intermediate_size=4 * config.hidden_size,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                cross_attention_frequency=1,
                encoder_hidden_size=config.input_size,
                # BERT's 0.02 is for its width of 768; with it the input of a narrow Q-Former would have little effect.
                initializer_range=0.02 * (768 / config.hidden_size) ** 0.5,
            )
        )
        for layer in self.qformer.encoder.layer:
            layer.crossattention.attention.__class__ = CrossAttention
        self.output = nn.Linear(config.hidden_size, output_size)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        attended = self.qformer(
            query_embeds=self.queries.expand(len(states), -1, -1),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
        ).last_hidden_state  # [B, Q, H]
        return self.output(attended)  # [B, Q, D]


class LinearPerState(nn.Module):
    """Each state becomes one soft token; a sample must have exactly Q states."""

    def __init__(self, config: ProjectorArchitecture, output_size: int) -> None:
        super().__init__()
        self.n_queries = config.n_queries
        self.output = nn.Linear(config.input_size, output_size)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        counts = mask.sum(dim=1)
        if states.shape[1] != self.n_queries or (counts != self.n_queries).any():
            raise ValueError(
                f"a linear projector needs exactly {self.n_queries} states per sample, found {counts.tolist()}; "
                "pool to a fixed number (pool: mean), or use the qformer or attention projector"
            )
        return self.output(states)  # [B, Q=T, D]


class GroupedLinear(nn.Module):
    """Each group of consecutive states is concatenated to one soft token; class tokens have a linear map of their own.

    The visual projection of MiniGPT-v2 and Emotion-LLaMA: 1024 patches in groups of 4 -> 256 tokens, and a class token.
    """

    def __init__(self, config: ProjectorArchitecture, output_size: int) -> None:
        super().__init__()
        self.group_size, self.n_class, self.n_states = config.group_size, config.n_class, config.n_states
        self.class_last = config.class_last
        maps_class = config.n_class and config.class_token
        self.class_output = nn.Linear(config.input_size, output_size) if maps_class else None
        self.output = nn.Linear(config.group_size * config.input_size, output_size)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        counts = mask.sum(dim=1)
        if states.shape[1] != self.n_states or (counts != self.n_states).any():
            raise ValueError(
                f"a grouped projector needs exactly {self.n_states} states per sample, found {counts.tolist()}; "
                "use it with a fixed number of frames and pool 'tokens'"
            )
        groups = states[:, self.n_class :].unflatten(1, (-1, self.group_size)).flatten(2)  # [B, Q', group*E]
        tokens = self.output(groups)
        if self.class_output is None:
            return tokens
        parts = [self.class_output(states[:, : self.n_class]), tokens]
        return torch.cat(parts[::-1] if self.class_last else parts, dim=1)  # [B, Q, D]


class AttentionSum(nn.Module):
    """Q learned weighted sums over the states, then a linear map to the LLM.

    With one query this is the projection of AffectGPT (ICML 2025, section on the model): a learned weight for each
    position, one soft token per modality. Its published code uses the raw scores as weights (`softmax` false).
    """

    def __init__(self, config: ProjectorArchitecture, output_size: int) -> None:
        super().__init__()
        self.softmax = config.softmax
        self.score = nn.Linear(config.input_size, config.n_queries)
        self.output = nn.Linear(config.input_size, output_size)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        weights = masked_weights(self.score(states), mask[..., None], self.softmax)  # [B, T, Q]
        return self.output(weights.transpose(1, 2) @ states)  # [B, Q, D]


def masked_weights(scores: Tensor, mask: Tensor, softmax: bool) -> Tensor:
    """Weights along dimension 1: a softmax over the unmasked scores, or the scores themselves; 0 where masked."""
    if softmax:
        return scores.masked_fill(~mask, float("-inf")).softmax(dim=1)
    return scores.masked_fill(~mask, 0.0)


class PreFusion(nn.Module):
    """Soft tokens from the states of several modalities together (AffectGPT, ICML 2025, section on pre-fusion).

    attention: each source's mean over time -> linear to H -> concatenated -> linear to H -> one score per source ->
    weighted sum -> linear to the LLM: one soft token. With softmax the weights sum to 1 over the sources that the
    sample has; without, as in the published code, the raw scores are the weights and an absent source counts 0.

    qformer: all states -> linear to H -> one sequence with positions -> a Q-Former -> linear to the LLM. Each source
    has its own range of positions, so that an absent source does not shift the others.
    """

    def __init__(self, config: ProjectorArchitecture, output_size: int) -> None:
        super().__init__()
        self.config = config
        width, n_sources = config.input_size, len(config.sources)
        self.embed = nn.ModuleDict(
            {name: nn.Linear(size, width) for name, size in zip(config.sources, config.source_sizes, strict=True)}
        )
        if config.kind == "attention":
            if config.n_queries != 1:
                raise InputError(
                    f"a pre-fusion by attention gives one soft token, n_queries is {config.n_queries}; set it to 1"
                )
            self.mix = nn.Linear(n_sources * width, width)
            self.score = nn.Linear(width, n_sources)
            self.output = nn.Linear(width, output_size)
        else:
            needed = sum(config.source_states)
            if config.max_positions and config.max_positions < needed:
                raise InputError(f"the fused states need {needed} positions, max_positions is {config.max_positions}")
            sequence = replace(config, sources=(), max_positions=config.max_positions or needed, tokens_per_position=1)
            self.sequence = Projector(sequence, output_size)

    def forward(self, sources: Sequence[tuple[Tensor, Tensor] | None], rows: Tensor) -> Tensor:
        """Fuse one batch.

        Args:
            sources: states [N_s, T_s, E_s] and mask [N_s, T_s] of each source; None = no sample has it.
            rows: [B, S], the row of each sample in each source's states; -1 = the sample lacks that source.

        Returns:
            soft tokens [B, Q, D].
        """
        present = rows >= 0  # [B, S]
        if not present.any(dim=1).all():
            raise ValueError(f"a sample has none of the fused modalities {list(self.config.sources)}")
        embedded, masks = [], []
        for linear, source, rows_of_it in zip(self.embed.values(), sources, rows.T, strict=True):
            if source is None:  # an empty row that depends on the weights, so that each parameter has a gradient
                states, mask = linear.weight.new_zeros(1, 1, linear.in_features), rows.new_zeros(1, 1).bool()
            else:
                states, mask = source[0].float(), source[1].bool()
            states = linear(states.masked_fill(~mask[..., None], 0.0)).masked_fill(~mask[..., None], 0.0)
            here = (rows_of_it >= 0)[:, None]  # [B, 1]
            mask = mask[rows_of_it.clamp(min=0)] & here  # [B, T_s]
            embedded.append(states[rows_of_it.clamp(min=0)] * mask[..., None])  # [B, T_s, H]
            masks.append(mask)
        if self.config.kind == "qformer":
            pad = nn.functional.pad
            counts = [states.shape[1] for states in embedded]
            padding = [n - count for n, count in zip(self.config.source_states, counts, strict=True)]
            if min(padding) < 0:
                raise ValueError(
                    f"the fused modalities have {counts} states, the pre-fusion was "
                    f"built for at most {list(self.config.source_states)}; use the sampling it was built with"
                )
            states = torch.cat([pad(each, (0, 0, 0, n)) for each, n in zip(embedded, padding, strict=True)], dim=1)
            mask = torch.cat([pad(each, (0, n)) for each, n in zip(masks, padding, strict=True)], dim=1)
            return self.sequence(states, mask)
        # The mean of linear maps is the linear map of the mean; an absent source is zero.
        counts = [mask.sum(dim=1, keepdim=True).clamp(min=1) for mask in masks]
        means = torch.stack([e.sum(dim=1) / n for e, n in zip(embedded, counts, strict=True)], dim=1)  # [B, S, H]
        scores = self.score(self.mix(means.flatten(1)))  # [B, S]
        weights = masked_weights(scores, present, self.config.softmax)
        return self.output(weights[:, None] @ means)  # [B, 1, D]


class ConvFusion(nn.Module):
    """Q soft tokens from the states of several modalities together (Emotion-LLaMA v2, conv-attention pre-fusion).

    Each source has Q states; of one with another number, such as all tokens of one picture, the first state (its class
    token) stands at all Q positions. An absent source is zero. At each position: an MLP per source to H; the weighted
    sum of the sources, with weights from an MLP of all of them and without softmax; plus a convolution over the
    positions (kernel 1 to H, then blocks x + SiLU(convolution of kernel 3)). Then linear maps to 2H and to the LLM.
    """

    def __init__(self, config: ProjectorArchitecture, output_size: int) -> None:
        super().__init__()
        self.config = config
        width, n_sources = config.hidden_size, len(config.sources)
        self.embed = nn.ModuleDict(
            {
                name: _mlp(size, width, config.dropout)
                for name, size in zip(config.sources, config.source_sizes, strict=True)
            }
        )
        self.mix = _mlp(n_sources * width, width, config.dropout)
        self.score = nn.Linear(width, n_sources)
        self.entry = nn.Conv1d(n_sources * width, width, kernel_size=1)
        self.blocks = nn.ModuleList(nn.Conv1d(width, width, kernel_size=3, padding=1) for _ in range(config.n_layers))
        self.final = nn.Linear(width, 2 * width)
        self.output = nn.Linear(2 * width, output_size)

    def forward(self, sources: Sequence[tuple[Tensor, Tensor] | None], rows: Tensor) -> Tensor:
        """Fuse one batch; arguments and result as of `PreFusion`."""
        n_queries, embedded = self.config.n_queries, []
        for mlp, source, rows_of_it, size, n_states in zip(
            self.embed.values(), sources, rows.T, self.config.source_sizes, self.config.source_states, strict=True
        ):
            states = rows.new_zeros(1, n_queries, size, dtype=torch.float32)
            if source is not None:
                states = source[0].float()
                if n_states != n_queries:
                    states = states[:, :1].expand(-1, n_queries, -1)
                elif states.shape[1] != n_queries:
                    raise ValueError(f"a pre-fusion by convolution takes {n_queries} states, found {states.shape[1]}")
            here = (rows_of_it >= 0)[:, None, None]  # [B, 1, 1]
            embedded.append(mlp(states[rows_of_it.clamp(min=0)] * here))  # [B, Q, H]
        together = torch.cat(embedded, dim=2)  # [B, Q, S*H]
        weights = self.score(self.mix(together))  # [B, Q, S]
        fused = (torch.stack(embedded, dim=3) @ weights[..., None])[..., 0]  # [B, Q, H]
        convolved = self.entry(together.transpose(1, 2))  # [B, H, Q]
        for block in self.blocks:
            convolved = convolved + functional.silu(block(convolved))
        return self.output(self.final(fused + convolved.transpose(1, 2)))  # [B, Q, D]


def _mlp(size: int, width: int, dropout: float) -> nn.Sequential:
    """Two linear maps, to 4H and to H, each with ReLU and dropout."""
    layers = [nn.Linear(size, 4 * width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(4 * width, width), nn.ReLU(), nn.Dropout(dropout))


def projector_of(config: ProjectorArchitecture, output_size: int) -> nn.Module:
    """The projector of a branch, or the pre-fusion, with new weights."""
    if not config.sources:
        return Projector(config, output_size)
    return ConvFusion(config, output_size) if config.kind == "conv" else PreFusion(config, output_size)


class Projector(nn.Module):
    """Convert the states to fp32, add temporal positions, and project with the configured kind."""

    KINDS = {"qformer": QFormer, "linear": LinearPerState, "attention": AttentionSum, "grouped": GroupedLinear}  # noqa: RUF012

    def __init__(self, config: ProjectorArchitecture, output_size: int) -> None:
        super().__init__()
        self.config = config
        self.positions = Positions(config) if config.max_positions else None
        self.project = self.KINDS[config.kind](config, output_size)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Project states [B, T, E] with mask [B, T] (True = real) to soft tokens [B, Q, D]."""
        if states.shape[-1] != self.config.input_size:
            raise ValueError(
                f"the states have width {states.shape[-1]}, the projector was built for {self.config.input_size}; "
                "were they cached from another encoder?"
            )
        mask = mask.bool()
        if not mask.any(dim=1).all():
            raise ValueError("a sample has no states; leave the modality out of its prompt instead")
        states = states.to(torch.float32).masked_fill(~mask[..., None], 0.0)  # padding may have any value
        if self.positions is not None:
            states = self.positions(states)
        return self.project(states, mask)
