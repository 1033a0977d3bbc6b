"""Print a configuration's paths as absolute flags, one a line, for a script that runs the program from another folder.

python scripts/absolute_flags.py train|eval CONFIG [FLAG VALUE ...]

Relative paths are those of the folder it is called in, for eval also those in config.yaml beside the weights. A wrong
configuration ends here, before anything is started.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.args import PATHS, parse_args
from src.errors import run
from src.evaluation.flags import FLAGS, IMAGES, PREDICTIONS, REPORT


def main() -> None:
    """Check the configuration and print the flags."""
    program, *flags = sys.argv[1:]
    config, rest = parse_args(["--ddr_config", *flags], extra=FLAGS, beside_weights=program == "eval")
    print("--ddr_config", Path(rest.ddr_config).resolve(), sep="\n")
    for name in sorted(PATHS):
        value = getattr(config, name)
        if value:
            stays = "://" in value or (name == "resume" and value == "auto")
            print(f"--{name}", value if stays else Path(value).resolve(), sep="\n")
    for flag, paths in ((REPORT, [rest.report]), (PREDICTIONS, [rest.predictions]), (IMAGES, rest.images or [])):
        if any(paths):
            print(flag, *(Path(path).absolute() for path in paths), sep="\n")


if __name__ == "__main__":
    run(main)
