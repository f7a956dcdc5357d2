"""What descriptions contain, read by a language model: a ranking of emotions, a valence, visual clues.

EMER checks its annotations this way (EMER paper, section 3.2; OV-MER paper, appendix L): from a description alone, six
emotions are ranked and compared with the one-hot label (top-1, top-2), a valence from -5 to 5 is estimated and compared
with the label (PCC), and the facial movements and gestures are listed and counted. It also answers what the modalities
contribute: descriptions of the words alone, of voice and words, and of the picture alone (EMER(Text), EMER(Audio) and
EMER(Video) there, CLUE-Text, CLUE-Audio and CLUE-Video in the OV-MER paper).

Questions are our own, asked at temperature 0 through `affectgpt.chat`, whose log of answers is the cache; they contain
their version. An answer that cannot be read is None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from affectgpt.chat.request import Request
from affectgpt.chat.served import ChatClient
from affectgpt.clauses import join, sections
from affectgpt.metrics.classification import to_class
from affectgpt.metrics.extract import read_labels
from affectgpt.metrics.lexicon import Lexicon
from affectgpt.runtime import InputError, parse_json
from affectgpt.schema import Clause

CANDIDATES = ("happy", "angry", "worried", "sad", "surprise", "neutral")
"""The one-hot labels of MER2023."""
VALENCE = (-5.0, 5.0)
CONTENTS_VERSION = "1"
Value = TypeVar("Value")

_RANKING = """\
Below is a description of a person in a video (task version {version}).
Order these words by how well they fit what the person feels, the best first: {candidates}. \
Answer with a JSON list of all of them and nothing else.
Description: {text}"""

_VALENCE = """\
Below is a description of a person in a video (task version {version}).
How pleasant is what the person feels, from -5 (as unpleasant as can be) over 0 (neither) to 5 (as pleasant as can be)?
Answer with one number with two decimals and nothing else.
Description: {text}"""

_CLUES = """\
Below is a description of a person in a video (task version {version}).
List every movement of the face and every gesture or posture of the body that it mentions, in its words, as a JSON
list of short phrases and nothing else. Answer [] if it mentions none.
Description: {text}"""

_FROM_WORDS = {
    "en": """\
A person in a video says the words below; nothing else is known (task version {version}).
Explain in a few sentences what the person feels and which of the words show it. Invent nothing.
Words: "{words}\"""",
    "zh": """\
视频中的一个人说了下面的话，此外一无所知（任务版本 {version}）。
请用几句话说明此人的感受以及哪些词语体现了它。不要编造。
话语：“{words}”""",
}
_FROM_VOICE = {
    "en": """\
Below is how the voice of a person in a video sounds, and what the person says (task version {version}).
Explain in a few sentences what the person feels, what the words mean when they are spoken this way, and which clues \
show it. Invent nothing.
Voice: {voice}
Words: "{words}\"""",
    "zh": """\
下面是视频中一个人的声音特点以及所说的话（任务版本 {version}）。
请用几句话说明此人的感受、这样说出的话是什么意思，以及体现它的线索。不要编造。
声音：{voice}
话语：“{words}”""",
}


def rank_emotions(
    texts: Mapping[str, str], client: ChatClient, lexicon: Lexicon, candidates: Sequence[str] = CANDIDATES
) -> dict[str, tuple[str, ...] | None]:
    """id -> `candidates`, the best match first, as far as the answer names them."""
    prompt = _RANKING.replace("{candidates}", ", ".join(candidates))
    return _ask(
        prompt, texts, client, lambda answer: in_classes(read_labels(answer).labels, candidates, lexicon) or None
    )


def in_classes(words: Iterable[str], classes: Sequence[str], lexicon: Lexicon) -> tuple[str, ...]:
    """A ranking in the classes of the truth; words that are none of them are left out, and repetitions.

    >>> from affectgpt.metrics.lexicon import load_lexicon
    >>> in_classes(["surprised", "angry", "furious", "frobnicated", "sad"], CANDIDATES, load_lexicon())
    ('surprise', 'angry', 'sad')
    """
    found = (to_class([word], classes, lexicon) for word in words)
    return tuple(dict.fromkeys(name for name in found if name is not None))


