"""Benchmarks whose every clip has a question of its own: their published files as `Question` rows.

| benchmark | files | where the form is known from |
|---|---|---|
| MME-Emotion | <task>/question/*.json: video_id, label, label_set; audio_clue/*.json | its files |
| EmoBench-M | benchmark_json/*.json: id, video, conversations | its README |
| IntentBench | qa.json: problem, problem_type, options, solution, path | its evaluation code |
| EmotionHallucer | *.json: basic and hallucination, each with question, answer and a medium | VideoHallucer's files |

EmotionHallucer's own files are not public; its paper follows VideoHallucer, whose form is read here. The files of
MME-Emotion hold no questions, and the code of IntentBench adds a sentence on the form of the answer: both are worded
here anew, so a score differs from a published one also by the question. A row that cannot be used is a `BadSample`.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from affectgpt.runtime import InputError, parse_json
from affectgpt.schema import BadSample, check_id

_HELP = "see docs/question-benchmarks.md"


@dataclass(frozen=True)
class Question:
    """One question about one clip.

    Attributes:
        task: the task, scenario, file or type of question, by which scores are grouped.
        answer: the true answer as the file has it.
        medium: path of the video, picture or sound inside the folder; None = a question about text alone.
        choices: the labels or options to choose from, if the file lists them.
        extra: what else the score needs.
    """

    id: str
    task: str
    text: str
    answer: str
    medium: str | None = None
    choices: tuple[str, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)


Questions = Iterator[Question | BadSample]


def usable(rows: Iterable[Question | BadSample]) -> list[Question]:
    """All questions; a row that cannot be used, two of one id, or no question at all is an error.

    Raises:
        InputError: names the row.
    """
    found: dict[str, Question] = {}
    for row in rows:
        if isinstance(row, BadSample):
            raise InputError(f"{row.where}: {row.reason}; {_HELP}")
        if row.id in found:
            raise InputError(f"two questions have the id {row.id!r}; {_HELP}")
        found[row.id] = row
    if not found:
        raise InputError(f"the files hold no question; {_HELP}")
    return list(found.values())


def list_of(path: Path, files: list[Path] | None = None) -> list[Any]:
    """The JSON list in a file, which is added to `files`.

    Raises:
        InputError: no such file, no JSON, or no list; the message names the file.
    """
    try:
        value = parse_json(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except (InputError, OSError) as error:
        raise InputError(f"{path}: {error}; {_HELP}") from None
    if not isinstance(value, list):
        raise InputError(f"{path}: expected a list, found {type(value).__name__}; {_HELP}")
    if files is not None:
        files.append(path)
    return value


def json_files(folder: Path, what: str) -> list[Path]:
    """The .json files of a folder by name.

    Raises:
        InputError: there is none; the message says what was expected.
    """
    if found := sorted(folder.glob("*.json")):
        return found
    raise InputError(f"{folder}: no .json file; expected {what}; {_HELP}")


def _text(row: Any, *names: str) -> str:
    """The first of these cells that is a text with anything in it."""
    if not isinstance(row, Mapping):
        raise InputError(f"expected an object, found {type(row).__name__}")
    for name in names:
        if isinstance(value := row.get(name), str) and value.strip():
            return value
    raise InputError(f"no text in {' or '.join(names)}, found {sorted(map(str, row))}")


def _medium(row: Mapping[str, Any], *names: str) -> str | None:
    for name in names:
        if isinstance(value := row.get(name), str) and value.strip():
            return inside(value)
    return None


def inside(path: str) -> str:
    """`path` if it stays inside the folder that it is relative to.

    Raises:
        InputError: an absolute path, or one with "..".
    """
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise InputError(f"path {path!r} is outside the folder of the data set; expected a path relative to it")
    return path


def _id(*parts: str) -> str:
    return check_id("~".join(re.sub(r"[/\\]", "_", part.strip()) for part in parts))


def _numbered(rows: Questions) -> Questions:
    """Rows whose ids are made unique: the second of an id ends with ~2, since the row is the question."""
    n_of: Counter[str] = Counter()
    for row in rows:
        n_of[row.id] += 1
        yield row if n_of[row.id] == 1 else replace(row, id=f"{row.id}~{n_of[row.id]}")


# ---- MME-Emotion -----------------------------------------------------------------------------------------------------

MME_TASKS = ("ER-Lab", "ER-Wild", "Noise-ER", "FG-ER", "ML-ER", "SA", "FG-SA", "IR")
MME_MULTIPLE = ("FG-ER", "ML-ER")
"""Tasks with several true labels, separated by ; or , and rated by the share of them that was found."""
MME_NOUN = {"SA": "sentiment", "FG-SA": "sentiment", "IR": "intent"}


def mme_question(task: str, choices: Iterable[str]) -> str:
    """Our wording: the files of MME-Emotion have the choices, but no question.

    >>> mme_question("IR", ["agreeing", "wishing"]).splitlines()[1]
    'Choose the intent from: agreeing, wishing.'
    """
    noun = MME_NOUN.get(task, "emotion")
    asked, chosen = (f"{noun}s", f"every {noun} that fits") if task in MME_MULTIPLE else (noun, f"the {noun}")
    lines = [f"What {noun} does the main person in the video show? Go through what you see and hear step by step, "]
    lines[0] += f"then name the {asked}."
    if listed := ", ".join(choices):
        lines.append(f"Choose {chosen} from: {listed}.")
    return "\n".join(lines)


def mme_emotion(folder: Path, tasks: Iterable[str] = MME_TASKS, files: list[Path] | None = None) -> Questions:
    """The questions of the tasks that have a subfolder, with their audio clue, if it has one, in `extra`.

    Args:
        files: the files that were read are added, here and in the other readers.
    """
    return _numbered(_mme_emotion(folder, tasks, files))


def _mme_emotion(folder: Path, tasks: Iterable[str], files: list[Path] | None) -> Questions:
    present = [task for task in tasks if (folder / task / "question").is_dir()]
    if not present:
        raise InputError(f"{folder}: no <task>/question of MME-Emotion's {list(MME_TASKS)}; {_HELP}")
    for task in present:
        clues: dict[str, str] = {}
        for path in sorted((folder / task / "audio_clue").glob("*.json")):
            for row in list_of(path, files):
                if isinstance(row, Mapping) and isinstance(row.get("audio_clue"), str):
                    clues[str(row.get("video_id"))] = row["audio_clue"]
        for path in json_files(folder / task / "question", "video_id, label and label_set"):
            for number, row in enumerate(list_of(path, files)):
                try:
                    video = _text(row, "video_id")
                    choices = tuple(map(str, row.get("label_set") or ()))
                    clue = {"audio_clue": clues[video]} if video in clues else {}
                    # The published judge adds .mp4 for this task alone: its clips are named without a suffix.
                    medium = inside(f"{video}.mp4" if task == "ER-Lab" and not Path(video).suffix else video)
                    answer, asked = _text(row, "label", "ground_truth"), mme_question(task, choices)
                    yield Question(_id(task, video), task, asked, answer, medium, choices, clue)
                except InputError as error:
                    yield BadSample(f"{task}~{number}", f"{path}[{number}]", str(error))


# ---- EmotionHallucer -------------------------------------------------------------------------------------------------

BASIC, HALLUCINATED = "basic", "hallucination"


def emotion_hallucer(folder: Path, files: list[Path] | None = None) -> Questions:
    """Two questions a pair, `<file>~<number>~basic` and `~hallucination`, in the order of the files."""
    for path in json_files(folder, "pairs of a basic and a hallucinated question"):
        for number, pair in enumerate(list_of(path, files)):
            for side in (BASIC, HALLUCINATED):
                try:
                    row: Any = pair.get(side) if isinstance(pair, Mapping) else pair
                    asked = f"{_text(row, 'question').strip()}\nAnswer with yes or no only."
                    answer = _text(row, "answer").strip().lower()
                    if answer != (expected := "yes" if side == BASIC else "no"):
                        raise InputError(f"the answer of the {side} question is {answer!r}; expected {expected!r}")
                    medium = _medium(row, "video", "image", "audio")
                    extra = {"pair": f"{path.stem}~{number}", "side": side}
                    yield Question(_id(path.stem, str(number), side), path.stem, asked, answer, medium, (), extra)
                except InputError as error:
                    yield BadSample(f"{path.stem}~{number}~{side}", f"{path}[{number}]", str(error))


# ---- EmoBench-M ------------------------------------------------------------------------------------------------------

EMOBENCH = {
    "FER": {
        "SOER": "ravdss_song", "SPER": "ravdss_speech", "OSA": "mosi", "EIA": "ch-simsv2s", "SCEA": "fgmsa",
    },
    "CEU": {"FGDEA": "mer2023", "PEA": "mosei", "FCDEA": "sims", "CEIA": "mc-eiu", "MPDER": "meld"},
    "SCEA": {"HU": "funny", "SD": "mustard", "LR": "smile"},
}  # fmt: skip
"""Dimension -> scenario -> file. The dimensions and their scenarios are those of the paper's first figure. Which of the
four sentiment sets is OSA, EIA, PEA and FCDEA is our reading of the scenarios' names: no public file says it."""

