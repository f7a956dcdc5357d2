"""Runs in the environment of PUBLISHED_PYTHON: the published AffectGPT (2025) code on small inputs.

python published_v2.py CODE FOLDER reads FOLDER/task.json and inputs.pt and writes FOLDER/result.pt. CODE is the folder
of MER2025_Track23. Libraries that are only needed for reading media are replaced by empty modules.
"""

import importlib.abc
import importlib.machinery
import json
import sys
import types
from pathlib import Path

import torch

_register = torch.library.register_fake


def _register_fake(name, *args, **kwargs):
    """A torchvision built for another torch has no operators, and none is needed."""
    if isinstance(name, str) and name.startswith("torchvision::"):
        return lambda function: function
    return _register(name, *args, **kwargs)


class Empty(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return types.SimpleNamespace(set_bridge=lambda _: None) if name == "bridge" else type(name, (), {})


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    NAMES = ("torchaudio", "decord", "iopath", "pytorchvideo", "webdataset", "toolkit")

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.NAMES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Empty(spec.name)

    def exec_module(self, module):
        pass


def prepare(code: Path, task: dict) -> None:
    """Make the published code importable, with the base models of the task."""
    sys.path.insert(0, str(code))
    torch.library.register_fake = _register_fake
    sys.meta_path.insert(0, Stubs())
    for package in ("", ".datasets", ".datasets.datasets", ".models"):
        module = types.ModuleType(f"my_affectgpt{package}")  # without running its __init__, which imports everything
        module.__path__ = [str(code / "my_affectgpt" / package.strip(".").replace(".", "/"))]
        sys.modules[module.__name__] = module

    import config

    config.PATH_TO_LLM["Qwen25"] = task["llm"]
    config.PATH_TO_AUDIO["HUBERT_LARGE"] = task["hubert"]
    config.PATH_TO_VISUAL["CLIP_VIT_LARGE"] = task["clip"]


def make_model():
    """The published model of its configuration for faces, with random adapters and projections."""
    from my_affectgpt.models.base_model import BaseModel

    sys.modules["my_affectgpt.models"].BaseModel = BaseModel
    from my_affectgpt.models import affectgpt

    load = affectgpt.AutoModelForCausalLM.from_pretrained
    affectgpt.AutoModelForCausalLM = types.SimpleNamespace(
        from_pretrained=lambda path, **_: load(path, torch_dtype=torch.float32)
    )
    torch.manual_seed(1)
    flags = ("video_proj", "video_Qformer", "audio_Qformer", "audio_proj", "llm", "multi_Qformer", "multi_llama_proj")
    kinds = {f"{name}_fusion_type": "attention" for name in ("multi", "video", "audio")}
    model = affectgpt.AffectGPT(
        "CLIP_VIT_LARGE", "HUBERT_LARGE", "Qwen25", lora_r=16, image_fusion_type="mean", **kinds,
        **{f"frozen_{name}": False for name in flags},
        **{f"num_{name}_query_token": 1 for name in ("video", "audio", "multi", "image")},
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, so that adapters would have no effect
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def make_data():
    """The published data set without its clips: prompts, tokens and batches."""
    from my_affectgpt.datasets.datasets.base_dataset import BaseDataset
    from my_affectgpt.models.tokenizer import load_tokenizer_from_LLM

    data = BaseDataset.__new__(BaseDataset)
    data.tokenizer = load_tokenizer_from_LLM("Qwen25")
    for name in ("video", "audio", "multi", "image"):
        setattr(data, f"num_{name}_query_token", 1)
    return data


def make_instance(data, sample: dict, kind: str, shown: str) -> dict:
    """Tokens of a clip's prompt and answer, without media."""
    pair = data.get_qa_pairs("MERCaptionPlus", kind, sample)
    prompt = data.get_prompt_for_multimodal(shown, sample["subtitle"], pair["question"])
    prompt = data.to_token_ids(data.replace_token_for_multimodal(prompt), 1024)
    target = data.to_token_ids(pair["answer"] + "###", 1024)
    labels = torch.cat([torch.full([len(prompt)], -100), target])
    return {"text_input": torch.cat([prompt, target]), "label": labels, "dataset": "d", "face_or_frame": shown}


def complete_model(batches, faces, windows, suppressed) -> dict:
    """Trained tensors (random), soft tokens, loss and greedy answer of the published model on one clip."""
    model, seen = make_model().eval(), {}
    model.llama_model.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    batch = batches["ovlabel multiface_audio_face_text"]
    media = {"faces": faces[None], "raw_faces": faces[None], "audios": windows, "raw_audios": windows}
    with torch.no_grad():
        loss = model({**batch, **media})["loss"]
        n_prompt = int((batch["labels"][0] == -100).sum())
        prompt = seen["inputs_embeds"][:, :n_prompt]
        answer = model.llama_model.generate(
            inputs_embeds=prompt,
            attention_mask=torch.ones(1, n_prompt),
            do_sample=False,
            max_new_tokens=12,
            suppress_tokens=suppressed,
        )
    trained = {name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad}
    return {"trained": {"model": trained}, "loss": loss, "prompt": prompt[0], "answer": answer[0].tolist()}


def main() -> None:
    code, folder = Path(sys.argv[1]), Path(sys.argv[2])
    task, inputs = json.loads((folder / "task.json").read_text()), torch.load(folder / "inputs.pt")
    prepare(code, task)

    import config

    data, result, batches = make_data(), {"ids": {}}, {}
    for kind in ("description", "ovlabel"):
        for shown in task["shown"]:
            batch = batches[f"{kind} {shown}"] = data.collater([make_instance(data, task["sample"], kind, shown)])
            result["ids"][f"{kind} {shown}"] = (batch["input_ids"][0], batch["labels"][0])
    vocabulary = data.tokenizer.get_vocab()
    tokens = {"audio": "AUDIO", "frames": "FRAME", "face": "FACE", "multi": "MULTI"}
    result["placeholders"] = {
        name: vocabulary[getattr(config, f"DEFAULT_{key}_PATCH_TOKEN")] for name, key in tokens.items()
    }

    from my_affectgpt.models.encoder import CLIP_VIT_LARGE, HUBERT_LARGE
    from my_affectgpt.processors.video_processor import load_face

    with torch.no_grad():
        windows = inputs["windows"][None, :, None]  # [1, 8, 1, 32000]
        result["audio"] = HUBERT_LARGE()(windows, windows)[0]
        faces, _ = load_face(task["face"], n_frms=8, height=224, width=224, return_msg=True)
        result["face"] = CLIP_VIT_LARGE()(faces[None], faces[None])[0]

    large, _ = load_face(task["large_face"], n_frms=8, height=224, width=224, return_msg=True)
    result |= complete_model(batches, large, windows, task["suppressed"])
    torch.save(result["trained"], folder / "run.pth")
    torch.save(result, folder / "result.pt")


if __name__ == "__main__":
    main()
