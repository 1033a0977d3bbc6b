"""The training step on a small network, against NumPy in float64."""

from typing import Optional

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.args import Config
from src.errors import TrainingStopped
from src.kernels.build import library
from src.parameters import assign
from src.tools.criterion import NetworkWithLoss, SoftTargetCrossEntropy
from src.tools.optimizer import create_optimizer
from src.trainers.health import MOST_STUCK
from src.trainers.train_one_step import TrainOneStep

RATES = np.array([0.5, 0.4, 0.3, 0.2, 0.1, 0.05], np.float32)
FEATURES, CLASSES = 5, 4


class Linear(nn.Cell):
    """A linear classifier whose gradient is known in closed form; infinite inputs give infinite gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Dense(FEATURES, CLASSES, weight_init="normal", bias_init="normal")

    def construct(self, x: Tensor, uniforms: Tensor = None) -> Tensor:
        return self.linear(x)


class Reference:
    """Nesterov momentum on softmax cross entropy, clipped by global norm, decaying weights and not biases."""

    def __init__(self, network: Linear, config: Config, clip: Optional[float] = None) -> None:
        self.config, self.clip, self.updates = config, clip, 0
        self.weights = [p.asnumpy().astype(np.float64) for p in network.trainable_params()]
        self.moments = [np.zeros_like(w) for w in self.weights]

    def gradients(self, x: np.ndarray, targets: np.ndarray) -> tuple:
        logits = x @ self.weights[0].T + self.weights[1]
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        loss = -(targets * np.log(shares)).sum(1).mean()
        off = (shares - targets) / len(x)
        return loss, [off.T @ x, off.sum(0)]

    def update(self, gradients: list) -> None:
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        shrink = min(1.0, self.clip / norm) if self.clip else 1.0
        rate, momentum = RATES[self.updates], self.config.momentum
        for i, decay in enumerate((self.config.weight_decay, 0.0)):
            gradient = gradients[i] * shrink + decay * self.weights[i]
            self.moments[i] = momentum * self.moments[i] + gradient
            self.weights[i] = self.weights[i] - rate * (gradient + momentum * self.moments[i])
        self.updates += 1


@pytest.fixture(params=["mindspore", "native"], autouse=True)
def native(request) -> bool:
    """Every test runs on MindSpore's operators and on the kernels for the CPU."""
    if request.param == "native" and library() is None:
        pytest.skip("there is no C++ compiler")
    make.native = request.param == "native"
    return make.native


def make(clip=None, scale=None, accumulation=1, ema_decay=0.0, optimizer="momentum"):
    ms.set_seed(1)
    network = Linear()
    config = Config(weight_decay=0.01, optimizer=optimizer)
    optimizer = create_optimizer(network, config, RATES, make.native)
    step = TrainOneStep(
        NetworkWithLoss(network, SoftTargetCrossEntropy()),
        optimizer,
        RATES,
        loss_scale=scale,
        clip_norm=clip,
        accumulation=accumulation,
        ema_decay=ema_decay,
        native=make.native,
    )
    return network, step.set_train(), Reference(network, config, clip)


def batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((8, FEATURES)).astype(np.float32), rng.dirichlet(np.ones(CLASSES), 8).astype(np.float32)


def values(network: nn.Cell) -> list[np.ndarray]:
    return [p.asnumpy().copy() for p in network.trainable_params()]


def assert_equal(network: nn.Cell, reference: Reference) -> None:
    for got, want in zip(values(network), reference.weights):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [None, 64.0])
@pytest.mark.parametrize("clip", [None, 0.05, 1000.0])
def test_steps_equal_the_reference(clip, scale):
    network, step, reference = make(clip, scale)
    for seed in range(4):
        loss, gradients = reference.gradients(*batch(seed))
        reference.update(gradients)
        assert float(step(*map(Tensor, batch(seed))).asnumpy()) == pytest.approx(loss, rel=1e-5)
    assert_equal(network, reference)


