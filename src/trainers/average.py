"""Averaged weights: a second set that follows the trained one slowly (Polyak and Juditsky, 1992; here exponential)."""

from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.kernels.operators import average_update


class Average(nn.Cell):
    """The exponential moving average of all parameters of a network, batch norm's statistics too.

    Args:
        network: whose parameters are averaged.
        decay: share that stays at an update.
        native: use the kernel in `src.kernels`.
    """

    def __init__(self, network: nn.Cell, decay: float, native: bool = False) -> None:
        super().__init__(auto_prefix=False)
        self.decay = float(np.float32(decay))  # as the arithmetic has it, so that the shares add up to 1
        self.values = ms.ParameterTuple(network.get_parameters())
        self.averages = self.values.clone(prefix="average", init="zeros")
        self.updates = Parameter(Tensor(0, ms.int32), name="averaged_updates")
        self.native = native
        if native:
            self.update = average_update(len(self.values))
            self.stays = Tensor(self.decay, ms.float32)

    def construct(self, updated: Tensor) -> Tensor:
        """Take the values in, once `updated` is there; gives `updated` back."""
        self.updates = ops.depend(self.updates, updated) + 1
        if self.native:
            return ops.depend(updated, self.update(ops.depend(self.stays, updated), *self.averages, *self.values))
        for average, value in zip(self.averages, self.values):
            moved = average * self.decay + ops.depend(value, updated) * (1.0 - self.decay)
            updated = ops.depend(updated, ops.assign(average, moved))
        return updated

    def weights(self) -> Optional[dict[str, np.ndarray]]:
        """The averages by the network's names, bias-corrected; None before the first update.

        Zeros at the start weigh decay ** updates, which the correction divides out (Kingma and Ba, arXiv 1412.6980,
        section 3).
        """
        updates = int(self.updates.asnumpy())
        if not updates:
            return None
        share = 1.0 - self.decay**updates
        pairs = zip(self.values, self.averages)
        return {value.name: (average.asnumpy() / share).astype(np.float32) for value, average in pairs}

    def of(self, parameters: list[Parameter]) -> list[Parameter]:
        """The averages of some of the network's parameters."""
        wanted = {id(parameter) for parameter in parameters}
        return [average for value, average in zip(self.values, self.averages) if id(value) in wanted]
