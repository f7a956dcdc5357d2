"""Checks on single records: what is wrong, the reason, and whether to keep the record, drop it or ask a human.

Each check is a pure function from a record to findings. A policy {check: keep | ask | drop} maps findings to verdicts;
it is set in a pipeline's file (step `checks`) or on the command line (`policy.refusal=ask`). Nothing is deleted: a
dropped record stays in the folder with its reason, and is left out of the manifest and of exports. Near-duplicates
need all records: see duplicates.py.

The word lists aim for precision, not completeness. Text in quotation marks is what somebody said; it is not checked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from affectgpt.annotate.record import Annotation
from affectgpt.clauses import unsupported
from affectgpt.runtime import UserError
from affectgpt.schema import CLUES

CHECKS_VERSION = "checks-3"
"""Changes with every change of a verdict."""

VERDICTS = ("keep", "ask", "drop")

POLICY: dict[str, str] = {
    "empty_clue": "ask",
    "generic_clue": "ask",
    "repeated_clue": "keep",
    "refusal": "drop",
    "wrong_language": "ask",
    "label_without_clue": "drop",
    "absent_modality": "ask",
    "unmeasured_claim": "ask",
    "contradicts_units": "ask",
    "near_duplicate": "ask",
    "blind_verifier": "ask",
}
"""Default verdict of each check: keep = noted only, ask = a human should look, drop = left out."""


@dataclass(frozen=True)
class CheckFinding:
    """One problem: the check that found it, and the details."""

    check: str
    reason: str


def policy_of(changes: Mapping[str, Any]) -> dict[str, str]:
    """The default policy with changes; raises UserError for unknown checks or verdicts."""
    if unknown := sorted(set(changes) - set(POLICY)):
        raise UserError(f"policy: unknown checks {unknown}; expected some of {sorted(POLICY)}")
    policy = {**POLICY, **changes}
    if wrong := {name: verdict for name, verdict in policy.items() if verdict not in VERDICTS}:
        raise UserError(f"policy: {wrong}; expected one of {list(VERDICTS)} for each check")
    return policy


def verdict(record: Annotation) -> str:
    """ "drop" if any check says so, else "ask", else "keep"."""
    return max((row["verdict"] for row in record.checks), key=VERDICTS.index, default="keep")


def rows_of(findings: Iterable[CheckFinding], policy: Mapping[str, str]) -> tuple[dict[str, str], ...]:
    """Findings as the rows of a record's `checks`."""
    return tuple({"check": item.check, "verdict": policy[item.check], "reason": item.reason} for item in findings)


def check_record(record: Annotation, sees: frozenset[str] | None = None) -> list[CheckFinding]:
    """All findings about one record that need no other record.

    Args:
        sees: what the clip contains ("images", "sound"); None = derived from the record.
    """
    found: list[CheckFinding] = []
    for check in CHECKS:
        found += check(record)
    return found + absent_modality(record, sees)


# ---- texts -----------------------------------------------------------------------------------------------------------

_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|「[^」]*」|『[^』]*』|(?<!\w)'[^']*'(?!\w)|(?<!\w)‘[^’]*’")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f'’]+")


def without_quotations(text: str) -> str:
    """`text` without quotations."""
    return _QUOTED.sub(" ", text)


def _texts(record: Annotation) -> Iterator[tuple[str, str, str]]:
    """(name, language, text) of clues and descriptions."""
    for clue in record.clues:
        yield f"{clue.modality} clue", record.lang, clue.text
    for lang, text in record.description.items():
        yield f"description {lang}", lang, text


def shortened(text: str, n: int = 60) -> str:
    """`text` in one line of at most `n` characters."""
    text = " ".join(text.split())
    return text if len(text) <= n else f"{text[: n - 3]}..."


# ---- empty and generic -----------------------------------------------------------------------------------------------

_MIN_WORDS = {"en": 3, "zh": 4}  # words, characters

GENERIC = {
    "en": (
        "The person is talking.",
        "A person is speaking to the camera.",
        "The speaker's tone is calm and neutral.",
        "The voice is clear and the tone is normal.",
        "The tone of the speaker is not clear.",
        "No obvious emotion can be seen.",
        "The person shows various emotions.",
        "The emotion of the person cannot be determined from the audio.",
        "The audio contains a person speaking.",
        "The video shows a person.",
        "The person's facial expression is neutral.",
        "There is nothing special to be seen in the video.",
        "The words express the feelings of the speaker.",
    ),
    "zh": (
        "一个人在说话。",
        "视频中有一个人。",
        "说话人的语气平静而中性。",
        "声音清晰，语气正常。",
        "看不出明显的情绪。",
        "无法从音频中判断情绪。",
        "音频中有人在说话。",
        "人物的面部表情是中性的。",
        "视频中没有特别的内容。",
        "这句话表达了说话人的感受。",
    ),
}
"""Sentences that fit almost any clip; a clue that consists of sentences close to these is generic."""

