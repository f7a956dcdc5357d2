"""GGUF files: the folder has the weights, words and turns that transformers reads from the file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from affectgpt import bases
from affectgpt.chat.local import load
from affectgpt.chat.request import Request
from affectgpt.cli import compose
from affectgpt.config import ConvertConfig
from affectgpt.convert import gguf as converting
from affectgpt.convert.command import run
from affectgpt.runtime import InputError, MissingLibrary, NotFound, UserError

WIDTH, N_LAYERS, N_HEADS, N_KV_HEADS, FEED_FORWARD = 32, 2, 4, 2, 64
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_gguf(path: Path) -> Path:
    """A random LLaMA with byte-level words, as llama.cpp writes it."""
    from gguf import GGUFWriter
    from tokenizers import pre_tokenizers

    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "sa", "sad"]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(N_LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3] * 3 + [1] * (len(words) - 3))
    writer.add_token_merges(["s a", "sa d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    draw = np.random.default_rng(0).normal
    kv_width = WIDTH // N_HEADS * N_KV_HEADS
    shapes = {"token_embd": (len(words), WIDTH), "output_norm": (WIDTH,)}
    for block in range(N_LAYERS):
        for name, shape in {
            "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH), "attn_k": (kv_width, WIDTH),
            "attn_v": (kv_width, WIDTH), "attn_output": (WIDTH, WIDTH), "ffn_gate": (FEED_FORWARD, WIDTH),
            "ffn_up": (FEED_FORWARD, WIDTH), "ffn_down": (WIDTH, FEED_FORWARD),
        }.items():  # fmt: skip
            shapes[f"blk.{block}.{name}"] = shape
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw(0, 0.2, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the package gguf (pip install 'affectgpt[gguf]')")
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_converted_file_has_the_weights_and_words_that_transformers_reads(file, tmp_path):
    folder = tmp_path / "out"
    n = converting.convert_gguf(file, folder)
    found = AutoModelForCausalLM.from_pretrained(folder)
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    expected, tokenizer = AutoModelForCausalLM.from_pretrained(**source), AutoTokenizer.from_pretrained(**source)
    assert n == sum(p.numel() for p in found.parameters())
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "others can read all files, or none"
    text = "I'm so sad, 情绪"
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == tokenizer(text).input_ids
    assert load(folder, device="cpu").answer([Request("Why?")], 4)[0].n_new_tokens <= 4


def test_a_setting_that_names_a_file_is_converted_once(file, tmp_path, monkeypatch):
    config = compose("plan", ["model=small", f"model.llm.path='{file}'", f"paths.cache='{tmp_path}'"])
    folder = Path(config.model.llm.path)
    assert folder.parent == tmp_path / "gguf"
    assert bases.fingerprint(str(folder), "llm").startswith("sha256:")
    monkeypatch.setattr(converting, "convert_gguf", None)  # is not called again
    assert converting.base_model(str(file), tmp_path) == str(folder)


def test_the_command_converts_a_file_and_replaces_only_what_it_wrote(file, tmp_path, capsys):
    config = ConvertConfig(files=[str(file)], out=str(tmp_path / "base"))
    assert run(config) == 0
    assert "parameters of tiny.gguf in float32" in capsys.readouterr().out
    with pytest.raises(UserError, match="contains an earlier conversion"):
        run(config)
    config.overwrite = True
    assert run(config) == 0
    (tmp_path / "base" / "gguf.json").unlink()
    with pytest.raises(UserError, match="was not written by a conversion"):
        run(config)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [(b"no model", InputError, "is not a GGUF file"), (b"GGUF\x03\0\0\0", UserError, "gguf")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, error, words):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(error, match=words):
        converting.convert_gguf(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_file_without_the_library_and_where_a_folder_is_expected_the_message_says_what_to_do(
    tmp_path, monkeypatch
):
    with pytest.raises(NotFound, match=r"no\.gguf does not exist"):
        converting.base_model(str(tmp_path / "no.gguf"), tmp_path)
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingLibrary, match=r"pip install 'affectgpt\[gguf\]'"):
        converting.convert_gguf(path, tmp_path / "out")
    with pytest.raises(NotFound, match=r"affectgpt\.convert .*x\.gguf out=FOLDER"):
        bases.resolve(str(path), "llm")
    with pytest.raises(UserError, match=r"affectgpt\.convert .*x\.gguf out=FOLDER"):
        load(path)
