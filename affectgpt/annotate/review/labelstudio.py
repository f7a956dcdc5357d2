"""Label Studio's formats: labeling configurations of the two screens, tasks with predictions, and exports.

Screen `clues`: the clip with a time slider, the transcript, and the machine's clues, one text field each, to correct,
remove or add to. Screen `labels`: the clip, candidate labels to tick (none is preselected), and a field for other
emotions. The JSON is written directly, in the task format of Label Studio 1.x: its SDK would force another numpy.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from affectgpt.annotate.record import CLUE_MODALITIES, Annotation, Clue, said_of
from affectgpt.runtime import InputError, parse_json

SCREENS = ("clues", "labels")
MEDIA = ("video", "audio")
_VIDEO_HEIGHT_PX = 320


class ReviewError(InputError):
    """An unusable file of a review; the message names file and task, what was found and what was expected."""


WORDS = {
    "en": {
        "clues": "Watch the whole clip; drag the slider to look at a moment again. Correct the clues, remove what is "
        "not there, add what is missing. Describe what can be seen and heard, not who the person is.",
        "labels": "Tick every word that fits what the person feels. Add words if those given do not say it all.",
        "says": "What the person says",
        "visual": "Seen",
        "acoustic": "Heard",
        "lexical": "What the words mean",
        "candidates": "Candidate emotions",
        "other": "Other emotions",
        "add": "add one, then Enter",
        "add long": "add one, then Shift + Enter",
    },
    "zh": {
        "clues": "请完整观看视频，可拖动滑块反复查看任一时刻。请修改线索、删除不存在的内容、补充遗漏的内容。"
        "只写看到和听到的，不写人物身份。",
        "labels": "请勾选所有符合此人感受的词。若所给词语不足以表达，请自行补充。",
        "says": "此人所说的话",
        "visual": "看到的内容",
        "acoustic": "听到的内容",
        "lexical": "话语的含义",
        "candidates": "候选情绪",
        "other": "其他情绪",
        "add": "输入一条，按回车",
        "add long": "输入一条，按 Shift + 回车",
    },
}


def screen_config(screen: str, medium: str, lang: str) -> str:
    """The labeling configuration (XML) of a screen for clips of a medium ("video" or "audio")."""
    words = WORDS[lang]
    player = (
        f'<Video name="clip" value="$clip" height="{_VIDEO_HEIGHT_PX}"/>'
        if medium == "video"
        else '<Audio name="clip" value="$clip"/>'
    )
    if screen == "clues":
        fields = []
        for modality in CLUE_MODALITIES:
            fields += [
                f"<Header value={quoteattr(words[modality])} size='5'/>",
                _field(modality, words["add long"], rows=3),
            ]
    else:
        fields = [
            f"<Header value={quoteattr(words['candidates'])} size='5'/>",
            '<Choices name="emotions" toName="clip" choice="multiple" showInline="true" value="$candidates"/>',
            f"<Header value={quoteattr(words['other'])} size='5'/>",
            _field("other", words["add"], rows=1),
        ]
    lines = [
        "<View>",
        f"  <Header value={quoteattr(words[screen])} size='5'/>",
        # Two columns, and the clip stays in view while the fields are scrolled: Label Studio gives a video 600 px of
        # height, which would leave the fields below the edge of most screens. Its player needs 540 px of width.
        '  <View style="display: flex; flex-wrap: wrap; gap: 24px">',
        # It sticks only within its column, so that where two columns do not fit, it never covers the fields below it.
        '    <View style="flex: 0 0 540px">',
        '      <View style="position: sticky; top: 0">',
        f"        {player}",
        f"        <Header value={quoteattr(words['says'])} size='5'/>",
        '        <Text name="said" value="$said"/>',
        "      </View>",
        "    </View>",
        '    <View style="flex: 1 1 320px; min-width: 0">',
        *(f"      {field}" for field in fields),
        "    </View>",
        "  </View>",
        "</View>",
        "",
    ]
    return "\n".join(lines)


def _field(name: str, hint: str, rows: int) -> str:
    return (
        f'<TextArea name="{name}" toName="clip" editable="true" rows="{rows}" showSubmitButton="true" '
        f"placeholder={quoteattr(hint)}/>"
    )


# ---- tasks -----------------------------------------------------------------------------------------------------------

_SPAN = re.compile(r"^\[(\d+(?:\.\d+)?) ?[-–] ?(\d+(?:\.\d+)?) ?s\]\s*")


def clue_to_text(clue: Clue) -> str:
    """A clue as the text of a field, preceded by its time.

    >>> clue_to_text(Clue("visual", "He looks up.", 0.5, 1.25, "m"))
    '[0.5-1.25 s] He looks up.'
    """
    if clue.start_s is None or clue.end_s is None:
        return clue.text
    return f"[{clue.start_s:g}-{clue.end_s:g} s] {clue.text}"


def clue_from_text(modality: str, text: str, source: str) -> Clue:
    """The clue of a text field; an interval that ends before it starts is part of the text."""
    match = _SPAN.match(text.strip())
    if match and float(match[1]) <= float(match[2]) and text.strip()[match.end() :]:
        return Clue(modality, text.strip()[match.end() :], float(match[1]), float(match[2]), source)
    return Clue(modality, text.strip(), source=source)


def medium_of(record: Annotation) -> str | None:
    """The medium in which a clip is played; None = it has neither video nor audio."""
    return next((name for name in MEDIA if record.media.get(name)), None)


def local_url(path: str | Path, root: Path) -> str:
    """The URL at which Label Studio serves a local file below its document root.

    Raises:
        ReviewError: the file is elsewhere.
    """
    try:
        relative = Path(path).resolve().relative_to(root.resolve())
    except ValueError:
        raise ReviewError(f"{path}: is outside media_root={root}; give a folder that contains all clips") from None
    return f"/data/local-files/?d={quote(relative.as_posix())}"


def make_task(
    screen: str, record: Annotation, url: str, clues: Sequence[Clue], labels: Sequence[str], **about: Any
) -> dict[str, Any]:
    """One task: the clip, the machine's clues or labels, and in `data.about` the clip's id, round and annotator."""
    data: dict[str, Any] = {"clip": url, "said": said_of(record) or "—"}
    given = {name: [clue_to_text(clue) for clue in clues if clue.modality == name] for name in CLUE_MODALITIES}
    if screen == "clues":
        # The task keeps the given texts, so that an export alone shows who changed what.
        data["given"] = given
    else:
        data["candidates"] = [{"value": label} for label in labels]
    data["about"] = {"id": record.id, "screen": screen, "lang": record.lang, **about}
    result = [_result(name, "textarea", {"text": texts}) for name, texts in given.items() if texts]
    task: dict[str, Any] = {"data": data}
    if screen == "clues" and result:
        # One version for all tasks: Label Studio prefills only the predictions of one version in a project.
        task["predictions"] = [{"model_version": "affectgpt", "result": result}]
    return task


def _result(name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"{name}-1", "from_name": name, "to_name": "clip", "type": kind, "value": value}


# ---- exports ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReviewAnswer:
    """One person's answer to one task.

    Attributes:
        about: id, screen, and the further fields that `make_task` was given, such as round and annotator.
        person: number of the person in Label Studio, as text; "" for a user who has been deleted there.
        clues: texts by modality (screen `clues`); given: the machine's.
        labels: ticked candidates and other emotions (screen `labels`); other: the latter alone.
        seconds: time spent on it, or None.
        at: time of the last change, ISO 8601.
    """

    about: Mapping[str, Any]
    person: str
    clues: Mapping[str, tuple[str, ...]]
    given: Mapping[str, tuple[str, ...]]
    labels: tuple[str, ...]
    other: tuple[str, ...]
    seconds: float | None
    at: str


def read_export(path: Path) -> Iterator[ReviewAnswer | str]:
    """The answers in Label Studio's export ("JSON", not "JSON-MIN"), and as text what is not an answer.

    That is a task without an answer, a relation that an annotator drew, and a note that a user has been deleted.

    Raises:
        ReviewError: another format, or tasks that this program did not write.
    """
    try:
        tasks = parse_json(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except OSError as error:
        raise ReviewError(f"{path}: cannot be read ({error.strerror}); give exports of Label Studio") from error
    except InputError as error:  # not UTF-8, or not JSON
        raise ReviewError(f"{path}: {error}; export the project as JSON") from None
    if not isinstance(tasks, list):
        raise ReviewError(f"{path}: expected a list of tasks, found {type(tasks).__name__}; export the project as JSON")
    for number, item in enumerate(tasks):
        where = f"{path}[{number}]"
        if not isinstance(item, dict) or not isinstance(item.get("annotations"), list):
            keys = sorted(item)[:8] if isinstance(item, dict) else type(item).__name__
            raise ReviewError(f"{where}: a task without annotations, found {keys}; export as JSON, not as JSON-MIN")
        data = item.get("data") or {}
        about = data.get("about")
        if not isinstance(about, dict) or about.get("screen") not in SCREENS or "id" not in about:
            raise ReviewError(f"{where}: the task has no data.about; was it made by `annotate review`?")
        if not item["annotations"]:
            yield "not answered"
        for annotation in item["annotations"]:
            if annotation.get("was_cancelled"):
                yield "skipped by the annotator"
                continue
            answer = _answer(annotation, data, where)
            n_relations = sum(result.get("type") == "relation" for result in annotation.get("result") or [])
            yield from ["relations drawn between fields (left out)"] * n_relations
            if not answer.person:
                yield "answers of users who have been deleted in Label Studio"
            yield answer


def _answer(annotation: Mapping[str, Any], data: Mapping[str, Any], where: str) -> ReviewAnswer:
    fields: dict[str, list[str]] = {}
    for result in annotation.get("result") or []:
        if result.get("type") == "relation":
            continue
        name, value = result.get("from_name"), result.get("value") or {}
        found = value.get("text", value.get("choices"))
        found = [found] if isinstance(found, str) else found
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise ReviewError(f"{where}: result {name!r}: expected texts or choices, found {sorted(value)}")
        fields.setdefault(str(name), []).extend(text.strip() for text in found if text.strip())
    if unknown := sorted(set(fields) - {*CLUE_MODALITIES, "emotions", "other"}):
        raise ReviewError(f"{where}: results {unknown} belong to no screen; was the labeling configuration changed?")
    other = other_labels(fields.get("other", []))
    given = data.get("given") or {}
    seconds = annotation.get("lead_time")
    return ReviewAnswer(
        about=data["about"],
        person=_person(annotation.get("completed_by"), where),
        clues={name: tuple(fields.get(name, ())) for name in CLUE_MODALITIES},
        given={name: tuple(given.get(name, ())) for name in CLUE_MODALITIES},
        labels=tuple(dict.fromkeys([*fields.get("emotions", []), *other])),
        other=other,
        seconds=float(seconds) if isinstance(seconds, (int, float)) else None,
        at=str(annotation.get("updated_at") or annotation.get("created_at") or ""),
    )


def other_labels(texts: Iterable[str]) -> tuple[str, ...]:
    """The labels in the texts of the field for other emotions, which may hold several each."""
    parts = (part.strip() for text in texts for part in re.split(r"[,;，、；\n]", text))
    return tuple(dict.fromkeys(filter(None, parts)))


def _person(completed_by: Any, where: str) -> str:
    """The person's number, "" if the user was deleted; names and e-mail addresses of annotators are not stored."""
    if completed_by is None:
        return ""
    number = completed_by.get("id") if isinstance(completed_by, dict) else completed_by
    if not isinstance(number, int) or isinstance(number, bool):
        raise ReviewError(f"{where}: completed_by {completed_by!r}: expected the number of a person")
    return str(number)
