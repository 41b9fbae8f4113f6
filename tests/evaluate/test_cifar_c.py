"""The published files of CIFAR-C: small ones of the same format, and every way in which they can be wrong."""

import hashlib
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from svdctl.data.download import Archive
from svdctl.errors import DataError
from svdctl.evaluate.corruptions import published_files as cifar_c
from svdctl.evaluate.corruptions.published_files import find_or_fetch, open_cifar_c

COUNT = 6
SHAPE = (3, 32, 32)
LABELS = np.arange(COUNT) % 3


def write_cifar_c(folder: Path, labels: np.ndarray = LABELS, names: tuple[str, ...] = ("fog", "snow")) -> Path:
    """Files in the published format; image i of severity s of corruption c is filled with its own number."""
    folder.mkdir(parents=True)
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    for place, name in enumerate(names):
        images = np.zeros((5 * len(labels), 32, 32, 3), dtype=np.uint8)
        images += (100 * place + np.arange(5 * len(labels)))[:, None, None, None].astype(np.uint8)
        np.save(folder / f"{name}.npy", images)
    return folder


def test_severities_come_one_after_the_other_without_being_read(tmp_path: Path) -> None:
    found = open_cifar_c(write_cifar_c(tmp_path / "c"), LABELS, SHAPE)
    found.require(["fog", "snow"])
    for place, name in enumerate(("fog", "snow")):
        for severity in range(1, 6):
            images = found.images(name, severity)
            assert images.base is None  # these images alone
            assert images.shape == (COUNT, 32, 32, 3)
            assert np.array_equal(found.images(name, severity, 1, 3), images[1:3])
            assert images[:, 0, 0, 0].tolist() == [100 * place + COUNT * (severity - 1) + i for i in range(COUNT)]


def test_arrays_in_another_order_of_axes_and_files_that_get_shorter(tmp_path: Path) -> None:
    found = open_cifar_c(write_cifar_c(tmp_path / "c"), LABELS, SHAPE)
    images = found.images("fog", 2)
    whole = np.load(tmp_path / "c/fog.npy")
    np.save(tmp_path / "c/fog.npy", np.asfortranarray(whole))
    assert np.array_equal(found.images("fog", 2), images)
    os.truncate(tmp_path / "c/fog.npy", 1_000)
    os.truncate(tmp_path / "c/snow.npy", 1_000)
    for name in ("fog", "snow"):
        with pytest.raises(DataError, match=f"{name}.npy is damaged or cut short"):
            found.images(name, 2)


def test_missing_files_are_named_together(tmp_path: Path) -> None:
    found = open_cifar_c(write_cifar_c(tmp_path / "c"), LABELS, SHAPE)
    with pytest.raises(DataError, match=r"lacks frost\.npy, jpeg_compression\.npy;"):
        found.require(["fog", "frost", "jpeg_compression"])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5 * COUNT - 1, 32, 32, 3), np.uint8),
        np.zeros((5 * COUNT, 3, 32, 32), np.uint8),
        np.zeros((5 * COUNT, 32, 32), np.uint8),
        np.zeros((5 * COUNT, 32, 32, 3), np.float32),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_other_formats_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    found = open_cifar_c(write_cifar_c(tmp_path / "c"), LABELS, SHAPE)
    np.save(tmp_path / "c/fog.npy", array)
    with pytest.raises(DataError, match=r"fog\.npy holds .* not uint8 of shape \(30, 32, 32, 3\)"):
        found.require(["fog"])


@pytest.mark.parametrize("keep", [0, 5, 60, 1000, -1])
def test_short_files_are_refused(tmp_path: Path, keep: int) -> None:
    found = open_cifar_c(write_cifar_c(tmp_path / "c"), LABELS, SHAPE)
    path = tmp_path / "c/fog.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"fog\.npy is damaged or cut short"):
        found.require(["fog"])


def test_an_archive_of_arrays_in_the_place_of_one_is_refused(tmp_path: Path) -> None:
    found = open_cifar_c(write_cifar_c(tmp_path / "c"), LABELS, SHAPE)
    with (tmp_path / "c/fog.npy").open("wb") as file:
        np.savez(file, fog=np.zeros((5 * COUNT, 32, 32, 3), np.uint8))
    with pytest.raises(DataError, match=r"fog\.npy is damaged or cut short"):
        found.require(["fog"])


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    folder = write_cifar_c(tmp_path / "c")
    np.save(folder / "labels.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"labels\.npy is damaged"):
        open_cifar_c(folder, LABELS, SHAPE)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.roll(LABELS, 1), "does not match the test set: 30 of 30 labels differ"),
        (np.arange(COUNT + 1) % 3, "has 35 labels"),
    ],
)
def test_labels_of_another_test_set_are_refused(tmp_path: Path, labels: np.ndarray, words: str) -> None:
    folder = write_cifar_c(tmp_path / "c", labels)
    with pytest.raises(DataError, match=words):
        open_cifar_c(folder, LABELS, SHAPE)


