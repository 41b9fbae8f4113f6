"""Pickles read without executing them: an interpreter of the operations that torch.save writes.

Nothing that a file names is imported or called. What tensors need is computed by `pickled_calls.py`; every other class
or function becomes an `ObjectRecord` of what it was given. Each result is charged to the file's `WorkLimit` before it
is made, keys of dicts are compared only where that is cheap, and containers are counted as often as they are reached.
"""

import mmap
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svdctl.checkpoint.work_limit import WorkLimit
from svdctl.errors import CheckpointError, is_out_of_memory

MAX_DEPTH = 100
"""Levels of dicts, lists and tuples; what reads them recursively (Python's hash of a tuple is not even guarded) stops
far above."""
MAX_NAME = 1_000
"""Characters in the name of a part that holds tensors, and of a class."""
MAX_NUMBER_KEYS = 5_000
"""Keys whose hashes a file can choose, so that each is compared with all others: tuples of numbers, very large ones."""
_MAX_KEY = 100
"""Parts of a key that is a tuple, counted as often as they are reached."""
_OBJECT, _SMALL = 100, 16
"""Bytes charged for an operation: those of a Python object and its place, and those of a place alone."""
_NODE = 64
"""Bytes charged for each part that whoever follows the contents meets."""
_ELSE = 20
"""Characters that a number or tuple in a name is counted as."""
_NEWEST_PROTOCOL = 5
CONVERT = (
    "in the process that made it, torch.save(model.state_dict(), 'weights.pt') writes a file that needs no execution"
)
_ACTING = frozenset({
    "os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "runpy", "importlib", "ctypes", "pty", "commands",
    "code", "codeop", "pdb", "bdb", "webbrowser", "pickle", "_pickle", "cPickle", "marshal", "shelve", "urllib", "http",
    "ftplib", "smtplib", "pip", "requests",
})  # fmt: skip
_ACTING_FUNCTIONS = {
    f"builtins.{name}"
    for name in ("eval", "exec", "execfile", "compile", "open", "file", "__import__", "input", "breakpoint", "apply")
} | {"torch.load", "torch.serialization.load", "torch.hub.load", "torch.jit.load", "numpy.load"}
"""Modules and functions that no description of weights needs. They would be harmless records as any other name; a file
that asks for one was made to do harm, and is refused."""


class ObjectRecord(dict[object, object]):
    """An object of a class that svdctl does not know, as the file describes it; nothing of it is built.

    Its entries are those that the file put into it, as into a dict or list.
    """

    __slots__ = ("name", "parts")

    def __init__(self, name: str, parts: Iterable[object] = ()) -> None:
        super().__init__()
        self.name = name
        self.parts = list(parts)
        """What it was made from, and the states that it was given."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __repr__(self) -> str:
        return f"<{self.name[:80]}>"

    def __reduce__(self) -> tuple[type["ObjectRecord"], tuple[str, list[object]]]:
        return ObjectRecord, (self.name, self.parts)


class Reference(ObjectRecord):
    """A class or function that a file names."""


class IncompleteRecord(ObjectRecord):
    """A record that the file's next operation turns into something else."""

    __slots__ = ("places",)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.places: list[int] = []
        """Where the file remembers it."""

    def finished(self, state: object, limit: WorkLimit) -> object:
        """Return what it becomes with its state."""
        raise NotImplementedError  # each kind of them has its own


def tensors_in(contents: object) -> Iterator[Tensor]:
    """Yield the tensors in dicts, lists, tuples and records, each once."""
    waiting, seen = [contents], {id(contents)}
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
            continue
        inner = list(value.values()) if isinstance(value, Mapping) else []
        if isinstance(value, ObjectRecord):
            inner += value.parts
        elif isinstance(value, list | tuple):
            inner += value
        for part in inner:
            if isinstance(part, Tensor | Mapping | list | tuple) and id(part) not in seen:
                seen.add(id(part))
                waiting.append(part)


Call = Callable[[tuple[Any, ...], "Unpickler"], object]
"""From arguments to what is made of them."""


