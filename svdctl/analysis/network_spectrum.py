"""Compute the spectrum of a network: singular values and bounds layer by layer, and its Lipschitz constant."""

import itertools
import math
import numbers
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from svdctl.analysis.exponential_spectrum import exponential_row
from svdctl.analysis.layer_spectrum import LayerSpectrum, as_it_runs, circular_size, norm_as_it_runs, with_values
from svdctl.errors import MissingExtraError, ShapeError, SvdctlError, first_line, is_out_of_memory, nearest_few
from svdctl.layers.layer_bounds import FINEST, layer_gain, matrix_tolerance, sharp_tolerance
from svdctl.layers.layer_operator import operator_of, why_not_read
from svdctl.layers.layer_ops import (
    LayerOps,
    NormalizationOps,
    find_ops,
    is_controllable,
    name_patterns,
    ops_of,
    require_module,
)
from svdctl.layers.norms import bounds_within, kernel_limit, stated_maximum
from svdctl.layers.padding import Convolutional, padding_factor
from svdctl.layers.shapes import Calls, image_sizes, observed_calls
from svdctl.layers.stiefel import frame_error
from svdctl.spectral.bounds import Bracket, is_bounded, norm_bound, proofs_heard
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.exact_arithmetic import exact_products
from svdctl.spectral.faster_device import few_batches_are_faster
from svdctl.spectral.gram import kept_grams, on_host, operations_of_grams
from svdctl.spectral.values import all_singular_values, operations_of_values
from svdctl.utils.files import file_path
from svdctl.utils.printable import shown

if TYPE_CHECKING:
    from svdctl.certificates.interpreter import ProvedLayer
    from svdctl.utils.matplotlib_defaults import Figure

TOLERANCE = 0.02
_WIDTH = 80  # columns of a printed spectrum
_PROVING = "bounds of all layers, the costliest first"
_WHOLE = "Lipschitz constant of the whole network, after its layers"
_LONG = 60.0  # seconds from which `log` is told what to expect
OPERATIONS_PER_SECOND = 1.5e10  # of one CPU core, in float64
_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Classes of layers that compute with the numbers that they store; parametrised layers are of others."""
_PROJECTIONS = re.compile(r"(in_proj|out_proj\.|[qkv]_proj)_?(weight|bias)")
"""Names, within attention, of the tensors of its linear maps."""
_GAIN_ERROR = 1e-8  # at least of `channel_gain`; far less than a limited BatchNorm is below its maximum
_GRAMS = 2  # times that a Gram matrix is computed: for the layer's bound and for the network's


@dataclass(frozen=True, eq=False)
class NetworkSpectrum:
    """Rows in the network's order; reads as a table, indexes by name."""

    name: str
    layers: tuple[LayerSpectrum, ...]
    lipschitz: float | None = None
    """Proved l2 Lipschitz constant in evaluation mode, in units of the input; None when the graph is not known."""
    lipschitz_note: str = ""
    """Why there is none, or why another one may be proved elsewhere."""
    origin: tuple[tuple[str, str], ...] = ()
    """Where the weights come from, as names and texts; empty where nobody asked for it."""
    maxima_note: str = ""
    """What is to be known of the maxima that its layers are held against."""

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
        """Return the product of all proved bounds: a Lipschitz constant where the layers form a plain chain."""
        return math.prod(layer.bound.upper for layer in self.layers if layer.bound is not None)

    def exceeding(self, max_sigma: float) -> tuple[LayerSpectrum, ...]:
        """Return the convolutions and linear layers whose bound is above `max_sigma`, not rows without a bound."""
        return tuple(
            layer
            for layer in self.layers
            if layer.bound is not None and not layer.is_normalization and layer.bound.upper > max_sigma
        )

    def __repr__(self) -> str:
        from svdctl.analysis.spectrum_table import text_table

        return text_table(self, width=_WIDTH)

    def _repr_html_(self) -> str:
        """Return the rows as HTML, which a notebook shows."""
        from svdctl.analysis.spectrum_table import notebook_html, totals

        return notebook_html(self.layers, self.name, totals(self))

    def to_frame(self) -> Any:
        """Return the rows as a pandas DataFrame.

        Raises:
            MissingExtraError: pandas is not installed; it is an ImportError too.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError("pandas", "pandas") from error
        from svdctl.analysis.spectrum_table import layer_records

        return pd.DataFrame(layer_records(self)).set_index("name")

    def plot(self, path: str | Path | None = None, *, max_sigma: float | None = None) -> "Figure":
        """Draw singular values against their index, layer by layer, with the proved bounds.

        Args:
            path: also written here; the ending tells the format.
            max_sigma: a line at this value in every panel.

        Returns:
            The figure, which a notebook shows.

        Raises:
            UsageError: a path that is none, or whose ending is no format of pictures.
            OSError: it cannot be written there; it names `path`.
        """
        from svdctl.analysis.spectrum_plot import plot_networks

        figure = plot_networks([self], max_sigma=max_sigma)
        if path is not None:
            figure.write(file_path(path))
        return figure


@dataclass(frozen=True)
class SpectrumRequest:
    """What is to be computed of layers; what `spectrum` does not say stands here."""

    tolerance: float = TOLERANCE
    accuracy: Literal["full", "fast"] = "full"
    zero_padded: bool = True
    at_most: float | None = None
    bounds_only: bool = False
    maxima: Mapping[str, float] = field(default_factory=dict)
    """Of layers by name, of the run that trained them: whether each is within its own is proved exactly, and
    its row says so. A layer under svdctl's spectral norm has that maximum without it."""
    as_certified: bool = False
    """Whether bounds are within `sharp_tolerance`, and the network's Lipschitz constant is that of its certificates."""
    affordable: float = math.inf
    """Seconds of one CPU core that singular values may take; where they take longer, bounds alone are proved."""

    def maximum(self, name: str, module: nn.Module) -> float | None:
        """Return the maximum of a layer: the one that is given, or what its own spectral norm says."""
        return self.maxima.get(name, stated_maximum(module))

    def tolerance_of(self, module: nn.Module) -> float:
        """Return the tolerance of a layer's bound; of a small matrix that of its gain, which costs little."""
        if self.as_certified:
            return sharp_tolerance(operator_of(module))
        return min(self.tolerance, _finest_for_little(module))

    def questions(self, name: str, module: nn.Module) -> list[float]:
        """Return the maxima that a layer's bound is held against."""
        return [maximum for maximum in (self.at_most, self.maximum(name, module)) if maximum is not None]


