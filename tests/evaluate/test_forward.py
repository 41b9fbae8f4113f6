"""Logits do not depend on batches, on memory, or on who asks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.errors import EvaluationError, ShapeError, UsageError
from svdctl.evaluate.inference import Classifier, choose_device, subset
from tests.evaluate.small import CLASSES, SIDE, Linear, make

IMAGES = torch.randint(0, 256, (23, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def classifier(model: nn.Module, log: Any = print, **flags: Any) -> Classifier:
    return Classifier(model, make(accelerator="cpu", **flags), log)


@pytest.mark.parametrize("batch", [1, 4, 23, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_are_those_of_the_network_on_pixels(batch: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Linear().to(dtype)

    class Converted(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            assert not self.training
            return model(pixels.to(dtype))

    found = classifier(Converted(), batch_size=batch).logits(IMAGES)
    assert found.dtype == dtype
    torch.testing.assert_close(found, model(IMAGES.to(torch.float32).div(255).to(dtype)).detach())


class Small(nn.Module):
    """Memory for three images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.inner, self.most = Linear(), most

    def forward(self, pixels: Tensor) -> Tensor:
        if len(pixels) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        return self.inner(pixels)


def test_when_memory_runs_out_the_batch_is_halved_and_nothing_is_lost() -> None:
    said: list[str] = []
    told: list[int] = []
    model = Small(3)
    found = classifier(model, said.append, batch_size=16)
    torch.testing.assert_close(found.logits(IMAGES, told.append), model.inner(IMAGES.float() / 255).detach())
    assert found.halving.size == 2
    assert [line.split()[-5] for line in said] == ["8", "4", "2"]
    assert told[-1] == len(IMAGES)
    labels = model.inner(IMAGES.float() / 255).argmax(1)
    labels[:5] = (labels[:5] + 1) % CLASSES
    right, broken = classifier(model, said.append, batch_size=16).correct(IMAGES, labels).tolist()
    assert (right, broken) == (len(IMAGES) - 5, 0)


def test_no_memory_for_one_image_is_a_sentence() -> None:
    with pytest.raises(EvaluationError, match="one image"):
        classifier(Small(0), lambda _: None).logits(IMAGES)


@pytest.mark.parametrize("output", [lambda x: x, lambda x: (x, x), lambda x: x[:1].flatten(1)])
def test_what_is_no_logits_is_a_sentence(output: Any) -> None:
    class Odd(nn.Module):
        def forward(self, pixels: Tensor) -> Any:
            return output(pixels)

    with pytest.raises(ShapeError, match="must return logits"):
        classifier(Odd()).logits(IMAGES)


def test_low_precision_is_used_and_comes_back_wide() -> None:
    seen: list[torch.dtype] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES))
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    assert classifier(model, precision="bf16-mixed").logits(IMAGES).dtype == torch.float32
    assert set(seen) == {torch.bfloat16}


def test_subsets_are_drawn_from_the_seed() -> None:
    assert subset(9, None, 0).tolist() == list(range(9)) == subset(9, 20, 0).tolist()
    first = subset(100, 10, 0)
    assert first.tolist() == sorted(set(first.tolist()))
    assert torch.equal(first, subset(100, 10, 0))
    assert not torch.equal(first, subset(100, 10, 1))


def test_a_device_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="accelerator = cuda"):
        choose_device("cuda")
    assert choose_device("cpu").type == "cpu"
    assert isinstance(make(), EvaluateConfig)
