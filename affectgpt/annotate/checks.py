"""Checks on records: what is wrong with one, in a word and a reason, and whether to keep it, drop it or ask a human.

Each check is a pure function from a record to findings. What a finding means is a policy: {check: keep | ask | drop},
set in a pipeline's file (step `checks`) or on the command line (`policy.refusal=ask`). Nothing is deleted: a dropped
record stays in the folder with its reason, and is left out of what is exported. Near-duplicates need all records, so
they are found by `python -m affectgpt.annotate check folder/`, in two passes whose memory does not grow.

The word lists are short and meant to be precise rather than complete; text in quotation marks is what somebody said,
and is not checked.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from affectgpt.annotate.record import Annotation
from affectgpt.runtime import UserError

VERSION = "checks-1"
"""Changes whenever a record would be judged otherwise."""

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
"""What each finding leads to unless it is set otherwise: keep = only noted, ask = a human should look, drop = out."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: the check that found it, and what exactly."""

    check: str
    reason: str


def policy_of(changes: Mapping[str, Any]) -> dict[str, str]:
    """The default policy with changes; raises UserError for unknown checks or verdicts."""
    if strange := sorted(set(changes) - set(POLICY)):
        raise UserError(f"policy: there is no check {strange}; there are {sorted(POLICY)}")
    policy = {**POLICY, **changes}
    if wrong := {name: verdict for name, verdict in policy.items() if verdict not in VERDICTS}:
        raise UserError(f"policy: {wrong}; expected one of {list(VERDICTS)} for each check")
    return policy


def verdict(record: Annotation) -> str:
    """ "drop" if any check says so, else "ask", else "keep"."""
    return max((row["verdict"] for row in record.checks), key=VERDICTS.index, default="keep")


def rows_of(findings: Iterable[Finding], policy: Mapping[str, str]) -> tuple[dict[str, str], ...]:
    """Findings as they stand in a record's `checks`."""
    return tuple({"check": item.check, "verdict": policy[item.check], "reason": item.reason} for item in findings)


def check_record(record: Annotation, sees: frozenset[str] | None = None) -> list[Finding]:
    """All findings about one record that can be made without the others.

    Args:
        sees: what the clip holds ("images", "sound"); None = as far as the record tells.
    """
    found: list[Finding] = []
    for check in CHECKS:
        found += check(record)
    return found + absent_modality(record, sees)


# ---- texts -----------------------------------------------------------------------------------------------------------

_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|「[^」]*」|『[^』]*』|(?<!\w)'[^']*'(?!\w)|(?<!\w)‘[^’]*’")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f'’]+")


def unquoted(text: str) -> str:
    """`text` without what stands in quotation marks."""
    return _QUOTED.sub(" ", text)


def _texts(record: Annotation) -> Iterator[tuple[str, str, str]]:
    """(name, language, text) of clues and descriptions."""
    for clue in record.clues:
        yield f"{clue.modality} clue", record.lang, clue.text
    for lang, text in record.description.items():
        yield f"description {lang}", lang, text


def _short(text: str, n: int = 60) -> str:
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
"""Sentences that say nothing about a clip; a clue that is nearly one of them, or made of them, is generic."""

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
    """What a sentence is made of: content words, or Chinese characters without particles."""
    if lang == "zh":
        return frozenset(_HAN.findall(text)) - frozenset("的了是在而和与")
    return frozenset(
        word.lower().removesuffix("'s").removesuffix("s") for word in _WORD.findall(text) if word.lower() not in _STOP
    )


_GENERIC = {lang: [_content(sentence, lang) for sentence in sentences] for lang, sentences in GENERIC.items()}


def _is_generic(sentence: str, lang: str) -> bool:
    """Whether 3 of 4 of what the sentence and one of the list are made of is shared."""
    own = _content(sentence, lang)
    return any(len(own & other) >= 0.75 * len(own | other) for other in _GENERIC[lang])


