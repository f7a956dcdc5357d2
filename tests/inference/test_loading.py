"""What a full model folder cannot follow is refused by name, never ignored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from affectgpt.config import GenerateConfig, QuestionConfig
from affectgpt.inference.loading import load, settings_of
from affectgpt.runtime import UserError


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dtype": "bfloat16"}, r"full model, whose precision is fixed; leave dtype=bfloat16 out"),
        ({"base_models": {"llm": "/models/llm"}}, r"contains its base models; leave base_models= \(llm\) out"),
        ({"quantization": "nf4"}, "quantization needs a training checkpoint"),
    ],
)
def test_settings_that_a_full_model_cannot_follow_are_errors(tmp_path, settings, said):
    folder: Path = tmp_path / "release"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "affectgpt"}')
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=said):
        load(str(folder), tmp_path / "runs", device="cpu", **settings)


def test_settings_that_older_files_do_not_name_are_named_only_where_they_decide_other_answers(trained):
    loaded = load(str(trained[1]), trained[1].parent, device="cpu")
    before = settings_of(loaded, QuestionConfig(), GenerateConfig(), 42)
    assert not {"top_k", "engine", "constrain"} & before.keys()

    def more(generate=None, *arguments, dtype=None):
        found = settings_of(
            replace(loaded, dtype=dtype), QuestionConfig(), generate or GenerateConfig(), 42, *arguments
        )
        return {name: value for name, value in found.items() if before.get(name) != value}

    assert more(GenerateConfig(top_k=20)) == {"top_k": 20}
    assert more(None, "auto", "decord") == {"backend": "decord"}
    assert more(dtype="bfloat16") == {"dtype": "bfloat16"}
    # Sampled answers of vLLM were once drawn from all tokens.
    assert more(GenerateConfig(do_sample=True), "vllm") == {"do_sample": True, "engine": "vllm", "top_k": 50}
