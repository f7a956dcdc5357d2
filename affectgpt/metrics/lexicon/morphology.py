"""English word formation for the built-in lexicon: the forms of a word, by spelling rules and exceptions.

Only used by `build.py`; scoring reads the generated table. Forms that nobody writes ("numbestly") do no harm, but a
wrong derivation does, so derivations that the spelling does not determine are listed in `families.txt`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_VOWELS = "aeiou"
_NOUN = re.compile(r".*(ness|ment|tion|sion|ity|ety|ance|ence|ancy|ency|ism|ship|hood|tude|ure|ache|ery|acy|ia|ice)$")
_SILENT_E = re.compile(  # stems that lost an e before -ed or -ing
    r".*(c|v|z|u|dg|rg|[aeiou]ng|[^s]s|[aeiou]g|[^e]at|ut|uc|ud|[^aeo]id|ad|[^aeo]ir|ur|[^e]ar|[^aeo]or|[^aeo]in|am|"
    r"[^aeo]im|[^lr]ol|[bcdfgkptz]l|[^o]ok|[^e]ak|ik|[^aeo]ot)$"
)


@dataclass(frozen=True)
class Families:
    """Exceptions: word class by word, participle -> base, and extra forms by word."""

    classes: Mapping[str, str]
    bases: Mapping[str, str]
    extra: Mapping[str, tuple[str, ...]]

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Families:
        """Parse lines `noun: a b`, `verb: a b`, `fixed: a b`, `base: word=base ...` and `+word: form, form`."""
        classes: dict[str, str] = {}
        bases: dict[str, str] = {}
        extra: dict[str, tuple[str, ...]] = {}
        for line in lines:
            line = line.partition("#")[0].strip()
            if not line:
                continue
            head, _, rest = line.partition(":")
            if head.startswith("+"):
                extra[head[1:]] = extra.get(head[1:], ()) + tuple(word.strip() for word in rest.split(","))
            elif head == "base":
                for pair in rest.split():
                    participle, _, base = pair.partition("=")
                    bases[participle] = base
            elif head in ("noun", "verb", "adjective", "fixed"):
                classes.update(dict.fromkeys(rest.split(), head))
            else:
                raise ValueError(f"families.txt: unknown line {line!r}")
        return cls(classes, bases, extra)


def forms_of(word: str, families: Families) -> set[str]:
    """All forms of `word`, including itself; for a phrase, the hyphenated spelling and the listed extra forms."""
    found = {word, *families.extra.get(word, ())}
    if " " in word:
        found |= {word.replace(" ", "-"), word.replace(" ", "")} if word.count(" ") < 2 else {word.replace(" ", "-")}
    elif "-" in word:
        found |= {word.replace("-", " "), word.replace("-", ""), *(_adverb(word), _noun_of(word))}
    else:
        found |= _single(word, families)
    return found | {other for form in found for other in british(form)}


def _single(word: str, families: Families) -> set[str]:
    kind = families.classes.get(word) or _class_of(word)
    if kind == "fixed":
        return set()
    if kind == "noun":
        return {_plural(word)}
    if kind == "verb":
        return verb_forms(word)
    if kind == "participle":
        base = families.bases.get(word) or _base_of(word)
        forms = verb_forms(base) | nominal(base)
        return forms | {_adverb(word), _noun_of(word)}
    return adjective_forms(word)


def _class_of(word: str) -> str:
    if re.fullmatch(r".{3,}(ed|ing)", word):
        return "participle"
    return "noun" if _NOUN.fullmatch(word) else "adjective"


def _base_of(word: str) -> str:
    """The verb of a regular -ed or -ing participle.

    >>> [_base_of(word) for word in ("annoyed", "worried", "excluded", "thrilled", "fretted", "alarming")]
    ['annoy', 'worry', 'exclude', 'thrill', 'fret', 'alarm']
    """
    stem = re.sub(r"(ed|ing)$", "", word)
    if stem.endswith("i"):
        return stem[:-1] + "y"
    if len(stem) > 2 and stem[-1] == stem[-2] and stem[-1] not in "lsfzaeiou":
        return stem[:-1]
    return stem + "e" if _SILENT_E.fullmatch(stem) else stem


def verb_forms(base: str) -> set[str]:
    """Base, third person, past and -ing form of a regular verb.

    >>> sorted(verb_forms("worry")), sorted(verb_forms("confuse"))
    (['worried', 'worries', 'worry', 'worrying'], ['confuse', 'confused', 'confuses', 'confusing'])
    """
    if base.endswith("e") and not base.endswith(("ee", "oe", "ye")):
        return {base, base + "s", base + "d", base[:-1] + "ing"}
    if base.endswith("y") and base[-2] not in _VOWELS:
        return {base, base[:-1] + "ies", base[:-1] + "ied", base + "ing"}
    doubled = base
    if re.fullmatch(r"[^aeiou]*[aeiou][bdgmnprt]|.*(compel|repel|impel|regret|deter|commit|admit|omit|rebut)", base):
        doubled = base + base[-1]
    return {base, _plural(base), doubled + "ed", doubled + "ing"}


def nominal(base: str) -> set[str]:
    """Nouns determined by the ending of a verb: -ation, -ification, -ization, -sion."""
    endings = (("ate", "ation"), ("ify", "ification"), ("ize", "ization"), ("ude", "usion"), ("use", "usion"))
    for ending, noun in endings:
        if base.endswith(ending) and len(base) > len(ending) + 2:
            made = base[: -len(ending)] + noun
            return {made, made + "s"}
    return set()


def adjective_forms(word: str) -> set[str]:
    """Adverb, noun in -ness and, for short words, comparative and superlative.

    >>> sorted(adjective_forms("angry"))
    ['angrier', 'angriest', 'angrily', 'angriness']
    """
    forms = {_adverb(word), _noun_of(word)}
    n_syllables = len(re.findall(r"[aeiouy]+", word.removesuffix("e")))
    if word.endswith("y") and word[-2] not in _VOWELS and n_syllables <= 3:
        forms |= {word[:-1] + "ier", word[:-1] + "iest"}
    elif n_syllables == 1:
        stem = word.removesuffix("e")
        stem += stem[-1] if re.fullmatch(r"[^aeiou]*[aeiou][bdgmnt]", stem) and not word.endswith("e") else ""
        forms |= {stem + "er", stem + "est"}
    if word.endswith(("able", "ible")):
        forms |= {word[:-2] + "ility"}
    elif word.endswith("ent") or word.endswith("ant"):
        forms |= {word[:-1] + "ce", word[:-1] + "cy"}
    elif word.endswith("ive"):
        forms |= {word[:-1] + "ity"}
    return forms


def _adverb(word: str) -> str:
    """
    >>> [_adverb(word) for word in ("happy", "horrible", "ironic", "full", "gay", "true")]
    ['happily', 'horribly', 'ironically', 'fully', 'gayly', 'truly']
    """
    if word.endswith("y") and word[-2] not in _VOWELS:
        return word[:-1] + "ily"
    if word.endswith("le") and word[-3] not in _VOWELS:
        return word[:-1] + "y"
    if word.endswith("ic"):
        return word + "ally"
    if word.endswith("ll"):
        return word + "y"
    return word[:-1] + "ly" if word.endswith("ue") else word + "ly"


def _noun_of(word: str) -> str:
    return (word[:-1] + "i" if word.endswith("y") and word[-2] not in _VOWELS else word) + "ness"


def _plural(word: str) -> str:
    if word.endswith("y") and word[-2] not in _VOWELS:
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s")


def british(form: str) -> set[str]:
    """British spellings of an American form (and American ones of -ise, -our).

    >>> sorted(british("humoredly")), sorted(british("traumatized")), british("sad")
    (['humouredly'], ['traumatised'], set())
    """
    out = set()
    ends_in_ize = re.search(r"[a-z]{3}i[zs](e|ed|es|ing|ation|ations)(ly|ness)?$", form)
    if ends_in_ize and not re.search(r"(pr|surpr|desp)is", form):
        out |= {re.sub(r"iz(?=e|ing|ation)", "is", form), re.sub(r"is(?=e|ing|ation)", "iz", form)}
    out.add(re.sub(r"(hon|hum|fav|ard|ferv|ranc)or(?!ous|ar)", r"\1our", form))
    out.add(re.sub(r"(marve)l(ed|ing)", r"\1ll\2", form))
    out.add(form.replace("skeptic", "sceptic"))
    out.add(form.replace("fulfill", "fulfil") if form.endswith(("fulfill", "fulfillment")) else form)
    out.add(re.sub(r"judgment", "judgement", form))
    out.add(re.sub(r"grayness", "greyness", form))
    return out - {form}
