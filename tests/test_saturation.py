"""Training where arithmetic saturates, as on an Ascend 910, emulated.

The backward pass clips to float16's range and raises a status word outside the graph, which stays up until it is
cleared, as the NPU's does. It is reached through operators compiled here, in the places of the NPU's.
"""

import ctypes
import shutil
import subprocess
from typing import NamedTuple, Optional

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from sklearn.datasets import load_digits

from src.args import Config
from src.tools.criterion import NetworkWithLoss, SoftTargetCrossEntropy
from src.tools.optimizer import create_optimizer
from src.trainers import loss_scale, saturation
from src.trainers.train_one_step import TrainOneStep

CHIP = r"""
#include <math.h>
#include <stdint.h>
#include <string.h>
static int32_t words[8];
static int64_t Size(int ndim, const int64_t* shape) {
  int64_t size = 1;
  for (int i = 0; i < ndim; ++i) size *= shape[i];
  return size;
}
#define OPERATOR(name) int name(int n, void** p, int* ndims, int64_t** shapes, const char** dtypes, void* s, void* e)
static int Limit(void** p, int64_t size, float beyond) {
  const float* in = p[0];
  float* out = p[1];
  for (int64_t i = 0; i < size; ++i) {
    const int outside = fabsf(in[i]) > 65504.0f;
    if (outside) words[5] = 1;
    out[i] = outside ? copysignf(beyond, in[i]) : in[i];
  }
  return 0;
}
OPERATOR(saturating) { return Limit(p, Size(ndims[0], shapes[0]), 65504.0f); }
OPERATOR(infinite) { return Limit(p, Size(ndims[0], shapes[0]), INFINITY); }
OPERATOR(read_status) { memcpy(p[1], words, sizeof words); return 0; }
OPERATOR(clear_status) { memset(words, 0, sizeof words); memcpy(p[1], words, sizeof words); return 0; }
void raise_status(void) { words[0] = 1; }
"""
BATCH, UPDATES, WINDOW = 32, 600, 10


@pytest.fixture(scope="module")
def chip(tmp_path_factory):
    """A library with the chip's operators."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("chip")
    (folder / "chip.c").write_text(CHIP)
    library = folder / "chip.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, folder / "chip.c", "-lm"], check=True)
    return library


@pytest.fixture
def npu(chip, monkeypatch):
    """The chip in the place of the NPU's operators, its flag left up by whatever ran before."""
    for operator, name in (("NPUGetFloatStatusV2", "read_status"), ("NPUClearFloatStatusV2", "clear_status")):
        monkeypatch.setattr(saturation, operator, lambda name=name: aot(chip, name, ms.int32))
    monkeypatch.setattr(loss_scale, "SCALE_WINDOW", WINDOW)
    ctypes.CDLL(str(chip)).raise_status()
    return chip


def aot(library, name: str, dtype: ms.Type, bprop=None) -> ops.Custom:
    return ops.Custom(f"{library}:{name}", lambda x: x, lambda x: dtype, func_type="aot", bprop=bprop)


class Classifier(nn.Cell):
    """Two layers, whose gradients pass the chip's arithmetic on their way down."""

    def __init__(self, library, arithmetic: str) -> None:
        super().__init__()
        limit = aot(library, arithmetic, ms.float32)

        def gradient(x: Tensor, out: Tensor, dout: Tensor) -> tuple:
            return (limit(dout),)

        self.gate = aot(library, arithmetic, ms.float32, gradient)
        self.hidden, self.relu, self.logits = nn.Dense(64, 64), nn.ReLU(), nn.Dense(64, 10)

    def construct(self, images: Tensor, uniforms: Optional[Tensor] = None) -> Tensor:
        return self.gate(self.logits(self.relu(self.gate(self.hidden(images)))))


class Run(NamedTuple):
    losses: np.ndarray  # means over fifths of the run
    scale: float
    overflows: int
    weights: np.ndarray


def train(library, arithmetic: str, sees: bool, accumulation: int = 1, updates: int = UPDATES) -> Run:
    """Train a small classifier on scikit-learn's digits."""
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(1)
    network = Classifier(library, arithmetic)
    rates = np.full(updates, 0.1, np.float32)
    step = TrainOneStep(
        NetworkWithLoss(network, SoftTargetCrossEntropy()),
        create_optimizer(network, Config(weight_decay=0.0001), rates),
        rates,
        clip_norm=5.0,
        accumulation=accumulation,
        float_status=saturation.FloatStatus() if sees else None,
    ).set_train()
    digits = load_digits()
    images, targets = (digits.images.reshape(-1, 64) / 16).astype(np.float32), np.eye(10, dtype=np.float32)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(updates * accumulation):
        chosen = rng.integers(0, len(images), BATCH)
        losses.append(float(step(Tensor(images[chosen]), Tensor(targets[digits.target[chosen]])).asnumpy()))
    weights = np.concatenate([parameter.asnumpy().ravel() for parameter in network.trainable_params()])
    totals = step.take_totals()
    return Run(np.mean(np.reshape(losses, (5, -1)), 1), totals["loss_scale"], totals["overflows"], weights)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_with_the_status_flag_training_is_as_in_ieee_arithmetic_bit_for_bit(npu, accumulation):
    seen = train(npu, "saturating", sees=True, accumulation=accumulation, updates=UPDATES // accumulation)
    ieee = train(npu, "infinite", sees=False, accumulation=accumulation, updates=UPDATES // accumulation)
    assert seen.overflows == ieee.overflows > 10
    assert seen.scale == ieee.scale < 2.0**22
    np.testing.assert_array_equal(seen.weights, ieee.weights)
    assert seen.losses[-1] < seen.losses[0] / 10


def test_without_the_flag_and_a_ceiling_the_scale_runs_away_and_training_dies(npu, monkeypatch):
    monkeypatch.setattr(loss_scale, "SCALE_CEILING", 2.0**120)
    blind = train(npu, "saturating", sees=False)
    assert (blind.overflows, blind.scale) == (0, 2.0 ** (12 + UPDATES // WINDOW))
    ieee = train(npu, "infinite", sees=False, updates=UPDATES)
    assert blind.losses[-1] > 1.5 * ieee.losses[-1]
    assert np.linalg.norm(blind.weights) < 0.9 * np.linalg.norm(ieee.weights)
