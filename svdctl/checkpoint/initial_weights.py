"""Trained weights that a run starts from: read from any file, and put into its network, TT layers by best fit."""

import hashlib
import math
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from svdctl.checkpoint.library_file import all_tensors, describe
from svdctl.checkpoint.model_factory import bridged_by_names, described, listed, needed_names
from svdctl.checkpoint.paper_checkpoints import open_paper_network
from svdctl.checkpoint.tensors import digest, fits_place, holds_weights
from svdctl.checkpoint.weight_file import WeightFile, read_tensors
from svdctl.config.model_config import PUBLISHED, InitialWeights
from svdctl.config.train_config import TrainConfig
from svdctl.errors import CheckpointError, DataError, UsageError, first_line
from svdctl.layers.layer_ops import find_ops
from svdctl.layers.normalize import Normalize
from svdctl.layers.tt import TTConv
from svdctl.models.architecture import architecture_of
from svdctl.models.build import build_model
from svdctl.models.external_architecture import External
from svdctl.models.made_network import AUXILIARY
from svdctl.registry import LAYERS
from svdctl.utils.files import open_regular


@dataclass(frozen=True)
class InitialTensors:
    """Tensors of a file, with the names that the file's network gives them."""

    where: str
    tensors: dict[str, Tensor]
    sha256: str


@dataclass(frozen=True)
class FilledNetwork:
    """What a network took of a file."""

    filled: int
    """Number of tensors."""
    heads: tuple[str, ...] = ()
    """Tensors of the file's head, of another number of classes, and of its further heads; they are left out."""
    left_out: tuple[str, ...] = ()
    """Other tensors of the file that the network has no place for."""
    unfilled: tuple[str, ...] = ()
    """Tensors of the network that the file does not fill, besides its head: they stay at random."""
    errors: dict[str, float] = field(default_factory=dict)
    """Relative error of each TT layer in Frobenius norm, by name."""


def read_initial(initial: InitialWeights, config: TrainConfig, *, download: bool) -> InitialTensors:
    """Return the tensors of the file that a configuration names; nothing in it is executed.

    Args:
        initial: the section of the configuration.
        config: of the run.
        download: whether published weights that are not on this machine may be downloaded.

    Raises:
        CheckpointError: a file that is missing, damaged, foreign, or another one than `initial.sha256` says.
        UsageError: published weights of a network that has none, or that may not be downloaded.
        DataError: they could not be downloaded.
    """
    path = _published(config, download) if initial.file == PUBLISHED else Path(initial.file)
    weights = read_tensors(path, key=initial.key)
    tensors = _in_the_networks_names(weights)
    found = digest(tensors)
    if initial.sha256 not in (None, found):
        raise CheckpointError(
            f"{weights.path} holds other weights than those of the configuration (SHA-256 {found[:12]}, there "
            f"{str(initial.sha256)[:12]}); restore the file, or leave `initial.sha256` out"
        )
    return InitialTensors(str(weights.path), tensors, found)


def _in_the_networks_names(weights: WeightFile) -> dict[str, Tensor]:
    """Return the tensors of a file, those of the paper's code by the names of svdctl's network."""
    if weights.format == "paper":
        return dict(open_paper_network(weights.tensors, where=str(weights.path)).model.state_dict())
    description = describe(weights)
    return weights.tensors if description is None else all_tensors(weights, description)


def _published(config: TrainConfig, download: bool) -> Path:
    """Return the file of the weights that torchvision publishes for a network, in torch's folder of downloads.

    Raises:
        UsageError, DataError: as of `read_initial`.
    """
    library, _, name = getattr(config.model, "network", "").rpartition(":")
    if library != "torchvision":
        raise UsageError(f"`initial.file = {PUBLISHED}` is for networks of torchvision; add `model = torchvision:NAME`")
    from torchvision import models

    url: str = models.get_model_weights(name).DEFAULT.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    wanted = file.stem.rpartition("-")[2]
    if not file.is_file():
        if not download:
            raise UsageError(
                f"the weights that torchvision publishes for {name} are not on this machine, and a file alone "
                f"downloads nothing; add `initial.file = {PUBLISHED}`"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file), wanted, progress=False)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise DataError(f"{url} could not be downloaded ({first_line(error, 150)}); put it at {file}") from error
    with open_regular(file) as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if not found.startswith(wanted):
        raise DataError(f"{file} is not the published file (its SHA-256 begins with {found[:8]}); remove it")
    return file


@torch.no_grad()
def fill_(
    model: nn.Module, config: TrainConfig, classes: int, given: InitialTensors, *, lenient: bool
) -> FilledNetwork:
    """Put trained weights into the network of a run, in place: all, but the head of another number of classes.

    Where the file holds convolutions and the network TT layers, each of these becomes the nearest one of its rank. The
    network's normalisation of pixels stays.

    Args:
        model: of `config`, on the CPU.
        config: of the run.
        classes: their number.
        given: what was read.
        lenient: take what fits, whatever else does not.

    Raises:
        CheckpointError: what does not fit, and is no head; or nothing fits.
    """
    own = _Fit(model, config, classes, given.tensors)
    if config.layer.kind == "standard" or not any(isinstance(layer, TTConv) for layer in model.modules()):
        return own.fill_(given.where, lenient=lenient)
    ordinary = config.model_copy(update={"layer": LAYERS.get("standard").config(), "init": "svdctl"})
    twin = build_model(ordinary, classes)
    dense = _Fit(twin, config, classes, given.tensors)
    if len(own.fitting) >= len(dense.fitting):
        return own.fill_(given.where, lenient=lenient)
    found = dense.fill_(given.where, lenient=lenient)
    errors = _fit_layers_(model, twin, set(found.unfilled))
    return FilledNetwork(found.filled, found.heads, found.left_out, found.unfilled, errors)


