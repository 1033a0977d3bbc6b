"""Time trained networks where they are served, on the CPU: eval.py's own, ONNX Runtime, OpenVINO, PyTorch, Lite.

    python benchmarks/serving.py --batch_size 1
    python benchmarks/serving.py --batch_size 16 --lite ascend310_infer/build

Every contender runs the same weights on the same images in a process of its own, with as many threads as there are
cores, and takes its turn in every round while the others wait. A row says the images a second (the median over the
rounds), the median over the rounds of its ratio to eval.py's network in the same precision, and the largest difference
of a logit from PyTorch's in float32, over the largest logit. In bfloat16 run those whose runtime has it.

PyTorch is benchmarks/peers/torch_ddrnet.py: as it is, with channels last, and compiled with its weights frozen. Lite is
the C++ program's time for the model alone; --lite names the folder in which ascend310_infer/build.sh built it.
--rounds 0 starts every contender once and fills PyTorch's cache of compiled code.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = {"DDRNet23": "ddrnet23", "DDRNet23Slim": "ddrnet23_slim", "DDRNet39": "ddrnet39"}
OWN, LITE = "eval.py", "MindSpore Lite"
CONTENDERS = {
    "float32": (
        "PyTorch", OWN, "ONNX Runtime", "OpenVINO", "PyTorch, channels last", "PyTorch, channels last, compiled",
    ),
    "bfloat16": (OWN, "OpenVINO", "PyTorch, channels last", "PyTorch, channels last, compiled"),
}  # fmt: skip

Run = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Start the contenders, let them take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="DDRNet23", choices=ARCHITECTURES)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"], choices=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each contender's turn, at least three batches")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders that are to run")
    parser.add_argument("--lite", metavar="FOLDER", help="where the C++ program was built")
    parser.add_argument("--worker", nargs=3, metavar=("NAME", "PRECISION", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(args, *args.worker)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(args, folder)
        workers = {
            (name, precision): Worker(args, name, precision, folder)
            for precision in args.precision
            for name in CONTENDERS[precision]
            if not args.only or name in args.only
        }
        lite = Lite(args, folder) if args.lite else None
        logits = {key: worker.start() for key, worker in workers.items()}
        rates: dict[tuple[str, str], list[float]] = {key: [] for key in workers}
        for _ in range(args.rounds):
            for key, worker in workers.items():
                rates[key].append(args.batch_size / worker.turn(args.seconds))
            if lite:
                rates.setdefault((LITE, "float32"), []).append(lite.turn())
        for worker in workers.values():
            worker.end()
    report(args, rates, logits)


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Weights and images, and the exported files, in a folder."""
    import torch

    torch.manual_seed(0)
    torch.save(torch_network(args.arch).state_dict(), folder / "weights.pth")
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    np.save(folder / "images.npy", np.random.default_rng(0).standard_normal(shape, np.float32))
    export(args, folder, "--file_format", "ONNX")
    if args.lite:
        export(args, folder, "--mindir_version", "1")


def export(args: argparse.Namespace, folder: Path, *flags: str) -> None:
    """Run export.py in the folder."""
    own = [*network_flags(args, folder), "--batch_size", args.batch_size, "--num_classes", 1000, *flags]
    command = [sys.executable, ROOT / "export.py", *own, "--data_url", folder]
    subprocess.run(list(map(str, command)), cwd=folder, check=True, stdout=sys.stderr)


def network_flags(args: argparse.Namespace, folder: Path) -> list[Any]:
    """The flags that name the network to export.py and eval.py."""
    return [
        *("--arch", args.arch, "--flavour", "paper", "--pretrained", folder / "weights.pth"),
        *("--image_size", args.image_size, "--device_target", "CPU"),
    ]


def torch_network(arch: str) -> Any:
    """PyTorch's network, whose parameters have the names of the paper's published weights."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))
    import torch_ddrnet

    return getattr(torch_ddrnet, ARCHITECTURES[arch])().eval()


class Worker:
    """A contender in a process of its own, which waits on its standard input for its turns."""

    def __init__(self, args: argparse.Namespace, name: str, precision: str, folder: Path) -> None:
        self.logits = folder / f"{name} {precision}.npy"
        flags = ["--arch", args.arch, "--image_size", args.image_size, "--batch_size", args.batch_size]
        command = [sys.executable, __file__, *flags, "--worker", name, precision, folder]
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
        )

    def start(self) -> np.ndarray:
        """Wait until it is warm; returns its logits."""
        self._answer()
        return np.load(self.logits)

    def turn(self, seconds: float) -> float:
        """Median seconds a batch of one turn."""
        print(seconds, file=self.process.stdin, flush=True)
        return float(self._answer())

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> str:
        for line in self.process.stdout:
            if line.startswith("worker: "):
                return line.partition(" ")[2]
        raise SystemExit(f"{self.logits.stem} ended with {self.process.wait()}")


def serve(args: argparse.Namespace, name: str, precision: str, folder: str) -> None:
    """What a worker does: warm up, then time its network whenever it is told for how long."""
    images = np.load(Path(folder, "images.npy"))
    run = RUNTIMES[name.partition(",")[0]](args, name, precision, Path(folder))
    np.save(Path(folder, f"{name} {precision}.npy"), run(images).astype(np.float32))
    for _ in range(3):
        run(images)
    print("worker: ready", flush=True)
    for line in sys.stdin:
        times: list[float] = []
        while len(times) < 3 or sum(times) < float(line):
            start = time.perf_counter()
            run(images)
            times.append(time.perf_counter() - start)
        print("worker:", statistics.median(times), flush=True)


def own_network(args: argparse.Namespace, name: str, precision: str, folder: Path) -> Run:
    """eval.py's network."""
    sys.path.insert(0, str(ROOT))
    from mindspore import Tensor

    from src.args import parse_args
    from src.assembly import build_classifier
    from src.distributed.join import join

    level = "O0" if precision == "float32" else "auto"
    config, _ = parse_args(list(map(str, [*network_flags(args, folder), "--amp_level", level])))
    network = build_classifier(join(config)[0])
    return lambda images: network(Tensor(images)).asnumpy()


