"""Scores with the published tables equal a direct implementation of the published rules, peculiarities included."""

import csv
import math
import random
from pathlib import Path

import numpy as np
import pytest

from affectgpt.cli import compose
from affectgpt.inference.evaluate import evaluate_config
from affectgpt.metrics import evaluate, read_references
from affectgpt.metrics.io import ScoreFileError
from affectgpt.metrics.lexicon import agreement, load_builtin, load_lexicon, split_published
from affectgpt.metrics.wheel import GROUPINGS, WheelGrouping
from affectgpt.runtime import InputError
from affectgpt.schema import Prediction

TABLES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "emotion_wheel"
openpyxl = pytest.importorskip("openpyxl")
needs_tables = pytest.mark.skipif(
    not TABLES.is_dir(),
    reason=f"the published emotion-wheel tables are not at {TABLES} (they are not part of this project)",
)


def toy_folder(folder: Path) -> Path:
    """Tables in the published layout, with every peculiarity in a dozen rows."""
    rows = {
        1: [("Mad", "Hurt", "Jealous"), (None, "Rage", "Furious"), ("Happy", "Proud", "Brave"), (None, None, " Bold ")],
        2: [("Scared", "Weak", "Small"), ("Joy", "Brave", "Calm")],
    }
    for number in range(1, 6):
        book = openpyxl.Workbook()
        for row in [("level1", "level2", "level3"), *rows.get(number, rows[2])]:
            book.active.append(row)
        book.save(folder / f"wheel{number}.xlsx")
    book = openpyxl.Workbook()
    for row in [
        ("word_run1", "synonym_run1", "word_run2", "synonym_run2"),
        ("Furious", "angry, irate", "brave", "fearless, bold"),
        ("scared", "fearful", "Scared", "fear, Fearful"),
    ]:
        book.active.append(row)
    book.save(folder / "synonym.xlsx")
    (folder / "format.csv").write_text(
        'name,format\nangry,"angry,anger,angrily"\nirate,irate\nfearful,"fear,fearful"\nfear,"fear,fears"\n'
        'fearless,"fearless,fear"\nbold,\nbrave,brave\nscared,scared\nfurious,furious\n',
        encoding="utf-8",
    )
    (folder / "format-fixed.csv").write_text(
        'name,format\nangry,"angry,anger"\nfearful,"fear,fearful"\nfear,fear\nfearless,fearless\n', encoding="utf-8"
    )
    return folder


def test_one_form_with_several_keys_takes_the_first_wheel_word_of_all_of_them(tmp_path):
    grouping = WheelGrouping(load_lexicon(toy_folder(tmp_path)))
    # fear -> keys fear, fearful, fearless -> wheel words brave, scared: "brave" comes first, so fear is happy here.
    assert grouping.groups("fear")["M1"] == "fear"
    assert grouping.groups("fear")["M2"] == "scared"
    assert grouping.groups("fear")["M3-W1-L1"] == "happy"


def test_the_table_of_forms_of_another_year_is_selected_by_its_path(tmp_path):
    later = load_lexicon(toy_folder(tmp_path) / "format-fixed.csv")
    assert later.name == "published:format-fixed.csv"
    assert WheelGrouping(later).groups("fear")["M3-W2-L1"] == "scared"


def test_a_key_without_forms_is_its_own_form_and_cells_are_stripped(tmp_path):
    grouping = WheelGrouping(load_lexicon(toy_folder(tmp_path)))
    assert grouping.groups("bold")["M3-W1-L2"] == "proud"
    assert grouping.groups("Very angry") == {}  # looked up verbatim: degree words are not removed


def test_label_text_is_split_at_quotes_and_commas_as_published():
    assert split_published("['sad', \"don't know\"]") == ["sad", "don", "t know"]
    assert split_published("[]") == split_published("") == []


def test_labels_are_split_as_published_only_with_the_published_tables(tmp_path):
    predictions = [Prediction("a", "['don't care', 'angry']", task="labels")]
    published = evaluate(predictions, {"a": ("don't care", "angry")}, lexicon=toy_folder(tmp_path), n_bootstrap=0)
    assert published.label_reading == "published"
    assert published.counts.readings == {"published list": 1}
    assert published.counts.unknown_truth == {"don": 1, "t care": 1}
    ours = evaluate(predictions, {"a": ("don't care", "angry")}, n_bootstrap=0)
    assert (ours.label_reading, ours.counts.unknown_truth, ours.primary.f_score) == ("exact", {}, 1.0)


ODD_CELLS = {  # the text of a cell: labels as published, labels by our parser
    "[sad; angry]": (("sad; angry",), ("sad", "angry")),
    "[sad，angry]": (("sad，angry",), ("sad", "angry")),
    "sad、angry": (("sad、angry",), ("sad", "angry")),
    "['sad\\t']": (("sad\\t",), ("sad",)),
    "sad": (("sad",), ("sad",)),
    "nan": ((), ()),
    "[[]]": (("[]",), None),
    "[['sad'], ['angry']]": (("[", "sad", "]", "[", "angry", "]"), None),
}


