"""Published prompt formats, against strings assembled here; tests/fidelity compares them with the published code."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from affectgpt.metrics.extract import read_labels
from affectgpt.models import AffectGPTProcessor
from affectgpt.prompts import PUBLISHED, Message, render, target_text
from affectgpt.runtime import InputError
from affectgpt.schema import PLACEHOLDERS, Sample
from tests.models import tiny

SAMPLE = Sample(
    id="v1",
    subtitle='So "fine" ...',
    description="Her voice Trembles (a lot)! Sad.",
    labels=("sad", "nervous"),
    label="sad",
    modalities=("audio", "frames", "face", "face_motion"),
)
V2_QUESTION = "Please recognize all possible emotional states of the character."
ASK = "Now, please answer my question based on all the provided information."
SUBTITLE = f"The subtitle of this video is: <Subtitle>{SAMPLE.subtitle}</Subtitle>. "
MULTI = "The audio and video merged info is: <Multi><multi></Multi>. "
AUDIO = "The audio content is as follows: <Audio><audio></Audio>. "
SAMPLED = "uniformly sample raw frames from the video"
FACES = f"{SAMPLED} and extract faces from these frames: <Video><face></Video>. "
FRAMES = f"{SAMPLED}: <Video><frames></Video>. "


@pytest.fixture(scope="module")
def processor_of(llms):
    def make(prompt_format: str, llm: str = "qwen2", **counts: int | dict) -> AffectGPTProcessor:
        branches = {name: n if isinstance(n, dict) else {"n_tokens": n} for name, n in counts.items()}
        if "multi" in branches:
            branches["multi"]["sources"] = ["face", "audio"]
        tokenizer = AutoTokenizer.from_pretrained(llms[llm])
        return AffectGPTProcessor(tokenizer, branches=branches, prompt_format=prompt_format)

    return make


def text_of(processor: AffectGPTProcessor, *modalities: str, **options) -> str:
    return processor.prompt_text(
        render(SAMPLE, modalities=modalities, prompt_format=processor.prompt_format, **options)
    )


@pytest.mark.parametrize(
    ("modalities", "with_subtitle", "body"),
    [
        (("audio", "face"), True, f"{MULTI}{AUDIO}Meanwhile, we {FACES}{SUBTITLE}"),
        (("audio", "frames", "face"), True, f"{MULTI}{AUDIO}Meanwhile, we {FACES}Meanwhile, we {FRAMES}{SUBTITLE}"),
        (("audio", "frames"), True, f"{AUDIO}Meanwhile, we {FRAMES}{SUBTITLE}"),
        (("frames", "face"), True, f"We {FRAMES}Additionally, we {FACES}{SUBTITLE}"),
        (("audio",), False, AUDIO),
        (("face",), False, f"We {FACES}"),
        (("frames",), False, f"We {FRAMES}"),
        ((), True, SUBTITLE),
    ],
)
def test_affectgpt_v2_names_what_is_shown_in_its_own_order(processor_of, modalities, with_subtitle, body):
    processor = processor_of("affectgpt_v2", multi=1, audio=1, frames=1, face=1)
    found = text_of(processor, *modalities, task="labels", with_subtitle=with_subtitle)
    assert found == f"###Human: {body}{ASK} {V2_QUESTION} ###Assistant: "


def test_affectgpt_v1_speaks_of_ears_and_eyes(processor_of):
    found = text_of(processor_of("affectgpt_v1", audio=2, frames=3), "audio", "frames", task="description")
    assert found == (
        "###Human: Close your eyes, open your ears and you imagine only based on the sound that "
        "<Audio><audio><audio></Audio>. Close your ears, open your eyes and you see that "
        "<Video><frames><frames><frames></Video>. "
        f"The subtitle of this video is <Subtitle>{SAMPLE.subtitle}</Subtitle>. "
        "Now answer my question based on what you have seen, heard, and provided subtitle. "
        "From what clues can we infer the person's emotional state? ###Assistant: "
    )


def test_emotion_llama_puts_the_patches_into_the_video_and_the_class_token_behind_the_vectors(processor_of):
    frames = {"n_tokens": 3, "n_class": 1}
    processor = processor_of("emotion_llama", llm="llama2-chat", frames=frames, audio=1, face=1, face_motion=1)
    found = text_of(processor, *SAMPLE.modalities, task="fixed", candidates=("happy", "sad"))
    assert found == (
        "[INST] <video><frames><frames></video> <feature><face><face_motion><audio><frames></feature> "
        f"The person in video says: {SAMPLE.subtitle}.  [emotion] "
        "Please determine which emotion label in the video represents: happy, sad.  [/INST]"
    )
    asked = {text_of(processor, *SAMPLE.modalities, task="description").split("[reason] ")[1] for _ in range(3)}
    assert len(asked) == 1  # one of five, by the id of the sample


@pytest.mark.parametrize("prompt_format", PUBLISHED)
@pytest.mark.parametrize("task", ["description", "labels", "both", "fixed"])
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_task_and_language_has_a_question(processor_of, prompt_format, task, lang):
    processor = processor_of(prompt_format, audio=1)
    candidates = ("happy", "sad") if task == "fixed" else ()
    assert len(text_of(processor, "audio", task=task, lang=lang, candidates=candidates)) > 40


def test_prompt_and_answer_are_tokenized_apart_between_bos_and_eos(processor_of):
    processor = processor_of("affectgpt_v2", multi=1, audio=1, face=1)
    tokenizer, ids = processor.tokenizer, processor.placeholder_token_ids
    encoded = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    states = {name: torch.zeros(2, 3) for name in ("audio", "face")}
    messages = render(SAMPLE, task="labels", modalities=("audio", "face"), prompt_format="affectgpt_v2")
    answer = target_text(SAMPLE, "labels", prompt_format="affectgpt_v2")
    found = processor.encode(messages, states, answer=answer)
    prompt = [
        tokenizer.convert_tokens_to_ids("<|im_start|>"),
        *encoded("###Human: The audio and video merged info is: <Multi>"), ids["multi"],
        *encoded("</Multi>. The audio content is as follows: <Audio>"), ids["audio"],
        *encoded(f"</Audio>. Meanwhile, we {SAMPLED} and extract faces from these frames: <Video>"), ids["face"],
        *encoded(f"</Video>. {SUBTITLE}{ASK} {V2_QUESTION} ###Assistant: "),
    ]  # fmt: skip
    target = [*encoded("The character's emotional state is sad, nervous.###"), tokenizer.eos_token_id]
    assert found["input_ids"].tolist() == prompt + target
    assert found["labels"].tolist() == [-100] * len(prompt) + target
    assert processor.encode(messages, states)["input_ids"].tolist() == prompt  # of training and of inference


def test_answers_have_the_published_wording_and_are_read_back(processor_of):
    wording = {
        ("affectgpt_v2", "description"): SAMPLE.description,
        ("affectgpt_v2", "labels"): "The character's emotional state is sad, nervous.",
        ("affectgpt_v2", "fixed"): "The most likely label is sad.",
        ("affectgpt_v1", "description"): SAMPLE.description,
        ("emotion_llama", "description"): "her voice trembles a lot sad",
        ("emotion_llama", "fixed"): "sad",
    }
    assert {key: target_text(SAMPLE, key[1], prompt_format=key[0]) for key in wording} == wording
    assert read_labels(wording["affectgpt_v2", "labels"]).labels == ("sad", "nervous")
    assert read_labels(wording["affectgpt_v2", "fixed"]).labels == ("sad",)


def test_the_end_of_an_answer_is_cut_off_and_one_token_of_it_stops_generation(processor_of):
    processor = processor_of("affectgpt_v2", audio=1)
    ids = processor.tokenizer("She is sad.### Human: and", add_special_tokens=False)["input_ids"]
    assert processor.answer_text(ids) == "She is sad."
    assert processor.tokenizer.eos_token_id in processor.stop_token_ids
    chat = processor_of("chat", audio=1)
    assert chat.answer_text(ids) == "She is sad.### Human: and"


def test_later_turns_continue_the_published_separators(processor_of):
    processor = processor_of("affectgpt_v2", audio=1)
    first = render(SAMPLE, modalities=("audio",), task="labels", prompt_format="affectgpt_v2")
    turns = [*first, Message("assistant", "Sad."), Message("user", "Why?")]
    asked = text_of(processor, "audio", task="labels")
    assert processor.prompt_text(turns) == f"{asked}Sad.###Human: Why? ###Assistant: "


def test_placeholders_in_subtitles_and_questions_stay_text(processor_of):
    processor = processor_of("affectgpt_v2", audio=1)
    sample = Sample(id="x", subtitle=f"say {PLACEHOLDERS['audio']}", modalities=("audio",))
    asked = render(sample, prompt_format="affectgpt_v2", question=f"is {PLACEHOLDERS['audio']} there?")
    assert processor.prompt_ids(asked).count(processor.placeholder_token_ids["audio"]) == 1


def test_the_published_prefusion_is_shown_only_with_all_its_sources(processor_of):
    processor = processor_of("affectgpt_v2", multi=1, audio=1, face=1)
    states = {name: torch.zeros(2, 3) for name in ("audio", "face")}
    rows = [
        processor.encode(
            render(SAMPLE, modalities=shown, prompt_format="affectgpt_v2"), {name: states[name] for name in shown}
        )
        for shown in (("audio", "face"), ("audio",))
    ]
    counts = [(row["input_ids"] == processor.placeholder_token_ids["multi"]).sum().item() for row in rows]
    assert counts == [1, 0]
    assert processor.collate(rows)["multi_rows"].tolist() == [[0, 0]]


def test_an_unknown_format_is_refused(processor_of):
    with pytest.raises(InputError, match=r"expected one of .*'affectgpt_v2'"):
        processor_of("affectgpt_v3", audio=1)


def test_grouped_soft_tokens_of_the_class_can_come_last():
    from dataclasses import replace

    from affectgpt.models.configuration_affectgpt import ProjectorArchitecture
    from affectgpt.models.projectors import Projector

    config = ProjectorArchitecture("grouped", 6, 3, group_size=2, n_class=1)
    torch.manual_seed(0)
    usual = Projector(config, tiny.WIDTH)
    last = Projector(replace(config, class_last=True), tiny.WIDTH)
    last.load_state_dict(usual.state_dict())
    states, mask = torch.randn(1, 5, 6), torch.ones(1, 5)
    torch.testing.assert_close(last(states, mask), usual(states, mask)[:, [1, 2, 0]])
