"""The text that is passed on while an answer is generated is a beginning of the complete text, whatever follows."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoTokenizer

from affectgpt.chat.streaming import GenerateStreamer, StreamDecoder
from tests.models import tiny

CHINESE = "她笑了，也许他很累😀。 还好 …"
STOP = 399  # a word of all vocabularies here


@pytest.fixture(
    scope="module",
    params=[(tiny.write_llama, False), (tiny.write_llama3, False), (tiny.write_qwen3, False), (tiny.write_qwen3, True)],
    ids=["byte-fallback", "byte-level", "byte-level-added-words", "clean-up"],
)
def tokenizer(request, tmp_path_factory):
    write, cleans_up = request.param
    folder = tmp_path_factory.mktemp("llm")
    write(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.clean_up_tokenization_spaces = cleans_up
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = cleans_up
    return tokenizer


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def received(tokenizer, tokens) -> list[str]:
    """The texts that the callback of an answer of these tokens gets, in order."""
    texts: list[str] = []
    decoder = StreamDecoder(tokenizer, [STOP], {0: texts.append})
    for n in range(1, len(tokens) + 1):
        decoder.update(0, tokens[:n])
    return texts


def complete(tokenizer, tokens) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_a_text_that_was_passed_on_stays_whatever_tokens_follow(tokenizer):
    draw = random.Random(0)
    bytes_ = [token for token in range(len(tokenizer)) if len(tokenizer.decode([token]).strip()) <= 1]
    parts = [" '", " ", " n", "'t", " .", "ve", "m ", "s", "。", "情绪", "😀", "\n", "  "]
    for _ in range(300):
        tokens: list[int] = []
        for _ in range(draw.randrange(1, 12)):
            kind = draw.randrange(4)
            if kind == 0:
                tokens += draw.choices(range(len(tokenizer) + 5), k=2)  # control tokens, and ids that spell nothing
            elif kind == 1:
                tokens += draw.choices(bytes_, k=3)
            else:
                tokens += ids_of(tokenizer, draw.choice(parts))
        tokens = [token for token in tokens if token != STOP]
        text, texts = complete(tokenizer, tokens), received(tokenizer, tokens)
        for earlier, later in zip(["", *texts], [*texts, text], strict=True):
            assert later.startswith(earlier), (tokens, texts, text)
        assert len(set(texts)) == len(texts)
        assert (received(tokenizer, [*tokens, STOP]) or [""])[-1] == text


def test_each_character_of_a_chinese_answer_comes_as_soon_as_it_is_complete(tokenizer):
    tokens = ids_of(tokenizer, CHINESE)
    texts = received(tokenizer, tokens)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(texts)
    assert len(tokens) > len(CHINESE)  # so that characters are split
    if "<0xE4>" in tokenizer.get_vocab():  # runs of byte tokens end with the next word only
        assert texts == ["她笑了，", "她笑了，也许他很累😀。", "她笑了，也许他很累😀。 还好"]
    elif not tokenizer.clean_up_tokenization_spaces:
        assert texts == [CHINESE[:n] for n in range(1, len(CHINESE) + 1) if not CHINESE[n - 1].isspace()]
    assert received(tokenizer, [*tokens, STOP])[-1] == CHINESE


def test_rows_of_a_batch_go_to_their_callbacks_up_to_their_stop_tokens(tokenizer):
    answers = {"sad": 3, "happy, calm, surprised": 1}
    passed: dict[int, list[str]] = {number: [] for number in (1, 3)}
    decoder = StreamDecoder(tokenizer, [STOP], {number: texts.append for number, texts in passed.items()})
    rows = [[*ids_of(tokenizer, text), STOP] for text in ("no callback", *answers)]
    width = max(map(len, rows))
    table = torch.tensor([row + [5] * (width - len(row)) for row in rows])
    streamer = GenerateStreamer(decoder, [0, *answers.values()])
    streamer.put(table[:, :4])  # prompts
    for step in table.T:
        streamer.put(step)
    streamer.end()
    assert {texts[-1]: number for number, texts in passed.items()} == answers
    assert len(passed[1]) > len(passed[3]) > 0
