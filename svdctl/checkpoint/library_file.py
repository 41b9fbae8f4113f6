"""Files of `svdctl.save`: the weights of any network, and a description of the layers that svdctl gave it."""

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from svdctl.checkpoint.layer_descriptions import (
    LAYER_KINDS,
    PARAMETRIZATION_KINDS,
    describe_layers,
    describe_parametrizations,
    made_layer,
    made_on_meta,
    parametrization_name,
    require_base,
)
from svdctl.checkpoint.weight_file import WeightFile, read_tensors
from svdctl.errors import CheckpointError, ShapeError, SvdctlError, UsageError, first_line
from svdctl.layers.layer_ops import require_module
from svdctl.utils.atomic_write import write_atomically
from svdctl.utils.files import file_path, parse_json

if TYPE_CHECKING:
    from svdctl.control.controller import Controller

FORMAT, VERSION = "svdctl.library", 1
"""Format and version in files of `svdctl.save`; the name never changes."""
SUFFIXES = (".pt", ".safetensors")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Description:
    """What a file of `svdctl.save` tells beside the weights."""

    network: str
    """Name of the network's class; nothing is imported by it."""
    layers: Mapping[str, Mapping[str, Any]]
    """Class and constructor's arguments of svdctl's layers and torch's ordinary ones, by name."""
    parametrizations: Mapping[str, Mapping[str, Any]]
    """Parametrizations of tensors, by module and tensor: a list each, of class and arguments."""
    shared: Mapping[str, str]
    """Names of tensors that are the same as another one's; in safetensors only the other is written."""
    control: Mapping[str, Any] | None
    """Settings of the control that the network was trained under, of its limit on BatchNorm, and maxima by layer."""
    config: Any
    """What the user gave."""


def save(
    model: nn.Module, path: str | os.PathLike[str], *, config: object = None, control: "Controller | None" = None
) -> None:
    """Write the weights of any network to a file, and what svdctl's layers and parametrizations in it are made of.

    `svdctl.load(path, Net())` makes the network again, svdctl's layers in the places of the ordinary ones of `Net`.
    `inspect-spectrum` reads the file with strides, padding and groups, without the network. The file is written whole
    or not at all; others read it as any of torch.save (the weights are under `model`) or of safetensors.

    Args:
        model: its parameters and buffers are ordinary tensors, on any device.
        path: ends with `.pt` or `.safetensors`.
        config: anything that JSON holds, kept for the user.
        control: the control that it was trained under, whose settings are kept.

    Raises:
        UsageError: another ending, a `config` that JSON does not hold, or a `path` or `control` that is none.
        CheckpointError: a state that is no ordinary tensor: sparse, quantised, sharded, on the meta device, an object.
        OSError: it cannot be written, as in a folder that is not there or on a full disk; a file that was there before
            stays as it is.

    >>> import torch
    >>> net = torch.nn.Sequential(svdctl.TTConv2d(4, 8, 3, rank=2), torch.nn.ReLU())
    >>> svdctl.save(net, "net.safetensors", config={"epochs": 20})
    >>> ordinary = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.ReLU())
    >>> svdctl.load("net.safetensors", ordinary)[0].rank
    (2, 2)
    """
    require_module(model)
    file = file_path(path)
    if file.suffix not in SUFFIXES:
        raise UsageError(f"{file} would be neither .pt nor .safetensors, which svdctl.save writes; end its name so")
    state, shared = _state(model)
    description = {
        "format": FORMAT,
        "version": VERSION,
        "network": type_before_parametrizations(model).__name__,
        "layers": describe_layers(model),
        "parametrizations": describe_parametrizations(model),
        "shared": shared,
        "control": None if control is None else _settings(control),
        "config": config,
    }
    try:
        text = json.dumps(description, allow_nan=False)
        parse_json(text, "config")  # as it will be read
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the config of svdctl.save holds what JSON does not ({first_line(error, 100)})") from error
    try:
        if file.suffix == ".pt":
            contents = {"format": FORMAT, "version": VERSION, "description": text, "model": state}
            write_atomically(file, partial(torch.save, contents))
        else:
            tensors = {name: tensor for name, tensor in state.items() if name not in shared}
            write_atomically(file, safetensors.torch.save(tensors, {"format": "pt", FORMAT: text}))
    except (RuntimeError, safetensors.SafetensorError) as error:
        # torch's zip writer reports a full disk as RuntimeError.
        raise OSError(f"{file} could not be written ({first_line(error)})") from error


