"""All corruptions by name."""

from collections.abc import Callable

import torch
from torch import Tensor

from svdctl.config.corruption_names import CORRUPTIONS, SEVERITIES, corruption_name
from svdctl.data.streamed_images import to_device
from svdctl.errors import ShapeError, UsageError
from svdctl.evaluate.corruptions import blur, colour, digital, noise, spatter, weather
from svdctl.evaluate.corruptions.keyed_random import Draws, image_keys

_FUNCTIONS: dict[str, Callable[[Tensor, int, Draws], Tensor]] = {
    name: function
    for module in (blur, colour, digital, noise, spatter, weather)
    for name, function in vars(module).items()
    if name in CORRUPTIONS
}
"""The function of each corruption is the one of its name."""

SMALLEST = 8
"""Fewest pixels of a side; the weakest blurs are already too short there to change anything."""

_CHUNK = 3 * 32 * 32 * 64
"""Values worked on at once: what fits in a processor's cache, and keeps any batch from filling the memory."""

_GPU_CHUNK = 3 * 32 * 32 * 4096
"""The same on a GPU: enough work for each kernel."""


def corrupt(
    images: Tensor, name: str, severity: int, seed: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Return images with one of the corruptions of CIFAR-C and ImageNet-C, on the images' device or another one.

    The same image, corruption, severity and seed give the same pixels, in any batch, order and process: the random
    draws are keyed by a hash of the image's own pixels. (Equal images in a batch are therefore corrupted equally.)
    Constants are those of the published generator for the nearest size (`published_constants`): CIFAR-C's up to 45
    pixels of the shorter side, Tiny-ImageNet-C's up to 119, ImageNet-C's above; lengths in pixels scale with the
    shorter side over 32, 64 or 224. `NOTES` says what differs from the published files.

    Args:
        images: `(N, 3, H, W)` uint8, sides of at least 8 pixels. Of grey images `(N, 1, H, W)` three equal channels
            are corrupted and the first is kept.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: any whole number.
        device: where the images are corrupted, if not where they are. From the CPU to a GPU this waits for nothing that
            the GPU has still to do, but for the few corruptions that read something back.

    Returns:
        uint8, of the shape of `images`.

    Raises:
        UsageError: unknown name (with the nearest one), or a severity or seed that is none.
        ShapeError: images of another shape or type.

    Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", ICLR 2019.
    """
    name = corruption_name(name)
    for what, value in (("severity", severity), ("seed", seed)):
        if not hasattr(value, "__index__"):
            raise UsageError(f"{what} must be a whole number, not {value!r}")
    if severity not in SEVERITIES:
        raise UsageError(f"severity {severity} of {name}: there are severities {SEVERITIES[0]} to {SEVERITIES[-1]}")
    level, number = int(severity), int(seed)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ShapeError(
            "images to corrupt must be uint8 of shape (N, 3, H, W) or (N, 1, H, W), not "
            f"{images.dtype} {tuple(images.shape)}"
        )
    if images.shape[1] == 1:
        return corrupt(images.expand(-1, 3, -1, -1), name, level, number, device)[:, :1].contiguous()
    if min(images.shape[-2:]) < SMALLEST:
        raise ShapeError(
            f"images to corrupt must have at least {SMALLEST} x {SMALLEST} pixels, not {tuple(images.shape[-2:])}; "
            "enlarge them first"
        )
    there = images.device if device is None else torch.device(device)
    if not len(images):
        return images.to(there, copy=True)
    size = max(1, (_CHUNK if there.type == "cpu" else _GPU_CHUNK) // images[:1].numel())

    def some(part: Tensor) -> Tensor:
        # Hashes are made of the images where they are.
        draws = Draws(lambda: to_device(image_keys(part, name, level, number), there))
        return _FUNCTIONS[name](to_device(part, there), level, draws)

    return torch.cat([some(part) for part in images.contiguous().split(size)]).contiguous()
