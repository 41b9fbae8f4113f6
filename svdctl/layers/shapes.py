"""What each layer is given when a network runs once: sizes of inputs, and whether it does what its weights say."""

import operator
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from svdctl.errors import ShapeError
from svdctl.layers.layer_operator import why_not_read
from svdctl.layers.layer_ops import find_ops, is_controllable, ops_of
from svdctl.layers.stored_weight import have_same_bits, made_by, named_tensors, require_memory
from svdctl.spectral.convolution import is_count
from svdctl.utils.printable import shown

_FIELDS = (Tensor, int, float, str, tuple, type(None))
"""Types of attributes that may decide what a layer computes: its tensors, its geometry, its mode."""
_READERS = ("item", "tolist", "numpy", "__array__", "__float__", "__int__", "__dlpack__", "data_ptr")
"""Methods that take the numbers of a tensor out of torch."""
_PRODUCTS = ("mul", "mul_", "div", "div_", "addcmul", "addcmul_", "mm", "bmm", "mv", "dot")
"""Operators that multiply; what is given to `addmm` and to convolutions as a bias is added."""
_LIKE = re.compile(r"new_(zeros|ones|empty|full|tensor)|(zeros|ones|empty|full|rand|randn)_like")
"""Functions that take no more of a tensor than its type, place and shape."""
_MOST_KEPT = 1 << 30
"""Bytes of inputs and outputs of layers that are kept at a time."""


def image_sizes(input_shape: object) -> tuple[int, ...]:
    """Return the shape of one input without the batch axis, as whole numbers.

    Raises:
        ShapeError: it is none.
    """
    if not isinstance(input_shape, Sequence) or not all(is_count(size) and size < 2**31 for size in input_shape):
        raise ShapeError(f"the shape of an image is made of positive numbers, as (3, 32, 32), not {shown(input_shape)}")
    return tuple(map(operator.index, input_shape))


