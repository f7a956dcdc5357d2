"""The questions to annotators, in English and Chinese, and the form of their answers.

An answer is one JSON object (`answer_schema`), or, from models that cannot write JSON, plain text for its first field.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from affectgpt.annotate.evidence import phrase
from affectgpt.annotate.record import Fact
from affectgpt.prompts import whose
from affectgpt.runtime import InputError, check_text
from affectgpt.schema import LANGUAGES, hears_other

PROMPTS_VERSION = "annotate-2"
"""Changes with every change of the texts below; part of every record and its key."""

RANKED = {
    "en": ("happy", "sad", "angry", "surprised", "afraid", "disgusted", "worried", "neutral"),
    "zh": ("高兴", "悲伤", "愤怒", "惊讶", "害怕", "厌恶", "担忧", "中性"),
}
"""The fixed set of step `ranking`."""


class BadAnswer(ValueError):
    """An answer of the wrong form. The message is shown to the model, so it is part of the key of the next answer."""


@dataclass(frozen=True)
class Prompt:
    """One question.

    Attributes:
        fields: the answer's fields: name -> "text", "words", "evidence" (names of facts), or (lowest, highest) number.
        gives: parts of the record that precede the instruction, in this order.
        n_words: usual length of an answer, for estimates before there are answers.
        texts: language -> instruction.
    """

    fields: Mapping[str, Any]
    gives: tuple[str, ...]
    n_words: int
    texts: Mapping[str, str]


PROMPTS: dict[str, Prompt] = {
    "visual": Prompt(
        {"beginning": "text", "middle": "text", "end": "text", "evidence": "evidence"},
        ("evidence:visual",),
        120,
        {
            "en": "The pictures are frames of one video clip, in the order of time. Say for the beginning, the middle "
            "and the end of the clip what can be seen of the main person that bears on how the person feels: face, "
            "gaze, head, hands, posture, and what in the surroundings matters. Say what is to be seen, not who the "
            "person is, and do not name feelings. Where nothing can be seen, leave the text empty. Invent nothing.",
            "zh": "这些图片按时间顺序取自同一段视频。请分别说明视频的开头、中间和结尾中，"
            "主要人物身上有哪些与感受有关、看得见的东西：面部、目光、头部、手势、姿态，以及环境中重要的内容。"
            "只写看到的，不要写人物身份，也不要写出情绪词。看不出的部分留空。不要编造。",
        },
    ),
    "peak": Prompt(
        {"clue": "text", "evidence": "evidence"},
        ("evidence:visual",),
        80,
        {
            "en": "The picture is the moment of a clip at which the main person's face moves most. Describe soberly "
            "what can be seen: face, gaze, posture, gestures, surroundings. Do not say who the person is and do not "
            "name feelings. Invent nothing.",
            "zh": "这张图片是一段视频中主要人物面部动作最强的一刻。请客观描述看到的内容：面部、目光、姿态、"
            "手势和环境。不要写人物身份，也不要写出情绪词。不要编造。",
        },
    ),
    "acoustic": Prompt(
        {"clue": "text", "evidence": "evidence"},
        ("evidence:acoustic",),
        80,
        {
            "en": "The sound is that of one video clip. Describe how the main person speaks, as far as it bears on "
            "how the person feels: pitch, loudness, pace, pauses, trembling, breath, sighs, laughter, crying. Do not "
            "repeat what is said, do not name feelings, and do not guess what cannot be heard.",
            "zh": "这段声音取自一段视频。请描述主要人物的说话方式中与感受有关的内容：音高、音量、语速、停顿、颤抖、"
            "呼吸、叹气、笑声、哭声。不要复述所说的话，不要写出情绪词，听不出的不要猜测。",
        },
    ),
    "disambiguate": Prompt(
        {"clue": "text"},
        ("clues", "transcript"),
        80,
        {
            "en": "Above are notes about one person in a clip, and what the person says. Words alone can mean several "
            "things. Say in two or three sentences what they mean here, given the notes: earnest or ironic, open or "
            "held back, about what. Add no fact that does not stand above.",
            "zh": "以上是关于一段视频中同一个人的笔记，以及此人所说的话。单看话语可能有多种含义。"
            "请结合笔记用两三句话说明这些话在这里的意思：是认真还是反讽，是直白还是克制，针对什么。"
            "不要添加上文没有的事实。",
        },
    ),
    "merge": Prompt(
        {"description": "text"},
        ("clues", "evidence", "transcript", "description"),
        150,
        {
            "en": "Above is what is known of one person in a clip. Write one paragraph that explains what the person "
            "feels and names the clue behind each conclusion. Where clues contradict each other, look for a feeling "
            "that explains them all and say so. Add no fact that does not stand above.",
            "zh": "以上是关于一段视频中同一个人的已知信息。请写一段话，说明此人的感受，并为每个结论指出依据的线索。"
            "若线索互相矛盾，请寻找能同时解释它们的感受并加以说明。不要添加上文没有的事实。",
        },
    ),
    "rewrite": Prompt(
        {"description": "text"},
        ("description", "transcript"),
        180,
        {
            "en": "Above is a plain list of what was seen, heard and said in one clip. Rewrite it as connected "
            "reasoning that leads from the clues to what the person feels. Keep every clue, add none.",
            "zh": "以上是一段视频中看到、听到和说出的内容的简单罗列。请将其改写成连贯的推理，从线索推导出此人的感受。"
            "保留每条线索，不要增加。",
        },
    ),
    "translate": Prompt(
        {"translation": "text"},
        ("description",),
        150,
        {
            "en": "Translate the description above into natural English. Leave nothing out and add nothing.",
            "zh": "请将上面的描述翻译成自然的中文。不要遗漏，也不要增加。",
        },
    ),
    "labels": Prompt(
        {"labels": "words", "confidence": (0, 1)},
        ("description",),
        20,
        {
            "en": "List every word or short phrase for what the person in the description above feels, as precise as "
            "the description allows, the clearest first. Only feelings for which the description names a clue. Give "
            "your confidence from 0 to 1.",
            "zh": "请列出上面描述中的人物感受到的所有情绪词或短语，尽可能准确，最明显的在前。"
            "只列描述中有线索支持的情绪。并给出 0 到 1 的把握程度。",
        },
    ),
    "ranking": Prompt(
        {"ranking": "words"},
        ("description",),
        10,
        {
            "en": "Which of these words fit the person in the description above: {ranked}? List those that fit, the "
            "best first.",
            "zh": "下列词语中哪些符合上面描述中的人物：{ranked}？请列出符合的词，最合适的在前。",
        },
    ),
    "valence": Prompt(
        {"valence": (-5, 5)},
        ("description",),
        5,
        {
            "en": "How pleasant is what the person in the description above feels? Answer with one number from -5 (as "
            "unpleasant as can be) over 0 (neither) to 5 (as pleasant as can be).",
            "zh": "上面描述中的人物的感受有多愉快？请用一个数字回答，从 -5（极不愉快）经 0（中性）到 5（极愉快）。",
        },
    ),
    "verify": Prompt(
        {"labels": "words"},
        ("clues",),
        20,
        {
            "en": "Above are notes about one person in a clip, and nothing else is known. List every word or short "
            "phrase for what the person feels that follows from these notes alone, the clearest first. If nothing "
            "follows, leave the list empty.",
            "zh": "以上是关于一段视频中同一个人的笔记，除此之外一无所知。"
            "请列出仅凭这些笔记就能得出的此人的情绪词或短语，最明显的在前。若得不出任何结论，请留空。",
        },
    ),
    "explain": Prompt(
        {"description": "text", "labels": "words"},
        ("evidence", "transcript"),
        180,
        {
            "en": "You are shown one video clip: frames in order, its sound, or both. Explain what the main person "
            "feels and name the clues that show it, also where feelings are mixed or hidden; then list the emotion "
            "words that fit.",
            "zh": "你看到（或听到）的是一段视频：按顺序排列的画面、声音，或两者。"
            "请说明主要人物的感受以及体现它的线索，包括复杂的或被掩饰的情绪；然后列出合适的情绪词。",
        },
    ),
}

_HEADS = {
    "en": {
        "evidence": "Measured facts (trust them, and claim no other measurement):",
        "visual": "Seen:",
        "acoustic": "Heard:",
        "lexical": "What the words mean:",
        "transcript": "What the person says:",
        "other_transcript": "What the other person says:",
        "description": "Description:",
        "json": "Answer with one JSON object and nothing else:",
        "keys": "Answer with one JSON object. Its keys: {keys}.",
        "text": "a text",
        "words": "a list of words",
        "names": "a list of those names of measured facts that you used",
        "number": "a number from {low:g} to {high:g}",
        "repair": "Your last answer cannot be used: {error}. Answer again, in the form that was asked for.",
    },
    "zh": {
        "evidence": "测量得到的事实（请以此为准，不要声称其他测量结果）：",
        "visual": "看到的内容：",
        "acoustic": "听到的内容：",
        "lexical": "话语的含义：",
        "transcript": "此人所说的话：",
        "other_transcript": "对方所说的话：",
        "description": "描述：",
        "json": "请只用一个 JSON 对象回答：",
        "keys": "请用一个 JSON 对象回答，键为：{keys}。",
        "text": "一段文字",
        "words": "词语列表",
        "names": "你用到的测量事实的名称列表",
        "number": "{low:g} 到 {high:g} 之间的数字",
        "repair": "上一个回答无法使用：{error}。请按要求的格式重新回答。",
    },
}


def render_question(
    name: str, lang: str, about: Mapping[str, Any], *, structured: bool = True, enforced: bool = False
) -> str:
    """The text of question `name`.

    Args:
        about: parts of the record: "evidence" (facts), "clues", "transcript", "description" (by language), and
            "person" (`Sample.person`): whose emotion a question about more than a description asks about.
        structured: True = ask for JSON, False = for plain text, the first field.
        enforced: the decoding follows the schema: the question names the keys only. Small models copy an example.

    >>> print(render_question("valence", "en", {"description": {"en": "She beams."}}, structured=False).splitlines()[1])
    She beams.
    """
    prompt, heads = PROMPTS[name], _HEADS[lang]
    blocks = []
    for part in prompt.gives:
        blocks += _block(part, lang, about)
    asks_of = whose(about.get("person"), lang) if prompt.gives != ("description",) else ""
    blocks.append(asks_of + prompt.texts[lang].format(ranked=", ".join(RANKED[lang])))
    if structured and enforced:
        blocks.append(heads["keys"].format(keys=", ".join(_fields(prompt, about))))
    elif structured:
        shown = {key: _meant(kind, heads) for key, kind in _fields(prompt, about).items()}
        blocks.append(f"{heads['json']}\n{json.dumps(shown, ensure_ascii=False)}")
    return "\n\n".join(blocks)


def _block(part: str, lang: str, about: Mapping[str, Any]) -> list[str]:
    heads = _HEADS[lang]
    key, _, modality = part.partition(":")
    if key == "evidence":
        facts = _facts(about, modality)
        lines = [f"- {fact.name}: {phrase(fact, lang) or f'{fact.value:g} {fact.unit}'}" for fact in facts]
        return ["\n".join([heads["evidence"], *lines])] if lines else []
    if key == "clues":
        blocks = []
        for name in ("visual", "acoustic", "lexical"):
            texts = [clue["text"] for clue in about.get("clues", ()) if clue["modality"] == name]
            if texts:
                blocks.append("\n".join([heads[name], *texts]))
        return blocks
    value = about.get(key)
    if key == "description":
        # In the language of the question, if there is one: the translator is shown the other language.
        value = value and (value.get(lang) or next(iter(value.values())))
    if key == "transcript" and hears_other(about.get("person")):
        key = "other_transcript"
    return [f"{heads[key]}\n{' '.join(value.split())}"] if value else []


def _facts(about: Mapping[str, Any], modality: str = "") -> list[Fact]:
    return [fact for fact in about.get("evidence", ()) if modality in ("", fact.modality)]


def _names(prompt: Prompt, about: Mapping[str, Any]) -> list[str]:
    """Names of the measured facts that an answer may refer to."""
    parts = [part.partition(":")[2] for part in prompt.gives if part.startswith("evidence")]
    return list(dict.fromkeys(fact.name for modality in parts for fact in _facts(about, modality)))


def _fields(prompt: Prompt, about: Mapping[str, Any]) -> dict[str, Any]:
    has_facts = bool(_names(prompt, about))
    return {key: kind for key, kind in prompt.fields.items() if kind != "evidence" or has_facts}


def _meant(kind: Any, heads: Mapping[str, str]) -> str:
    if isinstance(kind, tuple):
        return heads["number"].format(low=kind[0], high=kind[1])
    return heads["names" if kind == "evidence" else kind]


_MOST_WORDS, _LONGEST_WORD = 16, 40


def answer_schema(
    name: str, about: Mapping[str, Any], lang: str = "en", *, within_limits: bool = False
) -> dict[str, Any]:
    """The JSON schema of an answer, in the strict form that OpenAI-compatible servers accept.

    Args:
        within_limits: also everything that `parse_answer` checks, and limits of lists and numbers, which a small model
            would continue forever; servers do not accept all of these keywords.
    """
    prompt = PROMPTS[name]
    properties: dict[str, Any] = {}
    fields = _fields(prompt, about)
    n_texts = sum(kind == "text" for kind in fields.values())
    for key, kind in fields.items():
        if kind == "text":
            properties[key] = {"type": "string"}
            if within_limits and n_texts == 1:  # an answer without any text is refused
                properties[key]["pattern"] = r"^\S"
        elif kind == "words":
            item: dict[str, Any] = {"type": "string"}
            if key == "ranking":
                item["enum"] = list(RANKED[lang])
            elif within_limits:
                item |= {"minLength": 1, "maxLength": _LONGEST_WORD}
            properties[key] = {"type": "array", "items": item}
            if within_limits:
                properties[key]["maxItems"] = _MOST_WORDS
        elif kind == "evidence":
            properties[key] = {"type": "array", "items": {"type": "string", "enum": _names(prompt, about)}}
            if within_limits:
                properties[key]["maxItems"] = _MOST_WORDS
        else:
            properties[key] = {"type": "number"}
            if within_limits:
                properties[key] |= {"minimum": kind[0], "maximum": kind[1], "multipleOf": 0.01}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def parse_answer(
    name: str, text: str, about: Mapping[str, Any], lang: str = "en", *, structured: bool = True
) -> dict[str, Any]:
    """The fields of an answer.

    Raises:
        BadAnswer: no JSON object, a field that is missing or of the wrong type, or evidence that was not measured.
    """
    prompt = PROMPTS[name]
    fields = _fields(prompt, about)
    found = _object(text) if structured else _plain(text, next(iter(fields.items())))
    values: dict[str, Any] = {}
    for key, kind in fields.items():
        if key not in found and not structured:
            continue
        values[key] = _checked(key, kind, found.get(key))
    if surplus := sorted(set(found) - set(fields)):
        raise BadAnswer(f"the keys {surplus} were not asked for; expected {sorted(fields)}")
    texts = [key for key, kind in fields.items() if kind == "text"]
    if texts and not any(values.get(key) for key in texts):
        raise BadAnswer(f"{texts} are empty")
    for key, kind in fields.items():
        if kind == "evidence" and (strange := sorted(set(values.get(key, ())) - set(_names(prompt, about)))):
            raise BadAnswer(f"{strange} are no measured facts; measured are {_names(prompt, about)}")
    if strange := sorted(set(values.get("ranking", ())) - set(RANKED[lang])):
        raise BadAnswer(f"{strange} are none of {list(RANKED[lang])}")
    return values


def _object(text: str) -> dict[str, Any]:
    """The JSON object in `text`; code fences and words around it are ignored."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise BadAnswer("no JSON object in it")
    try:
        found = json.loads(text[start : end + 1])
    except json.JSONDecodeError as error:
        raise BadAnswer(f"not JSON ({error.msg} at character {error.pos})") from None
    except (ValueError, RecursionError):
        raise BadAnswer("not JSON that can be read: nested too deeply, or a number of thousands of digits") from None
    if not isinstance(found, dict):
        raise BadAnswer("no JSON object in it")
    return found


