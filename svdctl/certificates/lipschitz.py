"""Bounds for whole networks: how far an output can move with the image, and how far from it rounding can lead."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from svdctl.certificates.interpreter import ProvedLayer, prove, tensors_of
from svdctl.certificates.traced_tensor import Contribution
from svdctl.errors import ShapeError
from svdctl.layers.shapes import image_sizes
from svdctl.spectral.exact_arithmetic import exact_arithmetic
from svdctl.utils.escapes import html_text
from svdctl.utils.rounded_figures import at_most


@dataclass(frozen=True)
class LipschitzBound:
    """A proved l2 Lipschitz constant of a network with respect to the pixels of its input, in evaluation mode."""

    value: float
    """The constant, rounded up."""
    layers: tuple[Contribution, ...]
    """What each layer and function adds, in the order of the pass; functions of gain 1 are left out."""

    def by_kind(self) -> dict[str, float]:
        """Return the product of all factors of each kind; without sums and concatenations their product is L."""
        totals: dict[str, float] = {}
        for layer in self.layers:
            for kind, factor in layer.factors.items():
                totals[kind] = totals.get(kind, 1.0) * factor
        return totals

    def _repr_html_(self) -> str:
        """Return the same as HTML, which a notebook shows."""
        return f"<pre>{html_text(str(self))}</pre>"

    def __str__(self) -> str:
        lines = [f"Lipschitz constant at most {at_most(self.value, 6)} (l2, per pixel unit)"]
        width = max((len(layer.name) for layer in self.layers), default=0)
        for layer in self.layers:
            parts = ", ".join(f"{kind} {at_most(factor, 6)}" for kind, factor in layer.factors.items())
            lines.append(f"  {layer.name:<{width}}  {layer.kind:<16}  {parts}  ->  {at_most(layer.lipschitz, 6)}")
        return "\n".join(lines)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first tensor."""
    return next((tensor.device for tensor in tensors_of(model)), torch.device("cpu"))


def own_dtype(model: nn.Module) -> torch.dtype:
    """Return float64 for a model that holds any float64 tensor, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors_of(model)) else torch.float32


def zero_image(model: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype | None) -> torch.Tensor:
    """Return the image that a pass is made around, by default of the network's own precision.

    Raises:
        ShapeError: for what is no network, or no shape.
    """
    if not isinstance(model, nn.Module):
        raise ShapeError(f"a bound is proved of a torch.nn.Module, not of a {type(model).__name__}")
    return torch.zeros(1, *image_sizes(input_shape), dtype=dtype or own_dtype(model), device=device_of(model))


def grey_image(model: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return the middle of [0, 1]^n, around which certificates are proved; raises as `zero_image`."""
    return zero_image(model, input_shape, dtype) + 0.5


def lipschitz_bound(
    model: nn.Module, input_shape: tuple[int, ...], *, tolerance: float | None = None
) -> LipschitzBound:
    """Bound the l2 Lipschitz constant of a network, from pixels to outputs, in evaluation mode.

    The network is followed through its Python code on one image, so loops and shape checks are fine; whatever depends
    on the image's numbers, or has no rule, is an error that names the function and the module. Constants multiply along
    a path, add up in sums, and their squares add up in concatenations. Functions such as `exp`, `log` and powers, and
    products and quotients of two values, have constants where the ranges of their inputs are known and bounded enough,
    as after a clamp or a sigmoid. The bound is about real arithmetic with the weights as they are (parametrised ones in
    the model's precision); `rounding_bound` has the rest. A network that gives another output when it is run again,
    with gradients or without, or that changes while it runs, is refused; so is one that catches the trace's refusals,
    and one whose frozen copy gives other outputs than it gives itself. Weights that pruning, weight_norm and
    spectral_norm of torch.nn.utils compute in a hook are taken as computed, and networks that torch.compile wrapped as
    they were written.

    Presumed is that the network is a function of its image and of its modules, attributes, closures and globals. Its
    code may be made to do something else by what the tests see nothing of: by the type of its input or the inference
    mode, torch's flags, files, clocks or its callers, and by a difference that shows at none of the images tried (the
    centre and a few random ones) or is as small as rounding. That it treats the images of a batch one by one is
    presumed too.

    Args:
        model: any module from one image batch to one tensor; it is left as it is.
        input_shape: one image without the batch axis, `(C, H, W)`.
        tolerance: how far the norm of each kernel may be overestimated, relatively; by default what costs little, see
            `layer_gain`.

    Raises:
        ShapeError: an operation or an argument without a rule, complex tensors, weights that are not finite, BatchNorm
            without running statistics, a network that does not compute the same each time; no module, or no shape.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32, 2))
    >>> bound = svdctl.lipschitz_bound(net, (3, 4, 4))
    >>> parts = [svdctl.spectral_norm_bound(net[index]).lower for index in (0, 3)]
    >>> parts[0] * parts[1] <= bound.value * 1.05
    True
    """
    return bound_of_proved_layers(model, input_shape, {}, tolerance=tolerance)


