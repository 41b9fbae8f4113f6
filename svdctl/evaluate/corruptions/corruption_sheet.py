"""One picture of every corruption at every severity, to look at before trusting any number."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from svdctl.config.corruption_names import BENCHMARK, CORRUPTIONS, SEVERITIES
from svdctl.errors import UsageError
from svdctl.evaluate.corruptions.corruption_functions import corrupt
from svdctl.utils.atomic_write import write_atomically

TILE = 72
"""Least size of a shown image in pixels; smaller ones are enlarged by a whole factor, pixel by pixel."""


def contact_sheet(path: Path | str, images: Tensor | None = None, seed: int = 0) -> Path:
    """Draw the 19 corruptions, a row each, at severities 1 to 5, beside the clean images.

    Args:
        path: where to write; its ending tells the format (.png).
        images: `(N, 3, H, W)` uint8, a few (all are shown in every cell); two pieces of photographs and a digit,
            32 x 32 each, when None.
        seed: of the corruptions.

    Returns:
        The path.

    Raises:
        UsageError: the picture cannot be written there.
        ShapeError: images of another shape or type.
    """
    path = Path(path).expanduser()
    images = sample_images() if images is None else images.cpu()
    height, width = images.shape[-2:]
    factor = max(1, -(-TILE // max(height, width)))
    gap, label, head = 3, 190, 34
    cell = len(images) * (width * factor + gap) + 4 * gap
    line = height * factor + gap
    sheet = Image.new("RGB", (label + (1 + len(SEVERITIES)) * cell, head + len(CORRUPTIONS) * line), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    for column, title in enumerate(("clean", *(f"severity {severity}" for severity in SEVERITIES))):
        draw.text((label + column * cell, head // 2), title, "black", font, anchor="lm")
    for row, name in enumerate(CORRUPTIONS):
        top = head + row * line
        draw.text((label - 4 * gap, top + line // 2), name, "black" if name in BENCHMARK else "#777", font, anchor="rm")
        cells = (images, *(corrupt(images, name, severity, seed) for severity in SEVERITIES))
        for column, part in enumerate(cells):
            for position, image in enumerate(part):
                tile = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
                tile = tile.resize((width * factor, height * factor), Image.Resampling.NEAREST)
                sheet.paste(tile, (label + column * cell + position * (width * factor + gap), top))
    Image.init()
    form = Image.registered_extensions().get(path.suffix.lower())
    if form is None:
        raise UsageError(f"{path}: no picture format has this ending; name a .png")
    try:
        write_atomically(path, lambda file: sheet.save(file, form))
    except OSError as error:
        raise UsageError(
            f"{path}: the picture cannot be written ({error.strerror or error}); name a .png in a folder that exists"
        ) from error
    return path


def sample_images() -> Tensor:
    """Return images `(3, 3, 32, 32)` uint8, none downloaded: a temple and a flower (scikit-learn's), a digit."""
    from sklearn.datasets import load_digits, load_sample_image  # 1.5 s to import, needed here alone

    # Left, top and side of the square to show, in pixels of the photographs.
    squares = {"china.jpg": (70, 30, 240), "flower.jpg": (180, 40, 330)}
    tiles = []
    for name, (left, top, side) in squares.items():
        photograph = Image.fromarray(load_sample_image(name)).crop((left, top, left + side, top + side))
        tiles.append(np.asarray(photograph.resize((32, 32), Image.Resampling.BOX)))
    digit = Image.fromarray((load_digits().images[0] * 255 / 16).round().astype(np.uint8))
    tiles.append(np.asarray(digit.resize((32, 32), Image.Resampling.BILINEAR).convert("RGB")))
    return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).contiguous()
