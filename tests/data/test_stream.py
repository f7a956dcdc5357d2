from collections import Counter

import numpy as np
import pytest

from affectgpt.config import DataConfig, SourceConfig, StageConfig
from affectgpt.data.mixture import Source, read_mixture, with_texts
from affectgpt.data.stream import Draw, TrainingStream
from affectgpt.runtime import InputError
from affectgpt.schema import Sample, write_jsonl

MODALITIES = ("audio", "frames", "motion")
TASKS = {"both": 0.5, "labels": 0.5}


def samples(n, prefix="s", **values):
    texts = {"description": "d", "labels": ("sad",), "subtitle": "x", "modalities": MODALITIES, **values}
    return [Sample(id=f"{prefix}{number}", **texts) for number in range(n)]


def stream(sources, *, length=60, seed=1, modalities=MODALITIES):
    sources = [Source(*source, tasks=TASKS) if isinstance(source, tuple) else source for source in sources]
    dropout = {"modality_dropout": 0.3, "subtitle_dropout": 0.5}
    return TrainingStream(sources, modalities=modalities, length=length, seed=seed, **dropout)


def test_draw_n_depends_only_on_seed_and_n():
    once, again = stream([(samples(7), 1.0)]), stream([(samples(7), 1.0)])
    assert [once[n] for n in range(60)] == [again[n] for n in reversed(range(60))][::-1]
    other = stream([(samples(7), 1.0)], seed=2)
    assert [once[n] for n in range(60)] != [other[n] for n in range(60)]


def test_each_pass_shows_every_sample_once_and_passes_differ():
    dataset = stream([(samples(10), 1.0)])
    shown = [dataset[n].sample.id for n in range(60)]
    passes = [tuple(shown[start : start + 10]) for start in range(0, 60, 10)]
    assert all(len(set(one)) == 10 for one in passes)
    assert len(set(passes)) > 1


def test_sources_are_drawn_by_weight():
    mixed = stream([(samples(5, "a"), 3.0), (samples(50, "b"), 1.0)], length=4000)
    share = Counter(mixed[n].sample.id[0] for n in range(4000))["a"] / 4000
    assert share == pytest.approx(0.75, abs=0.03)


def test_dropout_hides_modalities_at_its_rate_but_never_all_of_them():
    dataset = stream([(samples(5), 1.0)], length=3000)
    draws = [dataset[n] for n in range(3000)]
    assert all(draw.modalities for draw in draws)
    hidden = 1 - sum(len(draw.modalities) for draw in draws) / (3 * 3000)
    assert hidden == pytest.approx(0.3 - 0.3**3 / 3, abs=0.02)
    assert sum(draw.with_subtitle for draw in draws) / 3000 == pytest.approx(0.5, abs=0.03)


def test_only_modalities_that_sample_and_model_have_are_shown():
    draws = stream([(samples(5, modalities=("audio", "frames")), 1.0)], modalities=("frames", "motion"))
    assert {draws[n].modalities for n in range(60)} == {("frames",)}


def test_a_sample_with_only_text_keeps_its_subtitle():
    draws = stream([(samples(5, modalities=()), 1.0)])
    assert all(
        draws[n] == Draw(draws[n].sample, draws[n].task, "en", (), True, clues=frozenset({"lexical"}))
        for n in range(60)
    )


def test_missing_texts_are_refused_before_training_with_the_count():
    with pytest.raises(ValueError, match=r"'s0' has no description in 'en'.*3 samples lack texts"):
        with_texts(samples(3, description=None), ["both", "labels"], ["en"])


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="weights must be"):
        stream([Source(samples(3), tasks={"both": -1.0})])


def test_face_crops_do_not_change_which_other_modalities_are_hidden():
    """The dice of a run: columns audio, frames, motion and subtitle of the fourth generator."""
    dice = np.random.default_rng([7, 3]).random((60, 4), dtype=np.float32)
    dataset = stream([(samples(5), 1.0)], seed=7)
    for n, row in enumerate(dice):
        shown = tuple(name for name, value in zip(MODALITIES, row, strict=False) if value >= 0.3)
        assert dataset[n].modalities == (shown or (MODALITIES[row[:3].argmax()],))
        assert dataset[n].with_subtitle == (row[3] >= 0.5)


