"""Exceptions to one sentence on stderr and an exit code: 1 the run failed, 2 wrong usage, 130 interrupted."""

import os
import sys
import traceback

from svdctl.errors import SvdctlError, UsageError


def report(error: BaseException, *, debug: bool) -> int:
    """Print what went wrong; returns the exit code."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, UsageError):
        for fault in error.faults:
            _say(fault)
        return error.exit_code
    if isinstance(error, SvdctlError):
        _say(str(error))
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        _say("interrupted; the last checkpoint of the run is intact")
        return 130
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        _say(f"{where}{error.strerror or error}; free space or choose another folder (--out-dir), then try again")
        return 1
    _say(f"{type(error).__name__}: {error} (a bug in svdctl, or a case it should explain better; --debug shows where)")
    return 1


def wants_debug(arguments: list[str]) -> bool:
    """Whether tracebacks are asked for."""
    return "--debug" in arguments or bool(os.environ.get("SVDCTL_DEBUG"))


def _say(sentence: str) -> None:
    print(f"svdctl: {sentence}", file=sys.stderr)