@dataclass(frozen=True, eq=False)
class _Found:
    """What is known of a layer before its row is made, since it was computed together with other layers'."""

    bound: Bracket | None
    values: Tensor | None
    norm_as_it_runs: float | None


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
    bounds_only: bool = False,
    tell: Callable[[int, int, str], None] | None = None,
    log: Callable[[str], None] | None = None,
) -> NetworkSpectrum:
    """Return exact singular values and proved bounds of every convolution, linear layer and normalisation of a network.

    Args:
        model: any module; it is run in evaluation mode and left as it was. A row of a layer that was then called
            with other weights than it stores has no bound; one that was not called, or whose weights were used by more
            than its own calls, says so as its assumption.
        input_shape: one input without the batch axis, `(C, H, W)`.
        name: a title.
        layers: patterns of layer names, as `layer3.*`.
        tolerance: wanted slack of each layer's bound, in that of the network too.
        accuracy: `full`, or `fast`: values to 1e-3 of the largest.
        zero_padded: bracket the norm of each layer with its own padding as well.
        at_most: a maximum that the bounds are also held against, exactly.
        bounds_only: prove the bound of each layer and nothing else, in a small part of the time: no singular values, no
            norm with the layer's own padding, no Lipschitz constant of the network.
        tell: called with (done, total, name) before each layer, before all with what all of them are bounded for, and
            before the network's Lipschitz constant.
        log: called with one sentence before the work, where it takes more than about a minute on a CPU.

    Raises:
        ShapeError: no layer matches, the network does not take the input, or an argument is none.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
    >>> found = svdctl.spectrum(net, (3, 16, 16))
    >>> [(layer.name, len(layer.values)) for layer in found]
    [('0', 768), ('2', 2048)]
    >>> found["0"].largest <= found["0"].bound.upper
    True
    """
    require_module(model)
    if accuracy not in ("full", "fast"):
        raise ShapeError(f"accuracy is full or fast, not {shown(accuracy)}")
    numbers_given: dict[str, Any] = {"tolerance": tolerance, "at_most": 1.0 if at_most is None else at_most}
    for argument, value in numbers_given.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ShapeError(f"{argument} is a number, not {shown(value)}")
    way: Literal["full", "fast"] = "fast" if accuracy == "fast" else "full"
    request = SpectrumRequest(tolerance, way, zero_padded, at_most, bounds_only)
    return requested_spectrum(model, input_shape, request, name=name, layers=layers, tell=tell, log=log)


