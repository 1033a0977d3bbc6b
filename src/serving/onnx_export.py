"""From a MindIR file, as MindSpore writes it, to an ONNX file that computes the same.

MindSpore's own ONNX export lacks bilinear resizing. Here the MindIR is read node by node, and each node's primitive is
written by its rule (`onnx_rules.py`), so that a changed network still exports as long as its operators have rules.
"""

import inspect
import json
from collections import Counter
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import onnx
from mindspore.train import mind_ir_pb2 as mindir
from onnx import TensorProto, helper, numpy_helper

from src.errors import UserError
from src.serving.mindir import attribute_value, read_mindir, tensor_value
from src.serving.onnx_rules import RULES, Tensor

OPSET = 17  # the newest that Ascend's converter reads (ONNX 1.12), and the first with LayerNormalization
IR_VERSION = 8  # ONNX 1.12's
NOTHING = (  # monads order side effects, of which inference has none
    mindir.AttributeProto.NONE,
    mindir.AttributeProto.UMONAD,
    mindir.AttributeProto.IOMONAD,
)
INPUT, OUTPUT, BATCH = "images", "logits", "batch"


def write_onnx(
    mindir_path: Union[str, Path],
    path: Union[str, Path],
    metadata: Optional[dict[str, Any]] = None,
    dynamic_batch: bool = False,
) -> None:
    """Write the network in a MindIR file as ONNX: images (N, C, H, W) to logits, checked by `onnx.checker`.

    Args:
        mindir_path: of one input and one output, in inference mode.
        path: where to write.
        metadata: goes into the file's metadata, each value that is no text as JSON.
        dynamic_batch: N is left open; otherwise it is the MindIR's.

    Raises:
        UserError: the MindIR cannot be read, or a primitive in it has no rule; the message names it and its node.
    """
    model = _convert(read_mindir(str(mindir_path)), dynamic_batch)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _convert(source: mindir.ModelProto, dynamic_batch: bool) -> onnx.ModelProto:
    """The ONNX model of a MindIR message."""
    if len(source.graph.input) != 1 or len(source.graph.output) != 1 or source.functions:
        raise UserError("only a graph of one input, one output and no sub-graphs can be written as ONNX")
    graph = _Graph(source, dynamic_batch)
    primitives = {f"REF::{primitive.name}": primitive for primitive in source.primitives}
    for node in source.graph.node:
        if node.op_type == "Constant":
            value = node.attribute[0]
            graph.values[node.output[0]] = None if value.type in NOTHING else attribute_value(value)
    for node in source.graph.node:
        if node.op_type == "Constant":
            continue
        if node.op_type not in primitives:
            raise UserError(f"node {node.name} refers to the primitive {node.op_type}, which the file lacks")
        graph.values[node.output[0]] = _apply_rule(graph, node, primitives[node.op_type])
    return graph.model(graph.values[source.graph.output[0].name], source)


def _apply_rule(graph: "_Graph", node: mindir.NodeProto, primitive: mindir.PrimitiveProto) -> Any:
    """What stands for a node's output: its primitive's rule, called with its inputs and attributes."""
    where = f"{primitive.op_type} ({node.domain})"
    if primitive.op_type not in RULES:
        raise UserError(f"{where} has no rule in src/serving/onnx_rules.py, so it cannot be written as ONNX; add one")
    function = RULES[primitive.op_type]
    parameters = inspect.signature(function).parameters.values()
    wanted = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    held = {attribute.name: attribute for attribute in primitive.attribute}
    inputs = [graph.values.get(name) for name in node.input]
    trailing = [name for name in wanted if name not in held]
    attributes = {name: attribute_value(held[name]) for name in wanted if name in held}
    if trailing:
        attributes.update(zip(trailing, inputs[-len(trailing) :]))
        inputs = inputs[: -len(trailing)]
    for name, value in attributes.items():
        if isinstance(value, Tensor):
            raise UserError(f"{where}: {name} is computed, not constant")
    graph.enter(node)
    try:
        inspect.signature(function).bind(graph, *inputs, **attributes)
        result = function(graph, *inputs, **attributes)
    except TypeError as error:
        raise UserError(f"{where} has other inputs than its rule in src/serving/onnx_rules.py: {error}") from error
    except UserError as error:
        raise UserError(f"{where} cannot be written as ONNX {error}") from error
    shape = next((tuple(a.tensors[0].dims) for a in node.attribute if a.name == "shape" and len(a.tensors) == 1), None)
    if isinstance(result, Tensor) and shape is not None and result.data is None:
        result = Tensor(result.name, shape)
    return result


