"""Layers and parametrizations as plain JSON: the arguments that make them again, and what is made of these.

A file may come from a stranger: it names classes of a fixed table alone, and a layer is made on the meta device first,
to be as large as the tensors beside it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrizations import _Orthogonal
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from svdctl import parametrize
from svdctl.errors import ShapeError, first_line
from svdctl.layers.minmax import MinMax
from svdctl.layers.normalize import Normalize
from svdctl.layers.orthogonal_weight import OrthogonalWeight
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT
from svdctl.layers.spectral_norm import SpectralNorm
from svdctl.layers.tt import TTConv1d, TTConv2d, TTConv3d

Arguments = dict[str, Any]
MAX_STEP = 4096
"""Stride, dilation and padding of a layer in a file; what is computed of a layer grows with them."""
_GROWTH = 64
"""Times the numbers in a file that the phases of a strided kernel may come to, and `_LITTLE` beside it."""
_LITTLE = 2**24


@dataclass(frozen=True)
class LayerKind:
    """How layers of one class are described."""

    kind: type[nn.Module]
    read: Callable[[Any], Arguments]
    """Returns the constructor's arguments of a layer."""
    is_ours: bool = True
    """Whether it is a layer of svdctl, which takes the place of another when a file is loaded."""


def _attributes(*names: str, bias: bool = True) -> Callable[[Any], Arguments]:
    def read(layer: Any) -> Arguments:
        found = {name: getattr(layer, name) for name in names}
        return {**found, "bias": layer.bias is not None} if bias else found

    return read


_SIZES = ("in_channels", "out_channels", "kernel_size", "stride")
_CONV = (*_SIZES, "padding", "dilation", "groups", "padding_mode")
_SERIES = ("train_terms", "eval_terms", "scale", "checkpoint_activations")


def _framed(*names: str) -> Callable[[Any], Arguments]:
    def read(layer: Any) -> Arguments:
        found = _attributes(*_SIZES, *names, "rank")(layer)
        series = {name: getattr(layer.core, name) for name in _SERIES} if isinstance(layer, SOTT) else {}
        return {**found, **series, "frames": layer.frames_kind}

    return read


def _pixels(layer: Any) -> Arguments:
    return {"mean": layer.mean.flatten().tolist(), "std": layer.std.flatten().tolist()}


