"""Time train.py's own training step: dynamic loss scale, finite check, clipping and momentum on, float32 on the CPU.

python benchmarks/train_step.py --batch_size 16 --image_size 224
Prints one JSON line: median seconds a step and images a second. Beside it, on the same work:
python benchmarks/peers/peer_step.py --batch_size 16 --image_size 224
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mindspore as ms
import numpy as np
from mindspore import Tensor

from src.args import Config
from src.models import create_model
from src.tools.cell import native_kernels
from src.tools.criterion import NetworkWithLoss, SoftTargetCrossEntropy
from src.tools.launch import launch
from src.tools.optimizer import create_optimizer
from src.tools.schedulers import learning_rates
from src.trainers.train_one_step import TrainOneStep


def main() -> None:
    """Build the step as train.py does and time it on one batch of noise."""
    parser = argparse.ArgumentParser(description="Time train.py's own training step on the CPU.")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    config, _ = launch(Config(device_target="CPU", batch_size=arguments.batch_size, amp_level="O0"))
    native = native_kernels(config)
    network = create_model(config.arch, config.num_classes, native=native.network)
    rates = learning_rates(config, updates_an_epoch=100)
    step = TrainOneStep(
        NetworkWithLoss(network, SoftTargetCrossEntropy()),
        create_optimizer(network, config, rates, native.update),
        clip_norm=config.clip_global_norm_value,
        native=native.update,
    ).set_train()
    rng = np.random.default_rng(0)
    shape = (config.batch_size, 3, arguments.image_size, arguments.image_size)
    images = rng.standard_normal(shape, np.float32)
    targets = rng.dirichlet(np.ones(config.num_classes), config.batch_size).astype(np.float32)

    def seconds() -> float:
        start = time.perf_counter()
        step(Tensor(images), Tensor(targets)).asnumpy()
        return time.perf_counter() - start

    compiled = seconds()
    median = statistics.median(seconds() for _ in range(arguments.steps))
    print(
        json.dumps(
            {
                "benchmark": f"train_step, MindSpore {ms.__version__}",
                "step_s": round(median, 4),
                "img_s": round(config.batch_size / median, 2),
                "first_step_s": round(compiled, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
