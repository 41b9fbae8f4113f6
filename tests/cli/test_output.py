"""Standard output that cannot be written: a pipe without a reader, a full disk, a full pipe, a closed number."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from tests.train.test_resume import write_data

TINY = [
    "train", "--preset", "quickstart", "--max-steps", "1", "--batch-size", "8", "--name", "tiny",
    "--set", "model.width=1", "--set", "model.depth=10", "--set", "layer.rank=4", "--dataset", "npz:data.npz",
]  # fmt: skip
CAUSES = {
    "no reader": "broken pipe",
    "full disk": "no space left on device",
    "full pipe": "write could not complete without blocking",
    "reset": "connection reset by peer",
}


@contextmanager
def broken(cause: str) -> Iterator[int]:
    """The number of a file that cannot be written."""
    opened: list[int] = []
    if cause == "full disk":
        number = os.open("/dev/full", os.O_WRONLY)
    elif cause == "reset":
        listening = socket.create_server(("127.0.0.1", 0))
        mine = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
        mine.sendall(b"unread")
        theirs.close()
        listening.close()
        number = mine.detach()
    else:
        reading, number = os.pipe()
        if cause == "no reader":
            os.close(reading)
        else:
            opened.append(reading)
            os.set_blocking(number, False)
            with suppress(BlockingIOError):
                while os.write(number, bytes(4096)):
                    pass
    try:
        yield number
    finally:
        for one in (number, *opened):
            os.close(one)


def svdctl(*arguments: str, stdout: int, stderr: int = subprocess.PIPE, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "svdctl", *arguments], stdout=stdout, stderr=stderr, text=True, timeout=120, cwd=cwd,
        # Unbuffered, Python itself passes over a full pipe.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": ""},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cause", "arguments"),
    [
        *((cause, ["train", "--print-config"]) for cause in CAUSES),
        *(("full disk", command) for command in (["reproduce", "--list"], ["--help"], ["inspect-spectrum", "w.pt"])),
    ],
)
def test_what_only_prints_fails_in_a_sentence(tmp_path: Path, cause: str, arguments: list[str]) -> None:
    torch.save({"weight": torch.ones(3, 3)}, tmp_path / "w.pt")
    with broken(cause) as number:
        found = svdctl(*arguments, stdout=number, cwd=tmp_path)
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()
    assert line.startswith("svdctl: stdout: ")
    assert CAUSES[cause] in line or (cause == "reset" and "broken pipe" in line)


@pytest.mark.parametrize(
    "cause", ["full disk", *(pytest.param(cause, marks=pytest.mark.slow) for cause in CAUSES if cause != "full disk")]
)
def test_a_training_goes_on_without_its_output(tmp_path: Path, cause: str) -> None:
    with broken(cause) as number:
        write_data(tmp_path / "data.npz", 12)
        found = svdctl(*TINY, stdout=number, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    (line,) = [line for line in found.stderr.splitlines() if "svdctl goes on without it" in line]
    assert line.startswith("note: stdout: ")
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_checkpoint(folder).metrics["step"] == 1


def test_a_failure_keeps_its_exit_code_without_any_output(tmp_path: Path) -> None:
    with broken("full disk") as number:
        assert svdctl("train", "--resume", "none", stdout=number, stderr=number, cwd=tmp_path).returncode == 2


def test_a_name_that_the_output_has_no_sign_for_is_escaped(tmp_path: Path) -> None:
    torch.save({"weight": torch.eye(3)}, tmp_path / "wж.pt")
    found = subprocess.run(
        [sys.executable, "-m", "svdctl", "inspect-spectrum", "wж.pt"], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "latin-1"}, check=True,
    )  # fmt: skip
    assert "w\\u0436.pt" in found.stdout
