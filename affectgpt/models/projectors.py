"""The trained bridge: frozen encoder states -> soft tokens in the LLM's embedding space.

Every projector has one signature, `forward(states [B, T, E], mask [B, T]) -> [B, Q, D]`, and respects the mask: states
behind it change nothing. Projectors compute in fp32 whatever the precision of the encoders and the LLM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from affectgpt.models.configuration_affectgpt import ProjectorConfig


class Positions(nn.Module):
    """Add a learned vector to each state by its time step.  [B, T, E] -> [B, T, E]"""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.tokens_per_position = config.tokens_per_position
        self.embedding = nn.Embedding(config.max_positions, config.input_size)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, states: Tensor) -> Tensor:
        steps = torch.arange(states.shape[1], device=states.device) // self.tokens_per_position  # [T]
        needed = -(-states.shape[1] // self.tokens_per_position)
        if needed > self.embedding.num_embeddings:
            raise ValueError(
                f"the states span {needed} time steps, the position table holds {self.embedding.num_embeddings}; "
                "use fewer frames or windows, or train with a larger max_positions"
            )
        return states + self.embedding(steps)


class QFormer(nn.Module):
    """Learned queries read the states through cross-attention in every layer, then a linear map to the LLM.

    The shape of Video-LLaMA's video and audio Q-Former (AffectGPT, 2024: two layers, 32 or 8 queries), as
    transformers' `Blip2QFormerModel` with a cross-attention in each layer.
    """

    def __init__(self, config: ProjectorConfig, output_size: int) -> None:
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
                # BERT's 0.02 belongs to its width of 768; a narrow Q-Former would hardly see its input with it.
                initializer_range=0.02 * (768 / config.hidden_size) ** 0.5,
            )
        )
        self.output = nn.Linear(config.hidden_size, output_size)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        read = self.qformer(
            query_embeds=self.queries.expand(len(states), -1, -1),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
        ).last_hidden_state  # [B, Q, H]
        return self.output(read)  # [B, Q, D]


class LinearPerState(nn.Module):
    """Each state becomes one soft token; a sample must have exactly Q states."""

    def __init__(self, config: ProjectorConfig, output_size: int) -> None:
        super().__init__()
        self.n_queries = config.n_queries
        self.output = nn.Linear(config.input_size, output_size)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        counts = mask.sum(dim=1)
        if states.shape[1] != self.n_queries or (counts != self.n_queries).any():
            raise ValueError(
                f"a linear projector needs exactly {self.n_queries} states a sample, found {counts.tolist()}; "
                "pool to a fixed number (pool: mean), or use the qformer or attention projector"
            )
        return self.output(states)  # [B, Q=T, D]


class AttentionSum(nn.Module):
    """Q learned weighted sums over the states, then a linear map to the LLM.

    With one query this is the projection of AffectGPT (ICML 2025, section on the model): a learned weight for each
    position, one soft token a modality.
    """

    def __init__(self, config: ProjectorConfig, output_size: int) -> None:
        super().__init__()
        self.score = nn.Linear(config.input_size, config.n_queries)
        self.output = nn.Linear(config.input_size, output_size)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        scores = self.score(states).masked_fill(~mask[..., None], float("-inf"))  # [B, T, Q]
        weights = scores.softmax(dim=1).transpose(1, 2)  # [B, Q, T]
        return self.output(weights @ states)  # [B, Q, D]


class Projector(nn.Module):
    """Normalise the input's precision, add time, and project with the configured kind."""

    KINDS = {"qformer": QFormer, "linear": LinearPerState, "attention": AttentionSum}  # noqa: RUF012

    def __init__(self, config: ProjectorConfig, output_size: int) -> None:
        super().__init__()
        self.config = config
        self.positions = Positions(config) if config.max_positions else None
        self.project = self.KINDS[config.kind](config, output_size)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Project states [B, T, E] with mask [B, T] (True = real) to soft tokens [B, Q, D]."""
        if states.shape[-1] != self.config.input_size:
            raise ValueError(
                f"the states are {states.shape[-1]} wide, the projector was built for {self.config.input_size}; "
                "were they cached from another encoder?"
            )
        mask = mask.bool()
        if not mask.any(dim=1).all():
            raise ValueError("a sample has no state at all; leave the modality out of its prompt instead")
        states = states.to(torch.float32).masked_fill(~mask[..., None], 0.0)  # cached padding may hold anything
        if self.positions is not None:
            states = self.positions(states)
        return self.project(states, mask)
