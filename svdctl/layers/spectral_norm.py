"""The spectral norm of a layer's operator as a parametrization of its weight: an estimate in training, a proof after.

In training the norm is estimated from below by power steps (`spectral/refined_power.py`), in evaluation mode the factor
is proved, once for each weight. Both are operators of torch, so that `torch.compile` and `torch.export` take them as
they are. docs/theory.md, "Norms during training", has the statements about either.
"""

import itertools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, NamedTuple, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from svdctl.errors import MalformedFileError, ShapeError
from svdctl.layers.padding import kernel_limit_of
from svdctl.layers.stored_weight import same_bits
from svdctl.spectral.bounds import TOLERANCE, is_bounded, norm_bound, taps_norm
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.exact_arithmetic import exact_products
from svdctl.spectral.refined_power import RefinedPower
from svdctl.utils.files import parse_json

Mode = Literal["limit", "normalize"]
_SMALLEST = 1e-12
"""Norms up to this are not divided by: the weight stays as it is, as of zeros."""
_MATRIX_TOLERANCE = 5e-5
_MARGIN = (
    1e-4  # below the maximum; what bounds the scaled kernel again cannot prove maxima closer than 1e-6 to the norm
)
_MATRIX_MARGIN = 2e-5
_CLOSEST = 1e-5  # below the maximum, for proofs of kernels as they are stored in half precision
_MOST_ROUNDS = 20


_NO_CHECKSUM = "0" * 16
"""Stands where no power step was made; as long as any checksum, so that states of one layer are of one size."""


class Memory:
    """What is known of the last weight that was seen; a copy of the module has a memory of its own.

    Operators of torch take numbers and tensors alone: they find it by its `handle`.
    """

    _handles = itertools.count(1)
    _all: ClassVar["WeakValueDictionary[int, Memory]"] = WeakValueDictionary()

    def __init__(self, checksum: str = _NO_CHECKSUM) -> None:
        self.handle = next(self._handles)
        self._all[self.handle] = self
        self.stepped: Tensor | None = None
        """The weight of the last power step in training; None before the first one and after a state was loaded."""
        self.stored_checksum = checksum
        """Where `stepped` is None, that of the weight of the last power step before the state was stored."""
        self.proved: tuple[Tensor, tuple[object, ...], Tensor] | None = None
        """A weight, what else its factor depends on, and the factor."""
        self._powers: dict[tuple[object, ...], RefinedPower] = {}

    @classmethod
    def of(cls, handle: int) -> "Memory":
        """Return the memory with a handle; a new one where its module is gone, as in an exported program."""
        return cls._all.get(handle) or cls()

    def checksum(self) -> str:
        """Return the checksum of the weight of the last power step; `_NO_CHECKSUM` where there was none."""
        return self.stored_checksum if self.stepped is None else _checksum(self.stepped)

    def is_stepped_for(self, weight: Tensor) -> bool | Tensor:
        """Return whether the last power step was of this weight; on a CUDA device a tensor `()`, but after loading."""
        if self.stepped is not None:
            return same_bits(weight, self.stepped)
        return self.stored_checksum != _NO_CHECKSUM and self.stored_checksum == _checksum(weight)

    def power(self, conv: Convolution) -> RefinedPower:
        """Return the power iteration for convolutions of this geometry."""
        key = (conv.polyphase_shape, conv.kernel.dtype, conv.kernel.device)
        if key not in self._powers:
            self._powers = {key: RefinedPower(conv)}
        return self._powers[key]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Memory":
        copied = Memory(self.stored_checksum)
        copied.stepped = None if self.stepped is None else self.stepped.clone()
        copied.proved = self.proved  # never written in place
        return copied

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self.checksum(),)


