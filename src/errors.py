"""The one exception that is a user's to mend: entry points print it as one line and exit with code 2."""


class UserError(ValueError):
    """Bad input. The message names the key, flag, file or folder and says what would be right."""
