"""The input size of every layer, seen by running the model once."""

import torch
from torch import Tensor, nn

from svdctl.layers.operator import is_controllable


@torch.no_grad()
def input_sizes(
    model: nn.Module, image_shape: tuple[int, ...], also: tuple[type[nn.Module], ...] = ()
) -> dict[str, tuple[int, ...]]:
    """Spatial size of the input of each convolution and linear layer, by name; the model is left as it was.

    Args:
        model: any network.
        image_shape: one input without the batch axis, `(C, H, W)`.
        also: further types of layers to look at.
    """
    sizes: dict[str, tuple[int, ...]] = {}

    def record(name: str) -> "torch.utils.hooks.RemovableHandle":
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sizes[name] = (1,) if isinstance(layer, nn.Linear) else tuple(inputs[0].shape[2:])

        return model.get_submodule(name).register_forward_pre_hook(hook)

    handles = [
        record(name) for name, layer in model.named_modules() if is_controllable(layer) or isinstance(layer, also)
    ]
    training = {module: module.training for module in model.modules()}
    reference = next(model.parameters())
    try:
        # Evaluation mode: a pass in training mode would move BatchNorm's statistics.
        model.eval()
        model(torch.zeros(1, *image_shape, device=reference.device, dtype=reference.dtype))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return sizes
