"""One step of training, as one graph: forward, backward, loss scaling, accumulation, clipping, update."""

from collections.abc import Iterable
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.kernels.operators import mean_over_ranks, sum_of_squares
from src.tools.optimizer import unchanging
from src.trainers.average import Average
from src.trainers.health import Health
from src.trainers.loss_scale import LossScale
from src.trainers.saturation import Saturation


class MeanOverRanks(nn.Cell):
    """`nn.DistributedGradReducer` for ranks that share memory: gradients to their means."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.mean = mean_over_ranks()

    def construct(self, gradients: tuple) -> tuple:
        means = self.mean(*gradients)
        return means if isinstance(means, tuple) else (means,)


class TrainOneStep(nn.Cell):
    """A step of training on one batch a device.

    The norm of the scaled gradients is the one reduction over them: where it is not finite the update is skipped, with
    weights, moments and learning rate as they were. Unscaling, averaging over accumulated batches and clipping are one
    multiplication.

    Args:
        network: images, targets, ... to the mean loss of the batch.
        optimizer: over the network's trainable parameters.
        rates: float32 (updates,), the learning rate of each update, as the optimizer has them.
        ranks: processes that train together, over which gradients are averaged.
        loss_scale: None for the dynamic scale, or a fixed one.
        clip_norm: global norm that gradients are clipped to (Pascanu et al., arXiv 1211.5063, section 3.2); None: off.
        accumulation: batches whose gradients are averaged into one update.
        ema_decay: share of the averaged weights that stays at an update; 0: none are kept.
        native: use the kernels in `src.kernels` for the passes over all weights.
        share_memory: the ranks have met as `src.distributed.one_machine` says, and average gradients there.
        float_status: where arithmetic saturates, what tells of an overflow: `src.trainers.saturation.FloatStatus`.

    Attributes:
        health: the counters that the host reads.
        average: the averaged weights; None: there are none.
    """

    def __init__(
        self,
        network: nn.Cell,
        optimizer: nn.Optimizer,
        rates: np.ndarray,
        ranks: int = 1,
        *,
        loss_scale: Optional[float] = None,
        clip_norm: Optional[float] = None,
        accumulation: int = 1,
        ema_decay: float = 0.0,
        native: bool = False,
        share_memory: bool = False,
        float_status: Optional[nn.Cell] = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.network.set_grad()
        self.optimizer = optimizer
        self.rates = rates
        self.weights = optimizer.parameters
        self.loss_scale = LossScale(loss_scale)
        self.health = Health()
        self.clip_norm = clip_norm
        self.accumulation = accumulation
        self.average = Average(network, ema_decay, native) if ema_decay else None
        if accumulation > 1:
            self.accumulated = self.weights.clone(prefix="accumulated", init="zeros")
            self.batches = Parameter(Tensor(0, ms.int32), name="accumulated_batches")
        self.ranks = ranks
        self.share_memory = share_memory
        if ranks > 1:
            own = MeanOverRanks() if share_memory else None
            self.reduce = own or nn.DistributedGradReducer(self.weights, mean=True, degree=ranks)
        self.saturation = Saturation(float_status, ranks) if float_status else None
        self.differentiate = ops.value_and_grad(self._scaled_loss, None, self.weights, has_aux=True)
        self.native = native
        self.takes_factor = getattr(optimizer, "takes_factor", False)
        self.l2_loss = ops.L2Loss()
        self.hyper_map = ops.HyperMap()
        if native:
            self.sum_of_squares = sum_of_squares()

    def construct(self, *batch: Tensor) -> Tensor:
        """A batch, as the network takes it, to its loss (float32 scalar, not scaled)."""
        if self.saturation is not None:
            batch = self.saturation.begin(batch)
        (_, loss), gradients = self.differentiate(*batch)
        loss = self.health.note_batch(loss)
        if self.saturation is not None:
            gradients = self.saturation.note_batch(gradients)
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

    def replicated(self) -> list[Parameter]:
        """The parameters that must be the same on all ranks: weights, moments, the loss scale and its counters."""
        statistics = _ids(self.statistics())
        own = [*self.optimizer.get_parameters(), *self.loss_scale.replicated(), *self.health.replicated()]
        if self.average:
            own = [*own, *self.average.averages, self.average.updates]
        of_all = _unique([*self.network.get_parameters(), *own])
        left_out = statistics | _ids(self.transient())
        return [parameter for parameter in of_all if id(parameter) not in left_out]

    def local(self) -> list[Parameter]:
        """The parameters that each rank has its own values of, from its own images."""
        return [*self.statistics(), *self.health.local()]

    def transient(self) -> list[Parameter]:
        """The parameters that no checkpoint needs: they follow from the configuration, or are zero between updates."""
        own = [*unchanging(self.optimizer), *self.health.transient()]
        if self.accumulation > 1:
            own = [*own, *self.accumulated, self.batches]
        return [*own, *self.saturation.transient()] if self.saturation else own

    def statistics(self) -> list[Parameter]:
        """Batch norm's moving means and variances, and the averaged weights' of them."""
        own = [
            parameter
            for _, cell in self.network.cells_and_names()
            if isinstance(cell, nn.BatchNorm2d)
            for parameter in (cell.moving_mean, cell.moving_variance)
        ]
        return [*own, *self.average.of(own)] if self.average else own

    def averaged_over_ranks(self) -> list[Parameter]:
        """Of what is local, what every rank goes on from with the ranks' average, where a run goes on or saves."""
        return [*self.statistics(), self.health.loss_sum]

    def state(self) -> dict[str, Parameter]:
        """What a checkpoint holds beside the network's own parameters, by name."""
        network = _ids(self.network.get_parameters())
        kept = [*self.replicated(), *self.local()]
        return {parameter.name: parameter for parameter in kept if id(parameter) not in network}

    def learning_rate(self) -> float:
        """The rate of the next update; skipped updates have not advanced it."""
        return float(self.rates[min(self._updates(), len(self.rates) - 1)])

    def averaged_weights(self) -> Optional[dict[str, np.ndarray]]:
        """The averaged values of the network's parameters, by name; None before there are any."""
        return self.average.weights() if self.average else None

    def check_health(self) -> None:
        """Raise TrainingStopped where going on would waste the run or ruin the weights."""
        self.health.check(self._where)

    def take_totals(self) -> dict[str, float]:
        """Mean loss and number of overflows since the last call, and the loss scale; the sums start anew."""
        taken = self.health.take()
        return {"loss": taken["loss"], "loss_scale": self._scale(), "overflows": taken["overflows"]}

    def _where(self) -> str:
        return f"update {self._updates()}, learning rate {self.learning_rate():.4g}, loss scale {self._scale():g}"

    def _updates(self) -> int:
        return int(self.optimizer.global_step.asnumpy()[0])

    def _scale(self) -> float:
        return float(self.loss_scale.value.asnumpy())

    def _scaled_loss(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        loss = self.network(*batch)
        return loss * self.loss_scale.value, loss

    def _update(self, gradients: tuple) -> Tensor:
        if self.ranks > 1:
            gradients = self.reduce(gradients)
        norm = self._norm(gradients)
        finite = ops.isfinite(norm)
        if self.saturation is not None:
            finite = ops.logical_and(finite, self.saturation(norm))
        unscale = 1.0 / (self.loss_scale.value * self.accumulation)
        if self.clip_norm is not None:
            unscale = unscale * ops.minimum(self.clip_norm / (norm * unscale + 1e-6), ops.ones_like(norm))
        if finite:
            if self.takes_factor:
                updated = self.optimizer(gradients, unscale)
            else:
                updated = self.optimizer(self.hyper_map(ops.partial(ops.mul, unscale), gradients))
            finite = ops.depend(finite, updated)
            if self.average is not None:
                finite = ops.depend(finite, self.average(finite))
        finite = self.health.note_update(finite, self.loss_scale.value <= self.loss_scale.floor)
        return self.loss_scale(finite)

    def _norm(self, gradients: tuple) -> Tensor:
        """The global norm of gradients, a scalar."""
        if self.native:
            return ops.sqrt(self.sum_of_squares(*gradients).reshape(()))
        return ops.sqrt(2.0 * ops.addn(self.hyper_map(self.l2_loss, gradients)))


def _clear(accumulated: Parameter) -> bool:
    return ops.assign(accumulated, ops.zeros_like(accumulated))


def _ids(parameters: Iterable[Parameter]) -> set[int]:
    return {id(parameter) for parameter in parameters}


def _unique(parameters: Iterable[Parameter]) -> list[Parameter]:
    return list({id(parameter): parameter for parameter in parameters}.values())