def empty_clue(record: Annotation) -> list[Finding]:
    """A clue of fewer than three words (four Chinese characters)."""
    found = []
    for clue in record.clues:
        size = len(_HAN.findall(clue.text)) if record.lang == "zh" else len(_WORD.findall(clue.text))
        if size < _MIN_WORDS[record.lang]:
            found.append(Finding("empty_clue", f"{clue.modality} clue: {_short(clue.text)!r}"))
    return found


def generic_clue(record: Annotation) -> list[Finding]:
    """A clue all of whose sentences would fit nearly every clip."""
    found = []
    for clue in record.clues:
        sentences = [part for part in re.split(r"[.!?。！？]+", clue.text) if part.strip()]
        if sentences and all(_is_generic(part, record.lang) for part in sentences):
            found.append(Finding("generic_clue", f"{clue.modality} clue: {_short(clue.text)!r}"))
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


def refusal(record: Annotation) -> list[Finding]:
    """A model that says it cannot or will not, where a clue or a description should stand."""
    found = []
    for name, _, text in _texts(record):
        if match := _REFUSALS.search(unquoted(text)):
            found.append(Finding("refusal", f"{name}: {_short(match.group())!r}"))
    return found


def share_of_han(text: str) -> float | None:
    """Chinese characters among Chinese characters and words of other scripts; None = there are neither.

    >>> share_of_han("他笑了 (smile)"), share_of_han("He smiles."), share_of_han("12 %")
    (0.75, 0.0, None)
    """
    n_han = len(_HAN.findall(text))
    n_other = len(_WORD.findall(_HAN.sub(" ", text)))
    return n_han / (n_han + n_other) if n_han + n_other else None


def wrong_language(record: Annotation) -> list[Finding]:
    """A text that is not mainly in its language: under 60 % Chinese characters in Chinese, over 15 % in English, or in
    a script that is neither."""
    texts = [*_texts(record), ("labels", record.lang, " ".join(record.labels))]
    found = []
    for name, lang, text in texts:
        bare = unquoted(text)
        share = share_of_han(bare)
        if share is None:
            continue
        words = _WORD.findall(_HAN.sub(" ", bare))
        foreign = sum(not _LATIN.fullmatch(word) for word in words)
        if foreign > 0.5 * max(len(words), 1) and foreign > len(_HAN.findall(bare)):
            found.append(Finding("wrong_language", f"{name}: neither English nor Chinese: {_short(text)!r}"))
        elif (share < 0.6) if lang == "zh" else (share > 0.15):
            found.append(Finding("wrong_language", f"{name}: {share:.0%} Chinese where {lang} is expected"))
    return found


# ---- grounds ---------------------------------------------------------------------------------------------------------


def label_without_clue(record: Annotation) -> list[Finding]:
    """Labels, and no clue at all that they could rest on."""
    if record.labels and not record.clues:
        return [Finding("label_without_clue", f"labels {', '.join(record.labels)}, and no clue")]
    return []


_VOICE = re.compile(
    r"\b(?:voices?|vocal\w*|intonation|tone of voice|tone (?:is|was|sounds)|pitch|loudness|speech rate|speaking rate|"
    r"(?:he|she|they|person|speaker|man|woman) sounds?|audible|sighs?|sighing|whisper\w*|shout\w*|sob\w*)\b|"
    r"声音|语气|语调|音调|音高|嗓音|音量|语速|叹气|听起来",
    re.IGNORECASE,
)
_FACE = re.compile(
    r"\b(?:faces?|facial|smil\w+|frown\w*|grin\w*|eyebrows?|brows?|eyelids?|eyes|gaze|lips?|cheeks?|jaw|mouth|nod\w*)\b|"
    r"脸|面部|表情|眉|眼睛|眼神|目光|嘴角|嘴唇|微笑|皱眉|点头",
    re.IGNORECASE,
)
_DENIES = re.compile(
    r"\b(?:no|not|without|nothing|cannot|can't|never|neither|nor|hidden|invisible|inaudible|silent)\b|"
    r"没有|無|无|未|不见|听不|看不|静音",
    re.IGNORECASE,
)