class Unpickler:
    """Read one pickle after another from the bytes of a file.

    Args:
        data: they begin with a pickle, or one begins at `at`.
        limit: of the file.
        called: from a function or class and its arguments to what the call gives.
        storage: from the description of a storage of numbers to it.
    """

    def __init__(
        self,
        data: bytes | bytearray | mmap.mmap,
        limit: WorkLimit,
        called: Callable[[ObjectRecord, tuple[Any, ...], "Unpickler"], object],
        storage: Callable[[tuple[Any, ...]], object],
    ) -> None:
        self.at, self.limit = 0, limit
        self._data, self._size, self._called, self._storage = data, len(data), called, storage
        self._names: dict[str, object] = {}
        self._number_keys = 0

    def load(self) -> object:
        """Return what the pickle at `at` describes; `at` is behind it afterwards.

        Raises:
            CheckpointError: malformed, or it asks for what svdctl does not do.
            MemoryError, RuntimeError: memory ran out (`is_out_of_memory`).
        """
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        try:
            return self._run()
        except CheckpointError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            # Operations on something that is not there or of another type, and whatever torch says of such numbers.
            raise CheckpointError(
                f"{self.limit.where} is damaged: its table of contents breaks off or makes no sense; use another copy"
            ) from error

    def _run(self) -> object:
        while self.at < self._size:
            code = self._data[self.at]
            self.at += 1
            if code == _STOP:
                return self._stack.pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise CheckpointError(
                    f"{self.limit.where} cannot be loaded safely: it was pickled in a way that torch.save does not "
                    f"use; {CONVERT}"
                )
            operation(self)
        raise ValueError("it breaks off")

    def call(self, function: object, arguments: object) -> object:
        """Return what the call of a function or class gives; nothing is called."""
        if not isinstance(function, ObjectRecord) or not isinstance(arguments, tuple):
            raise TypeError("no function")
        return self._called(function, arguments, self)

    def put(self, container: dict[Any, Any], key: object, value: object) -> None:
        """Set an entry."""
        self.check_key(key)
        self.limit.spend(_OBJECT)
        container[key] = value

    def check_key(self, key: object) -> None:
        """Refuse a key whose hash or comparison is more work than it has bytes.

        Raises:
            CheckpointError: a tuple of many parts, or one of very many keys whose hashes a file can choose.
        """
        kind = type(key)
        if (
            kind is str
            or kind is bytes
            or key is None
            or kind is bool
            or isinstance(key, ObjectRecord | Tensor | torch.dtype)
        ):
            return
        if kind is float or (isinstance(key, int) and -(2**60) < key < 2**60):
            return
        waiting, count, characters, has_number = [key], 0, 0, False
        while waiting:
            part = waiting.pop()
            count += 1
            if isinstance(part, tuple):
                waiting += part[: _MAX_KEY + 1]
            elif isinstance(part, str | bytes):
                characters += len(part)
            elif not isinstance(part, ObjectRecord | Tensor | torch.dtype | None):
                has_number = True
            if count + len(waiting) > _MAX_KEY or characters > MAX_NAME:
                raise CheckpointError(f"{self.limit.where} uses a tuple of very many parts as a name; {CONVERT}")
        self._number_keys += has_number
        if self._number_keys > MAX_NUMBER_KEYS:
            raise CheckpointError(
                f"{self.limit.where} has more than {MAX_NUMBER_KEYS:,} tuples of numbers, or large ones, as names; "
                f"{CONVERT}"
            )

    # The operations. `self._stack` is what the pickle's own machine has on its stack above the last mark.

    def _take(self, count: int) -> bytes:
        taken = bytes(self._data[self.at : self.at + count])
        if len(taken) != count:
            raise ValueError("it breaks off")
        self.at += count
        return taken

    def _number(self, form: str, size: int) -> Any:
        return struct.unpack(form, self._take(size))[0]

    def _push(self, value: object, cost: int = _OBJECT) -> None:
        self.limit.spend(cost)
        self._stack.append(value)

    def _text(self, size: int) -> None:
        self.limit.spend(5 * size)
        self._push(str(self._take(size), "utf-8", "surrogatepass"))

    def _mark(self) -> None:
        self.limit.spend(_OBJECT)
        self._marks.append(self._stack)
        self._stack = []

    def _above_mark(self) -> list[Any]:
        above, self._stack = self._stack, self._marks.pop()
        return above

    def _global(self) -> None:
        parts = []
        for _ in range(2):
            end = self._data.find(b"\n", self.at, self.at + MAX_NAME)
            if end < 0:
                raise ValueError("a name without end")
            parts.append(bytes(self._data[self.at : end]).decode())
            self.at = end + 1
        self._push_name(*parts)

    def _named(self) -> None:
        module, name = self._two()
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > MAX_NAME:
            raise TypeError("no name")
        self._push_name(module, name)

    def _push_name(self, given: str, attribute: str) -> None:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(given, given)
        name = f"{module}.{attribute}"
        if not name.isprintable():
            raise ValueError("no name")
        if name not in self._names:
            if module.partition(".")[0] in _ACTING or name in _ACTING_FUNCTIONS:
                raise CheckpointError(
                    f"{self.limit.where} cannot be loaded safely: it asks for {name[:80]!r} to be run, and svdctl runs "
                    f"nothing out of a file; {CONVERT}"
                )
            # Not by `getattr`, for which torch imports modules.
            found = vars(torch).get(attribute) if module == "torch" else None
            self._names[name] = found if isinstance(found, torch.dtype) else Reference(name)
            self.limit.spend(_OBJECT + len(name))
        self._push(self._names[name])

    def _reduce(self) -> None:
        arguments = self._stack.pop()
        self.limit.spend(_OBJECT)
        self._stack[-1] = self.call(self._stack[-1], arguments)

    def _build(self) -> None:
        state, made = self._stack.pop(), self._stack[-1]
        self.limit.spend(_SMALL)
        if isinstance(made, IncompleteRecord):
            self._stack[-1] = made.finished(state, self.limit)
            for place in made.places:
                self._memo[place] = self._stack[-1]
        elif isinstance(made, ObjectRecord):
            made.parts.append(state)
        elif not isinstance(made, Tensor | dict):
            raise TypeError("it has no state")
        # The state of a dict or parameter, `_metadata` and hooks, is dropped.

    def _append(self, items: list[Any]) -> None:
        container = self._stack[-1]
        self.limit.spend(_SMALL * (1 + len(items)))
        if type(container) is list:
            container.extend(items)
        elif isinstance(container, ObjectRecord):
            for item in items:
                self.put(container, len(container), item)
        else:
            raise TypeError("no list")

    def _add(self) -> None:
        items = self._above_mark()
        for item in items:
            self.limit.spend(_OBJECT)
            self.check_key(item)
        self._stack[-1].update(items) if type(self._stack[-1]) is set else self._append(items)

    def _set(self, items: list[Any]) -> None:
        container = self._stack[-1]
        if not isinstance(container, dict) or len(items) % 2:
            raise TypeError("no dict")
        for place in range(0, len(items), 2):
            self.put(container, items[place], items[place + 1])

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError
        items = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        self._push(tuple(items))

    def _marked_tuple(self) -> None:
        items = self._above_mark()
        self._push(tuple(items), _OBJECT + 8 * len(items))

    def _remember(self, place: int) -> None:
        self.limit.spend(_OBJECT)
        made = self._memo[place] = self._stack[-1]
        if isinstance(made, IncompleteRecord):
            made.places.append(place)

    def _persistent(self) -> None:
        described = self._stack.pop()
        if not isinstance(described, tuple):
            raise TypeError("no storage")
        self._push(self._storage(described))

    def _two(self) -> list[Any]:
        value = self._stack.pop()
        return [self._stack.pop(), value]


