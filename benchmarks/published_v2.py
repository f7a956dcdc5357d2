"""Training steps of the published AffectGPT (2025) code and of this one, in turns:

PYTHONPATH=. python benchmarks/published_v2.py MERTOOLS PYTHON [--batch-size 3] [--rounds 3] [--threads 1]

MERTOOLS is a checkout of github.com/zeroQiaoba/MERTools, PYTHON an interpreter for it: see docs/fidelity.md. The models
are those of the published recipe (faces and sound, LoRA of rank 16 with dropout 0.05, fp32) with random base models of
the same shapes in both: an LLM as SmolLM2-135M (Qwen2 layers, 30 x 576, vocabulary 49k), CLIP ViT 12 x 384 on 8 crops
of 224 px, HuBERT 6 x 256 on 8 windows of 2 s. Both train on the same clips and texts: forward and backward pass and a
step of AdamW, with decoded media in memory. The published code encodes the media in every step; ours with and without
its cache of encoder states. Losses are compared first, with the weights of the published model in ours and without
dropout.

The two run in processes of their own, never at the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step import SIZES, both_clocks, cpu_name, write_figures
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, HubertConfig, HubertModel, Qwen2Config, Qwen2ForCausalLM

from affectgpt.cli import compose
from affectgpt.convert.conversion import convert
from affectgpt.inference.attribution import encoder_states
from affectgpt.media import audio_windows
from affectgpt.models import build, model_spec
from affectgpt.models.pretrained import start_from
from affectgpt.prompts import render
from affectgpt.schema import Sample
from tests.models import tiny

LLM = Qwen2Config(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
WORDS = ("her", "voice", "trembles", "while", "she", "looks", "down", "and", "he", "answers", "slowly", "with", "a")


def write_bases(folder: Path) -> dict[str, str]:
    torch.manual_seed(0)
    vision = SIZES["brief"].encoders["frames"]
    sizes = {name: getattr(vision, name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    vision_config = {**sizes, "intermediate_size": vision.intermediate_size, "image_size": 224, "patch_size": 14}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    text |= {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision_config, projection_dim=256)).save_pretrained(
        folder / "clip"
    )
    settings = {
        "image_processor_type": "CLIPImageProcessor", "feature_extractor_type": "CLIPFeatureExtractor",
        "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224},
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(settings))
    tiny.write_qwen2(folder / "llm")
    Qwen2ForCausalLM(LLM).save_pretrained(folder / "llm")
    path = folder / "llm" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    tiny.write_hubert(folder / "hubert")
    hubert = HubertConfig(**SIZES["brief"].encoders["audio"].to_dict())
    HubertModel(hubert).save_pretrained(folder / "hubert")
    return {name: str(folder / name) for name in ("llm", "clip", "hubert")}


def make_clips(tokenizer: Any, n: int) -> list[dict[str, str]]:
    """Texts of a subtitle and a description; with the prompt about 267 tokens."""
    rng, clips = random.Random(0), []
    for _ in range(n):
        clip = {"ovlabel": "sad, nervous"}
        for key, mean in (("subtitle", 30), ("description", 60)):
            words: list[str] = []
            while len(tokenizer(" ".join(words)).input_ids) < mean * rng.uniform(0.8, 1.2):
                words.append(rng.choice(WORDS))
            clip[key] = " ".join(words)
        clips.append(clip)
    return clips


class Published:
    """The published model in its own process."""

    def __init__(self, python: str, code: Path, folder: Path, n_threads: int) -> None:
        worker = Path(__file__).with_name("published_v2_worker.py")
        command = [python, str(worker), str(code), str(folder), str(n_threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder)
        self.answer = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the published code stopped with exit code {self._process.wait()}; see above")
        return json.loads(line)

    def __call__(self) -> tuple[float, float]:
        """Wall and processor seconds of a step."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        found = self._read()
        return found["wall"], found["processor"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mertools", type=Path)
    parser.add_argument("python")
    parser.add_argument("--batch-size", type=int, default=3, help="3 in the published recipe")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    code = options.mertools.resolve() / "MER2025" / "MER2025_Track23"
    if not (code / "my_affectgpt").is_dir():
        raise SystemExit(f"{code} has no my_affectgpt; give the folder of a checkout of github.com/zeroQiaoba/MERTools")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        compare(Path(name), code, options)


def compare(folder: Path, code: Path, options: argparse.Namespace) -> None:
    task: dict[str, Any] = write_bases(folder)
    task["clips"] = make_clips(AutoTokenizer.from_pretrained(task["llm"]), options.batch_size)
    rng = np.random.default_rng(0)
    sounds = (0.1 * rng.normal(size=(options.batch_size, 65_000))).astype(np.float32)
    faces = rng.integers(0, 256, (options.batch_size, 8, 224, 224, 3), dtype=np.uint8)
    ranges = audio_windows(sounds.shape[1], 16000, window_s=2.0, max_windows=8, mode="published")
    windows = np.stack([[sound[a:b] for a, b in ranges] for sound in sounds])
    blue_first = faces[..., ::-1].copy()  # as OpenCV reads them
    torch.save({"windows": torch.from_numpy(windows), "faces": torch.from_numpy(blue_first)}, folder / "inputs.pt")
    (folder / "task.json").write_text(json.dumps(task))

    arguments = ["model=affectgpt_v2", f"model.llm.path={task['llm']}", "model.llm.dtype=float32"]
    for encoder, base in (("audio", "hubert"), ("face", "clip"), ("frames", "clip")):
        arguments += [f"model.encoders.{encoder}.path={task[base]}", f"model.encoders.{encoder}.dtype=float32"]
    model, processor = build(model_spec(compose("train", arguments).model, seed=0))
    published = Published(options.python, code, folder, options.threads)
    convert([folder / "run.pth"], folder / "base")
    if missing := start_from(model, folder / "base")["random"]:
        raise SystemExit(f"the converted model lacks {missing}")

    online, cached = [], []
    for clip, sound, crops in zip(task["clips"], sounds, faces, strict=True):
        sample = Sample(
            id="a", subtitle=clip["subtitle"], description=clip["description"], labels=("sad", "nervous"),
            modalities=("audio", "face"),
        )  # fmt: skip
        messages = render(sample, task="description", prompt_format="affectgpt_v2", with_answer=True)
        media = {"audio": tiny.Sound(sound), "face": crops}
        online.append(processor.encode(messages, media))
        cached.append(processor.encode(messages, encoder_states(model, processor, media)))
    lengths = [len(row["input_ids"]) for row in online]
    if lengths != published.answer["lengths"]:
        raise SystemExit(f"samples have {lengths} tokens, published {published.answer['lengths']}")
    batches = {name: processor.collate(rows, packed=True) for name, rows in (("online", online), ("cached", cached))}
    model.eval()
    with torch.no_grad():
        losses = {name: float(model(**batch).loss) for name, batch in batches.items()}
    print(
        f"batch {options.batch_size} of {statistics.mean(lengths):.0f} tokens, {options.threads} threads; "
        f"{cpu_name()}, {os.cpu_count()} cores; torch {torch.__version__} and {published.answer['torch']}; "
        f"load average before {', '.join(f'{value:.1f}' for value in os.getloadavg())}"
    )
    ours = ", ".join(f"{name} {loss:.5f}" for name, loss in losses.items())
    print(f"losses: published {published.answer['loss']:.5f}, ours {ours}", flush=True)
    if any(abs(loss / published.answer["loss"] - 1) > 1e-3 for loss in losses.values()):
        raise SystemExit("losses differ")

    model.train()
    model.token_budget = 4096
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.0)

    def step(batch: dict[str, Tensor]) -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    turns: dict[str, Callable[[], tuple[float, float]]] = {"published code": published}
    for kind, batch in batches.items():
        turns[f"this code, {kind}"] = lambda batch=batch: both_clocks(lambda: step(batch))
    for name, turn in turns.items():  # the first step allocates
        wall, processor_s = turn()
        print(f"{name}, first step: wall {wall:.1f} s, processor {processor_s:.1f} s", flush=True)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for _ in range(options.rounds):
        for name, turn in turns.items():
            times[name].append(turn())
            print(f"{name}: wall {times[name][-1][0]:.1f} s, processor {times[name][-1][1]:.1f} s", flush=True)
    published.close()
    print(f"\n{'':<24}{'samples/s':>10}{'ratio':>8}{'processor s a sample':>22}{'ratio':>8}")
    figures, first = [], times["published code"]
    for name, each in times.items():
        wall, processor_s = (statistics.median(clock) / options.batch_size for clock in zip(*each, strict=True))
        ratios = [
            statistics.median(base[clock] / own[clock] for base, own in zip(first, each, strict=True))
            for clock in (0, 1)
        ]
        print(f"{name:<24}{1 / wall:>10.3f}{ratios[0]:>7.2f}x{processor_s:>22.2f}{ratios[1]:>7.2f}x")
        figures.append({"name": name, "samples_s": 1 / wall, "processor_s": processor_s})
    print(f"load average after {', '.join(f'{value:.1f}' for value in os.getloadavg())}")
    write_figures(options.json, {"rows": figures})


if __name__ == "__main__":
    main()
