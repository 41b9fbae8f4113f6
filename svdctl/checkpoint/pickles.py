"""Pickles read without executing them: the classes and functions that they refer to, and how deep they nest.

torch's restricted unpickler runs after this. Refused here is what that unpickler accepts although no file of weights
needs it: calls that allocate memory of any size, and tuples nested so deep that hashing one overflows the C stack and
ends the process.
"""

import mmap
import pickletools
import re
import struct
from collections.abc import Iterable
from typing import IO, cast

import torch

from svdctl.errors import CheckpointError

MAX_OPERATIONS = 5_000_000
"""One operation creates at most some 200 bytes of Python objects: 1 GB at worst, 200,000 tensors with an optimiser."""
MAX_DEPTH = 1_000
_CONVERT = (
    "in the process that made it, torch.save(model.state_dict(), 'weights.pt') writes a file that needs no execution"
)
_PLAIN = frozenset({
    "_codecs.encode", "builtins.complex", "builtins.set", "collections.Counter", "collections.OrderedDict",
    "torch.Size", "torch.Tensor", "torch.device", "torch.nn.parameter.Parameter", "torch.serialization._get_layout",
    "torch._tensor._rebuild_from_type_v2",
}) | {
    f"torch._utils._rebuild_{what}"
    for what in ("meta_tensor_no_storage", "parameter", "parameter_with_state", "qtensor", "sparse_tensor", "tensor",
                 "tensor_v2", "tensor_v3")
}  # fmt: skip
_STORAGE = re.compile(r"torch\.(cuda\.)?(storage\.)?[A-Za-z0-9]*Storage")
_BESIDE_WEIGHTS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|datetime\.\w+|pathlib\.(_local\.)?\w*Path|torch\.torch_version\.TorchVersion"
    r"|numpy\.(dtype|ndarray|_?core\.multiarray\.(scalar|_reconstruct))"
)


class Described:
    """Stands where a file describes an object of another library; the description is dropped, nothing is built."""

    def __init__(self, *description: object) -> None:
        """Take whatever the object would have been made from."""

    def __setstate__(self, state: object) -> None:
        """Take whatever the object would have held."""


class NumpyArray(Described):
    """Stands where a file describes a numpy array, whose numbers may be weights."""


class NumpyNumber(Described):
    """Stands where a file describes a number of numpy's."""


def referenced_globals(stream: IO[bytes] | mmap.mmap, where: str) -> set[str]:
    """Return full names of all classes and functions that one pickle refers to; the stream is left after it.

    Raises:
        CheckpointError: malformed, or larger or deeper than any state of a network.
    """
    names: set[str] = set()
    depths: list[int | None] = []
    memo: dict[int, int] = {}
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], stream))):
            if count > MAX_OPERATIONS:
                raise CheckpointError(
                    f"{where} lists more than {MAX_OPERATIONS:,} things beside its numbers; {_CONVERT}"
                )
            if operation.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                names.add(f"{'builtins' if module == '__builtin__' else module}.{name}")
            elif operation.name in ("INST", "OBJ", "NEWOBJ_EX", "STACK_GLOBAL"):
                raise CheckpointError(
                    f"{where} cannot be loaded safely: it was pickled in a way that torch.save does not use; {_CONVERT}"
                )
            _follow(operation.name, argument, depths, memo)
            if depths and (depths[-1] or 0) > MAX_DEPTH:
                raise CheckpointError(f"{where} nests tuples more than {MAX_DEPTH:,} deep; {_CONVERT}")
    except (ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
        raise CheckpointError(
            f"{where} is damaged: its table of contents breaks off or makes no sense; use another copy"
        ) from error
    return names


def _follow(name: str, argument: object, depths: list[int | None], memo: dict[int, int]) -> None:
    """Follow one operation on a stack that holds nothing but depths of nested tuples, None for a mark."""
    if name == "MARK":
        depths.append(None)
    elif name in ("BINGET", "LONG_BINGET", "GET"):
        assert isinstance(argument, int)
        depths.append(memo[argument])
    elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
        assert isinstance(argument, int)
        memo[argument] = depths[-1] or 0
    else:
        marked, takes, gives = _EFFECTS[name]
        taken: list[int] = []
        if marked:
            while (depth := depths.pop()) is not None:
                taken.append(depth)
        taken += [depths.pop() or 0 for _ in range(takes)]
        deepest = 1 + max(taken, default=0) if name.startswith("TUPLE") else 0
        depths.extend([deepest] * gives)


def _effect(operation: pickletools.OpcodeInfo) -> tuple[bool, int, int]:
    """Return whether an operation takes everything down to a mark, how many more things it takes, how many it gives."""
    below = [item.name for item in operation.stack_before]
    marked = "mark" in below
    return marked, below.index("mark") if marked else len(below), len(operation.stack_after)


_EFFECTS = {operation.name: _effect(operation) for operation in pickletools.opcodes}


def placeholder_classes(names: Iterable[str], where: str) -> list[tuple[type[Described], str]]:
    """Return pairs for `torch.serialization.safe_globals`, so that plain objects beside the weights hinder nothing.

    Raises:
        CheckpointError: for a name that would have to be executed.
    """
    others = sorted(name for name in names if not _is_plain(name))
    for name in others:
        if not _BESIDE_WEIGHTS.fullmatch(name):
            raise CheckpointError(
                f"{where} cannot be loaded safely: it asks for {name[:80]!r} to be run, and svdctl runs nothing out of "
                f"a file; {_CONVERT}"
            )
    kinds = {"_reconstruct": NumpyArray, "scalar": NumpyNumber}
    return [(kinds.get(name.rpartition(".")[2], Described), name) for name in others]


def _is_plain(name: str) -> bool:
    if name in _PLAIN or _STORAGE.fullmatch(name):
        return True
    module, _, last = name.rpartition(".")
    return module == "torch" and isinstance(getattr(torch, last, None), torch.dtype | torch.qscheme)
