"""The small base models of the embedded demo, in the on-disk formats of the real ones.

    hubert/     HubertModel           16 kHz audio, 50 states per second
    eva/        Blip2VisionModel      the layout of EVA-CLIP ViT-g, one image at a time
    videomae/   VideoMAEModel         16 frames, tubelets of two
    llm/        LlamaForCausalLM      with a sentencepiece tokenizer

Like real base models, they are trained on other data than the corpus: the encoders are trained on other people to
predict action units, gaze, head pose, pitch, loudness and similar targets through a head that is then discarded; no
target is an emotion. The LLM is trained on text to map clues in words to descriptions and labels, because a frozen LLM
with random weights cannot be steered through its inputs.

The package carries them trained (`weights/`, half precision, written by `python -m affectgpt.demo bases=FOLDER`);
first use unpacks them. With other steps or another seed they are trained.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    Blip2VisionConfig,
    Blip2VisionModel,
    HubertConfig,
    HubertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    VideoMAEConfig,
    VideoMAEModel,
)

from affectgpt import prompts
from affectgpt.demo.corpus import MARKER, build_once
from affectgpt.demo.emotions import CHINESE, draw_scene, perform
from affectgpt.demo.face import render_face
from affectgpt.demo.performance import ACTION_UNITS, Performance, sample_curve, syllables
from affectgpt.demo.text import N_LINES, Clues, checked_clues, describe, hide, labels_in_chinese, subtitle_of
from affectgpt.demo.voice import render_voice
from affectgpt.models.processing_affectgpt import AffectGPTProcessor
from affectgpt.runtime import InputError, n_cores, quiet_libraries, stable_hash, write_json_atomic
from affectgpt.schema import Sample
from affectgpt.spread import Processes

Result = TypeVar("Result")

CODE_VERSION = "6"
"""Increased when the same parameters give different models; the stored weights must be trained again then."""
STORED = Path(__file__).with_name("weights")
"""The trained base models that the package carries, their tensors in half precision."""

RATE_HZ = 16000
PEOPLE = 4
"""First person of the base models' training data, in millions; the corpus uses 2 and 3."""
_IMAGES_HZ = 2.0
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Steps:
    """Optimizer steps of each model. The defaults are those of the stored weights; seven minutes on two cores."""

    llm: int = 700
    hubert: int = 400
    eva: int = 800
    videomae: int = 250


def models_folder(cache: str | os.PathLike[str], *, seed: int = 0, steps: Steps | None = None) -> Path:
    """Folder of the base models with these parameters below `cache`."""
    return Path(cache) / f"models-{stable_hash(_parameters(seed, steps))[:12]}"


def build_base_models(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    steps: Steps | None = None,
    n_processes: int | None = None,
    stored: Path = STORED,
) -> None:
    """Write the four base models to `folder`, unless it exists: those of the package unpacked, others trained.

    If several processes need them, one builds. The same arguments give the same weights on the same machine, for any
    `n_processes`: each model is trained in one thread.

    Args:
        seed: seed of weights and batches.
        n_processes: models trained in parallel; None = one per available core.
        stored: folder of packed models, unpacked if they have these parameters.
    """
    parameters = _parameters(seed, steps)
    with build_once(Path(folder), parameters) as target:
        if target is None:
            return
        if (stored / MARKER).is_file() and json.loads((stored / MARKER).read_text()) == parameters:
            for name in MODELS:
                _copy(stored / name, target / name, torch.float32)
            return
        jobs = _trainings(target, seed, steps or Steps())  # the longest first
        for _ in Processes(min(n_processes or n_cores(), len(jobs))).map(in_one_thread, jobs):
            pass


MODELS = ("llm", "eva", "hubert", "videomae")


def _trainings(folder: Path, seed: int, steps: Steps) -> list[Callable[[], None]]:
    makers = {"llm": make_llm, "eva": make_eva, "hubert": make_hubert, "videomae": make_videomae}
    return [partial(makers[name], folder / name, seed=seed, n_steps=getattr(steps, name)) for name in MODELS]


