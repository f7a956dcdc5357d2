"""The processes of one run: their ranks, collective calls on Python values, and DeepSpeed's configuration.

`strategy=` says how training is distributed: `single` (one process), `ddp` (each process holds the complete model),
`zero2` (gradients and optimizer state are partitioned), `zero3` (the frozen LLM, too). torchrun, the deepspeed launcher
or a SLURM job starts the processes.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from affectgpt.config import StrategyConfig
from affectgpt.runtime import UserError

log = logging.getLogger("affectgpt")

STRATEGIES = ("single", "ddp", "zero2", "zero3")
Item = TypeVar("Item")


class Processes:
    """This process and the others of the run; with one process all methods return at once.

    Attributes:
        rank, world_size, local_rank: as the launcher numbers them; local_rank counts within the machine.
    """

    def __init__(self, strategy: StrategyConfig, device: torch.device) -> None:
        _join_slurm_job()
        check_strategy(strategy, int(os.environ.get("WORLD_SIZE", "1")))
        self.rank, self.world_size, self.local_rank = 0, 1, 0
        self._group: Any = None
        if strategy.name == "single":
            return
        if device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # also on a machine with GPUs
        else:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # Libraries call functions of torch that it has renamed; users cannot do anything about that.
        warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
        unset_hf_deepspeed_config()  # of an earlier run: it would partition models, also encoders, while they are built
        timeout = timedelta(seconds=strategy.timeout_s)
        if not distributed.is_initialized():  # the runs of a sweep share their processes
            distributed.init_process_group("gloo" if device.type == "cpu" else "nccl", timeout=timeout)
            atexit.register(_destroy_group)
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        self.local_rank = int(os.environ["LOCAL_RANK"])
        # A group of its own on the CPU: collective calls of the GPU's group would wait for its queue at every step.
        self._group = distributed.new_group(backend="gloo", timeout=timeout)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if kind is None:
            self.wait()  # a launcher stops all processes as soon as one exits with an error code

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's share of `items`: every world_size-th."""
        return list(items[self.rank :: self.world_size])

    def equal_share(self, items: Sequence[Item]) -> list[Item]:
        """Like `share`, but of the same length in every process: items repeat where they do not divide evenly."""
        n_each = -(-len(items) // self.world_size)
        return [items[(self.rank + turn * self.world_size) % len(items)] for turn in range(n_each)]

    def together(self, make: Callable[[], Item]) -> list[Item]:
        """Results of `make` of all processes, in the order of ranks; an exception in one process ends all.

        It keeps type and traceback in its own process. In the others a UserError becomes a UserError, a bug an error
        that is none.
        """
        if self._group is None:
            return [make()]
        value, failure = None, None
        try:
            value = make()
        except Exception as error:  # noqa: BLE001 - raised again below, once the other processes know
            failure = error
        mine = (
            value,
            None if failure is None else f"{type(failure).__name__}: {failure}",
            isinstance(failure, UserError),
        )
        results: list[Any] = [None] * self.world_size
        distributed.all_gather_object(results, mine, group=self._group)
        if failure is not None:
            raise failure
        for rank, (_, text, is_user_error) in enumerate(results):
            if text is not None:
                raise (UserError if is_user_error else RuntimeError)(f"process {rank} failed: {text}")
        return [value for value, _, _ in results]

    def by_main(self, make: Callable[[], Item]) -> Item:
        """The result of `make` in the first process, which alone calls it, for all processes."""
        mine: list[Any] = [None]

        def in_main() -> Any:
            mine[0] = make() if self.is_main else None
            return mine[0]

        value = self.together(in_main)[0]
        return mine[0] if self.is_main else value

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process."""
        if self._group is None:
            return flag
        found = torch.tensor([float(flag)])
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX, group=self._group)
        return bool(found.item())

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self._group is not None:
            distributed.barrier(group=self._group)


def _join_slurm_job() -> None:
    """Set RANK, WORLD_SIZE, MASTER_ADDR ... in a job of several tasks that Hydra's submitit launcher submitted."""
    if "SUBMITIT_EXECUTOR" in os.environ and "RANK" not in os.environ:
        import submitit

        if submitit.JobEnvironment().num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def _destroy_group() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def check_strategy(strategy: StrategyConfig, world_size: int) -> None:
    """Check the strategy against the processes that were started and the installed libraries.

    Raises:
        UserError: names the wrong combination and the right command.
    """
    name = strategy.name
    if name not in STRATEGIES:
        raise UserError(f"strategy.name is {name!r}; expected one of {list(STRATEGIES)}")
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if name == "single" and world_size > 1:
        raise UserError(
            f"{world_size} processes were started, but strategy=single trains in one; add strategy=ddp (or zero2, "
            "zero3), or start train.py with python"
        )
    if name != "single" and not launched:
        raise UserError(
            f"strategy={name} needs processes started by a launcher: "
            f"torchrun --nproc_per_node 2 train.py strategy={name} ... (docs/many-gpus.md)"
        )
    if strategy.num_processes is not None and strategy.num_processes != world_size:
        raise UserError(
            f"strategy.num_processes is {strategy.num_processes}, but {world_size} were started; "
            f"change --nproc_per_node (and --nnodes), or the setting"
        )
    if name in ("zero2", "zero3") and importlib.util.find_spec("deepspeed") is None:
        raise UserError(f"strategy={name} needs DeepSpeed: pip install 'affectgpt[deepspeed]', or use strategy=ddp")
    if strategy.offload_optimizer and name not in ("zero2", "zero3"):
        raise UserError(f"strategy.offload_optimizer works with zero2 and zero3, not with {name}")
    if strategy.offload_parameters and name != "zero3":
        raise UserError(f"strategy.offload_parameters works with zero3, not with {name}")


def check_trained(strategy: StrategyConfig, training: Sequence[str], n_16bit: int) -> None:
    """Refuse strategies that cannot train what is to be trained.

    Args:
        training: modalities whose encoder trains.
        n_16bit: number of trained parameters in 16 bits.
    """
    if training and strategy.name.startswith("zero"):
        raise UserError(
            f"strategy={strategy.name} does not train encoders ({', '.join(training)}): it reduces gradients in the "
            "order in which they arrive, which depends on the modalities of a process's samples; use strategy=ddp"
        )
    if n_16bit and strategy.name == "zero3":  # with DeepSpeed 0.19 the run fails at its start
        raise UserError(
            f"strategy=zero3 does not train weights in 16 bits beside those in fp32 ({n_16bit:,} parameters); set "
            "model.llm.dtype=float32, or use strategy=zero2"
        )


def deepspeed_config(strategy: StrategyConfig, n_trainable: int) -> dict[str, Any] | None:
    """DeepSpeed's configuration; None for strategies without it. transformers replaces "auto".

    Neither bf16 nor fp16 is enabled: DeepSpeed would then cast everything, also the trained parts. Without it each part
    keeps the precision it was built in (a bf16 LLM with fp32 projectors), as with the other strategies.

    Args:
        n_trainable: number of trained parameters; one bucket holds the gradients of all.
    """
    if strategy.name not in ("zero2", "zero3"):
        return None
    zero: dict[str, Any] = {
        "stage": 2 if strategy.name == "zero2" else 3,
        "reduce_bucket_size": max(n_trainable, 1),
    }
    if strategy.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if strategy.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        # torch's AdamW also with offloading: DeepSpeed's own needs a compiler, and the trained parts are small.
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }


def partition_frozen(module: nn.Module, config: dict[str, Any], batch_size: int, accumulation: int) -> None:
    """Partition the frozen parameters of `module` over the processes one by one, so that no GPU ever holds them all.

    Trained parameters are partitioned later: the optimizer decides by their shapes which of them decay.
    """
    import deepspeed

    # Joins the existing group; without it DeepSpeed counts one process when it checks the batch sizes.
    deepspeed.init_distributed(distributed.get_backend(), auto_mpi_discovery=False, verbose=False)
    sizes = {
        "train_batch_size": batch_size * accumulation * distributed.get_world_size(),
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 1.0,
    }
    frozen = nn.ParameterList([parameter for parameter in module.parameters() if not parameter.requires_grad])
    deepspeed.zero.Init(module=frozen, config_dict_or_path={**config, **sizes})


def gathered(parameters: Mapping[str, nn.Parameter], *, keep: bool) -> dict[str, torch.Tensor] | None:
    """Copies on the CPU of parameters that ZeRO-3 may have partitioned; a collective call.

    Args:
        keep: whether this process needs them; otherwise it takes part and gets None.
    """
    with contextlib.ExitStack() as stack:
        if partitioned := [parameter for parameter in parameters.values() if hasattr(parameter, "ds_id")]:
            import deepspeed

            stack.enter_context(deepspeed.zero.GatheredParameters(partitioned, modifier_rank=None))
        if not keep:
            return None
        return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}
