"""The layers of `src.models.layers` in NHWC, for the CPU, of the kernels in `src.kernels`.

Tensors between them are float32. Behind a `FoldedConv2d` that multiplies in bfloat16 they are bfloat16, as what a small
product waits for is memory; every layer takes both.
"""

from typing import Any, Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.errors import UserError
from src.kernels import operators
from src.models.layers import Layers, finish
from src.parameters import assign


def widened(x: Tensor) -> Tensor:
    """x as float32."""
    return ops.cast(x, ms.float32) if x.dtype == ms.bfloat16 else x


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` on NHWC: odd square kernels, stride 1 or 2, "same" or padded by kernel // 2 on every side.

    Raises:
        UserError: it is another convolution than that.
    """

    bfloat16 = False  # whether it multiplies in bfloat16; sums are float32

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        side, stride = self.kernel_size[0], self.stride[0]
        same = self.pad_mode == "same" and stride == 2  # with stride 1 both are one
        plain = self.dilation == (1, 1) and self.group == 1 and side % 2 == 1
        square = self.kernel_size == (side, side) and self.stride in ((1, 1), (2, 2))
        padded = self.pad_mode == "same" or (self.pad_mode == "pad" and self.padding in (side // 2, (side // 2,) * 4))
        if not (plain and square and padded):
            raise UserError(
                f"cpu_kernels: {self} is not among the convolutions of the own kernels (odd square kernel, stride 1 or "
                "2, padded by half the kernel, no groups, no dilation); use --cpu_kernels mindspore"
            )
        self.kind = (stride, same)
        self.operator = operators.convolution(*self.kind, self.has_bias, self.bfloat16)

    def construct(self, x: Tensor) -> Tensor:
        x = widened(x)
        if self.has_bias:
            return self.operator(x, self.weight, self.bias)
        return self.operator(x, self.weight)


class Bfloat16Conv2d(Conv2d):
    """The same, multiplying in bfloat16."""

    bfloat16 = True


class FoldedConv2d(nn.Cell):
    """A convolution with a bias, for inference, whose weight lies in the order in which the kernels read it.

    Args:
        conv: of which it is one.
    """

    def __init__(self, conv: Conv2d) -> None:
        super().__init__()
        self.pack = operators.pack_weight(conv.kind[0], conv.bfloat16)
        shape = self.pack(Tensor(np.zeros(conv.weight.shape, np.float32))).shape
        self.packed = Parameter(Tensor(np.zeros(shape, np.float32)), name="packed", requires_grad=False)
        self.bias = Parameter(Tensor(np.zeros(conv.out_channels, np.float32)), name="bias", requires_grad=False)
        self.kind = ms.bfloat16 if conv.bfloat16 else ms.float32  # of what it gives
        self.plain, self.relu = (
            operators.packed_convolution(*conv.kind, relu, conv.bfloat16) for relu in (False, True)
        )

    def fill(self, weight: np.ndarray, bias: np.ndarray) -> None:
        """Take over a weight (O, C, k, k) and a bias (O), float32."""
        assign(self.packed, self.pack(Tensor(weight)))
        assign(self.bias, bias)

    def construct(self, x: Tensor, shortcut: Optional[Tensor] = None, relu: bool = False) -> Tensor:
        """x (N, H, W, C) through the convolution, with the sum with a shortcut and a ReLU where asked for."""
        if self.kind == ms.float32:
            x = widened(x)
        operator = self.relu if relu else self.plain
        if shortcut is None:
            return operator(x, self.packed, self.bias)
        if shortcut.dtype != self.kind:
            shortcut = ops.cast(shortcut, self.kind)
        return operator(x, self.packed, self.bias, shortcut)


class FoldedDense(nn.Cell):
    """A fully connected layer for inference, whose weight lies in the order in which the kernels read it.

    Args:
        dense: of which it is one; it must have a bias.
        bfloat16: whether it multiplies in bfloat16; sums, and what it gives, are float32.
    """

    def __init__(self, dense: nn.Dense, bfloat16: bool) -> None:
        super().__init__()
        self.inputs = dense.in_channels
        self.pack = operators.pack_weight(1, bfloat16)
        self.operator = operators.packed_convolution(1, False, False)
        shape = self.pack(Tensor(np.zeros((*dense.weight.shape, 1, 1), np.float32))).shape
        self.packed = Parameter(Tensor(np.zeros(shape, np.float32)), name="packed", requires_grad=False)
        self.bias = Parameter(Tensor(np.zeros(dense.out_channels, np.float32)), name="bias", requires_grad=False)

    def fill(self, weight: np.ndarray, bias: np.ndarray) -> None:
        """Take over a weight (O, C) and a bias (O), float32."""
        assign(self.packed, self.pack(Tensor(weight[:, :, None, None])))
        assign(self.bias, bias)

    def construct(self, x: Tensor) -> Tensor:
        """x (N, C) to (N, O)."""
        y = self.operator(x.reshape((x.shape[0], 1, 1, x.shape[1])), self.packed, self.bias)
        return y.reshape((y.shape[0], y.shape[3]))


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` on NHWC, with what follows it."""

    def __init__(self, channels: int, eps: float, momentum: float) -> None:
        super().__init__(channels, eps, momentum)
        self.plain, self.adding, self.dropping_branch, self.dropping_shortcut = (
            tuple(operators.batch_norm(relu, added) for relu in (False, True)) for added in operators.ADDED
        )
        self.rule = Tensor(np.array([eps, momentum], np.float32))

    def construct(
        self,
        x: Tensor,
        shortcut: Optional[Tensor] = None,
        relu: bool = False,
        scale: Optional[Tensor] = None,
        on_shortcut: bool = False,
    ) -> Tensor:
        """x and shortcut (N, H, W, C) to the normalized x and what `Layers.block` does behind it."""
        x = widened(x)
        if shortcut is not None:
            shortcut = widened(shortcut)
        if not self.training:
            factor = self.gamma * ops.rsqrt(self.moving_variance + self.eps)
            return finish(x * factor + (self.beta - self.moving_mean * factor), shortcut, relu, scale, on_shortcut)
        inputs = (x, self.gamma, self.beta, self.moving_mean, self.moving_variance, self.rule)
        if shortcut is None:
            return self.plain[relu](*inputs)[0]
        if scale is None:
            return self.adding[relu](*inputs, shortcut)[0]
        if on_shortcut:
            return self.dropping_shortcut[relu](*inputs, shortcut, scale)[0]
        return self.dropping_branch[relu](*inputs, shortcut, scale)[0]


class Upsample(nn.Cell):
    """Bilinear interpolation to another tensor's height and width, without aligned corners, on NHWC."""

    def __init__(self, half_pixel_centers: bool) -> None:
        super().__init__()
        self.operator = operators.upsample(half_pixel_centers)
        self.merge, self.narrow_merge = (operators.merge(half_pixel_centers, narrow) for narrow in (False, True))

    def construct(self, x: Tensor, like: Tensor) -> Tensor:
        """x (N, h, w, C), like (N, H, W, C) to (N, H, W, C)."""
        return self.operator(widened(x), widened(like))


