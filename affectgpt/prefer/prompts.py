"""The questions of the four strategies, in English and Chinese. Their wording affects scores, so they have a version.

They are this project's own, so scores differ from those of the papers' prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

from affectgpt.zeroshot.prompts import introduction

VERSION = "prefer-1"
"""Changes with every change of the wording below, and with that of `zeroshot.prompts`; recorded with every answer."""

_WORDS = {
    "en": {
        "pair": "a1: {a1}\n\na2: {a2}",
        "clip": "Here are two descriptions of what a person in the clip feels.",
        "which": "Which one fits the clip better?",
        "seen": "Someone who has watched a video clip describes what a person in it feels. You cannot see the clip.",
        "own": "Description: {description}",
        "others": "Here are two other descriptions of the same clip.",
        "agrees": "Which of the two agrees better with the first description, in the emotions and in their grounds?",
        "reason": "Compare the emotions and the grounds of each with those of the first description, step by step. "
        "Do not answer yet which one is better.",
        "answer": "Answer with one word only: a1, a2, or same if both are equally good.",
        "so": "So which one agrees better?",
    },
    "zh": {
        "pair": "a1：{a1}\n\na2：{a2}",
        "clip": "下面是对视频中人物感受的两段描述。",
        "which": "哪一段更符合这段视频？",
        "seen": "有人看过一段视频，并描述了其中人物的感受。你看不到视频。",
        "own": "描述：{description}",
        "others": "下面是对同一段视频的另外两段描述。",
        "agrees": "在情绪及其依据上，这两段中哪一段与前面的描述更一致？",
        "reason": "请逐步将每一段的情绪和依据与前面的描述进行比较，先不要回答哪一段更好。",
        "answer": "只回答一个词：a1、a2，或者 same（两段同样好）。",
        "so": "那么哪一段更一致？",
    },
}


def about_clip(a1: str, a2: str, lang: str = "en") -> str:
    """S1: the question about a clip that the model sees, without what introduces the clip.

    >>> print(about_clip("She is glad.", "She is sad.").splitlines()[-1])
    Which one fits the clip better? Answer with one word only: a1, a2, or same if both are equally good.
    """
    words = _WORDS[lang]
    return "\n\n".join([words["clip"], _pair(a1, a2, lang), _join(words["which"], words["answer"], lang)])


def introduced(question: str, shown: Sequence[str], subtitle: str | None, lang: str = "en") -> str:
    """S1 for a chat model: what is shown, what is said, the question."""
    return "\n".join([*introduction(shown, lang=lang, subtitle=subtitle), question])


def about_description(description: str, a1: str, a2: str, lang: str = "en", *, reason: bool = False) -> str:
    """S2 and S3: which of two descriptions agrees better with `description`; S4 (`reason`): the reasons alone."""
    words = _WORDS[lang]
    parts = [words["seen"], words["own"].format(description=description.strip()), words["others"], _pair(a1, a2, lang)]
    return "\n\n".join([*parts, _join(words["agrees"], words["reason" if reason else "answer"], lang)])


def so_which(lang: str = "en") -> str:
    """S4: what is asked after the reasons."""
    return _join(_WORDS[lang]["so"], _WORDS[lang]["answer"], lang)


def _pair(a1: str, a2: str, lang: str) -> str:
    return _WORDS[lang]["pair"].format(a1=a1.strip(), a2=a2.strip())


def _join(first: str, second: str, lang: str) -> str:
    return f"{first} {second}" if lang == "en" else first + second
