"""Clauses by rules on hand-made descriptions, and the selection of those that what is shown supports."""

import pytest

from affectgpt.clauses import BRANCHES, claims, fit, join, sentences, shown_clues, split, supported_labels, unsupported
from affectgpt.runtime import InputError
from affectgpt.schema import CLUES, MODALITIES, Clause, sample_from_row

V, A, L = CLUES

# (language, sentence, modality, needs): in the manner of published descriptions, written for this test.
CASES = [
    ("en", "In the video, a man in a grey coat lowers his eyes and frowns.", V, (V,)),
    ("en", "Her eyebrows are raised, which suggests that she is startled.", V, (V,)),
    ("en", "He nods several times and clenches his fists.", V, (V,)),
    ("en", "In the audio, the pitch rises and he speaks very quickly.", A, (A,)),
    ("en", "She sighs and whispers.", A, (A,)),
    ("en", "The tone is sarcastic.", A, (A,)),
    ("en", 'In the text, the subtitle reads, "My face hurts. My voice is gone."', L, (L,)),
    ("en", "This sentence is a reproach.", L, (L,)),
    ("en", "The smile does not match the trembling voice.", "mixed", (V, A)),
    ("en", "Therefore, the woman is likely ashamed.", "inference", ()),
    ("en", "Based on the frown in the video and the harsh voice, we can infer anger.", "inference", (V, A)),
    ("en", "Overall, he seems content.", "inference", ()),
    ("zh", "在视频中，一位男士低着头，眉头紧锁。", V, (V,)),
    ("zh", "她嘴角上扬，这表明她很高兴。", V, (V,)),
    ("zh", "在音频中，语速很快，音量较高。", A, (A,)),
    ("zh", "他叹了一口气，语气低沉。", A, (A,)),
    ("zh", "在文本中，字幕内容：“我的脸疼。声音也没了。”", L, (L,)),
    ("zh", "这句话是一种责备。", L, (L,)),
    ("zh", "嘴角在笑，声音却在颤抖。", "mixed", (V, A)),
    ("zh", "因此，他可能感到羞愧。", "inference", ()),
    ("zh", "根据紧皱的眉头和生硬的语气，可以推断他很生气。", "inference", (V, A)),
]


@pytest.mark.parametrize(("lang", "sentence", "modality", "needs"), CASES)
def test_a_sentence_belongs_to_the_modalities_that_it_names(lang, sentence, modality, needs):
    (clause,) = split(sentence, lang)
    assert (clause.modality, clause.needs) == (modality, needs)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_clauses_join_to_the_description(lang):
    text = join([Clause(sentence, "inference") for language, sentence, _, _ in CASES if language == lang], lang)
    assert join(split(text, lang), lang) == text


def test_a_sentence_that_names_nothing_belongs_to_its_section():
    clauses = split(
        "In the audio, he stutters. This may show unease. In the text, he asks a question. It is short.", "en"
    )
    assert [clause.modality for clause in clauses] == [A, A, L, L]


def test_quotations_neither_end_a_sentence_nor_make_a_claim():
    text = 'She says, "Look at my face! Listen to my voice." Her hands shake.'
    assert sentences(text, "en") == ['She says, "Look at my face! Listen to my voice."', "Her hands shake."]
    assert claims(text, "en") == {L, V}


@pytest.mark.parametrize(
    ("lang", "text"),
    [
        ("en", "No voice is heard."),
        ("en", "The face cannot be seen."),
        ("en", "There is no subtitle."),
        ("en", "The video is unavailable."),
        ("zh", "没有声音。"),
        ("zh", "看不到人脸。"),
        ("zh", "未提供字幕。"),
    ],
)
def test_a_denial_claims_nothing(lang, text):
    assert claims(text, lang) == frozenset()


def test_a_denial_does_not_hide_the_claim_next_to_it():
    assert claims("No voice is heard, but the eyes are wide.", "en") == {V}
    assert claims("没有声音，但眼睛睁大。", "zh") == {V}


@pytest.mark.parametrize(
    ("lang", "text"),
    [
        ("en", "He has to face the situation, in other words, he is nervous."),
        ("en", "The person seems sad, lonely or tired."),
        ("zh", "此人可能感到目瞪口呆、困惑或难过。"),
    ],
)
def test_conclusions_and_idioms_claim_no_modality(lang, text):
    assert claims(text, lang) == frozenset()


def test_unsupported_sentences_are_named_with_their_modality():
    text = "The voice trembles. The brows rise. She seems afraid."
    assert unsupported(text, "en", {V}) == (("The voice trembles.", A),)
    assert unsupported(text, "en", {V, A}) == ()


