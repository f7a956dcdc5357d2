"""Text, media and batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from affectgpt.models import AffectGPTProcessor
from affectgpt.models.assemble import CLIP_MEAN, CLIP_STD
from affectgpt.models.processing_affectgpt import VICUNA_SYSTEM, pad_states
from affectgpt.prompts import Message
from tests.models import tiny

STATES = {"audio": torch.ones(5, 32), "frames": torch.ones(4, 32), "motion": torch.ones(3, 32)}


@pytest.fixture
def processor(llm) -> AffectGPTProcessor:
    """A processor over each kind of tokenizer."""
    branches = {name: {"n_tokens": n} for name, n in (("audio", 2), ("frames", 3), ("motion", 1))}
    return AffectGPTProcessor(AutoTokenizer.from_pretrained(llm), branches)


def states(*names):
    return {name: STATES[name] for name in names}


# ---------------------------------------------------------------- prompts


def test_the_prompt_of_training_is_the_prompt_of_inference_token_by_token(processor):
    for answer in ("happy, calm", "  sad", "情绪：悲伤", "\nThe brows", "'s", "-", ""):
        for messages in (tiny.question("audio", "frames"), tiny.question(text="你好？"), tiny.question("motion")):
            media = states(*[name for name in STATES if f"<{name}>" in messages[0].content])
            asked = processor.encode(messages, media)["input_ids"].tolist()
            taught = processor.encode([*messages, Message("assistant", answer)], media)
            assert taught["input_ids"].tolist()[: len(asked)] == asked
            assert (taught["labels"][: len(asked)] == -100).all()
            assert torch.equal(taught["labels"][len(asked) :], taught["input_ids"][len(asked) :])
            assert processor.prompt_ids([*messages, Message("assistant", answer)]) == asked


def test_the_labels_are_the_answer_and_the_end_of_turn_that_generation_stops_on(processor):
    row = processor.encode(tiny.question("audio"), states("audio"), answer="happy, calm")
    learnt = row["labels"][row["labels"] != -100].tolist()
    assert learnt[-len(processor.end_ids) :] == processor.end_ids
    assert processor.tokenizer.decode(learnt[: -len(processor.end_ids)]).strip() == "happy, calm"
    assert processor.end_ids[0] in processor.stop_token_ids


def test_the_end_of_turn_is_what_the_chat_template_writes_behind_an_answer(llms):
    ends = {}
    for name, folder in llms.items():
        processor = AffectGPTProcessor(AutoTokenizer.from_pretrained(folder))
        ends[name] = processor.tokenizer.convert_ids_to_tokens(processor.end_ids)
    assert ends == {
        "llama-vicuna": ["</s>"],
        "llama2-chat": ["</s>"],
        "llama3-chat": ["<|eot_id|>"],  # not its eos, <|end_of_text|>
        "qwen2": ["<|im_end|>"],
        "qwen3": ["<|im_end|>"],
    }


def test_a_sequence_begins_with_at_most_one_bos(processor):
    ids = processor.prompt_ids(tiny.question("audio"))
    bos = processor.tokenizer.bos_token_id
    assert ids.count(bos) == (0 if bos is None else 1)
    assert bos is None or ids[0] == bos


@pytest.mark.parametrize("name", ["llama2-chat", "llama3-chat", "qwen2", "qwen3"])
def test_training_follows_the_chat_template_to_the_letter(llms, name):
    """Prompt + answer are the template applied to the whole conversation, up to where the answer's turn ends."""
    processor = AffectGPTProcessor(AutoTokenizer.from_pretrained(llms[name]))
    messages = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "happy, calm"}]
    whole = processor.tokenizer.apply_chat_template(messages, tokenize=False, date_string="26 Jul 2024")
    ours = processor.encode([Message(**m) for m in messages])["input_ids"].tolist()
    theirs = processor.tokenizer(whole, add_special_tokens=False)["input_ids"]
    end = processor.end_ids[-1]
    last = len(theirs) - theirs[::-1].index(end)  # behind it the template may write a newline
    squeeze = lambda ids: processor.tokenizer.decode(ids).replace(" ", "")  # noqa: E731  (LLaMA-2 writes " </s>")
    assert squeeze(ours) == squeeze(theirs[:last])


