"""Everything that a network computes with, to compare it with what it was.

Read are the modules with all their attributes, hooks and flags, and what their Python code can reach besides: class
attributes, closures, default arguments, global names, what is imported on the way, and the environment's variables.
What is attached to functions, tensors, containers and numbers is read too. Tensors are compared bit for bit with kept
copies. Objects of torch's and svdctl's own code, and those without attributes, count by their identity.
"""

import dis
import hashlib
import os
import sys
import threading
import types
import weakref
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence, Set
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.util import resolve_name
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from svdctl.errors import ShapeError
from svdctl.layers.stored_weight import read_flags, same_bits

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))
_NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format, slice, range, types.CodeType)
_LIBRARIES = sys.stdlib_module_names | {"torch", "torchvision", "svdctl", "numpy"}
_RECORDS = (types.SimpleNamespace, Namespace, threading.local)
_READ = (
    *(nn.Module, Sequence, Mapping, Set, types.FunctionType, types.MethodType),
    *(partial, property, staticmethod, classmethod, *_RECORDS),
)


@dataclass(frozen=True)
class Comparison:
    """Two contents, compared; whether tensors on a CUDA device are the same is not read yet."""

    unlike: str | None
    """A path that is known to differ."""
    same: dict[str, Tensor]
    """By paths of tensors, `()` bool on their device."""

    def difference(self) -> str | None:
        """Return the path of something that is not the same in both, a tensor if there is one; None if all is."""
        read = read_flags(list(self.same.values()))
        return next((path for path, same in zip(self.same, read, strict=True) if not same), self.unlike)


@dataclass
class Contents:
    """What was found, by the path from the object that was read."""

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    without_numbers: set[str] = field(default_factory=set)
    """Paths of tensors on the meta device; traced ones are among them."""
    _seen: dict[int, str] = field(default_factory=dict)
    _held: list[Any] = field(default_factory=list)
    """Objects that count by their identity, kept alive so that it stays theirs."""

    @classmethod
    def of(cls, owner: Any, **others: Any) -> Self:
        """Read an object, and others by their names; their tensors are not copied yet, see `kept`."""
        found = cls()
        with torch._C.DisableTorchFunctionSubclass():
            for path, value in {"": owner, **others}.items():
                found._read(path, value)
        found._seen.clear()
        return found

    def kept(self) -> Self:
        """Copy the tensors, so that later changes leave them as they are."""
        self.tensors = {path: tensor.detach().clone() for path, tensor in self.tensors.items()}
        return self

    def difference(self, other: "Contents", but: frozenset[str] = frozenset()) -> str | None:
        """Return the path of something that is not the same in both; None if all is. See `compared`."""
        return self.compared(other, but).difference()

    def compared(self, other: "Contents", but: frozenset[str] = frozenset()) -> Comparison:
        """Compare with the contents of the same object, earlier or later; no CUDA device is waited for.

        Args:
            other: its contents.
            but: paths that are left out, with all beneath them.
        """
        flags: dict[str, Tensor] = {}
        for mine, others in ((self.tensors, other.tensors), (self.values, other.values)):
            for path in sorted(mine.keys() | others.keys()):
                if any(path == left or path.startswith((f"{left}.", f"{left}[")) for left in but):
                    continue
                if path not in mine or path not in others:
                    return Comparison(path, flags)
                first, second = mine[path], others[path]
                same = same_bits(first, second) if isinstance(first, Tensor) else bool(first == second)
                if isinstance(same, Tensor):
                    flags[path] = same
                elif not same:
                    return Comparison(path, flags)
        return Comparison(None, flags)

    def changed_values(self, other: "Contents") -> str | None:
        """Return the path of a tensor or number that differs in an object meant to be a copy; None if none does."""
        paths = [path for path in self.tensors if path in other.tensors]
        flags = read_flags([same_bits(self.tensors[path], other.tensors[path]) for path in paths])
        changed = next((path for path, same in zip(paths, flags, strict=True) if not same), None)
        if changed is not None:
            return changed
        for path, value in self.values.items():
            found = other.values.get(path)
            if all(isinstance(pair, tuple) and isinstance(pair[0], type) for pair in (value, found)) and value != found:
                return path
        return None

    def _read(self, path: str, value: Any) -> None:
        if isinstance(value, _PLAIN + _NAMED):
            self.values[path] = (type(value), repr(value))
            if not _is_library(type(value)) and id(value) not in self._seen:
                self._seen[id(value)] = path
                self._held.append(value)
                self._read_attributes(path, value)
        elif id(value) in self._seen:
            self.values[path] = ("the same as", self._seen[id(value)])
        else:
            self._seen[id(value)] = path
            if not isinstance(value, Tensor):
                self._held.append(value)
            self._read_object(path, value)
            self._read_attributes(path, value)

    def _read_attributes(self, path: str, value: Any) -> None:
        """Read what is attached to a number, a tensor, a function or a container, whatever it holds besides."""
        if isinstance(value, Tensor) and value.is_meta:
            return
        if isinstance(value, (*_PLAIN, *_NAMED, Tensor, Sequence, Mapping, Set, types.FunctionType, np.ndarray)):
            for name, part in getattr(value, "__dict__", {}).items():
                self._read(f"{path}.{name}", part)
            if not _is_library(type(value)):
                self._read(f"{path}.(class)", type(value))

    def _read_object(self, path: str, value: Any) -> None:
        if isinstance(value, Tensor):
            if value.is_meta:
                self.without_numbers.add(path)
                self.values[path] = id(value)
            elif value.is_quantized:
                self.tensors[path] = value.dequantize()
            else:
                self.tensors[path] = value if value.layout == torch.strided else value.to_dense()
        elif isinstance(value, np.ndarray):
            self.values[path] = (value.dtype, value.shape, hashlib.blake2b(value.tobytes()).digest())
        elif isinstance(value, torch.Generator):
            self.tensors[path] = value.get_state()
        elif isinstance(value, ContextVar):
            self.values[path] = id(value)
            self._read(f"{path}.(value)", value.get(None))
        elif isinstance(value, types.GeneratorType):
            raise ShapeError(f"the network uses a generator, {path}, whose state cannot be read; use a list instead")
        else:
            self.values[path] = id(value) if _is_opaque(value) else type(value)
            for name, part in _parts(value):
                self._read(f"{path}{name}" if path or name.startswith("[") else name[1:], part)


