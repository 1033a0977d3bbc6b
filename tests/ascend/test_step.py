"""The training step on MindSpore's Ascend code: what it compiles to, and how it is fed."""

import re

import pytest

from tests.ascend.conftest import Ascend

WHICH = """
import mindspore as ms
from mindspore import amp
from src.distributed.ascend import saturates

ms.set_device("Ascend", 0)
print("OUT", saturates(), amp._ascend_910a_target(), flush=True)
"""


@pytest.mark.parametrize("soc", ["Ascend910A", "Ascend910B", "Ascend910ProB", "Ascend910B2C", "Ascend910_9391"])
def test_saturating_chips_are_those_that_mindspore_s_amp_takes_for_it(ascend: Ascend, tmp_path, soc):
    log = ascend.python(WHICH, tmp_path, soc=soc).stdout
    [(ours, amp)] = re.findall(r"^OUT (\w+) (\w+)$", log, re.MULTILINE)
    assert ours == amp


def test_saturation_mode_makes_any_chip_saturate(ascend: Ascend, tmp_path):
    log = ascend.python(WHICH, tmp_path, soc="Ascend910B1", MS_ASCEND_CHECK_OVERFLOW_MODE="SATURATION_MODE").stdout
    assert re.findall(r"^OUT (\w+) \w+$", log, re.MULTILINE) == ["True"], log[-2000:]