def test_accumulated_batches_make_one_update_of_their_mean():
    network, step, reference = make(clip=0.3, accumulation=3)
    for update in range(2):
        before = values(network)
        gradients = []
        for place in range(3):
            data = batch(10 * update + place)
            gradients.append(reference.gradients(*data)[1])
            assert all(np.array_equal(a, b) for a, b in zip(before, values(network)))
            step(*map(Tensor, data))
        reference.update([np.mean(parts, 0) for parts in zip(*gradients)])
        assert_equal(network, reference)
    assert int(step.optimizer.global_step.asnumpy()[0]) == 2


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_infinity_skips_the_update_and_halves_the_scale(accumulation):
    network, step, reference = make(clip=1.0, accumulation=accumulation)
    for _ in range(accumulation):
        step(*map(Tensor, batch(0)))
    moments = [p.asnumpy().copy() for p in step.optimizer.moments]
    before = values(network)
    poisoned = batch(1)
    poisoned[0][3, 2] = np.inf
    step(*map(Tensor, poisoned))
    for _ in range(accumulation - 1):
        step(*map(Tensor, batch(2)))
    assert all(np.array_equal(a, b) for a, b in zip(before, values(network)))
    assert all(np.array_equal(a, p.asnumpy()) for a, p in zip(moments, step.optimizer.moments))
    assert float(step.loss_scale.value.asnumpy()) == 2048
    assert step.learning_rate() == pytest.approx(0.4)
    assert step.take_totals()["overflows"] == 1
    for _ in range(accumulation):
        reference_gradients = reference.gradients(*batch(0))[1]
        step(*map(Tensor, batch(3)))
    reference.update(reference_gradients)
    reference.update(reference.gradients(*batch(3))[1])
    assert_equal(network, reference)


def test_a_fixed_scale_never_moves_and_overflow_still_skips():
    network, step, _ = make(scale=128.0)
    before = values(network)
    poisoned = batch(1)
    poisoned[0][0, 0] = np.nan
    step(*map(Tensor, poisoned))
    assert float(step.loss_scale.value.asnumpy()) == 128
    assert all(np.array_equal(a, b) for a, b in zip(before, values(network)))


def test_the_scale_doubles_after_a_window_of_good_updates_and_stops_at_its_floor():
    _, step, _ = make()
    step.loss_scale.good_updates.set_data(Tensor(998, ms.int32))
    scales = []
    for seed in range(3):
        step(*map(Tensor, batch(seed)))
        scales.append(float(step.loss_scale.value.asnumpy()))
    assert scales == [4096, 8192, 8192]
    poisoned = batch(1)
    poisoned[0][:] = np.inf
    for _ in range(15):
        step(*map(Tensor, poisoned))
    assert float(step.loss_scale.value.asnumpy()) == 1


def test_the_scale_grows_to_its_ceiling_and_no_further():
    _, step, _ = make()
    scales = []
    for value in (2.0**23, 2.0**24):
        assign(step.loss_scale.value, np.array(value, np.float32))
        assign(step.loss_scale.good_updates, np.array(999, np.int32))
        step(*map(Tensor, batch(0)))
        scales.append(float(step.loss_scale.value.asnumpy()))
    assert scales == [2.0**24, 2.0**24]


def test_updates_that_overflow_on_and_on_stop_the_run():
    _, step, _ = make()
    poisoned = batch(1)
    poisoned[0][:] = np.inf
    for _ in range(12 + MOST_STUCK - 1):
        step(*map(Tensor, poisoned))
        step.check_health()
    step(*map(Tensor, poisoned))
    with pytest.raises(
        TrainingStopped, match=r"20 updates in a row overflowed at update 0, learning rate 0.5, .* scale 1;"
    ):
        step.check_health()