def store_base_models(folder: Path, *, seed: int = 0, steps: Steps | None = None) -> None:
    """Train the base models and write them to `folder` as the package carries them.

    Raises:
        InputError: `folder` exists.
    """
    if folder.exists():
        raise InputError(f"{folder} exists; name a folder that does not, or delete it")
    with TemporaryDirectory() as trained:
        jobs = _trainings(Path(trained), seed, steps or Steps())
        for _ in Processes(min(n_cores(), len(jobs))).map(in_one_thread, jobs):
            pass
        pack(Path(trained), folder, _parameters(seed, steps))


def pack(trained: Path, folder: Path, parameters: dict[str, Any]) -> None:
    """Copy the base models, their tensors in half precision."""
    for name in MODELS:
        _copy(trained / name, folder / name, torch.float16)
    write_json_atomic(folder / MARKER, parameters)


def _copy(source: Path, folder: Path, dtype: torch.dtype) -> None:
    shutil.copytree(source, folder)
    weights = folder / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})


def build_second_llm(cache: Path, *, seed: int = 0, n_steps: int | None = None) -> Path:
    """Train a second LLM for comparisons with `llm`, unless it exists; returns its folder below `cache`."""
    parameters = {"code": CODE_VERSION, "seed": seed, "steps": n_steps or Steps().llm, "kind": "qwen2"}
    folder = cache / f"models-{stable_hash(parameters)[:12]}" / "llm_qwen2"
    with build_once(folder, parameters) as target:
        if target is not None:
            in_one_thread(partial(make_qwen2, target, seed=seed, n_steps=parameters["steps"]))
    return folder


def _parameters(seed: int, steps: Steps | None) -> dict[str, Any]:
    return {"code": CODE_VERSION, "seed": seed, "steps": asdict(steps or Steps())}


def in_one_thread(job: Callable[[], Result]) -> Result:
    """The result of `job`, run with one torch thread, restoring the global random state afterwards."""
    quiet_libraries()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            return job()
    finally:
        torch.set_num_threads(before)


# ---- training --------------------------------------------------------------------------------------------------------


def train(
    name: str, parameters: list[nn.Parameter], losses: Iterator[Tensor], n_steps: int, *, rate: float = 3e-3
) -> list[float]:
    """Run `n_steps` optimizer steps on the losses of the iterator and return the losses.

    Matrices are updated by Muon (Jordan 2024: orthogonalized momentum), scaled to AdamW's learning rate; other
    parameters by AdamW. At this size Muon needs half as many steps as AdamW. Linear warm-up and decay.
    """
    matrices = [parameter for parameter in parameters if parameter.ndim == 2 and max(parameter.shape) < 1000]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in parameters if id(parameter) not in chosen]
    adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    momenta = [torch.zeros_like(parameter) for parameter in matrices]
    history = []
    for step in tqdm(range(n_steps), desc=f"training {name}", unit="step", mininterval=1.0):
        scale = min(1, (step + 1) / 30) * max(0.03, 1 - step / n_steps)
        for parameter in parameters:
            parameter.grad = None
        loss = next(losses)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.param_groups[0]["lr"] = rate * scale
        adam.step()
        with torch.no_grad():
            for parameter, momentum in zip(matrices, momenta, strict=True):
                if parameter.grad is not None:
                    momentum.lerp_(parameter.grad, 0.05)
                    update = orthogonalize(parameter.grad.lerp(momentum, 0.95))
                    parameter.sub_(update, alpha=rate * scale * 0.2 * math.sqrt(max(parameter.shape)))
        history.append(loss.item())
    return history


