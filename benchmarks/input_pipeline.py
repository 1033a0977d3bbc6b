"""Time the training input pipeline with the settings of ddrnet23_imagenet.yaml.

    python benchmarks/input_pipeline.py --data DIR --workers 2

DIR is a folder of class folders. One JSON line: images a second (median of the epochs), milliseconds of one core an
image in each stage, and the peak memory of the process in MB. An epoch has at least 2,000 samples: a smaller folder
is walked several times. Nothing is prefetched before an epoch's clock starts, and no decoded image is kept.
`peers/peer_pipeline.py` and `peers/peer_mindcv.py` time timm and MindCV on the same work.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Callable

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src.args import Config, read_yaml  # noqa: E402
from src.data.augment.mixup import Mixup  # noqa: E402
from src.data.augment.transforms import TrainTransform, normalise  # noqa: E402
from src.data.imagenet import TrainBatches  # noqa: E402
from src.data.listing import Samples, list_folder  # noqa: E402

SAMPLES = 2000  # the least an epoch has


class Repeated(Samples):
    """A folder's samples, walked `times` times: other positions, other augmentation, the same files."""

    def __init__(self, samples: Samples, times: int) -> None:
        super().__init__(samples.folder, samples.classes, np.tile(samples.labels, times), b"", np.zeros(0))
        self.once, self.count = samples, len(samples)

    def path(self, index: int) -> str:
        return self.once.path(index % self.count)


def stages(batches: TrainBatches, images: int) -> dict[str, float]:
    """Milliseconds an image in each stage, one after the other on one core, over the first `images` images."""
    config, transform = batches.config, TrainTransform(batches.config)
    rngs = [np.random.default_rng(index) for index in range(images)]
    out = np.ones((images, 3, config.image_size, config.image_size), np.float32)  # pages that are there
    seconds = {}

    def timed(name: str, work: Callable, items: list) -> list:
        start = time.process_time()
        results = [work(*item) for item in items]
        seconds[name] = time.process_time() - start
        return results

    encoded = timed("read", batches.samples.read, [(index,) for index in range(images)])
    decoded = timed("decode", transform.decode, list(zip(encoded, rngs)))
    crops = timed("crop", transform.crop, [(*item, rng) for item, rng in zip(decoded, rngs)])
    augmented = timed("augment", transform.augmented, list(zip(crops, rngs)))
    timed("normalise", normalise, list(zip(augmented, out)))
    targets = timed("batch", batches.targets, [(batches.samples.labels[:images],)])[0]
    mixup = Mixup(config.mix_up, config.cutmix, config.mixup_prob, config.switch_prob, config.mixup_mode)
    parts = [slice(first, first + config.batch_size) for first in range(0, images, config.batch_size)]
    mixes = [mixup.draw(config.batch_size, out.shape[2:], np.random.default_rng(i)) for i in range(len(parts))]
    timed("mix", mixup.apply, [(out[part], targets[part], mix) for part, mix in zip(parts, mixes)])
    return {name: round(1000 * value / images, 3) for name, value in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of class folders")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()

    keys = read_yaml(str(ROOT / "src/configs/ddrnet23_imagenet.yaml"))
    keys.update(batch_size=args.batch_size, num_parallel_workers=args.workers, data_url=args.data)
    config = Config(**keys)
    samples = list_folder(args.data)
    repeated = Repeated(samples, -(-SAMPLES // len(samples)))
    batches = TrainBatches(repeated, config, rank=0, world=1)
    rates = []
    for epoch in range(args.epochs + 1):  # the first one warms the file cache and is not counted
        start = time.perf_counter()
        count = sum(len(images) for images, _ in batches.epoch(epoch + 1))
        rates.append(count / (time.perf_counter() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = {
        "img_s": round(statistics.median(rates[1:]), 1),
        "workers": args.workers,
        "batch_size": args.batch_size,
        "samples": len(repeated),
        "stages_ms": stages(batches, 4 * args.batch_size),
        "peak_mb": round(peak),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
