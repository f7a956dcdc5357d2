"""Zero-shot runs: every kind of system writes predictions.jsonl, resumes after a kill, and reports what is wrong."""

import json
import subprocess
import sys
from dataclasses import fields
from dataclasses import replace as replaced
from pathlib import Path

import pytest

from affectgpt import config as conf_schema
from affectgpt.cli import compose, words
from affectgpt.cli.parser import conf_folder
from affectgpt.config import AskConfig, DataConfig, SourceConfig, ZeroShotConfig
from affectgpt.metrics import read_predictions
from affectgpt.runtime import UserError
from affectgpt.zeroshot import prompts, systems
from affectgpt.zeroshot.run import check, run
from tests.chat import tiny_chat
from tests.chat.chat_server import ChatServer
from tests.models import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "omni": str(tiny_chat.write_qwen2_5_omni(folder / "omni")),
        "video": str(tiny_chat.write_qwen2_5_vl(folder / "video")),
        "audio": str(tiny_chat.write_qwen2_audio(folder / "audio")),
        "llm": str(tiny.write_qwen2(folder / "llm")),
    }


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def config(manifest, tmp_path):
    """The three test clips of the small manifest: the last has no sound."""
    return ZeroShotConfig(
        manifest=str(manifest),
        split="test",
        out=str(tmp_path / "preds.jsonl"),
        data=DataConfig(name="toy"),
        ask=AskConfig(max_new_tokens=4, n_frames=4),
        device="cpu",
    )


def replace(config: ZeroShotConfig, **changes) -> ZeroShotConfig:
    """Changes of settings of the run and of `ask`, in one list as on the command line."""
    asked = {name: changes.pop(name) for name in [field.name for field in fields(AskConfig)] if name in changes}
    return replaced(config, ask=replaced(config.ask, **asked), **changes)


def texts_of(body: dict) -> str:
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def kinds_of(body: dict) -> list[str]:
    content = body["messages"][0]["content"]
    return ["text"] if isinstance(content, str) else [part["type"] for part in content]


def answered(tmp_path, name: str, texts: dict[str, str]) -> str:
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in texts.items()))
    return str(path)


def test_a_model_in_process_writes_predictions_with_their_provenance(config, models):
    assert run(replace(config, model=models["omni"], strategy="s1")) == 0
    rows = read_predictions(config.out)
    assert [row.id for row in rows] == ["clip9", "clip10", "clip11"]
    assert {(row.model, row.strategy, row.prompt_version) for row in rows} == {(models["omni"], "s1", prompts.VERSION)}
    assert [row.modalities for row in rows][1:] == [("frames", "audio", "text"), ("frames", "text")]
    assert rows[0].subtitle == "I see."
    assert len(rows[0].media["frames"]["times_s"]) == 4
    assert rows[0].media["audio"]["heard_s"] <= rows[0].media["audio"]["duration_s"]


def test_only_s1_gives_the_subtitle(config, models, tmp_path):
    for strategy, told in (("s0", None), ("s1", "I see.")):
        out = tmp_path / f"{strategy}.jsonl"
        run(replace(config, model=models["video"], strategy=strategy, out=str(out)))
        assert {row.subtitle for row in read_predictions(out)} == {told}


def test_a_killed_run_resumes_with_the_missing_clips_and_other_settings_are_refused(config, models, tmp_path):
    whole = replace(config, model=models["video"])
    run(whole)
    lines = (tmp_path / "preds.jsonl").read_text().splitlines()
    (tmp_path / "preds.jsonl").write_text(lines[0] + "\n" + lines[1][:20])
    run(whole)
    assert (tmp_path / "preds.jsonl").read_text().splitlines() == lines
    with pytest.raises(UserError, match=r"made with other settings \(strategy\)"):
        run(replace(whole, strategy="s0"))


def test_a_finished_run_loads_no_model(config, models, monkeypatch):
    run(replace(config, model=models["video"]))
    monkeypatch.setattr(systems, "load", lambda *_, **__: pytest.fail("loaded"))
    assert run(replace(config, model=models["video"])) == 0


