"""Kill a real train.py again and again, let it go on, and compare it with a run left alone.

    python benchmarks/soak.py --kills 100
    python benchmarks/soak.py --kills 20 --ranks 2      # kills the launcher, a rank, the scheduler, launcher and guard
    python benchmarks/soak.py --folder /dev/shm/soak    # in memory, as a run writes half a gigabyte

The moments: any; while a file is written or has just got its name; while the epoch is validated; while the step is
compiled, with an empty compile cache. The signals: SIGKILL, SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, and a second one
after the first, at once or when it counts as another request. Prints one JSON line: kills by signal and by moment, runs
that were resumed, runs that ended, and losses: runs whose final weights or metrics differ in any bit from the run that
was left alone, or that leave a temporary file or a process behind. Nothing but 0 losses is right.
"""

import argparse
import contextlib
import ctypes
import json
import os
import random
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.conftest import ROOT, TINY, command, write_digits
from tests.interrupted import log_of, outcome, start, wait_for
from tests.processes import alive, end_all

IN_MOVED_TO, IN_CREATE = 0x80, 0x100  # inotify(7)
MOMENTS = ["any"] * 4 + ["write"] * 4 + ["validation"] * 2 + ["compile"]
SIGNALS = [signal.SIGKILL] * 5 + [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1]
OFTEN = (r"-\d+_\d+\.ckpt", r"\.state")  # files that are written again and again, and those
ONCE = (r"_best\.ckpt", r"_best\.json", "metrics", "curves", "config", "classes", r"Slim\.ckpt")
FILES = OFTEN * 2 + ONCE
LIMIT = 300  # seconds for what takes a few, and
JOB_LIMIT = 3600  # for a job that its launcher has started again, on a busy machine


