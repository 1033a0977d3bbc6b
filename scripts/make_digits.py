"""Write scikit-learn's handwritten digits as an ImageNet-style folder of PNG files.

python scripts/make_digits.py --out data/digits

1,797 scans of 8x8 pixels (E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998), enlarged to 32x32; a stratified 20 % of them in val/, always the same ones.
"""

import shutil
import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.errors import Parser, UserError, run

SIZE = 32
VAL_SHARE = 0.2
SPLIT_SEED = 0


def write_digits(out: Path) -> int:
    """Write the folder, whole or not at all; returns the number of images."""
    scans = load_digits()
    train, val = train_test_split(
        range(len(scans.images)), test_size=VAL_SHARE, random_state=SPLIT_SEED, stratify=scans.target
    )
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split, indices in (("train", train), ("val", val)):
        for index in indices:
            folder = partial / split / str(scans.target[index])
            folder.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray((scans.images[index] * 255 / 16).round().astype("uint8"))
            grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(folder / f"digit_{index:04d}.png")
    partial.rename(out)
    return len(scans.images)


def main() -> None:
    """Write them where the flag says."""
    parser = Parser(description="Write the digits as an ImageNet-style folder.")
    parser.add_argument("--out", type=Path, default=Path("data/digits"))
    out = parser.parse_args().out
    try:
        if out.exists():
            raise UserError(f"--out {out}: is there already")
        out.parent.mkdir(parents=True, exist_ok=True)
        print(f"{out}: {write_digits(out):,} images")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from error


if __name__ == "__main__":
    run(main)
