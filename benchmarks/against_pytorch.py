"""Train one network in MindSpore, by this project, and in PyTorch, from the same weights on the same batches.

python benchmarks/against_pytorch.py --ddr_config src/configs/ddrnet23_digits.yaml --data_url data/digits --seeds 0,1
python benchmarks/against_pytorch.py ... --steps 30       # the first 30 steps alone, and no accuracy
python benchmarks/against_pytorch.py ... --who torch      # PyTorch alone, where train.py makes the other half
python benchmarks/against_pytorch.py ... --who ours,torch,torch64 --steps 30   # and in float64, to tell rounding apart
Prints the losses side by side by step, and for each seed the accuracy, seconds and CPU seconds of both.

The batches are the pipeline's, augmented and mixed as the YAML file says. PyTorch has `peers/torch_ddrnet.py`, which is
the paper's flavour without drop path, in channels_last, with its own SGD, clipping and cross entropy, and our learning
rates. Each framework runs in a process of its own. Needs torch.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src.args import Config, parse_args  # noqa: E402
from src.data import create_dataset  # noqa: E402
from src.metrics import Totals  # noqa: E402
from src.tools.schedulers import learning_rates  # noqa: E402
from src.weights.names import torch_name  # noqa: E402

SAME = {"flavour": "paper", "drop_path_rate": 0.0, "amp_level": "O0", "device_target": "CPU"}  # what both can do
FACTORIES = {"DDRNet23Slim": "ddrnet23_slim", "DDRNet23": "ddrnet23", "DDRNet39": "ddrnet39"}
SHOWN = (*range(6), 10, 20, 29, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


def train(config: Config, step, scores, steps: int) -> dict:
    """Run `step`, a function of an update's number, images and targets to the loss, and score what comes of it.

    Args:
        config: of the run.
        step: trains on one batch.
        scores: a function of val/'s batches to `Totals`.
        steps: how many; 0: all, with a validation at the end.
    """
    data = create_dataset(config, "train")
    losses, epochs = [], range(1, config.epochs + 1)
    began, used = time.perf_counter(), cpu_seconds()
    for images, targets in (batch for epoch in epochs for batch in data.epoch(epoch)):
        losses.append(step(len(losses), images, targets))
        if len(losses) % 100 == 0:
            print(f"step {len(losses)}, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        if len(losses) == steps:
            break
    spent = {"seconds": time.perf_counter() - began, "cpu_seconds": cpu_seconds() - used}
    means = {} if steps else scores(create_dataset(config, "val").epoch()).means()
    return {"losses": losses, **spent, **means}


def cpu_seconds() -> float:
    """User and system seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def train_ours(config: Config, weights: Path, steps: int) -> dict:
    """Write the initial weights, then train as train.py does; with steps -1 only write them."""
    from mindspore import Tensor

    from src.assembly import build_network, build_step
    from src.distributed.join import join
    from src.evaluation.evaluate import evaluate
    from src.models.fold import fold_batch_norm

    config, ranks = join(config)
    network = build_network(config)
    np.savez(weights, **{torch_name(p.name): p.asnumpy() for p in network.get_parameters()})
    if steps < 0:
        return {}
    trainer = build_step(config, network, create_dataset(config, "train").steps, ranks)

    def step(_: int, images: np.ndarray, targets: np.ndarray) -> float:
        return float(trainer(Tensor(images), Tensor(targets)).asnumpy())

    return train(config, step, lambda batches: evaluate(fold_batch_norm(network), batches), steps)