def _is_opaque(value: Any) -> bool:
    """Return whether an object counts by its identity, since not all of it can be read."""
    return not isinstance(value, _READ) and (isinstance(value, type) or not _is_record(value))


def _is_record(value: Any) -> bool:
    """Return whether an object is of the network's own code, so that its attributes are read."""
    return isinstance(value, _RECORDS) or (not _is_library(type(value)) and not isinstance(value, types.ModuleType))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Return what an object consists of, each part with the step that leads to it."""
    if isinstance(value, nn.Module):
        for name, part in vars(value).items():
            if name in ("_parameters", "_buffers", "_modules"):
                yield from ((f".{key}", item) for key, item in part.items())
            else:
                yield f".{name}", part
        yield ".(class)", type(value)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield f"[{key!r}]" if isinstance(key, _PLAIN) else f"[{id(key)}]", part
    elif isinstance(value, Sequence):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, Set):
        yield from ((f"[{index}]", part) for index, part in enumerate(sorted(value, key=repr)))
    elif isinstance(value, types.MethodType):
        yield ".(function)", value.__func__
        yield ".(owner)", value.__self__
    elif isinstance(value, partial):
        yield from ((f".({name})", getattr(value, name)) for name in ("func", "args", "keywords"))
    elif isinstance(value, property):
        yield from ((f".({name})", getattr(value, name)) for name in ("fget", "fset"))
    elif isinstance(value, staticmethod | classmethod):
        yield ".(function)", value.__func__
    elif isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, type):
        if not _is_library(type(value)):
            yield ".(metaclass)", type(value)
        for kind in value.__mro__ if not _is_library(value) else ():
            if not _is_library(kind):
                names = (name for name in vars(kind) if name not in ("__dict__", "__weakref__", "__doc__"))
                yield from ((f".{name}", vars(kind)[name]) for name in names)
    elif isinstance(value, types.ModuleType):
        return
    elif isinstance(value, weakref.ReferenceType) and isinstance(value(), Tensor):
        yield ".(referent)", value()  # recurrent layers have such; a copy's are to tensors of its own
    elif isinstance(value, types.BuiltinFunctionType):
        if not isinstance(value.__self__, types.ModuleType | type):
            yield ".(owner)", value.__self__
    elif "__wrapped__" in getattr(value, "__dict__", ()):
        yield ".(function)", value.__wrapped__
    elif _is_record(value):
        yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())
        for kind in type(value).__mro__:
            names = vars(kind).get("__slots__", ())
            for name in (names,) if isinstance(names, str) else names:
                yield f".{name}", getattr(value, name, None)
        yield ".(class)", type(value)
    elif not repr(value).endswith(f" object at {hex(id(value))}>"):
        # Counters and other iterators show their state here.
        yield ".(state)", repr(value)


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    yield ".(code)", function.__code__
    if _is_library(function):
        return
    yield ".(defaults)", function.__defaults__
    yield ".(keyword defaults)", function.__kwdefaults__
    inner = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            inner[name] = cell.cell_contents
        except ValueError:  # not bound yet
            inner[name] = None
    yield from ((f".{name}", value) for name, value in inner.items())
    for name, attribute in _outer_names(function.__code__):
        value = inner.get(name, function.__globals__.get(name))
        if isinstance(value, types.ModuleType) and attribute and not _is_library_name(value.__name__):
            yield f".{name}.{attribute}", getattr(value, attribute, None)
        elif name not in inner and name in function.__globals__:
            yield f".{name}", value
    yield from _parts_by_name(function)


def _parts_by_name(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Return what code reaches by `globals()`, the environment's variables, and imports while it runs."""
    names, package = _all_names(function.__code__), function.__globals__.get("__package__")
    if "globals" in names:
        # Values alone: the functions and classes of a module lead far beyond what the network computes with.
        kinds = (*_PLAIN, Tensor, nn.Module, np.ndarray, Mapping, Sequence)
        outer = ((name, value) for name, value in function.__globals__.items() if isinstance(value, kinds))
        yield from ((f".(globals).{name}", value) for name, value in outer if not name.startswith("__"))
    if names & {"environ", "getenv", "environb"}:
        yield ".(environment)", dict(os.environ)
    for module, level in _imports(function.__code__):
        try:
            found = sys.modules.get(resolve_name("." * level + module, package) if level else module)
        except ImportError:
            continue
        if found is not None and not _is_library_name(found.__name__):
            yield from ((f".({module}).{name}", vars(found)[name]) for name in sorted(names & vars(found).keys()))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Return some code, and that of the functions which it defines."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


