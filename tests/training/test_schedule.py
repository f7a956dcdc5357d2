import pytest

from affectgpt.training.schedule import Schedule

PAPER = Schedule(total_steps=100_000, warmup_steps=1000, start=1e-6, peak=3e-5, floor=1e-5)


@pytest.mark.parametrize(
    ("step", "value"),
    [(0, 1e-6), (500, 1.55e-5), (999, 1e-6 + 2.9e-5 * 0.999), (1000, 3e-5), (99_999, 1e-5)],
)
def test_the_rate_at_the_ends_of_the_phases_is_the_configured_one(step, value):
    assert PAPER.at(step) == pytest.approx(value, rel=1e-12)


def test_halfway_down_the_cosine_is_the_mean_of_peak_and_floor():
    schedule = Schedule(total_steps=1001, warmup_steps=0, start=0.0, peak=3e-5, floor=1e-5)
    assert schedule.at(500) == pytest.approx(2e-5, rel=1e-12)


def test_it_rises_in_the_warm_up_and_falls_after_it():
    values = [PAPER.at(step) for step in range(0, 100_000, 100)]
    top = values.index(max(values))
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)


def test_without_warm_up_the_first_step_has_the_peak():
    assert Schedule(total_steps=10, warmup_steps=0, start=0.0, peak=1.0, floor=0.1).at(0) == 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"warmup_steps": 100_000}, "warmup_steps=100000 must be smaller"),
        ({"start": 1.0}, "must be between 0 and learning_rate"),
    ],
)
def test_an_impossible_schedule_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Schedule(**{**vars(PAPER), **changes})
