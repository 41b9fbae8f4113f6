"""The network that a run starts with: made, tried on two images, and filled with trained weights."""

import torch
from torch import Tensor, nn

from svdctl.config.train_config import TrainConfig
from svdctl.errors import UsageError, first_line
from svdctl.models.architecture import architecture_of
from svdctl.models.build import build_model
from svdctl.registry import ARCHITECTURES


def starting_network(config: TrainConfig, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return the network of a new run, on the CPU.

    Raises:
        UsageError: it cannot be made, does not take such images, or gives no logits of so many classes.
    """
    model = build_model(config, classes)
    architecture = architecture_of(config.model)
    if not ARCHITECTURES.is_builtin(architecture) or not architecture.is_defined_here:
        check_network(model, image_shape, classes, architecture.name(config.model))
    return model


@torch.no_grad()
def check_network(model: nn.Module, image_shape: tuple[int, ...], classes: int, name: str) -> None:
    """Run a network on one image, and as in training on two; its state and torch's random stream are left.

    Args:
        model: the network.
        image_shape: channels, height and width.
        classes: their number.
        name: what messages call it.

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
                outputs = _outputs(model, images, f"{name} {'in training ' * training}on images of {size}")
            _require_logits(outputs, (count, classes), name)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for buffer, before in buffers:
            buffer.copy_(before)


def _outputs(model: nn.Module, images: Tensor, what: str) -> object:
    try:
        return model(images)
    except Exception as error:
        # What a network raises for images that it does not take is up to its author.
        raise UsageError(
            f"{what} failed ({type(error).__name__}: {first_line(error, 150)}); give it images of another size "
            "(`data.size`), or make it for these (`model.image_size`, where it has one)"
        ) from error


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
