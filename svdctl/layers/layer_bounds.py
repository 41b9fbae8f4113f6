"""The proved gain of one layer: its Lipschitz constant in l2, and what rounding adds to a pass through it.

docs/theory.md, "Rounding of a pass", has the proofs. Tolerances are for speed.
"""

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from svdctl.errors import ShapeError
from svdctl.layers.layer_ops import LayerOps, find_ops, known_class, ops_of
from svdctl.layers.stored_weight import forwards_as, read_flags, same_bits, tensor_of_own_class
from svdctl.spectral.bounds import TOLERANCE, norm_bound, norm_bounds
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.gram import operations_of_grams
from svdctl.spectral.rounding import gamma, times

FINEST = 1e-6
_TIGHT, _AFFORDABLE, _WIDE = 1e-3, 1e-2, 128
_LARGE = 2e10  # operations of a matrix's Gram product


@dataclass(frozen=True)
class Gain:
    """Proved Lipschitz constant of a layer, as a product of factors by kind of slack."""

    factors: dict[str, float]
    """`norm` (of the operator), `frames`, `series` (truncated exponential), `normalisation`, `batchnorm`, ..."""
    rounding: Callable[[float], float]
    """Unit roundoff to `c`: a pass errs by at most `c |x|`, bias left out."""
    bias: Tensor | None = None
    """`(channels,)`; added at every position."""
    terms: int = 0
    """Roundings that a bias can take part in."""
    is_affine: bool = False
    """Whether the layer is a linear map and a bias, for a batch of images one by one."""
    enlarged: float = 1.0
    """What later stages of the layer make of an error of 1 in earlier ones, at most; of underflow, that is."""
    is_broadcast: bool = False
    """Whether the layer may repeat its input's entries, each as often, which this gain does not count."""

    @property
    def value(self) -> float:
        """Return the product of the factors, rounded up."""
        return times(*self.factors.values()) * (1 + 2.0**-50)


def forward_of(layer: nn.Module) -> type | None:
    """Return the class that a gain is known for; None if it is not, or not for this layer's own forward or tensors."""
    known = known_class(layer) if _has_gain(layer) else None
    if known is None or not forwards_as(layer, known) or tensor_of_own_class(layer) is not None:
        return None
    return known


def _has_gain(layer: nn.Module) -> bool:
    """Return whether a `gain` is there that was written for the classes which the layer's `LayerOps` lists."""
    ops = find_ops(layer)
    if ops is None:
        return False
    owner = next(base for base in type(ops).__mro__ if "gain" in vars(base))
    # Derived from another type with modules of its own, it takes over how to read them, not what is proved of a pass.
    return owner is not LayerOps and getattr(owner, "modules", ops.modules) is ops.modules


def exact(_unit: float) -> float:
    """Return the rounding of a layer that only moves numbers."""
    return 0.0


def layer_gain(layer: nn.Module, *, tolerance: float | None = None) -> Gain:
    """Return the proved l2 gain of a layer in evaluation mode, for inputs of every size: `gain` of its `LayerOps`.

    A forward pass with a gain is not looked into.

    Args:
        layer: the layer; parametrised weights are taken as they are now.
        tolerance: how far the norm of a kernel of several taps may be overestimated, relatively; by default what costs
            little, 0.001 up to 128 channels and 0.01 above.

    Raises:
        ShapeError: for a type of layer that is not known.
    """
    name = type(layer).__name__
    if not _has_gain(layer):
        raise ShapeError(f"no gain is known for a layer of type {name}; give it one with svdctl.register_layer")
    found = ops_of(layer).gain(layer, tolerance=tolerance)
    if not isinstance(found, Gain):
        raise ShapeError(f"the gain of a {name} is a {type(found).__name__}, not a Gain")
    return found


def absolute_norm(conv: Convolution) -> float:
    """Return at least the norm of the convolution with the kernel's absolute values."""
    kernel = conv.polyphase().double().abs().flatten(3)
    rows, columns = torch.stack([kernel.sum(axes).max() for axes in ((2, 3), (1, 3))]).tolist()
    return times(math.sqrt(rows), math.sqrt(columns)) * (1 + 1e-10)


def summands(conv: Convolution) -> int:
    """Return at least the number of products in one output entry, of the convolution and of its adjoint."""
    return max(conv.kernel.shape[1:3]) * math.prod(conv.taps)


def matrix_tolerance(operations: float) -> float:
    """Return how far the norm of a matrix may be overestimated, relatively, given the operations of its Gram matrix."""
    return _TIGHT if operations > _LARGE else FINEST


def tolerance_for(conv: Convolution, tolerance: float | None = None) -> float:
    """Return how far the norm of a convolution may be overestimated, relatively; see `layer_gain`.

    Args:
        conv: the convolution.
        tolerance: of kernels with several taps; None: what costs little.
    """
    if math.prod(conv.taps) == 1:
        return matrix_tolerance(operations_of_grams(conv))
    if tolerance is not None:
        return tolerance
    return _TIGHT if min(conv.polyphase_shape[1:3]) <= _WIDE else _AFFORDABLE


def sharp_tolerance(conv: Convolution) -> float:
    """Return the tolerance of bounds of a checkpoint's layers: `tolerance_for` by default, and at most `TOLERANCE`."""
    return min(tolerance_for(conv), TOLERANCE)


