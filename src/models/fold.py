"""Inference without batch norm: its scale goes into the convolution's weight, its shift into a bias.

With moving statistics batch norm is affine, so conv(x) * s + (beta - mean * s) with s = gamma / sqrt(variance + eps) is
one convolution (Jacob et al., arXiv 1712.05877, section 3.2). Logits differ by float32 rounding alone.
"""

import copy
from collections.abc import Iterator

import numpy as np
from mindspore import nn

from src.errors import UserError
from src.models.architectures import HEAD
from src.models.channels_last import BatchNorm2d, Bfloat16Conv2d, ChannelsLast, Conv2d, FoldedConv2d, FoldedDense
from src.parameters import assign


def fold_batch_norm(network: nn.Cell) -> nn.Cell:
    """A copy of a network for inference that computes the same logits faster. The original is untouched.

    A cell says with `blocks`, pairs of cells, which convolutions hand what they give to a norm and to nothing else.
    Where that is a batch norm, and neither is of a derived class, a convolution and an `nn.Identity` take their place.
    On the kernels' layers the classifier is packed for them as well.
    """
    folded = copy.deepcopy(network)
    for _, parent in _parents(folded):
        for conv, norm in parent.blocks:
            if not _foldable(conv, norm):
                continue
            for name, child in list(parent.name_cells().items()):
                if child is conv:
                    _put(parent, name, _with_bias(conv))
                elif child is norm:
                    _put(parent, name, nn.Identity())
    for _, parent in list(_with_classifier(folded)):
        _put(parent, HEAD, FoldedDense(parent.name_cells()[HEAD], parent.layers.conv.bfloat16))
    refold(network, folded)
    return folded.set_train(False)


def refold(network: nn.Cell, folded: nn.Cell) -> None:
    """Bring a copy that `fold_batch_norm` made up to date with the network's weights.

    Raises:
        UserError: the network is no longer the one that was copied.
    """
    twins = dict(_parents(folded))
    missing = {parameter.name: parameter for parameter in folded.get_parameters()}
    for name, parent in _parents(network):
        for (conv, norm), (target, rest) in zip(parent.blocks, twins[name].blocks if name in twins else ()):
            if not (_foldable(conv, norm) and isinstance(rest, nn.Identity)):
                continue
            gamma, beta, mean, variance = (
                value.asnumpy().astype(np.float64)
                for value in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
            )
            scale = gamma / np.sqrt(variance + norm.eps)
            shift = conv.bias.asnumpy() if conv.has_bias else 0.0
            weight = conv.weight.asnumpy() * scale[:, None, None, None]
            _fill(target, weight.astype(np.float32), (beta + (shift - mean) * scale).astype(np.float32))
            for parameter in target.get_parameters():
                del missing[parameter.name]
    cells = dict(folded.cells_and_names())
    for name, parent in _with_classifier(network):
        dense, target = parent.name_cells()[HEAD], cells[name].name_cells()[HEAD]
        if (
            isinstance(target, FoldedDense)
            and target.inputs == dense.weight.shape[1]
            and target.bias.shape == dense.bias.shape
        ):
            target.fill(dense.weight.asnumpy(), dense.bias.asnumpy())
            for parameter in target.get_parameters():
                del missing[parameter.name]
    own = {parameter.name: parameter for parameter in network.get_parameters()}
    for name, parameter in missing.items():
        if name not in own or own[name].shape != parameter.shape:
            raise UserError(f"fold_batch_norm: {name}: the network has none of that shape any more; fold it anew")
        assign(parameter, own[name])


def _parents(network: nn.Cell) -> Iterator[tuple[str, nn.Cell]]:
    return ((name, cell) for name, cell in network.cells_and_names() if hasattr(cell, "blocks"))


def _with_classifier(network: nn.Cell) -> Iterator[tuple[str, nn.Cell]]:
    """The networks, by their names, whose classifier the kernels can have."""
    for name, cell in network.cells_and_names():
        layers, head = getattr(cell, "layers", None), cell.name_cells().get(HEAD)
        own = isinstance(layers, type) and issubclass(layers, ChannelsLast)
        if own and type(head) is nn.Dense and head.has_bias and head.activation is None:
            yield name, cell


def _foldable(conv: nn.Cell, norm: nn.Cell) -> bool:
    """Whether these are a convolution and a batch norm on moving statistics, and of no derived class."""
    return (
        type(conv) in (nn.Conv2d, Conv2d, Bfloat16Conv2d)
        and type(norm) in (nn.BatchNorm2d, BatchNorm2d)
        and not norm.use_batch_statistics
    )


def _with_bias(conv: nn.Conv2d) -> nn.Cell:
    """The same convolution with a bias, its parameters still to be filled."""
    if isinstance(conv, Conv2d):
        return FoldedConv2d(conv)
    return nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.pad_mode,
        conv.padding,
        conv.dilation,
        conv.group,
        has_bias=True,
        weight_init="zeros",
        bias_init="zeros",
    )


def _fill(conv: nn.Cell, weight: np.ndarray, bias: np.ndarray) -> None:
    if isinstance(conv, FoldedConv2d):
        conv.fill(weight, bias)
    else:
        assign(conv.weight, weight)
        assign(conv.bias, bias)


def _put(parent: nn.Cell, name: str, cell: nn.Cell) -> None:
    """Put a cell in the place of another, with the names that its parameters have there."""
    first = next(iter(parent.name_cells()[name].get_parameters()))
    place = first.name.rpartition(".")[0]
    if isinstance(parent, nn.SequentialCell):
        parent[list(parent.name_cells()).index(name)] = cell
    else:
        setattr(parent, name, cell)
    for parameter in cell.get_parameters():
        parameter.name = f"{place}.{parameter.name.rpartition('.')[2]}"
