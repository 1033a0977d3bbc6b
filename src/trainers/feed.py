"""How batches reach the step: handed over on the CPU, through MindData's data sinking on Ascend and GPU."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import mindspore as ms
from mindspore import Tensor, nn

from src.args import Config
from src.data import Batches
from src.errors import UserError
from src.tools.get_misc import trim_memory


class Feed:
    """Runs the step over the batches of one epoch after another.

    Where data sinks, a piece of `sink_size` steps runs on the device before the host hears of it, as
    https://www.mindspore.cn/docs/en/master/api_python/mindspore/mindspore.data_sink.html describes.

    Args:
        step: takes one batch.
        batches: the training set on this rank.
        config: reads device_target, graph_mode and sink_size.
        cache: entered around what compiles the step.
        first_epoch, first_batch: what will be asked for first; epochs count from 1, batches done from 0.
    """

    def __init__(
        self,
        step: nn.Cell,
        batches: Batches,
        config: Config,
        cache: AbstractContextManager = nullcontext(),  # noqa: B008  (it keeps nothing)
        first_epoch: int = 1,
        first_batch: int = 0,
    ) -> None:
        self.step = step
        self.batches = batches
        self.cache = cache
        self.compiles = config.graph_mode == 0
        self.wait_ms = 0.0
        self.sinks = config.device_target != "CPU" and config.graph_mode == 0
        self.piece = 1
        if self.sinks:
            self.piece = largest_piece(batches.steps, config.sink_size or batches.steps, config.accumulation_step)
            if first_batch % self.piece:
                raise UserError(
                    f"sink_size: pieces of {self.piece} steps do not fit a checkpoint made after {first_batch}; "
                    "use the sink_size that it was made with"
                )
            stream = as_dataset(batches, config.epochs, first_epoch, first_batch)
            self.sink = ms.data_sink(step, stream, sink_size=self.piece, jit_config=ms.JitConfig())

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[int, Tensor]]:
        """Run an epoch (counted from 1) from a batch (counted from 0) on.

        Yields, a piece at a time, how many of its batches are done, and the loss of the last.
        `wait_ms` is how long a step of this epoch waited for its data on average, where the host can tell.
        """
        if self.sinks:
            for done in range(first_batch + self.piece, self.batches.steps + 1, self.piece):
                with self.cache:
                    loss = self.sink()
                yield done, loss
            return
        waited, start = 0.0, time.perf_counter()
        for done, batch in enumerate(self.batches.epoch(epoch, first_batch), first_batch + 1):
            waited += time.perf_counter() - start
            self.wait_ms = waited * 1000 / (done - first_batch)
            columns = [Tensor(column) for column in batch]
            if self.compiles:
                self.compiles = False
                with self.cache:
                    self.step.compile(*columns)
                trim_memory()
            yield done, self.step(*columns)
            start = time.perf_counter()


def largest_piece(steps: int, most: int, multiple: int = 1) -> int:
    """The largest divisor of `steps` that is a multiple of `multiple` and at most `most`, so that pieces fill an epoch.

    `steps` is itself such a multiple; where `most` is below `multiple`, the answer is `multiple`.
    """
    updates = steps // multiple
    return multiple * max(size for size in range(1, max(most // multiple, 1) + 1) if updates % size == 0)


def as_dataset(batches: Batches, epochs: int, first_epoch: int = 1, first_batch: int = 0) -> ms.dataset.Dataset:
    """All batches up to the end of epoch `epochs` as one MindData stream, in their order."""

    class Stream:
        def __len__(self) -> int:
            return batches.steps * (epochs - first_epoch + 1) - first_batch

        def __iter__(self) -> Iterator[tuple]:
            yield from batches.epoch(first_epoch, first_batch)
            for epoch in range(first_epoch + 1, epochs + 1):
                yield from batches.epoch(epoch)

    columns = ["images", "targets"] + ["uniforms"] * (batches.uniform_columns > 0)
    return ms.dataset.GeneratorDataset(Stream(), columns, num_parallel_workers=1, shuffle=False)
