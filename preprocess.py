"""First step of run_infer_310.sh: write the label of every image for postprocess.py.

python preprocess.py --mindir_path DDRNet23.mindir --data_path ./data/imagenet/val
"""

import argparse
import json
from pathlib import Path
from typing import Any, Optional

from src.data.imagenet import list_classes, list_folder
from src.errors import UserError, run
from src.files import write_text

LABEL_FILE = "imagenet_label.json"


def main(argv: Optional[list[str]] = None) -> None:
    """Write `{"<class>/<file>": index}` for every image, in the class order of the exported network."""
    parser = argparse.ArgumentParser(description="Write the label of every image.", allow_abbrev=False)
    parser.add_argument("--mindir_path", required=True, help="exported network; its .json lies beside it")
    parser.add_argument("--data_path", required=True, help="folder with a folder of images a class")
    parser.add_argument("--result_path", default="preprocess_Result", help=f"where {LABEL_FILE} goes")
    args = parser.parse_args(argv)

    classes = class_order(read_spec(args.mindir_path), args.data_path)
    samples = list_folder(args.data_path, classes)
    paths = (Path(samples.path(index)) for index in range(len(samples)))
    labels = {f"{path.parent.name}/{path.name}": int(label) for path, label in zip(paths, samples.labels)}
    target = Path(args.result_path, LABEL_FILE)
    write_text(target, json.dumps(labels, indent=0) + "\n")
    print(f"{target}: {len(labels)} images of {len(set(labels.values()))} classes; the network knows {len(classes)}")


def read_spec(mindir_path: str) -> dict[str, Any]:
    """What export.py wrote beside a MindIR.

    Raises:
        UserError: the .json is missing, malformed, or lacks what is needed here.
    """
    path = Path(mindir_path).with_suffix(".json")
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); export.py writes it beside the MindIR") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); export the network again") from error
    classes, count = (spec.get("classes"), spec.get("num_classes")) if isinstance(spec, dict) else (None, None)
    if not isinstance(count, int) or count < 1:
        raise UserError(f"{path}: num_classes is missing; export the network again")
    if classes is not None and (not isinstance(classes, list) or len(set(map(str, classes))) != count):
        raise UserError(f"{path}: classes must be {count} different names, or null; export the network again")
    return spec


def class_order(spec: dict[str, Any], folder: str) -> list[str]:
    """The class names that the network's outputs stand for, first to last.

    Raises:
        UserError: `folder` has a class that the network does not know, or, where the network was exported without
            class names, not as many as it has outputs.
    """
    own = list_classes(folder)
    if spec["classes"] is None:
        if len(own) != spec["num_classes"]:
            raise UserError(
                f"{folder}: has {len(own)} class folders, but the network has {spec['num_classes']} classes and was "
                "exported without their names; export it with --data_url where train/ or val/ has them all"
            )
        print(f"classes: the folders of {folder} in order, as the network was exported without names")
        return own
    unknown = [name for name in own if name not in set(spec["classes"])]
    if unknown:
        raise UserError(
            f"{Path(folder, unknown[0])}: the network knows no class of that name; "
            f"its {spec['num_classes']} begin with {', '.join(spec['classes'][:3])}"
        )
    return spec["classes"]


if __name__ == "__main__":
    run(main)
