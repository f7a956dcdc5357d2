"""The commands: configuration in, one call into the package, a result or an error a person can act on out.

Only this module knows Hydra. It imports nothing heavy before a command really starts, so `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from affectgpt import config as conf_schema
from affectgpt.runtime import NotFound
from affectgpt.schema import LANGUAGES, TASKS

_HYDRA_OPTIONS = (
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
    "--config-dir",
    "-cd",
)
_SCHEMAS = {
    "train": conf_schema.TrainConfig,
    "infer": conf_schema.InferConfig,
    "eval": conf_schema.EvalConfig,
    "plan": conf_schema.PlanConfig,
    "export": conf_schema.ExportConfig,
    "push": conf_schema.PushConfig,
    "cache": conf_schema.CacheConfig,
    "zeroshot": conf_schema.ZeroShotConfig,
    "annotate": conf_schema.AnnotateConfig,
    "records": conf_schema.RecordsConfig,
    "study": conf_schema.StudyOfAnnotatorsConfig,
    "serve": conf_schema.ServeConfig,
}

_USAGE = {
    "serve": """Serve a checkpoint, or another chat model, by the protocol of OpenAI's API (docs/serve.md).

  python -m affectgpt.serve                                   # the last complete run, at http://127.0.0.1:8000/v1
  python -m affectgpt.serve runs/fine port=8001 media_folder=/data/clips
  python -m affectgpt.serve model=Qwen/Qwen2.5-VL-7B-Instruct dtype=bfloat16
  AFFECTGPT_API_KEY=... python -m affectgpt.serve runs/fine host=0.0.0.0

SIGTERM and Ctrl-C let running requests finish.""",
    "annotate": """Describe and label clips: evidence, clues, descriptions and labels, each with where it came from.

  python -m affectgpt.annotate videos/ out=emer_coarse/                       # local: no model, no server, no key
  python -m affectgpt.annotate videos/ out=o annotator=openai annotator.model=... plan=true    # calls and cost
  python -m affectgpt.annotate videos/ out=o annotator=vllm annotator.model=... annotator@audio=local
  python -m affectgpt.annotate clips.csv out=o pipeline=merr openface=openface/ annotator=transformers ...
  python -m affectgpt.annotate demo:coarse out=o limit=50                     # the embedded corpus

  python -m affectgpt.annotate clips.jsonl out=o engine=processes             # in shards; engine=ray on a cluster
  python -m affectgpt.annotate study ...                                      # which models; study --help
  python -m affectgpt.annotate check | merge | export | review | import | report   # what is done with the records