_STOP = frozenset(
    (
        *(
            "a",
            "an",
            "and",
            "are",
            "as",
            "at",
            "be",
            "by",
            "can",
            "can't",
            "cannot",
            "for",
            "from",
            "has",
            "have",
            "he",
        ),
        *("her", "his", "in", "is", "it", "its", "of", "on", "or", "she", "that", "the", "their", "there", "they"),
        *("this", "to", "was", "were", "which", "who", "with"),
    )
)


def _content(text: str, lang: str) -> frozenset[str]:
    """The content words of a sentence, or its Chinese characters without particles."""
    if lang == "zh":
        return frozenset(_HAN.findall(text)) - frozenset("的了是在而和与")
    return frozenset(
        word.lower().removesuffix("'s").removesuffix("s") for word in _WORD.findall(text) if word.lower() not in _STOP
    )


_GENERIC = {lang: [_content(sentence, lang) for sentence in sentences] for lang, sentences in GENERIC.items()}


def likeness(text: str, other: str, lang: str) -> float:
    """Share of the content words of the shorter text that the other one has, 0 to 1."""
    own, others = _content(text, lang), _content(other, lang)
    return len(own & others) / max(min(len(own), len(others)), 1)


def _is_generic(sentence: str, lang: str) -> bool:
    """Whether the content words of the sentence and of one in the list have a Jaccard similarity of at least 0.75."""
    own = _content(sentence, lang)
    return any(len(own & other) >= 0.75 * len(own | other) for other in _GENERIC[lang])


def empty_clue(record: Annotation) -> list[CheckFinding]:
    """A clue of fewer than three words (four Chinese characters)."""
    found = []
    for clue in record.clues:
        size = len(_HAN.findall(clue.text)) if record.lang == "zh" else len(_WORD.findall(clue.text))
        if size < _MIN_WORDS[record.lang]:
            found.append(CheckFinding("empty_clue", f"{clue.modality} clue: {shortened(clue.text)!r}"))
    return found


def generic_clue(record: Annotation) -> list[CheckFinding]:
    """A clue whose sentences would all fit almost any clip."""
    found = []
    for clue in record.clues:
        sentences = [part for part in re.split(r"[.!?。！？]+", clue.text) if part.strip()]
        if sentences and all(_is_generic(part, record.lang) for part in sentences):
            found.append(CheckFinding("generic_clue", f"{clue.modality} clue: {shortened(clue.text)!r}"))
    return found


# ---- refusals and languages ------------------------------------------------------------------------------------------

_REFUSALS = re.compile(
    r"\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b|"
    r"\b(?:I am|I'm|I’m) (?:sorry|unable|not able|afraid I)\b|"
    r"\bI (?:can't|can’t|cannot|can not|won't|won’t|will not) "
    r"(?:assist|help|provide|identify|determine|describe|comment|comply|answer|see|hear|watch|view|listen|process|access)|"
    r"\b(?:no|not any|without an?) (?:image|picture|video|audio|frame|sound)s? (?:was|were|is|are|has been|have been) "
    r"(?:provided|given|attached|uploaded)|"
    r"作为(?:一个|一名)?(?:AI|人工智能|语言模型|大模型)|(?:很?抱歉|对不起)[，,]?我?(?:无法|不能)|"
    r"我(?:无法|不能)(?:提供|协助|帮助|识别|判断|描述|回答|查看|看到|听到|访问)|(?:未|没有)(?:提供|收到|上传)(?:任何)?(?:图片|图像|视频|音频)",
    re.IGNORECASE,
)


def refusal(record: Annotation) -> list[CheckFinding]:
    """A refusal in place of a clue or a description."""
    found = []
    for name, _, text in _texts(record):
        if match := _REFUSALS.search(without_quotations(text)):
            found.append(CheckFinding("refusal", f"{name}: {shortened(match.group())!r}"))
    return found


def share_of_han(text: str) -> float | None:
    """Share of Chinese characters among Chinese characters and words of other scripts; None = neither occurs.

    >>> share_of_han("他笑了 (smile)"), share_of_han("He smiles."), share_of_han("12 %")
    (0.75, 0.0, None)
    """
    n_han = len(_HAN.findall(text))
    n_other = len(_WORD.findall(_HAN.sub(" ", text)))
    return n_han / (n_han + n_other) if n_han + n_other else None


