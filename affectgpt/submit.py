"""Write the file that a challenge server takes:

python -m affectgpt.submit predictions.jsonl submission.npz [candidates=track_all_candidates.csv] [empty=neutral]

The npz holds `filenames` and `fileitems` ("[happy, proud]"); a name ending in .csv gives `name,openset` instead. With
`candidates`, every name of that list must have exactly one prediction. Clips without a label stop the writing, unless
`empty=` says which label they get; nothing is filled in silently.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from affectgpt.metrics import load_lexicon, read_predictions
from affectgpt.metrics.evaluate import labels_by_id
from affectgpt.metrics.io import write_predictions_npz
from affectgpt.runtime import UserError, write_text_atomic
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


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = dict(item.split("=", 1) for item in arguments if "=" in item)
    files = [item for item in arguments if "=" not in item]
    if len(files) != 2 or set(options) - {"candidates", "empty"}:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    try:
        labels, _ = labels_by_id(read_predictions(files[0]), load_lexicon("builtin"))
        candidates = read_names(Path(options["candidates"])) if "candidates" in options else None
        chosen = submission(labels, candidates, options.get("empty"))
        write_submission(Path(files[1]), chosen)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    n_filled = sum(not labels[name] for name in chosen)
    n_left = len(labels) - len(chosen)
    n_labels = sum(map(len, chosen.values()))
    filled = f"{n_filled} filled with {options['empty']!r}, " if n_filled else ""
    print(f"{files[1]}: {len(chosen)} clips, {n_labels} labels, {filled}{n_left} predictions left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
