"""Time the training step beside PyTorch's at its best, in alternating rounds.

python benchmarks/training.py --batch_size 16 --image_size 224
python benchmarks/training.py --batch_size 32 --image_size 64 --bf16
Each round runs train_step.py, with the recipe's drop path, and peers/peer_step.py --best, which has none, one after the
other, each in a process of its own. Prints a table with images a second, a row a setting of PyTorch's, and one JSON
line: the medians over the rounds and their ratio. Needs torch.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def lines(*command: object) -> list[dict]:
    """The JSON lines that a benchmark prints."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=HERE.parent, check=True, text=True, stdout=subprocess.PIPE
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description="The training step beside PyTorch's at its best.")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 in both; else float32")
    parser.add_argument("--steps", type=int, default=6, help="of which a round takes the median")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    shape = ["--batch_size", arguments.batch_size, "--image_size", arguments.image_size, "--steps", arguments.steps]
    level = "auto" if arguments.bf16 else "O0"
    rates: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        own = lines(HERE / "train_step.py", *shape, "--amp_level", level, "--drop_path_rate", "0.1")[0]
        rates.setdefault("this", []).append(own["img_s"])
        for line in lines(HERE / "peers" / "peer_step.py", *shape, "--best", *["--bf16"] * arguments.bf16)[:-1]:
            rates.setdefault(line["peer"], []).append(line["train_img_s"])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print("| training step | images/s, by round | median |\n|---|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {', '.join(f'{value:.1f}' for value in values)} | {medians[name]:.1f} |")
    best = max((name for name in rates if name != "this"), key=medians.__getitem__)
    ratio = round(medians["this"] / medians[best], 2)
    print(json.dumps({"benchmark": "training", "this": medians["this"], best: medians[best], "ratio": ratio}))


if __name__ == "__main__":
    main()
