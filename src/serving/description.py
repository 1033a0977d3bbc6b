"""The serving description: what a runtime must know of an exported network, in a .json beside the file.

`ascend310_infer/src/spec.cc` reads it as well. Nothing here needs MindSpore, as the machine that serves has none.
A file that converter_lite made of an exported one is described as its original was by

    python -m src.serving.description DDRNet23.mindir DDRNet23_310.mindir
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from src import __version__
from src.errors import Parser, UserError, printable, run
from src.files import read_json, sha256_of, write_text

if TYPE_CHECKING:
    from src.args import Config

MOST_CLASSES = 1_000_000
_MOST_BYTES = 64 * 2**20  # of a description: the names of a million classes fit
_AGAIN = "export the network again with export.py"


def describe(config: "Config", classes: Optional[list[str]], shape: Sequence[Optional[int]]) -> dict[str, Any]:
    """What a runtime must know to serve a network.

    Args:
        config: of the network and its evaluation transform.
        classes: the names of its outputs, first to last; None: not known.
        shape: of its input: images (None: any number), 3, height, width.
    """
    return {
        "arch": config.arch,
        "flavour": config.flavour,
        "num_classes": config.num_classes,
        "classes": classes,
        "image_size": config.image_size,
        "crop_mode": config.crop_mode,
        "crop_pct": config.crop_pct,
        "interpolation": "bicubic" if config.interpolation == "random" else config.interpolation,
        "mean": list(config.mean),
        "std": list(config.std),
        "color": "RGB",
        "input": {"shape": list(shape), "dtype": "float32", "layout": "NCHW"},
        "output": {"shape": [shape[0], config.num_classes], "dtype": "float32"},
    }


def write_description(exported: Union[str, Path], description: dict[str, Any]) -> Path:
    """Write <file>.json beside an exported file, with this version's number and the file's name and checksum.

    Returns:
        The .json's path.

    Raises:
        UserError: the file cannot be read, or the .json not be written.
    """
    exported = Path(exported)
    path = json_beside(exported)
    whole = {**description, "written_by": f"ddrnet {__version__}", "file": exported.name, "sha256": sha256(exported)}
    write_text(path, json.dumps(whole, indent=1) + "\n")
    return path


def json_beside(exported: Union[str, Path]) -> Path:
    """Where an exported file's description lies.

    Raises:
        UserError: the path names no file.
    """
    exported = Path(exported)
    if not exported.name:
        raise UserError(f"'{exported}': must be an exported file; export.py writes it")
    return exported.with_suffix(".json")


def read_description(exported: Union[str, Path]) -> dict[str, Any]:
    """What export.py wrote beside an exported file. The file itself is read where the .json holds its checksum, which
    those of versions before 1.0 do not.

    Raises:
        UserError: the .json is missing or malformed, lacks the classes, or belongs to another file or another state
            of it.
    """
    exported = Path(exported)
    path = json_beside(exported)
    if not os.path.lexists(path):
        raise UserError(f"{path}: is missing; export.py writes it beside {exported.name}, and both belong together")
    description = read_json(path, _MOST_BYTES)
    if not isinstance(description, dict):
        raise UserError(f"{path}: must be a JSON object; {_AGAIN}")
    for key in ("num_classes", "classes"):
        if key not in description:
            raise UserError(f"{path}: {key} is missing; {_AGAIN}")
    check_names(path, description["num_classes"], description["classes"])
    _check_file(exported, path, description.get("file"), description.get("sha256"))
    return description


def check_described(exported: Union[str, Path]) -> None:
    """Check a file that is described in itself against the checksum that export.py wrote into a .json beside it.

    A .json of its stem that is no description of it, whosever it is, says nothing.

    Raises:
        UserError: the file is not the one that was described, or another state of it.
    """
    exported = Path(exported)
    path = json_beside(exported)
    try:
        description = read_json(path, _MOST_BYTES)
    except UserError:
        return
    if isinstance(description, dict) and all(isinstance(description.get(key), str) for key in ("file", "sha256")):
        _check_file(exported, path, description["file"], description["sha256"])


def check_names(path: Path, count: Any, names: Any) -> None:
    """The number of classes and their names, or None, as a description may give them.

    Raises:
        UserError: they are none, or not as many different names.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= MOST_CLASSES:
        raise UserError(f"{path}: num_classes must be from 1 to {MOST_CLASSES}, not {printable(count, 40)}; {_AGAIN}")
    if names is None:
        return
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: classes must be a list of names, or null; {_AGAIN}")
    if len(names) != count or len(set(names)) != count:
        raise UserError(f"{path}: classes must be {count} different names, as num_classes says, or null; {_AGAIN}")


def _check_file(exported: Path, path: Path, name: Any, checksum: Any) -> None:
    """The exported file must be the one that was described; a description of another format says nothing of it."""
    if checksum is None:
        return
    if not isinstance(name, str) or not isinstance(checksum, str):
        raise UserError(f"{path}: file and sha256 must be texts; {_AGAIN}")
    if Path(name).suffix == exported.suffix and sha256(exported) != checksum.lower():
        raise UserError(
            f"{exported}: is damaged, or not the file that {path.name} describes (its SHA-256 is another); copy both "
            "again, or export again with export.py"
        )


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return sha256_of(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def main(argv: Optional[list[str]] = None) -> None:
    """Describe a converted file as its original."""
    parser = Parser(description="Describe a converted file as its original.", allow_abbrev=False)
    parser.add_argument("original", help="the exported file, with its .json beside it")
    parser.add_argument("converted", help="what converter_lite made of it")
    args = parser.parse_args(argv)
    if json_beside(args.original) == json_beside(args.converted):
        raise UserError(f"{args.converted}: must have another name than {args.original}, whose .json stays")
    print(write_description(args.converted, read_description(args.original)))


if __name__ == "__main__":
    run(main)
