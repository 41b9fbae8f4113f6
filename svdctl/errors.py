"""Every failure a user can cause or meet: one sentence each, saying what, where and what to do."""

import difflib
import errno
import sys
from collections.abc import Iterable

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


class SvdctlError(Exception):
    """Base of all expected failures; the command line prints the message and exits with `exit_code`."""

    exit_code = 1


class UsageError(SvdctlError):
    """Wrong flags, configuration or preset; `faults` lists every fault found, one sentence each."""

    exit_code = 2

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("\n".join(self.faults))


class MissingExtraError(UsageError, ImportError):
    """An optional part of svdctl whose package is not installed."""

    def __init__(self, package: str, wanted: str) -> None:
        super().__init__(f"this needs {package}, not installed here; get it by pip install '{wanted}'")


class DataError(SvdctlError):
    """Data that is missing, truncated, of another format, or unusable for the task."""

    exit_code = 2


class CheckpointError(SvdctlError):
    """A checkpoint that is missing, damaged, foreign, or does not fit what is asked of it."""

    exit_code = 2


class FileError(SvdctlError):
    """A file that svdctl cannot use: `<path> <reason>; <advice>`."""

    exit_code = 2

    def __init__(self, path: str, reason: str, advice: str) -> None:
        super().__init__(path, reason, advice)
        self.path, self.reason, self.advice = path, reason, advice

    def __str__(self) -> str:
        return f"{self.path} {self.reason}; {self.advice}"


class UnusableFileError(FileError, OSError):
    """A file that cannot be opened or made: a folder, FIFO, device, socket or link, or one without the right to it."""

    def __init__(self, path: str, reason: str, advice: str, number: int | None = None) -> None:
        super().__init__(path, reason, advice)
        self.filename, self.strerror, self.errno = path, reason, number


class MissingFileError(UnusableFileError, FileNotFoundError):
    """A file that is not there."""


class MalformedFileError(FileError, ValueError):
    """A file whose contents are not what its format says, or larger or deeper than svdctl reads."""


class ShapeError(SvdctlError, ValueError):
    """A layer, kernel or input whose shape or settings the mathematics does not cover."""

    exit_code = 2


class TrainingError(SvdctlError):
    """A run that had begun and could not go on: a loss that is not finite, a full disk, a lost folder."""


class DivergenceError(TrainingError):
    """A run whose loss or weights were not finite; the message says what to change."""


class UnusableFolderError(SvdctlError):
    """A folder of a run or of results that cannot be written, or that is or holds a link; nothing was begun."""

    exit_code = 2


class BusyFolderError(UnusableFolderError):
    """A folder of a run or of results that another process holds."""


class EvaluationError(SvdctlError):
    """An evaluation that cannot go on, or whose figures contradict each other and must not be used."""


class UnprovedError(EvaluationError):
    """Certificates that were asked for of a network of which no Lipschitz constant is proved."""


class EvaluationFailures(EvaluationError):  # noqa: N818 - they are several
    """What a call could not measure, a line each, the names in it escaped."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Interrupted(SvdctlError):  # noqa: N818 - it is no error
    """Work stopped by the user; the message says what is saved of it."""

    exit_code = 130


class OutputError(SvdctlError):
    """What a command was asked to print could not be written to stdout."""


class LimitExceeded(SvdctlError):  # noqa: N818 - it is no error of the tool
    """A bound that a gate asked for does not hold; the message names the layers."""


class EndedElsewhere(SystemExit):
    """The end of a process whose reason another process says."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, in Python, torch's allocator, the system or on the device.

    torch is only looked at when it is there already.
    """
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, SystemError):
        # Where memory runs out, Python itself can lose the MemoryError.
        return resource is not None and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    if isinstance(error, ImportError):
        return "failed to map segment" in str(error)  # a shared library, within a small address space
    # On a CPU torch knows no type of its own for it; the last is how oneDNN puts it.
    said = ("can't allocate memory", "bad_alloc", "could not create a primitive")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


def closest(name: str, names: Iterable[str]) -> str | None:
    """Return the name that resembles this one most, None when none does."""
    return next(iter(difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.4)), None)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean X?`, or nothing when no name resembles this one."""
    near = closest(name, names)
    return f"; did you mean {near}?" if near else ""


def nearest_few(wanted: Iterable[str], names: Iterable[str], count: int = 3) -> str:
    """Return the names that resemble what was wanted, as `of 21 the nearest are a, b and c`; else the first ones."""
    known = list(names)
    near = dict.fromkeys(
        name for text in wanted for name in difflib.get_close_matches(text.strip("*"), known, n=count, cutoff=0.5)
    )
    shown = list(near)[:count] or known[:count]
    if not shown:
        return "there are none"
    *first, last = shown
    text = f"{', '.join(first)} and {last}" if first else last
    if near:
        return f"of {len(known)} the nearest {'are' if first else 'is'} {text}"
    return f"there are {len(known)}, as {text}" if len(known) > len(shown) else f"there are {text}"


def first_line(error: BaseException, length: int = 200) -> str:
    """Return the first line of an exception's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:length]
