"""Every metric on images of any size: streamed as in memory, in bounded memory, and interrupted."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svdctl.data.images import ImageData
from svdctl.data.streamed_images import streamed_images
from svdctl.evaluate import auto_batch_size
from svdctl.evaluate.auto_batch_size import AutoBatchSize, batch_size_for, block_size_for, blocks_in_memory
from svdctl.evaluate.corruptions import corruption_metric
from svdctl.evaluate.inference import Classifier
from svdctl.evaluate.metric import METRICS, Unfinished
from tests.evaluate.large_images import CLASSES, Levels, context, drawn, labels_of, measured, parts
from tests.evaluate.small import make

SHAPES = [(3, 64, 64), (3, 48, 80), pytest.param((3, 224, 224), marks=pytest.mark.slow), (1, 64, 64), (1, 40, 230)]
ALL = ("accuracy", "ece", "cifar-c", "autoattacks", "certified")
SHORT: dict[str, Any] = {
    "corruptions": ["gaussian_noise", "glass_blur", "fog", "jpeg_compression", "saturate"],
    "severities": [2],
    "attacks": ["apgd-ce"],
    "norm": "Linf",
    "eps": 0.02,
    "examples": "3",
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_metrics_are_the_same_streamed_as_in_memory(
    shape: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that several blocks are read.
    monkeypatch.setattr(auto_batch_size, "_BLOCK", 5 * shape[0] * shape[1] * shape[2])
    found = {}
    for streamed in (False, True):
        data = parts(12, shape, streamed=streamed)
        setting = context(tmp_path / str(streamed), data, Levels(shape[0]), **SHORT)
        found[streamed] = {kind: measured(setting, kind) for kind in ALL}
    held_out = {streamed: figures["ece"].pop("temperature") for streamed, figures in found.items()}
    assert found[True] == found[False]
    assert held_out[True].pop("fitted_on") == held_out[False].pop("fitted_on")
    # Kernels round differently with other images beside in the batch.
    assert held_out[True] == pytest.approx(held_out[False], rel=1e-4)
    figures = found[True]
    assert figures["accuracy"]["correct"] == int((labels_of(12) == torch.arange(12) % CLASSES).sum())
    assert figures["autoattacks"]["count"] == 3
    assert figures["certified"]["clean"] == figures["accuracy"]["accuracy"]
    assert figures["certified"]["mean_radius"] > 0
    nearest = {64: "Tiny-ImageNet-C", 48: "Tiny-ImageNet-C", 224: "ImageNet-C", 40: None}[min(shape[1:])]
    assert figures["cifar-c"].get("constants") == nearest


def test_constants_other_than_cifars_are_in_the_protocol(tmp_path: Path) -> None:
    protocols = []
    for side in (32, 64, 224):
        setting = context(tmp_path, parts(2, (3, side, side), streamed=True), Levels(3))
        metric = METRICS.get("cifar-c")
        protocols.append(metric.protocol(setting, metric.settings(setting.config, setting.data.data)))
    assert [protocol.get("constants") for protocol in protocols] == [None, "Tiny-ImageNet-C", "ImageNet-C"]


def test_the_batch_follows_the_size_unless_it_is_given(tmp_path: Path) -> None:
    assert [batch_size_for((3, side, side)) for side in (8, 32, 64, 65, 224, 512, 4000)] == [
        250,
        250,
        250,
        248,
        20,
        4,
        1,
    ]
    assert batch_size_for((3, 224, 224), 7) == 7
    assert block_size_for((3, 32, 32)) == auto_batch_size.LARGEST
    assert block_size_for((3, 224, 224)) == 222
    # What an attack's draws depend on is in its protocol, and is what is asked for where it is.
    for asked, wanted in ((None, 20), (100, 100)):
        flags = {} if asked is None else {"batch_size": asked}
        setting = context(tmp_path, parts(2, (3, 224, 224), streamed=True), Levels(3), **flags)
        metric = METRICS.get("autoattacks")
        protocol = metric.protocol(setting, metric.settings(setting.config, setting.data.data))
        assert protocol["batch_size"] == wanted


def test_blocks_are_read_one_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (3, 16, 20)
    monkeypatch.setattr(auto_batch_size, "_BLOCK", 4 * 3 * 16 * 20)
    data, whole = parts(10, shape, streamed=True), drawn(torch.arange(10), shape)
    found = list(blocks_in_memory(data.images))
    assert [before for before, _ in found] == [0, 4, 8]
    assert torch.equal(torch.cat([block for _, block in found]), whole)
    (only,) = blocks_in_memory(whole)
    assert only[0] == 0
    assert only[1] is whole


class Counting(nn.Module):
    """Logits of the mean; remembers the largest batch."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def forward(self, pixels: Tensor) -> Tensor:
        self.largest = max(self.largest, len(pixels))
        return torch.stack([pixels.mean((1, 2, 3)) * number for number in range(CLASSES)], 1)