def test_a_bucket_sorts_the_draws_of_its_step_by_length():
    longer = [Sample(id=f"s{n}", description="d" * (1 + n * 7 % 11), labels=("sad",), modalities=()) for n in range(11)]
    sources = [Source(longer, tasks={"description": 1.0})]
    values = {"modalities": (), "length": 22, "seed": 3}
    plain, sorted_ = TrainingStream(sources, **values), TrainingStream(sources, bucket=8, **values)
    for start in range(0, 22, 8):
        places = range(start, min(start + 8, 22))
        drawn, bucket = [plain[n].sample for n in places], [sorted_[n].sample for n in places]
        assert Counter(row.id for row in drawn) == Counter(row.id for row in bucket)
        assert [len(row.description) for row in bucket] == sorted(len(row.description) for row in drawn)
    assert [sorted_[n] for n in reversed(range(22))] == [sorted_[n] for n in range(22)][::-1]


def mixture(tmp_path, sources, **data):
    """The mixture of text samples: [(samples, fields of the source)] through manifests."""
    configs = []
    for number, (rows, fields) in enumerate(sources):
        write_jsonl(tmp_path / f"{number}.jsonl", rows)
        configs.append(SourceConfig(manifest=str(tmp_path / f"{number}.jsonl"), **fields))
    mixed, bad = read_mixture(configs, DataConfig(name="d", **data), StageConfig(name="s", tasks=TASKS))
    assert not bad
    return mixed


def test_the_limit_of_a_stage_is_that_of_sources_without_their_own(tmp_path):
    text = {"modalities": None}
    sources = []
    for name, limit in (("a", None), ("b", 7), ("c", None)):
        write_jsonl(tmp_path / f"{name}.jsonl", samples(9, name, **text))
        sources.append(SourceConfig(manifest=str(tmp_path / f"{name}.jsonl"), limit=limit))
    for limit, expected in ((4, [4, 7, 4]), (None, [9, 7, 9])):
        mixed, _ = read_mixture(sources, DataConfig(name="d"), StageConfig(name="s", tasks=TASKS, limit=limit))
        assert [len(source.samples) for source in mixed] == expected
    for limits in ({"stage": 0}, {"source": -1}):
        source = SourceConfig(manifest=str(tmp_path / "a.jsonl"), limit=limits.get("source"))
        stage = StageConfig(name="s", tasks=TASKS, limit=limits.get("stage"))
        with pytest.raises(InputError, match=r"a\.jsonl: limit is (0|-1); expected 1 or more, or null for all samples"):
            read_mixture([source], DataConfig(name="d"), stage)


def test_each_source_has_its_own_tasks_languages_and_candidates(tmp_path):
    text = {"modalities": None}
    mixed = mixture(
        tmp_path,
        [
            (samples(5, "a", **text), {}),
            (
                samples(5, "b", labels=None, label="sad", **text),
                {"tasks": {"fixed": 1.0, "description": 1.0, "both": 0.0}},
            ),
            (
                samples(5, "c", description=None, lang="zh", **text),
                {"tasks": {"labels": 1.0}, "langs": {"zh": 1.0}},
            ),
        ],
    )
    dataset = stream(mixed, length=3000)
    found = Counter(
        (draw.sample.id[0], draw.task, draw.lang, draw.candidates) for draw in map(dataset.draw, range(3000))
    )
    assert set(found) == {
        ("a", "both", "en", ()),
        ("a", "labels", "en", ()),
        ("b", "fixed", "en", ("sad",)),
        ("b", "description", "en", ()),
        ("c", "labels", "zh", ()),
    }
    assert found["b", "fixed", "en", ("sad",)] / 1000 == pytest.approx(0.5, abs=0.06)


def test_a_wrong_candidate_is_left_out_of_its_share_of_the_questions_and_a_right_one_never():
    asked = [*samples(5, "sad", labels=None, label="sad"), *samples(5, "calm", labels=None, label="neutral")]
    names = ("happy", "neutral", "sad")
    fixed = {"tasks": {"fixed": 1.0}, "candidates": names}
    dropping = stream([Source(asked, 1.0, **fixed, drop_candidates={"neutral": 0.5})], length=2000)
    keeping = stream([Source(asked, 1.0, **fixed)], length=2000)
    lists = {"sad": Counter(), "calm": Counter()}
    for n in range(2000):
        draw, other = dropping.draw(n), keeping.draw(n)
        assert (draw.sample, draw.modalities, other.candidates) == (other.sample, other.modalities, names)
        lists[draw.sample.id[:-1]][draw.candidates] += 1
    assert set(lists["calm"]) == {names}
    assert set(lists["sad"]) == {names, ("happy", "sad")}
    assert lists["sad"][names] / lists["sad"].total() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("dropped", [{"angry": 0.5}, {"sad": 1.5}])
