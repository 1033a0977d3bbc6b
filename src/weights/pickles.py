"""What a pickle would build, counted before it is built.

A pickle of some hundred bytes may stand for a tuple in a tuple, a hundred thousand deep, or for one whose parts are
doubled sixty times: as a key of a dict, the first ends the process and the second takes for ever. The weights-only
reader of PyTorch runs no code, but builds both, and its message on an unknown class takes hours where the name is
long. Here the stack of the pickle machine is followed with sizes alone.
"""

import pickletools
from typing import BinaryIO, NamedTuple

MOST_STEPS = 1_000_000  # opcodes of a pickle; a network's weights with an optimizer's state take 100,000
MOST_OBJECTS = 10_000_000  # counting what is referred to again as often as that is done
DEEPEST = 500  # objects in each other
LONGEST = 500  # characters of a class's name
_INTO_THE_FIRST = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}


class _Part(NamedTuple):
    """An object on the stack: how many it is with all its parts, how deep they lie, and whether it can be called."""

    size: int
    depth: int
    can_be_called: bool = False


_MARK = _Part(0, 0)


class HostilePickle(ValueError):
    """It is no whole pickle, or would build more than weights can be."""


def check_pickles(stream: BinaryIO, most: int = 1) -> None:
    """Check up to `most` pickles that stand one after the other.

    Raises:
        HostilePickle: one of them is damaged or builds too much.
    """
    for number in range(most):
        place = stream.tell()
        if number and not stream.read(1):
            return
        stream.seek(place)
        try:
            _check(stream)
        except HostilePickle:
            raise
        except Exception as error:  # pickletools raises a dozen kinds of errors on damaged bytes
            raise HostilePickle("is not whole") from error


def _check(stream: BinaryIO) -> None:
    stack: list[_Part] = []
    memo: dict[object, _Part] = {}
    for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        name = opcode.name
        if step == MOST_STEPS:
            raise HostilePickle(f"takes more than {MOST_STEPS} steps")
        if name == "PROTO" and (argument or 0) > 3:
            raise HostilePickle(f"is of protocol {argument}; PyTorch reads and writes weights in protocol 2")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "GLOBAL":
            if len(str(argument)) > LONGEST:
                raise HostilePickle(f"names a class by more than {LONGEST} characters")
            stack.append(_Part(1, 1, can_be_called=True))
        else:
            parts = _popped(stack, [part.name for part in opcode.stack_before])
            if name in ("REDUCE", "NEWOBJ") and not parts[0].can_be_called:
                raise HostilePickle("calls what is no class")
            base = parts[0] if name in _INTO_THE_FIRST else _Part(1, 1)
            inner = parts[1:] if name in _INTO_THE_FIRST else parts
            size = base.size + sum(part.size for part in inner)
            depth = max(base.depth, 1 + max((part.depth for part in inner), default=0))
            if size > MOST_OBJECTS or depth > DEEPEST:
                raise HostilePickle("holds more objects in each other than weights do")
            stack += [_Part(size, depth)] * len(opcode.stack_after)


def _popped(stack: list[_Part], names: list[str]) -> list[_Part]:
    """What an opcode takes from the stack, without the mark: the lowest first."""
    parts: list[_Part] = []
    if "mark" in names:
        while (part := stack.pop()) is not _MARK:
            parts.append(part)
        names = names[: names.index("mark")]
    parts += [stack.pop() for _ in names]
    return parts[::-1]
