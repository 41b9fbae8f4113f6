"""Weights that are stored in parts: weight_norm, spectral_norm, orthogonal and pruning, in torch's forms old and new.

What is made of the parts is told by their names alone: another rule with the same names, or one more that follows and
stores nothing, leaves no trace in a file. So a weight made here is an assumption, and is called so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svdctl.errors import ShapeError
from svdctl.layers.orthogonal_weight import orthonormal_weight
from svdctl.layers.spectral_norm import StoredNorm, stored_norm

ASSUMED = "{} gives its weight and nothing changes it afterwards"
_NOT_ORTHONORMAL = 1e-3
"""Largest entry of `B^T B - I` of the base of torch's orthogonal parametrization, in half precision too."""


@dataclass(frozen=True)
class Effective:
    """The tensor that a layer computes with, in evaluation mode."""

    value: Tensor | None
    """None when the parts are known and the rule is not."""
    parts: tuple[str, ...]
    """Names of the stored tensors."""
    rule: str

    @property
    def assumption(self) -> str:
        """Return what the value rests on; empty for a tensor that is stored as it is."""
        return ASSUMED.format(_SAID.get(self.rule, f"torch's {self.rule}")) if self.rule else ""

    @property
    def may_be_orthonormal(self) -> bool:
        """Return whether a map to orthonormal matrices may give the value: none of the other rules does."""
        return self.rule in (orthogonal.__name__, orthonormal.__name__, _OTHER, _UNTOLD)


_SAID = {
    "spectral_norm": "torch's spectral_norm, along the axis that its vectors fit best,",
    "orthogonal": "torch's orthogonal, whose matrices are orthonormal by each of its maps,",
    "orthonormal": "svdctl's orthogonal",
    "iterated_spectral_norm": "the spectral norm of SAGAN's public code, with the vectors that are stored (it iterates "
    "once more at each pass, by which the weight can only shrink),",
}
"""Rules in words, where they are not torch's functions of their names."""


def weight_norm(length: Tensor, direction: Tensor) -> Tensor | None:
    """Return `g * v / ||v||`, the norm over all axes along which `g` has one entry (Salimans and Kingma 2016)."""
    if length.ndim == 0:
        return length * direction / torch.linalg.vector_norm(direction)
    if length.ndim != direction.ndim:
        return None
    axes = [axis for axis in range(length.ndim) if length.shape[axis] == 1]
    if any(length.shape[axis] != direction.shape[axis] for axis in range(length.ndim) if axis not in axes):
        return None
    norm = torch.linalg.vector_norm(direction, dim=axes, keepdim=True) if axes else direction.abs()
    return length * direction / norm