def refusing(body):
    """A server that refuses one clip and answers another with a refusal."""
    if "I hear." in texts_of(body):
        return {"status": 400, "value": {"error": {"message": "this input does not pass the content check"}}}
    if "I feel." in texts_of(body):
        message = {"role": "assistant", "content": None, "refusal": "I can't."}
        return {"value": {"choices": [{"message": message, "finish_reason": "stop"}]}}
    return None


def test_a_clip_that_the_server_refuses_is_a_bad_sample_and_a_refusal_is_counted(tmp_path, manifest, caplog):
    caplog.set_level("INFO")
    rows = [json.loads(line) for line in manifest.read_text().splitlines()[:3]]
    for row, said in zip(rows, ("I see.", "I hear.", "I feel."), strict=True):
        row.update(subtitle=said, video=str(manifest.parent / row["video"]), audio=None)
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = ZeroShotConfig(manifest=str(tmp_path / "clips.jsonl"), out=str(tmp_path / "preds.jsonl"))
    with ChatServer(lambda body: "A smile.\nEmotions: happy", refusing) as server:
        config = replace(config, model="m", base_url=server.url)
        with pytest.raises(UserError, match=r"1 of 3 requests .*HTTP 400: this input does not pass .*2 new answers"):
            run(config)
        assert run(replace(config, data=DataConfig(on_bad="skip"))) == 3
    assert [(row.text, row.finish) for row in read_predictions(config.out)] == [
        ("A smile.\nEmotions: happy", "eos"),
        ("", "refusal"),
    ]
    (bad,) = [json.loads(line) for line in (tmp_path / "preds.jsonl.steps" / "bad_samples.jsonl").open()]
    assert (bad["id"], "m does not answer: HTTP 400: this input does not pass" in bad["reason"]) == (
        rows[1]["id"],
        True,
    )
    assert "1 of them are refusals and 0 are empty" in caplog.text
    assert f"next: python eval.py predictions={config.out}" in caplog.text


def test_a_wrong_key_fails_the_run_also_with_on_bad_skip(config):
    with ChatServer(choose=lambda body: 401) as server, pytest.raises(UserError, match="HTTP 401"):
        run(replace(config, model="m", base_url=server.url, data=DataConfig(on_bad="skip"), concurrency=1))
    assert len(server.requests) == 1
    assert json.loads(Path(f"{config.out}.steps/run.json").read_text())["status"] == "failed"


def test_settings_of_the_request_are_sent_and_recorded_only_if_they_are_set(config, tmp_path):
    with ChatServer(lambda body: "A smile.") as server:
        run(replace(config, model="m", base_url=server.url))
        assert "temperature" not in (tmp_path / "preds.jsonl.settings.json").read_text()
        other = str(tmp_path / "other.jsonl")
        changed = {"max_tokens_name": "max_completion_tokens", "temperature": None}
        run(replace(config, model="m", base_url=server.url, out=other, **changed))
    assert {"max_tokens", "temperature"} <= set(server.requests[0])
    assert set(server.requests[-1]) == {"model", "messages", "max_completion_tokens"}


def test_s2_merges_the_description_without_subtitle_with_the_subtitle(config, tmp_path):
    def answer(body):
        text = texts_of(body)
        assert ("I see." in text) == (body["model"] == "merger")
        return "Calm, says the merger.\nEmotions: calm" if body["model"] == "merger" else "Seen: a smile."

    with ChatServer(answer) as server:
        run(
            replace(
                config,
                model="seer",
                base_url=server.url,
                merge_model="merger",
                merge_base_url=server.url,
                strategy="s2",
            )
        )
    rows = read_predictions(config.out)
    assert {(row.text, row.labels, row.model) for row in rows} == {
        ("Calm, says the merger.\nEmotions: calm", ("calm",), "seer + merged by merger")
    }
    assert rows[0].modalities == ("frames", "text")
    merged = [texts_of(body) for body in server.requests if body["model"] == "merger"]
    assert all("Seen: a smile." in text for text in merged)
    steps = read_predictions(tmp_path / "preds.jsonl.steps" / "whole.jsonl")
    assert {row.text for row in steps} == {"Seen: a smile."}