class Writes:
    """The names that appear in folders, as they appear."""

    def __init__(self, *folders: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            libc.inotify_add_watch(self.descriptor, bytes(folder), IN_CREATE | IN_MOVED_TO)

    def wait_for(self, pattern: str, process: subprocess.Popen) -> Optional[str]:
        """Wait for a name in which a pattern is found; None where the process ends first."""
        while process.poll() is None:
            if not select.select([self.descriptor], [], [], 0.1)[0]:
                continue
            events, place = os.read(self.descriptor, 1 << 16), 0
            while place < len(events):
                length = struct.unpack_from("iIII", events, place)[3]
                name = events[place + 16 : place + 16 + length].rstrip(b"\0").decode()
                if re.search(pattern, re.sub(r"\.\d+\.tmp", "", name)):
                    return name
                place += 16 + length
        return None

    def close(self) -> None:
        os.close(self.descriptor)


class Soak:
    """Runs of one kind, one after the other, that are killed until enough kills have happened.

    Args:
        root: the folder of all runs.
        ranks: processes a run; above 1 they are started by the launcher.
        kills: how many there are to be.
        rng: what draws moments and signals.
    """

    def __init__(self, root: Path, ranks: int, kills: int, rng: random.Random) -> None:
        self.root, self.ranks, self.kills, self.rng = root, ranks, kills, rng
        data = write_digits(root / "digits") if not (root / "digits").exists() else root / "digits"
        self.flags = ["--ddr_config", str(TINY), "--data_url", str(data), "--save_steps", "1"]
        self.flags += ["--batch_size", str(16 // ranks), "--keep_checkpoint_max", "3"]
        self.counts: Counter = Counter()
        self.moments: Counter = Counter()
        self.want, self.whole = self.left_alone()

    def left_alone(self) -> tuple[dict, float]:
        """What a run ends with that nobody kills, and its seconds; made once a folder."""
        kept = self.root / "alone.json"
        for name in () if kept.exists() else ("first", "alone"):  # the second finds the compiled step
            folder, began = self.root / name, time.monotonic()
            shutil.rmtree(folder, ignore_errors=True)
            if self.started(folder, self.root / "cache").wait() != 0:
                sys.exit(log_of(folder))
            kept.with_suffix(".part").write_text(json.dumps([outcome(folder), time.monotonic() - began]))
        if not kept.exists():
            kept.with_suffix(".part").replace(kept)
        want, seconds = json.loads(kept.read_text())
        return want, seconds

    def started(self, folder: Path, cache: Path, *more: str) -> subprocess.Popen:
        """A run in a folder; with several ranks their launcher, which starts them again once."""
        flags = [*self.flags, "--compile_cache", str(cache), "--train_url", str(folder), *more]
        if self.ranks == 1:
            return start(flags, folder)
        folder.mkdir(exist_ok=True)
        launcher = [sys.executable, "-m", "src.launcher.supervisor", "--workers", str(self.ranks)]
        launcher += ["--device_target", "CPU", "--max_restarts", "1", "--restart_flags=--resume auto", "--"]
        with (folder / "log.txt").open("a") as log:
            return subprocess.Popen(
                [*launcher, *command("train.py", *flags)],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def run(self) -> None:
        """Kill runs and let them go on until there have been enough kills and the last run has ended."""
        number = 0
        while self.counts["kills"] < self.kills:
            number += 1
            folder = self.root / f"run{os.getpid()}_{number}"
            while self.start_and_kill(folder) != 0:
                pass
            self.counts["ended"] += 1
            left = [path.name for place in (folder, folder / "ckpt_0") for path in place.glob(".*tmp*")]
            if outcome(folder) != self.want or left or alive(folder):
                self.counts["losses"] += 1
                print(f"{folder} differs, or has left {left}, {alive(folder)}", file=sys.stderr)
            else:
                shutil.rmtree(folder)
            print(json.dumps({**self.counts, "moments": self.moments}), file=sys.stderr, flush=True)

    def start_and_kill(self, folder: Path) -> int:
        """Start a run, or go on with it, and kill it at a moment; the exit code."""
        moment = self.rng.choice(MOMENTS)
        cache = self.root / "cache"
        if moment == "compile":
            cache = self.root / "cold"
            shutil.rmtree(cache, ignore_errors=True)
        before = len(log_of(folder))
        writes = Writes(folder, folder / "ckpt_0")
        self.counts["resumed"] += bool(list((folder / "ckpt_0").glob("*.state")))
        process, killed, began = self.started(folder, cache, "--resume", "auto"), False, time.monotonic()
        if self.counts["kills"] < self.kills:
            what = self.await_moment(moment, folder, before, writes, process)
            if process.poll() is None:
                sent = self.kill(process, folder)
                killed = True
                self.moments[what] += 1
                self.counts["kills"] += 1
                self.counts[sent] += 1
                self.check_end(process, folder, before, sent)
        writes.close()
        code = process.wait()
        if not killed:  # the machine is as busy as it is
            self.whole = min(self.whole, time.monotonic() - began)
        if code and not killed:
            sys.exit(f"exit code {code} of its own\n{log_of(folder, before)}")
        wait_for_none(folder)
        return code

    def await_moment(
        self, moment: str, folder: Path, before: int, writes: Writes, process: subprocess.Popen
    ) -> Optional[str]:
        """Wait for a moment of that kind; what it was."""
        rng, wait = self.rng, 0.0
        if moment == "write":
            pattern = rng.choice(FILES)
            for _ in range(rng.choice([1, 2, 3]) if pattern in OFTEN else 1):
                if not writes.wait_for(pattern, process):
                    break
            time.sleep(rng.choice([0.0, 0.0, rng.uniform(0, 0.05)]))
            return f"write {pattern}"
        if moment == "validation":
            wait_for(process, lambda: "step 5/5" in log_of(folder, before), LIMIT)
            wait = rng.uniform(0, 0.5)
        elif moment == "compile":
            wait_for(process, lambda: "compiling the step" in log_of(folder, before), LIMIT)
            wait = rng.uniform(0, 20)
        else:
            wait = rng.uniform(0.2, self.whole)
        end = time.monotonic() + wait
        wait_for(process, lambda: time.monotonic() >= end, LIMIT)
        return moment

    def kill(self, process: subprocess.Popen, folder: Path) -> str:
        """Send a signal to the run, perhaps a second; what was sent."""
        number = self.rng.choice(SIGNALS)
        victims, whom = [process.pid], ""
        if self.ranks > 1:
            whom = self.rng.choice(["launcher", "rank", "rank", "scheduler", "launcher and guard"])
            ranks, scheduler, guards = family(process, folder)
            if whom != "launcher":
                number = signal.SIGKILL
            if whom == "launcher and guard":
                victims += guards
            elif whom != "launcher":
                victims = [self.rng.choice(ranks)] if ranks and whom == "rank" else scheduler or victims
        for pid in victims:
            send(pid, number)
        sent = f"{whom} {number.name}".strip()
        if number != signal.SIGKILL and self.rng.random() < 0.4:
            time.sleep(self.rng.choice([0.0, self.rng.uniform(0, 0.5), self.rng.uniform(1, 2)]))
            second = self.rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
            send(process.pid, second)
            sent += f" {second.name}"
        return sent

    def check_end(self, process: subprocess.Popen, folder: Path, before: int, sent: str) -> None:
        """Wait for a killed run's end and end this program if it is another than the signal's."""
        try:
            code = process.wait(timeout=LIMIT if self.ranks == 1 else JOB_LIMIT)
        except subprocess.TimeoutExpired:
            end_all(folder)
            sys.exit(f"{sent}: has not ended\n{log_of(folder, before)}")
        numbers = [signal.Signals[word] for word in sent.split() if word.startswith("SIG")]
        if numbers[0] != signal.SIGKILL and self.ranks > 1:
            numbers.append(signal.SIGTERM)  # what a launcher makes of SIGHUP
        if self.ranks > 1 and code in (1, 75):  # what the others make of a rank's end, after the restart that it had
            return
        if code and code not in [sign * number + 128 * (sign > 0) for number in numbers for sign in (1, -1)]:
            sys.exit(f"{sent}: exit code {code} of its own\n{log_of(folder, before)}")


def family(process: subprocess.Popen, folder: Path) -> tuple[list[int], list[int], list[int]]:
    """The processes of a launcher: ranks, scheduler, guards."""
    ranks, scheduler, guards = [], [], []
    for pid in alive(folder, process.pid):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent != process.pid:
            continue
        kind = ranks if b"train.py" in words and b"supervisor" not in words else guards
        (scheduler if b"communication.init" in words else kind).append(pid)
    return ranks, scheduler, guards


def send(pid: int, number: int) -> None:
    """A signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_for_none(folder: Path) -> None:
    """Wait until no process of a run is left; end this program where one stays."""
    end = time.monotonic() + 60
    while alive(folder):
        if time.monotonic() > end:
            left = [(pid, Path(f"/proc/{pid}/cmdline").read_bytes()) for pid in alive(folder)]
            end_all(folder)
            sys.exit(f"left behind: {left}")
        time.sleep(0.1)


def main() -> None:
    """Run until that many kills have happened and the last run has ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="other seeds draw other moments")
    parser.add_argument("--folder", help="keeps the run left alone for the next piece, and runs that differ from it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(arguments.folder or name).resolve()
        root.mkdir(parents=True, exist_ok=True)
        soak = Soak(root, arguments.ranks, arguments.kills, random.Random(arguments.seed))
        soak.run()
    result = {"benchmark": "soak", "ranks": arguments.ranks, "losses": 0, **soak.counts, "moments": soak.moments}
    print(json.dumps(result))
    sys.exit(1 if soak.counts["losses"] else 0)


if __name__ == "__main__":
    main()
