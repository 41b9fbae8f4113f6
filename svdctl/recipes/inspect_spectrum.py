"""Spectra of the networks in files: of svdctl's own, of a user's network, or of bare weights."""

import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from svdctl.analysis.exponential import stored_exponential
from svdctl.analysis.layer import LayerSpectrum, failed, operator_spectrum
from svdctl.analysis.network import NetworkSpectrum, spectrum
from svdctl.checkpoint import load, read_checkpoint
from svdctl.config.inspect import InspectConfig
from svdctl.errors import CheckpointError, ShapeError, UsageError
from svdctl.spectral.bound import Bracket
from svdctl.weights.factory import load_model
from svdctl.weights.layers import stored_layers
from svdctl.weights.read import WeightFile, read_tensors
from svdctl.weights.skew import SERIES_TERMS
from svdctl.weights.stored import StoredLayer

Tell = Callable[[int, int, str], None]


def run(config: InspectConfig, *, tell: Tell | None = None) -> list[NetworkSpectrum]:
    """One spectrum a file; `config.plot` is drawn.

    Raises:
        CheckpointError, ShapeError, UsageError: a file, network, layer or input that cannot be read as asked.
    """
    found = [_inspect(path, config, tell) for path in config.files]
    if config.plot is not None:
        _draw(found, config)
    return found


def _inspect(path: Path, config: InspectConfig, tell: Tell | None) -> NetworkSpectrum:
    weights = read_tensors(path, key=config.key)
    settings: dict[str, Any] = {
        "name": str(path),
        "layers": config.layers if config.layers != ("*",) else "*",
        "tolerance": config.tolerance,
        "accuracy": config.accuracy,
        "at_most": config.max,
        "tell": tell,
    }
    if config.model is not None:
        assert config.input_size is not None
        return spectrum(load_model(config.model, weights), _image(config.input_size), **settings)
    if weights.format == "svdctl":
        own = read_checkpoint(path)
        shape = own.image_shape if config.input_size is None else _image(config.input_size)
        return spectrum(load(path), shape, **settings)
    return _bare(path, weights, config, tell)


def _image(size: tuple[int, ...]) -> tuple[int, ...]:
    return (3, *(size * 2 if len(size) == 1 else size)) if len(size) < 3 else size


def _bare(path: Path, weights: WeightFile, config: InspectConfig, tell: Tell | None) -> NetworkSpectrum:
    """Weights without a network: what holds for every stride, size and number of groups, and values if asked for."""
    stored = stored_layers(weights.tensors, others=weights.others)
    chosen = [layer for layer in stored if any(fnmatchcase(layer.name, pattern) for pattern in config.layers)]
    if not any(layer.make or layer.make_generator for layer in stored if not layer.reason):
        kinds = ", ".join(f"{layer.name} ({layer.reason or layer.kind})" for layer in stored[:3])
        raise CheckpointError(f"{path} holds no convolution or linear layer that can be analysed: {kinds}")
    if not chosen:
        names = ", ".join(layer.name for layer in stored if layer.make)[:300]
        raise ShapeError(f"no layer of {path} matches {' or '.join(config.layers)}; there are {names}")
    rows = []
    for done, layer in enumerate(chosen):
        if tell is not None:
            tell(done, len(chosen), layer.name)
        rows.append(_stored_row(layer, config))
    told = f" ({weights.wrapping})" if weights.wrapping else ""
    note = "the file holds no network; its strides, groups and input sizes are not known"
    return NetworkSpectrum(f"{path}{told}", tuple(rows), None, note)


def _stored_row(layer: StoredLayer, config: InspectConfig) -> LayerSpectrum:
    if layer.scale is not None and not layer.reason:
        gain = float(layer.scale.abs().max())
        kind = "BatchNorm" if layer.kind == "batchnorm" else "Normalize"
        return LayerSpectrum(layer.name, kind, layer.shape, Bracket(gain * (1 - 1e-6), gain * (1 + 1e-6)))
    if layer.make_generator is not None and not layer.reason:
        return stored_exponential(
            layer.name,
            layer.kind,
            layer.shape,
            layer.make_generator(),
            SERIES_TERMS,
            size=_size_for(config.input_size, 2),
            rank=layer.rank,
            frame_norms=layer.frame_norms,
            error=layer.frame_error,
        )
    if layer.reason or layer.make is None:
        return failed(layer.name, layer.kind, layer.shape, layer.reason or "its operator is not known here")
    try:
        conv = layer.make()
        size = (1,) if layer.kind == "linear" else _size_for(config.input_size, conv.axes)
        note = "" if layer.kind == "linear" or size is None else "values at stride 1"
        return operator_spectrum(
            layer.name,
            layer.kind,
            layer.shape,
            conv,
            tolerance=config.tolerance,
            input_size=size,
            accuracy=config.accuracy,
            at_most=config.max,
            rank=layer.rank,
            frame_error=layer.frame_error,
            note=note,
        )
    except ShapeError as error:
        return failed(layer.name, layer.kind, layer.shape, error)


def _size_for(size: tuple[int, ...] | None, axes: int) -> tuple[int, ...] | None:
    if size is None:
        return None
    if len(size) == 1:
        return size * axes
    return size[-axes:] if len(size) in (axes, axes + 1) else None


def _draw(found: list[NetworkSpectrum], config: InspectConfig) -> None:
    from svdctl.analysis.picture import plot_networks  # matplotlib takes a second to import

    assert config.plot is not None
    if not any(layer.values is not None and len(layer.shape) > 2 for network in found for layer in network):
        raise UsageError("--plot: no convolution has singular values without a size of its input; add --input-size")
    if not config.plot.parent.is_dir():
        raise UsageError(f"--plot {config.plot}: there is no folder {config.plot.parent}; make it first")
    plot_networks(found, max=config.max).savefig(config.plot)


def exceeding(found: list[NetworkSpectrum], max: float) -> list[str]:
    """A sentence for each layer that is not proved to be at most `max`, those that could not be analysed included."""
    lines = []
    for network in found:
        for layer in network.exceeding(max):
            assert layer.bound is not None
            sure = layer.bound.lower > max
            what = f"reaches {layer.bound.lower:.6g}" if sure else f"may reach {layer.bound.upper:.6g}"
            lines.append(f"{network.name}: {layer.name} {what}, above {max:g}")
        lines += [
            f"{network.name}: {layer.name} could not be analysed ({layer.note})"
            for layer in network
            if not layer.is_analysed and math.prod(layer.shape) > 1 and len(layer.shape) > 1
        ]
    return lines
