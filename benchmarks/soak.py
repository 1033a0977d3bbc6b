"""Kill a real train.py again and again at random moments, let it go on, and compare it with a run left alone.

python benchmarks/soak.py --kills 100
Prints one JSON line: kills by signal, runs that were resumed, runs that ended, and losses: runs whose final weights or
metrics differ in any bit from the run that was left alone. Nothing but 0 losses is right.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.conftest import TINY, write_digits
from tests.interrupted import kill_when, log_of, outcome, start


def main() -> None:
    """Run until that many kills have happened and the last run has ended."""
    parser = argparse.ArgumentParser(description="Kill train.py at random moments and compare.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        data = write_digits(root / "digits")
        flags = ["--ddr_config", str(TINY), "--data_url", str(data), "--save_steps", "1", "--epochs", "3"]
        flags += ["--compile_cache", str(root / "cache")]
        for name in ("first", "alone"):  # the second finds the compiled step, as the killed ones will
            began = time.monotonic()
            if start(flags, root / name).wait() != 0:
                sys.exit(log_of(root / name))
            whole = time.monotonic() - began
        want = outcome(root / "alone")
        run = 0
        while counts["kills"] < arguments.kills:
            run += 1
            folder = root / f"run{run}"
            ended = False
            while not ended:
                process = start([*flags, "--resume", "auto"], folder)
                counts["resumed"] += bool(list((folder / "ckpt_0").glob("*.state")))
                number = None
                if counts["kills"] >= arguments.kills:
                    process.wait()
                else:
                    number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
                    moment = time.monotonic() + rng.uniform(0.2, whole)
                    kill_when(process, number, lambda: time.monotonic() >= moment)  # noqa: B023
                ended = process.returncode == 0
                if not ended:
                    if number is None or process.returncode not in (-number, 128 + number):
                        sys.exit(f"exit code {process.returncode} of its own\n{log_of(folder)}")
                    counts[number.name] += 1
                    counts["kills"] += 1
            counts["ended"] += 1
            counts["losses"] += outcome(folder) != want
            print(f"{counts['kills']} kills, {counts['ended']} runs ended, {counts['losses']} losses", file=sys.stderr)
    print(json.dumps({"benchmark": "soak", "losses": 0, **counts}))


if __name__ == "__main__":
    main()
