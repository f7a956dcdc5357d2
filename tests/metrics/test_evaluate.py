"""From files to a report: everything that is left out is counted."""

import json
import subprocess
import sys

import numpy as np
import pytest

from affectgpt.config import DataConfig, EvalConfig, SourceConfig
from affectgpt.inference.evaluate import descriptions_of
from affectgpt.metrics import empty, evaluate, random_labels, read_predictions, read_references
from affectgpt.metrics.io import ScoreFileError, read_descriptions, write_predictions_npz
from affectgpt.metrics.report import PRIMARY
from affectgpt.metrics.wheel import GROUPINGS, LEVEL1
from affectgpt.runtime import InputError
from affectgpt.schema import Prediction, write_jsonl

REFERENCES = {"a": ("happy", "proud"), "b": ("angry",), "c": ("sad", "neutral"), "d": (), "e": ("worried",)}


def test_perfect_predictions_score_one_and_empty_ones_zero():
    perfect = evaluate(dict(REFERENCES), REFERENCES, n_bootstrap=50)
    assert all(score.f_score == 1.0 for score in perfect.scores.values())
    assert perfect.m_avg == 1.0
    assert (perfect.primary.interval.low, perfect.primary.interval.high) == (1.0, 1.0)
    floor = evaluate(empty(REFERENCES), REFERENCES, n_bootstrap=0)
    assert floor.primary.f_score == floor.m_avg == 0.0
    assert floor.counts.unparsed == 5


def test_everything_that_is_left_out_is_counted():
    predictions = [
        Prediction("a", "She smiles.\nEmotions: happy, frobnicated, frobnicated"),
        Prediction("b", "I cannot determine the emotion."),
        Prediction("c", "", labels=("neutral", "not angry")),
        Prediction("zzz", "sad"),
    ]
    report = evaluate(predictions, REFERENCES, n_bootstrap=0)
    counts = report.counts
    assert (counts.references, counts.without_labels, counts.predictions) == (5, 1, 4)
    assert (counts.extra, counts.missing, counts.unparsed) == (1, 2, 1)
    assert counts.readings == {"label line": 1, "refusal": 1, "given": 1}
    assert counts.unknown_prediction == {"frobnicated": 1}
    assert (counts.neutral_truth, counts.neutral_prediction, counts.negated_prediction) == (1, 1, 1)
    assert report.primary.n == 4
    text = report.table()
    for piece in ("1 without labels", "1 without a reference", "2 missing", "frobnicated 1", "refusal 1", "1 negated"):
        assert piece in text, piece


def test_labels_given_with_their_text_are_counted_by_how_they_were_read():
    predictions = [
        Prediction("a", "She smiles.\nEmotions: happy", labels=("happy",)),
        Prediction("b", "I cannot determine it.", labels=()),
        Prediction("c", "She smiles.\nEmotions: happy", labels=("sad",)),
    ]
    report = evaluate(predictions, REFERENCES, n_bootstrap=0)
    assert report.counts.readings == {"label line": 1, "refusal": 1, "given": 1}


def test_a_missing_prediction_scores_like_an_empty_one():
    some = {"a": ("happy",), "b": ("angry",)}
    missing = evaluate(some, REFERENCES, n_bootstrap=0)
    explicit = evaluate({**dict.fromkeys(REFERENCES, ()), **some}, REFERENCES, n_bootstrap=0)
    assert missing.scores == explicit.scores


def test_order_of_samples_and_of_labels_does_not_change_the_score():
    predictions = {"a": ("proud", "sad"), "b": ("mad",), "c": ("happy",), "e": ("anxious", "tired")}
    one = evaluate(predictions, REFERENCES, n_bootstrap=0)
    other = evaluate(
        {key: value[::-1] for key, value in reversed(predictions.items())},
        {key: value[::-1] for key, value in reversed(REFERENCES.items())},
        n_bootstrap=0,
    )
    assert {name: round(s.f_score, 12) for name, s in one.scores.items()} == {
        name: round(s.f_score, 12) for name, s in other.scores.items()
    }


def test_primary_score_is_the_mean_of_the_five_wheels_and_comes_first():
    report = evaluate({"a": ("happy", "sad"), "b": ("mad", "calm")}, REFERENCES, n_bootstrap=0)
    assert next(iter(report.scores)) == PRIMARY
    assert report.primary.f_score == pytest.approx(np.mean([report.scores[name].f_score for name in LEVEL1]))
    assert report.m_avg == pytest.approx(np.mean([report.scores[name].f_score for name in GROUPINGS]))
    assert "95 % interval" in report.table()
    assert report.headline().startswith("level 1 mean: F_S ")


def test_a_subset_of_groupings_only_gives_the_means_that_it_includes():
    report = evaluate({"a": ("happy",)}, REFERENCES, groupings=("M1", *LEVEL1), n_bootstrap=0)
    assert list(report.scores) == [PRIMARY, "M1", *LEVEL1]
    assert report.m_avg is None


