"""Compute the spectra of the networks in files: checkpoints of svdctl, a user's network, or weights alone."""

import itertools
import math
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType, ModuleType

from torch import Tensor, nn

from svdctl.analysis.exponential_spectrum import stored_exponential
from svdctl.analysis.inspect_config import InspectConfig
from svdctl.analysis.layer_spectrum import LayerSpectrum, with_values
from svdctl.analysis.network_spectrum import (
    OPERATIONS_PER_SECOND,
    TOLERANCE,
    NetworkSpectrum,
    SpectrumRequest,
    requested_spectrum,
    rows_of_layers,
)
from svdctl.analysis.spectrum_table import told_by_shape, value_of
from svdctl.checkpoint.checkpoint_file import Checkpoint, network_of, read_checkpoint
from svdctl.checkpoint.file_format import weights_of
from svdctl.checkpoint.library_file import Description, describe, layers_of, load_into_network
from svdctl.checkpoint.model_factory import Misfit, load_model, load_model_leniently, make_model
from svdctl.checkpoint.paper_checkpoints import PAPER_IMAGE_SHAPE, open_paper_network
from svdctl.checkpoint.run_maxima import RunMaxima, run_maxima
from svdctl.checkpoint.stored_layer import StoredLayer, least_norm
from svdctl.checkpoint.stored_layers import stored_layers
from svdctl.checkpoint.stored_skew import SERIES_TERMS
from svdctl.checkpoint.tensors import holds_weights
from svdctl.checkpoint.weight_file import WeightFile, read_tensors
from svdctl.data.data_source import describe as describe_data
from svdctl.errors import CheckpointError, Interrupted, ShapeError, UsageError, nearest_few
from svdctl.layers.layer_ops import find_ops, ops_of
from svdctl.layers.normalize import Normalize
from svdctl.layers.norms import layer_norm
from svdctl.layers.padding import kernel_limit_of
from svdctl.layers.spectral_norm import StoredNorm
from svdctl.models.external_architecture import is_network
from svdctl.plugins import grant_factory, is_factory
from svdctl.spectral.bounds import Bracket, is_bounded, norm_bound
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.gram import bytes_of_bound
from svdctl.spectral.parallel_map import parallel_map
from svdctl.spectral.values import bytes_of_values
from svdctl.utils.atomic_write import require_place
from svdctl.utils.content_hash import file_digest
from svdctl.utils.escapes import one_line
from svdctl.utils.progress import Reporter
from svdctl.utils.rounded_figures import at_most
from svdctl.utils.signals import answer_to_stop

_NO_NETWORK = (
    "the file holds no network; its strides, groups and input sizes are not known, nor its padding: bounds are for "
    "zeros, and for circular padding by no more than the kernel reaches where the stride divides the input"
)
_NO_CALLS = (
    "the file holds layers with their strides, groups and padding, and not how the network calls them: "
    "`svdctl.load` puts it into the network, whose constant `svdctl.spectrum` gives"
)
_OWN = re.compile(
    r"(weight|bias)(_orig|_u|_v|_g|_mask)?|parametrizations\..*|running_(mean|var)|num_batches_tracked"
    r"|mean|std|core|frame_in|frame_out|(core\.)?(kernel|right1|right2|bias)"
)
"""Names, within a layer, of the tensors that a layer's row of the spectrum accounts for."""
_OF_MODULES = frozenset(vars(nn.Module()))
"""Attributes that every module has, as its parameters, buffers and hooks; they are not searched."""
_AFFORDABLE = 10.0
"""Seconds of one CPU core that a gate takes to compute singular values, which it does not need."""
_DEPTH = 6
"""Depth of nested containers that are searched for tensors."""
_REPORTS = ("report.md", "report.html", "report.json")
"""Files that stand beside run folders and hold no weights."""


def run(config: InspectConfig, reporter: Reporter | None = None) -> list[NetworkSpectrum]:
    """Return the spectrum of each file, draw them to `config.plot` and write them to `config.html`.

    Of several places, as of `runs/*`, reports and folders without weights are left out.

    Args:
        config: what is asked for.
        reporter: hears which layer is at work, and what the user should know.

    Raises:
        CheckpointError, ShapeError, UsageError: a file, network, layer or input that cannot be read as asked.
    """
    reporter = reporter or Reporter()
    _require_places(config)
    config = config.model_copy(update={"files": _with_weights(config.files, reporter)})
    found = [_sorted(_inspect(path, config, reporter), config) for path in config.files]
    if config.plot is not None:
        _draw(found, config)
    if config.html is not None:
        from svdctl.analysis.spectrum_page import write_page  # matplotlib takes a second to import

        with _picture_is_there(config.plot):
            write_page(found, config, config.html)
    return found


