"""Folders and arrays of the user's own: which files become which part and class, and with which pixels."""

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from svdctl.cli.training_flags import resolve
from svdctl.data import folder_layout
from svdctl.data.data_source import load
from svdctl.data.folder import Folder
from svdctl.data.images import ImageData
from svdctl.data.npz import Npz
from svdctl.errors import DataError
from svdctl.train.setup import load_parts
from svdctl.utils.progress import Reporter

SIZE = 8


def write(root: Path, *places: str) -> None:
    """An image at each place `folder/name`, or five of them in a folder `folder/`; all are of different grey."""
    for place in places:
        for name in [place] if place[-1] != "/" else [f"{place}{number}.png" for number in range(5)]:
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            level = len([path for path in root.rglob("*") if path.is_file()])
            Image.fromarray(np.full((SIZE, SIZE), level, np.uint8)).save(file)


def levels(part: ImageData | None) -> set[int]:
    return set() if part is None else {int(image[0, 0, 0]) for image in part.images}


FIRST = set(range(10))
NONE: set[int] = set()
LAYOUTS = {
    # places: (training, validation, test) images, numbered as they were written
    "train and val": (("train/a/", "train/b/", "val/a/", "val/b/"), (FIRST, NONE, set(range(10, 20)))),
    "train, val and test": (
        ("train/a/", "train/b/", "val/a/1.png", "val/b/1.png", "test/a/1.png", "test/b/1.png"),
        (FIRST, {10, 11}, {12, 13}),
    ),
    "train and test": (("train/a/", "train/b/", "test/a/1.png", "test/b/1.png"), (FIRST, NONE, {10, 11})),
    "other words": (
        ("Training/a/", "Training/b/", "Validation/a/1.png", "Validation/b/1.png", "TEST/a/1.png", "TEST/b/1.png"),
        (FIRST, {10, 11}, {12, 13}),
    ),
    "other things beside the parts": (
        ("train/a/", "train/b/", "valid/a/1.png", "valid/b/1.png", "docs/1.png", ".cache/a/1.png"),
        (FIRST, NONE, {10, 11}),
    ),
    "hidden files and folders": (
        ("train/a/", "train/b/", "val/a/1.png", "val/b/1.png", "val/a/._1.png", "val/.a/1.png", "train/b/.x/1.png"),
        (FIRST, NONE, {10, 11}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_of_a_divided_folder(layout: str, tmp_path: Path) -> None:
    places, wanted = LAYOUTS[layout]
    write(tmp_path, *places)
    data = load(Folder(path=tmp_path, size=SIZE))
    assert (levels(data.train), levels(data.validation), levels(data.test)) == wanted
    assert {part.classes for part in (data.train, data.validation, data.test) if part is not None} == {("a", "b")}
    assert data.train.labels.tolist() == [0] * 5 + [1] * 5


CLASSES = {
    "classes alone": (("a/", "b/"), ("a", "b")),
    "train alone": (("train/a/", "train/b/"), ("a", "b")),
    "hidden ones": (("a/", "b/", ".ipynb_checkpoints/1.png", "a/.ipynb_checkpoints/1.png", "b/.0.png"), ("a", "b")),
    "folders in a class": (("a/x/0.png", "a/x/1.png", "a/y/z/2.png", "a/3.png", "a/4.png", "b/"), ("a", "b")),
    "one folder in each class": (("a/images/", "b/images/"), ("a", "b")),
    "other folders in the classes": (
        ("a/x/", "b/y/1.png", "b/z/1.png", "b/w/1.png", "b/v/1.png", "b/u/1.png"),
        ("a", "b"),
    ),
    "a class of trains": (("train/", "car/"), ("car", "train")),
    "a class of tests": (("control/", "test/"), ("control", "test")),
}


@pytest.mark.parametrize("layout", CLASSES)
def test_classes_of_a_folder_that_svdctl_divides(layout: str, tmp_path: Path) -> None:
    places, classes = CLASSES[layout]
    write(tmp_path, *places)
    data = load(Folder(path=tmp_path, size=SIZE))
    assert data.train.classes == data.test.classes == classes
    assert data.validation is None
    assert (len(data.train), len(data.test)) == (8, 2)
    assert levels(data.train) | levels(data.test) == FIRST


FAULTS = {
    "no train": (("val/a/", "val/b/", "test/a/", "test/b/"), "has test/, val/ and no train/"),
    "no train, beside classes": (("val/a/", "val/b/", "a/", "b/"), "has val/ and no train/"),
    "no classes in the parts": (("train/", "val/"), "train: there is no folder in it"),
    "test images without labels": (("train/a/", "train/b/", "test/"), "test: there is no folder in it"),
    "one part twice": (("train/a/", "train/b/", "val/a/", "valid/a/"), "name one part twice"),
    "classes beside train": (("train/a/", "train/b/", "c/"), "beside it stands c/"),
    "a class too many": (("train/a/", "train/b/", "val/a/", "val/c/"), r"training and the test part .* \(b, c\)"),
    "parts under other words": (
        ("seg_train/a/", "seg_train/b/", "seg_test/a/", "seg_test/b/"),
        "seg_test/ and seg_train/ both hold .* a, b",
    ),
    "parts wrapped twice": (
        (
            "seg_train/seg_train/a/",
            "seg_train/seg_train/b/",
            "seg_test/seg_test/a/",
            "seg_test/seg_test/b/",
            "seg_pred/seg_pred/",
        ),
        "seg_test/ and seg_train/ both hold",
    ),
    "folds": (("fold1/a/", "fold1/b/", "fold2/a/", "fold2/b/", "fold2/c/"), "call the parts of a data set train/"),
    "masks": (("images/a/", "images/b/", "masks/a/", "masks/b/", "docs/1.png"), "images/ and masks/ both hold"),
    "parts in classes": (("a/train/", "a/val/", "b/train/", "b/val/"), "a/ and b/ both hold the folders train, val"),
    "a class without images": (("train/a/", "train/b/", "val/a/", "val/b/.1.png"), "there is no image in b"),
}


@pytest.mark.parametrize("layout", FAULTS)
def test_folders_that_are_refused(layout: str, tmp_path: Path) -> None:
    places, sentence = FAULTS[layout]
    write(tmp_path, *places)
    with pytest.raises(DataError, match=sentence):
        load(Folder(path=tmp_path, size=SIZE))


def test_links_are_followed_and_a_loop_of_them_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a/")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert load(Folder(path=tmp_path, size=SIZE)).train.classes == ("a", "b")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    with pytest.raises(DataError, match="leads back to a folder"):
        load(Folder(path=tmp_path, size=SIZE))


def test_a_folder_that_many_links_lead_to_counts_once(tmp_path: Path) -> None:
    """Each of 60 folders has two links to the next one: 2^60 ways to the last."""
    write(tmp_path, "a/", "b/", ".links/60/", ".links/30/")
    for number in range(60):
        (tmp_path / f".links/{number}").mkdir(exist_ok=True)
        for name in "xy":
            (tmp_path / f".links/{number}/{name}").symlink_to(f"../{number + 1}")
    (tmp_path / "a/links").symlink_to(tmp_path / ".links/0")
    found = load(Folder(path=tmp_path, size=SIZE))
    assert sorted(levels(found.train) | levels(found.test)) == list(range(20))
    assert len(found.train) + len(found.test) == 20


def test_folders_are_as_deep_as_the_system_lets_them_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a/", "b/")
    monkeypatch.chdir(tmp_path / "a")
    for _ in range(1_500):
        Path("d").mkdir()
        monkeypatch.chdir("d")
    write(Path(), "e/")
    monkeypatch.chdir(tmp_path)
    found = load(Folder(path=Path(), size=SIZE))
    assert len(found.train) + len(found.test) == 15
    monkeypatch.setattr(folder_layout, "MOST_FOLDERS", 1_000)
    with pytest.raises(DataError, match="a holds more than 1,000 folders"):
        load(Folder(path=Path(), size=SIZE))
    subprocess.run(["rm", "-r", "a"], check=True)


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_the_data_sets_own_validation_part_is_the_one_that_a_run_is_followed_by(kind: str, tmp_path: Path) -> None:
    if kind == "folder":
        write(tmp_path, "train/a/", "train/b/", "val/a/1.png", "val/b/1.png", "test/a/1.png", "test/b/1.png")
    else:
        images = np.arange(14, dtype=np.uint8)[:, None, None] + np.zeros((SIZE, SIZE), np.uint8)
        labels = np.arange(14) % 2
        parts = {"train": slice(0, 10), "val": slice(10, 12), "test": slice(12, 14)}
        arrays = {f"x_{name}": images[part] for name, part in parts.items()}
        np.savez(tmp_path / "data.npz", **arrays, **{f"y_{name}": labels[part] for name, part in parts.items()})
    place = tmp_path if kind == "folder" else tmp_path / "data.npz"
    flags = {"dataset": f"{kind}:{place}", "set": [f"data.size={SIZE}"] if kind == "folder" else []}
    followed = {
        select: levels(load_parts(resolve({**flags, "select": select}).config).held_out)
        for select in ("validation", "last")
    }
    assert followed == {"validation": {10, 11}, "last": {12, 13}}
    assert levels(load_parts(resolve({**flags, "select": "validation"}).config).train) == FIRST


def test_half_a_validation_part_is_refused(tmp_path: Path) -> None:
    x, y = np.zeros((6, SIZE, SIZE), np.uint8), np.arange(6) % 2
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y, x_val=x)
    with pytest.raises(DataError, match="both or none"):
        load(Npz(path=tmp_path / "data.npz"))


VALUES = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) * 1040
"""From 0 to 65520 of 65535."""


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("x.png", lambda: Image.fromarray(VALUES)),
        ("x.tiff", lambda: Image.fromarray(VALUES)),
        ("x.tif", lambda: Image.frombytes("I;16B", (SIZE, SIZE), VALUES.astype(">u2").tobytes())),
        ("x.pgm", None),
    ],
)
def test_grey_of_16_bits_is_scaled(name: str, make: Callable[[], Image.Image] | None, tmp_path: Path) -> None:
    write(tmp_path, "a/", "b/")
    if make is None:
        (tmp_path / "b" / name).write_bytes(b"P5 %d %d 65535\n" % (SIZE, SIZE) + VALUES.astype(">u2").tobytes())
    else:
        make().save(tmp_path / "b" / name)
    data = load(Folder(path=tmp_path, size=SIZE))
    images = torch.cat([data.train.images, data.test.images])
    [image] = [image for image in images if image.unique().numel() > 1]
    wanted = np.rint(VALUES / 65535 * 255).astype(np.uint8)
    assert all(np.array_equal(channel.numpy(), wanted) for channel in image)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_of_unknown_range_are_refused(mode: str, tmp_path: Path) -> None:
    write(tmp_path, "a/", "b/")
    Image.fromarray(VALUES.astype(np.int32 if mode == "I" else np.float32)).save(tmp_path / "b" / "x.tiff")
    with pytest.raises(DataError, match=r"x\.tiff holds numbers of 32 bits"):
        load(Folder(path=tmp_path, size=SIZE))


