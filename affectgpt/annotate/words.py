"""Words with times, as Whisper's attention gives them, and what they say about the speech: rate and pauses.

The times of a word reach up to the next word, so that a pause is inside one of the two, and they are inexact. Facts
therefore count only that part of a word in which somebody speaks; of parts with a pause between, the longest.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from affectgpt.annotate.record import Fact
from affectgpt.annotate.sound import PAUSE_S
from affectgpt.media.speech import Speech

WORD_FACTS = ("word_rate_hz", "character_rate_hz", "word_pauses", "longest_word_pause_s")
_MIN_RATE_S = 1.0  # with less speech, one word more or less decides
_MARGIN_S = 0.1  # the detected edges of speech are that inexact


@dataclass(frozen=True)
class Word:
    """A word, or a character of a language without spaces, with punctuation; times in seconds."""

    text: str
    start_s: float
    end_s: float


def words_of(tokens: Sequence[int], times_s: Sequence[float], decode: Callable[[list[int]], str]) -> list[Word]:
    """The words of a transcript.

    Args:
        tokens: [N] of the text and, decoded to "", special ones.
        times_s: [N] the end of each token, as `generate(return_token_timestamps=True)` gives them.
        decode: text of tokens; a space before a word belongs to its first token.
    """
    pieces: list[Word] = []
    started_s, held = 0.0, []
    for place, token in enumerate(tokens):
        if not held:
            started_s = times_s[place - 1] if place else 0.0
        held.append(token)
        text = decode(held)
        if "\ufffd" in text:  # the other bytes of the character follow
            continue
        if text:
            pieces.append(Word(text, float(started_s), float(times_s[place])))
        held = []
    words: list[Word] = []
    for piece in _with_first_time(pieces):
        spoken = any(character.isalnum() for character in piece.text)
        if not spoken and not words:
            continue
        if not spoken:  # punctuation lasts as long as the pause after a word
            words[-1] = replace(words[-1], text=words[-1].text + piece.text.rstrip())
        elif not words or piece.text[0].isspace() or _is_ideograph(piece.text[0]) or _is_ideograph(words[-1].text[-1]):
            words.append(replace(piece, text=piece.text.strip()))
        else:
            words[-1] = Word(words[-1].text + piece.text.rstrip(), words[-1].start_s, piece.end_s)
    return words


def _with_first_time(pieces: list[Word]) -> list[Word]:
    """The pieces, the first two with times in proportion to their letters, if the first one has none.

    transformers (5.x, `_extract_token_timestamps`) leaves out the attention that predicts the first token, so the first
    always ends at 0 and the second has the time of both.
    """
    if len(pieces) < 2 or pieces[0].end_s > pieces[0].start_s:
        return pieces
    first, second = pieces[:2]
    n, m = (sum(character.isalnum() for character in piece.text) for piece in (first, second))
    border_s = second.start_s + (second.end_s - second.start_s) * n / max(n + m, 1)
    return [replace(first, end_s=border_s), replace(second, start_s=border_s), *pieces[2:]]


def _is_ideograph(character: str) -> bool:
    return unicodedata.name(character, "").startswith("CJK UNIFIED")


def word_facts(words: Sequence[Word], speech: Speech, lang: str) -> tuple[list[Fact], int]:
    """(facts, number of words without speech at their time, which are left out).

    Words (`lang` "zh": characters) per second between the first and the last word, pauses included, from one second on,
    and the pauses of at least `PAUSE_S` between words.
    """
    heard = [spoken for word in words if (spoken := _within_speech(word, speech))]
    n_outside = len(words) - len(heard)
    if not heard:
        return [], n_outside
    facts = []
    lasts_s = heard[-1].end_s - heard[0].start_s
    if lasts_s >= _MIN_RATE_S:
        if lang == "zh":
            n = sum(max(1, sum(map(_is_ideograph, word.text))) for word in heard)
            facts.append(Fact("character_rate_hz", "acoustic", round(n / lasts_s, 2), "characters/s"))
        else:
            facts.append(Fact("word_rate_hz", "acoustic", round(len(heard) / lasts_s, 2), "words/s"))
    gaps = [(one.end_s, other.start_s) for one, other in itertools.pairwise(heard)]
    pauses = [(start, end) for start, end in gaps if end - start >= PAUSE_S]
    facts.append(Fact("word_pauses", "acoustic", len(pauses), "count"))
    if pauses:
        start, end = max(pauses, key=lambda edges: edges[1] - edges[0])
        span = round(start, 3), round(end, 3)
        facts.append(Fact("longest_word_pause_s", "acoustic", round(end - start, 3), "s", *span))
    return facts, n_outside


def _within_speech(word: Word, speech: Speech) -> Word | None:
    """The word where somebody speaks within its time; None = nobody speaks there.

    No word has a pause inside: of several parts, the rest belongs to a neighbour.
    """
    parts: list[tuple[float, float]] = []
    for start, end in ((max(start, word.start_s), min(end, word.end_s)) for start, end in speech.segments_s):
        if start < end and parts and start - parts[-1][1] < PAUSE_S:
            parts[-1] = parts[-1][0], end
        elif start < end:
            parts.append((start, end))
    if parts:
        start_s, end_s = max(parts, key=lambda part: part[1] - part[0])
        return replace(word, start_s=start_s, end_s=end_s)
    is_near = any(start - _MARGIN_S < word.end_s and word.start_s < end + _MARGIN_S for start, end in speech.segments_s)
    return word if is_near else None
