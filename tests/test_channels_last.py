"""A network of the CPU's own kernels computes what the same network of MindSpore's operators does."""

from typing import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.errors import UserError
from src.kernels.build import has_bfloat16, library
from src.models import create_model
from src.models.architectures import FLAVOURS
from src.models.channels_last import LAYERS, ChannelsLast, Conv2d
from src.models.ddrnet import Builder, Chain, DropPath, Residual
from src.models.fold import fold_batch_norm, refold
from src.models.layers import Layers
from src.tools.criterion import NetworkWithLoss, SoftTargetCrossEntropy
from tests.golden import weights as golden

pytestmark = pytest.mark.skipif(library() is None, reason="there is no C++ compiler")


def network(arch: str, flavour: str, num_classes: int, native: str = "float32", drop_path_rate: float = 0.0):
    cell = create_model(arch, num_classes, drop_path_rate, flavour, native).set_train(False)
    for name, parameter in cell.parameters_dict().items():
        parameter.set_data(Tensor(golden.value(name, parameter.shape)))
    return cell


@pytest.mark.parametrize(
    ("arch", "flavour", "file"),
    [
        ("DDRNet23", "zoo", "ddrnet23_zoo.npz"),
        ("DDRNet23", "paper", "ddrnet23_paper.npz"),
        ("DDRNet23Slim", "paper", "ddrnet23_slim_paper.npz"),
        ("DDRNet39", "paper", "ddrnet39_paper.npz"),
    ],
)
def test_logits_match_the_golden_file_also_folded(arch, flavour, file):
    cell = network(arch, flavour, 1000)
    want = golden.logits(file)
    for one in (cell, fold_batch_norm(cell)):
        assert np.abs(one(Tensor(golden.images())).asnumpy() - want).max() < 2e-6


@pytest.mark.skipif(not has_bfloat16(), reason="the processor has no bfloat16")
def test_logits_in_bfloat16_are_near_the_golden_file():
    cell = network("DDRNet23", "zoo", 1000, "bfloat16")
    want = golden.logits("ddrnet23_zoo.npz")
    for one in (cell, fold_batch_norm(cell)):
        assert 1e-5 < np.abs(one(Tensor(golden.images())).asnumpy() - want).max() < 0.02 * want.std()


def test_parameters_have_the_names_and_shapes_of_mindspores_network():
    def shapes(native: str) -> dict:
        return {name: value.shape for name, value in create_model("DDRNet23", native=native).parameters_dict().items()}

    assert shapes("float32") == shapes("bfloat16") == shapes("")


@pytest.mark.parametrize(
    "keywords",
    [
        {"kernel_size": 3, "stride": 1, "pad_mode": "pad", "padding": 2, "dilation": 2},
        {"kernel_size": 3, "stride": 1, "pad_mode": "same", "group": 8},
        {"kernel_size": (1, 3), "stride": 1, "pad_mode": "same"},
        {"kernel_size": 3, "stride": 4, "pad_mode": "same"},
        {"kernel_size": 3, "stride": 1, "pad_mode": "valid"},
        {"kernel_size": 3, "stride": 1, "pad_mode": "pad", "padding": 0},
        {"kernel_size": 4, "stride": 2, "pad_mode": "same"},
    ],
)
def test_a_convolution_that_the_kernels_do_not_know_is_refused(keywords):
    with pytest.raises(UserError, match="use --cpu_kernels mindspore"):
        Conv2d(8, 8, **keywords)


@pytest.mark.parametrize("mode", [{"pad_mode": "same"}, {"pad_mode": "pad", "padding": 2}])
def test_a_wider_convolution_is_nn_conv2d_on_nhwc(mode):
    ours, theirs = (kind(6, 5, 5, 1, **mode) for kind in (Conv2d, nn.Conv2d))
    theirs.weight.set_data(ours.weight)
    x = np.random.default_rng(0).standard_normal((2, 6, 9, 8)).astype(np.float32)
    got = ours(Tensor(x.transpose(0, 2, 3, 1).copy())).asnumpy().transpose(0, 3, 1, 2)
    assert np.abs(got - theirs(Tensor(x)).asnumpy()).max() < 1e-5


