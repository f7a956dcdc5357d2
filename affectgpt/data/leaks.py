"""Does the test set stand in the training data? By id, and by content where the files have the same size."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from affectgpt.config import DataConfig
from affectgpt.data.facts import MediaFacts
from affectgpt.data.sources import read_source
from affectgpt.data.stream import Part
from affectgpt.runtime import InputError, UserError
from affectgpt.schema import BadSample, Sample

log = logging.getLogger("affectgpt")

POLICIES = ("raise", "drop", "warn", "off")


@dataclass(frozen=True)
class Leak:
    """A training sample that the test set holds too; `by` is "id" or "content" (the same bytes under another id)."""

    by: str
    training_id: str
    test_id: str
    where: str

    def __str__(self) -> str:
        if self.by == "id":
            return f"{self.training_id!r} ({self.where}) stands in the test set"
        return f"{self.training_id!r} ({self.where}) has the same bytes as {self.test_id!r} of the test set"


def find_leaks(training: Iterable[Sample], test: Sequence[Sample], facts: MediaFacts | None = None) -> list[Leak]:
    """Training samples that are in the test set, in order. Only files whose size occurs on both sides are hashed.

    Files that are not there have no content to compare; looking for them is the work of probing.
    """
    facts = facts or MediaFacts()
    test_ids = {sample.id for sample in test}
    by_size: dict[int, list[Sample]] = {}
    for sample in test:
        if (size := _size(sample)) is not None:
            by_size.setdefault(size, []).append(sample)
    leaks = []
    for sample in training:
        where = _file(sample) or "text alone"
        if sample.id in test_ids:
            leaks.append(Leak("id", sample.id, sample.id, where))
        elif (size := _size(sample)) is not None and size in by_size:
            digest = facts.sha256(where)
            same = [other for other in by_size[size] if facts.sha256(_file(other) or "") == digest]
            leaks += [Leak("content", sample.id, other.id, where) for other in same[:1]]
    facts.save()
    return leaks


def keep_apart(
    parts: Sequence[Part], data: DataConfig, facts: MediaFacts | None = None
) -> tuple[list[Part], list[BadSample]]:
    """Check training parts against `data.test` by the policy `data.leak_check`.

    Returns:
        the parts, and what was left out of them (with "drop").

    Raises:
        ValueError: leaks, with "raise"; an unknown policy; a test set that cannot be read.
    """
    if data.leak_check not in POLICIES:
        raise InputError(f"data.leak_check is {data.leak_check!r}; expected one of {list(POLICIES)}")
    if data.leak_check == "off" or not data.test:
        return list(parts), []
    try:
        test = [row for source in data.test for row in read_source(source, data.folder, on_bad="skip").samples]
    except UserError as error:
        raise InputError(
            f"the test set cannot be read, so training data cannot be checked against it: {error}\n"
            "Mend data.test, or train without the check: data.leak_check=off"
        ) from error
    training = [sample for part in parts for sample in part.samples]
    if not (leaks := find_leaks(training, test, facts)):
        return list(parts), []
    found = describe(leaks, len(training), len(test))
    if data.leak_check == "raise":
        raise InputError(
            f"{found}\nScores on that test set would mean nothing. Leave these samples out of training with "
            "data.leak_check=drop, or go on with data.leak_check=warn"
        )
    log.warning("%s", found)
    if data.leak_check == "warn":
        return list(parts), []
    leaked = {leak.training_id for leak in leaks}
    kept = [replace(part, samples=[item for item in part.samples if item.id not in leaked]) for part in parts]
    if empty := [part for part in kept if not part.samples]:
        raise InputError(f"all samples of {list(empty[0].files)} are in the test set; nothing is left to train on")
    return kept, as_bad(leaks)


def as_bad(leaks: Iterable[Leak]) -> list[BadSample]:
    """Leaks as samples that are left out."""
    return [BadSample(leak.training_id, leak.where, f"leak: {leak}") for leak in leaks]


def describe(leaks: Sequence[Leak], n_training: int, n_test: int) -> str:
    """What was found, with examples."""
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
