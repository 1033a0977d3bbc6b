"""Where this process runs: its device, and its place among the ranks. The only module that reads the environment.

One process a card is started either with a rank table (RANK_ID, RANK_SIZE and DEVICE_ID in its environment) or by
MindSpore's dynamic cluster (MS_ROLE and MS_WORKER_NUM, what msrun sets up); without either it runs alone.
"""

import os
from dataclasses import dataclass

import mindspore as ms
from mindspore import communication

from src.args import Config
from src.errors import UserError

BACKENDS = {"Ascend": "hccl", "GPU": "nccl", "CPU": "mccl"}


@dataclass(frozen=True)
class Place:
    """A process among `world` of them; rank 0 alone writes."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def launch(config: Config) -> tuple[Config, Place]:
    """Choose device and mode, join the other ranks if there are any.

    Returns:
        The configuration with device_num as it is, and this process's place.

    Raises:
        UserError: the device is not there, or device_num differs from the number of processes started.
    """
    world = int(os.environ.get("RANK_SIZE") or os.environ.get("MS_WORKER_NUM") or 1)
    if config.device_num not in (1, world):
        raise UserError(
            f"device_num: is {config.device_num}, but {world} process(es) were started; "
            "scripts/run_distribute_train_ascend.sh starts one a card and sets it"
        )
    device_id = int(os.environ.get("DEVICE_ID", config.device_id))
    ms.set_context(mode=ms.PYNATIVE_MODE if config.graph_mode else ms.GRAPH_MODE)
    try:
        ms.set_device(config.device_target, device_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"device_target: {config.device_target} {device_id} is not there ({str(error).splitlines()[0]}); "
            "check its driver and the MindSpore package, or say --device_target CPU"
        ) from error
    rank = 0
    if world > 1:
        communication.init(BACKENDS[config.device_target])
        rank = communication.get_rank()
        ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=world)
    ms.set_seed(config.seed + 1)  # MindSpore refuses 0
    return config.model_copy(update={"device_num": world}), Place(rank, world)
