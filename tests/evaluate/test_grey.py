"""Networks that take images of one channel, given by `--model`: every metric, on grey images of any file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from svdctl.errors import CheckpointError
from svdctl.evaluate.corruptions.corruption_functions import corrupt
from svdctl.evaluate.runner import run as evaluate
from tests.evaluate.small import CLASSES, Recorder, make

SIDE = 16
HERE = "tests.evaluate.test_grey"


class Flat(nn.Module):
    """Logits that are linear in the pixels; its reshape would take three channels for three images."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(SIDE * SIDE, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(pixels.reshape(-1, SIDE * SIDE))


def flat() -> nn.Module:
    torch.manual_seed(0)
    return Flat()


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * SIDE**2, CLASSES)
    )


def colours() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES))


def write_images(path: Path, kind: str) -> Path:
    """Twelve images for training and for testing, `(N, H, W)` or `(N, H, W, 3)`."""
    images = np.random.default_rng(0).integers(0, 256, (24, SIDE, SIDE), dtype=np.uint8)
    if kind != "grey":
        images = np.repeat(images[..., None], 3, axis=-1)
    if kind == "colour":
        images[-1, 0, 0, 1] ^= 1
    labels = np.arange(24) % CLASSES
    np.savez(path, x_train=images[:12], y_train=labels[:12], x_test=images[12:], y_test=labels[12:])
    return path


def measured(tmp_path: Path, factory: str, kind: str, **flags: Any) -> tuple[Any, nn.Module]:
    model = globals()[factory]().eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    data = write_images(tmp_path / "data.npz", kind)
    config = make(tmp_path / "weights.pth", model=f"{HERE}:{factory}", dataset=f"npz:{data}", **flags)
    return evaluate(config, reporter=Recorder()), model


@pytest.mark.parametrize("kind", ["grey", "three equal channels"])
@pytest.mark.parametrize("factory", ["flat", "convolutions", "colours"])
def test_figures_are_those_by_hand(tmp_path: Path, factory: str, kind: str) -> None:
    result, model = measured(tmp_path, factory, kind, mean=["0.5"], std=["0.25"])
    assert not result.failures
    records = result.evaluations[0].records
    assert records.keys() >= {"accuracy", "ece", "cifar-c", "autoattacks", "certified"}
    arrays = np.load(tmp_path / "data.npz")
    images = torch.from_numpy(arrays["x_test"]).reshape(12, SIDE, SIDE, -1)[..., :1].permute(0, 3, 1, 2)
    if factory == "colours":
        images = images.expand(-1, 3, -1, -1)

    def accuracy(images: Tensor) -> float:
        with torch.no_grad():
            found = model((images.float() / 255 - 0.5) / 0.25).argmax(1)
        return float((found == torch.from_numpy(arrays["y_test"])).float().mean())

    assert records["accuracy"].results["accuracy"] == pytest.approx(accuracy(images))
    table = records["cifar-c"].results["accuracy"]
    for name in ("contrast", "gaussian_noise", "gaussian_blur"):
        assert table[name]["4"] == pytest.approx(accuracy(corrupt(images, name, 4, 3407)))
    assert records["autoattacks"].results["robust_accuracy"] <= accuracy(images)


@pytest.mark.parametrize("factory", ["flat", "convolutions"])
def test_colours_are_refused(tmp_path: Path, factory: str) -> None:
    result, _ = measured(tmp_path, factory, "colour")
    [failure] = result.failures
    assert "takes images of one channel, and 1 of 12 are in colour" in str(failure.error)


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26**2, CLASSES))


def test_a_network_for_images_of_another_size_is_told_with_both_of_its_errors(tmp_path: Path) -> None:
    result, _ = measured(tmp_path, "small", "grey")
    [failure] = result.failures
    assert isinstance(failure.error, CheckpointError)
    assert "(3, 16, 16)" in str(failure.error)
    assert "to have 1 channels, but got 3 channels" in str(failure.error)
    assert "mat1 and mat2 shapes cannot be multiplied" in str(failure.error)


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "saturate", "frost", "jpeg_compression", "snow"])
def test_grey_images_are_corrupted_as_the_first_of_three_equal_channels(name: str) -> None:
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 1, 32, 32), dtype=np.uint8))
    found = corrupt(images, name, 3, 7)
    assert torch.equal(found, corrupt(images.expand(-1, 3, -1, -1), name, 3, 7)[:, :1])
    assert found.shape == images.shape
    # Saturation is of colours alone.
    assert torch.equal(found, images) == (name == "saturate")