def test_shown_clues():
    assert shown_clues(("audio", "multi")) == {A}
    assert shown_clues(("face",), subtitle=True) == {V, L}
    assert shown_clues(("audio",), hears_words=True) == {A, L}
    assert shown_clues(("frames", "text")) == {V, L}


def test_every_branch_of_a_model_shows_one_kind_of_clue():
    assert sorted(name for names in BRANCHES.values() for name in names) == sorted(MODALITIES)
    for clue, names in BRANCHES.items():
        assert all(shown_clues((name,)) == {clue} for name in names)


def test_what_is_not_shown_leaves_no_clause():
    clauses = [Clause(sentence, modality, needs) for lang, sentence, modality, needs in CASES if lang == "en"]
    for shown in ({V}, {A}, {L}, {V, A}, {V, L}, {A, L}):
        kept = fit(clauses, shown)
        assert all(set(clause.needs) <= shown for clause in kept)
        assert [clause for clause in clauses if set(clause.needs) <= shown] == list(kept)
    assert fit(clauses, set(CLUES)) == tuple(clauses)


def test_of_alternative_conclusions_the_one_from_most_clues_stays():
    alternatives = [
        Clause("Perhaps fear.", "inference", (V,), ("afraid",)),
        Clause("Perhaps grief.", "inference", (A,), ("sad",)),
        Clause("It is awe.", "inference", (V, A), ("awed",)),
    ]
    assert [clause.text for clause in fit(alternatives, {V, L})] == ["Perhaps fear."]
    assert [clause.text for clause in fit(alternatives, set(CLUES))] == ["It is awe."]
    assert supported_labels(fit(alternatives, {A}), ("awed",)) == ("sad",)
    assert supported_labels(fit([Clause("She is awed.", "inference")], {A}), ("awed",)) == ("awed",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": " ", "modality": V}, "no text"),
        ({"text": "x", "modality": "smell"}, "modality is 'smell'"),
        ({"text": "x", "modality": V, "needs": (A,)}, "needs"),
        ({"text": "x", "modality": "mixed", "needs": ("smell",)}, "needs"),
    ],
)
def test_a_clause_that_contradicts_itself_is_an_error(values, message):
    with pytest.raises(InputError, match=message):
        Clause(**values)


@pytest.mark.parametrize(
    ("clauses", "message"),
    [
        ("visual", "clauses must be a list of objects, found 'visual'"),
        ([{"text": "x"}], r"a clause has the keys \['text'\]; expected text, modality and some of"),
        ([{"text": "x", "modality": V, "modalty": V}], r"\(unknown: \['modalty'\]\)"),
        ([{"text": "x", "modality": "mixed", "needs": [1]}], r"clause 'x': needs must be a list of words, found \[1\]"),
        ([{"text": "x", "modality": "mixed", "needs": 5}], "clause 'x': needs must be a list of words, found 5"),
        ([{"text": "x", "modality": V, "evidence": "smile"}], "evidence must be a list of words, found 'smile'"),
        ([{"text": "x", "modality": "inference", "labels": 5}], "clause 'x': labels must be a list of words, found 5"),
        ([{"text": "x", "modality": V, "start_s": "soon"}], "clause 'x': start_s must be a number, found 'soon'"),
        ([{"text": "x", "modality": V, "end_s": float("nan")}], "end_s must be a number, found nan"),
        ([{"text": "x", "modality": V, "start_s": -1}], r"the time is -1.0 to None s; expected 0 <= start_s <= end_s"),
        ([{"text": "x", "modality": V, "start_s": 2, "end_s": 1}], r"the time is 2.0 to 1.0 s; expected 0 <= start_s"),
    ],
)
def test_clauses_of_a_manifest_that_are_none_name_what_was_found(clauses, message):
    with pytest.raises(InputError, match=message):
        sample_from_row({"id": "a", "subtitle": "x", "clauses": clauses})


def test_labels_and_times_of_a_clause_mean_the_same_as_text_as_in_json():
    def read(**values):
        row = {"id": "a", "subtitle": "x", "clauses": [{"text": "x", "modality": "inference", **values}]}
        return sample_from_row(row).clauses

    assert read(labels="sad, tired", start_s="1.5", end_s="2") == read(labels=["sad", "tired"], start_s=1.5, end_s=2)
    assert read(labels="sad")[0].labels == ("sad",)
    assert read(labels=None, needs=None, evidence=None, start_s=None) == read()
