"""What the calls in files of torch.save mean: tensors, numpy's arrays, and Python's few containers.

Each is computed here from its arguments; nothing that a file names is called. A tensor of another kind, whose numbers
are not plain inside it, becomes an `UnreadTensor` that says what it is.
"""

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svdctl.checkpoint.pickles import Call, IncompleteRecord, ObjectRecord, Reference, Unpickler
from svdctl.checkpoint.work_limit import WorkLimit

_TENSOR = 1_000
"""Bytes of a tensor without its numbers."""
_MAX_AXES = 64
_STORED = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64, "Untyped": torch.uint8,
    "QInt8": torch.int8, "QUInt8": torch.uint8, "QInt32": torch.int32, "QUInt4x2": torch.uint8,
    "QUInt2x4": torch.uint8,
}  # fmt: skip
"""Types of numbers in torch's storages, codes of quantised ones as integers."""
_STORAGE = re.compile(r"torch\.(cuda\.)?(storage\.)?_?([A-Za-z0-9]*)Storage")
_TENSOR_NAME = re.compile(r"(?i).*(tensor|parameter)|params4bit|int8params|_?re(build|construct)_\w+")
"""Last words in names of tensors' classes and of functions that make tensors."""
_PLACED_WHOLE = ("Replicate", "Shard", "_StridedShard")


@dataclass(frozen=True)
class Storage:
    """The numbers of one or more tensors."""

    numbers: torch.UntypedStorage
    dtype: torch.dtype


class UnreadTensor(Tensor):
    """A tensor whose numbers svdctl does not read: its shape on torch's meta device."""

    what: str
    """What it is, in words."""
    is_foreign: bool = False
    """Whether it is of a class that is not torch's own."""


class NumpyArray(IncompleteRecord):
    """An array of numpy's; one of numbers becomes a tensor."""

    def finished(self, state: Any, limit: WorkLimit) -> object:
        """Return the array as a tensor, or the record of one that holds no numbers."""
        _, shape, dtype, by_columns, numbers = state
        code = dtype.code() if isinstance(dtype, NumpyType) else None
        if code is None or not isinstance(numbers, bytes):
            self.parts.append(state)
            return self
        limit.spend(2 * len(numbers) + _TENSOR)
        array = np.frombuffer(numbers, np.dtype(code)).reshape(shape, order="F" if by_columns else "C")
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


class NumpyType(IncompleteRecord):
    """A type of numpy's numbers."""

    def finished(self, state: object, limit: WorkLimit) -> object:
        """Return the same, with its order of bytes."""
        self.parts.append(state)
        return self

    def code(self) -> str | None:
        """Return numpy's code of a type of plain numbers that torch has too; None of any other."""
        name, *states = self.parts
        order = states[0][1] if states and isinstance(states[0], tuple) else "<"
        is_number = isinstance(name, str) and re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", name)
        return f"{order}{name}" if is_number and order in ("<", ">", "|", "=") else None


def storage_type(reference: object) -> torch.dtype:
    """Return the type of the numbers in a storage of this class.

    Raises:
        ValueError: no class of storages.
    """
    found = _STORAGE.fullmatch(reference.name) if isinstance(reference, Reference) else None
    if found is None or found[3] not in _STORED:
        raise ValueError("no storage")
    return _STORED[found[3]]


