"""The model as users of transformers, peft and datasets type it."""

import http.server
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    TextIteratorStreamer,
    Trainer,
    TrainingArguments,
    modeling_utils,
    pipeline,
    processing_utils,
)
from transformers.integrations import peft as peft_integration
from transformers.utils.hub import PushToHubMixin
from transformers.utils.peft_utils import check_peft_version

from affectgpt.cache.reader import clip_reader
from affectgpt.config import GenerateConfig, QuestionConfig
from affectgpt.data.sources import probe_sample
from affectgpt.inference.prediction import predict
from affectgpt.media import read_audio, read_frames
from affectgpt.models import AffectGPTForConditionalGeneration, AffectGPTProcessor
from affectgpt.runtime import InputError
from affectgpt.schema import Sample
from tests.data.conftest import write_clip

QUESTION = "What does the person feel?"
LLM_PROJECTIONS = r".*language_model.*\.(q_proj|v_proj)"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture(scope="module")
def folder(built, tmp_path_factory):
    """A full folder, as `python -m affectgpt.export` writes it."""
    out = tmp_path_factory.mktemp("full")
    for part in built:
        part.save_pretrained(out)
    return out


def conversation(*parts, answer=None):
    turns = [{"role": "user", "content": list(parts)}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def video(clip):
    return {"type": "video", "video": str(clip)}


def text(words):
    return {"type": "text", "text": words}


def new_text(processor, inputs, output):
    return processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


# ---------------------------------------------------------------- loading


def test_the_auto_classes_load_a_full_folder(folder):
    assert type(AutoConfig.from_pretrained(folder)).__name__ == "AffectGPTConfig"
    assert type(AutoProcessor.from_pretrained(folder)) is AffectGPTProcessor
    for auto_class in (AutoModelForMultimodalLM, AutoModelForImageTextToText):
        assert type(auto_class.from_pretrained(folder)) is AffectGPTForConditionalGeneration


def test_what_is_pushed_to_the_hub_is_a_complete_folder(built, tmp_path, monkeypatch):
    pushed = []

    def upload(self, folder, repo_id, files_timestamps, **options):
        pushed.append({path.name for path in Path(folder).iterdir()} - files_timestamps.keys())

    monkeypatch.setattr(PushToHubMixin, "_upload_modified_files", upload)
    monkeypatch.setattr(ModelCard, "load", lambda *args, **options: ModelCard("A model."))
    for place in (HfApi, modeling_utils, processing_utils):  # of the modules before transformers 5.24
        created = lambda *args, **options: SimpleNamespace(repo_id="me/model")  # noqa: E731
        monkeypatch.setattr(place, "create_repo", created, raising=False)
    for part in built:
        part.save_pretrained(tmp_path / type(part).__name__, push_to_hub=True)
        assert pushed.pop() == {path.name for path in (tmp_path / type(part).__name__).iterdir()}
        part.save_pretrained(tmp_path / "both", push_to_hub=True)
    assert {"affectgpt_auto.py", "SHA256SUMS", "model.safetensors"} <= pushed[0]
    assert type(AutoProcessor.from_pretrained(tmp_path / "both")) is AffectGPTProcessor
    assert AffectGPTForConditionalGeneration.from_pretrained(tmp_path / "both").config.auto_map


CLEAN = """
import sys
class Hidden:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "affectgpt":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, hidden := Hidden())
from transformers import AutoModelForMultimodalLM, AutoProcessor
try:
    AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
except ImportError as error:
    print("pip install affectgpt" in str(error))
sys.meta_path.remove(hidden)
model = AutoModelForMultimodalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model).__module__, type(processor).__module__)
"""


def test_a_folder_loads_with_trusted_code_and_names_the_package_where_it_is_missing(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    run = partial(subprocess.run, capture_output=True, text=True, check=True)
    assert run([sys.executable, "-c", CLEAN, folder]).stdout.split() == [
        "True",
        "affectgpt.models.modeling_affectgpt",
        "affectgpt.models.processing_affectgpt",
    ]


# ---------------------------------------------------------------- asking


def test_a_conversation_gives_the_inputs_of_inference(built, clip):
    model, processor = built
    sample = probe_sample(Sample(id="a", video=str(clip), subtitle="I see <audio>."))
    question, generate = QuestionConfig(task="both"), GenerateConfig(max_new_tokens=5)
    (ours,) = predict(model, processor, [sample], clip_reader(model, processor), question=question, generate=generate)
    turns = conversation(video(clip), {"type": "subtitle", "text": "I see <audio>."})
    inputs = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
    output = model.generate(**inputs.to("cpu", torch.bfloat16), max_new_tokens=5)
    assert new_text(processor, inputs, output)[0].strip() == ours.text
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
    again = processor(text=[prompt], videos=[[str(clip)]])  # the two steps that transformers' examples have
    assert all(torch.equal(value, again[key]) for key, value in inputs.items())
    assert again.to("cpu", torch.bfloat16)["pixel_values"].dtype == torch.float32


@pytest.mark.parametrize("name", ["http", "https.mp4", "file"])
def test_a_file_whose_name_is_that_of_a_protocol_is_a_file(built, clip, tmp_path, monkeypatch, name):
    _, processor = built
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, name)
    expected = processor(text=QUESTION, videos=str(clip))
    found = processor(text=QUESTION, videos=name)
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_a_clip_may_be_a_path_an_address_or_arrays(built, clip, tmp_path):
    _, processor = built
    expected = processor(text=QUESTION, videos=str(clip))
    frames, sound = read_frames(clip, 10).images, read_audio(clip)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(clip.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{clip.name}"
        ways = [{"videos": [url]}, {"videos": clip.as_uri()}]
        found = [processor(text=QUESTION, **way) for way in ways]
        with pytest.raises(InputError, match="404"):
            processor(text=QUESTION, videos=url + "x")
        server.shutdown()
    arrays = {"videos": [frames], "audio": [sound.samples], "sampling_rate": 16000}
    found += [processor(text=QUESTION, **arrays)]
    found += [processor(text=QUESTION, **arrays | {"videos": [torch.from_numpy(frames).permute(0, 3, 1, 2)]})]
    for inputs in found:
        assert inputs.keys() == expected.keys()
        assert all(torch.equal(value, inputs[key]) for key, value in expected.items())
    silent = processor(text=QUESTION, videos=[frames])
    assert "input_values" not in silent
    assert silent["input_ids"].shape[1] < expected["input_ids"].shape[1]


def test_a_list_of_clips_for_each_text_is_as_good_as_a_list_of_clips(built, clip):
    _, processor = built
    frames = read_frames(clip, 10).images
    plain, nested = (processor(text=["a", "b"], videos=way) for way in ([frames, str(clip)], [[frames], [str(clip)]]))
    arrays = [processor(text=["a", "b"], videos=way)["pixel_values"] for way in ([frames] * 2, [[frames], [frames]])]
    assert plain.keys() == nested.keys()
    assert all(torch.equal(value, nested[key]) for key, value in plain.items())
    assert torch.equal(*arrays)
    for n, some in ((0, []), (2, [frames, frames])):
        with pytest.raises(InputError, match=f"{n} clips for one text"):
            processor(text=["a", "b"], videos=[[frames], some])


def test_conversations_are_batched_and_each_gets_the_answer_that_it_gets_alone(built, clip, manifest):
    model, processor = built
    mute = manifest.parent / "clip11.mp4"
    both = [
        conversation(video(clip), text(QUESTION)),
        conversation(video(mute), text("And the face, which emotions does it show?")),
        conversation({"type": "audio", "path": str(clip)}, text(QUESTION)),
        conversation(text("Which emotions are there?")),
    ]
    ask = partial(processor.apply_chat_template, add_generation_prompt=True, tokenize=True, return_dict=True)
    inputs = ask(both)
    together = new_text(processor, inputs, model.generate(**inputs, max_new_tokens=6))
    alone = [new_text(processor, one := ask(each), model.generate(**one, max_new_tokens=6))[0] for each in both]
    assert together == alone


def test_a_streamer_sampling_and_beams_work(built, clip):
    model, processor = built
    inputs = processor(text=QUESTION, videos=str(clip))
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    output = model.generate(**inputs, max_new_tokens=6, streamer=streamer)
    assert "".join(streamer) == new_text(processor, inputs, output)[0]
    assert model.generate(**inputs, max_new_tokens=6, num_beams=2, num_return_sequences=2).shape[0] == 2
    torch.manual_seed(0)
    sampled = model.generate(**inputs, max_new_tokens=6, do_sample=True, temperature=1.5, num_return_sequences=3)
    assert len({tuple(row) for row in sampled.tolist()}) == 3


def test_a_pipeline_answers_a_conversation(folder, built, clip):
    _, processor = built
    ask = pipeline("image-text-to-text", model=str(folder))
    turns = conversation(video(clip), text(QUESTION))
    (answer,) = ask(text=turns, max_new_tokens=5, return_full_text=False)
    inputs = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
    expected = new_text(processor, inputs, ask.model.generate(**inputs, max_new_tokens=5))[0]
    assert answer["generated_text"].strip() == expected.strip()


def test_a_conversation_that_shows_nothing_of_its_clip_is_that_of_its_words(built, clip):
    _, processor = built
    ask = partial(processor.apply_chat_template, add_generation_prompt=True)
    turns, words = conversation(video(clip), text(QUESTION)), conversation(text(QUESTION))
    hidden, plain = (
        ask(each, tokenize=True, return_dict=True, **options)
        for each, options in ((turns, {"modalities": []}), (words, {}))
    )
    assert hidden.keys() == plain.keys() == {"input_ids", "attention_mask"}
    assert torch.equal(hidden["input_ids"], plain["input_ids"])
    again = processor(text=ask(turns, modalities=[]), videos=str(clip))
    assert torch.equal(again["input_ids"], plain["input_ids"])


def test_a_placeholder_in_any_turn_of_the_user_is_text(built, clip):
    _, processor = built
    later = {"role": "user", "content": "<audio> is what I mean"}
    turns = [*conversation(video(clip), text(QUESTION), answer="sad"), later]
    first = processor.apply_chat_template(turns[:2])
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
    assert prompt.startswith(first)
    assert "< audio> is what I mean" in prompt[len(first) :]
    assert "<audio>" not in prompt[len(first) :]
    inputs = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert "input_values" in inputs
    assert "< audio> is" in processor.apply_chat_template([later])


def test_an_answer_is_continued(built, clip):
    _, processor = built
    turns = conversation(video(clip), text(QUESTION), answer="The person")
    continued = processor.apply_chat_template(turns, continue_final_message=True)
    assert continued == processor.apply_chat_template(turns[:1], add_generation_prompt=True) + " The person"
    assert processor.apply_chat_template(turns).startswith(continued)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (conversation({"type": "image", "image": "a.png"}), "a part of type 'image'"),
        (conversation(video("a.mp4"), video("b.mp4")), "a second video"),
        (conversation({"type": "video"}), "no video in a part"),
        (conversation({"type": "text"}), r"turn 0: a part {'type': 'text'}; expected a string under 'text'"),
        (conversation({"type": "subtitle", "text": None}), "expected a string under 'text'"),
        (conversation("hello"), r"turn 0: the content is \['hello'\]; expected a text, or a list of parts"),
        (["hello"], "turn 0: found 'h'; expected a mapping with role and content"),
        (
            [{"role": "system", "content": "Hello"}],
            r"a conversation of \['system'\]; expected at least one turn of the",
        ),
        ([{"role": "robot", "content": "Hello"}], "the role is 'robot'"),
        ([[]], "an empty conversation"),
        ([], r"the conversation is \[\]; expected a list of turns"),
        ({"role": "user", "content": "Hello"}, "expected a list of turns"),
    ],
)
def test_a_conversation_that_is_none_is_named(built, turns, message):
    with pytest.raises(InputError, match=message):
        built[1].apply_chat_template(turns)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no text, videos or audio"),
        ({"text": []}, "no text, videos or audio"),
        ({"videos": []}, "no text, videos or audio"),
        ({"text": "a", "videos": "http://[x"}, r"http://\[x: Invalid IPv6 URL; expected an http\(s\) address"),
        ({"text": "a", "videos": "http://a:b/c.mp4"}, r"http://a:b/c.mp4: .*check the address"),
        (
            {"text": "a", "videos": [[Image.new("RGB", size) for size in ((8, 8), (9, 8))]]},
            r"video: 2 images of the shapes \[\(8, 8, 3\), \(8, 9, 3\)\]; expected RGB images of one size",
        ),
    ],
)
def test_what_is_no_clip_is_named(built, arguments, message):
    with pytest.raises(InputError, match=message):
        built[1](**arguments)