@torch.no_grad()
def requested_spectrum(
    model: nn.Module,
    input_shape: tuple[int, ...],
    asked: SpectrumRequest,
    *,
    name: str = "",
    layers: str | Sequence[str] = "*",
    tell: Callable[[int, int, str], None] | None = None,
    tell_proofs: Callable[[int, int, str], None] | None = None,
    log: Callable[[str], None] | None = None,
) -> NetworkSpectrum:
    """Return what is requested of the layers of a network.

    Args:
        asked: what to compute.
        tell_proofs: called with (done, total, what) whenever a layer has its bound, before any of them has a row.
        model, input_shape, name, layers, tell, log: as in `spectrum`.

    Raises:
        ShapeError: as `spectrum`.
    """
    input_shape = image_sizes(input_shape)
    patterns = name_patterns(layers, "layers")
    modules = dict(_with_rows(model))
    chosen = {key: module for key, module in modules.items() if any(fnmatchcase(key, p) for p in patterns)}
    if not any(_is_operator(module) for module in chosen.values()):
        if layers == "*":
            raise ShapeError(f"{name or 'the network'} has no convolution and no linear layer to look at")
        near = nearest_few(patterns, (key for key, module in modules.items() if _is_operator(module)))
        raise ShapeError(f"no layer matches {' or '.join(patterns)}; {near}")
    try:
        calls = observed_calls(model, input_shape, _is_read)
    except SvdctlError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        # What torch and a network's own code raise for an input that does not fit; an error of another kind is a fault
        # of the network, and is shown as it is.
        if is_out_of_memory(error):
            raise
        # Some of torch's functions do not compute in 16 bits and less on a CPU.
        coarse = isinstance(error, NotImplementedError) and any(p.dtype.itemsize < 4 for p in model.parameters())
        hint = "; convert it with .float() first" if coarse else ""
        raise ShapeError(
            f"the network does not take an input of shape {input_shape} ({first_line(error)}){hint}"
        ) from error
    of_projections, made_of = _of_projections(model, calls)
    calls |= of_projections
    rows = []
    chosen = {key: module for key, module in chosen.items() if not _is_pixels(module, calls.get(key))}
    of_values = 0.0 if asked.bounds_only else _seconds_of_values(chosen, calls)
    asked = _affordable(asked, of_values, _seconds_of_grams(chosen, calls), log or (lambda text: None))
    bounds_only = asked.bounds_only
    tell = tell or (lambda done, total, name: None)
    tell(0, len(chosen), _PROVING)
    # Bounds alone ask for the Gram matrices of a kernel once.
    with exact_products(), nullcontext() if bounds_only else kept_grams():
        with nullcontext() if tell_proofs is None else _told_of_proofs(tell_proofs, len(chosen)):
            proved = _bounds_together(chosen, calls, asked)
        whole = {key: bracket for key, bracket in proved.items() if key not in made_of}
        kept = _kept(chosen, whole, asked) if layers == "*" and not bounds_only else {}
        values = {} if bounds_only else _values_together(chosen, calls, asked.accuracy)
        bounded = {key: chosen[key] for key in proved}
        lowers = {} if bounds_only or not asked.zero_padded else _norms_together(bounded, calls)
        for done, (key, module) in enumerate(chosen.items()):
            tell(done, len(chosen), key)
            found = _Found(proved.get(key), values.get(key), lowers.get(key))
            row = _observed_row(key, module, calls.get(key), asked, found)
            maximum = asked.maximum(key, module)
            rows.append(replace(row, maximum=maximum, made_of=made_of.get(key, _factors(key, module))))
    if bounds_only or layers != "*":
        why = "only the bounds of layers were asked for" if bounds_only else "only some layers were asked for"
        return NetworkSpectrum(name, tuple(rows), None, why)
    tell(len(chosen), len(chosen), _WHOLE)
    lipschitz, why = _lipschitz(model, input_shape, asked, kept)
    return NetworkSpectrum(name, tuple(rows), lipschitz, why)


