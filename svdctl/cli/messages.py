"""Exceptions to one sentence on stderr and an exit code: 1 the run failed, 2 wrong usage, 130 interrupted."""

import difflib
import errno
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

import typer

from svdctl.errors import EndedElsewhere, EvaluationFailures, LimitExceeded, SvdctlError, UsageError, is_out_of_memory
from svdctl.utils.escapes import one_line
from svdctl.utils.printable import hanging, print_line, printable
from svdctl.utils.table import width_of

# Typer exports this one of its parser's errors; they share its base.
ParserError: type[BaseException] = typer.BadParameter.__bases__[0]


def report(error: BaseException, flags: Mapping[str, str], *, debug: bool) -> int:
    """Print what went wrong, with the flags of a command in place of keys; return the exit code."""
    if debug:
        traceback.print_exception(error)
    sentences, code = explain(error)
    for sentence in sentences:
        _print_on_stderr(f"svdctl: {printable(with_flags(sentence, flags))}")
    return code


def print_notices(notices: Iterable[str]) -> None:
    """Print what is said of flags before a command begins, a line each, on stderr."""
    for notice in notices:
        _print_on_stderr(f"note: {one_line(notice)}")


def _print_on_stderr(text: str) -> None:
    """Print a text; on a terminal its lines end at words, elsewhere they stay as they are."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    width = width_of(sys.stderr) if is_terminal else None
    for line in text.split("\n"):
        for piece in hanging(line, width, 2):
            print_line(piece, sys.stderr)


def with_flags(text: str, flags: Mapping[str, str]) -> str:
    """Return a message of the library with flags in place of the parameters and keys that it names in backticks.

    `` `layer.rank`: `` becomes `--dec-rank (layer.rank):`, and `` `control.kind = clip` `` becomes `--clipping clip`.
    What has no flag is written as `--set key=value` where the command has `--set`, else as it is.

    Args:
        text: the message.
        flags: flags by key.
    """

    def flag(match: re.Match[str]) -> str:
        key, value, colon = match[1], match[2], match[3]
        above, _, last = key.rpartition(".")
        found = flags.get(above if last.isdigit() else key)
        if (phrase := f"{key} = {value}") in flags:
            return flags[phrase] + colon
        if value is not None:
            unknown = f"--set {key}={value}" if "set" in flags and "." in key else f"{key} = {value}"
            return (f"{found} {value}" if found else unknown) + colon
        if found is None or (colon and found != "--" + key.replace("_", "-")):
            told = f"{above}, item {int(last) + 1}" if last.isdigit() else key
            return (f"{found} ({told})" if found else key) + colon
        return found + colon

    return re.sub(r"`([a-z_][a-z_0-9]*(?:\.[a-z_0-9-]+)*)(?: = ([^`]+))?`(:?)", flag, text)


def explain(error: BaseException) -> tuple[tuple[str, ...], int]:
    """Return what to say about an exception, and the exit code; the order of the cases matters."""
    if isinstance(error, UsageError):
        return tuple(map(one_line, error.faults)), error.exit_code
    if isinstance(error, SvdctlError):
        # Of these each line is one of its own, its names escaped.
        is_list = isinstance(error, EvaluationFailures | LimitExceeded)
        return (str(error) if is_list else one_line(error),), error.exit_code
    if isinstance(error, ParserError):
        return (f"{parser_sentence(error)} (--help shows all)",), 2
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return ("interrupted",), 130
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return ("a path begins with ~ and the name of a user who has no home here; write it out",), 2
    if isinstance(error, EndedElsewhere):
        return (), 1
    if isinstance(error, SystemExit):
        return (f"the network's own code ended the program (exit code {error.code or 0}); take that out of it",), 1
    if is_out_of_memory(error):
        return (
            "out of memory; free some, or ask for less at once: a smaller --batch-size or --precision bf16-mixed of a "
            "training, some --layer or a smaller --input-size of an analysis",
        ), 1
    if isinstance(error, OSError):
        return (one_line(os_sentence(error)),), 1
    text = " ".join(str(error).split())[:300]
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return (f"{what}; svdctl did not expect this: run again with --debug to see where it happened",), 1


NUMBERS = {"int": ("a whole number", "3"), "float": ("a number", "0.5")}
"""What to give instead and an example, by the beginning of the name that pydantic has for a fault."""


def parser_sentence(error: BaseException) -> str:
    """Return the parser's message, with the nearest options, the nearest first."""
    faults: list[Any] = getattr(error.__cause__, "errors", list)()
    option = getattr(error, "param", None)
    if faults and option is not None and (kind := faults[0]["type"].partition("_")[0]) in NUMBERS:
        name, (wanted, example) = max(option.opts, key=len), NUMBERS[kind]
        return f"{name} {str(faults[0]['input'])[:80]}: {wanted} is wanted, as {name} {example}"
    if hasattr(error, "possibilities"):
        near = near_options(error)
        hint = f" (did you mean {', '.join(near)}?)" if near else ""
        return f"{error.args[0] if error.args else error}{hint}"
    message = str(getattr(error, "format_message", error.__str__)()).replace("\n", " ").rstrip(".")
    if lacking := re.fullmatch(r"Option '(--[a-z-]+)' requires an argument", message):
        return f"{lacking[1]}: a value is wanted behind it"
    if further := re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", message):
        return f"{further[1]}: no such argument is taken here; a value stands behind its option"
    return message