@cache
def _all_names(code: types.CodeType) -> frozenset[str]:
    return frozenset(name for part in _codes(code) for name in part.co_names)


@cache
def _imports(code: types.CodeType) -> tuple[tuple[str, int], ...]:
    """Return the modules that some code imports when it runs, each with the number of dots before its name."""
    found = []
    for part in _codes(code):
        steps = list(dis.get_instructions(part))
        for index, step in enumerate(steps):
            if step.opname == "IMPORT_NAME":
                level = steps[index - 2].argval
                found.append((str(step.argval), level if isinstance(level, int) else 0))
    return tuple(found)


@cache
def _outer_names(code: types.CodeType) -> tuple[tuple[str, str], ...]:
    """Return the names from outside that some code reads, each with the attribute read of it at once, if any."""
    names = set()
    for part in _codes(code):
        for step, following in pairwise(dis.get_instructions(part)):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"):
                reads_attribute = following.opname in ("LOAD_ATTR", "LOAD_METHOD")
                names.add((str(step.argval), str(following.argval) if reads_attribute else ""))
    return tuple(sorted(names))


def _is_library(owner: Any) -> bool:
    return _is_library_name(getattr(owner, "__module__", None) or "builtins")


def _is_library_name(module: str) -> bool:
    return module.partition(".")[0] in _LIBRARIES
