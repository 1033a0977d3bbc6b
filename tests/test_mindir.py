"""Lowering a MindIR to version 1: what it computes on MindSpore Lite, and what it refuses."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from mindspore.train import mind_ir_pb2 as mindir

from src.args import Config
from src.errors import UserError
from src.models.fold import fold_batch_norm
from src.models.layers import Upsample
from src.serving.mindir import half_pixel_matrix, lower_mindir
from tests.infer_310 import export, network, picture, read_results, run_main, spec


class HalfPixel(nn.Cell):
    """Resizes with half-pixel centres to another shape, then takes means: the smallest network that shows it."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.resize = ops.ResizeBilinearV2(align_corners=False, half_pixel_centers=True)

    def construct(self, x):
        return ops.mean(self.resize(x, self.size), 3).reshape((x.shape[0], -1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network as MindSpore writes it, not lowered."""
    return export(network(), tmp_path_factory.mktemp("exported") / "net.mindir", spec(), lower=False)


@pytest.fixture(scope="module")
def lowered(exported):
    path = exported.with_name("lowered.mindir")
    lower_mindir(str(exported), str(path))
    return path


def write_mindir(cell, path, shape=(2, 3, 6, 10)):
    ms.export(cell, Tensor(np.zeros(shape, np.float32)), file_name=str(path), file_format="MINDIR")
    path.chmod(0o600)
    return path


def read_mindir(path):
    model = mindir.ModelProto()
    model.ParseFromString(path.read_bytes())
    return model


def on_lite(path, batch, tmp_path, images):
    """The logits that MindSpore Lite gives for image files, by the program."""
    results = tmp_path / "results"
    done = run_main(
        *("--mindir_path", path, "--dataset_path", images, "--result_path", results, "--time_path", tmp_path),
        *("--device_target", "CPU", "--batch_size", batch),
    )
    assert done.returncode == 0, done.stderr
    return np.stack(list(read_results(results).values()))


@pytest.mark.parametrize(
    ("arch", "flavour", "batch", "fold"),
    [
        ("DDRNet23Slim", "zoo", 1, False),
        ("DDRNet23Slim", "paper", 2, False),
        ("DDRNet23", "zoo", 1, False),
        ("DDRNet23Slim", "zoo", 2, True),
        ("DDRNet23Slim", "paper", 1, True),
    ],
)
def test_a_lowered_network_gives_its_logits_on_lite(arch, flavour, batch, fold, tmp_path):
    from src.data import load_eval_image

    cell, size = network(arch, flavour), 96
    path = export(fold_batch_norm(cell) if fold else cell, tmp_path / "net.mindir", spec(size, batch))
    folder = tmp_path / "images" / "ant"
    folder.mkdir(parents=True)
    for seed in range(4):
        picture(150, 100, seed).save(folder / f"{seed}.png")

    config = Config(image_size=size)
    images = np.stack([load_eval_image(str(file), config) for file in sorted(folder.iterdir())])
    want = cell(Tensor(images)).asnumpy()
    got = on_lite(path, batch, tmp_path, folder.parent)
    assert np.abs(want).max() > 0.1
    assert np.abs(got - want).max() < 1e-5 * max(1, np.abs(want).max())


def test_dropping_half_pixel_centres_would_show_in_the_logits():
    """What old runtimes do to the paper's flavour is far above the tolerance of the test above."""
    cell = network(flavour="paper")
    images = Tensor(np.random.default_rng(0).standard_normal((1, 3, 96, 96)).astype(np.float32))
    want = cell(images).asnumpy()
    cell.upsample = Upsample(half_pixel_centers=False)
    assert np.abs(cell(images).asnumpy() - want).max() > 1e-4


@pytest.mark.parametrize("size", [(12, 20), (7, 5), (6, 10), (3, 31)])
def test_half_pixel_resizing_is_rewritten_as_products_that_compute_the_same(size, tmp_path):
    torch = pytest.importorskip("torch")
    path = write_mindir(HalfPixel(size), tmp_path / "half.mindir")
    lowered = tmp_path / "lowered.mindir"
    lower_mindir(str(path), str(lowered))
    assert not any("Resize" in primitive.op_type for primitive in read_mindir(lowered).primitives)

    x = np.random.default_rng(0).standard_normal((2, 3, 6, 10)).astype(np.float32)
    want = torch.nn.functional.interpolate(torch.from_numpy(x), size, mode="bilinear").mean(3).reshape(2, -1).numpy()
    got = ms.nn.GraphCell(ms.load(str(lowered)))(Tensor(x)).asnumpy()
    assert np.abs(got - want).max() < 1e-5


@pytest.mark.parametrize(("size_in", "size_out"), [(4, 8), (7, 14), (5, 13), (9, 4), (1, 6), (6, 6)])
def test_the_half_pixel_matrix_is_torchs_interpolation(size_in, size_out):
    torch = pytest.importorskip("torch")
    rows = torch.eye(size_in)[:, None]
    want = torch.nn.functional.interpolate(rows, size_out, mode="linear", align_corners=False)[:, 0].numpy()
    assert np.abs(half_pixel_matrix(size_in, size_out) - want).max() < 1e-6


def test_a_lowered_file_says_version_1_and_has_no_function_primitives(exported, lowered):
    assert read_mindir(exported).mind_ir_version > 1
    model = read_mindir(lowered)
    assert model.mind_ir_version == 1
    assert {primitive.prim_type for primitive in model.primitives} == {mindir.PrimitiveProto.PRIMITIVE}
    used = {node.op_type for node in model.graph.node}
    assert all(f"REF::{primitive.name}" in used for primitive in model.primitives)


def test_a_file_of_version_1_is_written_as_it_is(lowered, tmp_path):
    again = tmp_path / "again.mindir"
    lower_mindir(str(lowered), str(again))
    assert again.read_bytes() == lowered.read_bytes()


def test_a_file_may_be_lowered_in_place(exported, lowered, tmp_path):
    path = tmp_path / "net.mindir"
    path.write_bytes(exported.read_bytes())
    lower_mindir(str(path), str(path))
    assert path.read_bytes() == lowered.read_bytes()


def change(path, what, changed):
    """A copy of a MindIR, at `changed`, with one change made by `what`."""
    model = read_mindir(path)
    what(model)
    changed.write_bytes(model.SerializeToString())
    return changed


def node_of(model, op_type):
    primitive = next(primitive for primitive in model.primitives if primitive.op_type == op_type)
    return next(node for node in model.graph.node if node.op_type == f"REF::{primitive.name}"), primitive


def rename(model):
    node_of(model, "ReLU")[1].op_type = "GeLU"


def compute_epsilon(model):
    node = node_of(model, "BatchNorm")[0]
    node.input[6] = node.input[0]


def train(model):
    node = node_of(model, "BatchNorm")[0]
    constant = next(other for other in model.graph.node if other.output[0] == node.input[5])
    copy = model.graph.node.add()
    copy.CopyFrom(constant)
    copy.output[0] = copy.name = "true"
    copy.attribute[0].i = 1
    node.input[5] = "true"


def call(model):
    model.functions.add(name="helper")


def drop_inputs(model):
    del node_of(model, "BatchNorm")[0].input[3:]


def drop_primitive(model):
    primitive = node_of(model, "ReLU")[1]
    model.primitives.remove(primitive)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (rename, "GeLU"),
        (compute_epsilon, "BatchNorm .* epsilon is computed"),
        (train, "BatchNorm .* training mode"),
        (call, "sub-graph helper"),
        (drop_inputs, "BatchNorm .* only 3 inputs"),
        (drop_primitive, "which the file lacks"),
    ],
)
def test_what_cannot_be_lowered_is_named(what, message, exported, tmp_path):
    changed = change(exported, what, tmp_path / "changed.mindir")
    target = tmp_path / "lowered.mindir"
    with pytest.raises(UserError, match=message) as error:
        lower_mindir(str(changed), str(target))
    assert str(changed) in str(error.value)
    assert not target.exists()


