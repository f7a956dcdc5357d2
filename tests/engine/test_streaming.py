"""What is told of an answer while it is written is a beginning of the whole, whatever follows."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoTokenizer

from affectgpt.engine.streaming import Streamer, Telling
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


def told(tokenizer, tokens) -> list[str]:
    """What a listener of an answer of those tokens hears, one after the other."""
    heard: list[str] = []
    telling = Telling(tokenizer, [STOP], {0: heard.append})
    for n in range(1, len(tokens) + 1):
        telling.tell(0, tokens[:n])
    return heard


def whole(tokenizer, tokens) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_every_beginning_that_is_told_stays_whatever_tokens_follow(tokenizer):
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
        text, heard = whole(tokenizer, tokens), told(tokenizer, tokens)
        for earlier, later in zip(["", *heard], [*heard, text], strict=True):
            assert later.startswith(earlier), (tokens, heard, text)
        assert len(set(heard)) == len(heard)
        assert (told(tokenizer, [*tokens, STOP]) or [""])[-1] == text


def test_each_character_of_a_chinese_answer_comes_as_soon_as_it_is_whole(tokenizer):
    tokens = ids_of(tokenizer, CHINESE)
    heard = told(tokenizer, tokens)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(heard)
    assert len(tokens) > len(CHINESE)  # so that characters are split
    if "<0xE4>" in tokenizer.get_vocab():  # runs of byte tokens end with the next word only
        assert heard == ["她笑了，", "她笑了，也许他很累😀。", "她笑了，也许他很累😀。 还好"]
    elif not tokenizer.clean_up_tokenization_spaces:
        assert heard == [CHINESE[:n] for n in range(1, len(CHINESE) + 1) if not CHINESE[n - 1].isspace()]
    assert told(tokenizer, [*tokens, STOP])[-1] == CHINESE


def test_rows_of_a_batch_are_told_to_their_listeners_up_to_their_stop_tokens(tokenizer):
    answers = {"sad": 3, "happy, calm, surprised": 1}
    heard: dict[int, list[str]] = {number: [] for number in (1, 3)}
    telling = Telling(tokenizer, [STOP], {number: texts.append for number, texts in heard.items()})
    rows = [[*ids_of(tokenizer, text), STOP] for text in ("nobody listens", *answers)]
    width = max(map(len, rows))
    table = torch.tensor([row + [5] * (width - len(row)) for row in rows])
    streamer = Streamer(telling, [0, *answers.values()])
    streamer.put(table[:, :4])  # prompts
    for step in table.T:
        streamer.put(step)
    streamer.end()
    assert {texts[-1]: number for number, texts in heard.items()} == answers
    assert len(heard[1]) > len(heard[3]) > 0