def absent_modality(record: Annotation, sees: frozenset[str] | None = None) -> list[Finding]:
    """Talk of a voice where the clip has none, or of a face where no picture or no face was found.

    A sentence that denies ("no voice is heard") claims nothing. Whether there is a voice or a face is known from what
    was measured; a face that nobody looked for counts as there.
    """
    facts = {fact.name: fact.value for fact in record.evidence}
    measured = any(step.model == "measured" for step in record.provenance)
    sound = "sound" in sees if sees is not None else "voice_s" in facts if measured else _has(record, "audio", "video")
    images = "images" in sees if sees is not None else _has(record, "video")
    no_voice = "the clip has no sound" if not sound else "no voice was heard" if facts.get("voice_s", 1) == 0 else ""
    no_face = "the clip has no picture" if not images and not record.media.get("face") else ""
    if not no_face and facts.get("face_tracked_share", 1) == 0 and not facts.get("face_crops"):
        no_face = "no face was found"
    found = []
    for what, why, pattern in (("voice", no_voice, _VOICE), ("face", no_face, _FACE)):
        for name, _, text in _texts(record) if why else ():
            for sentence in re.split(r"(?<=[.!?;。！？；])", unquoted(text)):
                match = pattern.search(sentence)
                if match and not _DENIES.search(sentence):
                    found.append(Finding("absent_modality", f"{name} tells of a {what} ({match.group()!r}); {why}"))
                    break
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


def unmeasured_claim(record: Annotation) -> list[Finding]:
    """An action unit or a number with a unit that was not measured. (In clues, the record's schema refuses such units.)

    A number agrees with a measured one if it is the same up to rounding to what is written.
    """
    units = {fact.name for fact in record.evidence}
    found = []
    for name, _, text in _texts(record):
        bare = unquoted(text)
        claimed = sorted({f"AU{int(number):02d}" for number in _UNIT.findall(bare)} - units)
        if claimed:
            found.append(Finding("unmeasured_claim", f"{name}: {', '.join(claimed)}"))
        for number, unit in _NUMBER.findall(bare):
            kind = _UNIT_NAMES[unit.lower()]
            digits = len(number.partition(".")[2])
            values = [abs(fact.value) for fact in record.evidence if fact.unit.startswith(kind)]
            # Half a unit of the last digit written, and a rounding error of the fact itself.
            if not any(abs(abs(float(number)) - value) <= 0.5 * 10**-digits + 0.006 for value in values):
                found.append(Finding("unmeasured_claim", f"{name}: {number} {unit}"))
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
"""Action units by which MERR keeps a pseudo-label (Emotion-LLaMA, 2024)."""

_SAME = {
    **{"happiness": "happy", "joy": "happy", "anger": "angry", "surprise": "surprised", "fear": "afraid"},
    **{"fearful": "afraid", "sadness": "sad", "worry": "worried", "contemptuous": "contempt", "doubtful": "doubt"},
    **{"高兴": "happy", "开心": "happy", "愤怒": "angry", "生气": "angry", "惊讶": "surprised", "害怕": "afraid"},
    **{"恐惧": "afraid", "悲伤": "sad", "难过": "sad", "担忧": "worried", "担心": "worried", "轻蔑": "contempt"},
    "怀疑": "doubt",
}


def contradicts_units(record: Annotation) -> list[Finding]:
    """The first-ranked word is one of MERR's, action units are active at the peak, and none of them is one of its."""
    words = record.ranking[:1] or record.labels[:1]
    label = _SAME.get(words[0].lower(), words[0].lower()) if words else ""
    active = sorted(int(fact.name[2:]) for fact in record.evidence if re.fullmatch(r"AU\d\d", fact.name))
    if label in AGREEING and active and not set(active) & set(AGREEING[label]):
        told, expected = (", ".join(f"AU{n:02d}" for n in units) for units in (active, AGREEING[label]))
        return [Finding("contradicts_units", f"{words[0]} at a peak with {told}; expected one of {expected}")]
    return []


