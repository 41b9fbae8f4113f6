"""The spectrum of a network: every layer in order, and what they make together."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from svdctl.analysis.exponential import EXPONENTIAL, exponential_row
from svdctl.analysis.layer import LayerSpectrum, as_it_runs, failed, operator_spectrum
from svdctl.errors import ShapeError, SvdctlError
from svdctl.layers.frames import frame_error
from svdctl.layers.operator import BatchNorm, batchnorm_gain, is_controllable, operator_of
from svdctl.layers.shapes import input_sizes
from svdctl.layers.sott import SOTT
from svdctl.layers.tt import TTConv2d
from svdctl.spectral.bound import Bracket

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOLERANCE = 0.02
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True, eq=False)
class NetworkSpectrum:
    """Rows in the network's order; reads as a table, indexes by name."""

    name: str
    layers: tuple[LayerSpectrum, ...]
    lipschitz: float | None = None
    """Proved l2 Lipschitz constant in evaluation mode, in units of the input; None when the graph is not known."""
    lipschitz_note: str = ""
    """Why there is none."""

    def __iter__(self) -> Iterator[LayerSpectrum]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerSpectrum:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer {name!r}; there are {', '.join(layer.name for layer in self.layers[:8])}, ...")

    @property
    def bound_product(self) -> float:
        """Product of the proved bounds of all analysed layers: the Lipschitz constant of a plain chain of them."""
        return math.prod(layer.bound.upper for layer in self.layers if layer.bound is not None)

    def exceeding(self, max: float) -> tuple[LayerSpectrum, ...]:
        """Convolutions and linear layers whose bound is not proved to be at most `max`, rows without a bound apart."""
        return tuple(
            layer
            for layer in self.layers
            if layer.bound is not None and layer.kind not in ("BatchNorm", "Normalize") and layer.bound.upper > max
        )

    def __repr__(self) -> str:
        from svdctl.analysis.table import text_table

        return text_table(self)

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd

        from svdctl.analysis.records import layer_record

        return pd.DataFrame([layer_record(layer) for layer in self.layers]).set_index("name")

    def plot(self, path: str | Path | None = None, *, max: float | None = None) -> "Figure":
        """Draw singular values against their index, layer by layer, with the proved bounds.

        Args:
            path: also written here; the ending tells the format.
            max: a line at this value in every panel.

        Returns:
            The figure, which a notebook shows.
        """
        from svdctl.analysis.picture import plot_networks

        figure = plot_networks([self], max=max)
        if path is not None:
            figure.savefig(path)
        return figure


@torch.no_grad()
def spectrum(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    name: str = "",
    layers: str | Sequence[str] = "*",
    tolerance: float = TOLERANCE,
    accuracy: str = "full",
    zero_padded: bool = True,
    at_most: float | None = None,
    tell: Callable[[int, int, str], None] | None = None,
) -> NetworkSpectrum:
    """Exact values, proved bounds and brackets of every convolution, linear layer and BatchNorm of any network.

    Args:
        model: any module; it is run once in evaluation mode and left as it was.
        input_shape: one input without the batch axis, `(C, H, W)`.
        name: a title.
        layers: patterns of layer names, as `layer3.*`.
        tolerance: wanted slack of each layer's bound, in that of the network too.
        accuracy: `full`, or `fast`: values to 1e-3 of the largest.
        zero_padded: bracket the norm of each layer with its own padding as well.
        at_most: a maximum that the bounds are also held against, exactly.
        tell: called with (done, total, name) before each layer.

    Raises:
        ShapeError: no layer matches, or the network does not take the input.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
    >>> found = svdctl.spectrum(net, (3, 16, 16))
    >>> [(layer.name, len(layer.values)) for layer in found]
    [('0', 768), ('2', 2048)]
    >>> found["0"].largest <= found["0"].bound.upper
    True
    """
    patterns = (layers,) if isinstance(layers, str) else tuple(layers)
    inner = {f"{key}.core" if key else "core" for key, module in model.named_modules() if isinstance(module, SOTT)}
    modules = {key: module for key, module in model.named_modules() if key not in inner and _is_leaf(module)}
    chosen = {key: module for key, module in modules.items() if any(fnmatchcase(key, p) for p in patterns)}
    if not any(_is_operator(module) for module in chosen.values()):
        if layers == "*":
            raise ShapeError(f"{name or 'the network'} has no convolution and no linear layer to look at")
        near = ", ".join(key for key, module in modules.items() if _is_operator(module))[:300]
        raise ShapeError(f"no layer matches {' or '.join(patterns)}; there are {near}")
    try:
        sizes = input_sizes(model, input_shape, EXPONENTIAL)
    except SvdctlError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first = str(error).splitlines()[0][:200]
        raise ShapeError(f"the network does not take an input of shape {input_shape} ({first})") from error
    rows = []
    for done, (key, module) in enumerate(chosen.items()):
        if tell is not None:
            tell(done, len(chosen), key)
        row = _row(key, module, sizes.get(key), tolerance, accuracy, zero_padded, at_most)
        if row is not None:
            rows.append(row)
    only = None, "only some layers were asked for"
    lipschitz, why = _lipschitz(model, input_shape, tolerance) if layers == "*" else only
    return NetworkSpectrum(name, tuple(rows), lipschitz, why)


