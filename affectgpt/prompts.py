"""All prompts of the model, shared by training, inference, evaluation and demo.

`render` turns a sample into chat messages. The user message starts with one placeholder per modality
(`<audio><frames><motion>`), which the processor repeats once per soft token. The rest is plain text: a placeholder
inside a subtitle is text, never media.

Tasks:

- ``description``: an explanation in prose, with the visual, acoustic and lexical clues;
- ``labels``: open-vocabulary emotion words only, comma-separated;
- ``both``: the explanation, then a last line with the labels (the default);
- ``think``: the explanation in `<think>`, then the labels in `<answer>`, the form of AffectGPT-R1;
- ``fixed``: one label out of given candidates.

A sample with a `person` is asked about the speaker or the listener: a sentence before the question of the task says so,
in published formats, too, which are otherwise unchanged.

Weights that were published with other code were trained on its prompts. `PUBLISHED` has these formats: the order of
the parts, the tags around them, the sentences between them and the separators are part of what the weights were trained
on and are therefore literal. Where the published code has no words (task ``both``, Chinese, ``labels`` or ``fixed`` in
some formats), our own are used. In a published format the messages of `render` keep the subtitle apart; the processor
composes the text with `published_parts`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from affectgpt.clauses import fit, join, split, supported_labels
from affectgpt.runtime import InputError
from affectgpt.schema import CLUES, LANGUAGES, MODALITIES, PLACEHOLDERS, TASKS, Clause, Sample, hears_other

PROMPT_VERSION = "1"
"""To be raised with every change of a prompt below; stored in predictions and checkpoints."""


class Message(NamedTuple):
    """One chat turn: `role` is ``user`` or ``assistant``.

    Attributes:
        subtitle: in published formats, what the person says; None = not told. In other formats it is in `content`.
    """

    role: str
    content: str
    subtitle: str | None = None


_QUESTION = {
    "en": {
        "description": "Watch and listen, then explain what the person feels and which clues show it.",
        "labels": "Which emotions does the person feel? Answer with emotion words only, separated by commas.",
        "both": "Watch and listen, then explain what the person feels and which clues show it. "
        "End with a line that lists the emotions.",
        "think": "Watch and listen, then explain within <think> and </think> what the person feels and which clues "
        "show it. List the emotions within <answer> and </answer>.",
        "fixed": "Which one of these emotions fits the person best: {candidates}? Answer with that word only.",
    },
    "zh": {
        "description": "请观看并聆听，说明这个人的感受以及有哪些线索。",
        "labels": "这个人有哪些情绪？只回答情绪词，用逗号分隔。",
        "both": "请观看并聆听，说明这个人的感受以及有哪些线索。最后一行列出情绪词。",
        "think": "请观看并聆听，在 <think> 与 </think> 之间说明这个人的感受以及有哪些线索，"
        "在 <answer> 与 </answer> 之间列出情绪词。",
        "fixed": "下列情绪中哪一个最符合这个人：{candidates}？只回答这个词。",
    },
}
_SUBTITLE = {"en": 'The person says: "{subtitle}"', "zh": "这个人说：“{subtitle}”"}
_SUBTITLE_OF_OTHER = {"en": 'The other person says: "{subtitle}"', "zh": "对方说：“{subtitle}”"}
_ABOUT = {
    "en": {
        "speaker": "The question is about the person who speaks. ",
        "listener": "The question is about the person who listens; the voice and the words are those of the other "
        "person. ",
    },
    "zh": {
        "speaker": "问题针对说话的人。",
        "listener": "问题针对倾听的人；声音和话语来自对方。",
    },
}
LABEL_LINE = {"en": "Emotions: ", "zh": "情绪："}
"""The start of the last line of a ``both`` answer; parsed by `affectgpt.metrics.extract`."""
THOUGHT = "<think>{thought}</think>\n<answer>{words}</answer>"
"""The form of a ``think`` answer."""
LABEL_SEPARATOR = {"en": ", ", "zh": "，"}


@dataclass(frozen=True)
class PublishedFormat:
    """The prompts that published weights were trained on; all in English.

    Attributes:
        questions: task -> its questions; of several, one is chosen by the id of the sample.
        answers: task -> the answer with `{words}`; tasks that are not listed have the text alone.
        end: text that ends an answer, before the end-of-sequence token.
        fuses_all: whether the pre-fusion is shown only with all of its sources.
        masks_absent: whether the soft tokens of absent branches keep their positions, as if they were masked.
    """

    questions: Mapping[str, Sequence[str]]
    answers: Mapping[str, str] = field(default_factory=dict)
    end: str = ""
    fuses_all: bool = False
    masks_absent: bool = False


_ASK_ALL = "Now, please answer my question based on all the provided information."
PUBLISHED = {
    "affectgpt_v1": PublishedFormat(
        {"description": ("From what clues can we infer the person's emotional state?",)},
        end="###",
    ),
    "affectgpt_v2": PublishedFormat(
        {
            "description": ("Please infer the person's emotional state and provide your reasoning process.",),
            "labels": ("Please recognize all possible emotional states of the character.",),
            "fixed": (
                "Please select the label that can best describe the person's emotional state from the provided "
                "candidate labels: {candidates}.",
            ),
        },
        {"labels": "The character's emotional state is {words}.", "fixed": "The most likely label is {words}."},
        end="###",
        fuses_all=True,
    ),
    "emotion_llama": PublishedFormat(
        {
            "description": (
                "Please analyze all the clues in the video and reason out the emotional label of the person in the "
                "video.",
                "What is the emotional state of the person in the video? Please tell me the reason.",
                "What are the facial expressions and vocal tone used in the video? What is the intended meaning behind "
                "his words? Which emotion does this reflect?",
                "Please integrate information from various modalities to infer the emotional category of the person in "
                "the video.",
                "Could you describe the emotion-related features of the individual in the video? What emotional "
                "category do they fall into?",
            ),
            "fixed": ("Please determine which emotion label in the video represents: {candidates}.",),
        },
    ),
    "emotion_llama_v2": PublishedFormat(
        {
            # The published questions are 10 to 30 wordings each, drawn at random; tags and places are what is fixed.
            "description": (
                "What does the person in the video feel, and which cues in face, voice and words show it?",
            ),
            "labels": ("Please name all emotions that the person in the video shows.",),
            "fixed": ("Please determine which emotion label in the video represents: {candidates}.",),
            "think": (
                "First explain within <think> and </think>, then name the emotion within <answer> and </answer>.",
            ),
            "audio": ("What does the voice alone say about the emotion of the person, and which cues show it?",),
            "image": ("What does the picture alone say about the emotion of the person, and which cues show it?",),
        },
        masks_absent=True,
    ),
}
"""Name of a prompt format -> what is published about it."""
_TAGS = {"description": "[reason] ", "both": "[reason] ", "fixed": "[emotion] "}  # of emotion_llama
_TAGS_V2 = _TAGS | {
    "think": "[think] ",
    "labels": "[multi-label] ",
    "audio": "[audio] ",
    "image": "[image] ",
}  # of emotion_llama_v2
_BOTH = " End with a line that lists the emotions."
_CAPTION_WORDS = 200


class Slot(NamedTuple):
    """The place of soft tokens in a text: all of a branch, or only its class tokens or those of its patches."""

    name: str
    part: str = "all"


def published_parts(prompt_format: str, slots: Sequence[str], subtitle: str | None, question: str) -> list[str | Slot]:
    """The first user turn of a published format as texts and places of soft tokens, without the turn's own markers.

    Args:
        slots: the branches that are shown, "multi" among them if there is a pre-fusion.
        subtitle: None leaves its sentence out; an empty one is told as empty.
    """
    if prompt_format == "emotion_llama":
        parts: list[str | Slot] = []
        if "frames" in slots:
            parts += ["<video>", Slot("frames", "patches"), "</video> "]
        vectors = [Slot(name) for name in ("face", "face_motion", "audio", "motion", "multi") if name in slots]
        vectors += [Slot("frames", "class")] if "frames" in slots else []
        parts += ["<feature>", *vectors, "</feature> "] if vectors else []
        said = "" if subtitle is None else f"The person in video says: {subtitle}.  "
        return [*parts, f"{said}{question} "]
    if prompt_format == "emotion_llama_v2":
        media = [Slot(name) for name in ("multi", "frames", "motion", "audio", "face", "face_motion") if name in slots]
        said = "" if subtitle is None else f"The person in video says: {subtitle}.  "
        return ["<Vid>", *media, f"</Vid> {said}{question} "]
    if prompt_format == "affectgpt_v1":
        parts = []
        if "audio" in slots:
            told = "Close your eyes, open your ears and you imagine only based on the sound that <Audio>"
            parts += [told, Slot("audio"), "</Audio>. "]
        for name in ("multi", "frames", "motion", "face", "face_motion"):
            if name in slots:
                parts += ["Close your ears, open your eyes and you see that <Video>", Slot(name), "</Video>. "]
        said = "" if subtitle is None else f"The subtitle of this video is <Subtitle>{subtitle}</Subtitle>. "
        asked = "Now answer my question based on what you have seen, heard, and provided subtitle."
        return [*parts, f"{said}{asked} {question}"]
    parts = []
    if "multi" in slots:
        parts += ["The audio and video merged info is: <Multi>", Slot("multi"), "</Multi>. "]
    if "audio" in slots:
        parts += ["The audio content is as follows: <Audio>", Slot("audio"), "</Audio>. "]
    # The published order of both together is frames, faces; with a pre-fusion it is faces, frames.
    seen = [name for name in ("face", "face_motion", "frames", "motion") if name in slots]
    if "multi" not in slots:
        seen.sort(key=lambda name: name.startswith("face"))
    for place, name in enumerate(seen):
        opening = "Meanwhile, we" if parts else "We"
        if place and "multi" not in slots:
            opening = "Additionally, we"
        crops = " and extract faces from these frames" if name.startswith("face") else ""
        told = f"{opening} uniformly sample raw frames from the video{crops}: <Video>"
        parts += [told, Slot(name), "</Video>. "]
    said = "" if subtitle is None else f"The subtitle of this video is: <Subtitle>{subtitle}</Subtitle>. "
    return [*parts, f"{said}{_ASK_ALL} {question}"]


def _published_question(
    prompt_format: str,
    task: str,
    lang: str,
    candidates: Sequence[str],
    sample_id: str,
    shown: Sequence[str],
    person: str | None = None,
) -> str:
    known, kind = PUBLISHED[prompt_format].questions, task
    if task == "description" and len(shown) == 1:  # the perception tasks of Emotion-LLaMA v2 show one stream
        clue = {"audio": "audio", "frames": "image"}.get(shown[0], task)
        kind = clue if clue in known else task
    asked = known.get("description" if task == "both" else kind)
    if lang != "en" or asked is None:
        return whose(person, lang) + task_question(task, lang, candidates)
    task_question(task, lang, candidates)  # checks the candidates
    question = asked[zlib.crc32(sample_id.encode()) % len(asked)].format(candidates=", ".join(candidates))
    tags = {"emotion_llama": _TAGS, "emotion_llama_v2": _TAGS_V2}.get(prompt_format, {})
    return tags.get(kind, "") + whose(person, lang) + question + (_BOTH if task == "both" else "")


def _caption(text: str) -> str:
    """An answer as Emotion-LLaMA's code prepares it: in lower case, without some punctuation, at most 200 words."""
    text = re.sub(r"\s{2,}", " ", re.sub(r'([.!"()*#:;~])', " ", text.lower())).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:_CAPTION_WORDS])


