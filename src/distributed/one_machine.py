"""Ranks that are all on one machine share memory there, in which `src.kernels` averages their gradients on a CPU.

MindSpore's AllReduce sends them through sockets, also from one process to the next. The memory belongs to no name in
/dev/shm: it is a file without one, which the others open through rank 0's process (/proc/PID/fd), so that nothing is
left behind however the ranks end.
"""

import contextlib
import ctypes
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from src.distributed.ranks import Ranks
from src.errors import TemporaryFailure
from src.kernels.build import library
from src.launcher.environment import PATIENCE

_log = logging.getLogger(__name__)
LIMIT = float(PATIENCE["MS_CPU_COMM_OP_TIMEOUT"])  # seconds for which a rank waits for another in a reduction
FAILED = -1
_meetings: list[ctypes.CDLL] = []


def meet(ranks: Ranks, limit: float = LIMIT) -> bool:
    """Share memory between all ranks, for `src.kernels.operators.mean_over_ranks`; to be called by all or none.

    Args:
        ranks: which have joined.
        limit: as `LIMIT`.

    Returns:
        Whether they do, the same on each rank; False, with a line in the log: they are on several machines, or in
        containers of their own, or the system does not let them.
    """
    places = ranks.gather(np.array(_place(), np.int64))
    if (places != places[0]).any():
        return False
    kernels = ctypes.CDLL(str(library()))
    kernels.ddrnet_meeting_bytes.restype = ctypes.c_int64
    file, code = FAILED, 0
    try:
        if ranks.is_first:
            file = os.memfd_create("ddrnet-ranks")
            os.ftruncate(file, kernels.ddrnet_meeting_bytes(ranks.world))
    except OSError as error:
        code = error.errno or errno.EIO
    processes = ranks.gather(np.array([os.getpid(), file], np.int64))
    first, shared = map(int, processes[0])
    try:
        if not ranks.is_first and shared != FAILED:
            file = os.open(f"/proc/{first}/fd/{shared}", os.O_RDWR | os.O_CLOEXEC)
        if file != FAILED:
            numbers = (ctypes.c_int * ranks.world)(*processes[:, 0].tolist())
            code = kernels.ddrnet_meet(file, ranks.rank, ranks.world, numbers, ctypes.c_double(limit))
    except OSError as error:
        code = error.errno or errno.EIO
    reason = ranks.agree(code)  # all have opened the file by now
    if file != FAILED:
        os.close(file)
    if reason:
        _log.warning("the ranks share no memory (%s); MindSpore's AllReduce is used, slower", os.strerror(reason))
    else:
        _meetings[:] = [kernels]
    return not reason


@contextlib.contextmanager
def telling_of_lost_ranks() -> Iterator[None]:
    """Around training steps: where a reduction fails as another rank has gone, that is what is said.

    Raises:
        TemporaryFailure: it has ended, or has not come for `LIMIT` seconds; the message names it.
    """
    try:
        yield
    except RuntimeError as error:
        if not _meetings:
            raise
        trouble = _meetings[-1].ddrnet_meeting_trouble
        trouble.restype = ctypes.c_char_p
        if not trouble():
            raise
        raise TemporaryFailure(trouble().decode()) from error


def _place() -> list[int]:
    """Equal for processes of one machine that know each other by their numbers; where that is not known, for none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
        return [int(boot[:15], 16), int(boot[15:30], 16), Path("/proc/self/ns/pid").stat().st_ino]
    except (OSError, ValueError):
        return [int.from_bytes(os.urandom(7), "big"), FAILED, FAILED]
