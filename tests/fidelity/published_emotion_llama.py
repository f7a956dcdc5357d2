"""Runs in the environment of PUBLISHED_PYTHON: Emotion-LLaMA's data set and model code on small inputs.

python published_emotion_llama.py CODE FOLDER reads FOLDER/task.json and inputs.pt and writes FOLDER/result.json (prompt
and answer as token ids), result.pt (soft tokens, loss, answer) and run.pth and eva.pth, the weights in the published
layout. CODE is a checkout of Emotion-LLaMA; modules that neither needs are replaced by empty ones.
"""

import json
import random
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import torch

WIDTH, SIDE = 32, 448  # of the small EVA; its 1024 patches are what the prompt counts on


def prepare(code: Path) -> None:
    """Make the published package importable without what reads media or trains."""
    sys.path[:0] = [str(code), str(Path(__file__).parent)]
    from published_v2 import Empty, Stubs, _register_fake

    torch.library.register_fake = _register_fake
    import peft

    Stubs.NAMES = (*Stubs.NAMES, "skimage", "matplotlib")
    sys.meta_path.insert(0, Stubs())
    for package in ("", ".datasets", ".datasets.datasets", ".models", ".processors", ".common"):
        module = types.ModuleType(f"minigpt4{package}")
        module.__path__ = [str(code / "minigpt4" / package.strip(".").replace(".", "/"))]
        sys.modules[module.__name__] = module
    kinds = {f"register_{kind}": lambda _: lambda cls: cls for kind in ("processor", "model")}
    sys.modules["minigpt4.common.registry"] = types.SimpleNamespace(registry=types.SimpleNamespace(**kinds))
    sys.modules["minigpt4.datasets.datasets.base_dataset"] = types.SimpleNamespace(BaseDataset=object)
    for name in ("minigpt4.conversation", "minigpt4.conversation.conversation", "minigpt4.processors.randaugment"):
        sys.modules[name] = Empty(name)

    def frozen(model):  # removed from peft; of its work only this concerns a model in fp32
        return model.requires_grad_(False)

    peft.prepare_model_for_int8_training = frozen