def unread(what: str, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> UnreadTensor:
    """Return a tensor that is not read, for what it is."""
    found = torch.empty(tuple(shape), dtype=dtype, device="meta").as_subclass(UnreadTensor)
    found.what = what
    return found


def _strided(storage: Storage, dtype: torch.dtype, offset: int, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Return a view of a storage, after its bounds are compared with it."""
    numbers = [offset, *size, *stride]
    if any(type(number) is not int or number < 0 for number in numbers) or len(size) != len(stride):
        raise ValueError("no shape")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    is_inside = 0 in size or (last + 1) * dtype.itemsize <= storage.numbers.nbytes()
    if len(size) > _MAX_AXES or math.prod(size) >= 2**62 or not is_inside:
        raise ValueError("outside of its storage")
    return torch.empty(0, dtype=dtype).set_(storage.numbers, offset, tuple(size), tuple(stride))


def _tensor(arguments: tuple[Any, ...], of: Unpickler) -> Tensor:
    storage, offset, size, stride, *rest = arguments
    of.limit.spend(_TENSOR)
    found = _strided(storage, storage.dtype, offset, size, stride)
    return _with_metadata(found, rest[2]) if len(rest) > 2 else found


def _tensor_of_type(arguments: tuple[Any, ...], of: Unpickler) -> Tensor:
    storage, offset, size, stride, _, _, dtype, *rest = arguments
    of.limit.spend(_TENSOR)
    found = _strided(storage, dtype, offset, size, stride)
    return _with_metadata(found, rest[0]) if rest else found


def _with_metadata(found: Tensor, metadata: object) -> Tensor:
    if isinstance(metadata, Mapping):
        if metadata.get("conj") is True:
            found = found.conj()
        if metadata.get("neg") is True:
            found = torch._neg_view(found)
    return found


def _data(arguments: tuple[Any, ...], of: Unpickler) -> object:
    """Return the tensor of a parameter, whatever else it was given."""
    data = arguments[0] if arguments else None
    return data if isinstance(data, Tensor) else _unknown("torch.nn.parameter.Parameter", of)


def _copied(arguments: tuple[Any, ...], of: Unpickler) -> object:
    """Return the numbers of a tensor on a device of torch-xla and others, which stand in the file as they are."""
    data, dtype, *_ = arguments
    if not isinstance(data, Tensor) or isinstance(data, UnreadTensor):
        return _unknown("torch._utils._rebuild_device_tensor", of)
    of.limit.spend(_TENSOR + data.numel() * dtype.itemsize * (data.dtype != dtype))
    return data.to(dtype)


def _sparse(arguments: tuple[Any, ...], of: Unpickler) -> Tensor:
    layout, data = arguments
    of.limit.spend(2 * _TENSOR)
    name = layout if isinstance(layout, str) else "torch.sparse"
    return unread(f"a {name.removeprefix('torch.').replace('_', ' ')[:40]} tensor", _first_shape(data))


def _first_shape(parts: object) -> tuple[int, ...]:
    for part in parts if isinstance(parts, tuple) else ():
        if isinstance(part, tuple) and part and all(type(length) is int for length in part):
            return tuple(part)
    return ()


def _quantized(arguments: tuple[Any, ...], of: Unpickler) -> Tensor:
    of.limit.spend(2 * _TENSOR)
    return unread("quantized numbers", arguments[2])


def _meta(arguments: tuple[Any, ...], of: Unpickler) -> Tensor:
    dtype, size, *_ = arguments
    of.limit.spend(2 * _TENSOR)
    return unread("a shape without numbers", size, dtype)


def _unknown(name: str, of: Unpickler, shape: Sequence[int] = ()) -> UnreadTensor:
    of.limit.spend(2 * _TENSOR)
    found = unread(f"a tensor of the class {name[:80]}, which only its own library reads", shape)
    found.is_foreign = True
    return found


def _subclass(arguments: tuple[Any, ...], of: Unpickler) -> object:
    """Return a tensor of a subclass of torch's: the plain tensor, or what it wraps where that is the whole of it."""
    function, kind, inner, state = arguments
    name = kind.name if isinstance(kind, Reference) else "torch.Tensor"
    if not isinstance(function, Reference):
        raise TypeError("no function")
    if function.name != "torch._utils._rebuild_wrapper_subclass":
        made = of.call(function, inner)
        return made if isinstance(made, Tensor) else _unknown(name, of)
    shape = inner[2]
    states = state if isinstance(state, tuple) else (state,)
    held = next((part for part in states if isinstance(part, Mapping) and "_local_tensor" in part), {})
    local, spec = held.get("_local_tensor"), held.get("_spec")
    is_whole = isinstance(local, Tensor) and not isinstance(local, UnreadTensor) and tuple(local.shape) == tuple(shape)
    return local if is_whole and _is_placed_whole(spec) else _unknown(name, of, shape)


def _is_placed_whole(spec: object) -> bool:
    """Return whether the parts of a DTensor are its numbers, and not terms of a sum."""
    states = spec.parts if isinstance(spec, ObjectRecord) else []
    placements = next((part["placements"] for part in states if isinstance(part, Mapping) and "placements" in part), ())
    return bool(placements) and all(
        isinstance(part, ObjectRecord) and part.name.rpartition(".")[2] in _PLACED_WHOLE for part in placements
    )


def _ordered(arguments: tuple[Any, ...], of: Unpickler) -> OrderedDict[Any, Any]:
    made: OrderedDict[Any, Any] = OrderedDict()
    for pairs in arguments:
        for key, value in pairs:
            of.put(made, key, value)
    return made


def _counter(arguments: tuple[Any, ...], of: Unpickler) -> Counter[Any]:
    made: Counter[Any] = Counter()
    for counts in arguments:
        for key, value in counts.items():
            of.put(made, key, value)
    return made


def _set(arguments: tuple[Any, ...], of: Unpickler) -> set[Any]:
    made: set[Any] = set()
    for items in arguments:
        for item in items:
            of.limit.spend(_TENSOR // 10)
            of.check_key(item)
            made.add(item)
    return made


def _size(arguments: tuple[Any, ...], of: Unpickler) -> torch.Size:
    (lengths,) = arguments
    of.limit.spend(100 + 8 * len(lengths))
    return torch.Size(lengths)


def _encoded(arguments: tuple[Any, ...], of: Unpickler) -> bytes:
    text, encoding = arguments
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("an encoding that no pickle uses")
    of.limit.spend(len(text))
    return text.encode("latin1")


def _bytearray(arguments: tuple[Any, ...], of: Unpickler) -> object:
    held = _encoded(arguments, of) if len(arguments) == 2 else arguments[0] if arguments else b""
    if not isinstance(held, bytes):
        return ObjectRecord("builtins.bytearray", arguments)
    of.limit.spend(len(held))
    return bytearray(held)


def _complex(arguments: tuple[Any, ...], of: Unpickler) -> complex:
    real, imaginary = arguments
    return complex(float(real), float(imaginary))


def _text(arguments: tuple[Any, ...], of: Unpickler) -> str:
    (text,) = arguments
    if not isinstance(text, str):
        raise TypeError("no text")
    return text


def _numpy_scalar(arguments: tuple[Any, ...], of: Unpickler) -> object:
    dtype, *rest = arguments
    code = dtype.code() if isinstance(dtype, NumpyType) else None
    if code is None or len(rest) != 1 or not isinstance(rest[0], bytes):
        return ObjectRecord("numpy.generic", arguments)
    (number,) = np.frombuffer(rest[0], np.dtype(code))
    return number.item()


def _numpy_type(arguments: tuple[Any, ...], of: Unpickler) -> NumpyType:
    found = NumpyType("numpy.dtype")
    found.parts.append(arguments[0])
    return found


_CALLS: dict[str, Call] = {
    "_codecs.encode": _encoded,
    "builtins.bytearray": _bytearray,
    "builtins.bytes": lambda arguments, of: b"" if not arguments else ObjectRecord("builtins.bytes", arguments),
    "builtins.complex": _complex,
    "builtins.set": _set,
    "collections.Counter": _counter,
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda arguments, of: {},
    "numpy._core.multiarray._reconstruct": lambda arguments, of: NumpyArray("numpy.ndarray"),
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray._reconstruct": lambda arguments, of: NumpyArray("numpy.ndarray"),
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy.dtype": _numpy_type,
    "torch.Size": _size,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _copied,
    "torch._utils._rebuild_device_tensor_from_numpy": _copied,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_parameter": _data,
    "torch._utils._rebuild_parameter_with_state": _data,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_xla_tensor": _copied,
    "torch.autograd.variable.Variable": _data,
    "torch.nn.parameter.Buffer": _data,
    "torch.nn.parameter.Parameter": _data,
    "torch.serialization._get_layout": _text,
    "torch.torch_version.TorchVersion": _text,
}
"""Full names to what they make."""


def called(function: ObjectRecord, arguments: tuple[Any, ...], of: Unpickler) -> object:
    """Return what the call of a function or class gives.

    Of one that is not known it is a record, or an unread tensor where its name is that of a class or function of
    tensors.
    """
    known = _CALLS.get(function.name) if isinstance(function, Reference) else None
    if known is not None:
        return known(arguments, of)
    if _TENSOR_NAME.fullmatch(function.name.rpartition(".")[2]):
        return _unknown(function.name, of)
    return ObjectRecord(function.name, arguments)
