"""Changes of light: brightness, contrast, saturation.

Every function takes images `(N, 3, H, W)` uint8, a severity from 1 to 5 and the images' draws, and returns uint8.
"""

import torch
from torch import Tensor

from svdctl.evaluate.corruptions.filters import constant, to_bytes
from svdctl.evaluate.corruptions.keyed_random import Draws


def brightness(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Add a constant to HSV's value, the largest channel; hue and saturation stay."""
    added = 255 * constant(images, "brightness", severity)
    value = images.amax(1, keepdim=True).float()
    brighter = (value + added).clamp_(max=255)
    # Equal hue and saturation mean equal ratios of the channels; black has none and turns grey.
    return to_bytes(torch.where(value > 0, images * (brighter / value.clamp(min=1)), brighter))


def contrast(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Multiply distances to the mean of the channel by a factor below 1."""
    factor = constant(images, "contrast", severity)
    height, width = images.shape[-2:]
    # Sums of whole numbers are exact, so the mean does not depend on their order.
    mean = images.sum((2, 3), keepdim=True).double() / (height * width)
    return to_bytes((images - mean) * factor + mean)


def saturate(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Map HSV's saturation to factor * saturation + offset; a grey pixel that gains some turns red, whose hue is 0."""
    factor, offset = constant(images, "saturate", severity)
    value = images.amax(1, keepdim=True).float()
    below = value - images
    spread = below.amax(1, keepdim=True)
    saturation = spread / value.clamp(min=1)
    wanted = (saturation * factor + offset).clamp_(max=1)
    red = torch.tensor([0.0, 1.0, 1.0], device=images.device).view(1, 3, 1, 1)
    share = torch.where(spread > 0, below / spread.clamp(min=1), red)
    return to_bytes(value - share * (wanted * value))
