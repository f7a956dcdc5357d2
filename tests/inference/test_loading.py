"""What a full model folder cannot follow is refused by name, never ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from affectgpt.inference.loading import load
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
