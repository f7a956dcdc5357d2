"""Started by torchrun in test_distributed.py: runs of tiny models, one after the other, in the same processes.

The argument is JSON: {"base", "manifest", "jobs": [{"folder", "dropout", "stop_at", "stop_rank", "fields"}]}, where
fields are dotted names in the configuration; a job may have a manifest of its own. What becomes of job n is written to
<folder>/result-<n>-<rank>.json.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from affectgpt.runtime import UserError
from affectgpt.training import stages
from tests.conftest import make_train_config


def stop_after(n_draws: int) -> None:
    """Send this process a SIGTERM when it takes the `n_draws`-th draw; 0 = never."""
    made = 0
    get = stages.TrainingStream.__getitem__

    def counted(self, n):
        nonlocal made
        made += 1
        if made == n_draws:
            os.kill(os.getpid(), signal.SIGTERM)
        return get(self, n)

    stages.TrainingStream.__getitem__ = counted


def run(base, manifest, job) -> dict:
    config = make_train_config(base, manifest, Path(job["folder"]))
    for projector in config.model.projectors.values():
        projector.dropout = job.get("dropout", 0.0)
    for name, value in job["fields"].items():
        *path, last = name.split(".")
        owner = config
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, last, value)
    before = stages.TrainingStream.__getitem__
    if job.get("stop_rank") == int(os.environ["RANK"]):
        stop_after(job["stop_at"])
    try:
        result = stages.run_stage(config)
        return {"exit_code": result.exit_code, "run": str(result.run)}
    except UserError as error:
        return {"error": str(error)}
    finally:
        stages.TrainingStream.__getitem__ = before


def main() -> None:
    torch.set_num_threads(1)
    values = json.loads(sys.argv[1])
    if any(job["fields"].get("strategy.name", "").startswith("zero") for job in values["jobs"]):
        import deepspeed

        # Shared-memory collectives, which DeepSpeed would compile for a minute; without them it takes gloo's.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    base = {name: Path(path) for name, path in values["base"].items()}
    for number, job in enumerate(values["jobs"]):
        result = run(base, Path(job.get("manifest", values["manifest"])), job)
        Path(job["folder"], f"result-{number}-{os.environ['RANK']}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
