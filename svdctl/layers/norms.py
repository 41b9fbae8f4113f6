"""Proved norms of layers as they run: kernel, padding and the reading of TT frames, rounding included."""

import hashlib
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from svdctl.layers.layer_operator import exact_operators
from svdctl.layers.padding import kernel_limit_of, padding_factor
from svdctl.layers.spectral_norm import SpectralNorm
from svdctl.layers.stored_weight import evaluation_mode
from svdctl.spectral.bounds import TOLERANCE, Bracket, are_bounded, norm_bounds
from svdctl.spectral.convolution import Convolution

_STATED = "_stated_maximum"


def stated_maximum(layer: nn.Module) -> float | None:
    """Return the maximum that the layer's own parametrization says its norm has; None: it says nothing.

    It is no proof: the weight may be another by now.
    """
    if not is_parametrized(layer, "weight"):
        return vars(layer).get(_STATED)
    last = layer.parametrizations.weight[-1]  # type: ignore[union-attr, index]
    return last.maximum if isinstance(last, SpectralNorm) else None


def state_maximum(layer: nn.Module, max_sigma: float | None) -> None:
    """Let a layer state the maximum of a parametrization that has been taken away from it."""
    if max_sigma is not None:
        vars(layer)[_STATED] = max_sigma


@torch.no_grad()
def compute_stated_weights(model: nn.Module) -> None:
    """Have each layer with a spectral norm prove the factor of its weight, which copies in other precisions keep."""
    for layer in model.modules():
        if is_parametrized(layer) and stated_maximum(layer) is not None:
            with evaluation_mode(layer):
                _ = layer.weight


def layer_norm_bound(layer: nn.Module, *, tolerance: float = TOLERANCE, maximum: float | None = None) -> Bracket:
    """Return a proved bracket of a layer's norm over every input size.

    The lower end is reached in the limit of large inputs, where the edges tell little.

    Args:
        layer: a convolution, linear or TT layer.
        tolerance: wanted `upper / lower - 1` of the norm of its kernel; padding that repeats pixels has a factor.
        maximum: a maximum that is proved instead, where that is possible and sharper; absent, or above it, the one that
            the layer's spectral norm states.

    Raises:
        ShapeError: a layer that is not known or need not compute with its weight as it is stored.
    """
    return layer_norm_bounds([layer], tolerance=tolerance, maxima=[maximum])[0]


def layer_norm_bounds(
    layers: Sequence[nn.Module],
    *,
    tolerance: float | Sequence[float] = TOLERANCE,
    maxima: Sequence[float | Sequence[float] | None] | None = None,
) -> list[Bracket]:
    """Return `layer_norm_bound` of each layer, all refined together.

    Args:
        layers: any number.
        tolerance: of all, or of each.
        maxima: of each: none, one, or several, of which the least that can be proved counts.

    Raises:
        ShapeError: as `layer_norm_bound`, of any of them.
    """
    given = [None] * len(layers) if maxima is None else maxima
    tolerances = [tolerance] * len(layers) if isinstance(tolerance, int | float) else tolerance
    asked = [_ascending(each, stated_maximum(layer)) for layer, each in zip(layers, given, strict=True)]
    found = _norm_bounds(layers, tolerances, [each[0] if each else None for each in asked])
    # What is above a smaller maximum may still be within a larger one.
    for number in range(1, max([2, *map(len, asked)])):
        again = [place for place, own in enumerate(asked) if number < len(own) and found[place].upper > own[number]]
        beyond = _norm_bounds(
            [layers[place] for place in again],
            [tolerances[place] for place in again],
            [asked[place][number] for place in again],
        )
        for place, bracket in zip(again, beyond, strict=True):
            found[place] = bracket
    return found


def bounds_within(
    layers: Sequence[nn.Module],
    maxima: Sequence[float | None],
    *,
    tolerance: float | Sequence[float],
    others: Sequence[Sequence[float]] | None = None,
) -> list[Bracket]:
    """Return `layer_norm_bounds` of each layer, its maximum in place of the upper end wherever that is proved.

    Args:
        layers: any number.
        maxima: of each; None: it has none.
        tolerance: of all, or of each.
        others: further numbers that the bound of each is held against; none if absent.

    Raises:
        ShapeError: as `layer_norm_bounds`.
    """
    further = [()] * len(layers) if others is None else others
    questions = [[*own, *([] if maximum is None else [maximum])] for own, maximum in zip(further, maxima, strict=True)]
    found = layer_norm_bounds(layers, tolerance=tolerance, maxima=questions)
    open_ = {
        place: maximum
        for place, maximum in enumerate(maxima)
        if maximum is not None and found[place].lower <= maximum < found[place].upper
    }
    # The proof by which a run has sealed its layers decides about norms that are closer to the maximum.
    proved = are_layers_bounded([layers[place] for place in open_], list(open_.values()))
    for (place, maximum), is_proved in zip(open_.items(), proved, strict=True):
        if is_proved:
            found[place] = Bracket(found[place].lower, maximum)
    return found


