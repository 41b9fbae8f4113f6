"""Commands on a real terminal: tmux of a server of its own, with a given number of columns and rows."""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

# Kept out of reach: a terminal's size comes from the terminal, and a tmux that the tests run in is not ours.
LEFT_OUT = ("COLUMNS", "LINES", "TMUX", "TMUX_PANE", "NO_COLOR", "FORCE_COLOR")
SETTINGS = """
set -g status off
set -g history-limit 50000
set -g default-terminal screen-256color
set -s escape-time 0
"""
# Ctrl-C reaches every process of the terminal: the shell outlives it to write the exit code, and then keeps the
# terminal open. A trap that does something is not inherited, so the command gets the signal as ever.
SCRIPT = """
trap : INT
cd {folder}
{command}
echo $? > {code}.part
mv {code}.part {code}
exec cat > /dev/null
"""


@dataclass(frozen=True)
class Terminal:
    """A terminal in which one command runs."""

    folder: Path
    """Of socket, settings and exit code."""
    variables: Mapping[str, str]

    def tmux(self, *words: str) -> str:
        """Return what tmux prints on stdout."""
        done = subprocess.run(
            ["tmux", "-u", "-S", str(self.folder / "socket"), "-f", str(self.folder / "settings"), *words],
            capture_output=True, text=True, encoding="utf-8", env=self.variables, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"tmux {shlex.join(words)}: {done.stderr}"
        return done.stdout

    def screen(self, *, scrollback: bool = False, styles: bool = False, joined: bool = False) -> str:
        """Return the text of the screen, lines as they stand there, without blank lines at its end.

        Args:
            scrollback: the lines that have left the screen at its top too.
            styles: with escape codes of colours.
            joined: lines that the terminal has wrapped as one.
        """
        words = ["-S", "-"] * scrollback + ["-e"] * styles + ["-J"] * joined
        lines = self.tmux("capture-pane", "-p", *words).split("\n")
        return "\n".join(line.rstrip() for line in lines).rstrip("\n")

    def press(self, key: str) -> None:
        """Press a key, by its name in tmux: `C-c`, `Enter`, `q`."""
        self.tmux("send-keys", key)

    @property
    def code(self) -> int | None:
        """Return the exit code of the command; None while it runs."""
        path = self.folder / "code"
        return int(path.read_text()) if path.exists() else None

    def wait_for(self, text: str, seconds: float) -> None:
        """Wait until the terminal shows this text, or has shown it: lines that left the screen count too."""
        until = time.monotonic() + seconds
        while text not in (shown := self.screen(scrollback=True, joined=True)):
            # What the command wrote last is there before its exit code.
            if self.code is not None and text not in self.screen(scrollback=True, joined=True):
                raise AssertionError(f"ended with {self.code} and never showed {text!r}:\n{shown}")
            assert time.monotonic() < until, f"no {text!r} within {seconds:g} s:\n{shown}"
            time.sleep(0.05)

    def wait_for_end(self, seconds: float) -> int:
        """Return the exit code once the command has ended."""
        until = time.monotonic() + seconds
        while self.code is None:
            assert time.monotonic() < until, f"not ended within {seconds:g} s:\n{self.screen(scrollback=True)}"
            time.sleep(0.05)
        return self.code


@contextmanager
def terminal(
    command: Sequence[str | Path],
    columns: int,
    rows: int = 40,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Terminal]:
    """Run a command on a terminal of its own; at the end command and server are gone.

    Skips the test where tmux is absent, and fails it where `CI` is `true`.

    Args:
        command: words; no shell reads them.
        columns, rows: size of the terminal.
        cwd: folder that it runs in; None: the current one.
        env: changes to the environment.
    """
    if shutil.which("tmux") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("tmux is not installed, and CI needs it: apt-get install tmux")
        pytest.skip("tmux is not installed")
    folder = Path(tempfile.mkdtemp(prefix="svdctl"))  # the name of a socket may have no more than 107 letters
    kept = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    shown = Terminal(folder, {**kept, "LC_ALL": "C.UTF-8", **env})
    (folder / "settings").write_text(SETTINGS)
    words = {"folder": cwd or Path.cwd(), "code": folder / "code"}
    quoted = {name: shlex.quote(str(path)) for name, path in words.items()}
    (folder / "script").write_text(SCRIPT.format(command=shlex.join(map(str, command)), **quoted))
    leader = 0
    try:
        size = "-x", str(columns), "-y", str(rows)
        leader = int(shown.tmux("new-session", "-d", "-P", "-F", "#{pane_pid}", *size, "sh", str(folder / "script")))
        yield shown
    finally:
        if leader:
            with suppress(ProcessLookupError):
                os.killpg(leader, signal.SIGKILL)
            with suppress(AssertionError):  # the server may have ended with its only command
                shown.tmux("kill-server")
        shutil.rmtree(folder)


def run_in_terminal(
    command: Sequence[str | Path],
    columns: int,
    rows: int = 40,
    keys: Sequence[tuple[str, str]] = (),
    *,
    code: int = 0,
    until: str | None = None,
    scrollback: bool = False,
    styles: bool = False,
    cwd: Path | None = None,
    env: Mapping[str, str] = MappingProxyType({}),
    seconds: float = 120.0,
) -> str:
    """Return what a command leaves on a real terminal, lines as they stand there; wrapped ones are several.

    Args:
        command: words, such as `[sys.executable, "-m", "svdctl", "train"]`; no shell reads them.
        columns, rows: size of the terminal.
        keys: pairs of a text and a key of tmux (`C-c`): once the terminal shows the text, the key is pressed.
        code: exit code that the command must have; not looked at with `until`.
        until: return the screen as soon as it shows this text, and end the command.
        scrollback: the lines that have left the screen at its top too.
        styles: with escape codes of colours.
        cwd, env: folder that it runs in, and changes to the environment.
        seconds: how long to wait for each text, and for the end.

    Raises:
        AssertionError: with the screen: another exit code, no such text, or no end in time.
    """
    with terminal(command, columns, rows, cwd=cwd, env=env) as shown:
        for text, key in keys:
            shown.wait_for(text, seconds)
            shown.press(key)
        if until is not None:
            shown.wait_for(until, seconds)
        else:
            ended = shown.wait_for_end(seconds)
            assert ended == code, f"ended with {ended}, not {code}:\n{shown.screen(scrollback=True)}"
        return shown.screen(scrollback=scrollback, styles=styles)
