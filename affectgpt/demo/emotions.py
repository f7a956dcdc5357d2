"""The ground truth of the demo: feelings and how they are expressed.

A clip is a `Scene`: a feeling, its intensity, a situation (the topic of the subtitle) and a person. A feeling has one
*expression* (gestures of face, gaze and head) and one *prosody* (attributes of the voice). Several feelings share each
expression and each prosody, and many feelings fit each situation, so no single modality suffices: a sad face with a
warm voice is sympathy, with a weak voice sadness; a mouth-only smile is irony with a flat voice, courage with a
trembling one, hidden sadness with a weak one. Action units follow the Facial Action Coding System (FACS).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from affectgpt.demo.performance import Identity, Performance, Voice

if TYPE_CHECKING:
    from affectgpt.demo.performance import Curve

INTENSITIES = {"mild": 0.5, "clear": 0.78, "strong": 1.0}
"""Scale of action units, gaze and head for each intensity."""
INTENSITY_SHARES = {"mild": 0.25, "clear": 0.45, "strong": 0.3}

OPENING_RATE = 0.12
"""Fraction of scenes that begin with a moment of surprise."""

DURATION_S = (2.2, 3.4)

# Variation between persons and takes that is independent of the feeling.
RESTING_UNITS = ("AU01", "AU04", "AU06", "AU07", "AU12", "AU15", "AU17", "AU24", "AU43")
N_RESTING, RESTING_LEVEL = 2, (0.05, 0.2)  # resting faces look slightly happy, stern or tired
HABIT_RATE, HABIT_LEVEL, HABIT_S = 0.3, (0.35, 0.6), (0.5, 0.8)  # a brief meaningless gesture


class Gesture(NamedTuple):
    """A gesture at full strength.

    `units`: action units 0..1; `gaze`: (x, y) in -1..1; `head`: (yaw, pitch, roll) in degrees; `repeats_hz`: repetition
    rate, 0 = the gesture is held.
    """

    units: Mapping[str, float] = {}
    gaze: tuple[float, float] = (0.0, 0.0)
    head: tuple[float, float, float] = (0.0, 0.0, 0.0)
    repeats_hz: float = 0.0


# Positive gaze y and head pitch point upwards.
GESTURES: dict[str, Gesture] = {
    "smiling mouth": Gesture({"AU12": 0.95}),
    "raised cheeks": Gesture({"AU06": 0.9}),
    "open mouth": Gesture({"AU25": 0.8, "AU26": 0.6}),
    "lowered brows": Gesture({"AU04": 0.95}),
    "raised inner brows": Gesture({"AU01": 0.95, "AU04": 0.25}),
    "raised brows": Gesture({"AU01": 0.9, "AU02": 0.95}),
    "wide eyes": Gesture({"AU05": 0.95}),
    "narrowed eyes": Gesture({"AU07": 0.9}),
    "heavy lids": Gesture({"AU43": 0.6}),
    "wrinkled nose": Gesture({"AU09": 0.95, "AU10": 0.7}),
    "drooping mouth": Gesture({"AU15": 0.95, "AU17": 0.5}),
    "pressed lips": Gesture({"AU23": 0.7, "AU24": 0.9}),
    "stretched lips": Gesture({"AU20": 0.95, "AU25": 0.3}),
    "tight mouth corner": Gesture({"AU14": 0.95}),
    "fast blinking": Gesture({"AU45": 1.0}, repeats_hz=2.2),
    "lowered gaze": Gesture(gaze=(0.0, -0.9)),
    "averted gaze": Gesture(gaze=(0.9, -0.2)),
    "upward gaze": Gesture(gaze=(0.4, 0.85)),
    "wandering gaze": Gesture(gaze=(0.8, 0.0), repeats_hz=0.9),
    "bowed head": Gesture(head=(0.0, -13.0, 0.0)),
    "raised chin": Gesture(head=(0.0, 12.0, 0.0)),
    "tilted head": Gesture(head=(3.0, 0.0, 13.0)),
    "turned head": Gesture(head=(18.0, 0.0, 0.0)),
    "nodding": Gesture(head=(0.0, 8.0, 0.0), repeats_hz=1.4),
    "shaking head": Gesture(head=(11.0, 0.0, 0.0), repeats_hz=1.4),
}

EXPRESSIONS: dict[str, tuple[str, ...]] = {
    "bright smile": ("smiling mouth", "raised cheeks", "open mouth", "nodding"),
    "soft smile": ("smiling mouth", "raised cheeks", "tilted head"),
    "mouth-only smile": ("smiling mouth", "stretched lips", "wide eyes"),
    "proud look": ("smiling mouth", "raised chin", "heavy lids"),
    "sneer": ("tight mouth corner", "narrowed eyes", "raised chin"),
    "frown": ("lowered brows", "pressed lips", "narrowed eyes"),
    "disgust": ("wrinkled nose", "lowered brows", "turned head"),
    "grief": ("raised inner brows", "drooping mouth", "lowered gaze"),
    "weariness": ("heavy lids", "drooping mouth", "bowed head"),
    "surprise": ("raised brows", "wide eyes", "open mouth"),
    "fright": ("raised brows", "lowered brows", "wide eyes", "stretched lips"),
    "worry": ("raised inner brows", "wandering gaze", "pressed lips", "fast blinking"),
    "averted face": ("averted gaze", "bowed head", "pressed lips", "smiling mouth"),
    "thinking": ("lowered brows", "upward gaze", "tilted head"),
    "still face": (),
}
"""Gestures of each expression, the most characteristic first."""


class Prosody(NamedTuple):
    """Parameters of a voice. `attributes` are its acoustic clues, the most characteristic first."""

    attributes: tuple[str, ...]
    loudness_db: float
    pitch: float  # ratio to the person's base pitch
    melody: float  # relative size of pitch movements
    rate_hz: float  # syllables per second
    fall: float = 0.0  # relative fall of pitch over the clip; negative = rise
    tremor: float = 0.0
    breathiness: float = 0.1
    n_breaks: int = 0
    brightness: float = 0.0


PROSODIES: dict[str, Prosody] = {
    "lively": Prosody(("melodic", "high", "loud"), 3.0, 1.22, 0.26, 5.2, brightness=0.35),
    "rapid": Prosody(("fast", "high", "breathless"), 1.0, 1.28, 0.08, 7.2, -0.12, breathiness=0.35, brightness=0.3),
    "warm": Prosody(("soft", "gentle", "slow"), -4.0, 0.97, 0.12, 3.6, fall=0.05, breathiness=0.4, brightness=-0.6),
    "harsh": Prosody(("loud", "sharp", "hard"), 8.0, 1.12, 0.16, 5.0, breathiness=0.0, brightness=0.95),
    "pressed": Prosody(("low", "tight", "restrained"), -2.0, 0.76, 0.05, 3.9, breathiness=0.0, brightness=0.6),
    "weak": Prosody(("quiet", "falling", "slow"), -9.0, 0.88, 0.06, 2.8, fall=0.22, breathiness=0.6, brightness=-0.4),
    "trembling": Prosody(("trembling", "uneven", "thin"), -2.0, 1.16, 0.1, 4.4, tremor=0.9, breathiness=0.25),
    "halting": Prosody(("pauses", "halting", "unsure"), -3.0, 0.98, 0.1, 3.8, breathiness=0.25, n_breaks=3),
    "flat": Prosody(("flat", "even", "toneless"), 0.0, 0.92, 0.0, 4.0, brightness=-0.1),
    "steady": Prosody(("calm", "firm", "measured"), 0.5, 1.0, 0.14, 4.2, fall=0.08, breathiness=0.05, brightness=0.1),
}


@dataclass(frozen=True)
class Feeling:
    """A feeling: its expression, prosody and open-vocabulary labels.

    `mild` replaces the first label at mild intensity, `strong` is added at strong intensity, `when` maps the situations
    in which it occurs to an additional label ("" = none). `clash` marks feelings with contradicting modalities. `basic`
    is one of MER2023's six classes, `valence` ranges from -5 to 5.
    """

    name: str
    expression: str
    prosody: str
    labels: tuple[str, ...]
    basic: str
    valence: float
    when: Mapping[str, str] = field(default_factory=dict)
    mild: str = ""
    strong: str = ""
    clash: bool = False


def _feeling(name: str, expression: str, prosody: str, labels: str, basic: str, valence: float, when: str,
             mild: str = "", strong: str = "", clash: bool = False) -> Feeling:  # fmt: skip
    """`labels` is comma-separated, `when` is "situation:label situation ..."."""
    pairs = (item.partition(":") for item in when.split())
    situations = {situation: label.replace("_", " ") for situation, _, label in pairs}
    words = tuple(labels.split(", "))
    return Feeling(name, expression, prosody, words, basic, valence, situations, mild, strong, clash)


FEELINGS: dict[str, Feeling] = {
    feeling.name: feeling
    for feeling in (
        # joy and affection
        _feeling("joy", "bright smile", "lively", "happy, joyful", "happy", 4.0,
                 "news:relieved reunion:excited thanks:thankful work:optimistic", "cheerful", "thrilled"),
        _feeling("excitement", "bright smile", "rapid", "excited, eager", "happy", 4.0,
                 "news:happy waiting:hopeful request reunion:happy", "interested", "enthusiastic"),
        _feeling("emotion", "bright smile", "trembling", "touched, happy", "happy", 3.0,
                 "thanks:grateful reunion:loving news:relieved", "", "overwhelmed", True),
        _feeling("love", "soft smile", "warm", "loving, tender", "happy", 4.0,
                 "goodbye:sentimental thanks:thankful reunion:happy reassurance:caring", "affectionate", "passionate"),
        _feeling("contentment", "soft smile", "steady", "content, relaxed", "happy", 2.5,
                 "work:satisfied waiting:peaceful news:relieved reassurance:calm", "calm"),
        _feeling("nostalgia", "soft smile", "weak", "nostalgic, sentimental", "sad", 0.5,
                 "goodbye:sad reunion:loving thanks news:lonely", clash=True),
        _feeling("amusement", "soft smile", "lively", "amused, playful", "happy", 3.0,
                 "mistake:cheeky request:curious work:cheerful quarrel", "", "joyful"),
        _feeling("pride", "proud look", "steady", "proud, confident", "happy", 3.0,
                 "work:successful news:happy thanks:respected", "satisfied", "powerful"),
        _feeling("arrogance", "proud look", "flat", "arrogant, distant", "neutral", -1.0,
                 "quarrel:dismissive work:proud request:indifferent"),
        _feeling("triumph", "proud look", "lively", "proud, thrilled", "happy", 4.0,
                 "work:successful news:excited quarrel:provoked", "cheerful"),
        # smiles contradicted by another modality
        _feeling("irony", "mouth-only smile", "flat", "sarcastic, critical", "angry", -2.0,
                 "reassurance:skeptical thanks:bitter work:annoyed news:disappointed", "", "mocking", True),
        _feeling("courage", "mouth-only smile", "trembling", "nervous, brave", "worried", -1.0,
                 "reassurance:vulnerable waiting:hopeful goodbye:sad work:insecure", "uneasy", "anxious", True),
        _feeling("hidden sadness", "mouth-only smile", "weak", "lonely, sad", "sad", -2.5,
                 "reassurance:vulnerable goodbye:abandoned thanks:grateful", "melancholy", "depressed", True),
        _feeling("provocation", "mouth-only smile", "harsh", "hostile, aggressive", "angry", -3.0,
                 "quarrel:provoked request:threatening thanks:sarcastic", "", "hateful", True),
        # contempt
        _feeling("contempt", "sneer", "flat", "contemptuous, dismissive", "angry", -2.5,
                 "work:judgmental request:indifferent mistake:critical", "critical", "judgmental"),
        _feeling("mockery", "sneer", "lively", "mocking, amused", "happy", -1.0,
                 "mistake:cheeky news:skeptical thanks:sarcastic", clash=True),
        _feeling("jealousy", "sneer", "pressed", "jealous, resentful", "angry", -3.0,
                 "news:envious reunion:insecure quarrel:hostile", "bitter", "hateful"),
        # anger
        _feeling("anger", "frown", "harsh", "angry, mad", "angry", -3.5,
                 "quarrel:provoked mistake:frustrated request:impatient work", "annoyed", "furious"),
        _feeling("resentment", "frown", "pressed", "resentful, bitter", "angry", -3.0,
                 "quarrel:betrayed goodbye:betrayed thanks:sarcastic", "", "hateful"),
        _feeling("frustration", "frown", "rapid", "frustrated, stressed", "angry", -2.5,
                 "work:overwhelmed waiting:impatient mistake:annoyed", "impatient", "infuriated"),
        _feeling("injury", "frown", "trembling", "hurt, angry", "angry", -3.0,
                 "quarrel:offended goodbye:rejected mistake:humiliated", "", "indignant"),
        _feeling("determination", "frown", "steady", "determined, focused", "neutral", 1.0,
                 "work:motivated waiting:tense request:confident", "attentive", "passionate"),
        # disgust
        _feeling("outrage", "disgust", "harsh", "disgusted, outraged", "angry", -4.0,
                 "quarrel:hateful mistake:appalled news:angry", "", "furious"),
        _feeling("disapproval", "disgust", "pressed", "disapproving, judgmental", "angry", -2.5,
                 "mistake:critical work:dissatisfied request:skeptical", "", "disgusted"),
        _feeling("nausea", "disgust", "weak", "nauseated, uncomfortable", "worried", -3.0,
                 "news:appalled work:exhausted waiting:uneasy", "uneasy", "disgusted"),
        # sadness
        _feeling("sadness", "grief", "weak", "sad, hurt", "sad", -3.5,
                 "goodbye:lonely news:disappointed mistake:guilty", "disappointed", "depressed"),
        _feeling("heartbreak", "grief", "halting", "grief, heartbroken", "sad", -4.5,
                 "news:stunned goodbye:abandoned quarrel:betrayed", "sad", "despair"),
        _feeling("helplessness", "grief", "trembling", "helpless, vulnerable", "sad", -3.5,
                 "quarrel:rejected request:desperate waiting:scared", "", "despair"),
        _feeling("sympathy", "grief", "warm", "sympathetic, caring", "sad", 0.5,
                 "reassurance:loving news:pity thanks:touched", "", "sad", True),
        _feeling("false cheer", "grief", "lively", "sad, insecure", "sad", -2.0,
                 "reassurance:self-conscious reunion:nervous news:disappointed", "disappointed", "heartbroken", True),
        # tiredness
        _feeling("exhaustion", "weariness", "weak", "tired, exhausted", "sad", -2.0,
                 "work:overwhelmed waiting:discouraged goodbye:sad", "sleepy", "empty"),
        _feeling("boredom", "weariness", "flat", "bored, indifferent", "neutral", -1.5,
                 "work:tired waiting:impatient request:dismissive", "", "apathetic"),
        _feeling("drowsiness", "weariness", "warm", "sleepy, peaceful", "neutral", 1.5,
                 "goodbye:tender reassurance:calm waiting:relaxed"),
        _feeling("discouragement", "weariness", "halting", "discouraged, disappointed", "sad", -2.5,
                 "work:tired mistake:guilty news:powerless", "", "depressed"),
        # surprise
        _feeling("amazement", "surprise", "lively", "amazed, surprised", "surprise", 3.0,
                 "news:excited reunion:happy thanks:grateful", "curious", "astonished"),
        _feeling("fright of a moment", "surprise", "rapid", "startled, shocked", "surprise", -1.0,
                 "news:confused reunion:excited mistake:panicked", "surprised", "stunned"),
        _feeling("speechlessness", "surprise", "halting", "stunned, confused", "surprise", -1.0,
                 "news:shocked quarrel:hurt goodbye:dismayed", "surprised", "overwhelmed"),
        _feeling("disbelief", "surprise", "flat", "skeptical, surprised", "surprise", -1.0,
                 "news:dismissive request:annoyed thanks:sarcastic", "", "mocking", True),
        # fear and worry
        _feeling("fear", "fright", "trembling", "scared, fearful", "worried", -4.0,
                 "waiting:nervous quarrel:threatened request:helpless", "uneasy", "terrified"),
        _feeling("panic", "fright", "rapid", "panicked, scared", "worried", -4.0,
                 "mistake:overwhelmed request:desperate news:shocked", "anxious", "terrified"),
        _feeling("insecurity", "fright", "weak", "insecure, vulnerable", "worried", -3.0,
                 "quarrel:inferior goodbye:lonely waiting:helpless", "", "scared"),
        _feeling("anxiety", "worry", "rapid", "anxious, stressed", "worried", -3.0,
                 "waiting:impatient work:pressured news:scared", "nervous", "panicked"),
        _feeling("worry", "worry", "trembling", "worried, nervous", "worried", -3.0,
                 "waiting:scared request:helpless reassurance:tense", "uneasy", "fearful"),
        _feeling("concern", "worry", "warm", "caring, worried", "worried", 0.5,
                 "reassurance:loving news:sympathetic request:attentive", "attentive", "", True),
        _feeling("remorse", "worry", "halting", "guilty, hesitant", "worried", -2.5,
                 "mistake:remorseful quarrel:ashamed request:insecure", "", "remorseful"),
        # shame
        _feeling("shame", "averted face", "weak", "ashamed, inferior", "sad", -3.0,
                 "mistake:guilty quarrel:rejected work:inadequate", "embarrassed", "humiliated"),
        _feeling("embarrassment", "averted face", "rapid", "embarrassed, nervous", "worried", -1.5,
                 "mistake:ashamed request:confused thanks:grateful", "self-conscious", "humiliated"),
        _feeling("shyness", "averted face", "halting", "shy, embarrassed", "neutral", 0.5,
                 "thanks:grateful reunion:tender request:hesitant", "bashful", "nervous"),
        # thinking
        _feeling("curiosity", "thinking", "lively", "curious, interested", "neutral", 2.0,
                 "news:excited request:playful reunion:inquisitive", "attentive", "fascinated"),
        _feeling("reflection", "thinking", "steady", "thoughtful, pensive", "neutral", 0.5,
                 "goodbye:sentimental work:focused news:skeptical"),
        _feeling("confusion", "thinking", "halting", "confused, hesitant", "worried", -1.0,
                 "request:insecure news:perplexed work:uncomfortable", "thoughtful", "bewildered"),
        _feeling("suspicion", "thinking", "pressed", "suspicious, skeptical", "angry", -2.0,
                 "news:tense thanks:distant quarrel:critical", "", "hostile"),
        # still face
        _feeling("calm", "still face", "steady", "calm", "neutral", 1.0,
                 "work waiting:relaxed request", "", "serene"),
        _feeling("emptiness", "still face", "weak", "empty, lonely", "sad", -3.0,
                 "goodbye:abandoned news:powerless waiting:depressed", "distant", "depressed"),
        _feeling("indifference", "still face", "flat", "indifferent", "neutral", -1.0,
                 "work:bored request:distant quarrel:withdrawn", "", "apathetic"),
        _feeling("tension", "still face", "trembling", "tense, nervous", "worried", -2.0,
                 "waiting:insecure quarrel:hurt reassurance:vulnerable", "uneasy", "scared", True),
    )
}  # fmt: skip
"""All feelings by name; no two share both expression and prosody."""

CHINESE = {
    "abandoned": "被抛弃", "affectionate": "亲切", "aggressive": "咄咄逼人", "amazed": "惊叹", "amused": "觉得有趣",
    "angry": "生气", "annoyed": "恼火", "anxious": "焦虑", "apathetic": "冷漠", "appalled": "骇然",
    "arrogant": "傲慢", "ashamed": "羞愧", "astonished": "震惊不已", "attentive": "专心", "bashful": "腼腆",
    "betrayed": "被背叛", "bewildered": "茫然", "bitter": "怨愤", "bored": "无聊", "brave": "勇敢", "calm": "平静",
    "caring": "关心", "cheeky": "调皮", "cheerful": "愉快", "confident": "自信", "confused": "困惑",
    "contemptuous": "轻蔑", "content": "满足", "critical": "挑剔", "curious": "好奇", "depressed": "抑郁",
    "despair": "绝望", "desperate": "走投无路", "determined": "坚定", "disappointed": "失望",
    "disapproving": "不赞成", "discouraged": "气馁", "disgusted": "厌恶", "dismayed": "愕然", "dismissive": "不屑",
    "dissatisfied": "不满", "distant": "疏远", "eager": "热切", "embarrassed": "尴尬", "empty": "空虚",
    "enthusiastic": "热情", "envious": "羡慕", "excited": "兴奋", "exhausted": "疲惫不堪", "fascinated": "着迷",
    "fearful": "恐惧", "focused": "专注", "frustrated": "挫败", "furious": "暴怒", "grateful": "感激",
    "grief": "悲痛", "guilty": "内疚", "happy": "高兴", "hateful": "憎恨", "heartbroken": "心碎", "helpless": "无助",
    "hesitant": "犹豫", "hopeful": "充满希望", "hostile": "敌对", "humiliated": "屈辱", "hurt": "受伤",
    "impatient": "不耐烦", "inadequate": "力不从心", "indifferent": "无所谓", "indignant": "愤慨", "inferior": "自卑",
    "infuriated": "大怒", "inquisitive": "好问", "insecure": "没有安全感", "interested": "感兴趣", "jealous": "嫉妒",
    "joyful": "欢喜", "judgmental": "苛责", "lonely": "孤独", "loving": "慈爱", "mad": "气愤", "melancholy": "忧郁",
    "mocking": "嘲弄", "motivated": "有干劲", "nauseated": "恶心", "nervous": "紧张", "nostalgic": "怀旧",
    "offended": "被冒犯", "optimistic": "乐观", "outraged": "愤怒", "overwhelmed": "不知所措", "panicked": "惊慌",
    "passionate": "激情", "peaceful": "安宁", "pensive": "沉思", "perplexed": "费解", "pity": "怜悯",
    "playful": "顽皮", "powerful": "有力量", "powerless": "无力", "pressured": "有压力", "proud": "自豪",
    "provoked": "被激怒", "rejected": "被拒绝", "relaxed": "放松", "relieved": "松了一口气", "remorseful": "懊悔",
    "resentful": "怨恨", "respected": "受尊重", "sad": "难过", "sarcastic": "讽刺", "satisfied": "满意",
    "scared": "害怕", "self-conscious": "不自在", "sentimental": "感伤", "serene": "安详", "shocked": "震惊",
    "shy": "害羞", "skeptical": "怀疑", "sleepy": "困倦", "startled": "吓了一跳", "stressed": "压力大",
    "stunned": "目瞪口呆", "successful": "有成就感", "surprised": "惊讶", "suspicious": "多疑", "sympathetic": "同情",
    "tender": "温柔", "tense": "紧绷", "terrified": "惊恐", "thankful": "感谢", "thoughtful": "若有所思",
    "threatened": "受到威胁", "threatening": "威胁", "thrilled": "激动", "tired": "疲倦", "touched": "感动",
    "uncomfortable": "不舒服", "uneasy": "不安", "vulnerable": "脆弱", "withdrawn": "退缩", "worried": "担心",
}  # fmt: skip
"""Chinese translation of every label."""


@dataclass(frozen=True)
class Scene:
    """The ground truth of one clip. `person` seeds the identity, `take` the variation between takes."""

    feeling: str
    intensity: str
    situation: str
    line: int
    opening: bool  # begins with a moment of surprise
    person: int
    take: int
    voiced: bool = True  # False: the clip has no audio

    @property
    def labels(self) -> tuple[str, ...]:
        return labels_of(FEELINGS[self.feeling], self.intensity, self.situation, self.opening)

    @property
    def valence(self) -> float:
        return round(FEELINGS[self.feeling].valence * (0.6 + 0.4 * INTENSITIES[self.intensity]), 2)

    @property
    def gestures(self) -> tuple[str, ...]:
        return EXPRESSIONS[FEELINGS[self.feeling].expression]

    @property
    def attributes(self) -> tuple[str, ...]:
        return PROSODIES[FEELINGS[self.feeling].prosody].attributes if self.voiced else ()


def labels_of(feeling: Feeling, intensity: str, situation: str, opening: bool = False) -> tuple[str, ...]:
    """Open-vocabulary labels without duplicates, the most certain first.

    >>> labels_of(FEELINGS["anger"], "strong", "quarrel")
    ('angry', 'mad', 'furious', 'provoked')
    """
    words = list(feeling.labels)
    if intensity == "mild" and feeling.mild:
        words[0] = feeling.mild
    if intensity == "strong" and feeling.strong:
        words.append(feeling.strong)
    words.append(feeling.when.get(situation, ""))
    if opening:
        words.append("surprised")
    return tuple(dict.fromkeys(word for word in words if word))


def draw_scene(rng: np.random.Generator, *, person: int, n_lines: int, feeling: str | None = None) -> Scene:
    """Draw a scene of `feeling` (None = any); `n_lines` is the number of lines per situation."""
    chosen = FEELINGS[feeling or list(FEELINGS)[rng.integers(len(FEELINGS))]]
    return Scene(
        feeling=chosen.name,
        intensity=list(INTENSITIES)[rng.choice(3, p=list(INTENSITY_SHARES.values()))],
        situation=list(chosen.when)[rng.integers(len(chosen.when))],
        line=int(rng.integers(n_lines)),
        opening=bool(chosen.expression != "surprise" and rng.random() < OPENING_RATE),
        person=person,
        take=int(rng.integers(2**31)),
    )


def infer_feeling(expression: str | None, prosody: str | None, situation: str | None = None) -> Feeling:
    """The feeling that best matches these clues; None = unknown.

    If no feeling matches all clues, face and voice count more than the situation, and face decides ties.
    """

    def fit(feeling: Feeling) -> tuple[int, int]:
        agreement = (feeling.expression == expression) * 2 + (feeling.prosody == prosody) * 2
        return agreement + (situation in feeling.when), feeling.expression == expression

    return max(FEELINGS.values(), key=fit)


def feelings_that_fit(expression: str | None, prosody: str | None, situation: str | None) -> list[Feeling]:
    """The feelings that agree with these clues; None = unknown."""
    return [
        feeling
        for feeling in FEELINGS.values()
        if expression in (None, feeling.expression)
        and prosody in (None, feeling.prosody)
        and (situation is None or situation in feeling.when)
    ]


N_LIKELY = 3


def likely_labels(
    expression: str | None, prosody: str | None, situation: str | None, intensity: str | None = None
) -> tuple[str, ...]:
    """The labels that an observer infers from a part of the clues; None = unknown.

    All labels if the clues leave one feeling and nothing is unknown, else the `N_LIKELY` most frequent labels among the
    scenes that agree with the clues.

    >>> likely_labels("grief", None, None)
    ('sad', 'heartbroken', 'disappointed')
    """
    feelings = feelings_that_fit(expression, prosody, situation) or [infer_feeling(expression, prosody, situation)]
    if len(feelings) == 1 and intensity and situation:
        return labels_of(feelings[0], intensity, situation)
    share: dict[str, float] = {}
    for feeling in feelings:
        situations = [situation] if situation else list(feeling.when)
        for level, weight in ({intensity: 1.0} if intensity else INTENSITY_SHARES).items():
            for topic in situations:
                for word in labels_of(feeling, level, topic):
                    share[word] = share.get(word, 0.0) + weight / len(situations)
    return tuple(sorted(share, key=lambda word: -share[word])[:N_LIKELY])


def perform(scene: Scene, text: str) -> Performance:
    """Turn a scene into curves; deterministic."""
    rng = np.random.default_rng((scene.person, scene.take))
    duration_s = float(rng.uniform(*DURATION_S))
    units, gaze, head = _face_curves(scene, duration_s, rng)
    return Performance(
        duration_s=duration_s,
        identity=Identity(scene.person),
        action_units=units,
        gaze=gaze,
        head=head,
        voice=_voice(scene, duration_s, rng) if scene.voiced else None,
        text=text,
    )


_STEP_S = 0.08  # spacing of the knots, equal to that of video frames


def _face_curves(
    scene: Scene, duration_s: float, rng: np.random.Generator
) -> tuple[dict[str, Curve], tuple[Curve, Curve], tuple[Curve, Curve, Curve]]:
    times = np.arange(0.0, duration_s + _STEP_S, _STEP_S)
    units: dict[str, np.ndarray] = {}
    gaze = np.stack([_drift(times, 0.06, rng) for _ in range(2)])
    head = np.stack([_drift(times, 1.2, rng) for _ in range(3)])
    side = rng.choice((-1.0, 1.0))  # direction of averted gaze and head
    own = np.random.default_rng((scene.person, 3))
    for unit in own.choice(RESTING_UNITS, N_RESTING, replace=False):
        units[str(unit)] = np.full(len(times), own.uniform(*RESTING_LEVEL))
    head += own.uniform(-3, 3, size=(3, 1))

    def add(name: str, envelope: np.ndarray, strength: float) -> None:
        gesture = GESTURES[name]
        level = envelope * strength * rng.uniform(0.85, 1.1)
        if gesture.repeats_hz:
            wave = np.sin(2 * math.pi * gesture.repeats_hz * rng.uniform(0.85, 1.15) * times + rng.uniform(0, 6))
            # Blinks are short and one-sided; nods and a wandering gaze oscillate.
            level = level * ((wave > 0.75) if "AU45" in gesture.units else wave)
        for unit, full in gesture.units.items():
            units[unit] = np.maximum(units.get(unit, 0.0), level * full)
        gaze[0] += side * level * gesture.gaze[0]
        gaze[1] += level * gesture.gaze[1]
        head[0] += side * level * gesture.head[0]
        head[1] += level * gesture.head[1]
        head[2] += side * level * gesture.head[2]

    start_s = rng.uniform(0.0, 0.3)
    if scene.opening:
        end_s = rng.uniform(0.7, 0.9)
        for name in EXPRESSIONS["surprise"]:
            add(name, _envelope(times, 0.0, end_s), 0.95)
        start_s = end_s
    # Intensity scales gaze and head as well; INTENSITIES keeps mild feelings visible.
    strength = INTENSITIES[scene.intensity]
    for name in scene.gestures:
        onset_s = start_s + rng.uniform(0.0, 0.2)
        add(name, _envelope(times, onset_s, duration_s + 1), strength)
    if rng.random() < HABIT_RATE:
        habit_s = rng.uniform(0, duration_s - HABIT_S[1])
        name = list(GESTURES)[rng.integers(len(GESTURES))]
        add(name, _envelope(times, habit_s, habit_s + rng.uniform(*HABIT_S), 0.2), rng.uniform(*HABIT_LEVEL))
    for blink_s in np.arange(rng.uniform(0.4, 2.0), duration_s, rng.uniform(1.8, 3.0)):
        shut = np.clip(1 - np.abs(times - blink_s) / 0.1, 0, 1)
        units["AU45"] = np.maximum(units.get("AU45", 0.0), shut)
    curves = {unit: _curve(times, np.clip(level, 0, 1)) for unit, level in sorted(units.items())}
    gaze_x, gaze_y = (_curve(times, np.clip(row, -1, 1)) for row in gaze)
    yaw, pitch, roll = (_curve(times, np.clip(row, -25, 25)) for row in head)
    return curves, (gaze_x, gaze_y), (yaw, pitch, roll)


def _voice(scene: Scene, duration_s: float, rng: np.random.Generator) -> Voice:
    prosody = PROSODIES[FEELINGS[scene.feeling].prosody]
    # Intensity changes the voice less than the face, so that the prosody of mild feelings stays audible.
    strength = 0.55 + 0.45 * INTENSITIES[scene.intensity]
    own = np.random.default_rng((scene.person, 4))  # the person's own speaking style
    melody = prosody.melody * own.uniform(0.75, 1.25)
    times = np.arange(0.0, duration_s + 0.12, 0.12)
    progress = times / duration_s
    swing = np.sin(2 * math.pi * rng.uniform(0.7, 1.0) * times + rng.uniform(0, 6))
    swing += 0.3 * rng.standard_normal(len(times))
    level = 1 + (prosody.pitch * rng.uniform(0.95, 1.05) - 1) * strength
    pitch = level * (1 + melody * strength * swing - prosody.fall * strength * (progress - 0.5))
    loudness = prosody.loudness_db * strength - 10 * prosody.fall * progress
    loudness += own.uniform(-2.5, 2.5) + rng.uniform(-1, 1)
    breaks = []
    for part in range(prosody.n_breaks):
        centre_s = duration_s * (part + 1 + rng.uniform(-0.2, 0.2)) / (prosody.n_breaks + 1)
        half_s = rng.uniform(0.12, 0.2) * strength
        breaks.append((centre_s - half_s, centre_s + half_s))
    return Voice(
        pitch_ratio=_curve(times, np.clip(pitch, 0.5, 2.0)),
        loudness_db=_curve(times, loudness),
        syllable_rate_hz=float((4.2 + (prosody.rate_hz - 4.2) * strength) * own.uniform(0.9, 1.1)),
        tremor=float(prosody.tremor * strength),
        breathiness=float(np.clip(prosody.breathiness * strength + own.uniform(0, 0.15), 0, 1)),
        breaks=tuple(breaks),
        brightness=float(np.clip(prosody.brightness * strength + own.uniform(-0.25, 0.25), -1, 1)),
    )


def _envelope(times: np.ndarray, onset_s: float, offset_s: float, rise_s: float = 0.3) -> np.ndarray:
    """0 before the onset, rising to 1, back to 0 at the offset."""
    return np.clip(np.minimum((times - onset_s) / rise_s, (offset_s - times) / rise_s), 0, 1)


def _drift(times: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Slow drift around zero: head and gaze are never completely still."""
    return size * np.sin(2 * math.pi * rng.uniform(0.2, 0.6) * times + rng.uniform(0, 6))


def _curve(times: np.ndarray, values: np.ndarray) -> Curve:
    values = np.broadcast_to(values, times.shape)
    return tuple(zip(times.round(3).tolist(), values.round(4).tolist(), strict=True))
