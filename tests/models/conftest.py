"""Tiny base models, written once a session, and models built from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from affectgpt.models import build, shapes
from tests.models import tiny

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()

LLMS = {
    "llama-vicuna": tiny.write_llama,
    "llama2-chat": lambda folder: tiny.write_llama(folder, chat_template=tiny.LLAMA2_TEMPLATE),
    "llama3-chat": tiny.write_llama3,
    "qwen2": tiny.write_qwen2,
    "qwen3": tiny.write_qwen3,
}


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Folders of tiny base models: an LLM under "llm" and one encoder a modality."""
    return tiny.write_base_models(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="session")
def llms(tmp_path_factory) -> dict[str, Path]:
    """Folders of one tiny LLM for each chat format."""
    folder = tmp_path_factory.mktemp("llms")
    return {name: write(folder / name) for name, write in LLMS.items()}


@pytest.fixture(params=LLMS)
def llm(request, llms) -> Path:
    return llms[request.param]


@pytest.fixture(scope="session")
def built(bases):
    """A model with all three modalities, shared: tests must not change it."""
    model, processor = build(tiny.tiny_spec(bases))
    return model.eval(), processor


@pytest.fixture
def few_layers(monkeypatch):
    """Published shapes with at most six layers, for what does not depend on their number."""
    entry = shapes._entry

    def shallow(hub_id):
        make, preprocessing = entry(hub_id)

        def config():
            made = make()
            for part in (made, *(getattr(made, name, None) for name in ("vision_config", "text_config"))):
                for name in ("num_hidden_layers", "encoder_layers", "decoder_layers"):
                    if part is not None and hasattr(part, name) and not hasattr(part, "stage_names"):
                        setattr(part, name, min(6, getattr(part, name)))
            return made

        return config, preprocessing

    monkeypatch.setattr(shapes, "_entry", shallow)


@pytest.fixture
def fresh(bases):
    """A model of one's own."""
    return build(tiny.tiny_spec(bases))
