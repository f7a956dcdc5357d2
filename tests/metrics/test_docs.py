"""The worked example of the documentation runs, and its numbers about the lexicon are current."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import affectgpt.metrics
from affectgpt.metrics import load_lexicon

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_worked_example_in_the_docs_runs():
    result = doctest.testfile(str(DOCS / "metrics.md"), module_relative=False)
    assert (result.failed, result.attempted > 0) == (0, True)


def test_the_docs_give_the_true_size_of_the_lexicon():
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    lexicon = load_lexicon("builtin")
    n_chinese = sum("\u4e00" <= form[0] <= "\u9fff" for form in lexicon.forms)
    assert (
        f"{len(lexicon.wheel_words):,} synonym keys, {len(lexicon.forms):,} forms, {n_chinese} of them Chinese" in text
    )


@pytest.mark.parametrize(
    "name", [module.name for module in pkgutil.walk_packages(affectgpt.metrics.__path__, "affectgpt.metrics.")]
)
def test_worked_examples_in_the_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