Repeating the command goes on where it stopped and never repeats a call whose answer arrived.
Exit code: 0 all complete, 3 some failed or dropped, 4 budget reached, 130 / 143 interrupted.
Groups: pipeline=emer_coarse|emer|emer_verified|emer_checked|ov_merd|merr|s0|s1|s2,
annotator=local|openai|vllm|transformers.""",
    "study": """Compare models to annotate with: every choice of one model a column, scored against references.

  python -m affectgpt.annotate study clips.csv out=study references=clips.csv repeats=2 annotator=openai \\
      annotator.model=... audio=[vllm:Qwen2-Audio@http://a:8000/v1,local] merge=[openai:...] \\
      video=[vllm:Qwen2.5-VL@http://b:8000/v1,none] translate=[vllm:Qwen2.5-7B@http://c:8000/v1]

`annotator` reads the labels, in all rows the same. A model that is added costs its own calls only.
Settings of annotate (pipeline=, limit=, lang=, annotator.concurrency= ...) hold for all rows.""",
    "records": """Check, merge, export, review and report what `python -m affectgpt.annotate videos/ out=...` wrote.

  python -m affectgpt.annotate check emer_coarse/ policy.near_duplicate=drop      # keep, ask a human, or drop
  python -m affectgpt.annotate merge qwen/ gpt/ out=merged/ how=majority          # several annotators, and agreement
  python -m affectgpt.annotate export emer_coarse/ to=merr out=merr/              # or manifest, sharegpt, labelstudio
  python -m affectgpt.annotate review emer_coarse/ to=emer_fine/ round=1 annotators=a,b,c,d
  python -m affectgpt.annotate import exports/*.json to=emer_fine/                # what people answered
  python -m affectgpt.annotate report emer_coarse/                                # counts, labels, pictures

docs/human-review.md describes the two rounds.""",
    "zeroshot": """Ask other multimodal models, without training, and write predictions.jsonl as infer.py does.

  python -m affectgpt.zeroshot model=Qwen/Qwen2.5-VL-7B-Instruct data=... strategy=s1 out=preds.jsonl
  python -m affectgpt.zeroshot qwen2_5_omni manifest=clips.csv out=preds.jsonl         # a file of conf/zeroshot
  python -m affectgpt.zeroshot model=gpt-4o base_url=https://api.openai.com/v1 manifest=clips.csv out=preds.jsonl
  python -m affectgpt.zeroshot model=... strategy=s2 merge_model=Qwen/Qwen2.5-7B-Instruct data=... out=preds.jsonl
  python -m affectgpt.zeroshot audio_model=... video_model=... merge_model=... strategy=s2 data=... out=preds.jsonl
  python -m affectgpt.zeroshot export manifest=clips.csv strategy=s0 out=requests.jsonl
  python -m affectgpt.zeroshot import answers.jsonl manifest=clips.csv strategy=s0 out=preds.jsonl
  python eval.py predictions=[a.jsonl,b.jsonl] references=clips.csv compare=true       # the table

docs/baselines.md says which models run in process.""",
    "train": """Train one stage.

  python train.py stage=coarse               # stage 1, on auto-labelled clips
  python train.py stage=fine                 # stage 2, from the last complete coarse run
  python train.py stage=fine resume=true     # go on with a run that was stopped or killed
  python train.py stage=coarse model=affectgpt data=my_data stage.batch_size=8 logging.wandb=offline
  torchrun --nproc_per_node 8 train.py stage=coarse strategy=ddp     # or zero2, zero3

Groups: stage=coarse|fine, model=..., data=..., experiment=..., debug=... name files under conf/.""",
    "infer": """Explain the emotions in videos.

  python infer.py video.mp4                                   # explanation, labels, what was seen and heard
  python infer.py a.mp4 b.mp4 subtitle="I'm fine."
  python infer.py clips/ out=predictions.jsonl task=labels lang=zh
  python infer.py manifest.csv out=predictions.jsonl          # ids, subtitles and paths from a manifest; resumes
  python infer.py video.mp4 json=true generate.do_sample=true generate.temperature=0.7""",
    "eval": """Score open-vocabulary labels with the set-based emotion-wheel metrics.

  python eval.py                                              # last fine run on the test split of its data
  python eval.py checkpoint=runs/fine/best
  python eval.py predictions=mine.jsonl references=test.csv   # anybody's predictions; loads no model
  python eval.py predictions=[a.jsonl,b.jsonl] references=test.csv compare=true       # paired test
  python eval.py benchmark=ovmerd_plus benchmark.folder=/data/mer predictions=mine.npz lexicon=/data/emotion_wheel""",
    "cache": """Encode all clips of a data set ahead, or look after the cache of encoder states.

  python -m affectgpt.cache model=affectgpt data=my_data                  # build; goes on where it was stopped
  python -m affectgpt.cache model=affectgpt data=my_data engine=ray       # on a Ray cluster with shared storage
  python -m affectgpt.cache ls
  python -m affectgpt.cache verify repair=true
  python -m affectgpt.cache gc max_gb=500 unused_days=30""",
    "export": """Write a checkpoint as one full folder that needs no base models, and check it by reading it back.

  python -m affectgpt.export runs/fine out=release
  python -m affectgpt.export runs/fine out=release merge_lora=true dtype=bfloat16""",
    "push": """Publish a checkpoint on the hub with a generated model card.

  python -m affectgpt.hub push runs/fine repo=user/name dry_run=true       # write the folder, look at README.md
  python -m affectgpt.hub push runs/fine repo=user/name                    # trained tensors; base models by id
  python -m affectgpt.hub push runs/fine repo=user/name full=true private=true

`python -m affectgpt.hub fetch model=affectgpt` downloads all base models of a preset.""",
    "plan": """Parameters, memory by part, operations and expected speed of a training run, before it is started.

  python -m affectgpt.plan model=affectgpt stage=coarse                    # one card: A100, H100, 24 GB
  python -m affectgpt.plan model=affectgpt strategy=zero2 n_gpus=8 gpu=h100 stage.batch_size=8
  python -m affectgpt.plan online=true stage.packing=false                # encoders in every step, padded
  python -m affectgpt.plan stage.gradient_checkpointing=true json=true

It needs no weights, no hub and no GPU. Groups: model=..., stage=..., strategy=... name files under conf/.""",
}


def train() -> None:
    """Entry point of train.py."""
    # The deepspeed launcher adds --local_rank=n, which stands in the environment too.
    given = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank=")]
    sys.argv[1:] = whole_weights(folders_as_data(given))
    _run("train", _train)


def infer() -> None:
    """Entry point of infer.py; arguments without `=` are inputs."""
    # As it is called in training; a checkpoint brings its model along, so inference has no group `model`.
    sys.argv[1:] = [re.sub(r"^model\.llm\.(?=quantization=)", "", argument) for argument in sys.argv[1:]]
    sys.argv[1:] = positional_to_overrides(quote_texts(sys.argv[1:], conf_schema.InferConfig), "input")
    _run("infer", _infer)


def zeroshot() -> None:
    """Entry point of python -m affectgpt.zeroshot."""
    sys.argv[1:] = quote_texts(words_of_zeroshot(sys.argv[1:]), conf_schema.ZeroShotConfig)
    _run("zeroshot", _zeroshot)


def annotate() -> None:
    """Entry point of python -m affectgpt.annotate; arguments without `=` are inputs, a first one may be a verb."""
    if sys.argv[1:2] and sys.argv[1] in ("check", "merge", "export", "review", "import", "report"):
        sys.exit(_records(sys.argv[1], sys.argv[2:]))
    if sys.argv[1:2] == ["study"]:
        sys.exit(_study_of_annotators(sys.argv[2:]))
    sys.argv[1:] = positional_to_overrides(quote_texts(sys.argv[1:], conf_schema.AnnotateConfig), "input")
    _run("annotate", _annotate)


def _study_of_annotators(arguments: Sequence[str]) -> int:
    """python -m affectgpt.annotate study: own settings, and those of annotate for all rows."""
    names = {field.name for field in dataclasses.fields(conf_schema.StudyOfAnnotatorsConfig)}
    if {"-h", "--help"} & set(arguments):
        print(help_text("study", conf_schema.StudyOfAnnotatorsConfig))
        return 0
    own = [text for text in arguments if text.partition("=")[0] in names]
    common = positional_to_overrides(
        quote_texts([text for text in arguments if text not in own], conf_schema.AnnotateConfig), "input"
    )
    config = options("study", own, positional="references")

    def run(base: conf_schema.AnnotateConfig) -> int:
        from affectgpt.annotate.study import ROLES, run_study

        columns = {name: {text: _candidate(text, name, common) for text in getattr(config, name)} for name in ROLES}
        if config.references:
            config.references = _embedded(config.references, Path(base.paths.cache))
        return run_study(config, base, columns)

    return _guarded(run, compose("annotate", common))


def _candidate(text: str, column: str, common: Sequence[str]) -> conf_schema.AnnotatorConfig | None:
    """The annotator that `kind:model@server` names, kind being a file of conf/annotator; None for "none"."""
    if text == "none":
        return None
    kind, _, rest = text.partition(":")
    model, _, server = rest.partition("@")
    shown = {"audio": "[sound]", "video": "[images]"}.get(column)
    given = [item for item in common if not item.startswith(("annotator=", "annotator.model=", "annotator.sees="))]
    chosen = [f"annotator={kind}"]
    chosen += [f"annotator.model={_literal(model)}"] if model else []
    chosen += [f"annotator.base_url={_literal(server)}"] if server else []
    chosen += [f"annotator.sees={shown}"] if shown and kind != "local" else []
    given = [item for item in given if not (server and item.startswith("annotator.base_url="))]
    return compose("annotate", [*given, *chosen]).annotator


def _records(verb: str, arguments: Sequence[str]) -> int:
    """A verb of python -m affectgpt.annotate that works on records."""

    def run(config: conf_schema.RecordsConfig) -> int:
        from affectgpt.annotate.verbs import run_verb

        return run_verb(verb, config)

    return _guarded(run, options("records", positional_to_overrides(arguments, "input"), positional="input"))


def _annotate(config: conf_schema.AnnotateConfig) -> int:
    from affectgpt.annotate.run import annotators_of, run

    if config.transcriber or any(item.kind == "transformers" for item in annotators_of(config).values()):
        from affectgpt.inference.loading import quiet_libraries

        quiet_libraries()
    return run(config)


def words_of_zeroshot(arguments: Sequence[str]) -> list[str]:
    """`export`, `import FILE`, the name of a file in conf/zeroshot, and settings of `ask` without it, as overrides.

    >>> words_of_zeroshot(["import", "answers.jsonl", "out=p.jsonl"])
    ['action=import', "ask.model='answers.jsonl'", 'out=p.jsonl']
    >>> words_of_zeroshot(["qwen2_5_vl", "strategy=s0"])
    ['zeroshot=qwen2_5_vl', "ask.strategy='s0'"]
    """
    changed = []
    asked = {field.name for field in dataclasses.fields(conf_schema.AskConfig)}
    for before, text in zip(["", *arguments], arguments, strict=False):
        if text.endswith(".jsonl") and "=" not in text:
            text = f"model={text}"
        if text.startswith("-") or before in _HYDRA_OPTIONS:
            changed.append(text)
        elif text.partition("=")[0] in asked:
            (quoted,) = quote_texts([text], conf_schema.AskConfig)
            changed.append(f"ask.{quoted}")
        elif "=" in text:
            changed.append(text)
        else:
            changed.append(f"action={text}" if text in ("run", "export", "import") else f"zeroshot={text}")
    return changed


def _zeroshot(config: conf_schema.ZeroShotConfig) -> int:
    from affectgpt.inference.loading import quiet_libraries
    from affectgpt.zeroshot.run import run

    quiet_libraries()
    return run(config)


def evaluate() -> None:
    """Entry point of eval.py."""
    sys.argv[1:] = quote_texts(sys.argv[1:], conf_schema.EvalConfig)
    _run("eval", _evaluate)


def cache() -> None:
    """Entry point of python -m affectgpt.cache, for a build."""
    _run("cache", _cache)


def _cache(config: conf_schema.CacheConfig) -> int:
    from affectgpt.cache.command import run_build

    return run_build(config)


def export() -> None:
    """Entry point of python -m affectgpt.export."""

    def run(config: conf_schema.ExportConfig) -> int:
        from affectgpt.hub.export import run_export

        return run_export(config)

    sys.exit(_guarded(run, options("export", sys.argv[1:], positional="checkpoint")))


def hub(arguments: Sequence[str]) -> None:
    """Entry point of python -m affectgpt.hub: fetch or push."""
    verb, *rest = arguments or ["--help"]
    if verb not in ("fetch", "push") or {"-h", "--help"} & set(rest):
        print(help_text("push", conf_schema.PushConfig))
        sys.exit(0 if {"-h", "--help"} & set(arguments) else 2)
    from affectgpt.hub import push as verbs

    if verb == "push":
        sys.exit(_guarded(verbs.push, options("push", rest, positional="checkpoint")))
    sys.exit(_guarded(lambda config: verbs.fetch_models(config.model), compose("train", rest)))


def options(command: str, arguments: Sequence[str], positional: str) -> Any:
    """The settings of a command without groups: `key=value` arguments, and plain ones for `positional`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    schema = _SCHEMAS[command]
    if {"-h", "--help"} & set(arguments):
        print(help_text(command, schema))
        sys.exit(0)
    pairs = [argument if "=" in argument else f"{positional}={argument}" for argument in arguments]
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.from_dotlist(pairs)))
    except OmegaConfBaseException as error:
        print(f"error: {str(error).splitlines()[0]}; --help lists the settings", file=sys.stderr)
        sys.exit(2)


def serve() -> None:
    """Entry point of python -m affectgpt.serve."""

    def run(config: conf_schema.ServeConfig) -> int:
        from affectgpt.serve.command import run_server

        return run_server(config)

    sys.exit(_guarded(run, options("serve", sys.argv[1:], positional="checkpoint")))


def plan() -> None:
    """Entry point of python -m affectgpt.plan."""
    _run("plan", _plan)


def _plan(config: conf_schema.PlanConfig) -> int:
    from affectgpt.plan.command import run_plan

    return run_plan(config)


def _train(config: conf_schema.TrainConfig) -> int:
    if config.study.name:
        from affectgpt.training.study import Stopped, run_cell

        stages = {name: _same_with(f"stage={name}") for name in ("coarse", "fine")}
        try:
            run_cell(stages["coarse"], stages["fine"])
        except Stopped as stopped:
            return stopped.exit_code
        return 0
    from affectgpt.runtime import without_collector

    with without_collector():  # a sixth of the time that the libraries take to be imported
        from affectgpt.training.stages import run_stage

    return run_stage(config).exit_code


def _same_with(override: str) -> Any:
    """The configuration of the running train command with one group chosen otherwise."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    group = override.partition("=")[0]
    given = [item for item in HydraConfig.get().overrides.task if item.partition("=")[0] != group]
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        return compose("train", [*given, override])
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().initialize(running)


def _infer(config: conf_schema.InferConfig) -> int:
    from affectgpt.runtime import without_collector

    with without_collector():
        from affectgpt.inference.command import run_inference

    return run_inference(config)


def _evaluate(config: conf_schema.EvalConfig) -> int:
    from affectgpt.runtime import without_collector

    with without_collector():
        from affectgpt.inference.command import run_evaluation

    return run_evaluation(config, [_member(name, config.benchmark) for name in config.benchmark.members])


def _member(name: str, whole: conf_schema.BenchmarkConfig) -> conf_schema.BenchmarkConfig:
    """conf/benchmark/<name>.yaml with the folder and the trust of the benchmark that it is a member of."""
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()  # the command's own configuration is complete by now
    member = compose("eval", [f"benchmark={name}"]).benchmark
    return dataclasses.replace(member, folder=whole.folder, trust_pickle=whole.trust_pickle)


def positional_to_overrides(arguments: Sequence[str], key: str) -> list[str]:
    """Turn plain arguments into one Hydra override `key=[...]`; whatever holds `=` or starts with `-` stays.

    >>> positional_to_overrides(["it's.mp4", "task=labels"], "input")
    ['task=labels', "input=['it\\\\'s.mp4']"]
    """
    plain, rest = [], []
    for before, text in zip(["", *arguments], arguments, strict=False):
        # Hydra's own options and their values (--cfg job) stay. A path may itself hold "=": an existing file wins over
        # an override of that spelling.
        is_option = text.startswith("-") or before in _HYDRA_OPTIONS
        (plain if not is_option and ("=" not in text or os.path.exists(text)) else rest).append(text)
    if not plain:
        return rest
    return [*rest, f"{key}=[{','.join(map(_literal, plain))}]"]


def quote_texts(arguments: Sequence[str], schema: type) -> list[str]:
    """Quote the values of text settings for Hydra, whose grammar gives quotes, commas and braces in them a meaning.

    `null` and values that are quoted for Hydra already stay, and so does everything in a sweep (-m). What people said
    is taken to the letter: in it quotes around the whole and `${...}` mean themselves, too.

    >>> quote_texts(["subtitle=It's ok, a=b", "split=null", "json=true"], conf_schema.InferConfig)
    ["subtitle='It\\\\'s ok, a=b'", 'split=null', 'json=true']
    """
    if {"-m", "--multirun"} & set(arguments):
        return list(arguments)
    texts = {field.name for field in dataclasses.fields(schema) if field.type in ("str", "str | None")}
    changed = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        # os.path.exists, because Path.exists raises where a long text is no possible name of a file.
        if key not in texts or not equals or value in ("", "null") or os.path.exists(argument):
            changed.append(argument)
        elif key in _SPOKEN:
            changed.append(f"{key}={_literal(value)}")
        else:
            changed.append(argument if _QUOTED.fullmatch(value) else f"{key}={_quoted(value)}")
    return changed


_SPOKEN = ("subtitle",)  # settings that hold what people said
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")


def folders_as_data(arguments: Sequence[str]) -> list[str]:
    """`data=FOLDER` for a folder that holds a manifest.jsonl, such as annotation writes, as training data of stage 1.

    A folder that exists wins over a file of conf/data of that name.

    >>> folders_as_data(["stage=coarse", "data=demo"])
    ['stage=coarse', 'data=demo']
    """
    changed: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        manifest = Path(value) / "manifest.jsonl"
        if key != "data" or not value or not manifest.is_file():
            changed.append(argument)
            continue
        changed += ["data=own_manifest", f"data.name={_literal(manifest.parent.name)}"]
        changed += [f"data.coarse=[{{manifest:{_literal(str(manifest))}}}]", "data.fine=[]", "data.test=[]"]
    return changed


def whole_weights(arguments: Sequence[str]) -> list[str]:
    """Make `stage.tasks={labels:1}` mean these tasks and no others; Hydra alone would add them to those of the stage.

    >>> whole_weights(["stage.langs={zh:1}"])
    ['++stage.langs={en:0,zh:0}', 'stage.langs={zh:1}']
    """
    changed = []
    for argument in arguments:
        for key, names in (("stage.tasks", TASKS), ("stage.langs", LANGUAGES)):
            if argument.startswith(f"{key}={{"):
                changed.append(f"++{key}={{{','.join(f'{name}:0' for name in names)}}}")
        changed.append(argument)
    return changed


def _quoted(text: str) -> str:
    """`text` as a quoted string of Hydra: there a backslash means itself, except in front of a quote."""
    return "'" + re.sub(r"(\\*)('|\Z)", _escape, text) + "'"


def _literal(text: str) -> str:
    """`text` as a quoted string of Hydra in which `${` is no interpolation: OmegaConf wants a backslash before it."""
    return _quoted(re.sub(r"(\\*)(\$\{)", r"\1\1\\\2", text))


def _escape(match: re.Match[str]) -> str:
    return match[1] * 2 + match[2].replace("'", "\\'")


def help_text(command: str, schema: type) -> str:
    """Usage, examples and every field with its default and meaning."""
    from affectgpt.confdoc import settings_of

    lines = [_USAGE[command], "", "Settings (key=value) [default]:", ""]
    for name, default, comment in settings_of(schema):
        shown = "" if default in (None, "null", "[]", "{}") else f" [{default}]"
        lines.append(f"  {name:<30} {comment}{shown}")
    lines += ["", "--cfg job prints the whole configuration; docs/configuration.md describes it."]
    return "\n".join(lines)


def compose(command: str, overrides: Sequence[str] = ()) -> Any:
    """The configuration object that `python <command>.py <overrides>` would run with, for use from Python."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    _register()
    with initialize_config_dir(str(_conf_folder()), version_base="1.3"):
        return _resolved(OmegaConf.to_object(hydra_compose(command, overrides=whole_weights(overrides))))


def set_environment() -> None:
    """Environment of libraries that must stand before they are imported; what the user has set stays."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # On a CPU it says at import, asked for or not, that a kernel for GPUs' 4-bit products could not be fetched.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if os.environ.get("RANK", "0") != "0":
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the first process only
    # Threads that wait by spinning take cores from others that need them: with one other busy process on two cores,
    # small matrix products ran 1.1 to 1.2 times as fast with sleeping threads (two paired runs of 6 s, 2026-11).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _register() -> None:
    from hydra.core.config_store import ConfigStore

    for command, schema in _SCHEMAS.items():
        ConfigStore.instance().store(name=f"{command}_schema", node=schema)


def _resolved(config: Any) -> Any:
    """`config` with its cache folder expanded and names of the embedded default (demo:...) replaced by paths."""
    config.paths.cache = str(Path(config.paths.cache).expanduser())
    if isinstance(getattr(config, "model", None), conf_schema.ModelConfig) and config.model.init != "pretrained":
        config.model.init_from = None  # it is not used, so it shall not be built either
    return replace_strings(config, _embedded, Path(config.paths.cache))


def _embedded(text: str, cache: Path) -> str:
    if not text.startswith("demo:"):
        return text
    from affectgpt.demo.embedded import path_of

    return str(path_of(text.removeprefix("demo:"), cache))


def replace_strings(value: Any, replace: Callable[..., str], *arguments: Any) -> Any:
    """Apply `replace(text, *arguments)` to every string in dataclasses, lists and dictionaries."""
    if isinstance(value, str):
        return replace(value, *arguments)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            setattr(value, field.name, replace_strings(getattr(value, field.name), replace, *arguments))
        return value
    if isinstance(value, list):
        return [replace_strings(item, replace, *arguments) for item in value]
    if isinstance(value, dict):
        return {key: replace_strings(item, replace, *arguments) for key, item in value.items()}
    return value


def _run(command: str, task: Callable[[Any], int]) -> None:
    """Compose the configuration, check it against its schema, run `task` and exit with its code."""
    if any(argument in ("-h", "--help") for argument in sys.argv[1:]):
        print(help_text(command, _SCHEMAS[command]))
        sys.exit(0)
    set_environment()

    import hydra
    from omegaconf import DictConfig, OmegaConf

    _register()

    codes: list[int] = []
    studies: dict[Path, None] = {}

    @hydra.main(version_base="1.3", config_path=str(_conf_folder()), config_name=command)
    def main(composed: DictConfig) -> None:
        config = OmegaConf.to_object(composed)
        codes.append(_guarded(task, config))
        # A signal ends the whole sweep, an error only its own job; a job that SLURM runs must end with its own code.
        if codes[-1] >= 128 or (codes[-1] and "SUBMITIT_EXECUTOR" in os.environ):
            sys.exit(codes[-1])
        if command == "train" and config.study.name and codes[-1] == 0:
            studies[Path(config.paths.runs) / config.study.name] = None

    main()
    for folder in studies:
        from affectgpt.training.study import report

        print(f"\n{report(folder)}")
    sys.exit(max(codes, default=0))


def _guarded(task: Callable[[Any], int], config: Any) -> int:
    """Run `task`; what a user can mend ends as one message and exit code 2, not as a traceback."""
    from affectgpt.doctor import known_mismatches
    from affectgpt.runtime import UserError, set_up_logging

    set_up_logging()
    for finding in known_mismatches():
        print(finding, file=sys.stderr)
    hubbed = (conf_schema.TrainConfig, conf_schema.InferConfig, conf_schema.EvalConfig, conf_schema.ServeConfig)
    if isinstance(config, hubbed) and config.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once
    try:
        return task(_resolved(config))
    except UserError as error:
        if os.environ.get("AFFECTGPT_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        print("(AFFECTGPT_TRACEBACK=1 shows where)", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if os.environ.get("AFFECTGPT_TRACEBACK"):
            raise
        print("\ninterrupted", file=sys.stderr)
        return 130


def _conf_folder() -> Path:
    """conf/ beside the package in a checkout, affectgpt/conf in an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise NotFound(f"no conf/ beside {package} or inside it; reinstall affectgpt")
