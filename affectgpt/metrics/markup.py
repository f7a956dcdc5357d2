"""What models write around an answer: reasoning, tags, LaTeX, chat markers, JSON, tables, check boxes, scores.

`clean_answer` leaves the words of the answer; `words_in_json`, `words_in_table` and `checked_items` find the words of
structured answers. Nothing here decides what is a label.
"""

from __future__ import annotations

import html
import re

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
)
_FULL_WIDTH = {code: code - 0xFEE0 for code in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}
_THOUGHT = "think|thinking|reasoning|thought"
_THOUGHTS = (
    (re.compile(rf"<({_THOUGHT})>.*?(?:</\1>|$)", re.DOTALL | re.IGNORECASE), ""),
    (re.compile(rf"\A.*</(?:{_THOUGHT})>", re.DOTALL | re.IGNORECASE), ""),
    (re.compile(r"\[THINK\].*?(?:\[/THINK\]|$)|◁think▷.*?(?:◁/think▷|$)", re.DOTALL | re.IGNORECASE), ""),
    (re.compile(r"\A.*<\|channel\|>final<\|message\|>", re.DOTALL), ""),
    (re.compile(r"\A.*\[/INST\]", re.DOTALL), ""),
    (re.compile(r"\A.*(?:<start_of_turn>\s*(?:model|assistant)\b|<\|im_start\|>\s*assistant\b)", re.DOTALL), ""),
)
_MARKERS = re.compile(r"(?:```|~~~)\w*|</?s>|<\|[a-z_]+\|>|<[/\w]*_of_\w+>|<eos>|\[/?(?:INST|SYS)\]")
_NAMED_TAG = re.compile(
    r"<(?:emotion|label)s?\s+(?:name|label|value|type)\s*=\s*[\"']([^\"'<>]*)[\"'][^<>]*>", re.IGNORECASE
)
_ANSWER_TAG = re.compile(
    r"<(answer|final_?answer|output|response|result|emotions?|labels?)\b[^<>]*>(.*?)(?:</\1\s*>|$)",
    re.DOTALL | re.IGNORECASE,
)
_TAG = re.compile(r"<(/?)([a-z\u4e00-\u9fff][\w-]*)\b[^<>\n]{0,200}>", re.IGNORECASE)
_INLINE_TAGS = frozenset(("b", "i", "em", "strong", "s", "span", "code", "u", "mark", "a", "font"))
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|tt|sf)?|mathrm|mathbf|emph)\s*\{([^{}]*)\}")
_LINK = re.compile(r"!?\[([^\[\]\n]{1,80})\]\([^()\s]{0,300}\)")
_SCORE = re.compile(
    r"(?<=[\w*\"'`])[ \t]*[(（\[]\s*(?:"
    r"(?:score|confidence|conf|prob(?:ability)?|intensity|置信度|概率|强度)\s*[:：=]?\s*\d*\.?\d+\s*%?"
    r"|\d*\.\d+|\d+\s*%|\d+\s*/\s*\d+)\s*[)）\]]|"
    r"(?<=[\w*\"'`])[ \t]*[:：=][ \t]*(?:\d*\.\d+|\d+(?:\.\d+)?\s*%|[01])(?![\w.])",
    re.IGNORECASE,
)
_SCORE_BETWEEN = re.compile(r"(?<=[^\W\d])[ \t]+(?:\d?\.\d+|\d{1,3}\s?%)[ \t]+(?=[^\W\d])")


