"""Loss and log-probabilities of packed samples: no padding, attention within each sample, logits only for labels.

    embeds [T, D], T = tokens of all samples --layers, each sample attends to itself--> states of the answers [K, D]
    --head, a few rows at a time--> loss, or log-probabilities [K]

The results are those of transformers up to rounding, but

- attention runs sample by sample, so its cost grows with the lengths of the samples and not with the length of the row;
- the last layer computes queries and feed-forward only from the first token that predicts a label; of the tokens before
  it only keys and values are used;
- logits exist for a few rows at a time, so memory grows neither with the vocabulary nor with the number of answers;
- frozen norms, rotary embedding and gated activation save no more for the backward pass than they need.

LLMs that `layers.supports` does not name train packed through transformers' own attention masks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from affectgpt.engine import cpu, kernels, layers
from affectgpt.engine.layout import Pack, Span, find_spans, make_packs
from affectgpt.engine.lora import adapter_of


class SampleTooLong(ValueError):
    """A sample is longer than the LLM's sliding window, and packed samples attend to all of their tokens."""


def packed_loss(
    llm: Any,
    embeds: Tensor,
    position_ids: Tensor,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    token_budget: int | None = None,
    rope_ids: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of a packed row.

    Args:
        embeds: [1, T, D]; position_ids, labels: [1, T].
        num_items_in_batch: the sum over all labels is divided by this number; None = the mean.
        token_budget: tokens that go through the LLM at once. Each pack is differentiated before the next one starts, so
            memory grows with the budget and not with the batch, without a second pass. None = all at once.
        rope_ids: [3, 1, T] positions in time, height and width of an LLM with multimodal rotary embedding; None =
            `position_ids` in all three.

    Raises:
        SampleTooLong: a sample is longer than the LLM's sliding window.
        ValueError: the row does not start with a sample.
    """
    total, log_probs = _summed(llm, embeds, position_ids, labels, None, token_budget, rope_ids)
    n_items = len(log_probs) if num_items_in_batch is None else num_items_in_batch
    return total / (n_items.to(total.device) if isinstance(n_items, Tensor) else n_items)


def packed_token_loss(
    llm: Any,
    embeds: Tensor,
    position_ids: Tensor,
    labels: Tensor,
    token_loss: kernels.TokenLoss,
    token_budget: int | None = None,
    rope_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of a loss of each label that is a function of its own log-probability, in one pass as `packed_loss`.

    Args:
        token_loss: called with the log-probabilities of some labels [n] and which of all labels [K] these are, perhaps
            in several threads; returns the losses [n].

    Returns:
        the sum, and the log-probabilities of all labels [K] in fp32 without gradients.
    """
    return _summed(llm, embeds, position_ids, labels, token_loss, token_budget, rope_ids)


def packed_log_probs(
    llm: Any,
    embeds: Tensor,
    position_ids: Tensor,
    labels: Tensor,
    token_budget: int | None = None,
    rope_ids: Tensor | None = None,
) -> Tensor:
    """Log-probabilities of all labels of a packed row, in order and in fp32, with gradients.  -> [K]

    The arguments and errors are those of `packed_loss`. With several packs each is computed again in the backward pass,
    when it is known how the gradients are weighted; memory grows with the budget and not with the batch. Losses of
    single tokens need no second pass: see `packed_token_loss`.
    """
    targets, spans, marks = _targets(llm, position_ids, labels)
    seed, needs_grad = _dropout_seed(llm), torch.is_grad_enabled()
    places = position_ids if rope_ids is None else rope_ids

    def log_probs_of(pack: Pack, embeds: Tensor) -> Tensor:
        states = _label_states(llm, embeds, places, pack, seed)
        return kernels.log_probs(llm.lm_head, states, targets[pack.answers.to(targets.device)])

    def alone(pack: Pack) -> Tensor:
        with torch.no_grad():  # threads have modes of their own
            return log_probs_of(pack, embeds[:, pack.start : pack.stop])

    n_workers, limit = 1, token_budget or len(marks)
    if not needs_grad:
        n_workers, limit = cpu.split_work(spans, limit, _n_threads(llm, embeds.device))
    packs = make_packs(spans, marks, limit)
    if not needs_grad:
        return torch.cat(list(cpu.map_packs(alone, packs, n_workers)))
    if len(packs) == 1:
        return log_probs_of(packs[0], embeds)
    parts = [(pack, embeds[:, pack.start : pack.stop]) for pack in packs]
    return torch.cat([checkpoint(log_probs_of, *part, use_reentrant=False) for part in parts])


def _summed(
    llm: Any,
    embeds: Tensor,
    position_ids: Tensor,
    labels: Tensor,
    token_loss: kernels.TokenLoss | None,
    token_budget: int | None,
    rope_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The summed losses, None = cross-entropies, and the labels' log-probabilities [K] without gradients."""
    targets, spans, marks = _targets(llm, position_ids, labels)
    n_workers, limit = cpu.split_work(spans, token_budget or len(marks), _n_threads(llm, embeds.device))
    packs, seed = make_packs(spans, marks, limit), _dropout_seed(llm)
    places = position_ids if rope_ids is None else rope_ids

    def loss_of(pack: Pack, embeds: Tensor) -> tuple[Tensor, Tensor]:
        states = _label_states(llm, embeds, places, pack, seed)
        wanted = targets[pack.answers.to(targets.device)]
        return kernels.summed_loss(llm.lm_head, states, wanted, token_loss, pack.n_before)

    if len(packs) == 1:
        return loss_of(packs[0], embeds)
    # Word embeddings have been looked up before; where they are tied, they are also the head.
    looked_up = {id(llm.get_input_embeddings().weight)} - {id(llm.lm_head.weight)}
    trained = [each for each in llm.parameters() if each.requires_grad and id(each) not in looked_up]
    return _PackByPack.apply(loss_of, packs, n_workers, embeds, *trained)


def _targets(llm: Any, position_ids: Tensor, labels: Tensor) -> tuple[Tensor, list[Span], Tensor]:
    """The token that each position predicts (-100 = none) [T], the samples' spans, and which positions predict one."""
    targets = functional.pad(labels, (0, 1), value=-100)[0, 1:]  # position t predicts token t + 1
    spans, marks = find_spans(position_ids, targets != -100)
    longest, window = max(stop - start for start, stop in spans), layers.window_of(llm.config)
    if window is not None and longest > window:
        raise SampleTooLong(f"a sample has {longest} tokens, the LLM's sliding window {window}")
    return targets, spans, marks


def _label_states(llm: Any, embeds: Tensor, places: Tensor, pack: Pack, seed: int | None) -> Tensor:
    """Final states of the pack's tokens that predict a label.  embeds of the pack [1, T, D] -> [K, D]"""
    states = layers.final_states(llm, embeds, places[..., pack.start : pack.stop], pack, seed=seed)  # [Q, D]
    rows = torch.isin(pack.queries() + pack.start, pack.answers, assume_unique=True).nonzero()[:, 0]
    return states[rows.to(states.device)]


def _dropout_seed(llm: Any) -> int | None:
    """A seed for the dropout of LoRA, from torch's random numbers, which a checkpoint keeps; None = it has none."""
    if not any(map(_draws, llm.modules())):
        return None
    return int(torch.randint(2**62, ()))


def _draws(module: nn.Module) -> bool:
    return isinstance(module, nn.Dropout) and module.p > 0 and module.training


def _n_threads(llm: Any, device: torch.device) -> int:
    """Threads that may each compute a pack: one where random numbers or the weights of ZeRO-3 need a fixed order."""
    adapted = (module for module in llm.model.layers.modules() if adapter_of(module) is not None)
    seeded = {drop for module in adapted for drop in module.lora_dropout.values()}
    if (
        device.type != "cpu"
        or any(_draws(module) and module not in seeded for module in llm.modules())
        or any(hasattr(parameter, "ds_id") for parameter in llm.parameters())
    ):
        return 1
    return torch.get_num_threads()


class _PackByPack(torch.autograd.Function):
    """Sum of the packs' losses; each pack's gradient is computed in the forward pass and kept instead of its graph."""

    @staticmethod
    def forward(ctx, loss_of, packs, n_workers, embeds, *trained):  # type: ignore[no-untyped-def]
        needs_grad = ctx.needs_input_grad[3:]
        inputs = [tensor for tensor, needed in zip((embeds, *trained), needs_grad, strict=True) if needed]

        def differentiate(pack: Pack) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
            piece = embeds[:, pack.start : pack.stop].detach().requires_grad_(needs_grad[0])
            with torch.set_grad_enabled(bool(inputs)):
                loss, log_probs = loss_of(pack, piece)
            own_inputs = [piece if tensor is embeds else tensor for tensor in inputs]
            return loss.detach(), log_probs, torch.autograd.grad(loss, own_inputs) if inputs else ()

        total, found = torch.zeros((), dtype=torch.float32, device=embeds.device), []
        sums = [torch.zeros_like(tensor) for tensor in inputs]
        # In the order of the packs, whichever finishes first, so that the sums are the same in every run.
        results = cpu.map_packs(differentiate, packs, n_workers)
        for pack, (loss, log_probs, gradients) in zip(packs, results, strict=True):
            total += loss
            found.append(log_probs)
            for tensor, into, gradient in zip(inputs, sums, gradients, strict=True):
                (into[:, pack.start : pack.stop] if tensor is embeds else into).add_(gradient)
        ctx.save_for_backward(*sums)
        log_probs = torch.cat(found)
        ctx.mark_non_differentiable(log_probs)
        return total, log_probs

    @staticmethod
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        sums = iter(ctx.saved_tensors)  # scaled in place: of an LLM that trains, a copy is as large as the LLM
        return None, None, None, *((next(sums).mul_(grad) if needed else None) for needed in ctx.needs_input_grad[3:])
