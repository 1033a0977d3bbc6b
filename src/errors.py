"""The exceptions that entry points print as one line: a user's to mend (exit code 2), or a run that must stop (1)."""


class UserError(ValueError):
    """Bad input. The message names the key, flag, file or folder and says what would be right."""


class TrainingStopped(RuntimeError):
    """Training cannot go on. The message names step, learning rate and loss scale."""
