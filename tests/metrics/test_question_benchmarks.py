"""Benchmarks with questions of their own: from files in their published form to the score."""

import json
import re

import numpy as np
import pytest

from affectgpt import questions
from affectgpt.chat.served import ChatClient
from affectgpt.config import BenchmarkConfig
from affectgpt.data.formats import read_format
from affectgpt.metrics.answers import letters_of, pair_scores, parse_rating, score_intent
from affectgpt.metrics.benchmarks import run_benchmark
from affectgpt.metrics.confidence import calibration, parse_confidence
from affectgpt.metrics.steps import Judged, ratings, strict_score
from affectgpt.questions import BadSample, Question
from affectgpt.runtime import InputError, UserError
from tests.chat.chat_server import ChatServer
from tests.data.conftest import write_clip


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def config(folder, kind, references=".", **values):
    return BenchmarkConfig(name=kind, title=kind, folder=str(folder), kind=kind, references=references, **values)


# ---- MME-Emotion -----------------------------------------------------------------------------------------------------


@pytest.fixture
def mme(tmp_path):
    """Two clips of ER-Wild, one of them without a text about its sound, and two of ML-ER."""
    choices = ["happy", "sad", "angry"]
    wild = [{"video_id": f"CAER/video/{name}.avi", "label": "angry", "label_set": choices} for name in "ab"]
    multi = [{"video_id": f"MAFW/video/{n}.mp4", "label": "anger,fear", "label_set": ["anger", "fear"]} for n in (1, 2)]
    write(tmp_path / "ER-Wild" / "question" / "ER_Wild.json", wild)
    clue = "A loud voice."
    write(tmp_path / "ER-Wild" / "audio_clue" / "c.json", [{"video_id": wild[0]["video_id"], "audio_clue": clue}])
    write(tmp_path / "ML-ER" / "question" / "ML_ER.json", multi)
    write(
        tmp_path / "ML-ER" / "audio_clue" / "c.json",
        [{"video_id": row["video_id"], "audio_clue": clue} for row in multi],
    )
    return tmp_path


ANSWERS = {
    "ER-Wild~CAER_video_a.avi": "He frowns. He is angry.",
    "ER-Wild~CAER_video_b.avi": "He is angry.",
    "ML-ER~MAFW_video_1.mp4": "She trembles. anger, fear, joy, calm",
}


def judged_by_rule(body):
    """Divides at full stops; finds every first step right; of several labels, counts those in the truth."""
    text = body["messages"][-1]["content"]
    text = text if isinstance(text, str) else text[-1]["text"]
    if "You divide an answer" in text:
        parts = [part.strip() for part in text.split("Answer: ")[1].split(".") if part.strip()]
        steps = [f"Step {n}: {part}." for n, part in enumerate(parts[:-1], 1)]
        return f"<step>{' '.join([*steps, f'Step {len(parts)}: The predicted emotions are {parts[-1]}'])}</step>"
    truth, steps = re.search(r"True \w+: (.*)\nSteps: (.*)", text, re.DOTALL).groups()
    labels = truth.split(",")
    n = len(re.findall(r"Step \d+:", steps))
    found = sum(label in steps.split(f"Step {n}:")[1] for label in labels)
    rated = [f"Step {k}: 1/1" for k in range(1, n)]
    return f"<score>{', '.join([*rated, f'Step {n}: {found}/{len(labels)}'])}</score>"


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ChatServer(judged_by_rule) as running:
        yield running


def client(server, tmp_path, **options):
    return ChatClient("toy-1", base_url=server.url, cache=tmp_path / "llm.jsonl", backoff_s=0.01, **options)