@contextmanager
def _picture_is_there(picture: Path | None) -> Iterator[None]:
    """Let a request to stop be answered, while the page is made, by what is written already."""
    if picture is None:
        yield
        return
    written = f"{one_line(picture)} is written, the page is not"
    try:
        with answer_to_stop(lambda: written):
            yield
    except KeyboardInterrupt as error:
        raise Interrupted(f"stopped; {written}") from error


def _require_places(config: InspectConfig) -> None:
    """Check that the picture and the page can be written where they are wanted.

    Raises:
        UsageError: one cannot be.
    """
    if config.plot is not None and config.html is not None and _real(config.plot) == _real(config.html):
        raise UsageError(f"`plot` and `html` are both {config.plot}; give the picture another name than the page")
    read = [file for path in config.files for file in (path, weights_of(path) if os.path.isdir(path) else None) if file]
    for name, path in (("plot", config.plot), ("html", config.html)):
        if path is not None:
            require_place(path, name, *read)


def _real(path: Path) -> str:
    """Return where a path leads; unlike `Path.resolve`, for a link that leads to itself too."""
    return os.path.realpath(path)


def _with_weights(paths: Sequence[Path], reporter: Reporter) -> tuple[Path, ...]:
    """Return the places that may hold weights, where there are several: not reports, nor folders without any.

    Raises:
        CheckpointError: none of several does.
    """
    if len(paths) == 1:
        return tuple(paths)
    left = [path for path in paths if path.name in _REPORTS or (os.path.isdir(path) and weights_of(path) is None)]
    if left:
        reporter.notice(f"left out, as they hold no weights: {', '.join(map(str, left))}")
    if len(left) == len(paths):
        raise CheckpointError("none of these places holds weights; give run folders or files that hold weights")
    return tuple(path for path in paths if path not in left)


def _sorted(found: NetworkSpectrum, config: InspectConfig) -> NetworkSpectrum:
    """Return the spectrum with its layers in the order that is asked for, those without such a figure last."""
    if config.sort == "network":
        return found
    if config.sort == "name":
        return replace(found, layers=tuple(sorted(found, key=lambda row: row.name)))
    key = {"bound": "bound_upper", "largest": "largest_circular", "condition": "condition_number"}[config.sort]
    known = [row for row in found if value_of(key, row) is not None]
    others = [row for row in found if value_of(key, row) is None]
    return replace(found, layers=(*sorted(known, key=lambda row: -value_of(key, row)), *others))


def _inspect(path: Path, config: InspectConfig, reporter: Reporter) -> NetworkSpectrum:
    """Return the spectrum of the network, or of the weights alone, in one file."""
    if config.model is not None and is_factory(config.model):
        grant_factory(config.model)
    with reporter.part(f"reading {path}"):
        weights = read_tensors(path, key=config.key)
    model, shape, told, misfit, maxima = None, None, "", Misfit((), ()), RunMaxima()
    checkpoint = read_checkpoint(weights.path) if weights.format == "svdctl" and config.key is None else None
    is_own = checkpoint is not None and (config.model is None or is_network(checkpoint.config.model, config.model))
    if checkpoint is not None and is_own:
        model = network_of(checkpoint, weights.path)
        shape, maxima = _image(config.input_size or checkpoint.image_shape), run_maxima(checkpoint, model)
    elif config.model is not None:
        if config.input_size is None or len(config.input_size) < 2:
            raise UsageError("`model` needs the shape of an input: add `input_size = CxHxW`, as 3x224x224")
        shape = _image(config.input_size)
        if config.lenient:
            model, misfit = load_model_leniently(config.model, weights)
            told = f" ({misfit.told})" if misfit.told else ""
        elif describe(weights) is not None and config.key is None:
            model = load_into_network(path, make_model(config.model))
        else:
            model = load_model(config.model, weights)
    elif weights.format == "paper":
        opened = open_paper_network(weights.tensors, where=str(path), gouk_transforms=config.gouk_transforms)
        model, shape, told = opened.model, _image(config.input_size or PAPER_IMAGE_SHAPE), f" ({opened.told})"
    description = describe(weights) if config.key is None else None
    if description is not None and model is None:
        found = _described_spectrum(path, weights, description, config, reporter)
    elif model is None or shape is None:
        found = _weights_spectrum(path, weights, config, reporter)
    else:
        found = requested_spectrum(
            model,
            shape,
            _request(config, maxima.of_layers, as_certified=is_own and config.tolerance is None),
            name=f"{path}{told}",
            layers=config.layers if config.layers != ("*",) else "*",
            tell=reporter.advance,
            tell_proofs=reporter.advance,
            log=reporter.notice,
        )
        found = replace(found, maxima_note=maxima.note)
        if found.lipschitz is not None and not (is_own and config.tolerance is None):
            found = replace(found, lipschitz_note=_why_another(config.tolerance or TOLERANCE))
        found = replace(found, layers=(*found.layers, *_unaccounted_rows(model, found, config)))
        found = _with_misfit(found, misfit, weights, config)
    rows = *found.layers, *_rows_of_left_out_parts(weights, config, has_network=model is not None)
    found = replace(found, layers=tuple(replace(row, gate=_verdict(row, config)) for row in rows))
    return found if config.html is None else replace(found, origin=tuple(_origin(path, weights, checkpoint)))


