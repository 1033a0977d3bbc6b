"""One step of training, as one graph: forward, backward, loss scaling, accumulation, clipping, update."""

from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.errors import TrainingStopped
from src.kernels.operators import average_update, sum_of_squares
from src.parameters import assign

INITIAL_SCALE = 4096.0
SCALE_FACTOR = 2.0
SCALE_WINDOW = 1000
MOST_STUCK = 20  # updates in a row that may overflow with the loss scale at its floor


class LossScale(nn.Cell):
    """The factor that keeps small float16 gradients above zero (Micikevicius et al., arXiv 1710.03740, section 3.2).

    Dynamic: halved, down to 1, at an overflow, doubled after SCALE_WINDOW updates without one. Fixed: never changed.
    """

    def __init__(self, fixed: Optional[float] = None) -> None:
        super().__init__()
        self.dynamic = fixed is None
        self.floor = 1.0 if fixed is None else fixed
        self.value = Parameter(Tensor(INITIAL_SCALE if fixed is None else fixed, ms.float32), name="loss_scale")
        self.good_updates = Parameter(Tensor(0, ms.int32), name="good_updates")

    def construct(self, finite: Tensor) -> Tensor:
        """Take note of an update: finite is a bool scalar, whether its gradients were."""
        if self.dynamic:
            good = ops.where(finite, self.good_updates + 1, ops.zeros_like(self.good_updates))
            grows = good >= SCALE_WINDOW
            lower = ops.maximum(self.value / SCALE_FACTOR, ops.ones_like(self.value))
            higher = ops.where(grows, self.value * SCALE_FACTOR, self.value)
            self.value = ops.where(finite, higher, lower)
            self.good_updates = ops.where(grows, ops.zeros_like(good), good)
        return finite