def test_a_text_that_does_not_fit_its_clip_is_named(built, clip):
    _, processor = built
    prompt = processor.apply_chat_template(conversation(video(clip)), add_generation_prompt=True)
    with pytest.raises(InputError, match="the clip lacks; pass the clip"):
        processor(text=prompt)
    with pytest.raises(InputError, match=r"audio: the text has 1 soft tokens, expected 3"):
        processor(text="<audio> What?", videos=str(clip))
    with pytest.raises(InputError, match="equal lengths; found 2, 1, 2, 2"):
        processor(text=["a", "b"], videos=[str(clip)])
    with pytest.raises(InputError, match="takes text, videos and audio"):
        processor(text="a", images=[np.zeros((4, 4, 3))])


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("kind", ["list", "datasets.Dataset"])
def test_the_trainer_of_transformers_trains_on_own_data(kind, fresh, manifest, tmp_path):
    model, processor = fresh
    data = [{"clip": str(manifest.parent / f"clip{number}.mp4"), "answer": "sad, calm"} for number in range(4)]
    if kind == "datasets.Dataset":
        data = pytest.importorskip("datasets", reason="the package datasets is not installed").Dataset.from_list(data)

    def collate(rows):
        clips, answers = [row["clip"] for row in rows], [row["answer"] for row in rows]
        return processor(text=[QUESTION] * len(rows), videos=clips, answer=answers)

    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=2, learning_rate=0.05, logging_steps=1,
        lr_scheduler_type="constant", remove_unused_columns=False, report_to=[], save_strategy="no", disable_tqdm=True,
        use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]


