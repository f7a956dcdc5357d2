"""The converted image side computes what the published one computes."""

import torch
from transformers import Blip2QFormerModel, Blip2VisionModel

from affectgpt.cli import run
from affectgpt.models import encoders
from affectgpt.models.configuration_affectgpt import EncoderArchitecture
from tests.models import foreign, reference


def test_converted_eva_and_ln_vision_compute_what_eva_computes(base, states):
    pixels = torch.randn(2, 3, 28, 28)
    model = encoders.load(str(base / "eva_qformer"))
    assert isinstance(model, Blip2VisionModel)
    expected = reference.norm(reference.eva(pixels, states["eva"]), states["blip2"], "ln_vision", 1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).last_hidden_state, expected, rtol=1e-5, atol=1e-5)


def test_converted_image_qformer_computes_what_blip2_computes(base, states):
    seen = torch.randn(2, 5, foreign.EVA_WIDTH)
    model, info = Blip2QFormerModel.from_pretrained(
        base / "eva_qformer",
        config=encoders.AutoConfig.from_pretrained(base / "eva_qformer").qformer_config,
        key_mapping={r"^qformer\.": ""},
        output_loading_info=True,
    )
    assert not info["missing_keys"]
    queries = states["blip2"]["query_tokens"]
    with torch.no_grad():
        found = model.eval()(query_embeds=queries.expand(2, -1, -1), encoder_hidden_states=seen).last_hidden_state
    torch.testing.assert_close(
        found, reference.qformer(queries, seen, states["blip2"], "Qformer", 12, 2), rtol=1e-5, atol=1e-5
    )


def test_an_encoder_with_pool_queries_reads_pictures_as_blip2_does(base, states):
    folder = str(base / "eva_qformer")
    config = EncoderArchitecture(base=encoders.load_config(folder, pool="queries"), pool="queries")
    encoder = encoders.Encoder("frames", config, encoders.load(folder, pool="queries"))
    frames = torch.randn(3, 3, 28, 28)
    expected = reference.image_tokens(frames, states["eva"], states["blip2"]).flatten(0, 1)
    torch.testing.assert_close(encoder(frames), expected, rtol=1e-5, atol=1e-5)


def test_one_of_eva_and_blip2_alone_says_that_the_other_is_needed(files, tmp_path, capsys):
    assert run("convert", [str(files["eva"]), f"out={tmp_path / 'base'}"]) == 1
    assert "needs BLIP-2: ln_vision and image Q-Former" in capsys.readouterr().out
    assert run("convert", [str(files["blip2"]), f"out={tmp_path / 'base'}"]) == 1
    assert "needs EVA-CLIP ViT-g image encoder (published as eva_vit_g.pth)" in capsys.readouterr().out
    assert not (tmp_path / "base").exists()


def test_a_missing_block_of_eva_is_named(tmp_path, files, capsys):
    path = foreign.save(foreign.eva(n_blocks=38), tmp_path / "eva.pth", key=None)
    assert run("convert", [str(path), str(files["blip2"]), f"out={tmp_path / 'base'}"]) == 1
    assert "vision_model.encoder.layers.38" in capsys.readouterr().out


def test_a_qformer_of_another_eva_is_refused(tmp_path, files, monkeypatch, capsys):
    monkeypatch.setattr(foreign, "EVA_WIDTH", 64)
    path = foreign.save(foreign.eva(), tmp_path / "eva.pth", key=None)
    assert run("convert", [str(path), str(files["blip2"]), f"out={tmp_path / 'base'}"]) == 1
    assert "the image Q-Former takes states of width 48, EVA gives 64" in capsys.readouterr().out
