"""Standard output that cannot be written: a pipe without a reader, a full disk, a full pipe, a closed number."""

import io
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.messages import report
from svdctl.cli.progress_display import ProgressDisplay
from svdctl.errors import UsageError
from svdctl.utils.printable import ASCII_FORMS, encodable
from tests.evaluate.small import write_data as write_labelled
from tests.evaluate.small import write_linear
from tests.reproduce.conftest import TINY as TABLE
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
    "no terminal": "input/output error",
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
    elif cause == "no terminal":
        reading, number = pty.openpty()
        os.close(reading)
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
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cause", "arguments"),
    [
        *((cause, ["train", "--print-config"]) for cause in CAUSES),
        *(
            pytest.param("full disk", command, marks=pytest.mark.slow)
            for command in (
                ["reproduce", "--list"], ["--help"], ["inspect-spectrum", "w.pt"], ["train", "--dry-run"],
                ["train-lipconv", "--dry-run"], ["reproduce", "table2", "--dry-run"],
            )
        ),
    ],
)  # fmt: skip
def test_what_only_prints_fails_in_a_sentence(tmp_path: Path, cause: str, arguments: list[str]) -> None:
    torch.save({"weight": torch.ones(3, 3)}, tmp_path / "w.pt")
    with broken(cause) as number:
        found = svdctl(*arguments, stdout=number, cwd=tmp_path)
    assert found.returncode == 1
    *progress, line = found.stderr.splitlines()
    assert not progress or arguments[0] == "reproduce"
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


WORK = {
    "train-lipconv": [
        "--preset", "lipconv-quickstart", "--max-steps", "1", "--batch-size", "8", "--set", "model.in_channels=2",
        "--set", "layer.rank=2", "--dataset", "npz:data.npz",
    ],
    "eval-robust": [
        "w.pth", "--dataset", "npz:data.npz", "--model", "tests.evaluate.small:build", "--metrics", "accuracy",
    ],
    "reproduce": ["tiny.toml", "--rows", "none-full", "--columns", "static"],
}  # fmt: skip


@pytest.mark.parametrize(
    "command", ["eval-robust", *(pytest.param(name, marks=pytest.mark.slow) for name in WORK if name != "eval-robust")]
)
def test_every_command_that_works_goes_on_without_its_output(tmp_path: Path, command: str) -> None:
    if command == "eval-robust":
        write_linear(tmp_path / "w.pth", write_labelled(tmp_path / "data.npz"))
    elif command == "reproduce":
        (tmp_path / "tiny.toml").write_text(TABLE)
    else:
        write_data(tmp_path / "data.npz", 32)
    with broken("full disk") as number:
        found = svdctl(command, *WORK[command], stdout=number, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    (line,) = [line for line in found.stderr.splitlines() if "svdctl goes on without it" in line]
    assert line == "note: stdout: no space left on device (/dev/full); svdctl goes on without it"
    made = {"train-lipconv": "runs/*/last.pt", "eval-robust": "eval-w/results.json", "reproduce": "runs/tables/*.md"}
    assert len(list(tmp_path.glob(made[command]))) == 1


def test_a_failure_keeps_its_exit_code_without_any_output(tmp_path: Path) -> None:
    with broken("full disk") as number:
        assert svdctl("train", "--dataset", "npz:none.npz", stdout=number, stderr=number, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("closed", "prints", "fails"),
    [
        (">&-", (1, "svdctl: stdout is closed; what was to be printed is nowhere\n"), (2, "svdctl: there is no")),
        pytest.param("2>&-", (0, ""), (2, ""), marks=pytest.mark.slow),
        (">&- 2>&-", (1, ""), (2, "")),
        pytest.param("<&-", (0, ""), (2, "svdctl: there is no"), marks=pytest.mark.slow),
    ],
)
def test_streams_that_the_shell_has_closed(
    closed: str, prints: tuple[int, str], fails: tuple[int, str], tmp_path: Path
) -> None:
    for arguments, (code, words) in (("--print-config", prints), ("--dataset npz:none.npz", fails)):
        done = subprocess.run(
            f"exec {sys.executable} -m svdctl train {arguments} {closed}", shell=True, capture_output=True, text=True,
            timeout=120, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith(words)
        assert bool(done.stderr) == bool(words)
        assert bool(done.stdout) == (code == 0)


LOCALES = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
    "strict ascii": {"PYTHONIOENCODING": "ascii:strict", "LC_ALL": "POSIX"},
}


@pytest.mark.parametrize("locale", [pytest.param("latin-1", marks=pytest.mark.slow), "ascii", "strict ascii"])
def test_a_name_that_the_output_has_no_sign_for_is_escaped(tmp_path: Path, locale: str) -> None:
    torch.save({"weight": torch.eye(3)}, tmp_path / "wж.pt")
    file = "wж.pt" if locale != "strict ascii" else "noж.pt"
    found = subprocess.run(
        [sys.executable, "-m", "svdctl", "inspect-spectrum", file], capture_output=True, cwd=tmp_path, check=False,
        env={**os.environ, **LOCALES[locale]},
    )  # fmt: skip
    shown = found.stdout if file == "wж.pt" else found.stderr
    assert f"{file[:-4]}\\u0436.pt".encode() in shown
    assert shown.isascii()
    assert found.returncode == (0 if file == "wж.pt" else 2)


@pytest.mark.slow
def test_a_training_on_an_ascii_terminal_draws_its_bar_and_ends(tmp_path: Path) -> None:
    """A live bar, and a folder whose name has no sign there."""
    write_data(tmp_path / "data.npz", 12)
    mine, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", **LOCALES["strict ascii"]}
    command = [sys.executable, "-m", "svdctl", *TINY, "--out-dir", "rж"]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=tmp_path, env=environment)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # Linux's way to tell the end of a terminal
        while part := os.read(mine, 65536):
            shown += part
    os.close(mine)
    assert process.wait(60) == 0, shown
    assert shown.isascii()
    assert b"1/1" in shown
    assert b"r\\u0436/tiny" in shown


def test_the_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with broken("full disk") as number:
        printing = svdctl("train", "--print-config", stdout=number, cwd=tmp_path)
        said = "svdctl: stdout: no space left on device (/dev/full); what was to be printed is not all there\n"
        assert (printing.returncode, printing.stderr) == (1, said)


def test_a_display_of_a_program_without_streams_and_with_ascii_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the library is called by a program of another one, which guards nothing."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    for name in ("stdout", "stderr"):
        for shown in (None, stream):
            monkeypatch.setattr(sys, name, shown)
            display = ProgressDisplay(name)
            display.begin("w\u00f6rk")
            display.say("\u0436")
            display.notice("\u0436")
            display.close()
    report(UsageError("\u0436"), {}, debug=False)
    assert stream.buffer.getvalue().decode().splitlines() == [
        "\\u0436", "\\u0436", "note: \\u0436", "svdctl: \\u0436"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "a~b 1+-2 \\u0436"), ("latin-1", "a~b 1±2 \\u0436"), ("utf-8", "a…b 1±2 ж")]
)
def test_signs_of_svdctl_have_forms_that_every_terminal_shows(encoding: str, shown: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert encodable("a…b 1±2 ж", stream) == shown
    with pytest.raises(UnicodeDecodeError):  # they are no way to read
        b"\xff".decode("ascii", ASCII_FORMS)