def test_a_server_gets_frames_as_images_and_sound_only_if_it_is_shown(config, tmp_path):
    with ChatServer(lambda body: "Emotions: " + kinds_of(body)[-2]) as server:
        run(replace(config, model="gpt", base_url=server.url))
        assert {tuple(kinds_of(body)) for body in server.requests} == {("image_url",) * 4 + ("text",)}
        both = replace(
            config, model="gpt", base_url=server.url, show=["images", "sound"], out=str(tmp_path / "b.jsonl")
        )
        run(both)
    assert [row.labels for row in read_predictions(tmp_path / "b.jsonl")] == [
        ("input_audio",),
        ("input_audio",),
        ("image_url",),
    ]


def test_answers_of_a_server_are_kept_and_asked_for_once(config, tmp_path):
    with ChatServer(lambda body: "Emotions: sad") as server:
        served = replace(config, model="gpt", base_url=server.url)
        run(served)
        n = len(server.requests)
    (tmp_path / "preds.jsonl").unlink()
    assert run(replace(served, offline=True)) == 0  # the server is gone by now
    assert (n, len(read_predictions(config.out))) == (3, 3)


def test_a_pair_describes_what_is_heard_and_seen_and_a_silent_clip_has_no_acoustic_clue(config, models, tmp_path):
    def answer(body):
        return "Merged.\nEmotions: glad" + ("" if "What was heard" in texts_of(body) else ", unheard")

    with ChatServer(answer) as server:
        run(
            replace(
                config,
                audio_model=models["audio"],
                video_model=models["video"],
                merge_model="merger",
                merge_base_url=server.url,
                strategy="s2",
            )
        )
    rows = read_predictions(config.out)
    assert [row.labels for row in rows] == [("glad",), ("glad",), ("glad", "unheard")]
    assert rows[0].model == f"{models['audio']} + {models['video']} + merged by merger"
    assert rows[0].modalities == ("audio", "frames", "text")
    for body in server.requests:
        assert "What the person says:\nI see." in texts_of(body)


def test_an_llm_in_process_merges(config, models, tmp_path):
    notes = answered(tmp_path, "seen", {f"clip{n}": "A smile." for n in (9, 10, 11)})
    run(replace(config, model=notes, strategy="s2", merge_model=models["llm"]))
    assert {row.model for row in read_predictions(config.out)} == {f"seen + merged by {models['llm']}"}


def test_answers_to_exported_questions_become_predictions(config, tmp_path):
    requests = tmp_path / "requests.jsonl"
    run(replace(config, action="export", strategy="s1", out=str(requests)))
    asked = [json.loads(line) for line in requests.read_text().splitlines()]
    assert asked[0]["prompt"] == prompts.question("whole", ["images", "sound"], subtitle="I see.")
    assert asked[0]["video"].endswith("clip9.mp4")
    assert [row["show"] for row in asked] == [["images", "sound"], ["images", "sound"], ["images"]]

    answers = answered(tmp_path, "salmonn", {row["id"]: "Emotions: happy, proud" for row in asked})
    run(replace(config, action="import", model=answers, strategy="s1"))
    rows = read_predictions(config.out)
    assert {(row.labels, row.model, row.strategy) for row in rows} == {(("happy", "proud"), "salmonn", "s1")}


