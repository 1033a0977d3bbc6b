"""Networks as ONNX: three runtimes give the logits that the network and the golden files give."""

import mindspore as ms
import numpy as np
import onnx
import onnxruntime
import pytest
from mindspore import Tensor
from onnx.reference import ReferenceEvaluator

from src.models.fold import fold_batch_norm
from src.serving.onnx_export import write_onnx
from tests.golden import weights as golden
from tests.infer_310 import network

openvino = pytest.importorskip("openvino")


def write(cell, path, shape, dynamic=False):
    """The ONNX file of a network for images of a shape, by way of its MindIR."""
    source = path.with_suffix(".mindir")
    ms.export(cell, Tensor(np.zeros(shape, np.float32)), file_name=str(source), file_format="MINDIR")
    write_onnx(source, path, {"classes": None}, dynamic)
    return path


def on_onnxruntime(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run(None, {"images": batch})[0] for batch in images]


def on_openvino(path, images):
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", precision)
    return [compiled(batch)[compiled.output(0)] for batch in images]


def on_onnx_itself(path, images):
    return [ReferenceEvaluator(str(path)).run(None, {"images": batch})[0] for batch in images]


def assert_same(got, want):
    assert got.shape == want.shape
    assert np.abs(want).max() > 0.1
    assert np.abs(got - want).max() <= 1e-4 * max(1, np.abs(want).max())


@pytest.mark.parametrize(
    ("arch", "flavour", "file"),
    [
        ("DDRNet23", "zoo", "ddrnet23_zoo.npz"),
        ("DDRNet23Slim", "paper", "ddrnet23_slim_paper.npz"),
        ("DDRNet23", "paper", "ddrnet23_paper.npz"),
        ("DDRNet39", "paper", "ddrnet39_paper.npz"),
    ],
)
def test_a_network_gives_the_golden_logits_at_any_batch_size(arch, flavour, file, tmp_path):
    """One file with a dynamic batch, run on batches of 2, 1 and 4."""
    path = write(network(arch, flavour, 1000), tmp_path / "net.onnx", (1, 3, 224, 224), dynamic=True)
    two, want = golden.images(), golden.logits(file)
    batches = [two, two[1:], np.concatenate([two[::-1], two])]
    expected = [want, want[1:], np.concatenate([want[::-1], want])]
    for run in (on_onnxruntime, on_openvino):
        for got, logits in zip(run(path, batches), expected):
            assert_same(got, logits)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("flavour", ["zoo", "paper"])
def test_an_oblong_image_gives_the_networks_logits(flavour, batch, tmp_path):
    """At 192 x 256, with batch norm folded where the batch is 4."""
    cell, shape = network(flavour=flavour), (batch, 3, 192, 256)
    path = write(fold_batch_norm(cell) if batch == 4 else cell, tmp_path / "net.onnx", shape)
    assert ("BatchNormalization" in {node.op_type for node in onnx.load(path).graph.node}) == (batch == 1)
    images = golden.images(1, shape)
    want = cell(Tensor(images)).asnumpy()
    for run in (on_onnxruntime, on_openvino):
        assert_same(run(path, [images])[0], want)


@pytest.mark.parametrize("arch", ["DDRNet23Slim", "DDRNet39"])
@pytest.mark.parametrize("flavour", ["zoo", "paper"])
def test_sides_that_halve_to_odd_numbers_give_the_networks_logits(arch, flavour, tmp_path):
    """By ONNX's own definition of its operators as well: 43 x 70 halves to 22, 11, 6, 3, 2 and 35, 18, 9, 5, 3."""
    cell, shape = network(arch, flavour), (1, 3, 43, 70)
    path = write(cell, tmp_path / "net.onnx", shape, dynamic=True)
    images = golden.images(2, shape)
    want = cell(Tensor(images)).asnumpy()
    runtimes = [on_onnxruntime, on_openvino] + ([on_onnx_itself] if arch == "DDRNet23Slim" else [])
    for run in runtimes:
        assert_same(run(path, [images])[0], want)


def test_the_file_says_what_it_holds(tmp_path):
    path = write(network(), tmp_path / "net.onnx", (3, 3, 64, 64))
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    shapes = [
        [dim.dim_value for dim in end.type.tensor_type.shape.dim] for end in (model.graph.input[0], *model.graph.output)
    ]
    assert shapes == [[3, 3, 64, 64], [3, 10]]
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("images", "logits")
    names = {tensor.name for tensor in model.graph.initializer}
    assert {"conv1.0.weight", "layer3.0.bn1.moving_variance", "linear.bias"} <= names
    assert "layer1/0/conv1/Conv" in {node.name for node in model.graph.node}
    inner = {value.name: value.type.tensor_type.shape for value in model.graph.value_info}
    assert [dim.dim_value for dim in inner["upsample/Resize"].dim] == [3, 64, 8, 8]


def test_a_dynamic_batch_is_open_from_the_input_to_the_output(tmp_path):
    model = onnx.load(write(network(), tmp_path / "net.onnx", (2, 3, 64, 64), dynamic=True))
    for end in (model.graph.input[0], model.graph.output[0]):
        assert end.type.tensor_type.shape.dim[0].dim_param == "batch"
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    fixed = [
        node.name for node in model.graph.node if node.op_type in ("Resize", "Reshape") and node.input[-1] in constants
    ]
    assert fixed == []


def test_the_flavours_differ_by_more_than_the_tolerance(tmp_path):
    """What the tests above would show if the wrong resizing or padding were written."""
    images = golden.images(3, (1, 3, 64, 64))
    zoo, paper = (network(flavour=flavour) for flavour in ("zoo", "paper"))
    for name, parameter in zoo.parameters_dict().items():
        parameter.set_data(paper.parameters_dict()[name].value())
    want = paper(Tensor(images)).asnumpy()
    assert np.abs(zoo(Tensor(images)).asnumpy() - want).max() > 1e-2