JOINT, GENERATED = "mc-eiu", "smile"
"""The file of emotion and intent together, and the one whose answer is a text."""


def emobench_file(path: Path) -> str:
    """The name in `EMOBENCH` of a file such as MOSI.json or smile_test_data.json.

    Raises:
        InputError: another name.
    """
    name = path.stem.lower().removesuffix("_test_data").removesuffix("_test")
    known = [file for scenarios in EMOBENCH.values() for file in scenarios.values()]
    if name not in known:
        raise InputError(f"{path}: no file of EmoBench-M is called {path.stem!r}; expected some of {known}; {_HELP}")
    return name


def emobench_m(folder: Path, files: list[Path] | None = None) -> Questions:
    """The first question and answer of each conversation; the id is `<file>~<id>`."""
    return _numbered(_emobench_m(folder, files))


def _emobench_m(folder: Path, files: list[Path] | None) -> Questions:
    for path in json_files(folder / "benchmark_json", "the conversations of EmoBench-M"):
        name = emobench_file(path)
        media = next((item for item in (path.stem, f"{path.stem}_test") if (folder / "dataset" / item).is_dir()), None)
        for number, row in enumerate(list_of(path, files)):
            try:
                turns = row.get("conversations") if isinstance(row, Mapping) else None
                if not isinstance(turns, list):
                    raise InputError("no list of conversations")
                said = {str(turn.get("from")): turn for turn in reversed(turns) if isinstance(turn, Mapping)}
                asked = re.sub(r"<(?:video|image|audio)>", "", _text(said.get("human", {}), "value")).strip()
                answer, video = _text(said.get("gpt", {}), "value").strip(), _medium(row, "video", "image", "audio")
                medium = None if video is None else str(Path("dataset", media or path.stem, video))
                yield Question(_id(name, str(row.get("id", number))), name, asked, answer, medium)
            except InputError as error:
                yield BadSample(f"{name}~{number}", f"{path}[{number}]", str(error))