def train_torch(config: Config, weights: Path, steps: int, double: bool = False) -> dict:
    """Train in PyTorch by the same recipe, from the weights that `train_ours` wrote; `double`: in float64."""
    import torch

    sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))
    import torch_ddrnet

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    kind = torch.float64 if double else torch.float32
    network = getattr(torch_ddrnet, FACTORIES[config.arch])(num_classes=config.num_classes)
    with np.load(weights) as arrays:
        missing, surplus = network.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()}, strict=False)
    assert not surplus and all(name.endswith("num_batches_tracked") for name in missing)
    network.train().to(kind).to(memory_format=torch.channels_last)
    parameters = list(network.parameters())
    groups = [  # no decay for biases and batch norm, the one-dimensional ones
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
    ]
    optimizer = torch.optim.SGD(groups, 0.1, momentum=config.momentum, nesterov=config.use_nesterov, fused=True)
    rates = learning_rates(config, create_dataset(config, "train").steps)

    def run(images: np.ndarray) -> torch.Tensor:
        return network(torch.from_numpy(images).to(kind).to(memory_format=torch.channels_last))

    def step(number: int, images: np.ndarray, targets: np.ndarray) -> float:
        for group in optimizer.param_groups:
            group["lr"] = float(rates[number])
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(run(images), torch.from_numpy(targets).to(kind))
        loss.backward()
        if config.clip_global_norm:
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_global_norm_value)
        optimizer.step()
        return loss.item()

    def scores(batches) -> Totals:
        network.eval()
        totals = Totals()
        with torch.no_grad():
            for images, labels in batches:
                totals.add(run(images).numpy(), labels)
        return totals

    return train(config, step, scores, steps)


def main() -> None:
    """Start a process for each framework and seed, and print what they say."""
    extra = [
        ("--seeds", {"default": "0", "help": "seeds, such as 0,1,2"}),
        ("--who", {"default": "ours,torch", "help": "which of ours, torch and torch64, in float64"}),
        ("--steps", {"default": 0, "type": int, "help": "train for so many steps alone; 0: the whole run"}),
        ("--worker", {"nargs": 3, "help": argparse.SUPPRESS}),
    ]
    config, rest = parse_args(description=__doc__.splitlines()[0], extra=extra)
    if rest.worker:
        who, seed, folder = rest.worker
        config = config.model_copy(update={**SAME, "seed": int(seed)})
        if config.accumulation_step > 1 or config.optimizer != "momentum":
            sys.exit("this benchmark knows momentum without accumulation")
        work = {"ours": train_ours, "torch": train_torch, "torch64": partial(train_torch, double=True)}[who]
        result = work(config, Path(folder, f"{seed}.npz"), rest.steps)
        Path(folder, f"{who}_{seed}.json").write_text(json.dumps(result))
        return
    frameworks, seeds = rest.who.split(","), rest.seeds.split(",")
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            results = {}
            for who in ["ours"] * ("ours" not in frameworks) + frameworks:
                command = [sys.executable, __file__, *sys.argv[1:], "--worker", who, seed, folder]
                # The cap on oneDNN's instructions that `src` sets is for MindSpore's tensors; PyTorch's need none.
                free = {} if who == "ours" else {"ONEDNN_MAX_CPU_ISA": "DEFAULT"}
                subprocess.run(
                    command + ["--steps", "-1"] * (who not in frameworks), check=True, env={**os.environ, **free}
                )
                if who in frameworks:
                    results[who] = json.loads(Path(folder, f"{who}_{seed}.json").read_text())
            show(seed, results)


def show(seed: str, results: dict[str, dict]) -> None:
    """Print one seed's losses by step and figures."""
    losses = [result["losses"] for result in results.values()]
    last = len(losses[0]) - 1
    print(f"seed {seed}: step, loss of {', '.join(results)}, relative difference from the last of them")
    for step in sorted({step for step in SHOWN if step < last} | {last}):
        values = [loss[step] for loss in losses]
        apart = [f"{abs(value - values[-1]) / abs(values[-1]):.1e}" for value in values[:-1]]
        print(f"  {step:6d}  {'  '.join([f'{value:.6f}' for value in values] + apart)}")
    for who, result in results.items():
        accuracy = f"top-1 {result['top1']:.2%}, val loss {result['loss']:.4f}, " if "top1" in result else ""
        print(f"  {who}: {accuracy}{result['seconds']:.0f} s, CPU {result['cpu_seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
