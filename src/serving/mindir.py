"""Lowering a MindIR file to format version 1, the newest that MindSpore Lite up to 2.0 reads.

MindIR is a protocol buffer (`mindspore.train.mind_ir_pb2`): a list of nodes, each naming a primitive, and a list of
primitives with their attributes. From version 2 on, a primitive may be a "function": what used to be its attributes
(a batch norm's epsilon, a matrix product's transpositions) are then trailing inputs, usually constants. Version 1
knows attributes only, so lowering moves those constants back. A runtime of that age also drops half-pixel sampling from
bilinear resizing without a word; such a resizing is written as two matrix products, which every runtime computes alike.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Optional

import numpy as np
from google.protobuf.message import DecodeError
from mindspore.train import mind_ir_pb2 as mindir

from src.errors import UserError
from src.files import atomic_write, read_bytes

LARGEST = 2**31 - 1  # bytes of a file: protobuf's own limit
LOWERED_VERSION = 1

# Function primitives of today's MindSpore: the attributes that their last inputs were in version 1, in order.
# Those without any differ from version 1 in their mark alone.
TRAILING_ATTRIBUTES = {
    "Add": (),
    "BatchNorm": ("is_training", "epsilon", "momentum", "data_format"),
    "BiasAdd": ("data_format",),
    "MatMul": ("transpose_a", "transpose_b"),
    "Mul": (),
    "ReduceMean": ("keep_dims",),
    "ReLU": (),
    "Reshape": (),
    "ResizeBilinearV2": ("size", "align_corners", "half_pixel_centers"),
    "Transpose": (),
}
DATA_FORMATS = ("NCHW", "NHWC")  # the numbers 0 and 1, where a function primitive takes its format as one


def lower_mindir(path_in: str, path_out: str) -> None:
    """Rewrite a MindIR file so that runtimes for format version 1 read it and compute the same.

    Args:
        path_in: a MindIR file of any version up to 3; one of version 1 is written unchanged.
        path_out: where to write; may equal `path_in`.

    Raises:
        UserError: `path_in` cannot be read, is no MindIR file, or holds something that version 1 cannot express;
            the message names the primitive and the node; or `path_out` cannot be written.
    """
    model = read_mindir(path_in)
    if model.mind_ir_version > LOWERED_VERSION:
        try:
            _lower(model)
        except UserError as error:
            raise UserError(f"{path_in}: cannot be lowered to MindIR version {LOWERED_VERSION}: {error}") from error
        data = model.SerializeToString()
    else:
        data = read_bytes(path_in, LARGEST)
    with atomic_write(path_out) as temporary:
        temporary.write_bytes(data)


def read_mindir(path: str) -> mindir.ModelProto:
    """The message that a MindIR file holds.

    Raises:
        UserError: the file cannot be read, or is no MindIR file.
    """
    data = read_bytes(path, LARGEST)
    model = mindir.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise UserError(f"{path}: not a MindIR file, or a damaged one") from error
    if not model.graph.node:
        raise UserError(f"{path}: not a MindIR file, or a damaged one (it has no nodes)")
    return model


def half_pixel_matrix(size_in: int, size_out: int) -> np.ndarray:
    """The float32 (size_in, size_out) matrix that resizes a row of samples linearly with half-pixel centres.

    Output j samples the input at (j + 1/2) * size_in / size_out - 1/2, held to the first and last sample.
    """
    at = np.clip((np.arange(size_out) + 0.5) * size_in / size_out - 0.5, 0, size_in - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, size_in - 1)
    share = at - low
    matrix = np.zeros((size_in, size_out))
    np.add.at(matrix, (low, np.arange(size_out)), 1 - share)
    np.add.at(matrix, (high, np.arange(size_out)), share)
    return matrix.astype(np.float32)


def _lower(model: mindir.ModelProto) -> None:
    """Rewrite the message in place."""
    if model.functions:
        raise UserError(f"the graph calls the sub-graph {model.functions[0].name}")
    graph = _Graph(model)
    for node in list(model.graph.node):
        if node.op_type == "Constant":
            continue
        primitive = graph.primitive(node)
        if primitive.prim_type != mindir.PrimitiveProto.PRIMITIVE_FUNCTION:
            continue
        if primitive.op_type not in TRAILING_ATTRIBUTES:
            raise UserError(f"{primitive.op_type} (node {node.name})")
        primitive = graph.own_primitive(node)
        _inputs_to_attributes(graph, node, primitive)
        primitive.prim_type = mindir.PrimitiveProto.PRIMITIVE
        if primitive.op_type == "ResizeBilinearV2":
            _lower_resize(graph, node, primitive)
    graph.drop_unused()
    model.mind_ir_version = LOWERED_VERSION


class _Graph:
    """The message with what is looked up in it again and again."""

    def __init__(self, model: mindir.ModelProto) -> None:
        self.model = model
        self.primitives = {primitive.name: primitive for primitive in model.primitives}
        self.constants = {node.output[0]: node for node in model.graph.node if node.op_type == "Constant"}
        self.nodes = {node.output[0]: node for node in model.graph.node if node.op_type != "Constant"}
        self.users = Counter(node.op_type for node in model.graph.node)
        self.shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.parameter}
        for value in model.graph.input:
            self.shapes[value.name] = tuple(value.tensor[0].dims) if value.tensor else ()

    def primitive(self, node: mindir.NodeProto) -> mindir.PrimitiveProto:
        name = node.op_type.partition("REF::")[2]
        if name not in self.primitives:
            raise UserError(f"node {node.name} refers to the primitive {node.op_type}, which the file lacks")
        return self.primitives[name]

    def own_primitive(self, node: mindir.NodeProto) -> mindir.PrimitiveProto:
        """The node's primitive, for this node alone: nodes share one, but not the constants that become attributes."""
        primitive = self.primitive(node)
        if self.users[node.op_type] == 1:
            return primitive
        self.users[node.op_type] -= 1
        node.op_type = self.add_primitive(primitive.op_type, primitive)
        return self.primitive(node)

    def add_primitive(self, op_type: str, like: Optional[mindir.PrimitiveProto] = None) -> str:
        """A new primitive; returns what a node's op_type must be to refer to it."""
        name = f"{op_type}:lowered_{len(self.primitives)}"
        primitive = self.model.primitives.add()
        if like is not None:
            primitive.CopyFrom(like)
        else:
            primitive.prim_type = mindir.PrimitiveProto.PRIMITIVE
        primitive.name, primitive.op_type = name, op_type
        self.primitives[name] = primitive
        reference = f"REF::{name}"
        self.users[reference] += 1
        return reference

    def shape(self, name: str) -> tuple[int, ...]:
        """The static shape of a tensor: of an input, of a parameter, or noted at the node that makes it."""
        shape = self.shapes.get(name)
        if shape is None and name in self.nodes:
            for attribute in self.nodes[name].attribute:
                if attribute.name == "shape" and len(attribute.tensors) == 1:
                    shape = tuple(attribute.tensors[0].dims)
        if not shape or min(shape) < 1:
            raise UserError(f"the shape of {name} is not static")
        return shape

    def add_constant(self, name: str, value: Any) -> str:
        """A constant node: an array becomes a tensor, a tuple of integers a tuple. Returns its output's name."""
        node = mindir.NodeProto(name=name, op_type="Constant", output=[name])
        attribute = node.attribute.add(name="value")
        if isinstance(value, np.ndarray):
            attribute.type = mindir.AttributeProto.TENSORS
            attribute.tensors.add(
                name=name, dims=value.shape, data_type=mindir.TensorProto.FLOAT, raw_data=value.tobytes()
            )
        else:
            _write(attribute, value)
        self.model.graph.node.insert(0, node)
        self.constants[name] = node
        return name

    def drop_unused(self) -> None:
        """Remove constants and primitives that nothing refers to any more."""
        used = {name for node in self.model.graph.node for name in node.input}
        used |= {value.name for value in self.model.graph.output}
        _keep(self.model.graph.node, lambda node: node.op_type != "Constant" or node.output[0] in used)
        references = {node.op_type for node in self.model.graph.node}
        _keep(self.model.primitives, lambda primitive: f"REF::{primitive.name}" in references)


