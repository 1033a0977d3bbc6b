"""How a process joins the run: its device, and its rank among the others.

What decides where this process runs is read from the environment here. Others read what is theirs alone: `src` the
rank table's name, `src.distributed.ascend` where CANN stands, `src.heartbeat` its file, `src.kernels.build`
OMP_NUM_THREADS and HOME, `src.errors` DDRNET_TRACEBACK; outside the ranks `src.launcher.job`.

Ranks meet through MindSpore's dynamic cluster (MS_ROLE, MS_WORKER_NUM and others, what `src.launcher.environment` and
msrun set up); without it a process runs alone. A platform that starts one process a card itself and hands it a rank
table (RANK_TABLE_FILE, RANK_ID, RANK_SIZE) gets the same: the table says where the ranks are, and rank 0 starts the
cluster's scheduler. MindSpore never sees the table.
"""

import atexit
import contextlib
import logging
import os
import re
import socket
import subprocess
import sys
import time

import mindspore as ms
from mindspore import communication, device_context

from src import RANK_TABLE
from src.args import Config
from src.distributed import ascend
from src.distributed.ranks import Ranks
from src.errors import TemporaryFailure, UserError, essence
from src.heartbeat import beat
from src.launcher.environment import (
    DEFAULT_PORT,
    SCHEDULER,
    rank_environment,
    scheduler_environment,
    table_cards,
)
from src.launcher.processes import Guard
from src.launcher.rank_table import read_rank_table

BACKENDS = {"Ascend": "hccl", "GPU": "nccl", "CPU": "mccl"}
MEETING_LIMIT = 1800.0  # seconds for rank 0 to come, which a platform may start later, or which copies data in first
START_LIMIT = 7200.0  # seconds from here to the first step: ranks meet, data is listed, the graph is compiled

_guards: list[Guard] = []  # each holds a pipe whose end tells of this process's death
_log = logging.getLogger(__name__)


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
    beat(START_LIMIT)
    if config.device_target == "auto":
        config = config.model_copy(update={"device_target": find_device()})
        _log.info("device_target: %s, which is there", config.device_target)
    world = _number("RANK_SIZE", _number("MS_WORKER_NUM", 1))
    if world < 1:
        raise UserError("RANK_SIZE, MS_WORKER_NUM: must be at least 1 in the environment, or unset")
    if config.device_num not in (1, world):
        raise UserError(
            f"device_num: is {config.device_num}, but {world} process(es) were started; "
            "scripts/run_distribute_train_ascend.sh starts one a card and sets it"
        )
    if world > 1 and not os.environ.get("MS_ROLE") and not ascend.dry_run():
        if not RANK_TABLE:
            raise UserError(
                f"RANK_SIZE: is {world} in the environment, but neither a rank table nor a cluster; start all ranks "
                "with one of scripts/run_distribute_*.sh, or unset it"
            )
        _meet_by_table(RANK_TABLE, world, config.device_target)
    device_id = _number("DEVICE_ID", config.device_id)
    ms.set_context(mode=ms.PYNATIVE_MODE if config.graph_mode else ms.GRAPH_MODE)
    _take_device(config, device_id, world)
    rank = 0
    if world > 1:
        try:
            communication.init(BACKENDS[config.device_target])
        except RuntimeError as error:
            reason = essence(error) or "no reason given"
            raise TemporaryFailure(
                f"the {world} ranks did not meet ({reason}); MindSpore's log above says more"
            ) from error
        atexit.register(_leave_quietly)
        rank = communication.get_rank()
        ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=world)
    ms.set_seed(config.seed + 1)  # MindSpore refuses 0
    return config.model_copy(update={"device_num": world}), Ranks(rank, world, ascend.dry_run())


def find_device() -> str:
    """The first of Ascend, GPU and CPU that MindSpore finds here."""
    for target in ("Ascend", "GPU"):
        try:
            if getattr(device_context, target.lower()).is_available():
                return target
        except (RuntimeError, ValueError, AttributeError):  # its driver or plugin does not load
            continue
    return "CPU"


def _take_device(config: Config, device_id: int, world: int) -> None:
    on_ascend, reason = config.device_target == "Ascend", ""
    if on_ascend:
        ascend.prepare(world)
    try:
        ms.set_device(config.device_target, device_id)
        reason = ascend.missing_card(device_id) if on_ascend else ""
        if on_ascend and not reason:
            ascend.take_card(world)
    except (RuntimeError, ValueError) as error:
        if "has been initialized" in str(error) and ms.get_context("device_target") == config.device_target:
            return  # by whoever uses this as a library and has run an operator already
        reason = ascend.explain(error, device_id) if on_ascend else str(error).strip().splitlines()[0]
    if reason:
        raise UserError(
            f"device_target: {config.device_target} {device_id} cannot be used: {reason}; or say --device_target CPU"
        )


def _meet_by_table(path: str, world: int, device_target: str) -> None:
    """Become a rank of a dynamic cluster, as a launcher would make it one, where a platform has started the ranks.

    Raises:
        UserError: the table does not fit RANK_ID and RANK_SIZE, or a card is hidden.
    """
    table, rank = read_rank_table(path), _number("RANK_ID", 0)
    if table.world != world or rank >= world:
        raise UserError(
            f"RANK_SIZE, RANK_ID: are {world} and {rank} in the environment, but the rank table {path} has "
            f"{table.world} ranks"
        )
    server = next(server for server in table.servers for card in server.cards if card.rank == rank)
    local = [card.rank for card in server.cards].index(rank)
    cards = table_cards([card.device_id for card in server.cards], device_target, os.environ)
    host = os.environ.get("MASTER_ADDR") or (table.servers[0].reached_by if len(table.servers) > 1 else "127.0.0.1")
    meeting = (host, _number("MASTER_PORT", DEFAULT_PORT))
    if rank == 0:
        _start_scheduler(scheduler_environment(os.environ, world, meeting))
    os.environ.update(rank_environment(os.environ, device_target, rank, world, local, cards, meeting))
    _wait_for(meeting)
    _log.info("rank %d of %d, by the rank table %s; the ranks meet at %s:%d", rank, world, path, *meeting)


def _wait_for(meeting: tuple[str, int]) -> None:
    """Wait until the scheduler listens: a rank that asks before has to wait until it asks again."""
    deadline = time.monotonic() + MEETING_LIMIT
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(meeting, timeout=5):
            return
        time.sleep(0.2)
    raise TemporaryFailure(
        f"rank 0's scheduler at {meeting[0]}:{meeting[1]} was not there within {MEETING_LIMIT:.0f} s"
    )


def _start_scheduler(environment: dict[str, str]) -> None:
    """Start the cluster's scheduler, which ends with the last rank; what is left after this one's death is killed.

    Not at once: the other ranks, which may end a moment later, are stopped by MindSpore where it has gone before them.
    """
    scheduler = subprocess.Popen(
        [sys.executable, "-c", SCHEDULER],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    guard = Guard(detached=True)
    guard.add(scheduler.pid)
    _guards.append(guard)


def _leave_quietly() -> None:
    """While MindSpore's cluster is taken down it writes two lines on what went well, whatever GLOG_v says, behind the
    result. atexit runs this before MindSpore's own end, as it is registered after that.
    """
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UserError(f"{name}: is {text[:40]!r} in the environment; must be a number")
    return int(text)
