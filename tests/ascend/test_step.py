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


SMALL = """
import mindspore as ms
import numpy as np
from src.args import Config
from src.distributed.join import join
from src.tools.criterion import NetworkWithLoss, SoftTargetCrossEntropy
from src.tools.optimizer import create_optimizer
from src.trainers.saturation import FloatStatus
from src.trainers.train_one_step import TrainOneStep
from tests.rank_checks import Network, filled, global_batch

config, ranks = join(Config(device_target="Ascend"))
rates = np.full(4, 0.1, np.float32)
network = filled(Network(), 1)
step = TrainOneStep(
    NetworkWithLoss(network, SoftTargetCrossEntropy()), create_optimizer(network, config, rates), rates, ranks.world,
    clip_norm=0.1, ema_decay=0.5, accumulation=2, float_status=FloatStatus(),
).set_train()
step.compile(*map(ms.Tensor, global_batch(0)))
print("OUT compiled", flush=True)
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_small_step_s_kernels_are_ascend_s_and_the_flag_is_cleared_first_and_read_behind_the_gradients(
    ascend: Ascend, tmp_path, ranks
):
    log = ascend.python(SMALL, tmp_path, simulated=True, timeout=300, GLOG_v=1, RANK_SIZE=ranks).stdout
    assert "OUT compiled" in log, log[-3000:]
    assert "backoff CPU kernel" not in log  # what MindSpore says where an operator goes to the host
    kernels = re.findall(r"kernel opname:(\w+), kernel type:(\w+)", log)
    across = {"hccl_kernel"} if ranks > 1 else set()
    assert {kind for _, kind in kernels} == {"acl_kernel", "opapi_kernel", "rt_kernel"} | across
    names = [name for name, _ in kernels]
    assert names.index("NPUClearFloatStatusV2") < names.index("Conv2D")
    assert names.index("Conv2DBackpropFilter") < names.index("NPUGetFloatStatusV2") < names.index("SGD")