def test_the_interval_is_a_function_of_the_seed_and_contains_the_score():
    predictions = random_labels(REFERENCES, seed=3)
    reports = [evaluate(predictions, REFERENCES, n_bootstrap=200, seed=5) for _ in range(2)]
    assert reports[0].to_dict() == reports[1].to_dict()
    score = reports[0].primary
    assert score.interval.low <= score.f_score <= score.interval.high


def test_invalid_arguments_are_errors_that_name_them():
    with pytest.raises(ValueError, match="no references"):
        evaluate({}, {})
    with pytest.raises(ValueError, match=r"unknown groupings \['M9'\]; expected some of"):
        evaluate({}, REFERENCES, groupings=("M9",))
    with pytest.raises(
        ValueError, match="no prediction has a reference: predictions have ids like 'x', references like 'a'"
    ):
        evaluate({"x": "sad"}, REFERENCES)
    with pytest.raises(ValueError, match="two predictions for sample 'a'"):
        evaluate([Prediction("a", "sad"), Prediction("a", "sad")], REFERENCES)


def test_jsonl_csv_and_npz_predictions_give_one_score(tmp_path):
    labels = {"a": ("happy",), "b": ("furious", "hurt"), "c": ("sad",), "e": ("nervous",)}
    write_jsonl(
        tmp_path / "p.jsonl", [Prediction(key, "Emotions: " + ", ".join(value)) for key, value in labels.items()]
    )
    with (tmp_path / "p.csv").open("w", encoding="utf-8") as file:
        file.write("name,openset\n" + "".join(f'{key},"{list(value)}"\n' for key, value in labels.items()))
    write_predictions_npz(tmp_path / "p.npz", labels)
    reports = [evaluate(read_predictions(path), REFERENCES, n_bootstrap=0) for path in sorted(tmp_path.iterdir())]
    assert len(reports) == 3
    assert len({tuple(score.f_score for score in report.scores.values()) for report in reports}) == 1


def test_report_json_has_what_the_table_shows(tmp_path):
    report = evaluate({"a": "happy"}, REFERENCES, n_bootstrap=20)
    report.write(tmp_path / "out" / "report.json")
    saved = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert saved["primary"]["f_score"] == report.primary.f_score
    assert saved["primary"]["interval"]["n_bootstrap"] == 20
    assert set(saved["scores"]) >= set(GROUPINGS)
    assert saved["lexicon"]["name"].startswith("affectgpt-lexicon")
    assert len(saved["lexicon"]["sha256"]) == 64


def test_references_keep_empty_cells_apostrophes_splits_and_languages(tmp_path):
    path = tmp_path / "refs.csv"
    path.write_text("name,openset,split\na,\"['don't know', 'sad']\",test\nb,,test\nc,[x],train\n", encoding="utf-8")
    assert read_references(path, split="test") == {"a": ("don't know", "sad"), "b": ()}
    rows = [
        {"id": "a", "labels": ["happy"], "translations": {"zh": {"labels": ["开心"]}}},
        {"id": "b", "labels_zh": "生气"},
    ]
    path = tmp_path / "refs.jsonl"
    path.write_text("".join(json.dumps(row | {"lang": "en"}) + "\n" for row in rows), encoding="utf-8")
    assert read_references(path) == {"a": ("happy",), "b": ()}
    assert read_references(path, lang="zh") == {"a": ("开心",), "b": ("生气",)}


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("refs.csv", "id,labels,text_en\na,sad,She weeps.\n", {"columns": {"description": "text_en"}}),
        ("refs.csv", "ID,Labels,Description\na,sad,She weeps.\n", {}),
        ("refs.csv", "id,labels,Description_EN\na,sad,She weeps.\n", {}),
        ("refs.csv", "id,lang,labels,description\na,,sad,She weeps.\nb,zh,伤心,她哭。\n", {}),
        ("refs.csv", "id,Split,labels,description\na,1,sad,She weeps.\nb,2,sad,She sobs.\n", {"split": "1"}),
        ("refs.jsonl", '{"id": "a", "split": 1, "labels": ["sad"], "description": "She weeps."}\n', {"split": "1"}),
        ("refs.jsonl", '{"id": "a", "lang": null, "labels": ["sad"], "description": "She weeps."}\n', {}),
    ],
)
def test_what_has_its_labels_read_has_its_description_read(tmp_path, name, text, options):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_references(tmp_path / name, lang="en", **options)["a"] == ("sad",)
    assert read_descriptions(tmp_path / name, lang="en", **options) == {"a": "She weeps."}


