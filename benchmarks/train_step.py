"""Time train.py's own training step: dynamic loss scale, finite check, clipping and momentum on, float32 on the CPU;
drop path off, as PyTorch's step beside it has none.

python benchmarks/train_step.py --batch_size 16 --image_size 224 [--drop_path_rate 0.1] [--profile]
Prints one JSON line: median seconds a step, images a second, and megabytes of memory at the peak beyond the imported
process; with --profile also where the time goes. Beside it, on the same work:
python benchmarks/peers/peer_step.py --batch_size 16 --image_size 224
"""

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Callable

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import src  # noqa: F401  (before MindSpore, which reads the environment that it sets)

# isort: split
import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.args import Config
from src.assembly import build_network, build_step
from src.distributed.join import join
from src.tools.get_misc import trim_memory
from src.trainers.train_one_step import TrainOneStep


class Part(nn.Cell):
    """A part of the step as a graph of its own: a function of the step and of the part's inputs."""

    def __init__(self, step: TrainOneStep, part: Callable) -> None:
        super().__init__(auto_prefix=False)
        self.step, self.part = step, part

    def construct(self, *inputs: Tensor) -> Tensor:
        return self.part(self.step, *inputs)


def forward(step, *batch):
    return step.network(*batch)


def forward_and_backward(step, *batch):
    (_, loss), gradients = step.differentiate(*batch)
    return loss, gradients


def norm(step, gradients):
    return step._norm(gradients)


def scaling(step, gradients):
    return step.hyper_map(ops.partial(ops.mul, Tensor(0.5, ms.float32)), gradients)


def update(step, gradients):
    if step.takes_factor:
        return step.optimizer(gradients, Tensor(0.5, ms.float32))
    return step.optimizer(gradients)


def averaging(step):
    return step.average(Tensor(True))


def main() -> None:
    """Build the step as train.py does and time it on one batch of noise."""
    parser = argparse.ArgumentParser(description="Time train.py's own training step on the CPU.")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--amp_level", default="O0", choices=("O0", "auto"))
    parser.add_argument("--cpu_kernels", default="native", choices=("native", "mindspore"))
    parser.add_argument("--drop_path_rate", type=float, default=0.0)
    parser.add_argument("--profile", action="store_true", help="also time the parts, each as a graph of its own")
    arguments = parser.parse_args()
    config = Config(
        device_target="CPU",
        batch_size=arguments.batch_size,
        amp_level=arguments.amp_level,
        cpu_kernels=arguments.cpu_kernels,
        drop_path_rate=arguments.drop_path_rate,
        ema_decay=0.999 if arguments.profile else 0.0,
    )
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config, _ = join(config)
    network = build_network(config)
    step = build_step(config, network, updates=100)
    rng = np.random.default_rng(0)
    shape = (config.batch_size, 3, arguments.image_size, arguments.image_size)
    images = rng.standard_normal(shape, np.float32)
    targets = rng.dirichlet(np.ones(config.num_classes), config.batch_size).astype(np.float32)

    data = [images, targets]
    if arguments.drop_path_rate:
        data.append(rng.random((config.batch_size, network.num_drop_paths), np.float32))

    def median(work: Callable) -> float:
        """Seconds that `work`, whose result is waited for, takes when it is compiled."""
        work()
        seconds = []
        for _ in range(arguments.steps):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    def run(*parts: np.ndarray) -> Tensor:
        loss = step(*map(Tensor, parts))
        loss.asnumpy()
        return loss

    began = time.perf_counter()
    step.compile(*map(Tensor, data))
    trim_memory()
    run(*data)
    compiled = time.perf_counter() - began
    whole = median(lambda: run(*data))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imported
    print(
        json.dumps(
            {
                "benchmark": f"train_step, MindSpore {ms.__version__}",
                "step_s": round(whole, 4),
                "img_s": round(config.batch_size / whole, 2),
                "first_step_s": round(compiled, 1),
                "peak_mb": round(grown / 1024),
            }
        )
    )
    if not arguments.profile:
        return

    batch = tuple(map(Tensor, data))
    both = Part(step, forward_and_backward).set_train()
    gradients = both(*batch)[1]

    def host() -> None:  # what train.py does around a step
        for column in data:
            Tensor(column)
        step.check_health()
        step.learning_rate()

    one, through = Part(step, forward).set_train(), median(lambda: both(*batch)[0].asnumpy())
    alone = median(lambda: one(*batch).asnumpy())
    parts = {name: Part(step, part) for name, part in (("norm", norm), ("scaling", scaling), ("update", update))}
    moving = Part(step, averaging)
    unscaling = 0.0 if step.takes_factor else median(lambda: parts["scaling"](gradients)[0].asnumpy())
    seconds = {
        "forward": alone,
        "backward": through - alone,
        "norm, which is the finite check": median(lambda: parts["norm"](gradients).asnumpy()),
        "unscaling and clipping, where momentum does not do it": unscaling,
        "momentum with decay": median(lambda: parts["update"](gradients).asnumpy()),
        "averaged weights, which --profile turns on": median(lambda: moving().asnumpy()),
        "host": median(host),
    }
    for name, spent in seconds.items():
        print(f"{spent * 1000:9.1f} ms  {name}")


if __name__ == "__main__":
    main()
