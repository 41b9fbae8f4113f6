"""Evaluation by several processes, of which some may have no image."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from svdctl.data.images import ImageData
from svdctl.distributed.group import Group
from svdctl.train.validation import evaluate


@pytest.mark.parametrize(("images", "world"), [(3, 1), (3, 2), (3, 5), (7, 3)])
def test_every_image_is_seen_by_one_process(images: int, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ImageData(
        torch.randint(0, 256, (images, 1, 4, 4), dtype=torch.uint8), torch.arange(images) % 2, ("zero", "one")
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    sums: list[list[torch.Tensor]] = []
    for rank in range(world):
        reduced: list[torch.Tensor] = []

        def summed_(_group: Group, values: torch.Tensor, kept: list[torch.Tensor] = reduced) -> torch.Tensor:
            kept.append(values.clone())
            return values + 1e-300  # no mean over nothing, where a process has no image

        monkeypatch.setattr(Group, "summed_", summed_)
        fabric: Any = SimpleNamespace(global_rank=rank, world_size=world, device="cpu", autocast=nullcontext)
        evaluate(model, data, fabric, batch_size=4, memory_format=torch.contiguous_format)
        sums.append(reduced)
    (_, count), correct = (sum(parts) for parts in zip(*sums, strict=True))
    with torch.no_grad():
        right = model(data.images.float() / 255).argmax(1) == data.labels
    assert int(count) == images
    assert torch.equal(correct > 0, right)