def test_peft_adds_saves_and_loads_adapters(fresh, clip, tmp_path):
    model, processor = fresh
    inputs = processor(text=QUESTION, videos=str(clip), answer="sad")
    plain = model(**inputs, logits_to_keep=0).logits
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=LLM_PROJECTIONS, init_lora_weights=False))
    with_adapter = adapted(**inputs, logits_to_keep=0).logits
    assert not torch.allclose(plain, with_adapter)
    trained = {name for name, tensor in adapted.named_parameters() if tensor.requires_grad}
    assert trained
    assert all("language_model" in name and "lora_" in name for name in trained)
    adapted.save_pretrained(tmp_path)
    base = adapted.unload()
    assert torch.equal(base(**inputs, logits_to_keep=0).logits, plain)
    again = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(again(**inputs, logits_to_keep=0).logits, with_adapter)


def test_an_adapter_of_the_bare_llm_works_in_the_model(fresh, bases, tmp_path):
    model, processor = fresh
    llm = AutoModelForCausalLM.from_pretrained(bases["llm"])
    foreign = get_peft_model(llm, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    foreign.save_pretrained(tmp_path)
    ids = processor(text="The person says: hello")["input_ids"]
    before = model(ids).logits
    adapted = PeftModel.from_pretrained(model.language_model, tmp_path)
    assert torch.allclose(model(ids).logits, foreign.eval()(ids).logits, atol=1e-6)
    with adapted.disable_adapter():
        assert torch.equal(model(ids).logits, before)


def test_transformers_own_adapters_are_added_and_saved(fresh, clip, tmp_path):
    try:
        check_peft_version(peft_integration.MIN_PEFT_VERSION)
    except ValueError as error:
        pytest.skip(f"transformers {transformers.__version__} has no adapters with the installed peft: {error}")
    model, processor = fresh
    inputs = processor(text=QUESTION, videos=str(clip), answer="sad")
    model.save_pretrained(tmp_path / "full")
    model.add_adapter(LoraConfig(r=2, target_modules=LLM_PROJECTIONS, init_lora_weights=False))
    expected = model.eval()(**inputs, logits_to_keep=0).logits
    model.save_pretrained(tmp_path / "adapter")
    again = AffectGPTForConditionalGeneration.from_pretrained(tmp_path / "full")
    again.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(again.eval()(**inputs, logits_to_keep=0).logits, expected)
