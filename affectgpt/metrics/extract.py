"""Parse emotion labels from the text of a model, without a model.

The readings are tried in a fixed order, the most explicit first; `how` is the first that succeeds:

1. ``empty``      no text;
2. ``label line`` "Emotions: happy, relieved" / "情绪：开心，自豪" (as `affectgpt.prompts` asks for); the last counts;
3. ``list``       a bracketed list, `['a', 'b']` or `[a, b]`; the last counts;
4. ``refusal``    "I cannot determine ...", "unable to judge the emotional state";
5. ``numbered``   lines that start with a number or a bullet;
6. ``words``      the text is a short list of words;
7. ``sentence``   "The emotional state is happy and proud", "她感到委屈";
8. ``nothing``    none of these: counted as unparsed, never guessed.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass

from affectgpt.metrics.lexicon import load_lexicon
from affectgpt.metrics.markup import checked_items, clean_answer, spread_numbering, words_in_json, words_in_table
from affectgpt.prompts import LABEL_LINE
from affectgpt.schema import quoted_items

READINGS = ("empty", "label line", "list", "refusal", "numbered", "words", "sentence", "nothing")


@dataclass(frozen=True)
class Reading:
    """Labels in lower case, without duplicates, in the order of the text, and how they were read."""

    labels: tuple[str, ...]
    how: str


_HEADS = "|".join(re.escape(head.strip().rstrip(":：")) for head in LABEL_LINE.values())
_LABEL_LINE = re.compile(
    # Bounded, because a model that repeats itself writes thousands of marks or words, from each of which it is tried.
    r"(?:^|\n|[.!?。！？]\s{0,20}|\*\*)[\s>*_#\-–•]{0,40}"
    r"(?:the\s+|final\s+|overall\s+|predicted\s+|main\s+|open-vocabulary\s+|最终|主要|所以|因此){0,6}"
    rf"(?:{_HEADS}|emotions?(?:al)?\s*(?:labels?|words?|states?|categor(?:y|ies)|list)?|labels?|answer|"
    r"output|result|prediction|response|assistant|"
    r"情绪状态|情绪标签|情绪词|情感标签|情感状态|情感词|情感|标签|答案)(?:\(s\))?(?:[ \t]*[(（][^()（）\n]{1,40}[)）])?"
    r"(?:[ \t*_]*(?:是|为|包括|有)?[:：][ \t*_]*|(?:[ \t]+(?:[-=]+>|→|=|[-–—]+)[ \t]+))"
    r"(?:\n(?=[ \t]*[^\s\-*•\d]))?([^\n]*(?:\n[ \t]*(?:[-*•]|\d+[.)、])[^\n]*)*)",
    re.IGNORECASE,
)
_BRACKETS = re.compile(r"[\[【［]([^\[\]【】［］]*)[\]】］]")
_ITEM = re.compile(
    r"^[ \t]*(?:[(（]?\d+[.)）、:：]|[-•–·]|\*(?!\*)|[一二三四五六七八九十]{1,2}[、.．]|"
    r"[(]?[a-hA-H][.)](?=[ \t])|[A-H]:(?=[ \t])|(?:i{1,3}|iv|vi{0,3})[.)](?=[ \t]))[ \t]*(.+)$",
    re.MULTILINE,
)
_REFUSAL = re.compile(
    r"\b(?:cannot|can not|can'?t|unable to|not able to|impossible to|not possible to|difficult to|hard to|"
    r"could not|couldn'?t)\s+(?:\w+ly\s+)?(?:be\s+)?(?:judge|determine|identify|infer|tell|assist|provide|analy[sz]e|"
    r"assess|recogni[sz]e|help|ascertain|say|see|watch|view|access|answer|detect|conclude)|\bas an ai\b|"
    r"\b(?:there is|there's) (?:not enough|insufficient|no) (?:information|evidence|clue)|\bnot enough information\b|"
    r"(?:无法|不能|难以|没法|没有办法)(?:从\S{0,12})?(?:准确|直接|明确)?(?:判断|确定|识别|推断|得知|回答|分析|看出|提供)|"
    r"作为(?:一个|一名)?(?:人工智能|AI)",
    re.IGNORECASE | re.DOTALL,
)
# An apology, and anywhere after it what cannot be done. One pattern with .* would try every apology to the text's end.
_APOLOGIES = tuple(
    tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)
    for patterns in (
        (
            r"\b(?:i'?m sorry|i am sorry|i apologi[sz]e)\b",
            r"\b(?:can'?t|cannot|can not|unable|not able|won'?t|don'?t)\b",
        ),
        (r"(?:抱歉|对不起)[，,]", r"无法|不能"),
    )
)
_SENTENCES = (
    r"\bemotion(?:al|s)?(?: \w+){0,6}? (?:is|are|was|were|be|as|include|includes|including|seems? to be|appears? to be|"
    r"could be|can be|might be|may be|would be|becomes?)(?: likely| probably| possibly| described as|"
    r" characteri[sz]ed (?:as|by)| summari[sz]ed as| inferred (?:as|to be)| a (?:mix|mixture|combination|blend) of|"
    r" one of| of)*[: ]+(.+)",
    r"\bthe most likely label is (.+)",
    r"\bemotions? (?:such as|like|of) (.+)",
    r"\b(?:feels?|feeling|felt)(?: that (?:he|she|they) (?:is|are))? (?!that\b|like\b|the\b|as\b)(.+)",
    r"\b(?:seems?|appears?|looks?)(?: to be)? (?!to\b|that\b|like\b|as\b|at\b)(.+)",
    r"\b(?:he|she|they|person|man|woman|speaker|character|individual|i) (?:is|are|am|was|were) (?:\w+ly )?"
    r"((?:(?!\b(?:a|an|the|in|at|on|wearing|talking|speaking|saying|looking|trying)\b)[\w'-]+)"
    r"(?:(?:,? and |, )[\w' -]+)*)$",
    r"(?:情绪|情感|心情)(?:状态|表现)?(?:可能|应该|主要|大概|似乎)?(?:是|为|包括|有|包含|属于|可以总结为|可以概括为)[:：]?(.+)",
    r"(?:感到|感觉到?|觉得|显得|流露出|表现出|透露出|表达了?)(?:了|有些|有点|一丝|一种|非常|十分|很|比较|出)*(.+)",
)
_SENTENCE_PATTERNS = tuple(re.compile(pattern, re.IGNORECASE) for pattern in _SENTENCES)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|[。！？\n]|(?<!\d)[.](?=\s|$)")
# The part of a sentence after its emotion words: reasons, times, circumstances.
_TAIL = re.compile(
    r"(?<!unable)(?<!able)\s+(?!(?:(?<=[,;] )|(?<=and )|(?<=or )|(?<=is ))"
    r"(?:at (?:ease|peace|rest|odds|home|a loss|(?:his|her) wit)|on (?:edge|guard|fire|cloud)|"
    r"in (?:love|pain|awe|shock|despair|denial|doubt|distress|control|"
    r"(?:my|his|her) feelings|(?:a )?(?:good|bad) mood))\b)"
    r"(?:because|since|as|due|when|while|but|which|who|that|about|with|at|in|on|to|from|by|for|"
    r"towards?|after|before|during|though|although|given|based|so|rather|than|instead|judging (?:by|from)|"
    r"through|throughout|over)\b.*|"
    r"(?<!bit)(?<!sense)(?<!hint)(?<!hints)(?<!touch)(?<!feeling)(?<!feelings)\s+of\b.*|[（(].*|"
    r"[，,]\s*(?:因为|由于|但|并且|从而|而|这|她|他|"
    r"(?:which|but|because|as|with|since|although|possibly due|likely due|"
    r"(?:indicat|suggest|express|show)(?:e?s|ing|n|e?d)\s+\w\w*)\b).*|因为.*|由于.*",
    re.IGNORECASE | re.DOTALL,
)
# 和 and 与 also occur within words (平和, 温和, 和善, 参与).
_SEPARATORS = re.compile(
    r"\s*(?:[,，、;；|\n\t/\u3000]|[!?！？]+(?:\s|$)|\.{2,}|…+|"
    r"(?<=[\u4e00-\u9fff]) +(?=[\u4e00-\u9fff])|\s&\s|\s\+\s|"
    r"\band/or\b|\band\b|\bor\b|\bas well as\b|\bmixed with\b|\balong with\b|"
    r"以及|并且|还有|或者|或|且|(?<![平温缓柔祥亲随气])和(?![平善蔼气睦缓谐])|(?<![参])与|及)\s*",
    re.IGNORECASE,
)
_LEADING = re.compile(
    r"^(?:(?:is|are|an?|the|and|or|also|both|some|feelings? of|sense of|mix(?:ture)? of|"
    r"combination of|emotions? (?:of|such as|like)|feeling|feels|emotions?\s*[:：]|possibly|probably|likely|"
    r"perhaps|maybe|bit of|bit|hints? of|touch of|including|include|such as|mainly|primarily|"
    r"mostly)\s+(?=\S)|(?:以及|还有|一种|一些|一丝|有些|有点)(?=.))+",
    re.IGNORECASE,
)
_TRAILING = re.compile(
    r"(?:的情绪|之情|的情感|的心情|等情绪|等情感|等|"
    r"(?<!in my)(?<!\bno)(?<!obvious)(?<!any)(?<!without)\s+"
    r"(?:emotions?|feelings?|etc\.?|overall|respectively|too|now|state))+$",
    re.IGNORECASE,
)
_NOT_A_LABEL = frozenset(
    ("", "none", "n/a", "na", "nan", "null", "unknown", "etc", "无", "未知", "emotion", "emotions", "label", "labels")
)
_MAX_WORDS = 4  # anything longer is prose, not a label
_MAX_CHINESE = 8


def read_labels(text: str) -> Reading:
    """Parse the labels in one answer.

    >>> read_labels("She smiles while her voice breaks.\\nEmotions: touched, don't know, Touched")
    Reading(labels=('touched', "don't know"), how='label line')
    >>> read_labels("The emotional state is angry and a bit of shame, because he shouts.")
    Reading(labels=('angry', 'shame'), how='sentence')
    >>> read_labels("I am unable to judge the emotional state.")
    Reading(labels=(), how='refusal')
    """
    text = _keep_phrases(_unwrapped(clean_answer(text)))
    if not text:
        return Reading((), "empty")
    if (words := words_in_json(text)) is not None:
        labels = tuple(dict.fromkeys(label for kind, word in words for label in _labels_in(kind, word)))
        refused = any(kind == "text" and _refuses(word) for kind, word in words)
        return Reading(labels, "label line" if labels else "refusal" if refused else "nothing")
    if labels := _short_only([part for cell in words_in_table(text) for part in _split(cell)]):
        return Reading(labels, "list")
    if labels := _short_only([_head_of_item(item) for item in checked_items(text)]):
        return Reading(labels, "numbered")
    text = spread_numbering(text)
    lines = [match.group(1) for match in _LABEL_LINE.finditer(text)]
    for line in reversed(lines):
        if _refuses(line):
            return Reading((), "refusal")
        if labels := _from_label_line(line):
            return Reading(labels, "label line")
    for inner in reversed(_BRACKETS.findall(text)):
        if labels := _short_only(_split_list(inner)):
            return Reading(labels, "list")
    if _refuses(text):
        return Reading((), "refusal")
    items = _ITEM.findall(text)
    if labels := _short_only([_head_of_item(item) for item in items]):
        return Reading(labels, "numbered")
    if labels := _whole_text(text):
        return Reading(labels, "words")
    for sentence in reversed([part for part in _SENTENCE_END.split(text) if part and part.strip()]):
        for pattern in _SENTENCE_PATTERNS:
            if (match := pattern.search(sentence)) and (labels := _short_only(_split(_TAIL.sub("", match.group(1))))):
                return Reading(labels, "sentence")
    return Reading((), "nothing")


# Letters that no text contains: they stand for the space, the hyphen and nothing within a phrase that is one label.
_SPACE, _HYPHEN, _NOTHING = "\ua78f", "\ua7f7", "\ua7fb"
_PARTS = re.compile(r"[^,，、;；|\n/\[\]【】［］\"()（）{}:：.。!！]+")
_LEAD = re.compile(r"\b(?:is|are|was|were|be|as|of|and|or|feels?|feeling|felt|seems?|includ(?:e|es|ing))\s+|是")
_AND = re.compile(r"\s(?:and|or)\s")
_READ_APART = re.compile("感到|感觉|觉得|显得|表达|流露|情绪|[的是她他它等]")


@functools.cache
def _phrases() -> frozenset[str]:
    """The entries of the lexicon that could be read as several labels, or as part of a sentence."""
    forms = load_lexicon("builtin").forms
    return frozenset(form for form in forms if " " in form or "-" in form or _READ_APART.search(form))


def _keep_phrases(text: str) -> str:
    """Join the words of the lexicon's phrases that are items of a list: `safe and sound, happy`, `and at ease`."""

    def joined(item: str) -> str:
        core = item.strip(" \t*_`'#-–•")
        for start in (0, *(lead.end() for lead in _LEAD.finditer(core))):
            if (phrase := core[start:]).lower() in _phrases():
                one = phrase.replace(" ", _SPACE).replace("-", _HYPHEN) if phrase.isascii() else _NOTHING.join(phrase)
                return item.replace(phrase, one)
        if at := _AND.search(item):
            return joined(item[: at.start()]) + at[0] + joined(item[at.end() :])
        return item

    def joined_part(part: re.Match[str]) -> str:
        return joined(part[0]) if len(part[0]) <= 200 else part[0]  # longer ones are prose

    return _PARTS.sub(joined_part, text) if len(text) <= 20_000 else text


