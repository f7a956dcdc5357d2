"""Zero-shot prompts in English and Chinese. Their wording affects scores, so they have a version.

There are three kinds of questions about a clip: `whole` (explain and name the emotions), and for pairs of models
`audio` and `video`, which ask for what is heard or seen; the LLM that merges the two names the emotions. `merge` is the
question to that LLM. Final answers end with a line of labels, which `affectgpt.metrics.extract` parses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from affectgpt.prompts import LABEL_LINE, whose
from affectgpt.schema import hears_other

VERSION = "zeroshot-1"
"""Changes with every change of the wording below; recorded in every prediction."""

KINDS = ("whole", "audio", "video")

_SHOWN = {
    "en": {
        ("images",): "The pictures are frames of one video clip, in order.",
        ("sound",): "The sound is that of one video clip.",
        ("images", "sound"): "The pictures are frames of one video clip, in order, and the sound is that of the clip.",
    },
    "zh": {
        ("images",): "这些图片按顺序取自同一段视频。",
        ("sound",): "这段声音取自一段视频。",
        ("images", "sound"): "这些图片按顺序取自同一段视频，声音也来自这段视频。",
    },
}
_SUBTITLE = {"en": 'The person says: "{subtitle}"', "zh": "视频中的人说：“{subtitle}”"}
_SUBTITLE_OF_OTHER = {"en": 'The other person says: "{subtitle}"', "zh": "视频中的对方说：“{subtitle}”"}
_END = {
    "en": 'End with one line that begins with "{head}" and lists every emotion word that fits, separated by commas.',
    "zh": "最后单独写一行，以“{head}”开头，列出所有合适的情绪词，用逗号分隔。",
}
_ASK = {
    "en": {
        "whole": "Describe what points to the emotional state of the main person: {where}. Then conclude what the "
        "person feels, also where feelings are mixed or hidden.",
        "audio": "Describe how the person speaks: pitch, loudness, pace, pauses, trembling, sighs, laughter or crying. "
        "Say what emotion each of these points to, and do not guess what cannot be heard.",
        "video": "Describe the main person's face, gaze, gestures and posture, how they change, and what in the "
        "surroundings matters. Say what emotion each of these points to, and do not guess what cannot be seen.",
    },
    "zh": {
        "whole": "请描述能反映主要人物情绪状态的线索：{where}。然后推断此人的感受，包括复杂的或被掩饰的情绪。",
        "audio": "请描述此人的说话方式：音高、音量、语速、停顿、颤抖、叹气、笑声或哭声，"
        "并说明它们各自指向什么情绪。听不出的不要猜测。",
        "video": "请描述主要人物的表情、目光、手势和姿态及其变化，以及环境中的重要信息，"
        "并说明它们各自指向什么情绪。看不出的不要猜测。",
    },
}
_WHERE = {
    "en": {
        "images": "face, gaze, gestures and posture, surroundings",
        "sound": "tone, loudness and pace of the voice, sighs, laughter or crying",
        "subtitle": "what is said, read together with the rest, since words may be ironic",
    },
    "zh": {
        "images": "表情、目光、手势和姿态、环境",
        "sound": "语气、音量、语速、叹气、笑声或哭声",
        "subtitle": "结合其他线索来理解所说的话，因为话语可能带有反讽",
    },
}
_MERGE = {
    "en": {
        "open": "Below are notes about one person in one video clip. You cannot see the clip.",
        "whole": "Description of the clip",
        "audio": "What was heard",
        "video": "What was seen",
        "subtitle": "What the person says",
        "subtitle of the other": "What the other person says",
        "ask": "Merge them into one description of the person's emotional state. Weigh the notes against each other; "
        "where they contradict, look for a feeling that explains both, such as irony or restraint, and say so. "
        "Add no facts that the notes do not hold.",
    },
    "zh": {
        "open": "下面是关于一段视频中同一个人的笔记。你看不到视频。",
        "whole": "视频描述",
        "audio": "听到的内容",
        "video": "看到的内容",
        "subtitle": "此人所说的话",
        "subtitle of the other": "对方所说的话",
        "ask": "请将它们合并成一段关于此人情绪状态的描述。请相互印证这些笔记；"
        "若有矛盾，请寻找能同时解释两者的感受，例如反讽或克制，并说明。"
        "不要添加笔记中没有的事实。",
    },
}
_JOIN = {"en": "; ", "zh": "；"}


def question(
    kind: str,
    shown: Sequence[str],
    *,
    lang: str = "en",
    subtitle: str | None = None,
    person: str | None = None,
    own: str | None = None,
) -> str:
    """The question about one clip.

    Args:
        kind: "whole", "audio" or "video".
        shown: the media of the request, some of "images" and "sound".
        subtitle: what the person says; None = not given (strategy S0).
        person: whom it is about, see `Sample.person`.
        own: the clip's own question, which is asked instead; it may be about text alone.

    >>> print(question("whole", ["sound"], subtitle="Fine.").splitlines()[1])
    The person says: "Fine."
    """
    media = tuple(name for name in ("images", "sound") if name in shown)
    if kind not in KINDS:
        raise ValueError(f"unknown kind of question {kind!r}; expected one of {list(KINDS)}")
    if not media and not subtitle and own is None:
        raise ValueError("neither media nor a subtitle to ask about")
    lines = introduction(shown, lang=lang, subtitle=subtitle, person=person)
    if own is not None:
        return "\n".join([*lines, own])
    where = [_WHERE[lang][name] for name in (*media, *(["subtitle"] if subtitle else []))]
    lines.append(_ASK[lang][kind].format(where=_JOIN[lang].join(where)))
    if kind == "whole":
        lines.append(_end(lang))
    return "\n".join(lines)


def introduction(
    shown: Sequence[str], *, lang: str = "en", subtitle: str | None = None, person: str | None = None
) -> list[str]:
    """The lines before a question: what the media of a request are, what is said, and whom it is about."""
    media = tuple(name for name in ("images", "sound") if name in shown)
    lines = [_SHOWN[lang][media]] if media else []
    if subtitle:
        says = _SUBTITLE_OF_OTHER if hears_other(person) else _SUBTITLE
        lines.append(says[lang].format(subtitle=_one_line(subtitle)))
    return [*lines, *([whose(person, lang).strip()] if person else [])]


def merge(notes: Mapping[str, str], *, lang: str = "en", subtitle: str | None = None, person: str | None = None) -> str:
    """The question to an LLM that merges notes (`whole`, or `audio` and `video`) with each other and the subtitle."""
    if unknown := set(notes) - set(KINDS):
        raise ValueError(f"unknown notes {sorted(unknown)}; expected some of {list(KINDS)}")
    words = _MERGE[lang]
    said = "subtitle of the other" if hears_other(person) else "subtitle"
    given = {name: text.strip() for name, text in notes.items()} | ({said: subtitle} if subtitle else {})
    blocks = [f"{words[name]}:\n{text}" if lang == "en" else f"{words[name]}：\n{text}" for name, text in given.items()]
    about = [whose(person, lang).strip()] if person else []
    return "\n\n".join([words["open"], *about, *blocks, f"{words['ask']} {_end(lang)}"])


def _end(lang: str) -> str:
    return _END[lang].format(head=LABEL_LINE[lang].strip())


def _one_line(text: str) -> str:
    return " ".join(text.split())
