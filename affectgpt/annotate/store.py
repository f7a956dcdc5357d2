"""The files of one output folder of annotation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from affectgpt.journal import Journal
from affectgpt.journal.locks import NamedLocks


class Store:
    """The files of one output folder.

        records.jsonl         one line per finished clip; the last line of an id is valid
        store/answers.jsonl   every answer of a model, by the hash of the complete call
        store/failures.jsonl  clips that failed, with the reason
        store/hashes.jsonl    hashes of the media files
        store/voices.jsonl    what the medians of speakers are made from
        store/claims          locks, no data

    With `answers_in`, answers, hashes, voices and claims are in that folder's store, which several outputs share.

    Attributes:
        cost, n_answers, tokens_in, tokens_out: of all answers in the folder, by any process.
        n_uncounted: answers without a token count.
        by_call: (step, model) -> [answers, tokens in, tokens out].
    """

    def __init__(self, folder: Path, *, fsync: bool = False, answers_in: Path | None = None) -> None:
        shared = (answers_in or folder) / "store"
        self.folder = folder
        self.cost, self.n_answers, self.tokens_in, self.tokens_out, self.n_uncounted = 0.0, 0, 0, 0, 0
        self.by_call: dict[tuple[str, str], list[int]] = {}
        self.answers = Journal(shared / "answers.jsonl", name=_call_of, on_row=self._count, fsync=fsync)
        self.records = Journal(folder / "records.jsonl", name=lambda row: row["id"], fsync=fsync)
        self.failures = Journal(folder / "store" / "failures.jsonl", name=lambda row: row["id"])
        self.hashes = Journal(shared / "hashes.jsonl")
        self.voices = Journal(shared / "voices.jsonl")
        self.claims = NamedLocks(shared / "claims")

    def answered(self, media_sha256: str, step: str, model: str) -> int:
        """Number of answers to this step's questions about this clip."""
        return self.answers.count(f"{media_sha256} {step} {model}")

    def close(self) -> None:
        for file in (self.answers, self.records, self.failures, self.hashes, self.voices, self.claims):
            file.close()

    def _count(self, row: dict[str, Any]) -> None:
        n_in, n_out = _finite(row.get("tokens_in")), _finite(row.get("tokens_out"))
        self.n_answers += 1
        self.n_uncounted += n_in is None
        self.cost += _finite(row.get("cost")) or 0.0
        self.tokens_in += n_in or 0
        self.tokens_out += n_out or 0
        totals = self.by_call.setdefault((row["step"], row["model"]), [0, 0, 0])
        for place, n in enumerate((1, n_in or 0, n_out or 0)):
            totals[place] += n


def _finite(value: Any) -> Any:
    """None for what is no number: with one NaN, no budget would ever be reached."""
    return value if isinstance(value, (int, float)) and 0 <= value < math.inf else None


def _call_of(row: dict[str, Any]) -> str:
    return f"{row['media_sha256']} {row['step']} {row['model']}"