def test_a_clip_with_a_question_of_its_own_is_asked_it_also_about_text_alone(config, manifest, tmp_path):
    sides = (("basic", "Is he sad?", "yes"), ("hallucination", "Is he glad?", "no"))
    seen = {side: {"question": text, "answer": answer, "video": "clip9.mp4"} for side, text, answer in sides}
    told = {side: {"question": text, "answer": answer} for side, text, answer in sides}
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "all.json").write_text(json.dumps([seen, told]))
    source = SourceConfig(format="emotion_hallucer", options={"video": "."})
    (tmp_path / "h" / "clip9.mp4").write_bytes((manifest.parent / "clip9.mp4").read_bytes())
    asks = replace(config, manifest=None, data=DataConfig(name="h", folder=str(tmp_path / "h"), test=[source]))
    with ChatServer(lambda body: "Yes. Emotions: sad") as server:
        run(replace(asks, model="m", base_url=server.url, split=None))
        bodies = server.requests
    rows = read_predictions(config.out)
    assert [row.id for row in rows] == [f"all~{n}~{side}" for n in (0, 1) for side, _, _ in sides]
    assert {(row.task, row.labels) for row in rows} == {("description", None)}
    assert [row.modalities for row in rows] == [("frames",), ("frames",), (), ()]
    assert all("Describe what points" not in texts_of(body) for body in bodies)
    assert sorted(texts_of(body) for body in bodies)[0] == "Is he glad?\nAnswer with yes or no only."
    with pytest.raises(UserError, match="'all~0~basic' has a question of its own, and answers to it cannot be merged"):
        run(replace(asks, model="m", base_url="http://x", strategy="s2", merge_model="n", split=None))


def test_clips_without_an_answer_stop_the_import_or_are_listed(config, tmp_path, caplog):
    answers = answered(tmp_path, "a", {"clip9": "Emotions: sad", "stranger": "?"})
    with pytest.raises(ValueError, match=r"sample 'clip10': .*a\.jsonl has no answer for it"):
        run(replace(config, model=answers))
    (tmp_path / "preds.jsonl").unlink(missing_ok=True)
    assert run(replace(config, model=answers, data=DataConfig(name="toy", on_bad="skip"))) == 3
    assert [row.id for row in read_predictions(config.out)] == ["clip9"]
    assert "1 ids are not among the clips, such as 'stranger'" in caplog.text
    listed = (tmp_path / "preds.jsonl.steps" / "bad_samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in listed] == ["clip10", "clip11"]


def test_clips_without_an_answer_of_the_merger_stop_the_run_or_are_listed(config, tmp_path, caplog):
    notes = answered(tmp_path, "seen", {f"clip{n}": "A smile." for n in (9, 10, 11)})
    merged = answered(tmp_path, "merged", {"clip9": "Emotions: sad", "clip11": "Emotions: calm", "stranger": "?"})
    merging = replace(config, model=notes, strategy="s2", merge_model=merged)
    with pytest.raises(UserError, match=r"sample 'clip10': .*merged\.jsonl has no answer for it"):
        run(merging)
    assert run(replace(merging, data=DataConfig(name="toy", on_bad="skip"))) == 3
    assert {row.id: row.labels for row in read_predictions(config.out)} == {"clip9": ("sad",), "clip11": ("calm",)}
    assert "merged.jsonl: 1 ids are not among the clips, such as 'stranger'" in caplog.text
    (bad,) = (tmp_path / "preds.jsonl.steps" / "bad_samples.jsonl").read_text().splitlines()
    assert json.loads(bad)["id"] == "clip10"


def test_a_bug_while_a_clip_is_read_ends_the_run_and_is_no_bad_sample(config, models, monkeypatch):
    def buggy(*_, **__):
        raise ValueError("too many values to unpack")

    monkeypatch.setattr(systems, "with_media", buggy)
    skipping = replace(config, model=models["video"], data=DataConfig(name="toy", on_bad="skip"))
    with pytest.raises(ValueError, match="too many values"):
        run(skipping)


def test_a_clip_without_an_answer_of_one_model_is_left_out_and_a_silent_one_is_not(config, tmp_path):
    heard = answered(tmp_path, "heard", {"clip9": "A calm voice.", "clip10": "A loud voice."})
    seen = answered(tmp_path, "seen", {"clip9": "A smile.", "clip11": "A frown."})
    skipping = replace(config, data=DataConfig(name="toy", on_bad="skip"))
    with ChatServer(lambda body: "Emotions: calm") as server:
        pair = {"audio_model": heard, "video_model": seen, "merge_model": "merger", "merge_base_url": server.url}
        assert run(replace(skipping, strategy="s0", **pair)) == 3
    assert [row.id for row in read_predictions(config.out)] == ["clip9", "clip11"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}', r"a\.jsonl:2: 'a' is answered twice"),
        ('{"id": "a"}', r'a\.jsonl:1: expected \{"id"'),
        ("nonsense", r"a\.jsonl:1: expected .*found 'nonsense'"),
        ('{"id": "a", "text": 3}', "the text of 'a' must be a string, found 3"),
    ],
)
def test_an_invalid_answer_file_is_an_error_with_its_line(tmp_path, lines, message):
    (tmp_path / "a.jsonl").write_text(lines)
    with pytest.raises(UserError, match=message):
        systems.read_answers(tmp_path / "a.jsonl")


