"""Whether the pickle in somebody else's file of torch.save does what a checkpoint's does: walked through, not run.

It may name what is on a list, and call less than that: torch's tensors, called as a class, take as much memory as a
number says. Its tuples may lie in each other only so deep: to hash a deeper one ends the process.
"""

from __future__ import annotations

import pickletools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from dist_trainer.encoding import printable
from dist_trainer.errors import cut
from dist_trainer.strict_json import MAX_DEPTH

# Calls the first of its arguments.
_CALLS_FIRST = "torch._tensor._rebuild_from_type_v2"
# They put one value on the stack. With those below all that torch's weights-only loading knows.
_CONSTANTS = frozenset(
    (
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINSTRING", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"),
    )
)
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# How many values they take from the stack.
_TAKES = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}


class StrangerPickleError(ValueError):
    """What the pickle does that a checkpoint's does not, as the rest of a sentence about its file."""


@dataclass(frozen=True)
class _Tuple:
    depth: int
    first: Any


@dataclass
class _Stacks:
    """What the unpickler has where: a `str` is what a name stands for, None anything else. MARK begins a new stack."""

    values: list[Any]
    below: list[list[Any]]

    def push(self, value: Any) -> None:
        self.values.append(value)

    def pop(self, count: int) -> list[Any]:
        return [self.values.pop() for _ in range(count)][::-1]

    def pop_to_mark(self) -> list[Any]:
        values, self.values = self.values, self.below.pop()
        return values


def check(pickled: bytes, *, names: Collection[str], callables: Collection[str]) -> None:
    """`names`: all that it may name; `callables`: those that it may call. Raises StrangerPickleError, and any error
    for bytes that are no pickle.
    """
    stacks, memo = _Stacks([], []), {}
    for opcode, argument, _ in pickletools.genops(pickled):
        name = opcode.name
        if name in _CONSTANTS:
            stacks.push(None)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stacks.values[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stacks.push(memo[argument])
        elif name == "MARK":
            stacks.below.append(stacks.values)
            stacks.values = []
        elif name in ("APPENDS", "SETITEMS"):
            stacks.pop_to_mark()
        elif name in _TAKES:
            stacks.pop(_TAKES[name])
        elif name in _TUPLES:
            stacks.push(_tuple_of(stacks.pop(_TUPLES[name])))
        elif name == "TUPLE":
            stacks.push(_tuple_of(stacks.pop_to_mark()))
        elif name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            stacks.push(_named(str(argument).replace(" ", ".", 1), names))
        elif name in ("REDUCE", "NEWOBJ"):
            called, arguments = stacks.pop(2)
            _check_call(called, arguments, callables)
            stacks.push(None)
        elif name == "BINPERSID":
            stacks.pop(1)
            stacks.push(None)
        elif name not in ("PROTO", "STOP"):
            raise StrangerPickleError(f"has a pickle that does what a checkpoint's does not: {name}")


def _named(name: str, names: Collection[str]) -> str:
    if name not in names:
        raise StrangerPickleError(f"names {printable(cut(name))}, which is not on the list of what may be")
    return name


def _tuple_of(items: list[Any]) -> _Tuple:
    depth = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
    if depth > MAX_DEPTH:
        raise StrangerPickleError(f"has tuples more than {MAX_DEPTH} deep in each other")
    return _Tuple(depth, items[0] if items else None)


def _check_call(called: Any, arguments: Any, callables: Collection[str]) -> None:
    _check_callable(called, callables)
    if called == _CALLS_FIRST:
        _check_callable(arguments.first if isinstance(arguments, _Tuple) else None, callables)


def _check_callable(called: Any, callables: Collection[str]) -> None:
    if called not in callables:
        said = called if isinstance(called, str) else "what is no name"
        raise StrangerPickleError(f"calls {said}, which is not on the list of what may be")
