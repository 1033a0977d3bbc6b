"""Learning rates against their closed forms."""

import math

import numpy as np
import pytest
from mindspore import nn

from src.args import Config
from src.assembly import build_step
from src.errors import UserError
from src.tools.schedulers import learning_rates

BASE = {"batch_size": 64, "device_num": 2, "accumulation_step": 4, "epochs": 20, "warmup_length": 5}
SCALE = 64 * 2 * 4 / 256


def test_warmup_is_a_straight_line_to_the_base_rate():
    rates = learning_rates(Config(**BASE, warmup_lr=0.01, base_lr=0.4), 10)
    assert len(rates) == 200
    np.testing.assert_allclose(rates[:50], SCALE * (0.01 + 0.39 * np.arange(50) / 50), rtol=1e-6)
    assert rates[50] == pytest.approx(0.4 * SCALE)


def test_cosine_goes_from_the_base_rate_to_the_minimum():
    rates = learning_rates(Config(**BASE, base_lr=0.4, min_lr=0.02), 10)
    for update in (50, 87, 199):
        share = (1 + math.cos(math.pi * (update - 50) / 150)) / 2
        assert rates[update] == pytest.approx(SCALE * (0.02 + 0.38 * share), rel=1e-6)


def test_multistep_falls_every_lr_adjust_epochs_from_the_start_without_warmup():
    rates = learning_rates(Config(**BASE, lr_scheduler="multistep_lr", lr_adjust=8, lr_gamma=0.5), 10)
    assert rates[[0, 10, 79, 80, 159, 160, 199]] == pytest.approx(
        np.array([1, 1, 1, 0.5, 0.5, 0.25, 0.25]) * 0.1 * SCALE
    )


def test_exponential_decays_with_the_fraction_of_epochs_since_the_start():
    rates = learning_rates(Config(**BASE, warmup_lr=0.01, lr_scheduler="exp_lr", lr_gamma=0.9), 10)
    np.testing.assert_allclose(rates[:50], SCALE * (0.01 + 0.09 * np.arange(50) / 50), rtol=1e-6)
    np.testing.assert_allclose(rates[50:], SCALE * 0.1 * 0.9 ** (np.arange(50, 200) / 10), rtol=1e-6)


def test_constant_is_constant_after_warmup():
    rates = learning_rates(Config(**BASE, warmup_lr=0.01, lr_scheduler="constant_lr"), 10)
    np.testing.assert_allclose(rates[:50], SCALE * (0.01 + 0.09 * np.arange(50) / 50), rtol=1e-6)
    np.testing.assert_allclose(rates[50:], np.full(150, 0.1 * SCALE), rtol=1e-6)


@pytest.mark.parametrize("scheduler", ["multistep_lr", "exp_lr", "constant_lr"])
def test_all_but_cosine_have_min_lr_as_their_floor_in_warmup_too(scheduler):
    keys = {**BASE, "lr_scheduler": scheduler, "lr_adjust": 1, "lr_gamma": 0.1, "warmup_lr": 0.001}
    free, floored = (learning_rates(Config(**keys, min_lr=floor), 10) for floor in (0.0, 0.02))
    np.testing.assert_allclose(floored, np.maximum(free, 0.02 * SCALE), rtol=1e-6)
    assert free.min() < 0.02 * SCALE


def test_a_base_rate_below_the_floor_stays_as_it_is():
    rates = learning_rates(Config(**BASE, lr_scheduler="constant_lr", base_lr=1e-6, warmup_lr=1e-7, min_lr=1e-5), 10)
    assert rates == pytest.approx(np.full(200, 1e-6 * SCALE))


def test_lr_gamma_is_097_unless_told():
    rates = learning_rates(Config(**BASE, lr_scheduler="multistep_lr", lr_adjust=10), 10)
    assert rates[[0, 100]] == pytest.approx([0.1 * SCALE, 0.097 * SCALE])


def test_a_run_shorter_than_its_warmup_goes_the_part_of_the_way_that_it_has_time_for():
    rates = learning_rates(Config(**{**BASE, "epochs": 2}, warmup_lr=0.0, base_lr=0.4), 10)
    np.testing.assert_allclose(rates, SCALE * 0.4 * np.arange(20) / 50, rtol=1e-6)


def test_a_run_of_too_many_updates_is_refused_before_its_curve_fills_the_memory():
    with pytest.raises(UserError, match="epochs: 100000 of 5000 updates are 500000000 in all"):
        learning_rates(Config(epochs=100_000), 5000)


def test_epochs_that_count_as_done_are_left_out_of_the_steps_rates():
    keys = {"batch_size": 256, "epochs": 5, "start_epoch": 3, "device_target": "CPU", "cpu_kernels": "mindspore"}
    config = Config(**keys, lr_scheduler="multistep_lr", lr_adjust=1, lr_gamma=0.5)
    step = build_step(config, nn.SequentialCell(nn.Dense(2, 2)), updates=2)
    assert step.rates == pytest.approx([0.0125, 0.0125, 0.00625, 0.00625])
    assert step.learning_rate() == pytest.approx(0.0125)


def test_a_schedule_that_has_a_name_and_no_curve_is_not_another():
    with pytest.raises(NotImplementedError, match="lr_scheduler: poly_lr"):
        learning_rates(Config(**BASE).model_copy(update={"lr_scheduler": "poly_lr"}), 10)
