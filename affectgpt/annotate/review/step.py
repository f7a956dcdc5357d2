"""The pipeline step that takes reviewed clues in place of a model's."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from affectgpt.annotate.record import Annotation, read_records
from affectgpt.annotate.steps import Dropped, StepOutput, Work
from affectgpt.config import StepConfig
from affectgpt.runtime import UserError


def checked_clues(work: Work, spec: StepConfig, about: StepOutput) -> StepOutput:
    """The clues of a finished review. options: records = its records.jsonl."""
    path = Path(str(spec.options.get("records") or ""))
    if not path.is_file():
        raise UserError(f"step {spec.name!r}: {path}: no such file; give checked=<review>/records.jsonl")
    record = _records_by_id(path, path.stat().st_mtime_ns).get(work.clip.sample.id)
    if record is None:
        raise Dropped("not among the checked records")
    work.note_local(spec.name, "human", "review-1", 0.0, key=record.key)
    # Not human_labels_*: this pipeline's labels are the annotator's, which nobody has reviewed.
    human = [dict(row) for row in record.checks if row["check"].startswith("human_clues_")]
    return {"clues": list(record.clues), "checks": human}


@lru_cache(maxsize=2)
def _records_by_id(path: Path, changed_ns: int) -> dict[str, Annotation]:
    return {record.id: record for record in read_records(path)}
