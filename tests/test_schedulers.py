"""Learning rates against their closed forms."""

import math

import numpy as np
import pytest

from src.args import Config
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


def test_multistep_exponential_and_constant_rates():
    multistep = learning_rates(Config(**BASE, lr_scheduler="multistep_lr", lr_adjust=8, lr_gamma=0.5), 10)
    assert multistep[[79, 80, 160]] == pytest.approx([0.1 * SCALE, 0.05 * SCALE, 0.025 * SCALE])
    exponential = learning_rates(Config(**BASE, lr_scheduler="exp_lr", lr_gamma=0.9), 10)
    assert exponential[[50, 60, 199]] == pytest.approx([0.1 * SCALE, 0.09 * SCALE, 0.1 * 0.9**14 * SCALE])
    constant = learning_rates(Config(**BASE, lr_scheduler="constant_lr"), 10)
    assert constant[50:] == pytest.approx(np.full(150, 0.1 * SCALE))


def test_a_run_shorter_than_its_warmup_only_warms_up():
    rates = learning_rates(Config(**{**BASE, "epochs": 2}), 10)
    assert len(rates) == 20
    assert (np.diff(rates) > 0).all()
