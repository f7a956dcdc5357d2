"""Schemas of all configurations: dataclasses that mirror conf/, with types, defaults and a comment for each field.

The YAML files hold values; this file defines the allowed keys. docs/configuration.md is generated from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class PathsConfig:
    """Where files are stored."""

    cache: str = "~/.cache/affectgpt"  # embedded corpus, small base models and encoder states; env AFFECTGPT_CACHE
    cache_limit_gb: float | None = None  # maximum size of the cached encoder states; null = no limit
    runs: str = "runs"  # one folder per run: checkpoints, config, metrics, predictions


@dataclass
class LoraConfig:
    """Low-rank adapters (peft); stage.trainable names them lora, those of an encoder encoders.<name>.lora."""

    r: int = 0  # rank, for example 16; 0 = no adapters
    alpha: int = 32  # the adapters' output is scaled by alpha / r
    dropout: float = 0.05  # on the adapters' input during training
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])  # adapted layers
    use_dora: bool = False  # DoRA: also train the norm of each row of the adapted weights; slower (docs/models.md)
    use_rslora: bool = False  # rsLoRA: scale by alpha / sqrt(r) instead, so that a high rank learns as fast


@dataclass
class EncoderLoraConfig(LoraConfig):
    """Low-rank adapters of an encoder."""

    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj", "query", "value", "qkv"])  # adapted


@dataclass
class EncoderConfig:
    """One encoder, frozen unless stage.trainable names it."""

    path: str = "???"  # hub id or folder of a model that transformers' AutoModel builds, or timm:<name>
    revision: str | None = None  # hub revision; checkpoints store the commit
    layers: Any = -1  # hidden state to use: -1 = last, another index, or last4_mean (mean of the last four)
    pool: str = "tokens"  # tokens, frame or window (means), cls, pooled (its own), mean, pooled_mean, queries (BLIP-2)
    dtype: str = "float32"  # float32 or bfloat16
    stride: int = 1  # audio, pool tokens: number of consecutive states averaged to one
    grid: int = 0  # pool tokens: patches are averaged to grid x grid per frame, audio to grid states; 0 = all
    image_size: int | None = None  # images are resized to this square; null = the size the encoder was made for
    channels: str = "rgb"  # images: rgb, or bgr = in this order, as for weights that were trained on swapped channels
    resize: str = "bicubic"  # images: bicubic, or bilinear = without antialiasing, as OpenCV resizes by default
    per_frame: bool = False  # motion: an image encoder sees the frames one by one; false = a video encoder, the clip
    lora: EncoderLoraConfig = field(default_factory=EncoderLoraConfig)  # low-rank adapters


@dataclass
class ProjectorConfig:
    """One trained projector from encoder states to soft tokens of the LLM."""

    kind: str = "qformer"  # qformer, linear, attention (learned weighted sum), grouped (concatenated), conv or none
    n_queries: int = 32  # number of soft tokens
    hidden_size: int = 768  # Q-Former width; conv: width of each source
    n_layers: int = 2  # Q-Former blocks, each with cross-attention; conv: convolutions
    n_heads: int = 12  # Q-Former attention heads
    dropout: float = 0.1  # Q-Former and conv: dropout during training
    max_positions: int | None = None  # temporal position embeddings; null = as many as the sampling needs, 0 = none
    softmax: bool = True  # attention: weights sum to 1; false = the raw scores are the weights
    group_size: int = 4  # grouped: consecutive states concatenated before the linear map
    class_last: bool = False  # grouped: the soft tokens of class tokens come after the others
    class_token: bool = True  # grouped: class tokens become soft tokens, too; false = only a pre-fusion sees them
    sources: list[str] = field(default_factory=list)  # multi only: the modalities to fuse; empty = all
    unless: str | None = None  # hide this branch from samples that have the modality named here


@dataclass
class LLMConfig:
    """The language model, frozen unless stage.trainable has llm."""

    path: str = "???"  # hub id or folder of any causal LM, or a GGUF file, which is converted on first use
    revision: str | None = None  # hub revision; checkpoints store the commit
    dtype: str = "float32"  # float32 or bfloat16
    quantization: str | None = None  # nf4 or int8: quantize the frozen weights; needs the quantization extra
    prompt_format: str = "auto"  # auto, chat (the tokenizer's), vicuna, or published: affectgpt_v1, emotion_llama ...
    lora: LoraConfig = field(default_factory=LoraConfig)  # low-rank adapters


@dataclass
class FacesConfig:
    """How faces are found in a video, followed, and cut out."""

    detector: str = "blazeface"  # blazeface, dlib, a .task file of MediaPipe, or a hub id or folder of transformers
    revision: str | None = None  # hub revision of the detector
    min_score: float | None = None  # of a detection; null = the detector's own
    rate_hz: float = 15.0  # frames per second that are looked at
    person: str = "main"  # main, largest, central, speaker, listener, or a number in the order of appearance, from 0
    size_px: int = 224  # height and width of the aligned crops


@dataclass
class SamplingConfig:
    """What the encoders see of a clip."""

    n_frames: int = 8  # frames for the image encoder, at floor(i * n / n_frames)
    n_motion_frames: int = 16  # frames for the video encoder
    n_faces: int = 8  # face crops for the image encoder of faces
    n_motion_faces: int = 16  # face crops for the video encoder of faces
    rate_hz: int = 16000  # audio sampling rate
    window_s: float = 10.0  # length of an audio window; shorter audio is one window
    max_windows: int = 3  # maximum number of windows of longer audio
    window_mode: str = "cover"  # cover = spread from start to end; fixed = always max_windows; published = as AffectGPT
    short_clips: str = "even"  # fewer frames than asked for: even = all are repeated, last = the last one is
    faces: FacesConfig = field(default_factory=FacesConfig)  # face crops of videos without crops saved as .npy


SAMPLED = {
    "audio": ("rate_hz", "window_s", "max_windows", "window_mode"),
    "frames": ("n_frames",),
    "motion": ("n_motion_frames",),
    "face": ("n_faces",),
    "face_motion": ("n_motion_faces",),
}
"""Modality -> the sampling settings that decide what its encoder sees; for images and video, the number of frames."""


@dataclass
class OmniConfig:
    """A whole omni model at llm.path: its own towers and aligners take the place of encoders and projectors."""

    modalities: list[str] = field(default_factory=lambda: ["audio", "frames"])  # what it is shown: audio, frames
    interleave: bool = True  # sound among the frames in the order of time (use_audio_in_video); false = after them
    min_pixels: int = 100352  # of a frame, height x width; smaller ones are enlarged
    max_pixels: int = 200704  # larger ones are reduced; 28 x 28 pixels of two frames are one soft token


@dataclass
class ModelConfig:
    """A model assembled from pretrained parts."""

    name: str = "???"  # short name, for tables and records
    llm: LLMConfig = field(default_factory=LLMConfig)  # the language model
    encoders: dict[str, EncoderConfig] = field(default_factory=dict)  # audio, frames, motion, face, face_motion
    projectors: dict[str, ProjectorConfig] = field(default_factory=dict)  # one for each encoder; multi = pre-fusion
    omni: OmniConfig | None = None  # instead of encoders and projectors: a whole omni model at llm.path
    sampling: SamplingConfig = field(default_factory=SamplingConfig)  # frames and audio windows
    init: str = "random"  # initial projectors of a stage without init_from: random, or pretrained (from init_from)
    init_from: str | None = None  # folder of pretrained projectors, as written by `python -m affectgpt.convert`


@dataclass
class SourceConfig:
    """One manifest, or one data set in the format in which it is published; or a part of either."""

    manifest: str | None = None  # a manifest (.jsonl, .csv, .xlsx); demo:coarse and demo:fine name the embedded corpus
    format: str | None = None  # instead: a published format, see `python -m affectgpt.data formats`
    folder: str | None = None  # where a data set of that format lies, below data.folder; null = there itself
    options: dict[str, Any] = field(default_factory=dict)  # of the format: names of its tables and media folders
    columns: dict[str, str] = field(default_factory=dict)  # own column names, as {id: name, subtitle: text}
    split: str | None = None  # only rows with this split; null = all
    split_file: str | None = None  # instead: only the names in this list (.txt, .csv), beside the data set
    limit: int | None = None  # at most this many samples, a fixed choice by id; null = all
    person: str | None = None  # whose emotion samples without a column person are about: speaker or listener
    weight: float = 1.0  # share of the draws relative to other sources
    tasks: dict[str, float] = field(default_factory=dict)  # weights of this source's tasks; empty = stage.tasks
    langs: dict[str, float] = field(default_factory=dict)  # weights of its answer languages; empty = stage.langs
    candidates: list[str] = field(default_factory=list)  # task fixed: what to choose from; empty = all its labels
    drop_candidates: dict[str, float] = field(default_factory=dict)  # wrong ones left out: name -> share of draws


@dataclass
class DataConfig:
    """Training and test data."""

    name: str = "???"  # short name, for tables and records
    folder: str | None = None  # root folder of the data sets of sources with a format
    coarse: list[SourceConfig] = field(default_factory=list)  # training data of stage coarse
    fine: list[SourceConfig] = field(default_factory=list)  # training data of stage fine
    train: dict[str, SourceConfig] = field(default_factory=dict)  # further training data by name, for stage.data
    test: list[SourceConfig] = field(default_factory=list)  # scored by eval.py; never used to choose anything
    weights: str = "given"  # given = weights of sources as they are; proportional = times their number of samples
    leak_check: str = "raise"  # training samples that are in the test set: raise, drop (leave them out), warn or off
    on_bad: str = "raise"  # bad samples: raise stops the run, skip leaves them out and lists them
    backend: str = "pyav"  # video decoder: pyav, decord or torchcodec
    cache_features: Any = "ahead"  # cache encoder states on disk: ahead, first_epoch or off (true = ahead, false = off)

    def training(self) -> dict[str, list[SourceConfig]]:
        """All training data, by the names that `stage.data` takes."""
        named = {"coarse": [*self.coarse], "fine": [*self.fine]}
        for name, source in self.train.items():
            named.setdefault(name, []).append(source)
        return named


@dataclass
class StageConfig:
    """One training stage."""

    name: str = "???"  # the stage's name, also the name of its runs
    data: list[str] = field(default_factory=list)  # training data: coarse, fine, names in data.train; empty = by name
    limit: int | None = None  # at most this many samples of each source without a limit of its own; null = all
    objective: str = "supervised"  # the loss, a file of affectgpt/training/objectives: supervised, reward, preference
    objective_options: dict[str, Any] = field(default_factory=dict)  # settings of the objective
    rewards: dict[str, float] = field(default_factory=dict)  # objective reward: weights; empty = its own
    group_size: int | None = None  # objective reward: answers sampled for each prompt; null = 8
    init_from: str | None = None  # a run name (its last complete run), a checkpoint folder, or null = new projectors
    trainable: list[str] = field(default_factory=lambda: ["projectors"])  # projectors, llm, encoders.audio.last2 ...
    epochs: int = 100  # number of epochs, of `iterations_per_epoch` steps each
    iterations_per_epoch: int = 1000  # optimizer steps per epoch
    batch_size: int = 3  # samples per step and process
    accumulation: int = 1  # batches accumulated per optimizer step
    learning_rate: float = 3e-5  # peak, at the end of the warm-up
    learning_rates: dict[str, float] = field(default_factory=dict)  # peaks of some parts of trainable: {llm: 1e-5}
    warmup_learning_rate: float = 1e-6  # at the first step
    min_learning_rate: float = 1e-5  # at the last step, end of the cosine
    warmup_steps: int = 1000  # linear from warmup_learning_rate to learning_rate
    weight_decay: float = 0.05  # none on biases, norms and other vectors
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # AdamW
    max_grad_norm: float = 1.0  # gradient clipping; 0 = none
    packing: bool = True  # pack samples into one row without padding; false = pad to the longest sample of the batch
    token_budget: int | None = 4096  # packing: tokens that go through the LLM at once; null = the whole batch
    gradient_checkpointing: bool = False  # store one state per layer of the LLM and recompute the rest
    activation_gb: Any = None  # instead: checkpoint as few layers as keep activations below this; auto = free memory
    tasks: dict[str, float] = field(default_factory=lambda: {"both": 1.0})  # weights: description, labels, both ...
    candidates: list[str] = field(default_factory=list)  # task fixed: the labels to choose from
    langs: dict[str, float] = field(default_factory=lambda: {"en": 1.0})  # weights of the answer languages
    modality_dropout: float = 0.0  # probability that a modality is hidden from an example; one always stays
    subtitle_dropout: float = 0.0  # probability that the subtitle is hidden
    targets: str = "shown"  # shown: a target keeps the clauses about what is shown; complete: as published
    n_validation: int = 64  # training samples held out for validation; 0 = none
    validate_every: int = 1000  # steps between validations
    save_every: int = 1000  # steps between checkpoints
    keep_last: int = 2  # checkpoints kept in addition to the best one
    log_every: int = 10  # steps between log lines
    n_workers: int = 2  # loader processes


@dataclass
class GenerateConfig:
    """How answers are written."""

    batch_size: int = 16  # samples generated together
    max_new_tokens: int = 256  # longest answer
    do_sample: bool = False  # false = greedy, repeatable
    temperature: float = 1.0  # only with do_sample
    top_p: float = 1.0  # only with do_sample
    top_k: int = 50  # only with do_sample: the most likely tokens to draw from; 0 = all (50 is transformers' default)
    num_beams: int = 1  # 1 = no beam search
    constrain: bool = False  # task=fixed: true = only the candidates can be written; false = free answers, as published
    compile: bool = False  # greedy: layers compiled by torch, some seconds at first, then faster; needs a C++ compiler


@dataclass
class QuestionConfig:
    """What a model is asked about a clip."""

    task: str = "both"  # description, labels, both, think or fixed
    lang: str = "en"  # en or zh
    candidates: list[str] = field(default_factory=list)  # task=fixed: the labels to choose from
    modalities: list[str] | None = None  # modalities to use; null = all that both the clip and the model have
    use_subtitle: bool = True  # false = strategy S0: the model does not see the subtitle


@dataclass
class LoggingConfig:
    """Logging of a run; metrics.jsonl is always written."""

    wandb: str = "disabled"  # online, offline (needs no account) or disabled
    project: str = "affectgpt"  # wandb project
    group: str | None = None  # wandb group; null = the name of the run or study, the same for all seeds
    tags: list[str] = field(default_factory=list)  # wandb tags, besides stage, model, data and seed
    tensorboard: bool = False  # needs the tensorboard extra
    n_sample_generations: int = 4  # validation samples shown on wandb and TensorBoard with frames, media and text


@dataclass
class StrategyConfig:
    """Distributed training; torchrun, deepspeed or SLURM start the processes."""

    name: str = "single"  # single, ddp, zero2 or zero3
    num_processes: int | None = None  # required number of processes; null = any
    offload_optimizer: bool = False  # zero2, zero3: optimizer state in CPU memory
    offload_parameters: bool = False  # zero3: partitioned parameters in CPU memory
    timeout_s: int = 7200  # time that processes wait for each other before the run fails


@dataclass
class StudyConfig:
    """A sweep that compares ways of training: python train.py -m experiment=table4"""

    name: str = ""  # folder below paths.runs; empty = no study, one stage is trained
    variant: str = ""  # what the columns compare, for example ${model.init}
    stages: list[str] = field(default_factory=lambda: ["coarse", "fine"])  # stage 1 and stage 2, or one stage
    stage1_share: float = 1.0  # share of stage 1 that is trained before stage 2; 0 = none
    stage2: bool = True  # train stage 2 and use its best checkpoint by validation
    n_points: int = 10  # checkpoints of each stage that are scored for the curves
    max_new_tokens: int = 32  # longest answer for the curves, which ask for labels only
    question: QuestionConfig = field(default_factory=QuestionConfig)  # what the table's answers are asked


@dataclass
class TrainConfig:
    """python train.py"""

    stage: StageConfig = field(default_factory=StageConfig)  # stage=coarse, stage=fine or a file of conf/stage
    model: ModelConfig = field(default_factory=ModelConfig)  # model=demo, or a preset of conf/model
    data: DataConfig = field(default_factory=DataConfig)  # data=demo, or a file of conf/data
    strategy: StrategyConfig = field(default_factory=StrategyConfig)  # strategy=single, ddp, zero2 or zero3
    generate: GenerateConfig = field(default_factory=GenerateConfig)  # generation during validation
    logging: LoggingConfig = field(default_factory=LoggingConfig)  # wandb, TensorBoard
    study: StudyConfig = field(default_factory=StudyConfig)  # a sweep that ends with a table and curves
    paths: PathsConfig = field(default_factory=PathsConfig)  # cache and runs
    name: str | None = None  # run name; null = the stage's name
    resume: bool = False  # resume the last unfinished run of this name
    seed: int = 42  # initialisation, data order, dropout
    device: str = "auto"  # auto, cpu or cuda
    offline: bool = False  # load hub models from the local cache only, as with HF_HUB_OFFLINE=1


@dataclass
class InferConfig(QuestionConfig):
    """python infer.py"""

    input: list[str] = field(default_factory=list)  # media files, folders or one manifest; also as positional arguments
    checkpoint: str | None = None  # run or checkpoint folder; null = the newest complete run
    model: ModelConfig | None = None  # model=..., the preset of a folder of converted weights given as checkpoint
    format: str | None = None  # instead of input: a published format, see `python -m affectgpt.data formats`
    folder: str | None = None  # folder of a data set in that format
    options: dict[str, Any] = field(default_factory=dict)  # options of the format: options.<name>=...
    person: str | None = None  # whose emotion is asked of clips without a column person: speaker or listener
    subtitle: str | None = None  # transcript, for media files given without a manifest
    columns: dict[str, str] = field(default_factory=dict)  # own column names of the manifest: {subtitle: text}
    split: str | None = None  # only manifest rows with this split
    out: str | None = None  # predictions.jsonl to append to; finished ids are skipped, so a killed run can resume
    json: bool = False  # print JSON lines instead of text
    attribute: bool = False  # also store what each clause of the answer rests on: which input, which part of the clip
    on_bad: str = "raise"  # bad samples: raise or skip
    backend: str = "pyav"  # video decoder
    cache_features: bool = False  # read encoder states from the cache on disk and add missing ones
    engine: str = "auto"  # generation backend: auto, or vllm (if that package is installed)
    vllm: dict[str, Any] = field(default_factory=dict)  # engine=vllm: further arguments of vllm.LLM
    dtype: str | None = None  # LLM precision; null = as trained
    quantization: str | None = None  # LLM quantization: nf4, int8 or none; null = as trained
    base_models: dict[str, str] = field(default_factory=dict)  # new locations of base models that were moved
    generate: GenerateConfig = field(default_factory=GenerateConfig)  # generation settings
    paths: PathsConfig = field(default_factory=PathsConfig)  # cache and runs
    seed: int = 42  # used only with do_sample
    device: str = "auto"  # auto, cpu or cuda
    offline: bool = False  # load hub models from the local cache only, as with HF_HUB_OFFLINE=1


@dataclass
class LlmConfig:
    """A chat model served with the OpenAI protocol; its key is read from the environment variable OPENAI_API_KEY."""

    model: str | None = None  # model name on the server; null = no LLM is used
    base_url: str | None = None  # for example http://localhost:8000/v1; null = OpenAI
    extract: bool = False  # let it extract labels from texts in which the parser finds none
    clues: bool = False  # let it decide which clues of an explanation are in the reference; false = by words
    groups: str | None = None  # published answers of an LLM: a folder or zip of <id>.npy with lists of groups
    steps_model: str | None = None  # benchmark=mme_emotion: model that divides answers into steps; null = model
    n_frames: int = 10  # benchmark=mme_emotion: frames that the model sees, one a second; 0 = none
    cache: str | None = None  # JSONL file with all answers; null = llm-answers.jsonl next to the report
    concurrency: int = 8  # concurrent requests
    temperature: float | None = 0.0  # null = not sent; a model that refuses it is noticed
    max_tokens_name: str = "max_tokens"  # request field of the longest answer; a model that refuses it is noticed
    offline: bool = False  # use cached answers only


@dataclass
class BenchmarkConfig:
    """A published test set: references, metric and published results."""

    name: str = ""  # short name; empty = no benchmark
    title: str = ""  # name in tables
    folder: str | None = None  # folder of your copy
    references: str = ""  # reference file inside the folder: .csv, .jsonl or .npz
    kind: str = "openset"  # how it is scored, see the module affectgpt.metrics.benchmarks
    metric: str = ""  # kinds classes and multilabel: the primary score, one of those in the result
    split: str | None = None  # only rows with this split; null = all
    n_test: int | None = None  # without a column split: test is this many ids by their seeded hash, train the others
    split_file: str | None = None  # instead: only the ids in this list (.txt, .csv) inside the folder
    columns: dict[str, str] = field(default_factory=dict)  # own column names of the references: {id: video_id}
    drop: list[str] = field(default_factory=list)  # kind classes: clips with one of these true labels are not scored
    id_prefix: str | None = None  # only clips whose id starts with this
    classes: list[str] = field(default_factory=list)  # kind classes: the labels, in the order of numbered classes
    array: str = "test_corpus"  # name of the array in a label.npz
    trust_pickle: bool = False  # unpickle a label.npz with objects that are not plain; only if you trust its source
    alpha: float = 0.5  # kind mme_emotion: share of recognition in the CoT score, the rest is reasoning
    media: str = "."  # kind mme_emotion: folder inside `folder` that the paths of its clips are relative to
    members: list[str] = field(default_factory=list)  # a mean over these benchmarks
    published: list[Any] = field(default_factory=list)  # published: system, value, source, metric, split, certainty


@dataclass
class EvalConfig(QuestionConfig):
    """python eval.py"""

    checkpoint: str | None = None  # run or checkpoint; null = the newest complete run, if predictions is null
    model: ModelConfig | None = None  # model=..., the preset of a folder of converted weights given as checkpoint
    predictions: Any = None  # score this file without loading a model; a list of files is compared by paired tests
    compare: bool = False  # compare all files of `predictions` (implied by a list)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)  # benchmark=..., a file of conf/benchmark
    llm: LlmConfig = field(default_factory=LlmConfig)  # optional LLM for grouping and label extraction
    logging: LoggingConfig = field(default_factory=LoggingConfig)  # wandb, TensorBoard
    references: str | None = None  # manifest with the reference labels; null = the test sources of `data`
    person: str | None = None  # whose emotion is asked of clips without a column person: speaker or listener
    data: DataConfig = field(default_factory=DataConfig)  # data=demo, or a file of conf/data
    columns: dict[str, str] = field(default_factory=dict)  # own column names of `references`: {labels: emotions}
    split: str | None = None  # only rows of `references` with this split
    lexicon: str = "builtin"  # builtin, or a folder with the published emotion wheel tables
    label_reading: str = "auto"  # of label cells: published, exact (our parser), or auto: published with its tables
    n_bootstrap: int = 1000  # bootstrap resamples for the 95 % interval
    faithfulness: bool = True  # also score what explanations say about modalities, clues and labels
    engine: str = "auto"  # generation backend: auto, or vllm (if that package is installed)
    vllm: dict[str, Any] = field(default_factory=dict)  # engine=vllm: further arguments of vllm.LLM
    out: str | None = None  # folder for predictions.jsonl and report.json; null = next to the checkpoint or predictions
    base_models: dict[str, str] = field(default_factory=dict)  # new locations of base models that were moved
    generate: GenerateConfig = field(default_factory=GenerateConfig)  # generation settings
    paths: PathsConfig = field(default_factory=PathsConfig)  # cache and runs
    seed: int = 42  # of the bootstrap
    device: str = "auto"  # auto, cpu or cuda
    offline: bool = False  # load hub models from the local cache only, as with HF_HUB_OFFLINE=1


@dataclass
class CacheConfig:
    """python -m affectgpt.cache"""

    model: ModelConfig = field(default_factory=ModelConfig)  # the model whose encoders run
    data: DataConfig = field(default_factory=DataConfig)  # the clips to encode: all its sources
    paths: PathsConfig = field(default_factory=PathsConfig)  # where the states are stored
    engine: str = "processes"  # processes (on this machine) or ray (a cluster with paths.cache on shared storage)
    n_processes: int | None = None  # null = one per GPU, or one per core without a GPU
    device: str = "auto"  # auto, cpu or cuda


@dataclass
class PlanConfig:
    """python -m affectgpt.plan"""

    stage: StageConfig = field(default_factory=StageConfig)  # stage=coarse or stage=fine
    model: ModelConfig = field(default_factory=ModelConfig)  # model=affectgpt, or another preset of conf/model
    strategy: StrategyConfig = field(default_factory=StrategyConfig)  # strategy=single, ddp, zero2 or zero3
    gpu: str | None = None  # a100, a100-40, h100, h200, l40s, a10, rtx3090, rtx4090, rtx5090; null = a selection
    n_gpus: int | None = None  # number of GPUs; null = strategy.num_processes, else 1 (single) or 8
    sound_s: float = 4.0  # audio duration of a clip, in seconds
    text_tokens: int = 170  # tokens of prompt and answer, without soft tokens
    answer_tokens: int = 100  # answer tokens among them; only these need logits
    online: bool = False  # true = encoders run in every step; false = states are read from the cache
    padding: float = 1.15  # padded length / mean length; used without stage.packing
    share: float = 0.5  # fraction of peak FLOP/s that matrix products reach
    n_clips: int = 115595  # number of clips, for the cache size and the duration of an epoch
    json: bool = False  # print JSON instead of tables
    paths: PathsConfig = field(default_factory=PathsConfig)  # cache of the embedded demo


@dataclass
class AskConfig:
    """Zero-shot systems: everything that determines the answers. The prefix `ask.` may be omitted."""

    model: str | None = None  # hub id or folder; with base_url the name on the server; or a .jsonl file of answers
    revision: str | None = None  # hub revision of model; pin it for reported results
    base_url: str | None = None  # OpenAI-compatible server, such as http://localhost:8000/v1
    audio_model: str | None = None  # pair, instead of model: describes the audio
    audio_base_url: str | None = None  # its server, if it is served
    video_model: str | None = None  # pair, instead of model: describes the video
    video_base_url: str | None = None  # its server, if it is served
    merge_model: str | None = None  # LLM that merges descriptions (s2, and all pairs)
    merge_base_url: str | None = None  # its server, if it is served
    strategy: str = "s1"  # s0 = no subtitle, s1 = subtitle in the prompt, s2 = merged in afterwards by merge_model
    show: list[str] | None = None  # images, sound; null = all inputs of the model (of a served model: images)
    lang: str = "en"  # en or zh: language of prompt and answer
    n_frames: int = 8  # evenly spaced frames; a model made for a fixed number uses its own
    longest_px: int = 768  # served models: frames are downscaled to this longer side
    max_new_tokens: int = 512  # longest answer
    temperature: float | None = 0.0  # served models: null = not sent; a model that refuses it is noticed
    max_tokens_name: str = "max_tokens"  # served models: request field of max_new_tokens; a refusal is noticed
    dtype: str = "auto"  # local models: auto (as published), float32, bfloat16 or float16


@dataclass
class ZeroShotConfig:
    """python -m affectgpt.zeroshot"""

    action: str = "run"  # run, export (write requests for other code) or import (read its answers)
    kind: str = "whole"  # export only: the prompt of a single system (whole), or of the audio or video part of a pair
    ask: AskConfig = field(default_factory=AskConfig)  # models and prompts; set by a file of conf/zeroshot
    data: DataConfig = field(default_factory=DataConfig)  # data=..., whose test sources are used
    manifest: str | None = None  # instead: the clips of this manifest
    columns: dict[str, str] = field(default_factory=dict)  # own column names of the manifest: {subtitle: text}
    split: str | None = None  # only manifest rows with this split
    person: str | None = None  # whose emotion is asked of clips without a column person: speaker or listener
    out: str | None = None  # predictions.jsonl to append to; finished ids are skipped, so a killed run can resume
    batch_size: int = 4  # local models: clips per batch
    concurrency: int = 8  # served models: concurrent requests
    offline: bool = False  # served models: use stored answers only
    device: str = "auto"  # auto, cpu or cuda
    paths: PathsConfig = field(default_factory=PathsConfig)  # location of the embedded corpus


@dataclass
class PreferConfig:
    """python -m affectgpt.prefer"""

    strategy: str = "s1"  # s1 = sees clip and descriptions, s2 to s4 = describes, then compares (docs/preferences.md)
    folder: str = "???"  # folder of the table, of the media (video/, audio/) and of subtitle_chieng.csv
    file: str = "track3_candidate.csv"  # table in the folder: name, a1, a2, and preference if it is known
    options: dict[str, Any] = field(default_factory=dict)  # names of the media folders: {video: clips, audio: wav}
    subtitles: str = "subtitle_chieng.csv"  # table of subtitles in the folder; "" = none
    reversed: bool = False  # exchange a1 and a2 in every row, for the swap consistency
    limit: int | None = None  # only the first rows, up to this number
    model: str | None = None  # a multimodal chat model: hub id or folder; with base_url the name on the server
    revision: str | None = None  # hub revision of model
    base_url: str | None = None  # OpenAI-compatible server, such as http://localhost:8000/v1
    checkpoint: str | None = None  # instead of model: a model of ours, run or checkpoint folder
    judge: str | None = None  # s3, s4: the text LLM that compares: hub id or folder, or the name on the server
    judge_base_url: str | None = None  # its server, if it is served
    descriptions: str | None = None  # s2 to s4: predictions.jsonl with descriptions by name; null = model writes them
    show: list[str] | None = None  # model: images, sound; null = all of its inputs (of a served model: images)
    use_subtitle: bool = True  # false = the model does not see the subtitle
    lang: str = "en"  # en or zh: language of prompts and answers
    n_frames: int = 8  # model: evenly spaced frames
    longest_px: int = 768  # served models: frames are downscaled to this longer side
    max_new_tokens: int = 512  # longest description and longest reasoning
    max_answer_tokens: int = 32  # longest answer a1, a2 or same
    temperature: float | None = 0.0  # served models: null = not sent; a model that refuses it is noticed
    max_tokens_name: str = "max_tokens"  # served models: request field of the longest answer; a refusal is noticed
    dtype: str = "auto"  # local chat models: auto (as published), float32, bfloat16 or float16
    out: str | None = None  # CSV to write, in the order of the rows; its folder <out>.steps resumes a killed run
    on_bad: str = "raise"  # clips that cannot be read, and rows that a server does not answer: raise or skip
    batch_size: int = 4  # local models: rows per batch
    concurrency: int = 8  # served models: concurrent requests
    backend: str = "pyav"  # video decoder
    base_models: dict[str, str] = field(default_factory=dict)  # checkpoint: new locations of base models
    offline: bool = False  # served models: use stored answers only
    device: str = "auto"  # auto, cpu or cuda
    paths: PathsConfig = field(default_factory=PathsConfig)  # location of the runs


@dataclass
class PreferScoreConfig:
    """python -m affectgpt.prefer score"""

    files: list[str] = field(default_factory=list)  # answers by row, with preference or text; also positional
    references: str | None = None  # the same rows with the choices of people: track3_emoprefer.csv
    reversed: str | None = None  # answers to the same rows with a1 and a2 exchanged, for the swap consistency
    names: str | None = None  # the same rows with the models that wrote a1 and a2, to rank these models by the choices
    n_bootstrap: int = 1000  # bootstrap resamples for the 95 % interval
    seed: int = 42  # of the bootstrap
    out: str | None = None  # JSON file with all scores; null = none


@dataclass
class ExportConfig:
    """python -m affectgpt.export"""

    checkpoint: str | None = None  # run or checkpoint folder, also positional; null = the newest complete run
    out: str = "release"  # new folder for the full model
    merge_lora: bool = False  # merge the adapters into the LLM's weights
    dtype: str | None = None  # LLM precision: float32, bfloat16 or float16; null = as trained
    base_models: dict[str, str] = field(default_factory=dict)  # new locations of base models that were moved
    paths: PathsConfig = field(default_factory=PathsConfig)  # location of the runs


@dataclass
class PushConfig:
    """python -m affectgpt.hub push"""

    checkpoint: str | None = None  # run or checkpoint folder, also positional; null = the newest complete run
    repo: str = "???"  # user/name on the hub
    full: bool = False  # true = the full model; false = trained tensors with ids of the base models
    private: bool = False  # make the repository private if it is created
    dry_run: bool = False  # write the folder without pushing it
    out: str | None = None  # release folder; null = release-<checkpoint> in the run folder
    license: str | None = None  # licence identifier of the hub; null = omitted
    merge_lora: bool = False  # full only: merge the adapters into the LLM's weights
    dtype: str | None = None  # full only: LLM precision
    base_models: dict[str, str] = field(default_factory=dict)  # new locations of base models that were moved
    space: bool = False  # also write and push a Space of the same name with the studio (docs/studio.md)
    package: str = "affectgpt"  # what pip installs (card and Space): a name or a git+https:// address
    paths: PathsConfig = field(default_factory=PathsConfig)  # location of the runs


@dataclass
class ServeConfig:
    """python -m affectgpt.serve; if the environment variable AFFECTGPT_API_KEY is set, clients must send that key"""

    checkpoint: str | None = None  # run or checkpoint folder, also positional; null = the newest complete run
    model: str | None = None  # instead of checkpoint: a multimodal chat model of transformers, hub id or folder
    revision: str | None = None  # model only: hub revision
    name: str | None = None  # model name in requests; null = <run>/<checkpoint>, or model
    host: str = "127.0.0.1"  # listening address; 0.0.0.0 = reachable from other machines
    port: int = 8000  # 0 = any free port
    media_folder: str | None = None  # requests may refer to videos in this folder by path; null = no paths
    max_batch: int = 8  # requests per batch
    max_wait_ms: float = 20.0  # how long a request waits for others to form a batch
    max_requests: int = 64  # requests accepted at a time; further ones get status 429
    max_connections: int = 512  # open connections; more close those that have waited longest for a request
    max_request_mb: float = 64.0  # maximum size of a request body
    max_media_s: float = 600.0  # maximum duration of video or audio
    max_images: int = 32  # maximum number of images per request
    max_megapixels: float = 2.5  # maximum size of an image or video frame; 1920 x 1080 has 2.1
    max_new_tokens: int = 256  # default of max_tokens
    max_tokens_limit: int = 4096  # largest accepted max_tokens
    n_frames: int = 8  # model only: frames sampled from a video
    n_decoders: int = 2  # threads that decode media
    backend: str = "pyav"  # video decoder
    dtype: str | None = None  # LLM precision: float32, bfloat16 or float16; null = as trained or published
    quantization: str | None = None  # checkpoint only: LLM quantization: nf4, int8 or none; null = as trained
    base_models: dict[str, str] = field(default_factory=dict)  # new locations of base models that were moved
    device: str = "auto"  # auto, cpu or cuda
    offline: bool = False  # load hub models from the local cache only, as with HF_HUB_OFFLINE=1
    paths: PathsConfig = field(default_factory=PathsConfig)  # location of the runs


@dataclass
class PagesConfig:
    """Who reaches the studio, and what it accepts."""

    host: str = "127.0.0.1"  # listening address; 0.0.0.0 = reachable from other machines, with a key
    port: int = 7860  # 0 = any free port
    public: bool = False  # other machines need no key; anybody who reaches the port sees everything
    browser: bool = True  # open the page in a browser, where there is a screen
    max_requests: int = 16  # uploads and answers at a time; further ones get status 429
    max_connections: int = 512  # open connections; more close those that have waited longest for a request
    max_request_mb: float = 200.0  # maximum size of an upload
    max_media_s: float = 600.0  # maximum duration of video or audio
    max_megapixels: float = 2.5  # maximum size of a video frame; 1920 x 1080 has 2.1
    max_uploads: int = 32  # uploaded clips that are kept at a time; further ones replace the oldest
    keep_minutes: float = 60.0  # how long an uploaded clip is kept after its last use
    n_decoders: int = 2  # processes that decode media
    backend: str = "pyav"  # video decoder
    openface: str | None = None  # folder with <id>.csv of OpenFace 2, LibreFace or py-feat: curves of action units
    lexicon: str = "builtin"  # builtin, or a folder with the published emotion wheel tables
    label_reading: str = "auto"  # of label cells: published, exact (our parser), or auto: published with its tables
    paths: PathsConfig = field(default_factory=PathsConfig)  # location of the runs and of the embedded corpus


@dataclass
class StudioConfig(PagesConfig):
    """python -m affectgpt.studio; off the loopback address it needs the environment variable AFFECTGPT_API_KEY"""

    checkpoints: list[str] = field(default_factory=list)  # runs or checkpoints to try clips with, also positional
    predictions: Any = None  # predictions file, or a list of them, to look at without a model
    references: str | None = None  # manifest with the clips and their true labels; null = as the runs were scored
    scores: Any = None  # a benchmark's scores-<name>.jsonl for each predictions file; null = one next to it, if any
    columns: dict[str, str] = field(default_factory=dict)  # own column names of `references`: {labels: emotions}
    split: str | None = None  # only rows of `references` with this split
    lang: str = "en"  # language of the true labels: en or zh
    transcriber: str | None = None  # speech recogniser that proposes subtitles, such as openai/whisper-large-v3
    max_new_tokens: int = 256  # longest answer
    dtype: str | None = None  # LLM precision: float32, bfloat16 or float16; null = as trained
    quantization: str | None = None  # LLM quantization: nf4, int8 or none; null = as trained
    base_models: dict[str, str] = field(default_factory=dict)  # new locations of base models that were moved
    device: str = "auto"  # auto, cpu or cuda
    seed: int = 42  # of the paired test
    offline: bool = False  # load hub models from the local cache only, as with HF_HUB_OFFLINE=1


@dataclass
class StudioReviewConfig(PagesConfig):
    """python -m affectgpt.studio review"""

    records: str | None = None  # folder that annotate wrote, also positional
    to: str | None = None  # folder of the review; null = emer_fine
    round: int | None = None  # set up this round, 1 or 2, before it is shown; null = show what is set up
    annotators: str = ""  # names or pseudonyms of this round's annotators, a,b,c,d
    per_clip: int | None = None  # annotators per clip; null = all of the round
    screens: str = "clues,labels"  # what is reviewed
    which: str = "all"  # all clips, or ask: those with a finding that asks for a human
    seed: int = 0  # of the random assignment of clips to annotators


@dataclass
class AnnotatorConfig:
    """What answers the questions of an annotation pipeline: annotator=..., a file of conf/annotator."""

    kind: str = "local"  # local (no model), openai (a server), transformers (in this process), or module:Class
    model: str | None = None  # the served model's name, or a hub id or folder
    base_url: str | None = None  # server, such as http://localhost:8000/v1; null = OpenAI's
    api_key_env: str = "OPENAI_API_KEY"  # environment variable with the key, which is never written to a file
    sees: list[str] = field(default_factory=lambda: ["images"])  # inputs that the model takes: images, sound
    structured: str = "json_schema"  # output format: json_schema, json_object (both enforced), prompt (in words), none
    temperature: float | None = 0.0  # null = not sent; a model that refuses it is noticed
    max_tokens: int = 1024  # maximum length of an answer
    max_tokens_name: str = "max_tokens"  # request field of max_tokens; a model that refuses it is noticed
    seed: int | None = None  # sent if set; with another seed everything is asked again
    extra: dict[str, Any] = field(default_factory=dict)  # further fields of the request
    longest_px: int = 768  # larger frames are scaled down to this
    concurrency: int = 8  # requests in flight
    requests_per_min: float | None = None  # rate limit of your account; null = none
    tokens_per_min: float | None = None  # rate limit of your account; null = none
    max_retries: int = 6  # after 429, 5xx, time-outs and broken connections
    backoff_s: float = 1.0  # wait before the first retry; doubles up to 60 s
    timeout_s: float = 120.0  # of one attempt
    price_in: float | None = None  # per million input tokens, from your price list
    price_out: float | None = None  # per million output tokens, from your price list
    tokens_per_image: int = 800  # for estimates and tokens_per_min only
    tokens_per_second: float = 25.0  # of sound; for estimates and tokens_per_min only
    revision: str | None = None  # transformers: hub revision
    dtype: str = "auto"  # transformers: auto (as published), float32, bfloat16 or float16
    device: str = "auto"  # transformers: auto, cpu or cuda
    batch_size: int = 4  # transformers: questions answered together


@dataclass
class StepConfig:
    """One step of an annotation pipeline."""

    name: str = "???"  # its name in this pipeline
    step: str = ""  # function of affectgpt.annotate.steps, or module:function; empty = the name
    annotator: str = "text"  # role that answers: vision, audio, text, translator or reader
    prompt: str | None = None  # prompt of affectgpt.annotate.prompts; null = the step's own
    needs: list[str] = field(default_factory=list)  # steps whose output it takes
    options: dict[str, Any] = field(default_factory=dict)  # such as n_frames


@dataclass
class PipelineConfig:
    """An annotation pipeline: pipeline=..., a file of conf/pipeline."""

    name: str = "???"  # short name
    steps: list[StepConfig] = field(default_factory=list)  # each after the steps that it needs


@dataclass
class AnnotateConfig:
    """python -m affectgpt.annotate"""

    input: list[str] = field(default_factory=list)  # a folder, media files or one manifest; plain arguments work too
    out: str | None = None  # folder for records, answers and the manifest; an existing one is resumed
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)  # pipeline=..., a file of conf/pipeline
    annotator: AnnotatorConfig = field(default_factory=AnnotatorConfig)  # annotator=..., a file of conf/annotator
    vision: AnnotatorConfig | None = None  # annotator@vision=...: for steps with pictures; null = annotator
    audio: AnnotatorConfig | None = None  # annotator@audio=...: for steps with sound; null = annotator
    text: AnnotatorConfig | None = None  # annotator@text=...: for steps with text alone; null = annotator
    translator: AnnotatorConfig | None = None  # for steps with the role translator; null = text
    reader: AnnotatorConfig | None = None  # for steps with the role reader (of labels); null = text
    answers_in: str | None = None  # folder with answers shared by several outputs; null = out
    plan: bool = False  # print calls and cost, and make no call
    budget: float | None = None  # limit on the total cost of the folder's calls, in the currency of the prices
    lang: str = "en"  # en or zh: language of prompts and answers; step translate adds the other
    transcriber: str | None = None  # Whisper-type model by hub id or folder, for clips without a subtitle
    openface: str | None = None  # folder with OpenFace's <id>.csv
    faces: FacesConfig = field(default_factory=FacesConfig)  # how faces are found; faces.detector=none = not at all
    speech: str = "silero"  # who finds speech: silero (extra speech), or none: nothing is measured in the sound
    speaker: str | None = None  # regular expression whose first group is the speaker in an id: "^([^_]+)_"
    columns: dict[str, str] = field(default_factory=dict)  # own column names of the manifest: {subtitle: text}
    keep_own: bool = True  # labels and descriptions of the manifest stay; false = the annotated ones replace them
    split: str | None = None  # only rows of a manifest with this split
    limit: int | None = None  # only the first clips, up to this number
    workers: int | None = None  # clips annotated at once in each process; null = from cores and concurrency
    engine: str = "single"  # single (this process), processes (of this machine) or ray (a cluster)
    shards: int | None = None  # parts of the clips with engine=processes or ray; null = one per process
    n_processes: int | None = None  # shards annotated at once; null = cores of the machine or the cluster
    backend: str = "pyav"  # video decoder
    fsync: bool = False  # true = answers and records survive a power cut, too
    checked: str | None = None  # pipeline=emer_checked: records.jsonl of the finished review that supplies the clues
    paths: PathsConfig = field(default_factory=PathsConfig)  # location of the embedded corpus


@dataclass
class StudyOfAnnotatorsConfig:
    """python -m affectgpt.annotate study"""

    common: list[str] = field(default_factory=list)  # all other arguments: settings of annotate, the same in every row
    audio: list[str] = field(default_factory=list)  # models for sound: kind:name, kind:name@server, local or none
    video: list[str] = field(default_factory=list)  # models for pictures, in the same form
    merge: list[str] = field(default_factory=list)  # models that interpret the words and merge the clues
    translate: list[str] = field(default_factory=list)  # models that translate the description
    references: str | None = None  # file with the true labels
    repeats: int = 1  # runs per row; the table shows mean and standard deviation
    lexicon: str = "builtin"  # builtin, or a folder with published emotion-wheel tables


@dataclass
class RecordsConfig:
    """python -m affectgpt.annotate check, merge, export, review, import or report"""

    input: list[str] = field(default_factory=list)  # folders of records, or exports of Label Studio; plain arguments
    to: str | None = None  # export: manifest, merr, sharegpt or labelstudio; review, import: folder [emer_fine]
    out: str | None = None  # merge, export: folder to write; export: null = export_<to> in the folder
    how: str = "union"  # merge: labels by union or majority
    policy: dict[str, str] = field(default_factory=dict)  # check: keep, ask or drop for a check: policy.refusal=ask
    threshold: float = 0.85  # check: share of five-letter runs that makes descriptions near-duplicates
    round: int = 1  # review: 1 or 2
    annotators: str = ""  # review: names or pseudonyms of this round's annotators, a,b,c,d
    per_clip: int | None = None  # review: annotators per clip; null = all of the round
    screens: str = "clues,labels"  # review: what is reviewed
    which: str = "all"  # review: all clips, or ask: those with a finding that asks for a human
    seed: int = 0  # review: of the random assignment of clips to annotators
    media_root: str | None = None  # review, export: document root of Label Studio; null = the folder above all clips
    transcode: bool = False  # review: show mp4 copies of clips that browsers do not play, such as avi and mkv
    pictures: bool = True  # report: write plots (needs matplotlib)
    logging: LoggingConfig = field(default_factory=LoggingConfig)  # report: wandb, TensorBoard
    paths: PathsConfig = field(default_factory=PathsConfig)  # location of the embedded corpus


@dataclass
class CacheListConfig:
    """python -m affectgpt.cache ls"""

    paths: PathsConfig = field(default_factory=PathsConfig)  # location of the states


@dataclass
class CacheVerifyConfig:
    """python -m affectgpt.cache verify"""

    repair: bool = False  # drop damaged states
    paths: PathsConfig = field(default_factory=PathsConfig)  # location of the states


@dataclass
class CacheCollectConfig:
    """python -m affectgpt.cache gc"""

    max_gb: float | None = None  # drop the least recently used states until this size is reached; null = no limit
    unused_days: float | None = None  # drop states that were not used for this many days; null = keep them
    paths: PathsConfig = field(default_factory=PathsConfig)  # location of the states


@dataclass
class DataInputConfig:
    """What the commands of affectgpt.data read"""

    manifest: str | None = None  # a manifest, also as positional argument
    format: str | None = None  # instead: a published format, see `python -m affectgpt.data formats`
    folder: str | None = None  # folder of a data set in that format
    options: dict[str, Any] = field(default_factory=dict)  # options of the format: options.<name>=...
    columns: dict[str, str] = field(default_factory=dict)  # own column names, as {id: name, subtitle: text}
    split: str | None = None  # only rows with this split
    split_file: str | None = None  # instead: only the names in this list (.txt, .csv)
    limit: int | None = None  # at most this many samples


@dataclass
class DataCheckConfig(DataInputConfig):
    """python -m affectgpt.data check"""

    overrides: list[str] = field(default_factory=list)  # instead: data=NAME, a file of conf/data
    out: str | None = None  # folder for health.json, bad_samples.jsonl and plots
    decode: bool = False  # decode every clip completely
    cache: str | None = None  # folder with known facts of media files; null = probe all files again


@dataclass
class DataConvertConfig(DataInputConfig):
    """python -m affectgpt.data convert"""

    out: str | None = None  # output manifest, .jsonl


@dataclass
class DataExportConfig(DataInputConfig):
    """python -m affectgpt.data export"""

    overrides: list[str] = field(default_factory=list)  # instead of a manifest: data=NAME; lmms-eval: benchmark=NAME
    use: str | None = None  # with data=NAME: coarse, fine, a name in data.train, or test; null = fine, lmms-eval: test
    to: str = "???"  # the other tool: ms-swift, llamafactory or lmms-eval
    out: str = "???"  # output folder
    name: str = "affectgpt"  # name in the other tool
    task: str | None = None  # description, labels, both, think or fixed; null = both, lmms-eval: labels or fixed
    lang: str = "en"  # language of questions and answers: en or zh
    candidates: list[str] = field(default_factory=list)  # task fixed: what to choose from; empty = all labels
    targets: str = "shown"  # shown: a target keeps the clauses about what is shown; complete: as published
    sound: bool = True  # false: the other model hears nothing, so targets say nothing about sound
    pairs: list[str] = field(default_factory=list)  # pairs of answers: judged, deleted, contradicted; empty = answers


@dataclass
class DataClausesConfig(DataInputConfig):
    """python -m affectgpt.data clauses"""

    lang: str = "en"  # language of the descriptions: en or zh
    show: int = 3  # number of samples whose clauses are printed
    probe: bool = True  # look into the media, to find statements about a modality that a clip lacks
    llm: LlmConfig = field(default_factory=LlmConfig)  # a chat model that divides the descriptions instead of the rules
    out: str | None = None  # output manifest with clauses, .jsonl


@dataclass
class DataFormatsConfig:
    """python -m affectgpt.data formats"""


@dataclass
class AnalyzeConfig:
    """python -m affectgpt.analyze"""

    files: list[str] = field(default_factory=list)  # the analysis, then prediction files, as positional arguments
    named: dict[str, str] = field(default_factory=dict)  # prediction files by name, as name=file: S0=a.jsonl
    references: str | None = None  # file with the reference labels
    table: str | None = None  # correlation: table of scores of systems, instead of predictions
    labels: str | None = None  # baselines: sample labels by their frequency in this file
    split: str | None = None  # only references with this split
    lexicon: str = "builtin"  # builtin, or a folder with the published emotion wheel tables
    grouping: str = "M1"  # onehot: the grouping under which labels are equal
    lang: str = "en"  # texts, contents of descriptions: their language, en or zh
    wordnet: str | None = None  # texts: folder of WordNet, or with lang=zh wn-data-cmn.tab; null = of nltk or Debian
    classes: list[str] = field(default_factory=list)  # confusion, discrete: the labels; [] in discrete = MER2023's
    subtitles: str | None = None  # clue_texts: table of what is said, name and english, chinese or subtitle
    array: str = "test_corpus"  # name of the array if the references are a label.npz
    k: int = 1  # wheel, sectors: number of the wheel, 1 to 5
    seed: int = 42  # of the bootstrap and the random baseline
    n_bootstrap: int = 1000  # bootstrap resamples for the 95 % interval
    pictures: bool = True  # draw plots as PNG, SVG and PDF (needs matplotlib)
    model: str | None = None  # judge, discrete, valence, clues, clue_texts: name of the model, with version
    base_url: str | None = None  # of the model: OpenAI-compatible server; null = OpenAI
    offline: bool = False  # use the model's cached answers only
    out: str = "analysis"  # output folder


@dataclass
class SubmitConfig:
    """python -m affectgpt.submit"""

    files: list[str] = field(default_factory=list)  # predictions and output file, or with track one file to check
    track: int | None = None  # 1, 2 or 3: the official form of that track of MER2026
    candidates: str | None = None  # file with the ids (track 3: the rows) that must have exactly one prediction each
    empty: str | None = None  # label for clips without labels; null = an error, and [] in track 2


@dataclass
class EnsembleConfig:
    """python -m affectgpt.ensemble"""

    files: list[str] = field(default_factory=list)  # predictions of several systems on the same clips, also positional
    how: str = "union"  # union, majority (of label sets), vote (one label a clip) or routing (one system a clip)
    at_least: int | None = None  # majority: systems that must give a label; null = more than half
    equal: str = "word"  # union, majority: labels are one if they are the same word, or in one group of M1, M2 ...
    classes: list[str] = field(default_factory=list)  # vote, routing: the labels of one-label predictions
    pairs: bool = False  # vote: the files are answers about pairs of descriptions, by row, as `prefer` writes them
    validation: list[str] = field(default_factory=list)  # routing: the systems' predictions on labelled clips, in order
    references: str | None = None  # routing: the true labels of these clips
    split: str | None = None  # routing: only references with this split
    by: str = "sector"  # routing: all, modalities, sector (of the first system's labels), or a table of name, group
    min_clips: int = 20  # routing: validation clips without which a group gets the system that is best on all
    lexicon: str = "builtin"  # builtin, or a folder with the published emotion wheel tables
    label_reading: str = "auto"  # of label cells: published, exact (our parser), or auto: published with its tables
    seed: int = 42  # routing: of the folds of the held-out score
    out: str | None = None  # predictions file to write: .jsonl, with pairs .csv


@dataclass
class ConvertConfig:
    """python -m affectgpt.convert"""

    files: list[str] = field(default_factory=list)  # published checkpoints, as positional arguments
    out: str | None = None  # output folder
    image_size: int | None = None  # input size of the image encoder; position embeddings are interpolated
    visual: str = "face"  # AffectGPT (2025): input of its visual branch, face or frames
    overwrite: bool = False  # replace an earlier conversion in out


@dataclass
class DoctorConfig:
    """python -m affectgpt.doctor"""

    json: bool = False  # print the findings as JSON; also --json


@dataclass
class DemoConfig:
    """python -m affectgpt.demo"""

    brief: bool = False  # smoke test with a few steps; also --brief
    runs: str = "runs"  # folder of the runs; also --runs DIR
    bases: str | None = None  # only train the four base models anew, as the package carries them, into this new folder


@dataclass
class ReportConfig:
    """python -m affectgpt.report"""

    runs: list[str] = field(default_factory=list)  # run folders, or folders of evaluations, as positional arguments
    predictions: Any = None  # instead: a predictions file, or a list of files to compare
    references: str | None = None  # file with the true labels of `predictions`
    columns: dict[str, str] = field(default_factory=dict)  # own column names of `references`: {labels: emotions}
    split: str | None = None  # only rows of `references` with this split
    lang: str = "en"  # language of the labels and descriptions of `references`
    lexicon: str = "builtin"  # builtin, or a folder with the published emotion wheel tables
    label_reading: str = "auto"  # of label cells: published, exact, or auto; as in eval.py
    n_bootstrap: int = 1000  # bootstrap resamples for 95 % intervals and paired tests
    seed: int = 42  # of the bootstrap
    k: int = 1  # number of the wheel that is shown, 1 to 5
    n_clips: int = 6  # clips with the lowest, and as many with the highest F
    n_frames: int = 4  # frames of each clip; 0 = none
    pictures: bool = True  # plots (needs matplotlib)
    title: str | None = None  # null = the names of the runs
    out: str = "report.html"  # the file


@dataclass
class RunsConfig:
    """python -m affectgpt.runs"""

    folder: str = "runs"  # folder of the runs, also as positional argument
    status: str | None = None  # only runs of this status: running, finished, stopped, failed, unfinished, unreadable
    json: bool = False  # print the list as JSON; also --json


@dataclass
class StudyReportConfig:
    """python -m affectgpt.study"""

    folder: str | None = None  # folder of the study, also as positional argument
    logging: LoggingConfig = field(default_factory=LoggingConfig)  # wandb, TensorBoard
