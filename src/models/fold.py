"""Inference without batch norm: its scale goes into the convolution's weight, its shift into a bias.

With moving statistics batch norm is affine, so conv(x) * s + (beta - mean * s) with s = gamma / sqrt(variance + eps) is
one convolution (Jacob et al., arXiv 1712.05877, section 3.2). Logits differ by float32 rounding alone.
"""

from dataclasses import replace

import numpy as np
from mindspore import nn

from src.errors import UserError
from src.models.ddrnet import DDRNet
from src.parameters import assign


def fold_batch_norm(network: DDRNet) -> DDRNet:
    """A copy of a network for inference that computes the same logits faster. The original is untouched."""
    folded = DDRNet(
        network.architecture, replace(network.flavour, folded=True), network.num_classes, layers=network.layers
    )
    refold(network, folded)
    return folded.set_train(False)


def refold(network: DDRNet, folded: DDRNet) -> None:
    """Bring a copy that `fold_batch_norm` made up to date with the network's weights.

    Raises:
        UserError: the copy has a parameter that the network has not, so the network does not follow its own flavour.
    """
    cells = dict(folded.cells_and_names())
    own = {parameter.name: parameter for parameter in network.get_parameters()}
    missing = {parameter.name: parameter for parameter in folded.get_parameters()}
    layers = [pair for pair in network.cells_and_names() if isinstance(pair[1], (nn.Conv2d, nn.BatchNorm2d))]
    for (name, conv), (norm_name, norm) in zip(layers, layers[1:]):
        if not (isinstance(norm, nn.BatchNorm2d) and isinstance(cells.get(norm_name), nn.Identity)):
            continue  # a batch norm that the copy has not is part of the convolution before it
        gamma, beta, mean, variance = (
            value.asnumpy().astype(np.float64)
            for value in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
        )
        scale = gamma / np.sqrt(variance + norm.eps)
        shift = conv.bias.asnumpy() if conv.has_bias else 0.0
        weight = conv.weight.asnumpy() * scale[:, None, None, None]
        target = cells[name]
        assign(target.weight, weight.astype(np.float32))
        assign(target.bias, (beta + (shift - mean) * scale).astype(np.float32))
        del missing[target.weight.name], missing[target.bias.name]
    for name, parameter in missing.items():
        if name not in own or own[name].shape != parameter.shape:
            raise UserError(f"fold_batch_norm: {name}: the network has none of that shape; build it with conv_bn()")
        assign(parameter, own[name])
