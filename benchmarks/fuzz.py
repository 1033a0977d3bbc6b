"""Damaged files for every reader, for as long as one has time: how many were tried, and what went wrong.

    python benchmarks/fuzz.py --minutes 10

Each reader runs in processes of its own, whose memory is limited, so that a crash is seen and the others go on. Files
that made a reader fail are kept in --out; nothing else is written.
"""

import argparse
import json
import logging
import multiprocessing
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.fuzzing import NAMES, drawn, targets

MEMORY = 4 << 30  # bytes that reading may take beyond what the imported libraries have
BATCH = 300.0  # seconds a process


def work(name: str, seed: int, seconds: float, out: Path, pipe) -> None:
    """Try files on one reader; send counts of outcomes and the slowest time, note each file before it is read."""
    logging.disable(logging.WARNING)  # a damaged listing is a warning, thousands of times
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        found = targets(folder, [name])
        pipe.send(bool(found))
        if not found:  # PyTorch's files, without PyTorch
            return
        target = found[name]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        generator = np.random.default_rng(seed)
        outcomes: Counter = Counter()
        slowest, end, last = 0.0, time.monotonic() + seconds, out / f"last-{name.replace(' ', '_')}-{seed}"
        while time.monotonic() < end:
            content = target.damaged(drawn(int(generator.integers(1, 7)), generator), int(generator.integers(10**7)))
            last.write_bytes(content)
            start = time.monotonic()
            try:
                outcomes["refused" if target.attempt(content, folder) else "read"] += 1
            except BaseException as error:  # what a reader must never do
                outcomes["faults"] += 1
                kept = out / f"fault-{name.replace(' ', '_')}-{seed}-{outcomes['faults']}"
                if outcomes["faults"] <= 20:
                    kept.write_bytes(content)
                    print(f"{name}: {type(error).__name__}: {str(error)[:200]} ({kept})", flush=True)
            slowest = max(slowest, time.monotonic() - start)
        last.unlink()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pipe.send((outcomes, slowest, peak))


def started(pipe) -> bool:
    """Whether a process has a reader to work on; importing two frameworks may take long on a busy machine."""
    try:
        return bool(pipe.poll(600) and pipe.recv())
    except EOFError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="for all readers together")
    parser.add_argument("--seed", type=int, default=0, help="other seeds try other files")
    parser.add_argument("--readers", nargs="*", help="only these")
    parser.add_argument("--out", default="fuzz_out", help="where files go that made a reader fail")
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    names = args.readers or NAMES
    share = args.minutes * 60 / len(names)
    totals: dict[str, Counter] = {}
    for name in names:
        total, slowest, peak, left, seed = Counter(), 0.0, 0, share, args.seed
        while left > 0:
            ours, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(target=work, args=(name, seed, min(left, BATCH), out, theirs))
            process.start()
            theirs.close()
            if not started(ours):
                process.kill()
                process.join()
                print(f"{name}: left out, it cannot be started here", flush=True)
                break
            process.join(min(left, BATCH) + 60)
            if process.is_alive():
                process.kill()
                process.join()
                total["hangs"] += 1
            elif process.exitcode != 0:
                total["crashes"] += 1
                print(f"{name}: ended by {process.exitcode}; its file is {out}/last-*-{seed}", flush=True)
            if process.exitcode == 0:
                outcomes, slow, most = ours.recv()
                total, slowest, peak = total + outcomes, max(slowest, slow), max(peak, most)
            left, seed = left - BATCH, seed + 1
        totals[name] = total
        tried = sum(total[key] for key in ("read", "refused", "faults"))
        print(
            f"{name:14} {tried:8} tried, {total['read']:7} read, {total['refused']:8} refused, "
            f"{total['faults']} faults, {total['crashes']} crashes, {total['hangs']} hangs, "
            f"slowest {slowest:.2f} s, peak {peak / 1e6:.0f} MB",
            flush=True,
        )
    whole = sum(totals.values(), Counter())
    tried = whole["read"] + whole["refused"] + whole["faults"]
    print(json.dumps({"tried": tried, **whole}))
    sys.exit(1 if whole["faults"] + whole["crashes"] + whole["hangs"] else 0)


if __name__ == "__main__":
    main()