def tiff(bits: int, photometric: int) -> bytes:
    """A grey TIFF of this many bits; `photometric` 0: 0 is white."""
    width = SIZE * SIZE * bits // 8
    fields = [(256, SIZE), (257, SIZE), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, SIZE),
              (279, width)]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in fields)
    start = struct.pack("<2sHI", b"II", 42, 8 + width)
    return start + bytes(range(width)) + struct.pack("<H", len(fields)) + directory + bytes(4)


@pytest.mark.parametrize(("bits", "photometric"), [(12, 1), (16, 0)])
def test_grey_whose_white_is_not_65535_is_refused(bits: int, photometric: int, tmp_path: Path) -> None:
    write(tmp_path, "a/", "b/")
    (tmp_path / "b" / "x.tif").write_bytes(tiff(bits, photometric))
    with pytest.raises(DataError, match=r"x\.tif holds numbers of 9 to 16 bits"):
        load(Folder(path=tmp_path, size=SIZE))
    (tmp_path / "b" / "x.tif").write_bytes(tiff(16, 1))
    assert len(load(Folder(path=tmp_path, size=SIZE)).train) > 0


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([1, 2, 3] * 4, [1, 2, 3], "no training image has the label 0"),
        ([0, 1, 3] * 4, [0, 1, 3], "no training image has the label 2"),
        ([0, 1] * 6, [0, 2], "y_test has the label 2, and training images have 0 to 1"),
        ([-1, 0, 1] * 4, [0, 1, 2], "y_train has the label -1"),
        ([0, 1, 2] * 4, [0, -1], "y_test has the label -1"),
        ([0, 1, 2] * 4, [0, 1], None),
    ],
    ids=["from 1", "gap", "test alone", "negative", "negative in the test", "test lacks one"],
)
def test_every_class_of_an_npz_has_training_images(
    train: list[int], test: list[int], words: str | None, tmp_path: Path
) -> None:
    x = np.zeros((len(train), SIZE, SIZE), np.uint8)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=train, x_test=x[: len(test)], y_test=test)
    if words is None:
        assert load(Npz(path=tmp_path / "data.npz")).test.classes == ("0", "1", "2")
        return
    with pytest.raises(DataError, match=words):
        load(Npz(path=tmp_path / "data.npz"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_images_of_8_bits_are_pillows(mode: str, tmp_path: Path) -> None:
    write(tmp_path, "a/", "b/")
    image = Image.fromarray((VALUES // 256).astype(np.uint8)).convert("RGB").convert(mode)
    image.save(tmp_path / "b" / "x.tiff")
    data = load(Folder(path=tmp_path, size=SIZE))
    images = torch.cat([data.train.images, data.test.images])
    [found] = [image for image in images if image.unique().numel() > 1]
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        (
            ("train/a/", "train/b/", "val/a/"),
            "the test part have different classes (b): b only in the training part",
        ),
        (
            ("train/a/", "train/b/", "val/a/", "val/c/", "test/a/", "test/b/"),
            "validation part have different classes (b, c): b only in the training part and c only in the validation",
        ),
    ],
)
def test_classes_of_one_part_alone_are_named_with_the_part(
    tmp_path: Path, places: tuple[str, ...], sentence: str
) -> None:
    write(tmp_path, *places)
    with pytest.raises(DataError) as error:
        load(Folder(path=str(tmp_path), size=SIZE))
    assert sentence in str(error.value)


class Notices(Reporter):
    """Keeps what the user should read."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def notice(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.parametrize(
    ("places", "is_said"),
    [
        (("train/a/", "train/b/", "val/a/1.png", "val/b/1.png"), True),
        (("train/a/", "train/b/", "val/a/1.png", "val/b/1.png", "test/a/1.png", "test/b/1.png"), False),
        (("train/a/", "train/b/", "test/a/1.png", "test/b/1.png"), False),
        (("a/", "b/"), False),
    ],
)
def test_a_validation_part_that_is_the_test_part_is_said(
    places: tuple[str, ...], is_said: bool, tmp_path: Path
) -> None:
    write(tmp_path, *places)
    told = Notices()
    load(Folder(path=tmp_path, size=SIZE), reporter=told)
    said = f"{tmp_path} has no test part: its validation part is the test part"
    assert told.texts == [said] * is_said