def test_steps_are_divided_rated_and_averaged_and_what_is_left_out_is_counted(mme, server):
    result = run_benchmark(config(mme, "mme_emotion"), ANSWERS, client=client(server, mme), n_frames=0, n_bootstrap=20)
    details = result.details
    # a: [1, 1]; b has no text about its sound; 1: [1, 2/2]; 2 has no answer
    assert (result.metric, result.value, result.n) == ("CoT-S", 1.0, 2)
    assert (details["left out, no text about the sound"], details["missing"]) == (1, 1)
    assert details["ML-ER: Rec-S"] == 1.0
    # strictly, anger, fear, joy and calm against anger and fear is 2 * 2 / (4 + 2), and the missing answer is wrong
    assert details["Rec-S, strict"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert details["Rea-S, strict"] == pytest.approx((1 + 1 + 0) / 3)
    assert [row["label"] for row in details["by label"]] == ["anger", "anger,fear"]  # "angry" of ER-Wild is anger
    assert result.answers[0]["score"] == {"recognition": 1.0, "reasoning": 1.0, "n_steps": 2}
    assert "answers to no question" in result.table()
    again = run_benchmark(
        config(mme, "mme_emotion", alpha=1.0), ANSWERS, client=client(server, mme, offline=True), n_frames=0
    )
    assert again.value == again.details["Rec-S"]


def test_an_unreadable_reply_is_left_out_as_published_and_wrong_strictly(mme, server):
    server.answer = lambda body: "ok" if "angry" in str(body) and "rate" in str(body) else judged_by_rule(body)
    result = run_benchmark(config(mme, "mme_emotion"), ANSWERS, client=client(server, mme), n_frames=0)
    assert (result.n, result.details["left out, reply not readable"], result.value) == (1, 1, 1.0)
    assert result.details["Rec-S, strict"] == pytest.approx((0 + 2 / 3 + 0) / 3)


def test_a_judge_that_fails_is_an_error_and_so_is_none(mme, server):
    with pytest.raises(InputError, match=r"needs a chat model as judge: llm\.model="):
        run_benchmark(config(mme, "mme_emotion"), ANSWERS)
    server.choose = lambda body: 500
    with pytest.raises(UserError, match=r"requests to .* failed"):
        run_benchmark(config(mme, "mme_emotion"), ANSWERS, client=client(server, mme, max_retries=0), n_frames=0)


def test_the_judge_sees_a_frame_a_second_of_the_clip(mme, server):
    target = mme / "clips" / "CAER" / "video" / "a.avi"
    target.parent.mkdir(parents=True)
    write_clip(target.with_suffix(".mp4"), seed=1, n_frames=8, seconds=1.2, sound=False)
    target.with_suffix(".mp4").rename(target)
    one = {"ER-Wild~CAER_video_a.avi": "He is angry."}
    run_benchmark(config(mme, "mme_emotion", media="clips"), one, client=client(server, mme), n_frames=2)
    parts = server.requests[-1]["messages"][-1]["content"]
    assert sum(part["type"] == "image_url" for part in parts) == 2
    assert "the frames or the description" in parts[-1]["text"]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<score>Step 1: 0/1, Step 2: 1/1</score>", (1.0, 0.0)),
        ("<score>\nStep 1: 1/1,\nStep 2: 0/1\n</score>", (0.0, 1.0)),
        ("<score>Step 1: 1/1</score>", None),  # one rating, two steps
        ("<score>Step 1: 1/2, Step 2: 1/1</score>", None),  # a step is right or wrong
        ("<score>Step 1: 1/1, Step 2: 2/1</score>", None),
        ("", None),
    ],
)
def test_a_strict_reading_takes_one_sensible_rating_a_step(reply, expected):
    question = Question("a", "SA", "", "positive")
    found = strict_score(Judged(question, "", "<step>Step 1: x. Step 2: positive.</step>", reply))
    assert (None if found is None else (found.recognition, found.reasoning)) == expected


def test_ratings_of_thousands_of_digits_are_left_out():
    number = "9" * 5000
    assert parse_rating(f"Score: {number}") is None
    assert ratings(f"<score>Step 1: {number}/1, Step 2: 1/2</score>", several=True) == [0.5]
    steps = f"<step>Step {number}: x. Step 1: positive.</step>"
    reply = f"<score>Step 1: {number}/1</score>"
    assert strict_score(Judged(Question("a", "SA", "", "positive"), "", steps, reply)) is None


# ---- EmotionHallucer -------------------------------------------------------------------------------------------------


def pair(number, medium="a.mp4"):
    sides = (("basic", "Is he sad?", "yes"), ("hallucination", "Is he glad?", "no"))
    return {side: {"video": medium, "question": text, "answer": answer} for side, text, answer in sides} | {"n": number}