class SpectralNorm(nn.Module):
    """Weight times `max_sigma / sigma`, sigma the norm of the layer's operator at every input size, padding included.

    Buffers, in float32 at least: `vectors` and `place` of the power steps (`RefinedPower`). What does not change is
    kept as Python numbers and stored as JSON in the bytes of `_extra_state`, which conversions and averages of weights
    leave alone.

    Args:
        conv: the operator of the layer; of a linear layer that with one tap.
        max_sigma: the maximum; `learnable`: the exponential of a parameter, which starts at the norm.
        mode: `limit` divides where the norm is above the maximum, `normalize` always.
        padding_factor: at least the norm of the layer over that of its kernel.
    """

    vectors: Tensor
    place: Tensor

    def __init__(
        self, conv: Convolution, *, max_sigma: float | Literal["learnable"], mode: Mode, padding_factor: float = 1.0
    ) -> None:
        super().__init__()
        self.mode: Mode = mode
        self.groups, self.stride, self.dilation = len(conv.kernel), list(conv.stride), list(conv.dilation)
        self.padding_factor = padding_factor
        self.memory = Memory()
        with torch.no_grad(), exact_products():
            power = self.memory.power(conv)
            vectors, place = power.start(conv)
            sigma = float((power.direction(conv, vectors, place) * conv.kernel).sum()) * padding_factor
        self.register_buffer("vectors", vectors)
        self.register_buffer("place", place)
        self.max_sigma: float | None = None
        self.log_max_sigma: nn.Parameter | None = None
        if max_sigma == "learnable":
            start = torch.tensor(math.log(max(sigma, _SMALLEST)), dtype=vectors.dtype, device=vectors.device)
            self.log_max_sigma = nn.Parameter(start)
        else:
            self.max_sigma = float(max_sigma)

    @property
    def maximum(self) -> float:
        """Return the maximum as a number, which of a parameter is read from its device."""
        return _maximum(self.log_max_sigma, self.max_sigma)

    def forward(self, weight: Tensor) -> Tensor:
        geometry = (self.memory.handle, self.groups, self.stride, self.dilation)
        if self.training:
            factor = self._estimate(weight, geometry)
        else:
            bound = None if self.log_max_sigma is None else self.log_max_sigma.detach()
            is_divided = self.mode == "normalize"
            factor = torch.ops.svdctl.proved_factor(
                weight.detach(), bound, self.max_sigma, is_divided, self.padding_factor, *geometry
            )
            if torch.is_grad_enabled() and (weight.requires_grad or self.log_max_sigma is not None):
                estimate = self._estimate(weight, geometry)
                factor = factor + (estimate - estimate.detach())
        return _scaled(weight, factor)

    def _estimate(self, weight: Tensor, geometry: tuple[Any, ...]) -> Tensor:
        """Return the factor by the estimate of the norm (0-d), differentiable; in training the vectors move."""
        direction = torch.ops.svdctl.norm_direction(weight.detach(), self.vectors, self.place, self.training, *geometry)
        sigma = (direction * weight.to(direction.dtype)).sum() * self.padding_factor
        highest: Any = self.max_sigma if self.log_max_sigma is None else self.log_max_sigma.to(direction.dtype).exp()
        is_divided, one = sigma > _SMALLEST, torch.ones_like(sigma)
        ratio = torch.where(is_divided, highest / torch.where(is_divided, sigma, one), one)
        return ratio if self.mode == "normalize" else torch.minimum(ratio, one)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return a copy: what is assigned is scaled as any weight."""
        return weight.clone()

    def get_extra_state(self) -> Tensor:
        """Return what does not change, and for which weight the vectors were stepped, as bytes."""
        told = json.dumps({**self._constants(), "stepped": self.memory.checksum()})
        return torch.tensor(list(told.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over maximum and mode, and whether the next weight needs a power step.

        Raises:
            ShapeError: the state is of a layer with another geometry or padding.
        """
        told, own = constants(state), self._constants()
        for key in ("groups", "stride", "dilation", "padding_factor"):
            if told[key] != own[key]:
                raise ShapeError(f"the spectral norm was stored of a layer with {key} {told[key]}, not {own[key]}")
        if (told["max_sigma"] is None) != (self.max_sigma is None):
            raise ShapeError("max_sigma is learnable in the layer or in what was stored of it, and not in the other")
        self.max_sigma, self.mode = told["max_sigma"], told["mode"]
        self.memory.stepped, self.memory.stored_checksum = None, told["stepped"]

    def _constants(self) -> dict[str, Any]:
        names = ("max_sigma", "mode", "padding_factor", "groups", "stride", "dilation")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        """Return the settings."""
        highest = "learnable" if self.max_sigma is None else f"{self.max_sigma:g}"
        return f"max_sigma={highest}, mode={self.mode}"


