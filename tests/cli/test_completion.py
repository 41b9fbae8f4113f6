"""Completion in shells: what is offered, in time and without torch; the scripts, and where they are put."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from svdctl.config.presets import list_presets
from tests.terminal import terminal

ROOT = Path(__file__).parents[2]
EMPTY = " ''"
"""A word of bash that is not begun yet."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a command `svdctl`, whose import of torch fails, in its folder `bin`."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "svdctl"
    code = "import sys; sys.modules['torch'] = None; from svdctl.cli.app import main; main()"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    command.chmod(0o755)
    return tmp_path


def run(home: Path, *command: str, **variables: str) -> str:
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), **variables}
    environment["PATH"] = f"{home / 'bin'}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_offers_commands_options_and_values(home: Path) -> None:
    wanted = {
        "svdctl tr": ["train", "train-lipconv"],
        "svdctl train --clip-l": ["--clip-linear", "--clip-linear-to"],
        "svdctl train --clipping di": ["divide-by-largest", "divide-by-exact-largest", "divide-each-by-largest"],
        "svdctl train --preset wrn-cifar10": [name for name in list_presets() if name.startswith("wrn-cifar10")],
        "svdctl train --preset lipconv": [],
        "svdctl train-lipconv --preset ": list(list_presets(lipconv=True)),
        "svdctl reproduce --rows none-tt": ["none-tt192", "none-tt256", "none-tt320"],
        "svdctl train --dataset f": ["folder:"],
        "svdctl eval-robust runs --corruptions fo": ["fog"],
        "svdctl inspect-spectrum --format ": ["table", "json", "csv"],
        "svdctl reproduce --scale s": ["smoke"],
        # Files, which bash adds itself.
        "svdctl inspect-spectrum --plot ": [],
    }
    # As bash does at each Tab.
    script = "source <(svdctl --show-completion bash)\ncomplete -p svdctl\n" + "\n".join(
        f"COMP_WORDS=({line}{EMPTY * line.endswith(' ')}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        '_svdctl_completion svdctl; echo "> ${COMPREPLY[*]}"'
        for line in wanted
    )
    lines = run(home, "bash", "--norc", "-c", script).splitlines()
    assert lines[0] == "complete -o default -F _svdctl_completion svdctl"
    assert [line.removeprefix(">").split() for line in lines[1:]] == list(wanted.values())


def test_zsh_and_fish_are_told_what_an_option_does(home: Path) -> None:
    asked = {"_TYPER_COMPLETE_ARGS": "svdctl train --clip-t", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    fish = run(home, "svdctl", _SVDCTL_COMPLETE="complete_fish", **asked)
    assert fish == "--clip-to\tLargest singular value that convolutions may have.\n"
    zsh = run(home, "svdctl", _SVDCTL_COMPLETE="complete_zsh", **asked)
    assert zsh.startswith('_arguments \'*: :(("--clip-to":"Largest singular value')
    # A sentence of several lines would be several candidates to fish.
    asked["_TYPER_COMPLETE_ARGS"] = "svdctl train --"
    for line in run(home, "svdctl", _SVDCTL_COMPLETE="complete_fish", **asked).splitlines():
        assert re.fullmatch(r"--[a-z-]+\t.{,60}", line)


@pytest.mark.skipif(shutil.which("fish") is None and "CI" not in os.environ, reason="there is no fish")
def test_fish_completes_from_where_it_is_installed(home: Path) -> None:
    run(home, "svdctl", "--install-completion", "fish")
    command = 'complete --do-complete "svdctl train --clip-t"; complete --do-complete "svdctl reproduce --scale s"'
    assert run(home, "fish", "-c", command, XDG_CONFIG_HOME=str(home / ".config")).splitlines() == [
        "--clip-to\tLargest singular value that convolutions may have.",
        "smoke",
    ]


@pytest.mark.skipif(shutil.which("zsh") is None and "CI" not in os.environ, reason="there is no zsh")
def test_zsh_completes_from_where_it_is_installed(home: Path) -> None:
    run(home, "svdctl", "--install-completion", "zsh")
    variables = {"HOME": str(home), "ZDOTDIR": str(home), "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    with terminal(["zsh", "-i"], 100, env={**variables, "PS1": "ready> "}) as shell:
        shell.wait_for("ready>", 30)
        shell.tmux("send-keys", "-l", "svdctl reproduce --scale s")
        # The first one in a terminal does no more than load typer's script.
        shell.press("Tab")
        shell.press("Tab")
        shell.wait_for("svdctl reproduce --scale smoke", 30)


@pytest.mark.parametrize(
    ("shell", "file", "start"),
    [
        ("bash", ".bash_completions/svdctl.sh", ".bashrc"),
        ("zsh", ".zfunc/_svdctl", ".zshrc"),
        ("fish", ".config/fish/completions/svdctl.fish", None),
    ],
)
def test_it_is_installed_for_a_shell(home: Path, shell: str, file: str, start: str | None) -> None:
    told = run(home, "svdctl", "--install-completion", shell)
    said = f"completion for {shell} is in {home / file}; it takes effect in new terminals\n"
    changed = "" if start is None else f"changed: {home / start}, whose last lines now load it\n"
    assert told == said + changed
    written = (home / file).read_text()
    assert f"_SVDCTL_COMPLETE=complete_{shell}" in written
    assert written.strip() == run(home, "svdctl", "--show-completion", shell).strip()
    if start is not None:
        assert (home / start).is_file()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_is_found_out(home: Path, shell: str) -> None:
    """A shell is known by the name of its process, here a copy of bash."""
    copy = home / "bin" / shell
    shutil.copy(str(shutil.which("bash")), copy)
    script = run(home, str(copy), "-c", "svdctl --show-completion; true")
    assert f"_SVDCTL_COMPLETE=complete_{shell}" in script


def test_an_unknown_shell_is_named(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "svdctl", "--install-completion", "bsh"],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "svdctl: there is no completion for the shell bsh; did you mean bash? (bash, zsh, fish, powershell)\n"
    )


@pytest.mark.parametrize("variables", [{}, {"COMP_WORDS": "svdctl", "COMP_CWORD": "x"}], ids=["none", "no number"])
def test_a_variable_of_the_scripts_that_is_set_by_hand_is_a_sentence(home: Path, variables: dict[str, str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_SVDCTL_COMPLETE": "complete_bash", **variables}
    done = subprocess.run(
        [home / "bin/svdctl"], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "svdctl: _SVDCTL_COMPLETE is for the scripts of --show-completion alone; unset it\n"
