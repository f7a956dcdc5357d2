"""The annotator without a model: templates over what was measured, and a table of rules for labels.

It exists so that a pipeline runs anywhere, and as a floor to compare with. What it writes is what was measured, in
words; what it concludes is a rule of thumb, always with the same low confidence, which is no measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from affectgpt.annotate.evidence import phrase
from affectgpt.annotate.prompts import RANKED
from affectgpt.annotate.record import Fact
from affectgpt.runtime import InputError

NAME = "local-rules"
VERSION = "local-1"
CONFIDENCE = 0.2
"""Of every conclusion: it says "by a rule of thumb", and was not calibrated."""

Values = Mapping[str, float]


@dataclass(frozen=True)
class Rule:
    """`holds` for the measured values -> a label in English and Chinese, its valence, the facts it leans on."""

    label: tuple[str, str]
    valence: float
    facts: tuple[str, ...]
    holds: Callable[[Values], bool]


def _active(*units: str) -> Callable[[Values], bool]:
    return lambda values: all(unit in values for unit in units)


RULES = (
    # Action units: the combinations by which MERR keeps its pseudo-labels (Emotion-LLaMA, 2024), the core of each.
    Rule(("happy", "高兴"), 3, ("AU06", "AU12"), _active("AU06", "AU12")),
    Rule(("angry", "愤怒"), -3, ("AU04", "AU07", "AU23"), _active("AU04", "AU07", "AU23")),
    Rule(("surprised", "惊讶"), 0, ("AU01", "AU02", "AU05"), _active("AU01", "AU02", "AU05")),
    Rule(("sad", "悲伤"), -3, ("AU01", "AU04", "AU15"), _active("AU01", "AU04", "AU15")),
    Rule(("afraid", "害怕"), -3, ("AU01", "AU04", "AU20"), _active("AU01", "AU04", "AU20")),
    # The voice tells arousal better than pleasure (Scherer 2003), so these are words of arousal.
    Rule(("tense", "紧张"), -1, ("tremor_st",), lambda values: "tremor_st" in values),
    Rule(
        ("hesitant", "犹豫"),
        -1,
        ("pauses", "breaks"),
        lambda values: values.get("pauses", 0) + values.get("breaks", 0) >= 2,
    ),
    Rule(
        ("animated", "兴奋"),
        1,
        ("pitch_range_st", "syllable_rate_hz"),
        lambda values: values.get("pitch_range_st", 0) >= 8 and values.get("syllable_rate_hz", 0) >= 4.5,
    ),
    Rule(
        ("agitated", "激动"),
        -1,
        ("pitch_range_st", "syllable_rate_hz"),
        lambda values: values.get("pitch_range_st", 9) < 8 and values.get("syllable_rate_hz", 0) >= 6,
    ),
    Rule(
        ("subdued", "低落"),
        -2,
        ("pitch_range_st", "syllable_rate_hz"),
        lambda values: values.get("pitch_range_st", 9) < 6 and values.get("syllable_rate_hz", 9) < 3.5,
    ),
)
_NONE = Rule(("calm", "平静"), 0, (), lambda values: True)
"""Where something was measured and no rule holds."""

_TO_RANKED = {"happy": 0, "sad": 1, "subdued": 1, "angry": 2, "surprised": 3, "afraid": 4, "tense": 6, "calm": 7}
_SAYS = {"en": 'The person says: "{}"', "zh": "此人说：“{}”"}
_SEEN = {"en": "In the picture: {}.", "zh": "画面中：{}。"}
_HEARD = {"en": "In the voice: {}.", "zh": "声音中：{}。"}
_THUMB = {
    "en": "By rule of thumb, with little certainty, this points to: {}.",
    "zh": "按经验规则推断（把握不大），这表示：{}。",
}
_COMMA = {"en": ", ", "zh": "，"}
_MEASURED = ("pitch_hz", "peak_s")  # without one of these no rule has anything to hold on to


def conclude(facts: Sequence[Fact]) -> list[Rule]:
    """The rules that hold, strongest feeling first; [] if neither voice nor face was measured.

    >>> facts = [Fact("pitch_hz", "acoustic", 200, "Hz"), Fact("pauses", "acoustic", 3, "count")]
    >>> [rule.label[0] for rule in conclude(facts)]
    ['hesitant']
    """
    values = {fact.name: fact.value for fact in facts}
    if not set(values) & set(_MEASURED):
        return []
    return [rule for rule in RULES if rule.holds(values)] or [_NONE]


def answer(prompt: str, lang: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an answer to `prompt`; {} = there is nothing measured to answer from."""
    facts: Sequence[Fact] = about.get("evidence", ())
    rules = conclude(facts)
    labels = [rule.label[lang == "zh"] for rule in rules]
    if prompt in ("visual", "peak", "acoustic"):
        modality = "acoustic" if prompt == "acoustic" else "visual"
        text, names = in_words(facts, modality, lang)
        return {"clue": text, "evidence": names} if text else {}
    if prompt == "disambiguate":
        return {"clue": says(about["transcript"], lang)}
    if prompt in ("merge", "rewrite", "explain", "translate"):
        text = describe(facts, labels, lang, about.get("transcript"))
        key = "translation" if prompt == "translate" else "description"
        return {key: text, **({"labels": labels} if prompt == "explain" else {})} if text else {}
    if not rules:
        return {}
    if prompt == "labels":
        return {"labels": labels, "confidence": CONFIDENCE}
    if prompt == "ranking":
        places = [_TO_RANKED[rule.label[0]] for rule in rules if rule.label[0] in _TO_RANKED]
        return {"ranking": list(dict.fromkeys(RANKED[lang][place] for place in places))}
    if prompt == "valence":
        return {"valence": sum(rule.valence for rule in rules) / len(rules)}
    raise InputError(f"the local annotator has no answer to prompt {prompt!r}")


def says(transcript: str, lang: str) -> str:
    return _SAYS[lang].format(" ".join(transcript.split()))


def in_words(facts: Iterable[Fact], modality: str, lang: str) -> tuple[str, list[str]]:
    """The phrases of the facts of `modality` in one line, and the names of those that have one."""
    told = [(fact.name, words) for fact in facts if fact.modality == modality and (words := phrase(fact, lang))]
    return _COMMA[lang].join(words for _, words in told), [name for name, _ in told]


def describe(facts: Sequence[Fact], labels: Sequence[str], lang: str, transcript: str | None) -> str:
    """Seen, heard, said, concluded; "" if there is nothing to conclude from."""
    if not labels:
        return ""
    seen, heard = in_words(facts, "visual", lang)[0], in_words(facts, "acoustic", lang)[0]
    parts = [
        _SEEN[lang].format(seen) if seen else "",
        _HEARD[lang].format(heard) if heard else "",
        says(transcript, lang) if transcript else "",
        _THUMB[lang].format(_COMMA[lang].join(labels)),
    ]
    return (" " if lang == "en" else "").join(part for part in parts if part)
