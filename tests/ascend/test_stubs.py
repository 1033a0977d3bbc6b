"""With the stubs MindSpore takes this machine for one with a chip, and chooses what it would choose there."""

import re

import pytest

from tests.ascend.conftest import Ascend

PROGRAM = """
import os
import mindspore as ms
import numpy as np
from mindspore import amp

@ms.jit
def double(x):
    return x * 2

ms.set_context(mode=ms.GRAPH_MODE)
ms.set_device("Ascend", 0)
print("OUT", ms.get_context("device_target"), amp._ascend_910a_target(), flush=True)
double(ms.Tensor(np.ones(3, np.float32)))  # without the dry run it ends in the stubs
"""


@pytest.mark.parametrize(("soc", "saturates", "backend"), [("Ascend910A", True, 1), ("Ascend910B1", False, 0)])
def test_a_chip_has_its_backend_and_its_way_to_see_an_overflow(ascend: Ascend, tmp_path, soc, saturates, backend):
    log = ascend.python(PROGRAM, tmp_path, soc=soc, GLOG_v=1).stdout
    assert re.findall(r"^OUT (.*)$", log, re.MULTILINE) == [f"Ascend {saturates}"], log[-2000:]
    assert {int(number) for number in re.findall(r"created backend type: ([01])", log)} == {backend}


def test_in_the_dry_run_a_jitted_function_runs_to_its_end(ascend: Ascend, tmp_path):
    run = ascend.python(PROGRAM + "print('OUT end')", tmp_path, simulated=True)
    assert run.returncode == 0, run.stdout[-2000:]
    assert "OUT end" in run.stdout