def test_candidates_that_cannot_be_left_out_are_refused(tmp_path, dropped):
    rows = samples(5, labels=None, label="sad", modalities=None)
    given = {"tasks": {"fixed": 1.0}, "candidates": ["sad", "happy"], "drop_candidates": dropped}
    with pytest.raises(InputError, match=r"drop_candidates=.*expected shares from 0 to 1 of candidates of task fixed"):
        mixture(tmp_path, [(rows, given)])


def test_tasks_are_drawn_as_by_the_generators_own_choice():
    dataset = stream([(samples(5), 1.0)], seed=9)
    chosen = np.random.default_rng([9, 1]).choice(2, 60, p=[0.5, 0.5])
    assert [dataset[n].task for n in range(60)] == [("both", "labels")[number] for number in chosen]


def test_a_resumed_mixture_continues_with_the_same_draws():
    fixed = Source(samples(11, "b", label="sad"), 1.0, tasks={"fixed": 1.0}, candidates=("sad",))
    sources = [(samples(7, "a"), 2.0), fixed]
    whole = [stream(sources)[n] for n in range(60)]
    resumed = stream(sources)
    assert [resumed[n] for n in range(23, 60)] == whole[23:]


def test_weights_by_size_draw_every_sample_about_equally_often(tmp_path):
    sources = [(samples(10, "a", modalities=None), {}), (samples(90, "b", modalities=None), {})]
    mixed = mixture(tmp_path, sources, weights="proportional")
    dataset = stream(mixed, length=4000)
    drawn = Counter(dataset[n].sample.id[0] for n in range(4000))
    assert drawn["a"] / 4000 == pytest.approx(0.1, abs=0.02)
    assert [source.weight for source in mixture(tmp_path, sources)] == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"data\.weights is 'size'; expected one of \['given', 'proportional'\]"):
        mixture(tmp_path, sources, weights="size")


def test_samples_without_texts_are_left_out_with_the_reason():
    good, bad = with_texts([*samples(2), *samples(1, "x", labels=None)], ["both"], ["en"], on_bad="skip")
    assert [sample.id for sample in good] == ["s0", "s1"]
    assert "sample 'x0' has no labels in 'en'" in bad[0].reason
    with pytest.raises(ValueError, match=r"its label 'sad' is none of the candidates \['happy'\]"):
        with_texts(samples(1, label="sad"), ["fixed"], ["en"], ["happy"])


TOLD = {
    "description": "The brows rise. The voice trembles. The words are a plea. She seems afraid.",
    "subtitle": "Help.",
}


def test_targets_tell_of_what_is_shown_only():
    dataset = stream([(samples(5, **TOLD), 1.0)], length=400)
    seen = set()
    for n in range(400):
        draw = dataset[n]
        if draw.task == "labels":
            assert draw.target == "sad"
            continue
        clues = {"audio": "voice", "frames": "brows", "motion": "brows"}
        shown = {clues[name] for name in draw.modalities} | ({"words"} if draw.with_subtitle else set())
        assert {word for word in ("voice", "brows", "words") if word in draw.target} == shown
        assert "She seems afraid." in draw.target
        seen.add(frozenset(shown))
    assert len(seen) > 3


def test_complete_targets_and_draws_do_not_depend_on_the_choice():
    sources = [Source(samples(5, **TOLD), 1.0, tasks=TASKS)]
    made = [
        TrainingStream(sources, modalities=MODALITIES, length=60, seed=3, modality_dropout=0.3, targets=targets)
        for targets in ("shown", "complete")
    ]
    for n in range(60):
        shown, complete = (dataset[n] for dataset in made)
        assert (shown.sample, shown.task, shown.modalities) == (complete.sample, complete.task, complete.modalities)
        assert complete.task == "labels" or TOLD["description"] in complete.target
    with pytest.raises(InputError, match=r"stage\.targets is 'all'"):
        TrainingStream(sources, modalities=MODALITIES, length=1, seed=3, targets="all")


def test_a_description_of_nothing_that_is_shown_brings_back_the_rest():
    sample = samples(1, description="The voice trembles.", subtitle=None)
    dataset = TrainingStream(
        [Source(sample, 1.0, tasks={"description": 1.0})],
        modalities=MODALITIES,
        length=200,
        seed=1,
        modality_dropout=0.5,
    )
    assert {dataset[n].target for n in range(200)} == {"The voice trembles."}
    assert all("audio" in dataset[n].modalities for n in range(200))


def test_a_clip_whose_description_says_nothing_of_it_is_named():
    silent = samples(1, description="The voice trembles.", modalities=("frames",), subtitle=None)
    good, bad = with_texts(silent, ["description"], ["en"], fit=True, on_bad="skip")
    assert not good
    assert "says nothing about what the clip has" in bad[0].reason
    assert with_texts(silent, ["description"], ["en"], on_bad="skip")[0] == silent
