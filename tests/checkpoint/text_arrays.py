"""State with tensors as JSON text, exact to the bit: what a fixture of a checkpoint is kept as."""

import base64
import json
import zlib
from typing import Any

import numpy as np
import torch


def to_text(state: Any) -> str:
    """Return a nested state of dictionaries, lists, tuples, tensors and scalars as JSON."""
    return json.dumps(_encoded(state), separators=(",", ":")) + "\n"


def from_text(text: str) -> Any:
    """Return the state of `to_text`."""
    return _decoded(json.loads(text))


def _encoded(value: Any) -> Any:
    match value:
        case torch.Tensor():
            array = value.detach().contiguous().numpy()
            data = base64.b85encode(zlib.compress(array.tobytes(), 9)).decode()
            return {"tensor": [str(array.dtype), list(array.shape), data]}
        case dict():
            return {"dict": [[key, _encoded(inner)] for key, inner in value.items()]}
        case tuple():
            return {"tuple": [_encoded(inner) for inner in value]}
        case list():
            return [_encoded(inner) for inner in value]
        case _:
            return value


def _decoded(value: Any) -> Any:
    match value:
        case {"tensor": [dtype, shape, data]}:
            array = np.frombuffer(zlib.decompress(base64.b85decode(data)), dtype).reshape(shape)
            return torch.from_numpy(array.copy())
        case {"dict": pairs}:
            return {key: _decoded(inner) for key, inner in pairs}
        case {"tuple": values}:
            return tuple(_decoded(inner) for inner in values)
        case list():
            return [_decoded(inner) for inner in value]
        case _:
            return value
