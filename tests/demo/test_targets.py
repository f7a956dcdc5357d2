"""What the embedded corpus says when a part of a clip is hidden."""

from itertools import combinations

import pytest

from affectgpt.clauses import claims, fit, join, unsupported
from affectgpt.demo.corpus import N_COARSE, N_FINE, draw_scenes, sample_of
from affectgpt.demo.emotions import feelings_that_fit, likely_labels
from affectgpt.demo.text import automatic_clues, checked_clues
from affectgpt.prompts import LABEL_LINE, target_text
from affectgpt.schema import CLUES

PARTS = [frozenset(part) for size in (1, 2, 3) for part in combinations(CLUES, size)]


@pytest.fixture(scope="module")
def corpus():
    scenes = draw_scenes(0, N_COARSE, N_FINE)
    observe = {"coarse": automatic_clues, "fine": checked_clues}
    return [
        sample_of(name, number, scene, observe[name](scene), "train")
        for name, part in scenes.items()
        for number, scene in enumerate(part)
    ]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_no_target_says_anything_of_what_is_hidden(corpus, lang):
    assert len(corpus) == N_COARSE + N_FINE
    for sample in corpus:
        for shown in PARTS:
            text = target_text(sample, "both", lang, shown)
            assert not unsupported(text, lang, shown), (sample.id, shown)
            assert LABEL_LINE[lang] in text


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_target_tells_of_everything_that_is_shown(corpus, lang):
    for sample in corpus:
        given = sample.in_language(lang).clauses
        has = {clause.modality for clause in given} & set(CLUES)
        for shown in PARTS:
            if shown <= has:
                assert claims(target_text(sample, "description", lang, shown), lang) >= shown


def test_the_description_is_what_all_clues_lead_to(corpus):
    for sample in corpus:
        for lang in ("en", "zh"):
            text = sample.in_language(lang)
            has = {clause.modality for clause in text.clauses}
            assert join(fit(text.clauses, has), lang) == text.description
            assert target_text(sample, "both", lang, has) == target_text(sample, "both", lang)


def test_a_part_of_the_clues_says_so_if_it_leaves_several_feelings_open():
    assert len(feelings_that_fit("grief", None, None)) == 5
    assert len(feelings_that_fit("grief", "warm", None)) == 1
    assert likely_labels("grief", "warm", "news", "clear") == ("sympathetic", "caring", "pity")
    assert likely_labels("grief", None, None)[0] == "sad"
