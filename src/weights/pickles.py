"""What a pickle would build, counted before it is built.

A pickle of some hundred bytes may stand for a tuple in a tuple, a hundred thousand deep, or for one whose parts are
doubled sixty times: as a key of a dict, the first ends the process and the second takes for ever. The weights-only
reader of PyTorch runs no code, but builds both. Here the stack of the pickle machine is followed with sizes alone.
"""

import pickletools
from typing import BinaryIO

MOST_STEPS = 1_000_000  # opcodes of a pickle; a network's weights with an optimizer's state take 100,000
MOST_OBJECTS = 10_000_000  # counting what is referred to again as often as that is done
DEEPEST = 500  # objects in each other
_INTO_THE_FIRST = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_MARK = (0, 0)


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
    stack: list[tuple[int, int]] = []  # of each object its size, itself and all its parts, and its depth
    memo: dict[object, tuple[int, int]] = {}
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
        else:
            parts = _popped(stack, [part.name for part in opcode.stack_before])
            base = parts[0] if name in _INTO_THE_FIRST else (1, 1)
            inner = parts[1:] if name in _INTO_THE_FIRST else parts
            size = base[0] + sum(size for size, _ in inner)
            depth = max(base[1], 1 + max((depth for _, depth in inner), default=0))
            if size > MOST_OBJECTS or depth > DEEPEST:
                raise HostilePickle("holds more objects in each other than weights do")
            stack += [(size, depth)] * len(opcode.stack_after)


def _popped(stack: list[tuple[int, int]], names: list[str]) -> list[tuple[int, int]]:
    """What an opcode takes from the stack, without the mark: the lowest first."""
    parts: list[tuple[int, int]] = []
    if "mark" in names:
        while (part := stack.pop()) is not _MARK:
            parts.append(part)
        names = names[: names.index("mark")]
    parts += [stack.pop() for _ in names]
    return parts[::-1]