def test_no_pass_and_no_reading_is_larger_than_the_size_allows(tmp_path: Path) -> None:
    reads: list[int] = []

    def reader(rows: Tensor) -> Tensor:
        reads.append(len(rows))
        return torch.zeros(len(rows), 3, 224, 224, dtype=torch.uint8)

    names = tuple(f"class {number}" for number in range(CLASSES))
    data = ImageData(streamed_images(reader, 300, (3, 224, 224)), labels_of(300), names)
    model = Counting()
    setting = context(tmp_path, data, model, corruptions=["brightness"], severities=[1])
    for kind in ("accuracy", "ece", "cifar-c"):
        measured(setting, kind)
    assert model.largest <= 20
    assert max(reads) <= 222


def test_what_memory_does_not_hold_is_halved_within_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_batch_size, "_BLOCK", 7 * 3 * 16 * 16)
    data = parts(20, (3, 16, 16), streamed=True)
    classifier = Classifier(Levels(3), make(accelerator="cpu"), print)
    whole = classifier.logits(data.images)

    class Full(Levels):
        def forward(self, pixels: Tensor) -> Tensor:
            if len(pixels) > 2:
                raise MemoryError
            return super().forward(pixels)

    said: list[str] = []
    small = Classifier(Full(3), make(accelerator="cpu"), said.append)
    assert torch.allclose(small.logits(data.images), whole, atol=1e-4)
    assert isinstance(small.halving, AutoBatchSize)
    assert small.halving.size == 2
    assert "going on with 2 images at a time" in said[-1]


def test_corruptions_of_large_images_go_on_where_they_were_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = parts(6, (3, 64, 96), streamed=True)
    flags = {**SHORT, "severities": [1, 5]}
    whole = measured(context(tmp_path / "whole", data, Levels(3), **flags), "cifar-c")
    real, calls = corruption_metric.corrupt, []

    def interrupted(images: Tensor, name: str, *others: Any) -> Tensor:
        calls.append(name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(images, name, *others)

    monkeypatch.setattr(corruption_metric, "corrupt", interrupted)
    setting = context(tmp_path / "cut", data, Levels(3), **flags)
    with pytest.raises(KeyboardInterrupt):
        measured(setting, "cifar-c")
    assert measured(setting, "cifar-c") == whole
    assert len(calls) == 10 + 1


class Unprovable(Levels):
    """The same with a function that certificates have no rule for."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels + 0 * torch.special.bessel_j0(pixels))


def test_a_network_of_which_nothing_is_proved_is_a_sentence(tmp_path: Path) -> None:
    setting = context(tmp_path, parts(6, (3, 40, 40), streamed=True), Unprovable(3))
    metric = METRICS.get("certified")
    settings = metric.settings(setting.config, setting.data.data)
    said = metric.measure(setting, settings, Unfinished(tmp_path / "unfinished", {}))
    assert isinstance(said, str)
    assert said.startswith("nothing is certified of this network: ")
    assert "\n" not in said
    assert measured(setting, "accuracy")["count"] == 6


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_of_streamed_images_of_224_pixels(tmp_path: Path) -> None:
    def peak(count: int) -> tuple[int, int]:
        command = [sys.executable, "-m", "tests.evaluate.large_images", str(tmp_path / str(count)), str(count), "224"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "5", "accuracy,ece,cifar-c"],
            capture_output=True, text=True, timeout=1200, check=True, env=environment,
        )  # fmt: skip
        begin, end = done.stdout.split()[-2:]
        return int(begin), int(end)

    small, large = peak(20), peak(240)
    assert large[1] < 2e9
    # Twelve times as many images: what is held of them is a few blocks of 32 MiB.
    assert large[1] - small[1] < 300e6
