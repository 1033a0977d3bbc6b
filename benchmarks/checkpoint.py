"""Time a checkpoint of DDRNet23 with momentum and averaged weights: how long training stands still for it.

python benchmarks/checkpoint.py [--out FOLDER]
Prints one JSON line: megabytes on disk, and median seconds to save (synced) and to read back with every byte checked.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.args import Config
from src.assembly import build_network, build_step
from src.distributed.join import join
from src.trainers.checkpoint import Checkpoints, Cursor, read_saved


def main() -> None:
    """Save and read five times."""
    parser = argparse.ArgumentParser(description="Time saving a checkpoint.")
    parser.add_argument("--out", default=None, help="folder on the disk to measure; the system's temporary one")
    arguments = parser.parse_args()
    config, _ = join(Config(device_target="CPU", ema_decay=0.999))
    network = build_network(config)
    step = build_step(config, network, updates=100)
    saving, reading = [], []
    with tempfile.TemporaryDirectory(dir=arguments.out) as folder:
        checkpoints = Checkpoints(Path(folder), config.arch, keep=2)
        for epoch in range(1, 6):
            start = time.perf_counter()
            path = checkpoints.save(network, step, config, Cursor(epoch, done=100), finished=True)
            saving.append(time.perf_counter() - start)
            start = time.perf_counter()
            read_saved(path)
            reading.append(time.perf_counter() - start)
        size = sum(file.stat().st_size for file in (path, path.with_suffix(".state")))
    result = {"mb": round(size / 1e6), "save_s": statistics.median(saving), "read_s": statistics.median(reading)}
    print(json.dumps({"benchmark": "checkpoint", **{name: round(value, 2) for name, value in result.items()}}))


if __name__ == "__main__":
    main()
