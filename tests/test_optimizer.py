"""Each optimizer against its paper's formula in float64: two parameters, of which only the weight decays."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from src.args import Config
from src.kernels.build import library
from src.models import create_model
from src.tools.optimizer import create_optimizer, takes_decay

RATES = np.array([0.1, 0.05, 0.2, 0.01], np.float32)
DECAY, BETA, EPS = 0.03, (0.9, 0.99), 1e-6


class Two(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(3)
        self.weight = Parameter(Tensor(rng.standard_normal((4, 3)).astype(np.float32)), name="conv.weight")
        self.bias = Parameter(Tensor(rng.standard_normal(4).astype(np.float32)), name="conv.bias")


def momentum(w, g, state, rate, decay, t):
    g = g + decay * w
    m = state["m"] = 0.9 * state.get("m", 0) + g
    return w - rate * (g + 0.9 * m)


def adamw(w, g, state, rate, decay, t):
    m = state["m"] = BETA[0] * state.get("m", 0) + (1 - BETA[0]) * g
    v = state["v"] = BETA[1] * state.get("v", 0) + (1 - BETA[1]) * g * g
    root = np.sqrt(1 - BETA[1] ** t)
    return w * (1 - rate * decay) - rate * root / (1 - BETA[0] ** t) * m / (np.sqrt(v) + EPS)


def lamb(w, g, state, rate, decay, t):
    m = state["m"] = BETA[0] * state.get("m", 0) + (1 - BETA[0]) * g
    v = state["v"] = BETA[1] * state.get("v", 0) + (1 - BETA[1]) * g * g
    step = m / (1 - BETA[0] ** t) / (np.sqrt(v / (1 - BETA[1] ** t)) + EPS) + decay * w
    return w - rate * np.linalg.norm(w) / np.linalg.norm(step) * step


def rmsprop(w, g, state, rate, decay, t):
    g = g + decay * w
    s = state["s"] = 0.9 * state.get("s", 1) + 0.1 * g * g  # starts at one, as TensorFlow's does
    m = state["m"] = 0.9 * state.get("m", 0) + rate * g / np.sqrt(s + EPS)
    return w - m


def update(optimizer: nn.Optimizer, gradients: list) -> None:
    """An update as the training step makes it: the native one multiplies the gradients by a factor, here 1 / 8."""
    if getattr(optimizer, "takes_factor", False):
        optimizer(tuple(Tensor(gradient * 8) for gradient in gradients), Tensor(0.125, ms.float32))
    else:
        optimizer(tuple(map(Tensor, gradients)))


needs_compiler = pytest.mark.skipif(library() is None, reason="there is no C++ compiler")
NATIVE = [False, pytest.param(True, marks=needs_compiler)]


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize(
    ("name", "rule"),
    [("momentum", momentum), ("sgd", momentum), ("adamw", adamw), ("lamb", lamb), ("rmsprop", rmsprop)],
)
def test_four_updates_equal_the_formula(name, rule, native):
    network = Two()
    config = Config(optimizer=name, weight_decay=DECAY, beta=BETA, eps=EPS, momentum=0.9, decay=0.9)
    optimizer = create_optimizer(network, config, RATES, native)
    weights = [p.asnumpy().astype(np.float64) for p in network.trainable_params()]
    states = [{}, {}]
    rng = np.random.default_rng(4)
    for t, rate in enumerate(RATES, 1):
        gradients = [rng.standard_normal(w.shape).astype(np.float32) for w in weights]
        update(optimizer, gradients)
        for i, decay in enumerate((DECAY, 0.0)):
            weights[i] = rule(weights[i], gradients[i].astype(np.float64), states[i], float(rate), decay, t)
    for parameter, want in zip(network.trainable_params(), weights):
        np.testing.assert_allclose(parameter.asnumpy(), want, rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("name", ["momentum", "adamw", "lamb", "rmsprop"])
def test_the_heads_rate_is_scaled_and_the_others_is_not(name, native):
    def moved(scale: float) -> list[np.ndarray]:
        network = Two()
        network.weight.name, network.bias.name = "linear.weight", "conv.bias"
        before = [p.asnumpy().copy() for p in network.trainable_params()]
        config = Config(optimizer=name, head_lr_scale=scale, weight_decay=0.0)
        optimizer = create_optimizer(network, config, RATES, native)
        update(optimizer, [np.ones((4, 3), np.float32), np.ones(4, np.float32)])
        return [p.asnumpy() - old for p, old in zip(network.trainable_params(), before)]

    (head, other), (scaled_head, same) = moved(1.0), moved(3.0)
    np.testing.assert_allclose(scaled_head, 3 * head, rtol=1e-4)
    np.testing.assert_allclose(same, other, rtol=1e-5)


@pytest.mark.parametrize("native", NATIVE)
def test_plain_momentum_is_not_nesterovs(native):
    network = Two()
    before = network.weight.asnumpy().copy()
    optimizer = create_optimizer(network, Config(use_nesterov=False, weight_decay=0.0), RATES, native)
    for _ in range(2):
        update(optimizer, [np.ones((4, 3), np.float32), np.ones(4, np.float32)])
    np.testing.assert_allclose(network.weight.asnumpy(), before - 0.1 - 0.05 * 1.9, rtol=1e-5)


def test_decay_acts_on_convolutions_and_the_classifiers_weight_alone():
    names = [p.name for p in create_model("DDRNet23Slim", 10).trainable_params() if takes_decay(p)]
    assert all(name.endswith(".weight") for name in names)
    assert len(names) == 45 + 1


def test_an_optimizer_that_has_a_name_and_no_rule_is_not_another():
    config = Config().model_copy(update={"optimizer": "adagrad"})
    with pytest.raises(NotImplementedError, match="optimizer: adagrad"):
        create_optimizer(Two(), config, RATES)
