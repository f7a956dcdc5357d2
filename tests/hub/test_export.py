from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from affectgpt.cli import run
from affectgpt.config import LoraConfig
from affectgpt.hub.export import export, probe_logits
from affectgpt.models import AffectGPTForConditionalGeneration, AffectGPTProcessor, build, load_trained, save_trained
from affectgpt.runtime import UserError
from tests.models import tiny

ROOT = Path(__file__).parents[2]
LORA = LoraConfig(r=2, alpha=4, target_modules=["q_proj", "v_proj"])


@pytest.fixture
def checkpoint(base_models, tmp_path):
    """A checkpoint whose adapters are not zero."""
    model, processor = build(tiny.tiny_spec(base_models, lora=LORA))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_trained(model, processor, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def from_folder(folder):
    model = AffectGPTForConditionalGeneration.from_pretrained(folder).eval()
    return model, AffectGPTProcessor.from_pretrained(folder)


def test_the_exported_folder_gives_the_logits_of_the_checkpoint(checkpoint, tmp_path):
    out = export(checkpoint, tmp_path / "out")
    model, processor = from_folder(out)
    assert model.config.lora["r"] == 2
    assert torch.equal(probe_logits(model, processor), probe_logits(*load_trained(checkpoint)))


def test_merging_adapters_keeps_the_logits_and_leaves_no_adapter_tensor(checkpoint, tmp_path):
    out = export(checkpoint, tmp_path / "out", merge_lora=True)
    assert not [name for name in load_file(out / "model.safetensors") if "lora" in name or "base_layer" in name]
    model, processor = from_folder(out)
    assert model.config.lora is None
    torch.testing.assert_close(probe_logits(model, processor), probe_logits(*load_trained(checkpoint)))


def test_the_precision_of_the_llm_can_be_chosen_and_projections_stay_fp32(checkpoint, tmp_path):
    model, _ = from_folder(export(checkpoint, tmp_path / "out", dtype="bfloat16"))
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert {weight.dtype for weight in model.projectors.parameters()} == {torch.float32}


def test_an_export_whose_logits_differ_is_an_error(checkpoint, tmp_path, monkeypatch):
    save = AffectGPTForConditionalGeneration.save_pretrained

    def damaged(self, folder, **kwargs):
        save(self, folder, **kwargs)
        tensors = load_file(Path(folder) / "model.safetensors")
        name = next(name for name in tensors if name.startswith("projectors.frames") and name.endswith("output.weight"))
        tensors[name] += 0.01
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(AffectGPTForConditionalGeneration, "save_pretrained", damaged)
    with pytest.raises(
        RuntimeError, match="logits of the loaded folder differ from those of the exported model by up to"
    ):
        export(checkpoint, tmp_path / "out")


def test_impossible_requests_are_refused_before_anything_is_written(checkpoint, base_models, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="is not empty; name a new folder"):
        export(checkpoint, tmp_path / "full")
    with pytest.raises(UserError, match="dtype is 'int4'; expected float32"):
        export(checkpoint, tmp_path / "out", dtype="int4")
    model, processor = build(tiny.tiny_spec(base_models))
    save_trained(model, processor, tmp_path / "plain")
    with pytest.raises(UserError, match="merge_lora=true, but this checkpoint has no LoRA"):
        export(tmp_path / "plain", tmp_path / "out", merge_lora=True)


def test_the_command_exports_and_reports_unknown_settings(checkpoint, tmp_path, caplog, capsys):
    words = [str(checkpoint), f"out={tmp_path / 'out'}"]
    with caplog.at_level("INFO", logger="affectgpt"):
        assert run("export", words) == 0
    assert "loads with identical logits" in caplog.text
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert run("export", [*words, "merge=true"]) == 2
    assert "'merge'" in capsys.readouterr().err