class TrainOneStep(nn.Cell):
    """A step of training on one batch a device.

    The norm of the scaled gradients is the one reduction over them: where it is not finite the update is skipped, with
    weights, moments and learning rate as they were. Unscaling, averaging over accumulated batches and clipping are one
    multiplication.

    Args:
        network: images, targets, ... to the mean loss of the batch.
        optimizer: over the network's trainable parameters.
        loss_scale: None for the dynamic scale, or a fixed one.
        clip_norm: global norm that gradients are clipped to (Pascanu et al., arXiv 1211.5063, section 3.2); None: off.
        accumulation: batches whose gradients are averaged into one update.
        rates: the learning rate of each update, as the optimizer has them.
        ranks: processes that train together, over which gradients are averaged.
        ema_decay: share of the averaged weights that stays at an update; 0: none are kept.
        native: use the kernels in `src.kernels` for the passes over all weights.

    Attributes:
        loss_sum, losses, overflows: sums since the host last took them, so that they are known where data sinks and
            the host sees only the end of a piece: of finite losses, of how many batches, and of skipped updates.
        failures: updates so far whose gradients were finite though a loss was not.
        stuck: updates in a row that overflowed with the loss scale at its floor.
    """

    def __init__(
        self,
        network: nn.Cell,
        optimizer: nn.Optimizer,
        rates: np.ndarray,
        ranks: int = 1,
        loss_scale: Optional[float] = None,
        clip_norm: Optional[float] = None,
        accumulation: int = 1,
        ema_decay: float = 0.0,
        native: bool = False,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.network.set_grad()
        self.optimizer = optimizer
        self.weights = optimizer.parameters
        self.loss_scale = LossScale(loss_scale)
        self.clip_norm = clip_norm
        self.accumulation = accumulation
        self.loss_sum = Parameter(Tensor(0.0, ms.float32), name="loss_sum")
        self.losses = Parameter(Tensor(0, ms.int32), name="losses")
        self.overflows = Parameter(Tensor(0, ms.int32), name="overflows")
        self.failures = Parameter(Tensor(0, ms.int32), name="failures")
        self.stuck = Parameter(Tensor(0, ms.int32), name="stuck")
        self.unknown_losses = Parameter(Tensor(0, ms.int32), name="unknown_losses")
        self.ema_decay = float(np.float32(ema_decay))  # as the arithmetic has it, so that the shares add up to 1
        if ema_decay:
            self.values = ms.ParameterTuple(network.get_parameters())
            self.average = self.values.clone(prefix="average", init="zeros")
            self.averaged_updates = Parameter(Tensor(0, ms.int32), name="averaged_updates")
        if accumulation > 1:
            self.accumulated = self.weights.clone(prefix="accumulated", init="zeros")
            self.batches = Parameter(Tensor(0, ms.int32), name="accumulated_batches")
        self.rates = rates
        self.distributed = ranks > 1
        if self.distributed:
            self.reduce = nn.DistributedGradReducer(self.weights, mean=True, degree=ranks)
        self.differentiate = ops.value_and_grad(self._scaled_loss, None, self.weights, has_aux=True)
        self.native = native
        self.takes_factor = getattr(optimizer, "takes_factor", False)
        self.l2_loss = ops.L2Loss()
        self.hyper_map = ops.HyperMap()
        if native:
            self.sum_of_squares = sum_of_squares()
            if ema_decay:
                self.average_update = average_update(len(self.values))
                self.decay = Tensor(self.ema_decay, ms.float32)

    def construct(self, *batch: Tensor) -> Tensor:
        """A batch, as the network takes it, to its loss (float32 scalar, not scaled)."""
        (_, loss), gradients = self.differentiate(*batch)
        known = ops.isfinite(loss)
        self.loss_sum = self.loss_sum + ops.where(known, loss, ops.zeros_like(loss))
        self.losses = self.losses + ops.cast(known, ms.int32)
        self.unknown_losses = self.unknown_losses + ops.cast(ops.logical_not(known), ms.int32)
        if self.accumulation == 1:
            loss = ops.depend(loss, self._update(gradients))
        else:
            added = self.hyper_map(ops.assign_add, self.accumulated, gradients)
            self.batches = ops.depend(self.batches, added) + 1
            if self.batches >= self.accumulation:
                loss = ops.depend(loss, self._update(self.accumulated))
                cleared = self.hyper_map(_clear, self.accumulated)
                self.batches = ops.depend(ops.zeros_like(self.batches), cleared)
        return loss

    def learning_rate(self) -> float:
        """The rate of the next update; skipped updates have not advanced it."""
        return float(self.rates[min(int(self.optimizer.global_step.asnumpy()[0]), len(self.rates) - 1)])

    def averaged_weights(self) -> Optional[dict[str, np.ndarray]]:
        """The averaged values of the network's parameters, by name, bias-corrected; None before there are any.

        Zeros at the start weigh ema_decay ** updates, which the correction divides out (Kingma and Ba, arXiv
        1412.6980, section 3).
        """
        if not self.ema_decay or not int(self.averaged_updates.asnumpy()):
            return None
        missing = self.ema_decay ** int(self.averaged_updates.asnumpy())
        pairs = zip(self.values, self.average)
        return {value.name: (average.asnumpy() / (1.0 - missing)).astype(np.float32) for value, average in pairs}

    def check_health(self) -> None:
        """Raise TrainingStopped where going on would waste the run or ruin the weights."""
        failures, stuck = int(self.failures.asnumpy()), int(self.stuck.asnumpy())
        if failures == 0 and stuck < MOST_STUCK:
            return
        scale = float(self.loss_scale.value.asnumpy())
        where = f"update {int(self.optimizer.global_step.asnumpy()[0])}, learning rate {self.learning_rate():.4g}"
        what = f"{stuck} updates in a row overflowed" if stuck >= MOST_STUCK else "the loss is not finite"
        raise TrainingStopped(f"{what} at {where}, loss scale {scale:g}; try a lower base_lr or a longer warmup")

    def take_totals(self) -> dict[str, float]:
        """Mean loss and number of overflows since the last call, and the loss scale; the sums start anew."""
        losses = max(int(self.losses.asnumpy()), 1)
        totals = {
            "loss": float(self.loss_sum.asnumpy()) / losses,
            "loss_scale": float(self.loss_scale.value.asnumpy()),
            "overflows": int(self.overflows.asnumpy()),
        }
        for parameter in (self.loss_sum, self.losses, self.overflows):
            assign(parameter, ops.zeros_like(parameter))
        return totals

    def _scaled_loss(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        loss = self.network(*batch)
        return loss * self.loss_scale.value, loss

    def _update(self, gradients: tuple) -> Tensor:
        if self.distributed:
            gradients = self.reduce(gradients)
        norm = self._norm(gradients)
        finite = ops.isfinite(norm)
        unscale = 1.0 / (self.loss_scale.value * self.accumulation)
        if self.clip_norm is not None:
            unscale = unscale * ops.minimum(self.clip_norm / (norm * unscale + 1e-6), ops.ones_like(norm))
        if finite:
            if self.takes_factor:
                updated = self.optimizer(gradients, unscale)
            else:
                updated = self.optimizer(self.hyper_map(ops.partial(ops.mul, unscale), gradients))
            finite = ops.depend(finite, updated)
            if self.ema_decay:
                finite = ops.depend(finite, self._take_average(finite))
        overflow = ops.cast(ops.logical_not(finite), ms.int32)
        self.overflows = self.overflows + overflow
        failed = ops.logical_and(finite, self.unknown_losses > 0)
        self.failures = self.failures + ops.cast(failed, ms.int32)
        self.unknown_losses = ops.depend(ops.zeros_like(self.unknown_losses), self.failures)
        at_floor = ops.cast(self.loss_scale.value <= self.loss_scale.floor, ms.int32)
        self.stuck = (self.stuck + 1) * overflow * at_floor
        return ops.depend(self.loss_scale(finite), self.stuck)

    def _norm(self, gradients: tuple) -> Tensor:
        """The global norm of gradients, a scalar."""
        if self.native:
            return ops.sqrt(self.sum_of_squares(*gradients).reshape(()))
        return ops.sqrt(2.0 * ops.addn(self.hyper_map(self.l2_loss, gradients)))

    def _take_average(self, updated: Tensor) -> Tensor:
        self.averaged_updates = ops.depend(self.averaged_updates, updated) + 1
        if self.native:
            return ops.depend(
                updated, self.average_update(ops.depend(self.decay, updated), *self.average, *self.values)
            )
        for average, value in zip(self.average, self.values):
            moved = average * self.ema_decay + ops.depend(value, updated) * (1.0 - self.ema_decay)
            updated = ops.depend(updated, ops.assign(average, moved))
        return updated


def _clear(accumulated: Parameter) -> bool:
    return ops.assign(accumulated, ops.zeros_like(accumulated))
