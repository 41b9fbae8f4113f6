"""Examples at the end of docstrings become sections that mkdocstrings shows as code."""

import re
from textwrap import indent
from typing import Any

from griffe import Extension, Object


def with_example_section(docstring: str) -> str:
    """Return a docstring whose examples, lines after the first `>>>`, stand in a section of Google's style."""
    match = re.search(r"^>>> ", docstring, re.M)
    if match is None:
        return docstring
    return docstring[: match.start()] + "Examples:\n" + indent(docstring[match.start() :], "    ")


class DocstringExamples(Extension):
    """Give every docstring such a section."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of an object that griffe has read."""
        if obj.docstring is not None:
            obj.docstring.value = with_example_section(obj.docstring.value)