@contextmanager
def _told_of_proofs(tell: Callable[[int, int, str], None], total: int) -> Iterator[None]:
    """Tell how many layers have a bound, of so many in all, while the body proves them together."""
    counts, lock = itertools.count(1), threading.Lock()

    def hear(count: int) -> None:
        # In order, whatever thread ends first; what is asked again counts once more.
        with lock:
            for _ in range(count):
                tell(min(next(counts), total), total, _PROVING)

    with proofs_heard(hear):
        yield


def _affordable(
    asked: SpectrumRequest, of_values: float, of_grams: float, log: Callable[[str], None]
) -> SpectrumRequest:
    """Return what is computed, bounds alone where values take longer than they may; say what takes long.

    Args:
        asked: what is requested.
        of_values: seconds of a core that the singular values take; 0 where none are asked for.
        of_grams: seconds for the Gram matrices that bounds need; the proofs of layers near a maximum take more.
        log: called with a sentence.
    """

    def spelled(seconds: float) -> str:
        return f"{math.ceil(seconds / 60)} minutes" if seconds > _LONG else f"{math.ceil(seconds)} seconds"

    if of_values > asked.affordable:
        log(
            "bounds alone are proved: all singular values of these layers would take about "
            f"{spelled(of_values)} of one CPU core; `every`, `top` or `plot` compute them"
        )
        return replace(asked, bounds_only=True)
    if (seconds := of_values + of_grams) > _LONG:
        what, less = "bounds", ""
        if not asked.bounds_only:
            what, less = "singular values and bounds", "`accuracy` = fast takes less, `bounds_only` far less, and "
        time = spelled(seconds)
        log(f"the {what} of these layers take about {time} of one CPU core; {less}`layers` leaves layers out")
    return asked


@torch.no_grad()
def rows_of_layers(
    layers: Mapping[str, nn.Module],
    sizes: Mapping[str, tuple[int, ...] | None],
    asked: SpectrumRequest,
    *,
    tell: Callable[[int, int, str], None] | None = None,
) -> list[LayerSpectrum]:
    """Return the rows of `spectrum` for layers without a network that calls them.

    Args:
        layers: by name.
        sizes: of the input of each; None: it has a bound and no values.
        asked: what to compute; no layer is run.
        tell: as in `spectrum`.
    """
    asked, rows = replace(asked, zero_padded=False), []
    with exact_products(), kept_grams():
        for done, (name, module) in enumerate(layers.items()):
            if tell is not None:
                tell(done, len(layers), name)
            size = sizes[name]
            call = None if size is None else Calls(sizes=[size])
            row = _observed_row(name, module, call, asked, _Found(None, None, None))
            row = replace(row, maximum=asked.maximum(name, module))
            rows.append(replace(row, note="") if size is None and row.bound is not None else row)
    return rows


def _seconds_of_values(modules: Mapping[str, nn.Module], calls: Mapping[str, Calls]) -> float:
    """Return about how long one CPU core takes for the singular values of layers; 0 for those on other devices."""
    operations = 0.0
    for name, module, conv in _on_the_host(modules, calls):
        size = calls[name].sizes[-1]
        operations += operations_of_values(conv, circular_size(conv, _seen(ops_of(module), conv, size)))
    return operations / OPERATIONS_PER_SECOND


def _seconds_of_grams(modules: Mapping[str, nn.Module], calls: Mapping[str, Calls]) -> float:
    """Return about how long one CPU core takes for the Gram matrices of layers; 0 for those on other devices."""
    found = (operations_of_grams(conv) for _, _, conv in _on_the_host(modules, calls))
    return _GRAMS * sum(found) / OPERATIONS_PER_SECOND


def _on_the_host(
    modules: Mapping[str, nn.Module], calls: Mapping[str, Calls]
) -> Iterator[tuple[str, nn.Module, Convolution]]:
    """Yield the layers that were called, are operators and lie on a CPU, with their operators."""
    for name, module in modules.items():
        sizes = calls[name].sizes if name in calls else []
        if not sizes or not _is_operator(module) or not is_controllable(module) or why_not_read(module) is not None:
            continue
        conv = operator_of(module)
        if not few_batches_are_faster(conv.kernel.device):
            yield name, module, conv


def _is_operator(module: nn.Module) -> bool:
    """Return whether a module is a convolution, a linear layer or another known layer that is no normalisation."""
    return _is_read(module) and not isinstance(find_ops(module), NormalizationOps)