def clean_answer(text: str) -> str:
    """The answer in `text` without reasoning, tags, LaTeX, code fences, chat markers and scores; straight apostrophes.

    >>> clean_answer("He smiles.</think><answer>\\\\boxed{\\\\text{happy}} (0.9)</answer>")
    'happy'
    """
    text = _INVISIBLE.sub("", text).replace("\r\n", "\n").replace("\r", "\n").translate(_FULL_WIDTH)
    if "\\n" in text and "\n" not in text:  # escaped twice
        text = text.replace("\\n", "\n").replace("\\t", "\t")
    text = html.unescape(text)
    for pattern, instead in _THOUGHTS:
        text = pattern.sub(instead, text)
    text = _NAMED_TAG.sub(r"\1\n", _MARKERS.sub("", text))
    if answers := _ANSWER_TAG.findall(text):
        named = [inner for name, inner in answers if name.lower().startswith(("emotion", "label"))]
        text = "\n".join(named) if len(named) == len(answers) else answers[-1][1]
    if boxed := _BOXED.findall(text):
        text = boxed[-1]
    text = _LATEX_TEXT.sub(r"\1", text).replace("\\{", "{").replace("\\}", "}")
    text = _TAG.sub(lambda tag: "" if tag[2].lower() in _INLINE_TAGS else "\n", text)
    text = _LINK.sub(r"\1", text)
    if not re.match(r"\s*[\[{]\s*[{\"']", text):
        text = _SCORE_BETWEEN.sub(", ", _SCORE.sub("", text))
    text = re.sub(r"([」』”»])\s*(?=[「『“«])", r"\1,", text)
    text = re.sub(r"(?<=\w)[ \t]*\[\d{1,2}\]", "", text)  # a footnote
    text = re.sub(r"(^|\s)#(?=[^\W\d]\w*(?:\s+#|\s*$))", r"\1,", text)  # #happy #sad
    text = re.sub(r"\bn/a\b", "none", text, flags=re.IGNORECASE)
    return text.replace("’", "'").replace("‘", "'").strip().lstrip(",").strip()


_KEY = (
    r"(?:(?:(?:final|predicted|primary|secondary|main|dominant|overall|open_vocabulary)[_ ])?"
    r"(?:emotion(?:al)?s?|labels?|answers?|predictions?|openset)"
    r"(?:[_ ](?:labels?|words?|states?|list|categor(?:y|ies)))?|情绪|情感|标签|情绪标签|答案)"
)
_STRING = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_ENTRY = re.compile(
    rf"""["']{_KEY}["']\s*:\s*(?:\[([^\[\]{{}}]*)\]|({_STRING})|\{{([^{{}}\[\]]*)\}}|(null|None))""",
    re.IGNORECASE | re.DOTALL,
)
_PAIR = re.compile(rf"({_STRING})\s*:\s*(?:(-?\d*\.?\d+)|({_STRING}))")


def words_in_json(text: str) -> list[tuple[str, str]] | None:
    """The words in JSON, such as `{"emotion": "happy"}`, a list of these, or `{"happy": 0.9, "sad": 0}`.

    Returns:
        (kind, text) of each value: "list" the content of brackets, "text" a string, "word" a label with a score above
        0; [] if the JSON says that there are none; None if there is no JSON.
    """
    if "{" not in text:
        return None
    found: list[tuple[str, str]] = []
    entries = _ENTRY.findall(text)
    for items, word, scores, _ in entries:
        if items.strip():
            found.append(("list", items))
        elif word:
            found.append(("text", word[1:-1]))
        else:
            found += _scored(scores)
    if not entries and re.fullmatch(r"\{[^{}]*\}", text):
        found = _scored(text)
    return found if found or (entries and re.fullmatch(r"[\[{].*[\]}]", text, re.DOTALL)) else None


def _scored(text: str) -> list[tuple[str, str]]:
    """The keys of scores above 0; of other entries, such as `"primary": "anger"`, the values."""
    pairs = _PAIR.findall(text)
    return [("word", key[1:-1]) if score else ("text", value[1:-1]) for key, score, value in pairs if _counts(score)]


def _counts(score: str) -> bool:
    return not score or float(score) > 0


_COLUMN = re.compile(rf"{_KEY}|emotion.*|.*情绪.*|.*情感.*", re.IGNORECASE)
_RULE = re.compile(r"\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?")
_NUMBER = re.compile(r"\s*-?\d*\.?\d+\s*%?\s*")


