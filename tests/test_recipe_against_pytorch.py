"""Training against PyTorch: one network and recipe, the same batches from the same weights, each in its own process."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def test_the_first_updates_of_a_run_are_pytorchs(digits):
    """The first loss is that of the same weights; the second follows from one whole update, the third from two.

    Rounding grows tenfold with every update at this learning rate, in PyTorch's float32 against its float64 as well.
    """
    pytest.importorskip("torch")
    done = subprocess.run(
        [
            *(sys.executable, "benchmarks/against_pytorch.py", "--ddr_config", "src/configs/ddrnet23_digits.yaml"),
            *("--arch", "DDRNet23Slim", "--data_url", str(digits), "--batch_size", "20", "--steps", "3"),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = re.findall(r"^ +(\d) +(\S+)  (\S+)  \S+$", done.stdout, re.MULTILINE)
    assert [step for step, _, _ in losses] == ["0", "1", "2"]
    for (_, ours, theirs), tolerance in zip(losses, (1e-5, 5e-3, 1e-1)):
        assert float(ours) == pytest.approx(float(theirs), rel=tolerance)
