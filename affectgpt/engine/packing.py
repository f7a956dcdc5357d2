"""The training step on packed samples: no padding, attention within each sample, loss only where there are labels.

    embeds [T, D], T = tokens of all samples --layers, each sample attends to itself--> states of the answers [K, D]
    --head and cross-entropy, a few rows at a time--> loss

What differs from running the LLM as transformers does, and changes no result beyond rounding:

- Attention runs sample by sample, so its cost grows with the samples' lengths and not with the length of the row.
- The last layer computes queries and feed-forward only from the first token whose successor is learnt; of the tokens
  before it nothing but keys and values is ever used.
- Logits exist for a few rows at a time. With a frozen head their gradient is taken in the forward pass, so that memory
  grows neither with the vocabulary nor with the number of answers.
- Frozen norms, rotary embedding and gated activation save no more than they need to be differentiated.

The layers are those of LLaMA, Mistral, Qwen2 and Qwen3 in transformers; their own submodules are called, so that LoRA,
quantized linear layers and weights that ZeRO-3 has split work as in any other step. Other LLMs train packed, too, by
transformers' own attention masks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from threading import Barrier
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from affectgpt.engine import kernels

# Tokens that a CPU's thread has to have before it is given a pack of its own.
_A_THREAD = 384
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types of transformers whose decoder layers `answer_states` knows."""


@dataclass(frozen=True)
class Pack:
    """Where samples lie in a packed row.

    Attributes:
        start, stop: the part of the row that they take.
        lengths: tokens of each sample; their sum is stop - start.
        firsts: for each sample the place, counted within it, of the first token whose successor is learnt.
        answers: places in the row of all such tokens, [K] int64 on the CPU.
    """

    start: int
    lengths: tuple[int, ...]
    firsts: tuple[int, ...]
    answers: Tensor

    @property
    def stop(self) -> int:
        return self.start + sum(self.lengths)

    @property
    def n_queries(self) -> list[int]:
        """Tokens of each sample from the first learnt one to its end."""
        return [length - first for length, first in zip(self.lengths, self.firsts, strict=True)]

    def whole(self) -> Pack:
        """The same samples with queries for all tokens, for every layer but the last."""
        return replace(self, firsts=(0,) * len(self.lengths))

    def queries(self) -> Tensor:
        """Places of the queries, [Q], counted from `start`."""
        spans = zip(pairwise(kernels.bounds_of(self.lengths)), self.firsts, strict=True)
        return torch.cat([torch.arange(start + first, stop) for (start, stop), first in spans])


def packs_of(position_ids: Tensor, learnt: Tensor, token_budget: int | None = None) -> list[Pack]:
    """Cut a packed row into packs of at most `token_budget` tokens; a longer sample is a pack of its own.

    Args:
        position_ids: [1, T], restart at 0 with each sample.
        learnt: [T] bool, marks the tokens that predict a label.

    Raises:
        ValueError: the row does not begin with position 0.
    """
    spans, marks = _spans(position_ids, learnt)
    return _packs(spans, marks, token_budget or len(marks))


def _spans(position_ids: Tensor, learnt: Tensor) -> tuple[list[tuple[int, int]], Tensor]:
    """Start and stop of each sample, and `learnt` on the CPU."""
    # One transfer for both: reading from a GPU waits for it.
    begins, marks = torch.stack([position_ids[0] == 0, learnt]).cpu()
    if not begins[0]:
        raise ValueError("a packed row begins with position 0; make it with processor.collate(rows, packed=True)")
    return list(pairwise([*begins.nonzero()[:, 0].tolist(), len(marks)])), marks


def _packs(spans: Sequence[tuple[int, int]], marks: Tensor, limit: int) -> list[Pack]:
    packs = []
    for group in _groups(spans, limit):
        found = [marks[start:stop].nonzero()[:, 0] for start, stop in group]
        packs.append(
            Pack(
                group[0][0],
                tuple(stop - start for start, stop in group),
                # At least one query a sample: attention kernels need not cope with none.
                tuple(int(f[0]) if len(f) else stop - start - 1 for f, (start, stop) in zip(found, group, strict=True)),
                torch.cat([f + start for f, (start, _) in zip(found, group, strict=True)]),
            )
        )
    return packs


def _groups(spans: Sequence[tuple[int, int]], limit: int) -> list[list[tuple[int, int]]]:
    """Neighbouring samples in groups of at most `limit` tokens, or of one sample."""
    groups: list[list[tuple[int, int]]] = [[]]
    for start, stop in spans:
        if groups[-1] and stop - groups[-1][0][0] > limit:
            groups.append([])
        groups[-1].append((start, stop))
    return groups


