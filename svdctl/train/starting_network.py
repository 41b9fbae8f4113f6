"""The network that a run starts with: made, tried on two images, and filled with trained weights."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from svdctl.checkpoint.initial_weights import FilledNetwork, InitialTensors, fill_, read_initial
from svdctl.checkpoint.model_factory import listed
from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import Controller
from svdctl.errors import UsageError, first_line
from svdctl.layers.shapes import input_sizes
from svdctl.models.architecture import architecture_of, is_shipped
from svdctl.models.build import build_model

FILE = "initial_weights.json"
"""File of a run folder that says what the network took of trained weights."""


@dataclass(frozen=True)
class StartingNetwork:
    """A network before its first step."""

    model: nn.Module
    config: TrainConfig
    """Of the run, with the hash of its initial weights."""
    lines: tuple[str, ...] = ()
    """What is said of the initial weights."""
    record: dict[str, Any] | None = None
    """The same for the file `FILE`; None: it has none."""


def starting_network(
    config: TrainConfig, image_shape: tuple[int, int, int], classes: int, *, download: bool = False
) -> StartingNetwork:
    """Return the network of a new run, on the CPU, with its initial weights.

    Args:
        config: of the run.
        image_shape: channels, height and width.
        classes: their number.
        download: whether the weights that torchvision publishes may be downloaded.

    Raises:
        UsageError: it cannot be made, does not take such images, or gives no logits of so many classes.
        ShapeError: a layer that is to be controlled and cannot be.
        CheckpointError, DataError: weights that cannot be read or do not fit.
    """
    model = build_model(config, classes)
    if not is_shipped(config.model):
        name, network = architecture_of(config.model).name(config.model), getattr(config.model, "network", "")
        check_network(model, image_shape, classes, name, has_size=network.startswith(("timm:", "torchvision:vit_")))
        sizes = input_sizes(model.eval(), image_shape)
        Controller.from_config(model, None, config.control, config.batchnorm, sizes=sizes)  # what it refuses
    if config.initial is None:
        return StartingNetwork(model, config)
    given = read_initial(config.initial, config, download=download)
    found = fill_(model, config, classes, given, lenient=config.initial.lenient)
    initial = config.initial.model_copy(update={"sha256": given.sha256})
    record = {"file": config.initial.file, "sha256": given.sha256, **asdict(found)}
    return StartingNetwork(model, config.model_copy(update={"initial": initial}), _lines(given, found, model), record)


def _lines(given: InitialTensors, found: FilledNetwork, model: nn.Module) -> tuple[str, ...]:
    """Return what a network took of a file, in lines."""
    lines = [f"weights  {found.filled} tensors of {given.where}, SHA-256 {given.sha256[:12]}"]
    for what, names in (
        ("another head, left out", found.heads),
        ("left out", found.left_out),
        ("not in the file, at random", found.unfilled),
    ):
        lines += [f"         {what}: {listed(names)}"] * bool(names)
    if found.errors:
        width = max(map(len, found.errors))
        lines.append(f"         {'TT layer':<{width}}  {'rank':>9}  relative error")
        for name, error in found.errors.items():
            rank_in, rank_out = model.get_submodule(name).rank  # type: ignore[misc]
            lines.append(f"         {name:<{width}}  {f'{rank_out} x {rank_in}':>9}  {error:14.2%}")
    return tuple(lines)


@torch.no_grad()
def check_network(
    model: nn.Module, image_shape: tuple[int, ...], classes: int, name: str, *, has_size: bool = False
) -> None:
    """Run a network on one image, and as in training on two; its state and torch's random stream are left.

    Args:
        model: the network.
        image_shape: channels, height and width.
        classes: their number.
        name: what messages call it.
        has_size: whether `model.image_size` can make it for images of another size.

    Raises:
        UsageError: it fails, or returns no logits `(N, classes)`.
    """
    size = " x ".join(map(str, image_shape))
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        for training, count in ((False, 1), (True, 2)):
            model.train(training)
            images = torch.full((count, *image_shape), 0.5)
            with torch.random.fork_rng(devices=[]):
                where = f"{name} {'in training ' * training}on images of {size}"
                outputs = _outputs(model, images, where, has_size=has_size)
            _require_logits(outputs, (count, classes), name)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for buffer, before in buffers:
            buffer.copy_(before)


def _outputs(model: nn.Module, images: Tensor, what: str, *, has_size: bool) -> object:
    try:
        return model(images)
    except Exception as error:
        # What a network raises for images that it does not take is up to its author.
        way_out = _way_out(str(error), images.shape, has_size=has_size)
        raise UsageError(f"{what} failed ({type(error).__name__}: {first_line(error, 150)}); {way_out}") from error


def _way_out(failure: str, shape: Sequence[int], *, has_size: bool) -> str:
    """Return what to do about images `(N, C, H, W)` that a network does not take."""
    if channels := re.search(r"expected input.* to have (\d+) channels, but got (\d+) channels", failure):
        if int(channels[2]) != shape[1]:
            return "two of its layers do not fit together; mend the network"
        grey = " (`data.channels = 1`)" if channels[1] == "1" else ""
        return f"make its first layer for {channels[2]} channels, or give it images of {channels[1]}{grey}"
    if has_size:
        return (
            "give it images of another size (`data.size`), or make it for these, where it is of one size "
            f"(`model.image_size = {shape[-1]}`)"
        )
    return "give it images of another size (`data.size`), or mend the network"


def _require_logits(outputs: object, shape: tuple[int, int], name: str) -> None:
    if not isinstance(outputs, Tensor):
        raise UsageError(
            f"{name} returns a {type(outputs).__name__}, and a classifier returns logits (N, {shape[1]}) alone; wrap "
            "it in a factory of your own that does"
        )
    if tuple(outputs.shape) != shape or not outputs.is_floating_point():
        raise UsageError(
            f"{name} returns {outputs.dtype} of shape {tuple(outputs.shape)} for {shape[0]} images of {shape[1]} "
            f"classes, and a classifier returns logits {shape}; a factory is given `num_classes` if it takes it"
        )
