"""What the tests share: a real data set, and programs run as a user runs them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests" / "tiny.yaml"

# What nohup, or a shell's &, has had ignored, the programs under test would ignore too.
for number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def write_digits(folder: Path) -> Path:
    """scikit-learn's handwritten digits as an ImageNet-style folder: of each class 8 for train/, 3 for val/."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    for label in range(10):
        indices = np.flatnonzero(scans.target == label)[:11]
        for place, index in enumerate(indices):
            target = folder / ("train" if place < 8 else "val") / str(label)
            target.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray((scans.images[index] * 255 / 16).round().astype("uint8"))
            grey.resize((32, 32), Image.BICUBIC).save(target / f"{index}.png")
    return folder


# What compiles whole networks, or starts training runs, ranks, compilers or fuzzers; all other files are `fast`.
PROCESS = {
    "test_channels_last", "test_compile_cache", "test_distributed", "test_documents", "test_documents_run",
    "test_eval", "test_failing_disks", "test_file_systems", "test_fuzz_readers", "test_image_files", "test_infer_310",
    "test_infer_310_preprocess", "test_kernels", "test_kernels_build", "test_killed_saves", "test_launcher",
    "test_launcher_faults",
    "test_mindir", "test_modelarts", "test_models", "test_onnx", "test_onnx_programs", "test_onnx_rules",
    "test_precision", "test_prepare_imagenet", "test_programs", "test_recipe_against_pytorch", "test_resume",
    "test_run_folder", "test_saturation", "test_summary", "test_train_one_step", "test_weights",
}  # fmt: skip


def pytest_collection_modifyitems(items: list) -> None:
    """Mark every test that is not of MindSpore's Ascend code as fast or process, by its file."""
    for item in items:
        if "ascend" not in item.keywords:
            item.add_marker(pytest.mark.process if item.path.stem in PROCESS else pytest.mark.fast)


@pytest.fixture(autouse=True)
def _pynative_mode_whatever_ran_before():
    import mindspore as ms  # not above: it sets OMP_NUM_THREADS to 1 for all children of the process

    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real data set."""
    return write_digits(tmp_path_factory.mktemp("digits"))


def command(program: str, *flags: object) -> list[str]:
    """The command line of train.py, eval.py or export.py."""
    return [sys.executable, str(ROOT / program), *map(str, flags)]


def run_program(program: str, *flags: object, cwd: Path, env: dict = {}) -> subprocess.CompletedProcess:  # noqa: B006
    """Run a program to its end in `cwd`; output and errors come back as text."""
    return subprocess.run(
        command(program, *flags), cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=300
    )
