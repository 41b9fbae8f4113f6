"""Loading, splitting and augmenting, on files that the tests write in the published formats."""

import hashlib
import os
import pickle
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from svdctl.config.data_config import Augment
from svdctl.data.augment import augment, pad, resized_crop
from svdctl.data.batches import Batches, evaluation_batches
from svdctl.data.cifar import Cifar10
from svdctl.data.data_source import load, source_of
from svdctl.data.digits import Digits
from svdctl.data.folder import Folder
from svdctl.data.images import ImageData
from svdctl.data.npz import Npz
from svdctl.data.split import stratified_split
from svdctl.errors import DataError
from svdctl.utils.progress import Advance, Reporter, no_advance


def test_digits() -> None:
    data = load(Digits())
    assert data.train.images.shape[1:] == (3, 32, 32)
    assert len(data.train) + len(data.test) == 1797
    assert data.train.images.max() == 255


def test_symmetric_padding_is_numpys() -> None:
    images = torch.arange(2 * 1 * 3 * 4, dtype=torch.uint8).reshape(2, 1, 3, 4)
    want = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="symmetric")
    assert np.array_equal(pad(images, 2, "symmetric").numpy(), want)


def test_augmentation_is_crop_and_flip_with_the_right_distribution() -> None:
    image = torch.arange(1, 26, dtype=torch.uint8).reshape(1, 1, 5, 5)
    draws = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    found = augment(image.expand(20_000, -1, -1, -1), draws, flip=True, crop=1, pad_mode="zero")
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))[0, 0]
    crops = {}
    for flip in (False, True):
        for row in range(3):
            for column in range(3):
                crop = padded[row : row + 5, column : column + 5]
                crops[(crop.flip(1) if flip else crop).numpy().tobytes()] = 0
    assert len(crops) == 18
    for one in found[:, 0].numpy():
        crops[one.tobytes()] += 1
    counts = np.array(list(crops.values()))
    # 20,000 / 18 = 1111 each, standard deviation 32.
    assert np.abs(counts - 1111).max() < 5 * 33


def test_no_augmentation_changes_nothing() -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(augment(images, torch.rand(4, 3), flip=False, crop=0, pad_mode="zero"), images)


def small_data(count: int = 22) -> ImageData:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return ImageData(images, torch.arange(count) % 2, ("a", "b"))


def test_batches_are_the_same_for_any_number_of_processes_and_any_start() -> None:
    whole = list(Batches(small_data(), 4, 7, Augment()).epoch(3))
    halves = [list(Batches(small_data(), 4, 7, Augment(), rank, 2).epoch(3)) for rank in (0, 1)]
    pixels = Batches(small_data(), 4, 7, Augment()).pixels
    for batch, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(pixels(batch), torch.cat([pixels(first), pixels(second)]))
        assert torch.equal(batch.labels, torch.cat([first.labels, second.labels]))
    later = list(Batches(small_data(), 4, 7, Augment()).epoch(3, start=2))
    assert torch.equal(pixels(later[0]), pixels(whole[2]))
    other = next(Batches(small_data(), 4, 7, Augment()).epoch(4))
    assert not torch.equal(other.images, whole[0].images)
    assert not torch.equal(other.draws, whole[0].draws)


@pytest.mark.parametrize("world", [3, 4, 7])
def test_parts_of_any_size_make_up_the_whole_batch(world: int) -> None:
    whole = Batches(small_data(), 10, 7, Augment())
    parts = [list(Batches(small_data(), 10, 7, Augment(), rank, world).epoch(1)) for rank in range(world)]
    for step, batch in enumerate(whole.epoch(1)):
        own = [part[step] for part in parts]
        sizes = [len(mine) for mine in own]
        assert sum(sizes) == whole.count(step) == len(batch)
        assert max(sizes) - min(sizes) <= 1
        assert torch.equal(whole.pixels(batch), torch.cat([whole.pixels(mine) for mine in own]))
        assert torch.equal(batch.labels, torch.cat([mine.labels for mine in own]))
    assert {len(part) for part in parts} == {whole.steps_per_epoch}