def bound_of_proved_layers(
    model: nn.Module,
    input_shape: tuple[int, ...],
    proved: Mapping[str, ProvedLayer],
    *,
    tolerance: float | None = None,
) -> LipschitzBound:
    """Return `lipschitz_bound`, with norms of layers that are proved already, by name.

    Each is used where the layer, as the network runs, holds what it held then, bit for bit.
    """
    with torch.inference_mode(False), exact_arithmetic(torch.get_default_dtype()):
        centre = zero_image(model, input_shape, None)
        _, result = prove(model, centre, tolerance=tolerance, proved=proved)
    return LipschitzBound(result.bounds.lipschitz, result.contributions)


def certificate_bound(
    model: nn.Module,
    input_shape: tuple[int, ...],
    maxima: Mapping[str, float],
    proved: Mapping[str, ProvedLayer] | None = None,
) -> LipschitzBound:
    """Return the constant that a `Certifier` of these maxima has: of the network in float64.

    Args:
        model, input_shape: as in `lipschitz_bound`.
        maxima: as of `Certifier`.
        proved: what is proved of its layers in float64 already, by name, in the way in which it would be proved here.
    """
    with torch.inference_mode(False), torch.no_grad(), exact_arithmetic(torch.get_default_dtype()):
        grey = grey_image(model, input_shape, torch.float64)
        _, result = prove(model, grey, maxima=maxima, proved=proved)
    return LipschitzBound(result.bounds.lipschitz, result.contributions)


def rounding_bound(
    model: nn.Module,
    input_shape: tuple[int, ...],
    dtype: torch.dtype,
    input_norm: float,
    *,
    tolerance: float | None = None,
) -> float:
    """Bound `|computed outputs - exact outputs|_2` over all images of norm at most `input_norm`.

    It is an a-priori bound. It presumes IEEE arithmetic in `dtype`, sums of products in any order, with or without
    fused multiply-add, and elementary functions to 8 unit roundoffs. It does not cover TF32, bfloat16 products inside
    float32, or convolutions by Winograd or FFT; float64 convolutions are never computed in these ways.

    It grows with the width: about `1e-16 * inputs per output` relative in each layer in float64, where it is harmless.
    In float32 the true error is some 1e-6, but what can be proved for wide networks is often no better than 1.

    Args:
        model: as in `lipschitz_bound`; evaluated in `dtype`, weights converted.
        input_shape: `(C, H, W)`.
        dtype: float64 or float32.
        input_norm: Euclidean norm over all pixels; at most `sqrt(C H W)` for images in [0, 1].
        tolerance: as in `lipschitz_bound`.
    """
    centre = zero_image(model, input_shape, dtype)
    with (
        torch.inference_mode(False),
        exact_arithmetic(torch.get_default_dtype(), direct_convolutions=dtype == torch.float32),
    ):
        error = prove(model, centre, tolerance=tolerance)[1].error(input_norm)
    return error if not math.isnan(error) else math.inf