class Trained:
    """A network in training: loss, gradients and moving statistics of one batch after another, with drop path on."""

    def __init__(self, native: str, flavour: str, mode: int) -> None:
        self.network, self.mode = network("DDRNet23Slim", flavour, 7, native, 0.3), mode
        cell = NetworkWithLoss(self.network, SoftTargetCrossEntropy()).set_train()
        self.weights = ms.ParameterTuple(cell.trainable_params())
        self.differentiate = ops.value_and_grad(cell, None, self.weights)

    def __call__(self, *batch: np.ndarray) -> tuple[float, dict, dict]:
        ms.set_context(mode=self.mode)
        loss, gradients = self.differentiate(*map(Tensor, batch))
        moving = {name: p.asnumpy() for name, p in self.network.parameters_dict().items() if "moving" in name}
        return (
            float(loss.asnumpy()),
            {weight.name: gradient.asnumpy() for weight, gradient in zip(self.weights, gradients)},
            moving,
        )


@pytest.mark.parametrize(
    ("flavour", "size", "mode"),
    [
        ("zoo", (64, 64), ms.GRAPH_MODE),
        ("zoo", (33, 47), ms.GRAPH_MODE),
        ("paper", (47, 32), ms.GRAPH_MODE),
        ("paper", (64, 48), ms.PYNATIVE_MODE),
    ],
)
def test_loss_gradients_and_moving_statistics_are_those_of_mindspores_operators(flavour, size, mode):
    """Of four batches one must agree to rounding: in the others it may push a number across the kink of a ReLU, which
    changes gradients by some percent; a wrong formula is off in all."""
    ours, reference = Trained("float32", flavour, mode), Trained("", flavour, ms.GRAPH_MODE)
    rng = np.random.default_rng(0)
    agree = 0
    for _ in range(4):
        batch = (
            rng.standard_normal((6, 3, *size), np.float32),
            rng.dirichlet(np.ones(7), 6).astype(np.float32),
            rng.random((6, ours.network.num_drop_paths), np.float32),
        )
        (loss, gradients, moving), (want_loss, want_gradients, want_moving) = ours(*batch), reference(*batch)
        assert loss == pytest.approx(want_loss, rel=1e-5)
        for name, want in want_moving.items():
            np.testing.assert_allclose(moving[name], want, rtol=1e-4, atol=1e-5, err_msg=name)
        assert gradients.keys() == want_gradients.keys()
        # the stem's biases have no gradient, as batch norm takes them out again: not relative to their own size
        off = [
            np.abs(gradients[name] - want).max() / max(np.abs(want).max(), 1e-3)
            for name, want in want_gradients.items()
        ]
        assert np.median(off) < 0.05
        agree += max(off) < 3e-4
    assert agree >= 1


class SquaredReLU(nn.ReLU):
    """Derived from a cell that blocks know, and another function."""

    def construct(self, x: Tensor) -> Tensor:
        return ops.square(ops.relu(x))


def doubling(kind: type) -> type:
    class Doubling(kind):
        """Derived from a convolution or norm, and another function."""

        def construct(self, *inputs: Tensor) -> Tensor:
            return super().construct(*inputs) * 2.0

    return Doubling


def replaced(position: int, make) -> Callable:
    def change(layers: type[Layers], cells: list) -> list:
        return [*cells[:position], make(layers), *cells[position + 1 :]]

    return change


def inserted(position: int, make) -> Callable:
    def change(layers: type[Layers], cells: list) -> list:
        return [*cells[:position], make(layers), *cells[position:]]

    return change


CHANGES = {  # of a chain of convolution, norm, ReLU, convolution, norm
    "a sigmoid for the ReLU": replaced(2, lambda layers: nn.Sigmoid()),
    "no ReLU": lambda layers, cells: [*cells[:2], *cells[3:]],
    "a second ReLU, before the norm": inserted(1, lambda layers: nn.ReLU()),
    "a ReLU at the end": inserted(5, lambda layers: nn.ReLU()),
    "a sigmoid at the end": inserted(5, lambda layers: nn.Sigmoid()),
    "a derived ReLU": replaced(2, lambda layers: SquaredReLU()),
    "a pooling": inserted(3, lambda layers: nn.AvgPool2d(2, 1, pad_mode="same")),
    "a sigmoid before the last norm": inserted(4, lambda layers: nn.Sigmoid()),
    "another norm": replaced(1, lambda layers: nn.GroupNorm(4, 16)),
    "another norm at the end": replaced(4, lambda layers: nn.GroupNorm(2, 8)),
    "a derived norm": replaced(1, lambda layers: doubling(layers.norm)(16, eps=1e-5, momentum=0.9)),
    "no norm": lambda layers, cells: [cells[0], *cells[2:]],
    "no norm at the end": lambda layers, cells: cells[:4],
    "nothing for a norm": replaced(1, lambda layers: nn.Identity()),
    "a grouped convolution": replaced(3, lambda layers: nn.Conv2d(16, 8, 3, group=4, weight_init="he_uniform")),
    "a dilated convolution": replaced(3, lambda layers: nn.Conv2d(16, 8, 3, dilation=2, weight_init="he_uniform")),
    "a derived convolution": replaced(
        3, lambda layers: doubling(layers.conv)(16, 8, 3, pad_mode="pad", padding=1, has_bias=True)
    ),
    "only a ReLU": lambda layers, cells: [nn.ReLU()],
}


