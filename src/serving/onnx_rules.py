"""One rule an operator: what a MindSpore primitive is in ONNX (opset 17, https://onnx.ai/onnx/operators).

A rule is a function of the graph under construction, of the primitive's tensors in their order, and, by keyword, of its
attributes; a "function" primitive passes the same attributes as its last inputs, in the order in which the rule names
them. A rule adds nodes and returns the tensor, or the tuple of tensors, that stands for the primitive's output.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Optional, Protocol

import numpy as np

from src.errors import UserError


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value of the graph: its name there, its shape at the batch size that was exported, a parameter's values."""

    name: str
    shape: tuple[int, ...] = ()
    data: Optional[np.ndarray] = None


class Graph(Protocol):
    """What a rule may ask of the graph that it adds to."""

    dynamic_batch: bool

    def add(self, op_type: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; inputs are tensors, numbers, arrays or None for one left out. Returns its output or outputs."""

    def add_bias(self, x: Tensor, bias: Tensor) -> Optional[Tensor]:
        """Give the convolution or matrix product that made `x` this bias; None where it cannot have it."""


RULES: dict[str, Callable] = {}


def rule(*primitives: str) -> Callable[[Callable], Callable]:
    """Register a function as the rule of these primitives."""

    def register(function: Callable) -> Callable:
        RULES.update(dict.fromkeys(primitives, function))
        return function

    return register


def _register_same(**op_types: str) -> None:
    """Primitives that are one ONNX operator, of the same inputs in the same order."""
    for primitive, op_type in op_types.items():
        RULES[primitive] = partial(_same, op_type)


def _same(op_type: str, graph: Graph, *inputs: Any) -> Tensor:
    return graph.add(op_type, *inputs)


_register_same(
    Abs="Abs",
    Add="Add",
    Adds="Add",
    Div="Div",
    Divs="Div",
    Erf="Erf",
    Exp="Exp",
    Flatten="Flatten",
    HSwish="HardSwish",
    Log="Log",
    Maximum="Max",
    Minimum="Min",
    Mul="Mul",
    Muls="Mul",
    Neg="Neg",
    Pow="Pow",
    RealDiv="Div",
    ReLU="Relu",
    Sigmoid="Sigmoid",
    Sqrt="Sqrt",
    Sub="Sub",
    Subs="Sub",
    Tanh="Tanh",
)


# What holds a graph together and computes nothing: monads order side effects, of which inference has none.


@rule("Load", "Depend", "Identity")
def _first(graph: Graph, x: Any, *order: Any) -> Any:
    return x


@rule("UpdateState")
def _nothing(graph: Graph, *order: Any) -> None:
    return None


@rule("MakeTuple")
def _tuple(graph: Graph, *items: Any) -> tuple:
    return items


@rule("TupleGetItem")
def _item(graph: Graph, items: tuple, *, index: int) -> Any:
    return items[index]


# Convolution, normalisation, pooling, resizing


@rule("Conv2D")
def _convolution(
    graph: Graph,
    x: Tensor,
    weight: Tensor,
    *,
    pad_list: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    group: int,
    format: Any,
) -> Tensor:
    _channels_first(format)
    top, bottom, left, right = pad_list
    return graph.add(
        "Conv",
        x,
        weight,
        pads=[top, left, bottom, right],
        strides=list(stride[2:]),
        dilations=list(dilation[2:]),
        group=group,
        kernel_shape=list(weight.shape[2:]),
    )


@rule("BiasAdd")
def _bias(graph: Graph, x: Tensor, bias: Tensor, *, data_format: Any) -> Tensor:
    _channels_first(data_format)
    return graph.add_bias(x, bias) or graph.add("Add", x, _over_channels(bias, len(x.shape)))


@rule("BatchNorm")
def _batch_norm(
    graph: Graph,
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    is_training: bool,
    epsilon: float,
    momentum: float,
    data_format: Any,
) -> tuple[Tensor]:
    _channels_first(data_format)
    if is_training:
        raise UserError("in training mode")
    return (graph.add("BatchNormalization", x, gamma, beta, mean, variance, epsilon=epsilon),)


@rule("LayerNorm")
def _layer_norm(
    graph: Graph,
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    begin_norm_axis: int,
    begin_params_axis: int,
    epsilon: float,
) -> tuple[Tensor]:
    return (graph.add("LayerNormalization", x, gamma, beta, axis=begin_norm_axis, epsilon=epsilon),)


@rule("MaxPool")
def _max_pool(
    graph: Graph, x: Tensor, *, kernel_size: Sequence[int], strides: Sequence[int], pad_mode: str, format: Any
) -> Tensor:
    _channels_first(format)
    kernel, stride = list(kernel_size[2:]), list(strides[2:])
    pads = _same_pads(x.shape[2:], kernel, stride) if str(pad_mode).upper() == "SAME" else [0] * 4
    return graph.add("MaxPool", x, kernel_shape=kernel, strides=stride, pads=pads)


@rule("MaxPool3DWithArgmax")
def _max_pool_3d(
    graph: Graph,
    x: Tensor,
    *,
    ksize: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    format: Any,
) -> tuple[Tensor]:
    _channels_first(format)
    return (
        graph.add(
            "MaxPool",
            x,
            kernel_shape=list(ksize),
            strides=list(strides),
            pads=[*pads, *pads],
            dilations=list(dilation),
            ceil_mode=int(ceil_mode),
        ),
    )


@rule("AvgPool")
def _average_pool(
    graph: Graph, x: Tensor, *, kernel_size: Sequence[int], strides: Sequence[int], pad_mode: int, data_format: Any
) -> Tensor:
    _channels_first(data_format)
    kernel, stride = list(kernel_size[-2:]), list(strides[-2:])
    same = pad_mode == 1 or str(pad_mode).upper() == "SAME"
    pads = _same_pads(x.shape[2:], kernel, stride) if same else [0] * 4
    return graph.add("AveragePool", x, kernel_shape=kernel, strides=stride, pads=pads)


@rule("AdaptiveAvgPool2D")
def _adaptive_average_pool(graph: Graph, x: Tensor, *, output_size: Sequence[int]) -> Tensor:
    if tuple(output_size) == (1, 1):
        return graph.add("GlobalAveragePool", x)
    if any(size_in % size_out for size_in, size_out in zip(x.shape[2:], output_size)):
        raise UserError(f"to {output_size}, which does not divide {x.shape[2:]}")
    kernel = [size_in // size_out for size_in, size_out in zip(x.shape[2:], output_size)]
    return graph.add("AveragePool", x, kernel_shape=kernel, strides=kernel)


@rule("ResizeBilinearV2")
def _resize_bilinear(
    graph: Graph, x: Tensor, *, size: Sequence[int], align_corners: bool, half_pixel_centers: bool
) -> Tensor:
    if align_corners and half_pixel_centers:
        raise UserError("with align_corners and half_pixel_centers at once")
    coordinates = "align_corners" if align_corners else "half_pixel" if half_pixel_centers else "asymmetric"
    return _resize(graph, x, size, mode="linear", coordinate_transformation_mode=coordinates)


@rule("ResizeNearestNeighborV2")
def _resize_nearest(
    graph: Graph, x: Tensor, *, size: Sequence[int], align_corners: bool, half_pixel_centers: bool
) -> Tensor:
    if align_corners or half_pixel_centers:
        raise UserError("with align_corners or half_pixel_centers")
    return _resize(graph, x, size, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")


def _resize(graph: Graph, x: Tensor, size: Sequence[int], **attributes: Any) -> Tensor:
    """Resize height and width. With a fixed batch the sizes are a constant, as Ascend's converter wants them."""
    if graph.dynamic_batch:
        sizes = graph.add("Concat", graph.add("Shape", x, start=0, end=2), np.array(size, np.int64), axis=0)
    else:
        sizes = np.array([*x.shape[:2], *size], np.int64)
    return graph.add("Resize", x, None, None, sizes, **attributes)


# Activations that are more than one operator


@rule("ReLU6")
def _relu6(graph: Graph, x: Tensor) -> Tensor:
    return graph.add("Clip", x, 0.0, 6.0)


@rule("SiLU")
def _silu(graph: Graph, x: Tensor) -> Tensor:
    return graph.add("Mul", x, graph.add("Sigmoid", x))


@rule("Mish")
def _mish(graph: Graph, x: Tensor) -> Tensor:
    return graph.add("Mul", x, graph.add("Tanh", graph.add("Softplus", x)))


@rule("HSigmoid")
def _hard_sigmoid(graph: Graph, x: Tensor) -> Tensor:
    return graph.add("HardSigmoid", x, alpha=1 / 6, beta=0.5)


@rule("Elu")
def _elu(graph: Graph, x: Tensor, *, alpha: float) -> Tensor:
    return graph.add("Elu", x, alpha=alpha)


@rule("PReLU")
def _prelu(graph: Graph, x: Tensor, slope: Tensor) -> Tensor:
    return graph.add("PRelu", x, _over_channels(slope, len(x.shape)))


@rule("GeLU")
def _gelu(graph: Graph, x: Tensor) -> Tensor:
    """By its tangent: MindSpore's exact one is Erf and products."""
    cubed = graph.add("Mul", graph.add("Mul", graph.add("Mul", x, x), x), 0.044715)
    bent = graph.add("Tanh", graph.add("Mul", graph.add("Add", x, cubed), math.sqrt(2 / math.pi)))
    return graph.add("Mul", graph.add("Mul", x, 0.5), graph.add("Add", bent, 1.0))


@rule("Softmax")
def _softmax(graph: Graph, x: Tensor, *, axis: Any) -> Tensor:
    axes = axis if isinstance(axis, tuple) else (axis,)
    if len(axes) != 1:
        raise UserError(f"over the axes {axes} at once")
    return graph.add("Softmax", x, axis=axes[0])


# Products, sums, shapes


@rule("MatMul")
def _matrix_product(graph: Graph, a: Tensor, b: Tensor, *, transpose_a: bool, transpose_b: bool) -> Tensor:
    return graph.add("Gemm", a, b, transA=int(transpose_a), transB=int(transpose_b))


@rule("ReduceMean")
def _mean(graph: Graph, x: Tensor, *, axis: Any, keep_dims: bool) -> Tensor:
    return graph.add("ReduceMean", x, axes=_axes(axis, x), keepdims=int(keep_dims))


@rule("MeanExt")
def _mean_ext(graph: Graph, x: Tensor, *, dim: Any, keepdim: bool, dtype: Any) -> Tensor:
    return _mean(graph, x, axis=dim, keep_dims=keepdim)


@rule("SumExt")
def _sum_ext(graph: Graph, x: Tensor, *, dim: Any, keepdim: bool, dtype: Any) -> Tensor:
    return _sum(graph, x, axis=dim, keep_dims=keepdim, skip_mode=False)


@rule("ReduceMax")
def _maximum(graph: Graph, x: Tensor, *, axis: Any, keep_dims: bool) -> Tensor:
    return graph.add("ReduceMax", x, axes=_axes(axis, x), keepdims=int(keep_dims))


@rule("ReduceSum")
def _sum(graph: Graph, x: Tensor, *, axis: Any, keep_dims: bool, skip_mode: bool) -> Tensor:
    return graph.add("ReduceSum", x, np.array(_axes(axis, x), np.int64), keepdims=int(keep_dims))


@rule("Reshape")
def _reshape(graph: Graph, x: Tensor, *, shape: Sequence[int]) -> Tensor:
    """With a dynamic batch the first dimension, whatever of the batch is in it, follows from the others."""
    sizes = list(shape)
    if graph.dynamic_batch and x.data is None:
        if -1 in sizes[1:]:
            sizes[sizes.index(-1)] = math.prod(x.shape) // -math.prod(sizes)
        sizes[0] = -1
    return graph.add("Reshape", x, np.array(sizes, np.int64))


@rule("Transpose")
def _transpose(graph: Graph, x: Tensor, *, perm: Sequence[int]) -> Tensor:
    return graph.add("Transpose", x, perm=list(perm))


@rule("Concat")
def _concatenate(graph: Graph, items: Sequence[Tensor], *, axis: int) -> Tensor:
    return graph.add("Concat", *items, axis=axis)


@rule("Split")
def _split(graph: Graph, x: Tensor, *, axis: int, output_num: int) -> Any:
    parts = graph.add("Split", x, outputs=output_num, axis=axis)
    return parts if isinstance(parts, tuple) else (parts,)


@rule("ExpandDims")
def _expand(graph: Graph, x: Tensor, *, axis: int) -> Tensor:
    return graph.add("Unsqueeze", x, np.array([axis], np.int64))


@rule("Squeeze")
def _squeeze(graph: Graph, x: Tensor, *, axis: Any) -> Tensor:
    axes = axis if isinstance(axis, tuple) else (axis,)
    return graph.add("Squeeze", x, np.array(axes, np.int64) if axes else None)


@rule("StridedSlice")
def _slice(
    graph: Graph,
    x: Tensor,
    *,
    begin: Sequence[int],
    end: Sequence[int],
    strides: Sequence[int],
    begin_mask: int,
    end_mask: int,
    ellipsis_mask: int,
    new_axis_mask: int,
    shrink_axis_mask: int,
) -> Tensor:
    if ellipsis_mask or new_axis_mask or shrink_axis_mask:
        raise UserError("that changes the number of dimensions")
    if min(strides) < 1:
        raise UserError("backwards")
    first = [0 if begin_mask >> axis & 1 else at for axis, at in enumerate(begin)]
    last = [np.iinfo(np.int64).max if end_mask >> axis & 1 else at for axis, at in enumerate(end)]
    return graph.add("Slice", x, *(np.array(v, np.int64) for v in (first, last, range(len(begin)), strides)))


@rule("PadV3")
def _pad(
    graph: Graph, x: Tensor, *, mode: str, paddings_contiguous: bool, paddings: Sequence[int], value: Any = 0.0
) -> Tensor:
    """The paddings are pairs, of the last axis first."""
    if mode != "constant" or not paddings_contiguous:
        raise UserError(f"in mode {mode}")
    free = [0] * (len(x.shape) - len(paddings) // 2)
    pads = [*free, *paddings[-2::-2], *free, *paddings[::-2]]
    return graph.add("Pad", x, np.array(pads, np.int64), np.float32(value))


def _channels_first(layout: Any) -> None:
    if layout not in ("NCHW", "NCDHW", 0):
        raise UserError(f"in the layout {layout}, not NCHW")


def _axes(axis: Any, x: Tensor) -> list[int]:
    axes = axis if isinstance(axis, tuple) else () if axis is None else (axis,)
    return list(axes or range(len(x.shape)))


def _same_pads(sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> list[int]:
    """As little as is needed, at the end first: top, left, bottom, right."""
    missing = [max(0, (-(-size // s) - 1) * s + k - size) for size, k, s in zip(sizes, kernel, stride)]
    return [total // 2 for total in missing] + [total - total // 2 for total in missing]


def _over_channels(values: Tensor, rank: int) -> np.ndarray:
    """A parameter of a number a channel, (C,), in a shape that spreads over (N, C, ...) of this rank."""
    if values.data is None:
        raise UserError("with computed numbers a channel")
    return values.data.reshape(-1, *[1] * (rank - 2))