def constants(state: Tensor) -> dict[str, Any]:
    """Return what `_extra_state` stores: max_sigma (None: learnable), mode, padding_factor, geometry and a checksum.

    Raises:
        ShapeError: bytes of something else.
    """
    try:
        told = parse_json(bytes(state.tolist()), "_extra_state")
        found: dict[str, Any] = {
            "max_sigma": None if told["max_sigma"] is None else float(told["max_sigma"]),
            "mode": {"limit": "limit", "normalize": "normalize"}[told["mode"]],
            "padding_factor": float(told["padding_factor"]),
            "groups": int(told["groups"]),
            "stride": [int(step) for step in told["stride"]],
            "dilation": [int(step) for step in told["dilation"]],
            "stepped": str(told.get("stepped", _NO_CHECKSUM)),
        }
    except (MalformedFileError, AttributeError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise ShapeError(f"the state of a spectral norm is not one that svdctl stored: {error}") from error
    if found["max_sigma"] is not None and not 0 < found["max_sigma"] < math.inf:
        raise ShapeError(f"the state of a spectral norm has {found['max_sigma']} as its maximum, which is none")
    return found


class StoredNorm(NamedTuple):
    """A layer that was stored with its spectral norm, in evaluation mode."""

    conv: Convolution
    """Its operator, of the weight in its own precision."""
    weight: Tensor
    max_sigma: float
    padding_factor: float


def stored_norm(weight: Tensor, state: Tensor, log_max_sigma: Tensor | None = None) -> StoredNorm:
    """Return what a layer that was stored computes with in evaluation mode.

    Args:
        weight: as stored, before it is scaled.
        state: its `_extra_state`.
        log_max_sigma: where the maximum is learnable.
    """
    told = constants(state)
    maximum = _maximum(log_max_sigma, told["max_sigma"])
    geometry = told["groups"], told["stride"], told["dilation"]
    conv, limit = convolution(weight, *geometry), kernel_limit_of(maximum, told["padding_factor"])
    factor = _proved_factor(weight, conv, limit, is_divided=told["mode"] == "normalize")
    scaled = _scaled(weight, torch.tensor(factor, dtype=conv.kernel.dtype, device=weight.device))
    return StoredNorm(convolution(scaled, *geometry), scaled, maximum, told["padding_factor"])


def convolution(weight: Tensor, groups: int, stride: list[int], dilation: list[int]) -> Convolution:
    """Return the operator by a weight, of which a matrix has one tap."""
    kernel = weight[:, :, None] if weight.ndim == 2 else weight
    return Convolution.make(kernel, stride=tuple(stride), dilation=tuple(dilation), groups=groups)


def _maximum(log_max_sigma: Tensor | None, max_sigma: float | None) -> float:
    if log_max_sigma is not None:
        return math.exp(float(log_max_sigma.detach()))
    assert max_sigma is not None
    return max_sigma


def _scaled(weight: Tensor, factor: Tensor) -> Tensor:
    """Return the product in the weight's precision; half precision is multiplied in float32 and rounded once."""
    return (weight.to(factor.dtype) * factor).to(weight.dtype)


@contextmanager
def _with_conjugates() -> Iterator[None]:
    """Have conjugates and negatives that are views count, which torch ignores in operators under some compilers.

    The first call of a compiled function, and each under inference mode, runs custom operators with the dispatch keys
    excluded that resolve such views: `(x.conj() * 1)` is `x` there.
    """
    keys = (torch._C.DispatchKey.Conjugate, torch._C.DispatchKey.Negative)
    if not any(map(torch._C._dispatch_tls_is_dispatch_key_excluded, keys)):
        yield
        return
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in keys:
        excluded = excluded.remove(key)
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded):
        yield


def _norm_direction(
    weight: Tensor,
    vectors: Tensor,
    place: Tensor,
    is_training: bool,
    memory: int,
    groups: int,
    stride: list[int],
    dilation: list[int],
) -> Tensor:
    """Return the derivative of the estimate of the norm by the weight, in its shape; its product is the estimate.

    In training, vectors and place make a step first, unless the weight is that of the last step: passes of one
    optimiser's step are of one function. Nothing waits for the device.
    """
    kept = Memory.of(memory)
    with torch.no_grad(), exact_products(), _with_conjugates():
        conv = convolution(weight, groups, stride, dilation)
        power = kept.power(conv)
        own_vectors, own_place = vectors.to(conv.kernel), place.to(conv.kernel)
        if is_training:
            is_same = kept.is_stepped_for(weight)
            if is_same is not True:
                moved_vectors, moved_place = power.step(conv, own_vectors, own_place)
                if isinstance(is_same, Tensor):
                    moved_vectors = torch.where(is_same, own_vectors, moved_vectors)
                    moved_place = torch.where(is_same, own_place, moved_place)
                vectors.copy_(moved_vectors)
                place.copy_(moved_place)
                own_vectors, own_place = vectors.to(conv.kernel), place.to(conv.kernel)
            kept.stepped = _noted(weight, kept.stepped)
        return power.direction(conv, own_vectors, own_place).reshape(weight.shape).contiguous()


@torch.no_grad()
def _checksum(weight: Tensor) -> str:
    """Return 16 hexadecimal digits that tell weights apart; a device is read once."""
    plain = weight.contiguous().flatten()
    bits = plain.view(torch.int16 if plain.element_size() == 2 else torch.int32).to(torch.int32)
    factors = torch.arange(1, 2 * len(bits), 2, dtype=torch.int32, device=bits.device)
    return f"{(int((bits * factors).sum()) + 1) % 2**64:016x}"