class Held(nn.Cell):
    """A chain alone, in the order of axes of the images."""

    def __init__(self, layers: type[Layers], change) -> None:
        super().__init__()
        build = Builder(layers, FLAVOURS["zoo"])
        cells = [*build.conv_bn(6, 16, 3, 1), nn.ReLU(), *build.conv_bn(16, 8, 1, 1)]
        self.chain = Chain(layers, change(layers, cells))
        self.layers = layers

    def construct(self, x: Tensor, shortcut: Tensor) -> Tensor:
        y = ops.cast(self.chain(self.layers.enter(x), self.layers.enter(shortcut), True), ms.float32)
        return y if self.layers is Layers else ops.transpose(y, (0, 3, 1, 2))

    def one_by_one(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """What is written, with nothing fused."""
        for cell in self.chain.cell_list:
            x = cell(x)
        return ops.relu(x + shortcut)


def filled(cell: nn.Cell) -> nn.Cell:
    for name, parameter in cell.parameters_dict().items():
        parameter.set_data(Tensor(golden.value(name, parameter.shape)))
    return cell


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_is_written_in_a_chain_runs_on_every_set_of_layers_and_folded(change):
    x = golden.images(1, (2, 6, 9, 7))
    theirs, unchanged = filled(Held(Layers, change)), filled(Held(Layers, lambda layers, cells: cells))
    channels = 6 if len(theirs.chain.cell_list) == 1 else 8
    inputs = Tensor(x), Tensor(golden.images(2, (2, channels, 9, 7)))
    want = theirs.set_train(False).one_by_one(*inputs).asnumpy()
    if channels == 8:
        assert np.abs(unchanged.set_train(False)(*inputs).asnumpy() - want).max() > 1e-2
    ours = filled(Held(ChannelsLast, change)).set_train(False)
    assert {p.name for p in ours.get_parameters()} == {p.name for p in theirs.get_parameters()}
    for cell in (theirs, fold_batch_norm(theirs), ours, fold_batch_norm(ours)):
        np.testing.assert_allclose(cell(*inputs).asnumpy(), want, atol=5e-6 * max(1, np.abs(want).max()))
    if has_bfloat16():  # folded, what stands between the convolutions is bfloat16, which cells put there do not know
        rounded = fold_batch_norm(filled(Held(LAYERS["bfloat16"], change)))
        np.testing.assert_allclose(rounded(*inputs).asnumpy(), want, atol=2e-2 * max(1, np.abs(want).max()))
    for cell in (theirs, ours):
        cell.set_train()
    want = theirs.one_by_one(*inputs).asnumpy()
    for cell in (theirs, ours):
        np.testing.assert_allclose(cell(*inputs).asnumpy(), want, atol=2e-5 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("layers", [Layers, ChannelsLast])
@pytest.mark.parametrize("position", [1, 2, 3, 4, 5])
def test_dropout_anywhere_in_a_chain_drops(layers, position):
    cell = filled(Held(layers, inserted(position, lambda layers: nn.Dropout(p=0.5)))).set_train()
    inputs = Tensor(golden.images(1, (2, 6, 9, 7))), Tensor(golden.images(2, (2, 8, 9, 7)))
    first, second = (cell(*inputs).asnumpy() for _ in range(2))
    assert np.abs(first - second).max() > 0.1
    without = filled(Held(layers, lambda layers, cells: cells)).set_train(False)
    renamed = {f"chain.{i + (i >= position)}": f"chain.{i}" for i in range(5)}
    for name, parameter in cell.parameters_dict().items():
        place, _, kind = name.rpartition(".")
        parameter.set_data(without.parameters_dict()[f"{renamed[place]}.{kind}"].value())
    np.testing.assert_allclose(cell.set_train(False)(*inputs).asnumpy(), without(*inputs).asnumpy(), atol=1e-6)


@pytest.mark.parametrize("native", ["", "float32", "bfloat16"])
def test_cells_put_into_a_built_network_run_in_graph_mode_and_folded(native):
    def changed() -> nn.Cell:
        cell = network("DDRNet23Slim", "zoo", 7, native)
        cell.last_layer[2] = nn.Sigmoid()
        cell.layer3[0].bn1 = filled(nn.GroupNorm(8, 128))
        cell.layer4_.append(nn.Tanh())
        cell.layer1[1].conv2 = nn.Conv2d(32, 32, 3, group=8, weight_init="he_uniform")
        return filled(cell)

    images = Tensor(golden.images(shape=(2, 3, 64, 64)))
    cell = network("DDRNet23Slim", "zoo", 7)
    cell.last_layer[2] = nn.Sigmoid()
    cell.layer3[0].bn1 = nn.GroupNorm(8, 128)
    cell.layer4_.append(nn.Tanh())
    cell.layer1[1].conv2 = nn.Conv2d(32, 32, 3, group=8, weight_init="he_uniform")
    want = filled(cell)(images).asnumpy()
    assert np.abs(network("DDRNet23Slim", "zoo", 7)(images).asnumpy() - want).max() > 1e-2
    ms.set_context(mode=ms.GRAPH_MODE)
    if native == "bfloat16" and not has_bfloat16():
        pytest.skip("the processor has no bfloat16")
    ours = changed()
    for one in (ours, fold_batch_norm(ours)):
        off = np.abs(one(images).asnumpy() - want).max()
        assert off < (0.02 * np.abs(want).max() if native == "bfloat16" else 1e-5)


def test_the_packed_classifier_follows_new_weights_and_refuses_another_shape():
    cell = filled(network("DDRNet23Slim", "zoo", 7, "float32"))
    images, folded = Tensor(golden.images(shape=(2, 3, 64, 64))), fold_batch_norm(cell)
    before = folded(images).asnumpy()
    cell.linear.weight.set_data(cell.linear.weight * 2.0)
    cell.linear.bias.set_data(cell.linear.bias + 1.0)
    refold(cell, folded)
    want = cell(images).asnumpy()
    assert np.abs(before - want).max() > 0.1
    np.testing.assert_allclose(folded(images).asnumpy(), want, atol=1e-5 * np.abs(want).max())
    for other in (
        nn.Dense(cell.linear.in_channels, 9),
        nn.Dense(5, 7),
        nn.Dense(cell.linear.in_channels, 7, has_bias=False),
    ):
        cell.linear = other
        with pytest.raises(UserError, match=r"linear\..*the network has none of that shape"):
            refold(cell, folded)


def test_a_replaced_cell_in_a_unit_changes_what_runs_with_drop_path_on():
    """A unit whose last norm the kernels do not know, in training, each part of it dropped."""
    x, uniforms = golden.images(1, (4, 16, 6, 5)), Tensor(np.array([[0.1], [0.9], [0.3], [0.8]], np.float32))
    for drops_shortcut in (False, True):
        units = []
        for layers in (Layers, LAYERS["float32"]):
            build = Builder(layers, FLAVOURS["zoo"])
            unit = Residual(16, 16, (3, 3), 1, True, DropPath(0.5, 0), drops_shortcut, build)
            unit.bn2 = nn.GroupNorm(4, 16)
            units.append(filled(unit).set_train())
        theirs, ours = units
        want = theirs(Tensor(x), uniforms).asnumpy()
        branch = theirs.bn2(theirs.conv2(ops.relu(theirs.bn1(theirs.conv1(Tensor(x)))))).asnumpy()
        scale = np.array([2, 0, 2, 0], np.float32).reshape(4, 1, 1, 1)
        exact = branch + x * scale if drops_shortcut else branch * scale + x
        np.testing.assert_allclose(want, np.maximum(exact, 0), atol=1e-4)
        got = ours(Tensor(x.transpose(0, 2, 3, 1).copy()), uniforms).asnumpy().transpose(0, 3, 1, 2)
        np.testing.assert_allclose(got, want, atol=1e-4)
