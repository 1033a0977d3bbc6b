"""The layers that a network is built of, as MindSpore's own operators: NCHW, on every device.

`channels_last.py` has the same set in NHWC, of kernels of our own for the CPU. Parameters have the same names and
shapes in both, so weights and checkpoints do not know which set a network was built of.
"""

from typing import Optional

from mindspore import Tensor, nn, ops
from mindspore.common.initializer import HeNormal

BATCH_NORM_EPS = 1e-5
BATCH_NORM_MOMENTUM = 0.9  # MindSpore's convention: the share of the old moving average that stays


class Upsample(nn.Cell):
    """Bilinear interpolation to another tensor's height and width, without aligned corners."""

    def __init__(self, half_pixel_centers: bool) -> None:
        super().__init__()
        self.resize = ops.ResizeBilinearV2(align_corners=False, half_pixel_centers=half_pixel_centers)

    def construct(self, x: Tensor, like: Tensor) -> Tensor:
        """x (N, C, h, w), like (N, C, H, W) to (N, C, H, W)."""
        return self.resize(x, like.shape[2:])


class Layers:
    """Makes the layers, and runs the cells of a network in the order of axes that they work on.

    `spatial_axes` says where height and width stand. `block` is the contract between networks and sets: a set may
    compute it in fewer passes, but must compute that, whatever cells it is given. docs/networks.md has more.
    """

    conv, norm, upsample = nn.Conv2d, nn.BatchNorm2d, Upsample
    convs: tuple[type, ...] = (nn.Conv2d,)  # one of these and one of those behind it run as a block
    norms: tuple[type, ...] = (nn.BatchNorm2d, nn.Identity)
    spatial_axes = (2, 3)

    @staticmethod
    def enter(images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in the order that the layers work on."""
        return images

    @staticmethod
    def pool(x: Tensor) -> Tensor:
        """The mean over the pixels, float32 (N, C), of what the layers have made."""
        return ops.mean(x, (2, 3))

    @staticmethod
    def call(cell: nn.Cell, x: Tensor) -> Tensor:
        """A cell that takes and gives (N, C, H, W), on x in the order that the layers work on."""
        return cell(x)

    @staticmethod
    def relu(x: Tensor) -> Tensor:
        """A ReLU behind something else than a block."""
        return ops.relu(x)

    @staticmethod
    def add(x: Tensor, shortcut: Tensor) -> Tensor:
        """The sum of two."""
        return x + shortcut

    @staticmethod
    def merge(upsample: nn.Cell, x: Tensor, like: Tensor) -> Tensor:
        """`like` and x upsampled to its size, added, through a ReLU."""
        return ops.relu(like + upsample(x, like))

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
        """norm(conv(x)), plus a shortcut where there is one, through a ReLU where asked for.

        scale: (N), with a shortcut: multiplies each sample of the shortcut, or else of norm(conv(x)).
        """
        return finish(norm(conv(x)), shortcut, relu, scale, on_shortcut)


def finish(
    y: Tensor, shortcut: Optional[Tensor], relu: bool, scale: Optional[Tensor] = None, on_shortcut: bool = False
) -> Tensor:
    """What `Layers.block` does behind the norm, of MindSpore's operators."""
    if scale is not None:
        factor = scale.reshape((-1, 1, 1, 1))
        if on_shortcut:
            shortcut = shortcut * factor
        else:
            y = y * factor
    if shortcut is not None:
        y = y + shortcut
    return ops.relu(y) if relu else y


def convolution(layers: type[Layers], cin: int, cout: int, kernel: int, stride: int, same: bool, bias: bool) -> nn.Cell:
    """A convolution: (N, cin, H, W) to (N, cout, ceil(H / stride), ceil(W / stride)).

    Args:
        layers: of which set.
        same: pad as little as is needed, at the right and bottom first; otherwise kernel // 2 on every side.
        bias: whether there is one.
    """
    return layers.conv(
        cin,
        cout,
        kernel,
        stride,
        pad_mode="same" if same else "pad",
        padding=0 if same else kernel // 2,
        has_bias=bias,
        weight_init=HeNormal(mode="fan_out", nonlinearity="relu"),
        bias_init="zeros",
    )
