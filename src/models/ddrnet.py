"""DDRNet, the deep dual-resolution network, as an image classifier.

Two branches run side by side from an eighth of the image's size on: one keeps that resolution, the other halves it
again and again; after every stage each adds what the other has found (Hong et al., "Deep Dual-resolution Networks for
Real-time and Accurate Semantic Segmentation of Road Scenes", arXiv 2101.06085, section III and table I).

One definition serves the whole family: what differs between its members, and between the two flavours in which
weights are published, is data (`architectures.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Uniform

from src.models.architectures import Architecture, Flavour
from src.models.layers import BATCH_NORM_EPS, BATCH_NORM_MOMENTUM, Layers, convolution


@dataclass(frozen=True)
class Builder:
    """Makes the layers of one network: of which set, in which flavour."""

    layers: type[Layers]
    flavour: Flavour

    def conv_bn(self, cin: int, cout: int, kernel: int, stride: int, bias: bool = False) -> list[nn.Cell]:
        """A convolution and its batch norm: (N, cin, H, W) to (N, cout, ceil(H / stride), ceil(W / stride))."""
        same = stride == 2 and self.flavour.same_padding
        conv = convolution(self.layers, cin, cout, kernel, stride, same, bias or self.flavour.folded)
        if self.flavour.folded:
            return [conv, nn.Identity()]
        return [conv, self.layers.norm(cout, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)]


class DropPath(nn.Cell):
    """Stochastic depth: drops the residual branch of whole samples while training.

    Huang et al., "Deep Networks with Stochastic Depth", arXiv 1603.09382, section 3. A kept branch is divided by the
    probability of keeping it, so that evaluation needs no scaling.
    """

    def __init__(self, rate: float, column: int) -> None:
        super().__init__()
        self.keep = 1.0 - rate
        self.column = column
        self.active = rate > 0

    def construct(self, x: Tensor, uniforms: Optional[Tensor] = None) -> Tensor:
        """x (N, C, H, W); uniforms (N, columns): numbers in [0, 1) that decide; None: drawn here."""
        if not (self.active and self.training):
            return x
        shape = (x.shape[0], 1, 1, 1)
        draw = ops.rand(shape) if uniforms is None else uniforms[:, self.column].reshape(shape)
        kept = ops.cast(draw < self.keep, x.dtype)
        return x * (kept / self.keep)


class Residual(nn.Cell):
    """A residual unit: kernels (3, 3) are the basic block, (1, 3, 1) the bottleneck, twice as wide at its end."""

    def __init__(
        self,
        cin: int,
        width: int,
        kernels: Sequence[int],
        stride: int,
        last_relu: bool,
        drop_path: DropPath,
        build: Builder,
    ) -> None:
        super().__init__()
        cout = width * 2 if len(kernels) == 3 else width
        widths = [cin] + [width] * (len(kernels) - 1) + [cout]
        strided = (len(kernels) - 1) // 2
        self.depth = len(kernels)
        for i, kernel in enumerate(kernels):
            conv, bn = build.conv_bn(widths[i], widths[i + 1], kernel, stride if i == strided else 1)
            setattr(self, f"conv{i + 1}", conv)
            setattr(self, f"bn{i + 1}", bn)
        self.has_projection = stride != 1 or cin != cout
        if self.has_projection:
            self.downsample = Chain(build, build.conv_bn(cin, cout, 1, stride))
        self.last_relu = last_relu
        self.drop_path = drop_path
        self.block = build.layers.block

    def construct(self, x: Tensor, uniforms: Optional[Tensor] = None, relu: bool = False) -> Tensor:
        """`relu`: end with a ReLU in any case."""
        relu = relu or self.last_relu
        shortcut = self.downsample(x) if self.has_projection else x
        x = self.block(self.conv1, self.bn1, x, None, True)
        conv, norm = self.conv2, self.bn2
        if self.depth == 3:
            x = self.block(self.conv2, self.bn2, x, None, True)
            conv, norm = self.conv3, self.bn3
        if not (self.drop_path.active and self.training):
            return self.block(conv, norm, x, shortcut, relu)
        x = self.drop_path(self.block(conv, norm, x), uniforms) + shortcut
        return ops.relu(x) if relu else x


class Stage(nn.SequentialCell):
    """Residual units in a row: the first changes resolution and channels, the last ends without a ReLU."""

    def construct(self, x: Tensor, uniforms: Optional[Tensor] = None, relu: bool = False) -> Tensor:
        """`relu`: end with a ReLU all the same."""
        for i, unit in enumerate(self.cell_list):
            x = unit(x, uniforms, relu and i == len(self.cell_list) - 1)
        return x


class Chain(nn.SequentialCell):
    """Convolutions, each with its batch norm, and ReLUs between them.

    Args:
        build: makes the convolutions.
        cells: convolution, batch norm, ReLU, convolution, ...; a ReLU may end them.
    """

    def __init__(self, build: Builder, cells: list[nn.Cell]) -> None:
        super().__init__(cells)
        self.block = build.layers.block

    def construct(self, x: Tensor, shortcut: Optional[Tensor] = None, relu: bool = False) -> Tensor:
        """x (N, C, H, W); shortcut: is added to the last convolution; relu: end with a ReLU in any case."""
        count = len(self.cell_list)
        for i in range(0, count, 3):
            last = i + 3 >= count
            x = self.block(
                self.cell_list[i], self.cell_list[i + 1], x, shortcut if last else None, relu or i + 2 < count
            )
        return x


class DDRNet(nn.Cell):
    """The classifier: float32 (N, 3, H, W), H and W at least 32, to logits (N, num_classes).

    Args:
        architecture: a value of `ARCHITECTURES`.
        flavour: a value of `FLAVOURS`.
        num_classes: how many logits.
        drop_path_rate: the probability of dropping the deepest residual branch; it rises linearly with depth from 0.
        layers: what it is built of.
    """

    def __init__(
        self,
        architecture: Architecture,
        flavour: Flavour,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
        layers: type[Layers] = Layers,
    ) -> None:
        super().__init__()
        self.layers = layers
        build = self._build = Builder(layers, flavour)
        self.architecture, self.flavour, self.num_classes = architecture, flavour, num_classes
        planes, high = architecture.planes, architecture.planes * 2
        first, second, third, fourth = architecture.depths
        parts = len(architecture.third)
        low_depths = [first, second, *[third // parts] * parts, fourth, 1]
        self._total_depth = sum(low_depths)
        self._rate = drop_path_rate
        self.num_drop_paths = 0

        self.conv1 = Chain(
            build,
            build.conv_bn(3, planes, 3, 2, bias=flavour.stem_bias)
            + [nn.ReLU()]
            + build.conv_bn(planes, planes, 3, 2, bias=flavour.stem_bias)
            + [nn.ReLU()],
        )
        depth = 0
        self.layer1 = self._stage(planes, planes, low_depths[0], 1, depth)
        depth += low_depths[0]
        self.layer2 = self._stage(planes, planes * 2, low_depths[1], 2, depth)
        depth += low_depths[1]

        exchanges = []
        for i, name in enumerate((*architecture.third, "4")):
            cin = planes * (2 if i == 0 else 4)
            cout = planes * (8 if name == "4" else 4)
            setattr(
                self,
                f"layer{name}",
                self._stage(cin, cout, low_depths[2 + i], 2 if i == 0 or name == "4" else 1, depth),
            )
            setattr(self, f"layer{name}_", self._stage(high, high, architecture.high_depths[i], 1, depth))
            setattr(self, f"compression{name}", Chain(build, build.conv_bn(cout, high, 1, 1)))
            setattr(self, f"down{name}", self._down(high, *[planes * 4, planes * 8][: 2 if name == "4" else 1]))
            exchanges.append(
                tuple(getattr(self, part + name) for part in ("layer", "compression", "down"))
                + (getattr(self, f"layer{name}_"),)
            )
            depth += low_depths[2 + i]
        self.exchanges = tuple(exchanges)
        self.upsample = layers.upsample(flavour.half_pixel_centers)

        self.layer5_ = self._bottleneck(high, high, depth)
        self.down5 = self._down(high * 2, planes * 8, planes * 16)
        self.layer5 = self._bottleneck(planes * 8, planes * 8, depth)
        self.last_layer = Chain(build, build.conv_bn(planes * 16, architecture.head_planes, 1, 1) + [nn.ReLU()])
        bound = architecture.head_planes**-0.5
        self.linear = nn.Dense(architecture.head_planes, num_classes, weight_init=Uniform(bound), bias_init="zeros")
        self.relu = nn.ReLU()

    def _drop_path(self, depth: int) -> DropPath:
        """The drop path of a unit that is number `depth` (from 0) on its way through the network."""
        self.num_drop_paths += 1
        return DropPath(self._rate * (depth + 1) / self._total_depth, column=self.num_drop_paths - 1)

    def _stage(self, cin: int, cout: int, count: int, stride: int, depth: int) -> Stage:
        return Stage(
            [
                Residual(
                    cin if i == 0 else cout,
                    cout,
                    (3, 3),
                    stride if i == 0 else 1,
                    i == 0 or i < count - 1,
                    self._drop_path(depth + i),
                    self._build,
                )
                for i in range(count)
            ]
        )

    def _bottleneck(self, cin: int, width: int, depth: int) -> Stage:
        return Stage([Residual(cin, width, (1, 3, 1), 1, True, self._drop_path(depth), self._build)])

    def _down(self, cin: int, *widths: int) -> Chain:
        cells = []
        for width in widths:
            cells += self._build.conv_bn(cin, width, 3, 2) + [nn.ReLU()]
            cin = width
        return Chain(self._build, cells[:-1])

    def construct(self, x: Tensor, uniforms: Optional[Tensor] = None) -> Tensor:
        """uniforms: None, or (N, num_drop_paths) numbers in [0, 1) that decide which residual branches are dropped."""
        x = self.layer1(self.conv1(self.layers.enter(x)), uniforms, True)
        x = self.layer2(x, uniforms, True)
        high = x
        for low_stage, compression, down, high_stage in self.exchanges:
            low = low_stage(x, uniforms)
            high = high_stage(high, uniforms)
            x = down(self.relu(high), low, True)
            high = self.relu(high + self.upsample(compression(self.relu(low)), high))
        high = self.layer5_(high, uniforms)
        x = self.last_layer(self.down5(high, self.layer5(x, uniforms), True))
        return self.linear(ops.mean(x, self.layers.spatial_axes))
