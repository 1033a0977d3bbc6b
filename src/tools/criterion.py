"""The training loss.

Mixing, label smoothing and plain labels differ in the targets, which the input pipeline makes, not in the loss: cross
entropy against a soft target is label-smoothed cross entropy for a smoothed one (Szegedy et al., arXiv 1512.00567,
section 7) and plain cross entropy for a one-hot one.
"""

from typing import Optional

import mindspore as ms
from mindspore import Tensor, nn, ops


class SoftTargetCrossEntropy(nn.Cell):
    """Mean over the batch of -sum(target * log_softmax(logits)): logits and targets (N, C) to a float32 scalar."""

    def construct(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_probabilities = ops.log_softmax(ops.cast(logits, ms.float32), -1)
        return -(targets * log_probabilities).sum(-1).mean()


class NetworkWithLoss(nn.Cell):
    """A network and its loss: images (N, 3, H, W), targets (N, C) and uniforms for drop path (N, D) to the loss."""

    def __init__(self, network: nn.Cell, criterion: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.criterion = criterion

    def construct(self, images: Tensor, targets: Tensor, uniforms: Optional[Tensor] = None) -> Tensor:
        return self.criterion(self.network(images, uniforms), targets)