def norm_above_of(conv: Convolution, tolerance: float | None, at_most: float | None = None) -> float:
    """Return at least the norm of a convolution; that of a matrix to 1e-6, or where that takes long to 1e-3.

    Args:
        conv: the convolution.
        tolerance: of kernels with several taps.
        at_most: a maximum that is proved instead, where that is possible and sharper.
    """
    tolerance = tolerance_for(conv, tolerance)
    norms = _norms_of_gain.get()
    if norms is None:
        return times(norm_bound(conv, tolerance=tolerance, at_most=at_most).upper)
    return norms.above(conv, tolerance, at_most)


_Question = tuple[Convolution, float, float | None]
"""A convolution, and the tolerance and maximum by which its norm is asked for."""


def proved_norm() -> float | None:
    """Return at least the norm of the layer whose gain is computed, where `layer_gains` was given it; else None."""
    norms = _norms_of_gain.get()
    return None if norms is None else norms.proved


class _NormsOfGain:
    """The norms that the gain of one layer is made of: noted when it is computed first, given when it is again."""

    def __init__(self, proved: float | None) -> None:
        self.proved = proved
        self.asked: list[_Question] = []
        self.known: list[float] | None = None
        self.same: list[bool | Tensor] = []
        """Whether each norm given was of what was asked for."""
        self._given = 0

    def above(self, conv: Convolution, tolerance: float, at_most: float | None) -> float:
        if self.known is None:
            # A copy: the layer's own memory, or a gain's scratch, may hold something else by then.
            self.asked.append((conv.with_kernel(conv.kernel.clone()), tolerance, at_most))
            return 1.0
        place, self._given = self._given, self._given + 1
        if place < len(self.asked):
            self.same.append(_is_same(self.asked[place], (conv, tolerance, at_most)))
            return times(self.known[place])
        return times(norm_bound(conv, tolerance=tolerance, at_most=at_most).upper)


_norms_of_gain: ContextVar[_NormsOfGain | None] = ContextVar("norms of a gain", default=None)


def _is_same(first: _Question, second: _Question) -> bool | Tensor:
    """Return whether both ask for one norm: of equal kernels, to the bit, in one way. See `same_bits`."""
    (one, *one_limits), (other, *other_limits) = first, second
    alike = (one.stride, one.dilation, one_limits) == (other.stride, other.dilation, other_limits)
    return alike and same_bits(one.kernel, other.kernel)


def layer_gains(
    layers: Sequence[nn.Module], *, tolerance: float | None = None, proved: Sequence[float | None] | None = None
) -> list[Gain]:
    """Return `layer_gain` of each layer, their norms proved together: gains are computed twice, norms once.

    Args:
        layers: any number.
        tolerance: of all.
        proved: at least the norm of each layer at every input size, its padding counted, where it is known already.

    Raises:
        ShapeError: as `layer_gain`, of any of them.
    """
    norms = [_NormsOfGain(upper) for upper in ([None] * len(layers) if proved is None else proved)]

    def gain(place: int) -> Gain:
        token = _norms_of_gain.set(norms[place])
        try:
            return layer_gain(layers[place], tolerance=tolerance)
        finally:
            _norms_of_gain.reset(token)

    found = [gain(place) for place in range(len(layers))]
    asking = [place for place, own in enumerate(norms) if own.asked]
    asked = [question for place in asking for question in norms[place].asked]
    brackets = iter(
        norm_bounds(
            [conv for conv, _, _ in asked],
            tolerance=[tolerance for _, tolerance, _ in asked],
            at_most=[at_most for _, _, at_most in asked],
        )
    )
    for place in asking:
        norms[place].known = [next(brackets).upper for _ in norms[place].asked]
        found[place] = gain(place)
    flags = iter(read_flags([flag for place in asking for flag in norms[place].same]))
    for place in asking:
        # A gain that did not ask for the same again is computed by itself.
        if not all(list(islice(flags, len(norms[place].same)))):
            found[place] = layer_gain(layers[place], tolerance=tolerance)
    return found


def linear_gain(
    conv: Convolution,
    bias: Tensor | None,
    tolerance: float | None,
    norm: float | None = None,
    at_most: float | None = None,
) -> Gain:
    """Return the gain of a convolution, of its adjoint or (without spatial taps) of a matrix.

    Args:
        conv: the convolution.
        bias: added at every position.
        tolerance: see `norm_above_of`.
        norm: at least its norm, where that is known.
        at_most: see `norm_above_of`.
    """
    absolute, terms = absolute_norm(conv), summands(conv) + 1
    norm = norm_above_of(conv, tolerance, at_most) if norm is None else norm
    return Gain({"norm": norm}, lambda unit: gamma(terms, unit) * absolute, bias, terms, is_affine=True)


def chain_rounding(stages: Sequence[Gain], unit: float) -> float:
    """Return `c` such that linear maps, one after the other, err by at most `c |x|`."""
    error, size = 0.0, 1.0
    for stage in stages:
        local = stage.rounding(unit) * size
        error = stage.value * error + local
        size = stage.value * size + local
    return error


def chain_enlargement(stages: Sequence[Gain]) -> float:
    """Return `Gain.enlarged` of a chain of fewer than 4 linear maps."""
    return 4 * times(*(max(stage.value, 1.0) for stage in stages))


def frame_convolution(frame: Tensor) -> Convolution:
    """Return a matrix `(O, I)` as a convolution of one tap, in float64."""
    return Convolution.make(frame.detach().double()[:, :, None])