def test_without_a_chat_template_the_prompt_is_vicunas(llms):
    processor = AffectGPTProcessor(AutoTokenizer.from_pretrained(llms["llama-vicuna"]), {"audio": {"n_tokens": 2}})
    assert processor.prompt_format == "vicuna"
    text = processor.prompt_text(tiny.question("audio", text="Hello?"))
    assert text == f"{VICUNA_SYSTEM} USER: <audio><audio>\nHello? ASSISTANT:"


def test_qwen3_is_asked_not_to_think(llms):
    processor = AffectGPTProcessor(AutoTokenizer.from_pretrained(llms["qwen3"]))
    assert processor.prompt_text(tiny.question()).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_template_that_writes_the_date_gives_the_same_prompt_every_day(llms):
    processor = AffectGPTProcessor(AutoTokenizer.from_pretrained(llms["llama3-chat"]))
    assert "Today Date: 26 Jul 2024<|eot_id|>" in processor.prompt_text(tiny.question())


def test_placeholders_and_control_tokens_in_user_text_stay_text(processor):
    control = [token for token in processor.tokenizer.get_added_vocab() if token.strip()]
    said = "She says <audio> </s> " + " ".join(control)
    clean = processor.prompt_ids(tiny.question("audio", text="hi"))
    special = set(processor.tokenizer.added_tokens_decoder)
    count = lambda ids: sum(token in special for token in ids)  # noqa: E731
    assert count(processor.prompt_ids(tiny.question("audio", text=said))) == count(clean)
    learnt = processor.encode(tiny.question("audio"), states("audio"), answer=said)
    answer = learnt["labels"][learnt["labels"] != -100].tolist()
    assert count(answer) == len(processor.end_ids)
    assert "< audio>" in processor.prompt_text(tiny.question("audio", text=said))


def test_adding_placeholders_changes_no_other_token(llm):
    text = "Watch and listen: 请观看 hello <|im_end|> </s>"
    before = AutoTokenizer.from_pretrained(llm)(text)["input_ids"]
    assert AffectGPTProcessor(AutoTokenizer.from_pretrained(llm)).tokenizer(text)["input_ids"] == before


def test_a_folder_with_a_sentencepiece_model_gives_the_ids_of_sentencepiece(llms):
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(str(llms["llama-vicuna"] / "tokenizer.model"))
    text = "Which emotions does the person feel? 悲伤 naïve 🙂"
    processor = AffectGPTProcessor(AutoTokenizer.from_pretrained(llms["llama-vicuna"]))
    assert processor._ids(text) == [reference.bos_id(), *reference.encode(text)]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("messages", "media", "text"),
    [
        (tiny.question("audio"), {}, "audio: the prompt has 1 placeholders for it, the media are []"),
        (tiny.question("audio"), states("audio", "motion"), "motion: the prompt has 0 placeholders"),
        (tiny.question("audio") * 2, states("audio"), "audio: the prompt has 2 placeholders"),
    ],
)
def test_media_that_the_prompt_does_not_show_once_are_an_error_that_names_the_modality(built, messages, media, text):
    with pytest.raises(ValueError) as error:
        built[1].encode(messages, media)
    assert text in str(error.value)


def test_a_modality_that_the_model_lacks_is_an_error_that_says_which_it_has(llms):
    processor = AffectGPTProcessor(AutoTokenizer.from_pretrained(llms["qwen2"]), {"audio": {"n_tokens": 2}})
    with pytest.raises(ValueError, match=r"shows 'frames', but this model has only \['audio'\]"):
        processor.encode(tiny.question("frames"), states("frames"))


def test_a_text_longer_than_the_llm_takes_is_refused_and_not_cut(built):
    with pytest.raises(ValueError, match=r"the text has \d+ tokens, the LLM takes 512; shorten"):
        built[1].encode(tiny.question(text="why? " * 400))


def test_chat_format_without_a_template_is_refused(llms):
    with pytest.raises(ValueError, match="has no chat template"):
        AffectGPTProcessor(AutoTokenizer.from_pretrained(llms["llama-vicuna"]), prompt_format="chat")


# ---------------------------------------------------------------- media


