"""An ordered, bounded, deterministic prefetching loader: worker threads fill the places of the next batches.

Threads, not processes: decoding, resizing and array arithmetic release the interpreter lock, batches need no copy
between processes, and the training process may be neither forked nor started anew once MindSpore runs in it.
"""

import logging
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Optional, Protocol

import numpy as np

_log = logging.getLogger(__name__)
_clamp_warned = False


class Job(Protocol):
    """What the workers do. What a batch holds must follow from its step alone, not from the order of the calls."""

    def start(self, step: int) -> tuple[Any, int]:
        """A new batch's memory and its number of places."""

    def fill(self, batch: Any, place: int) -> None:
        """Fill one place; called once for each, from any worker."""

    def finish(self, batch: Any) -> Any:
        """What the consumer gets, made when every place is filled."""


class Prefetcher(Iterator):
    """Iterate over the finished batches of `steps`, in order, while workers fill those that follow.

    Args:
        job: what to do.
        steps: the steps, each of which is one batch.
        workers: number of threads.
        ahead: how many batches may be begun and not yet taken. Memory is bounded by that.

    An exception in a worker is raised where its batch would have come. Closing, exhausting or forgetting the
    iterator ends its threads.
    """

    def __init__(self, job: Job, steps: Iterable[int], workers: int, ahead: int = 3) -> None:
        self._state = _State(job, deque(steps), ahead)
        self._threads = [
            threading.Thread(target=_work, args=(self._state,), name=f"data-{i}", daemon=True) for i in range(workers)
        ]
        # A daemon thread that still runs while the interpreter shuts down may crash it: the finaliser ends them first.
        self._finalizer = weakref.finalize(self, _stop, self._state, self._threads)
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> Any:
        state = self._state
        with state.lock:
            if not state.begun and not state.steps:
                entry = None
            else:
                while not (state.begun and state.begun[0].done):
                    if state.stopped:
                        raise StopIteration
                    state.ready.wait()
                entry = state.begun.popleft()
                state.room.notify_all()
        if entry is None or entry.error is not None:
            self.close()
            if entry is not None:
                raise entry.error
            raise StopIteration
        return entry.result

    def close(self) -> None:
        """End the threads and drop what they have prepared."""
        self._finalizer()


class BufferPool:
    """Memory for batches, used again when nobody holds the last batch in it any more: fresh pages cost time.

    Args:
        shape: of every array.
        keep: the most arrays that are kept.
    """

    def __init__(self, shape: tuple[int, ...], keep: int) -> None:
        self._shape, self._keep = shape, keep
        self._owners: list[np.ndarray] = []

    def take(self) -> np.ndarray:
        """A float32 array with anything in it. It, its views and tensors that share its memory keep it in use."""
        for owner in self._owners:
            if sys.getrefcount(owner) <= 3:  # the list, this loop and the call
                return owner.view()
        owner = np.empty(self._shape, np.float32)
        if len(self._owners) < self._keep:
            self._owners.append(owner)
        return owner.view()


class _Entry:
    """A batch on its way."""

    def __init__(self, batch: Any, places: int) -> None:
        self.batch, self.places = batch, places
        self.next_place, self.left = 0, places
        self.result: Any = None
        self.error: Optional[BaseException] = None
        self.done = False


class _State:
    """What the workers share. They know it and not the iterator, so that a forgotten iterator can be collected."""

    def __init__(self, job: Job, steps: deque, ahead: int) -> None:
        self.job, self.steps, self.ahead = job, steps, ahead
        self.begun: deque = deque()
        self.stopped = False
        self.lock = threading.Lock()
        self.room = threading.Condition(self.lock)
        self.ready = threading.Condition(self.lock)

    def take(self) -> Any:
        """The next place to fill, as (entry, place); None when there is none any more."""
        with self.lock:
            while not self.stopped:
                for entry in self.begun:
                    if entry.next_place < entry.places:
                        entry.next_place += 1
                        return entry, entry.next_place - 1
                if not self.steps:
                    return None
                if len(self.begun) < self.ahead:
                    self.begun.append(self._begin(self.steps.popleft()))
                else:
                    self.room.wait()
            return None

    def _begin(self, step: int) -> "_Entry":
        try:
            return _Entry(*self.job.start(step))
        except BaseException as raised:  # handed to the consumer
            entry = _Entry(None, 0)
            entry.error, entry.done = raised, True
            self.ready.notify_all()
            return entry


def _work(state: _State) -> None:
    while True:
        taken = state.take()
        if taken is None:
            return
        entry, place = taken
        error = None
        try:
            if entry.error is None:
                state.job.fill(entry.batch, place)
        except BaseException as raised:  # handed to the consumer
            error = raised
        with state.lock:
            entry.error = entry.error or error
            entry.left -= 1
            last = entry.left == 0
        if last:
            try:
                if entry.error is None:
                    entry.result = state.job.finish(entry.batch)
            except BaseException as raised:  # handed to the consumer
                entry.error = raised
            with state.lock:
                entry.batch, entry.done = None, True
                state.ready.notify_all()


def _stop(state: _State, threads: list) -> None:
    with state.lock:
        state.stopped = True
        state.room.notify_all()
        state.ready.notify_all()
    for thread in threads:
        if thread.ident is not None and thread is not threading.current_thread():  # a signal may come before all start
            thread.join()
    state.begun.clear()


def clamp_workers(wanted: int) -> int:
    """`wanted`, or the number of cores that this process may use where that is less; the first time with a warning."""
    global _clamp_warned
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if wanted <= cores:
        return wanted
    if not _clamp_warned:
        whose = "of this machine" if cores == os.cpu_count() else "that this process may use"
        what, verb = ("core", "is") if cores == 1 else ("cores", "are")
        _log.warning(
            "num_parallel_workers %d is more than the %d %s %s: %d %s used", wanted, cores, what, whose, cores, verb
        )
        _clamp_warned = True
    return cores