class _Graph:
    """The ONNX graph under construction.

    Attributes:
        values: what stands for each name of the MindIR: a `Tensor`, a constant, a tuple of these, or None.
        dynamic_batch: whether the batch size is left open.
    """

    def __init__(self, source: mindir.ModelProto, dynamic_batch: bool) -> None:
        self.dynamic_batch = dynamic_batch
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.values: dict[str, Any] = {}
        self.users = Counter(name for node in source.graph.node for name in node.input)
        self.names: Counter = Counter()
        self.scope = ""
        for tensor in source.graph.parameter:
            name = tensor.name.rpartition(":")[2]
            self.values[tensor.name] = Tensor(name, tuple(tensor.dims), tensor_value(tensor))
        images = source.graph.input[0]
        self.values[images.name] = Tensor(INPUT, tuple(images.tensor[0].dims))

    def enter(self, node: mindir.NodeProto) -> None:
        """Name the nodes that follow for the cells that this one stands in: layer1/0/conv1 and so on."""
        cells = node.domain.split("/")[1:-1]
        self.scope = "".join(cell.partition("-")[0] + "/" for cell in cells)
        self.used_once = {
            value.name
            for name in node.input
            if isinstance(value := self.values.get(name), Tensor) and self.users[name] == 1
        }

    def add(self, op_type: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        name = self._unique(self.scope + op_type)
        made = [name] if outputs == 1 else [f"{name}:{index}" for index in range(outputs)]
        sources = [self._operand(value, name) for value in inputs]
        while sources and not sources[-1]:
            sources.pop()
        self.nodes.append(helper.make_node(op_type, sources, made, name=name, **attributes))
        tensors = tuple(Tensor(output) for output in made)
        return tensors if outputs > 1 else tensors[0]

    def add_bias(self, x: Tensor, bias: Tensor) -> Optional[Tensor]:
        node = next((node for node in reversed(self.nodes) if x.name in node.output), None)
        if node is None or x.name not in self.used_once or node.op_type not in ("Conv", "Gemm") or len(node.input) > 2:
            return None
        node.input.append(self._operand(bias, node.name))
        return x

    def model(self, output: Any, source: mindir.ModelProto) -> onnx.ModelProto:
        """The finished model, whose last tensor is `output`."""
        if not isinstance(output, Tensor) or not any(output.name in node.output for node in self.nodes):
            raise UserError("the network's output is no tensor that it computes")
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [OUTPUT if name == output.name else name for name in names]
        shapes = (self.values[source.graph.input[0].name].shape, output.shape)
        ends = [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, [BATCH, *shape[1:]] if self.dynamic_batch else list(shape)
            )
            for name, shape in zip((INPUT, OUTPUT), shapes)
        ]
        graph = helper.make_graph(self.nodes, "network", ends[:1], ends[1:], list(self.initializers.values()))
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name=source.producer_name,
            producer_version=source.producer_version,
        )

    def _operand(self, value: Any, node: str) -> str:
        """The name of an input; numbers, arrays and parameters become initializers."""
        if value is None:
            return ""
        if isinstance(value, Tensor):
            if value.data is not None and value.name not in self.initializers:
                self.initializers[value.name] = numpy_helper.from_array(value.data, value.name)
            return value.name
        array = np.asarray(value)
        name = self._unique(f"{node}/constant")
        self.initializers[name] = numpy_helper.from_array(
            array if array.dtype == np.int64 else array.astype(np.float32), name
        )
        return name

    def _unique(self, name: str) -> str:
        self.names[name] += 1
        return name if self.names[name] == 1 else f"{name}_{self.names[name] - 1}"