def wrong_language(record: Annotation) -> list[CheckFinding]:
    """A text that is not mainly in its language: less than 60 % Chinese characters in Chinese, more than 15 % in
    English, or mostly another script."""
    texts = [*_texts(record), ("labels", record.lang, " ".join(record.labels))]
    found = []
    for name, lang, text in texts:
        bare = without_quotations(text)
        share = share_of_han(bare)
        if share is None:
            continue
        words = _WORD.findall(_HAN.sub(" ", bare))
        foreign = sum(not _LATIN.fullmatch(word) for word in words)
        if foreign > 0.5 * max(len(words), 1) and foreign > len(_HAN.findall(bare)):
            found.append(CheckFinding("wrong_language", f"{name}: neither English nor Chinese: {shortened(text)!r}"))
        elif (share < 0.6) if lang == "zh" else (share > 0.15):
            found.append(CheckFinding("wrong_language", f"{name}: {share:.0%} Chinese where {lang} is expected"))
    return found


# ---- grounds ---------------------------------------------------------------------------------------------------------


def label_without_clue(record: Annotation) -> list[CheckFinding]:
    """Labels without any clue that could support them."""
    if record.labels and not record.clues:
        return [CheckFinding("label_without_clue", f"labels {', '.join(record.labels)}, and no clue")]
    return []


_FACE = re.compile(
    r"\b(?:faces?|facial|smil\w+|frown\w*|grin\w*|eyebrows?|brows?|eyelids?|eyes|gaze|lips?|cheeks?|jaw|mouth|nod\w*)\b|"
    r"脸|面部|表情|眉|眼睛|眼神|目光|嘴角|嘴唇|微笑|皱眉|点头",
    re.IGNORECASE,
)


_NO_SPEECH = re.compile(
    r"\b(?:laugh|giggl|chuckl|cry|cries|crying|sob|sigh|scream|shout|gasp|breath|moan|groan|hum(?:s|ming)?\b)|"
    r"\b(?:music|noise|sounds?|background)\b|其他声音|笑|哭|抽泣|叹|尖叫|呼吸|喘|音乐|噪|背景",
    re.IGNORECASE,
)


def absent_modality(record: Annotation, sees: frozenset[str] | None = None) -> list[CheckFinding]:
    """A voice is described although the clip has none, or a face although there is no picture or no face was found.

    Denials ("no voice is heard") claim nothing; see `affectgpt.clauses`. The measured evidence tells whether there is a
    voice or a face; where no face was looked for, one is assumed.
    """
    facts = {fact.name: fact.value for fact in record.evidence}
    measured = any(step.model == "measured" for step in record.provenance)
    sound = (
        "sound" in sees
        if sees is not None
        else bool({"speech_s", "voice_s"} & set(facts))
        if measured
        else _has(record, "audio", "video")
    )
    images = "images" in sees if sees is not None else _has(record, "video")
    silent = facts.get("speech_s", facts.get("voice_s", 1)) == 0  # records before evidence-2 have voice_s alone
    no_voice = "the clip has no sound" if not sound else "no speech was heard" if silent else ""
    no_face = "the clip has no picture" if not images and not record.media.get("face") else ""
    if not no_face and facts.get("face_tracked_share", 1) == 0 and not facts.get("face_crops"):
        no_face = "no face was found"
    found = []
    for what, why, modality in (("voice", no_voice, "acoustic"), ("face", no_face, "visual")):
        for name, lang, text in _texts(record) if why else ():
            claimed = unsupported(text, lang, set(CLUES) - {modality})
            # A clip without a face still has pictures, so only statements about a face are wrong.
            # One who does not speak can laugh or cry; the detector finds speech only.
            sentences = [
                sentence
                for sentence, _ in claimed
                if (_FACE.search(sentence) if what == "face" else not (sound and _NO_SPEECH.search(sentence)))
            ]
            if sentences:
                found.append(
                    CheckFinding("absent_modality", f"{name} tells of a {what} ({shortened(sentences[0])!r}); {why}")
                )
    return found


def _has(record: Annotation, *names: str) -> bool:
    return any(record.media.get(name) for name in names)