def _origin(path: Path, weights: WeightFile, checkpoint: Checkpoint | None) -> Iterator[tuple[str, str]]:
    """Yield where weights come from: file, hashes, and of a checkpoint of svdctl its run."""
    yield "file", str(path)
    if weights.path != path:
        yield "read", str(weights.path)
    if weights.path.is_file():
        yield "SHA-256 of the file", file_digest(weights.path)
    yield "SHA-256 of its tensors", weights.digest
    yield (
        "format",
        f"{weights.format}, {len(weights.tensors)} tensors" + f" ({weights.wrapping})" * bool(weights.wrapping),
    )
    if checkpoint is not None:
        config = checkpoint.config
        kinds = (config.model.kind, f"{config.layer.kind} layers", f"control {config.control.kind}")
        yield (
            "run",
            f"{config.name}: {', '.join(kinds)}, seed {config.seed}, step {checkpoint.metrics.get('step', 0):.0f}",
        )
        yield "data", describe_data(config.data)


def _why_another(tolerance: float) -> str:
    """Return why the Lipschitz constant may be another than that of `eval-robust`."""
    return (
        f"each layer's bound is within {at_most(100 * tolerance, 2)} % of its norm here, or of the factor of its "
        "padding; eval-robust bounds them to another tolerance, and so proves another constant"
    )


def _request(config: InspectConfig, maxima: Mapping[str, float], *, as_certified: bool = False) -> SpectrumRequest:
    """Return what is to be computed of a network's layers.

    Args:
        config: what is asked for.
        maxima: of layers by name.
        as_certified: see `SpectrumRequest`.
    """
    return SpectrumRequest(
        config.tolerance or TOLERANCE,
        config.accuracy,
        at_most=config.max_sigma,
        bounds_only=config.bounds_only,
        maxima=maxima,
        as_certified=as_certified,
        affordable=math.inf if config.needs_values else _AFFORDABLE,
    )


def _with_misfit(found: NetworkSpectrum, misfit: Misfit, weights: WeightFile, config: InspectConfig) -> NetworkSpectrum:
    """Return the spectrum with a row for each tensor that was left out; layers that are not filled are not proved."""
    rows = []
    for row in found:
        own = [name for name in misfit.unfilled if _is_of(name, row)]
        what = f"{', '.join(own[:3])} may be anything: the file does not fill it"
        rows.append(replace(row, assumption="; ".join(filter(None, (row.assumption, what)))) if own else row)
    for name in misfit.left_out:
        if _matches(name, config.layers):
            why = "the network has no tensor of its name and shape; `lenient` left it out"
            has_weights = holds_weights(weights.tensors[name])
            rows.append(LayerSpectrum(name, "left out", (), note=why, has_weights=has_weights))
    if misfit.unfilled:
        note = f"the file does not fill {misfit.unfilled[0]}"
        found = replace(found, lipschitz=None, lipschitz_note=note)
    return replace(found, layers=tuple(rows))


