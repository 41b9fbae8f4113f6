"""Decoded images in the user's cache folder: used while no file has changed, and never when anything is wrong."""

import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import SimpleQueue
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from svdctl.cli.training_flags import resolve
from svdctl.data import image_cache, read_folder
from svdctl.data.data_source import load, same_data
from svdctl.data.folder import Folder
from svdctl.data.image_cache import _MAGIC
from svdctl.data.train_test import TrainTest
from svdctl.errors import DataError, UsageError
from svdctl.train.run_hash import run_hash
from svdctl.train.setup import load_parts
from svdctl.utils.content_hash import json_digest
from svdctl.utils.progress import Advance, Reporter
from svdctl.utils.user_cache import user_cache_folder
from tests.faults.small import SERVER

SIZE = 8


class Told(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    @contextmanager
    def part(self, work: str) -> Iterator[Advance]:
        yield lambda done, total, now: self.steps.append((done, total))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty images of two classes, and a cache folder of its own that keeps as few."""
    monkeypatch.setenv("SVDCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_cache, "FEWEST", 1)
    generator = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            pixels = generator.integers(0, 256, (SIZE, SIZE + number % 2, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def read(folder: Path, told: Reporter | None = None, **settings: object) -> TrainTest:
    return load(Folder(path=folder, size=SIZE, resize=True, **settings), reporter=told)


def cached(folder: Path) -> Path:
    [file] = (folder.parent / "cache/images").iterdir()
    return file


def pixels(data: TrainTest) -> torch.Tensor:
    return torch.cat([data.train.images, data.test.images])


def not_decoded(*given: object) -> None:
    raise AssertionError("an image was decoded")


def test_the_second_reading_decodes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    first = read(folder, told)
    assert told.notices == ["10 of 20 images are scaled to 8 x 8 pixels"]
    assert told.steps[-1] == (20, 20)
    assert cached(folder).parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(read_folder, "read_image", not_decoded)
    again = Told()
    assert torch.equal(pixels(read(folder, again)), pixels(first))
    assert again.notices == told.notices
    assert not again.steps


def repainted(folder: Path) -> None:
    """Another picture of one size in bytes and with the times of the one before."""
    file = folder / "a/0.png"
    before, size = file.stat(), file.stat().st_size
    Image.fromarray(np.full((SIZE, SIZE, 3), 77, np.uint8)).save(file)
    file.write_bytes(file.read_bytes().ljust(size, b"\0"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (size, before.st_mtime_ns)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a picture changed, its size and time as before": repainted,
    "a picture more": lambda folder: (folder / "a/x.png").write_bytes((folder / "a/0.png").read_bytes()),
    "a picture less": lambda folder: (folder / "a/3.png").unlink(),
    "a picture renamed": lambda folder: (folder / "a/3.png").rename(folder / "a/z.png"),
    "two pictures exchanged": lambda folder: [
        (folder / old).rename(folder / new) for old, new in (("a/1.png", "t"), ("a/3.png", "a/1.png"), ("t", "a/3.png"))
    ],
    "a picture in another class": lambda folder: (folder / "a/3.png").rename(folder / "b/z.png"),
    "a class renamed": lambda folder: (folder / "a").rename(folder / "c"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_kept_counts_while_no_file_has_changed(
    change: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(folder)
    CHANGES[change](folder)
    told = Told()
    after = read(folder, told)
    assert told.steps, "nothing was decoded"
    assert all("does not count" not in notice for notice in told.notices)
    monkeypatch.setenv("SVDCTL_CACHE", "off")
    assert torch.equal(pixels(after), pixels(read(folder)))
    assert len(list(cached(folder).parent.iterdir())) == 1


def test_other_settings_have_a_file_of_their_own(folder: Path) -> None:
    read(folder)
    other = load(Folder(path=folder, size=4, resize=True))
    assert other.train.images.shape[-1] == 4
    assert len(list((folder.parent / "cache/images").iterdir())) == 2
    assert read(folder).train.images.shape[-1] == SIZE


def flipped(file: Path, place: int) -> None:
    contents = bytearray(file.read_bytes())
    contents[place] ^= 1
    file.write_bytes(contents)


def claiming(file: Path, length: int) -> None:
    contents = file.read_bytes()
    file.write_bytes(_MAGIC + length.to_bytes(8, "little") + contents[len(_MAGIC) + 8 :])


def forged(file: Path, **entries: object) -> None:
    """Change entries of the head, and its checksum with them."""
    contents = file.read_bytes()
    start = len(_MAGIC) + 8
    length = int.from_bytes(contents[len(_MAGIC) : start], "little")
    head = json.loads(contents[start : start + length]) | entries
    head = {name: value for name, value in head.items() if value is not None and name != "sha256"}
    text = json.dumps({**head, "sha256": json_digest(head)}).encode()
    file.write_bytes(_MAGIC + len(text).to_bytes(8, "little") + text + contents[start + length :])


def replaced(file: Path, make: Callable[[Path], object]) -> None:
    file.unlink()
    make(file)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of a pixel": (lambda file: flipped(file, -5), "its contents are damaged"),
    "a bit of the head": (lambda file: flipped(file, 60), "its head is damaged|is no JSON"),
    "the first byte": (lambda file: flipped(file, 0), "no file of decoded images"),
    "cut short": (lambda file: os.truncate(file, file.stat().st_size - 1), "cut short"),
    "empty": (lambda file: os.truncate(file, 0), "no file of decoded images"),
    "longer": (lambda file: os.truncate(file, file.stat().st_size + 1), "too long"),
    "a head of absurd length": (lambda file: claiming(file, 2**63), "its head is damaged"),
    "a head of another length": (lambda file: claiming(file, 7), "is no JSON"),
    "a head without a number": (lambda file: forged(file, scaled=None), "its head is damaged"),
    "a head with another number": (lambda file: forged(file, scaled=[1]), "its head is damaged"),
    "a head with a number below 0": (lambda file: forged(file, scaled=-1), "its head is damaged"),
    "a FIFO": (lambda file: replaced(file, os.mkfifo), "is a FIFO"),
    "a device": (lambda file: replaced(file, lambda path: path.symlink_to("/dev/zero")), "is a device"),
    "a link to nothing": (lambda file: replaced(file, lambda path: path.symlink_to("nothing")), "cannot be read"),
    "an open folder": (lambda file: file.parent.chmod(0o777), "other users may write into its folder"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_with_anything_wrong_does_not_count(damage: str, folder: Path) -> None:
    whole = read(folder)
    file = cached(folder)
    act, reason = DAMAGE[damage]
    act(file)
    told = Told()
    assert torch.equal(pixels(read(folder, told)), pixels(whole))
    assert told.steps[-1] == (20, 20)
    [notice] = [notice for notice in told.notices if "does not count" in notice]
    assert notice.startswith(f"{file} ")
    assert re.search(reason, notice)
    if damage != "an open folder":
        mended = Told()
        read(folder, mended)
        assert not mended.steps, "it was not written anew"


def test_a_folder_is_no_file(folder: Path) -> None:
    read(folder)
    file = cached(folder)
    replaced(file, Path.mkdir)
    told = Told()
    read(folder, told)
    assert any("is a folder" in notice for notice in told.notices)
    assert any("are not kept" in notice for notice in told.notices)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="the system knows no users")
def test_a_file_of_another_user_does_not_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(folder)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    told = Told()
    read(folder, told)
    assert told.steps
    assert any("belongs to another user" in notice for notice in told.notices)
    assert any("are not kept" in notice for notice in told.notices)


def test_a_link_in_the_place_of_the_file_is_replaced_and_not_followed(folder: Path) -> None:
    read(folder)
    victim = folder.parent / "victim"
    victim.write_bytes(b"mine")
    replaced(cached(folder), lambda path: path.symlink_to(victim))
    read(folder)
    assert victim.read_bytes() == b"mine"
    assert not cached(folder).is_symlink()


def test_nothing_is_kept_where_the_user_wants_nothing_or_a_disk_is_full(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVDCTL_CACHE", "off")
    read(folder)
    assert not (folder.parent / "cache").exists()
    monkeypatch.setenv("SVDCTL_CACHE", str(folder.parent / "cache"))
    size = 20 * 3 * SIZE * SIZE
    free = type("Usage", (), {"free": 10 * size - 1})
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: free)
    told = Told()
    read(folder, told)
    assert any("more than a tenth of the 38,399 that are free" in notice for notice in told.notices)
    assert not list((folder.parent / "cache/images").iterdir())


def test_what_a_kill_left_half_written_is_cleared_away(folder: Path) -> None:
    images = Path(os.environ["SVDCTL_CACHE"]) / "images"
    images.mkdir(mode=0o700, parents=True)
    (images / ".some.images.1234567.part").write_bytes(b"half")
    read(folder)
    assert [file.suffix for file in images.iterdir()] == [".images"]


def test_few_images_are_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "FEWEST", 21)
    read(folder)
    assert not (folder.parent / "cache").exists()


def _reads(folder: Path, size: int, wanted: torch.Tensor, right: "SimpleQueue[bool]") -> None:
    image_cache.FEWEST = 1
    os.environ["SVDCTL_CACHE"] = str(folder.parent / "cache")
    right.put(all(torch.equal(pixels(read(folder)), wanted) for _ in range(3)))


def test_two_processes_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVDCTL_CACHE", "off")
    wanted = pixels(read(folder))
    monkeypatch.setenv("SVDCTL_CACHE", str(folder.parent / "cache"))
    right = SERVER.SimpleQueue()
    others = [SERVER.Process(target=_reads, args=(folder, SIZE, wanted, right)) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join(120)
    assert [right.get() for _ in others] == [True, True]
    assert cached(folder).is_file()


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        ("linux", {}, "/home/me/.cache/svdctl"),
        ("linux", {"XDG_CACHE_HOME": "/there"}, "/there/svdctl"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/svdctl"),
        ("darwin", {"XDG_CACHE_HOME": "/there"}, "/home/me/Library/Caches/svdctl"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/svdctl"),
        ("linux", {"SVDCTL_CACHE": "/mine"}, "/mine"),
        ("linux", {"SVDCTL_CACHE": "OFF"}, None),
        ("linux", {"SVDCTL_CACHE": "~nobody-has-this-name/cache"}, None),
    ],
)
def test_where_the_cache_is(
    platform: str, variables: dict[str, str], folder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "SVDCTL_CACHE", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert user_cache_folder() == (None if folder is None else Path(folder))


def test_all_files_that_cannot_be_used_are_counted_and_the_first_named(folder: Path) -> None:
    for number in range(7):
        (folder / "a" / f"{number}.png").write_bytes(b"PNG?")
    (folder / "b/2.png").unlink()
    (folder / "b/2.png").symlink_to("/dev/zero")
    with pytest.raises(DataError) as caught:
        read(folder)
    sentence = str(caught.value)
    assert sentence.startswith(f"{folder}: 7 of 19 images cannot be used: {folder}/a/0.png cannot be read as an image")
    assert f"{folder}/a/4.png cannot be read" in sentence
    assert "a/5.png" not in sentence
    assert sentence.endswith("; and 2 more; repair or remove it")
    assert "\n" not in sentence


def test_classes_without_images_are_refused_and_counted(folder: Path) -> None:
    for name in "cdefghi":
        (folder / name).mkdir()
    with pytest.raises(DataError, match="there is no image in c, d, e, f, g and 2 more; expected"):
        read(folder)


def test_one_channel(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.fromarray(np.full((SIZE, SIZE), number, np.uint8)).save(tmp_path / name / f"{number}.png")
    grey = load(Folder(path=tmp_path, size=SIZE, channels=1))
    assert grey.train.image_shape == (1, SIZE, SIZE)
    three = load(Folder(path=tmp_path, size=SIZE))
    assert torch.equal(grey.train.images.expand(-1, 3, -1, -1), three.train.images)
    Image.fromarray(np.full((SIZE, SIZE, 3), [1, 2, 3], np.uint8)).save(tmp_path / "a/0.png")
    with pytest.raises(DataError, match=r"0\.png is in colour; convert it"):
        load(Folder(path=tmp_path, size=SIZE, channels=1))


def test_size_and_workers_are_flags_of_folders(folder: Path) -> None:
    flags = {"dataset": f"folder:{folder}", "image_size": 224, "workers": 3}
    data = resolve(flags).config.data
    assert isinstance(data, Folder)
    assert (data.size, data.resize, data.workers) == (224, True, 3)
    with pytest.raises(UsageError, match="--image-size belongs to images in folders"):
        resolve({"dataset": "digits", "image_size": 224})


def test_the_number_of_workers_makes_no_other_run(folder: Path) -> None:
    one, other = (resolve({"dataset": f"folder:{folder}", **more}).config for more in ({}, {"workers": 3}))
    assert run_hash(one) == run_hash(other)
    assert same_data(one.data) == same_data(other.data)


def test_any_change_of_a_file_is_noticed(folder: Path) -> None:
    """A bit flipped, bytes cut out, doubled or exchanged: never an image that is not in the folder."""
    whole = pixels(read(folder))
    file = cached(folder)
    contents, drawn = file.read_bytes(), random.Random(0)
    for place in (*range(0, 40, 3), *(drawn.randrange(len(contents)) for _ in range(40))):
        changed = bytearray(contents)
        kind = drawn.randrange(3)
        if kind == 0:
            changed[place] ^= 1 << drawn.randrange(8)
        elif kind == 1:
            del changed[place : place + drawn.randrange(1, 50)]
        else:
            changed[place:place] = changed[drawn.randrange(len(changed)) :][:50] or b"x"
        file.write_bytes(changed)
        assert torch.equal(pixels(read(folder)), whole)


def test_a_file_of_other_images_in_its_place_does_not_count(folder: Path) -> None:
    """One that svdctl itself has written, for another size and for another folder."""
    whole = pixels(read(folder))
    file = cached(folder)
    mine = file.read_bytes()
    file.unlink()
    load(Folder(path=folder, size=4, resize=True))
    other = cached(folder)
    other.rename(file)
    assert torch.equal(pixels(read(folder)), whole)
    shutil.copytree(folder, folder.parent / "copy")
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(folder.parent / "copy/a/0.png")
    before = set(file.parent.iterdir())
    read(folder.parent / "copy")
    [theirs] = set(file.parent.iterdir()) - before
    theirs.rename(file)
    assert torch.equal(pixels(read(folder)), whole)
    assert file.read_bytes() == mine


def test_a_network_of_three_channels_refuses_images_of_one(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.fromarray(np.full((32, 32), number, np.uint8)).save(tmp_path / name / f"{number}.png")
    settings = ["data.channels=1", "normalize.mean=[0.5]", "normalize.std=[0.5]"]
    config = resolve({"dataset": f"folder:{tmp_path}", "set": settings}).config
    with pytest.raises(UsageError, match=r"takes images of 3 channels, and these have 1 \(`data.channels`\)"):
        load_parts(config)


@pytest.mark.parametrize("size", [2**14 + 1, 100_000, 10**18])
def test_a_size_that_no_memory_holds_is_refused(folder: Path, size: int) -> None:
    with pytest.raises(UsageError, match=r"--image-size"):
        resolve({"dataset": f"folder:{folder}", "image_size": size})


def test_more_threads_than_any_machine_starts_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.workers"):
        resolve({"dataset": f"folder:{folder}", "set": ["data.workers=100000"]})


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names are text there")
def test_a_folder_whose_name_is_no_unicode_is_kept(folder: Path) -> None:
    other = folder.rename(folder.parent / os.fsdecode(b"photos\xff"))
    for steps in (True, False):
        told = Told()
        read(other, told)
        assert bool(told.steps) == steps
        assert not [notice for notice in told.notices if "does not count" in notice]
