"""What the classes are called: by their folders, and by the words that people know them by."""

import csv
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from src.args import Config
from src.data import class_names
from src.errors import UserError
from src.files import is_regular, read_text

_log = logging.getLogger(__name__)
_LIMIT = 1 << 24  # bytes; ImageNet-1k's has 40 kB


def find_class_names(config: Config) -> list[str]:
    """The classes' names in the order of the network's outputs: from data_url, else their numbers.

    Raises:
        UserError: data_url has another number of classes than num_classes.
    """
    names = class_names(config)
    if names is None:
        _log.warning(
            "classes: no names in %s, so their numbers are shown; --data_url says where they are", config.data_url
        )
        names = [f"class {index}" for index in range(config.num_classes)]
    return names


def with_words(names: Sequence[str], data_url: str) -> list[str]:
    """Each class by its first word in `data_url`/names.csv where that file is, else by its name.

    The file has two columns, class and name, as `src.data.prepare_imagenet` writes it: n01440764 becomes tench. A word
    that two classes share is followed by the class's name: crane (n02012849).
    """
    path = Path(data_url, "names.csv")
    if not is_regular(path):
        return list(names)
    try:
        rows = [row for row in csv.reader(read_text(path, _LIMIT).splitlines()) if len(row) == 2]
    except (UserError, csv.Error) as error:
        _log.warning("%s: is left out (%s)", path, error)
        return list(names)
    table = {name: text.split(",")[0].strip() for name, text in rows}
    words = [table.get(name) or name for name in names]
    counts = Counter(words)
    return [word if counts[word] == 1 else f"{word} ({name})" for word, name in zip(words, names)]