_STRONG_SEPARATOR = re.compile(r"\s*[,，、;；|\n\t/\u3000]\s*")
_APOLOGY = re.compile(r"\b(?:sorry|apologi[sz]e|as an|i|i'm|we|it|it's|there|the)\b|抱歉|对不起|作为", re.IGNORECASE)
_JUDGEMENT = re.compile(
    r"judge|determine|identify|infer|tell|analy[sz]e|assess|recogni[sz]e|ascertain|detect|conclude|say for|be sure|"
    r"enough|insufficient|evidence|判断|确定|识别|推断|得知|分析|看出",
    re.IGNORECASE,
)


def _unwrapped(text: str) -> str:
    """The list in `array([...])`, `frozenset({...})`, `labels = [...]`."""
    if match := re.fullmatch(r"(?:\w+\s*=\s*)?(?:[\w.]+\()?([\[{(].*[\]})])(?:,\s*dtype=[^()]*)?\)?", text, re.DOTALL):
        inner = match[1]
        return inner[1:-1] if inner[0] in "{(" and not re.match(r"\{\s*['\"][^'\"]*['\"]\s*:", inner) else inner
    return text


def _labels_in(kind: str, text: str) -> tuple[str, ...]:
    """The labels in one value of JSON."""
    if kind == "list":
        return _short_only(_split_list(text))
    return _short_only([text]) if kind == "word" else read_labels(text).labels if "{" not in text else ()


