"""Which layers a flat state dict stores: convolutions, linear, BatchNorm, TT, SOC and SOTT layers, and all the rest.

Nothing is dropped: a tensor that belongs to no layer known here is listed as its own, with the reason.
"""

from collections.abc import Callable, Container, Mapping

import torch
from torch import Tensor

from svdctl.weights import exponential, plain, tt
from svdctl.weights.stored import Leaves, StoredLayer, without

_RECOGNISERS: tuple[Callable[[str, Leaves, float], StoredLayer | None], ...] = (
    tt.tt,
    tt.paper_tt,
    exponential.soc,
    exponential.public_soc,
    exponential.sott,
    exponential.public_sott,
    plain.batchnorm,
    plain.normalize,
    plain.plain_weight,
    plain.attention,
    plain.alone,
)
"""Each takes a module's name, its tensors, and BatchNorm's eps; the last one always finds something."""


def stored_layers(
    tensors: Mapping[str, Tensor], *, others: Mapping[str, str] | None = None, batchnorm_eps: float = 1e-5
) -> list[StoredLayer]:
    """The layers of a network, in the order of the file.

    Args:
        tensors: flat state dict, as `WeightFile.tensors`.
        others: entries without ordinary numbers and what they are, as `WeightFile.others`.
        batchnorm_eps: eps of BatchNorm layers, which no file stores; 1e-5 is torch's default.
    """
    places = {name: _split(name, tensors) for name in tensors}
    modules: dict[str, Leaves] = {}
    for name, (module, leaf) in places.items():
        modules.setdefault(module, {})[leaf] = tensors[name]
    found: list[StoredLayer] = []
    for module, leaves in modules.items():
        while leaves:
            layer = next(layer for recognise in _RECOGNISERS if (layer := recognise(module, leaves, batchnorm_eps)))
            found.append(_checked(layer, tensors))
            taken = {places[name][1] for name in layer.tensors}
            leaves = {leaf: tensor for leaf, tensor in leaves.items() if leaf not in taken}
    for name, what in (others or {}).items():
        found.append(StoredLayer(name, "other", "its type", (), 0, (), reason=f"it is {what}, not a tensor of numbers"))
    return found


def _split(name: str, names: Container[str]) -> tuple[str, str]:
    """Module and the name within it; parts of a parametrised tensor, and the core of a SOTT layer, are not modules."""
    words = name.split(".")
    place = words.index("parametrizations") if "parametrizations" in words else len(words) - 1
    if place and words[place - 1] == "core" and ".".join([*words[:place], "right1"]) in names:
        place -= 1
    return ".".join(words[:place]), ".".join(words[place:])


def _checked(layer: StoredLayer, tensors: Mapping[str, Tensor]) -> StoredLayer:
    """Without its operator when a tensor of the layer is empty, NaN or infinite."""
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
