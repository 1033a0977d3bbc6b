"""The ranks of a run, and what they tell each other apart from gradients.

Everything goes through AllGather and Broadcast of int32: of the collectives' types the only one that every backend has
for both, and one that no reduction rounds. Each method does nothing where there is one rank.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.errors import TemporaryFailure, UserError
from src.metrics import Totals
from src.parameters import assign

PIECE = 1 << 22  # bytes of one Broadcast


@dataclass(frozen=True)
class Ranks:
    """The `world` processes that train together, seen from this one, `rank`; rank 0 alone writes.

    alone: nothing is launched, as in MindSpore's dry run, so each rank hears its own words from all.
    """

    rank: int = 0
    world: int = 1
    alone: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def gather(self, values: np.ndarray) -> np.ndarray:
        """An array of each rank, by rank: (...) to (world, ...), bit for bit. Its size in bytes is a multiple of 4."""
        values = np.ascontiguousarray(values)
        if self.world == 1 or self.alone:
            return np.stack([values] * self.world)
        words = Tensor(values.reshape(-1).view(np.int32))
        gathered = ops.AllGather()(words).asnumpy()
        return gathered.view(values.dtype).reshape(self.world, *values.shape)

    def agree(self, number: int) -> int:
        """The largest of the ranks' numbers, 0 or more: a signal that one has received stops all at the same step."""
        return number if self.world == 1 else int(self.gather(np.array([number], np.int32)).max())

    def add_up(self, number: float) -> float:
        """The sum of the ranks' numbers, in float64; of whole numbers a whole number, exact below 2**53."""
        if self.world == 1:
            return number
        return type(number)(sum(self.gather(np.array([number], np.float64))[:, 0].tolist()))

    def sum_totals(self, totals: Totals) -> Totals:
        """The sum over all ranks, the same on each: counts exactly, losses in float64 in the ranks' order."""
        return Totals(
            int(self.add_up(totals.images)),
            self.add_up(totals.loss),
            int(self.add_up(totals.top1)),
            int(self.add_up(totals.top5)),
        )

    def average(self, parameters: list[Parameter]) -> None:
        """Replace float32 parameters by their average over the ranks, in place.

        Meant for what differs by rank as the images do, and of which a checkpoint holds one value.
        """
        if self.world == 1 or not parameters:
            return
        own = np.concatenate([parameter.asnumpy().reshape(-1) for parameter in parameters])
        mean = self.gather(own).mean(axis=0, dtype=np.float64).astype(np.float32)
        parts = np.split(mean, np.cumsum([parameter.size for parameter in parameters])[:-1])
        for parameter, values in zip(parameters, parts):
            assign(parameter, values.reshape(parameter.shape))

    def check_identical(self, parameters: Iterable[Parameter]) -> None:
        """Make sure that parameters are the same on all ranks, bit for bit.

        Raises:
            TemporaryFailure: one differs, on every rank; the message names the first such parameter and the ranks.
        """
        if self.world == 1:
            return
        parameters = list(parameters)
        digests = [hashlib.blake2b(parameter.asnumpy().tobytes(), digest_size=8).digest() for parameter in parameters]
        of_ranks = self.gather(np.frombuffer(b"".join(digests), np.int64))
        differs = of_ranks != of_ranks[0]
        if differs.any():
            which = int(np.argmax(differs.any(axis=0)))
            ranks = ", ".join(map(str, np.flatnonzero(differs[:, which])))
            raise TemporaryFailure(
                f"rank {ranks} and rank 0 differ in {parameters[which].name} ({int(differs.any(axis=0).sum())} of "
                f"{len(parameters)} parameters differ), which must be the same on all; go on from an earlier checkpoint"
            )

    def check_equal(self, what: str, value: Any) -> None:
        """Make sure that something is the same on all ranks, by its text.

        Raises:
            UserError: one has another, on every rank; the message names `what` and the ranks.
        """
        own = np.frombuffer(hashlib.blake2b(str(value).encode(), digest_size=8).digest(), np.int64)
        of_ranks = self.gather(own)[:, 0]
        if (of_ranks != of_ranks[0]).any():
            ranks = ", ".join(map(str, np.flatnonzero(of_ranks != of_ranks[0])))
            raise UserError(f"{what}: rank {ranks} and rank 0 differ (here: {value}), which must be the same on all")

    def hand_out(self, cell: nn.Cell) -> None:
        """Give every rank rank 0's values of all of a cell's parameters."""
        if self.world == 1 or self.alone:
            return
        parameters = list(cell.get_parameters())
        arrays = [np.ascontiguousarray(parameter.asnumpy()) for parameter in parameters]
        received = _broadcast(b"".join(array.tobytes() for array in arrays))
        if self.is_first:
            return
        start = 0
        for parameter, array in zip(parameters, arrays):
            values = np.frombuffer(received, array.dtype, array.size, start)
            assign(parameter, values.reshape(parameter.shape).copy())
            start += array.nbytes

    def hand_out_facts(self, facts: Any) -> Any:
        """Rank 0's value of something that JSON can hold, on every rank."""
        if self.world == 1 or self.alone:
            return facts
        content = json.dumps(facts).encode()
        lengths = self.gather(np.array([len(content)], np.int32))[:, 0]
        received = _broadcast(content.ljust(int(lengths.max()), b" "))[: lengths[0]]
        try:
            return json.loads(received)
        except ValueError:
            raise TemporaryFailure(
                f"what rank 0 told rank {self.rank} did not arrive, though no collective failed; see that the cards' "
                "network works (hccn_tool -i CARD -net_health -g)"
            ) from None


def _broadcast(content: bytes) -> bytes:
    """Rank 0's bytes, of which the other ranks have as many; in pieces of one size, as each size is compiled anew."""
    broadcast, received = ops.Broadcast(0), []
    for start in range(0, len(content), PIECE):
        piece = content[start : start + PIECE].ljust(PIECE, b"\0")
        received.append(broadcast((Tensor(np.frombuffer(piece, np.int32)),))[0].asnumpy().tobytes())
    return b"".join(received)[: len(content)]