# ---- IntentBench -----------------------------------------------------------------------------------------------------

CHOICE, LETTERS, JUDGED = "multiple choice", "emer_ov_mc", "judge"
_FORM = {
    CHOICE: "the letter of the right option",
    LETTERS: "the letters of all options that fit, separated by commas without spaces",
    "numerical": "the number",
    "regression": "the number",
    JUDGED: "Yes or No",
}
_SPAN = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)


def answer_span(text: str) -> str:
    """What stands in the first <answer> ... </answer>; "" without one.

    >>> answer_span("<think>B?</think><answer> A </answer>"), answer_span("A")
    ('A', '')
    """
    match = _SPAN.search(text)
    return match.group(1).strip() if match else ""


def intent_bench(path: Path, files: list[Path] | None = None) -> Questions:
    """The questions of qa.json; the id is the number of the row, since a video has several questions."""
    for number, row in enumerate(list_of(path, files)):
        try:
            kind = _text(row, "problem_type")
            options = tuple(map(str, row.get("options") or ()))
            asked = _text(row, "problem").strip()
            if kind in (CHOICE, LETTERS):
                asked = "\n".join([f"{asked} Options:", *options])
            asked += f"\nThink first. Then write {_FORM.get(kind, 'the answer')} inside <answer></answer>."
            solution = _text(row, "solution", "answer")
            answer = answer_span(solution) or _text(row, "answer", "solution").strip()
            medium = _medium(row, "video", "path")
            yield Question(f"{number:05d}", kind, asked, answer, medium, options, {"solution": solution})
        except InputError as error:
            yield BadSample(f"{number:05d}", f"{path}[{number}]", str(error))