def _is_read(module: nn.Module) -> bool:
    """Return whether a module's row is computed from its stored weights, so that its calls must be observed."""
    ops = find_ops(module)
    return ops is not None and ops.has_spectrum


def _is_pixels(module: nn.Module, call: Calls | None) -> bool:
    """Return whether a module normalises pixels: a `Normalize` whose only input is the network's own."""
    ops = find_ops(module)
    if ops is None or ops.kind != "normalize" or why_not_read(module) is not None or call is None:
        return False
    return call.sees_image and bool(call.sizes) and not call.fault


def _with_rows(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module that is a known layer or has own parameters or buffers, except the parts of known layers."""
    parts: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in parts:
            continue
        ops = find_ops(module)
        if isinstance(ops, NormalizationOps) and not ops.has_row(module):
            continue
        if ops is not None and ops.has_spectrum:
            made_of = [*ops.parts(module), *([module.parametrizations] if is_parametrized(module) else [])]
            parts |= {id(inner) for part in made_of if isinstance(part, nn.Module) for inner in part.modules()}
            if projections := ops.projections(module):
                parts |= {id(inner) for inner in module.modules()}
                yield from ((_inside(name, own), layer) for own, layer in projections.items())
            else:
                yield name, module
        elif _own_numbers(module):
            yield name, module


def _factors(name: str, module: nn.Module) -> tuple[str, ...]:
    """Return the full names of the tensors that a layer's gain is about, where they are not `weight` and `bias`."""
    ops = find_ops(module)
    return tuple(_inside(name, own) for own in ops.factors(module)) if isinstance(ops, NormalizationOps) else ()


def _inside(name: str, own: str) -> str:
    return f"{name}.{own}" if name else own


def _of_projections(
    model: nn.Module, calls: Mapping[str, Calls]
) -> tuple[dict[str, Calls], dict[str, tuple[str, ...]]]:
    """Return what was seen of the linear maps that layers are made of, and which tensors hold them, by name."""
    seen, made_of = {}, {}
    modules = dict(model.named_modules(remove_duplicate=False))  # get_submodule takes no name that is one of a method
    for name, call in calls.items():
        module = modules[name]
        tensors = tuple(_inside(name, own) for own in module.state_dict() if _PROJECTIONS.fullmatch(own))
        for own in ops_of(module).projections(module):
            seen[_inside(name, own)] = Calls([(1,)] if call.sizes else [], call.fault, call.used_by)
            made_of[_inside(name, own)] = tensors
    return seen, made_of


def _own_numbers(module: nn.Module) -> list[torch.Tensor]:
    """Return the parameters and floating-point buffers of a module itself, not of its submodules."""
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return [tensor for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]


def _kept(
    modules: Mapping[str, nn.Module], brackets: Mapping[str, Bracket], asked: SpectrumRequest
) -> "dict[str, ProvedLayer]":
    """Return what is proved of layers, with what they hold now, for the network's Lipschitz constant."""
    from svdctl.certificates.interpreter import ProvedLayer, freeze_copy

    if not asked.as_certified:
        return {name: ProvedLayer.of(modules[name], bracket.upper) for name, bracket in brackets.items()}
    if asked.at_most is not None:
        return {}  # certificates know nothing of that number
    # In float64 they hold the same numbers; what is computed from others is another there.
    return {
        name: ProvedLayer.of(freeze_copy(modules[name], torch.float64), bracket.upper)
        for name, bracket in brackets.items()
        if type(modules[name]) in _PLAIN
    }


def _lipschitz(
    model: nn.Module, input_shape: tuple[int, ...], asked: SpectrumRequest, proved: "Mapping[str, ProvedLayer]"
) -> tuple[float | None, str]:
    """Return the network's proved Lipschitz constant and an empty text, or None and why there is none."""
    from svdctl.certificates.lipschitz import bound_of_proved_layers, certificate_bound

    try:
        if asked.as_certified:
            return certificate_bound(model, input_shape, asked.maxima, proved).value, ""
        return bound_of_proved_layers(model, input_shape, proved, tolerance=asked.tolerance).value, ""
    except SvdctlError as error:
        return None, str(error)


def _observed_row(
    name: str, module: nn.Module, call: Calls | None, asked: SpectrumRequest, found: _Found
) -> LayerSpectrum:
    """Return the row of a layer, with the assumptions and notes that follow from its observed calls."""
    kind, ops = type_before_parametrizations(module).__name__, find_ops(module)
    if ops is not None and not ops.has_spectrum:
        ops = None  # its gain says nothing of the numbers that it carries
    shape = tuple(_own_numbers(module)[0].shape) if ops is None else ops.shape(module)
    unknown = LayerSpectrum(name, ops.title if isinstance(ops, NormalizationOps) else kind, shape)
    if ops is None:
        return replace(unknown, note=f"layers of type {kind} have no spectrum known here")
    try:
        row = _row(unknown, module, ops, [] if call is None else call.sizes, asked, found)
    except ShapeError as error:
        return replace(unknown, note=str(error))
    if call is None or row.bound is None:
        return row
    if call.fault:
        return replace(unknown, note=call.fault)
    if not call.sizes:
        assumption = f"the network computes with it as a {kind} does: it was not reached when the network ran"
    elif call.used_by:
        assumption = f"its weight is not used outside of its own calls, though {call.used_by} takes it there"
    else:
        assumption = ""
    sizes = ", ".join("x".join(map(str, size)) for size in call.sizes)
    several = f"called on {sizes}; the bound is for all of them" if len(call.sizes) > 1 else ""
    note = "; ".join(filter(None, (row.note, "" if row.is_normalization else several)))
    return replace(row, assumption=assumption, note=note)


def _row(
    row: LayerSpectrum,
    module: nn.Module,
    ops: LayerOps,
    sizes: Sequence[tuple[int, ...]],
    asked: SpectrumRequest,
    found: _Found,
) -> LayerSpectrum:
    """Return the row of a layer on the spatial sizes of its inputs.

    Raises:
        ShapeError: why the layer has no bound.
    """
    size = sizes[-1] if sizes else None
    if isinstance(ops, NormalizationOps):
        if (reason := why_not_read(module)) is not None:
            raise ShapeError(reason)
        gain = ops.channel_gain(module)
        provable = (m for m in sorted(asked.questions(row.name, module)) if gain * (1 + _GAIN_ERROR) <= m)
        upper = gain * (1 + 1e-6)
        return replace(row, bound=Bracket(gain * (1 - 1e-6), min(upper, next(provable, upper))))
    if not ops.can_control:
        # Its weight is no linear operator: an exponential, or a layer with a proved gain alone.
        for layer in (module, *ops.parts(module)):
            if (reason := why_not_read(layer)) is not None:
                return replace(row, shape=row.shape[:2], note=reason)
        if (generator := ops.generator(module)) is not None:
            row = exponential_row(row, module, *generator, None if asked.bounds_only else size)
            return replace(row, input_size=size)
        return replace(row, bound=Bracket(0.0, layer_gain(module).value), input_size=size)
    conv = operator_of(module)
    bound = found.bound or _bound(row.name, module, sizes, asked)
    row = replace(
        row,
        bound=bound,
        stride=None if ops.is_linear else conv.stride,
        rank=ops.rank(module),
        frame_error=max((float(frame_error(frame)) for frame in ops.frames(module)), default=None),
        note="not reached when the network runs" if size is None else "",
    )
    known = None if size is None or asked.bounds_only else _seen(ops, conv, size)
    row = with_values(row, conv, known, asked.accuracy, found.values)
    padded = None
    if asked.zero_padded and not asked.bounds_only and size is not None and not ops.is_linear:
        padded = as_it_runs(module, size, bound, found.norm_as_it_runs)
    return replace(row, input_size=size, zero_padded=padded)


def _seen(ops: LayerOps, conv: Convolution, size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the input size of a layer's operator on one of the layer's."""
    # A transposed convolution is the adjoint of a convolution whose input is its output.
    return tuple(n * s for n, s in zip(size, conv.stride, strict=True)) if size and ops.is_adjoint else size


def _called_together(
    modules: Mapping[str, nn.Module], calls: Mapping[str, Calls]
) -> Iterator[tuple[str, nn.Module, LayerOps, tuple[int, ...]]]:
    """Yield the layers of devices, where few large batches are the fastest, that are operators and were called.

    Each comes with its name and the last size that it was called on.
    """
    for name, module in modules.items():
        if name not in calls or not calls[name].sizes or not _is_operator(module) or not is_controllable(module):
            continue
        ops, tensor = ops_of(module), next(module.parameters(), None)
        if tensor is not None and few_batches_are_faster(tensor.device):
            yield name, module, ops, calls[name].sizes[-1]


def _values_together(
    modules: Mapping[str, nn.Module], calls: Mapping[str, Calls], accuracy: Literal["full", "fast"]
) -> dict[str, Tensor]:
    """Return the singular values of layers that are computed together; none if one of them has none.

    The row of each then says of its own why.
    """
    try:
        convs, sizes = {}, []
        for name, module, ops, size in _called_together(modules, calls):
            convs[name] = operator_of(module)
            sizes.append(circular_size(convs[name], _seen(ops, convs[name], size)))
        found = all_singular_values(list(convs.values()), sizes, accuracy=accuracy)
    except ShapeError:
        return {}
    return dict(zip(convs, found, strict=True))


def _norms_together(modules: Mapping[str, nn.Module], calls: Mapping[str, Calls]) -> dict[str, float]:
    """Return `norm_as_it_runs` of layers that are computed together, after one read of the device."""
    found = {}
    for name, module, ops, size in _called_together(modules, calls):
        try:
            norm = None if ops.is_linear else norm_as_it_runs(module, size)
        except ShapeError:
            continue  # its row says why
        if norm is not None:
            found[name] = norm
    return {name: float(norm) for name, norm in zip(found, on_host(list(found.values())), strict=True)}


def _bounds_together(
    modules: Mapping[str, nn.Module], calls: Mapping[str, Calls], asked: SpectrumRequest
) -> dict[str, Bracket]:
    """Return the brackets of layers that are read off their weights; none if one of them has no bound.

    The row of each then says of its own why.
    """
    try:
        chosen = {
            name: module
            for name, module in modules.items()
            if _is_operator(module)
            and is_controllable(module)
            and not _is_unstrided(module, calls[name].sizes if name in calls else [])
        }
        return _brackets(chosen, [asked.tolerance_of(module) for module in chosen.values()], asked)
    except ShapeError:
        return {}


def _brackets(
    modules: Mapping[str, nn.Module], tolerances: Sequence[float], asked: SpectrumRequest
) -> dict[str, Bracket]:
    """Return the bracket of each layer, its maximum proved instead where that is possible and sharper.

    Raises:
        ShapeError: as `bounds_within`.
    """
    others = [[] if asked.at_most is None else [asked.at_most]] * len(modules)
    maxima = [asked.maximum(name, module) for name, module in modules.items()]
    found = bounds_within(list(modules.values()), maxima, tolerance=tolerances, others=others)
    return dict(zip(modules, found, strict=True))


def _finest_for_little(module: nn.Module) -> float:
    """Return the tolerance of a layer's bound that costs little: of a small matrix that of its gain, else infinity."""
    out, channels, *taps = ops_of(module).shape(module)
    operations = 2.0 * out * channels * min(out, channels)
    tolerance = matrix_tolerance(operations)
    return tolerance if math.prod(taps) == 1 and tolerance == FINEST else math.inf


def _is_unstrided(module: nn.Module, sizes: Sequence[tuple[int, ...]]) -> bool:
    """Return whether a layer is bounded at stride 1: it pads circularly and its stride does not divide every size."""
    if not isinstance(module, Convolutional) or module.padding_mode != "circular":
        return False
    stride = operator_of(module).stride
    return any(n % s for size in sizes for n, s in zip(size, stride, strict=True))


def _bound(name: str, module: nn.Module, sizes: Sequence[tuple[int, ...]], asked: SpectrumRequest) -> Bracket:
    """Return the layer's bracket; at stride 1 if it pads circularly and its stride does not divide every size."""
    if _is_unstrided(module, sizes):
        conv = operator_of(module)
        unstrided = replace(conv, stride=(1,) * conv.axes)
        upper = norm_bound(unstrided, tolerance=asked.tolerance).upper * padding_factor(module)
        provable = (
            m
            for m in sorted(asked.questions(name, module))
            if m < upper and is_bounded(unstrided, kernel_limit(module, m))
        )
        return Bracket(0.0, next(provable, upper))
    tolerance = asked.tolerance_of(module) if asked.as_certified else asked.tolerance
    return _brackets({name: module}, [tolerance], asked)[name]