def near_options(error: BaseException) -> list[str]:
    """Return options that resemble one that the parser does not know, the nearest first: by name or by their help.

    `--learning-rate` is near to an option whose help begins with "Learning rate".
    """
    typed, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if typed is None or context is None:
        return sorted(getattr(error, "possibilities", None) or ())
    typed = typed.lstrip("-").replace("_", "-").lower()
    likeness: dict[str, float] = {}
    for option in context.command.params:
        names = [name for name in (*option.opts, *option.secondary_opts) if name.startswith("--")]
        words = re.split(r"[^a-z -]", (getattr(option, "help", None) or "").lower())[0].split()
        described = ["-".join(words[:count]) for count in (1, 2, 3)] if names else []
        # Of a name and a description that are as near, the name is meant.
        rated = [(name, _likeness(typed, name[2:])) for name in names]
        rated += [(names[0], difflib.SequenceMatcher(None, typed, text).ratio() - 0.15) for text in described]
        for name, value in rated:
            likeness[name] = max(value, likeness.get(name, 0.0))
    nearest = max(likeness.values(), default=0.0)
    near = [name for name, value in likeness.items() if value >= max(0.6, nearest - 0.05)]
    return sorted(near, key=lambda name: -likeness[name])[:3]


def _likeness(one: str, other: str) -> float:
    """Return how alike two names are, 1 for equal ones; at least 0.8 where one is a part of the other, or begins it."""
    part = one in other.split("-") or other in one.split("-") or one.startswith(other) or other.startswith(one)
    return max(0.8 if part else 0.0, difflib.SequenceMatcher(None, one, other).ratio())


def os_sentence(error: OSError) -> str:
    """Return file, cause and way out of a failure of the system."""
    name = error.filename2 or error.filename  # of a renaming, the new name
    where = f"{name}: " if name else ""
    cause = (error.strerror or str(error) or type(error).__name__).lower()
    if isinstance(error, FileNotFoundError):
        return f"{where}{cause}; check the path"
    if isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError):
        return f"{where}{cause}; move it away"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"{where}{cause}; choose a place that you may read and write (--out-dir, --dataset-root)"
    return f"{where}{cause}; free space or choose another folder (--out-dir), then try again"


def wants_debug(arguments: list[str]) -> bool:
    """Return whether tracebacks are asked for."""
    return "--debug" in arguments or os.environ.get("SVDCTL_DEBUG", "") not in ("", "0")