def whose(person: str | None, lang: str = "en") -> str:
    """What precedes a question: whose emotion it asks about (`Sample.person`), with a space; "" if that is not told.

    >>> whose("speaker"), whose(None)
    ('The question is about the person who speaks. ', '')
    """
    return "" if person is None else _ABOUT[lang][person]


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


def target_text(
    sample: Sample, task: str, lang: str = "en", shown: Collection[str] | None = None, prompt_format: str = "chat"
) -> str:
    """The target text of `sample` for `task`.

    Args:
        shown: clue modalities that the model is shown ("visual", "acoustic", "lexical"). The description then keeps
            only the clauses that rest on them, and the labels are those that these clauses state, if they state any.
            None = the complete description and all labels, as in the published recipes.
        prompt_format: of the processor; the published ones have wordings of their own.

    Raises:
        InputError: the sample lacks what the task needs, or its description says nothing about what is shown.
    """
    text = _target_text(sample, task, lang, shown)
    if lang == "en" and task == "think" and prompt_format == "emotion_llama_v2":
        return _caption(text.replace("</think>\n", "</think>"))
    if lang != "en" or prompt_format not in PUBLISHED or task in ("both", "think"):
        return text
    if prompt_format.startswith("emotion_llama"):
        return _caption(text) if task in ("description", "fixed") else text
    return PUBLISHED[prompt_format].answers.get(task, "{words}").replace("{words}", text)