def _fit_layers_(model: nn.Module, twin: nn.Module, unfilled: set[str]) -> dict[str, float]:
    """Give each TT layer of a network the best fit of its twin's convolution, and all others the twin's tensors.

    Returns:
        The relative error of each TT layer.
    """
    errors: dict[str, float] = {}
    state = twin.state_dict()
    for name, layer in model.named_modules():
        if not isinstance(layer, TTConv):
            continue
        for leaf in ("weight", "bias"):
            state.pop(f"{name}.{leaf}", None)
        if f"{name}.weight" in unfilled:
            continue
        form: type[TTConv] = type_before_parametrizations(layer)
        fitted, errors[name] = form.from_conv(twin.get_submodule(name), layer.rank, frames=layer.frames_kind)
        layer.load_state_dict(fitted.state_dict())
    model.load_state_dict(state, strict=False)
    return errors


class _Fit:
    """How the tensors of a file fit a network.

    Args:
        model: the network.
        config: of the run.
        classes: their number.
        tensors: of the file.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, classes: int, tensors: Mapping[str, Tensor]) -> None:
        self.model = model
        own = architecture_of(config.model).is_defined_here
        self.advice = "check that the file is of this network" if own else "check `model`"
        pixels = [name for name, module in model.named_modules() if type(module) is Normalize]
        kept = tuple(f"{name}.{leaf}" for name in pixels for leaf in ("mean", "std"))
        self.expected = {name: tensor for name, tensor in model.state_dict().items() if name not in kept}
        # Of a checkpoint of svdctl: pixels are normalised as the configuration says.
        file = {name: tensor for name, tensor in tensors.items() if name not in ("normalize.mean", "normalize.std")}
        self.names = bridged_by_names(file, self.expected)
        self.given = {name: file[own] for own, name in self.names.items()}
        same = {name for name, tensor in self.given.items() if name in self.expected}
        self.fitting = {name for name in same if fits_place(self.given[name], self.expected[name])}
        self.heads = _head(model, classes, self.given, same - self.fitting) | self._further_heads(config)

    def _further_heads(self, config: TrainConfig) -> set[str]:
        network = config.model.network if isinstance(config.model, External) else ""
        begins = AUXILIARY.get(network.removeprefix("torchvision:"), ())
        return {name for name in self.given if begins and name.removeprefix("model.").startswith(begins)}

    def fill_(self, where: str, *, lenient: bool) -> FilledNetwork:
        """Fill the network.

        Raises:
            CheckpointError: as of the function `fill_`.
        """
        own = {name: file for file, name in self.names.items()}
        outside = [name for name in self.given if name not in self.fitting and name not in self.heads]
        unfilled = [name for name in needed_names(self.expected) if name not in self.fitting and name not in self.heads]
        if not any(holds_weights(self.given[name]) for name in self.fitting):
            raise CheckpointError(
                f"{where} has no tensor of the network's names and shapes: the file begins with "
                f"{next(iter(own.values()), '')!r}, the network with {next(iter(self.expected), '')!r}; {self.advice}"
            )
        if (outside or unfilled) and not lenient:
            raise CheckpointError(
                f"{where} does not fit the network: {self._misfit(outside, unfilled, own)}; `initial.lenient` takes "
                "what fits and names the rest"
            )
        taken = {name: self.given[name].to(self.expected[name].dtype) for name in self.fitting}
        if damaged := [own[name] for name, tensor in taken.items() if not bool(tensor.isfinite().all())]:
            raise CheckpointError(
                f"{where} has numbers that are not finite in {listed(sorted(damaged), 3)}; use another file"
            )
        self.model.load_state_dict(taken, strict=False)
        heads, left_out = ([own[name] for name in names] for names in (sorted(self.heads & own.keys()), outside))
        return FilledNetwork(len(self.fitting), tuple(heads), tuple(left_out), tuple(unfilled))

    def _misfit(self, outside: list[str], unfilled: list[str], own: Mapping[str, str]) -> str:
        differ = [name for name in outside if name in self.expected]
        parts = [
            f"{own[name]!r} is {described(self.given[name])} in the file and {described(self.expected[name])} in the "
            "network"
            for name in differ[:1]
        ]
        lacking = [name for name in unfilled if name not in self.given]
        parts += [f"it lacks {listed(lacking, 3)}"] * bool(lacking)
        extra = [own[name] for name in outside if name not in self.expected]
        parts += [f"the network has no {listed(extra, 3)}"] * bool(extra)
        return "; ".join(parts)


def _head(model: nn.Module, classes: int, given: Mapping[str, Tensor], differ: set[str]) -> set[str]:
    """Return the tensors of the last layer, if it is that of the classes and the file has another number of them."""
    last: tuple[str, tuple[int, ...]] | None = None
    for name, layer in model.named_modules():
        ops = find_ops(layer)
        shape: Any = () if ops is None or not ops.can_control else ops.shape(layer)
        if len(shape) >= 2 and math.prod(shape[2:]) == 1:
            last = name, tuple(shape)
    if last is None or last[1][0] != classes:
        return set()
    name, (_, *inner) = last
    found = {own for own in differ if own in (f"{name}.weight", f"{name}.bias")}
    shapes = {own: tuple(given[own].shape) for own in found}
    others = {shape[0] for shape in shapes.values() if shape}
    fits = all(list(shape[1:]) == (inner if own.endswith("weight") else []) for own, shape in shapes.items())
    return found if fits and len(others) == 1 else set()
