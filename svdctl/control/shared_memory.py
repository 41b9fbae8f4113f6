"""Layers whose weights lie in the same memory, and changes of weights that happen whole or not at all."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy


def groups_by_memory(tensors: Mapping[str, Sequence[Tensor]]) -> list[list[str]]:
    """Return the names of layers in groups: two layers share a group if any of their tensors overlap in memory.

    Args:
        tensors: every tensor that is read or written with a layer, by the layer's name.

    Tensors without memory of their own to look at (of lazy layers, sparse) share none.

    Returns:
        The groups, and the names in them, in the order of `tensors`; most have one name.
    """
    spans = sorted(
        (*_span(tensor), name)
        for name, parts in tensors.items()
        for tensor in parts
        if not is_lazy(tensor) and tensor.layout is torch.strided and tensor.numel()
    )
    leader = {name: name for name in tensors}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    end: tuple[str, int] = ("", 0)
    last = ""
    for device, start, stop, name in spans:
        if last and device == end[0] and start < end[1]:
            leader[find(name)] = find(last)
        if not last or (device, stop) > end:
            end, last = (device, stop), name
    found: dict[str, list[str]] = {}
    for name in tensors:
        found.setdefault(find(name), []).append(name)
    return list(found.values())


def _span(tensor: Tensor) -> tuple[str, int, int]:
    """Return device and first and last address, the last one excluded, of a tensor's entries."""
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return str(tensor.device), start, start + (last + 1) * tensor.element_size()


@contextmanager
def restored_on_error(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Give all of the tensors the values that they had before, should anything end what is done meanwhile."""
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)
        raise
