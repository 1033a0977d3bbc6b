"""How a process joins the run: its device, and its rank among the others.

The only module that reads the environment, save for OMP_NUM_THREADS and HOME in `src.kernels.build`.

One process a card is started either with a rank table (RANK_ID, RANK_SIZE and DEVICE_ID in its environment) or by
MindSpore's dynamic cluster (MS_ROLE and MS_WORKER_NUM, what msrun sets up); without either it runs alone.
`src.launcher.supervisor` starts both.
"""

import os

import mindspore as ms
from mindspore import communication

from src.args import Config
from src.distributed.ranks import Ranks
from src.errors import UserError

BACKENDS = {"Ascend": "hccl", "GPU": "nccl", "CPU": "mccl"}


def expected_rank() -> int:
    """The rank that whoever started this process means it to have; known before the ranks have met."""
    return _number("RANK_ID", _number("MS_NODE_ID", 0))


def join(config: Config) -> tuple[Config, Ranks]:
    """Choose device and mode, join the other ranks if there are any.

    Returns:
        The configuration with device_num as it is, and the ranks, seen from this one.

    Raises:
        UserError: the device is not there, device_num differs from the number of processes started, or the
            environment is half set.
    """
    world = _number("RANK_SIZE", _number("MS_WORKER_NUM", 1))
    if config.device_num not in (1, world):
        raise UserError(
            f"device_num: is {config.device_num}, but {world} process(es) were started; "
            "scripts/run_distribute_train_ascend.sh starts one a card and sets it"
        )
    device_id = _number("DEVICE_ID", config.device_id)
    ms.set_context(mode=ms.PYNATIVE_MODE if config.graph_mode else ms.GRAPH_MODE)
    try:
        ms.set_device(config.device_target, device_id)
    except (RuntimeError, ValueError) as error:
        chosen = "has been initialized" in str(error) and ms.get_context("device_target") == config.device_target
        if not chosen:  # by whoever uses this as a library and has run an operator already
            raise UserError(
                f"device_target: {config.device_target} {device_id} is not there ({str(error).splitlines()[0]}); "
                "check its driver and the MindSpore package, or say --device_target CPU"
            ) from error
    rank = 0
    if world > 1:
        if not (os.environ.get("MS_ROLE") or os.environ.get("RANK_TABLE_FILE")):
            raise UserError(
                f"RANK_SIZE: is {world} in the environment, but neither a rank table nor a cluster; start all ranks "
                "with one of scripts/run_distribute_*.sh, or unset it"
            )
        communication.init(BACKENDS[config.device_target])
        rank = communication.get_rank()
        ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=world)
    ms.set_seed(config.seed + 1)  # MindSpore refuses 0
    return config.model_copy(update={"device_num": world}), Ranks(rank, world)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit():
        raise UserError(f"{name}: is {text!r} in the environment; must be a number")
    return int(text)
