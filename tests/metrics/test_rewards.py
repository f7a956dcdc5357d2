"""Rewards: each equals a score or formula that is known from elsewhere."""

import math

import numpy as np
import pytest

from affectgpt.chat.request import Reply
from affectgpt.chat.transport import ChatError
from affectgpt.metrics import evaluate, load_lexicon
from affectgpt.metrics.rewards import Attempt, Scorer, advantages, in_format, length_penalty, watched
from affectgpt.runtime import InputError
from affectgpt.schema import Clause

WORDS = ("happy", "sad", "furious", "afraid", "neutral", "proud", "calm", "xyzzy", "hesitant")


def both(*labels, explanation="The brows rise."):
    return f"{explanation}\nEmotions: {', '.join(labels)}"


@pytest.fixture(scope="module")
def scorer():
    return Scorer()


def test_the_wheel_reward_is_the_benchmarks_score_of_one_sample(scorer):
    rng = np.random.default_rng(0)
    for _ in range(60):
        truth, answer = (tuple(rng.choice(WORDS, rng.integers(1, 5), replace=False)) for _ in range(2))
        attempt = Attempt("a", both(*answer), truth=truth)
        score = evaluate({"a": attempt.text}, {"a": truth}, n_bootstrap=0).primary
        for name, expected in (("wheel", score.f_score), ("precision", score.precision), ("recall", score.recall)):
            assert scorer.reward(name, [attempt])[0] == pytest.approx(expected, abs=1e-12), (truth, answer)


def test_a_long_list_is_rewarded_without_penalty_and_not_with_one():
    truth = ("sad",)
    short, long = (Attempt("a", both(*labels), truth=truth) for labels in (("sad",), ("sad", "gloomy", "sorrowful")))
    for penalty, shrinks in (("none", False), ("p1", True), ("p2", True), ("p3", True), ("nano", True)):
        for name in ("wheel", "recall"):
            rewards = Scorer(penalty=penalty).reward(name, [short, long])
            assert (rewards[1] < rewards[0]) == shrinks, (name, penalty)


def test_where_clips_cannot_be_told_apart_longer_lists_pay_and_with_p1_they_cost():
    # Each of six feelings is as likely as the others, and an answer names the first n.
    feelings = ("happy", "sad", "angry", "afraid", "surprised", "disgusted")
    for penalty, sign in (("none", 1), ("p1", -1)):
        scorer = Scorer(penalty=penalty)
        means = []
        for n in range(1, 7):
            attempts = [Attempt("a", ", ".join(feelings[:n]), "labels", truth=(feeling,)) for feeling in feelings]
            means.append(np.mean(scorer.reward("wheel", attempts)))
        assert (sign * np.diff(means) > 0).all(), (penalty, means)


def test_penalties_are_the_published_formulas():
    assert length_penalty("p1", 5, 3) == 1 / 3
    assert length_penalty("p2", 5, 3) == 3 / 5
    assert length_penalty("p3", 5, 3) == math.log(3) / math.log(5)
    assert length_penalty("p3", 5, 1) == 1 / math.log(5)
    assert length_penalty("p3", 1, 0) == 1 / math.log(2)
    assert all(length_penalty(kind, 2, 3) == 1 for kind in ("p1", "p2", "p3", "nano"))
    with pytest.raises(InputError, match="length penalty 'p4'"):
        Scorer(penalty="p4")


@pytest.mark.parametrize(
    ("task", "text", "good"),
    [
        ("think", "<think>Tears.</think>\n<answer>sad</answer>", True),
        ("think", "< think>Tears.< /think>\n<answer>sad</answer>", True),
        ("think", "<think></think><answer>sad</answer>", False),
        ("think", "Tears. <answer>sad</answer>", False),
        ("think", "<think>a</think><answer>sad</answer> and more", False),
        ("think", "<think>a</think><think>b</think><answer>sad</answer>", False),
        ("both", "Tears.\nEmotions: sad", True),
        ("both", "Emotions: sad", False),
        ("both", "Tears.\nEmotions: sad\nEmotions: sad", False),
        ("both", "Emotions: sad\nTears.", False),
        ("labels", "sad, hurt", True),
        ("labels", "sad\nhurt", False),
    ],
)
def test_an_answer_is_in_format_only_with_all_its_parts(task, text, good):
    assert in_format(Attempt("a", text, task)) == good
    assert not in_format(Attempt("a", text, task, finish="length"))


