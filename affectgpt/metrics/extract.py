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

# ruff: noqa: E501
from __future__ import annotations

import html
import re
from dataclasses import dataclass

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
    rf"(?:^|\n|[.!?。！？]\s*|\*\*)[\s>*#\-–•]*(?:the\s+|final\s+|overall\s+|predicted\s+|main\s+|open-vocabulary\s+|最终|主要|所以|因此)*"
    rf"(?:{_HEADS}|emotions?(?:al)?\s*(?:labels?|words?|states?|categor(?:y|ies)|list)?|labels?|answer|"
    r"情绪状态|情绪标签|情绪词|情感标签|情感状态|情感词|情感|标签|答案)"
    r"[ \t*]*[:：][ \t*]*(?:\n(?=[ \t]*[^\s\-*•\d]))?([^\n]*(?:\n[ \t]*(?:[-*•]|\d+[.)、])[^\n]*)*)",
    re.IGNORECASE,
)
_BRACKETS = re.compile(r"[\[【［]([^\[\]【】［］]*)[\]】］]")
_ITEM = re.compile(r"^[ \t]*(?:\(?\d+[.)、:：]|[-•–·]|\*(?!\*))[ \t]*(.+)$", re.MULTILINE)
_REFUSAL = re.compile(
    r"\b(?:i'?m sorry|i am sorry|i apologi[sz]e)\b.*\b(?:can'?t|cannot|can not|unable|not able|won'?t|don'?t)\b|"
    r"\b(?:cannot|can not|can'?t|unable to|not able to|impossible to|not possible to|difficult to|hard to|"
    r"could not|couldn'?t)\s+(?:\w+ly\s+)?(?:be\s+)?(?:judge|determine|identify|infer|tell|assist|provide|analy[sz]e|"
    r"assess|recogni[sz]e|help|ascertain|say|see|watch|view|access|answer|detect|conclude)|\bas an ai\b|"
    r"\b(?:there is|there's) (?:not enough|insufficient|no) (?:information|evidence|clue)|\bnot enough information\b|"
    r"(?:无法|不能|难以|没法|没有办法)(?:从\S{0,12})?(?:准确|直接|明确)?(?:判断|确定|识别|推断|得知|回答|分析|看出|提供)|(?:抱歉|对不起)[，,].*(?:无法|不能)|作为(?:一个|一名)?(?:人工智能|AI)",
    re.IGNORECASE | re.DOTALL,
)
_SENTENCES = (
    r"\bemotion(?:al|s)?(?: \w+){0,6}? (?:is|are|was|were|be|as|include|includes|including|seems? to be|appears? to be|"
    r"could be|can be|might be|may be|would be|becomes?)(?: likely| probably| possibly| described as|"
    r" characteri[sz]ed (?:as|by)| summari[sz]ed as| inferred (?:as|to be)| a (?:mix|mixture|combination|blend) of|"
    r" one of| of)*[: ]+(.+)",
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
    r"(?<!unable)(?<!able)\s+(?!(?:(?<=[,;] )|(?<=and )|(?<=or )|(?<=is ))(?:at (?:ease|peace|rest|odds|home|a loss|(?:his|her) wit)|on (?:edge|guard|fire|cloud)|"
    r"in (?:love|pain|awe|shock|despair|denial|doubt|distress|control|(?:my|his|her) feelings|(?:a )?(?:good|bad) mood))\b)"
    r"(?:because|since|as|due|when|while|but|which|who|that|about|with|at|in|on|to|from|by|for|"
    r"towards?|after|before|during|though|although|given|based|so|rather|than|instead|judging|through|throughout|over)\b.*|"
    r"(?<!bit)(?<!sense)(?<!hint)(?<!hints)(?<!touch)(?<!feeling)(?<!feelings)\s+of\b.*|[（(].*|"
    r"[，,]\s*(?:因为|由于|但|并且|从而|而|这|她|他|"
    r"(?:which|but|because|as|with|since|although|possibly due|likely due|"
    r"(?:indicat|suggest|express|show)(?:e?s|ing|n|e?d)\s+\w\w*)\b).*|因为.*|由于.*",
    re.IGNORECASE | re.DOTALL,
)
# 和 and 与 also occur within words (平和, 温和, 和善, 参与).
_SEPARATORS = re.compile(
    r"\s*(?:[,，、;；|\n/]|\s&\s|\s\+\s|\band/or\b|\band\b|\bor\b|\bas well as\b|\bmixed with\b|\balong with\b|"
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
    r"(?<!in my)\s+(?:emotions?|feelings?|etc\.?|overall|respectively|too|now|state))+$",
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
    text = _clean_text(text)
    if not text:
        return Reading((), "empty")
    if labels := _from_json(text):
        return Reading(labels, "label line")
    if labels := _from_table(text):
        return Reading(labels, "list")
    text = _spread_numbering(text)
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


_ANSWER_TAG = re.compile(
    r"<(answer|final_?answer|output|response|result|emotions?|labels?)\b[^<>]*>(.*?)(?:</\1\s*>|$)",
    re.DOTALL | re.IGNORECASE,
)
_TAG = re.compile(r"<(/?)([a-z][a-z0-9_-]*)\b[^<>\n]{0,200}>", re.IGNORECASE)
_INLINE_TAGS = frozenset(("b", "i", "em", "strong", "s", "span", "code", "u", "mark", "a", "font"))
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|tt|sf)?|mathrm|mathbf|emph)\s*\{([^{}]*)\}")
_SCORE = re.compile(
    r"(?<=[\w*\"'`])[ \t]*[(（\[]\s*(?:(?:score|confidence|conf|prob(?:ability)?|intensity|置信度|概率|强度)\s*[:：=]?\s*\d*\.?\d+\s*%?"
    r"|\d*\.\d+|\d+\s*%|\d+\s*/\s*\d+)\s*[)）\]]|"
    r"(?<=[\w*\"'`])[ \t]*[:：=][ \t]*(?:\d*\.\d+|\d+(?:\.\d+)?\s*%|[01])(?![\w.])",
    re.IGNORECASE,
)
_KEY = (
    r"(?:(?:(?:final|predicted|primary|secondary|main|dominant|overall|open_vocabulary)[_ ])?(?:emotion(?:al)?s?|labels?|answers?|"
    r"predictions?|openset)(?:[_ ](?:labels?|words?|states?|list|categor(?:y|ies)))?|情绪|情感|标签|情绪标签|答案)"
)
_JSON_STRING = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_JSON_ENTRY = re.compile(
    rf"""["']{_KEY}["']\s*:\s*(?:\[([^\[\]{{}}]*)\]|({_JSON_STRING})|\{{([^{{}}\[\]]*)\}})""", re.IGNORECASE | re.DOTALL
)
_JSON_SCORES = re.compile(rf"({_JSON_STRING})\s*:\s*(-?\d*\.?\d+)")
_COLUMN = re.compile(rf"{_KEY}|emotion.*|.*情绪.*|.*情感.*", re.IGNORECASE)
_RULE = re.compile(r"\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?")
_INLINE_NUMBER = r"(?:[(（\[]?\d{1,2}[.)）、\]](?!\d)|[①-⑳])"
_INLINE_NUMBERS = re.compile(
    r"(?:^|[\s:：])(?:[(（\[]?1[.)）、\]](?!\d)|①)[^\d\n①-⑳]+(?:[(（\[]?2[.)）、\]]|②)\s*[^\d\s]"
)


