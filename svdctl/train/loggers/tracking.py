"""A run as programs that draw curves show it: names of figures, the configuration in pairs, the summary as Markdown."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdctl.errors import UnusableFileError
from svdctl.train.logger import RunEnd
from svdctl.utils.escapes import markdown, markdown_line, metric_name
from svdctl.utils.rounded_figures import at_least, at_most

_OF_NETWORK = ("lipschitz", "frame_deviation", "control_calls", "batchnorm_calls")
_NO_FIGURES = ("kind", "step", "epochs")


def require_folder(folder: Path, what: str) -> None:
    """Raise an UnusableFileError where a link, or no folder, has the place of a logger's folder.

    Args:
        folder: of the logger, in the run folder; it need not exist.
        what: belongs there, for the message.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UnusableFileError(str(folder), f"is no folder, and {what} there", "move it away")


def named_figures(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a line that are known, by names that differ between lines about steps and about epochs.

    Figures of the training part are `train/<key>_step` and `train/<key>_epoch`, of the validation part `val/<key>`, of
    layers `sigma/<layer>`, `bound/<layer>`, `max/<layer>` and `changed/<layer>`, of proofs between steps
    `proof/found`, `proof/bound/<layer>` and `proof/max/<layer>`, of the network `network/<key>`, seconds `time/<key>`.
    """
    found = {_name(line["kind"], key): value for key, value in line.items() if value is not None}
    return {name: value for name, value in found.items() if name is not None}


def _name(kind: str, key: str) -> str | None:
    if key in _NO_FIGURES or kind == "extended" or (key == "epoch" and kind != "epoch"):
        return None
    group, _, layer = key.partition("/")
    if layer:
        key = f"{group}/{metric_name(layer)}"
    if kind == "proof":
        return f"proof/{key}"
    if layer or key == "epoch":
        return key
    if key.endswith("_time"):
        return f"time/{key.removesuffix('_time')}"
    if key.startswith("val_") or key == "epsilon":
        return f"val/{key.removeprefix('val_')}"
    return f"network/{key}" if key in _OF_NETWORK else f"train/{key}_{kind}"


def named_results(end: RunEnd) -> dict[str, float]:
    """Return the final figures: `test/<key>`, of the network that was picked `best_test/<key>`, and `time/total`."""
    found = {}
    for key, value in end.figures.items():
        group, _, rest = key.partition("test_")
        found[f"{group}test/{metric_name(rest)}" if rest else f"time/{'total' if key == 'seconds' else key}"] = value
    return found


def flat_configuration(table: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Return a nested configuration as pairs, `control.max_sigma` to 2.0; lists are texts, what is absent is left out.

    >>> from svdctl.train.loggers.tracking import flat_configuration
    >>> flat_configuration({"seed": 0, "control": {"kind": "clip", "linear_max": None}, "at": [1, 2]})
    {'seed': 0, 'control.kind': 'clip', 'at': '[1, 2]'}
    """
    found: dict[str, bool | int | float | str] = {}
    for key, value in table.items():
        name = f"{prefix}{metric_name(key)}"
        if isinstance(value, Mapping):
            found |= flat_configuration(value, f"{name}.")
        elif isinstance(value, bool | int | float | str):
            found[name] = value
        elif value is not None:
            found[name] = json.dumps(value)
    return found


def configuration_text(table: Mapping[str, Any]) -> str:
    """Return a configuration as a block of code in Markdown."""
    return "\n".join(f"    {line}" for line in json.dumps(table, indent=2).split("\n"))


def summary_text(end: RunEnd) -> str:
    """Return sentences and layers of the summary as Markdown."""
    lines = [f"{markdown_line(sentence)}\n" for sentence in end.sentences]
    lines += ["| layer | kind | largest singular value | proved bound | maximum |", "| --- | --- | --- | --- | --- |"]
    for row in end.layers:
        limit = "" if row.maximum is None else at_most(row.maximum, 6)
        figures = f"{at_least(row.largest, 6)} | {at_most(row.bound, 6)} | {limit}"
        lines.append(f"| {markdown(row.name)} | {markdown(row.kind)} | {figures} |")
    return "\n".join(lines)
