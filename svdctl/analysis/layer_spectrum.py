"""The spectrum of one layer: what is exact, what is a bracket, what is proved, each under its own name."""

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from svdctl.errors import ShapeError
from svdctl.spectral.bounds import Bracket
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.operator_norm import padded_norm
from svdctl.spectral.values import singular_values

_PRECISIONS = (torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class LayerSpectrum:
    """One row of `svdctl inspect-spectrum`."""

    name: str
    kind: str
    shape: tuple[int, ...]
    """Of the kernel, `(O, I, *k)`; of a BatchNorm or LayerNorm, how many numbers it scales."""
    bound: Bracket | None = None
    """Proved bracket of the norm over every input size, with the layer's padding (circular: on sizes that its stride
    divides, `input_size` included) and, if the stride is unknown, for every stride."""
    values: Tensor | None = None
    """All non-zero singular values of the layer with circular padding on `input_size`, exact, descending."""
    stride: tuple[int, ...] | None = None
    """None when the file does not tell."""
    input_size: tuple[int, ...] | None = None
    zero_padded: Bracket | None = None
    """Proved bracket of the norm of the layer as it runs: its own padding, on `input_size`."""
    rank: tuple[int, int] | None = None
    """(rank_in, rank_out) of a TT layer."""
    frame_error: float | None = None
    """Largest spectral norm of `U^T U - I` over the frames of a TT layer."""
    note: str = ""
    """What a reader should know of this row; of a row without a bound, why it has none."""
    assumption: str = ""
    """What the row rests on and its file does not tell; with one, nothing of it is proved."""
    by_shape: bool = False
    """Whether the name and the number of axes of a stored weight alone tell that it is a matrix or a kernel."""
    made_of: tuple[str, ...] = ()
    """Names of the tensors that it is made of, where they are not called as those of a layer of its name."""
    has_weights: bool = True
    """Whether it may stand for a layer with weights; False of counters and of parts of a file that are none."""
    maximum: float | None = None
    """Of the run that wrote it, or of its own spectral norm: what `bound` was held against; None: there is none."""
    gate: str = ""
    """Against `max_sigma` and `batchnorm_max`: proved, above, not proved or excepted; empty when it is not held."""

    def _repr_html_(self) -> str:
        """Return the row as HTML, which a notebook shows."""
        from svdctl.analysis.spectrum_table import notebook_html

        return notebook_html([self])

    @property
    def title(self) -> str:
        """Return the name in outputs and in patterns."""
        return self.name or "(top)"

    @property
    def why_not_proved(self) -> str:
        """Return why a layer has no proved bound: what it rests on, or why it was not analysed."""
        return f"it is assumed that {self.assumption}" if self.assumption else self.note

    @property
    def is_proved(self) -> bool | None:
        """Return whether the layer is proved to be within its maximum; None: it has none."""
        if self.maximum is None:
            return None
        return self.bound is not None and not self.assumption and self.bound.upper <= self.maximum

    @property
    def is_normalization(self) -> bool:
        """Return whether the layer scales each channel, so that its bound is a gain and it has no kernel."""
        # A convolution may have any class name, but never so few axes.
        return (self.kind in ("BatchNorm", "LayerNorm") and len(self.shape) == 1) or (
            self.kind == "Normalize" and len(self.shape) in (1, 3) and set(self.shape[1:]) <= {1}
        )

    @property
    def is_analysed(self) -> bool:
        """Return whether the layer has a bound."""
        return self.bound is not None

    @property
    def largest(self) -> float | None:
        """Return the largest singular value with circular padding, exact."""
        return None if self.values is None or len(self.values) == 0 else float(self.values[0])

    @property
    def smallest_nonzero(self) -> float | None:
        """Return the smallest singular value above the rounding of the largest."""
        if self.values is None or self.largest is None:
            return None
        eps = torch.finfo(self.values.dtype).eps
        found = self.values[self.values > self.largest * eps * max(self.shape[:2])]
        return float(found[-1]) if len(found) else None

    @property
    def condition_number(self) -> float | None:
        """Return the largest over the smallest non-zero value."""
        smallest = self.smallest_nonzero
        return None if smallest is None or self.largest is None else self.largest / smallest

    @property
    def stable_rank(self) -> float | None:
        """Return `||A||_F^2 / ||A||_2^2`."""
        if self.values is None or not self.largest:
            return None
        return float((self.values.double() / self.largest).square().sum())


def circular_size(conv: Convolution, size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the least size from this one on that the stride divides."""
    return tuple(math.ceil(n / s) * s for n, s in zip(size, conv.stride, strict=True))


def with_values(
    row: LayerSpectrum,
    conv: Convolution,
    size: tuple[int, ...] | None,
    accuracy: Literal["full", "fast"],
    values: Tensor | None = None,
) -> LayerSpectrum:
    """Return the row with the values of a convolution; an input that the stride does not divide is filled up.

    Args:
        row: without values.
        conv: the convolution.
        size: of its input.
        accuracy: see `singular_values`.
        values: on `circular_size`, where they are known.

    Raises:
        ShapeError: a kernel that is not finite.
    """
    if size is None:
        return row
    notes = [row.note] if row.note else []
    if any(n < (k - 1) * d + 1 for n, k, d in zip(size, conv.taps, conv.dilation, strict=True)):
        notes.append("the input is smaller than the kernel")
    full = circular_size(conv, size)
    if full != size:
        notes.append(f"values on {'x'.join(map(str, full))}, which the stride divides")
    values = singular_values(conv, full, accuracy=accuracy) if values is None else values
    return replace(row, values=values.cpu(), input_size=size, note="; ".join(notes))


# Derivatives, which torch has of nothing that is made in the inference mode.
@torch.inference_mode(False)
@torch.no_grad()
def norm_as_it_runs(module: nn.Module, size: tuple[int, ...]) -> Tensor | None:
    """Return a lower bound of a layer's norm with its own padding on one input size, not read; None if it has none."""
    channels = getattr(module, "in_channels", None)
    if not isinstance(channels, int):
        return None
    precisions = {dtype: deepcopy(module).to(dtype).eval().requires_grad_(False) for dtype in _PRECISIONS}
    for layer in precisions.values():
        if "bias" in layer._parameters:
            # Beside a large bias the outputs would round away.
            layer.register_parameter("bias", None)
    zero = torch.zeros(1, channels, *size, dtype=torch.float64, device=next(module.parameters()).device)
    offsets = {dtype: layer(zero.to(dtype)) for dtype, layer in precisions.items()}

    def linear(x: Tensor) -> Tensor:
        return precisions[x.dtype](x) - offsets[x.dtype]

    return padded_norm(linear, (channels, *size), like=zero)


def as_it_runs(
    module: nn.Module, size: tuple[int, ...], bound: Bracket | None, lower: float | None = None
) -> Bracket | None:
    """Return a proved bracket of a layer's norm with its own padding on one input size.

    Args:
        module: the layer.
        size: of its input.
        bound: of its norm on every size.
        lower: `norm_as_it_runs`, where it is known.
    """
    if bound is None:
        return None
    if lower is None:
        reached = norm_as_it_runs(module, size)
        if reached is None:
            return None
        lower = float(reached)
    if lower > bound.upper * 1.001:
        raise ShapeError(f"it gains {lower:.6g} as it runs, more than its kernel can; it does something else with it")
    return Bracket(min(lower, bound.upper), bound.upper)
