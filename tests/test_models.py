"""The networks: published names and logits, other sizes, drop path, initialisation."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.args import parse_args
from src.errors import UserError
from src.models import ARCHITECTURES, create_model
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
def _pynative():
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    ms.set_seed(1)
    yield
    ms.set_context(mode=mode)


def golden_network(arch: str, flavour: str, num_classes: int = 1000) -> nn.Cell:
    network = create_model(arch, num_classes, flavour=flavour).set_train(False)
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


def test_parameters_are_those_of_the_checkpoint_on_mindspore_hub():
    shapes = {name: parameter.shape for name, parameter in create_model("DDRNet23").parameters_dict().items()}
    assert shapes == golden.parameters("ddrnet23_zoo_parameters.txt")
    assert len(shapes) == 227


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
    cell = DropPath(rate=0.25, column=1).set_train(True)
    images = np.ones((4, 2, 3, 3), np.float32)
    uniforms = np.array([[0.9, 0.1], [0.1, 0.7499], [0.1, 0.75], [0.1, 0.99]], np.float32)
    out = cell(Tensor(images), Tensor(uniforms)).asnumpy()
    np.testing.assert_allclose(out[:2], images[:2] / 0.75, rtol=1e-6)
    assert not out[2:].any()


def test_drop_path_draws_for_itself_at_its_rate():
    count, rate = 4000, 0.3
    out = DropPath(rate, column=0).set_train(True)(Tensor(np.ones((count, 1, 2, 2), np.float32))).asnumpy()
    dropped = (out == 0).all(axis=(1, 2, 3))
    kept = (out == out.max()).all(axis=(1, 2, 3))
    assert (dropped | kept).all()
    assert abs(dropped.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / count)


@pytest.mark.parametrize(("rate", "training"), [(0.5, False), (0.0, True)])
def test_drop_path_is_the_identity_in_inference_and_at_rate_0(rate, training):
    images = golden.images(shape=(3, 2, 4, 4))
    out = DropPath(rate, column=0).set_train(training)(Tensor(images), Tensor(np.full((3, 1), 0.999, np.float32)))
    assert (out.asnumpy() == images).all()


@pytest.mark.parametrize(
    ("unit", "channels"), [("layer1.1", 32), ("layer1.0", 32), ("layer2.0", 32), ("layer5.0", 256)]
)
def test_drop_path_acts_on_the_residual_branch_and_never_on_the_identity(unit, channels):
    network = create_model("DDRNet23Slim", drop_path_rate=0.9).set_train(True)
    cell = dict(network.cells_and_names())[unit]
    images = Tensor(golden.images(shape=(3, channels, 8, 8)))
    uniforms = np.zeros((3, network.num_drop_paths), np.float32)
    uniforms[1] = 0.9999
    out = cell(images, Tensor(uniforms)).asnumpy()
    identity = (cell.downsample(images) if cell.has_projection else images).asnumpy()
    if cell.last_relu:
        identity = np.maximum(identity, 0)
    np.testing.assert_allclose(out[1], identity[1], atol=1e-6)
    for kept in (0, 2):
        assert np.abs(out[kept] - identity[kept]).max() > 0.1


@pytest.mark.parametrize("arch", list(ARCHITECTURES))
def test_drop_path_rate_rises_linearly_with_depth(arch):
    network = create_model(arch, drop_path_rate=0.2)
    units = {name: cell for name, cell in network.cells_and_names() if isinstance(cell, Residual)}
    stages = ["layer1", "layer2", *(f"layer{part}" for part in ARCHITECTURES[arch].third), "layer4", "layer5"]
    low = [name for stage in stages for name in units if name.startswith(f"{stage}.")]
    for depth, name in enumerate(low, 1):
        assert 1 - units[name].drop_path.keep == pytest.approx(0.2 * depth / len(low))
    for name, cell in units.items():
        if name not in low:
            assert cell.drop_path.keep == units[name.replace("_.", ".")].drop_path.keep
    assert sorted(cell.drop_path.column for cell in units.values()) == list(range(network.num_drop_paths))


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


def test_batch_norm_and_classifier_start_neutral():
    network = create_model("DDRNet23Slim")
    for name, parameter in network.parameters_dict().items():
        if name.endswith((".gamma", ".moving_variance")):
            assert (parameter.asnumpy() == 1).all(), name
        if name.endswith((".beta", ".moving_mean")):
            assert not parameter.asnumpy().any(), name
    weight = network.linear.weight.asnumpy()
    bound = 1 / np.sqrt(weight.shape[1])
    assert np.abs(weight).max() <= bound
    assert weight.std() == pytest.approx(bound / np.sqrt(3), rel=0.01)
    assert not network.linear.bias.asnumpy().any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"arch": "DDRNet50"}, ["arch", "DDRNet50", "DDRNet23Slim", "DDRNet39"]),
        ({"flavour": "vanilla"}, ["flavour", "vanilla", "zoo", "paper"]),
    ],
)
def test_an_unknown_name_is_an_error_that_gives_the_known_ones(arguments, words):
    with pytest.raises(UserError) as error:
        create_model(**arguments)
    assert all(word in str(error.value) for word in words)
