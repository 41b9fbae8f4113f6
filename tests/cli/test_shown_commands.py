"""Every command that README.md and docs/ show is understood, and every flag that they name exists."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from svdctl.cli.app import app
from tests.faults.test_random_requests import COMMANDS, assert_answered

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = re.compile(
    r"(?:^|`|exec |(?<=\w )|-m )svdctl ((?:train|train-lipconv|eval-robust|reproduce|inspect-spectrum)\b[^`\n|]*)", re.M
)
OTHERS = {
    "--logdir",
    "--model-ema",
    *("--nnodes", "--node-rank", "--nproc-per-node", "--master-addr", "--master-port"),  # torchrun
    *("--nodes", "--ntasks-per-node", "--signal"),  # SLURM
    "--check",  # ruff
}
"""Flags of other programs."""


def shown_commands() -> list[str]:
    """Return the commands of all documents, without comments, redirections and what stands for more."""
    found = {}
    for path in DOCUMENTS:
        # Long commands go on after a backslash.
        for match in SHOWN.finditer(path.read_text(encoding="utf-8").replace("\\\n", "")):
            text = re.sub(r"\s+(#|> |\.\.\.).*", "", match[1]).replace("FILE.toml", "table2").strip()
            # The name of a command alone is how prose calls it.
            if " " in text or text.startswith("train"):
                found[text] = None
    return list(found)


def test_there_are_commands_to_check() -> None:
    assert len(shown_commands()) > 30


@pytest.mark.parametrize("command", shown_commands())
def test_a_shown_command_is_understood(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, *arguments = shlex.split(command)
    is_a_training = name.startswith("train") and not {"--resume", "--list-presets", "--print-config"} & {*arguments}
    dry = ["--dry-run"] if is_a_training and "--dry-run" not in arguments else []
    # A run that is gone on with is not there.
    assert assert_answered([name, *dry, *arguments]) == (2 if "--resume" in arguments else 0)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_flags_that_a_document_names_exist(path: Path) -> None:
    options = {
        option
        for command in (get_command(app), *COMMANDS.values())
        for one in command.params
        for option in (*one.opts, *one.secondary_opts)
    }
    known = {option.replace("_", "-") for option in options} | OTHERS | {"--help"}
    text = path.read_text(encoding="utf-8")
    known |= set(
        re.findall(r"--[a-z][a-z-]+", "".join(file.read_text() for file in (ROOT / "benchmarks").glob("*.py")))
    )
    named = {flag.rstrip("-_").replace("_", "-") for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
    assert sorted(named - known) == []
