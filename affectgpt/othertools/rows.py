"""Samples as rows of conversations, which ms-swift and LLaMA-Factory train on.

A row has `messages` (role, content), `videos` and `audios`; each medium has its tag at the start of the question.
Questions and targets are those that a training stage of ours would use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from affectgpt.clauses import shown_clues
from affectgpt.data.pairs import PairMaker
from affectgpt.data.stream import Draw
from affectgpt.othertools.rewards import REWARD_COLUMN
from affectgpt.prompts import render, target_clauses
from affectgpt.runtime import InputError, json_line, parse_json, write_json_atomic, write_lines_atomic
from affectgpt.schema import Sample

_TAG = re.compile(r"<(image|video|audio)>")


def draw_of(sample: Sample, task: str, lang: str, candidates: Sequence[str], complete: bool) -> Draw:
    """The draw of a probed sample with all of its `modalities`; `complete` = the target keeps all clauses."""
    modalities = sample.modalities or ()
    subtitle = bool(sample.in_language(lang, strict=False).subtitle)
    clues = None if complete else shown_clues(modalities, subtitle=subtitle)
    return Draw(sample, task, lang, modalities, True, tuple(candidates) if task == "fixed" else (), clues)


def text_of(draw: Draw) -> str:
    """The question with the subtitle, without media."""
    sample = draw.sample.with_modalities(())
    return render(sample, task=draw.task, lang=draw.lang, candidates=draw.candidates)[0].content


def media_of(draw: Draw) -> dict[str, list[str]]:
    """Absolute paths of the files that are shown: `videos`, and `audios` if the clip has a sound file of its own."""
    sample, shown = draw.sample, {*draw.modalities}
    video = sample.video if shown & {"frames", "motion"} else None
    audio = sample.audio if "audio" in shown else None
    return {key: [str(Path(path).resolve())] if path else [] for key, path in (("videos", video), ("audios", audio))}


def question_of(draw: Draw) -> str:
    """The question after one tag for each file."""
    tags = "".join(f"<{column[:-1]}>" for column, paths in media_of(draw).items() for _ in paths)
    return tags + _without_tags(text_of(draw))


def _without_tags(text: str) -> str:
    """Text that looks like a tag, with a space: "< video>". Both tools count tags, and refuse more tags than files."""
    return _TAG.sub(r"< \1>", text)


def rows_of(draws: Sequence[Draw], maker: PairMaker | None) -> Iterator[tuple[Draw, dict[str, Any]]]:
    """The row of each draw; with a `maker`, rows of the draws that have a pair, with the worse answer as `rejected`."""
    for draw in draws:
        row: dict[str, Any] = {"id": draw.sample.id}
        answer = draw.target
        if maker is not None:
            pair = maker.pair(draw)
            if pair is None or pair.chosen == pair.rejected:
                continue
            answer, row["rejected"] = pair.chosen, _without_tags(pair.rejected)
        row["messages"] = [
            {"role": "user", "content": question_of(draw)},
            {"role": "assistant", "content": _without_tags(answer)},
        ]
        yield draw, row | media_of(draw)


def reward_facts(draw: Draw) -> str:
    """What an answer is scored against, as the text of one column: tables with nested columns cannot be joined."""
    described = draw.sample.clauses or draw.sample.in_language(draw.lang).description
    clauses = target_clauses(draw.sample, draw.lang, draw.clues) if described else ()
    subtitle = bool(draw.sample.in_language(draw.lang, strict=False).subtitle)
    return json_line(
        {
            "id": draw.sample.id,
            "task": draw.task,
            "lang": draw.lang,
            "truth": draw.labels,
            "reference": [{"text": each.text, "modality": each.modality, "needs": each.needs} for each in clauses],
            "shown": sorted(shown_clues(draw.modalities, subtitle=subtitle, hears_words=True)),
        }
    ).strip()


# ---- ms-swift --------------------------------------------------------------------------------------------------------

PLUGIN = '''"""Rewards of AffectGPT for ms-swift.

--external_plugins {here} --reward_funcs affectgpt_wheel affectgpt_format
"""

from affectgpt.othertools.rewards import register

register(penalty="none")
'''


def write_ms_swift(out: Path, name: str, rows: Sequence[tuple[Draw, dict[str, Any]]]) -> list[Path]:
    """`<name>.jsonl`, and `rewards.py` for its `--external_plugins`; returns the files."""
    table, plugin = out / f"{name}.jsonl", out / "rewards.py"
    lines = []
    for draw, row in rows:
        if (rejected := row.pop("rejected", None)) is not None:
            row["rejected_response"] = rejected
        lines.append(json_line(row | {REWARD_COLUMN: reward_facts(draw)}))
    write_lines_atomic(table, lines)
    plugin.write_text(PLUGIN.format(here=plugin.resolve()), encoding="utf-8")
    return [table, plugin]


# ---- LLaMA-Factory ---------------------------------------------------------------------------------------------------


def write_llamafactory(out: Path, name: str, rows: Sequence[tuple[Draw, dict[str, Any]]]) -> list[Path]:
    """`<name>.jsonl` and its entry in `dataset_info.json`, which keeps other entries; returns the files.

    Raises:
        InputError: `dataset_info.json` cannot be read; nothing is written.
    """
    table, index = out / f"{name}.jsonl", out / "dataset_info.json"
    known = _entries(index) if index.exists() else {}
    lines, is_ranking = [], False
    for _, row in rows:
        if (rejected := row.pop("rejected", None)) is not None:
            is_ranking = True
            row |= {"chosen": row["messages"].pop(), "rejected": {"role": "assistant", "content": rejected}}
        lines.append(json_line(row))
    write_lines_atomic(table, lines)
    columns = ["messages", *(["chosen", "rejected"] if is_ranking else [])]
    columns += [column for column in ("videos", "audios") if any(row[column] for _, row in rows)]
    entry = {
        "file_name": table.name,
        "formatting": "sharegpt",
        "columns": {column: column for column in columns},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
    write_json_atomic(index, {**known, name: entry | ({"ranking": True} if is_ranking else {})})
    return [table, index]


def _entries(index: Path) -> dict[str, Any]:
    try:
        found = parse_json(index.read_bytes())
    except InputError as error:
        raise InputError(f"{index}: {error}; repair or remove it") from None
    if not isinstance(found, dict):
        raise InputError(f"{index}: expected an object, found {type(found).__name__}; repair or remove it")
    return found
