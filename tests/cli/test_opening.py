"""What is said before torch is imported, and by which process."""

import subprocess
import sys

import pytest

from svdctl.cli import opening
from svdctl.cli.opening import device_line, is_first_process, say_opening
from tests.utils.test_escapes import NAMES, OBEYED


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "SLURM_LOCALID", "NODE_RANK", "GROUP_RANK", "SLURM_NODEID"):
        monkeypatch.delenv(name, raising=False)


def test_the_first_line_names_command_and_work(capsys: pytest.CaptureFixture[str]) -> None:
    say_opening("eval-robust", "accuracy of 2 checkpoints", ["device   cpu"])
    say_opening("train", "preset quickstart", stream="stdout")
    shown = capsys.readouterr()
    assert shown.err == "svdctl eval-robust: accuracy of 2 checkpoints\ndevice   cpu\n"
    assert shown.out == "svdctl train: preset quickstart\n"


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"SLURM_LOCALID": "3"}, False),
        ({"LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
    ],
)
def test_one_process_of_all_speaks(
    variables: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first
    say_opening("train", "preset quickstart")
    assert bool(capsys.readouterr().err) is first


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_gives_the_terminal_no_code_and_no_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    say_opening("train", f"preset {name}", [f"run      {name}"])
    lines = capsys.readouterr().err.split("\n")
    assert len(lines) == 3
    assert not any(OBEYED.search(line) for line in lines)


def test_a_device_is_named_as_far_as_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_line("cuda", "bf16-mixed", "2 processes") == "device   cuda, precision bf16-mixed, 2 processes"
    monkeypatch.setattr(opening, "may_have_gpu", lambda: False)
    assert device_line("auto") == "device   cpu (no GPU is found), precision 32"
    monkeypatch.setattr(opening, "may_have_gpu", lambda: True)
    assert device_line("auto") == "device   a GPU if torch finds one, else the CPU, precision 32"


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from svdctl.cli.opening import device_line, say_opening\n"
        "say_opening('train', 'x', [device_line('auto')])\n"
        "found = {name.partition('.')[0] for name in sys.modules} & {'torch', 'numpy', 'pydantic', 'rich', 'typer'}\n"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("svdctl train: x\ndevice   ")