def candidate_texts(candidates: Sequence[str], lang: str = "en", prompt_format: str = "chat") -> list[str]:
    """The target text of task ``fixed`` for each candidate.

    >>> candidate_texts(["sad"], prompt_format="affectgpt_v2")
    ['The most likely label is sad.']
    """
    samples = [Sample(id=str(place), label=label, lang=lang) for place, label in enumerate(candidates)]
    return [target_text(sample, "fixed", lang, prompt_format=prompt_format) for sample in samples]


def _target_text(sample: Sample, task: str, lang: str, shown: Collection[str] | None) -> str:
    localized = sample.in_language(lang)
    if task in ("description", "both", "think") and not localized.description:
        raise InputError(f"sample {sample.id!r} has no description in {lang!r}, which task {task!r} needs")
    if task in ("labels", "both", "think") and not localized.labels:
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
    if task == "think":
        return THOUGHT.format(thought=description, words=words)
    return description if task == "description" else f"{description}\n{LABEL_LINE[lang]}{words}".lstrip("\n")


def target_labels(sample: Sample, lang: str = "en", shown: Collection[str] | None = None) -> tuple[str, ...]:
    """The labels of `target_text`; none for a sample without labels."""
    localized = sample.in_language(lang)
    labels = localized.labels or ()
    return labels if shown is None else supported_labels(_clauses_about(localized, lang, shown), labels)


