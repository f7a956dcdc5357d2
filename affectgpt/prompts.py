"""All prompts of the model, shared by training, inference, evaluation and demo.

`render` turns a sample into chat messages. The user message starts with one placeholder per modality
(`<audio><frames><motion>`), which the processor repeats once per soft token. The rest is plain text: a placeholder
inside a subtitle is text, never media.

Tasks:

- ``description``: an explanation in prose, with the visual, acoustic and lexical clues;
- ``labels``: open-vocabulary emotion words only, comma-separated;
- ``both``: the explanation, then a last line with the labels (the default);
- ``fixed``: one label out of given candidates.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from affectgpt.clauses import fit, join, split, supported_labels
from affectgpt.runtime import InputError
from affectgpt.schema import LANGUAGES, MODALITIES, PLACEHOLDERS, TASKS, Clause, Sample

PROMPT_VERSION = "1"
"""To be raised with every change of a prompt below; stored in predictions and checkpoints."""


class Message(NamedTuple):
    """One chat turn: `role` is ``user`` or ``assistant``."""

    role: str
    content: str


_QUESTION = {
    "en": {
        "description": "Watch and listen, then explain what the person feels and which clues show it.",
        "labels": "Which emotions does the person feel? Answer with emotion words only, separated by commas.",
        "both": "Watch and listen, then explain what the person feels and which clues show it. "
        "End with a line that lists the emotions.",
        "fixed": "Which one of these emotions fits the person best: {candidates}? Answer with that word only.",
    },
    "zh": {
        "description": "请观看并聆听，说明这个人的感受以及有哪些线索。",
        "labels": "这个人有哪些情绪？只回答情绪词，用逗号分隔。",
        "both": "请观看并聆听，说明这个人的感受以及有哪些线索。最后一行列出情绪词。",
        "fixed": "下列情绪中哪一个最符合这个人：{candidates}？只回答这个词。",
    },
}
_SUBTITLE = {"en": 'The person says: "{subtitle}"', "zh": "这个人说：“{subtitle}”"}
LABEL_LINE = {"en": "Emotions: ", "zh": "情绪："}
"""The start of the last line of a ``both`` answer; parsed by `affectgpt.metrics.extract`."""
LABEL_SEPARATOR = {"en": ", ", "zh": "，"}


def task_question(task: str, lang: str = "en", candidates: Sequence[str] = ()) -> str:
    """The question of `task` in `lang`, without media and subtitle."""
    if lang not in LANGUAGES:
        raise InputError(f"unknown language {lang!r}; expected one of {list(LANGUAGES)}")
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}; expected one of {list(TASKS)}")
    if (task == "fixed") != bool(candidates):
        raise InputError(
            f"task {task!r} got {len(candidates)} candidates; only task 'fixed' takes candidates, and it needs them"
        )
    return _QUESTION[lang][task].format(candidates=LABEL_SEPARATOR[lang].join(candidates))


def target_text(sample: Sample, task: str, lang: str = "en", shown: Collection[str] | None = None) -> str:
    """The target text of `sample` for `task`.

    Args:
        shown: clue modalities that the model is shown ("visual", "acoustic", "lexical"). The description then keeps
            only the clauses that rest on them, and the labels are those that these clauses state, if they state any.
            None = the complete description and all labels, as in the published recipes.

    Raises:
        InputError: the sample lacks what the task needs, or its description says nothing about what is shown.
    """
    localized = sample.in_language(lang)
    if task in ("description", "both") and not localized.description:
        raise InputError(f"sample {sample.id!r} has no description in {lang!r}, which task {task!r} needs")
    if task in ("labels", "both") and not localized.labels:
        raise InputError(f"sample {sample.id!r} has no labels in {lang!r}, which task {task!r} needs")
    if task == "fixed":
        if not localized.label:
            raise InputError(f"sample {sample.id!r} has no `label`, which task 'fixed' needs")
        return localized.label
    description, labels = (localized.description or "").strip(), localized.labels or ()
    if shown is not None:
        clauses = _clauses_about(localized, lang, shown)
        description, labels = join(clauses, lang), supported_labels(clauses, labels)
        if task == "description" and not description:
            raise InputError(
                f"sample {sample.id!r}: its description says nothing about what is shown ({', '.join(sorted(shown))})"
            )
    words = LABEL_SEPARATOR[lang].join(labels)
    if task == "labels":
        return words
    return description if task == "description" else f"{description}\n{LABEL_LINE[lang]}{words}".lstrip("\n")


def says_something(sample: Sample, lang: str, shown: Collection[str]) -> bool:
    """Whether the description in `lang` has a clause that rests only on the `shown` clue modalities."""
    return bool(_clauses_about(sample.in_language(lang), lang, shown))


def _clauses_about(sample: Sample, lang: str, shown: Collection[str]) -> tuple[Clause, ...]:
    return fit(sample.clauses or split((sample.description or "").strip(), lang), shown)


def render(
    sample: Sample,
    *,
    task: str = "both",
    lang: str = "en",
    candidates: Sequence[str] = (),
    modalities: Sequence[str] | None = None,
    with_subtitle: bool = True,
    with_answer: bool = False,
    question: str | None = None,
) -> list[Message]:
    """The chat messages of one sample: the user turn, and the assistant turn if `with_answer`.

    Args:
        sample: must be probed, so that `modalities` is set; `subtitle` may be None.
        task, lang, candidates: see the module docstring.
        modalities: media to use, None = all that the sample has; one that it lacks is an error.
        with_subtitle: False leaves the subtitle out (strategy S0 of the papers); True is S1.
        question: a question that replaces the task's own, on which the model was trained.

    >>> from affectgpt.schema import Sample
    >>> render(Sample(id="v1", subtitle="Fine.", modalities=("audio",)), task="description")[0].content
    '<audio>\\nThe person says: "Fine."\\nWatch and listen, then explain what the person feels and which clues show it.'
    """
    question = task_question(task, lang, candidates) if question is None else question
    has = sample.modalities or ()
    wanted = has if modalities is None else modalities
    if unknown := [name for name in wanted if name not in MODALITIES]:
        raise InputError(f"sample {sample.id!r}: unknown modalities {unknown}; expected some of {list(MODALITIES)}")
    if lacking := [name for name in wanted if name not in has]:
        raise InputError(f"sample {sample.id!r} has no {lacking}; it has {list(has)}")
    lines = []
    if slots := "".join(PLACEHOLDERS[name] for name in MODALITIES if name in wanted):
        lines.append(slots)
    subtitle = sample.in_language(lang, strict=False).subtitle if with_subtitle else None
    if subtitle:
        lines.append(_SUBTITLE[lang].format(subtitle=" ".join(subtitle.split())))
    lines.append(question)
    messages = [Message("user", "\n".join(lines))]
    if with_answer:
        messages.append(Message("assistant", target_text(sample, task, lang)))
    return messages


def split_placeholders(content: str) -> tuple[tuple[str, ...], str]:
    """Split a user message into the modalities of its leading placeholders and the plain text after them.

    >>> split_placeholders('<audio><motion>\\nWho says <frames>?')
    (('audio', 'motion'), '\\nWho says <frames>?')
    """
    found = []
    for name in MODALITIES:
        if content.startswith(PLACEHOLDERS[name]):
            found.append(name)
            content = content[len(PLACEHOLDERS[name]) :]
    return tuple(found), content
