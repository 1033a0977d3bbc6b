"""The networks: published names and logits, other sizes, drop path, initialisation."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.args import parse_args
from src.errors import UserError
from src.models import ARCHITECTURES, create_model
from src.models.architectures import FLAVOURS, drop_path_rates
from src.models.ddrnet import DropPath, Residual
from src.tools.schedulers import learning_rates
from tests.golden import weights as golden

GOLDEN = [
    ("DDRNet23", "zoo", "ddrnet23_zoo.npz"),
    ("DDRNet23Slim", "paper", "ddrnet23_slim_paper.npz"),
    ("DDRNet23", "paper", "ddrnet23_paper.npz"),
    ("DDRNet39", "paper", "ddrnet39_paper.npz"),
]


@pytest.fixture(autouse=True)
def _same_weights_whatever_ran_before():
    ms.set_seed(1)


@pytest.mark.parametrize("flavour", list(FLAVOURS))
@pytest.mark.parametrize("arch", list(ARCHITECTURES))
def test_parameters_have_the_published_names(arch, flavour):
    assert {parameter.name for parameter in create_model(arch, flavour=flavour).get_parameters()} == (
        golden.published_names(arch, flavour)
    )


def test_parameters_are_those_of_the_checkpoint_on_mindspore_hub():
    shapes = {name: parameter.shape for name, parameter in create_model("DDRNet23").parameters_dict().items()}
    assert shapes == golden.parameters("ddrnet23_zoo_parameters.txt")
    assert len(shapes) == 227


def golden_network(arch: str, flavour: str, num_classes: int = 1000) -> nn.Cell:
    network = create_model(arch, num_classes, flavour=flavour).set_train(False)
    assert set(network.parameters_dict()) == golden.published_names(arch, flavour)
    for name, parameter in network.parameters_dict().items():
        parameter.set_data(Tensor(golden.value(name, parameter.shape)))
    return network


@pytest.mark.parametrize(("arch", "flavour", "file"), GOLDEN)
def test_logits_match_the_golden_file(arch, flavour, file):
    logits = golden_network(arch, flavour)(Tensor(golden.images())).asnumpy()
    assert np.abs(logits - golden.logits(file)).max() < 1e-4


def test_logits_match_the_golden_file_in_graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)
    logits = golden_network("DDRNet23", "zoo")(Tensor(golden.images())).asnumpy()
    assert np.abs(logits - golden.logits("ddrnet23_zoo.npz")).max() < 1e-4


@pytest.mark.parametrize(
    ("arch", "flavour", "count"),
    [
        ("DDRNet23", "zoo", 28_216_488),
        ("DDRNet23Slim", "paper", 7_574_664),
        ("DDRNet23", "paper", 28_216_616),
        ("DDRNet39", "paper", 40_130_344),
    ],
)
def test_number_of_trainable_parameters_is_the_published_one(arch, flavour, count):
    assert sum(parameter.size for parameter in create_model(arch, flavour=flavour).trainable_params()) == count


@pytest.mark.parametrize(
    ("file", "arch", "flavour"),
    [
        ("ddrnet23_slim_imagenet.yaml", "DDRNet23Slim", "paper"),
        ("ddrnet23_imagenet.yaml", "DDRNet23", "zoo"),
        ("ddrnet39_imagenet.yaml", "DDRNet39", "paper"),
    ],
)
def test_each_member_has_a_configuration(file, arch, flavour):
    config, _ = parse_args(["--ddr_config", str(Path(__file__).parents[1] / "src" / "configs" / file)])
    assert (config.arch, config.flavour, config.num_classes, config.image_size) == (arch, flavour, 1000, 224)


@pytest.mark.parametrize("arch", ["DDRNet23Slim", "DDRNet39"])
def test_the_paper_s_recipe_divides_the_learning_rate_by_ten_after_30_60_and_90_epochs(arch):
    name = {"DDRNet23Slim": "ddrnet23_slim", "DDRNet39": "ddrnet39"}[arch]
    path = Path(__file__).parents[1] / "src" / "configs" / f"{name}_imagenet.yaml"
    config, _ = parse_args(["--ddr_config", str(path), "--device_num", "4"])
    rates = learning_rates(config, 10)
    np.testing.assert_allclose(
        rates[[0, 299, 300, 599, 600, 899, 900, 999]], [0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 1e-4, 1e-4]
    )
    assert not config.mixes


@pytest.mark.parametrize("flavour", ["zoo", "paper"])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (65, 32), (100, 76), (160, 224)])
def test_any_size_of_at_least_32_gives_logits(flavour, size):
    network = golden_network("DDRNet23Slim", flavour, num_classes=7)
    images = golden.images(shape=(2, 3, *size))
    logits = network(Tensor(images)).asnumpy()
    assert logits.shape == (2, 7)
    assert np.isfinite(logits).all()
    alone = network(Tensor(images[1:])).asnumpy()
    np.testing.assert_allclose(alone, logits[1:], atol=1e-5)


@pytest.mark.parametrize("arch", list(ARCHITECTURES))
def test_paper_flavour_computes_what_pytorch_does_at_multiples_of_8(arch):
    torch = pytest.importorskip("torch")
    from tests.torch_yardstick import golden_network as torch_network

    network, reference = golden_network(arch, "paper", num_classes=20), torch_network(arch, num_classes=20)
    for size in ((32, 32), (64, 96), (136, 40)):
        images = golden.images(shape=(2, 3, *size))
        with torch.no_grad():
            expected = reference(torch.from_numpy(images)).numpy()
        logits = network(Tensor(images)).asnumpy()
        assert np.abs(logits - expected).max() < 1e-4, size


def test_training_forward_and_moving_statistics_are_pytorchs():
    torch = pytest.importorskip("torch")
    from tests.torch_yardstick import golden_network as torch_network

    images = golden.images(shape=(8, 3, 64, 64))
    reference = torch_network("DDRNet23Slim", num_classes=5).train()
    expected = reference(torch.from_numpy(images)).detach().numpy()
    network = golden_network("DDRNet23Slim", "paper", num_classes=5).set_train(True)
    logits = network(Tensor(images)).asnumpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    buffers = dict(reference.named_buffers())
    for ours, theirs in (("moving_mean", "running_mean"), ("moving_variance", "running_var")):
        moved = network.parameters_dict()[f"layer2.0.bn1.{ours}"].asnumpy()
        np.testing.assert_allclose(moved, buffers[f"layer2.0.bn1.{theirs}"].numpy(), rtol=1e-4, atol=1e-5)


def test_drop_path_drops_whole_samples_and_scales_the_others():
    cell = DropPath(rate=0.25, column=1)
    uniforms = np.array([[0.9, 0.1], [0.1, 0.7499], [0.1, 0.75], [0.1, 0.99]], np.float32)
    scale = cell(Tensor(np.ones((4, 2, 3, 3), np.float32)), Tensor(uniforms)).asnumpy()
    np.testing.assert_allclose(scale, [1 / 0.75, 1 / 0.75, 0, 0], rtol=1e-6)


def test_drop_path_draws_for_itself_at_its_rate():
    count, rate = 4000, 0.3
    scale = DropPath(rate, column=0)(Tensor(np.ones((count, 1, 2, 2), np.float32))).asnumpy()
    dropped = scale == 0
    assert np.unique(scale).size == 2
    assert abs(dropped.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / count)


@pytest.mark.parametrize(("rate", "training"), [(0.9, False), (0.0, True)])
def test_drop_path_does_nothing_in_inference_and_at_rate_0(rate, training):
    units = [create_model("DDRNet23Slim", drop_path_rate=given).layer4[1].set_train(training) for given in (rate, 0.0)]
    for name, parameter in units[0].parameters_dict().items():
        parameter.set_data(units[1].parameters_dict()[name].value())
    images = Tensor(golden.images(shape=(3, 256, 4, 4)))
    one, other = (unit(images, Tensor(np.full((3, 14), 0.999, np.float32))).asnumpy() for unit in units)
    assert (one == other).all()


@pytest.mark.parametrize("on", ["branch", "shortcut"])
@pytest.mark.parametrize(
    ("unit", "channels"), [("layer1.1", 32), ("layer2.0", 32), ("layer3_.1", 64), ("layer5.0", 256)]
)
def test_drop_path_drops_the_branch_or_the_shortcut_and_scales_what_is_kept(unit, channels, on):
    network = create_model("DDRNet23Slim", drop_path_rate=0.9, drop_path_on=on).set_train(True)
    cell = dict(network.cells_and_names())[unit]
    images = Tensor(golden.images(shape=(3, channels, 8, 8)))
    uniforms = np.zeros((3, network.num_drop_paths), np.float32)
    uniforms[1] = 0.9999
    branch = images
    for i, (conv, norm) in enumerate(cell.blocks):
        branch = norm(conv(nn.ReLU()(branch) if i else branch))
    branch = branch.asnumpy()
    identity = (cell.downsample(images) if cell.has_projection else images).asnumpy()
    scale = np.array([1 / cell.drop_path.keep, 0, 1 / cell.drop_path.keep], np.float32).reshape(3, 1, 1, 1)
    want = branch * scale + identity if on == "branch" else branch + identity * scale
    if cell.last_relu:
        want = np.maximum(want, 0)
    out = cell(images, Tensor(uniforms)).asnumpy()
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)


ZOO_RATES = {  # of the original at drop_path_rate 0.1, DDRNet23
    "layer1": [0.0, 0.1 / 7], "layer2": [0.2 / 7, 0.3 / 7], "layer3": [0.4 / 7, 0.5 / 7], "layer4": [0.6 / 7, 0.1],
    "layer3_": [0.2 / 7, 0.3 / 7], "layer4_": [0.4 / 7, 0.5 / 7], "layer5_": [0.1], "layer5": [0.1],
}  # fmt: skip
PAPER_RATES = {  # l / L of 0.1, Huang et al., equation 4
    "layer1": [0.1 / 9, 0.2 / 9], "layer2": [0.3 / 9, 0.4 / 9], "layer3": [0.5 / 9, 0.6 / 9],
    "layer4": [0.7 / 9, 0.8 / 9], "layer3_": [0.5 / 9, 0.6 / 9], "layer4_": [0.7 / 9, 0.8 / 9],
    "layer5_": [0.1], "layer5": [0.1],
}  # fmt: skip


@pytest.mark.parametrize(
    ("flavour", "on", "drops_shortcut", "rates"),
    [
        ("zoo", "auto", True, ZOO_RATES),
        ("zoo", "branch", False, PAPER_RATES),
        ("paper", "auto", False, PAPER_RATES),
        ("paper", "shortcut", True, ZOO_RATES),
    ],
)
def test_each_flavour_drops_where_its_training_did_and_at_its_rates(flavour, on, drops_shortcut, rates):
    network = create_model("DDRNet23", drop_path_rate=0.1, flavour=flavour, drop_path_on=on)
    units = {name: cell for name, cell in network.cells_and_names() if isinstance(cell, Residual)}
    assert all(unit.drops_shortcut == drops_shortcut for unit in units.values())
    for stage, wanted in rates.items():
        got = [1 - units[f"{stage}.{i}"].drop_path.keep for i in range(len(wanted))]
        np.testing.assert_allclose(got, wanted, atol=1e-12, err_msg=stage)
    assert len(units) == sum(map(len, rates.values())) == network.num_drop_paths == 14
    assert sorted(unit.drop_path.column for unit in units.values()) == list(range(14))


def test_drop_path_rates_of_the_deeper_network_follow_the_same_rules():
    shortcut = drop_path_rates(ARCHITECTURES["DDRNet39"], 0.15, "shortcut")
    np.testing.assert_allclose(shortcut["layer1"] + shortcut["layer2"], np.arange(7) / 100)
    assert shortcut["layer3_1_"] == shortcut["layer2"][:3]
    assert shortcut["layer3_2_"] == shortcut["layer3_1"]
    assert shortcut["layer4_"] == shortcut["layer3_2"]
    np.testing.assert_allclose([shortcut["layer4"][2], shortcut["layer5"][0], shortcut["layer5_"][0]], 0.15)
    branch = drop_path_rates(ARCHITECTURES["DDRNet39"], 0.17, "branch")
    low = [rate for stage in ("1", "2", "3_1", "3_2", "4", "5") for rate in branch[f"layer{stage}"]]
    np.testing.assert_allclose(low, np.arange(1, 18) / 100)
    assert all(branch[f"layer{stage}_"] == branch[f"layer{stage}"] for stage in ("3_1", "3_2", "4", "5"))


def test_drop_path_of_a_network_follows_from_the_given_numbers_alone():
    network = create_model("DDRNet23Slim", 5, drop_path_rate=0.5).set_train(True)
    images = Tensor(golden.images(shape=(4, 3, 64, 64)))
    draw = np.random.default_rng(3)
    one, two = (Tensor(draw.random((4, network.num_drop_paths), np.float32)) for _ in range(2))
    first = network(images, one).asnumpy()
    network(images)
    assert (network(images, one).asnumpy() == first).all()
    assert np.abs(network(images, two).asnumpy() - first).max() > 1e-3


def test_convolutions_start_as_he_et_al_with_fan_out():
    """Within five standard errors: of a mean, sigma / sqrt(n); of a standard deviation, sigma / sqrt(2n)."""
    for name, cell in create_model("DDRNet23", flavour="paper").cells_and_names():
        if isinstance(cell, nn.Conv2d):
            weight = cell.weight.asnumpy()
            sigma = np.sqrt(2 / (weight.shape[0] * weight.shape[2] * weight.shape[3]))
            assert abs(weight.mean()) < 5 * sigma / np.sqrt(weight.size), name
            assert abs(weight.std() / sigma - 1) < 5 / np.sqrt(2 * weight.size), name
            assert cell.bias is None or not cell.bias.asnumpy().any(), name


def test_batch_norm_starts_neutral():
    for name, parameter in create_model("DDRNet23Slim").parameters_dict().items():
        if name.endswith((".gamma", ".moving_variance")):
            assert (parameter.asnumpy() == 1).all(), name
        if name.endswith((".beta", ".moving_mean")):
            assert not parameter.asnumpy().any(), name


@pytest.mark.parametrize(
    ("flavour", "deviation", "kurtosis"), [("zoo", 0.01, 3.0), ("paper", 1024**-0.5 / 3**0.5, 1.8)]
)
def test_the_classifier_starts_normal_in_the_zoos_flavour_and_uniform_in_the_papers(flavour, deviation, kurtosis):
    """The fourth moment tells a normal distribution, 3, from a uniform one, 1.8."""
    network = create_model("DDRNet23Slim", flavour=flavour)
    weight = network.linear.weight.asnumpy()
    assert weight.shape == (1000, 1024)
    assert abs(weight.mean()) < 5 * deviation / np.sqrt(weight.size)
    assert weight.std() == pytest.approx(deviation, rel=5 / np.sqrt(2 * weight.size))
    assert ((weight / weight.std()) ** 4).mean() == pytest.approx(kurtosis, rel=0.02)
    assert not network.linear.bias.asnumpy().any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"arch": "DDRNet50"}, ["arch", "DDRNet50", "DDRNet23Slim", "DDRNet39"]),
        ({"flavour": "vanilla"}, ["flavour", "vanilla", "zoo", "paper"]),
        ({"drop_path_on": "head"}, ["drop_path_on", "head", "auto", "branch", "shortcut"]),
    ],
)
def test_an_unknown_name_is_an_error_that_gives_the_known_ones(arguments, words):
    with pytest.raises(UserError) as error:
        create_model(**arguments)
    assert all(word in str(error.value) for word in words)
