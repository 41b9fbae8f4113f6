"""Lines of `metrics.jsonl`: made, checked and read."""

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdctl.errors import MalformedFileError
from svdctl.utils.files import open_regular, parse_json

LINE_LIMIT = 2**20
"""Bytes of a line; what is longer counts as several, all of them damaged."""

_NEEDED = {"step": {"epoch", "loss", "orthogonal_loss", "acc", "lr"}}
_NEEDED["proof"] = {"epoch", "found"}
_NEEDED["extended"] = {"epoch", "epochs", "epochs_before"}
_NEEDED["epoch"] = _NEEDED["step"] | {"epochs", "train_time", "clipping_time"}
"""What a line of each kind has."""


def make_line(kind: str, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return a line of `metrics.jsonl`; `kind` is a key of `_NEEDED`. What is not finite becomes None."""
    return {"kind": kind, "step": step} | {k: v if math.isfinite(v) else None for k, v in metrics.items()}


def line_text(line: Mapping[str, Any]) -> str:
    """Return a line as it stands in the file."""
    return json.dumps(dict(line)) + "\n"


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a `metrics.jsonl`, without those that `scan_log` leaves out; of several about a step one."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for line in scan_log(path)[0]:
        found.setdefault((line["kind"], line["step"]), line)
    return list(found.values())


def scan_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the lines of a `metrics.jsonl` that svdctl can have written, in the file's order, and count the others.

    Others are damaged or foreign: cut off by a kill, without a figure that their kind has, with a value that is no
    finite number. What is no file has no lines.
    """
    if not path.is_file():
        return [], 0
    found, count = [], 0
    with open_regular(path) as file:
        for line in iter(lambda: file.readline(LINE_LIMIT), b""):
            if not line.strip():
                continue
            count += 1
            try:
                record = parse_json(line.decode("utf-8", errors="replace"), str(path))
            except MalformedFileError:
                continue
            if is_line(record):
                found.append(record)
    return found, count - len(found)


def line_digest(line: Mapping[str, Any]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a line."""
    return hashlib.sha256(line_text(line).encode()).hexdigest()[:16]


def is_line(record: object) -> bool:
    """Return whether a value has the form of a line of `metrics.jsonl`."""
    if not isinstance(record, dict):
        return False
    kind, step, epoch = (record.get(name) for name in ("kind", "step", "epoch"))
    return (
        isinstance(kind, str)
        and _NEEDED.get(kind, {""}) <= record.keys()
        and all(type(value) is int and 0 < value < 2**53 for value in (step, epoch))
        and all(_is_figure(value) for name, value in record.items() if name != "kind")
    )


def _is_figure(value: object) -> bool:
    """Return whether a value is a finite number, or None: not known."""
    return value is None or (isinstance(value, int | float) and abs(value) <= sys.float_info.max)