def _clean_text(text: str) -> str:
    """The answer in `text` without reasoning, tags, LaTeX, code fences, chat markers and scores; apostrophes straight."""
    text = text.replace("\ufeff", "").replace("\u200b", "").replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"<(think|thinking|reasoning|thought)>.*?(?:</\1>|$)", "", text, flags=re.DOTALL | re.IGNORECASE)
    text = re.split(r"</(?:think|thinking|reasoning|thought)>", text, flags=re.IGNORECASE)[-1]
    text = re.sub(r"```\w*|</?s>|<\|[a-z_]+\|>|<[/\w]*_of_\w+>", "", text)
    if answers := _ANSWER_TAG.findall(text):
        named = [inner for name, inner in answers if name.lower().startswith(("emotion", "label"))]
        text = "\n".join(named) if len(named) == len(answers) else answers[-1][1]
    if boxed := _BOXED.findall(text):
        text = boxed[-1]
    text = _LATEX_TEXT.sub(r"\1", text).replace("\\{", "{").replace("\\}", "}")
    text = _TAG.sub(lambda tag: "" if tag[2].lower() in _INLINE_TAGS else "\n", text)
    text = html.unescape(text)
    text = _SCORE.sub("", text) if not re.match(r"\s*[\[{]\s*[{\"']", text) else text
    text = re.sub(r"([」』”])\s*(?=[「『“])", r"\1,", text)
    text = re.sub(r"(?<=\w)[ \t]*\[\d{1,2}\]", "", text)  # a footnote
    text = re.sub(r"\bn/a\b", "none", text, flags=re.IGNORECASE)
    return text.replace("’", "'").replace("‘", "'").strip()


def _from_json(text: str) -> tuple[str, ...]:
    """The labels in JSON, such as `{"emotion": "happy"}`, a list of these, or `{"happy": 0.9, "sad": 0}`."""
    if "{" not in text:
        return ()
    parts: list[str] = []
    for items, word, scores in _JSON_ENTRY.findall(text):
        parts += _split_list(items) if items.strip() else _split(word[1:-1]) if word else _scored(scores)
    if not parts and re.fullmatch(r"\{[^{}]*\}", text):
        parts = _scored(text)
    return _short_only(parts)


def _scored(text: str) -> list[str]:
    return [word[1:-1] for word, score in _JSON_SCORES.findall(text) if float(score) > 0]