def test_descriptions_are_read_from_the_columns_that_a_source_names(tmp_path):
    (tmp_path / "refs.csv").write_text("clip,labels,text_en\na,sad,She weeps.\n", encoding="utf-8")
    source = SourceConfig(manifest=str(tmp_path / "refs.csv"), columns={"id": "clip", "description": "text_en"})
    assert descriptions_of(EvalConfig(data=DataConfig(name="toy", test=[source]))) == {"a": "She weeps."}


@pytest.mark.parametrize("read", [read_references, read_descriptions])
def test_an_unknown_language_of_references_is_an_error(tmp_path, read):
    (tmp_path / "refs.csv").write_text("id,labels,description\na,sad,She weeps.\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"lang='fr': expected one of \['en', 'zh'\]"):
        read(tmp_path / "refs.csv", lang="fr")


@pytest.mark.parametrize("read", [read_references, read_descriptions])
@pytest.mark.parametrize("translations", ['"{}"', '{"en": "sad"}', "[1]"])
def test_translations_that_are_not_texts_by_language_are_an_error_with_the_line(tmp_path, read, translations):
    row = f'{{"id": "a", "lang": "zh", "labels": ["伤心"], "translations": {translations}}}\n'
    (tmp_path / "refs.jsonl").write_text(row, encoding="utf-8")
    with pytest.raises(ScoreFileError, match=r"refs\.jsonl:1: translations must be texts by language, found"):
        read(tmp_path / "refs.jsonl", lang="en")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "p.csv",
            "name,other\na,b\n",
            r"p\.csv:2: sample 'a': no column of \['labels', 'openset', .*found \['name', 'other'\]",
        ),
        ("p.csv", "file,openset\na,b\n", r"p\.csv:2: no column of \['id', 'name', 'names'\]"),
        ("p.jsonl", '{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n', r"p\.jsonl:2: duplicate id 'a'"),
        ("p.jsonl", "[1]\n", r"p\.jsonl:1: expected a JSON object, found list"),
        ("p.txt", "", r"expected \.jsonl, \.csv, \.tsv, \.xlsx or \.npz, found '\.txt'"),
        ("p.jsonl", "", r"p\.jsonl: no predictions"),
    ],
)
def test_unreadable_predictions_are_errors_with_file_and_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ScoreFileError, match=message):
        read_predictions(tmp_path / name)


def test_lists_of_labels_in_an_npz_are_read_and_objects_of_other_classes_are_an_error(tmp_path):
    items = np.array([["sad"], None], dtype=object)
    np.savez(tmp_path / "p.npz", filenames=np.array(["a", "b"]), fileitems=items)
    assert [(row.id, row.labels, row.text) for row in read_predictions(tmp_path / "p.npz")] == [
        ("a", ("sad",), ""),
        ("b", None, ""),
    ]
    items[1] = Prediction("b", "")
    np.savez(tmp_path / "p.npz", filenames=np.array(["a", "b"]), fileitems=items)
    message = r"contains pickled objects \(array 'fileitems': .*\), which are not loaded because they can run code"
    with pytest.raises(ScoreFileError, match=message):
        read_predictions(tmp_path / "p.npz")


def test_published_descriptions_of_a_name2reason_file_are_scored_like_a_table(tmp_path):
    reasons = {"a": "She smiles. Emotions: happy", "b": "The emotional state is angry."}
    np.savez_compressed(tmp_path / "p.npz", name2reason=np.array(reasons, dtype=object))
    rows = read_predictions(tmp_path / "p.npz")
    assert [(row.id, row.text, row.task) for row in rows] == [(*item, "description") for item in reasons.items()]
    assert evaluate(rows, {"a": ["glad"], "b": ["mad"]}, n_bootstrap=0).primary.f_score == 1.0


@pytest.mark.parametrize("read", [read_predictions, read_references])
def test_a_bug_while_a_row_is_read_is_not_reported_as_a_bad_row(tmp_path, monkeypatch, read):
    bug = ValueError("not enough values to unpack")

    def fail(*arguments):
        raise bug

    monkeypatch.setattr("affectgpt.metrics.io.parse_label_list", fail)
    (tmp_path / "p.jsonl").write_text('{"id": "a", "labels": ["sad"]}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="not enough") as caught:
        read(tmp_path / "p.jsonl")
    assert caught.value is bug


def test_random_baseline_is_seeded_and_independent_of_the_order_of_ids():
    assert random_labels(["b", "a"], seed=1) == random_labels(["a", "b"], seed=1)
    assert random_labels(map(str, range(50)), seed=1) != random_labels(map(str, range(50)), seed=2)
    with pytest.raises(ValueError, match="n_labels is 9; expected 1 to 6"):
        random_labels("a", n_labels=9)


def test_importing_the_metrics_loads_no_torch():
    code = (
        "import sys, affectgpt.metrics; print([m for m in ('torch', 'transformers', 'openpyxl') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
