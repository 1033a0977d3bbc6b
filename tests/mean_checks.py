"""A rank of tests/test_distributed.py: averages gradients in shared memory, and writes what came of it to results.npz.

With the word "dies" the last rank kills itself while it and the others average; with "elsewhere" it may not open
rank 0's memory.
"""

import errno
import logging
import os
import signal
import sys
import threading
import time
from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from src.args import Config
from src.distributed import one_machine
from src.distributed.join import join
from src.errors import run
from src.heartbeat import finish
from src.trainers.train_one_step import MeanOverRanks

SHAPES = [(300, 1000), (1,), (7, 3, 3), (500_001,), (16,)]  # several pieces of the memory, none of them full at the end
LARGE = [(4_000_000,)]


def gradients(rank: int, shapes: list) -> list[np.ndarray]:
    """A rank's own, as float32, of very different sizes."""
    rng = np.random.default_rng(rank)
    return [(rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 6, shape)).astype(np.float32) for shape in shapes]


def refusing(opened: Callable) -> Callable:
    """os.open for a process that may not look into others."""

    def only_elsewhere(path: str, *others: int, **named: int) -> int:
        if str(path).startswith("/proc/"):
            raise PermissionError(errno.EACCES, "closed")
        return opened(path, *others, **named)

    return only_elsewhere


def main(what: str = "") -> None:
    """The same on each rank."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    _, ranks = join(Config(device_target="CPU"))
    last = ranks.rank == ranks.world - 1
    if what == "elsewhere" and last:
        os.open = refusing(os.open)
    results = {"met": [one_machine.meet(ranks)]}
    if what == "dies":
        signal.signal(signal.SIGTERM, lambda *_: None)  # as in training, where it asks for the end of the step
        if last:
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
        mean, large = MeanOverRanks(), tuple(map(Tensor, gradients(ranks.rank, LARGE)))
        print("averaging", flush=True)
        with one_machine.telling_of_lost_ranks():
            while True:
                mean(large)[0].asnumpy()
    if what == "elsewhere":
        return np.savez("results.npz", **results)

    own = tuple(map(Tensor, gradients(ranks.rank, SHAPES)))
    theirs = nn.DistributedGradReducer(
        ms.ParameterTuple([Parameter(values, name=f"{number}") for number, values in enumerate(own)]),
        mean=True,
        degree=ranks.world,
    )
    for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
        ms.set_context(mode=mode)
        mean = MeanOverRanks()
        for repeat in range(4):
            time.sleep(0.05 * ((ranks.rank + repeat) % ranks.world))  # another comes last each time
            for number, values in enumerate(mean(own)):
                results[f"mean/{number}/{mode}/{repeat}"] = values.asnumpy()
        results[f"alone/{mode}"] = mean(own[:1])[0].asnumpy()
    for number, values in enumerate(theirs(own)):
        results[f"theirs/{number}"] = values.asnumpy()
    return np.savez("results.npz", **results)


if __name__ == "__main__":
    run(lambda: main(*sys.argv[1:]))
    finish()
