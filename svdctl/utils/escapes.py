"""Text that some program will read as its own: for each format, what it would obey is written as text.

Names of files, folders, layers, classes and rows can hold anything: codes of a terminal, line ends, formulas, markup.
"""

import html
import json
import re
import unicodedata

from svdctl.utils.printable import printable

TEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"$<$",
    ">": r"$>$",
    # After the end of a line, TeX takes a bracket for an option.
    "[": "{[}",
    "]": "{]}",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "≈": r"$\approx$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "∞": r"$\infty$",
    "→": r"$\to$",
    "−": r"$-$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "’": "'",
    "“": "``",
    "”": "''",
    "°": r"$^\circ$",
    "²": r"$^2$",
    "³": r"$^3$",
}
GREEK_CAPITALS = ("GAMMA", "DELTA", "THETA", "LAMDA", "XI", "PI", "SIGMA", "UPSILON", "PHI", "PSI", "OMEGA")
"""Those that do not look like Latin ones."""
_FORMULA = ("=", "+", "-", "@")
_NUMBER = re.compile(r"[+-]?(\d[\d,_]*\.?\d*|\.\d+)([eE][+-]?\d+)?%?|[+-]?(inf|nan)|-")


def one_line(text: object) -> str:
    """Return a name for a terminal, on one line: line feeds are escape codes too."""
    return printable(str(text)).replace("\n", r"\n")


def csv_cell(text: str) -> str:
    """Return a cell of CSV on one line, with an apostrophe before what a spreadsheet would compute; numbers stay."""
    text = one_line(text)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def markdown(text: str) -> str:
    """Return text within a line or cell of Markdown that is neither markup, mathematics, link, picture nor HTML."""
    text = " ".join(printable(text).splitlines())
    text = re.sub(r"([\\|`$\[\]])", r"\\\1", text)
    # Emphasis: within words and at their ends a line opens none.
    text = re.sub(r"(?<!\w)_(?=\S)|\*", lambda sign: f"\\{sign[0]}", text)
    text = re.sub(r"~~", r"\\~\\~", text)
    return re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;")


def markdown_line(text: str) -> str:
    """Return text that is a line of Markdown, or begins one, so that it opens no heading, list, table or quotation."""
    return re.sub(r"^(\s*)([#>+=-]|\d+(?=[.)]))", lambda begin: f"{begin[1]}\\{begin[2]}", markdown(text))


def html_text(text: str) -> str:
    """Return text within an element or an attribute of HTML."""
    return html.escape(printable(text))


def figure_text(text: str) -> str:
    """Return text within a picture on one line that matplotlib does not take for mathematics."""
    return one_line(text).replace("$", r"\$")


def metric_name(text: str) -> str:
    """Return a part of a metric's name for TensorBoard, Weights & Biases and MLflow, which take it for a path too.

    Letters and digits of ASCII, `_`, `-` and `.` stay; any other sign is its code, as `_x2f_` for a slash.
    """
    return re.sub(r"[^A-Za-z0-9_.-]", lambda sign: f"_x{ord(sign[0]):x}_", text)


def json_signs(text: str) -> str:
    """Return JSON with what a terminal would obey as JSON's own escapes."""
    return "".join(sign if sign.isprintable() or sign == "\n" else json.dumps(sign)[1:-1] for sign in text)


def toml_signs(text: str) -> str:
    """Return TOML, its texts in double quotes, with what a terminal would obey as TOML's own escapes."""
    return "".join(sign if sign.isprintable() or sign == "\n" else f"\\U{ord(sign):08x}" for sign in text)


def tex(text: str) -> str:
    """Return text with TeX's special characters escaped; signs that pdflatex's T1 fonts lack as symbols or codes."""
    return "".join(map(_tex_sign, text))


def _tex_sign(sign: str) -> str:
    if sign in TEX_ESCAPES:
        return TEX_ESCAPES[sign]
    if sign.isascii():
        return sign if sign.isprintable() else " "
    name = unicodedata.name(sign, "")
    match = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER ([A-Z]+)", name)
    if match and (match[1] == "SMALL" or match[2] in GREEK_CAPITALS):
        letter = match[2].replace("LAMDA", "LAMBDA").lower()
        return rf"$\{letter if match[1] == 'SMALL' else letter.capitalize()}$" if letter != "omicron" else "o"
    return sign if name.startswith("LATIN ") and ord(sign) < 0x180 else rf"\texttt{{U+{ord(sign):04X}}}"
