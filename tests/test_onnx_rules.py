"""Each operator's rule: what the ONNX file computes in ONNX Runtime is what the cell computes in MindSpore."""

import mindspore as ms
import numpy as np
import onnxruntime
import pytest
from mindspore import Parameter, Tensor, nn, ops
from mindspore.train import mind_ir_pb2 as mindir

from src.errors import UserError
from src.serving.mindir import read_mindir
from src.serving.onnx_export import write_onnx
from src.serving.onnx_rules import RULES

SHAPE = (2, 4, 6, 10)
MINDSPORE_IS_OFF = {"Tanh": 1e-4}  # of NumPy's; the others stay within 1e-5


class Arithmetic(nn.Cell):
    def construct(self, x):
        y = ops.abs(x) + 1.5
        y = ops.maximum(x - 0.25 * x, -x) / (y * y) - ops.minimum(x, 0.5 - x)
        return ops.exp(-ops.abs(x)) + ops.sqrt(ops.abs(y)) * ops.log(ops.abs(x) + 1.0) + ops.pow(y, 2.0) / 3.0


class Pieces(nn.Cell):
    def construct(self, x):
        a, b = ops.split(x, 2, 1)
        x = ops.concat((b, x[:, 1:4:2, 2:], a[:, :, 2:]), 1) if x.shape[2] < 3 else ops.concat((b, a, x[:, 1:4:2]), 1)
        return ops.pad(x, (1, 2, 0, 3))[:, 1:, :, 2:]


class Shapes(nn.Cell):
    def construct(self, x):
        y = ops.transpose(x, (0, 2, 3, 1)).reshape((x.shape[0], -1, 4))
        return ops.softmax(y, 1).expand_dims(1).squeeze(1).reshape((-1, 4))


class Means(nn.Cell):
    def construct(self, x):
        return (
            ops.mean(x, (2, 3), True)
            + ops.amax(x, (3,), True) * ops.sum(x, (2,), True)
            - ops.reduce_sum(x, (3,)).expand_dims(3)
            + x.mean((1,), True)
        )


class Resize(nn.Cell):
    def __init__(self, size, **options):
        super().__init__()
        self.size, self.resize = size, ops.ResizeBilinearV2(**options)

    def construct(self, x):
        return self.resize(x, self.size)


class Nearest(nn.Cell):
    def construct(self, x):
        return ops.interpolate(x, size=(13, 25), mode="nearest")


class Biased(nn.Cell):
    """A bias on what is no convolution, and on one that is used twice."""

    def __init__(self):
        super().__init__()
        self.bias = Parameter(Tensor(np.array([1, -2, 3, 4], np.float32)), name="bias")
        self.conv = nn.Conv2d(4, 4, 3, has_bias=False)
        self.add = ops.BiasAdd()

    def construct(self, x):
        y = self.conv(x)
        return self.add(y, self.bias) * y + self.add(ops.relu(x), self.bias)


def randomised(cell):
    draw = np.random.default_rng(1)
    for parameter in cell.get_parameters():
        low = 0.5 if "variance" in parameter.name else -1.0
        parameter.set_data(Tensor(draw.uniform(low, 1.5, parameter.shape).astype(np.float32)))
    return cell.set_train(False)


CELLS = {
    "conv": lambda: nn.Conv2d(4, 6, 3, stride=2, pad_mode="pad", padding=(0, 1, 2, 3), has_bias=True),
    "conv same": lambda: nn.Conv2d(4, 6, (3, 5), stride=2, pad_mode="same"),
    "conv valid": lambda: nn.Conv2d(4, 6, (2, 3), pad_mode="valid"),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, group=4, dilation=2, has_bias=True, pad_mode="same"),
    "bias": Biased,
    "batch norm": lambda: nn.BatchNorm2d(4, eps=1e-2),
    "layer norm": lambda: nn.LayerNorm((6, 10), begin_norm_axis=2, begin_params_axis=2, epsilon=1e-2),
    "dense": lambda: nn.SequentialCell(nn.Dense(10, 3), nn.Flatten(), nn.Dense(72, 5)),
    "dropout": lambda: nn.SequentialCell(nn.Dropout(p=0.5), nn.Identity(), nn.Sigmoid()),
    "max pool": lambda: nn.MaxPool2d(3, 2, pad_mode="same"),
    "max pool padded": lambda: nn.MaxPool2d(3, 2, pad_mode="pad", padding=1),
    "average pool": lambda: nn.AvgPool2d(3, 2, pad_mode="same"),
    "global pool": lambda: nn.AdaptiveAvgPool2d(1),
    "adaptive pool": lambda: nn.AdaptiveAvgPool2d((3, 5)),
    "resize": lambda: Resize((13, 25), align_corners=False, half_pixel_centers=False),
    "resize down": lambda: Resize((4, 7), align_corners=False, half_pixel_centers=False),
    "resize half pixel": lambda: Resize((13, 25), align_corners=False, half_pixel_centers=True),
    "resize aligned": lambda: Resize((13, 25), align_corners=True, half_pixel_centers=False),
    "resize nearest": Nearest,
    **{
        kind.__name__: kind
        for kind in (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.HSwish, nn.HSigmoid, nn.Mish, nn.ELU)
    },
    "GELU": nn.GELU,
    "GELU exact": lambda: nn.GELU(approximate=False),
    "PReLU": lambda: nn.PReLU(4),
    "LeakyReLU": nn.LeakyReLU,
    "arithmetic": Arithmetic,
    "pieces": Pieces,
    "shapes": Shapes,
    "means": Means,
}


