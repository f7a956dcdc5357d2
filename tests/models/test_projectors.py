"""Projectors: shape, mask, time and precision."""

from __future__ import annotations

import pytest
import torch
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerMultiHeadAttention

from affectgpt.models.configuration_affectgpt import ProjectorArchitecture
from affectgpt.models.projectors import CrossAttention, Projector

KINDS = ("qformer", "linear", "attention")


def projector(kind: str, n_queries: int = 6, **options) -> Projector:
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "n_layers": 2, "n_heads": 2, "dropout": 0.0} | options
    return Projector(ProjectorArchitecture(kind, input_size=10, n_queries=n_queries, **shape), output_size=12).eval()


def states(n: int = 2, t: int = 6) -> torch.Tensor:
    return torch.randn(n, t, 10, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_share_one_signature(kind):
    tokens = projector(kind)(states(), torch.ones(2, 6, dtype=torch.bool))
    assert tokens.shape == (2, 6, 12)
    assert tokens.dtype == torch.float32


@pytest.mark.parametrize("kind", ["qformer", "attention"])
def test_states_behind_the_mask_change_nothing(kind):
    model = projector(kind, max_positions=6)
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    clean, dirty = states(), states()
    dirty[0, 4:] = float("nan")
    assert torch.equal(model(clean, mask), model(dirty, mask))
    alone = model(clean[:1, :4], mask[:1, :4])
    torch.testing.assert_close(model(clean, mask)[:1], alone)


@pytest.mark.parametrize("kind", ["qformer", "attention"])
def test_positions_make_order_matter_and_count_time_steps(kind):
    mask = torch.ones(1, 6, dtype=torch.bool)
    swapped = states(1)[:, [2, 3, 0, 1, 4, 5]]  # two time steps of two tokens exchanged
    blind = projector(kind)
    torch.testing.assert_close(blind(states(1), mask), blind(swapped, mask))
    seeing = projector(kind, max_positions=3, tokens_per_position=2)
    torch.nn.init.normal_(seeing.positions.embedding.weight)
    assert not torch.allclose(seeing(states(1), mask), seeing(swapped, mask), atol=1e-4)
    within = states(1)[:, [1, 0, 2, 3, 4, 5]]
    torch.testing.assert_close(seeing(states(1), mask), seeing(within, mask))


def test_more_time_steps_than_the_table_holds_are_an_error_with_both_numbers():
    with pytest.raises(ValueError, match="span 6 time steps, the position table holds 4"):
        projector("qformer", max_positions=4)(states(), torch.ones(2, 6, dtype=torch.bool))


def test_a_linear_projector_refuses_another_number_of_states():
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    with pytest.raises(ValueError, match=r"exactly 6 states per sample, found \[6, 4\]"):
        projector("linear")(states(), mask)


def test_states_of_another_encoder_and_empty_samples_are_errors():
    with pytest.raises(ValueError, match="width 7, the projector was built for 10"):
        projector("attention")(torch.zeros(1, 2, 7), torch.ones(1, 2))
    with pytest.raises(ValueError, match="no states"):
        projector("attention")(states(), torch.zeros(2, 6))


def test_half_precision_states_are_projected_in_full_precision():
    model = projector("qformer")
    half = states().bfloat16()
    mask = torch.ones(2, 6, dtype=torch.bool)
    assert torch.equal(model(half, mask), model(half.float(), mask))


def test_the_qformer_has_the_size_of_the_paper():
    """AffectGPT (2024): a video Q-Former of two layers, 18,905,088 parameters, and a projection of 3,149,824."""
    config = ProjectorArchitecture("qformer", input_size=768, n_queries=32, max_positions=32)
    with torch.device("meta"):
        model = Projector(config, output_size=4096)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(model.project.qformer) == 18_905_088
    assert count(model.project.output) == 3_149_824


def test_all_trainable_parameters_of_the_paper():
    """Video branch (32 queries, 32 positions) and audio branch (8 queries, 8 positions of width 1024): 44,959,744."""
    with torch.device("meta"):
        video = Projector(ProjectorArchitecture("qformer", input_size=768, n_queries=32, max_positions=32), 4096)
        audio = Projector(ProjectorArchitecture("qformer", input_size=1024, n_queries=8, max_positions=8), 4096)
    assert sum(p.numel() for model in (video, audio) for p in model.parameters()) == 44_959_744


@pytest.mark.parametrize("mask", ["all", "uneven"])
@pytest.mark.parametrize("n_queries", [4, 6])  # up to the 4 dimensions of a head the products change their order
def test_cross_attention_of_few_queries_has_values_and_gradients_of_the_librarys(n_queries, mask, monkeypatch):
    model = projector("qformer", n_queries).train()
    inputs, seen = states(3, 9).requires_grad_(), torch.ones(3, 9, dtype=torch.bool)
    if mask == "uneven":
        seen[1, 5:] = False
    weights = torch.randn(3, n_queries, 12, generator=torch.Generator().manual_seed(2))

    def run():
        tokens = model(inputs, seen)
        return tokens, torch.autograd.grad((tokens * weights).sum(), [inputs, *model.parameters()])

    products = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *args: products.append(1) or bmm(*args))
    tokens, gradients = run()
    assert len(products) == (8 if n_queries == 4 else 0)  # four in each of two layers
    monkeypatch.setattr(CrossAttention, "forward", Blip2QFormerMultiHeadAttention.forward)
    expected, expected_gradients = run()
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)
    names = ["states", *(name for name, _ in model.named_parameters())]
    if n_queries == 4:
        assert all(
            not gradient.any()
            for name, gradient in zip(names, gradients, strict=True)
            if name.endswith("crossattention.attention.key.bias")
        )


def test_dropout_of_cross_attention_keeps_its_mean_and_the_values_bias_follows_the_weights():
    torch.manual_seed(0)
    few = next(part for part in projector("qformer", 4, dropout=0.5).modules() if isinstance(part, CrossAttention))
    hidden, inputs = torch.randn(1, 4, 8), torch.randn(1, 9, 10)
    expected = Blip2QFormerMultiHeadAttention.forward(few.eval(), hidden, encoder_hidden_states=inputs)[0]
    few.train()
    drawn = torch.stack([few(hidden, encoder_hidden_states=inputs)[0].detach() for _ in range(4000)])
    assert float(drawn.std(dim=0).min()) > 0
    torch.testing.assert_close(drawn.mean(dim=0), expected, rtol=0, atol=5 * float(drawn.std(dim=0).max()) / 4000**0.5)
