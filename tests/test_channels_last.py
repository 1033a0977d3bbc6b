"""A network of the CPU's own kernels computes what the same network of MindSpore's operators does."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.errors import UserError
from src.kernels.build import has_bfloat16, library
from src.models import create_model
from src.models.channels_last import Conv2d
from src.models.fold import fold_batch_norm
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
        try:
            loss, gradients = self.differentiate(*map(Tensor, batch))
        finally:
            ms.set_context(mode=ms.GRAPH_MODE)
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