def spectral_norm(original: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor | None:
    """Return `W / (u^T W v)` for the reshaped matrix W (Miyato et al. 2018), its rows the first or the second axis.

    Which of the two is not stored; it is the second in transposed convolutions. Where both fit, the better pair
    of singular vectors decides.
    """
    u = u.flatten()
    found: list[tuple[float, Tensor]] = []
    for axis in range(min(2, original.ndim)):
        matrix = original.movedim(axis, 0).flatten(1) if original.ndim > 1 else original[:, None]
        if matrix.shape[0] != u.numel():
            continue
        right = torch.nn.functional.normalize(matrix.T @ u, dim=0) if v is None else v.flatten()
        if matrix.shape[1] != right.numel():
            continue
        image = matrix @ right
        sigma = torch.dot(u, image)
        found.append((float((image - sigma * u).norm()), original / sigma))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def iterated_spectral_norm(original: Tensor, u: Tensor, v: Tensor) -> Tensor | None:
    """Return `W / (u^T W v)`, the rows of W the first axis: the weight of the pass that stored u and v.

    Later passes of the code that calls its parts so (`weight_bar`, of SAGAN's and others' public code) replace v by the
    unit vector along `W^T u`, then u by that along `W v`. As `||W v'|| >= u^T W v' >= u^T W v`, they divide by at
    least as much.
    """
    matrix = original.flatten(1) if original.ndim > 1 else original[:, None]
    if matrix.shape != (u.numel(), v.numel()):
        return None
    return original / torch.dot(u.flatten(), matrix @ v.flatten())


def operator_norm(stored: Mapping[str, Tensor], name: str = "weight") -> tuple[StoredNorm, tuple[str, ...]] | None:
    """Return a weight with the spectral norm of svdctl and the names of its parts; None of other weights.

    What svdctl stores beside it tells the rule and the geometry, so that nothing is assumed.
    """
    own = _NEW.format(name)
    parts = tuple(part for part in stored if part.startswith(own))
    named = {part.removeprefix(own): stored[part] for part in parts}
    if set(named) - {"0.log_max_sigma"} != {"original", "0.vectors", "0.place", "0._extra_state"}:
        return None
    original, state = named["original"], named["0._extra_state"]
    if state.dtype != torch.uint8 or not original.is_floating_point() or not bool(original.isfinite().all()):
        return None
    try:
        return stored_norm(original, state, named.get("0.log_max_sigma")), parts
    except ShapeError:
        return None


def pruning(original: Tensor, mask: Tensor) -> Tensor | None:
    """Return the product with a mask of the same shape."""
    return original * mask if mask.shape == original.shape else None


def orthogonal(original: Tensor, base: Tensor | None = None) -> Tensor | None:
    """Return the matrices of torch's orthogonal parametrization, as far as the file tells its map.

    Without a base they are those of the Householder map, told by what it alone stores: a diagonal of 1 and -1, which
    gets no gradient. With a base, every map gives `base @ Q` with some orthonormal Q; one matrix has the singular
    values of `base @ Q` for Cayley's, whichever it was.
    """
    if original.ndim < 2:
        return None
    is_wide = original.shape[-2] < original.shape[-1]
    stored = original.mT if is_wide else original
    signs = stored.diagonal(dim1=-2, dim2=-1)
    if not bool((signs.abs() == 1).all()):
        return None
    below = stored.tril(-1)
    if base is None:
        factors = 2 / (1 + below.square().sum(-2))
        found = torch.linalg.householder_product(below, factors) * signs.unsqueeze(-2)
    else:
        height, width = stored.shape[-2:]
        if stored.ndim > 2 or base.shape != (height, height):
            return None
        identity = torch.eye(height, dtype=stored.dtype)
        if float((base.mT @ base - identity).abs().max()) > _NOT_ORTHONORMAL:
            return None
        half = torch.nn.functional.pad(below, (0, height - width)) / 2
        skew = half - half.mT
        found = base @ torch.linalg.solve_ex(identity - skew, identity + skew)[0][:, :width]
    return found.mT if is_wide else found


def orthonormal(original: Tensor, signs: Tensor) -> Tensor | None:
    """Return the weight of svdctl's orthogonal parametrization, matrices of one tap; None of other shapes."""
    if original.ndim < 2 or signs.ndim != 2 or original[0, 0].numel() != 1 or original.shape[0] % len(signs):
        return None
    if signs.shape[1] != min(original.shape[0] // len(signs), original.shape[1]):
        return None
    return orthonormal_weight(original, signs)


_NEW = "parametrizations.{0}."
_RULES: tuple[tuple[Callable[..., Tensor | None], tuple[str, ...]], ...] = (
    (weight_norm, (_NEW + "original0", _NEW + "original1")),
    (spectral_norm, (_NEW + "original", _NEW + "0._u", _NEW + "0._v")),
    (spectral_norm, ("{0}_orig", "{0}_u", "{0}_v")),
    (spectral_norm, ("{0}_orig", "{0}_u")),
    (weight_norm, ("{0}_g", "{0}_v")),
    (iterated_spectral_norm, ("{0}_bar", "{0}_u", "{0}_v")),
    (pruning, ("{0}_orig", "{0}_mask")),
    (orthonormal, (_NEW + "original", _NEW + "0.signs")),
    (orthogonal, (_NEW + "original", _NEW + "0.base")),
    (orthogonal, (_NEW + "original",)),
)
"""Functions, called as torch calls its own, and the names of the parts of the tensor {0}."""


def effective(stored: Mapping[str, Tensor], name: str = "weight") -> Effective | None:
    """Return the tensor `name` of one module, whichever way its parts are stored; None when there is no trace of it."""
    if name in stored:
        return Effective(stored[name], (name,), "")
    parametrized = [part for part in stored if part.startswith(_NEW.format(name))]
    for rule, pattern in _RULES:
        parts = tuple(part.format(name) for part in pattern)
        if set(parametrized) <= set(parts) <= stored.keys():
            value = _made(rule, [stored[part] for part in parts])
            if value is not None or rule is not orthogonal:
                return Effective(value, parts, rule.__name__)
            return Effective(None, parts, _UNTOLD if len(parts) > 1 else _OTHER)
    return Effective(None, tuple(parametrized), _OTHER) if parametrized else None


_OTHER = "a parametrization that is not weight_norm, spectral_norm or orthogonal by Householder's map"
_UNTOLD = "a parametrization such as torch's orthogonal, whose map (matrix_exp, cayley, householder) no file tells,"


def _made(rule: Callable[..., Tensor | None], parts: Sequence[Tensor]) -> Tensor | None:
    """Return what a rule makes of its parts in float64; None of parts that are empty, or of other types."""
    first, *rest = parts
    is_mask = rule in (pruning, orthonormal) and not rest[0].is_complex()
    known = first.is_floating_point() and (is_mask or all(part.is_floating_point() for part in rest))
    return rule(*(part.double() for part in parts)) if known and all(part.numel() for part in parts) else None