def test_sound_is_normalised_whole_and_cut_into_windows_with_their_true_lengths(built):
    samples = tiny.media("audio", duration_s=0.25)["audio"].samples * 3 + 1
    tensors = built[1].audio(samples, 16000)
    assert tensors["input_lengths"].tolist() == [1600, 1600, 1600]
    normal = (samples - samples.mean()) / samples.std()
    np.testing.assert_allclose(tensors["input_values"][0], normal[:1600], atol=1e-4)
    np.testing.assert_allclose(tensors["input_values"][2], normal[-1600:], atol=1e-4)
    short = built[1].audio(samples[:1000], 16000)
    assert short["input_values"].shape == (1, 1000)


def branch_of(processor, name: str, **changes) -> AffectGPTProcessor:
    return AffectGPTProcessor(processor.tokenizer, branches={name: processor.branches[name] | changes})


@pytest.mark.parametrize("n_samples", [100, 20_000, 70_000])
def test_published_windows_are_padded_cut_and_then_normalised_together(built, n_samples):
    """As transformers' feature extractor does it, which takes a tensor of all windows for one recording."""
    from transformers import Wav2Vec2FeatureExtractor

    samples = tiny.media("audio", duration_s=n_samples / 16000)["audio"].samples + 0.5
    changes = {"window_s": 2.0, "max_windows": 8, "window_mode": "published"}
    found = branch_of(built[1], "audio", **changes).audio(samples, 16000)
    padded = np.pad(samples, (0, max(0, 32_000 - n_samples)))
    starts = [i * (len(padded) - 32_000) // 8 for i in range(8)]
    together = torch.from_numpy(np.stack([padded[start : start + 32_000] for start in starts]))
    theirs = Wav2Vec2FeatureExtractor()(together, sampling_rate=16000, return_tensors="pt").input_values[0]
    torch.testing.assert_close(found["input_values"], theirs, rtol=1e-5, atol=1e-5)
    assert found["input_lengths"].tolist() == [32_000] * 8


def test_bgr_is_the_order_in_which_an_encoder_gets_the_channels(built):
    frames = tiny.media("frames")["frames"]
    swapped = branch_of(built[1], "frames", channels="bgr").images("frames", np.ascontiguousarray(frames[..., ::-1]))
    assert torch.equal(swapped, built[1].images("frames", frames))


@pytest.mark.parametrize(("size", "row"), [(4, [0, 25, 75, 100]), (1, [50])])
def test_bilinear_resizing_takes_the_two_nearest_pixels_at_the_centre_of_each_new_one(built, size, row):
    """OpenCV's rule, without antialiasing."""
    image = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    image[0, :, 1] = 100
    changes = {"n_frames": 1, "height": size, "width": size, "mean": [0.0] * 3, "std": [1.0] * 3, "resize": "bilinear"}
    found = branch_of(built[1], "frames", **changes).images("frames", image)
    torch.testing.assert_close(found, torch.tensor(row).expand(1, 3, size, size) / 255)


def test_normalisation_of_sound_is_transformers_own(built):
    from transformers import Wav2Vec2FeatureExtractor

    samples = tiny.media("audio", duration_s=0.1)["audio"].samples * 2 - 0.3
    theirs = Wav2Vec2FeatureExtractor(do_normalize=True)(samples, sampling_rate=16000, return_tensors="pt")
    torch.testing.assert_close(built[1].audio(samples, 16000)["input_values"], theirs["input_values"])


def test_images_are_those_of_transformers_pillow_processor(built):
    """Stretched bicubically, CLIP's mean and deviation: the reference systems' preprocessing."""
    from transformers import CLIPImageProcessorPil

    frames = tiny.media("frames")["frames"]
    reference = CLIPImageProcessorPil(
        size={"height": 28, "width": 28}, do_center_crop=False, image_mean=CLIP_MEAN, image_std=CLIP_STD
    )
    theirs = reference(list(frames), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(built[1].images("frames", frames), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda p: p.audio(np.zeros((2, 9000), np.float32), 16000), "expected mono samples [S] at 16000 Hz"),
        (lambda p: p.audio(np.zeros(9000, np.float32), 44100), "found 44100 Hz"),
        (lambda p: p.audio(np.zeros(399, np.float32), 16000), "399 samples (0.0249 s) are too few"),
        (lambda p: p.images("frames", np.zeros((3, 8, 8, 3), np.uint8)), "frames: found 3 frames; this model takes 2"),
        (lambda p: p.images("motion", np.zeros((4, 8, 8, 3))), "motion: found float64 (4, 8, 8, 3); expected RGB"),
    ],
)
def test_media_of_another_kind_are_errors_that_say_what_is_expected(built, call, text):
    with pytest.raises(ValueError) as error:
        call(built[1])
    assert text in str(error.value)