def test_references_are_split_as_published_where_scores_equal_published_ones_and_by_our_parser_elsewhere(tmp_path):
    path = tmp_path / "gt.csv"
    path.write_text("name,openset\n" + "".join(f'{i},"{cell}"\n' for i, cell in enumerate(ODD_CELLS)), "utf-8")
    found = read_references(path, split_text=split_published)
    assert list(found.values()) == [published for published, _ in ODD_CELLS.values()]
    report = evaluate({key: ["sad"] for key in found}, found, lexicon=toy_folder(tmp_path), n_bootstrap=0)
    assert report.counts.tokens_truth == 12  # not split once more
    with pytest.raises(ScoreFileError, match=r"gt\.csv:8: sample '6': labels must be a list of words"):
        read_references(path)
    path.write_text("\n".join(path.read_text("utf-8").splitlines()[:7]), "utf-8")
    assert list(read_references(path).values()) == [ours for _, ours in ODD_CELLS.values() if ours is not None]


def test_eval_splits_label_text_as_published_with_the_published_tables_unless_told_otherwise(tmp_path):
    tables = toy_folder(tmp_path)
    (tmp_path / "gt.csv").write_text("name,openset\na,[scared; angry]\nb,['angry']\n", "utf-8")
    (tmp_path / "p.csv").write_text("name,openset\na,['scared']\nb,['angry']\n", "utf-8")
    options = [f"predictions={tmp_path / 'p.csv'}", f"references={tmp_path / 'gt.csv'}", "n_bootstrap=0"]
    options.append(f"lexicon={tables}")
    published, _ = evaluate_config(compose("eval", options))
    assert (published.label_reading, published.counts.unknown_truth) == ("published", {"scared; angry": 1})
    assert (published.scores["M3-W1-L1"].n, published.scores["M3-W1-L1"].recall) == (1, 1.0)
    assert "label text is split as published" in published.table()
    ours, _ = evaluate_config(compose("eval", [*options, "label_reading=exact"]))
    assert (ours.label_reading, ours.counts.unknown_truth) == ("exact", {})
    assert (ours.scores["M3-W2-L1"].n, ours.scores["M3-W2-L1"].recall) == (1, 1.0)
    assert "label text is split" not in ours.table()
    with pytest.raises(InputError, match=r"label_reading is 'x'; expected one of \['auto', 'published', 'exact'\]"):
        evaluate_config(compose("eval", [*options, "label_reading=x"]))


def test_csv_tables_read_like_xlsx_tables(tmp_path):
    folder = toy_folder(tmp_path)
    before = load_lexicon(folder)
    for path in folder.glob("*.xlsx"):
        rows = openpyxl.load_workbook(path).active.iter_rows(values_only=True)
        with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
        path.unlink()
    after = load_lexicon(folder)
    assert (before.forms, before.wheel_words, before.wheels) == (after.forms, after.wheel_words, after.wheels)


def test_a_missing_table_is_an_error_that_names_it(tmp_path):
    toy_folder(tmp_path)
    (tmp_path / "wheel3.xlsx").unlink()
    with pytest.raises(ValueError, match=r"has no wheel3\.xlsx or wheel3\.csv"):
        load_lexicon(tmp_path)
    (tmp_path / "format.csv").unlink()
    with pytest.raises(ValueError, match="no table of forms"):
        load_lexicon(tmp_path)


