"""Time the forward pass that eval.py runs on the CPU: float32, batch norm folded into the convolutions.

python benchmarks/inference.py --batch_size 16 --image_size 224
Prints one JSON line: images a second. Beside it, `forward_img_s` of
python benchmarks/peers/peer_step.py --batch_size 16 --image_size 224
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import src  # noqa: F401  (before MindSpore, which reads the environment that it sets)

# isort: split
import mindspore as ms
import numpy as np
from mindspore import Tensor

from src.args import Config
from src.distributed.join import join
from src.models import create_model
from src.models.fold import fold_batch_norm
from src.tools.cell import native_kernels


def main() -> None:
    """Fold the network as eval.py does and time it on one batch of noise."""
    parser = argparse.ArgumentParser(description="Time eval.py's forward pass on the CPU.")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--amp_level", default="O0", choices=("O0", "auto"))
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    config, _ = join(Config(device_target="CPU", amp_level=arguments.amp_level))
    network = fold_batch_norm(create_model(native=native_kernels(config).network))
    shape = (arguments.batch_size, 3, arguments.image_size, arguments.image_size)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)

    def seconds() -> float:
        start = time.perf_counter()
        network(Tensor(images)).asnumpy()
        return time.perf_counter() - start

    seconds()
    median = statistics.median(seconds() for _ in range(arguments.steps))
    print(
        json.dumps(
            {
                "benchmark": f"inference, MindSpore {ms.__version__}",
                "batch_s": round(median, 4),
                "img_s": round(arguments.batch_size / median, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