CHECKS: tuple[Callable[[Annotation], list[Finding]], ...] = (
    *(empty_clue, generic_clue, refusal, wrong_language, label_without_clue, unmeasured_claim, contradicts_units),
)
"""Checks of one record by itself; `absent_modality` comes on top, since it may be told what the clip holds."""


# ---- near-duplicates -------------------------------------------------------------------------------------------------

N_HASHES, N_BANDS = 64, 16
"""MinHash with 16 bands of 4: texts that share 85 % of their shingles meet with probability 0.99999, those that share
20 % with 0.03 (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4)."""

MAX_IN_BAND = 64
"""Texts that one band leads to. Where hundreds are alike but for less than the threshold (a template with other
numbers), bands are full and a near-duplicate can be missed, never an equal text; so work grows with the clips only."""

_PRIME = (1 << 31) - 1


_POWERS = np.uint64(0x9E3779B97F4A7C15) ** np.arange(1, 6, dtype=np.uint64)  # an odd number: no power loses bits


def shingles(text: str) -> np.ndarray:
    """Hashes of all runs of five characters, spaces and case aside: uint64 [n], sorted, no repeats."""
    plain = " ".join(text.lower().split()).ljust(5)
    letters = np.frombuffer(plain.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    values = np.lib.stride_tricks.sliding_window_view(letters, 5) @ _POWERS  # [n], modulo 2**64
    values ^= values >> np.uint64(33)  # mix high bits into low ones, as in MurmurHash3's last steps
    values *= np.uint64(0xFF51AFD7ED558CCD)
    return np.unique(values ^ (values >> np.uint64(33)))


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity of two sets of shingles."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


class Duplicates:
    """Groups texts that are nearly the same; what it knows lies in a database on disk that vanishes with it.

    A group is named after its first text; a text joins the group of the most similar first text it meets.
    """

    def __init__(self, threshold: float = 0.85, seed: int = 0) -> None:
        self.threshold = threshold
        rng = np.random.default_rng(seed)
        self._a = rng.integers(1, _PRIME, N_HASHES, dtype=np.uint64)[:, None]
        self._b = rng.integers(0, _PRIME, N_HASHES, dtype=np.uint64)[:, None]
        self._db = sqlite3.connect("", isolation_level=None)  # an empty name: temporary, on disk
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("CREATE TABLE bands (band BLOB, first INTEGER, PRIMARY KEY (band, first)) WITHOUT ROWID")
        self._db.execute("CREATE TABLE firsts (first INTEGER PRIMARY KEY, name TEXT, shingles BLOB, n INTEGER)")
        self._db.execute("CREATE TABLE texts (kind TEXT, name TEXT, first INTEGER, PRIMARY KEY (kind, name))")

    def add(self, kind: str, name: str, text: str) -> None:
        """Take up one text; only texts of the same kind are compared."""
        own = shingles(text)
        bands = [kind.encode() + b"\0" + band for band in self._bands(own)]
        marks = ",".join("?" * len(bands))
        query = f"SELECT first FROM bands WHERE band IN ({marks}) GROUP BY first ORDER BY COUNT(*) DESC LIMIT 8"
        rows = self._db.execute(query, bands).fetchall()
        best, first = 0.0, None
        for (candidate,) in rows:
            (blob,) = self._db.execute("SELECT shingles FROM firsts WHERE first = ?", (candidate,)).fetchone()
            if (alike := similarity(own, np.frombuffer(blob, dtype=np.uint64))) > best:
                best, first = alike, candidate
        if first is None or best < self.threshold:
            cursor = self._db.execute("INSERT INTO firsts (name, shingles, n) VALUES (?, ?, 0)", (name, own.tobytes()))
            first = cursor.lastrowid
            insert = "INSERT OR IGNORE INTO bands SELECT ?1, ?2 WHERE (SELECT COUNT(*) FROM bands WHERE band = ?1) < ?3"
            self._db.executemany(insert, [(band, first, MAX_IN_BAND) for band in bands])
        self._db.execute("UPDATE firsts SET n = n + 1 WHERE first = ?", (first,))
        self._db.execute("INSERT OR REPLACE INTO texts VALUES (?, ?, ?)", (kind, name, first))

    def group(self, kind: str, name: str) -> tuple[str, int]:
        """The first text of the group to which this one belongs, and how many belong to it."""
        query = "SELECT firsts.name, n FROM texts JOIN firsts USING (first) WHERE kind = ? AND texts.name = ?"
        first, n = self._db.execute(query, (kind, name)).fetchone()
        return first, n

    def knows(self, record: Annotation) -> bool:
        """Whether this record, with as many clues, was taken up."""
        names = [("description", record.id)] if record.description.get(record.lang) else []
        names += [(clue.modality, f"{record.id} {number}") for number, clue in enumerate(record.clues)]
        query = "SELECT 1 FROM texts WHERE kind = ? AND name = ?"
        return all(self._db.execute(query, name).fetchone() for name in names)

    def close(self) -> None:
        self._db.close()

    def _bands(self, values: np.ndarray) -> list[bytes]:
        """The MinHash signature in bands, each with its number, and as a whole: equal texts always meet."""
        x = (values % np.uint64(_PRIME))[None, :]
        signature = ((self._a * x + self._b) % np.uint64(_PRIME)).min(axis=1)  # [H]; below 2**62, nothing overflows
        rows = np.split(signature.astype(np.uint32), N_BANDS)
        whole = hashlib.blake2b(values.tobytes(), digest_size=16).digest()
        return [whole, *(bytes([number]) + row.tobytes() for number, row in enumerate(rows))]


REPEATED_FROM = 20
"""A clue is called repeated if at least so many clips share it."""


def learn_duplicates(records: Iterable[Annotation], duplicates: Duplicates) -> int:
    """First pass: take up every description and every clue; returns the number of records."""
    n = 0
    for n, record in enumerate(records, 1):  # noqa: B007
        if text := record.description.get(record.lang):
            duplicates.add("description", record.id, text)
        for number, clue in enumerate(record.clues):
            duplicates.add(clue.modality, f"{record.id} {number}", clue.text)
    return n


def duplicate_findings(record: Annotation, duplicates: Duplicates) -> list[Finding]:
    """Second pass: a description that another clip has already, and clues that many clips share."""
    found = []
    if record.description.get(record.lang):
        first, n = duplicates.group("description", record.id)
        if first != record.id:
            found.append(Finding("near_duplicate", f"description as that of {first!r} ({n} clips share it)"))
    for number, clue in enumerate(record.clues):
        _, n = duplicates.group(clue.modality, f"{record.id} {number}")
        if n >= REPEATED_FROM:
            found.append(Finding("repeated_clue", f"{clue.modality} clue of {n} clips: {_short(clue.text)!r}"))
    return found


def count(records: Iterable[Annotation]) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """How many records have each verdict, and how many have each (check, verdict)."""
    verdicts: Counter[str] = Counter()
    by_check: Counter[tuple[str, str]] = Counter()
    for record in records:
        verdicts[verdict(record)] += 1
        by_check.update({(row["check"], row["verdict"]) for row in record.checks})
    return verdicts, by_check


def own_checks(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Rows that others wrote into a record's `checks`, such as the blind verifier and human rounds."""
    mine = set(POLICY) - {"blind_verifier"}
    return [row for row in rows if row["check"] not in mine]
