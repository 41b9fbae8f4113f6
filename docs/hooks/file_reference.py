"""Parts of the page on files: what a checkpoint, a record of results and the figures of each metric hold."""

import ast
import inspect
from collections.abc import Iterator
from textwrap import dedent
from typing import Any

from configuration_reference import plain, sentence
from pydantic import BaseModel

from svdctl.checkpoint.checkpoint_file import Checkpoint, write_checkpoint
from svdctl.config.presets import list_presets, read_preset
from svdctl.evaluate.results import Record
from svdctl.registry import METRICS

OF_CHECKPOINTS = {
    "format": "`svdctl.checkpoint`.",
    "version": "Version of the format.",
    "config": "The configuration, as JSON.",
    "classes": "Names of the classes, in the order of the logits.",
    "image_shape": "Channels, height and width of an image.",
    "metrics": "Step, best accuracies, figures of the end.",
}
"""What the code says of these keys elsewhere."""
OF_RECORDS = {
    "metric": "Kind of the metric.",
    "results": "The figures, those below.",
    "seconds": "Time that the measurement took.",
    "environment": "Versions, machine and device.",
    "network": "Key of what the network answered, in `networks` of the file.",
    "sha256": "Over the record and the `about` of the file.",
}


def attribute_docs(owner: type) -> dict[str, str]:
    """Return the docstring below each attribute of a class; empty where there is none."""
    (tree,) = ast.parse(dedent(inspect.getsource(owner))).body
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            is_doc = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            found[statement.target.id] = plain(str(after.value.value)) if is_doc else ""  # type: ignore[union-attr]
    return found


def keys_of_checkpoints() -> dict[str, str]:
    """Return the keys of a checkpoint, each with what it holds."""
    # The writer adds these two to the attributes of `Checkpoint`.
    assert all(f'"{key}": ' in inspect.getsource(write_checkpoint) for key in ("format", "version"))
    docs = attribute_docs(Checkpoint)
    return {key: docs.get(key) or OF_CHECKPOINTS[key] for key in ("format", "version", *docs)}


def keys_of_records() -> dict[str, str]:
    """Return the keys of a record of `results.json`, each with what it holds."""
    docs = attribute_docs(Record)
    names = [name for name, field in Record.model_fields.items() if not field.exclude]
    return {key: docs.get(key) or OF_RECORDS[key] for key in (*names, "network", "sha256")}


def figures_of(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield the keys of a metric's figures, with their types as they are written in the code."""
    for name, field in model.model_fields.items():
        inner = [kind for kind in _kinds(field.annotation) if inspect.isclass(kind) and issubclass(kind, BaseModel)]
        if inner:
            for kind in inner:
                yield from figures_of(kind, f"{above}{name}.")
        else:
            yield f"{above}{name}", plain(field.description or attribute_docs(model).get(name, ""))


def _kinds(annotation: Any) -> list[Any]:
    inner = getattr(annotation, "__args__", ())
    return [annotation, *(kind for one in inner for kind in _kinds(one))]


def checkpoint_table() -> str:
    """Return the keys of a checkpoint as a table."""
    return _table("key", keys_of_checkpoints())


def record_tables() -> str:
    """Return the keys of a record, and those of the figures of each metric, as tables."""
    parts = [_table("key", keys_of_records()), "`results` of each metric; shares are between 0 and 1.", ""]
    for metric in METRICS.variants():
        if METRICS.is_builtin(metric):
            names = ", ".join(f"`{name}`" for name, _ in figures_of(metric.figures))
            parts.append(f"- `{metric.kind}`: {sentence(metric.figures.__doc__)} {names}")
    return "\n".join(parts)


def preset_table() -> str:
    """Return the shipped presets as a table."""
    lines = ["| preset | what | command |", "|---|---|---|"]
    for name, text in list_presets().items():
        command = "train-lipconv" if read_preset(name)["model"]["kind"] == "lipconv" else "train"
        lines.append(f"| `{name}` | {plain(text)} | `svdctl {command} --preset {name}` |")
    return "\n".join(lines)


def _table(head: str, rows: dict[str, str]) -> str:
    return "\n".join([f"| {head} | what |", "|---|---|", *(f"| `{key}` | {text} |" for key, text in rows.items()), ""])


PARTS = {"checkpoint": checkpoint_table, "record": record_tables, "presets": preset_table}
"""What takes the place of `<!-- made: NAME -->` to `<!-- end -->` in pages of the repository."""
