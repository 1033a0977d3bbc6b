"""How batches reach the step: handed over one by one, or through MindData's data sinking where that is asked for."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor

from src.args import Config
from src.data.imagenet import TrainBatches
from src.distributed import ascend
from src.errors import TrainingStopped
from src.heartbeat import beat
from src.tools.get_misc import trim_memory
from src.trainers.train_one_step import TrainOneStep

PREFETCHED = 2  # batches that MindData keeps ready on the host; by itself it keeps 16
# A piece may last for hours, and a rank that hangs must be known in minutes: so within a piece the device is asked
# after so many batches or seconds, whichever comes first. A host that runs ahead of the device waits for it there.
LOOK_BATCHES, LOOK_SECONDS = 50, 60.0


class Feed:
    """Runs the step over the batches of one epoch after another.

    The host hears of training after each update, or where sink_size is set after pieces of so many steps; a piece ends
    early where the epoch does or a checkpoint is due. A launcher gets signs of life within pieces too. On Ascend and
    GPU sink_size also switches data sinking on: MindData copies batches to the device ahead of the step, up to 2 GB
    there besides PREFETCHED ones on the host.

    Args:
        step: takes one batch.
        batches: the training set on this rank.
        config: reads device_target, graph_mode, sink_size, save_steps, accumulation_step and epochs.
        cache: entered around what compiles the step.
        first_epoch, first_batch: what will be asked for first; epochs count from 1, batches done from 0.

    Attributes:
        wait_ms: how long a step of this epoch waited for its data on average; 0 where data sinks.
        bad_images: files of this epoch so far that could not be decoded.
    """

    def __init__(
        self,
        step: TrainOneStep,
        batches: TrainBatches,
        config: Config,
        cache: AbstractContextManager = nullcontext(),  # noqa: B008  (it keeps nothing)
        first_epoch: int = 1,
        first_batch: int = 0,
    ) -> None:
        self.step, self.batches, self.cache = step, batches, cache
        self.multiple = config.accumulation_step
        self.piece = config.sink_size
        self.save_batches = config.save_steps * config.accumulation_step
        self.compiles = config.graph_mode == 0
        self.wait_ms, self.bad_images = 0.0, 0
        self.stream: Optional[Stream] = None
        if config.sink_size and config.device_target != "CPU" and config.graph_mode == 0:
            self.stream = Stream(batches, config.epochs, first_epoch, first_batch)
            self.sink = sinking(step, self.stream)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[int, Tensor]]:
        """Run an epoch (counted from 1) from a batch (counted from 0) on.

        Yields, a piece at a time, how many of its batches are done, and the loss of the last.

        Raises:
            TrainingStopped: the step did not run once a batch.
            UserError: too many of the epoch's images cannot be decoded.
        """
        told = looked = first_batch
        runs, since = self._runs(), time.monotonic()
        for done, loss in self._sunk(epoch, first_batch) if self.stream else self._handed_over(epoch, first_batch):
            ends = self._ends(done, told)
            if not (ends or done - looked >= LOOK_BATCHES or time.monotonic() - since >= LOOK_SECONDS):
                continue
            ran = self._runs() - runs
            if ran != done - looked and not ascend.dry_run():
                raise TrainingStopped(
                    f"the step ran {ran} times for {done - looked} batches: MindSpore {ms.__version__} feeds this "
                    "device otherwise than it says; set sink_size to 0, or use another version"
                )
            beat(10 * (time.monotonic() - since))
            runs, looked = runs + ran, done
            if ends:
                told = done
                yield done, loss
            since = time.monotonic()

    def _ends(self, done: int, told: int) -> bool:
        """Whether a piece that began after batch `told` ends with batch `done`; always with an update."""
        if done % self.multiple:
            return False
        is_due = self.save_batches > 0 and done % self.save_batches == 0
        return is_due or done - told >= self.piece or done == self.batches.steps

    def _runs(self) -> int:
        return int(self.step.health.runs.asnumpy())

    def _sunk(self, epoch: int, first_batch: int) -> Iterator[tuple[int, Tensor]]:
        assert self.stream is not None
        for done in range(first_batch + 1, self.batches.steps + 1):
            with self.cache:
                loss = self.sink()
            if self.stream.error is not None:
                raise self.stream.error
            self.bad_images = self.stream.bad_images.get(epoch, 0)
            yield done, loss

    def _handed_over(self, epoch: int, first_batch: int) -> Iterator[tuple[int, Tensor]]:
        waited, start = 0.0, time.perf_counter()
        for done, batch in enumerate(self.batches.epoch(epoch, first_batch), first_batch + 1):
            waited += time.perf_counter() - start
            self.wait_ms = waited * 1000 / (done - first_batch)
            self.bad_images = self.batches.bad
            columns = [Tensor(column) for column in batch]
            if self.compiles:
                self.compiles = False
                with self.cache:
                    self.step.compile(*columns)
                trim_memory()
            yield done, self.step(*columns)
            start = time.perf_counter()


class Stream:
    """All batches up to the end of the last epoch, in their order, as MindData asks for them.

    It asks without end: after the last batch it gets that one again and again, which nothing is decoded for. An error
    cannot leave MindData's thread as what it is, so it is kept, and the device gets batches to go on with.

    Attributes:
        error: what ended the stream early.
        bad_images: of each epoch so far, files that could not be decoded.
    """

    def __init__(self, batches: TrainBatches, epochs: int, first_epoch: int = 1, first_batch: int = 0) -> None:
        self.batches, self.epochs = batches, epochs
        self.first_epoch, self.first_batch = first_epoch, first_batch
        self.error: Optional[Exception] = None
        self.bad_images: dict[int, int] = {}
        self.ended = False
        size, config = batches.config.image_size, batches.config
        shapes = [(3, size, size), (config.num_classes,)]
        shapes += [(batches.uniform_columns,)] if batches.uniform_columns else []
        self.last = tuple(np.zeros((config.batch_size, *shape), np.float32) for shape in shapes)

    @property
    def columns(self) -> list[str]:
        """The names of a batch's arrays."""
        return ["images", "targets", "uniforms"][: len(self.last)]

    def __len__(self) -> int:
        return self.batches.steps * (self.epochs - self.first_epoch + 1) - self.first_batch

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        left = len(self)
        if not self.ended:
            try:
                for batch in self._decoded():
                    left -= 1
                    self.last = batch
                    yield batch
            except Exception as error:
                self.error = error
            self.ended = True
        for _ in range(left):
            yield self.last

    def _decoded(self) -> Iterator[tuple[np.ndarray, ...]]:
        for epoch in range(self.first_epoch, self.epochs + 1):
            for batch in self.batches.epoch(epoch, self.first_batch if epoch == self.first_epoch else 0):
                self.bad_images[epoch] = self.batches.bad
                yield batch


def as_dataset(stream: Stream) -> ms.dataset.Dataset:
    """The stream for MindData, which learns its shapes here instead of decoding a few batches to find out."""
    ms.dataset.config.set_prefetch_size(PREFETCHED)
    dataset = ms.dataset.GeneratorDataset(stream, stream.columns, num_parallel_workers=1, shuffle=False)
    dataset.saved_output_shapes = [list(column.shape) for column in stream.last]
    dataset.saved_output_types = [column.dtype for column in stream.last]
    return dataset


def sinking(step: TrainOneStep, stream: Stream) -> Callable[[], Tensor]:
    """A function that runs the step once, on the stream's next batch, and gives its loss.

    One step a call: what more would be varies between MindSpore's versions, backends and chips. With a signature
    MindSpore does not ask for the shape of every batch.
    """
    signature = tuple(Tensor(shape=column.shape, dtype=ms.float32) for column in stream.last)
    return ms.data_sink(step, as_dataset(stream), sink_size=1, jit_config=ms.JitConfig(), input_signature=signature)
