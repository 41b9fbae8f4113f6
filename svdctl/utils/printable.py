"""Text for a terminal: names of files and folders can hold anything, codes that a terminal obeys too."""

from typing import IO


def printable(text: str) -> str:
    """Return the text with every sign that is not printable, line feeds aside, written as its escape code."""
    return "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in text)


def print_line(text: str, stream: IO[str] | None) -> None:
    """Print a line at once, with escapes for what the stream's encoding has no sign for.

    Args:
        text: the line.
        stream: None: one that was closed before the program began; nothing is printed.
    """
    if stream is not None:
        print(encodable(text, stream), file=stream, flush=True)


def encodable(text: str, stream: IO[str]) -> str:
    """Return a text with escapes for what the stream's encoding has no sign for."""
    encoding = getattr(stream, "encoding", None) or "utf-8"  # streams in memory have none
    return text.encode(encoding, errors="backslashreplace").decode(encoding)
