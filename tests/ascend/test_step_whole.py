"""The whole step and the programs around it in MindSpore's dry run for Ascend: every kernel is Ascend's.

Takes half an hour and more, so `ASCEND_FULL=1` asks for it. The steps are a covering design: in sixteen of them every
value of a key meets every value of every other key.
"""

import itertools
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
pytestmark = pytest.mark.timeout(1200)

COMPILE = """
import sys
import mindspore as ms
import numpy as np
from src.args import parse_args
from src.assembly import build_network, build_step
from src.distributed.join import join

config, ranks = join(parse_args(sys.argv[1:])[0])
network = build_network(config)
step = build_step(config, network, 10, ranks)
shapes = [(config.batch_size, 3, config.image_size, config.image_size), (config.batch_size, config.num_classes)]
if config.drop_path_rate:
    shapes.append((config.batch_size, network.num_drop_paths))
step.compile(*(ms.Tensor(np.zeros(shape, np.float32)) for shape in shapes))
print("OUT compiled", flush=True)
"""
SMALL = ["--image_size", 64, "--batch_size", 8, "--num_classes", 10]
PRECISIONS = ("O0", "O1", "O2", "O3")
OPTIMIZERS = ("momentum", "adamw", "lamb", "rmsprop")
SATURATION = {"MS_ASCEND_CHECK_OVERFLOW_MODE": "SATURATION_MODE"}


def kernels_of(ascend: Ascend, folder: Path, flags: list, **values: object) -> list[tuple[str, str]]:
    """Compile the step of a configuration; the operators in their order, each with the type of kernel it got."""
    (folder / "program.py").write_text(COMPILE)
    command = [sys.executable, "program.py", "--ddr_config", TINY, "--device_target", "Ascend", *flags]
    run = ascend.run(command, folder, timeout=900, simulated=True, GLOG_v=1, **values)
    assert "OUT compiled" in run.stdout, run.stdout[-3000:]
    assert "backoff CPU kernel" not in run.stdout  # what MindSpore says where an operator goes to the host
    kernels = re.findall(r"kernel opname:(\w+), kernel type:(\w+)", run.stdout)
    assert len(kernels) > 500
    assert {kind for _, kind in kernels} <= {"acl_kernel", "opapi_kernel", "rt_kernel", "hccl_kernel"}
    return kernels


def cover() -> list:
    """An orthogonal array: each of the six keys of two values is another sum of the bits of those of four."""
    cases = []
    for place, amp_level in enumerate(PRECISIONS):
        for number, optimizer in enumerate(OPTIMIZERS):
            (p1, p0), (o1, o0) = divmod(place, 2), divmod(number, 2)
            arch = ("DDRNet23", "DDRNet23Slim")[p0 ^ o0]
            soc = ("Ascend910A", "Ascend910B1")[p0 ^ o1]
            keys = {
                "accumulation_step": (1, 2)[p1 ^ o0],
                "ema_decay": (0, 0.99)[p1 ^ o1],
                "drop_path_rate": (0, 0.1)[p0 ^ p1 ^ o0],
            }
            ranks = (1, 2)[p0 ^ p1 ^ o1]
            said = "-".join(map(str, (arch, soc, amp_level, optimizer, *keys.values(), ranks)))
            cases.append(pytest.param(arch, soc, amp_level, optimizer, keys, ranks, id=said))
    return cases


def test_in_the_cover_every_value_of_a_key_meets_every_value_of_every_other():
    rows = [(*case.values[:4], *case.values[4].values(), case.values[5]) for case in cover()]
    columns = list(zip(*rows))
    for first, second in itertools.combinations(columns, 2):
        assert len(set(zip(first, second))) == len(set(first)) * len(set(second))


@pytest.mark.parametrize(("arch", "soc", "amp_level", "optimizer", "keys", "ranks"), cover())
def test_a_step_compiles_with_every_kernel_on_the_device(
    ascend: Ascend, tmp_path, arch, soc, amp_level, optimizer, keys, ranks
):
    flags = [*SMALL, "--arch", arch, "--optimizer", optimizer, "--amp_level", amp_level]
    for key, value in keys.items():
        flags += [f"--{key}", value]
    saturates = soc == "Ascend910A"
    values = SATURATION if saturates else {}  # the dry run knows no chip
    kernels = kernels_of(ascend, tmp_path, flags, soc=soc, RANK_SIZE=ranks, **values)
    names = [name for name, _ in kernels]
    assert ("AllReduce" in names) is (ranks > 1)
    assert ("NPUGetFloatStatusV2" in names) is saturates
    if saturates:
        gradients = [place for place, name in enumerate(names) if name == "Conv2DBackpropFilter"]
        assert names.index("NPUClearFloatStatusV2") < names.index("Conv2D")
        assert names.index("NPUGetFloatStatusV2") > gradients[-1]
    print(f"FIGURES {dict(Counter(kind for _, kind in kernels))}")


@pytest.fixture(scope="module", params=[0, 3], ids=["handed over", "sinking"])
def trained(ascend: Ascend, digits, tmp_path_factory, request) -> Path:
    """Where train.py ran for two epochs, in the dry run."""
    folder = tmp_path_factory.mktemp("trained")
    flags = ["--ddr_config", TINY, "--data_url", digits, "--device_target", "Ascend", "--save_steps", 2]
    flags += ["--sink_size", request.param]
    run = ascend.run([sys.executable, ROOT / "train.py", *flags], folder, timeout=900, simulated=True)
    assert run.returncode == 0, run.stdout[-3000:]
    return folder


def test_train_py_runs_to_its_end(trained):
    assert (trained / "ckpt_0/DDRNet23Slim.ckpt").exists()
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("trained", [0], indirect=True)
def test_eval_py_and_the_export_of_mindir_run_to_their_end_and_air_is_refused_in_one_line(ascend, trained, digits):
    flags = ["--ddr_config", TINY, "--data_url", digits, "--device_target", "Ascend"]
    flags += ["--pretrained", "ckpt_0/DDRNet23Slim.ckpt"]
    evaluated = ascend.run([sys.executable, ROOT / "eval.py", *flags], trained, timeout=900, simulated=True)
    assert evaluated.returncode == 0, evaluated.stdout[-3000:]
    exported = ascend.run([sys.executable, ROOT / "export.py", *flags], trained, timeout=900, simulated=True)
    assert exported.returncode == 0, exported.stdout[-3000:]
    assert (trained / "DDRNet23Slim.mindir").exists()
    air = [sys.executable, ROOT / "export.py", *flags, "--file_format", "AIR"]
    refused = ascend.run(air, trained, timeout=900, simulated=True)
    assert refused.returncode == 2
    assert "file_format: AIR: MindSpore" in refused.stdout
    assert "Traceback" not in refused.stdout