@torch.no_grad()
def input_sizes(
    model: nn.Module, image_shape: tuple[int, ...], is_layer: Callable[[nn.Module], bool] = is_controllable
) -> dict[str, tuple[int, ...]]:
    """Return the spatial size of each convolution's and linear layer's input, by name; the model is left as it was.

    Args:
        model: any network.
        image_shape: one input without the batch axis, `(C, H, W)`.
        is_layer: which modules are looked at.
    """
    sizes: dict[str, tuple[int, ...]] = {}

    def record(name: str, layer: nn.Module) -> "torch.utils.hooks.RemovableHandle":
        def hook(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            sizes[name] = spatial_size(layer, inputs, named)

        return layer.register_forward_pre_hook(hook, with_kwargs=True)

    layers = [(name, layer) for name, layer in model.named_modules() if is_layer(layer)]
    with _evaluation(model):
        handles = [record(name, layer) for name, layer in layers]
        try:
            model(torch.zeros(1, *image_shape, **_like(model)))
        finally:
            for handle in handles:
                handle.remove()
    return sizes


@dataclass
class Calls:
    """What was seen of one layer while its network ran."""

    sizes: list[tuple[int, ...]] = field(default_factory=list)
    """Different sizes of its input, the last one last; empty when it was not reached by a call of its own."""
    fault: str = ""
    """Why what it computed is not what its weights and settings say; empty when it is."""
    used_by: str = ""
    """A function that took its weights outside of its own calls; empty when there was none."""
    sees_image: bool = True
    """Whether each of its inputs was the network's own input."""


@torch.no_grad()
def observed_calls(
    model: nn.Module, image_shape: tuple[int, ...], is_layer: Callable[[nn.Module], bool]
) -> dict[str, Calls]:
    """Run a network on random pixels and compare each layer's calls with what the layer is; it is left as it was.

    A layer's tensors, settings and hooks must be the same before, at and after each call, bit for bit, and its outputs
    must be, up to rounding, those that it gives alone on the same inputs once the network has run. Where inputs and
    outputs of all layers take more than a gigabyte the network runs again on the same pixels for those left over. That
    the weight of a linear layer is given to `torch.nn.functional.linear` as it is counts as a call.

    Args:
        model: any network.
        image_shape: one input without the batch axis, `(C, H, W)`.
        is_layer: which modules are looked at.
    """
    require_memory(model)
    like = _like(model)
    # Between 0 and 1, as pixels are.
    image = torch.rand(1, *image_shape, generator=torch.Generator().manual_seed(0), device="cpu").to(**like)
    if any(is_lazy(parameter) for parameter in model.parameters()):
        with _evaluation(model):
            model(image.clone())  # makes the weights
    layers = {name: layer for name, layer in model.named_modules() if is_layer(layer)}
    found = {name: Calls() for name in layers}
    with _evaluation(model):
        before = {name: _copied(_contents(layer)) for name, layer in layers.items()}

        def run(names: Sequence[str], uses: "_Uses | None") -> list[str]:
            """Run the network and compare the calls of some layers; returns those whose calls were not kept."""
            taken: dict[str, list[tuple[Any, Any, Any]]] = {name: [] for name in names}
            sizes: dict[str, int] = {}
            left_over: list[str] = []
            ours: set[object] = set()

            def check(name: str) -> None:
                found[name].fault = found[name].fault or _changed(before[name], _contents(layers[name], ours))

            if uses is not None:
                uses.check = check

            def watch(name: str) -> tuple[Any, Any]:
                call = found[name]

                def enter(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
                    if uses is not None:
                        uses.running.append(name)
                    size = spatial_size(layer, inputs, named)
                    call.sizes = [*(other for other in call.sizes if other != size), size]
                    check(name)
                    first = next((value for value in (*inputs, *named.values()) if isinstance(value, Tensor)), None)
                    call.sees_image &= first is not None and first.shape == image.shape and have_same_bits(first, image)
                    if name not in left_over:
                        taken[name].append((_cloned(inputs), _cloned(named), None))

                def leave(layer: nn.Module, inputs: object, named: object, output: object) -> None:
                    if uses is not None:
                        uses.running.remove(name)
                        uses.keep(name, layer)
                    if name in left_over:
                        return
                    given, given_named, _ = taken[name].pop()
                    taken[name].append((given, given_named, _cloned(output)))
                    sizes[name] = sum(tensor.nbytes for tensor in _tensors(taken[name]))
                    if len(sizes) > 1 and sum(sizes.values()) > _MOST_KEPT:
                        left_over.append(name)
                        del taken[name], sizes[name]

                ours.update((enter, leave))
                layer = layers[name]
                return (
                    layer.register_forward_pre_hook(enter, with_kwargs=True),
                    layer.register_forward_hook(leave, with_kwargs=True),
                )

            handles = [handle for name in names for handle in watch(name)]
            try:
                with ExitStack() as stack:
                    stack.enter_context(torch.compiler.set_stance("force_eager"))
                    for watching in () if uses is None else (uses, _Operators(uses)):
                        stack.enter_context(watching)
                    model(image.clone())
            finally:
                for handle in handles:
                    handle.remove()
            while taken:
                name, calls = taken.popitem()
                call, layer = found[name], layers[name]
                call.fault = call.fault or _changed(before[name], _contents(layer))
                if not call.fault and not all(_agrees(layer, *one) for one in calls):
                    call.fault = "its output when the network runs is not what it gives alone on the same input"
            return left_over

        uses = _Uses(layers)
        rest = run(list(layers), uses)
        for name in uses.as_linear:
            found[name].sizes = [(1,)]
        while rest:
            rest = run(rest, None)
        for name, call in found.items():
            call.used_by = uses.found.get(name, "") or uses.found_below.get(name, "")
    return found


class _Uses(TorchFunctionMode):
    """Which functions are called on weights of a layer that is not running."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.running: list[str] = []
        self.found: dict[str, str] = {}
        self.found_below: dict[str, str] = {}
        """The same of operators that no function of torch's in Python calls."""
        self.check: Callable[[str], None] = lambda name: None
        """Called with the name of a layer before its weight is given to `linear` outside of its own calls."""
        self.as_linear: set[str] = set()
        """Linear layers whose weights, as they are, were given to `linear` outside of their own calls."""
        self._owners: dict[int, set[str]] = {}
        self._owners_of_shifts: dict[int, set[str]] = {}
        self._kept: list[Tensor] = []
        self._of_linear: dict[int, set[str]] = {}
        for name, layer in layers.items():
            self.keep(name, layer)
            weight = layer._parameters.get("weight")
            if weight is not None and ops_of(layer).is_linear and why_not_read(layer) is None:
                self._of_linear.setdefault(id(weight), set()).add(name)

    def keep(self, name: str, layer: nn.Module) -> None:
        """Count the layer's tensors, that of an older hook too; kept, so that their memory is not used anew."""
        tensors = list(named_tensors(layer))
        # What is added to the outputs of an operator is no part of it.
        shifts = {_storage(tensor) for own, tensor in tensors if own == "bias" and is_controllable(layer)}
        shifts -= {_storage(tensor) for own, tensor in tensors if own != "bias"}
        for _, tensor in tensors:
            self._kept.append(tensor)
            storage = _storage(tensor)
            if storage is not None:
                owners = self._owners_of_shifts if storage in shifts else self._owners
                owners.setdefault(storage, set()).add(name)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        linear: set[str] = set()
        if func is nn.functional.linear and len(args) > 1:
            linear = self._of_linear.get(id(args[1]), set()) - set(self.running)
        # What is done below is a call of the layer.
        self.running += linear
        try:
            for owner in linear:
                self.check(owner)
            result = func(*args, **(kwargs or {}))
        finally:
            for owner in linear:
                self.running.remove(owner)
        self.as_linear |= linear
        name = getattr(func, "__name__", str(func))
        takes = name in _READERS or (next(_tensors(result), None) is not None and not _LIKE.fullmatch(name))
        given = (args[0], *args[2:]) if linear else args
        getter = getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name
        for tensor in _tensors((given, kwargs)) if takes else ():
            for owner in self._outside(tensor, self._owners):
                self.found.setdefault(owner, getter)
        return result

    def note(self, name: str, given: object) -> None:
        """Count what an operator of this name is given."""
        for tensor in _tensors(given):
            owners = self._outside(tensor, self._owners)
            if name in _PRODUCTS:
                owners = owners | self._outside(tensor, self._owners_of_shifts)
            for owner in owners:
                self.found_below.setdefault(owner, name)

    def _outside(self, tensor: Tensor, owners: dict[int, set[str]]) -> set[str]:
        """Return the layers that a tensor is of; none while one of them runs."""
        found = owners.get(_storage(tensor) or 0, set())
        return set() if found & set(self.running) else found


class _Operators(TorchDispatchMode):
    """Which operators run on weights of a layer that is not running, also where TorchScript or C++ calls them."""

    def __init__(self, uses: _Uses) -> None:
        super().__init__()
        self._uses = uses

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # `_Uses` has seen the function that calls it, if there is one
            result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if name in _READERS or (next(_tensors(result), None) is not None and not _LIKE.fullmatch(name)):
            self._uses.note(name, (args, kwargs))
        return result


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _storage(tensor: Tensor) -> int | None:
    if tensor.layout is not torch.strided or type(tensor) not in (Tensor, nn.Parameter) or not tensor.numel():
        return None
    return tensor.untyped_storage().data_ptr() or None


def _contents(layer: nn.Module, ours: set[object] | frozenset[object] = frozenset()) -> dict[str, Any]:
    """Return everything that decides what a layer computes, by name; hooks of this file apart."""
    found: dict[str, Any] = {}
    for path, module in layer.named_modules():
        own: dict[str, Any] = {**vars(module), **module._parameters, **module._buffers}
        made = {made_by(hook) for hook in module._forward_pre_hooks.values()}
        found |= {
            f"{path}.{name}": value for name, value in own.items() if isinstance(value, _FIELDS) and name not in made
        }
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        patched = [value for name, value in vars(module).items() if callable(value) and name != "_modules"]
        found[f"{path}.forward"] = (type(module), *(hook for hook in hooks if hook not in ours), *patched)
    found["hooks of all modules"] = (
        *torch_module._global_forward_pre_hooks.values(),
        *torch_module._global_forward_hooks.values(),
    )
    return found


def _copied(contents: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in contents.items()}


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return which part of a layer is another one now, in a sentence; empty when all are the same."""
    for name in before.keys() | now.keys():
        old, new = before.get(name), now.get(name)
        if not (
            have_same_bits(old, new)
            if isinstance(old, Tensor) and isinstance(new, Tensor)
            else old is new or old == new
        ):
            return f"its {name.strip('.')} is another one when the network runs"
    return ""


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        # A class of the user's may do something else on the way.
        return value.detach().clone().as_subclass(Tensor)
    if isinstance(value, dict):
        return {name: _cloned(part) for name, part in value.items()}
    return type(value)(map(_cloned, value)) if type(value) in (list, tuple) else value


def _agrees(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: object) -> bool:
    """Return whether a layer alone gives an output, up to the rounding of the coarser of its types."""
    alone = layer(*inputs, **named)
    if isinstance(alone, tuple) and isinstance(output, tuple) and len(alone) == len(output):
        # As of attention: what it gives and, if asked, its weights.
        alone, output = alone[0], output[0]
    if not isinstance(output, Tensor) or not isinstance(alone, Tensor) or alone.shape != output.shape:
        return False
    if have_same_bits(output, alone):
        return True
    seen, wanted = output.double(), alone.double()
    if bool(torch.equal(seen.isnan(), wanted.isnan())) and bool(torch.equal(seen.nan_to_num(), wanted.nan_to_num())):
        return True
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (output, alone))
    given = max(float(tensor.double().norm()) for tensor in _tensors((inputs, named)))
    weights = max((float(tensor.double().norm()) for tensor in layer.parameters()), default=0.0)
    return float((seen - wanted).norm()) <= 8 * eps * (float(wanted.norm()) + given * weights)


def spatial_size(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[int, ...]:
    """Return the spatial size of what a layer is given, `(1,)` of a linear one.

    Args:
        layer: any.
        inputs, named: what it is called with.
    """
    ops = find_ops(layer)
    if ops is not None and ops.is_linear:
        return (1,)
    given = next(_tensors((inputs, named)))
    kernel = getattr(layer, "kernel_size", None)
    return tuple(given.shape[-(len(kernel) if isinstance(kernel, tuple) else 2) :])


def _like(model: nn.Module) -> dict[str, Any]:
    tensors = (tensor for _, tensor in named_tensors(model))
    reference = next((t for t in tensors if t.is_floating_point() or t.is_complex()), torch.zeros(()))
    return {"device": reference.device, "dtype": reference.dtype}


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode for a while: a pass in training mode would move BatchNorm's statistics."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
