"""Print a configuration's paths as absolute flags, quoted for a shell that runs the program from another folder.

python scripts/absolute_flags.py train|eval CONFIG [FLAG VALUE ...]

Relative paths are those of the folder it is called in, for eval also those in config.yaml beside the weights. A wrong
configuration ends here, before anything is started.
"""

import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.args import PATHS, parse_args
from src.errors import UserError, run
from src.evaluation.flags import FLAGS, IMAGES, PREDICTIONS, REPORT


def main() -> None:
    """Check the configuration and print the flags, whatever bytes are in them."""
    program, *flags = sys.argv[1:] or [""]
    if program not in ("train", "eval") or not flags:
        raise UserError("absolute_flags.py: must be followed by train or eval, and a configuration")
    config, rest = parse_args(["--ddr_config", *flags], extra=FLAGS, beside_weights=program == "eval")
    words: list[object] = ["--ddr_config", Path(rest.ddr_config).resolve()]
    for name in sorted(PATHS):
        value = getattr(config, name)
        if value:
            stays = "://" in value or (name == "resume" and value == "auto")
            words += [f"--{name}", value if stays else Path(value).resolve()]
    for flag, paths in ((REPORT, [rest.report]), (PREDICTIONS, [rest.predictions]), (IMAGES, rest.images or [])):
        if any(paths):
            words += [flag, *(Path(path).absolute() for path in paths)]
    sys.stdout.flush()
    os.write(sys.stdout.fileno(), os.fsencode(" ".join(shlex.quote(str(word)) for word in words)))


if __name__ == "__main__":
    run(main)
