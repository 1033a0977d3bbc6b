"""First step of run_infer_310.sh: the label of every image, and a PNG of those that the C++ program does not decode.

python preprocess.py --mindir_path DDRNet23.mindir --data_path ./data/imagenet/val
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Optional

from src.data.decode import decode
from src.data.image_files import UndecodableImage, is_jpeg_or_png, read_image
from src.data.listing import list_classes, list_folder
from src.errors import Parser, UserError, printable, run
from src.files import write_text
from src.serving.description import read_description
from src.serving.results import converted_name, result_names

LABEL_FILE = "imagenet_label.json"
CONVERTED = "converted"  # the program's --converted_path
_CONVERTED = re.compile(r"(.+\..+|[0-9a-f]{64})\.png", re.DOTALL)  # what `converted_name` makes


def main(argv: Optional[list[str]] = None) -> None:
    """Write `{"<class>/<file>": index}` for every image, in the class order of the exported network."""
    parser = Parser(description="Write the label of every image.", allow_abbrev=False)
    parser.add_argument("--mindir_path", required=True, help="exported network; its .json lies beside it")
    parser.add_argument("--data_path", required=True, help="folder with a folder of images a class")
    parser.add_argument("--result_path", default="preprocess_Result", help=f"where {LABEL_FILE} and {CONVERTED}/ go")
    args = parser.parse_args(argv)

    if os.path.realpath(args.result_path) == os.path.realpath(args.data_path):
        raise UserError(f"--result_path {args.result_path}: holds the images; name another folder")
    classes = class_order(read_description(args.mindir_path), args.data_path)
    samples = list_folder(args.data_path, classes)
    paths = [Path(samples.path(index)) for index in range(len(samples))]
    labels = {f"{path.parent.name}/{path.name}": int(label) for path, label in zip(paths, samples.labels)}
    result_names(list(labels))  # refused here rather than after inference
    target = Path(args.result_path, LABEL_FILE)
    write_text(target, json.dumps(labels, indent=0) + "\n")
    known = f"{len(set(labels.values()))} classes; the network knows {len(classes)}"
    print(f"{printable(target)}: {len(labels)} images of {known}")
    converted = convert(paths, Path(args.result_path, CONVERTED))
    if converted:
        print(f"{converted} images are neither JPEG nor PNG; {printable(target.parent / CONVERTED)} holds PNGs of them")


def class_order(description: dict[str, Any], folder: str) -> list[str]:
    """The class names that the network's outputs stand for, first to last.

    Raises:
        UserError: `folder` has a class that the network does not know, or, where the network was exported without
            class names, not as many as it has outputs.
    """
    own, classes, count = list_classes(folder), description["classes"], description["num_classes"]
    if classes is None:
        if len(own) != count:
            raise UserError(
                f"{folder}: has {len(own)} class folders, but the network has {count} classes and was "
                "exported without their names; export it with --data_url where train/ or val/ has them all"
            )
        print(f"classes: the folders of {printable(folder)} in order, as the network was exported without names")
        return own
    unknown = sorted(set(own) - set(classes))
    if unknown:
        raise UserError(
            f"{Path(folder, unknown[0])}: the network knows no class of that name; "
            f"its {count} begin with {', '.join(classes[:3])}"
        )
    return classes


def convert(paths: list[Path], folder: Path) -> int:
    """Write `folder`/<class>/<file>.png, the pixels that evaluation sees, of each image that is neither JPEG nor PNG.

    One that cannot be decoded gets none: the C++ program names it. PNGs of an earlier run are removed.

    Returns:
        How many were written.

    Raises:
        UserError: one cannot be written, or the folder holds what no earlier run has written.
    """
    strange = [path for path in folder.glob("*") if not path.is_dir()]
    strange += [path for path in folder.glob("*/*") if path.is_dir() or not _CONVERTED.fullmatch(path.name)]
    if strange:
        raise UserError(f"{strange[0]}: was not written by an earlier run; name another --result_path, or move it away")
    shutil.rmtree(folder, ignore_errors=True)
    written = 0
    for path in paths:
        if is_jpeg_or_png(path):
            continue
        try:
            image = decode(read_image(path))
        except (OSError, UndecodableImage):
            continue
        target = folder / path.parent.name / converted_name(path.name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            image.save(target, "PNG", compress_level=1)
        except OSError as error:
            raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
        written += 1
    return written


if __name__ == "__main__":
    run(main)