def words_in_table(text: str) -> list[str]:
    """The cells in the column of emotions of a table, else its first column of words; Markdown, or CSV with scores."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    rule = next((number for number, line in enumerate(lines) if "|" in line and _RULE.fullmatch(line)), 0)
    if not rule:
        return _words_in_csv(lines)
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
    return _column(rows, columns[0]) if columns else []


def _words_in_csv(lines: list[str]) -> list[str]:
    for separator in ",\t|":
        heads, *rows = [_cells(line, separator) for line in lines] or [[]]
        at = [number for number, head in enumerate(heads) if re.fullmatch(_KEY, head, re.IGNORECASE)]
        if len(heads) > 1 and len(at) == 1 and rows and all(len(row) == len(heads) for row in rows):
            others = [number for number in range(len(heads)) if number != at[0]]
            if any(all(_NUMBER.fullmatch(row[number]) for row in rows) for number in others):
                return _column(rows, at[0])
    return []


def _cells(line: str, separator: str = "|") -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(separator)]


def _column(rows: list[list[str]], number: int) -> list[str]:
    return [row[number] for row in rows if number < len(row)]


_CHECK_BOX = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])?[ \t]*(?:\[([ xX✓✔√]?)\]|([☐☑☒✅✔]))[ \t]*(\S.*)$", re.MULTILINE)


def checked_items(text: str) -> list[str]:
    """The items with a tick in `- [x] happy`, if there are at least two items or one is ticked."""
    return [item for box, sign, item in _CHECK_BOX.findall(text) if box.strip() or sign in tuple("☑☒✅✔")]


_INLINE_NUMBER = r"(?:[(（\[]?\d{1,2}[.)）、\]](?!\d)|[①-⑳])"
_INLINE_NUMBERS = re.compile(
    r"(?:^|[\s:：])(?:[(（\[]?1[.)）、\]](?!\d)|①)[^\d\n①-⑳]+(?:[(（\[]?2[.)）、\]]|②)\s*[^\d\s]"
)
_INLINE_LETTERS = re.compile(r"(?:^|[:：\s])[(]?[aA][.)]\s+[^\s.]+(?:\s[^\s.]+){0,3}[,;]?\s+[(]?[bB][.)]\s+\S")
_BEFORE_ITEM = re.compile(r"[,，;；、。]?[ \t]*\n\s*(?=1\. )")
_CHINESE_NUMBERS = re.compile(r"(^|[\s:：;；,，。])[一二三四五六七八九十]{1,2}[、.．]\s*(?=\S)")


def spread_numbering(text: str) -> str:
    """`text` with each item of an inline list, such as `1. happy 2. sad`, on a line of its own."""
    text = re.sub(r"^[ \t]*\[(\d{1,2})\](?=[ \t]*[^\s\d])", r"\1.", text, flags=re.MULTILINE)
    if _INLINE_NUMBERS.search(text) or len(re.findall("[①-⑳]", text)) > 1:
        text = re.sub(rf"(^|[\s:：;；,，]){_INLINE_NUMBER}\s*", r"\1\n1. ", text)
        text = re.sub(r"[①-⑳]\s*", r"\n1. ", text)
        text = _BEFORE_ITEM.sub("\n", text)
    elif _INLINE_LETTERS.search(text) and len(text) <= 300:
        text = re.sub(r"(^|[:：;,\s])[(]?[a-hA-H][.)]\s+", r"\1\n1. ", text)
        text = _BEFORE_ITEM.sub("\n", text)
    elif re.search(r"(?:^|[\s:：])一[、.．][^\n]*[\s,，;；。]二[、.．]", text):
        text = _BEFORE_ITEM.sub("\n", _CHINESE_NUMBERS.sub(r"\1\n1. ", text))
    return re.sub(r"\][ \t]*[,，、;；]?[ \t]*\[(?=[^\]]*[^\W\d])", ", ", text).strip()