class NaiveRules:
    """A naive implementation of the published rules (docs/metrics.md): lists instead of sorted tuples, no caches."""

    def __init__(self, folder: Path, forms: str) -> None:
        self.wheels = []
        for number in range(1, 6):
            tree: dict = {}
            filled = ["", "", ""]
            for row in list(openpyxl.load_workbook(folder / f"wheel{number}.xlsx").active.iter_rows(values_only=True))[
                1:
            ]:
                filled = [cell.strip().lower() if cell else old for cell, old in zip(row[:3], filled, strict=True)]
                tree.setdefault(filled[0], {}).setdefault(filled[1], []).append(filled[2])
            self.wheels.append(tree)
        self.words: dict = {}
        rows = list(openpyxl.load_workbook(folder / "synonym.xlsx").active.iter_rows(values_only=True))[1:]
        for row in rows:
            for word, synonyms in zip(row[::2], row[1::2], strict=True):
                for key in [word, *synonyms.split(",")]:
                    self.words.setdefault(key.strip().lower(), []).append(word.strip().lower())
        self.keys: dict = {}
        with (folder / forms).open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                for form in [*row["format"].split(","), row["name"]]:
                    if form.strip():
                        self.keys.setdefault(form.strip(), []).append(row["name"])

    def cluster(self, word: str, wheel: int, level: int) -> str:
        table = {}
        for inner, children in self.wheels[wheel - 1].items():
            table[inner] = inner if level == 1 else sorted(children)[0]
            for middle, leaves in children.items():
                table[middle] = inner if level == 1 else middle
                for leaf in leaves:
                    table[leaf] = inner if level == 1 else middle
        candidates = [wheel_word for key in self.keys.get(word, []) for wheel_word in self.words[key]]
        return next((table[candidate] for candidate in sorted(candidates) if candidate in table), "")

    def group(self, word: str, name: str) -> str:
        if word not in self.keys:
            return ""
        if name == "M1":
            return sorted(self.keys[word])[0]
        if name == "M2":
            return sorted(self.words[sorted(self.keys[word])[0]])[0]
        return self.cluster(word, int(name[4]), int(name[7]))

    def scores(self, truths, predictions, name):
        precisions, recalls = [], []
        for sample_id, truth in truths.items():
            y = {group for word in truth if (group := self.group(word.lower().strip(), name))}
            y_hat = {group for word in predictions[sample_id] if (group := self.group(word.lower().strip(), name))}
            if not y:
                continue
            precisions.append(len(y & y_hat) / len(y_hat) if y_hat else 0)
            recalls.append(len(y & y_hat) / len(y) if y_hat else 0)
        p, r = np.mean(precisions), np.mean(recalls)
        return 2 * p * r / (p + r), p, r, len(precisions)


@needs_tables
@pytest.mark.parametrize("forms", ["format.csv", "format-2026.csv"])
def test_every_score_equals_the_published_rules_to_1e_9(forms):
    naive = NaiveRules(TABLES, forms)
    rng = random.Random(7)
    words = [
        *rng.sample(sorted(naive.keys), 60),
        "neutral",
        "surprise",
        "disgust",
        "fear",
        "happy",
        "frobnicated",
        "Sad ",
    ]
    truths = {f"s{i}": rng.choices(words, k=rng.randint(0, 4)) for i in range(80)}
    predictions = {f"s{i}": rng.choices(words, k=rng.randint(0, 4)) for i in range(80)}
    report = evaluate(predictions, truths, lexicon=TABLES / forms, n_bootstrap=0)
    f_scores = {}
    for name in GROUPINGS:
        f_score, precision, recall, n = naive.scores(truths, predictions, name)
        score = report.scores[name]
        f_scores[name] = f_score
        assert score.n == n
        for ours, theirs in ((score.f_score, f_score), (score.precision, precision), (score.recall, recall)):
            assert math.isclose(ours, theirs, abs_tol=1e-9), name
    level1 = np.mean([f_scores[f"M3-W{k}-L1"] for k in range(1, 6)])
    assert math.isclose(report.primary.f_score, level1, abs_tol=1e-9)
    assert math.isclose(report.m_avg, np.mean(list(f_scores.values())), abs_tol=1e-9)


@needs_tables
def test_published_tables_have_the_known_sizes_and_peculiarities():
    first, second = load_lexicon(TABLES), load_lexicon(TABLES / "format-2026.csv")
    assert (len(first.wheel_words), len(first.forms), len(second.forms)) == (1255, 7386, 7356)
    assert "fearless" in first.synonym_keys("fear")
    assert "fearless" not in second.synonym_keys("fear")
    grouping = WheelGrouping(second)
    assert grouping.groups("neutral") == {}
    assert "M3-W5-L1" not in grouping.groups("surprise")
    assert not {"M3-W3-L1", "M3-W5-L1"} & set(grouping.groups("disgust"))
    assert grouping.groups("happy")["M3-W5-L1"] == "powerful"


@needs_tables
def test_built_in_wheels_are_the_published_wheels():
    for ours, theirs in zip(load_builtin().wheels, load_lexicon(TABLES).wheels, strict=True):
        straight = lambda table: {key.replace("’", "'"): value for key, value in table.items()}  # noqa: E731
        assert ours.level1 == straight(theirs.level1)
        assert ours.level2 == straight(theirs.level2)


@needs_tables
def test_the_committed_lexicon_report_is_current():
    text = agreement.to_markdown(load_builtin(), load_lexicon(TABLES / "format-2026.csv"))
    assert (Path(__file__).resolve().parents[2] / "docs" / "lexicon-report.md").read_text(encoding="utf-8") == text


def test_a_lexicon_agrees_with_itself_everywhere():
    for row in agreement.compare_lexicons(load_builtin(), load_builtin()):
        assert (row.rate, row.different, row.only_first, row.only_second) == (1.0, 0, 0, 0)
    assert agreement.differing_keys(load_builtin(), load_builtin()) == {}