def _is_of(tensor: str, row: LayerSpectrum) -> bool:
    """Return whether a tensor of this name is one that a row's layer is made of."""
    return not row.name or tensor == row.name or tensor.startswith(f"{row.name}.") or tensor in row.made_of


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _unaccounted_rows(model: nn.Module, found: NetworkSpectrum, config: InspectConfig) -> Iterator[LayerSpectrum]:
    """Yield a row for each tensor of the network that may be a weight and that no other row accounts for."""
    listed = {row.name: row for row in found}
    made_of = {name for row in found if row.is_analysed for name in row.made_of}
    rows: dict[str, LayerSpectrum] = {}
    # As the packed weights of quantised layers.
    others = ((name, value) for name, value in model.state_dict().items() if not isinstance(value, Tensor))
    packed = ((name.rpartition(".")[0], name, value) for name, value in others)
    for owner, name, value in (*_all_tensors(model), *packed):
        words = name.split(".")
        heads = {".".join(words[:count]): ".".join(words[count:]) for count in range(len(words))}
        covered = name in made_of or (owner in listed and not listed[owner].is_analysed)
        covered |= any(head in listed and listed[head].is_analysed and _OWN.fullmatch(heads[head]) for head in heads)
        if covered or not _matches(owner, config.layers):
            continue
        if owner in listed:
            owner = name
        if not isinstance(value, Tensor) or holds_weights(value):
            why = f"{name} is held by the network, and no layer whose spectrum is known here is made of it"
            rows.setdefault(owner, LayerSpectrum(owner, "other", (), note=why))
    yield from rows.values()


def _all_tensors(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (owner, name, tensor) of all tensors that a network holds, each once.

    The owner of a parameter or buffer is its module. Then come tensors that are plain attributes, and tensors and
    modules in attributes that are lists, dicts, plain objects, closures and the like; each of these is its own owner.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, object, int]] = [("", model, 0)]
    while waiting:
        path, value, depth = waiting.pop()
        if id(value) in seen or depth > _DEPTH or isinstance(value, str | bytes | int | float | type | ModuleType):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield path, path, value
        elif isinstance(value, nn.Module):
            below: list[tuple[str, object, int]] = []
            for owner, module in value.named_modules(prefix=path):
                seen.add(id(module))
                for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                    is_pixels = type(module) is Normalize and name in ("mean", "std")
                    if tensor is not None and id(tensor) not in seen and not is_pixels:
                        seen.add(id(tensor))
                        yield owner, f"{owner}.{name}".strip("."), tensor
                attributes = (name for name in vars(module) if name not in _OF_MODULES)
                below += [(f"{owner}.{name}".strip("."), vars(module)[name], 0) for name in attributes]
            waiting += reversed(below)
        else:
            waiting += reversed([(f"{path}.{part}", inner, depth + 1) for part, inner in _parts(value)])


def _parts(value: object) -> Iterator[tuple[object, object]]:
    """Yield (name, value) of what a container, function or plain object holds."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from enumerate(value)
    elif isinstance(value, partial):
        yield from enumerate((value.func, *value.args, *value.keywords.values()))
    elif isinstance(value, FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with suppress(ValueError):  # it has no value yet
                yield name, cell.cell_contents
        yield from enumerate(value.__defaults__ or ())
    elif isinstance(value, MethodType):
        yield from (("self", value.__self__), ("function", value.__func__))
    elif hasattr(value, "__dict__"):
        yield from vars(value).items()


def _rows_of_left_out_parts(
    weights: WeightFile, config: InspectConfig, *, has_network: bool
) -> Iterator[LayerSpectrum]:
    """Yield a row for each part of the file that no layer has: other parts, and entries that were not loaded."""
    for part in weights.left_out:
        reason = f"{part.what}; `key` chooses a part" if part.may_hold_weights else part.what
        if _matches(part.name, config.layers):
            yield LayerSpectrum(part.name, "left out", (), note=reason, has_weights=part.may_hold_weights)
    if not has_network and weights.format == "safetensors":
        for name in weights.extra:
            if re.search(r"scale|gain|quant", name, re.IGNORECASE) and _matches(name, config.layers):
                yield LayerSpectrum(
                    name, "metadata", (), note="it stands in the file's metadata, and its use is unknown"
                )
    if has_network and weights.format != "svdctl":
        for name, what in weights.others.items():
            if name in weights.unread and _matches(name, config.layers):
                yield LayerSpectrum(name, "left out", (), note=f"it is {what}, not a tensor of numbers")


def _image(size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape `(C, H, W)` of an input that was given by one, two or three numbers."""
    return (3, *(size * 2 if len(size) == 1 else size)) if len(size) < 3 else size


