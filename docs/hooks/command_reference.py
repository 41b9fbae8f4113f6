"""The reference of the command line, from the options that the commands have."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from svdctl.cli.app import app
from svdctl.cli.command_table import COMMANDS
from svdctl.cli.help_page import PANEL_NOTES, Panel


def command_page() -> str:
    """Return the page, in Markdown."""
    group: Any = get_command(app)
    lines = [
        "# Command line",
        "",
        "Made from the options of each command; `svdctl COMMAND --help` prints the same. Names of options take a dash "
        "or an underscore. Results go to stdout, progress and notices to stderr. Exit codes: 0 fine, 1 the run failed, "
        "2 wrong usage, configuration or input, 130 interrupted.",
        "",
        "| command | what it does |",
        "|---|---|",
        *(f"| [`svdctl {name}`](#svdctl-{name}) | {_text(sentence)} |" for name, (sentence, _) in COMMANDS.items()),
        "",
        "## svdctl",
        "",
        *_option_table(group, heading="Options"),
    ]
    for name in COMMANDS:
        context = typer.Context(group, info_name="svdctl")
        _, command, _ = group.resolve_command(context, [name])
        lines += _command_lines(name, command)
    return "\n".join(lines)


def _command_lines(name: str, command: Any) -> Iterator[str]:
    yield from (f"## svdctl {name}", "")
    for paragraph in re.split(r"\n\s*\n", (command.help or "").strip()):
        # What keeps its line ends is shown as it is: commands, a line each.
        if "svdctl " in paragraph:
            lines = paragraph.replace("\b", "").strip("\n").splitlines()
            yield from ("```text", *(line.strip() for line in lines if line.strip()), "```", "")
        else:
            yield from (_text(paragraph), "")
    if command.epilog:
        yield from ("```text", *(line.strip() for line in command.epilog.splitlines() if line.strip()), "```", "")
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    if arguments:
        yield from ("| argument | meaning |", "|---|---|")
        yield from (f"| `{one.metavar or one.name}` | {_text(one.help or '')} |" for one in arguments)
        yield ""
    used = {_panel(one) for one in command.params if one.param_type_name != "argument"}
    # In the order of the help.
    for panel in Panel:
        if panel in used:
            yield from _option_table(command, heading=f"{name}: {panel}", panel=panel)
    for sentence, line in command.examples:
        yield from (_text(sentence), "", "```sh", line, "```", "")


def _panel(option: Any) -> Panel:
    return Panel(getattr(option, "rich_help_panel", None) or Panel.RUN)


def _option_table(command: Any, heading: str, panel: Panel = Panel.RUN) -> Iterator[str]:
    options = [one for one in command.params if one.param_type_name != "argument" and _panel(one) == panel]
    yield from (f"### {heading}", "")
    if panel in PANEL_NOTES:
        yield from (_text(PANEL_NOTES[panel]), "")
    yield from ("| option | value | meaning |", "|---|---|---|")
    for one in options:
        if not getattr(one, "hidden", False):
            yield f"| {_names(one)} | {_value(one)} | {_text(one.help or '')} |"
    yield ""


def _names(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    return names + "".join(f", `{name}`" for name in option.secondary_opts)


def _value(option: Any) -> str:
    """Return what may follow an option, and what holds without it; nothing of a switch."""
    kind = getattr(option.type_descriptor, "annotation", str)
    name = {int: "INT", float: "FLOAT", Path: "PATH"}.get(kind, "TEXT")
    words = str(option.metavar or name).removeprefix("[").removesuffix("]").split("|")
    value = "" if option.is_flag else ", ".join(f"`{word}`" for word in words)
    several = ", repeatable" if option.multiple else ""
    default = f"; {_text(option.show_default)}" if isinstance(option.show_default, str) else ""
    return (value + several + default).removeprefix("; ")


def _text(text: str) -> str:
    """Return a help text as one line of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
