"""Text for a terminal: names of files and folders can hold anything, codes that a terminal obeys too."""


def printable(text: str) -> str:
    """Return the text with every sign that is not printable, line feeds aside, written as its escape code."""
    return "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in text)
