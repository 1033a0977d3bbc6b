"""Run the C++ program for Ascend 310 under sanitizers, and its image decoders on damaged images.

    python benchmarks/sanitizers_310.py --data DIR [--count 10000]

DIR is a folder of class folders with JPEGs. AddressSanitizer and UndefinedBehaviorSanitizer watch COUNT mutated images
being preprocessed, and the whole program; ThreadSanitizer watches the whole program. MindSpore Lite itself is not
instrumented: its own leaks and races are not looked at. One JSON line; exit code 1 if anything was found.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INFER = ROOT / "ascend310_infer"
sys.path.insert(0, str(ROOT))

from tests.infer_310 import CLASSES, export, network, spec  # noqa: E402
from tests.test_infer_310_preprocess import encoded_kinds  # noqa: E402

# A disk of its own for the results, with room for some of them; to mount it takes root.
SMALL_DISK = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o nr_inodes=20 none results && exec "$@"', "sh"]
SANITIZERS = {"address": "address,undefined", "thread": "thread"}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of class folders")
    parser.add_argument("--count", type=int, default=10_000, help="mutated images")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    line = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, sanitizers in SANITIZERS.items():
            build = INFER / f"build-{kind}"
            environment = {**os.environ, "PYTHON": sys.executable, "BUILD_DIR": str(build)}
            command = ["bash", INFER / "build.sh", f"-DSANITIZE={sanitizers}"]
            subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
        line["fuzz"] = fuzz(folder, args)
        export(network(), folder / "net.mindir", spec(batch=2))
        cases = {"photographs": (args.data, 0), "damaged": (make_damaged(folder / "damaged"), 3)}
        cases["unwritable"] = (args.data, 2)  # the disk is full after some results, while images are decoded
        for kind in SANITIZERS:
            for case, (data, wanted) in cases.items():
                disk = SMALL_DISK if case == "unwritable" else []
                line[f"{kind}_{case}"] = run_main(INFER / f"build-{kind}", folder, data, wanted, disk)
    print(json.dumps(line))
    sys.exit(any("FOUND" in text for text in line.values()))


def fuzz(folder: Path, args: argparse.Namespace) -> str:
    """Mutate one image of every kind, and some of the photographs."""
    (folder / "spec.json").write_text(json.dumps(spec(64)))
    seeds = sorted(str(path) for path in Path(args.data).glob("*/*"))[::25]
    for number, content in enumerate(encoded_kinds().values()):
        seeds.append(str(folder / f"seed{number}"))
        Path(seeds[-1]).write_bytes(content)
    program = INFER / "build-address" / "fuzz_images"
    command = [str(program), str(folder / "spec.json"), str(args.count), str(args.seed), *seeds]
    return outcome(subprocess.run(command, cwd=folder, capture_output=True, text=True), 0)


def make_damaged(folder: Path) -> Path:
    """Images of which half are cut off, in two classes."""
    for number, content in enumerate(encoded_kinds().values()):
        path = folder / CLASSES[number % 2] / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if number % 4 < 2 else content[: len(content) // 3])
    return folder


def run_main(build: Path, folder: Path, data: object, wanted: int, disk: list[str]) -> str:
    """Run the instrumented program with more decoders than cores, behind a command that gives it a disk."""
    flags = [f"--mindir_path={folder}/net.mindir", f"--dataset_path={data}", "--device_target=CPU", "--threads=6"]
    flags += [f"--result_path={folder}/results", f"--time_path={folder}/time"]
    script = f"source '{build}/env.sh'; exec '{build}/main' \"$@\""
    environment = {**os.environ, **OPTIONS, "GLOG_v": "4"}
    command = [*disk, "bash", "-c", script, "bash", *flags]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return outcome(done, wanted)


def outcome(done: subprocess.CompletedProcess, wanted: int) -> str:
    """What came out in a few words; all of it on standard error if it is not what was wanted."""
    reported = [line for line in done.stderr.splitlines() if "Sanitizer" in line or "runtime error" in line]
    if done.returncode == wanted and not reported:
        return f"clean ({done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()[-60:]})"
    print(done.stdout, done.stderr, file=sys.stderr)
    return f"FOUND: exit code {done.returncode}, {reported[:1]}"


if __name__ == "__main__":
    main()
