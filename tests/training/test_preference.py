"""Learning from preferences: the losses against their formulas, made pairs, whole runs on tiny models."""

import copy
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from affectgpt import config as conf
from affectgpt.data.pairs import PairMaker
from affectgpt.data.stream import Draw
from affectgpt.journal import read_journal
from affectgpt.models.checkpoint import CheckpointError, load_trained, save_trained
from affectgpt.prompts import render
from affectgpt.runs import COMPLETE, complete_checkpoints, mark_complete
from affectgpt.runtime import InputError
from affectgpt.schema import Clause, Sample, read_samples, write_jsonl
from affectgpt.training import objectives
from affectgpt.training.objectives.preference import Objective, pair_losses
from affectgpt.training.reward_model import RewardModel, checkpoint_of, log_odds
from affectgpt.training.stages import run_stage
from affectgpt.training.trainer import StageTrainer
from tests.conftest import make_train_config
from tests.models import tiny

CLOCK = {"samples_per_s", "tokens_per_s", "data_wait_share", "train_runtime", "train_samples_per_second",
         "train_steps_per_second"}  # fmt: skip
BROWS, VOICE, END = Clause("The brows rise.", "visual"), Clause("The voice shakes.", "acoustic"), "She is afraid."
FEAR = Sample("fear", video="a.mp4", description=f"{BROWS.text} {VOICE.text} {END}", labels=("afraid",),
              clauses=(BROWS, VOICE, Clause(END, "inference", ("visual", "acoustic"), ("afraid",))))  # fmt: skip
CALM = Sample("calm", video="b.mp4", description="The face is still. The voice is low.", labels=("calm",),
              clauses=(Clause("The face is still.", "visual"), Clause("The voice is low.", "acoustic")))  # fmt: skip


def logs(value):
    return math.log(1 / (1 + math.exp(-value)))


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("dpo", lambda m: -(0.9 * logs(0.2 * m) + 0.1 * logs(-0.2 * m))),  # with smoothing: conservative DPO
        ("ipo", lambda m: (m - 1 / (2 * 0.2)) ** 2),
        ("hinge", lambda m: max(0.0, 1 - 0.2 * m)),
        ("robust", lambda m: -(0.9 * logs(0.2 * m) - 0.1 * logs(-0.2 * m)) / 0.8),
        ("simpo", lambda m: -(0.9 * logs(0.2 * m - 0.3) + 0.1 * logs(0.3 - 0.2 * m))),
        ("bradley_terry", lambda m: -logs(m)),
    ],
)
def test_the_loss_of_a_pair_is_that_of_its_paper(variant, expected):
    margins = torch.tensor([-3.0, 0.0, 0.5, 7.0], dtype=torch.float64)
    found = pair_losses(margins, variant, beta=0.2, smoothing=0.1, gamma=0.3)
    assert found.tolist() == pytest.approx([expected(float(margin)) for margin in margins], rel=1e-12)


def test_log_odds_are_those_of_the_probability_and_finite_at_both_ends():
    p = torch.tensor([0.9, 0.5, 1e-3], dtype=torch.float64)
    torch.testing.assert_close(log_odds(p.log()), (p / (1 - p)).log())
    assert log_odds(torch.tensor([0.0, -80.0])).isfinite().all()


def draw_of(sample, task="description", clues=None):
    return Draw(sample, task, "en", ("audio", "frames"), True, clues=clues)


@pytest.mark.parametrize("kind", ["deleted", "contradicted"])
def test_a_made_pair_differs_in_one_clue_that_was_shown_and_says_how_it_was_made(kind):
    for seed in range(4):
        pair = PairMaker([FEAR, CALM], ["en"], [kind], seed).pair(draw_of(FEAR, "both"))
        assert (pair.made, pair.chosen) == (kind, f"{FEAR.description}\nEmotions: afraid")
        other = (
            ""
            if kind == "deleted"
            else {BROWS.text: "The face is still.", VOICE.text: "The voice is low."}[pair.clause]
        )
        assert pair.rejected == " ".join(
            pair.chosen.replace(pair.clause, other, 1).replace("  ", " ").strip().split(" ")
        )
    heard = draw_of(FEAR, clues=frozenset({"acoustic"}))
    assert PairMaker([FEAR, CALM], ["en"], ["contradicted"], 0).pair(heard).rejected == "The voice is low."
    for label in ("afraid", " Afraid"):  # a clip of the same emotion contradicts nothing
        same = replace(CALM, id="other", labels=(label,))
        assert PairMaker([FEAR, same], ["en"], ["contradicted"], 0).pair(draw_of(FEAR)) is None


def test_a_judged_pair_keeps_both_texts_complete():
    sample = Sample("a", video="a.mp4", description="The brows rise.", rejected="The voice shakes.")
    pair = PairMaker([], ["en"], [], 0).pair(draw_of(sample, clues=frozenset({"visual"})))
    assert (pair.chosen, pair.rejected, pair.made) == ("The brows rise.", "The voice shakes.", None)