_STOP = ord(".")
_OPERATIONS: dict[int, Callable[[Unpickler], None]] = {
    ord(code): operation
    for code, operation in {
        "\x80": lambda of: _check_protocol(of._number("B", 1)),
        "N": lambda of: of._push(None, _SMALL),
        "\x88": lambda of: of._push(True, _SMALL),
        "\x89": lambda of: of._push(False, _SMALL),
        "K": lambda of: of._push(of._number("B", 1), _SMALL),
        "M": lambda of: of._push(of._number("<H", 2), 2 * _SMALL),
        "J": lambda of: of._push(of._number("<i", 4), 2 * _SMALL),
        "\x8a": lambda of: of._push(int.from_bytes(of._take(of._number("B", 1)), "little", signed=True), 4 * _SMALL),
        "G": lambda of: of._push(of._number(">d", 8), 2 * _SMALL),
        "X": lambda of: of._text(of._number("<I", 4)),
        "U": lambda of: of._text(of._number("B", 1)),
        ")": lambda of: of._push((), _SMALL),
        "]": lambda of: of._push([]),
        "}": lambda of: of._push({}),
        "\x8f": lambda of: of._push(set(), 2 * _OBJECT),
        "(": Unpickler._mark,
        "t": Unpickler._marked_tuple,
        "\x85": lambda of: of._tuple(1),
        "\x86": lambda of: of._tuple(2),
        "\x87": lambda of: of._tuple(3),
        "a": lambda of: of._append([of._stack.pop()]),
        "e": lambda of: of._append(of._above_mark()),
        "\x90": Unpickler._add,
        "s": lambda of: of._set(of._two()),
        "u": lambda of: of._set(of._above_mark()),
        "q": lambda of: of._remember(of._number("B", 1)),
        "r": lambda of: of._remember(of._number("<I", 4)),
        "h": lambda of: of._push(of._memo[of._number("B", 1)], _SMALL),
        "j": lambda of: of._push(of._memo[of._number("<I", 4)], _SMALL),
        "c": Unpickler._global,
        "\x93": Unpickler._named,
        "\x94": lambda of: of._remember(len(of._memo)),
        "\x95": lambda of: of._number("<Q", 8) and None,
        "\x8c": lambda of: of._text(of._number("B", 1)),
        "R": Unpickler._reduce,
        "\x81": Unpickler._reduce,
        "b": Unpickler._build,
        "Q": Unpickler._persistent,
    }.items()
}
"""What torch's own restricted unpickler accepts, by its byte, and what protocol 4 adds for names and short texts."""


