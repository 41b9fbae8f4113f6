"""Text for a terminal: names of files and folders can hold anything, codes that a terminal obeys too."""

import codecs
import re
import textwrap
import unicodedata
from typing import IO

ASCII_FORMS = "svdctl-ascii"
"""What an encoding does with signs that it lacks: svdctl's own have forms in ASCII, others are escape codes."""
_OWN = {"…": "~", "±": "+-"}
"""Forms of the signs that svdctl writes; the one for what was left out is as wide, so that columns stay straight."""
_SHOWN = 80
"""Signs of a wrong value that a sentence repeats."""


def printable(text: str) -> str:
    """Return the text with every sign that is not printable, line feeds aside, written as its escape code."""
    return "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in text)


def columns_of(text: str) -> int:
    """Return how many columns of a terminal a printable line takes: two for wide signs, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text
    )


def hanging(text: str, width: int | None, indent: int = 9) -> list[str]:
    """Return a printable text on as many lines of a terminal as it takes, those after the first indented.

    Args:
        text: as `control  clip convolutions to 4`, whose label takes `indent` columns; words are never cut.
        width: columns of the terminal; None: the text is one line.
        indent: of the lines after the first.
    """
    if width is None or columns_of(text) <= width:
        return [text]
    spaces = " " * indent
    return textwrap.wrap(
        text, max(width, 2 * indent), subsequent_indent=spaces, break_long_words=False, break_on_hyphens=False
    )


def command_lines(text: str, width: int | None, indent: int = 8) -> list[str]:
    """Return a command line on as many lines of a terminal as it takes, each but the last with a backslash at its end.

    Args:
        text: as `  config    svdctl train --set seed=3`, of which a shell takes the part from `svdctl` on as it is;
            an option and its value stay together, and quoted words whole.
        width: columns of the terminal; None: the text is one line.
        indent: of the lines after the first.
    """
    if width is None or columns_of(text) <= width:
        return [text]
    lines: list[str] = []
    for word in re.findall(r"""\s*(?:--[\w-]+ (?!-))?(?:'[^']*'|"[^"]*"|\S)+""", text):
        if lines and columns_of(lines[-1] + word) <= width - 2:
            lines[-1] += word
        else:
            lines.append(" " * indent + word.lstrip() if lines else word)
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def shown(value: object) -> str:
    """Return a wrong value as a sentence shows it: a tensor or an array by its shape, anything else cut."""
    shape = getattr(value, "shape", ())
    if isinstance(shape, tuple) and shape and not isinstance(value, type):
        return f"a {type(value).__name__} of shape {tuple(shape)}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def print_line(text: str, stream: IO[str] | None) -> None:
    """Print a line at once, with ASCII forms of what the stream's encoding has no sign for.

    Args:
        text: the line.
        stream: None: one that was closed before the program began; nothing is printed.
    """
    if stream is not None:
        print(encodable(text, stream), file=stream, flush=True)


def encodable(text: str, stream: IO[str]) -> str:
    """Return a text with ASCII forms (`ASCII_FORMS`) of what the stream's encoding has no sign for."""
    encoding = getattr(stream, "encoding", None) or "utf-8"  # streams in memory have none
    return text.encode(encoding, errors=ASCII_FORMS).decode(encoding)


def _ascii_forms(error: UnicodeError) -> tuple[str, int]:
    """Return the text in place of signs that an encoding lacks, and where they end."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(_OWN.get(sign) or ascii(sign)[1:-1] for sign in signs), error.end


codecs.register_error(ASCII_FORMS, _ascii_forms)
