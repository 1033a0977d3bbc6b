"""Peak memory of a training step, grown over the process that has only imported its framework; and PyTorch's.

python benchmarks/memory.py --batch_size 16 --image_size 224
Runs train_step.py and peers/peer_step.py as they are, and two processes that import MindSpore and PyTorch. Prints one
JSON line: megabytes of each, and the ratio.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def peak_mb(*command: object) -> float:
    """The largest resident set of a process, megabytes; its output goes to standard error."""
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=HERE.parent, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(map(str, command))}")
    return usage.ru_maxrss / 1024


def main() -> None:
    """Measure the four processes one after the other."""
    parser = argparse.ArgumentParser(description="Peak memory of the training step, beside PyTorch's.")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    arguments = parser.parse_args()
    shape = ["--batch_size", arguments.batch_size, "--image_size", arguments.image_size, "--steps", 3]
    ours = peak_mb(HERE / "train_step.py", *shape) - peak_mb("-c", "import src, mindspore")
    theirs = peak_mb(HERE / "peers" / "peer_step.py", *shape) - peak_mb("-c", "import torch")
    result = {"this_mb": round(ours), "pytorch_mb": round(theirs), "ratio": round(ours / theirs, 2)}
    print(json.dumps({"benchmark": "memory", **result}))


if __name__ == "__main__":
    main()
