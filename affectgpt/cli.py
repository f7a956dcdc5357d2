"""The commands: configuration in, one call into the package, a result or an error a person can act on out.

Only this module knows Hydra. It imports nothing heavy before a command really starts, so `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from affectgpt import conf_schema

Config = TypeVar("Config")

_USAGE = {
    "train": """Train one stage.

  python train.py stage=coarse               # stage 1, on auto-labelled clips
  python train.py stage=fine                 # stage 2, from the last complete coarse run
  python train.py stage=fine resume=true     # go on with a run that was stopped or killed
  python train.py stage=coarse model=affectgpt data=my_data stage.batch_size=8 logging.wandb=offline

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
  python eval.py predictions=mine.jsonl references=test.csv   # anybody's predictions; loads no model""",
}


def train() -> None:
    """Entry point of train.py."""
    _run("train", conf_schema.TrainConfig, _train)


def infer() -> None:
    """Entry point of infer.py; arguments without `=` are inputs."""
    sys.argv[1:] = positional_to_overrides(sys.argv[1:], "input")
    _run("infer", conf_schema.InferConfig, _infer)


def evaluate() -> None:
    """Entry point of eval.py."""
    _run("eval", conf_schema.EvalConfig, _evaluate)


def _train(config: conf_schema.TrainConfig) -> int:
    from affectgpt.training.stages import run_stage

    return run_stage(config).exit_code


def _infer(config: conf_schema.InferConfig) -> int:
    from affectgpt.commands import run_inference

    return run_inference(config)


def _evaluate(config: conf_schema.EvalConfig) -> int:
    from affectgpt.commands import run_evaluation

    return run_evaluation(config)


def positional_to_overrides(arguments: Sequence[str], key: str) -> list[str]:
    """Turn plain arguments into one Hydra override `key=[...]`; whatever holds `=` or starts with `-` stays.

    >>> positional_to_overrides(["it's.mp4", "task=labels"], "input")
    ['task=labels', "input=['it\\\\'s.mp4']"]
    """
    # A path may itself hold "=": an existing file wins over an override of that spelling.
    plain = [text for text in arguments if not text.startswith("-") and ("=" not in text or Path(text).exists())]
    rest = [text for text in arguments if text not in plain]
    if not plain:
        return list(arguments)
    quoted = ",".join("'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'" for text in plain)
    return [*rest, f"{key}=[{quoted}]"]


def help_text(command: str, schema: type) -> str:
    """Usage, examples and every field with its default and meaning."""
    from affectgpt.confdoc import settings_of

    lines = [_USAGE[command], "", "Settings (key=value) [default]:", ""]
    for name, default, comment in settings_of(schema):
        shown = "" if default in (None, "null", "[]", "{}") else f" [{default}]"
        lines.append(f"  {name:<30} {comment}{shown}")
    lines += ["", "--cfg job prints the whole configuration; docs/configuration.md describes it."]
    return "\n".join(lines)


def _run(command: str, schema: type[Config], task: Callable[[Config], int]) -> None:
    """Compose the configuration, check it against `schema`, run `task` and exit with its code."""
    if any(argument in ("-h", "--help") for argument in sys.argv[1:]):
        print(help_text(command, schema))
        sys.exit(0)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import DictConfig, OmegaConf

    ConfigStore.instance().store(name=f"{command}_schema", node=schema)

    @hydra.main(version_base="1.3", config_path=str(_conf_folder()), config_name=command)
    def main(composed: DictConfig) -> None:
        config: Any = OmegaConf.to_object(composed)
        sys.exit(_guarded(task, config))

    main()


def _guarded(task: Callable[[Any], int], config: Any) -> int:
    """Run `task`; what a user can mend ends as one message and exit code 2, not as a traceback."""
    from affectgpt.doctor import known_mismatches
    from affectgpt.runtime import UserError, set_up_logging

    set_up_logging()
    for finding in known_mismatches():
        print(finding, file=sys.stderr)
    try:
        config.paths.cache = str(Path(config.paths.cache).expanduser())
        return task(config)
    except (UserError, ValueError, FileNotFoundError) as error:
        if os.environ.get("AFFECTGPT_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        print("(AFFECTGPT_TRACEBACK=1 shows where)", file=sys.stderr)
        return 2


def _conf_folder() -> Path:
    """conf/ beside the package in a checkout, affectgpt/conf in an installed wheel."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/ beside {package} or inside it; reinstall affectgpt")