def _from_table(text: str) -> tuple[str, ...]:
    """The labels in a Markdown table: its column of emotions, else its first column of words."""
    lines = [line.strip() for line in text.split("\n")]
    rule = next((number for number, line in enumerate(lines) if "|" in line and _RULE.fullmatch(line)), 0)
    if not rule:
        return ()
    heads = _cells(lines[rule - 1])
    rows = []
    for line in lines[rule + 1 :]:
        if "|" not in line:
            break
        rows.append(_cells(line))
    columns = [number for number, head in enumerate(heads) if _COLUMN.fullmatch(head.strip("*_ "))]
    if not columns:
        columns = [
            number for number in range(len(heads)) if any(re.search(r"[^\W\d]", cell) for cell in _column(rows, number))
        ]
    return _short_only([part for cell in _column(rows, columns[0]) for part in _split(cell)]) if columns else ()


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _column(rows: list[list[str]], number: int) -> list[str]:
    return [row[number] for row in rows if number < len(row)]


def _spread_numbering(text: str) -> str:
    """`text` with each item of an inline list, such as `1. happy 2. sad`, on a line of its own."""
    text = re.sub(r"^[ \t]*\[(\d{1,2})\](?=[ \t]*[^\s\d])", r"\1.", text, flags=re.MULTILINE)
    if _INLINE_NUMBERS.search(text) or len(re.findall("[①-⑳]", text)) > 1:
        text = re.sub(rf"(^|[\s:：;；,，]){_INLINE_NUMBER}\s*", r"\1\n1. ", text)
        text = re.sub(r"[①-⑳]\s*", r"\n1. ", text)
        text = re.sub(r"[,，;；、]?[ \t]*\n\s*(?=1\. )", "\n", text)
    return re.sub(r"\][ \t]*[,，、;；]?[ \t]*\[(?=[^\]]*[^\W\d])", ", ", text).strip()


_STRONG_SEPARATOR = re.compile(r"\s*[,，、;；|\n/]\s*")
_APOLOGY = re.compile(r"\b(?:sorry|apologi[sz]e|as an|i|i'm|we|it|it's|there|the)\b|抱歉|对不起|作为", re.IGNORECASE)
_JUDGEMENT = re.compile(
    r"judge|determine|identify|infer|tell|analy[sz]e|assess|recogni[sz]e|ascertain|detect|conclude|say for|be sure|"
    r"enough|insufficient|evidence|判断|确定|识别|推断|得知|分析|看出",
    re.IGNORECASE,
)


def _refuses(text: str) -> bool:
    """Whether `text` declines to answer; a list of states, `confused, unable to answer`, does not."""
    if not _REFUSAL.search(text):
        return False
    parts = [part for part in _STRONG_SEPARATOR.split(text.strip(" .。")) if part]
    if (match := _SENTENCE_PATTERNS[0].search(parts[0])) or (match := _SENTENCE_PATTERNS[5].search(parts[0])):
        parts[0] = match.group(1)
    return (
        len(parts) < 2
        or bool(_REFUSAL.search(parts[0]))
        or any(_APOLOGY.search(part) or _JUDGEMENT.search(part) or not _is_short(part) for part in parts)
    )


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
_MARKUP = re.compile(r"[\[\]{}<>|\"“”„`*#\\\\$【】［］「」『』《》（）()\x00-\x08\x0b-\x1f]")
_NUMBER = re.compile(r"[\d\s.,:%+/-]*")


def _clean_label(part: str) -> str:
    label = re.sub(r"^\s*(?:[a-zA-Z]|\d{1,2})[.)）]\s+", "", part).strip(
        "\"'“”`*_.,;:。，；：!！?？()（）[]{}<>#-–•$~ \n\t"
    )
    label = re.sub(r"\s*[（(].*$", "", label.lower(), flags=re.DOTALL)
    label = _MARKUP.sub("", _TRAILING_SCORE.sub("", label)).strip()
    while (shorter := _TRAILING.sub("", _LEADING.sub("", label))) != label:
        label = shorter
    return " ".join(label.split())


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
    return tuple(dict.fromkeys(labels))


_PROSE = re.compile(
    r"\b(?:is|are|was|were|has|have|the|he|she|his|her|they|this|that|person|man|woman|video|audio|speaks?|says|we)\b|[的是她他它]|正在|里面|感到|觉得|显得|情绪状态",
    re.IGNORECASE,
)


_IDIOM = re.compile(
    r"over the moon|under the weather|down in the dumps|on the (?:edge|fence)|at the end of (?:his|her|their|my) (?:rope|tether)|"
    r"out of (?:his|her|their) (?:mind|depth)|beside (?:himself|herself)",
    re.IGNORECASE,
)


def _whole_text(text: str) -> tuple[str, ...]:
    """The labels if the text is a short list of words, else ()."""
    parts = [part.strip(" .。") for part in _STRONG_SEPARATOR.split(text)]
    if len(text) > 300 and not all(len(part) <= 30 for part in parts):
        return ()
    if len(parts) > 1 and all(len(part) <= 5 for part in parts):  # adjectives: 不屑的，愤怒的
        parts = [part.removesuffix("的") for part in parts]
    if any(_PROSE.search(_IDIOM.sub("", part)) for part in parts):
        return ()
    return _short_only(_split(text.rstrip(".。")))
