"""Times of words from a recogniser, and the facts of them."""

from __future__ import annotations

import json

import pytest

from affectgpt.annotate.exporters import records_in
from affectgpt.annotate.words import WORD_FACTS, Word, word_facts, words_of
from affectgpt.media.speech import Speech
from affectgpt.runtime import UserError
from tests.annotate.conftest import annotate, rows_of, write_clips
from tests.models import tiny


def decoder(pieces: list[bytes]):
    return lambda tokens: b"".join(pieces[token] for token in tokens).decode(errors="replace")


def test_words_begin_with_a_space_and_punctuation_takes_no_time():
    pieces = [b" I", b" don", b"'t", b"", b",", b" know"]
    words = words_of(range(6), [0.3, 0.5, 0.8, 0.8, 1.6, 2.0], decoder(pieces))
    assert words == [Word("I", 0.0, 0.3), Word("don't,", 0.3, 0.8), Word("know", 1.6, 2.0)]


def test_the_first_two_tokens_share_a_time_by_their_letters_since_the_first_is_given_none():
    pieces = [b" Wait", b",", b" now", b" go"]
    times = [0.0, 1.0, 1.6, 2.0]
    assert words_of(range(4), times, decoder(pieces))[:2] == [Word("Wait,", 0.0, 1.0), Word("now", 1.0, 1.6)]
    both = words_of([0, 2, 3], [0.0, 1.4, 2.0], decoder(pieces))
    assert [(word.text, round(word.end_s, 3)) for word in both] == [("Wait", 0.8), ("now", 1.4), ("go", 2.0)]


def test_chinese_characters_are_words_even_when_two_tokens_hold_the_bytes_of_one():
    first, second = "你好".encode()[:3], "你好".encode()[3:]
    pieces = [first, second[:1], second[1:], "。".encode()]
    words = words_of(range(4), [0.2, 0.3, 0.5, 0.9], decoder(pieces))
    assert words == [Word("你", 0.0, 0.2), Word("好。", 0.2, 0.5)]


def test_rate_and_pauses_count_only_the_speech_within_words():
    words = [Word("I", 0.0, 0.6), Word("know", 0.6, 2.0), Word("him", 2.0, 3.0), Word("Thanks", 6.0, 7.0)]
    speech = Speech(((0.2, 1.0), (1.9, 2.6)), 8.0, "toy")  # nobody speaks from 1.0 to 1.9 s and after 2.6 s
    facts, n_outside = word_facts([*words[:2], Word("him", 1.9, 3.0), words[3]], speech, "en")
    found = {fact.name: fact for fact in facts}
    assert n_outside == 1
    assert found["word_rate_hz"].value == pytest.approx(3 / 2.4, abs=0.01)
    assert found["word_pauses"].value == 1  # "know" holds both ends of the silence, which is not inside a word
    facts, _ = word_facts([words[0], Word("know", 0.6, 1.8), Word("him", 1.8, 3.0)], speech, "en")
    found = {fact.name: fact for fact in facts}
    assert found["word_pauses"].value == 1
    longest = found["longest_word_pause_s"]
    assert (longest.value, longest.start_s, longest.end_s) == (0.9, 1.0, 1.9)


def test_chinese_speech_is_counted_in_characters():
    words = [Word("你", 0.0, 0.5), Word("好。", 0.5, 1.0), Word("OK", 1.0, 1.5)]
    (rate, pauses), _ = word_facts(words, Speech(((0.0, 1.5),), 1.5, "toy"), "zh")
    assert (rate.name, rate.value, rate.unit) == ("character_rate_hz", 2.0, "characters/s")
    assert pauses.value == 0


def test_without_speech_there_are_no_facts_of_words():
    assert word_facts([Word("Thanks", 0.0, 2.0)], Speech((), 2.0, "toy"), "en") == ([], 1)


@pytest.fixture(scope="module")
def recognisers(tmp_path_factory) -> dict[str, str]:
    """The same tiny Whisper without and with known alignment heads."""
    found = {}
    for name in ("plain", "timed"):
        folder = tiny.write_whisper(tmp_path_factory.mktemp(name))
        tiny.write_bpe_tokenizer(folder, ["<|endoftext|>"], eos_token="<|endoftext|>")
        file = folder / "generation_config.json"
        settings = json.loads(file.read_text()) | {"max_new_tokens": 12, "_from_model_config": False}
        if name == "timed":
            settings["alignment_heads"] = [[0, 0], [0, 1]]
        file.write_text(json.dumps(settings))
        found[name] = str(folder)
    return found


def test_a_recogniser_runs_on_the_device_that_is_asked_for_or_not_at_all(recognisers, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for device, message in (("cuda", "device=cuda, but torch finds no GPU"), ("gpu", "device is 'gpu'; expected")):
        with pytest.raises(UserError, match=message):
            annotate(
                write_clips(tmp_path / device, 1, seconds=0.5, subtitle=None),
                tmp_path / f"out-{device}",
                f"transcriber='{recognisers['plain']}'",
                f"annotator.device={device}",
            )


def test_a_recogniser_with_alignment_heads_gives_the_times_of_the_same_words(recognisers, tmp_path):
    clips = write_clips(tmp_path / "clips", 1, seconds=1.5, subtitle=None)
    rows, notes = {}, {}
    for name, folder in recognisers.items():
        annotate(clips, tmp_path / name, f"transcriber='{folder}'")
        (rows[name],) = rows_of(tmp_path / name / "store" / "answers.jsonl")
        (record,) = records_in(tmp_path / name)
        notes[name] = next(note.parameters for note in record.provenance if note.step == "transcribe")
    assert rows["timed"]["text"] == rows["plain"]["text"]
    words = [Word(*word) for word in rows["timed"]["words"]]
    assert "".join(word.text for word in words) in rows["timed"]["text"].replace(" ", "")
    assert words
    assert all(0 <= word.start_s <= word.end_s <= 1.5 for word in words)
    assert notes["timed"]["word_times"] == "alignment heads"
    assert rows["plain"]["words"] is None
    assert notes["plain"]["left_out"] == list(WORD_FACTS)
    assert notes["plain"]["why"] == "no times of words"
