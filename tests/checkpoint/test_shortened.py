"""Files that get shorter while they are read, or after: a sentence or what was saved, never the end of the process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from svdctl.checkpoint import torch_archive
from svdctl.checkpoint.weight_file import read_tensors
from svdctl.errors import CheckpointError, UnusableFileError
from svdctl.utils import memory_copy
from svdctl.utils.memory_copy import in_memory
from tests.checkpoint.files import state_dict

SAVES: dict[str, Callable[[Any, Path], None]] = {
    "safetensors": safetensors.torch.save_file,
    "zip": torch.save,
    "legacy": lambda tensors, path: torch.save(tensors, path, _use_new_zipfile_serialization=False),
}


def read_shortened(path: Path) -> None:
    """Print the digest of a file's weights, read while another process has the file cut to nothing after its copy."""
    torch_archive.VIEW_FROM = 1
    found = read_tensors(path)
    os.truncate(path, 0)
    print(found.digest)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "zip")) for kind in SAVES])
def test_a_file_that_gets_shorter_after_it_was_read(kind: str, tmp_path: Path) -> None:
    """Its tensors are views of the file where it is mapped: reading them then ends the process by SIGBUS."""
    SAVES[kind](state_dict(), tmp_path / "a")
    digest = read_tensors(tmp_path / "a").digest
    command = [sys.executable, "-m", "tests.checkpoint.test_shortened", str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, digest), done.stderr


@pytest.mark.parametrize("keep", [0, 100, -1])
@pytest.mark.parametrize("kind", SAVES)
def test_a_file_that_gets_shorter_while_it_is_read(
    kind: str, keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SAVES[kind](state_dict(), tmp_path / "a")
    size = (tmp_path / "a").stat().st_size
    copy = os.sendfile

    def shortened(out: int, file: int, start: int, count: int) -> int:
        os.truncate(tmp_path / "a", keep % size)
        return copy(out, file, start, count)

    monkeypatch.setattr(os, "sendfile", shortened)
    with pytest.raises(CheckpointError, match="a was changed while it was read; wait until it is written"):
        read_tensors(tmp_path / "a")


def test_other_numbers_of_the_same_size_written_meanwhile_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SAVES["safetensors"](state_dict(), tmp_path / "a")
    os.utime(tmp_path / "a", (1, 1))
    copy = os.sendfile

    def changed(out: int, file: int, start: int, count: int) -> int:
        done = copy(out, file, start, count)
        with (tmp_path / "a").open("r+b") as written:
            written.seek(-1, os.SEEK_END)
            written.write(b"1")
        return done

    monkeypatch.setattr(os, "sendfile", changed)
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        read_tensors(tmp_path / "a")


def test_a_file_that_no_memory_is_free_for_is_read_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"12")
    with in_memory(tmp_path / "a") as place:
        assert place != str(tmp_path / "a")
        assert Path(place).read_bytes() == b"12"
    monkeypatch.setattr(memory_copy, "_free_memory", lambda: 3)
    with in_memory(tmp_path / "a") as place:
        assert place == str(tmp_path / "a")
    with pytest.raises(UnusableFileError, match="was changed while"), in_memory(tmp_path / "a"):
        os.truncate(tmp_path / "a", 1)
    for kind, save in SAVES.items():
        save(state_dict(), tmp_path / kind)
        assert read_tensors(tmp_path / kind).tensors.keys() == state_dict().keys()


def test_free_memory_is_known_and_plausible() -> None:
    assert 2**20 < memory_copy._free_memory() < 2**50


if __name__ == "__main__":
    read_shortened(Path(sys.argv[1]))
