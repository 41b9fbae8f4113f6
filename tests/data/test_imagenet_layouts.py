"""Tiny-ImageNet and ImageNet as they are published, in small, and lists that are wrong or made to do harm."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svdctl.data.data_source import load
from svdctl.data.folder import Folder
from svdctl.data.images import ImageData
from svdctl.errors import DataError, FileError

SIZE = 8
FIRST, SECOND = "n01443537", "n01629819"
NAMES = (f"{FIRST} goldfish", f"{SECOND} European fire salamander")


def write(file: Path, level: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((SIZE, SIZE), level, np.uint8)).save(file, "PNG")


def levels(part: ImageData) -> list[tuple[int, int]]:
    return [(int(image[0, 0, 0]), label) for image, label in zip(part.images, part.labels.tolist(), strict=True)]


def tiny(root: Path) -> Path:
    # wnids.txt is in no order.
    (root / "val/images").mkdir(parents=True)
    (root / "wnids.txt").write_text(f"{SECOND}\n{FIRST}\n")
    (root / "words.txt").write_text(
        f"n00001740\tentity\n{FIRST}\tgoldfish, Carassius auratus\n{SECOND}\tEuropean fire salamander, Salamandra\n"
    )
    for label, name in enumerate((FIRST, SECOND)):
        for number in range(3):
            write(root / f"train/{name}/images/{name}_{number}.JPEG", 10 * label + number)
        (root / f"train/{name}/{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t7\t7\n")
    lines = []
    for number, name in enumerate((SECOND, FIRST, SECOND)):
        write(root / f"val/images/val_{number}.JPEG", 100 + number)
        lines.append(f"val_{number}.JPEG\t{name}\t0\t0\t7\t7\n")
    (root / "val/val_annotations.txt").write_text("".join(reversed(lines)))
    write(root / "test/images/test_0.JPEG", 200)
    return root


def imagenet(root: Path) -> Path:
    data = root / "ILSVRC/Data/CLS-LOC"
    for label, name in enumerate((FIRST, SECOND)):
        for number in range(3):
            write(data / f"train/{name}/{name}_{number}.JPEG", 10 * label + number)
    lines = ["ImageId,PredictionString\n"]
    for number, name in enumerate((SECOND, FIRST, SECOND)):
        write(data / f"val/ILSVRC2012_val_0000000{number}.JPEG", 100 + number)
        lines.append(f"ILSVRC2012_val_0000000{number},{name} 0 0 7 7 {name} 1 1 5 5 \n")
    (root / "LOC_val_solution.csv").write_text("".join(lines))
    (root / "LOC_synset_mapping.txt").write_text(f"{FIRST} goldfish, Carassius\n{SECOND} European fire salamander, S\n")
    write(data / "test/ILSVRC2012_test_00000000.JPEG", 200)
    return root


@pytest.mark.parametrize("layout", [tiny, imagenet])
def test_labels_of_published_layouts(layout: Callable[[Path], Path], tmp_path: Path) -> None:
    data = load(Folder(path=layout(tmp_path), size=SIZE))
    assert data.train.classes == data.test.classes == NAMES
    assert levels(data.train) == [(0, 0), (1, 0), (2, 0), (10, 1), (11, 1), (12, 1)]
    assert levels(data.test) == [(100, 1), (101, 0), (102, 1)]
    assert data.validation is None


def test_the_folder_of_imagenet_itself_may_be_given_and_a_folder_for_each_class(tmp_path: Path) -> None:
    imagenet(tmp_path)
    data = tmp_path / "ILSVRC/Data/CLS-LOC"
    assert len(load(Folder(path=data, size=SIZE)).test) == 3
    (tmp_path / "LOC_val_solution.csv").unlink()
    with pytest.raises(DataError, match="val holds images, and not a folder for each class; put ImageNet's LOC_val"):
        load(Folder(path=data, size=SIZE))
    for number, name in enumerate((SECOND, FIRST, SECOND)):
        (data / "val" / name).mkdir(exist_ok=True)
        file = f"ILSVRC2012_val_0000000{number}.JPEG"
        (data / "val" / file).rename(data / "val" / name / file)
    (data / "test/ILSVRC2012_test_00000000.JPEG").unlink()
    (data / "test").rmdir()
    found = load(Folder(path=data, size=SIZE))
    assert found.test.classes == (FIRST, SECOND)
    assert sorted(levels(found.test)) == [(100, 1), (101, 0), (102, 1)]


def change(file: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda root: (root / file).write_text((root / file).read_text().replace(old, new))


LIST = "val/val_annotations.txt"
FAULTS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object], str]] = {
    "an image without a class": (tiny, lambda root: write(root / "val/images/x.JPEG", 1), "1 images have no class"),
    "an image that is not there": (
        tiny,
        lambda root: (root / "val/images/val_1.JPEG").unlink(),
        r"1 images stand in the list and are not there \(val_1\.JPEG\)",
    ),
    "a class that is not there": (tiny, change(LIST, FIRST, "n09999999"), "have a class that is not in train/"),
    "a path that leaves the folder": (
        tiny,
        change(LIST, "val_1.JPEG", "../../train/n01443537/images/n01443537_0.JPEG"),
        "have no class in the list",
    ),
    "an absolute path": (tiny, change(LIST, "val_1.JPEG", "/etc/passwd"), "have no class in the list"),
    "an image twice": (tiny, change(LIST, "val_1", "val_0"), "is none of this list"),
    "a line without a class": (tiny, change(LIST, f"\t{FIRST}\t", "\t\t"), "is none of this list"),
    "no lines": (tiny, lambda root: (root / LIST).write_text(""), "3 images have no class in the list"),
    "other classes in wnids.txt": (tiny, change("wnids.txt", FIRST, "n09999999"), "and train/ have different"),
    "a class without images": (
        tiny,
        lambda root: [file.unlink() for file in (root / f"train/{FIRST}/images").iterdir()],
        f"there is no image in {FIRST}",
    ),
    "a solution of other images": (imagenet, change("LOC_val_solution.csv", "00000001", "00000009"), "have no class"),
    "a solution of other classes": (imagenet, change("LOC_val_solution.csv", FIRST, "n09999999"), "not in train/"),
    "a class of any length": (tiny, lambda root: (root / "wnids.txt").write_text("x" * 10**6), "x{60}[^x]"),
    "an image of any length": (tiny, change(LIST, "val_1.JPEG", "v" * 10**6 + ".JPEG"), "have no class in the list"),
    "a further image of any length": (
        tiny,
        lambda root: (root / LIST).write_text((root / LIST).read_text() + "v" * 10**6 + f"\t{FIRST}\n"),
        "not there [(]v{60}[)]",
    ),
    "two images of one name": (
        imagenet,
        lambda root: write(root / "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.png", 99),
        "several images have one name without their endings [(]ILSVRC2012_val_00000001[)]",
    ),
    "a list that is no text": (tiny, lambda root: (root / LIST).write_bytes(b"\xff\xfe"), "it is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_lists_that_do_not_fit_are_refused(fault: str, tmp_path: Path) -> None:
    layout, act, words = FAULTS[fault]
    act(layout(tmp_path))
    with pytest.raises((DataError, FileError), match=words) as caught:
        load(Folder(path=tmp_path, size=SIZE))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_list_above_a_folder_that_is_not_of_the_archive_is_not_taken(tmp_path: Path) -> None:
    imagenet(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "ILSVRC/Data/CLS-LOC").rename(tmp_path / "mine/photos")
    with pytest.raises(DataError, match=r"put ImageNet's LOC_val_solution\.csv into"):
        load(Folder(path=tmp_path / "mine/photos", size=SIZE))
    (tmp_path / "LOC_val_solution.csv").rename(tmp_path / "mine/photos/LOC_val_solution.csv")
    assert len(load(Folder(path=tmp_path / "mine/photos", size=SIZE)).test) == 3


def test_names_of_classes_may_repeat_and_be_missing(tmp_path: Path) -> None:
    change("words.txt", "European fire salamander", "goldfish")(tiny(tmp_path))
    assert load(Folder(path=tmp_path, size=SIZE)).train.classes == (f"{FIRST} goldfish", f"{SECOND} goldfish")
    (tmp_path / "words.txt").unlink()
    assert load(Folder(path=tmp_path, size=SIZE)).train.classes == (FIRST, SECOND)
