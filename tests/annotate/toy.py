"""Invented records for tests."""

from __future__ import annotations

import json
from pathlib import Path

from affectgpt.annotate.record import Annotation, Clue, Fact, Provenance, record_to_row

SEEN = Clue("visual", "The eyes are wide open.", 0.5, 1.25, "toy")
HEARD = Clue("acoustic", "The voice breaks off twice.", source="toy")
DROPPED = ({"check": "refusal", "verdict": "drop", "reason": "As an AI"},)
MEASURED = Provenance("measure", "measured")
VOICE = Fact("voice_s", "acoustic", 1.5, "s")


def record(name: str = "clip1", **changes) -> Annotation:
    """A record without findings."""
    usual = {
        "media_sha256": "0" * 64,
        "key": f"key of {name}",
        "media": {"video": f"/clips/{name}.mp4"},
        "transcript": "I did not know that.",
        "clues": (SEEN, HEARD),
        "labels": ("confused", "puzzled"),
        "description": {"en": "The wide eyes and the breaking voice show that the news is a surprise."},
        "evidence": (VOICE,),
        "provenance": (MEASURED,),
    }
    return Annotation(id=name, **{**usual, **changes})


def au(*units: int) -> tuple[Fact, ...]:
    return tuple(Fact(f"AU{unit:02d}", "visual", 2.0, "of 5") for unit in units)


def write_records(folder: Path, records) -> Path:
    """A folder as a run writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record_to_row(item), ensure_ascii=False) + "\n" for item in records]
    (folder / "records.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
