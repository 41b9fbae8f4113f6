"""The page that `--help` prints: options in groups, each with its choices, a sentence and what holds without it."""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from svdctl.utils.printable import command_lines, encodable

TEXT_AT = 26
"""Column at which the sentence on an option begins, beside the option or below it."""
SHORT = 40
"""Characters below which what holds without an option stays on one line."""
WIDEST = 110
"""Columns that are used of a wider terminal; longer lines are hard to read."""


class Panel(StrEnum):
    """The groups of options in a help, in their order; each command has some of them."""

    WHAT = "What"
    DATA = "Data"
    MODEL = "Model"
    LAYER = "Layer"
    CONTROL = "Control"
    OPTIMISER = "Optimiser"
    CORRUPTIONS = "Corruptions"
    ATTACKS = "Attacks"
    GATE = "Gate"
    RUN = "Run"
    DEVICES = "Devices"
    OUTPUT = "Output"
    PAPER = "Spellings of the paper's code"


PANEL_NOTES = {
    Panel.PAPER: "For commands that were written for the paper's public code. Every option above may be spelled with "
    "underscores too, as there: --clip_to is --clip-to.",
}
"""What stands under the name of a group."""


class OptionsCommand(TyperCommand):
    """A command whose help is this page, with a sentence and a command line for each of its examples."""

    examples: Sequence[tuple[str, str]] = ()

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return the options that begin like this; typer breaks longer sentences, and fish takes each line for one."""
        found = super().shell_complete(ctx, incomplete)
        for item in found:
            item.help = item.help and textwrap.shorten(item.help, 60, placeholder="...")
        return found

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page into the formatter."""
        formatter.write(page(self, ctx))


def page(command: TyperCommand | TyperGroup, ctx: Any) -> str:
    """Return the help of a command: its use, its sentences, its commands, its options by group, and its examples."""
    width = max(50, min(shutil.get_terminal_size().columns, WIDEST))
    lines = [command.get_usage(ctx), ""]
    for paragraph in (command.help or "").split("\n\n"):
        text, is_item = " ".join(paragraph.split()), paragraph.startswith("- ")
        if is_item and lines[-2].startswith(("- ", "  ")):
            lines.pop()  # items of a list stand below each other
        lines += [*textwrap.wrap(text, width, subsequent_indent="  " * is_item, break_on_hyphens=False), ""]
    if isinstance(command, TyperGroup):
        entries = ((name, one.help or "") for name, one in command.commands.items())
        lines += _panel("Commands", entries, width)
    for panel, params in _panels(command, ctx).items():
        lines += _panel(panel, (_entry(param) for param in params), width, PANEL_NOTES.get(panel, ""))
    if examples := getattr(command, "examples", ()):
        lines += [_heading("Examples", width), *_example_lines(examples, width)]
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def _panels(command: TyperCommand | TyperGroup, ctx: Any) -> dict[Panel, list[Any]]:
    """Return the parameters by group, groups in their order; an argument is the first of its group."""
    found: dict[Panel, list[Any]] = {panel: [] for panel in Panel}
    for param in command.get_params(ctx):
        found[Panel(getattr(param, "rich_help_panel", None) or Panel.RUN)].append(param)
    return {panel: params for panel, params in found.items() if params}


def _panel(name: str, entries: Iterable[tuple[str, str]], width: int, note: str = "") -> list[str]:
    """Return the lines of a group, entries in the order of the command's table."""
    lines = [_heading(name, width), *textwrap.wrap(note, width, initial_indent="  ", subsequent_indent="  ")]
    for head, text in entries:
        lines += _entry_lines(head, text, width)
    return [*lines, ""]


def _example_lines(examples: Iterable[tuple[str, str]], width: int) -> Iterator[str]:
    """Yield the sentence on each example, and its command line as a shell takes it."""
    for sentence, line in examples:
        yield from textwrap.wrap(sentence, width, initial_indent="  ", subsequent_indent="  ")
        yield from command_lines(f"    {line}", width, 8)


def _heading(name: str, width: int) -> str:
    rule = "─" if encodable("─", sys.stdout) == "─" else "-"
    text = f"{rule} {name} ".ljust(width, rule)
    return typer.style(text, bold=True) if _is_coloured() else text


def _is_coloured() -> bool:
    """Return whether headings may be bold; where stdout is no terminal, the parser takes it out again."""
    return "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _entry(param: Any) -> tuple[str, str]:
    """Return an option with its value, and the sentence on it with what holds without it."""
    names = ", ".join(sorted(param.opts, key=len, reverse=True)) if param.param_type_name == "option" else ""
    if param.secondary_opts:
        names += " / " + ", ".join(param.secondary_opts)
    value = param.metavar if names else f"{param.metavar}..."
    head = " ".join(filter(None, [names, value]))
    default = f"[{param.show_default}]" if isinstance(param.show_default, str) else ""
    if len(default) < SHORT:
        default = default.replace(" ", "\N{NO-BREAK SPACE}")
    return head, " ".join(filter(None, [param.help, default]))


def _fits(head: str) -> bool:
    return len(head) <= TEXT_AT - 4


def _entry_lines(head: str, text: str, width: int) -> Iterator[str]:
    wrapped = textwrap.wrap(text, width - TEXT_AT, break_long_words=False, break_on_hyphens=False) or [""]
    if _fits(head):
        yield f"  {head}".ljust(TEXT_AT) + wrapped.pop(0)
    else:
        yield from _head_lines(head, width)
    for line in wrapped:
        yield " " * TEXT_AT + line


def _head_lines(head: str, width: int) -> Iterator[str]:
    """Yield an option whose choices are broken between two of them, where they need more than one line."""
    name, _, rest = head.partition("[")
    pieces = [f"{piece}|" for piece in rest.split("|")]
    line, indent = f"  {name}" + "[" * bool(rest), " " * (len(name) + 3)
    for piece in pieces:
        if len(line) + len(piece) > width and line.strip():
            yield line
            line = indent
        line += piece
    yield line.removesuffix("|")
