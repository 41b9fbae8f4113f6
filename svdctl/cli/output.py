"""Output that nobody reads: it is dropped, and the work goes on."""

import errno
import os
import stat
import sys
from typing import Any, TextIO


class Output:
    """A stream that goes on into nothing once its reader is gone: a closed pipe, a terminal that was taken away.

    Other failures, as of a file on a full disk, are raised.

    Args:
        stream: where the output goes.
        told: whether to say so on stderr when that is gone.
    """

    def __init__(self, stream: TextIO, *, told: bool) -> None:
        self._stream, self._told = stream, told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write as the stream does."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flush as the stream does."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """From here on write into nothing, what is buffered too, or raise the error."""
        number = self._stream.fileno()
        gone = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(number).st_mode)
        if error.errno != errno.EPIPE and not gone:
            raise error
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, number)
        os.close(nothing)
        if self._told:
            print("note: nobody reads the output any more; svdctl goes on without it", file=sys.stderr, flush=True)


def outlive_readers() -> None:
    """Let no closed pipe, terminal or stream end the program, before anything is printed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # Closed by the shell (>&-) it is None, and its number may have become that of any file.
        if not isinstance(stream, Output):
            setattr(sys, name, open(os.devnull, "w") if stream is None else Output(stream, told=name == "stdout"))  # noqa: SIM115
