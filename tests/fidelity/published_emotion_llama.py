"""Runs in the environment of PUBLISHED_PYTHON: prompt and answer of Emotion-LLaMA's data set and model code.

python published_emotion_llama.py CODE FOLDER reads FOLDER/task.json and writes FOLDER/result.json. CODE is a checkout
of Emotion-LLaMA; modules that the texts do not need are replaced by empty ones.
"""

import json
import random
import sys
import types
from pathlib import Path

import numpy as np
import torch


def main() -> None:
    code, folder = Path(sys.argv[1]), Path(sys.argv[2])
    sys.path[:0] = [str(code), str(Path(__file__).parent)]
    from published_v2 import Empty, Stubs

    Stubs.NAMES = (*Stubs.NAMES, "skimage", "matplotlib", "torchvision")
    sys.meta_path.insert(0, Stubs())
    for package in ("", ".datasets", ".datasets.datasets", ".models", ".processors", ".common"):
        module = types.ModuleType(f"minigpt4{package}")
        module.__path__ = [str(code / "minigpt4" / package.strip(".").replace(".", "/"))]
        sys.modules[module.__name__] = module
    registry = types.SimpleNamespace(registry=types.SimpleNamespace(register_processor=lambda _: lambda cls: cls))
    sys.modules["minigpt4.common.registry"] = registry
    sys.modules["minigpt4.models.base_model"] = types.SimpleNamespace(BaseModel=torch.nn.Module)
    sys.modules["minigpt4.datasets.datasets.base_dataset"] = types.SimpleNamespace(BaseDataset=object)
    for name in ("minigpt4.conversation", "minigpt4.conversation.conversation", "minigpt4.processors.randaugment"):
        sys.modules[name] = Empty(name)
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
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
