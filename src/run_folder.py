"""What a run's folder says of it: the configuration, whole, and the names of the classes, beside the weights.

`config.yaml` and `classes.json` lie in ckpt_0/; eval.py and export.py take them from beside the weights that they are
given, so that nothing has to be told twice.
"""

import json
from pathlib import Path
from typing import Optional

import yaml

from src import __version__
from src.args import Config
from src.errors import UserError
from src.files import is_regular, read_json, write_text

CONFIG, CLASSES = "config.yaml", "classes.json"
_MOST_BYTES = 64 * 2**20  # the names of a million classes fit


def write_run(folder: Path, config: Config, classes: list[str], command: str) -> None:
    """Write both files into the folder of the weights.

    Raises:
        UserError: the folder cannot be written.
    """
    values = {**config.model_dump(mode="json"), "resume": "", "overwrite": False}
    head = f"# What this run was told, whole. Written by ddrnet {__version__}; the same run again:\n# {command}\n\n"
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    write_text(folder / CONFIG, head + text)
    write_text(folder / CLASSES, json.dumps(classes, ensure_ascii=False, indent=0) + "\n")


def config_beside(weights: str) -> Optional[Path]:
    """The configuration that lies beside a weights file; None: there is none."""
    path = Path(weights).parent / CONFIG if weights else None
    return path if path is not None and is_regular(path) else None


def classes_beside(weights: str) -> Optional[list[str]]:
    """The names of the classes that lie beside a weights file; None: there are none.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(weights).parent / CLASSES
    if not weights or not is_regular(path):
        return None
    names = read_json(path, _MOST_BYTES)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise UserError(f"{path}: must be a list of different names; remove it, or write it anew by training")
    return names
