"""Which layers a flat state dict stores: convolutions, linear, BatchNorm, TT, SOC and SOTT layers, and all the rest.

Nothing is dropped: a tensor that belongs to no layer known here is listed as its own, with the reason.
"""

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from svdctl.checkpoint import quantized, recognize_standard
from svdctl.checkpoint.quantized import quantiser_of
from svdctl.checkpoint.stored_framed import framed
from svdctl.checkpoint.stored_layer import NOTHING, Leaves, StoredLayer, without
from svdctl.checkpoint.tensors import holds_weights

_ADAPTER = re.compile(r"(lora|lokr|hada|ia3|oft|boft|vera_lambda)_", re.IGNORECASE)
_RECOGNISERS: tuple[Callable[[str, Leaves], StoredLayer | None], ...] = (
    quantized.quantised,
    framed,
    recognize_standard.batchnorm,
    recognize_standard.normalize,
    recognize_standard.normed_weight,
    recognize_standard.plain_weight,
    recognize_standard.attention,
    recognize_standard.alone,
)
"""Each takes a module's name and its tensors; the last one always finds something."""


def stored_layers(
    tensors: Mapping[str, Tensor], *, others: Mapping[str, str] | None = None, unread: Container[str] = ()
) -> list[StoredLayer]:
    """Return the layers of a network, in the order of the file.

    A layer has an operator only when nothing but its own tensors stands in its module and below it: what a further
    tensor, number or object does there, a scale, a mask, an adapter, is not known.

    Args:
        tensors: flat state dict, as `WeightFile.tensors`.
        others: entries without ordinary numbers and what they are, as `WeightFile.others`.
        unread: those of `others` that may hold weights.
    """
    others = others or {}
    places = {name: _split(name, tensors) for name in (*tensors, *others)}
    modules: dict[str, Leaves] = {}
    at_or_below: dict[str, list[str]] = {}
    for name, (module, leaf) in places.items():
        if name in tensors:
            modules.setdefault(module, {})[leaf] = tensors[name]
        elif others[name] == NOTHING:
            continue
        words = module.split(".") if module else []
        for count in range(len(words) + 1):
            at_or_below.setdefault(".".join(words[:count]), []).append(name)
    adapted = _adapted(tensors)
    found: list[StoredLayer] = []
    for module, leaves in modules.items():
        while leaves:
            layer = next(layer for recognise in _RECOGNISERS if (layer := recognise(module, leaves)))
            if not layer.reason:
                beside = [name for name in at_or_below[module] if name not in layer.tensors]
                layer = _checked(_alone(layer, beside, adapted), tensors)
            may_hold = any(holds_weights(tensors[n]) or n.rpartition(".")[2] == "weight" for n in layer.tensors)
            found.append(replace(layer, has_weights=may_hold or not layer.reason))
            taken = {places[name][1] for name in layer.tensors}
            leaves = {leaf: tensor for leaf, tensor in leaves.items() if leaf not in taken}
    for name, what in others.items():
        reason = f"it is {what}, not a tensor of numbers"
        found.append(StoredLayer(name, "other", "its type", (), 0, (), reason, has_weights=name in unread))
    return found


def _alone(layer: StoredLayer, beside: Sequence[str], adapted: Mapping[str, str]) -> StoredLayer:
    """Return the layer, without its operator where a tensor beside or below it may change what it computes."""
    if layer.name in adapted:
        return without(layer, f"{adapted[layer.name]} is an adapter, which changes what the layer computes")
    own = [name.removeprefix(f"{layer.name}.") for name in beside]
    if layer.told_by == "in_proj_weight":
        own = [name for name in own if name not in ("bias_k", "bias_v") and not name.startswith("out_proj.")]
    if not own:
        return layer
    by = quantiser_of(own)
    named = ", ".join(own[:3]) + (f" and {len(own) - 3} more" if len(own) > 3 else "")
    return without(layer, f"{named} beside it{f' (as of {by})' if by else ''}: what it computes with is not known")


def _adapted(names: Iterable[str]) -> dict[str, str]:
    """Return a tensor of the adapter by module, for modules that one of low rank changes, and its own modules."""
    found: dict[str, str] = {}
    for name in names:
        words = name.split(".")
        place = next((place for place, word in enumerate(words) if _ADAPTER.match(word)), None)
        if place is not None:
            module = ".".join(words[:place])
            changed = (module, f"{module}.base_layer" if module else "base_layer", ".".join(words[:-1]))
            found |= dict.fromkeys(changed, name)
    return found


def _split(name: str, names: Container[str]) -> tuple[str, str]:
    """Return module and name within it; parts of a parametrised tensor and the core of a SOTT layer are no modules."""
    words = name.split(".")
    place = words.index("parametrizations") if "parametrizations" in words else len(words) - 1
    if place and words[place - 1] == "core" and ".".join([*words[:place], "right1"]) in names:
        place -= 1
    return ".".join(words[:place]), ".".join(words[place:])


def _checked(layer: StoredLayer, tensors: Mapping[str, Tensor]) -> StoredLayer:
    """Return the layer, without its operator if a tensor of it is empty, NaN or infinite."""
    if layer.reason:
        return layer
    for name in layer.tensors:
        tensor = tensors[name]
        if not tensor.numel():
            return without(layer, f"{name} is empty")
        if tensor.is_floating_point() and (fault := _not_finite(tensor)):
            return without(layer, f"{name} has {fault}")
    if layer.scale is not None and not bool(torch.isfinite(layer.scale).all()):
        return without(layer, "a variance or deviation of it is not positive")
    return layer


def _not_finite(tensor: Tensor) -> str:
    wide = tensor if tensor.element_size() > 1 else tensor.float()
    if bool(torch.isfinite(wide).all()):
        return ""
    nan = int(wide.isnan().sum())
    infinite = int(wide.isinf().sum())
    counts = [f"{count} {what}" for count, what in ((nan, "NaN"), (infinite, "infinite")) if count]
    return f"{' and '.join(counts)} of {tensor.numel()} numbers"