_KINDS = (
    *(LayerKind(kind, _framed("padding", "dilation")) for kind in (TTConv1d, TTConv2d, TTConv3d)),
    LayerKind(SOC, _attributes(*_SIZES, *_SERIES)),
    LayerKind(SOTT, _framed()),
    LayerKind(MinMax, _attributes(bias=False)),
    LayerKind(Normalize, _pixels),
    *(LayerKind(kind, _attributes(*_CONV), is_ours=False) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    *(
        LayerKind(kind, _attributes(*_CONV, "output_padding"), is_ours=False)
        for kind in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    ),
    LayerKind(nn.Linear, _attributes("in_features", "out_features"), is_ours=False),
    *(
        LayerKind(kind, _attributes("num_features", "eps", "affine", "track_running_stats", bias=False), is_ours=False)
        for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    ),
)
LAYER_KINDS = {known.kind.__name__: known for known in _KINDS}
"""All classes that a file may name."""


@dataclass(frozen=True)
class ParametrizationKind:
    """How parametrizations of one class are described."""

    kind: type[nn.Module]
    read: Callable[[Any], Arguments]
    register: Callable[[nn.Module, str, Arguments], object]
    """Gives a tensor of a module, by its name, the parametrization with these arguments."""


_MAPS = ("matrix_exp", "cayley", "householder")


def _read_orthogonal(part: Any) -> Arguments:
    return {"orthogonal_map": part.orthogonal_map.name, "use_trivialization": hasattr(part, "base")}


def _register_orthogonal(module: nn.Module, name: str, given: Arguments) -> None:
    if given.keys() != {"orthogonal_map", "use_trivialization"} or given["orthogonal_map"] not in _MAPS:
        raise ShapeError(f"arguments of an orthogonal parametrization are not {given!r}"[:200])
    parametrizations.orthogonal(
        module, name, given["orthogonal_map"], use_trivialization=given["use_trivialization"] is True
    )


def _read_norm(part: Any) -> Arguments:
    return {"max_sigma": "learnable" if part.max_sigma is None else part.max_sigma, "mode": part.mode}


def _register_norm(module: nn.Module, name: str, given: Arguments) -> None:
    if given.keys() != {"max_sigma", "mode"}:
        raise ShapeError(f"arguments of a spectral norm are not {given!r}"[:200])
    parametrize.spectral_norm(module, name, max_sigma=given["max_sigma"], mode=given["mode"])


def _register_orthonormal(module: nn.Module, name: str, given: Arguments) -> None:
    parametrize.orthogonal(module, name)


PARAMETRIZATION_KINDS = {
    "orthogonal": ParametrizationKind(_Orthogonal, _read_orthogonal, _register_orthogonal),
    "orthonormal": ParametrizationKind(OrthogonalWeight, lambda part: {}, _register_orthonormal),
    "spectral_norm": ParametrizationKind(SpectralNorm, _read_norm, _register_norm),
}
"""Parametrizations that a file may name: torch's `orthogonal`, and those of `svdctl.parametrize`."""


def describe_layers(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return class and constructor's arguments of the layers of a network that are known here, by name."""
    found: dict[str, dict[str, Any]] = {}
    inner: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        known = LAYER_KINDS.get(type_before_parametrizations(module).__name__)
        if id(module) in inner or known is None or type_before_parametrizations(module) is not known.kind:
            continue
        if known.is_ours:
            inner |= {id(part) for part in module.modules() if part is not module}
        found[name] = {"class": known.kind.__name__, "arguments": known.read(module)}
    return found


def describe_parametrizations(model: nn.Module) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the parametrizations of tensors that are known here, by module and tensor; those of frames go without."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not is_parametrized(module):
            continue
        for tensor, parts in module.parametrizations.items():
            if getattr(module, "frames_kind", "") == "parametrize" and tensor.startswith("frame_"):
                continue  # the layer's constructor registers it
            kinds = [parametrization_name(part) for part in parts]
            if all(kind is not None for kind in kinds):
                found.setdefault(name, {})[tensor] = [
                    {"class": kind, "arguments": PARAMETRIZATION_KINDS[kind].read(part)}
                    for kind, part in zip(kinds, parts, strict=True)
                    if kind is not None
                ]
    return found


def parametrization_name(part: nn.Module) -> str | None:
    """Return the name of a parametrization in files; None: it is none that is known here."""
    return next((name for name, known in PARAMETRIZATION_KINDS.items() if type(part) is known.kind), None)


def made_on_meta(kind: str, arguments: Arguments, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a layer without numbers, once all that it stores is there in the shapes that it has.

    Args:
        kind: a name of `LAYER_KINDS`.
        arguments: of its constructor, of JSON's types.
        tensors: of the layer, by their names in it.

    Raises:
        ShapeError: other arguments than those of the class, or other tensors than it has.
    """
    _require_types(kind, arguments)
    # Frames that torch's parametrization makes need numbers; their parts are told from what stands in the file.
    is_made_by_torch = arguments.get("frames") == "parametrize"
    layer = _made(kind, {**arguments, "frames": "free"} if is_made_by_torch else arguments, torch.device("meta"))
    if LAYER_KINDS[kind].read(layer).keys() != arguments.keys():
        raise ShapeError(f"a {kind} has other arguments than those in the file")
    total = sum(tensor.numel() for tensor in tensors.values())
    _require_modest(layer, total)
    for name, wanted in layer.state_dict().items():
        prefix, _, leaf = name.rpartition(".")
        parts = f"{prefix}.parametrizations.{leaf}." if prefix else f"parametrizations.{leaf}."
        stored = tensors.get(name, tensors.get(f"{parts}original"))
        fits = stored is not None and (stored.shape if name in tensors else stored.numel()) == (
            wanted.shape if name in tensors else wanted.numel()
        )
        if stored is None or not fits:
            there = "is not there" if stored is None else f"is {_size(stored.shape)}"
            raise ShapeError(f"a {kind} has {name} of {_size(wanted.shape)}, which {there}")
        if is_made_by_torch and leaf.startswith("frame_"):
            require_base(tensors, parts)
    return layer


def require_base(tensors: Mapping[str, Tensor], parts: str, place: int = 0) -> None:
    """Refuse a tensor with torch's orthogonal parametrization whose base, a square matrix, is not stored.

    Args:
        tensors: by name.
        parts: the names of the tensor's parts begin so.
        place: of the parametrization in its chain.

    Raises:
        ShapeError: it is not there.
    """
    original, base = tensors.get(f"{parts}original"), tensors.get(f"{parts}{place}.base")
    side = 0 if original is None else max(original.shape, default=0)
    if base is None or base.shape[-2:] != (side, side):
        raise ShapeError(f"an orthogonal parametrization has a base, and {parts[:100]}{place}.base is none")


def made_layer(kind: str, arguments: Arguments) -> nn.Module:
    """Return a layer on the CPU in float32; `made_on_meta` has checked the arguments.

    Raises:
        ShapeError: there is no such layer.
    """
    with torch.random.fork_rng(devices=[]):
        return _made(kind, arguments, torch.device("cpu"))


def _made(kind: str, arguments: Arguments, device: torch.device) -> nn.Module:
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    try:
        with device:
            return LAYER_KINDS[kind].kind(**plain)
    except (RuntimeError, TypeError, ValueError, OverflowError, ZeroDivisionError, IndexError) as error:
        raise ShapeError(f"there is no {kind} of its arguments ({first_line(error, 100)})") from error


def _require_modest(layer: nn.Module, total: int) -> None:
    """Refuse steps so long that computing with the layer takes far more memory than its weights.

    A kernel of k taps with stride s has as many numbers in its phases as one of `max(k, s)` taps.
    """
    for name in ("stride", "padding", "dilation", "output_padding"):
        if any(number > MAX_STEP for number in _numbers(getattr(layer, name, 0))):
            raise ShapeError(f"a {name} of more than {MAX_STEP} is none that is read from a file")
    for name in ("train_terms", "eval_terms"):
        if getattr(layer, name, 0) > MAX_STEP or getattr(getattr(layer, "core", None), name, 0) > MAX_STEP:
            raise ShapeError(f"a series of more than {MAX_STEP} terms is none that is read from a file")
    taps, steps = _numbers(getattr(layer, "kernel_size", 1)), _numbers(getattr(layer, "stride", 1))
    growth = math.prod(max(1, step // size) for step, size in zip(steps, taps, strict=True))
    if growth > _GROWTH and growth * total > _LITTLE:
        raise ShapeError(f"a stride of {layer.stride} is none that is read from a file")


def _numbers(value: object) -> tuple[int, ...]:
    """Return a setting of a layer as numbers, one or one for each axis; of a word, as "same", none."""
    return value if isinstance(value, tuple) else (value,) if isinstance(value, int) else ()


_FLAGS = ("bias", "affine", "track_running_stats", "checkpoint_activations", "use_trivialization")
_REALS = ("eps", "scale", "mean", "std")
_WORDS = ("padding_mode", "frames")


def _require_types(kind: str, arguments: Mapping[str, Any]) -> None:
    """Refuse values of another type than the argument's; whether they make sense, the constructor says."""
    for name, value in arguments.items():
        each = value if isinstance(value, list) else [value]
        if name in _FLAGS:
            fits = isinstance(value, bool)
        elif name in _WORDS or (name == "padding" and isinstance(value, str)):
            fits = isinstance(value, str)
        else:
            number = int | float if name in _REALS else int
            fits = all(isinstance(one, number) and not isinstance(one, bool) for one in each) and len(each) > 0
        if not fits:
            raise ShapeError(f"a {kind} has no {name} of {str(value)[:40]!r}")


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"