def test_evaluation_sees_every_image_once() -> None:
    images = torch.cat([batch for batch, _ in evaluation_batches(small_data(), 5)])
    assert torch.equal(images.mul(255).round().to(torch.uint8), small_data().images)


def test_split_keeps_shares_and_is_disjoint() -> None:
    rest, part = stratified_split(small_data(40), 0.25, 0)
    assert part.labels.bincount().tolist() == [5, 5]
    keys = {image.numpy().tobytes() for image in rest.images}
    assert not keys & {image.numpy().tobytes() for image in part.images}


def write_cifar10(root: Path, count: int = 20) -> None:
    """CIFAR-10 in the format of its Python version; torchvision's checksums are patched by the test."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for name in names:
        data = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        batch = {"data": data, "labels": [index % 10 for index in range(count)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    meta = {"label_names": [f"class {number}" for number in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))


def checksums(folder: Path, names: list[str]) -> list[list[str]]:
    return [[name, hashlib.md5((folder / name).read_bytes()).hexdigest()] for name in names]


def test_cifar10_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    write_cifar10(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    monkeypatch.setattr(CIFAR10, "train_list", checksums(folder, [f"data_batch_{n}" for n in range(1, 6)]))
    monkeypatch.setattr(CIFAR10, "test_list", checksums(folder, ["test_batch"]))
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": checksums(folder, ["batches.meta"])[0][1]})
    data = load(Cifar10(root=tmp_path))
    assert data.train.images.shape == (100, 3, 32, 32)
    assert data.test.classes[3] == "class 3"
    # A flipped byte is noticed by its checksum, and there is nowhere to download from.
    broken = bytearray((folder / "data_batch_2").read_bytes())
    broken[200] ^= 1
    (folder / "data_batch_2").write_bytes(bytes(broken))
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/nothing")
    with pytest.raises(DataError, match=r"`data\.root`"):
        load(Cifar10(root=tmp_path))


@pytest.mark.parametrize("place", ["cifar-10-python.tar.gz", "cifar-10-batches-py/data_batch_3"])
def test_files_of_cifar_of_absurd_size_are_refused_before_they_are_read(place: str, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / place).touch()
    os.truncate(tmp_path / place, 10**12)
    source = source_of(Cifar10(root=tmp_path))
    for read in (source.load, source.would_download):
        with pytest.raises(DataError, match=f"{place} has 1,000,000,000,000 bytes, far more"):
            read(Cifar10(root=tmp_path))


def write_folder(root: Path, sizes: tuple[int, int] = (16, 16), classes: int = 2) -> None:
    generator = np.random.default_rng(0)
    for name in "abc"[:classes]:
        (root / name).mkdir(parents=True)
        for number in range(10):
            size = sizes[number % 2]
            Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(
                root / name / f"{number}.png"
            )


def test_folder(tmp_path: Path) -> None:
    write_folder(tmp_path)
    data = load(Folder(path=tmp_path, size=16))
    assert (len(data.train), len(data.test)) == (16, 4)


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (lambda p: write_folder(p, classes=1), {"size": 16}, "only one class"),
        (lambda p: write_folder(p, sizes=(16, 20)), {"size": 16}, "data.size"),
        (lambda p: p.mkdir(exist_ok=True), {}, "one sub-folder a class"),
        (lambda p: (write_folder(p), (p / "a" / "0.png").write_bytes(b"PNG?")), {"size": 16}, "cannot be read"),
    ],
)
def test_bad_folders(tmp_path: Path, make, settings: dict, words: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=words):
        load(Folder(path=tmp_path, **settings))


def test_mixed_sizes_are_scaled_when_asked(tmp_path: Path) -> None:
    write_folder(tmp_path, sizes=(16, 20))
    assert load(Folder(path=tmp_path, size=16, resize=True)).train.images.shape[-1] == 16


def test_npz_and_its_faults(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    x = np.zeros((6, 8, 8, 3), np.uint8)
    y = np.arange(6) % 3
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    assert load(Npz(path=path)).train.images.shape == (6, 3, 8, 8)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="not a readable"):
        load(Npz(path=path))
    np.savez(path, x_train=x)
    with pytest.raises(DataError, match="y_train"):
        load(Npz(path=path))
    np.savez(path, x_train=np.array([object()]), y_train=y, x_test=x, y_test=y)
    with pytest.raises(DataError, match="plain arrays"):
        load(Npz(path=path))
    with pytest.raises(DataError, match="there is no file"):
        load(Npz(path=tmp_path / "none.npz"))


def test_resized_crops_are_bilinear_and_of_the_drawn_parts() -> None:
    image = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    # Half of the area, square in units of the image: rows from 0.25 and columns from 0.75 of what is left.
    draws = torch.tensor([[0.5, 0.5, 0.25, 0.75]])
    found = resized_crop(image, draws, (0.0, 1.0))
    side = 0.5**0.5
    rows = 24 * (0.25 * (1 - side) + side * (torch.arange(24) + 0.5) / 24) - 0.5
    columns = 32 * (0.75 * (1 - side) + side * (torch.arange(32) + 0.5) / 32) - 0.5
    for row, y in enumerate(rows.tolist()):
        for column, x in ((0, columns[0].item()), (17, columns[17].item()), (31, columns[31].item())):
            top, left = int(y), int(x)
            here = image[0, :, top : top + 2, left : left + 2].double()
            down = torch.tensor([1 - (y - top), y - top], dtype=torch.float64)
            right = torch.tensor([1 - (x - left), x - left], dtype=torch.float64)
            wanted = torch.einsum("crs,r,s->c", here, down, right)
            assert torch.allclose(found[0, :, row, column].double(), wanted, atol=1e-5)


def test_resized_crops_of_everything_change_nothing_and_are_of_each_image_alone() -> None:
    images = torch.rand(50, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    draws = torch.rand(50, 4, generator=torch.Generator().manual_seed(1))
    whole = torch.cat([torch.ones(50, 1), torch.full((50, 1), 0.5), draws[:, 2:]], dim=1)
    assert torch.allclose(resized_crop(images, whole, (0.08, 1.0)), images, atol=1e-5)
    together = resized_crop(images, draws, (0.08, 1.0))
    assert torch.equal(
        together,
        torch.cat([resized_crop(*one, (0.08, 1.0)) for one in zip(images.split(7), draws.split(7), strict=True)]),
    )
    ramp = torch.linspace(0, 1, 16).expand(5000, 1, 16, 16)
    drawn = torch.rand(5000, 4, generator=torch.Generator().manual_seed(2))
    spread = resized_crop(ramp, drawn, (0.25, 0.25))
    widths = spread[:, 0, 0, -1] - spread[:, 0, 0, 0]
    # Widths are between those of the aspects 3/4 and 4/3, and positions are spread over all that is left.
    assert widths.min() > 0.5 * (3 / 4) ** 0.5 - 0.08
    assert widths.max() < 0.5 * (4 / 3) ** 0.5 + 0.08
    assert spread[:, 0, 0, 0].min() < 0.02
    assert spread[:, 0, 0, -1].max() > 0.98


class Parts(Reporter):
    """Keeps the names of what is said to be at work."""

    def __init__(self) -> None:
        self.works: list[str] = []

    @contextmanager
    def part(self, work: str) -> Iterator[Advance]:
        self.works.append(work)
        yield no_advance


def test_a_download_without_a_connection_is_a_sentence_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*given: object, **named: object) -> None:
        raise urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution"))

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    told = Parts()
    with pytest.raises(DataError) as caught:
        load(Cifar10(root=tmp_path / "data"), reporter=told)
    text = str(caught.value)
    assert "\n" not in text
    assert "urlopen" not in text
    assert "no connection: the name of the server is not known here" in text
    assert f"downloaded to {tmp_path / 'data'}" in text
    assert "put cifar-10-python.tar.gz there, or name the folder of a copy with `data.root`" in text
    assert any(work.startswith("downloading cifar10 to") for work in told.works)
