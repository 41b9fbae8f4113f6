"""Tensors on a CUDA device that have shapes and no numbers, so that a step's devices can be checked without a GPU."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)


def is_possible() -> bool:
    """Return whether this torch makes such tensors on a machine without a GPU; older ones ask the driver first."""
    try:
        with FakeTensorMode():
            return torch.ones(1).to(CUDA).device == CUDA
    except RuntimeError:
        return False


@contextmanager
def without_numbers(*things: object) -> Iterator[None]:
    """Move networks and what keeps tensors beside them to the device, and run the body; all numbers are lost.

    In the body a number that is read raises an error, and so does what `OneDevice` refuses.
    """
    mode = FakeTensorMode()
    move = _Move(mode)
    for thing in things:
        move(thing)
    with mode, OneDevice():
        yield


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, numbers (0-d) on the host among them, and copies between devices.

    torch takes a number of the host beside tensors of a device; a CUDA graph would keep the one of its recording.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [value.device for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        found = func(*args, **(kwargs or {}))
        made = [value.device for value in tree_leaves(found) if isinstance(value, Tensor)]
        if len(devices := sorted({*map(str, given), *(map(str, made) if given else ())})) > 1:
            raise RuntimeError(f"{func} has to do with tensors of more than one device: {', '.join(devices)}")
        return found


class _Move:
    """Replaces all tensors in modules, containers and objects of svdctl; one tensor stays one."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._made: dict[int, tuple[object, Any]] = {}
        """What was found, by its id, and kept alive for that; and what stands in its place."""

    def __call__(self, found: Any) -> Any:
        if id(found) not in self._made:
            self._made[id(found)] = found, found
            self._made[id(found)] = found, self._moved(found)
        return self._made[id(found)][1]

    def _moved(self, found: Any) -> Any:
        if isinstance(found, Tensor):
            fake = FakeTensor(self._mode, found.detach().to("meta"), CUDA)
            return nn.Parameter(fake, requires_grad=found.requires_grad) if isinstance(found, nn.Parameter) else fake
        if isinstance(found, nn.Module):
            for table in (found._parameters, found._buffers, found._modules):
                self(table)
        elif isinstance(found, dict):
            for key, value in found.items():
                found[key] = self(value)
        elif isinstance(found, list):
            found[:] = [self(value) for value in found]
        elif type(found) is tuple:
            return tuple(self(value) for value in found)
        elif type(found).__module__.startswith("svdctl.") and hasattr(found, "__dict__"):
            self(vars(found))
        return found


def backward(loss: Tensor) -> None:
    """Add the gradients of a loss to the parameters, node by node in Python: torch's engine asks the driver."""
    gradients: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    gradients[loss.grad_fn][0] = torch.ones_like(loss)
    for node in _from_outputs_to_inputs(loss.grad_fn):
        given = {place: _fitted(gradient, node, place) for place, gradient in gradients.pop(node, {}).items()}
        if not given:
            continue
        if hasattr(node, "variable"):
            own = node.variable
            own.grad = given[0] if own.grad is None else own.grad + given[0]
            continue
        inputs = [given.get(place) for place in range(len(node._input_metadata))]
        found = node.apply(*inputs) if hasattr(node, "apply") else node(*inputs)
        parts = found if isinstance(found, tuple) else (found,)
        for (following, place), gradient in zip(node.next_functions, parts, strict=False):
            if following is not None and gradient is not None:
                known = gradients[following].get(place)
                gradients[following][place] = gradient if known is None else known + gradient


def _fitted(gradient: Tensor, node: Any, place: int) -> Tensor:
    """Return a gradient in the shape of what it is of, summed where that was expanded."""
    wanted = node._input_metadata[place]
    assert gradient.device == wanted.device, f"{node.name()}: {gradient.device} for {wanted.device}"
    return gradient if gradient.shape == wanted.shape else gradient.sum_to_size(wanted.shape)


def _from_outputs_to_inputs(root: Any) -> list[Any]:
    """Return the nodes behind one, each after all that use it."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node is not None and node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(following, False) for following, _ in node.next_functions]
    return order[::-1]
