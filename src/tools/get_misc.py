"""What every entry point needs around its work: one-line errors, the log, the outputs' folder."""

import logging
import sys
from pathlib import Path
from typing import Callable

from src.args import Config
from src.errors import UserError


def run(main: Callable[[], None]) -> None:
    """Run an entry point; a user's mistake becomes one line on standard error and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        main()
    except UserError as error:
        sys.exit(_report(error))


def _report(error: UserError) -> int:
    sys.stdout.flush()
    print(f"error: {error}", file=sys.stderr)
    return 2


def output_folder(config: Config) -> Path:
    """Where outputs go: train_url, or the current folder."""
    return Path(config.train_url or ".")
