"""Networks that svdctl did not make: built by the user's own code or torchvision's, and filled from any file.

A factory of the user's is imported and called; a file of weights never is. `load_into` is strict: every tensor finds
its place, or one sentence says which does not and why. `load_model_leniently` takes what fits and names the rest.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from svdctl.checkpoint.tensors import fits_place, holds_weights
from svdctl.checkpoint.weight_file import WeightFile
from svdctl.errors import CheckpointError
from svdctl.layers.normalize import Normalize
from svdctl.models.made_network import make_network, without_numbers
from svdctl.plugins import is_factory

_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
_MAX_PREFIXES = 8
"""Prefixes of a name that are tried on all tensors; a name may have hundreds."""
_SHOWN = 20
"""Names that a sentence lists."""


def make_model(spec: str, *, weights: WeightFile | None = None) -> nn.Module:
    """Return a network by name, its weights drawn at random and none downloaded; the global random stream is left.

    Args:
        spec: `torchvision:NAME`, `timm:NAME`, or `package.module:factory` where the factory needs no arguments; modules
            are looked for in the current folder too.
        weights: with them, a network of torchvision or timm gets as many classes as they have.

    Raises:
        UsageError: no such module, name or network, or a factory that fails or makes no network.
    """
    with torch.random.fork_rng(devices=[]):
        if weights is None or is_factory(spec):
            return make_network(spec, auxiliary=True)
        with without_numbers():
            shapes = make_network(spec, auxiliary=True).state_dict()
        return make_network(spec, classes=_classes(shapes, weights.tensors), auxiliary=True)


def load_model(
    spec: str,
    weights: WeightFile,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Return the network by name with the weights, and with `mean` and `std` a normalisation in front; for evaluation.

    With a normalisation the network takes pixels in [0, 1]; `NetworkSource` checks its numbers.
    """
    return _normalized(load_into(make_model(spec, weights=weights), weights), mean, std)


@dataclass(frozen=True)
class Misfit:
    """Tensors of a file and of a network that have no counterpart of their name and shape on the other side."""

    left_out: tuple[str, ...]
    """Those of the file."""
    unfilled: tuple[str, ...]
    """Those of the network, whose numbers are the ones that it was made with."""

    @property
    def told(self) -> str:
        """Return both in words; empty when all fitted."""
        parts = (("left out of the file", self.left_out), ("not filled, at random", self.unfilled))
        return "; ".join(f"{what}: {listed(names)}" for what, names in parts if names)


