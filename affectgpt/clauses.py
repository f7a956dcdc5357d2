"""Descriptions in clauses: which modality each sentence rests on, and what may be said when a modality is not shown.

A description of a clip mixes what is seen, heard and said with conclusions from it. `split` divides a flat description
into clauses by rules; annotation records and the embedded corpus provide exact clauses. `fit` selects the clauses that
the shown modalities support, `claims` finds statements about modalities in any text. English and Chinese.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

from affectgpt.schema import CLUES, Clause

BRANCHES = {"visual": ("frames", "motion", "face", "face_motion"), "acoustic": ("audio",)}
"""Clue modality -> the branches of a model that show it; words are shown as text."""
_CLUE_OF = {
    **{name: clue for clue, names in BRANCHES.items() for name in names},
    **{"images": "visual", "video": "visual", "sound": "acoustic", "text": "lexical"},
}
_JOINT = {"en": " ", "zh": ""}


def shown_clues(inputs: Iterable[str], *, subtitle: bool = False, hears_words: bool = False) -> frozenset[str]:
    """The clue modalities that a model was shown.

    Args:
        inputs: modalities of a sample or a prediction ("audio", "frames", "text" ...); "multi" is derived from others.
        subtitle: whether the subtitle was shown, if `inputs` does not say so with "text".
        hears_words: count sound as a source of words, for systems that recognize speech.

    >>> sorted(shown_clues(("frames", "motion"), subtitle=True))
    ['lexical', 'visual']
    """
    shown = {_CLUE_OF[name] for name in inputs if name in _CLUE_OF}
    if subtitle or (hears_words and "acoustic" in shown):
        shown.add("lexical")
    return frozenset(shown)


def join(clauses: Iterable[Clause], lang: str) -> str:
    """The text of the clauses."""
    return _JOINT[lang].join(clause.text for clause in clauses)


def fit(clauses: Sequence[Clause], shown: Collection[str]) -> tuple[Clause, ...]:
    """The clauses that rest only on `shown` clue modalities, in order.

    Conclusions that state labels are alternatives, each from a part of the clues: one is left out if another one that
    is kept rests on more of them.

    >>> voice, face = Clause("The voice trembles.", "acoustic"), Clause("The brows rise.", "visual")
    >>> alone = Clause("This may be fear.", "inference", ("acoustic",), ("scared",))
    >>> both = Clause("It is surprise.", "inference", ("acoustic", "visual"), ("surprised",))
    >>> [clause.text for clause in fit([voice, face, alone, both], {"acoustic"})]
    ['The voice trembles.', 'This may be fear.']
    """
    kept = [clause for clause in clauses if set(clause.needs) <= set(shown)]
    grounds = [set(clause.needs) for clause in kept if clause.labels]
    return tuple(
        clause for clause in kept if not (clause.labels and any(set(clause.needs) < ground for ground in grounds))
    )


def supported_labels(clauses: Iterable[Clause], labels: Sequence[str]) -> tuple[str, ...]:
    """The labels that the clauses of `fit` carry: those that they state, or all `labels` if no clause states any.

    Labels of clauses that are not in `labels` count too: a conclusion from a part of the clues may be another one.
    """
    stated = tuple(dict.fromkeys(label for clause in clauses for label in clause.labels))
    return stated or tuple(labels)


# ---- rules -----------------------------------------------------------------------------------------------------------

_CUES = {
    "en": {
        "visual": r"(?<!in the )\bfac(?:e|es)\b(?! (?:the|a|an|up|with|this|these|such|it|off)\b)|\bfacial|"
        r"\bexpressions? (?:is|are|was|on|in the video|remains?|becomes?|turns?|changes?|looks?|appears?)\b|"
        r"\bsmil(?:e|es|ed|ing)\b|\bfrown\w*|\bgrin\w*|\bsmirk\w*|\bsneer\w*|\b(?:eye)?brows?\b|\beye(?:s|lids?)?\b|"
        r"\b(?:upper |lower )?lids?\b|\bgaz(?:e|es|ed|ing)\b|\bglanc\w+|\bstar(?:es?|ed|ing)\b|\blips?\b|\bcheeks?\b|"
        r"\bjaw\b|\bmouth\b|\bchin\b|\bforehead\b|\bnose\b|\bteeth\b|\btears?\b(?! apart)|\bhead\b|\bnod(?:s|ded|"
        r"ding)?\b|"
        r"\bhands?\b|\bfists?\b|\bfingers?\b|\barms?\b|\bshoulders?\b|\bchest\b|\bgestur\w+|\bposture\b|\bpout\w*|"
        r"\bbody (?:language|movements?|posture)\b|\blook(?:s|ed|ing)? (?:up|down|away|at|around|aside|straight|back|"
        r"sideways|forward|directly|into|towards?)\b|\bblink\w*|\bwear(?:s|ing)\b|\bdressed\b|\bcomplexion\b|"
        r"\bin the (?:frame|picture|background)\b|\b(?:the|this) (?:screen|scenes?|camera|picture|images?|footage|"
        r"background|frames?)\b|\blaughs?\b(?= but the voice)|\bsmiles?\b|\baction units?\b|\bAU ?\d+\b|"
        r"\bvisual (?:clues?|cues?|information|content)\b|\bvideo (?:clues?|cues?|content)\b",
        "acoustic": r"\bvoices?\b|\bvocal\w*|\bintonation\b|\btones?\b(?! of (?:the |this )?(?:sentence|text|words))|"
        r"\bpitch\b|\bloud(?:ly|ness|er)?\b|\bvolume\b|\bsp(?:eech|eaking) (?:rate|speed|pace|rhythm)\b|"
        r"\brate of speech\b|"
        r"\bspeed of (?:speech|speaking)\b|\b(?:speak|talk|sp[oe]ke|speech)(?:s|ing)? (?:is |was )?(?:very |so |"
        r"more |rather |"
        r"quite |a bit |relatively |in a |with a )?(?:\w+ly|fast|slow|louder|louder|low|soft|stutter|tremor|sob|firm|"
        r"calm|"
        r"gentle|quiet|hoarse|trembling)\b|\bsounds? (?:like |as |very |quite |rather |a bit )?\w+|\baudio\b|"
        r"\baudible\b|"
        r"\bsigh\w*|\bwhisper\w*|\bshout\w*|\byell\w*|\bscream\w*|\broar\w*|\bsob(?:s|bed|bing)?\b|\bstutter\w*|"
        r"\bstammer\w*|"
        r"\blaughter\b|\bwhile laughing\b|\bbreath(?:s|ing|es|y)?\b|\baccent\b|\bpauses?\b|\bmurmur\w*|\bmumbl\w+|"
        r"\bacoustic\b|\bprosody\b|\bemphasi[sz]\w+ on\b|\bsemitones?\b|\b\d+ ?(?:Hz|dB)\b",
        "lexical": r"\bsubtitles?\b|(?<!in other )\bwords\b|\b(?:this|the|his|her|that|their) sentences?\b|"
        r"\b(?:the|in) text(?:ual)?\b|\btextual\b|\bphrases?\b|\b(?:he|she|they|person|speaker|man|woman|lady|"
        r"character|"
        r"subtitle|text|it) (?:says?|said|states?|reads|tells?)\b|\b(?:the|this|his|her) (?:lines?|transcript|"
        r"utterances?|"
        r"remarks?|dialogu?e)\b|\bcontent of (?:the|his|her) (?:speech|words)\b|\btranscript\b|\blexical\b|"
        r"\bverbal content\b",
    },
    "zh": {
        "visual": r"画面|镜头|面部|表情(?!达)|神情|脸|眼(?!前|下)|目光|视线|眉|嘴|唇|鼻|笑容|微笑|皱|(?<!目)瞪|"
        r"(?<!对)(?<!选)(?<!歌)"
        r"(?:双手|手(?!机|段|足无措|术|工))|抬头|低头|点头|摇头|头部|头(?:微微|明显)?(?:低|歪|转|上下|左右)|下巴|额|"
        r"肩|拳|"
        r"身体|身子|姿势|姿态|动作|肢体|泪|背景|穿着|身穿|视频(?:线索|内容)|视觉|动作单元|AU ?\d+|牙",
        "acoustic": r"音频|声音|嗓|语气|语调|语速|音量|音调|音高|声调|语音|哭腔|叹气|叹息|呼吸|停顿|大声|小声|轻声|"
        r"低声|高声|"
        r"放声|吼|喊|笑声|哭声|声线|说话(?:速度|的?声|时?声|[^，。]{0,4}(?:快|慢|急|结巴|颤))|话音|口吻|抽泣|哽咽|"
        r"结巴|口吃|"
        r"重音|赫兹|分贝|边笑边说|声学|听起来|听觉",
        "lexical": r"字幕|文本|文字|台词|这句话|这段话|这句|话语|话里|话中|言辞|词组|词语|语句|说道|说的(?:话|内容)|"
        r"对话内容|说[：:]|语义",
    },
}
_CUE = {lang: {name: re.compile(cue, re.IGNORECASE) for name, cue in cues.items()} for lang, cues in _CUES.items()}
_QUOTE = re.compile(r"\"[^\"]*\"|“[^”]*”|「[^」]*」|『[^』]*』|(?<!\w)'[^']{2,}'(?!\w)|(?<!\w)‘[^’]*’(?!\w)")
_DENIAL = {
    "en": re.compile(
        r"\b(?:no|without(?: any)?|lack(?:s|ing)?(?: of)?|(?:is|are|was|were) not (?:any|a|an)) (?:\w+ ){0,2}"
        r"(?:voices?|speech|sound|audio|faces?|person|pictures?|images?|video|visual|subtitles?|words|text|"
        r"transcript)\b|"
        r"\b(?:cannot|can't|can not|could not|couldn't) (?:be )?(?:see|hear|seen|heard|judged?|assessed?|tell)\b|"
        r"\b(?:is|are|was|were) (?:not|n't) (?:visible|audible|shown|heard|seen|provided|available|given|"
        r"recogni[sz]able)\b|"
        r"\b(?:invisible|inaudible|unavailable|missing|silent|muted)\b|\bhidden from view\b",
        re.IGNORECASE,
    ),
    "zh": re.compile(
        r"(?:没有|无|未|缺少)(?:任何|出现|提供|检测到|听到|看到|见到|发现|拍到)?(?:说话|清晰的?)?"
        r"(?:声音|语音|音频|人声|画面|图像|视频|人脸|面部|脸|字幕|文本|文字|台词)|(?:看|听)不(?:到|见|清)|无法(?:看|"
        r"听|辨|判断)|"
        r"不可见|静音|无声|缺失"
    ),
}
_CONCLUDES = {
    "en": re.compile(
        r"^(?:overall|therefore|thus|hence|so\b|as a result|consequently|based on|combin(?:ed|ing)|taken together|"
        r"together|"
        r"in (?:summary|conclusion|short)|to sum up|considering|given|from (?:these|this|all|the above|"
        r"the combination)|all (?:of )?(?:this|these)|"
        r"according to|these clues|additionally, based on|(?:it|we|one|this) (?:can|may|could|"
        r"might) (?:also )?(?:be )?"
        r"(?:infer|conclude|speculate|deduce|judge)|it is (?:inferred|speculated|likely)|"
        r"(?:the|this|his|her) (?:person|character|speaker|man|woman|lady|boy|girl|emotion\w*|overall emotion\w*|"
        r"feeling)"
        r"(?:'s)?(?: (?:emotion\w*|feelings?|mood|state))* (?:seems?|appears?|feels?|may (?:be|feel)|might (?:be|"
        r"feel)|is)\b|"
        r"(?:he|she|they) (?:seems?|appears?|feels?|may (?:be|feel)|might (?:be|feel)|is (?:probably|likely)))",
        re.IGNORECASE,
    ),
    "zh": re.compile(
        r"^(?:总体|整体|总的|综上|综合|总之|因此|所以|于是|由此|可见|根据|结合|基于|从[^，。]{0,12}(?:来看|看出)|"
        r"(?:我们)?(?:可以|可)?(?:推断|推测|判断|看出)|此人|这个人(?:似乎|可能|感到)|(?:这些|仅凭|凭)线索|仅凭|"
        r"这些线索|[他她](?:似乎|可能|感到|的情[绪感]))"
    ),
}
_INFERS = {
    "en": re.compile(r"\b(?:we|it) (?:can|may|could) (?:also )?(?:be )?(?:infer|conclud|speculat|deduc)\w*", re.I),
    "zh": re.compile(r"(?:可以|可|能|从而|由此)(?:推断|推测|判断)"),
}
_SECTION = {
    "en": re.compile(
        r"^(?:(?:and|meanwhile|at the same time|additionally|in addition|also),? )?in the (?:(?P<visual>video|"
        r"visual\w*|"
        r"image|frame|picture)|(?P<acoustic>audio|voice|sound)|(?P<lexical>text|subtitles?|dialogu?e))\b",
        re.IGNORECASE,
    ),
    "zh": re.compile(
        r"^在?(?:(?P<visual>视频|画面|视觉)|(?P<acoustic>音频|声音|听觉)|(?P<lexical>文本|字幕))(?:中|里|方面|上)"
    ),
}
_END = {"en": re.compile(r"[.!?]+[\"'”’)]*\s+"), "zh": re.compile(r"[。！？；!?;]+[”’）]*\s*")}
_TURN = re.compile(r"，(?=(?:声音|语气|语调|语速|脸上|表情|面部|字幕|台词|嘴|眉|眼)(?!却))")


def claims(text: str, lang: str) -> frozenset[str]:
    """The clue modalities that `text` explicitly makes a statement about; a denial ("no voice is heard") is none.

    Quotations are what somebody said; they count as a statement about words only where the text introduces them.

    >>> sorted(claims("The voice trembles.", "en")), sorted(claims("No voice is heard.", "en"))
    (['acoustic'], [])
    """
    found: set[str] = set()
    for sentence in sentences(text, lang):
        found |= _sentence_claims(sentence, lang)
    return frozenset(found)


def unsupported(text: str, lang: str, shown: Collection[str]) -> tuple[tuple[str, str], ...]:
    """(sentence, modality) of every statement about a clue modality that was not shown."""
    return tuple(
        (sentence, modality)
        for sentence in sentences(text, lang)
        for modality in CLUES
        if modality not in shown and modality in _sentence_claims(sentence, lang)
    )


def _sentence_claims(sentence: str, lang: str) -> set[str]:
    bare = _QUOTE.sub(" ", sentence)
    if _DENIAL[lang].search(bare):
        bare = " ".join(part for part in re.split(r"[,;，、；]| but |但", bare) if not _DENIAL[lang].search(part))
    return {modality for modality, cue in _CUE[lang].items() if cue.search(bare)}


@lru_cache(maxsize=4096)
def split(text: str, lang: str) -> tuple[Clause, ...]:
    """Divide a flat description into clauses by rules; the texts of the clauses join to the description.

    A sentence is visual, acoustic or lexical if it names one modality, "mixed" if it names several, and "inference" if
    it concludes: it then needs the modalities that it names. A sentence that names none belongs to the section
    ("In the audio, ...") or sentence that it continues. docs/faithfulness.md has the accuracy on published data.

    >>> [(c.modality, c.needs) for c in split("Her brows rise. The voice trembles. She seems afraid.", "en")]
    [('visual', ('visual',)), ('acoustic', ('acoustic',)), ('inference', ())]
    """
    found: list[Clause] = []
    section, last = "", ""
    for sentence in sentences(text, lang):
        modalities = _sentence_claims(sentence, lang)
        concludes = bool(_CONCLUDES[lang].match(sentence) or _INFERS[lang].search(sentence))
        if match := _SECTION[lang].match(sentence):
            section = next(name for name, value in match.groupdict().items() if value)
            modalities |= {section} if not modalities else set()
            concludes = False
        parts = [sentence]
        if len(modalities) > 1 and not concludes:
            parts = _parts(sentence, lang)
        for part in parts:
            named = _sentence_claims(part, lang) if len(parts) > 1 else modalities
            clause = _classify(part, named, concludes, section, last)
            last = clause.modality if clause.modality in CLUES else last
            found.append(clause)
    return tuple(found)


def sections(description: str | Sequence[Clause], lang: str) -> dict[str, str]:
    """Clue modality -> its section of a text ("In the audio, ..."), conclusions included, or its clauses.

    What precedes the first named section is visual. A text without sections is divided into clauses by rules.

    >>> sections("Her brows rise. In the audio, the voice trembles. This may be fear.", "en")
    {'visual': 'Her brows rise.', 'acoustic': 'In the audio, the voice trembles. This may be fear.'}
    >>> sections("Her brows rise. The voice trembles.", "en")
    {'visual': 'Her brows rise.', 'acoustic': 'The voice trembles.'}
    """
    found: dict[str, list[str]] = {}
    section = ""
    for sentence in sentences(description, lang) if isinstance(description, str) else ():
        if match := _SECTION[lang].match(sentence):
            section = next(name for name, value in match.groupdict().items() if value)
        found.setdefault(section, []).append(sentence)
    if section:
        found["visual"] = [*found.pop("", ()), *found.get("visual", ())]
    else:
        clauses = split(description, lang) if isinstance(description, str) else description
        found = {name: [clause.text for clause in clauses if clause.modality == name] for name in CLUES}
    return {name: _JOINT[lang].join(found[name]) for name in CLUES if found.get(name)}


def _classify(text: str, named: set[str], concludes: bool, section: str, last: str) -> Clause:
    needs = tuple(name for name in CLUES if name in named)
    if concludes:
        return Clause(text, "inference", needs)
    if len(needs) > 1:
        return Clause(text, "mixed", needs)
    if needs:
        return Clause(text, needs[0], needs)
    modality = last or section
    return Clause(text, modality, (modality,)) if modality else Clause(text, "inference", ())


def sentences(text: str, lang: str) -> list[str]:
    """The sentences of `text`; quotations are not divided.

    >>> sentences('She says, "No. Go away!" Her voice is loud.', "en")
    ['She says, "No. Go away!"', 'Her voice is loud.']
    """
    text = " ".join(text.split()) if lang == "en" else text.strip()
    quoted = [match.span() for match in _QUOTE.finditer(text)]
    found, start = [], 0
    for match in _END[lang].finditer(text + " "):
        # The end of a quotation that ends a sentence itself is inside its span.
        if any(low < match.start() and match.start() + 1 < high for low, high in quoted if match.end() < high):
            continue
        if part := text[start : match.end()].strip():
            found.append(part)
        start = match.end()
    if rest := text[start:].strip():
        found.append(rest)
    return found


def _parts(sentence: str, lang: str) -> list[str]:
    """The parts of a Chinese sentence at commas before another modality, if each part names exactly one.

    English sentences are not divided, since the rest would rarely be a sentence.
    """
    if lang != "zh":
        return [sentence]
    quoted = [match.span() for match in _QUOTE.finditer(sentence)]
    cuts = [match.end() for match in _TURN.finditer(sentence)]
    cuts = [cut for cut in cuts if not any(low < cut < high for low, high in quoted)]
    merged: list[str] = []
    for low, high in pairwise([0, *cuts, len(sentence)]):
        piece = sentence[low:high]
        named = _sentence_claims(piece, lang)
        if merged and (not named or named <= _sentence_claims(merged[-1], lang)):
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged if all(len(_sentence_claims(piece, lang)) == 1 for piece in merged) else [sentence]