_UNIT = re.compile(r"\bAU ?0?(\d{1,2})\b")
_NUMBER = re.compile(
    r"(-?\d+(?:\.\d+)?) ?(Hz|hertz|赫兹|semitones?|个?半音|dB|decibels?|分贝|syllables|个音节)", re.IGNORECASE
)
_UNIT_NAMES = {
    **dict.fromkeys(("hz", "hertz", "赫兹"), "Hz"),
    **dict.fromkeys(("semitone", "semitones", "个半音", "半音"), "semitones"),
    **dict.fromkeys(("db", "decibel", "decibels", "分贝"), "dB"),
    **dict.fromkeys(("syllables", "个音节"), "syllables"),
}


def unmeasured_claim(record: Annotation) -> list[CheckFinding]:
    """An action unit, or a number with a unit, that was not measured. (In clues, the schema refuses units.)

    A number agrees with a measured one if the latter rounds to it at the precision in which it is written.
    """
    units = {fact.name for fact in record.evidence}
    found = []
    for name, _, text in _texts(record):
        bare = without_quotations(text)
        claimed = sorted({f"AU{int(number):02d}" for number in _UNIT.findall(bare)} - units)
        if claimed:
            found.append(CheckFinding("unmeasured_claim", f"{name}: {', '.join(claimed)}"))
        for number, unit in _NUMBER.findall(bare):
            kind = _UNIT_NAMES[unit.lower()]
            digits = len(number.partition(".")[2])
            values = [abs(fact.value) for fact in record.evidence if fact.unit.startswith(kind)]
            # Half a unit of the last digit written, plus the rounding error of the fact itself.
            if not any(abs(abs(float(number)) - value) <= 0.5 * 10**-digits + 0.006 for value in values):
                found.append(CheckFinding("unmeasured_claim", f"{name}: {number} {unit}"))
    return found


AGREEING = {
    "happy": (6, 12, 14),
    "angry": (4, 5, 7, 10, 17, 23),
    "surprised": (1, 2, 5, 26),
    "afraid": (1, 2, 4, 5, 7, 20, 26),
    "sad": (1, 4, 15),
    "worried": (20, 28),
    "contempt": (10, 12, 14, 17),
    "doubt": (25,),
}
"""Action units with which MERR confirms a pseudo-label (Emotion-LLaMA, 2024)."""

_SAME = {
    **{"happiness": "happy", "joy": "happy", "anger": "angry", "surprise": "surprised", "fear": "afraid"},
    **{"fearful": "afraid", "sadness": "sad", "worry": "worried", "contemptuous": "contempt", "doubtful": "doubt"},
    **{"高兴": "happy", "开心": "happy", "愤怒": "angry", "生气": "angry", "惊讶": "surprised", "害怕": "afraid"},
    **{"恐惧": "afraid", "悲伤": "sad", "难过": "sad", "担忧": "worried", "担心": "worried", "轻蔑": "contempt"},
    "怀疑": "doubt",
}


def contradicts_units(record: Annotation) -> list[CheckFinding]:
    """The first-ranked emotion is one of MERR's, and none of the units active at the peak is one of that emotion's."""
    words = record.ranking[:1] or record.labels[:1]
    label = _SAME.get(words[0].lower(), words[0].lower()) if words else ""
    active = sorted(int(fact.name[2:]) for fact in record.evidence if re.fullmatch(r"AU\d\d", fact.name))
    if label in AGREEING and active and not set(active) & set(AGREEING[label]):
        active_names, expected = (", ".join(f"AU{n:02d}" for n in units) for units in (active, AGREEING[label]))
        return [
            CheckFinding("contradicts_units", f"{words[0]} at a peak with {active_names}; expected one of {expected}")
        ]
    return []


CHECKS: tuple[Callable[[Annotation], list[CheckFinding]], ...] = (
    *(empty_clue, generic_clue, refusal, wrong_language, label_without_clue, unmeasured_claim, contradicts_units),
)
"""Checks that need the record alone; `absent_modality` also takes what the clip contains."""


def count_verdicts(records: Iterable[Annotation]) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """The number of records by verdict, and by (check, verdict)."""
    verdicts: Counter[str] = Counter()
    by_check: Counter[tuple[str, str]] = Counter()
    for record in records:
        verdicts[verdict(record)] += 1
        by_check.update({(row["check"], row["verdict"]) for row in record.checks})
    return verdicts, by_check


def worst_first(counts: Mapping[tuple[str, str], int]) -> list[tuple[tuple[str, str], int]]:
    """Counts by (check, verdict): drop before ask before keep, then the largest first."""
    return sorted(counts.items(), key=lambda item: (-VERDICTS.index(item[0][1]), -item[1]))


def other_checks(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Rows of a record's `checks` that do not come from these checks: the blind verifier's and human rounds'."""
    own = set(POLICY) - {"blind_verifier"}
    return [row for row in rows if row["check"] not in own]