def orthogonalize(matrix: Tensor) -> Tensor:
    """Approximate the nearest orthogonal matrix by five Newton-Schulz iterations."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def _save(model: PreTrainedModel, folder: Path, preprocessor: dict[str, Any] | None = None) -> None:
    model.eval().save_pretrained(folder)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


def draw_performances(n: int, seed: int, topic: int) -> list[Performance]:
    """Performances of `n` different people who are not in the corpus."""
    rng = np.random.default_rng([seed, PEOPLE, topic])
    first = (seed * 10 + PEOPLE) * 1_000_000 + topic * 100_000
    scenes = [draw_scene(rng, person=first + number, n_lines=N_LINES) for number in range(n)]
    return [perform(scene, subtitle_of(scene)) for scene in scenes]


# ---- images ----------------------------------------------------------------------------------------------------------


def face_targets(performance: Performance, times: np.ndarray) -> np.ndarray:
    """Action units, gaze and head pose at `times`, scaled to about 1 -> float32 [T, 24]."""
    units = [sample_curve(performance.action_units.get(name, ((0.0, 0.0),)), times) for name in ACTION_UNITS]
    gaze = [sample_curve(curve, times) for curve in performance.gaze]
    head = [sample_curve(curve, times) / 10 for curve in performance.head]
    return np.stack([*units, *gaze, *head], axis=1).astype(np.float32)


N_FACE_TARGETS = len(ACTION_UNITS) + 5


def make_eva(folder: Path, *, seed: int, n_steps: int) -> None:
    torch.manual_seed(seed)
    config = Blip2VisionConfig(
        image_size=112, patch_size=16, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=384, attention_dropout=0.0, qkv_bias=True, initializer_range=0.05,
    )  # fmt: skip
    model = Blip2VisionModel(config).train()
    # About one image per training sample: with fewer people, the model memorises identities.
    images, targets = render_images(max(20, n_steps * 16 // 6), config.image_size, seed)
    targets = standardize(targets)
    _principal_patches(model.embeddings.patch_embedding, images, CLIP_MEAN, CLIP_STD)
    head = nn.Linear(config.hidden_size, N_FACE_TARGETS)
    rng = np.random.default_rng(seed)

    def losses() -> Iterator[Tensor]:
        while True:
            chosen = rng.integers(len(images), size=16)
            pixels = normalize(images[chosen], CLIP_MEAN, CLIP_STD)  # [B, 3, H, W]
            states = model(pixels).last_hidden_state  # [B, 1 + P, E]
            # Train both readouts: the mean over patches and the class token.
            guesses = torch.stack([head(states[:, 1:].mean(dim=1)), head(states[:, 0])])  # [2, B, targets]
            yield nn.functional.mse_loss(guesses, targets[chosen].expand(2, -1, -1))

    train("eva", [*model.parameters(), *head.parameters()], losses(), n_steps, rate=4e-3)
    _save(model, folder, {
        "image_processor_type": "BlipImageProcessor", "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
        "size": {"height": config.image_size, "width": config.image_size},
    })  # fmt: skip


def make_videomae(folder: Path, *, seed: int, n_steps: int) -> None:
    torch.manual_seed(seed)
    config = VideoMAEConfig(
        image_size=56, patch_size=14, num_frames=16, tubelet_size=2, hidden_size=96, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=288, decoder_hidden_size=96, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4, decoder_intermediate_size=192, initializer_range=0.05,
    )  # fmt: skip
    model = VideoMAEModel(config).train()
    videos, targets = render_videos(max(20, n_steps * 6 // 2), config.image_size, config.num_frames, seed)
    targets = standardize(targets)
    head = nn.Linear(config.hidden_size, N_FACE_TARGETS)
    rng = np.random.default_rng(seed)
    n_steps_of_clip = config.num_frames // config.tubelet_size

    def losses() -> Iterator[Tensor]:
        while True:
            chosen = rng.integers(len(videos), size=6)
            pixels = normalize(videos[chosen].flatten(0, 1), IMAGENET_MEAN, IMAGENET_STD)  # [B*T, 3, H, W]
            states = model(pixels.unflatten(0, (len(chosen), -1))).last_hidden_state  # [B, T'*P, E]
            states = states.unflatten(1, (n_steps_of_clip, -1)).mean(dim=2)  # [B, T', E]
            wanted = targets[chosen].unflatten(1, (n_steps_of_clip, -1)).mean(dim=2)  # [B, T', targets]
            yield nn.functional.mse_loss(head(states), wanted)

    train("videomae", [*model.parameters(), *head.parameters()], losses(), n_steps, rate=4e-3)
    _save(model, folder, {
        "image_processor_type": "VideoMAEImageProcessor", "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD,
        "size": {"height": config.image_size, "width": config.image_size},
    })  # fmt: skip


def render_images(n_people: int, size_px: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames of each person -> uint8 [N, H, W, 3] and targets [N, 24]."""
    images, targets = [], []
    for performance in tqdm(draw_performances(n_people, seed, 1), desc="drawing faces", unit="person", mininterval=1.0):
        shown = render_face(performance, size_px=size_px, rate_hz=_IMAGES_HZ)
        images.append(shown)
        targets.append(face_targets(performance, np.arange(len(shown)) / _IMAGES_HZ))
    return torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(targets))