def test_a_model_without_audio_input_cannot_be_asked_about_sound_alone(config, models):
    with pytest.raises(ValueError, match=r"'clip9': it has \['images', 'sound'\], .*nothing is left to show"):
        run(replace(config, model=models["video"], show=["sound"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "give model=, or both audio_model= and video_model="),
        ({"audio_model": "a"}, "give model=, or both"),
        ({"model": "m", "audio_model": "a", "video_model": "v"}, "give model=, or both"),
        ({"model": "m", "strategy": "s2"}, "need merge_model="),
        ({"audio_model": "a", "video_model": "v"}, "need merge_model="),
        ({"model": "m", "strategy": "s3"}, r"strategy is 's3'; expected one of \['s0', 's1', 's2'\]"),
        ({"model": "m", "show": ["smell"]}, r"show is \['smell'\]"),
        ({"model": "m", "out": None}, "out= is missing"),
        ({"action": "export", "kind": "nose"}, "kind is 'nose'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config, change, message):
    with pytest.raises(UserError, match=message):
        check(replace(config, **change))


def test_predictions_are_scored_like_any_others(config, manifest, tmp_path):
    from affectgpt.inference.evaluate import evaluate_config

    run(replace(config, model=answered(tmp_path, "a", {f"clip{n}": "Emotions: happy" for n in (9, 10, 11)})))
    scored = conf_schema.EvalConfig(
        predictions=config.out, references=str(manifest), split="test", out=str(tmp_path / "eval"), n_bootstrap=10
    )
    report, _ = evaluate_config(scored)
    assert report.primary.n == 3


def test_every_published_system_composes_to_a_run_that_is_complete():
    folder = conf_folder() / "zeroshot"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    assert "video_llava" in names
    for name in names:
        given = words.zeroshot([name, "out=p.jsonl", "strategy=s2", "merge_model=some/llm"])
        composed = compose("zeroshot", given)
        check(composed)
        assert composed.ask.strategy == "s2"
        assert composed.ask.model or composed.ask.audio_model


def test_the_command_asks_a_model_whose_settings_have_names_of_configuration_groups(config, models, manifest, tmp_path):
    command = [sys.executable, "-m", "affectgpt.zeroshot", f"model={models['video']}", "strategy=s0", "n_frames=2"]
    where = [f"manifest={manifest}", "split=test", f"out={tmp_path / 'p.jsonl'}", "max_new_tokens=2", "device=cpu"]
    result = subprocess.run([*command, *where], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert "3 predictions in" in result.stderr
    assert {row.strategy for row in read_predictions(tmp_path / "p.jsonl")} == {"s0"}
    record = json.loads((tmp_path / "p.jsonl.steps" / "run.json").read_text())
    assert (record["status"], record["n"]) == ("finished", 3)
