"""Inference without batch norm: its scale goes into the convolution's weight, its shift into a bias.

With moving statistics batch norm is affine, so conv(x) * s + (beta - mean * s) with s = gamma / sqrt(variance + eps) is
one convolution (Jacob et al., arXiv 1712.05877, section 3.2). Logits differ by float32 rounding alone.
"""

from dataclasses import replace

import numpy as np
from mindspore import Tensor, nn

from src.models.ddrnet import DDRNet


def fold_batch_norm(network: DDRNet) -> DDRNet:
    """A copy of a network for inference that computes the same logits faster. The original is untouched."""
    folded = DDRNet(
        network.architecture, replace(network.flavour, folded=True), network.num_classes, layers=network.layers
    )
    refold(network, folded)
    return folded.set_train(False)


def refold(network: DDRNet, folded: DDRNet) -> None:
    """Bring a copy that `fold_batch_norm` made up to date with the network's weights."""
    norms = _cells(network, nn.BatchNorm2d)
    for conv, norm, target in zip(_cells(network, nn.Conv2d), norms, _cells(folded, nn.Conv2d)):
        gamma, beta, mean, variance = (
            value.asnumpy().astype(np.float64)
            for value in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
        )
        scale = gamma / np.sqrt(variance + norm.eps)
        shift = conv.bias.asnumpy() if conv.has_bias else 0.0
        weight = conv.weight.asnumpy() * scale[:, None, None, None]
        target.weight.set_data(Tensor(weight.astype(np.float32)))
        target.bias.set_data(Tensor((beta + (shift - mean) * scale).astype(np.float32)))
    folded.linear.weight.set_data(network.linear.weight.value())
    folded.linear.bias.set_data(network.linear.bias.value())


def _cells(network: nn.Cell, kind: type) -> list[nn.Cell]:
    return [cell for _, cell in network.cells_and_names() if isinstance(cell, kind)]