def _weights_spectrum(path: Path, weights: WeightFile, config: InspectConfig, reporter: Reporter) -> NetworkSpectrum:
    """Return the spectrum of weights without a network: bounds for every stride, input size and number of groups."""
    stored = stored_layers(weights.tensors, others=weights.others, unread=weights.unread)
    chosen = [layer for layer in stored if _matches(layer.name, config.layers)]
    if not config.has_gate and not any(layer.make or layer.make_generator for layer in stored if not layer.reason):
        kinds = ", ".join(f"{layer.name} ({layer.reason or layer.kind})" for layer in stored[:3])
        raise CheckpointError(f"{path} holds no convolution or linear layer that can be analysed: {kinds}")
    if not chosen:
        names = nearest_few(config.layers, (layer.name for layer in stored if layer.make))
        raise ShapeError(f"no layer of {path} matches {' or '.join(config.layers)}; {names}")
    # MLX stores the output channels first in transposed convolutions too.
    pairs = str(weights.extra.get("format")).lower() == "mlx"
    if not config.needs_values and _seconds_of_values(chosen, config) > _AFFORDABLE:
        reporter.notice("bounds alone are proved; `every`, `top` or `plot` compute singular values too")
        config = config.model_copy(update={"bounds_only": True})
    count = itertools.count(1)

    def row(layer: StoredLayer) -> LayerSpectrum:
        reporter.advance(min(next(count), len(chosen)) - 1, len(chosen), layer.name)
        return _stored_row(layer, config, pairs=pairs)

    costliest_first = sorted(range(len(chosen)), key=lambda place: -_operations(chosen[place]))
    sizes = [_bytes(layer, config) for layer in chosen]
    found = parallel_map(lambda place: row(chosen[place]), costliest_first, sizes.__getitem__)
    rows = [made for _, made in sorted(zip(costliest_first, found, strict=True), key=lambda pair: pair[0])]
    told = f" ({weights.wrapping})" if weights.wrapping else ""
    return NetworkSpectrum(f"{path}{told}", tuple(rows), None, _NO_NETWORK)


def _operations(layer: StoredLayer) -> float:
    """Return about how many operations the eigenvalues of one matrix of a stored layer take."""
    return 4.0 * min(layer.shape[:2], default=0) ** 3


def _bytes(layer: StoredLayer, config: InspectConfig) -> int:
    """Return about how much memory the row of a stored layer takes while it is computed."""
    if layer.reason or len(layer.shape) < 2:
        return 0
    size = _size_for(config, len(layer.shape) - 2)
    # One after the other.
    return max(bytes_of_bound(layer.shape), 0 if size is None else bytes_of_values(layer.shape, size))


def _seconds_of_values(layers: Sequence[StoredLayer], config: InspectConfig) -> float:
    """Return about how long one CPU core takes for the singular values of stored layers."""
    operations = 0.0
    for layer in layers:
        if layer.make is not None and not layer.reason:
            size = (1,) if layer.kind == "linear" else _size_for(config, len(layer.shape) - 2)
            operations += 0.0 if size is None else _operations(layer) * math.prod(size)
    return operations / OPERATIONS_PER_SECOND


def _described_spectrum(
    path: Path, weights: WeightFile, description: Description, config: InspectConfig, reporter: Reporter
) -> NetworkSpectrum:
    """Return the spectrum of the layers that a file of `svdctl.save` describes, and of the tensors beside them."""
    described = {}
    for name, layer in layers_of(weights, description).items():
        ops = find_ops(layer)
        own = [f"{name}.{leaf}" if name else leaf for leaf in layer.state_dict()]
        is_again = bool(own) and all(leaf in description.shared for leaf in own)
        if ops is not None and ops.has_spectrum and not is_again:
            described[name] = layer
    inside = tuple(f"{name}." for name in described if name)
    others = {
        name: tensor
        for name, tensor in weights.tensors.items()
        if "" not in described and not name.startswith(inside) and name not in description.shared
    }
    chosen = {name: layer for name, layer in described.items() if _matches(name, config.layers)}
    beside = [layer for layer in stored_layers(others) if _matches(layer.name, config.layers)]
    if not chosen and not beside:
        raise ShapeError(
            f"no layer of {path} matches {' or '.join(config.layers)}; {nearest_few(config.layers, described)}"
        )
    sizes: dict[str, tuple[int, ...] | None] = {}
    for name, layer in chosen.items():
        ops = ops_of(layer)
        axes = len(ops.shape(layer)) - 2
        sizes[name] = (1,) if ops.is_linear else None if axes < 1 else _size_for(config, axes)
    found = rows_of_layers(chosen, sizes, _request(config, {}), tell=reporter.advance)
    rows = *found, *(_stored_row(layer, config, pairs=False) for layer in beside)
    return NetworkSpectrum(str(path), rows, None, _NO_CALLS)


