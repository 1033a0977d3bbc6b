"""YAML as configurations need it: keys with plain values, each of which means what it looks like.

Read with PyYAML, but stricter than YAML 1.1: 1e-6 is a number; 1:30 (there 90), 010 (there 8) and dates are texts,
which then fail where a number is due. Nothing in a file runs code, and its size, depth and repetitions are bounded.
"""

import re
from typing import Any

import yaml

from src.errors import UserError, printable
from src.files import read_text

LARGEST = 1 << 16  # bytes of a file; every key with its comment takes 10,000
DEEPEST = 20  # lists and mappings in each other
MOST_VALUES = 1000  # in a file, counted as if every alias were written out

_TAG = "tag:yaml.org,2002:"
_RESOLVERS = (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?(0|[1-9][0-9_]{0,40})|[-+]?0x[0-9a-fA-F]{1,40}", "-+0123456789"),
    (
        "float",
        r"[-+]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})[eE][-+]?\d{1,5}|[-+]?(\d{1,40}\.\d{0,40}|\.\d{1,40})",
        "-+.0123456789",
    ),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's own way)
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, "nested too deeply", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_number(self, node: Any) -> Any:
        """A number that is one without its tag too: !!int 1:30 is none, nor one of ten thousand digits."""
        plain = self.resolve(yaml.ScalarNode, self.construct_scalar(node), (True, False))
        if plain not in (f"{_TAG}int", node.tag):
            raise yaml.constructor.ConstructorError(None, None, "it is no such number", node.start_mark)
        number = self.construct_yaml_int(node) if plain == f"{_TAG}int" else self.construct_yaml_float(node)
        return float(number) if node.tag == f"{_TAG}float" else number


for _kind in ("int", "float"):
    _Loader.add_constructor(f"{_TAG}{_kind}", _Loader.construct_number)
for _kind, _pattern, _first in _RESOLVERS:
    letters = ["" if letter == "\0" else letter for letter in _first]
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"^(?:{_pattern})$"), letters)


def read_yaml(path: str, texts: frozenset[str] = frozenset(), place: str = "") -> dict[str, Any]:
    """The keys of a file and their values, lists as tuples.

    Args:
        path: the file.
        texts: keys whose plain values are taken as they are written, though they look like numbers.
        place: what messages on the file begin with.

    Raises:
        UserError: the file is missing, malformed or too large, no mapping, or has a key twice.
    """
    where = f"{place}{path}"
    loader = _loader(read_text(path, LARGEST, place), where)
    try:
        try:
            document = loader.get_single_node()
        except _BROKEN as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark else ""
            raise UserError(f"{where}{line}: not valid YAML ({_reason(error)})") from error
        if document is None or (isinstance(document, yaml.ScalarNode) and document.tag == f"{_TAG}null"):
            return {}
        if not isinstance(document, yaml.MappingNode):
            raise UserError(f"{where}: must be lines of 'key: value'")
        _count(document, where)
        values: dict[str, Any] = {}
        for key, node in document.value:
            line = f"{where}, line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode) or key.tag == f"{_TAG}merge":
                raise UserError(f"{line}: must be 'key: value'; merges and keys that are no text are not read")
            name = key.value
            if name in values:
                raise UserError(f"{line}: {name} stands there twice")
            if name in texts and isinstance(node, yaml.ScalarNode) and node.tag != f"{_TAG}null":
                values[name] = node.value
                continue
            values[name] = _construct(loader, node, f"{line}: {name}")
        return values
    finally:
        loader.dispose()


def read_value(text: str, place: str) -> Any:
    """One value as it would stand in a file, such as 0.1, True or [0.8, 1.0]; a list as a tuple.

    Raises:
        UserError: it is malformed.
    """
    loader = _loader(text, place)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, place)
        return _construct(loader, node, f"{place}: {printable(text, 60)}")
    except UserError:
        raise
    except _BROKEN as error:
        raise UserError(f"{place}: {printable(text, 60)} cannot be read as a value ({_reason(error)})") from error
    finally:
        loader.dispose()


# Beside YAMLError PyYAML raises whatever int(), float() and date() do.
_BROKEN = (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError, ArithmeticError, IndexError)


def _loader(text: str, where: str) -> _Loader:
    if len(text) > LARGEST:
        raise UserError(f"{where}: is longer than {LARGEST} characters")
    try:
        return _Loader(text)
    except yaml.YAMLError as error:  # control characters
        raise UserError(f"{where}: not valid YAML ({_reason(error)})") from error


def _construct(loader: _Loader, node: yaml.Node, where: str) -> Any:
    try:
        value = loader.construct_document(node)
    except _BROKEN as error:
        raise UserError(f"{where}: cannot be read as a value ({_reason(error)})") from error
    return tuple(value) if isinstance(value, list) else value


def _count(document: yaml.Node, where: str) -> None:
    """Refuse aliases that lead back to themselves or would write out to more than `MOST_VALUES`."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST_VALUES + 1  # as long as it is under way: what leads back to it has no end
            children = node.value if isinstance(node, yaml.CollectionNode) else []
            pairs = [child if isinstance(child, tuple) else (child,) for child in children]
            sizes[id(node)] = 1 + sum(size(part) for pair in pairs for part in pair)
        return sizes[id(node)]

    if size(document) > MOST_VALUES:
        raise UserError(f"{where}: not valid YAML (more than {MOST_VALUES} values, counting what aliases repeat)")


def _reason(error: BaseException) -> str:
    problem = getattr(error, "problem", None) or getattr(error, "reason", None)
    return printable(problem or error, 120)
