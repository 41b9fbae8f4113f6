"""The notebook as a page: its cells, and what they print, draw and return when the site is built."""

import base64
import re
from functools import cache
from pathlib import Path
from typing import Any

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parents[1] / "notebook.ipynb"
SECONDS = 300
"""Each cell may take so long."""


@cache
def executed(text: str) -> Any:
    """Return a notebook, of its text, with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = nbformat.reads(text, as_version=4)
    settings = {"metadata": {"path": str(NOTEBOOK.parents[1])}}
    return nbclient.NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=settings).execute()


def notebook_page(*, execute: bool) -> tuple[str, dict[str, bytes]]:
    """Return the page, in Markdown, and its pictures by name.

    Args:
        execute: whether cells are run; otherwise the page has none of their outputs.
    """
    text = NOTEBOOK.read_text(encoding="utf-8")
    notebook = executed(text) if execute else nbformat.reads(text, as_version=4)
    pictures: dict[str, bytes] = {}
    parts = []
    for cell in notebook.cells:
        parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
        parts.extend(_output(output, pictures) for output in cell.get("outputs", []))
        if len(parts) == 1:
            parts.append("The notebook is [notebook.ipynb](notebook.ipynb); outputs are of the day the site was built.")
    return "\n\n".join(parts) + "\n", pictures


def _output(output: Any, pictures: dict[str, bytes]) -> str:
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        name = f"notebook-{len(pictures) + 1}.png"
        pictures[name] = base64.b64decode(data["image/png"])
        return f"![what the cell above draws]({name})"
    if "text/html" in data:
        return re.sub(r"\n\s*\n", "\n", data["text/html"])  # blank lines would end the table
    return f"```text\n{data['text/plain'].rstrip()}\n```"