def test_a_pair_counts_if_both_answers_are_right_and_agreeing_shows_as_a_bias(tmp_path):
    write(tmp_path / "video.json", [pair(0), pair(1), pair(2)])
    said = {0: ("Yes.", "No."), 1: ("yes", "Yes"), 2: ("Yes or no?", "yes or no")}
    answers = {
        f"video~{n}~{side}": text
        for n, texts in said.items()
        for side, text in zip(("basic", "hallucination"), texts, strict=True)
    }
    result = run_benchmark(config(tmp_path, "emotion_hallucer"), answers, n_bootstrap=10)
    assert (result.metric, result.value, result.n) == ("pair accuracy", pytest.approx(2 / 3), 3)
    assert result.details["basic accuracy"] == 1.0
    assert result.details["yes difference (Pct. Diff)"] == f"{1 / 6:.4f}"
    assert result.details["false positive ratio (FP Ratio)"] == "1.0000"
    assert result.details["pair accuracy, strict"] == pytest.approx(1 / 3)  # "yes or no" begins with yes
    write(tmp_path / "video.json", [{"basic": pair(0)["hallucination"], "hallucination": pair(0)["hallucination"]}])
    with pytest.raises(InputError, match=r"video\.json\[0\]: the answer of the basic question is 'no'; expected 'yes'"):
        run_benchmark(config(tmp_path, "emotion_hallucer"), answers)


@pytest.mark.parametrize(
    ("basic", "hallucinated", "difference", "ratio"),
    [(52.81, 63.46, -0.05, 0.44), (72.88, 33.45, 0.20, 0.71), (69.41, 68.15, 0.01, 0.51), (70.30, 67.56, 0.01, 0.52)],
)
def test_the_published_biases_follow_from_the_published_accuracies_by_our_formulas(
    basic, hallucinated, difference, ratio
):
    n = 10_000
    found = pair_scores([k < basic * 100 for k in range(n)], [k < hallucinated * 100 for k in range(n)])
    assert (round(found.yes_difference, 2), round(found.false_positives, 2)) == (difference, ratio)


# ---- EmoBench-M ------------------------------------------------------------------------------------------------------


def conversation(number, answer, asked="<video>\nWhich emotion?"):
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": str(number), "video": f"videos/X/{number}.mp4", "conversations": turns}


def test_the_interval_of_emobench_is_that_of_the_answers_that_are_scored(tmp_path):
    write(tmp_path / "benchmark_json" / "MOSI.json", [conversation(n, "positive") for n in range(40)])
    right = {f"mosi~{n}": "positive" for n in range(20)}  # half of the questions have no answer
    result = run_benchmark(config(tmp_path, "emobench_m"), right, n_bootstrap=100)
    assert (result.value, result.intervals["accuracy"]) == (1.0, (1.0, 1.0))
    wrong = {f"mosi~{n}": "negative" for n in range(20, 30)}
    result = run_benchmark(config(tmp_path, "emobench_m"), right | wrong, n_bootstrap=100)
    low, high = result.intervals["accuracy"]
    assert result.value == pytest.approx(2 / 3)
    assert 0.4 < low < result.value < high < 0.9


def test_accuracies_of_files_become_dimensions_and_explanations_of_laughter_are_rated(tmp_path, server):
    folder = tmp_path / "benchmark_json"
    write(folder / "MOSI.json", [conversation(n, label) for n, label in enumerate(["positive", "negative", "neutral"])])
    write(folder / "MC-EIU.json", [conversation(0, "{'emotion label': 'sad', 'intent label': 'wishing'}")])
    write(folder / "smile_test_data.json", [conversation(n, "Because he fell.") for n in (0, 1)])
    answers = {
        "mosi~0": "{'emotion': 'Positive'}", "mosi~1": "positive", "mosi~2": "", "smile~0": "He fell.", "smile~1": "x",
        "mc-eiu~0": "{'emotion': 'sad', 'intent': 'wishing'}",
    }  # fmt: skip
    result = run_benchmark(config(tmp_path, "emobench_m"), answers, n_bootstrap=10)
    assert result.value == pytest.approx((1 / 2 + 1) / 2)  # FER without the empty answer, CEU
    assert result.details["accuracy, strict"] == pytest.approx((1 / 3 + 1) / 2)
    assert result.details["LR (smile)"] == "not judged: give llm.model=..."
    server.answer = lambda body: "Score: 4" if "He fell." in str(body) else "no idea"
    result = run_benchmark(config(tmp_path, "emobench_m"), answers, client=client(server, tmp_path))
    assert result.details["SCEA"] == pytest.approx((4 + 4 + 0 + 0) / 2 / 10)  # an unreadable reply is 0, as published
    assert result.details["LR (smile): logic of 5, readable replies"] == "4.00"
    assert result.details["LR (smile): unreadable replies"] == 2
    write(folder / "other.json", [conversation(0, "x")])
    with pytest.raises(InputError, match=r"no file of EmoBench-M is called 'other'; expected some of \['ravdss_song'"):
        run_benchmark(config(tmp_path, "emobench_m"), answers)