# ---------------------------------------------------------------- batches


def test_a_batch_has_a_row_for_each_sample_that_has_the_modality(built):
    processor = built[1]
    rows = [
        processor.encode(tiny.question("audio", "motion"), tiny.media("audio", "motion", duration_s=0.05), "sad"),
        processor.encode(tiny.question(), answer="happy, calm"),
        processor.encode(tiny.question("audio"), tiny.media("audio"), answer="so"),
    ]
    batch = processor.collate(rows)
    assert batch["input_values"].shape == (2, 3, 1600)
    assert batch["input_lengths"].tolist() == [[800, 0, 0], [1600, 1600, 1600]]
    assert batch["pixel_values_videos"].shape == (1, 4, 3, 16, 16)
    assert "pixel_values" not in batch
    lengths = [len(row["input_ids"]) for row in rows]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        assert torch.equal(batch["input_ids"][i, :n], row["input_ids"])
        assert torch.equal(batch["labels"][i, :n], row["labels"])
        assert (batch["labels"][i, n:] == -100).all()


def test_a_true_end_of_sequence_is_attended_and_learnt_although_it_is_also_the_padding(built):
    processor = built[1]
    assert processor.tokenizer.pad_token_id == processor.tokenizer.eos_token_id == processor.end_ids[0]
    rows = [processor.encode(tiny.question(), answer=answer) for answer in ("sad", "happy, calm, surprised")]
    batch = processor.collate(rows)
    last = len(rows[0]["input_ids"]) - 1
    assert batch["input_ids"][0, last] == processor.tokenizer.eos_token_id
    assert batch["labels"][0, last] == processor.tokenizer.eos_token_id
    assert batch["attention_mask"][0, last] == 1
    assert (batch["attention_mask"][0, last + 1 :] == 0).all()


def test_for_generation_prompts_end_together_and_hold_no_labels(built):
    processor = built[1]
    rows = [processor.encode(tiny.question(text="Why?")), processor.encode(tiny.question(text="How do they feel?"))]
    batch = processor.collate(rows, for_generation=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    for i, row in enumerate(rows):
        assert torch.equal(batch["input_ids"][i, -len(row["input_ids"]) :], row["input_ids"])
        assert batch["attention_mask"][i].tolist() == sorted(batch["attention_mask"][i].tolist())


def test_a_packed_batch_is_one_row_whose_positions_restart(built):
    processor = built[1]
    rows = [processor.encode(tiny.question(), answer=answer) for answer in ("sad", "happy, calm")]
    batch = processor.collate(rows, packed=True)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["position_ids"].shape
    assert (batch["position_ids"][0] == 0).nonzero()[:, 0].tolist() == [0, len(rows[0]["input_ids"])]
    assert "attention_mask" not in batch


def test_states_are_padded_with_a_mask():
    padded, mask = pad_states([torch.ones(2, 4), torch.ones(3, 4)])
    assert padded.shape == (2, 3, 4)
    assert mask.tolist() == [[True, True, False], [True, True, True]]


def test_media_and_cached_states_of_one_modality_do_not_mix_in_a_batch(built):
    processor = built[1]
    rows = [
        processor.encode(tiny.question("motion"), tiny.media("motion")),
        processor.encode(tiny.question("motion"), states("motion")),
    ]
    with pytest.raises(ValueError, match="motion: 1 samples have cached states, 1 have media"):
        processor.collate(rows, for_generation=True)


def test_the_processor_survives_a_folder(built, tmp_path):
    processor = built[1]
    processor.save_pretrained(tmp_path)
    again = AffectGPTProcessor.from_pretrained(tmp_path)
    messages, media = tiny.question("audio", "frames"), tiny.media("audio", "frames")
    first, second = processor.encode(messages, media, "sad"), again.encode(messages, media, "sad")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
