"""Runs in the environment of PUBLISHED_PYTHON: the published AffectGPT (2024) code on small inputs.

python published_v1.py CODE FOLDER reads FOLDER/task.json and inputs.pt and writes FOLDER/result.pt, and the weights as
the published files have them. CODE is the folder with `video_llama`. ImageBind is replaced by its output, because the
preset has HuBERT in its place; sizes are small; libraries that are only needed for reading media are empty modules.
"""

import json
import sys
import types
from functools import partial
from pathlib import Path

import torch

WIDTH, HEARD, SIDE = 32, 32, 28


def small_model(task):
    """The published model with 39 EVA blocks, 12 layers of the image Q-Former and 2 of each branch, 24 to 32 wide."""
    from transformers import BertConfig, LlamaTokenizer
    from video_llama.models import blip2, eva_vit, video_llama

    bert = {"hidden_size": 24, "intermediate_size": 96, "vocab_size": 50}
    BertConfig.from_pretrained = classmethod(lambda cls, _: cls(**bert))
    blip2.create_eva_vit_g = lambda *_: eva_vit.VisionTransformer(
        img_size=SIDE, patch_size=14, embed_dim=WIDTH, depth=39, num_heads=16, mlp_ratio=2, qkv_bias=True,
        use_mean_pooling=False, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    load_tokenizer = LlamaTokenizer.from_pretrained
    # transformers 4.28, which the published code names, has only this behaviour.
    LlamaTokenizer.from_pretrained = lambda path, **_: load_tokenizer(path, legacy=True)
    load_llm = video_llama.LlamaForCausalLM.from_pretrained
    video_llama.LlamaForCausalLM = types.SimpleNamespace(
        from_pretrained=lambda path, **_: load_llm(path, torch_dtype=torch.float32)
    )
    torch.save({"model": {}}, "blip2.pth")
    torch.save({}, "imagebind.pth")
    torch.manual_seed(1)
    flags = dict.fromkeys(("llama_proj", "video_Qformer", "audio_Qformer", "audio_llama_proj"), False)
    model = video_llama.VideoLLAMA(
        vit_model="eva_clip_g", q_former_model="blip2.pth", img_size=SIDE, drop_path_rate=0, use_grad_checkpoint=False,
        vit_precision="fp32", num_query_token=32, llama_model=task["llm"], low_resource=False, device_8bit=0,
        llama_proj_model="", num_video_query_token=32, num_audio_query_token=8, imagebind_ckpt_path="imagebind.pth",
        **{f"frozen_{name}": value for name, value in flags.items()},
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("llama_model"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def published_sample(task, inputs, tokenizer, vision):
    """One training sample of the published data set, with its collater, from given frames and sound vectors."""
    from video_llama.datasets.datasets import emotion_instruct_dataset as module

    module.load_video = lambda **_: (inputs["frames"].permute(3, 0, 1, 2).float(), "")
    module.load_and_transform_audio_data = lambda *_, **__: inputs["audio"][None]
    data = module.Emotion_Reasoning_Dataset.__new__(module.Emotion_Reasoning_Dataset)
    data.annotation = [{"name": "a", "subtitle": task["subtitle"], "reason": task["description"]}]
    data.vis_root, data.vis_processor, data.tokenizer = ".", vision, tokenizer
    data.num_audio_query_token, data.num_video_query_token, data.max_length = 8, 32, 512
    data.IGNORE_INDEX = -100
    data.DEFAULT_IMAGE_PATCH_TOKEN, data.DEFAULT_AUDIO_PATCH_TOKEN = "<ImageHere>", "<AudioHere>"
    return data.collater([data[0]])


class Sound(torch.nn.Module):
    def get_audio_feature(self, audio, modality_type):
        return None, audio


def main() -> None:
    code, folder = Path(sys.argv[1]), Path(sys.argv[2])
    sys.path[:0] = [str(code), str(Path(__file__).parent)]
    from published_v2 import Stubs, _register_fake

    torch.library.register_fake = _register_fake
    sys.meta_path.insert(0, Stubs())
    for package in ("", ".common", ".datasets", ".datasets.datasets", ".models", ".processors", ".conversation"):
        module = types.ModuleType(f"video_llama{package}")  # without running its __init__, which imports everything
        module.__path__ = [str(code / "video_llama" / package.strip(".").replace(".", "/"))]
        sys.modules[module.__name__] = module
    imagebind = types.SimpleNamespace(
        imagebind_huge=lambda: (Sound(), HEARD), ImageBindModel=Sound, ModalityType=types.SimpleNamespace(AUDIO="audio")
    )
    models = types.SimpleNamespace(imagebind_model=imagebind)
    sys.modules["video_llama.models.ImageBind.models"] = models
    sys.modules["video_llama.models.ImageBind.models.imagebind_model"] = imagebind
    sys.modules["video_llama.models.ImageBind.data"] = types.SimpleNamespace(load_and_transform_audio_data=None)
    from video_llama.common.registry import registry

    registry.register("MAX_INT", sys.maxsize)
    for kind in ("model", "processor", "builder", "task", "runner"):
        setattr(registry, f"register_{kind}", lambda _: lambda cls: cls)
    from video_llama.processors import video_processor

    processors = sys.modules["video_llama.processors"]
    processors.AlproVideoTrainProcessor = video_processor.AlproVideoTrainProcessor
    processors.Blip2ImageEvalProcessor = object

    task, inputs = json.loads((folder / "task.json").read_text()), torch.load(folder / "inputs.pt")
    model = small_model(task)
    batch = published_sample(task, inputs, model.llama_tokenizer, video_processor.AlproVideoEvalProcessor(SIDE))
    seen = {}
    model.llama_model.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    model.video_Qformer.bert.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(states=kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        loss = model(batch)["loss"]
        n_prompt = int((batch["labels"][0] == -100).sum())
        prompt = seen["inputs_embeds"][:, :n_prompt]
        states = seen["states"][0].view(8, 32, -1) - model.video_frame_position_embedding.weight[:8, None]
        mask = torch.ones(1, n_prompt)
        answer = model.llama_model.generate(
            inputs_embeds=prompt, attention_mask=mask, do_sample=False, max_new_tokens=12
        )
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("llama_model")}
    image = ("Qformer.", "query_tokens", "ln_vision.")
    eva = {name.removeprefix("visual_encoder."): t for name, t in state.items() if name.startswith("visual_encoder.")}
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    torch.save(eva, folder / "eva.pth")
    torch.save({"model": {n: t for n, t in state.items() if n.startswith(image)}}, folder / "blip2_run.pth")
    torch.save({"model": {name: state[name] for name in trained}}, folder / "run.pth")
    result = {
        "ids": batch["input_ids"][0], "labels": batch["labels"][0], "loss": loss, "prompt": prompt[0],
        "states": states.flatten(0, 1), "answer": answer[0].tolist(),
        "placeholders": {"frames": model.IMAGE_PATCH_TOKEN_ID, "audio": model.AUDIO_PATCH_TOKEN_ID},
    }  # fmt: skip
    torch.save(result, folder / "result.pt")


if __name__ == "__main__":
    main()