def _side_by_side(spans: Sequence[tuple[int, int]], token_budget: int, n_threads: int) -> tuple[int, int]:
    """How many packs a CPU takes at once, and how many tokens each may have: together they stay within the budget.

    Threads that share one pack wait for each other at every small operation; with a pack each they do not.
    """
    longest, n_tokens = max(stop - start for start, stop in spans), min(spans[-1][1], token_budget)
    n_workers = max(1, min(n_threads, len(spans), n_tokens // _A_THREAD, token_budget // longest))
    if n_workers == 1:
        return 1, token_budget
    # As few packs as the budget allows, each as short as that allows, so that all workers end together.
    high = min(spans[-1][1], token_budget // n_workers)
    n_packs = max(n_workers, len(_groups(spans, high)))
    low = longest
    while low < high:
        middle = (low + high) // 2
        if len(_groups(spans, middle)) <= n_packs:
            high = middle
        else:
            low = middle + 1
    return n_workers, low


def knows(llm: Any) -> bool:
    """Whether `answer_states` computes what this LLM computes; else it trains by its own forward method."""
    config = llm.config
    return (
        config.model_type in FAMILIES
        and getattr(config, "hidden_act", None) == "silu"
        and not getattr(config, "attention_dropout", 0.0)
        and hasattr(llm, "model")
        and hasattr(llm, "lm_head")
    )


def packed_loss(
    llm: Any,
    embeds: Tensor,
    position_ids: Tensor,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    token_budget: int | None = None,
) -> Tensor:
    """Loss of a packed row.

    Args:
        embeds: [1, T, D]; position_ids, labels: [1, T].
        num_items_in_batch: the sum over all labels is divided by this number; None = the mean.
        token_budget: tokens that go through the LLM at once. Each pack is differentiated before the next one starts, so
            that memory grows with the budget and not with the batch; it costs no second pass. None = all at once.

    Raises:
        ValueError: a sample is longer than the LLM's sliding window.
    """
    targets = functional.pad(labels, (0, 1), value=-100)[0, 1:]  # [T]; place t predicts token t + 1
    spans, marks = _spans(position_ids, targets != -100)
    # Dropout draws from one generator, whose numbers threads would take in an order of chance; and weights that ZeRO-3
    # has split are gathered in an order that all processes share.
    alone = (
        embeds.device.type != "cpu"
        or any(isinstance(module, nn.Dropout) and module.p > 0 and module.training for module in llm.modules())
        or any(hasattr(parameter, "ds_id") for parameter in llm.parameters())
    )
    n_threads = 1 if alone else torch.get_num_threads()
    n_workers, limit = _side_by_side(spans, token_budget or len(marks), n_threads)
    packs = _packs(spans, marks, limit)
    _check_window(llm.config, max(max(pack.lengths) for pack in packs))

    def loss_of(pack: Pack, embeds: Tensor) -> Tensor:
        at = pack.answers.to(targets.device)
        states = answer_states(llm, embeds, position_ids[:, pack.start : pack.stop], pack)  # [Q, D]
        rows = torch.isin(pack.queries() + pack.start, pack.answers, assume_unique=True).nonzero()[:, 0]
        return kernels.summed_loss(llm.lm_head, states[rows.to(states.device)], targets[at])

    if len(packs) == 1:
        total = loss_of(packs[0], embeds)
    else:
        trained = [parameter for parameter in llm.parameters() if parameter.requires_grad]
        total = _PackByPack.apply(loss_of, packs, n_workers, embeds, *trained)
    n_items = sum(len(pack.answers) for pack in packs) if num_items_in_batch is None else num_items_in_batch
    return total / (n_items.to(total.device) if isinstance(n_items, Tensor) else n_items)


class _PackByPack(torch.autograd.Function):
    """Sum of the packs' losses; each pack's gradient is made in the forward pass and kept instead of its graph."""

    @staticmethod
    def forward(ctx, loss_of, packs, n_workers, embeds, *trained):  # type: ignore[no-untyped-def]
        wanted = ctx.needs_input_grad[3:]
        needed = [tensor for tensor, is_wanted in zip((embeds, *trained), wanted, strict=True) if is_wanted]

        def differentiate(pack: Pack) -> tuple[Tensor, tuple[Tensor, ...]]:
            piece = embeds[:, pack.start : pack.stop].detach().requires_grad_(wanted[0])
            with torch.set_grad_enabled(bool(needed)):
                loss = loss_of(pack, piece)
            inputs = [piece if tensor is embeds else tensor for tensor in needed]
            return loss.detach(), torch.autograd.grad(loss, inputs) if needed else ()

        total = torch.zeros((), dtype=torch.float32, device=embeds.device)
        sums = [torch.zeros_like(tensor) for tensor in needed]
        # In the order of the packs whichever ends first: the sums are the same in every run.
        for pack, (loss, gradients) in zip(packs, _each(differentiate, packs, n_workers), strict=True):
            total += loss
            for tensor, into, gradient in zip(needed, sums, gradients, strict=True):
                (into[:, pack.start : pack.stop] if tensor is embeds else into).add_(gradient)
        ctx.save_for_backward(*sums)
        return total

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        sums = iter(ctx.saved_tensors)
        return None, None, None, *((next(sums) * grad if wanted else None) for wanted in ctx.needs_input_grad[3:])


def _each(call: Callable[[Pack], Any], packs: Sequence[Pack], n_workers: int) -> Iterator[Any]:
    """What `call` makes of each pack, in order; so many packs at once."""
    if n_workers == 1:
        return map(call, packs)
    return _workers(os.getpid(), n_workers, torch.get_num_threads() // n_workers).map(call, packs)


@lru_cache(maxsize=1)
def _workers(pid: int, n_workers: int, n_threads: int) -> ThreadPoolExecutor:
    """Threads that each compute with `n_threads` threads of their own; a forked process needs new ones."""
    ready = Barrier(n_workers + 1)

    def begin() -> None:
        torch.set_num_threads(n_threads)
        torch.get_num_threads()  # a thread takes up its number when it first asks, and the number changes below
        ready.wait()

    n_here = torch.get_num_threads()
    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="pack", initializer=begin)
    for _ in range(n_workers):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(n_here)  # torch lets the last call decide for threads to come, too
    return pool


def answer_states(
    llm: Any,
    embeds: Tensor,
    position_ids: Tensor,
    pack: Pack,
    attends: Sequence[Callable[..., Tensor]] | None = None,
) -> Tensor:
    """Final states [Q, D] at the places `pack.queries()` of a pack: embeds [1, T, D] with positions [1, T].

    Args:
        attends: for each layer what takes the place of `kernels.attend`; generation keeps keys and values there.
    """
    decoder = llm.model
    rotation = rotation_of(decoder, embeds, position_ids)
    states, whole, last = embeds[0], pack.whole(), len(decoder.layers) - 1
    for number, layer in enumerate(decoder.layers):
        mix = kernels.attend if attends is None else attends[number]
        step = partial(layer_states, layer, pack if number == last else whole, attend=mix)
        if getattr(layer, "gradient_checkpointing", False) and layer.training:
            states = checkpoint(step, states, *rotation, use_reentrant=False)
        else:
            states = step(states, *rotation)
    return kernels.rms_norm(decoder.norm, states)


def rotation_of(decoder: Any, embeds: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary embedding at positions [1, T], [T, d/2] each; the type is that of `embeds`."""
    cos, sin = (table[0] for table in decoder.rotary_emb(embeds, position_ids=position_ids))  # [T, d], halves alike
    half = cos.shape[-1] // 2
    return cos[:, :half].contiguous(), sin[:, :half].contiguous()


def _check_window(config: Any, longest: int) -> None:
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and longest > window:
        raise ValueError(
            f"a sample has {longest} tokens, the LLM's sliding window {window}; packed samples attend to all of "
            "themselves: shorten them, or set stage.packing=false"
        )


def layer_states(
    layer: Any, pack: Pack, states: Tensor, cos: Tensor, sin: Tensor, *, attend: Callable[..., Tensor]
) -> Tensor:
    """One decoder layer.  [T, D] -> [Q, D], the rows that have queries

    Args:
        attend: `kernels.attend`, or what takes its place.
    """
    attention = layer.self_attn
    normed = kernels.rms_norm(layer.input_layernorm, states)  # [T, D]
    key, value = (kernels.product(linear, normed) for linear in (attention.k_proj, attention.v_proj))  # [T, Hk*d]
    rows = None
    if any(pack.firsts):
        rows = pack.queries().to(states.device)
        states, normed = states[rows], normed[rows]  # [Q, D]
    query = kernels.product(attention.q_proj, normed)  # [Q, H*d]
    if hasattr(attention, "q_norm"):  # Qwen3 normalises each head
        query, key = (
            kernels.rms_norm(norm, heads.view(-1, attention.head_dim)).view_as(heads)
            for norm, heads in ((attention.q_norm, query), (attention.k_norm, key))
        )
    mixed = attend(query, key, value, cos, sin, rows, pack, attention.head_dim, attention.scaling)  # [Q, H*d]
    states = states + kernels.product(attention.o_proj, mixed)
    return kernels.feed_forward(layer.post_attention_layernorm, layer.mlp, states)
