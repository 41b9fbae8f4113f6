"""Help, plans of faults and lists of presets come without torch, which takes seconds to import."""

import os
import subprocess
import sys

import pytest

from svdctl.cli.app import main
from svdctl.cli.command_table import COMMANDS, load_command

HEAVY = ("torch", "torchvision", "lightning_fabric", "numpy", "matplotlib", "sklearn", "wandb")


@pytest.mark.parametrize(
    "code",
    [
        "import svdctl, svdctl.config.presets, svdctl.cli.training_flags, svdctl.config.train_config, svdctl.errors",
        "import svdctl.cli.app, svdctl.cli.training_progress, svdctl.cli.messages",
        "import svdctl.config.presets as p; from svdctl.cli.training_flags import resolve as r; p.to_toml(r({}).config)",  # noqa: E501
        *(
            f"import sys; from svdctl.cli.app import main; sys.argv = ['svdctl', *{words}]\n"
            "try: main()\nexcept SystemExit as e: assert e.code == 2"
            for words in (
                ["train", "--dataset", "folder:nowhere"],
                ["train", "--dataset", "npz:nowhere.npz"],
                ["train", "--init-from", "nowhere.pt"],
                ["train", "--resume", "nowhere"],
                ["train-lipconv", "--resume", "nowhere/last.pt"],
                ["eval-robust", "nowhere"],
                ["inspect-spectrum", "nowhere.pt"],
                ["inspect-spectrum", "pyproject.toml", "nowhere.pt"],
            )
        ),
        "import sys; from svdctl.cli.app import main; sys.argv = ['svdctl', 'train', '--rank', '3']\n"
        "try: main()\nexcept SystemExit as e: assert e.code == 2",
        "import sys; from svdctl.cli.app import main; sys.argv = ['svdctl', 'train', '--dec-rank', '0']\n"
        "try: main()\nexcept SystemExit as e: assert e.code == 2",
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    check = f"{code}\nimport sys\nfound = [m for m in {HEAVY} if m in sys.modules]\nassert not found, found"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_list_of_commands_imports_none_of_them() -> None:
    code = (
        "import sys; from svdctl.cli.app import main; sys.argv = ['svdctl', '--help']\n"
        "try: main()\nexcept SystemExit as e: assert not e.code\n"
        "found = [m for m in sys.modules if m.split('.')[0] in ('pydantic', 'tomllib', 'torch', 'rich')]\n"
        "assert not found, found\n"
        "found = [m for m in sys.modules if m.startswith(('svdctl.config', 'svdctl.evaluate', 'svdctl.reproduce'))]\n"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_the_list_of_commands_takes_half_a_second_of_cpu_time() -> None:
    def seconds() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-m", "svdctl", "--help"], capture_output=True, timeout=60, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert sorted(seconds() for _ in range(3))[1] < 0.5


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_has_the_first_paragraph_of_each_help(name: str) -> None:
    paragraph, *more = (load_command(name).run.__doc__ or "").split("\n\n")
    assert paragraph == COMMANDS[name][0]
    # The parser would keep a line end within a paragraph but the first, whatever the width.
    assert not any("\n" in text for text in more)


def test_python_dash_m() -> None:
    command = [sys.executable, "-m", "svdctl", "train", "--list-presets"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "quickstart" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("argument", ["\n", "a\rb", "\nsvdctl: all is proved"])
def test_a_line_break_in_an_argument_never_makes_a_line_of_its_own(
    argument: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["svdctl", "reproduce", argument])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "line break" in line


def test_bytes_that_are_no_text_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["svdctl", "train", "--out-dir", os.fsdecode(b"runs\xff")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "svdctl: the argument 'runs\\udcff' has bytes that are no UTF-8; rename the file or folder"