def images(batch):
    return np.random.default_rng(batch).standard_normal((batch, *SHAPE[1:])).astype(np.float32) * 2


def write_mindir(cell, path):
    ms.export(cell, Tensor(images(SHAPE[0])), file_name=str(path), file_format="MINDIR")
    path.chmod(0o600)
    return path


def run(path, x):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": x})[0]


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_computes_the_same_as_onnx(name, tmp_path):
    cell = randomised(CELLS[name]())
    source, target = write_mindir(cell, tmp_path / "cell.mindir"), tmp_path / "cell.onnx"
    for dynamic, batches in ((False, (SHAPE[0],)), (True, (1, 5))):
        write_onnx(source, target, dynamic_batch=dynamic)
        for batch in batches:
            want = cell(Tensor(images(batch))).asnumpy()
            got = run(target, images(batch))
            assert got.shape == want.shape
            assert np.abs(want).max() > 0.01
            tolerance = MINDSPORE_IS_OFF.get(name, 1e-5)
            assert np.abs(got - want).max() <= tolerance * max(1, np.abs(want).max())


def change(path, what):
    """Change a MindIR in place."""
    model = read_mindir(str(path))
    what(model, {primitive.op_type: primitive for primitive in model.primitives})
    path.write_bytes(model.SerializeToString())
    return path


def node_of(model, primitive):
    return next(node for node in model.graph.node if node.op_type == f"REF::{primitive.name}")


def unknown(model, primitives):
    primitives["BatchNorm"].op_type = "GroupNorm"


def computed(model, primitives):
    node = node_of(model, primitives["BatchNorm"])
    node.input[6] = node.input[0]


def training(model, primitives):
    node = node_of(model, primitives["BatchNorm"])
    constant = next(other for other in model.graph.node if other.output[0] == node.input[5])
    constant.attribute[0].i = 1


def too_many(model, primitives):
    node = node_of(model, primitives["BatchNorm"])
    node.input.insert(0, node.input[0])


def call(model, primitives):
    model.functions.add(name="helper")


def lacking(model, primitives):
    model.primitives.remove(primitives["BatchNorm"])


def half(model, primitives):
    model.graph.parameter[0].data_type = mindir.TensorProto.FLOAT16


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (unknown, r"GroupNorm \(.*\) has no rule in src/serving/onnx_rules.py"),
        (computed, "BatchNorm .* epsilon is computed"),
        (training, "BatchNorm .* in training mode"),
        (too_many, "BatchNorm .* has other inputs than its rule"),
        (call, "no sub-graphs"),
        (lacking, "which the file lacks"),
        (half, "is of type FLOAT16, not FLOAT"),
    ],
)
def test_what_has_no_rule_is_named_and_nothing_is_written(what, message, tmp_path):
    path = change(write_mindir(nn.BatchNorm2d(4).set_train(False), tmp_path / "cell.mindir"), what)
    with pytest.raises(UserError, match=message) as error:
        write_onnx(path, tmp_path / "cell.onnx")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cell.onnx").exists()


def test_every_operator_of_the_network_and_of_these_cells_has_a_rule():
    assert {"Conv2D", "BatchNorm", "BiasAdd", "Add", "ReLU", "ResizeBilinearV2", "ReduceMean", "MatMul"} <= set(RULES)