# ---- IntentBench -----------------------------------------------------------------------------------------------------


def intent_rows():
    options = ["A. Urgent", "B. Happy", "C. Calm"]
    solution = "<think>He smiles.</think><answer>{}</answer>"
    return [
        {"problem": "Why?", "problem_type": "multiple choice", "options": options, "solution": solution.format("B")},
        {"problem": "Which?", "problem_type": "emer_ov_mc", "options": options, "solution": solution.format("A,B")},
        {"problem": "Does he lie?", "problem_type": "judge", "solution": solution.format("No"), "path": "v/1.mp4"},
    ]


def test_letters_choices_and_judgements_are_averaged_over_all_questions(tmp_path):
    write(tmp_path / "qa.json", intent_rows())
    answers = {"00000": "<answer>B</answer>", "00001": "<answer>A, B</answer>", "00002": "<answer>I know</answer>"}
    result = run_benchmark(config(tmp_path, "intent_bench", "qa.json"), answers, n_bootstrap=10)
    # as published, " B" is not "B" and "know" holds "no"; strictly, the letters are right and "I know" is no answer
    assert result.value == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert result.details["mean accuracy, strict"] == pytest.approx((1 + 1 + 0) / 3)
    assert result.details["emer_ov_mc: mean accuracy"] == pytest.approx(1 / 2)


def test_an_answer_without_a_span_is_replaced_by_the_last_response_as_published_and_read_as_it_is_strictly(tmp_path):
    write(tmp_path / "qa.json", intent_rows())
    asked = list(questions.intent_bench(tmp_path / "qa.json"))
    found = score_intent(asked, {"00000": "B", "00002": "<answer>No</answer>"})
    assert (found.values["00000"], found.without_span, found.missing) == (0.0, 1, 1)
    assert (found.published, found.strict) == (1 / 2, pytest.approx(2 / 3))
    assert letters_of("<think>") == []


# ---- clues -----------------------------------------------------------------------------------------------------------


