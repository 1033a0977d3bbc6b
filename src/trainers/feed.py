"""How batches reach the step: handed over on the CPU, through MindData's data sinking on Ascend and GPU."""

import time
from collections.abc import Iterator

import mindspore as ms
from mindspore import Tensor, nn

from src.args import Config
from src.data import Batches


class Feed:
    """Runs the step over the batches of one epoch after another.

    Where data sinks, a piece of `sink_size` steps runs on the device before the host hears of it, as
    https://www.mindspore.cn/docs/en/master/api_python/mindspore/mindspore.data_sink.html describes.

    Args:
        step: takes one batch.
        batches: the training set on this rank.
        config: reads device_target, graph_mode and sink_size.
        first_epoch: the epoch that will be asked for first, counted from 1.
    """

    def __init__(self, step: nn.Cell, batches: Batches, config: Config, first_epoch: int) -> None:
        self.step = step
        self.batches = batches
        self.waited = 0.0
        self.sinks = config.device_target != "CPU" and config.graph_mode == 0
        self.piece = 1
        if self.sinks:
            self.piece = largest_piece(batches.steps, config.sink_size or batches.steps, config.accumulation_step)
            stream = as_dataset(batches, first_epoch, config.epochs)
            self.sink = ms.data_sink(step, stream, sink_size=self.piece, jit_config=ms.JitConfig())

    def epoch(self, epoch: int) -> Iterator[tuple[int, Tensor]]:
        """Run an epoch (counted from 1); yields how many of its batches are done and the last loss, a piece at a time.

        `waited` sums the seconds in which the step waited for data, where the host can tell.
        """
        if self.sinks:
            for done in range(self.piece, self.batches.steps + 1, self.piece):
                yield done, self.sink()
            return
        start = time.perf_counter()
        for done, batch in enumerate(self.batches.epoch(epoch), 1):
            self.waited += time.perf_counter() - start
            yield done, self.step(*(Tensor(column) for column in batch))
            start = time.perf_counter()


def largest_piece(steps: int, most: int, multiple: int = 1) -> int:
    """The largest divisor of `steps` that is a multiple of `multiple` and at most `most`, so that pieces fill an epoch.

    `steps` is itself such a multiple; where `most` is below `multiple`, the answer is `multiple`.
    """
    updates = steps // multiple
    return multiple * max(size for size in range(1, max(most // multiple, 1) + 1) if updates % size == 0)


def as_dataset(batches: Batches, first_epoch: int, last_epoch: int) -> ms.dataset.Dataset:
    """All batches of epochs `first_epoch` to `last_epoch` as one MindData stream, in their order."""

    class Stream:
        def __len__(self) -> int:
            return batches.steps * (last_epoch - first_epoch + 1)

        def __iter__(self) -> Iterator[tuple]:
            for epoch in range(first_epoch, last_epoch + 1):
                yield from batches.epoch(epoch)

    columns = ["images", "targets"] + ["uniforms"] * (batches.uniform_columns > 0)
    return ms.dataset.GeneratorDataset(Stream(), columns, num_parallel_workers=1, shuffle=False)