def target_clauses(sample: Sample, lang: str = "en", shown: Collection[str] | None = None) -> tuple[Clause, ...]:
    """The clauses of the description of `target_text`."""
    return _clauses_about(sample.in_language(lang), lang, CLUES if shown is None else shown)


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
    prompt_format: str = "chat",
) -> list[Message]:
    """The chat messages of one sample: the user turn, and the assistant turn if `with_answer`.

    Args:
        sample: must be probed, so that `modalities` is set; `subtitle` may be None.
        task, lang, candidates: see the module docstring.
        modalities: media to use, None = all that the sample has; one that it lacks is an error.
        with_subtitle: False leaves the subtitle out (strategy S0 of the papers); True is S1.
        question: a question that replaces the task's own, on which the model was trained. Without it, a sample's own
            question does so for task `description`.
        prompt_format: of the processor that the messages are for (`processor.prompt_format`).

    >>> from affectgpt.schema import Sample
    >>> render(Sample(id="v1", subtitle="Fine.", modalities=("audio",)), task="description")[0].content
    '<audio>\\nThe person says: "Fine."\\nWatch and listen, then explain what the person feels and which clues show it.'
    """
    published = prompt_format in PUBLISHED
    has = sample.modalities or ()
    wanted = has if modalities is None else modalities
    if question is None and task == "description" and lang == sample.lang:
        question = sample.question
    if question is None and published:
        question = _published_question(prompt_format, task, lang, candidates, sample.id, wanted, sample.person)
    elif question is None:
        question = whose(sample.person, lang) + task_question(task, lang, candidates)
    if unknown := [name for name in wanted if name not in MODALITIES]:
        raise InputError(f"sample {sample.id!r}: unknown modalities {unknown}; expected some of {list(MODALITIES)}")
    if lacking := [name for name in wanted if name not in has]:
        raise InputError(f"sample {sample.id!r} has no {lacking}; it has {list(has)}")
    subtitle = sample.in_language(lang, strict=False).subtitle if with_subtitle else None
    said = "" if subtitle is None and with_subtitle and published else subtitle
    messages = [user_message(wanted, question, said, lang, prompt_format, sample.person)]
    if with_answer:
        messages.append(Message("assistant", target_text(sample, task, lang, prompt_format=prompt_format)))
    return messages


def user_message(
    modalities: Collection[str],
    question: str,
    subtitle: str | None = None,
    lang: str = "en",
    prompt_format: str = "chat",
    person: str | None = None,
) -> Message:
    """A user turn that shows `modalities` and asks `question`.

    Args:
        subtitle: what the person says. None leaves it out; an empty one is told only in published formats.
        person: whom the question is about; of a listener, the subtitle is what the other one says.

    >>> user_message(["frames"], "What now?").content
    '<frames>\\nWhat now?'
    """
    lines = []
    if slots := "".join(PLACEHOLDERS[name] for name in MODALITIES if name in modalities):
        lines.append(slots)
    elif split_placeholders(question)[0]:  # would be taken for media; the processor writes it so further on in a text
        question = f"< {question[1:]}"
    if prompt_format in PUBLISHED:
        return Message("user", "\n".join([*lines, question]), subtitle)
    if subtitle:
        says = _SUBTITLE_OF_OTHER if hears_other(person) else _SUBTITLE
        lines.append(says[lang].format(subtitle=" ".join(subtitle.split())))
    return Message("user", "\n".join([*lines, question]))


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