def judged_pairs(manifest):
    """The training clips of `manifest`: "good" descriptions are preferred to "bad" ones."""
    samples, _ = read_samples(manifest)
    judged = [
        replace(each, description=f"Good {each.labels[0]} face.", rejected="Bad, bad voice.", labels=None)
        for each in samples
        if each.split == "train"
    ]
    path = manifest.parent / "pairs.jsonl"
    write_jsonl(path, judged)
    return path


@pytest.fixture(scope="module")
def pairs(manifest):
    return judged_pairs(manifest)


def config_of(base_models, manifest, folder, options=None, **stage):
    fields = {
        "objective": "preference", "tasks": {"description": 1.0}, "modality_dropout": 0.0, "subtitle_dropout": 0.0,
        "n_validation": 0, "objective_options": options or {}, "data": ["preference"],
    }  # fmt: skip
    config = make_train_config(base_models, manifest, folder, **{**fields, **stage})
    config.data.test = []
    config.data.train["preference"] = conf.SourceConfig(manifest=str(manifest))
    return config


def outcome(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]
    return rows, (complete_checkpoints(run)[-1] / "trained.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(base_models, pairs, tmp_path_factory):
    config = config_of(base_models, pairs, tmp_path_factory.mktemp("finished"), {"supervised": 0.1})
    return config, run_stage(copy.deepcopy(config)).run


def test_dpo_raises_the_margin_from_0_and_lists_its_pairs(finished):
    rows, _ = outcome(finished[1])
    steps = [row for row in rows if "margin" in row]
    assert steps[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert steps[-1]["margin"] > 0.1
    assert steps[-1]["pair_accuracy"] == 1
    listed = read_journal(finished[1] / "pairs.jsonl")
    assert len(listed) == 9
    assert all(row["made"] is None and row["rejected"] == "Bad, bad voice." for row in listed)


def test_a_run_that_was_interrupted_ends_bit_identical(finished, tmp_path, monkeypatch):
    config = copy.deepcopy(finished[0])
    config.paths.runs = str(tmp_path)
    step = StageTrainer.training_step

    def stopping(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "training_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_stage(copy.deepcopy(config))
    monkeypatch.undo()
    config.resume = True
    assert outcome(run_stage(config).run) == outcome(finished[1])


def test_the_loss_of_a_step_is_the_formula_on_log_probabilities_of_each_answer_alone(finished):
    model, processor = load_trained(complete_checkpoints(finished[1])[-1])
    before, _ = load_trained(complete_checkpoints(finished[1])[0])
    samples, _ = read_samples(finished[0].data.train["preference"].manifest)
    objective = Objective(beta=0.5)
    objective._maker = PairMaker([], ["en"], [], 0)

    def encode(text):
        message = render(samples[0].with_modalities(()), task="description", modalities=())
        return processor.encode(message, {}, answer=text)

    rows = objective.rows(draw_of(samples[0].with_modalities(())), encode)
    batch = objective.collate(processor, rows, packed=True)
    with torch.no_grad():
        batch["reference"] = objective._totals(before(**batch, log_probs=True).log_probs)
        found = objective.loss(model, batch, None)
        each = []
        for row in rows:
            alone = processor.collate([{key: value for key, value in row.items() if key != "lang"}], packed=False)
            each.append(tuple(float(which(**alone, log_probs=True).log_probs[0].sum()) for which in (model, before)))
    margin = (each[0][0] - each[0][1]) - (each[1][0] - each[1][1])
    assert float(found) == pytest.approx(-logs(0.5 * margin), rel=1e-4)


def test_a_reward_model_ranks_pairs_and_rewards_answers_inside_the_model_that_writes_them(
    base_models, manifest, pairs, tmp_path
):
    config = config_of(
        base_models, pairs, tmp_path, {"variant": "bradley_terry"}, name="reward_model", learning_rate=3e-2, epochs=4
    )
    run = run_stage(config).run
    steps = [row for row in outcome(run)[0] if "pair_accuracy" in row]
    assert steps[-1]["pair_accuracy"] == 1
    model, processor = load_trained(complete_checkpoints(run)[-1])
    with torch.no_grad():
        for tensor in model.projectors.parameters():
            tensor.mul_(0.5)  # a model of another training
    sample, shown = read_samples(pairs)[0][0], ("audio", "frames", "motion")
    prompt = render(sample.with_modalities(shown), task="description", modalities=shown)
    media = tiny.media(*shown, seed=0)
    rows = [processor.encode(prompt, media, answer=text) for text in (sample.description, sample.rejected)]
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    scorer = RewardModel(model, processor, complete_checkpoints(run)[-1])
    scores = scorer.scores(rows, ["en", "en"])
    assert scores[0] > scores[1]
    assert scorer.scores(rows, ["en", "en"], 1) == pytest.approx(scores, rel=1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())
    learner = make_train_config(
        base_models, manifest, tmp_path, name="reward", data=["coarse"], objective="reward", rewards={"model": 1.0},
        group_size=2,        tasks={"description": 1.0}, modality_dropout=0.0, init_from=None, n_validation=0, epochs=1,
        objective_options={"max_new_tokens": 5, "reward_model": str(run)},
    )  # fmt: skip
    rollouts = read_journal(run_stage(learner).run / "rollouts.jsonl")
    assert len({row["rewards"]["model"] for row in rollouts}) > 1


def test_a_reward_model_is_a_complete_checkpoint_or_a_run_by_path_or_name(finished, tmp_path):
    run = shutil.copytree(finished[1], tmp_path / "runs" / "judge")
    last = complete_checkpoints(run)[-1]
    shutil.rmtree(run / "best", ignore_errors=True)
    best = shutil.copytree(last, run / "best")
    (best / COMPLETE).unlink()  # as a kill leaves it
    assert checkpoint_of(str(run)) == checkpoint_of("judge", tmp_path / "runs") == checkpoint_of(str(last)) == last
    with pytest.raises(InputError, match=rf"objective_options\.reward_model: .*best has no {COMPLETE}"):
        checkpoint_of(str(best))
    mark_complete(best, "step 1")
    assert checkpoint_of(str(run)) == best
    best.rename(run / ".best.old")  # between the two renames of `replace_best`
    assert checkpoint_of(str(run)) == run / ".best.old"
    for path in ("no/such/run", str(tmp_path)):
        with pytest.raises(InputError, match=r"does not exist|is neither a checkpoint nor a run folder"):
            checkpoint_of(path)


def test_a_reward_model_whose_base_models_were_trained_otherwise_is_refused_and_changes_nothing(finished, tmp_path):
    plain = complete_checkpoints(finished[1])[-1]
    models = {name: load_trained(plain)[0] for name in ("policy", "tuned", "other")}
    processor = load_trained(plain)[1]
    for name in ("tuned", "other"):
        models[name].set_trainable(["projectors", "encoders.audio.last1"])
    with torch.no_grad():
        for tensor in models["other"].own_parts()["encoders.audio"].values():
            tensor.mul_(1.5)
    for name in ("tuned", "other"):
        save_trained(models[name], processor, tmp_path / name)
    before = {name: {key: value.clone() for key, value in model.state_dict().items()} for name, model in models.items()}
    differing = r": of the base models, other tensors were trained than of this model \(encoders\.audio\.\S+ \.\.\.\)"
    for name, folder in (("policy", tmp_path / "tuned"), ("tuned", plain)):
        with pytest.raises(CheckpointError, match=rf"{folder.name}{differing}; train both .* same stage\.trainable"):
            RewardModel(models[name], processor, folder)
    models["tuned"].set_trainable(["projectors"])  # its encoder is tuned and now frozen: both read the same states
    with pytest.raises(CheckpointError, match=r"other: its encoder of audio has other weights"):
        RewardModel(models["tuned"], processor, tmp_path / "other")
    for name, model in models.items():
        assert all(torch.equal(value, before[name][key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("dtype", "parts", "stage"),
    [
        ("float32", ["lora"], {}),
        ("bfloat16", ["projectors"], {}),
        ("bfloat16", ["projectors", "lora"], {"packing": False}),
    ],
    ids=["lora", "bf16", "lora and projectors, bf16, padded"],
)
def test_lora_and_bf16_learn_a_preference(base_models, pairs, tmp_path, dtype, parts, stage):
    config = config_of(base_models, pairs, tmp_path, trainable=parts, **stage)
    config.model.llm.dtype = dtype
    if "lora" in parts:
        config.model.llm.lora = conf.LoraConfig(r=2, alpha=4)
    run = run_stage(config).run
    steps = [row for row in outcome(run)[0] if "margin" in row]
    assert steps[0]["margin"] == pytest.approx(0, abs=1e-4 if dtype == "float32" else 0.05)
    assert steps[-1]["margin"] > 0.1
    assert steps[-1]["loss"] < steps[0]["loss"]
    names = load_file(complete_checkpoints(run)[-1] / "trained.safetensors")
    assert any("lora_" in name for name in names) == ("lora" in parts)


@pytest.mark.parametrize(
    ("options", "stage", "message"),
    [
        ({"variant": "kto"}, {}, "variant is 'kto'"),
        ({"beta": 0}, {}, "beta is 0"),
        ({"made": ["guessed"]}, {}, r"made has \['guessed'\]"),
        ({}, {"modality_dropout": 0.1}, "set stage.modality_dropout=0"),
        ({}, {"tasks": {"labels": 1.0}}, "task labels does not fit"),
        ({"made": []}, {"data": ["coarse"]}, "a source has no pair"),
    ],
)
def test_settings_that_cannot_work_are_refused(base_models, manifest, tmp_path, options, stage, message):
    config = config_of(base_models, manifest, tmp_path, options, **stage)
    with pytest.raises(InputError, match=message):
        run_stage(config)


def test_an_objective_knows_its_settings():
    with pytest.raises(InputError, match="has the settings"):
        objectives.load("preference", {"betta": 1})
