"""Standard output and error that cannot be written: no work ends with them, and nothing is lost unsaid.

Causes are a pipe or socket that nobody reads, a terminal that was taken away, a full disk, a full pipe that does not
wait.
"""

import io
import os
import sys
from collections.abc import Callable
from typing import Any, Literal, TextIO

from svdctl.errors import OutputError

Loss = Literal["told", "silent", "raised"]


class Output:
    """A stream that goes on into nothing once it cannot be written.

    Args:
        stream: where the output goes.
        loss: what becomes of the first failure: a note on stderr, nothing, or an `OutputError`.
    """

    def __init__(self, stream: TextIO, loss: Loss) -> None:
        self._stream, self._loss = stream, loss
        self.lost: OutputError | None = None
        """What is raised by each use: libraries that print swallow some errors."""

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
        try:
            act()
        except OSError as error:
            self._drop(error)
        if self.lost is not None:
            raise self.lost

    def _drop(self, error: OSError) -> None:
        """From here on write into nothing, what is buffered too."""
        nothing = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        try:
            os.dup2(nothing.fileno(), self._stream.fileno())
        except OSError:  # a stream without a file
            self._stream = nothing
        else:
            nothing.close()
        cause = (error.strerror or type(error).__name__).lower()
        if self._loss == "raised":
            self.lost = OutputError(f"stdout: {cause}; what was to be printed is not all there")
        elif self._loss == "told":
            print(f"note: stdout: {cause}; svdctl goes on without it", file=sys.stderr, flush=True)


def guard_output(*, lasting: bool) -> None:
    """Let no output that cannot be written end the program unawares, before anything is printed.

    Args:
        lasting: the work is more than what is printed, and goes on without it.

    Raises:
        OutputError: stdout is closed, and it is all there is.
    """
    for name in ("stderr", "stdout"):
        stream = getattr(sys, name)
        loss: Loss = "silent" if name == "stderr" else "told" if lasting else "raised"
        if stream is not None:
            # Names of files can hold what the stream's encoding has no sign for.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, Output(stream, loss))
            continue
        # Closed by the shell (>&-): its number may have become that of any file.
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        if loss == "raised":
            raise OutputError("stdout is closed; what was to be printed is nowhere")


def flush_output() -> None:
    """Write what is buffered, now that an exit code can still tell of a failure.

    Raises:
        OutputError: it could not be written, and is all there is.
    """
    sys.stdout.flush()
    sys.stderr.flush()


def settle_output() -> None:
    """The same after a failure that has been told: it raises nothing, nor does the end of the program."""
    if isinstance(sys.stdout, Output):
        sys.stdout.lost, sys.stdout._loss = None, "silent"
    flush_output()