def _settings(control: "Controller") -> dict[str, Any]:
    from svdctl.control.controller import Controller

    if not isinstance(control, Controller):
        raise UsageError(f"control is the svdctl.Controller of the training, not a {type(control).__name__}")
    batchnorm = control.batchnorm
    return {
        "control": control.config.model_dump(mode="json"),
        "maxima": {name: maximum for name in control.layers if (maximum := control.maximum(name)) is not None},
        "batchnorm": None if batchnorm is None else batchnorm.model_dump(mode="json"),
    }


def _state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state of a network on the CPU, and which of its names are another one's tensor."""
    found: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[object, str] = {}
    storages: set[int] = set()
    for name, value in model.state_dict().items():
        if (fault := _why_not_written(value)) is not None:
            raise CheckpointError(f"{name!r} of the network is {fault}, and svdctl.save writes ordinary tensors alone")
        place = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype)
        if value.numel() and place in first:
            shared[name] = first[place]
            found[name] = found[first[place]]
            continue
        first[place] = name
        kept = value.detach().cpu().contiguous()
        # Of a part of a larger tensor torch would write the whole; safetensors writes no two views of one memory.
        is_part = kept.untyped_storage().nbytes() > kept.nbytes
        found[name] = kept.clone() if is_part or kept.untyped_storage().data_ptr() in storages else kept
        if kept.numel():
            storages.add(found[name].untyped_storage().data_ptr())
    return found, shared


def _why_not_written(value: object) -> str | None:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if type(value) not in (Tensor, nn.Parameter):
        return f"a {type(value).__name__}"
    if value.layout is not torch.strided or value.is_quantized:
        return "sparse or quantised"
    return "on the meta device" if value.is_meta else None


def describe(weights: WeightFile) -> Description | None:
    """Return the description in a file of `svdctl.save`, checked against its tensors; None: it is another file.

    Raises:
        CheckpointError: damaged or foreign, or of a newer format.
    """
    extra, path = weights.extra, weights.path
    text = extra.get(FORMAT) if extra.get("format") != FORMAT else extra.get("description")
    if not isinstance(text, str):
        return None
    table = parse_json(text, str(path))
    damaged = CheckpointError(f"{path}: its description is none that svdctl.save writes; use another copy")
    if not isinstance(table, dict) or table.get("format") != FORMAT or type(table.get("version")) is not int:
        raise damaged
    if table["version"] > VERSION:
        raise CheckpointError(
            f"{path} has format {min(table['version'], 10**9)}, newer than this svdctl knows ({VERSION}); upgrade "
            "svdctl"
        )
    parts = [table.get(name) for name in ("layers", "parametrizations", "shared")]
    layers, parametrized, shared = parts
    if not isinstance(layers, dict) or not isinstance(parametrized, dict) or not isinstance(shared, dict):
        raise damaged
    if weights.others:
        name, what = next(iter(weights.others.items()))
        raise CheckpointError(f"{path} is damaged: {name!r} is {what}; use another copy")
    if not isinstance(table.get("network"), str) or not isinstance(table.get("control"), dict | None):
        raise damaged
    if not all(
        isinstance(other, str) and other in weights.tensors and other not in shared for other in shared.values()
    ):
        raise damaged
    if not all(_is_entry(entry, LAYER_KINDS) for entry in layers.values()):
        raise damaged
    if not all(
        isinstance(tensors, dict)
        and all(
            isinstance(chain, list) and all(_is_entry(entry, PARAMETRIZATION_KINDS) for entry in chain)
            for chain in tensors.values()
        )
        for tensors in parametrized.values()
    ):
        raise damaged
    return Description(table["network"], layers, parametrized, shared, table.get("control"), table.get("config"))


def _is_entry(entry: object, kinds: Mapping[str, object]) -> bool:
    kind = entry.get("class") if isinstance(entry, dict) else None
    return (
        isinstance(entry, dict) and isinstance(kind, str) and kind in kinds and isinstance(entry.get("arguments"), dict)
    )


def read_description(path: str | os.PathLike[str]) -> Description:
    """Return what a file of `svdctl.save` tells beside its weights, as `config` and the settings of the control.

    Raises:
        CheckpointError: missing, damaged, or another file.
    """
    return _opened(Path(path))[1]