def test_a_loss_that_is_not_finite_though_the_gradients_are_stops_the_run():
    _, step, _ = make()
    images, targets = batch(0)
    step(Tensor(images), Tensor(targets))
    step.check_health()

    class Infinite(nn.Cell):
        def construct(self, logits: Tensor, targets: Tensor) -> Tensor:
            return ms.ops.stop_gradient(Tensor(np.inf, ms.float32)) + logits.sum() * 0.001

    network = Linear()
    optimizer = create_optimizer(network, Config(), RATES, make.native)
    step = TrainOneStep(NetworkWithLoss(network, Infinite()), optimizer, RATES, native=make.native).set_train()
    step(Tensor(images), Tensor(targets))
    with pytest.raises(TrainingStopped, match="the loss is not finite at update 1"):
        step.check_health()


def test_averaged_weights_are_the_bias_corrected_mean_of_the_past():
    network, step, _ = make(ema_decay=0.8)
    assert step.averaged_weights() is None
    past = []
    for seed in range(3):
        step(*map(Tensor, batch(seed)))
        past.append(network.linear.weight.asnumpy().copy())
    shares = np.array([0.8**2, 0.8, 1.0])
    want = sum(share * value for share, value in zip(shares / shares.sum(), past))
    np.testing.assert_allclose(step.averaged_weights()["linear.weight"], want, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw", "lamb", "rmsprop"])
def test_values_assigned_between_two_steps_are_what_the_next_goes_on_from(optimizer):
    ms.set_context(mode=ms.GRAPH_MODE)
    ends = []
    for interrupts in (False, True):
        _, step, _ = make(ema_decay=0.8, accumulation=2, optimizer=optimizer)
        for seed in range(6):
            step(*map(Tensor, batch(seed)))
            if interrupts:
                for parameter in step.get_parameters():
                    assign(parameter, parameter.asnumpy().copy())
        ends.append({parameter.name: parameter.asnumpy().copy() for parameter in step.get_parameters()})
    assert int(ends[0]["averaged_updates"]) == 3
    for name, values in ends[0].items():
        np.testing.assert_array_equal(ends[1][name], values, err_msg=name)


def test_every_parameter_has_exactly_one_role_and_its_name_of_old():
    """Checkpoints of earlier revisions hold these names."""
    _, step, _ = make(ema_decay=0.8, accumulation=2)
    roles = [*step.replicated(), *step.local(), *step.transient()]
    assert sorted(map(id, roles)) == sorted(map(id, step.get_parameters()))
    counters = {"loss_scale", "good_updates", "loss_sum", "losses", "unknown_losses", "overflows", "failures", "stuck"}
    moments = {"moments.linear.weight", "moments.linear.bias"}
    averages = {"average.linear.weight", "average.linear.bias", "averaged_updates"}
    assert set(step.state()) == {"global_step", *counters, *moments, *averages}
    assert {parameter.name for parameter in step.local()} == {"loss_sum", "losses", "unknown_losses", "failures"}


def test_batch_norm_s_statistics_are_each_rank_s_own():
    network = nn.SequentialCell(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Dense(2, 2))
    optimizer = create_optimizer(network, Config(), RATES)
    step = TrainOneStep(NetworkWithLoss(network, SoftTargetCrossEntropy()), optimizer, RATES, ema_decay=0.8)
    names = [parameter.name for parameter in step.statistics()]
    assert names == ["1.moving_mean", "1.moving_variance", "average.1.moving_mean", "average.1.moving_variance"]
    assert not {*names} & {parameter.name for parameter in step.replicated()}
    assert {*names} <= {parameter.name for parameter in step.local()}
    assert {*names[2:]} == {name for name in step.state() if "moving" in name}


def test_totals_are_means_since_the_last_call():
    _, step, _ = make()
    losses = [float(step(*map(Tensor, batch(seed))).asnumpy()) for seed in range(3)]
    assert step.take_totals()["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    last = float(step(*map(Tensor, batch(7))).asnumpy())
    assert step.take_totals() == {"loss": pytest.approx(last), "loss_scale": 4096.0, "overflows": 0}
