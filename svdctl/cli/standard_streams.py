"""Keep the program running, with a note or an error, when standard output or standard error cannot be written.

Causes are a pipe or socket whose reader has ended, a terminal that was closed, a full disk, a full non-blocking pipe.
"""

import io
import os
import sys
from collections.abc import Callable
from typing import Any, Literal, TextIO

from svdctl.errors import OutputError
from svdctl.utils.printable import ASCII_FORMS, printable

OnFailure = Literal["note", "ignore", "raise"]
"""What the first failed write causes: a note on stderr, nothing, or an `OutputError`."""


class Output:
    """Write to a stream, and to the null device after the first write that fails.

    Args:
        stream: where the output goes.
        on_failure: what the first failed write causes.
    """

    def __init__(self, stream: TextIO, on_failure: OnFailure) -> None:
        self._stream, self._on_failure = stream, on_failure
        self.error: OutputError | None = None
        """The error that every later use raises again, as some libraries that print catch the first."""
        self.buffer = None
        """None: Typer would write UTF-8 into the stream's own where the encoding is ASCII."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write as the stream does."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush as the stream does."""
        self._attempt(self._stream.flush)

    def _attempt(self, act: Callable[[], object]) -> None:
        """Call `act`; when it cannot write, redirect the stream."""
        try:
            act()
        except OSError as error:
            self._redirect(error)
        if self.error is not None:
            raise self.error

    def _redirect(self, error: OSError) -> None:
        """Redirect the stream, and what it has buffered, to the null device; report the error."""
        cause = (error.strerror or type(error).__name__).lower()
        if (path := _path_of(self._stream)) is not None:
            cause += f" ({path})"
        nothing = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        try:
            os.dup2(nothing.fileno(), self._stream.fileno())
        except OSError:  # a stream without a file
            self._stream = nothing
        else:
            nothing.close()
        if self._on_failure == "raise":
            self.error = OutputError(f"stdout: {cause}; what was to be printed is not all there")
        elif self._on_failure == "note":
            print(f"note: stdout: {cause}; svdctl goes on without it", file=sys.stderr, flush=True)


def _path_of(stream: TextIO) -> str | None:
    """Return the file that a stream writes to; None: a pipe or socket, or the system does not tell."""
    try:
        path = os.readlink(f"/proc/self/fd/{stream.fileno()}")
    except OSError:
        return None
    return printable(path) if path.startswith("/") else None


def guard_output(*, lasting: bool) -> None:
    """Replace stdout and stderr by streams that handle failed writes; called before anything is printed.

    Args:
        lasting: the command also writes files, so that it continues, with a note, when stdout fails.

    Raises:
        OutputError: stdout is closed, and the command does nothing but print.
    """
    for name in ("stderr", "stdout"):
        stream = getattr(sys, name)
        on_failure: OnFailure = "ignore" if name == "stderr" else "note" if lasting else "raise"
        if stream is not None:
            # Names of files can hold what the stream's encoding has no sign for.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=ASCII_FORMS)
            setattr(sys, name, Output(stream, on_failure))
            continue
        # Closed by the shell (>&-): its number may have become that of any file.
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        if on_failure == "raise":
            raise OutputError("stdout is closed; what was to be printed is nowhere")


def flush_output() -> None:
    """Flush both streams while a failure can still change the exit code.

    Raises:
        OutputError: stdout cannot be written, and the command does nothing but print.
    """
    sys.stdout.flush()
    sys.stderr.flush()


def settle_output() -> None:
    """Flush both streams after an error was reported; neither this nor the interpreter's exit raises another."""
    if isinstance(sys.stdout, Output):
        sys.stdout.error, sys.stdout._on_failure = None, "ignore"
    flush_output()