def _inputs_to_attributes(graph: _Graph, node: mindir.NodeProto, primitive: mindir.PrimitiveProto) -> None:
    """Move a node's trailing constant inputs into its primitive's attributes."""
    names = TRAILING_ATTRIBUTES[primitive.op_type]
    if not names:
        return
    if len(node.input) <= len(names):
        raise UserError(f"{primitive.op_type} (node {node.name}) has only {len(node.input)} inputs")
    for name, source in zip(names, list(node.input[-len(names) :])):
        value = _constant(graph, node, primitive.op_type, name, source)
        if name == "data_format":
            name = "format"
            if isinstance(value, int):
                if value not in range(len(DATA_FORMATS)):
                    raise UserError(f"{primitive.op_type} (node {node.name}): unknown data format {value}")
                value = DATA_FORMATS[value]
        if name == "is_training" and value:
            raise UserError(f"BatchNorm (node {node.name}) in training mode")
        _set_attribute(primitive, name, value)
        if name in ("transpose_a", "transpose_b"):
            _set_attribute(primitive, "transpose_x1" if name == "transpose_a" else "transpose_x2", value)
    del node.input[-len(names) :]


def _constant(graph: _Graph, node: mindir.NodeProto, op_type: str, name: str, source: str) -> Any:
    constant = graph.constants.get(source)
    if constant is None:
        raise UserError(f"{op_type} (node {node.name}): {name} is computed, not constant")
    return attribute_value(constant.attribute[0])


