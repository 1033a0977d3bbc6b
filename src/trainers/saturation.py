"""Overflow where arithmetic saturates: an Ascend 910 clips to the largest float16, so gradients stay finite.

There only the NPU's status flag tells (https://www.hiascend.com/document, "saturation mode"): it is raised by whatever
overflows and stays up until it is cleared. `mindspore.amp.all_finite` reads it on the same chips.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops.operations.math_ops import NPUClearFloatStatusV2, NPUGetFloatStatusV2


class FloatStatus(nn.Cell):
    """The NPU's own flag: eight words, all 0 where nothing has overflowed."""

    def __init__(self) -> None:
        super().__init__()
        self.read = NPUGetFloatStatusV2()
        self.clear = NPUClearFloatStatusV2()
        self.words = Tensor(np.zeros(8, np.int32))

    def cleared(self, images: Tensor) -> Tensor:
        """The same images, which are there once the flag is down."""
        return ops.depend(images, self.clear(ops.depend(self.words, images)))

    def construct(self, gradients: tuple) -> Tensor:
        """Whether something has overflowed (bool scalar) by the time that the gradients are there."""
        return ops.not_equal(self.read(ops.depend(self.words, gradients)), 0).any()


class Saturation(nn.Cell):
    """Whether a batch of an update has overflowed, on any rank.

    Args:
        status: `FloatStatus`, or what stands in for it.
        ranks: processes that train together.
    """

    def __init__(self, status: nn.Cell, ranks: int = 1) -> None:
        super().__init__(auto_prefix=False)
        self.status = status
        self.saturated = Parameter(Tensor(0.0, ms.float32), name="saturated")
        self.ranks = ranks
        if ranks > 1:
            self.add_up = ops.AllReduce()

    def begin(self, batch: tuple) -> tuple:
        """A batch before its forward pass; the same."""
        return (self.status.cleared(batch[0]), *batch[1:])

    def note_batch(self, gradients: tuple) -> tuple:
        """A batch's gradients after its backward pass; the same."""
        self.saturated = self.saturated + ops.cast(self.status(gradients), ms.float32)
        return ops.depend(gradients, self.saturated)

    def construct(self, norm: Tensor) -> Tensor:
        """Whether no batch of the update overflowed (bool scalar), once its norm is there; the next starts anew."""
        saturated = ops.depend(self.saturated, norm)
        if self.ranks > 1:
            saturated = self.add_up(saturated)
        finite = saturated == 0
        self.saturated = ops.depend(ops.zeros_like(self.saturated), finite)
        return finite

    def transient(self) -> list[Parameter]:
        """What is zero between two updates."""
        return [self.saturated]
