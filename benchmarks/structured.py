"""Answers by a JSON schema next to free answers: python benchmarks/structured.py FOLDER [--clips 6] [--batch-sizes 1 4]

Asks a chat model (a folder or hub id) the text questions of an annotation pipeline (interpretation of the words, one
description, labels, ranking, valence) about clips that are described in words, once with JSON asked for in words
(annotator.structured=prompt) and once with decoding by the schema (json_schema). Both take turns, so that other work on
the machine affects them alike. Printed are the answers that are JSON, those that the pipeline accepts, seconds,
processor time (which other work affects least), new tokens, tokens per second, and the schema's own work per step.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import time
from dataclasses import dataclass, field, replace
from typing import Any

from step import cpu_name

from affectgpt.annotate import prompts
from affectgpt.chat import constrained
from affectgpt.chat.local import TransformersChat, load
from affectgpt.chat.request import Request

FACES = ("The lip corners rise", "The brows are drawn together", "The eyes look down", "The lips are pressed together")
VOICES = ("the voice is flat and quiet", "the voice is loud and fast", "the voice trembles")
WORDS = ("We had agreed on that.", "Nobody expected that.")
STEPS = ("disambiguate", "merge", "labels", "ranking", "valence")


def questions(n_clips: int) -> list[tuple[str, dict[str, Any]]]:
    """(name of a question, what is known of its clip)"""
    asked = []
    for face, voice, words in itertools.islice(itertools.product(FACES, VOICES, WORDS), n_clips):
        clues = [{"modality": "visual", "text": f"{face}."}, {"modality": "acoustic", "text": f"{voice.capitalize()}."}]
        about = {"clues": clues, "transcript": words, "description": {"en": f"{face}, and {voice}."}}
        asked += [(step, about) for step in STEPS]
    return asked


@dataclass
class Row:
    """One line of the table, summed over turns."""

    name: str
    batch_size: int
    n_json: int = 0
    n_usable: int = 0
    n_answers: int = 0
    n_tokens: int = 0
    n_steps: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    schema_s: float = 0.0
    refused: list[str] = field(default_factory=list)


def ask(chat: TransformersChat, asked: list[tuple[str, dict[str, Any]]], row: Row, max_new_tokens: int) -> None:
    """Ask the questions in batches, and add to `row`."""
    requests = []
    for step, about in asked:
        enforced = row.name == "json_schema"
        request = Request(prompts.render_question(step, "en", about, enforced=enforced))
        if enforced:
            request = replace(request, schema=prompts.answer_schema(step, about, within_limits=True))
        requests.append(request)
    started, cpu_started = time.perf_counter(), time.process_time()
    replies = []
    for start in range(0, len(requests), row.batch_size):
        batch = chat.answer(requests[start : start + row.batch_size], max_new_tokens)
        row.n_steps += max(reply.n_new_tokens for reply in batch)
        replies += batch
    row.seconds += time.perf_counter() - started
    row.cpu_s += time.process_time() - cpu_started
    for (step, about), reply in zip(asked, replies, strict=True):
        row.n_answers += 1
        row.n_tokens += reply.n_new_tokens
        with contextlib.suppress(json.JSONDecodeError):
            row.n_json += isinstance(json.loads(reply.text), dict)
        try:
            prompts.parse_answer(step, reply.text, about)
            row.n_usable += 1
        except prompts.BadAnswer as error:
            row.refused.append(f"{step}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or hub id of a chat model")
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--show", action="store_true", help="why answers were refused")
    options = parser.parse_args()
    chat = load(options.model, device=options.device, dtype=options.dtype)
    asked = questions(options.clips)
    rows = [Row(name, size) for size in options.batch_sizes for name in ("prompt", "json_schema")]
    spent = 0.0
    plain = constrained.SchemaLogits.__call__

    def timed(self: Any, *args: Any) -> Any:
        nonlocal spent
        started = time.perf_counter()
        scores = plain(self, *args)
        spent += time.perf_counter() - started
        return scores

    constrained.SchemaLogits.__call__ = timed  # type: ignore[method-assign]
    chat.answer([replace(Request("Why?"), schema={"type": "object"})], 2)  # the tokenizer's table is built once
    for _ in range(options.rounds):
        for row in rows:
            spent = 0.0
            ask(chat, asked, row, options.max_new_tokens)
            row.schema_s += spent
    where = cpu_name() if chat.model.device.type == "cpu" else str(chat.model.device)
    print(f"{chat.name}, {chat.model.dtype}, {where}; {len(asked)} questions, {options.rounds} rounds")
    print(
        f"{'structured':<12} {'batch':>5} {'JSON':>8} {'usable':>8} {'s':>7} {'CPU s':>7} "
        f"{'tokens':>7} {'tokens/s':>8} {'ms/step':>8}"
    )
    for row in rows:
        valid, usable = (f"{100 * n / row.n_answers:.0f} %" for n in (row.n_json, row.n_usable))
        per_s, ms = row.n_tokens / row.seconds, 1000 * row.schema_s / row.n_steps
        print(
            f"{row.name:<12} {row.batch_size:>5} {valid:>8} {usable:>8} {row.seconds:>7.1f} {row.cpu_s:>7.1f} "
            f"{row.n_tokens:>7} {per_s:>8.1f} {ms:>8.2f}"
        )
        if options.show:
            print("\n".join(f"  {reason[:150]}" for reason in row.refused))


if __name__ == "__main__":
    main()
