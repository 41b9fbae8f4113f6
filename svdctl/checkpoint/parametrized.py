"""Weights that torch stores in parts: weight_norm and spectral_norm, as hooks (old) and as parametrizations (new).

What is made of the parts is told by their names alone: another rule with the same names, or one more that follows and
stores nothing, leaves no trace in a file. So a weight made here is an assumption, and is called so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

ASSUMED = "torch's {} gives its weight and nothing changes it afterwards"


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
        axis = ", along the axis that its vectors fit best" if self.rule == "spectral_norm" else ""
        return ASSUMED.format(self.rule + axis) if self.rule else ""


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


_NEW = "parametrizations.{0}."
_RULES: tuple[tuple[Callable[..., Tensor | None], tuple[str, ...]], ...] = (
    (weight_norm, (_NEW + "original0", _NEW + "original1")),
    (spectral_norm, (_NEW + "original", _NEW + "0._u", _NEW + "0._v")),
    (spectral_norm, ("{0}_orig", "{0}_u", "{0}_v")),
    (spectral_norm, ("{0}_orig", "{0}_u")),
    (weight_norm, ("{0}_g", "{0}_v")),
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
            tensors = [stored[part] for part in parts]
            known = all(tensor.is_floating_point() and tensor.numel() for tensor in tensors)
            value = rule(*(tensor.double() for tensor in tensors)) if known else None
            return Effective(value, parts, rule.__name__)
    other = "a parametrization that is not weight_norm or spectral_norm"
    return Effective(None, tuple(parametrized), other) if parametrized else None