def test_labels_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    folder = write_cifar_c(tmp_path / "c")
    np.save(folder / "labels.npy", np.zeros(5 * COUNT))
    with pytest.raises(DataError, match="float64"):
        open_cifar_c(folder, LABELS, SHAPE)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Archives in the published layout, with their checksums in place of the real ones; no server has them."""
    folder = tmp_path / "published"
    made = {}
    for kind, name in (("cifar10", "CIFAR-10-C"), ("cifar100", "CIFAR-100-C")):
        write_cifar_c(folder / name)
        path = folder / f"{name}.tar"
        with tarfile.open(path, "w:") as tar:
            tar.add(folder / name, arcname=name)
        content = path.read_bytes()
        made[kind] = Archive("http://127.0.0.1:9/x", path.name, hashlib.md5(content).hexdigest(), len(content))
    monkeypatch.setattr(cifar_c, "PUBLISHED", made)
    return folder


def test_files_are_found_where_users_put_them(tmp_path: Path) -> None:
    direct = write_cifar_c(tmp_path / "anything")
    ten, hundred = write_cifar_c(tmp_path / "data/CIFAR-10-C"), write_cifar_c(tmp_path / "data/CIFAR-100-C")
    assert find_or_fetch("cifar10", direct) == find_or_fetch("cifar100", direct) == direct
    assert find_or_fetch("cifar10", tmp_path / "data") == ten
    assert find_or_fetch("cifar100", tmp_path / "data") == hundred
    # The paper's flag names the folder of CIFAR-10-C; CIFAR-100-C has its own place.
    assert find_or_fetch("cifar10", ten) == ten
    assert find_or_fetch("cifar100", ten) == hundred


def test_an_archive_in_the_folder_is_unpacked_and_kept(published: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in ("CIFAR-10-C.tar", "CIFAR-100-C.tar"):
        (published / name).rename(root / name)
    for kind, name in (("cifar10", "CIFAR-10-C"), ("cifar100", "CIFAR-100-C")):
        folder = find_or_fetch(kind, root)
        assert folder == root / name
        open_cifar_c(folder, LABELS, SHAPE).require(["fog", "snow"])
        assert (root / f"{name}.tar").exists()
    assert not [path for path in root.iterdir() if path.name.startswith(".") and not path.name.endswith(".lock")]


def test_a_downloaded_archive_is_unpacked_and_removed(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(archive: Archive, path: Path, *, tell: object) -> None:
        path.write_bytes((published / archive.name).read_bytes())

    monkeypatch.setattr(cifar_c, "fetch", fake)
    folder = find_or_fetch("cifar100", tmp_path / "new/CIFAR-10-C")
    assert folder == tmp_path / "new/CIFAR-100-C"
    assert sorted(path.name for path in folder.iterdir()) == ["fog.npy", "labels.npy", "snow.npy"]
    assert not (tmp_path / "new/CIFAR-100-C.tar").exists()


def test_what_cannot_be_had_is_a_sentence(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar_c, "fetch", lambda archive, path, tell: cifar_c_fetch(archive, path))
    with pytest.raises(DataError, match="could not be downloaded"):
        find_or_fetch("cifar10", tmp_path / "none")
    other = tmp_path / "other"
    other.mkdir()
    (other / "CIFAR-10-C.tar").write_bytes(b"something else")
    with pytest.raises(DataError, match="is not the published"):
        find_or_fetch("cifar10", other)
    half = write_cifar_c(tmp_path / "half")
    (half / "labels.npy").unlink()
    with pytest.raises(DataError, match=r"has no labels\.npy"):
        find_or_fetch("cifar10", half)
    (tmp_path / "a file").write_text("")
    with pytest.raises(DataError, match="cannot be put under"):
        find_or_fetch("cifar10", tmp_path / "a file")


def cifar_c_fetch(archive: Archive, path: Path) -> None:
    from svdctl.data.download import fetch

    fetch(archive, path, attempts=1)


def test_the_published_archives_are_those_of_their_records() -> None:
    assert cifar_c.PUBLISHED["cifar10"].url.split("/")[4] == "2535967"
    assert cifar_c.PUBLISHED["cifar100"].url.split("/")[4] == "3555552"
    for archive in cifar_c.PUBLISHED.values():
        # 19 corruptions of 50,000 images and the labels, with their headers and tar's.
        assert 0 < archive.size - 19 * 50_000 * 32 * 32 * 3 < 10**6
