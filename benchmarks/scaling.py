"""What more ranks bring: images/s, and the seconds a step spends in AllReduce and in waiting for data.

python benchmarks/scaling.py --workers 1,2 --data_url data/digits [FLAG VALUE ...]

Prints a JSON line for each number of workers. Every worker has the same batch and the same number of cores, whatever
their number, so that the ideal is twice the images/s of one with two. The last line is of one process with all these
cores and batches, the alternative: `of_one_process` compares the most workers with it. `allreduce_s` is the time of the
gradients' reduction alone, with nobody waiting for anybody; what it costs a step is the difference of the `step_s`.
With `--rounds N` they take turns, and each figure is a median. Further flags are those of train.py, on top of
src/configs/ddrnet23_digits.yaml.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from operator import itemgetter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src.args import parse_args  # noqa: E402

WARMUP = 5  # steps
REDUCTIONS = 10


def measure(steps: int, flags: list[str]) -> dict[str, float]:
    """What one rank sees: images/s of all, and mean seconds a step; run by each rank in its own process."""
    from mindspore import Tensor, nn, ops

    from src.assembly import build_network, build_step
    from src.data import create_dataset
    from src.distributed.join import join

    class Reduction(nn.Cell):
        """The gradients' AllReduce as the training step has it, and nothing else."""

        def __init__(self, reduce: nn.Cell) -> None:
            super().__init__()
            self.reduce = reduce

        def construct(self, gradients: tuple) -> Tensor:
            return ops.addn([gradient.reshape(-1)[:1] for gradient in self.reduce(gradients)])

    config, ranks = join(parse_args(flags)[0].model_copy(update={"drop_path_rate": 0.0}))
    train = create_dataset(config, "train", ranks.rank, ranks.world)
    step = build_step(config, build_network(config), train.updates, ranks)

    def batches():
        for epoch in range(1, 1000):
            yield from train.epoch(epoch)

    waited, source = 0.0, batches()
    for done in range(WARMUP + steps):
        if done == WARMUP:
            ranks.agree(0)  # all begin together
            waited, began = 0.0, time.perf_counter()
        asked = time.perf_counter()
        batch = next(source)
        waited += time.perf_counter() - asked
        step(*(Tensor(column) for column in batch)).asnumpy()
    step_s = (time.perf_counter() - began) / steps
    source.close()

    allreduce_s = 0.0
    if ranks.world > 1:
        reduction = Reduction(step.reduce)
        gradients = tuple(ops.ones_like(weight) for weight in step.weights)
        reduction(gradients).asnumpy()
        seconds = []
        for _ in range(REDUCTIONS):
            ranks.agree(0)
            began = time.perf_counter()
            reduction(gradients).asnumpy()
            seconds.append(time.perf_counter() - began)
        allreduce_s = sorted(seconds)[REDUCTIONS // 2]
    return {
        "workers": ranks.world,
        "img_s": round(ranks.world * config.batch_size / step_s, 2),
        "step_s": round(step_s, 4),
        "allreduce_s": round(allreduce_s, 4),
        "data_wait_s": round(waited / steps, 4),
        "batch_size": config.batch_size,
        "arch": config.arch,
        "gradient_mb": round(sum(weight.size for weight in step.weights) * 4e-6, 1),
    }


def run_ranks(workers: int, cores: list[int], steps: int, flags: list[str], folder: Path) -> dict[str, float]:
    """Start so many ranks on these cores and return what the first measured."""
    result = folder / f"{workers}.json"
    command = [sys.executable, "-m", "src.launcher.supervisor", "--workers", str(workers), "--device_target", "CPU"]
    command += ["--folder", str(folder / f"rank{workers}-"), "--", sys.executable, str(Path(__file__).resolve())]
    command += ["--measure", str(result), "--steps", str(steps), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # the supervisor inherits them and shares them out
    try:
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    finally:
        os.sched_setaffinity(0, own)
    return json.loads(result.read_text())


def main() -> None:
    """Measure every number of workers, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2", help="numbers of ranks, such as 1,2 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="timed steps (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="of all in turn (default: %(default)s)")
    parser.add_argument("--data_url", default=str(ROOT / "data/digits"), help="default: %(default)s")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options, flags = parser.parse_known_args()
    flags += ["--data_url", str(Path(options.data_url).resolve())]
    if options.measure:
        record = measure(options.steps, flags)
        if os.environ.get("RANK_ID", "0") == "0":
            Path(options.measure).write_text(json.dumps(record))
        return

    flags = ["--ddr_config", str(ROOT / "src/configs/ddrnet23_digits.yaml"), *flags]
    counts = [int(text) for text in options.workers.split(",")]
    most = max(counts)
    cores = sorted(os.sched_getaffinity(0))
    each = max(len(cores) // most, 1)
    settings = [(workers, each, flags) for workers in counts]
    if most > 1:
        batch_size = parse_args(flags)[0].batch_size
        settings.append((1, each * most, [*flags, "--batch_size", str(most * batch_size)]))
    found: list[list[dict[str, float]]] = [[] for _ in settings]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for records, (workers, of_each, of_it) in zip(found, settings):
                records.append(run_ranks(workers, cores[: of_each * workers], options.steps, of_it, Path(folder)))
    medians = [sorted(records, key=itemgetter("img_s"))[len(records) // 2] for records in found]
    single = medians[0]["img_s"] / counts[0]
    for record, (workers, of_each, _) in zip(medians, settings):
        record["cores_a_worker"] = of_each
        if of_each == each:
            record["efficiency"] = round(record["img_s"] / workers / single, 3)
        if workers == most > 1:
            record["of_one_process"] = round(record["img_s"] / medians[-1]["img_s"], 3)
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