def _ascending(given: float | Sequence[float] | None, stated: float | None) -> list[float]:
    """Return the maxima that a layer's norm is held against, the least first."""
    several = [given] if given is None or isinstance(given, int | float) else given
    return sorted({maximum for maximum in (*several, stated) if maximum is not None})


def _norm_bounds(
    layers: Sequence[nn.Module], tolerances: Sequence[float], maxima: Sequence[float | None]
) -> list[Bracket]:
    """Return `layer_norm_bound` of each layer, its maximum proved instead where that is possible and sharper."""
    read = exact_operators(layers)
    limits = [
        None if maximum is None else kernel_limit(layer, maximum, error)
        for layer, maximum, (_, error) in zip(layers, maxima, read, strict=True)
    ]
    places = _first_of_equals([conv for conv, _ in read], list(zip(tolerances, limits, strict=True)))
    firsts = [place for place, first in enumerate(places) if place == first]
    proved = norm_bounds(
        [read[place][0] for place in firsts],
        tolerance=[tolerances[place] for place in firsts],
        at_most=[limits[place] for place in firsts],
    )
    of_firsts = dict(zip(firsts, proved, strict=True))
    kernels = [of_firsts[place] for place in places]
    found = []
    for layer, (_, error), kernel, limit, maximum in zip(layers, read, kernels, limits, maxima, strict=True):
        upper = layer_norm(kernel.upper, error, padding_factor(layer))
        if maximum is not None and limit is not None and kernel.upper <= limit:
            upper = min(upper, maximum)  # rounding alone would exceed it
        found.append(Bracket(max(kernel.lower - error, 0.0), upper))
    return found


def _first_of_equals(convs: Sequence[Convolution], asked: Sequence[object]) -> list[int]:
    """Return for each convolution the place of the first one of equal entries, bit for bit, of which the same is asked.

    On other devices than a CPU every convolution is its own: to compare entries would wait for them.
    """
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, conv in enumerate(convs):
        key = conv.kernel.shape, conv.kernel.dtype, conv.stride, conv.dilation, conv.transposed, asked[place]
        alike.setdefault(key if conv.kernel.device.type == "cpu" else (place,), []).append(place)
    firsts = list(range(len(convs)))
    for places in alike.values():
        known: dict[bytes, int] = {}
        for place in places if len(places) > 1 else ():
            entries = convs[place].kernel.detach().contiguous().flatten().view(torch.uint8)
            firsts[place] = known.setdefault(hashlib.blake2b(entries.numpy().data).digest(), place)
    return firsts


def is_layer_bounded(layer: nn.Module, max_sigma: float) -> bool:
    """Return whether a layer's norm is proved to be at most `max_sigma` at every input size."""
    return are_layers_bounded([layer], [max_sigma])[0]


def are_layers_bounded(layers: Sequence[nn.Module], max_sigmas: Sequence[float]) -> list[bool]:
    """Return `is_layer_bounded` of each layer and its own maximum, all proved together."""
    read = exact_operators(layers)
    limits = [
        kernel_limit(layer, max_sigma, error)
        for layer, max_sigma, (_, error) in zip(layers, max_sigmas, read, strict=True)
    ]
    return are_bounded([conv for conv, _ in read], limits)


def kernel_limit(layer: nn.Module, max_sigma: float, error: float = 0.0) -> float:
    """Return what the norm of a layer's kernel may be, so that the norm of the layer is at most `max_sigma`."""
    return kernel_limit_of(max_sigma, padding_factor(layer), error)


def layer_norm(kernel_norm: float, error: float, factor: float) -> float:
    """Return at least the norm of a layer, given its kernel's, the error of reading it, and the padding's factor."""
    if factor == 1.0 and error == 0.0:
        return kernel_norm
    return (kernel_norm + error) * factor * (1 + 2.0**-50)
