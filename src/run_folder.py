"""What a run's folder says of it: the configuration, whole, and the names of the classes, beside the weights.

`config.yaml` and `classes.json` lie in ckpt_0/; eval.py and export.py take them from beside the weights that they are
given, so that nothing has to be told twice.
"""

import json
from pathlib import Path

import yaml

from src import __version__
from src.args import CONFIG_FILE, CONFIG_HEAD, Config
from src.data.names import CLASSES
from src.errors import printable
from src.files import write_text

MOST_COMMAND = 8000  # characters of the command that are kept


def write_run(folder: Path, config: Config, classes: list[str], command: str) -> None:
    """Write both files into the folder of the weights.

    Raises:
        UserError: the folder cannot be written.
    """
    values = {**config.model_dump(mode="json"), "resume": "", "overwrite": False}
    again = printable(command, MOST_COMMAND)  # one line, which neither ends the comment nor spoils the YAML
    head = f"{CONFIG_HEAD} Written by ddrnet {__version__}; the same run again:\n# {again}\n\n"
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    write_text(folder / CONFIG_FILE, head + text)
    write_text(folder / CLASSES, json.dumps(classes, ensure_ascii=False, indent=0) + "\n")
