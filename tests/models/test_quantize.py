import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from affectgpt.config import LoraConfig
from affectgpt.inference import loading
from affectgpt.models import build, load_trained, trainable_table
from affectgpt.models.checkpoint import save_trained
from affectgpt.models.quantize import check_shapes, loading_options
from affectgpt.runtime import MissingLibrary
from tests.models import tiny

pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A LLaMA of width 128: wide enough that its scales weigh little beside its weights."""
    folder = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        vocab_size=96, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The tiny base models with an LLM of width 128: bitsandbytes packs rows in blocks of 64."""
    paths = tiny.write_base_models(tmp_path_factory.mktemp("base"))
    config = AutoConfig.from_pretrained(paths["llm"])
    config.update({"hidden_size": 128, "intermediate_size": 256, "head_dim": 64})
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(paths["llm"])
    return paths


def read(folder, quantization):
    options = loading_options(quantization, torch.float32)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


def batch(processor):
    rows = [
        processor.encode(tiny.question("audio", "frames"), tiny.media("audio", "frames", seed=n), answer=f"sad {n}")
        for n in range(2)
    ]
    return processor.collate(rows)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of the parameters of `module`, with the scales of quantized ones."""
    total = 0
    for parameter in module.parameters():
        total += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        scales = [getattr(parameter, "SCB", None)]
        if state is not None:
            scales += [state.absmax, state.code]
            if state.nested:
                scales += [state.state2.absmax, state.state2.code]
        total += sum(scale.numel() * scale.element_size() for scale in scales if scale is not None)
    return total


@pytest.mark.parametrize(("quantization", "bits", "error"), [("nf4", 4.4, 0.2), ("int8", 8.3, 0.03)])
def test_packed_weights_are_smaller_and_answer_nearly_alike(wide, quantization, bits, error):
    pytest.importorskip("bitsandbytes", reason="needs the quantization extra")
    whole, packed = read(wide, None), read(wide, quantization)
    linear = sum(p.numel() for name, p in whole.named_parameters() if name.endswith("proj.weight"))
    saved = weight_bytes(whole) - weight_bytes(packed)
    assert saved == pytest.approx(linear * (32 - bits) / 8, rel=0.01)
    ids = torch.arange(96).reshape(4, 24)
    with torch.no_grad():
        expected, found = whole(ids).logits, packed(ids).logits
    assert (found - expected).std() < error * expected.std()
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_only_projections_and_adapters_learn_through_a_packed_llm(paths, quantization):
    pytest.importorskip("bitsandbytes", reason="needs the quantization extra")
    spec = tiny.tiny_spec(
        paths,
        quantization=quantization,
        lora=LoraConfig(r=2, target_modules=["q_proj"]),
    )
    model, processor = build(spec)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**batch(processor)).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.startswith("projectors.") or ".lora_" in name for name in with_gradient)
    assert losses[-1] < losses[0] - 0.1


def test_a_checkpoint_remembers_how_its_llm_was_packed(paths, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs the quantization extra")
    model, processor = build(tiny.tiny_spec(paths, quantization="nf4"))
    model.eval()
    save_trained(model, processor, tmp_path)
    inputs = batch(processor)
    with torch.no_grad():
        expected = model(**inputs).logits
        same, _ = load_trained(tmp_path)
        assert torch.equal(same(**inputs).logits, expected)
        unpacked, _ = load_trained(tmp_path, llm_quantization="none")
        assert not torch.equal(unpacked(**inputs).logits, expected)
    packed = next(line for line in trainable_table(model).splitlines() if line.startswith("language_model"))
    whole = next(line for line in trainable_table(unpacked).splitlines() if line.startswith("language_model"))
    assert packed == whole  # counted as weights, not as bytes


@pytest.mark.parametrize(("rows", "columns"), [(32, 64), (64, 128), (32, 96), (32, 32), (48, 64), (31, 63)])
def test_a_shape_is_refused_where_its_answer_would_fail(rows, columns):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the quantization extra")
    torch.manual_seed(0)
    packed = bitsandbytes.nn.Linear4bit(columns, rows, bias=False, quant_type="nf4").to("cpu").requires_grad_(False)
    model = nn.ModuleDict({"proj": packed}).eval()
    refused = failed = False
    try:
        check_shapes(model, torch.device("cpu"))
    except ValueError:
        refused = True
    try:
        model["proj"](torch.ones(1, 2, columns))
    except (AssertionError, RuntimeError):
        failed = True
    assert refused == failed


def test_a_checkpoint_asked_for_in_nf4_names_the_layer_that_is_too_narrow(bases, tmp_path, monkeypatch):
    """The tiny LLM is 32 wide. Other CPUs than those with AVX-512 BF16 take it."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the quantization extra")
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model, processor = build(tiny.tiny_spec(bases))
    save_trained(model, processor, tmp_path / "best")
    with pytest.raises(ValueError, match="nf4") as raised:
        loading.load(str(tmp_path / "best"), tmp_path, device="cpu", quantization="nf4")
    assert str(raised.value).startswith(
        "nf4: language_model.model.layers.0.self_attn.q_proj is [32, 32] (and 11 more layers); "
        "on this CPU rows must be a multiple of 32 and columns one of 64. Set model.llm.quantization=int8"
    )
    packed, _ = load_trained(tmp_path / "best", llm_quantization="nf4")
    assert isinstance(
        packed.get_submodule("language_model.model.layers.0.self_attn.q_proj"), bitsandbytes.nn.Linear4bit
    )
    check_shapes(packed, torch.device("cuda"))  # a GPU takes it
    loading.load(str(tmp_path / "best"), tmp_path, device="cpu", quantization="int8")


def test_an_unknown_packing_and_a_missing_package_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"'int3' is unknown; expected null or one of \['nf4', 'int8'\]"):
        loading_options("int3", torch.float32)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingLibrary, match=r"nf4 needs bitsandbytes: pip install 'affectgpt\[quantization\]'"):
        loading_options("nf4", torch.float32)