def _opened(path: Path) -> tuple[WeightFile, Description]:
    weights = read_tensors(path)
    found = describe(weights)
    if found is None:
        raise CheckpointError(
            f"{path} is not a file of svdctl.save; read it without a network, or as it was written, by load_state_dict"
        )
    return weights, found


def load_into_network(path: Path, model: M) -> M:
    """Put the weights of a file of `svdctl.save` into a network, svdctl's layers in the places of ordinary ones.

    Args:
        path: the file.
        model: a network of the class that was saved, with ordinary layers or svdctl's. It is changed in place, and
            returned in evaluation mode; where it is itself one ordinary layer, its replacement is returned.

    Raises:
        CheckpointError: missing, damaged or another file, or one that does not fit the network; then nothing of the
            network was changed.
    """
    require_module(model)
    weights, description = _opened(path)
    tensors = all_tensors(weights, description)
    check_layers(weights.path, description, tensors)
    try:
        trial = copy.deepcopy(model)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the network for {path} cannot be copied ({first_line(error, 100)})") from error
    own = type_before_parametrizations(model).__name__
    hint = "" if own == description.network else f" (the file is of a {description.network!r}, this is a {own})"
    try:
        _filled(trial, description, tensors)
        return _filled(model, description, tensors).eval()
    except (SvdctlError, RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} does not fit the network{hint}: {first_line(error, 300)}") from error


def all_tensors(weights: WeightFile, description: Description) -> dict[str, Tensor]:
    """Return the tensors of a file, those that are written once by all of their names."""
    return {**weights.tensors, **{name: weights.tensors[other] for name, other in description.shared.items()}}


def check_layers(path: Path, description: Description, tensors: Mapping[str, Tensor]) -> None:
    """Refuse layers that are none, or larger than what is stored of them.

    Raises:
        CheckpointError: naming the layer.
    """
    inside = _by_module(tensors, description.layers)
    for name, entry in description.layers.items():
        try:
            made_on_meta(entry["class"], entry["arguments"], inside[name])
        except ShapeError as error:
            raise CheckpointError(f"{path} is damaged: layer {name[:100]!r}: {error}; use another copy") from error
    for name, chains in description.parametrizations.items():
        for tensor, chain in chains.items():
            parts = f"{name}.parametrizations.{tensor}." if name else f"parametrizations.{tensor}."
            for place, entry in enumerate(chain):
                if entry["class"] == "orthogonal" and entry["arguments"].get("use_trivialization") is True:
                    try:
                        require_base(tensors, parts, place)
                    except ShapeError as error:
                        raise CheckpointError(f"{path} is damaged: {error}; use another copy") from error


