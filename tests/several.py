"""Several commands in one process, for tests of what one of them leaves undone before another one does it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CODE = """
import sys
from svdctl.cli.app import main
for line in sys.argv[1:]:
    sys.argv = ["svdctl", *line.split("\\x1f")]
    try:
        main()
    except SystemExit as ended:
        for stream in (sys.stdout, sys.stderr):
            print("ENDED", ended.code or 0, file=stream, flush=True)
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def svdctl(folder: Path, *commands: Sequence[object]) -> list[Done]:
    """Run `svdctl COMMAND` for each in turn: a process that has imported torch once takes seconds less for each."""
    lines = ["\x1f".join(map(str, words)) for words in commands]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *lines], cwd=folder, capture_output=True, text=True, timeout=280, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    outputs = [parts(text) for text in (done.stdout, done.stderr)]
    assert [len(found) for found in outputs] == [len(commands)] * 2
    return [Done(code, out, err) for (code, out), (_, err) in zip(*outputs, strict=True)]


def parts(text: str) -> list[tuple[int, str]]:
    """The exit code and the text of each command."""
    found, lines = list[tuple[int, str]](), list[str]()
    for line in text.splitlines(True):
        if line.startswith("ENDED "):
            found.append((int(line.split()[1]), "".join(lines)))
            lines.clear()
        else:
            lines.append(line)
    return found