def _noted(weight: Tensor, before: Tensor | None) -> Tensor:
    """Return a copy of the weight, in the memory of the one before where that suits."""
    if before is None or (before.shape, before.dtype, before.device, before.stride(), before.is_inference()) != (
        weight.shape,
        weight.dtype,
        weight.device,
        weight.stride(),
        torch.is_inference_mode_enabled(),
    ):
        return weight.clone()
    return before.copy_(weight)


def _proved(
    weight: Tensor,
    log_max_sigma: Tensor | None,
    max_sigma: float | None,
    is_divided: bool,
    padding_factor: float,
    memory: int,
    groups: int,
    stride: list[int],
    dilation: list[int],
) -> Tensor:
    """Return the factor by which the weight's operator is proved to be at most its maximum, rounding included (0-d)."""
    kept = Memory.of(memory)
    maximum = _maximum(log_max_sigma, max_sigma)
    key = (maximum, is_divided, padding_factor, groups, tuple(stride), tuple(dilation))
    if kept.proved is None or kept.proved[1] != key or not _is_weight(kept.proved[0], weight):
        conv = convolution(weight, groups, stride, dilation)
        with _with_conjugates():
            factor = _proved_factor(weight, conv, kernel_limit_of(maximum, padding_factor), is_divided=is_divided)
        kept.proved = weight.clone(), key, torch.tensor(factor, dtype=conv.kernel.dtype, device=weight.device)
    return kept.proved[2].to(torch.promote_types(weight.dtype, torch.float32), copy=True)


def _is_weight(known: Tensor, weight: Tensor) -> bool:
    """Return whether a weight is the known one, to the bit; one in float64 too, whose product rounds by less."""
    wider = known.double() if (known.dtype, weight.dtype) == (torch.float32, torch.float64) else known
    return bool(same_bits(wider, weight))


@torch.no_grad()
def _proved_factor(weight: Tensor, conv: Convolution, limit: float, *, is_divided: bool) -> float:
    """Return the factor with which the norm of the scaled, rounded kernel is proved to be at most the limit."""
    if not bool(weight.isfinite().all()):
        return 1.0  # whatever it is, the outputs say so
    is_matrix = math.prod(conv.taps) == 1
    tolerance, margin = (_MATRIX_TOLERANCE, _MATRIX_MARGIN) if is_matrix else (TOLERANCE, _MARGIN)
    upper = norm_bound(conv, tolerance=tolerance, at_most=None if is_divided else limit).upper
    if upper <= (_SMALLEST if is_divided else limit):
        return 1.0
    unit = torch.finfo(conv.kernel.dtype).eps
    if weight.dtype == conv.kernel.dtype:
        room = upper * (1 + margin) + unit * taps_norm(conv.kernel)
        return limit / room * (1 - 4 * unit)
    # Half precision rounds by far more than the margin, and mostly not towards a larger norm.
    factor = limit / (upper * (1 + margin)) * (1 - 4 * unit)
    coarse = torch.finfo(weight.dtype).eps
    for _ in range(_MOST_ROUNDS):
        kernel = _scaled(weight, torch.tensor(factor, dtype=conv.kernel.dtype, device=weight.device))
        rounded = conv.with_kernel(kernel.to(conv.kernel.dtype).reshape(conv.kernel.shape))
        if is_bounded(rounded, limit * (1 - _CLOSEST)):
            return factor
        found = norm_bound(rounded, tolerance=tolerance).upper
        factor *= min(limit / (found * (1 + margin)), 1 - coarse)
    return limit / (upper * (1 + margin) + coarse / 2 * taps_norm(conv.kernel)) * (1 - 4 * unit)


# What `Memory` keeps is Python's, which a replayed CUDA graph does not run.
_TAGS = tuple(tag for name in ("cudagraph_unsafe",) if (tag := getattr(torch.Tag, name, None)) is not None)
_direction_op = torch.library.custom_op(
    "svdctl::norm_direction", _norm_direction, mutates_args=("vectors", "place"), tags=_TAGS
)
_factor_op = torch.library.custom_op("svdctl::proved_factor", _proved, mutates_args=(), tags=_TAGS)


@_direction_op.register_fake
def _(weight: Tensor, vectors: Tensor, place: Tensor, is_training: bool, *geometry: Any) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return torch.empty(weight.shape, dtype=dtype, device=weight.device)


@_factor_op.register_fake
def _(weight: Tensor, *settings: Any) -> Tensor:
    return torch.empty((), dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