def _stored_row(layer: StoredLayer, config: InspectConfig, *, pairs: bool) -> LayerSpectrum:
    """Return the row of a stored layer."""
    unknown = LayerSpectrum(layer.name, layer.kind, layer.shape, has_weights=layer.has_weights)
    row = replace(unknown, assumption=layer.assumption, rank=layer.rank, frame_error=layer.frame_error)
    row = replace(row, by_shape=layer.by_shape)
    if layer.reason:
        return replace(unknown, note=layer.reason)
    try:
        if layer.scale is not None:
            return _scale_row(row, layer, float(layer.scale.abs().max()), config)
        if layer.make_generator is not None:
            size = _size_for(config, 2)
            return stored_exponential(row, layer.make_generator(), SERIES_TERMS, size, layer.frame_norms or ())
        if layer.norm is not None:
            return _normed_row(row, layer.norm, config)
        if layer.make is not None:
            return _operator_row(row, layer, layer.make(), config, pairs=pairs)
    except ShapeError as error:
        return replace(unknown, note=str(error))
    return replace(unknown, note="its operator is not known here")


def _scale_row(row: LayerSpectrum, layer: StoredLayer, gain: float, config: InspectConfig) -> LayerSpectrum:
    """Return the row of a BatchNorm or pixel normalisation; if within its maximum for every eps, without assumption."""
    kind = "BatchNorm" if layer.kind == "batchnorm" else "Normalize"
    limit = config.batchnorm_max
    if limit is not None and layer.largest_scale is not None and layer.largest_scale * (1 + 1e-6) <= limit:
        row = replace(row, assumption="")
    return replace(row, kind=kind, bound=Bracket(gain * (1 - 1e-6), gain * (1 + 1e-6)))


def _operator_row(
    row: LayerSpectrum, layer: StoredLayer, conv: Convolution, config: InspectConfig, *, pairs: bool
) -> LayerSpectrum:
    """Return the row of a stored kernel; its lower bound holds for every stride and number of groups (`least_norm`)."""
    is_matrix, limit = layer.kind == "linear", config.max_sigma
    size = None if config.bounds_only else (1,) if is_matrix else _size_for(config, conv.axes)
    notes = [layer.note, "" if is_matrix or size is None else "values at stride 1, as one group"]
    bound = norm_bound(conv, tolerance=config.tolerance or TOLERANCE)
    lower, upper = bound.lower, bound.upper + layer.slack
    if limit is not None:
        at_most = (limit - layer.slack) * (1 - 1e-15) if layer.slack else limit  # negative: nothing can be proved
        # A layer under control is proved to be at most its maximum, which a bracket of some width need not show.
        sharper = bound.lower <= at_most < bound.upper and is_bounded(conv, at_most)
        if sharper or bound.upper <= at_most:
            upper = min(at_most + layer.slack if sharper else upper, limit)
    if not is_matrix:
        # The core of a TT layer is one group, so that its unfolding's norm is reached, as is its largest row.
        lower = min(lower, least_norm(conv.weight, pairs=pairs))
    row = replace(row, bound=Bracket(max(lower - layer.slack, 0.0), upper), note="; ".join(filter(None, notes)))
    return with_values(row, conv, size, config.accuracy)


def _normed_row(row: LayerSpectrum, norm: StoredNorm, config: InspectConfig) -> LayerSpectrum:
    """Return the row of a stored layer with svdctl's spectral norm, of which stride, groups and padding are known."""
    conv, factor = norm.conv, norm.padding_factor
    limit = kernel_limit_of(norm.max_sigma, factor)
    kernel = norm_bound(conv, tolerance=config.tolerance or TOLERANCE, at_most=limit)
    upper = layer_norm(kernel.upper, 0.0, factor)
    if kernel.upper <= limit:
        upper = min(upper, norm.max_sigma)  # rounding alone would exceed it
    if config.max_sigma is not None and config.max_sigma < upper:
        gate = kernel_limit_of(config.max_sigma, factor)
        upper = config.max_sigma if kernel.lower <= gate and is_bounded(conv, gate) else upper
    is_matrix = row.kind == "linear"
    size = None if config.bounds_only else (1,) if is_matrix else _size_for(config, conv.axes)
    row = replace(row, bound=Bracket(kernel.lower, upper), stride=conv.stride)
    return with_values(row, conv, size, config.accuracy)


