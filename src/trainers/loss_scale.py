"""Loss scaling: the factor that keeps small float16 gradients above zero."""

from typing import Optional

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

INITIAL_SCALE = 4096.0
SCALE_FACTOR = 2.0
SCALE_WINDOW = 1000
# The published rule has no upper bound. At 2**24 float16 holds gradients down to 2**-48, so that a higher scale could
# save nothing; where an overflow goes unseen it would ruin weights. MindSpore's DynamicLossScaleManager starts here.
SCALE_CEILING = 2.0**24


class LossScale(nn.Cell):
    """The factor on the loss (Micikevicius et al., arXiv 1710.03740, section 3.2).

    Dynamic: halved, down to 1, at an overflow, doubled, up to SCALE_CEILING, after SCALE_WINDOW updates without one.

    Args:
        fixed: a factor that never changes; None: dynamic.
    """

    def __init__(self, fixed: Optional[float] = None) -> None:
        super().__init__()
        self.dynamic = fixed is None
        self.floor = 1.0 if fixed is None else fixed
        self.value = Parameter(Tensor(INITIAL_SCALE if fixed is None else fixed, ms.float32), name="loss_scale")
        self.good_updates = Parameter(Tensor(0, ms.int32), name="good_updates")
        self.window = SCALE_WINDOW
        self.ceiling = Tensor(SCALE_CEILING, ms.float32)

    def construct(self, finite: Tensor) -> Tensor:
        """Take note of an update: finite is a bool scalar, whether its gradients were."""
        if self.dynamic:
            good = ops.where(finite, self.good_updates + 1, ops.zeros_like(self.good_updates))
            grows = good >= self.window
            lower = ops.maximum(self.value / SCALE_FACTOR, ops.ones_like(self.value))
            higher = ops.where(grows, ops.minimum(self.value * SCALE_FACTOR, self.ceiling), self.value)
            self.value = ops.where(finite, higher, lower)
            self.good_updates = ops.where(grows, ops.zeros_like(good), good)
        return finite

    def replicated(self) -> list[Parameter]:
        """What is the same on all ranks."""
        return [self.value, self.good_updates]