def test_alignment_and_dual_compare_the_explanation_with_labels_and_truth(scorer):
    same = Attempt("a", both("sad", explanation="She seems sad."), truth=("furious",))
    other = Attempt("a", both("happy", explanation="She seems furious."), truth=("furious",))
    assert scorer.reward("alignment", [same, other]) == [1.0, 0.0]
    assert scorer.reward("dual", [same, other]) == [0.0, 1.0]


def test_a_claim_about_what_was_not_shown_costs(scorer):
    text = both("sad", explanation="The voice trembles. The brows rise.")
    shown = [frozenset({"visual"}), frozenset({"visual", "acoustic"}), frozenset({"visual", "acoustic", "lexical"})]
    assert scorer.reward("faithfulness", [Attempt("a", text, shown=each) for each in shown]) == [-0.5, 0.0, 0.0]


def test_clues_count_those_that_answer_and_reference_share(scorer):
    reference = (Clause("The brows rise.", "visual"), Clause("The voice trembles.", "acoustic"))
    texts = ["The brows rise. The voice trembles.", "The brows rise.", "The lips are pressed."]
    attempts = [Attempt("a", both("sad", explanation=text), reference=reference) for text in texts]
    assert scorer.reward("clues", attempts) == pytest.approx([1.0, 2 / 3, 0.0])


def short(attempts):
    return [-len(each.text) for each in attempts]


def broken(attempts):
    return [float("nan") for _ in attempts]


def test_a_reward_of_ones_own_is_named_by_its_path(scorer):
    attempts = [Attempt("a", "ab"), Attempt("b", "abc")]
    assert scorer.reward(f"{__name__}.short", attempts) == [-2, -3]
    with pytest.raises(InputError, match="expected one finite number for each"):
        scorer.reward(f"{__name__}.broken", attempts)
    for path, message in (
        ("whel", "no reward is named 'whel'; expected some of"),
        ("no_such_module.f", "there is no module no_such_module"),
        (f"{__name__}.missing", "has no function missing"),
    ):
        with pytest.raises(InputError, match=message):
            scorer.reward(path, attempts)


class Judge:
    where = "judge at localhost"

    def __init__(self, text):
        self.text = text

    def answer(self, requests):
        return [Reply(self.text, 0, 0, "eos") for _ in requests]


def test_a_judge_that_gives_no_score_is_an_error_and_no_low_reward():
    attempts = [Attempt("a", both("sad"), truth=("sad",)), Attempt("b", "", truth=("sad",))]
    assert Scorer(judge=Judge('{"score": 10}')).reward("judge", attempts) == [1.0, 0.0]
    with pytest.raises(ChatError, match="rated the answer to 'a' with 'fine', which is no score"):
        Scorer(judge=Judge("fine")).reward("judge", attempts)


def test_recall_and_precision_normalised_apart_weigh_equally_whatever_their_spread():
    recall, precision = [0.0, 1.0, 0.0, 1.0], [0.5, 0.5, 0.6, 0.6]
    rewards = np.array([recall, precision]).T[None]
    together = advantages(rewards, [1, 1], "group")[0]
    apart = advantages(rewards, [1, 1], "each")[0]
    assert together[2] < 0  # the narrow reward hardly counts
    assert apart == pytest.approx([-2, 0, 0, 2], abs=5e-3)


@pytest.mark.parametrize("kind", ["group", "centred", "each"])
def test_advantages_of_a_group_add_up_to_zero_and_ignore_a_constant(kind):
    rewards = np.random.default_rng(1).random((3, 4, 2))
    found = advantages(rewards, [1, 0.3], kind)
    assert found.sum(axis=1) == pytest.approx(0, abs=1e-12)
    assert advantages(rewards + 5, [1, 0.3], kind) == pytest.approx(found)


def test_what_is_watched_shows_repetition_length_and_absent_claims():
    plain = Attempt("a", both("sad"), shown=frozenset({"visual"}), n_tokens=5)
    gamed = Attempt("a", both("sad", "sad, " * 20, explanation="The voice trembles."), shown=frozenset({"visual"}),
                    n_tokens=45, finish="length")  # fmt: skip
    found = watched([plain, gamed])
    assert found["n_tokens"] == 25
    assert found["repetition"] > 0.3
    assert found["in_format"] == found["truncated"] == found["absent_claims"] == 0.5


def test_words_that_no_wheel_has_score_nothing(scorer):
    assert load_lexicon("builtin").find("xyzzy") is None
    assert scorer.reward("wheel", [Attempt("a", both("sad"), truth=("xyzzy",))]) == [0.0]
