"""The pre-fusion: one slot made from the states of several modalities, whichever of them a sample has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from affectgpt.config import EncoderConfig, LLMConfig, ProjectorConfig
from affectgpt.models import ModelSpec, build, build_hollow, load_trained, save_trained
from affectgpt.models.configuration_affectgpt import ProjectorArchitecture
from affectgpt.models.projectors import PreFusion
from tests.models import tiny

KINDS = ("attention", "qformer")


def fusion(kind: str, softmax: bool = True) -> PreFusion:
    torch.manual_seed(0)
    config = ProjectorArchitecture(
        kind, input_size=10, n_queries=1, hidden_size=8, n_layers=1, n_heads=2, dropout=0.0, softmax=softmax,
        sources=("face", "audio"), source_sizes=(6, 10), source_states=(4, 5),
    )  # fmt: skip
    return PreFusion(config, output_size=12).eval()


def states(n: int, t: int, e: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.randn(n, t, e, generator=torch.Generator().manual_seed(seed))
    return values, torch.ones(n, t, dtype=torch.bool)


FACE, AUDIO = states(2, 4, 6), states(2, 5, 10, seed=2)
BOTH = torch.tensor([[0, 0], [1, 1]])


@pytest.mark.parametrize("softmax", [True, False])
def test_attention_is_the_published_formula(softmax):
    model = fusion("attention", softmax)
    means = [model.embed["face"](FACE[0].mean(dim=1)), model.embed["audio"](AUDIO[0].mean(dim=1))]
    weights = model.score(model.mix(torch.cat(means, dim=1)))  # [2, 2]
    if softmax:
        weights = weights.softmax(dim=1)
    expected = model.output(weights[:, :1] * means[0] + weights[:, 1:] * means[1])
    torch.testing.assert_close(model([FACE, AUDIO], BOTH)[:, 0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_gets_the_same_token_alone_and_beside_samples_that_have_more_or_less(kind):
    model = fusion(kind)
    # Sample 0 has both, sample 1 sound only, sample 2 a face only.
    rows = torch.tensor([[0, 0], [-1, 1], [1, -1]])
    together = model([FACE, AUDIO], rows)
    alone = [
        model([(FACE[0][:1], FACE[1][:1]), (AUDIO[0][:1], AUDIO[1][:1])], BOTH[:1]),
        model([None, (AUDIO[0][1:], AUDIO[1][1:])], torch.tensor([[-1, 0]])),
        model([(FACE[0][1:], FACE[1][1:]), None], torch.tensor([[0, -1]])),
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_a_missing_modality_leaves_the_whole_weight_to_the_other():
    model = fusion("attention")
    token = model([None, AUDIO], torch.tensor([[-1, 0], [-1, 1]]))
    expected = model.output(model.embed["audio"](AUDIO[0].mean(dim=1)))
    torch.testing.assert_close(token[:, 0], expected)


def test_without_softmax_a_missing_modality_counts_nothing():
    model = fusion("attention", softmax=False)
    mean = model.embed["audio"](AUDIO[0].mean(dim=1))
    score = model.score(model.mix(torch.cat([torch.zeros_like(mean), mean], dim=1)))
    token = model([None, AUDIO], torch.tensor([[-1, 0], [-1, 1]]))
    torch.testing.assert_close(token[:, 0], model.output(score[:, 1:] * mean))


@pytest.mark.parametrize("kind", KINDS)
def test_states_behind_the_mask_change_nothing(kind):
    model = fusion(kind)
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    dirty = AUDIO[0].clone()
    dirty[0, 3:] = float("nan")
    assert torch.equal(model([FACE, (AUDIO[0], mask)], BOTH), model([FACE, (dirty, mask)], BOTH))


def test_the_qformer_tells_the_sources_and_their_times_apart():
    model = fusion("qformer")
    torch.nn.init.normal_(model.sequence.positions.embedding.weight)
    before = model([FACE, AUDIO], BOTH)
    swapped = (AUDIO[0][:, [1, 0, 2, 3, 4]], AUDIO[1])
    assert not torch.allclose(before, model([FACE, swapped], BOTH), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shorter_sample_is_a_longer_one_cut_by_the_mask(kind):
    model = fusion(kind)
    if kind == "qformer":
        torch.nn.init.normal_(model.sequence.positions.embedding.weight)
    mask = torch.tensor([[True, True, False, False]] * 2)
    cut = (FACE[0][:, :2], mask[:, :2])
    torch.testing.assert_close(model([cut, AUDIO], BOTH), model([(FACE[0], mask), AUDIO], BOTH))


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_has_a_gradient_even_where_no_sample_has_a_modality(kind):
    model = fusion(kind)
    model([None, AUDIO], torch.tensor([[-1, 0], [-1, 1]])).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"a sample has none of the fused modalities \['face', 'audio'\]"):
        fusion("attention")([FACE, AUDIO], torch.tensor([[0, 0], [-1, -1]]))
    with pytest.raises(ValueError, match=r"have \[4, 6\] states, the pre-fusion was built for at most \[4, 5\]"):
        fusion("qformer")([FACE, states(2, 6, 10)], BOTH)
    with pytest.raises(ValueError, match="pre-fusion kind 'linear' is unknown; expected one of"):
        ProjectorArchitecture("linear", 4, 1, sources=("audio",))
    with pytest.raises(ValueError, match="gives one soft token, n_queries is 2; set it to 1"):
        PreFusion(replace(fusion("attention").config, n_queries=2), 4)


# ---------------------------------------------------------------- in the model


@pytest.fixture(scope="module", params=KINDS)
def spec(request, tmp_path_factory) -> ModelSpec:
    """Sound and faces with a pre-fusion, frames where there is no face: AffectGPT of 2025 in small."""
    folder = tmp_path_factory.mktemp("fusion")
    paths = tiny.write_base_models(folder, modalities=("audio", "face"))
    one = ProjectorConfig("attention", n_queries=1, softmax=False, max_positions=0)
    fused = ProjectorConfig(request.param, 1, hidden_size=16, n_heads=2, dropout=0.0, sources=["face", "audio"])
    return ModelSpec(
        llm=LLMConfig(str(paths["llm"])),
        encoders={
            "audio": EncoderConfig(str(paths["audio"]), layers="last2_mean", pool="window"),
            "face": EncoderConfig(str(paths["face"]), pool="pooled"),
            "frames": EncoderConfig(str(paths["face"]), pool="pooled_mean"),
        },
        projectors={
            "audio": one, "face": one, "frames": ProjectorConfig("linear", n_queries=1, unless="face"), "multi": fused,
        },
        sampling=replace(tiny.SAMPLING, window_mode="fixed"),
    )  # fmt: skip


SHOWN = [("audio", "face"), ("audio",), ("face",), ("audio", "frames"), ()]


def rows_of(processor):
    return [
        processor.encode(tiny.question(*shown), tiny.media(*shown, seed=i), answer="sad" * (i + 1))
        for i, shown in enumerate(SHOWN)
    ]


def test_three_soft_tokens_multi_audio_face(spec):
    _, processor = build(spec, load_encoders=False)
    text = processor.prompt_text(tiny.question("audio", "face", text="Why?"))
    assert "<multi><audio><face>\nWhy?" in text
    assert "<multi><audio>\n" in processor.prompt_text(tiny.question("audio"))
    only_frames = processor.prompt_text(tiny.question("frames"))
    assert "<multi>" not in only_frames  # nothing of what is fused
    assert "< multi>" in processor.prompt_text(tiny.question("audio", text="What is <multi>?"))  # text is never a slot


def test_frames_stand_in_only_where_there_is_no_face(spec):
    _, processor = build(spec, load_encoders=False)
    assert processor.visible(("audio", "frames", "face")) == ("audio", "face")
    assert processor.visible(("audio", "frames")) == ("audio", "frames")


def test_a_mixed_batch_gives_each_sample_its_own_logits_padded_or_packed(spec):
    model, processor = build(spec)
    rows = rows_of(processor)
    model.eval()
    alone = [model(**processor.collate([row]), logits_to_keep=0).logits[0] for row in rows]
    batch = processor.collate(rows)
    assert batch["multi_rows"].tolist() == [[0, 0], [-1, 1], [1, -1], [-1, 2]]
    padded = model(**batch, logits_to_keep=0).logits
    for row, mine, theirs in zip(rows, padded, alone, strict=True):
        torch.testing.assert_close(mine[: len(row["input_ids"])], theirs, rtol=1e-4, atol=1e-4)
    packed = processor.collate(rows, packed=True)
    tokens = model.embed(packed["input_ids"], packed)[0].split([len(row["input_ids"]) for row in rows])
    for row, mine in zip(rows, tokens, strict=True):
        single = processor.collate([row])
        torch.testing.assert_close(mine, model.embed(single["input_ids"], single)[0], rtol=1e-4, atol=1e-4)


def test_cached_states_give_the_logits_of_media(spec):
    model, processor = build(spec)
    model.eval()
    online = model(**processor.collate(rows_of(processor))).logits
    cached = []
    for row in rows_of(processor):
        texts = {key: row[key] for key in ("input_ids", "labels")}
        cached.append(texts | {f"{name}_states": each for name, each in model.encode(row).items()})
    torch.testing.assert_close(model(**processor.collate(cached)).logits, online, rtol=1e-4, atol=1e-4)


def test_training_moves_the_fusion_and_a_checkpoint_brings_it_back(spec, tmp_path):
    model, processor = build(spec)
    assert "projectors.multi" in model.parts()
    model.train()
    model(**processor.collate(rows_of(processor))).loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, grad in grads.items() if grad is None]
    assert grads["projectors.multi.embed.face.weight"].abs().sum() > 0
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p -= 0.1 * grads[name]
    save_trained(model, processor, tmp_path)
    again, _ = load_trained(tmp_path)
    batch = processor.collate(rows_of(processor))
    assert torch.equal(model.eval()(**batch).logits, again(**batch).logits)


def test_generation_takes_the_fused_token(spec):
    model, processor = build(spec)
    model.eval()
    rows = [processor.encode(tiny.question(*shown), tiny.media(*shown, seed=i)) for i, shown in enumerate(SHOWN)]
    output = model.generate(**processor.collate(rows, for_generation=True), max_new_tokens=3, do_sample=False)
    for i, row in enumerate(rows):
        alone = model.generate(**processor.collate([row], for_generation=True), max_new_tokens=3, do_sample=False)
        assert output[i, -3:].tolist() == alone[0, -3:].tolist()


def test_a_text_only_batch_leaves_no_parameter_without_gradient(spec):
    model, processor = build(spec)
    model.train()
    model(**processor.collate(rows_of(processor)[-1:])).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_the_draws_of_older_branches_do_not_move(bases, built):
    """Weights of a model with three branches are drawn from seed, seed + 1 and seed + 2, LoRA from seed + 3."""
    model, _ = built
    for offset, name in enumerate(tiny.MODALITIES):
        torch.manual_seed(42 + offset)
        queries = torch.nn.init.normal_(torch.empty(1, 3, 16), std=0.02)
        place = model.projectors[name]
        if place.positions is not None:  # drawn first
            torch.manual_seed(42 + offset)
            embedding = torch.nn.Embedding(*place.positions.embedding.weight.shape)
            torch.nn.init.normal_(embedding.weight, std=0.02)
            queries = torch.nn.init.normal_(torch.empty(1, 3, 16), std=0.02)
        assert torch.equal(place.project.queries, queries)


def test_sources_that_the_model_lacks_are_named(spec):
    wrong = replace(spec.projectors["multi"], sources=("face", "motion"))
    with pytest.raises(
        ValueError, match=r"multi: sources and unless name \['motion'\]; this model has \['audio', 'frames"
    ):
        replace(spec, projectors={**spec.projectors, "multi": wrong})


def test_a_hollow_model_has_the_fusion_too(spec):
    model, _ = build(spec)
    hollow = build_hollow(spec)
    assert {n: t.shape for n, t in hollow.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