def _refuses(text: str) -> bool:
    """Whether `text` declines to answer; a list of states, `confused, unable to answer`, does not."""
    if not _declines(text):
        return False
    parts = [part for part in _STRONG_SEPARATOR.split(text.strip(" .。")) if part]
    if (match := _SENTENCE_PATTERNS[0].search(parts[0])) or (match := _SENTENCE_PATTERNS[5].search(parts[0])):
        parts[0] = match.group(1)
    return (
        len(parts) < 2
        or _declines(parts[0])
        or any(_APOLOGY.search(part) or _JUDGEMENT.search(part) or not _is_short(part) for part in parts)
    )


def _declines(text: str) -> bool:
    if _REFUSAL.search(text):
        return True
    apologies = ((apology.search(text), cannot) for apology, cannot in _APOLOGIES)
    return any(found is not None and cannot.search(text, found.end()) for found, cannot in apologies)


def _from_label_line(line: str) -> tuple[str, ...]:
    if items := _ITEM.findall(line):
        return _short_only([_head_of_item(item) for item in items])
    if brackets := _BRACKETS.findall(line):
        return _short_only(_split_list(brackets[-1]))
    first = re.split(r"(?<=\w)[.。!！](?:\s|$)", line, maxsplit=1)[0]
    return _short_only(_split(first))