def load_model_leniently(
    spec: str,
    weights: WeightFile,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[nn.Module, Misfit]:
    """Return what `load_model` returns, filled with the tensors that fit by name and shape, and what did not fit.

    Raises:
        CheckpointError: no weight fits.
    """
    model = make_model(spec, weights=weights)
    expected = model.state_dict()
    given = max(_bridges(weights.tensors, expected), key=lambda bridged: len(_fitting(bridged, expected)))
    fitting = _fitting(given, expected)
    if not any(holds_weights(tensor) for tensor in fitting.values()):
        raise CheckpointError(f"{weights.path} has no tensor of the network's names and shapes; check `model`")
    model.load_state_dict(fitting, strict=False)
    # Names of the file, in the order in which each bridge has them.
    left_out = tuple(own for own, name in zip(weights.tensors, given, strict=True) if name not in fitting)
    unfilled = tuple(name for name in expected if name in needed_names(expected) and name not in fitting)
    return _normalized(model, mean, std), Misfit(left_out, unfilled)


def _fitting(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in given.items() if name in expected and fits_place(value, expected[name])}


def _bridges(given: dict[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors with their names, and with the shorter prefixes of either side taken off or put before all."""
    given = _renamed(given, expected)
    yield given
    for prefix in _prefixes(given)[-_MAX_PREFIXES:]:
        shorter = {name.removeprefix(prefix): tensor for name, tensor in given.items()}
        if len(shorter) == len(given):
            yield shorter
    for prefix in _prefixes(expected)[-_MAX_PREFIXES:]:
        yield {prefix + name: tensor for name, tensor in given.items()}


def bridged_by_names(given: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Return by each name of a file the one that the tensor has in a network, a common prefix bridged.

    Of all bridges it is that by which most names are the network's, whatever the shapes.
    """
    found = max(_bridges(given, expected), key=lambda bridged: len(bridged.keys() & expected.keys()))
    return dict(zip(given, found, strict=True))


def _normalized(model: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None) -> nn.Module:
    """Return the network for evaluation, with both numbers behind a normalisation of pixels."""
    if mean is not None and std is not None:
        model = nn.Sequential(OrderedDict(normalize=Normalize(mean, std), model=model))
    return model.eval()


def _classes(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of the weights, where a head of another number of classes is all that differs."""
    differ = [name for name in expected if name in given and expected[name].shape != given[name].shape]
    pairs = {(tuple(expected[name].shape[:1]), tuple(given[name].shape[:1])) for name in differ}
    inner = all(expected[name].shape[1:] == given[name].shape[1:] for name in differ)
    if len(pairs) != 1 or not inner:
        return None
    (_, count) = pairs.pop()
    return count[0] if count else None


def load_into(model: nn.Module, weights: WeightFile) -> nn.Module:
    """Fill a network with the weights, all of them or none; it is changed in place and returned.

    One common prefix may be too much on either side (`model.` of a Lightning module, say) and is bridged.

    Raises:
        CheckpointError: naming the first tensors that do not fit, with the likely cause.
    """
    expected = model.state_dict()
    given = _bridged(weights.tensors, expected)
    fault = _fault(expected, given, weights)
    if fault is not None:
        bridged = (_fitting(tensors, expected).values() for tensors in _bridges(weights.tensors, expected))
        fits = any(holds_weights(tensor) for fitting in bridged for tensor in fitting)
        hint = "; `lenient` takes what fits and names the rest" if fits else ""
        raise CheckpointError(f"{weights.path} does not fit the network: {fault}{hint}")
    try:
        model.load_state_dict(given)
    except (RuntimeError, TypeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CheckpointError(f"{weights.path} does not fit the network: {lines[-1][:200]}; check `model`") from error
    return model


def _bridged(given: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    needed = needed_names(expected)
    given = _renamed(given, expected)
    if needed <= given.keys():
        return given
    one = next(iter(needed), "")
    for prefix in _prefixes(given):
        # A name may have hundreds of prefixes, and a file very many names.
        if prefix + one not in given:
            continue
        shorter = {name.removeprefix(prefix): tensor for name, tensor in given.items()}
        if all(name.startswith(prefix) for name in given) and needed <= shorter.keys():
            return shorter
    for prefix in _prefixes(expected):
        longer = {prefix + name: tensor for name, tensor in given.items()}
        if needed <= longer.keys():
            return longer
    return given


def _renamed(given: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with today's names of torchvision's DenseNet, where they have those of before 0.3 (norm.1)."""
    if not any(name.endswith("denselayer1.norm1.weight") for name in expected):
        return given
    renamed = {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in given.items()}
    return renamed if len(renamed) == len(given) else given


def needed_names(expected: Mapping[str, Tensor]) -> set[str]:
    """Return the names that a file must have: without BatchNorm's counters, which old files lack and torch fills in."""
    return {name for name in expected if not name.endswith("num_batches_tracked")}


def _prefixes(names: Mapping[str, Tensor]) -> list[str]:
    """Return all prefixes of the first name that end with a dot, longest first."""
    words = next(iter(names), "").split(".")[:-1]
    return [".".join(words[:count]) + "." for count in range(len(words), 0, -1)]


def _fault(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], weights: WeightFile) -> str | None:
    missing = [name for name in expected if name in needed_names(expected) and name not in given]
    unexpected = [name for name in given if name not in expected]
    differ = [name for name in expected if name in given and not fits_place(given[name], expected[name])]
    if not (missing or unexpected or differ):
        return None
    hint = f"; `key` takes another part ({', '.join(weights.alternatives[:4])})" if weights.alternatives else ""
    if missing and not (given.keys() & expected.keys()):
        return (
            f"no name is in both; the file begins with {next(iter(given), '')!r}, the network with {missing[0]!r}; "
            f"check `model`{hint}"
        )
    if missing:
        near = get_close_matches(missing[0], unexpected or list(given), 1)
        nearest = f", the nearest there is {near[0]!r}" if near else ""
        return f"it lacks {missing[0]!r}{_more(missing)}{nearest}; check `model`{hint}"
    if unexpected:
        near = get_close_matches(unexpected[0], expected, 1)
        nearest = f", the nearest is {near[0]!r}" if near else ""
        return f"the network has no {unexpected[0]!r}{_more(unexpected)}{nearest}; check `model`{hint}"
    first = differ[0]
    here, there = described(given[first]), described(expected[first])
    shapes = f"{first!r} is {here} in the file and {there} in the network{_more(differ)}"
    if given[first].shape == expected[first].shape:
        return f"{shapes}; save real numbers in its place"
    classes = _classes(expected, given)
    if classes is not None:
        return f"{shapes}; the file probably has {classes} classes: make the network with as many"
    return f"{shapes}; check the widths of `model`{hint}"


def described(tensor: Tensor) -> str:
    """Return the shape of a tensor, with the type of numbers that are not real."""
    kind = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"


def listed(names: Sequence[str], shown: int = _SHOWN) -> str:
    """Return the first names, and how many there are besides."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
