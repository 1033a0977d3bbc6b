"""The exceptions that entry points print as one line: a user's to mend (exit code 2), or a run that must stop (1)."""

import logging
import sys
from typing import Callable


class UserError(ValueError):
    """Bad input. The message names the key, flag, file or folder and says what would be right."""


class TrainingStopped(RuntimeError):
    """Training cannot go on. The message names step, learning rate and loss scale."""


def run(main: Callable[[], None]) -> None:
    """Run an entry point; a user's mistake is one line on standard error and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        main()
    except (UserError, TrainingStopped) as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