def _split_list(inner: str) -> list[str]:
    """Split the content of brackets; quoted items keep their commas and apostrophes."""
    if (items := quoted_items(inner)) is not None:
        return items
    return re.split(r"\s*[,，、;；|\n]\s*", inner)


def _split(text: str) -> list[str]:
    return [part for part in _SEPARATORS.split(text) if part and part.strip()]


def _head_of_item(item: str) -> str:
    """The label of an item: `Happy` in `Happy: she smiles` and `**Happy** - she smiles`."""
    return re.split(r"\s*[:：]\s*|\s+[-–—]+\s+|\s*[（(]", item.strip(), maxsplit=1)[0]


_TRAILING_SCORE = re.compile(r"\s*(?:[:：=–-]\s*)?(?:\d*\.\d+|\d+\s*%)$|\s*[:：=]\s*\d+$")
_NUMBER = re.compile(r"[\d\s.,:%+/-]*")
_ORDINAL = re.compile(r"\s*(?:[a-zA-Z]|\d{1,2}|i{2,3}|iv|vi{1,3})[.)）]\s+")


def _clean_label(part: str) -> str:
    """A label in lower case: letters, digits and spaces, and within it `'`, `-`, `.`, `/` and `&`."""
    label = re.sub(r"\s*[（(].*$", "", _ORDINAL.sub("", part, count=1).strip().lstrip("(（[").lower(), flags=re.DOTALL)
    label = _TRAILING_SCORE.sub("", label.strip(_ENDS))
    while (shorter := _TRAILING.sub("", _LEADING.sub("", label))) != label:
        label = shorter
    if not re.fullmatch(r"[\w' -]*", label):
        label = "".join(letter if _in_label(letter) else " " for letter in _QUOTES.sub("", label))
    return " ".join(label.strip(_ENDS).split())


