"""How training goes, counted on the device, so that the host need not look after every step."""

from typing import Callable

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from src.errors import TrainingStopped
from src.parameters import assign

MOST_STUCK = 20  # updates in a row that may overflow with the loss scale at its floor


class Health(nn.Cell):
    """Sums and counters of a training step.

    Attributes:
        loss_sum, losses, overflows: sums since the host last took them: of finite losses, of how many batches, and of
            skipped updates.
        unknown_losses: batches of the update so far whose loss was not finite.
        failures: updates so far whose gradients were finite though a loss was not.
        stuck: updates in a row that overflowed with the loss scale at its floor.
        runs: how often the step has run since the process began.
    """

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.loss_sum = Parameter(Tensor(0.0, ms.float32), name="loss_sum")
        self.losses = Parameter(Tensor(0, ms.int32), name="losses")
        self.unknown_losses = Parameter(Tensor(0, ms.int32), name="unknown_losses")
        self.overflows = Parameter(Tensor(0, ms.int32), name="overflows")
        self.failures = Parameter(Tensor(0, ms.int32), name="failures")
        self.stuck = Parameter(Tensor(0, ms.int32), name="stuck")
        self.runs = Parameter(Tensor(0, ms.int32), name="runs")

    def note_batch(self, loss: Tensor) -> Tensor:
        """Take note of a batch's loss; gives it back."""
        known = ops.isfinite(loss)
        self.loss_sum = self.loss_sum + ops.where(known, loss, ops.zeros_like(loss))
        self.losses = self.losses + ops.cast(known, ms.int32)
        self.unknown_losses = self.unknown_losses + ops.cast(ops.logical_not(known), ms.int32)
        self.runs = self.runs + 1
        return loss

    def note_update(self, finite: Tensor, at_floor: Tensor) -> Tensor:
        """Take note of an update, whether it was finite and the loss scale at its floor; gives `finite` back."""
        overflow = ops.cast(ops.logical_not(finite), ms.int32)
        self.overflows = self.overflows + overflow
        failed = ops.logical_and(finite, self.unknown_losses > 0)
        self.failures = self.failures + ops.cast(failed, ms.int32)
        self.unknown_losses = ops.depend(ops.zeros_like(self.unknown_losses), self.failures)
        self.stuck = (self.stuck + 1) * overflow * ops.cast(at_floor, ms.int32)
        return ops.depend(finite, self.stuck)

    def check(self, where: Callable[[], str]) -> None:
        """Raise TrainingStopped where going on would waste the run or ruin the weights; `where` says which update."""
        stuck = int(self.stuck.asnumpy())
        if stuck >= MOST_STUCK:
            what = f"{stuck} updates in a row overflowed"
        elif int(self.failures.asnumpy()):
            what = "the loss is not finite"
        else:
            return
        raise TrainingStopped(f"{what} at {where()}; try a lower base_lr or a longer warmup")

    def take(self) -> dict[str, float]:
        """Mean loss and number of overflows since the last call; the sums start anew."""
        losses = max(int(self.losses.asnumpy()), 1)
        taken = {"loss": float(self.loss_sum.asnumpy()) / losses, "overflows": int(self.overflows.asnumpy())}
        for parameter in (self.loss_sum, self.losses, self.overflows):
            assign(parameter, ops.zeros_like(parameter))
        return taken

    def replicated(self) -> list[Parameter]:
        """What is the same on all ranks."""
        return [self.overflows, self.stuck]

    def local(self) -> list[Parameter]:
        """What is each rank's own."""
        return [self.loss_sum, self.losses, self.unknown_losses, self.failures]

    def transient(self) -> list[Parameter]:
        """What ends with the process."""
        return [self.runs]
