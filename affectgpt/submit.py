"""Submissions: the file that a challenge server accepts."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from affectgpt.config import SubmitConfig
from affectgpt.metrics import load_lexicon, read_predictions
from affectgpt.metrics.evaluate import labels_by_id
from affectgpt.metrics.io import write_predictions_npz
from affectgpt.runtime import InputError, UserError, write_text_atomic
from affectgpt.tables import read_names


def submission(
    labels: Mapping[str, Sequence[str]], candidates: Sequence[str] | None = None, empty: str | None = None
) -> dict[str, tuple[str, ...]]:
    """The labels to hand in, in the order of `candidates` (else sorted by name).

    Raises:
        UserError: candidates without a prediction, or clips without a label without `empty`; some are named.
    """
    names = list(candidates) if candidates is not None else sorted(labels)
    if missing := [name for name in names if name not in labels]:
        raise UserError(f"{len(missing)} of {len(names)} candidates have no prediction: {_some(missing)}")
    chosen = {name: tuple(labels[name]) or ((empty,) if empty else ()) for name in names}
    if blank := [name for name, found in chosen.items() if not found]:
        raise UserError(
            f"{len(blank)} of {len(names)} clips have no label: {_some(blank)}; predict them again, or choose their "
            "label with empty=neutral"
        )
    return chosen


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def write_submission(path: Path, labels: Mapping[str, Sequence[str]]) -> None:
    """Write .npz or .csv, by the ending of `path`."""
    if path.suffix == ".npz":
        write_predictions_npz(path, labels)
    elif path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["name", "openset"])
        writer.writerows([name, f"[{', '.join(found)}]"] for name, found in labels.items())
        write_text_atomic(path, text.getvalue())
    else:
        raise UserError(f"{path}: a submission ends in .npz or .csv, found {path.suffix!r}")


def run(config: SubmitConfig) -> int:
    """Write the file that `config` asks for, and print what is in it."""
    if len(config.files) != 2:
        raise InputError(f"expected a prediction file and a file to write, found {config.files}; --help shows how")
    source, target = config.files
    labels, _ = labels_by_id(read_predictions(source), load_lexicon("builtin"))
    candidates = read_names(Path(config.candidates)) if config.candidates else None
    chosen = submission(labels, candidates, config.empty)
    write_submission(Path(target), chosen)
    n_filled = sum(not labels[name] for name in chosen)
    filled = f"{n_filled} filled with {config.empty!r}, " if n_filled else ""
    n_labels, n_left = sum(map(len, chosen.values())), len(labels) - len(chosen)
    print(f"{target}: {len(chosen)} clips, {n_labels} labels, {filled}{n_left} predictions left out")
    return 0


if __name__ == "__main__":
    from affectgpt.cli import main

    main("submit")