def render_videos(n_people: int, size_px: int, n_frames: int, seed: int) -> tuple[Tensor, Tensor]:
    """`n_frames` frames of each person -> uint8 [N, T, H, W, 3] and targets [N, T, 24]."""
    images, targets = [], []
    for performance in tqdm(
        draw_performances(n_people, seed, 2), desc="drawing videos", unit="person", mininterval=1.0
    ):
        rate_hz = n_frames / performance.duration_s
        images.append(render_face(performance, size_px=size_px, rate_hz=rate_hz))
        targets.append(face_targets(performance, np.arange(n_frames) / rate_hz))
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(targets))


def standardize(targets: Tensor) -> Tensor:
    """Scale targets to unit variance, except nearly constant ones, so that rare action units count.  [..., 24]"""
    flat = targets.flatten(0, -2)
    return (targets - flat.mean(dim=0)) / flat.std(dim=0).clamp(min=0.05)


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W]"""
    scaled = (images.float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    return scaled.permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def _principal_patches(embedding: nn.Conv2d, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Initialise the patch embedding with principal components of patches, which saves most of the first epoch."""
    size = embedding.kernel_size[0]
    pixels = normalize(images[:: max(1, len(images) // 200)], mean, std)
    patches = nn.functional.unfold(pixels, size, stride=size).transpose(1, 2).flatten(0, 1)  # [N*P, 3*size*size]
    centred = patches - patches.mean(dim=0)
    _, values, components = torch.linalg.svd(centred[torch.randperm(len(centred))[:2000]], full_matrices=False)
    n = min(embedding.out_channels, len(components))
    # Equal variance of all components after the projection, unless their variance is negligible.
    spread = (values[:n] / math.sqrt(min(2000, len(centred)))).clamp(min=values[0] * 1e-3)
    embedding.weight[:n] = (components[:n] / spread[:, None] * 0.3).view(n, 3, size, size)


# ---- audio -----------------------------------------------------------------------------------------------------------

_FRAME_S = 0.02  # spacing of HuBERT's states
_CROP_S = 2.0


def voice_targets(performance: Performance, n_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets scaled to about 1: pitch, loudness and speaking per frame [F, 3], and nine of the clip [9].

    Those of the clip are rate, tremor, breathiness, brightness, breaks, melody, fall of pitch, mean loudness and mean
    pitch. Pitch is absolute.
    """
    voice = performance.voice
    if voice is None:
        raise ValueError("a performance without a voice has no voice targets")
    times = (np.arange(n_frames) + 0.5) * _FRAME_S
    ratio, loudness_db = sample_curve(voice.pitch_ratio, times), sample_curve(voice.loudness_db, times)
    octaves = np.log2(performance.identity.base_pitch_hz * ratio / 150)
    speaking = np.zeros(n_frames)
    for syllable in syllables(performance):
        speaking[(times >= syllable.start_s) & (times < syllable.stop_s)] = 1
    quarter = max(1, n_frames // 4)
    clip = [
        (voice.syllable_rate_hz - 4.4) / 1.2,
        voice.tremor * 2,
        voice.breathiness * 4,
        voice.brightness * 2,
        len(voice.breaks) * 0.7,
        np.std(np.log(ratio)) * 12,
        (ratio[-quarter:].mean() - ratio[:quarter].mean()) * 8,
        loudness_db.mean() / 4,
        octaves.mean() * 1.5,
    ]
    return np.stack([octaves * 1.5, loudness_db / 5, speaking], axis=1).astype(np.float32), np.array(clip, np.float32)


def make_hubert(folder: Path, *, seed: int, n_steps: int) -> None:
    torch.manual_seed(seed)
    config = HubertConfig(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=384,
        conv_dim=(128, 128), conv_kernel=(400, 4), conv_stride=(160, 2), conv_bias=True, feat_extract_norm="layer",
        num_conv_pos_embeddings=31, num_conv_pos_embedding_groups=8, do_stable_layer_norm=True, feat_proj_dropout=0.0,
        hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, layerdrop=0.0, mask_time_prob=0.0,
    )  # fmt: skip
    model = HubertModel(config).train()
    _filter_bank(model.feature_extractor.conv_layers[0].conv)
    speakers = draw_performances(max(20, n_steps * 12 // 4), seed, 3)
    clips = [render_voice(speaker) for speaker in tqdm(speakers, desc="speaking", unit="person", mininterval=1.0)]
    known = [voice_targets(speaker, len(samples) // 320 + 10) for samples, speaker in zip(clips, speakers, strict=True)]
    frame_head, clip_head = nn.Linear(config.hidden_size, 3), nn.Linear(config.hidden_size, 9)
    rng = np.random.default_rng(seed)
    n_samples = round(_CROP_S * RATE_HZ)

    def losses() -> Iterator[Tensor]:
        while True:
            crops, per_frame, per_clip = [], [], []
            for number in rng.integers(len(clips), size=12):
                samples = clips[number]
                first = int(rng.integers(max(1, (len(samples) - n_samples) // 320)))  # in states
                crop = samples[first * 320 : first * 320 + n_samples]
                crops.append(np.pad(crop, (0, n_samples - len(crop))))
                per_frame.append(known[number][0][first:])
                per_clip.append(known[number][1])
            states = model(torch.from_numpy(np.stack(crops))).last_hidden_state  # [B, F, E]
            wanted = torch.from_numpy(np.stack([rows[: states.shape[1]] for rows in per_frame]))
            speaking = wanted[..., 2:]
            weight = torch.cat([speaking, speaking, torch.ones_like(speaking)], dim=-1)  # silence has no pitch
            frame_loss = ((frame_head(states) - wanted) ** 2 * weight).sum() / weight.sum()
            of_clip = torch.from_numpy(np.stack(per_clip))
            yield frame_loss + nn.functional.mse_loss(clip_head(states.mean(dim=1)), of_clip)

    parameters = [*model.parameters(), *frame_head.parameters(), *clip_head.parameters()]
    train("hubert", parameters, losses(), n_steps)
    _save(model, folder, {
        # Normalising would remove the loudness.
        "feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": False, "sampling_rate": RATE_HZ,
        "feature_size": 1, "padding_value": 0.0, "return_attention_mask": True,
    })  # fmt: skip


@torch.no_grad()
def _filter_bank(conv: nn.Conv1d) -> None:
    """Initialise the first layer as a mel filter bank: windowed waves from 70 Hz to 6 kHz."""
    n, length = conv.out_channels // 2, conv.kernel_size[0]
    mel = np.linspace(*(2595 * np.log10(1 + hz / 700) for hz in (70, 6000)), n)
    phase = 2 * np.pi * 700 * (10 ** (mel[:, None] / 2595) - 1) * (np.arange(length) - length / 2) / RATE_HZ
    waves = np.concatenate([np.cos(phase), np.sin(phase)]) * np.hanning(length) * 0.06
    conv.weight.copy_(torch.from_numpy(waves)[:, None])
    # The next layer norm would remove the loudness; a random bias preserves it.
    conv.bias.normal_(std=0.15)


# ---- language --------------------------------------------------------------------------------------------------------

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}{{ 'USER: ' + message['content'] + ' ASSISTANT:' }}"
    "{% endif %}{% endfor %}"
)
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
N_TOKENIZER_TEXTS = 6000
MAX_VOCABULARY = 2400
_SURPRISED_AT_FIRST = "surprise first"


@dataclass(frozen=True)
class TextExample:
    """A chat about a clip, with clues in words in place of soft tokens."""

    sample: Sample
    task: str
    notes: dict[str, str]  # modality -> clue words


def draw_text(rng: np.random.Generator, *, chinese_share: float = 0.16) -> TextExample:
    """Draw a scene, a subset of its clues, and a task."""
    scene = draw_scene(rng, person=0, n_lines=N_LINES)
    lang = "zh" if rng.random() < chinese_share else "en"
    hidden = [(), *combinations(("video", "audio", "subtitle"), 1), *combinations(("video", "audio", "subtitle"), 2)]
    unknown = hidden[rng.choice(7, p=(0.46, 0.09, 0.09, 0.09, 0.09, 0.09, 0.09))]
    clues = hide(checked_clues(scene), **dict.fromkeys(unknown, True))
    modalities = ("audio",) if clues.heard else ()
    if clues.seen:
        modalities += (("frames",), ("frames", "motion"), ("motion",))[rng.choice(3, p=(0.4, 0.5, 0.1))]
    sample = Sample(
        id="text",
        subtitle=subtitle_of(scene, lang) if clues.situation else None,
        description=describe(clues, lang, rng),
        labels=clues.labels if lang == "en" else labels_in_chinese(clues.labels),
        lang=lang,
        modalities=modalities,
    )
    task = ("labels", "both", "description")[rng.choice(3, p=(0.4, 0.5, 0.1))]
    return TextExample(sample, task, {name: clue_words(clues, name, rng) for name in modalities})


def clue_words(clues: Clues, modality: str, rng: np.random.Generator) -> str:
    """Clue words in random order, some left out: encoders provide evidence, not sentences."""
    words = list(clues.attributes)
    if modality != "audio":
        words = [*(clues.gestures or ("still face",)), clues.intensity, *[_SURPRISED_AT_FIRST] * clues.opening]
    kept = [word for word in words if rng.random() > 0.15] or words[:1]
    return " ".join(kept[place] for place in rng.permutation(len(kept)))


def make_llm(folder: Path, *, seed: int, n_steps: int) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 7])
    make_tokenizer(folder, rng, n_texts=N_TOKENIZER_TEXTS)
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
        max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=None,
    )  # fmt: skip
    _save(_train_llm(LlamaForCausalLM(config).train(), tokenizer, rng, n_steps), folder)


def make_qwen2(folder: Path, *, seed: int, n_steps: int) -> None:
    """An LLM with Qwen2's layers, byte-level tokenizer and chat format, trained on the same kind of texts."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 8])
    tokenizer = make_byte_tokenizer(folder, rng, n_texts=N_TOKENIZER_TEXTS)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    _save(_train_llm(Qwen2ForCausalLM(config).train(), tokenizer, rng, n_steps), folder)


def _train_llm(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rng: np.random.Generator, n_steps: int
) -> PreTrainedModel:
    """Train an LLM on chats about clips in which clues in words replace soft tokens."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            depth = 2 * model.config.num_hidden_layers if into_residual else 1
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1] * depth))
    examples = _batches(partial(tokenize_example, make_processor(tokenizer)), rng)

    def losses() -> Iterator[Tensor]:
        for input_ids, labels in examples:
            # Attention is causal, so padding to the right of the answer needs no mask.
            states = model.model(input_ids=input_ids).last_hidden_state[:, :-1]  # [B, L-1, D]
            answer = labels[:, 1:] != -100
            yield nn.functional.cross_entropy(model.lm_head(states[answer]), labels[:, 1:][answer])

    train(model.config.model_type, list(model.parameters()), losses(), n_steps)
    return model


def make_tokenizer(folder: Path, rng: np.random.Generator, n_texts: int) -> None:
    """Train a LLaMA tokenizer on texts of the demo; write `tokenizer.model` and `tokenizer_config.json`."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_tokenizer_lines(rng, n_texts)), model_writer=model, model_type="bpe",
        vocab_size=MAX_VOCABULARY, hard_vocab_limit=False, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, character_coverage=1.0, max_sentencepiece_length=16, unk_id=0, bos_id=1,
        eos_id=2, pad_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    config = {
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False,
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 1024,
        "clean_up_tokenization_spaces": False, "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def make_byte_tokenizer(folder: Path, rng: np.random.Generator, n_texts: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer with Qwen2's control tokens and chat format, write it to `folder`, return it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_tokenizer_lines(rng, n_texts), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in QWEN_TOKENS])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=1024,
        chat_template=QWEN_TEMPLATE, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    wrapped.save_pretrained(folder)
    return wrapped


def _tokenizer_lines(rng: np.random.Generator, n_texts: int) -> list[str]:
    """Training lines with the vocabulary of the demo."""
    lines: list[str] = []
    for _ in range(n_texts):
        example = draw_text(rng, chinese_share=0.25)
        turns = prompts.render(example.sample, task=example.task, lang=example.sample.lang, with_answer=True)
        text = f"USER: {prompts.split_placeholders(turns[0].content)[1].strip()} ASSISTANT: {turns[1].content}"
        lines += [*text.splitlines(), *example.notes.values()]
    return [*lines, *[*CHINESE, *CHINESE.values()] * 10]  # so that rare labels, too, take few tokens


def make_processor(tokenizer: PreTrainedTokenizerBase) -> AffectGPTProcessor:
    """The processor of training and inference with one placeholder per modality, so that prompts are identical."""
    return AffectGPTProcessor(tokenizer, branches={name: {"n_tokens": 1} for name in prompts.MODALITIES})


def tokenize_example(processor: AffectGPTProcessor, example: TextExample) -> tuple[list[int], list[int]]:
    """(input ids, labels) of an example, with each placeholder replaced by its clue words."""
    sample = example.sample
    messages = prompts.render(sample, task=example.task, lang=sample.lang, with_answer=True)
    media = {name: torch.zeros(1, 1) for name in sample.modalities or ()}
    features = processor.encode(messages, media)
    notes = {
        processor.placeholder_token_ids[name]: processor.tokenizer(words, add_special_tokens=False)["input_ids"]
        for name, words in example.notes.items()
    }
    ids: list[int] = []
    labels: list[int] = []
    for token, label in zip(features["input_ids"].tolist(), features["labels"].tolist(), strict=True):
        piece = notes.get(token, [token])
        ids += piece
        labels += [label] * len(piece)
    return ids, labels


def _batches(
    tokens: Callable[[TextExample], tuple[list[int], list[int]]], rng: np.random.Generator, size: int = 16, n: int = 8
) -> Iterator[tuple[Tensor, Tensor]]:
    """Infinite batches; `n` batches are drawn together and sorted by length to reduce padding."""
    while True:
        rows = sorted((tokens(draw_text(rng)) for _ in range(size * n)), key=lambda row: len(row[0]))
        for number in rng.permutation(n):
            part = rows[number * size : (number + 1) * size]
            yield tuple(  # type: ignore[misc]
                nn.utils.rnn.pad_sequence([torch.tensor(row[side]) for row in part], True, padding)
                for side, padding in ((0, 0), (1, -100))
            )
