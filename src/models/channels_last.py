"""The layers of `src.models.layers` in NHWC, for the CPU, of the kernels in `src.kernels`."""

from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

from src.kernels import operators
from src.models.layers import Layers


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` on NHWC: square kernels, stride 1 or 2, pad_mode same or kernel // 2 on every side."""

    bfloat16 = False  # whether it multiplies in bfloat16; sums are float32

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.operator = operators.convolution(self.stride[0], self.pad_mode == "same", self.has_bias, self.bfloat16)

    def construct(self, x: Tensor) -> Tensor:
        if self.has_bias:
            return self.operator(x, self.weight, self.bias)
        return self.operator(x, self.weight)


class Bfloat16Conv2d(Conv2d):
    """The same, multiplying in bfloat16."""

    bfloat16 = True


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` on NHWC."""

    def __init__(self, channels: int, eps: float, momentum: float) -> None:
        super().__init__(channels, eps, momentum)
        self.operator = operators.batch_norm()
        self.rule = Tensor(np.array([eps, momentum], np.float32))

    def construct(self, x: Tensor) -> Tensor:
        if not self.training:
            scale = self.gamma * ops.rsqrt(self.moving_variance + self.eps)
            return x * scale + (self.beta - self.moving_mean * scale)
        y, _, _, mean, variance = self.operator(
            x, self.gamma, self.beta, self.moving_mean, self.moving_variance, self.rule
        )
        y = ops.depend(y, ops.assign(self.moving_mean, mean))
        return ops.depend(y, ops.assign(self.moving_variance, variance))


class Upsample(nn.Cell):
    """Bilinear interpolation to another tensor's height and width, without aligned corners, on NHWC."""

    def __init__(self, half_pixel_centers: bool) -> None:
        super().__init__()
        self.operator = operators.upsample(half_pixel_centers)

    def construct(self, x: Tensor, like: Tensor) -> Tensor:
        """x (N, h, w, C), like (N, H, W, C) to (N, H, W, C)."""
        return self.operator(x, like)


class ChannelsLast(Layers):
    """The set of these layers."""

    conv, norm, upsample = Conv2d, BatchNorm2d, Upsample
    spatial_axes = (1, 2)

    @staticmethod
    def enter(images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to (N, H, W, 3)."""
        return ops.transpose(images, (0, 2, 3, 1))


class Bfloat16ChannelsLast(ChannelsLast):
    """The same with convolutions that multiply in bfloat16."""

    conv = Bfloat16Conv2d


LAYERS = {"float32": ChannelsLast, "bfloat16": Bfloat16ChannelsLast}