def _check_protocol(protocol: int) -> None:
    if protocol > _NEWEST_PROTOCOL:
        raise ValueError("of a protocol that does not exist")


def check_nesting(contents: object, limit: WorkLimit) -> None:
    """Charge what whoever follows all containers meets: each part as often as it is reached, with its full name.

    Afterwards a reader may follow dicts, lists and tuples recursively. Records are not looked into.

    Raises:
        CheckpointError: a container within itself or below very many others, far too many parts, a very long name.
    """
    found: dict[int, _Measure] = {}
    begun: set[int] = set()
    waiting: list[tuple[object, bool]] = [(contents, False)]
    while waiting:
        value, is_last = waiting.pop()
        if is_last:
            begun.discard(id(value))
            found[id(value)] = _measure(value, found, limit.where)
        elif id(value) in begun:
            raise CheckpointError(f"{limit.where} nests its contents without end; save the state dict alone")
        elif id(value) not in found and isinstance(value, dict | list | tuple):
            begun.add(id(value))
            waiting.append((value, True))
            inner = value.values() if isinstance(value, dict) else value
            waiting += ((part, False) for part in inner if isinstance(part, dict | list | tuple))
    whole = found.get(id(contents))
    if whole is not None:
        cost = _NODE * whole.parts + 2 * whole.characters
        if cost > limit.left:
            raise CheckpointError(
                f"{limit.where} lists its contents again and again, as if without end; save the state dict alone"
            )
        limit.spend(cost)


@dataclass(slots=True)
class _Measure:
    """What one container holds, shared parts as often as they are reached."""

    depth: int = 0
    parts: int = 0
    tensors: int = 0
    characters: int = 0
    """In the full names of its tensors."""


def _measure(value: object, found: Mapping[int, _Measure], where: str) -> _Measure:
    total = _Measure()
    named = value.items() if isinstance(value, dict) else (("", part) for part in value)  # type: ignore[attr-defined]
    for name, part in named:
        total.parts += 1
        tensors = 1 if isinstance(part, Tensor) else 0
        if isinstance(part, dict | list | tuple):
            inner = found[id(part)]
            total.depth = max(total.depth, inner.depth)
            total.parts += inner.parts
            total.characters += inner.characters
            tensors = inner.tensors
        if tensors:
            length = len(name) if isinstance(name, str | bytes) else _ELSE
            if length > MAX_NAME:
                raise CheckpointError(
                    f"{where} has a name of {length:,} characters above its tensors; save the state dict alone"
                )
            total.tensors += tensors
            total.characters += tensors * length
    total.depth += 1
    if total.depth > MAX_DEPTH:
        raise CheckpointError(f"{where} nests its contents more than {MAX_DEPTH} deep; save the state dict alone")
    return total