def test_utilisation_is_the_share_of_true_clues_and_faithfulness_that_of_stated_ones(tmp_path):
    row = {"id": "a", "visual_clues": ["the brows rise", "the eyes widen"], "audio_clues": ["the voice trembles"]}
    (tmp_path / "clues.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    text = {"a": "The brows rise and the mouth smiles."}
    result = run_benchmark(config(tmp_path, "clues", "clues.jsonl"), text, n_bootstrap=10)
    assert (result.metric, result.value) == ("utilisation", pytest.approx(1 / 3))
    assert result.details["faithfulness"] == pytest.approx(1 / 2)
    assert result.details["utilisation, acoustic"] == 0
    nested = {"id": "a", "extracted_clues": {"visual_clues": row["visual_clues"]}}
    (tmp_path / "clues.jsonl").write_text(json.dumps(nested) + "\n", encoding="utf-8")
    assert run_benchmark(config(tmp_path, "clues", "clues.jsonl"), text).value == pytest.approx(1 / 2)
    (tmp_path / "clues.jsonl").write_text('{"id": "a", "clues": ["x"]}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"clues\.jsonl:1: expected a column of \['visual_clues', 'audio_clues'"):
        run_benchmark(config(tmp_path, "clues", "clues.jsonl"), text)


# ---- the files as samples --------------------------------------------------------------------------------------------


def test_the_files_become_samples_with_their_questions(mme, tmp_path):
    rows, files = read_format("mme_emotion", mme, {"video": "clips"})
    assert rows[0].video == str(mme / "clips" / "CAER" / "video" / "a.avi")
    assert rows[0].question.endswith("Choose the emotion from: happy, sad, angry.")
    assert "every emotion that fits" in rows[2].question
    twice = [{"video_id": "x.mp4", "label": label} for label in ("sad", "happy")]
    write(tmp_path / "twice" / "SA" / "question" / "SA.json", twice)
    assert [row.id for row in questions.mme_emotion(tmp_path / "twice")] == ["SA~x.mp4", "SA~x.mp4~2"]
    assert len(files) == 4
    write(tmp_path / "i" / "qa.json", intent_rows())
    rows, _ = read_format("intent_bench", tmp_path / "i", {"video": "videos"})
    assert rows[2].video == str(tmp_path / "i" / "videos" / "v" / "1.mp4")
    assert rows[0].question.splitlines()[:2] == ["Why? Options:", "A. Urgent"]
    assert (rows[0].video, rows[0].label) == (None, "B")
    write(tmp_path / "h" / "audio.json", [pair(0, "a.wav"), pair(1, "../a.wav")])
    rows, _ = read_format("emotion_hallucer", tmp_path / "h", {"video": "."})
    assert (rows[0].audio, rows[0].id) == (str(tmp_path / "h" / "a.wav"), "audio~0~basic")
    assert isinstance(rows[2], BadSample)
    assert "outside the folder" in rows[2].reason
    write(tmp_path / "m" / "benchmark_json" / "SIMS.json", [conversation(7, "neutral")])
    (tmp_path / "m" / "dataset" / "SIMS_test").mkdir(parents=True)
    rows, _ = read_format("emobench_m", tmp_path / "m", {"video": "."})
    assert rows[0].video == str(tmp_path / "m" / "dataset" / "SIMS_test" / "videos" / "X" / "7.mp4")
    assert (rows[0].id, rows[0].question) == ("sims~7", "Which emotion?")


def test_predictions_of_other_questions_are_an_error_that_says_what_to_do(tmp_path):
    write(tmp_path / "qa.json", intent_rows())
    with pytest.raises(InputError, match="ids like 'x', questions like '00000'; ask them with data=intent_bench"):
        run_benchmark(config(tmp_path, "intent_bench", "qa.json"), {"x": "A"})
    with pytest.raises(InputError, match=r"no <task>/question of MME-Emotion's"):
        run_benchmark(config(tmp_path, "mme_emotion"), {"x": "A"})


# ---- stated confidence -----------------------------------------------------------------------------------------------


def test_a_confidence_that_fits_has_no_error_and_one_of_1_is_in_no_published_bin():
    fits = calibration([0.75] * 4, [True, True, True, False])
    assert (fits.ece, fits.ece_closed, fits.brier) == (0.0, 0.0, pytest.approx(0.1875))
    sure = calibration([1.0, 1.0], [True, False])
    assert (sure.ece, sure.ece_closed, sure.n_in_no_bin, sure.roc_auc) == (0.0, 0.5, 2, 0.5)
    assert [found.n for found in sure.bins] == [0] * 9 + [2]
    assert calibration([0.2, 0.9], [False, True]).roc_auc == 1.0
    assert calibration([0.2], [True]).roc_auc is None
    with pytest.raises(InputError, match=r"a confidence is 1\.5"):
        calibration([1.5], [True])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sad <confidence>0.8</confidence>", 0.8),
        ("<confidence>{0.25}</confidence> no, <confidence>40%</confidence>", 0.4),
        ("<confidence>high</confidence> 0.9", None),
        ("My confidence level is 85%.", 0.85),
        ("置信度为0.6", 0.6),
        ("Confidence: 300", None),
        ("I am sure.", None),
    ],
)
def test_confidence_is_read_as_models_write_it(text, expected):
    assert parse_confidence(text) == (expected if expected is None else pytest.approx(expected))


def test_intervals_hold_the_score_and_grow_with_fewer_answers(tmp_path):
    widths = []
    for n in (4, 400):
        write(tmp_path / "qa.json", intent_rows()[:1] * n)
        answers = {f"{k:05d}": f"<answer>{'AB'[k % 2]}</answer>" for k in range(n)}
        result = run_benchmark(config(tmp_path, "intent_bench", "qa.json"), answers, n_bootstrap=200)
        low, high = result.intervals["mean accuracy"]
        assert low <= result.value == 0.5 <= high
        widths.append(high - low)
    assert np.diff(widths) < 0
