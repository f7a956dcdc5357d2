"""A review of two made-up clips in two rounds.

`data/label_studio_round1.json` and `round2.json` are verbatim exports of Label Studio 1.23.2, after its own import of
the tasks that `set_up_round` wrote (four users, eight projects).
"""

from __future__ import annotations

from pathlib import Path

from affectgpt.annotate.exporters import records_in
from affectgpt.annotate.record import Annotation, Clue
from affectgpt.cli import run as run_command
from tests.annotate.toy import record, write_records

EXPORTS = [Path(__file__).parent / "data" / f"label_studio_round{number}.json" for number in (1, 2)]
PEOPLE = {1: ("ann", "bob"), 2: ("cleo", "dan")}


def clue(modality: str, text: str, *span: float) -> Clue:
    return Clue(modality, text, *(span or (None, None)), source="toy")


RECORDS = [
    record(
        "clip1",
        clues=(
            clue("visual", "The eyes are wide open.", 0.5, 1.25),
            clue("visual", "The person waves at somebody."),
            clue("acoustic", "The voice breaks off twice."),
        ),
        labels=("confused", "puzzled"),
    ),
    record(
        "clip2",
        clues=(
            clue("visual", "The mouth corners go up."),
            clue("acoustic", "Quiet, even speech."),
            clue("lexical", "The words are a greeting."),
        ),
        labels=("happy",),
    ),
]


def run(*arguments: object) -> int:
    return run_command("annotate", [*map(str, arguments)])


def both_rounds(tmp_path) -> Path:
    source, fine = write_records(tmp_path / "coarse", RECORDS), tmp_path / "fine"
    for number in (1, 2):
        names = ",".join(PEOPLE[number])
        assert run("review", source, f"to={fine}", f"round={number}", f"annotators={names}") == 0
        assert run("import", EXPORTS[number - 1], f"to={fine}") == 0
    return fine


def review_records(folder: Path) -> list[Annotation]:
    return sorted(records_in(folder), key=lambda item: item.id)