def onnx_runtime(args: argparse.Namespace, name: str, precision: str, folder: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / f"{args.arch}.onnx"), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def open_vino(args: argparse.Namespace, name: str, precision: str, folder: Path) -> Run:
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(folder / f"{args.arch}.onnx"), "CPU", hints)
    return lambda images: compiled(images)[compiled.output(0)]


def pytorch(args: argparse.Namespace, name: str, precision: str, folder: Path) -> Run:
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    dtype = getattr(torch, precision)
    network = torch_network(args.arch)
    network.load_state_dict(torch.load(folder / "weights.pth"))
    network = network.to(dtype)
    layout = torch.channels_last if "channels last" in name else torch.contiguous_format
    network = network.to(memory_format=layout)
    if "compiled" in name:
        import torch._inductor.config

        torch._inductor.config.freezing = True
        network = torch.compile(network)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode() if "compiled" not in name else torch.no_grad():
            batch = torch.from_numpy(images).to(dtype, memory_format=layout)
            return network(batch).float().numpy()

    return run


RUNTIMES = {OWN: own_network, "ONNX Runtime": onnx_runtime, "OpenVINO": open_vino, "PyTorch": pytorch}


class Lite:
    """The C++ program on images of one pixel, so that the model has the machine to itself."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        from PIL import Image

        self.build, self.folder, self.mindir = Path(args.lite).resolve(), folder, folder / f"{args.arch}.mindir"
        (folder / "tiny" / "class").mkdir(parents=True)
        for number in range(max(24, 3 * args.batch_size)):
            Image.new("RGB", (1, 1)).save(folder / "tiny" / "class" / f"{number}.png")

    def turn(self) -> float:
        """Images a second of one run."""
        flags = ["--mindir_path", self.mindir, "--dataset_path", self.folder / "tiny", "--device_target", "CPU"]
        flags += ["--threads", 1, "--result_path", self.folder / "results", "--time_path", self.folder]
        environment = {name: value for name, value in os.environ.items() if name != "GLOG_v"}
        command = ["bash", "-c", f"source '{self.build}/env.sh'; exec \"$@\"", "bash", self.build / "main", *flags]
        subprocess.run(list(map(str, command)), env=environment, check=True, stdout=sys.stderr)
        text = (self.folder / "test_perform_static.txt").read_text()
        return float(re.search(r"model alone: *([\d.]+)", text)[1])


def report(
    args: argparse.Namespace, rates: dict[tuple[str, str], list[float]], logits: dict[tuple[str, str], np.ndarray]
) -> None:
    """Print the table, and everything as one JSON line."""
    reference = logits.get(("PyTorch", "float32"))
    print(f"{args.arch}, {args.batch_size} x 3 x {args.image_size} x {args.image_size}, {processor()}\n")
    print("| runtime | precision | images/s | of eval.py's | logits off |\n|---|---|---|---|---|")
    rows = []
    for (name, precision), own in rates.items():
        base = rates.get((OWN, precision))
        ratio = statistics.median(a / b for a, b in zip(own, base)) if own and base else None
        off = distance(logits.get((name, precision)), reference)
        row = {"runtime": name, "precision": precision, "img_s": statistics.median(own) if own else None}
        rows.append({**row, "of_eval": ratio, "logits_off": off})
        print(
            f"| {name} | {precision} | {figure(row['img_s'], '.1f')} | {figure(ratio, '.2f')} | {figure(off, '.0e')} |"
        )
    print(json.dumps({"batch_size": args.batch_size, "image_size": args.image_size, "rows": rows}))


def distance(logits: Optional[np.ndarray], reference: Optional[np.ndarray]) -> Optional[float]:
    if logits is None or reference is None:
        return None
    return float(np.abs(logits - reference).max() / np.abs(reference).max())


def figure(value: Optional[float], form: str) -> str:
    return "" if value is None else format(value, form)


def processor() -> str:
    """The processor's name, and family and model, as names of virtual machines' say little."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    held = dict(re.findall(r"^([a-z ]+?)\s*: (.*)$", text.partition("\n\n")[0], re.MULTILINE))
    name = held.get("model name", platform.processor())
    return f"{name}, family {held.get('cpu family')} model {held.get('model')}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
