"""The annotator without a model: templates over the measured evidence, and a table of rules for labels.

With it a pipeline runs anywhere; it is also a baseline. Its clues only put the measurements into words. Its labels are
rules of thumb with one fixed, low confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from affectgpt.annotate.evidence import phrase
from affectgpt.annotate.prompts import RANKED
from affectgpt.annotate.record import Fact
from affectgpt.runtime import InputError
from affectgpt.schema import hears_other

NAME = "local-rules"
RULES_VERSION = "local-3"
"""Changes with every change of an answer; part of every record's key."""
CONFIDENCE = 0.2
"""Confidence of every label; not calibrated."""

Values = Mapping[str, float]


@dataclass(frozen=True)
class LabelRule:
    """If `holds` for the measured values: a label in English and Chinese, its valence, the facts that it rests on."""

    label: tuple[str, str]
    valence: float
    facts: tuple[str, ...]
    holds: Callable[[Values], bool]


def _active(*units: str) -> Callable[[Values], bool]:
    return lambda values: all(unit in values for unit in units)


_FAST_HZ = 5.8  # syllables a second
_GRIEF = {"lips_pressed", "inner_brows_lowered", "inner_brows_raised"}


def _surprised(values: Values) -> bool:
    """Brows up and mouth open at once, and not for long."""
    names = ("outer_brows_raised", "jaw_lowered", "lips_apart")
    if not set(names) <= set(values) or _lasts(values, names[0]) >= 2.0:
        return False
    return all(abs(values[f"{name}_start_s"] - values["outer_brows_raised_start_s"]) <= 0.6 for name in names)


def _grieves(values: Values) -> bool:
    return _lasts(values, "eyes_closed") >= 1.0 and bool(_GRIEF & set(values))


def _smiles(values: Values) -> bool:
    """Weeping widens the mouth like a smile, and so does a surprise; a mouth raised after either is a smile."""
    if _lasts(values, "mouth_widened") < 0.8 or _lasts(values, "mouth_corners_raised") < 0.4:
        return False
    if _grieves(values) and values["mouth_widened_start_s"] < _ends_s(values, "eyes_closed"):
        return False
    brows_fall_s = _ends_s(values, "outer_brows_raised")
    return not _surprised(values) or values["mouth_corners_raised_start_s"] >= brows_fall_s - 0.2


def _lasts(values: Values, name: str) -> float:
    return values.get(f"{name}_lasts_s", 0.0)


def _ends_s(values: Values, name: str) -> float:
    return values.get(f"{name}_start_s", 0.0) + _lasts(values, name)


def _lively(values: Values) -> bool:
    return values.get("pitch_range_st", 0) >= 6 and values.get("syllable_rate_hz", 0) >= 4.3


RULES = (
    # Action units: the core of the combinations with which MERR confirms pseudo-labels (Emotion-LLaMA, 2024).
    LabelRule(("happy", "高兴"), 3, ("AU06", "AU12"), _active("AU06", "AU12")),
    LabelRule(("angry", "愤怒"), -3, ("AU04", "AU07", "AU23"), _active("AU04", "AU07", "AU23")),
    LabelRule(("surprised", "惊讶"), 0, ("AU01", "AU02", "AU05"), _active("AU01", "AU02", "AU05")),
    LabelRule(("sad", "悲伤"), -3, ("AU01", "AU04", "AU15"), _active("AU01", "AU04", "AU15")),
    LabelRule(("afraid", "害怕"), -3, ("AU01", "AU04", "AU20"), _active("AU01", "AU04", "AU20")),
    # Without action units: a smile moves both corners, outwards and up, for longer than a word; brows that rise while
    # the jaw falls are a surprise; eyes that stay closed under moved brows or over pressed lips belong to grief.
    LabelRule(("happy", "高兴"), 3, ("mouth_corners_raised", "mouth_widened"), lambda values: _smiles(values)),
    LabelRule(
        ("surprised", "惊讶"),
        0,
        ("outer_brows_raised", "jaw_lowered", "lips_apart"),
        lambda values: _surprised(values),
    ),
    LabelRule(
        ("sad", "悲伤"),
        -3,
        ("eyes_closed",),
        lambda values: _grieves(values),
    ),
    # The voice shows arousal better than valence (Scherer 2003): words of arousal, and of valence only where the face
    # decides it (a slow, narrow voice without a smile).
    LabelRule(("nervous", "紧张"), -1, ("tremor_st",), lambda values: "tremor_st" in values),
    LabelRule(
        ("hesitant", "犹豫"),
        -1,
        ("pauses", "breaks"),
        lambda values: values.get("pauses", 0) + values.get("breaks", 0) >= 2,
    ),
    LabelRule(
        ("excited", "兴奋"),
        1,
        ("pitch_range_st", "syllable_rate_hz"),
        lambda values: (
            (_lively(values) and ("tremor_st" not in values or _smiles(values)))
            or (_smiles(values) and values.get("syllable_rate_hz", 0) >= _FAST_HZ)
        ),
    ),
    LabelRule(
        ("stressed", "焦躁"),
        -1,
        ("syllable_rate_hz",),
        lambda values: values.get("syllable_rate_hz", 0) >= _FAST_HZ and not _smiles(values) and not _lively(values),
    ),
    LabelRule(
        ("sad", "低落"),
        -2,
        ("pitch_range_st", "syllable_rate_hz"),
        lambda values: (
            values.get("pitch_range_st", 9) < 6 and values.get("syllable_rate_hz", 9) < 3.7 and not _smiles(values)
        ),
    ),
    LabelRule(
        ("indifferent", "冷漠"),
        0,
        ("pitch_range_st",),
        lambda values: values.get("pitch_range_st", 9) < 1 and not _smiles(values),
    ),
)
_NONE = LabelRule(("calm", "平静"), 0, (), lambda values: True)
"""The label where a voice or a face was measured and no rule holds."""

