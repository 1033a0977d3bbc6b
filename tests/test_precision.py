"""Mixed precision, and batch norm folded for inference."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.errors import UserError
from src.models import create_model
from src.models.fold import fold_batch_norm, refold
from src.tools.cell import cast_amp
from tests.golden import weights

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)


def network(flavour: str = "zoo"):
    net = create_model("DDRNet23Slim", 10, flavour=flavour)
    for parameter in net.get_parameters():
        parameter.set_data(Tensor(weights.value(parameter.name, parameter.shape)))
    return net.set_train(False)


@pytest.mark.parametrize(
    ("level", "keep", "half_conv", "half_norm", "half_head"),
    [
        ("O0", True, False, False, False),
        ("O1", True, True, False, False),
        ("O2", True, True, False, False),
        ("O2", False, True, True, False),
        ("O3", True, True, False, True),
        ("O3", False, True, True, True),
    ],
)
def test_levels_choose_what_computes_in_float16(level, keep, half_conv, half_norm, half_head):
    net = cast_amp(network(), level, keep)
    seen = {}

    def note(kind):
        def hook(cell, inputs, output) -> None:
            seen[kind] = output.dtype

        return hook

    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        net.layer1[0].conv1.register_forward_hook(note("conv"))
        net.layer1[0].bn1.register_forward_hook(note("norm"))
        net.linear.register_forward_hook(note("head"))
        net(Tensor(IMAGES))
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    want = {"conv": half_conv, "norm": half_norm, "head": half_head}
    assert seen == {kind: ms.float16 if half else ms.float32 for kind, half in want.items()}
    assert all(p.dtype == ms.float32 for p in net.get_parameters())


@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_half_precision_logits_stay_near_single_precision(level):
    want = network()(Tensor(IMAGES)).asnumpy()
    got = cast_amp(network(), level, True)(Tensor(IMAGES)).asnumpy().astype(np.float32)
    assert 0 < np.abs(got - want).max() < 0.02 * np.abs(want).max()


@pytest.mark.parametrize("flavour", ["zoo", "paper"])
def test_folding_batch_norm_changes_logits_by_rounding_alone(flavour):
    net = network(flavour)
    folded = fold_batch_norm(net)
    want = net(Tensor(IMAGES)).asnumpy()
    np.testing.assert_allclose(folded(Tensor(IMAGES)).asnumpy(), want, atol=1e-5 * np.abs(want).max())
    assert not any(isinstance(cell, nn.BatchNorm2d) for _, cell in folded.cells_and_names())


def test_what_a_changed_network_adds_is_folded_too_or_refused():
    net = network()
    net.extra_conv, net.extra_norm = nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)
    net.extra_head = nn.Dense(3, 2)
    copy = fold_batch_norm(net)
    for parameter in net.get_parameters():
        if parameter.name.startswith("extra") or parameter.name == "linear.weight":
            parameter.set_data(parameter + 1.0)
    refold(net, copy)
    for name in ("extra_conv.weight", "extra_norm.gamma", "extra_head.weight", "linear.weight"):
        own, folded = (cell.parameters_dict()[name].asnumpy() for cell in (net, copy))
        np.testing.assert_array_equal(own, folded)
    images = Tensor(IMAGES)
    np.testing.assert_allclose(copy(images).asnumpy(), net(images).asnumpy(), atol=1e-3)
    copy.another = nn.Dense(3, 2)
    with pytest.raises(UserError, match=r"another\..*the network has none of that shape"):
        refold(net, copy)


def test_refolding_follows_new_weights():
    net = network()
    folded = fold_batch_norm(net)
    before = folded(Tensor(IMAGES)).asnumpy()
    for parameter in net.get_parameters():
        if parameter.name.endswith(("moving_mean", "gamma")):
            parameter.set_data(parameter * 1.5)
    refold(net, folded)
    after = folded(Tensor(IMAGES)).asnumpy()
    want = net(Tensor(IMAGES)).asnumpy()
    assert np.abs(after - before).max() > 0.01
    np.testing.assert_allclose(after, want, atol=1e-5 * np.abs(want).max())
