"""Files are written whole or not at all, and errors name them."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import patch

import pytest

from svdctl.errors import UnusableFileError, UsageError
from svdctl.utils.atomic_write import remove_unfinished, require_place, write_atomically, write_picture
from svdctl.utils.matplotlib_defaults import Figure


def fill(file: BinaryIO) -> None:
    file.write(b"new")


@pytest.mark.parametrize("contents", ["new", b"new", fill], ids=["text", "bytes", "function"])
def test_the_file_holds_what_was_given_and_nothing_is_left_beside_it(contents: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for _ in range(2):
        write_atomically(path, contents)
        assert path.read_bytes() == b"new"
        assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_utf_8_is_escaped(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", os.fsdecode(b"run\xff"))
    assert (tmp_path / "a").read_text() == "run\\udcff"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_leaves_the_file_that_was_there_and_names_it(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_function_that_fails_leaves_the_file_that_was_there(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def stopped(file: BinaryIO) -> None:
        file.write(b"ne")
        raise error

    with pytest.raises(error):
        write_atomically(path, stopped)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".last.pt.4711.part").touch()
    (tmp_path / "last.pt").touch()
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_errors_name_the_path_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_atomically(tmp_path / "a", "new")
    assert caught.value.filename == str(tmp_path / "a")
    assert ".part" not in str(caught.value)
    with pytest.raises(OSError, match="too long") as long:
        write_atomically(tmp_path / ("a" * 250), "new")
    assert long.value.filename == str(tmp_path / ("a" * 250))


def test_no_device_is_replaced(tmp_path: Path) -> None:
    with (
        patch.object(Path, "lstat", lambda path: os.stat("/dev/null")),  # who may make devices may rename over them
        pytest.raises(UnusableFileError, match="is a device"),
    ):
        write_atomically(tmp_path / "null", "text")
    assert not [*tmp_path.iterdir()]


@pytest.mark.drawn
@pytest.mark.filterwarnings("error")
def test_of_a_sign_that_no_font_has_a_picture_says_nothing(tmp_path: Path) -> None:
    figure = Figure(figsize=(1, 1))
    figure.suptitle("\u6f22\U000f0000")
    write_picture(figure, tmp_path / "it.png")
    assert (tmp_path / "it.png").stat().st_size


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "FIFO": (os.mkfifo, "is a FIFO"),
    "link": (lambda path: path.symlink_to("/dev/stdout"), "is a link to /dev/stdout"),
    "link to nothing": (lambda path: path.symlink_to("nothing"), "is a link to nothing"),
    "link to itself": (lambda path: path.symlink_to(path.name), "is a link to it"),
    "input": (lambda path: path.write_text("weights"), "would be lost"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_a_place_that_no_file_can_take_is_refused_before_the_work(kind: str, tmp_path: Path) -> None:
    make, reason = PLACES[kind]
    make(tmp_path / "it")
    with pytest.raises(UsageError, match=f"`html = .*{reason}"):
        require_place(tmp_path / "it", "html", tmp_path / "it")


def test_a_place_in_no_folder_or_of_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .*none; make it first"):
        require_place(tmp_path / "none/it", "html")
    with pytest.raises(UsageError, match=r"cannot be written .file name too long"):
        require_place(tmp_path / ("x" * 300), "html")
    require_place(tmp_path / "it", "html", tmp_path / "other", tmp_path / ("x" * 300))