def _lower_resize(graph: _Graph, node: mindir.NodeProto, primitive: mindir.PrimitiveProto) -> None:
    """ResizeBilinearV2 as version 1's ResizeBilinear, or as two matrix products where it samples half-pixel centres."""
    primitive.op_type = "ResizeBilinear"
    attributes = {attribute.name: attribute_value(attribute) for attribute in primitive.attribute}
    if not attributes["half_pixel_centers"]:
        return
    if attributes["align_corners"]:
        raise UserError(f"ResizeBilinearV2 (node {node.name}) with align_corners and half_pixel_centers at once")
    count, channels, height, width = graph.shape(node.input[0])
    new_height, new_width = attributes["size"]
    images = count * channels
    # (N, C, H, W): the columns first, then, transposed, the rows. Both products are of two matrices.
    steps = (
        ("Reshape", (images * height, width)),
        ("MatMul", half_pixel_matrix(width, new_width)),
        ("Reshape", (images, height, new_width)),
        ("Transpose", (0, 2, 1)),
        ("Reshape", (images * new_width, height)),
        ("MatMul", half_pixel_matrix(height, new_height)),
        ("Reshape", (images, new_width, new_height)),
        ("Transpose", (0, 2, 1)),
        ("Reshape", (count, channels, new_height, new_width)),
    )
    position = next(i for i, other in enumerate(graph.model.graph.node) if other is node)
    source = node.input[0]
    shape: tuple[int, ...] = (count, channels, height, width)
    for number, (op_type, operand) in enumerate(steps):
        name = f"{node.output[0]}:lowered_{number}"
        shape = _shape_after(op_type, shape, operand)
        step = mindir.NodeProto(
            name=name,
            op_type=graph.add_primitive(op_type),
            input=[source, graph.add_constant(f"{name}:operand", operand)],
            output=[name],
            domain=f"{node.domain}/{op_type}{number}",
        )
        noted = step.attribute.add(name="shape", type=mindir.AttributeProto.TENSORS)
        noted.tensors.add(dims=shape, data_type=mindir.TensorProto.FLOAT)
        lowered = graph.primitives[step.op_type.partition("REF::")[2]]
        if op_type == "MatMul":
            for attribute in ("transpose_a", "transpose_b", "transpose_x1", "transpose_x2"):
                _set_attribute(lowered, attribute, False)
        position += 1  # the constant that has just been put at the front
        graph.model.graph.node.insert(position, step)
        position += 1
        graph.nodes[name] = step
        source = name
    last = graph.model.graph.node[position - 1]
    last.output[0] = last.name = node.output[0]
    graph.nodes[last.name] = last
    graph.users[node.op_type] -= 1
    del graph.model.graph.node[position]


