"""Compare Python's decoding with that of the C++ program for Ascend 310 on odd and damaged images.

    python benchmarks/infer_310_agreement.py [--count 100000] [--seed 0]

The images are drawn by tests/odd_images.py, half JPEG, half PNG. One JSON line: how many were `tried`, how many both
sides `decoded` to the same pixels, how many both `refused`, and how many got another verdict or other pixels
(`different`; they are kept in --keep). Exit code 1 if any differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import features

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.odd_images import difference, odd_image, pixels_here, pixels_there  # noqa: E402

BLOCK = 500  # images in one call of the program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", default="different", help="folder for images on which the two differ")
    args = parser.parse_args()

    build = ROOT / "ascend310_infer" / "build"
    environment = {**os.environ, "PYTHON": sys.executable, "BUILD_DIR": str(build)}
    subprocess.run(["bash", ROOT / "ascend310_infer/build.sh"], env=environment, check=True, stdout=sys.stderr)
    counts = {"tried": 0, "decoded": 0, "refused": 0, "different": 0}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name, f"{place}.bin") for place in range(BLOCK)]
        for first in range(0, args.count, BLOCK):
            contents = [odd_image(args.seed, number) for number in range(first, min(first + BLOCK, args.count))]
            for path, content in zip(paths, contents):
                path.write_bytes(content)
            there = pixels_there(build / "preprocess_images", paths[: len(contents)], Path(name))
            for number, (content, result) in enumerate(zip(contents, there), first):
                here = pixels_here(content)
                text = difference(here, result)
                counts["tried"] += 1
                counts["different" if text else "refused" if isinstance(here, str) else "decoded"] += 1
                if text:
                    Path(args.keep).mkdir(exist_ok=True)
                    Path(args.keep, f"{args.seed}_{number}").write_bytes(content)
                    print(f"image {number} of seed {args.seed}: {text}", file=sys.stderr)
    seconds = round(time.perf_counter() - start)
    print(json.dumps({**counts, "seed": args.seed, "seconds": seconds, "pillows_libjpeg": features.version("jpg")}))
    sys.exit(1 if counts["different"] else 0)


if __name__ == "__main__":
    main()
