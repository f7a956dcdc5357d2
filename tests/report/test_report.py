"""The report: everything in one file, everything escaped, nothing loaded, for runs and for predictions of anybody."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from affectgpt import config as conf
from affectgpt.cli import run as run_command
from affectgpt.inference.evaluate import run_evaluation
from affectgpt.journal import append_rows
from affectgpt.report.gather import gather
from affectgpt.report.html import el, table, text
from affectgpt.runs import RunRecord
from tests.data.conftest import write_clip

pytest.importorskip("matplotlib")

EVIL = "</style></title><script>document.title='owned'</script><img src=https://evil.example/x.png onerror=alert(1)>"
CHROMIUM = next((path for path in ("/usr/bin/chromium", "/usr/bin/google-chrome") if Path(path).exists()), None)
VOID = {"img", "meta", "br"}


class Page(HTMLParser):
    """Elements of a page, their attributes, and all text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two systems, references with a hostile subtitle, a Chinese clip, one clip with a video and one without."""
    folder = tmp_path_factory.mktemp("report")
    write_clip(folder / "a.mp4", seed=1, n_frames=8)
    truth = [
        {"id": "a", "video": "a.mp4", "subtitle": EVIL, "labels": ["sad"], "description": "The brows rise."},
        {
            "id": "b",
            "video": "gone.mp4",
            "subtitle": "今天很好。",
            "labels": ["happy", "proud"],
            "description": "He smiles.",
        },
        {"id": "c<b>", "video": "gone.mp4", "labels": ["angry"]},
    ]
    (folder / "truth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in truth), encoding="utf-8")
    for name, word in (("one", "sad"), ("two", "happy")):
        rows = [
            {"id": "a", "text": f"{EVIL} The voice is low. She seems sad.\nEmotions: {word}", "modalities": ["frames"]},
            {
                "id": "b",
                "text": "他微笑，声音柔和，显得高兴。\n情绪：高兴",
                "lang": "zh",
                "modalities": ["frames", "audio"],
            },
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def comparison(folder):
    settings = [f"references={folder / 'truth.jsonl'}", "n_bootstrap=50", "n_frames=2", f"title=比较 {EVIL}"]
    files = f"predictions=[{folder / 'one.jsonl'},{folder / 'two.jsonl'}]"
    assert run_command("report", [files, *settings, f"out={folder / 'r.html'}"]) == 0
    return (folder / "r.html").read_text(encoding="utf-8")


def test_the_page_holds_everything_and_loads_nothing(comparison):
    page = Page(comparison)
    assert not page.all("script")
    assert not page.all("link")
    assert all(attributes["src"].startswith("data:image/") for attributes in page.all("img"))
    assert all(attributes["href"].startswith("#") for attributes in page.all("a"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    policy = next(item["content"] for item in page.all("meta") if item.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert page.text.count(EVIL) >= 3  # in the title, the subtitle and the answer: shown as text


def test_the_page_is_accessible_without_pictures(comparison):
    page = Page(comparison)
    assert all(attributes["alt"].strip() for attributes in page.all("img"))
    assert page.all("html")[0]["lang"] == "en"
    assert {"lang": "zh-Hans"} in page.all("blockquote")
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert {attributes["href"][1:] for attributes in page.all("a")} <= set(ids)
    assert len(ids) == len(set(ids))


def test_the_page_shows_scores_tests_clips_and_frames(comparison, folder):
    page = Page(comparison)
    run_evaluation(
        conf.EvalConfig(
            predictions=str(folder / "one.jsonl"), references=str(folder / "truth.jsonl"), n_bootstrap=50,
            out=str(folder / "eval"),
        )
    )  # fmt: skip
    report = json.loads((folder / "eval" / "report.json").read_text())
    assert f"{100 * report['primary']['f_score']:.1f}" in page.text
    frames = [item for item in page.all("img") if item["src"].startswith("data:image/jpeg")]
    assert {item["alt"] for item in frames} >= {"Clip a at 0.0 seconds"}
    for shown in ("one − two", "No frames: ", "gone.mp4", "c<b>", "1 without a prediction", "(sound not shown)"):
        assert shown in page.text
    assert "No prediction." in page.text
    assert len(comparison) < 1_000_000


def test_a_run_shows_its_evaluations_curves_and_record(folder, tmp_path):
    run = tmp_path / "精细"
    command = {"stage": {"name": "fine"}, "model": {"name": "demo"}, "data": {"name": "emer"}}
    RunRecord.start(run, kind="train fine", config=command).finish(
        "finished", best_validation_score=0.5, validation_metric="F_S", steps=4
    )
    append_rows(run / "metrics.jsonl", [{"step": 2, "loss": 2.0}, {"step": 4, "loss": 1.0, "eval_score": 0.5}])
    assert run_command("report", [str(run), f"out={tmp_path / 'r.html'}"]) == 0
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "has no finished evaluation; python eval.py checkpoint=" in page.text
    assert "ends with loss 1.000" in page.all("img")[0]["alt"]
    for name in ("one", "two"):
        scoring = conf.EvalConfig(
            predictions=str(folder / f"{name}.jsonl"), references=str(folder / "truth.jsonl"), n_bootstrap=20
        )
        scoring.out = str(run / f"eval-{name}")
        run_evaluation(scoring)
    (run / "eval-two" / "scores.jsonl").unlink()  # of a version that did not write it
    assert run_command("report", [str(run), f"out={tmp_path / 'r.html'}", "n_frames=0"]) == 0
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    for shown in (
        "精细",
        "eval-one − eval-two",
        "Best by validation, %",
        "F_S 50.0",
        "sha256",
        str(folder / "truth.jsonl"),
    ):
        assert shown in page.text
    assert run_command("report", [str(run / "eval-one"), f"out={tmp_path / 'r.html'}", "pictures=false"]) == 0
    assert "eval-two" not in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_runs_of_one_name_in_different_folders_are_all_shown(folder, tmp_path):
    runs = [tmp_path / parent / "fine-1.5" for parent in ("x", "y")]
    for steps, run in enumerate(runs, 1):
        RunRecord.start(run, kind="train fine", config={}).finish("finished", steps=steps)
        append_rows(run / "metrics.jsonl", [{"step": steps, "loss": 2.0}])
        run_evaluation(
            conf.EvalConfig(
                predictions=str(folder / "one.jsonl"), references=str(folder / "truth.jsonl"), n_bootstrap=0,
                out=str(run / "eval"),
            )
        )  # fmt: skip
    given = [str(path) for path in (*runs, runs[0] / "eval")]
    content = gather(conf.ReportConfig(runs=given, n_bootstrap=0))
    assert {name: record["steps"] for name, record in content.records.items()} == {"x/fine-1.5": 1, "y/fine-1.5": 2}
    assert {name: found["loss"].steps for name, found in content.curves.items()} == {
        "x/fine-1.5": (1,),
        "y/fine-1.5": (2,),
    }
    assert list(content.systems) == ["x/fine-1.5/eval", "y/fine-1.5/eval"]
    assert list(gather(conf.ReportConfig(runs=given[:1])).records) == ["fine-1.5"]


def test_clips_that_the_references_do_not_show_are_counted_also_for_given_predictions(folder, tmp_path):
    def notes(text):
        (tmp_path / "truth.csv").write_text(text, encoding="utf-8")
        files = [str(folder / f"{name}.jsonl") for name in ("one", "two")]
        config = conf.ReportConfig(predictions=files, references=str(tmp_path / "truth.csv"), n_bootstrap=0)
        return gather(config).notes

    (note,) = notes('id,labels\na,"[sad]"\nb,"[happy]"\n')  # no media
    assert note.startswith("The clips of the references are not shown: ")
    (note,) = notes('id,video,labels\na,a.mp4,"[sad]"\nb,,"[happy]"\nd,,"[happy]"\n')
    assert note.startswith("2 clips of the references are not shown:")
    assert "sample 'b'" in note
    assert notes('id,video,labels\na,a.mp4,"[sad]"\n') == ()


def test_predictions_are_reported_without_torch(folder, tmp_path):
    result = subprocess.run(
        [
            sys.executable, "-X", "importtime", "-m", "affectgpt.report", f"predictions={folder / 'one.jsonl'}",
            f"references={folder / 'truth.jsonl'}", f"out={tmp_path / 'r.html'}", "n_bootstrap=0", "pictures=false",
            "n_frames=0",
        ],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert not {"torch", "transformers"} & {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give run folders, or predictions="),
        (["{}", "predictions={}/one.jsonl"], "give run folders, or predictions="),
        (["{}"], "is no run: it has no run.json"),
        (["predictions={}/one.jsonl"], "references= is missing"),
        (["predictions={}/one.jsonl", "references={}/truth.jsonl", "out=report.pdf"], "ends in .html"),
        (["predictions={}/one.jsonl", "references={}/truth.jsonl", "n_clips=-1"], "expected 0 to 200"),
        (["predictions={}/one.jsonl", "references={}/truth.jsonl", "k=7"], "1 to 5"),
    ],
)
def test_mistakes_are_named(folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run_command("report", [item.format(folder) for item in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_elements_escape_text_and_attributes():
    assert el("a", "<b>", el("i", "&"), href='"x"') == '<a href="&quot;x&quot;">&lt;b&gt;<i>&amp;</i></a>'
    assert text("a\x00\x1b[31m\ud83d") == "a\ufffd\ufffd[31m\ufffd"
    made = table("<c>", ("h", "<n>"), [("<r>", 1)])
    assert "&lt;r&gt;" in made
    assert "<r>" not in made
    assert table("empty", ("h",), []) == ""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_runs_no_script_makes_no_request_and_fits_a_phone(comparison, folder):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.set_default_timeout(120_000)
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto((folder / "r.html").as_uri())
        assert page.title().startswith("比较 </style>")
        assert [url for url in requests if not url.startswith("data:")] == [(folder / "r.html").as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert page.evaluate("[...document.querySelectorAll('tbody th')].every(cell => cell.offsetWidth > 30)")
        browser.close()