def _is_operator(module: nn.Module) -> bool:
    return is_controllable(module) or isinstance(module, EXPONENTIAL)


def _is_leaf(module: nn.Module) -> bool:
    if isinstance(module, _CONTAINERS):
        return False
    if isinstance(module, EXPONENTIAL):
        return True
    return is_controllable(module) or isinstance(module, BatchNorm) or not any(True for _ in module.children())


def _lipschitz(model: nn.Module, input_shape: tuple[int, ...], tolerance: float) -> tuple[float | None, str]:
    from svdctl.certify.lipschitz import lipschitz_bound

    try:
        return lipschitz_bound(model, input_shape, tolerance=tolerance).value, ""
    except SvdctlError as error:
        return None, str(error)


def _row(
    name: str,
    module: nn.Module,
    size: tuple[int, ...] | None,
    tolerance: float,
    accuracy: str,
    zero_padded: bool,
    at_most: float | None,
) -> LayerSpectrum | None:
    kind = type_before_parametrizations(module).__name__
    if isinstance(module, BatchNorm):
        return _batchnorm_row(name, module)
    if isinstance(module, EXPONENTIAL):
        return exponential_row(name, module, size)
    if not is_controllable(module):
        weights = list(module.parameters(recurse=False))
        if not weights:
            return None
        shape = tuple(weights[0].shape)
        return failed(name, kind, shape, f"layers of type {kind} have no spectrum known here")
    conv = operator_of(module)
    known: dict[str, Any] = {"at_most": at_most, "stride": None if isinstance(module, nn.Linear) else conv.stride}
    shape = tuple(conv.weight.shape) if not isinstance(module, nn.Linear) else tuple(module.weight.shape)
    if isinstance(module, TTConv2d):
        shape = (module.out_channels, module.in_channels, *module.kernel_size)
        frames = [frame for frame in (module.frame_in, module.frame_out) if frame is not None]
        known["rank"] = module.rank
        known["frame_error"] = max((float(frame_error(frame)) for frame in frames), default=None)
    if size is None:
        known["note"] = "not reached when the network runs"
    transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    # A transposed convolution is the adjoint of a convolution whose input is its output.
    seen = tuple(n * s for n, s in zip(size, conv.stride, strict=True)) if size and transposed else size
    try:
        row = operator_spectrum(
            name, kind, shape, conv, tolerance=tolerance, input_size=seen, accuracy=accuracy, **known
        )
        padded = None
        if zero_padded and size is not None and not isinstance(module, nn.Linear):
            padded = as_it_runs(module, size, row.bound)
    except ShapeError as error:
        return failed(name, kind, shape, error)
    return LayerSpectrum(**{**vars(row), "input_size": size, "zero_padded": padded})


def _batchnorm_row(name: str, module: BatchNorm) -> LayerSpectrum:
    try:
        gain = float(batchnorm_gain(module))
    except ShapeError as error:
        return failed(name, "BatchNorm", (module.num_features,), error)
    if not math.isfinite(gain):
        return failed(name, "BatchNorm", (module.num_features,), "its statistics or weights are not finite")
    bound = Bracket(gain * (1 - 1e-6), gain * (1 + 1e-6))
    return LayerSpectrum(name, "BatchNorm", (module.num_features,), bound)
