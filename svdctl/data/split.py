"""Splits of a data set that keep the share of every class."""

import torch
from torch import Tensor

from svdctl.data.images import ImageData
from svdctl.errors import DataError


def stratified_split(data: ImageData, share: float, seed: int) -> tuple[ImageData, ImageData]:
    """Split off `share` of every class, drawn from `seed`: (the rest, the part). At least one of each on both sides."""
    generator = torch.Generator().manual_seed(seed)
    labels = data.labels.cpu()
    part: list[Tensor] = []
    rest: list[Tensor] = []
    for label, name in enumerate(data.classes):
        members = torch.nonzero(labels == label).flatten()
        if len(members) == 0:
            continue
        if len(members) < 2:
            raise DataError(
                f"class {name!r} has a single image, so it cannot be split; add images or use "
                "`evaluation.select = last`"
            )
        order = members[torch.randperm(len(members), generator=generator)]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        part.append(order[:count])
        rest.append(order[count:])
    device = data.labels.device
    return (
        data.select(torch.cat(rest).sort().values.to(device)),
        data.select(torch.cat(part).sort().values.to(device)),
    )