def _shape_after(op_type: str, shape: tuple[int, ...], operand: Any) -> tuple[int, ...]:
    if op_type == "Reshape":
        return operand
    if op_type == "MatMul":
        return (shape[0], operand.shape[1])
    return tuple(shape[axis] for axis in operand)


def _keep(messages: Any, wanted: Any) -> None:
    """Drop the messages of a repeated field that are not wanted, in place."""
    for index in reversed(range(len(messages))):
        if not wanted(messages[index]):
            del messages[index]


def _set_attribute(primitive: mindir.PrimitiveProto, name: str, value: Any) -> None:
    for attribute in primitive.attribute:
        if attribute.name == name:
            attribute.Clear()
            break
    else:
        attribute = primitive.attribute.add()
    attribute.name = name
    _write(attribute, value)


def attribute_value(attribute: mindir.AttributeProto) -> Any:
    """The Python value of an attribute: a number, a bool, a text, an array, or a tuple of these."""
    kinds = mindir.AttributeProto
    if attribute.type == kinds.BOOL:
        return bool(attribute.i)
    if attribute.type in (kinds.TUPLE, kinds.LIST):
        return tuple(attribute_value(item) for item in attribute.values)
    if attribute.type == kinds.STRING:
        return attribute.s.decode()
    if attribute.type == kinds.FLOAT:
        return float(attribute.f)
    if attribute.type == kinds.DOUBLE:
        return float(attribute.d)
    if attribute.type == kinds.TENSORS and len(attribute.tensors) == 1:
        return tensor_value(attribute.tensors[0])
    if attribute.type in (kinds.INT32, kinds.INT64):
        return attribute.i if attribute.HasField("i") else attribute.ints[0]
    raise UserError(f"a constant of type {kinds.AttributeType.Name(attribute.type)}")


def tensor_value(tensor: mindir.TensorProto) -> np.ndarray:
    """A parameter's or a constant's values, float32 of its shape."""
    if tensor.data_type != mindir.TensorProto.FLOAT:
        kind = mindir.TensorProto.DataType.Name(tensor.data_type)
        raise UserError(f"{tensor.name.rpartition(':')[2]} is of type {kind}, not FLOAT")
    return np.frombuffer(tensor.raw_data, np.float32).reshape(tuple(tensor.dims))


def _write(attribute: mindir.AttributeProto, value: Any) -> None:
    kinds = mindir.AttributeProto
    if isinstance(value, bool):
        attribute.type, attribute.i = kinds.BOOL, int(value)
    elif isinstance(value, int):
        attribute.type, attribute.i = kinds.INT64, value
    elif isinstance(value, float):
        attribute.type, attribute.f = kinds.FLOAT, value
    elif isinstance(value, str):
        attribute.type, attribute.s = kinds.STRING, value.encode()
    else:
        attribute.type = kinds.TUPLE
        for item in _integers(value):
            attribute.values.add(type=kinds.INT64).ints.append(item)


def _integers(values: Iterable[Any]) -> list[int]:
    values = list(values)
    if not all(isinstance(value, int) for value in values):
        raise UserError(f"a tuple of other things than integers: {values}")
    return values
