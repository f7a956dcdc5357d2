"""Near-duplicate texts among all records, found with MinHash in two passes whose memory does not grow.

The first pass adds every text to a `Duplicates` index, the second asks it for each record. The index is on disk.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable

import numpy as np

from affectgpt.annotate.checks import CheckFinding, shortened
from affectgpt.annotate.record import Annotation

N_HASHES, N_BANDS = 64, 16
"""MinHash with 16 bands of 4: texts that share 85 % of their shingles become candidates with probability 0.99999, those
that share 20 % with 0.03 (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4)."""

MAX_IN_BAND = 64
"""Candidates per band. Where hundreds of texts are similar, but below the threshold (a template with other numbers), a
band is full and a near-duplicate can be missed, but never an equal text; so the work is linear in the clips."""

REPEATED_FROM = 20
"""Number of clips from which a clue that they share is called repeated."""

_PRIME = (1 << 31) - 1
_POWERS = np.uint64(0x9E3779B97F4A7C15) ** np.arange(1, 6, dtype=np.uint64)  # an odd number: no power loses bits


def shingles(text: str) -> np.ndarray:
    """Hashes of all runs of five characters, ignoring case and white space: uint64 [n], sorted and unique."""
    plain = " ".join(text.lower().split()).ljust(5)
    letters = np.frombuffer(plain.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    values = np.lib.stride_tricks.sliding_window_view(letters, 5) @ _POWERS  # [n], modulo 2**64
    values ^= values >> np.uint64(33)  # mix high bits into low ones, as in the last steps of MurmurHash3
    values *= np.uint64(0xFF51AFD7ED558CCD)
    return np.unique(values ^ (values >> np.uint64(33)))


def shingle_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity of two sets of shingles."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


class Duplicates:
    """Groups of near-duplicate texts, in a temporary database on disk.

    A group is named after its first text; a text joins the group whose first text is the most similar candidate.
    """

    def __init__(self, threshold: float = 0.85, seed: int = 0) -> None:
        self.threshold = threshold
        rng = np.random.default_rng(seed)
        self._a = rng.integers(1, _PRIME, N_HASHES, dtype=np.uint64)[:, None]
        self._b = rng.integers(0, _PRIME, N_HASHES, dtype=np.uint64)[:, None]
        self._db = sqlite3.connect("", isolation_level=None)  # an empty name: temporary, on disk
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("CREATE TABLE bands (band BLOB, first INTEGER, PRIMARY KEY (band, first)) WITHOUT ROWID")
        self._db.execute("CREATE TABLE firsts (first INTEGER PRIMARY KEY, name TEXT, shingles BLOB, n INTEGER)")
        self._db.execute("CREATE TABLE texts (kind TEXT, name TEXT, first INTEGER, PRIMARY KEY (kind, name))")

    def add(self, kind: str, name: str, text: str) -> None:
        """Add one text; only texts of the same kind are compared."""
        own = shingles(text)
        bands = [kind.encode() + b"\0" + band for band in self._bands(own)]
        marks = ",".join("?" * len(bands))
        query = f"SELECT first FROM bands WHERE band IN ({marks}) GROUP BY first ORDER BY COUNT(*) DESC LIMIT 8"
        rows = self._db.execute(query, bands).fetchall()
        best, first = 0.0, None
        for (candidate,) in rows:
            (blob,) = self._db.execute("SELECT shingles FROM firsts WHERE first = ?", (candidate,)).fetchone()
            if (similarity := shingle_similarity(own, np.frombuffer(blob, dtype=np.uint64))) > best:
                best, first = similarity, candidate
        if first is None or best < self.threshold:
            cursor = self._db.execute("INSERT INTO firsts (name, shingles, n) VALUES (?, ?, 0)", (name, own.tobytes()))
            first = cursor.lastrowid
            insert = "INSERT OR IGNORE INTO bands SELECT ?1, ?2 WHERE (SELECT COUNT(*) FROM bands WHERE band = ?1) < ?3"
            self._db.executemany(insert, [(band, first, MAX_IN_BAND) for band in bands])
        self._db.execute("UPDATE firsts SET n = n + 1 WHERE first = ?", (first,))
        self._db.execute("INSERT OR REPLACE INTO texts VALUES (?, ?, ?)", (kind, name, first))

    def group(self, kind: str, name: str) -> tuple[str, int]:
        """The name of the first text in this text's group, and the size of the group."""
        query = "SELECT firsts.name, n FROM texts JOIN firsts USING (first) WHERE kind = ? AND texts.name = ?"
        first, n = self._db.execute(query, (kind, name)).fetchone()
        return first, n

    def knows(self, record: Annotation) -> bool:
        """Whether this record, with this number of clues, was added."""
        names = [("description", record.id)] if record.description.get(record.lang) else []
        names += [(clue.modality, f"{record.id} {number}") for number, clue in enumerate(record.clues)]
        query = "SELECT 1 FROM texts WHERE kind = ? AND name = ?"
        return all(self._db.execute(query, name).fetchone() for name in names)

    def close(self) -> None:
        self._db.close()

    def _bands(self, values: np.ndarray) -> list[bytes]:
        """The MinHash signature in bands, each with its number, and a hash of all shingles: equal texts always meet."""
        x = (values % np.uint64(_PRIME))[None, :]
        signature = ((self._a * x + self._b) % np.uint64(_PRIME)).min(axis=1)  # [H]; below 2**62: no overflow
        rows = np.split(signature.astype(np.uint32), N_BANDS)
        whole = hashlib.blake2b(values.tobytes(), digest_size=16).digest()
        return [whole, *(bytes([number]) + row.tobytes() for number, row in enumerate(rows))]


def add_texts(records: Iterable[Annotation], duplicates: Duplicates) -> None:
    """First pass: add every description and every clue."""
    for record in records:
        if text := record.description.get(record.lang):
            duplicates.add("description", record.id, text)
        for number, clue in enumerate(record.clues):
            duplicates.add(clue.modality, f"{record.id} {number}", clue.text)


def duplicate_findings(record: Annotation, duplicates: Duplicates) -> list[CheckFinding]:
    """Second pass: a description that resembles an earlier clip's, and clues that many clips share."""
    found = []
    if record.description.get(record.lang):
        first, n = duplicates.group("description", record.id)
        if first != record.id:
            found.append(CheckFinding("near_duplicate", f"description as that of {first!r} ({n} clips share it)"))
    for number, clue in enumerate(record.clues):
        _, n = duplicates.group(clue.modality, f"{record.id} {number}")
        if n >= REPEATED_FROM:
            found.append(CheckFinding("repeated_clue", f"{clue.modality} clue of {n} clips: {shortened(clue.text)!r}"))
    return found
