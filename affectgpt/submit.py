"""Write the file that a challenge server accepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from affectgpt.config import SubmitConfig
from affectgpt.metrics import load_lexicon, read_predictions
from affectgpt.metrics.evaluate import labels_by_id
from affectgpt.metrics.io import write_predictions_npz
from affectgpt.runtime import InputError
from affectgpt.tables import read_names, write_csv


def build_submission(
    labels: Mapping[str, Sequence[str]], candidates: Sequence[str] | None = None, empty: str | None = None
) -> dict[str, tuple[str, ...]]:
    """The labels to submit, in the order of `candidates`, else sorted by name.

    Args:
        empty: the label of clips without one; None = they are an error.

    Raises:
        InputError: candidates without a prediction, or clips without a label.
    """
    names = list(candidates) if candidates is not None else sorted(labels)
    if missing := [name for name in names if name not in labels]:
        raise InputError(f"{len(missing)} of {len(names)} candidates have no prediction: {_some(missing)}")
    submitted = {name: tuple(labels[name]) or ((empty,) if empty else ()) for name in names}
    if unlabelled := [name for name, found in submitted.items() if not found]:
        raise InputError(
            f"{len(unlabelled)} of {len(names)} clips have no label: {_some(unlabelled)}; predict them again, or set "
            "their label with empty=neutral"
        )
    return submitted


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def write_submission(path: Path, labels: Mapping[str, Sequence[str]]) -> None:
    """Write .npz or .csv, by the suffix of `path`."""
    if path.suffix == ".npz":
        write_predictions_npz(path, labels)
    elif path.suffix == ".csv":
        write_csv(path, [("name", "openset"), *((name, f"[{', '.join(found)}]") for name, found in labels.items())])
    else:
        raise InputError(f"{path}: expected a .npz or .csv file to write, found {path.suffix!r}")


def submit(config: SubmitConfig) -> int:
    """Write the submission and print what it contains."""
    if len(config.files) != 2:
        raise InputError(f"expected a prediction file and a file to write, found {config.files}; --help shows how")
    source, target = config.files
    labels, _ = labels_by_id(read_predictions(source), load_lexicon("builtin"))
    candidates = read_names(Path(config.candidates)) if config.candidates else None
    submitted = build_submission(labels, candidates, config.empty)
    write_submission(Path(target), submitted)
    n_filled = sum(not labels[name] for name in submitted)
    filled = f"{n_filled} filled with {config.empty!r}, " if n_filled else ""
    n_labels, n_left = sum(map(len, submitted.values())), len(labels) - len(submitted)
    print(f"{target}: {len(submitted)} clips, {n_labels} labels, {filled}{n_left} predictions left out")
    return 0


if __name__ == "__main__":
    from affectgpt.cli import main

    main("submit")