def small_model(cls, llm: str):
    """The published model with 39 EVA blocks of width 32 and a small LLM in fp32; all that trains is random."""
    from minigpt4.models import base_model, eva_vit

    load = base_model.LlamaForCausalLM.from_pretrained
    base_model.LlamaForCausalLM = types.SimpleNamespace(
        from_pretrained=lambda path, **_: load(path, torch_dtype=torch.float32)
    )
    base_model.create_eva_vit_g = lambda *_: eva_vit.VisionTransformer(
        img_size=SIDE, patch_size=14, embed_dim=WIDTH, depth=39, num_heads=16, mlp_ratio=2, qkv_bias=True,
        use_mean_pooling=False, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    torch.manual_seed(1)
    return cls(llama_model=llm, img_size=SIDE, vit_precision="fp32", end_sym="</s>", chat_template=True)


def run(model, samples: dict) -> dict:
    """Prompt with soft tokens, loss and greedy answer of the published model, and its weights as it saves them."""
    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or name.startswith("visual_encoder"):
                parameter.add_(torch.randn_like(parameter) * 0.05)
    seen = {}
    llm = model.llama_model
    handle = llm.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        loss = model(samples)["loss"]
        handle.remove()
        n_prompt = int((seen["labels"][0] == -100).sum())
        embeds, mask = seen["inputs_embeds"][:, :n_prompt], seen["attention_mask"][:, :n_prompt]
        prompt, answer = embeds[0].clone(), []
        for _ in range(12):  # its forward does not take what `generate` of transformers 4.49 passes
            token = llm(inputs_embeds=embeds, attention_mask=mask, return_dict=True).logits[:, -1].argmax(dim=-1)
            answer.append(int(token))
            embeds = torch.cat([embeds, model.embed_tokens(token[None])], dim=1)
            mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
    trained = {name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad}
    return {
        "loss": loss, "prompt": prompt, "mask": seen["attention_mask"][0], "answer": answer,
        "run": {"model": trained}, "eva": dict(model.visual_encoder.state_dict()),
    }  # fmt: skip


def complete_model(task: dict, inputs: dict) -> dict:
    from minigpt4.models.minigpt_v2 import MiniGPTv2

    model = small_model(MiniGPTv2, task["llm"])
    width = model.llama_model.config.hidden_size
    model.cls_tk_llama_proj = torch.nn.Linear(WIDTH, width)  # the code has the published sizes as numbers
    for place in (1, 2, 3):
        setattr(model, f"feats_llama_proj{place}", torch.nn.Linear(inputs["vectors"].shape[-1], width))
    samples = {
        "image": inputs["image"], "video_features": inputs["vectors"], "emotion": None,
        "instruction_input": [task["instruction"]], "answer": [task["answer"]],
    }  # fmt: skip
    return run(model, samples)


def complete_model_v2(task: dict, inputs: dict) -> dict:
    """The same of Emotion-LLaMA v2, and the loss without the video: as its code computes it, and with its mask.

    Its `encode_img` makes a mask of the absent streams, and `prompt_wrap` puts ones in its place.
    """
    from minigpt4.models import emotion_llama_v2

    make, sizes = emotion_llama_v2.ConvProAttention, {1408: WIDTH, 1280: inputs["audio"].shape[-1]}
    emotion_llama_v2.ConvProAttention = lambda dims, **other: make([sizes[size] for size in dims], **other)
    model = small_model(emotion_llama_v2.EmotionLLaMAv2, task["llm"])
    width = model.llama_model.config.hidden_size
    model.llama_proj_video = torch.nn.Linear(WIDTH, width)  # the code has the published sizes as numbers
    model.llama_proj_audio = torch.nn.Linear(inputs["audio"].shape[-1], width)
    encode = model.encode_img

    def encode_small(image, video, audio):  # it views the features with the published widths
        for name, value in (("1408", video), ("1280", audio)):
            assert value.shape[1:3] == (1, 64), name
        return encode(image, Narrow(video), Narrow(audio))

    model.encode_img = encode_small
    samples = {"image": inputs["image"], "audio_features": inputs["audio"], "video_features": inputs["video"]}
    samples |= {"instruction_input": [task["instruction"]], "answer": [task["answer"]]}
    found = run(model, dict(samples))
    seen = {}
    model.llama_model.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        absent = {**samples, "video_features": torch.zeros_like(inputs["video"])}
        found["loss with a projected zero"] = model(absent)["loss"]
        media = model.encode_img(absent["image"], absent["video_features"], absent["audio_features"])[1]
        before = len(model.llama_tokenizer("[INST] <Vid>").input_ids)  # the beginning-of-sequence token is one of them
        mask = seen["attention_mask"].clone()
        mask[:, before : before + media.shape[1]] = media
        found["loss without video"] = model.llama_model(**{**seen, "attention_mask": mask})["loss"]
    return found


class Narrow(torch.Tensor):
    """Features whose `view` takes the published widths for their own."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_subclass(cls, values)

    def view(self, *shape):
        return torch.Tensor(self).view(*shape[:2], -1)


def run_v2(folder: Path) -> None:
    task = json.loads((folder / "task.json").read_text())
    found = complete_model_v2(task, torch.load(folder / "inputs.pt"))
    torch.save(found.pop("run"), folder / "run.pth")
    torch.save(found.pop("eva"), folder / "eva.pth")
    torch.save(found, folder / "result.pt")


def main() -> None:
    code, folder = Path(sys.argv[1]), Path(sys.argv[2])
    prepare(code)
    if (code / "minigpt4" / "models" / "emotion_llama_v2.py").is_file():
        return run_v2(folder)
    from minigpt4.datasets.datasets.first_face import FeatureFaceDataset
    from minigpt4.models.minigpt_base import MiniGPTBase
    from minigpt4.processors.blip_processors import BlipCaptionProcessor
    from transformers import LlamaTokenizer

    task = json.loads((folder / "task.json").read_text())
    import pandas as pd

    data = FeatureFaceDataset.__new__(FeatureFaceDataset)
    torch.utils.data.Dataset.__init__(data)
    data.text_processor, data.vis_processor = BlipCaptionProcessor(), lambda image: image
    data.vis_root, data.tmp = ".", [["a", "0", task["label"]]]
    data.emo2idx = {task["label"]: 0}
    data.MERR_coarse_grained_dict = {"a": {"caption": task["description"]}}
    data.character_lines = pd.DataFrame({"name": ["a"], "sentence": [task["subtitle"]]})
    data.extract_frame = lambda _: np.zeros((2, 2, 3))
    data.get = lambda _: (torch.zeros(1024),) * 3
    data.emotion_instruction_pool = task["emotion_questions"]
    data.reason_instruction_pool = task["reason_questions"]
    model = MiniGPTBase.__new__(MiniGPTBase)
    torch.nn.Module.__init__(model)
    model.llama_tokenizer = LlamaTokenizer.from_pretrained(task["llm"])
    model.llama_tokenizer.pad_token = "$$"
    model.embed_tokens = lambda ids: ids[..., None].float()  # the embedding of a token is its id
    model.max_context_len = 3800
    markers = -torch.arange(1, 261)[None, :, None].float()  # 256 patches, three vectors, the class token
    result = {}
    for name in ("emotion", "reason"):
        data.task_pool = [name]
        random.seed(0)
        sample = data[0]
        prompt = "[INST] {} [/INST]".format(sample["instruction_input"])
        embeds, _ = model.prompt_wrap(markers, None, [prompt])
        answer = model.llama_tokenizer(sample["answer"] + "</s>", add_special_tokens=False).input_ids
        bos = model.llama_tokenizer.bos_token_id
        result[name] = {"prompt": [bos, *(int(each) for each in embeds[0, :, 0])], "answer": answer}
        task |= {"instruction": sample["instruction_input"], "answer": sample["answer"]}  # of the last task
    (folder / "result.json").write_text(json.dumps(result))

    found = complete_model(task, torch.load(folder / "inputs.pt"))
    torch.save(found.pop("run"), folder / "run.pth")
    torch.save(found.pop("eva"), folder / "eva.pth")
    torch.save(found, folder / "result.pt")


if __name__ == "__main__":
    main()
