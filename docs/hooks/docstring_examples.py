"""What mkdocstrings shows: examples as sections, a line for each parameter, defaults that are numbers."""

import importlib
import re
from functools import reduce
from textwrap import indent
from typing import Any

from griffe import Extension, Function, Object


def with_example_section(docstring: str) -> str:
    """Return a docstring whose examples, lines after the first `>>>`, stand in a section of Google's style."""
    match = re.search(r"^>>> ", docstring, re.M)
    if match is None:
        return docstring
    return docstring[: match.start()] + "Examples:\n" + indent(docstring[match.start() :], "    ")


def with_single_parameters(docstring: str) -> str:
    """Return a docstring in which parameters that share a description (`a, b: text`) have it each.

    Of a name that is several ones joined, mkdocstrings finds neither type nor default, and calls it required.
    """
    before, heading, rest = docstring.partition("\nArgs:\n")
    arguments, blank, after = rest.partition("\n\n")
    shared = re.compile(r"^    (\w+(?:, \w+)+): (.*(?:\n {5,}.*)*)$", re.M)
    single = shared.sub(lambda m: "\n".join(f"    {name}: {m[2]}" for name in m[1].split(", ")), arguments)
    return before + heading + single + blank + after


def value_of(module: str, default: str) -> str:
    """Return the number that a default stands for, where it is the name of one in a module; others as they are."""
    if not re.fullmatch(r"(\w+\.)*[A-Z_]+", default):
        return default
    value = reduce(getattr, default.split("."), importlib.import_module(module))
    return repr(value) if isinstance(value, int | float) else default


class DocstringExamples(Extension):
    """Change every docstring in these ways."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of an object that griffe has read."""
        if obj.docstring is not None:
            obj.docstring.value = with_single_parameters(with_example_section(obj.docstring.value))

    def on_function(self, *, func: Function, **_: Any) -> None:
        """Show numbers in the place of their names as defaults of its parameters."""
        for parameter in func.parameters:
            if parameter.default is not None:
                shown = value_of(func.module.path, str(parameter.default))
                if shown != str(parameter.default):
                    parameter.default = shown
