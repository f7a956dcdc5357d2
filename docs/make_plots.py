"""Draw the pictures of docs/plots.md: python docs/make_plots.py runs (the folder that `make demo` filled).

The figures are those of the demo run. Pictures are reduced to 64 colours; the commands also write SVG and PDF.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also without installation

from affectgpt.cli import run
from affectgpt.inference import counterfactual
from affectgpt.metrics import read_references
from affectgpt.plots import Panel, draw_bars, draw_curves
from affectgpt.runs import RunRecord
from affectgpt.runs.watch import curves
from affectgpt.runtime import parse_json

HERE = Path(__file__).resolve().parent / "plots"


def main(runs: Path) -> None:
    test = runs / "fine" / "eval-coarse-then-fine"
    record = RunRecord.read(test)
    assert record is not None, f"{test}: run `make demo` first"
    references = next(path for path in record.values["inputs"] if not path.endswith("predictions.jsonl"))
    predictions = test / "predictions.jsonl"
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        settings = [f"references={references}", "split=test", f"out={out}"]
        analyze(["wheel", str(predictions), *settings])
        analyze(["sectors", str(predictions), *settings])
        analyze(["labels", *settings])
        systems = {"sound": "sound-alone", "video": "pictures-alone", "subtitle": "subtitle-alone"}
        files = [f"{key}={runs / 'fine' / f'eval-{folder}' / 'predictions.jsonl'}" for key, folder in systems.items()]
        analyze(["modalities", *files, f"all={predictions}", *settings])
        found = next(runs.glob("fine/faith*/faithfulness.json"))
        counterfactual.draw(out / "faithfulness", parse_json(found.read_text(encoding="utf-8")))
        draw_training(out / "curves", runs)
        draw_chinese(out / "chinese", Path(references))
        HERE.mkdir(exist_ok=True)
        for path in sorted(out.glob("*.png")):
            Image.open(path).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(HERE / path.name, optimize=True)


def analyze(arguments: list[str]) -> None:
    assert run("analyze", arguments) == 0, arguments


def draw_training(path: Path, runs: Path) -> None:
    names = [name for name in ("coarse", "fine-only", "fine") if (runs / name).is_dir()]
    found = {name: curves(runs / name) for name in names}
    loss = {name: (item["loss"].steps, item["loss"].values) for name, item in found.items()}
    score = {
        name: (item["eval_f_s"].steps, [100 * value for value in item["eval_f_s"].values])
        for name, item in found.items()
    }
    panels = [Panel("Training loss", "step", "loss", loss), Panel("Validation", "step", "F_S, %", score)]
    draw_curves(path, panels, n_columns=2)


def draw_chinese(path: Path, references: Path) -> None:
    labels = Counter(word for words in read_references(references, split="test", lang="zh").values() for word in words)
    top = dict(labels.most_common(12))
    draw_bars(path, list(top), {"": list(top.values())}, title="最常见的 12 个标签", unit="次数", horizontal=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
