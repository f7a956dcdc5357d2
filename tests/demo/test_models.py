import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import affectgpt.models.encoders  # noqa: F401 - registers Blip2VisionModel with AutoModel
from affectgpt import prompts
from affectgpt.demo import models
from affectgpt.demo.corpus import MARKER, draw_scenes
from affectgpt.demo.emotions import CHINESE, Scene, perform
from affectgpt.demo.models import STORED, Steps, build_base_models, models_folder
from affectgpt.runtime import InputError

WEIGHTS = "model.safetensors"
TWO = Steps(llm=2, hubert=2, eva=2, videomae=2)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The models that the package carries."""
    folder = models_folder(tmp_path_factory.mktemp("cache"))
    build_base_models(folder, n_processes=1)
    return folder


@pytest.fixture
def few_texts(monkeypatch):
    """Tokenizers that are made in a second."""
    monkeypatch.setattr(models, "N_TOKENIZER_TEXTS", 100)


@pytest.fixture(scope="module")
def processor(built):
    return models.make_processor(AutoTokenizer.from_pretrained(built / "llm"))


@pytest.mark.parametrize(
    ("name", "kind", "inputs", "states"),
    [
        ("hubert", "HubertModel", (1, 32000), (1, 98, 128)),
        ("eva", "Blip2VisionModel", (1, 3, 112, 112), (1, 50, 128)),
        ("videomae", "VideoMAEModel", (1, 16, 3, 56, 56), (1, 128, 96)),
    ],
)
def test_encoders_load_like_any_model_from_the_hub(built, name, kind, inputs, states):
    model, info = AutoModel.from_pretrained(built / name, output_loading_info=True)
    assert type(model).__name__ == kind
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    output = model.eval()(torch.zeros(inputs)).last_hidden_state
    assert output.shape[0] == states[0]
    assert output.shape[-1] == states[-1]
    assert abs(output.shape[1] - states[1]) <= 2
    assert (built / name / "preprocessor_config.json").is_file()


def test_the_llm_and_its_tokenizer_load_like_any_model_from_the_hub(built):
    model = AutoModelForCausalLM.from_pretrained(built / "llm")
    tokenizer = AutoTokenizer.from_pretrained(built / "llm")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer("So it is.")["input_ids"][0] == tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_id == model.config.eos_token_id == 2


@pytest.mark.parametrize("text", ["The voice is flat.\nEmotions: sad", "这个人说：“好。”\n情绪：难过", "żółw 🐢 x_1"])
def test_the_tokenizer_round_trips_any_text(built, text):
    tokenizer = AutoTokenizer.from_pretrained(built / "llm")
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text


def test_common_labels_take_few_tokens(built):
    tokenizer = AutoTokenizer.from_pretrained(built / "llm")
    lengths = [len(tokenizer(label, add_special_tokens=False)["input_ids"]) for label in CHINESE]
    assert np.mean(lengths) < 1.5


def test_the_llm_is_trained_on_exactly_the_prompts_of_training_and_inference(processor):
    rng = np.random.default_rng(0)
    for _ in range(20):
        example = models.draw_text(rng)
        ids, labels = models.tokenize_example(processor, example)
        sample = example.sample
        turns = prompts.render(sample, task=example.task, lang=sample.lang, with_answer=True)
        n_prompt = labels.index(next(label for label in labels if label != -100))
        without_notes = list(processor.prompt_ids(turns[:1]))
        for name, note in example.notes.items():
            at = without_notes.index(processor.placeholder_token_ids[name])
            without_notes[at : at + 1] = processor.tokenizer(note, add_special_tokens=False)["input_ids"]
        assert ids[:n_prompt] == without_notes
        assert processor.tokenizer.decode(ids[n_prompt:], skip_special_tokens=True).strip() == turns[1].content
        assert labels[n_prompt:] == ids[n_prompt:]
        assert ids[-1] == processor.tokenizer.eos_token_id


def test_the_prompt_has_one_bos_and_no_eos(processor):
    ids = processor.prompt_ids([prompts.Message("user", "Hello.")])
    assert ids.count(1) == 1
    assert ids[0] == 1
    assert 2 not in ids


def test_notes_contain_no_clues_of_hidden_modalities_and_no_labels():
    rng = np.random.default_rng(0)
    for _ in range(300):
        example = models.draw_text(rng)
        assert set(example.notes) == set(example.sample.modalities)
        assert not {word for note in example.notes.values() for word in note.split()} & (set(CHINESE) - {"calm"})


def test_two_trainings_give_the_same_weights_and_existing_models_are_not_trained_again(tmp_path, few_texts):
    trained = tmp_path / "models"
    build_base_models(trained, steps=TWO, n_processes=1)
    models.make_eva(tmp_path / "eva", seed=0, n_steps=2)
    models.make_llm(tmp_path / "llm", seed=0, n_steps=2)
    for name in ("eva", "llm"):
        assert (tmp_path / name / WEIGHTS).read_bytes() == (trained / name / WEIGHTS).read_bytes()
    before = (trained / "llm" / WEIGHTS).stat().st_mtime_ns
    build_base_models(trained, steps=TWO, n_processes=1)
    assert (trained / "llm" / WEIGHTS).stat().st_mtime_ns == before


def test_the_models_of_the_package_are_of_todays_code_and_unpack_in_single_precision(built):
    assert json.loads((STORED / MARKER).read_text()) == models._parameters(0, None), "train them anew: docs/demo.md"
    for name in models.MODELS:
        stored, unpacked = (load_file(folder / name / WEIGHTS) for folder in (STORED, built))
        assert stored.keys() == unpacked.keys()
        for key, tensor in unpacked.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, stored[key].float())


def test_models_that_are_packed_unpack_as_they_were_but_for_rounding(built, tmp_path, monkeypatch):
    models.pack(built, tmp_path / "stored", models._parameters(0, TWO))
    monkeypatch.setattr(models, "_trainings", None)  # nothing is trained
    build_base_models(tmp_path / "unpacked", steps=TWO, stored=tmp_path / "stored")
    for name in models.MODELS:
        before, after = (load_file(folder / name / WEIGHTS) for folder in (built, tmp_path / "unpacked"))
        assert before.keys() == after.keys()
        for key, tensor in before.items():
            torch.testing.assert_close(after[key], tensor, rtol=2**-11, atol=2**-25)
    with pytest.raises(InputError, match="exists; name a folder that does not"):
        models.store_base_models(tmp_path / "stored", steps=TWO)


def test_other_seeds_and_steps_use_other_folders(tmp_path):
    assert len({models_folder(tmp_path), models_folder(tmp_path, seed=1), models_folder(tmp_path, steps=TWO)}) == 3


def test_the_people_of_the_base_models_are_not_those_of_the_corpus():
    corpus = {scene.person for part in draw_scenes(seed=0, n_coarse=720, n_fine=332).values() for scene in part}
    for topic in (1, 2, 3):
        people = [performance.identity.seed for performance in models.draw_performances(50, 0, topic)]
        assert len(set(people)) == 50
        assert not set(people) & corpus


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    inputs = torch.randn(64, 8)
    wanted = inputs[:, :2].sin()

    def losses():
        while True:
            yield torch.nn.functional.mse_loss(layer(inputs), wanted)

    history = models.train("toy", list(layer.parameters()), losses(), 150, rate=1e-2)
    assert history[-1] < 0.3 * history[0]


def test_orthogonalize_brings_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((6, 20), (20, 6)):
        values = torch.linalg.svdvals(models.orthogonalize(torch.randn(shape)))
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_targets_have_about_unit_size_and_pitch_counts_in_octaves():
    performance = perform(Scene("anger", "strong", "quarrel", 0, False, 1, 1), "Do whatever you want.")
    per_frame, of_clip = models.voice_targets(performance, 100)
    assert per_frame.shape == (100, 3)
    assert of_clip.shape == (9,)
    assert np.abs(of_clip).max() < 6
    face = models.face_targets(performance, np.linspace(0, 2, 5))
    assert face.shape == (5, models.N_FACE_TARGETS)
    assert np.abs(face).max() <= 2.5


def test_a_clip_without_a_voice_has_no_voice_targets():
    silent = perform(Scene("anger", "strong", "quarrel", 0, False, 1, 1, voiced=False), "Do it.")
    with pytest.raises(ValueError, match="without a voice"):
        models.voice_targets(silent, 10)


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "N_TOKENIZER_TEXTS", 100)
        return models.build_second_llm(tmp_path_factory.mktemp("cache"), n_steps=2)


def test_the_second_llm_has_another_architecture_tokenizer_and_chat_format(second):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(second), AutoTokenizer.from_pretrained(second)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert len(tokenizer) == model.config.vocab_size
    processor = models.make_processor(tokenizer)
    prompt = processor.prompt_text([prompts.Message("user", "How does the person feel?")])
    assert prompt == "<|im_start|>user\nHow does the person feel?<|im_end|>\n<|im_start|>assistant\n"
    assert processor.stop_token_ids == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_the_second_llm_is_built_once(second):
    before = (second / "model.safetensors").stat().st_mtime_ns
    assert models.build_second_llm(second.parents[1], n_steps=2) == second
    assert (second / "model.safetensors").stat().st_mtime_ns == before