_QUOTES = re.compile(r"[\"“”„«»‹›`「」『』《》【】［］（）()\[\]{}<>*#$\\\\|]")
_ENDS = " \t\n'\"._,;:-–&*`"


def _in_label(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "LMN" or letter in " '-.·&/"


def _is_short(label: str) -> bool:
    n_chinese = len(re.findall(r"[\u4e00-\u9fff]", label))
    return n_chinese <= _MAX_CHINESE if n_chinese else len(label.split()) <= _MAX_WORDS


def _short_only(parts: list[str]) -> tuple[str, ...]:
    """Cleaned labels without duplicates; () if a part is too long for a label, because the text is then prose."""
    labels = [
        label for part in parts if (label := _clean_label(part)) not in _NOT_A_LABEL and not _NUMBER.fullmatch(label)
    ]
    if not labels or not all(_is_short(label) for label in labels):
        return ()
    return tuple(
        dict.fromkeys(label.replace(_SPACE, " ").replace(_HYPHEN, "-").replace(_NOTHING, "") for label in labels)
    )


_PROSE = re.compile(
    r"\b(?:is|are|was|were|has|have|the|he|she|his|her|they|this|that|person|man|woman|video|audio|speaks?|says|we)\b|"
    r"[的是她他它]|正在|里面|感到|觉得|显得|情绪状态",
    re.IGNORECASE,
)


def _whole_text(text: str) -> tuple[str, ...]:
    """The labels if the text is a short list of words, else ()."""
    parts = [part.strip(" .。") for part in _STRONG_SEPARATOR.split(text)]
    if len(text) > 300 and not all(len(part) <= 30 for part in parts):
        return ()
    if len(parts) > 1 and all(len(part) <= 5 for part in parts):  # adjectives: 不屑的，愤怒的
        parts = [part.removesuffix("的") for part in parts]
    if any(_PROSE.search(part) for part in parts):
        return ()
    return _short_only(_split(text.rstrip(".。")))