_TO_RANKED = {"happy": 0, "excited": 0, "sad": 1, "angry": 2, "surprised": 3, "afraid": 4, "nervous": 6, "calm": 7}
_SAYS = {"en": 'The person says: "{}"', "zh": "此人说：“{}”"}
_OTHER_SAYS = {"en": 'The other person says: "{}"', "zh": "对方说：“{}”"}
_SEEN = {"en": "In the picture: {}.", "zh": "画面中：{}。"}
_HEARD = {"en": "In the sound: {}.", "zh": "声音中：{}。"}
_THUMB = {
    "en": "By rule of thumb, with little certainty, this points to: {}.",
    "zh": "按经验规则推断（把握不大），这表示：{}。",
}
_COMMA = {"en": ", ", "zh": "，"}
_MEASURED = ("pitch_hz", "peak_s")  # every rule needs a voice or a face


def conclude(facts: Sequence[Fact]) -> list[LabelRule]:
    """The rules that hold, in the order of RULES; [] if neither voice nor face was measured.

    >>> facts = [Fact("pitch_hz", "acoustic", 200, "Hz"), Fact("pauses", "acoustic", 3, "count")]
    >>> [rule.label[0] for rule in conclude(facts)]
    ['hesitant']
    """
    values = {fact.name: fact.value for fact in facts}
    for fact in facts:  # movements have a duration, too
        if fact.start_s is not None and fact.end_s is not None:
            values[f"{fact.name}_start_s"], values[f"{fact.name}_lasts_s"] = fact.start_s, fact.end_s - fact.start_s
    if not set(values) & set(_MEASURED):
        return []
    held = {rule.label[0]: rule for rule in reversed(RULES) if rule.holds(values)}  # each label once, by its first rule
    return list(reversed(held.values())) or [_NONE]


def answer_by_rules(prompt: str, lang: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an answer to `prompt`; {} = no evidence to answer from."""
    facts: Sequence[Fact] = about.get("evidence", ())
    rules = conclude(facts)
    labels = [rule.label[lang == "zh"] for rule in rules]
    if prompt in ("visual", "peak", "acoustic"):
        modality = "acoustic" if prompt == "acoustic" else "visual"
        text, names = in_words(facts, modality, lang)
        return {"clue": text, "evidence": names} if text else {}
    if prompt == "disambiguate":
        return {"clue": quoted_transcript(about["transcript"], lang, about.get("person"))}
    if prompt in ("merge", "rewrite", "explain", "translate"):
        text = describe_facts(facts, labels, lang, about.get("transcript"), about.get("person"))
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
    raise InputError(f"the local annotator cannot answer prompt {prompt!r}; choose a model for it with annotator=")


def quoted_transcript(transcript: str, lang: str, person: str | None = None) -> str:
    """What is said, by the other person if the clip is about a listener (`Sample.person`)."""
    says = _OTHER_SAYS if hears_other(person) else _SAYS
    return says[lang].format(" ".join(transcript.split()))


def in_words(facts: Iterable[Fact], modality: str, lang: str) -> tuple[str, list[str]]:
    """The phrases of the facts of `modality` in one line, and the names of the facts that have a phrase."""
    phrases = [(fact.name, words) for fact in facts if fact.modality == modality and (words := phrase(fact, lang))]
    return _COMMA[lang].join(words for _, words in phrases), [name for name, _ in phrases]


def describe_facts(
    facts: Sequence[Fact], labels: Sequence[str], lang: str, transcript: str | None, person: str | None = None
) -> str:
    """One paragraph: what was seen, heard and said, and the labels; "" without labels."""
    if not labels:
        return ""
    seen, heard = in_words(facts, "visual", lang)[0], in_words(facts, "acoustic", lang)[0]
    parts = [
        _SEEN[lang].format(seen) if seen else "",
        _HEARD[lang].format(heard) if heard else "",
        quoted_transcript(transcript, lang, person) if transcript else "",
        _THUMB[lang].format(_COMMA[lang].join(labels)),
    ]
    return (" " if lang == "en" else "").join(part for part in parts if part)