def _by_module(tensors: Mapping[str, Tensor], names: Mapping[str, object]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each module with one of these names, by their names in it."""
    found: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    deepest = max((name.count(".") + 1 for name in names), default=0)
    for name, tensor in tensors.items():
        words = name.split(".")
        for count in range(min(len(words), deepest + 1)):
            prefix = ".".join(words[:count])
            if prefix in found:
                found[prefix][".".join(words[count:])] = tensor
    return found


def _filled(model: M, description: Description, tensors: dict[str, Tensor]) -> M:
    """Return the network with the layers, parametrizations and weights of a file.

    Raises:
        ShapeError: what does not fit, and others of torch's own.
    """
    made: dict[nn.Module, nn.Module] = {}
    for name, entry in description.layers.items():
        old = _module(model, name)
        kind, arguments = LAYER_KINDS[entry["class"]], entry["arguments"]
        if old in made:
            new = made[old]
        elif type_before_parametrizations(old) is kind.kind and _plain(kind.read(old)) == arguments:
            continue
        elif not kind.is_ours:
            raise ShapeError(_other_layer(name, old, entry))
        else:
            new = made[old] = _replacement(name, old, entry)
        if name:
            model.set_submodule(name, new)
        else:
            model = new  # type: ignore[assignment]
    for name, chains in description.parametrizations.items():
        for tensor, chain in chains.items():
            _parametrize(_module(model, name), name, tensor, chain)
    _require_fit(model.state_dict(), tensors)
    model.load_state_dict(tensors)
    return model


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ShapeError(f"it has no layer {name!r}") from error


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments as they come out of JSON."""
    found: dict[str, Any] = parse_json(json.dumps(arguments), "arguments")
    return found


_GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def _other_layer(name: str, old: nn.Module, entry: Mapping[str, Any]) -> str:
    """Return what differs between a layer of the network and the one that was saved."""
    own = type_before_parametrizations(old)
    if own is not LAYER_KINDS[entry["class"]].kind:
        return f"layer {name!r} was a {entry['class']} and is a {own.__name__}"
    mine = _plain(LAYER_KINDS[entry["class"]].read(old))
    key = next(key for key, value in entry["arguments"].items() if mine[key] != value)
    return f"layer {name!r} was saved with {key} {entry['arguments'][key]}, and has {mine[key]}"


def _replacement(name: str, old: nn.Module, entry: Mapping[str, Any]) -> nn.Module:
    """Return svdctl's layer for the place of another, which must have its widths and geometry."""
    own = type_before_parametrizations(old)
    known = own.__module__.startswith("torch.nn.") or any(own is kind.kind for kind in LAYER_KINDS.values())
    if not known:
        raise ShapeError(f"layer {name!r} was a {entry['class']} and is a {own.__name__}, which is not replaced")
    new = made_layer(entry["class"], entry["arguments"])
    for key in _GEOMETRY:
        before, after = getattr(old, key, None), getattr(new, key, None)
        if before is None or after is None or isinstance(before, str) or isinstance(after, str):
            continue
        if _each(before) != _each(after):
            raise ShapeError(f"layer {name!r} has {key} {before}, and the {entry['class']} in its place {after}")
    like = next(old.parameters(), None)
    return new.train(old.training) if like is None else new.to(like.device, like.dtype).train(old.training)


def _each(value: Any) -> set[Any]:
    return set(value) if isinstance(value, tuple) else {value}


def _parametrize(module: nn.Module, name: str, tensor: str, chain: list[Mapping[str, Any]]) -> None:
    """Give a tensor its parametrizations, unless it has them."""
    wanted = [entry["class"] for entry in chain]
    if is_parametrized(module, tensor):
        own = [parametrization_name(part) for part in module.parametrizations[tensor]]  # type: ignore[index]
        if own != wanted:
            raise ShapeError(f"the {tensor} of layer {name!r} has other parametrizations than {', '.join(wanted)}")
        return
    if not isinstance(getattr(module, tensor, None), nn.Parameter):
        raise ShapeError(f"layer {name!r} has no parameter {tensor!r} to parametrize")
    for entry in chain:
        PARAMETRIZATION_KINDS[entry["class"]].register(module, tensor, entry["arguments"])


def _require_fit(expected: Mapping[str, Any], given: Mapping[str, Tensor]) -> None:
    """Refuse tensors of other names and shapes than those of a network.

    Raises:
        ShapeError: naming the first.
    """
    for what, names, others in (("the file lacks", expected, given), ("the network has no", given, expected)):
        if lacking := [name for name in names if name not in others]:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise ShapeError(f"{what} {lacking[0]!r}{more}")
    for name, tensor in given.items():
        shape = getattr(expected[name], "shape", None)
        if shape != tensor.shape and not name.endswith("_extra_state"):
            here, there = tuple(tensor.shape), "no tensor" if shape is None else tuple(shape)
            raise ShapeError(f"{name!r} is {here} in the file and {there} in the network")


def layers_of(weights: WeightFile, description: Description) -> dict[str, nn.Module]:
    """Return the layers that a file describes, with their weights, in evaluation mode, by name; without the network.

    Raises:
        CheckpointError: a layer that is none.
    """
    tensors = all_tensors(weights, description)
    check_layers(weights.path, description, tensors)
    found = {}
    for name, inside in _by_module(tensors, description.layers).items():
        entry = description.layers[name]
        try:
            layer = made_layer(entry["class"], entry["arguments"])
            dtype = next((tensor.dtype for tensor in inside.values() if tensor.is_floating_point()), torch.float32)
            layer.to(dtype)
            for tensor, chain in description.parametrizations.get(name, {}).items():
                _parametrize(layer, name, tensor, chain)
            _require_fit(layer.state_dict(), inside)
            layer.load_state_dict(inside)
        except (SvdctlError, RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{weights.path}: layer {name[:100]!r} is none ({first_line(error, 200)}); use another copy"
            ) from error
        found[name] = layer.eval()
    return found
