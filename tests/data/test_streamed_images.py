"""Images that are streamed give the same batches, fingerprints and splits as those in memory, to the bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from svdctl.config.data_config import Augment
from svdctl.data import images as image_data
from svdctl.data.batches import Batches, evaluation_batches
from svdctl.data.digits import Digits
from svdctl.data.fingerprint import fingerprint
from svdctl.data.images import ImageData
from svdctl.data.split import stratified_split
from svdctl.data.streamed_images import StreamedImages, streamed_images
from svdctl.data.train_test import TrainTest
from svdctl.errors import DataError
from svdctl.evaluate import evaluation_data


def both(count: int = 50) -> tuple[ImageData, ImageData, list[int]]:
    """The same data in memory and streamed, and the numbers of images of each reading."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 3
    reads: list[int] = []

    def reader(rows: Tensor) -> Tensor:
        reads.append(len(rows))
        return images[rows]

    streamed = streamed_images(reader, count, (3, 8, 8))
    names = ("a", "b", "c")
    return ImageData(images, labels, names), ImageData(streamed, labels, names).checked("here"), reads


@pytest.mark.parametrize(("rank", "world", "start"), [(0, 1, 0), (1, 2, 0), (0, 1, 3)])
def test_batches_are_the_same_and_read_one_at_a_time(rank: int, world: int, start: int) -> None:
    resident, streamed, reads = both()
    first, second = (Batches(data, 16, 7, Augment(), rank, world) for data in (resident, streamed))
    for one, other in zip(first.epoch(2, start), second.epoch(2, start), strict=True):
        assert torch.equal(first.pixels(one), second.pixels(other))
        assert torch.equal(one.labels, other.labels)
    assert max(reads) <= 16
    for one, other in zip(evaluation_batches(resident, 20), evaluation_batches(streamed, 20), strict=True):
        assert torch.equal(one[0], other[0])


def test_parts_are_not_read_before_they_are_indexed() -> None:
    resident, streamed, reads = both()
    for one, other in zip(stratified_split(resident, 0.2, 3), stratified_split(streamed, 0.2, 3), strict=True):
        assert isinstance(other.images, StreamedImages)
        assert one.image_shape == other.image_shape
        assert not reads
        assert torch.equal(one.images, other.images[:])
        reads.clear()
    assert fingerprint(resident) == fingerprint(streamed)


def test_grey_needs_equal_channels() -> None:
    _, streamed, _ = both()
    with pytest.raises(DataError, match="in colour"):
        streamed.grey("here")


def test_grey_images_and_the_hash_of_the_test_part_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_data, "BLOCK", 16)
    monkeypatch.setattr(evaluation_data, "BLOCK", 16)
    coloured, _, _ = both()
    equal = coloured.images[:, :1].expand(-1, 3, -1, -1).contiguous()
    reads: list[int] = []

    def reader(rows: Tensor) -> Tensor:
        reads.append(len(rows))
        return equal[rows]

    parts = [
        ImageData(pixels, coloured.labels, coloured.classes)
        for pixels in (equal, streamed_images(reader, len(equal), (3, 8, 8)))
    ]
    resident, streamed, grey, streamed_grey = (
        evaluation_data.EvaluationData(Digits(), TrainTest(part, part))
        for part in (*parts, *(part.grey("digits") for part in parts))
    )
    assert resident.sha256 == streamed.sha256
    assert grey.sha256 == streamed_grey.sha256 != resident.sha256
    assert torch.equal(streamed_grey.test.images[:5], equal[:5, :1])
    assert max(reads) == 16


def test_indices_of_tensors() -> None:
    resident, streamed, _ = both()
    for index in (3, slice(2, 5), torch.tensor([4, 1]), (slice(0, 2), slice(0, 1))):
        assert torch.equal(resident.images[index], streamed.images[index])


def test_a_run_on_streamed_images_is_that_on_images_in_memory(tmp_path: Path) -> None:
    from svdctl.config.configuration import configuration
    from svdctl.train import start as recipe
    from tests.extending import stripes_data
    from tests.extending.test_data_set import SMALL
    from tests.train.test_runs import Recorder, assert_equal, weights

    whole = recipe.run(configuration("quickstart", [*SMALL, f"out_dir={tmp_path}"]), base="t", reporter=Recorder())

    def part(self: object, config: stripes_data.Stripes, count: int, seed: int) -> ImageData:
        made = original(self, config, count, seed)
        images = made.images
        return ImageData(streamed_images(lambda rows: images[rows], count, made.image_shape), made.labels, made.classes)

    original = stripes_data.StripesSource._part
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stripes_data.StripesSource, "_part", part)
        again = recipe.run(configuration("quickstart", [*SMALL, f"out_dir={tmp_path}"]), base="t", reporter=Recorder())
    assert_equal(weights(whole.folder), weights(again.folder))


def test_images_with_an_identity_are_known_by_it_and_not_read() -> None:
    _, data, reads = both()

    def known(identity: str) -> ImageData:
        images = streamed_images(data.images.reader, len(data), (3, 8, 8), identity=identity)
        return ImageData(images, data.labels, data.classes)

    one, again, other = known("drawn, version 1"), known("drawn, version 1"), known("drawn, version 2")
    assert fingerprint(one) == fingerprint(again) != fingerprint(other)
    parts = [*stratified_split(one, 0.2, 3), one]
    assert len({fingerprint(part) for part in parts}) == 3
    relabelled = replace(one, labels=one.labels.roll(1))
    assert fingerprint(relabelled) != fingerprint(one)
    assert not reads
    assert fingerprint(one, like="0" * 64) == fingerprint(data)
    assert reads
