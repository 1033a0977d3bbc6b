"""The published recipe's network, built as train.py builds it: drop path, decay and first weights, as literals."""

import numpy as np
import pytest
from mindspore import Tensor, nn

from src.args import Config, parse_args
from src.assembly import build_network
from src.models.ddrnet import Residual
from src.tools.optimizer import takes_decay
from tests.conftest import ROOT

LOW = ("layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer4.0", "layer4.1")
LOW_RATES = (0.0, 0.0143, 0.0286, 0.0429, 0.0571, 0.0714, 0.0857, 0.1)
HIGH = ("layer3_.0", "layer3_.1", "layer4_.0", "layer4_.1")
HIGH_RATES = (0.0286, 0.0429, 0.0571, 0.0714)
FIRST_DEVIATIONS = {
    "conv1.0.weight": 0.0589256,
    "layer1.0.conv1.weight": 0.0589256,
    "layer2.0.conv1.weight": 0.0416667,
    "layer3.1.conv2.weight": 0.0294628,
    "layer4.0.conv1.weight": 0.0208333,
    "layer4.0.downsample.0.weight": 0.0625,
    "layer5.0.conv3.weight": 0.0441942,
    "compression3.0.weight": 0.125,
    "down5.3.weight": 0.0147314,
    "last_layer.0.weight": 0.03125,
    "linear.weight": 0.01,
}


def recipe() -> Config:
    flags = ["--ddr_config", str(ROOT / "src/configs/ddrnet23_imagenet.yaml"), "--device_target", "CPU"]
    return parse_args([*flags, "--amp_level", "O0", "--cpu_kernels", "mindspore"])[0]


@pytest.fixture(scope="module")
def network():
    return build_network(recipe())


def test_the_zoos_drop_path_rates(network):
    units = {name: cell for name, cell in network.cells_and_names() if isinstance(cell, Residual)}
    expected = dict(zip((*LOW, *HIGH, "layer5_.0", "layer5.0"), (*LOW_RATES, *HIGH_RATES, 0.1, 0.1)))
    assert {name: round(1 - unit.drop_path.keep, 4) for name, unit in units.items()} == expected


def test_a_dropped_shortcut_leaves_the_branch_alone(network):
    """Each image's number is above its rate, below it: the shortcut is kept and grows by 1 / 0.9143, or is gone."""
    unit = dict(network.cells_and_names())["layer4.0"].set_train(True)
    images = np.random.default_rng(0).standard_normal((2, 256, 14, 14)).astype(np.float32)
    numbers = np.zeros((2, 14), np.float32)
    numbers[0] = 0.999
    out = unit(Tensor(images), Tensor(numbers)).asnumpy()
    hidden = np.maximum(unit.bn1(unit.conv1(Tensor(images))).asnumpy(), 0)
    branch = unit.bn2(unit.conv2(Tensor(hidden))).asnumpy()
    shortcut = unit.downsample(Tensor(images)).asnumpy()
    dropped, kept = np.maximum(branch, 0), np.maximum(branch + shortcut / 0.9142857, 0)
    which = [int(np.abs(out[i] - kept[i]).max() < np.abs(out[i] - dropped[i]).max()) for i in range(2)]
    assert sorted(which) == [0, 1]
    for i in range(2):
        np.testing.assert_allclose(out[i], (kept if which[i] else dropped)[i], atol=1e-4)


def test_46_of_137_parameters_decay(network):
    trained = network.trainable_params()
    decays = [parameter for parameter in trained if takes_decay(parameter)]
    assert (len(decays), len(trained)) == (46, 137)


def test_batch_norms_momentum_and_epsilon(network):
    norms = [cell for _, cell in network.cells_and_names() if isinstance(cell, nn.BatchNorm2d)]
    assert len(norms) == 45
    kept = {(round(1 - norm.momentum, 6), norm.eps) for norm in norms}  # MindSpore holds the share of the new batch
    assert kept == {(0.9, 1e-5)}


@pytest.mark.parametrize("name", list(FIRST_DEVIATIONS))
def test_initial_standard_deviations(network, name):
    """Within five standard errors of a normal distribution's."""
    weight = network.parameters_dict()[name].asnumpy()
    assert weight.std() == pytest.approx(FIRST_DEVIATIONS[name], rel=5 / np.sqrt(2 * weight.size))
    assert abs(weight.mean()) < 5 * FIRST_DEVIATIONS[name] / np.sqrt(weight.size)
