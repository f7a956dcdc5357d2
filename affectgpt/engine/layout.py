"""Where samples are in a packed row, and how a row is cut into packs that go through the LLM one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

Span = tuple[int, int]


@dataclass(frozen=True)
class Pack:
    """Neighbouring samples of a packed row.

    Attributes:
        start, stop: their part of the row.
        lengths: tokens of each sample; their sum is stop - start.
        firsts: for each sample the position, within the sample, of the first token that predicts a label.
        answers: positions in the row of all tokens that predict a label, [K] int64 on the CPU.
        n_before: such tokens in the row before this pack.
    """

    start: int
    lengths: tuple[int, ...]
    firsts: tuple[int, ...]
    answers: Tensor
    n_before: int = 0

    @property
    def stop(self) -> int:
        return self.start + sum(self.lengths)

    @property
    def n_queries(self) -> list[int]:
        """Tokens of each sample from `firsts` to its end."""
        return [length - first for length, first in zip(self.lengths, self.firsts, strict=True)]

    def with_all_queries(self) -> Pack:
        """The same samples with queries for all tokens, for every layer but the last."""
        return replace(self, firsts=(0,) * len(self.lengths))

    def queries(self) -> Tensor:
        """Positions of the queries, [Q], counted from `start`."""
        spans = zip(pairwise(bounds_of(self.lengths)), self.firsts, strict=True)
        return torch.cat([torch.arange(start + first, stop) for (start, stop), first in spans])


def bounds_of(lengths: Iterable[int]) -> list[int]:
    """0 and the running sums of `lengths`."""
    return list(accumulate(lengths, initial=0))


def find_spans(position_ids: Tensor, predicts: Tensor) -> tuple[list[Span], Tensor]:
    """Start and stop of each sample of a row, and `predicts` on the CPU.

    Args:
        position_ids: [1, T], restart at 0 with each sample.
        predicts: [T] bool, marks the tokens that predict a label.
    """
    # One transfer for both: each one waits for the GPU.
    is_start, marks = torch.stack([position_ids[0] == 0, predicts]).cpu()
    if not is_start[0]:
        raise ValueError("a packed row must start with position 0; make it with processor.collate(rows, packed=True)")
    return list(pairwise([*is_start.nonzero()[:, 0].tolist(), len(marks)])), marks


def make_packs(spans: Sequence[Span], marks: Tensor, limit: int) -> list[Pack]:
    """Packs of at most `limit` tokens; a longer sample is a pack of its own."""
    packs: list[Pack] = []
    n_before = 0
    for group in group_spans(spans, limit):
        found = [marks[start:stop].nonzero()[:, 0] for start, stop in group]
        packs.append(
            Pack(
                group[0][0],
                tuple(stop - start for start, stop in group),
                # At least one query per sample, so that attention kernels need not handle empty ones.
                tuple(int(f[0]) if len(f) else stop - start - 1 for f, (start, stop) in zip(found, group, strict=True)),
                torch.cat([f + start for f, (start, _) in zip(found, group, strict=True)]),
                n_before,
            )
        )
        n_before += len(packs[-1].answers)
    return packs


def group_spans(spans: Sequence[Span], limit: int) -> list[list[Span]]:
    """Neighbouring samples in groups of at most `limit` tokens, or of one sample."""
    groups: list[list[Span]] = [[]]
    for start, stop in spans:
        if groups[-1] and stop - groups[-1][0][0] > limit:
            groups.append([])
        groups[-1].append((start, stop))
    return groups