class ChannelsLast(Layers):
    """The set of these layers."""

    conv, norm, upsample = Conv2d, BatchNorm2d, Upsample
    convs, norms = (*Layers.convs, Conv2d, Bfloat16Conv2d, FoldedConv2d), (*Layers.norms, BatchNorm2d)
    spatial_axes = (1, 2)

    @staticmethod
    def enter(images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to (N, H, W, 3)."""
        return operators.channels_last()(images)

    @staticmethod
    def pool(x: Tensor) -> Tensor:
        """`Layers.pool`."""
        return operators.pool()(x)

    @staticmethod
    def relu(x: Tensor) -> Tensor:
        """`Layers.relu`."""
        return operators.relu_of_bfloat16()(x) if x.dtype == ms.bfloat16 else ops.relu(x)

    @staticmethod
    def add(x: Tensor, shortcut: Tensor) -> Tensor:
        """`Layers.add`, as float32."""
        return widened(x) + widened(shortcut)

    @staticmethod
    def merge(upsample: nn.Cell, x: Tensor, like: Tensor) -> Tensor:
        """`Layers.merge` in one pass, where the cell is one of these."""
        if not isinstance(upsample, Upsample):
            return ops.relu(widened(like) + upsample(widened(x), widened(like)))
        if x.dtype == ms.bfloat16 and like.dtype == ms.bfloat16:
            return upsample.narrow_merge(x, like)
        return upsample.merge(widened(x), widened(like))

    @staticmethod
    def call(cell: nn.Cell, x: Tensor) -> Tensor:
        """A cell on x (N, H, W, C): of this set as it is, others, which take (N, C, H, W), between two transposes."""
        if isinstance(cell, (Conv2d, FoldedConv2d, BatchNorm2d, nn.Identity)):
            return cell(x)
        return ops.transpose(cell(ops.transpose(widened(x), (0, 3, 1, 2))), (0, 2, 3, 1))

    @staticmethod
    def block(
        conv: nn.Cell,
        norm: nn.Cell,
        x: Tensor,
        shortcut: Optional[Tensor] = None,
        relu: bool = False,
        scale: Optional[Tensor] = None,
        on_shortcut: bool = False,
    ) -> Tensor:
        """`Layers.block` in as few passes as its cells allow."""
        if isinstance(norm, BatchNorm2d):
            return norm(ChannelsLast.call(conv, x), shortcut, relu, scale, on_shortcut)
        if isinstance(norm, nn.Identity) and isinstance(conv, FoldedConv2d) and scale is None:
            return conv(x, shortcut, relu)
        y = widened(ChannelsLast.call(norm, ChannelsLast.call(conv, x)))
        return finish(y, shortcut if shortcut is None else widened(shortcut), relu, scale, on_shortcut)


class Bfloat16ChannelsLast(ChannelsLast):
    """The same with convolutions that multiply in bfloat16."""

    conv = Bfloat16Conv2d


LAYERS = {"float32": ChannelsLast, "bfloat16": Bfloat16ChannelsLast}
