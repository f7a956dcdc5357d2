"""Track 3 of MER2026 (EmoPrefer): which of two descriptions of a clip people prefer.

Choices are "a1", "a2" and "same". The scores and the reading of answers are those of the published code (MERTools,
MER2026_Track3), quirks included; strict versions have their own names.
"""

from __future__ import annotations

import re

CHOICES = ("a1", "a2", "same")
_FAR = 10_000  # the published code's position of a choice that does not occur


def published_choice(answer: str) -> str:
    """The choice in an answer, as the published code reads it.

    The answer's beginning decides, else the choice that occurs first, else it is "same". Choices are found inside other
    words; a choice that occurs only after 10,000 characters loses to those that do not occur.

    >>> [published_choice(text) for text in ("A2.", "Option a2, not a1", "I cannot tell", "Both tell the same", "Ua1")]
    ['a2', 'a2', 'same', 'same', 'a1']
    >>> published_choice("." * 10_001 + "a2")
    'a1'
    """
    text = answer.lower()
    for choice in CHOICES:
        if text.startswith(choice):
            return choice
    if not any(choice in text for choice in CHOICES):
        return "same"
    return min(CHOICES, key=lambda choice: at if (at := text.find(choice)) >= 0 else _FAR)


def strict_choice(answer: str) -> str | None:
    """The only choice that an answer names as a word; None if it names none or several.

    >>> [strict_choice(text) for text in (" A2.", "a2, not a1", "I cannot tell", "Ua1")]
    ['a2', None, None, None]
    """
    found = set(re.findall(r"\b(?:a1|a2|same)\b", answer.lower()))
    return found.pop() if len(found) == 1 else None
