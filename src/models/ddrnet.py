"""DDRNet, the deep dual-resolution network, as an image classifier.

Two branches run side by side from an eighth of the image's size on: one keeps that resolution, the other halves it
again and again; after every stage each adds what the other has found (Hong et al., "Deep Dual-resolution Networks for
Real-time and Accurate Semantic Segmentation of Road Scenes", arXiv 2101.06085, section III and table I).

One definition serves the whole family: what differs between its members, and between the two flavours in which
weights are published, is data (`architectures.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Initializer, Normal, Uniform

from src.models.architectures import HEAD, Architecture, Flavour, drop_path_rates, stage_depths
from src.models.layers import BATCH_NORM_EPS, BATCH_NORM_MOMENTUM, Layers, convolution


class as_it_stands:
    """An attribute that a function computes whenever it is read, in graph mode when the graph is made.

    A property will not do: MindSpore takes its function for a part of the graph.
    """

    def __init__(self, compute: Callable) -> None:
        self.compute = compute

    def __get__(self, cell: Any, owner: Optional[type] = None) -> Any:
        return self if cell is None else self.compute(cell)


@dataclass(frozen=True)
class Builder:
    """Makes the layers of one network: of which set, in which flavour."""

    layers: type[Layers]
    flavour: Flavour

    def conv_bn(self, cin: int, cout: int, kernel: int, stride: int, bias: bool = False) -> list[nn.Cell]:
        """A convolution and its batch norm: (N, cin, H, W) to (N, cout, ceil(H / stride), ceil(W / stride))."""
        same = stride == 2 and self.flavour.same_padding
        conv = convolution(self.layers, cin, cout, kernel, stride, same, bias)
        return [conv, self.layers.norm(cout, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)]


class DropPath(nn.Cell):
    """Stochastic depth: which samples lose a part of a residual unit while training, and how the others make up for it.

    Huang et al., "Deep Networks with Stochastic Depth", arXiv 1603.09382, section 3. What is kept is divided by the
    probability of keeping it, so that evaluation needs no scaling.

    Args:
        rate: the probability of dropping, from 0 to below 1.
        column: of the numbers that decide.
    """

    def __init__(self, rate: float, column: int) -> None:
        super().__init__()
        self.keep = 1.0 - rate
        self.column = column
        self.active = rate > 0

    def construct(self, x: Tensor, uniforms: Optional[Tensor] = None) -> Tensor:
        """What each sample's part is multiplied by: 0 or 1 / keep, (N) of x's type.

        x: of N samples. uniforms: (N, columns) numbers in [0, 1), or None: drawn here.
        """
        draw = ops.rand((x.shape[0],)) if uniforms is None else uniforms[:, self.column]
        return ops.cast(draw < self.keep, x.dtype) / self.keep


class Residual(nn.Cell):
    """A residual unit: kernels (3, 3) are the basic block, (1, 3, 1) the bottleneck, twice as wide at its end.

    Its convolutions are conv1, conv2, ..., their norms bn1, bn2, ...; behind all but the last stands a ReLU.
    """

    def __init__(
        self,
        cin: int,
        width: int,
        kernels: Sequence[int],
        stride: int,
        last_relu: bool,
        drop_path: DropPath,
        drops_shortcut: bool,
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
            self.downsample = Chain(build.layers, build.conv_bn(cin, cout, 1, stride))
        self.last_relu = last_relu
        self.drop_path = drop_path
        self.drops_shortcut = drops_shortcut
        self.block = build.layers.block

    @as_it_stands
    def blocks(self) -> tuple[tuple[nn.Cell, nn.Cell], ...]:
        """The convolutions, each with the norm that is called on what it gives."""
        numbers = range(1, self.depth + 1)
        return tuple((getattr(self, f"conv{i}"), getattr(self, f"bn{i}")) for i in numbers)

    def construct(self, x: Tensor, uniforms: Optional[Tensor] = None, relu: bool = False) -> Tensor:
        """x (N, C, H, W); uniforms as `DropPath` takes them; relu: end with a ReLU in any case."""
        relu = relu or self.last_relu
        shortcut = self.downsample(x) if self.has_projection else x
        for conv, norm in self.blocks[:-1]:
            x = self.block(conv, norm, x, None, True)
        conv, norm = self.blocks[-1]
        if not (self.drop_path.active and self.training):
            return self.block(conv, norm, x, shortcut, relu)
        return self.block(conv, norm, x, shortcut, relu, self.drop_path(x, uniforms), self.drops_shortcut)


class Stage(nn.SequentialCell):
    """Residual units in a row: the first changes resolution and channels, the last ends without a ReLU."""

    def __init__(self, layers: type[Layers], cells: list[nn.Cell]) -> None:
        super().__init__(cells)
        self.call, self.relu = layers.call, layers.relu

    def construct(self, x: Tensor, uniforms: Optional[Tensor] = None, relu: bool = False) -> Tensor:
        """`relu`: end with a ReLU all the same."""
        for i, cell in enumerate(self.cell_list):
            last_relu = relu and i == len(self.cell_list) - 1
            if isinstance(cell, Residual):
                x = cell(x, uniforms, last_relu)
            else:
                x = self.call(cell, x)
                if last_relu:
                    x = self.relu(x)
        return x


class Chain(nn.SequentialCell):
    """Any cells in a row. A convolution, its norm and a ReLU right behind it run as one block of the layers."""

    def __init__(self, layers: type[Layers], cells: list[nn.Cell]) -> None:
        super().__init__(cells)
        self.layers = layers
        self.block, self.call = layers.block, layers.call

    @as_it_stands
    def steps(self) -> tuple[tuple[bool, nn.Cell, nn.Cell, bool], ...]:
        """What runs: (True, convolution, norm, whether a ReLU is behind them) or (False, a cell, the same, False).

        Only the very classes count, as a class derived from them may compute something else.
        """
        cells, steps, i = list(self.cell_list), [], 0
        while i < len(cells):
            kinds = [*map(type, cells[i : i + 3]), None, None]
            if kinds[0] in self.layers.convs and kinds[1] in self.layers.norms:
                relu = kinds[2] is nn.ReLU
                steps.append((True, cells[i], cells[i + 1], relu))
                i += 3 if relu else 2
            else:
                steps.append((False, cells[i], cells[i], False))
                i += 1
        return tuple(steps)

    @as_it_stands
    def blocks(self) -> tuple[tuple[nn.Cell, nn.Cell], ...]:
        """The convolutions, each with the norm that is called on what it gives, where one is."""
        return tuple((conv, norm) for is_block, conv, norm, _ in self.steps if is_block)

    def construct(self, x: Tensor, shortcut: Optional[Tensor] = None, relu: bool = False) -> Tensor:
        """x (N, C, H, W) through the cells; shortcut: is added to what they give; relu: then a ReLU."""
        added = shortcut is None
        relued = not relu
        for i, step in enumerate(self.steps):
            is_block, conv, norm, own_relu = step
            if is_block and i == len(self.steps) - 1 and not own_relu:
                x = self.block(conv, norm, x, shortcut, relu)
                added, relued = True, True
            elif is_block:
                x = self.block(conv, norm, x, None, own_relu)
            else:
                x = self.call(conv, x)
        if not added:
            x = self.layers.add(x, shortcut)
        return x if relued else self.layers.relu(x)


class DDRNet(nn.Cell):
    """The classifier: float32 (N, 3, H, W), H and W at least 32, to logits (N, num_classes).

    Args:
        architecture: a value of `ARCHITECTURES`.
        flavour: a value of `FLAVOURS`.
        num_classes: how many logits.
        drop_path_rate: the probability with which the last residual units drop a part of themselves in training;
            `drop_path_rates` has those of the others.
        layers: what it is built of.
        drop_path_on: which part, "branch" or "shortcut".

    Attributes:
        num_drop_paths: residual units, each of which takes a column of `uniforms`.
    """

    def __init__(
        self,
        architecture: Architecture,
        flavour: Flavour,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
        layers: type[Layers] = Layers,
        drop_path_on: str = "branch",
    ) -> None:
        super().__init__()
        self.layers = layers
        build = self._build = Builder(layers, flavour)
        self.architecture, self.flavour, self.num_classes = architecture, flavour, num_classes
        planes, high = architecture.planes, architecture.planes * 2
        self._depths = stage_depths(architecture)
        self._rates = drop_path_rates(architecture, drop_path_rate, drop_path_on)
        self._drops_shortcut = drop_path_on == "shortcut"
        self.num_drop_paths = 0

        self.conv1 = Chain(
            layers,
            build.conv_bn(3, planes, 3, 2, bias=flavour.stem_bias)
            + [nn.ReLU()]
            + build.conv_bn(planes, planes, 3, 2, bias=flavour.stem_bias)
            + [nn.ReLU()],
        )
        self.layer1 = self._stage("layer1", planes, planes, 1)
        self.layer2 = self._stage("layer2", planes, planes * 2, 2)
        exchanges = []
        for i, name in enumerate((*architecture.third, "4")):
            cin = planes * (2 if i == 0 else 4)
            cout = planes * (8 if name == "4" else 4)
            low, beside = f"layer{name}", f"layer{name}_"
            setattr(self, low, self._stage(low, cin, cout, 2 if i == 0 or name == "4" else 1))
            setattr(self, beside, self._stage(beside, high, high, 1))
            setattr(self, f"compression{name}", Chain(layers, build.conv_bn(cout, high, 1, 1)))
            setattr(self, f"down{name}", self._down(high, *[planes * 4, planes * 8][: 2 if name == "4" else 1]))
            exchanges.append((low, f"compression{name}", f"down{name}", beside))
        self._exchanges = exchanges
        self.upsample = layers.upsample(flavour.half_pixel_centers)

        self.layer5_ = self._stage("layer5_", high, high, 1, (1, 3, 1))
        self.down5 = self._down(high * 2, planes * 8, planes * 16)
        self.layer5 = self._stage("layer5", planes * 8, planes * 8, 1, (1, 3, 1))
        self.last_layer = Chain(layers, build.conv_bn(planes * 16, architecture.head_planes, 1, 1) + [nn.ReLU()])
        start = _head_start(flavour, architecture.head_planes)
        setattr(self, HEAD, nn.Dense(architecture.head_planes, num_classes, weight_init=start, bias_init="zeros"))

    def _stage(self, name: str, cin: int, width: int, stride: int, kernels: Sequence[int] = (3, 3)) -> Stage:
        units = []
        depth = self._depths[name]
        for i, rate in enumerate(self._rates[name]):
            drop_path = DropPath(rate, self.num_drop_paths)
            self.num_drop_paths += 1
            ends_open = depth > 1 and i == depth - 1
            units.append(
                Residual(
                    cin if i == 0 else width,
                    width,
                    kernels,
                    stride if i == 0 else 1,
                    not ends_open,
                    drop_path,
                    self._drops_shortcut,
                    self._build,
                )
            )
        return Stage(self.layers, units)

    def _down(self, cin: int, *widths: int) -> Chain:
        cells = []
        for width in widths:
            cells += [*self._build.conv_bn(cin, width, 3, 2), nn.ReLU()]
            cin = width
        return Chain(self.layers, cells[:-1])

    @as_it_stands
    def exchanges(self) -> tuple[tuple[nn.Cell, ...], ...]:
        """From stage 3 on, part by part: the low-resolution stage, what leaves it, what enters it, the stage beside."""
        return tuple(tuple(getattr(self, name) for name in names) for names in self._exchanges)

    def construct(self, x: Tensor, uniforms: Optional[Tensor] = None) -> Tensor:
        """uniforms: None, or (N, num_drop_paths) numbers in [0, 1) that decide what drop path drops."""
        x = self.layer1(self.conv1(self.layers.enter(x)), uniforms, True)
        x = self.layer2(x, uniforms, True)
        high = x
        for low_stage, compression, down, high_stage in self.exchanges:
            low = low_stage(x, uniforms)
            high = high_stage(high, uniforms)
            x = down(self.layers.relu(high), low, True)
            high = self.layers.merge(self.upsample, compression(self.layers.relu(low)), high)
        high = self.layer5_(high, uniforms)
        x = self.last_layer(self.down5(high, self.layer5(x, uniforms), True))
        return getattr(self, HEAD)(self.layers.pool(x))


def _head_start(flavour: Flavour, inputs: int) -> Initializer:
    return Uniform(inputs**-0.5) if flavour.head_deviation is None else Normal(flavour.head_deviation)