def _size_for(config: InspectConfig, axes: int) -> tuple[int, ...] | None:
    """Return the spatial size for a kernel with this number of axes; None where no values are wanted or it has none."""
    size = config.input_size
    if size is None or config.bounds_only:
        return None
    if len(size) == 1:
        return size * axes
    return size[-axes:] if len(size) in (axes, axes + 1) else None


def _draw(found: list[NetworkSpectrum], config: InspectConfig) -> None:
    """Draw the spectra to the file `config.plot`."""
    from svdctl.analysis.spectrum_plot import plot_networks  # matplotlib takes a second to import

    assert config.plot is not None
    kernels = [layer for network in found for layer in network if len(layer.shape) > 2]
    if not any(layer.values is not None for layer in kernels):
        if not kernels:
            raise UsageError(
                "`plot`: no convolution is among these layers; matrices and gains are not drawn, only listed in the "
                "table, so leave `plot` out"
            )
        raise UsageError("`plot`: no convolution has singular values without a size of its input; add `input_size`")
    plot_networks(found, max_sigma=config.max_sigma).write(config.plot)


def _limit(row: LayerSpectrum, config: InspectConfig) -> float | None:
    """Return the maximum that a row's bound is compared with."""
    # A convolution of the user's may be called BatchNorm too.
    is_inside = row.kind in ("BatchNorm", "LayerNorm") and row.is_normalization
    return config.batchnorm_max if is_inside else config.max_sigma


def _verdict(row: LayerSpectrum, config: InspectConfig) -> str:
    """Return the result of the check of a row: proved, above, not proved or excepted; empty when it is not checked."""
    limit = _limit(row, config)
    if not config.has_gate or not row.has_weights or (row.bound is not None and limit is None):
        return ""
    if row.bound is None or row.assumption or limit is None:
        return "excepted" if _matches(row.title, config.excepted) else "not proved"
    return "proved" if row.bound.upper <= limit else "above"


def faults(found: list[NetworkSpectrum], config: InspectConfig) -> list[str]:
    """Return a sentence for each layer that fails the check: above its maximum, or not proved to be within it."""
    lines = []
    for name, row in ((network.name, row) for network in found for row in network):
        limit = _limit(row, config)
        if row.gate == "not proved":
            lines.append(f"{one_line(name)}: not proved: {one_line(row.title)}, {row.why_not_proved}")
        elif row.gate == "above" and row.bound is not None and limit is not None:
            sure = row.bound.lower > limit
            what = f"reaches {row.bound.lower:.6g}" if sure else f"may reach {at_most(row.bound.upper, 6)}"
            lines.append(f"{one_line(name)}: {one_line(row.title)} {what}, above {limit:g}")
    return lines


def summary(found: list[NetworkSpectrum], config: InspectConfig) -> str:
    """Return a line on what the check has proved, and one for each layer that it exempted.

    Raises:
        UsageError: a pattern of `excepted` matches no layer.
    """
    rows = [(network.name, row) for network in found for row in network]
    for pattern in config.excepted:
        if not any(_matches(row.title, (pattern,)) for _, row in rows):
            raise UsageError(f"`excepted = {pattern}`: no layer of {', '.join(map(str, config.files))} has such a name")
    limits = {"`max_sigma`": config.max_sigma, "`batchnorm_max`": config.batchnorm_max}
    held = [f"{at_most(limit, 6)} ({key})" for key, limit in limits.items() if limit]
    proved = sum(row.gate == "proved" for _, row in rows)
    lines = [f"{proved} of {sum(bool(row.gate) for _, row in rows)} layers proved to be at most {' and '.join(held)}"]
    lines += [f"{one_line(network.name)}: {told}" for network in found if (told := told_by_shape(network))]
    lines += [
        f"excepted: {one_line(name)}: {one_line(row.title)}, {row.why_not_proved}"
        for name, row in rows
        if row.gate == "excepted"
    ]
    return "\n".join(lines)