def _plain(text: str, field: tuple[str, Any]) -> dict[str, Any]:
    key, kind = field
    if kind == "words":
        return {key: [word.strip(" .。\"'[]") for word in re.split(r"[,;，、；\n]", text) if word.strip(" .。\"'[]")]}
    if isinstance(kind, tuple):
        numbers = re.findall(r"-?\d+(?:\.\d+)?", text)
        return {key: float(numbers[0]) if numbers else None}
    return {key: text.strip()}


def _checked(key: str, kind: Any, value: Any) -> Any:
    if kind == "text":
        if not isinstance(value, str):
            raise BadAnswer(f"{key} must be a text, found {value!r}")
        return _text(key, value)
    if kind in ("words", "evidence"):
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise BadAnswer(f"{key} must be a list of words, found {value!r}")
        return list(dict.fromkeys(_text(key, word) for word in value if word.strip()))
    low, high = kind
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise BadAnswer(f"{key} must be a number from {low} to {high}, found {value!r}")
    return float(value)


def _text(key: str, value: str) -> str:
    try:
        return check_text(value, key).strip()
    except InputError as error:  # JSON can escape half of a surrogate pair
        raise BadAnswer(str(error)) from None


def repair(error: BadAnswer, lang: str) -> str:
    """The objection to an answer of the wrong form."""
    return _HEADS[lang]["repair"].format(error=error)


def sha256_of_text(text: str) -> str:
    """Hash of a rendered question."""
    return hashlib.sha256(text.encode()).hexdigest()


def other_language(lang: str) -> str:
    """The language to translate into."""
    return next(name for name in LANGUAGES if name != lang)
