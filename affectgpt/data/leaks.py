"""Find test samples in the training data: by id, and by content where files have the same size."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from affectgpt.config import DataConfig
from affectgpt.data.facts import MediaFacts
from affectgpt.data.mixture import Source
from affectgpt.data.sources import read_source
from affectgpt.runtime import InputError, UserError
from affectgpt.schema import BadSample, Sample

log = logging.getLogger("affectgpt")

POLICIES = ("raise", "drop", "warn", "off")


@dataclass(frozen=True)
class Leak:
    """A training sample that is also in the test set; `by` is "id" or "content" (the same bytes under another id)."""

    by: str
    training_id: str
    test_id: str
    where: str

    def __str__(self) -> str:
        if self.by == "id":
            return f"{self.training_id!r} ({self.where}) is in the test set"
        return f"{self.training_id!r} ({self.where}) has the same bytes as {self.test_id!r} of the test set"


def find_leaks(training: Iterable[Sample], test: Sequence[Sample], facts: MediaFacts | None = None) -> list[Leak]:
    """Training samples that are in the test set, in order. Only files whose size occurs on both sides are hashed.

    Missing files are not compared by content; probing reports them.
    """
    facts = facts or MediaFacts()
    test_ids = {sample.id for sample in test}
    by_size: dict[int, list[Sample]] = {}
    for sample in test:
        if (size := _size(sample)) is not None:
            by_size.setdefault(size, []).append(sample)
    leaks = []
    for sample in training:
        where = _file(sample) or "text only"
        if sample.id in test_ids:
            leaks.append(Leak("id", sample.id, sample.id, where))
        elif (size := _size(sample)) is not None and size in by_size:
            digest = facts.sha256(where)
            same = [other for other in by_size[size] if facts.sha256(_file(other) or "") == digest]
            leaks += [Leak("content", sample.id, other.id, where) for other in same[:1]]
    facts.save()
    return leaks


def remove_leaks(
    sources: Sequence[Source], data: DataConfig, facts: MediaFacts | None = None
) -> tuple[list[Source], list[BadSample]]:
    """Check training sources against `data.test`, as `data.leak_check` says.

    Returns:
        the sources, and the samples that "drop" removed from them.

    Raises:
        InputError: leaks, with "raise"; an unknown policy; a test set that cannot be read.
    """
    if data.leak_check not in POLICIES:
        raise InputError(f"data.leak_check is {data.leak_check!r}; expected one of {list(POLICIES)}")
    if data.leak_check == "off" or not data.test:
        return list(sources), []
    try:
        test = [row for source in data.test for row in read_source(source, data.folder, on_bad="skip").samples]
    except UserError as error:
        raise InputError(
            f"the test set cannot be read, so the training data cannot be checked against it: {error}\n"
            "Correct data.test, or train without the check: data.leak_check=off"
        ) from error
    training = [sample for source in sources for sample in source.samples]
    if not (leaks := find_leaks(training, test, facts)):
        return list(sources), []
    found = describe(leaks, len(training), len(test))
    if data.leak_check == "raise":
        raise InputError(
            f"{found}\nScores on that test set would be meaningless. Leave these samples out of training with "
            "data.leak_check=drop, or continue with data.leak_check=warn"
        )
    log.warning("%s", found)
    if data.leak_check == "warn":
        return list(sources), []
    leaked = {leak.training_id for leak in leaks}
    kept = [replace(each, samples=[item for item in each.samples if item.id not in leaked]) for each in sources]
    if empty := [source for source in kept if not source.samples]:
        raise InputError(f"all samples of {list(empty[0].files)} are in the test set; nothing is left to train on")
    return kept, [BadSample(leak.training_id, leak.where, f"leak: {leak}") for leak in leaks]


def describe(leaks: Sequence[Leak], n_training: int, n_test: int) -> str:
    """A summary with examples."""
    n_ids = sum(leak.by == "id" for leak in leaks)
    shown = "".join(f"\n  {leak}" for leak in leaks[:5])
    more = f"\n  ... and {len(leaks) - 5} more" if len(leaks) > 5 else ""
    return (
        f"{len(leaks)} of {n_training} training samples are among the {n_test} test samples "
        f"({n_ids} by id, {len(leaks) - n_ids} by content):{shown}{more}"
    )


def _file(sample: Sample) -> str | None:
    return sample.video or sample.audio


def _size(sample: Sample) -> int | None:
    if (path := _file(sample)) is None:
        return None
    try:
        return os.stat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
