"""The whole step and the programs around it in MindSpore's dry run for Ascend: every kernel is Ascend's.

Takes long, so `ASCEND_FULL=1` asks for it: DDRNet23 and its slim sister with every optimizer and precision.
"""

import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.ascend.conftest import Ascend
from tests.conftest import ROOT, TINY

if not os.environ.get("ASCEND_FULL"):
    pytest.skip("ASCEND_FULL=1 runs it", allow_module_level=True)

COMPILE = """
import sys
import mindspore as ms
import numpy as np
from src.args import parse_args
from src.assembly import build_network, build_step
from src.distributed.join import join
from src.distributed.ranks import Ranks

config, _ = join(parse_args(sys.argv[1:])[0])
network = build_network(config)
step = build_step(config, network, 10, Ranks())
shapes = [(config.batch_size, 3, config.image_size, config.image_size), (config.batch_size, config.num_classes)]
if config.drop_path_rate:
    shapes.append((config.batch_size, network.num_drop_paths))
step.compile(*(ms.Tensor(np.zeros(shape, np.float32)) for shape in shapes))
print("OUT compiled", flush=True)
"""
SLIM = ["--arch", "DDRNet23Slim", "--image_size", 64, "--batch_size", 8, "--num_classes", 10]
ALL_ON = ["--drop_path_rate", 0.1, "--ema_decay", 0.99, "--accumulation_step", 2]
SATURATION = {"MS_ASCEND_CHECK_OVERFLOW_MODE": "SATURATION_MODE"}


def kernels_of(ascend: Ascend, folder: Path, flags: list, **values: object) -> list[tuple[str, str]]:
    """Compile the step of a configuration; the operators in their order, each with the type of kernel it got."""
    (folder / "program.py").write_text(COMPILE)
    command = [sys.executable, "program.py", "--ddr_config", TINY, "--device_target", "Ascend", *flags]
    run = ascend.run(command, folder, timeout=600, simulated=True, GLOG_v=1, **values)
    assert "OUT compiled" in run.stdout, run.stdout[-3000:]
    assert "backoff CPU kernel" not in run.stdout  # what MindSpore says where an operator goes to the host
    kernels = re.findall(r"kernel opname:(\w+), kernel type:(\w+)", run.stdout)
    assert len(kernels) > 500
    assert {kind for _, kind in kernels} <= {"acl_kernel", "opapi_kernel", "rt_kernel", "hccl_kernel"}
    return kernels


@pytest.mark.parametrize(("flags", "values"), [(ALL_ON, {}), (["--drop_path_rate", 0], SATURATION)])
def test_the_slim_network_s_step_compiles_with_every_kernel_on_the_device(ascend: Ascend, tmp_path, flags, values):
    kernels = kernels_of(ascend, tmp_path, [*SLIM, "--amp_level", "O2", *flags], **values)
    names = [name for name, _ in kernels]
    assert ("NPUGetFloatStatusV2" in names) is bool(values)
    if values:
        gradients = [place for place, name in enumerate(names) if name == "Conv2DBackpropFilter"]
        assert names.index("NPUClearFloatStatusV2") < names.index("Conv2D")
        assert names.index("NPUGetFloatStatusV2") > gradients[-1]


@pytest.mark.parametrize("soc", ["Ascend910A", "Ascend910B1"])
@pytest.mark.parametrize("amp_level", ["O0", "O1", "O2", "O3"])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw", "lamb", "rmsprop"])
@pytest.mark.parametrize("arch", ["DDRNet23Slim", "DDRNet23"])
def test_every_step_compiles_with_every_kernel_on_the_device(ascend, tmp_path, arch, optimizer, amp_level, soc):
    flags = [*SLIM, *ALL_ON, "--arch", arch, "--optimizer", optimizer, "--amp_level", amp_level]
    values = SATURATION if soc == "Ascend910A" else {}  # the dry run knows no chip
    kernels = kernels_of(ascend, tmp_path, flags, soc=soc, **values)
    print(f"FIGURES {arch} {soc} {optimizer} {amp_level}: {dict(Counter(kind for _, kind in kernels))}")


@pytest.fixture(scope="module")
def trained(ascend: Ascend, digits, tmp_path_factory) -> Path:
    """Where train.py ran for two epochs, in the dry run."""
    folder = tmp_path_factory.mktemp("trained")
    flags = ["--ddr_config", TINY, "--data_url", digits, "--device_target", "Ascend", "--save_steps", 2]
    run = ascend.run([sys.executable, ROOT / "train.py", *flags], folder, timeout=600, simulated=True)
    assert run.returncode == 0, run.stdout[-3000:]
    return folder


def test_train_py_runs_to_its_end(trained):
    assert (trained / "ckpt_0/DDRNet23Slim.ckpt").exists()
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 2


def test_eval_py_and_the_export_of_mindir_run_to_their_end_and_air_is_refused_in_one_line(ascend, trained, digits):
    flags = ["--ddr_config", TINY, "--data_url", digits, "--device_target", "Ascend"]
    flags += ["--pretrained", "ckpt_0/DDRNet23Slim.ckpt"]
    evaluated = ascend.run([sys.executable, ROOT / "eval.py", *flags], trained, timeout=600, simulated=True)
    assert evaluated.returncode == 0, evaluated.stdout[-3000:]
    exported = ascend.run([sys.executable, ROOT / "export.py", *flags], trained, timeout=600, simulated=True)
    assert exported.returncode == 0, exported.stdout[-3000:]
    assert (trained / "DDRNet23Slim.mindir").exists()
    air = [sys.executable, ROOT / "export.py", *flags, "--file_format", "AIR"]
    refused = ascend.run(air, trained, timeout=600, simulated=True)
    assert refused.returncode == 2
    assert "file_format: AIR: MindSpore" in refused.stdout
    assert "Traceback" not in refused.stdout
