"""Texts of the demo: subtitles, descriptions generated from clues, and the errors of an automatic labeller.

As in the EMER paper, a description lists visual, acoustic and lexical clues, then the emotions inferred from them. It
is generated from `Clues`: `checked_clues` are correct (the fine set); `automatic_clues` contain the errors of a
pipeline without human checks, at the rates below (the coarse set). Labels are inferred from the clues, so wrong clues
lead to wrong labels, and a part of the clues may leave several feelings open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from affectgpt.clauses import fit, join
from affectgpt.demo.emotions import (
    CHINESE,
    EXPRESSIONS,
    FEELINGS,
    GESTURES,
    INTENSITIES,
    PROSODIES,
    Feeling,
    Scene,
    feelings_that_fit,
    infer_feeling,
    labels_of,
    likely_labels,
)
from affectgpt.schema import CLUES, Clause

LINES: dict[str, tuple[tuple[str, str], ...]] = {
    "news": (
        ("They told me this morning.", "他们今天早上告诉我的。"),
        ("So it is official now.", "这么说已经定下来了。"),
        ("I just got the letter.", "我刚刚收到那封信。"),
        ("Have you heard what happened?", "你听说发生了什么吗？"),
        ("The results came today.", "结果今天出来了。"),
        ("Nobody expected that.", "谁也没有料到。"),
        ("It will be a girl, they say.", "他们说会是个女孩。"),
        ("He is coming back on Monday.", "他星期一就回来。"),
    ),
    "goodbye": (
        ("The train leaves at six.", "火车六点开。"),
        ("I suppose this is it, then.", "那么就到这里吧。"),
        ("You will not be here tomorrow.", "你明天就不在这里了。"),
        ("I packed your bag.", "我把你的包收拾好了。"),
        ("Take care of the house.", "家里就交给你了。"),
        ("Next year we will see.", "明年再说吧。"),
        ("Go now, it is late.", "走吧，已经晚了。"),
        ("I will close the door behind you.", "我会替你把门关上。"),
    ),
    "request": (
        ("Could you say that again?", "你能再说一遍吗？"),
        ("Come here for a moment.", "你过来一下。"),
        ("Please look at this.", "请看看这个。"),
        ("Tell me what you think.", "告诉我你怎么想。"),
        ("Would you open the window?", "你能把窗户打开吗？"),
        ("I need you to sign here.", "我需要你在这里签字。"),
        ("Can we talk about it now?", "我们现在能谈谈吗？"),
        ("Give me one more minute.", "再给我一分钟。"),
    ),
    "thanks": (
        ("You really did all this for me.", "这些真的都是你为我做的。"),
        ("Thank you, I will remember it.", "谢谢，我会记住的。"),
        ("That is so kind of you.", "你真是太客气了。"),
        ("You should not have done that.", "你不该这样做的。"),
        ("I never asked for a present.", "我从来没要过礼物。"),
        ("What would I do without you?", "没有你我可怎么办？"),
        ("You thought of everything.", "你什么都想到了。"),
        ("So these flowers are from you.", "原来这些花是你送的。"),
    ),
    "mistake": (
        ("The door was open all night.", "门开了一整夜。"),
        ("I must have mixed up the keys.", "一定是把钥匙弄混了。"),
        ("That was the wrong number.", "那个号码不对。"),
        ("It fell off the table.", "它从桌子上掉下来了。"),
        ("I sent it to everybody.", "我把它发给了所有人。"),
        ("The milk is all over the floor.", "牛奶洒了一地。"),
        ("It was my turn yesterday.", "昨天本来轮到我。"),
        ("We took the wrong bus.", "我们坐错车了。"),
    ),
    "waiting": (
        ("They said they would call.", "他们说会打电话来。"),
        ("It should be here any minute.", "应该马上就到了。"),
        ("What time is it now?", "现在几点了？"),
        ("The doctor will see us soon.", "医生很快就见我们。"),
        ("We are the next ones.", "下一个就是我们。"),
        ("Two more hours, then we know.", "再过两个小时就知道了。"),
        ("The light is still on.", "灯还亮着。"),
        ("I have been here since noon.", "我从中午就在这里了。"),
    ),
    "quarrel": (
        ("You always say that.", "你总是这么说。"),
        ("So now it is my fault.", "现在倒成了我的错。"),
        ("Do whatever you want.", "你想怎样就怎样。"),
        ("I heard what you said.", "你说的话我听见了。"),
        ("Then ask your brother.", "那你去问你哥哥。"),
        ("We had agreed on that.", "我们说好了的。"),
        ("You told them, not me.", "你告诉了他们，没告诉我。"),
        ("Say it to my face.", "当着我的面说。"),
    ),
    "work": (
        ("There are three more boxes.", "还有三个箱子。"),
        ("The report is on your desk.", "报告在你桌上。"),
        ("We finish this today.", "我们今天把它做完。"),
        ("That was the last page.", "那是最后一页了。"),
        ("They gave me the night shift.", "他们让我上夜班。"),
        ("I painted the whole wall.", "整面墙都是我刷的。"),
        ("The meeting is at nine.", "会议九点开始。"),
        ("Now we start with the roof.", "现在我们从屋顶开始。"),
    ),
    "reunion": (
        ("It has been ten years.", "已经十年了。"),
        ("You look exactly the same.", "你一点都没变。"),
        ("I did not think you would come.", "没想到你会来。"),
        ("So this is your daughter.", "原来这是你女儿。"),
        ("You still have that old coat.", "那件旧外套你还留着。"),
        ("Is it really you?", "真的是你吗？"),
        ("We used to live next door.", "我们以前是邻居。"),
        ("You cut your hair.", "你剪头发了。"),
    ),
    "reassurance": (
        ("Everything is fine.", "一切都很好。"),
        ("Do not worry about me.", "不用操心我。"),
        ("It will be all right.", "会好起来的。"),
        ("What a lovely day this is.", "今天真是个好日子。"),
        ("It is nothing, really.", "真的没什么。"),
        ("I can do this alone.", "我一个人能行。"),
        ("It could not be better.", "再好不过了。"),
        ("We will laugh about it one day.", "总有一天我们会笑着谈起这件事。"),
    ),
}
"""Subtitles in English and Chinese by situation. None names a feeling, and each fits several."""

N_LINES = len(LINES["news"])

_GESTURES = {  # {} = intensity; two wordings in English, one in Chinese
    "smiling mouth": ("the lip corners rise{}", "the mouth smiles{}", "嘴角{}上扬"),
    "raised cheeks": ("the cheeks lift{}", "the eyes crease{}", "脸颊{}抬起"),
    "open mouth": ("the mouth opens{}", "the jaw drops{}", "嘴巴{}张开"),
    "lowered brows": ("the brows draw together{}", "the brows lower{}", "眉头{}皱起"),
    "raised inner brows": ("the inner brows rise{}", "the brows slant upwards{}", "眉头内侧{}抬高"),
    "raised brows": ("the brows go up{}", "both brows rise{}", "双眉{}上挑"),
    "wide eyes": ("the eyes widen{}", "the upper lids rise{}", "眼睛{}睁大"),
    "narrowed eyes": ("the eyes narrow{}", "the lids tighten{}", "眼睛{}眯起"),
    "heavy lids": ("the lids sink{}", "the eyes close halfway{}", "眼皮{}下垂"),
    "wrinkled nose": ("the nose wrinkles{}", "the upper lip curls{}", "鼻子{}皱起"),
    "drooping mouth": ("the lip corners sink{}", "the mouth droops{}", "嘴角{}下垂"),
    "pressed lips": ("the lips press together{}", "the lips tighten{}", "嘴唇{}紧闭"),
    "stretched lips": ("the lips stretch{}", "the mouth widens{}", "嘴唇{}拉紧"),
    "tight mouth corner": ("a mouth corner tightens{}", "the lip corners pull in{}", "嘴角{}收紧"),
    "fast blinking": ("the eyes blink quickly{}", "the lids flutter{}", "眼睛{}快速眨动"),
    "lowered gaze": ("the gaze drops{}", "the eyes look down{}", "目光{}低垂"),
    "averted gaze": ("the gaze turns away{}", "the eyes look aside{}", "目光{}避开"),
    "upward gaze": ("the gaze goes up{}", "the eyes look up{}", "目光{}向上"),
    "wandering gaze": ("the gaze wanders{}", "the eyes move to and fro{}", "目光{}游移"),
    "bowed head": ("the head bows{}", "the head sinks{}", "头{}低下来"),
    "raised chin": ("the chin lifts{}", "the head goes back{}", "下巴{}抬起"),
    "tilted head": ("the head tilts{}", "the head leans to one side{}", "头{}歪向一边"),
    "turned head": ("the head turns away{}", "the face turns aside{}", "头{}转开"),
    "nodding": ("the head nods{}", "the head moves up and down{}", "头{}上下点动"),
    "shaking head": ("the head shakes{}", "the head moves from side to side{}", "头{}左右摇动"),
}
_STILL = ("the face hardly moves", "the face stays still", "脸上几乎没有表情")
_DEGREES = {"mild": (" a little", "微微"), "clear": ("", ""), "strong": (" strongly", "明显")}

_ATTRIBUTES = {
    "melodic": "起伏大", "high": "音调高", "loud": "响亮", "fast": "语速快", "breathless": "气息急促", "soft": "轻柔",
    "gentle": "温和", "slow": "语速慢", "sharp": "尖锐", "hard": "生硬", "low": "低沉", "tight": "发紧",
    "restrained": "克制", "quiet": "微弱", "falling": "越说越低", "trembling": "颤抖", "uneven": "不稳",
    "thin": "单薄", "pauses": "多停顿", "halting": "断断续续", "unsure": "迟疑", "flat": "平淡", "even": "平直",
    "toneless": "没有起伏", "calm": "平稳", "firm": "坚定", "measured": "沉着",
}  # fmt: skip
"""Attributes of a voice; in English the attribute itself is the wording."""

_SITUATIONS = {
    "news": ("The words tell of news, good or bad.", "话里说到一个消息，可好可坏。"),
    "goodbye": ("The words are about parting.", "话里说的是离别。"),
    "request": ("The words ask for something.", "话里提出一个请求。"),
    "thanks": ("The words are about a favour, welcome or not.", "话里说到别人的好意，不知是否乐意。"),
    "mistake": ("The words speak of a mishap.", "话里说到一个差错。"),
    "waiting": ("The words are about waiting.", "话里说的是等待。"),
    "quarrel": ("The words reproach someone, in jest or not.", "话里带着责备，也可能是玩笑。"),
    "work": ("The words are about a task.", "话里说的是一件事务。"),
    "reunion": ("The words greet someone from the past.", "话里说的是久别重逢。"),
    "reassurance": ("The words say that all is well, true or not.", "话里说一切都好，不知真假。"),
}

_CLASHES = {
    "emotion": ("The face laughs but the voice trembles.", "脸在笑，声音却在颤抖。"),
    "nostalgia": ("The smile is soft but the voice is weak.", "笑容柔和，声音却无力。"),
    "irony": ("The smile does not fit the flat voice: the words are not meant.", "笑容与平淡的声音不符，是反话。"),
    "courage": ("The smile hides what the trembling voice tells.", "笑容掩饰着声音里的颤抖。"),
    "hidden sadness": ("The smile hides what the weak voice tells.", "笑容掩饰着声音里的无力。"),
    "provocation": ("The smile does not fit the harsh voice.", "笑容与生硬的声音不符。"),
    "mockery": ("The lively voice does not fit the sneer.", "活泼的声音与冷笑不符。"),
    "sympathy": ("The face is sad but the voice is warm.", "脸上难过，声音却温暖。"),
    "false cheer": ("The lively voice does not fit the sad face.", "活泼的声音与难过的脸不符。"),
    "disbelief": ("The face is surprised but the voice is not.", "脸上惊讶，声音却不惊讶。"),
    "concern": ("The face is worried but the voice is warm.", "脸上担心，声音却温暖。"),
    "tension": ("The face is still but the voice trembles.", "脸上平静，声音却在颤抖。"),
}
"""Wording of the contradiction between modalities, for every feeling that has one."""

_FRAMES = {  # one of each is drawn; "open" replaces "end" where several feelings fit
    "en": {
        "start": ("From the start", "In the clip", "Soon"),
        "still": ("All the time", "In the clip"),
        "opening": ("At first the brows shoot up in surprise, then", "After a startled look"),
        "voice": ("The voice is", "The voice sounds"),
        "end": ("The person seems", "All this suggests that the person feels", "So the feeling is"),
        "open": (
            "These clues fit several feelings: the person may feel",
            "These clues do not settle it: the person may be",
        ),
    },
    "zh": {
        "start": ("从一开始", "画面中", "很快"),
        "still": ("从头到尾", "画面中"),
        "opening": ("起初双眉一挑，神情惊讶，随后", "先是一惊，随后"),
        "voice": ("声音", "话音"),
        "end": ("此人似乎感到", "综合来看，此人感到", "可见心情是"),
        "open": ("这些线索还不能确定心情，此人可能感到", "仅凭这些难以断定，可能是"),
    },
}

# Errors of the automatic labeller of the coarse set. Strong signals are recognised; subtle ones are mostly confused
# with a similar common pattern, as by captioning and speech models trained on frequent patterns. These errors are
# systematic, so more data of this kind does not average them out.
EXPRESSION_CONFUSIONS = {
    "bright smile": ("soft smile", 0.1), "soft smile": ("bright smile", 0.2), "mouth-only smile": ("soft smile", 0.65),
    "proud look": ("soft smile", 0.55), "sneer": ("frown", 0.6), "frown": ("disgust", 0.1), "disgust": ("frown", 0.25),
    "grief": ("weariness", 0.15), "weariness": ("still face", 0.35), "surprise": ("fright", 0.1),
    "fright": ("surprise", 0.45), "worry": ("grief", 0.55), "averted face": ("weariness", 0.55),
    "thinking": ("frown", 0.5), "still face": ("weariness", 0.15),
}  # fmt: skip
"""expression -> (confused with, probability)"""
PROSODY_CONFUSIONS = {
    "lively": ("rapid", 0.15), "rapid": ("lively", 0.15), "warm": ("steady", 0.55), "harsh": ("rapid", 0.1),
    "pressed": ("flat", 0.6), "weak": ("flat", 0.25), "trembling": ("rapid", 0.55), "halting": ("weak", 0.35),
    "flat": ("steady", 0.3), "steady": ("flat", 0.2),
}  # fmt: skip
"""prosody -> (confused with, probability)"""
GESTURE_MISSED = 0.25  # per gesture, never the first one of an expression
GESTURE_INVENTED = 0.15  # per clip
ATTRIBUTE_MISSED = 0.25  # per attribute, never the first one
ATTRIBUTE_INVENTED = 0.1  # per clip
OPENING_MISSED = 0.5  # a moment of surprise at the start
INTENSITY_MISTAKEN = 0.3
LABEL_MISSED = 0.35  # per label after the first
LABEL_INVENTED = 0.1  # per clip


@dataclass(frozen=True)
class Clues:
    """An observer's annotation of a clip: clues, and the feeling and labels inferred from them.

    `seen` without `gestures` is a still face; without `seen` or `heard` the observer had no video or no audio, with
    `situation` None no subtitle. `expression` and `prosody` are those that the observer recognized. `errors` lists the
    annotation errors.
    """

    feeling: Feeling
    intensity: str
    gestures: tuple[str, ...]
    attributes: tuple[str, ...]
    situation: str | None
    opening: bool
    labels: tuple[str, ...]
    expression: str
    prosody: str | None
    seen: bool = True
    heard: bool = True
    errors: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        """The clue modalities that the observer had."""
        has = {"visual": self.seen, "acoustic": self.heard, "lexical": self.situation is not None}
        return tuple(name for name in CLUES if has[name])

    @property
    def ambiguous(self) -> bool:
        """Whether several feelings fit; a face and a voice together leave one."""
        known = self.expression if self.seen else None, self.prosody if self.heard else None, self.situation
        return not (self.seen and self.heard) and len(feelings_that_fit(*known)) > 1


def subtitle_of(scene: Scene, lang: str = "en") -> str:
    return LINES[scene.situation][scene.line][("en", "zh").index(lang)]


def checked_clues(scene: Scene) -> Clues:
    """Complete and correct clues."""
    feeling = FEELINGS[scene.feeling]
    return Clues(
        feeling=feeling,
        intensity=scene.intensity,
        gestures=scene.gestures,
        attributes=scene.attributes,
        situation=scene.situation,
        opening=scene.opening,
        labels=scene.labels,
        expression=feeling.expression,
        prosody=feeling.prosody if scene.voiced else None,
        heard=scene.voiced,
    )


def automatic_clues(scene: Scene) -> Clues:
    """Clues of an automatic labeller with errors at the rates above; deterministic for a scene.

    Feeling and labels are inferred from these clues, right or wrong; without audio, from video and subtitle alone.
    """
    rng = np.random.default_rng((scene.person, scene.take, 1))
    feeling = FEELINGS[scene.feeling]
    errors = []

    def confuse(true: str, confusions: dict[str, tuple[str, float]], name: str) -> str:
        other, rate = confusions[true]
        if rng.random() >= rate:
            return true
        errors.append(f"{name}: {true} -> {other}")
        return other

    expression = confuse(feeling.expression, EXPRESSION_CONFUSIONS, "expression")
    prosody = confuse(feeling.prosody, PROSODY_CONFUSIONS, "prosody") if scene.voiced else None
    true = EXPRESSIONS[expression]
    gestures = _with_errors(true, GESTURE_MISSED, GESTURE_INVENTED, tuple(GESTURES), "gesture", errors, rng)
    attributes: tuple[str, ...] = ()
    if prosody:
        true = PROSODIES[prosody].attributes
        attributes = _with_errors(
            true, ATTRIBUTE_MISSED, ATTRIBUTE_INVENTED, tuple(_ATTRIBUTES), "attribute", errors, rng
        )
    intensity, opening = scene.intensity, scene.opening
    if rng.random() < INTENSITY_MISTAKEN:
        intensity = [level for level in INTENSITIES if level != intensity][rng.integers(2)]
        errors.append(f"intensity: {scene.intensity} -> {intensity}")
    if opening and rng.random() < OPENING_MISSED:
        opening = False
        errors.append("opening: missed")
    concluded = infer_feeling(expression, prosody, scene.situation)
    if concluded.name != feeling.name:
        errors.append(f"feeling: {feeling.name} -> {concluded.name}")
    if prosody:
        labels = labels_of(concluded, intensity, scene.situation, opening)
    else:
        labels = _conclusion(expression, None, scene.situation, intensity, opening)
    labels = _with_errors(labels, LABEL_MISSED, LABEL_INVENTED, tuple(CHINESE), "label", errors, rng)
    return Clues(
        concluded, intensity, gestures, attributes, scene.situation, opening, labels, expression, prosody,
        heard=scene.voiced, errors=tuple(errors),
    )  # fmt: skip


def _conclusion(
    expression: str | None, prosody: str | None, situation: str | None, intensity: str | None, opening: bool
) -> tuple[str, ...]:
    labels = likely_labels(expression, prosody, situation, intensity)
    return tuple(dict.fromkeys((*labels, "surprised"))) if opening else labels


def _with_errors(
    true: tuple[str, ...], missed: float, invented: float, pool: tuple[str, ...], name: str, errors: list[str],
    rng: np.random.Generator,
) -> tuple[str, ...]:  # fmt: skip
    """Drop some of `true` (never the first), sometimes add one of `pool`, and record both in `errors`."""
    lost = [item for item in true[1:] if rng.random() < missed]
    errors += [f"{name} missed: {item}" for item in lost]
    noted = [item for item in true if item not in lost]
    if rng.random() < invented:
        extra = pool[rng.integers(len(pool))]
        if extra not in true:
            noted.append(extra)
            errors.append(f"{name} invented: {extra}")
    return tuple(noted)


def hide(clues: Clues, *, video: bool = False, audio: bool = False, subtitle: bool = False) -> Clues:
    """The clues without those of hidden modalities, and the labels that the rest leads to."""
    if not ((video and clues.seen) or (audio and clues.heard) or (subtitle and clues.situation)):
        return clues
    if video:
        clues = replace(clues, gestures=(), seen=False, opening=False)
    if audio:
        clues = replace(clues, attributes=(), heard=False)
    if subtitle:
        clues = replace(clues, situation=None)
    seen = clues.seen
    labels = _conclusion(
        clues.expression if seen else None,
        clues.prosody if clues.heard else None,
        clues.situation,
        clues.intensity if seen else None,
        clues.opening,
    )
    return replace(clues, labels=labels)


def describe(clues: Clues, lang: str, rng: np.random.Generator) -> str:
    """An EMER-style description: visual, acoustic and lexical clues, then the inferred emotions.

    >>> describe(checked_clues(Scene("irony", "clear", "thanks", 0, False, 1, 1)), "en", np.random.default_rng(0))
    'Soon the lip corners rise, ... The person seems sarcastic, critical and bitter.'
    """
    return join(fit(clauses_of(clues, lang, rng), clues.known), lang)


def clauses_of(clues: Clues, lang: str, rng: np.random.Generator) -> tuple[Clause, ...]:
    """The clauses of a description, with a conclusion from every subset of the clues.

    The conclusion from all clues states `clues.labels`; one from a part of them says so if several feelings fit.
    """
    n = ("en", "zh").index(lang)
    frames = {name: wordings[rng.integers(len(wordings))] for name, wordings in _FRAMES[lang].items()}
    clauses = []
    if clues.seen:
        degree = _DEGREES[clues.intensity][n]
        gestures = [
            _GESTURES[name][2 * n if n else rng.integers(2)].format(degree if place == 0 else "")
            for place, name in enumerate(clues.gestures)
        ] or [_STILL[2 * n if n else rng.integers(2)]]
        start = frames["opening" if clues.opening else "start" if clues.gestures else "still"]
        text = f"{start} {_list(gestures, 'en')}." if lang == "en" else f"{start}{'，'.join(gestures)}。"
        clauses.append(Clause(text, "visual"))
    if clues.heard and clues.attributes:
        if lang == "en":
            words = ["full of pauses" if name == "pauses" else name for name in clues.attributes]
            text = f"{frames['voice']} {_list(words, 'en')}."
        else:
            text = f"{frames['voice']}{_list([_ATTRIBUTES[name] for name in clues.attributes], 'zh')}。"
        clauses.append(Clause(text, "acoustic"))
    if clues.situation:
        clauses.append(Clause(_SITUATIONS[clues.situation][n], "lexical"))
    if _contradiction_is_known(clues):
        # Irony also says something about the words.
        needs = ("visual", "acoustic", "lexical") if clues.feeling.name == "irony" else ("visual", "acoustic")
        clauses.append(Clause(_CLASHES[clues.feeling.name][n], "mixed", needs))
    for part in _parts(clues):
        labels = part.labels if lang == "en" else labels_in_chinese(part.labels)
        start = frames["open" if part.ambiguous else "end"]
        shown = _list(labels, lang, part.ambiguous)
        text = f"{start} {shown}." if lang == "en" else f"{start}{shown}。"
        clauses.append(Clause(text, "inference", part.known, labels))
    return tuple(clauses)


def _parts(clues: Clues) -> Iterator[Clues]:
    """The clues without those of some modalities, the smallest parts first; `clues` itself last."""
    for size in range(1, len(clues.known) + 1):
        for kept in combinations(clues.known, size):
            yield hide(clues, video="visual" not in kept, audio="acoustic" not in kept, subtitle="lexical" not in kept)


def gesture_words(name: str, rng: np.random.Generator) -> str:
    """A random English wording of a gesture, without intensity.

    >>> gesture_words("tilted head", np.random.default_rng(0))
    'the head leans to one side'
    """
    return _GESTURES[name][rng.integers(2)].format("")


def _contradiction_is_known(clues: Clues) -> bool:
    """A contradiction is mentioned only if the clues contain both sides."""
    feeling = clues.feeling
    face, voice = EXPRESSIONS[feeling.expression], PROSODIES[feeling.prosody].attributes
    noted_both = clues.seen and clues.heard and clues.gestures[:1] == face[:1] and clues.attributes[:1] == voice[:1]
    return feeling.name in _CLASHES and noted_both


def labels_in_chinese(labels: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(CHINESE[label] for label in labels)


def _list(items: list[str] | tuple[str, ...], lang: str, alternatives: bool = False) -> str:
    """`a, b and c`, or in Chinese `a、b、c`; alternatives are joined with "or"."""
    if len(items) == 1:
        return items[0]
    if lang == "zh":
        return "、".join(items[:-1]) + ("或" if alternatives else "、") + items[-1]
    return f"{', '.join(items[:-1])} {'or' if alternatives else 'and'} {items[-1]}"