def estimate_valence(texts: Mapping[str, str], client: ChatClient) -> dict[str, float | None]:
    """id -> valence, -5 to 5."""
    return _ask(_VALENCE, texts, client, parse_valence)


def parse_valence(answer: str) -> float | None:
    """The only number in an answer; None if there is none, several, or one outside -5 to 5.

    >>> [parse_valence(text) for text in ("-2.50", "Valence: +3", "-5 to 5", "7", "low")]
    [-2.5, 3.0, None, None, None]
    """
    numbers = {float(number.replace("−", "-")) for number in re.findall(r"[-+−]?\d+(?:\.\d+)?", answer)}
    value = numbers.pop() if len(numbers) == 1 else None
    return value if value is not None and VALENCE[0] <= value <= VALENCE[1] else None


def list_visual_clues(texts: Mapping[str, str], client: ChatClient) -> dict[str, tuple[str, ...] | None]:
    """id -> facial movements and gestures that the description mentions; () = none."""
    return _ask(_CLUES, texts, client, parse_clues)


def parse_clues(answer: str) -> tuple[str, ...] | None:
    """The texts of a JSON list in an answer, each once; None if there is no such list.

    >>> parse_clues('["frown", "raised brows", "Frown"]'), parse_clues("[]"), parse_clues("a frown")
    (('frown', 'raised brows'), (), None)
    """
    start, stop = answer.find("["), answer.rfind("]")
    try:
        found = parse_json(answer[start : stop + 1]) if 0 <= start < stop else None
    except InputError:
        return None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        return None
    return tuple(dict.fromkeys(text for item in found if (text := item.strip().lower())))


def _ask(
    prompt: str, texts: Mapping[str, str], client: ChatClient, read: Callable[[str], Value | None]
) -> dict[str, Value | None]:
    """id -> what `read` finds in the answer about a text; an empty text is not asked about."""
    asked = {key: text.strip() for key, text in texts.items() if text.strip()}
    questions = [Request(prompt.format(version=CONTENTS_VERSION, text=text)) for text in asked.values()]
    answers = client.answer(questions, refused_is_empty=True) if questions else []
    found: dict[str, Value | None] = dict.fromkeys(texts)
    return found | {key: read(answer.text) for key, answer in zip(asked, answers, strict=True)}


def single_modality_texts(
    descriptions: Mapping[str, str | tuple[Clause, ...]], subtitles: Mapping[str, str], client: ChatClient, lang: str
) -> dict[str, dict[str, str]]:
    """Descriptions of the same clips from parts of what is known: system -> id -> text, "" where there is nothing.

    CLUE-Video is the visual section of the description as it is, or its visual clauses. CLUE-Text is written from the
    subtitle, CLUE-Audio from the acoustic section and the subtitle (EMER paper, section 5; OV-MER paper, section 4.1).
    CLUE-Multi is the description.
    """
    parts = {key: sections(text, lang) for key, text in descriptions.items()}
    words = {key: text for key in descriptions if (text := subtitles.get(key, "").strip())}
    voices = {key: part["acoustic"] for key, part in parts.items() if "acoustic" in part}
    version = CONTENTS_VERSION
    from_words = {key: _FROM_WORDS[lang].format(version=version, words=text) for key, text in words.items()}
    from_voice = {
        key: _FROM_VOICE[lang].format(version=version, voice=voices.get(key, "-"), words=words.get(key, "-"))
        for key in descriptions
        if key in voices or key in words
    }
    written = {}
    for name, questions in (("CLUE-Text", from_words), ("CLUE-Audio", from_voice)):
        answers = client.answer([Request(text) for text in questions.values()], refused_is_empty=True)
        written[name] = {key: answer.text.strip() for key, answer in zip(questions, answers, strict=True)}
    written["CLUE-Video"] = {key: part.get("visual", "") for key, part in parts.items()}
    written["CLUE-Multi"] = {
        key: text if isinstance(text, str) else join(text, lang) for key, text in descriptions.items()
    }
    return {name: {key: texts.get(key, "") for key in descriptions} for name, texts in written.items()}