def test_half_pixel_resizing_of_a_shape_that_is_not_known_is_refused(tmp_path):
    def forget(model):
        model.graph.input[0].tensor[0].dims[2] = -1

    path = change(write_mindir(HalfPixel((12, 20)), tmp_path / "half.mindir"), forget, tmp_path / "changed.mindir")
    with pytest.raises(UserError, match="not static"):
        lower_mindir(str(path), str(tmp_path / "lowered.mindir"))


def test_half_pixel_resizing_with_aligned_corners_is_refused(tmp_path):
    def align(model):
        node = node_of(model, "ResizeBilinearV2")[0]
        node.input[2] = node.input[3]

    path = change(write_mindir(HalfPixel((12, 20)), tmp_path / "half.mindir"), align, tmp_path / "changed.mindir")
    with pytest.raises(UserError, match="align_corners"):
        lower_mindir(str(path), str(tmp_path / "lowered.mindir"))


@pytest.mark.parametrize("content", [b"", b"no protocol buffer", None])
def test_a_file_that_is_no_mindir_is_an_error_that_names_it(content, tmp_path):
    path = tmp_path / "net.mindir"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"net\.mindir: (not a MindIR file|cannot be read)"):
        lower_mindir(str(path), str(tmp_path / "lowered.mindir"))


def test_a_cut_file_is_an_error_that_names_it(exported, tmp_path):
    data = exported.read_bytes()
    path = tmp_path / "net.mindir"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"net\.mindir: not a MindIR file, or a damaged one"):
        lower_mindir(str(path), str(tmp_path / "lowered.mindir"))
