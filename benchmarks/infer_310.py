"""Time the C++ program for Ascend 310 on the CPU, stage by stage, beside PyTorch with Pillow preprocessing.

    python benchmarks/infer_310.py --data DIR

DIR is a folder of class folders with JPEGs. One JSON line: images a second from file to written logits (`img_s`), of
the model alone, of decoding and preprocessing alone on one thread, and of PyTorch from file to logits, each the median
of --rounds taken in turn. `slowest_stage` is the end-to-end time over that of the slowest stage, `over_torch` the ratio
of images a second. The network has random weights, with a last layer fitted to DIR so that its classes spread:
`same_class` of `images` get the class that the Python side gives them, among `distinct_classes`, and `logit_off` is the
largest difference of a logit. Building and loading are not counted.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
INFER = ROOT / "ascend310_infer"
sys.path.insert(0, str(ROOT))

import src  # noqa: E402, F401  (before MindSpore, which reads the environment that it sets)

# isort: split
import mindspore as ms  # noqa: E402
from mindspore import Tensor  # noqa: E402

from src.args import Config  # noqa: E402
from src.data import load_eval_image  # noqa: E402
from src.data.imagenet import list_folder  # noqa: E402
from src.models import create_model  # noqa: E402
from src.serving.description import describe, write_description  # noqa: E402
from src.serving.mindir import lower_mindir  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of class folders")
    parser.add_argument("--arch", default="DDRNet23")
    parser.add_argument("--batch_size", type=int, default=4, help="the exported network's")
    parser.add_argument("--torch_batch_size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="decoder threads or worker processes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timed", type=int, default=64, help="images a round; all are compared")
    args = parser.parse_args()

    subprocess.run(
        ["bash", INFER / "build.sh"], env={**os.environ, "PYTHON": sys.executable}, check=True, stdout=sys.stderr
    )
    samples = list_folder(args.data)
    paths = [samples.path(index) for index in range(len(samples))]
    config = Config(arch=args.arch, data_url=args.data, batch_size=args.batch_size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        logits = export(paths, config, folder / "net.mindir")
        infer(folder, args.data, args.threads)
        same = agreement(folder / "results", paths, logits)
        timed = linked(folder / "timed", paths[:: max(1, len(paths) // args.timed)])
        tiny = tiny_images(folder / "tiny", len(timed))
        rounds = []
        for _ in range(args.rounds):
            rates = {
                "img_s": infer(folder, folder / "timed", args.threads)["end to end"],
                "model_img_s": infer(folder, tiny, 1)["model alone"],
                "decode_img_s": decode(folder, timed),
                "torch_img_s": infer_torch(args, folder / "timed"),
            }
            slowest = min(rates["model_img_s"], rates["decode_img_s"] * args.threads)
            rates["slowest_stage"] = slowest / rates["img_s"]
            rates["over_torch"] = rates["img_s"] / rates["torch_img_s"]
            rounds.append(rates)
    line: dict[str, Any] = {kind: round(statistics.median(rates[kind] for rates in rounds), 2) for kind in rounds[0]}
    line.update(images=len(paths), timed=len(timed), threads=args.threads, batch_size=args.batch_size, **same)
    print(json.dumps(line))


def export(paths: list[str], config: Config, path: Path) -> np.ndarray:
    """Write a lowered network and its description; returns its logits of the images, float32 (N, 1000).

    With random weights every image would get the same class. The last layer is therefore scaled and shifted so that
    each logit has mean 0 and standard deviation 1 over the images.
    """
    ms.set_seed(0)
    network = create_model(config.arch, config.num_classes, flavour=config.flavour).set_train(False)
    images = (Tensor(load_eval_image(path, config)[None]) for path in paths)
    raw = np.concatenate([network(image).asnumpy() for image in images])
    weight, bias = network.linear.weight, network.linear.bias
    scale = 1 / raw.std(axis=0)
    weight.set_data(Tensor(weight.asnumpy() * scale[:, None]))
    bias.set_data(Tensor((bias.asnumpy() - raw.mean(axis=0)) * scale))
    logits = np.concatenate([network(Tensor(load_eval_image(path, config)[None])).asnumpy() for path in paths])

    shape = (config.batch_size, 3, config.image_size, config.image_size)
    ms.export(network, Tensor(np.zeros(shape, np.float32)), file_name=str(path), file_format="MINDIR")
    lower_mindir(str(path), str(path))
    write_description(path, describe(config, None, shape))
    return logits


def linked(folder: Path, paths: list[str]) -> list[str]:
    """A folder of class folders with links to some of the images; returns their paths."""
    links = []
    for path in map(Path, paths):
        links.append(folder / path.parent.name / path.name)
        links[-1].parent.mkdir(parents=True, exist_ok=True)
        links[-1].symlink_to(path.resolve())
    return list(map(str, links))


def tiny_images(folder: Path, count: int) -> Path:
    """Images of one pixel, whose preprocessing costs nothing: with them the model has the machine to itself."""
    (folder / "class").mkdir(parents=True)
    first = folder / "class" / "0.png"
    Image.new("RGB", (1, 1)).save(first)
    for number in range(1, count):
        shutil.copy(first, folder / "class" / f"{number}.png")
    return folder


def infer(folder: Path, data: Any, threads: int) -> dict[str, float]:
    """Run the program; returns its images a second, end to end and of the model alone."""
    arguments = [INFER / "build" / "main", "--mindir_path", folder / "net.mindir", "--dataset_path", data]
    arguments += ["--device_target", "CPU", "--threads", threads]
    arguments += ["--result_path", folder / "results", "--time_path", folder / "time"]
    command = " ".join(["source", f"'{INFER}/build/env.sh';", "exec", '"$@"'])
    environment = {name: value for name, value in os.environ.items() if name != "GLOG_v"}
    subprocess.run(
        ["bash", "-c", command, "bash", *map(str, arguments)], env=environment, check=True, stdout=sys.stderr
    )
    text = (folder / "time" / "test_perform_static.txt").read_text()
    whole, model = (part.split("images/s")[0].split()[-1] for part in text.splitlines()[1].split("(model alone:"))
    return {"end to end": float(whole), "model alone": float(model)}


def decode(folder: Path, paths: list[str]) -> float:
    """Images a second that one thread decodes and preprocesses."""
    command = [INFER / "build" / "preprocess_images", folder / "net.json", "--time", 1, *paths]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return float(done.stdout.split()[1])


def infer_torch(args: argparse.Namespace, data: Path) -> float:
    """Images a second of PyTorch on the same files, in a process of its own."""
    script = Path(__file__).with_name("infer_310_torch.py")
    flags = ["--data", data, "--batch_size", args.torch_batch_size, "--workers", args.threads]
    done = subprocess.run(
        list(map(str, [sys.executable, script, *flags])), check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)["img_s"]


def agreement(results: Path, paths: list[str], logits: np.ndarray) -> dict[str, Any]:
    """How the program's logits compare with the Python side's."""
    files = [results / f"{Path(path).parent.name}__{Path(path).stem}_0.bin" for path in paths]
    got = np.stack([np.fromfile(file, np.float32) for file in files])
    return {
        "same_class": int((got.argmax(axis=1) == logits.argmax(axis=1)).sum()),
        "distinct_classes": len(np.unique(logits.argmax(axis=1))),
        "logit_off": float(np.abs(got - logits).max()),
    }


if __name__ == "__main__":
    main()
