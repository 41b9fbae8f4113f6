"""Metrics of a run: one JSON object a line, always; Weights & Biases when asked for."""

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from svdctl.config.run_config import Log
from svdctl.errors import TrainingError, UsageError
from svdctl.utils.atomic_write import error_names, write_atomically


class RunLog:
    """Appends to `metrics.jsonl`.

    Args:
        folder: the run folder.
        log: what is recorded, and where else.
        config: the configuration, for Weights & Biases.
        lines: of a run that is resumed, all lines that the file shall have; those of steps that are made again, and
            whatever else it holds, are dropped.
    """

    def __init__(
        self, folder: Path, log: Log, config: dict[str, Any], *, lines: Iterable[Mapping[str, Any]] | None = None
    ) -> None:
        self.path = folder / "metrics.jsonl"
        if lines is not None:
            write_atomically(self.path, "".join(map(_text, lines)))
        self._file = self.path.open("a", encoding="utf-8")
        self._wandb = _start_wandb(folder, log, config) if log.wandb != "off" else None

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line of `make_line`.

        Raises:
            TrainingError: the file was removed, as with its folder.
            OSError: it cannot be written, as on a full disk.
        """
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise TrainingError(
                f"{self.path} was removed while the run trained in its folder; stopped at step {line['step']}, what is "
                f"left in {self.path.parent} is kept"
            )
        with error_names(self.path):
            self._file.write(_text(line))
            self._file.flush()
        if self._wandb is not None:
            self._wandb.log({k: v for k, v in line.items() if k not in ("kind", "step")}, step=line["step"])

    def close(self) -> None:
        """Flush and close."""
        with error_names(self.path):
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


_NEEDED = {"step": {"epoch", "loss", "orthogonal_loss", "acc", "lr"}}
_NEEDED["epoch"] = _NEEDED["step"] | {"epochs", "train_time", "clipping_time"}
"""What a line of each kind has."""


def make_line(kind: str, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
    """A line of `metrics.jsonl`; `kind` is `step` or `epoch`. JSON has no NaN: such a value becomes None, not known."""
    return {"kind": kind, "step": step} | {k: v if math.isfinite(v) else None for k, v in metrics.items()}


def _text(line: Mapping[str, Any]) -> str:
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
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, IsADirectoryError):
        return [], 0
    found = []
    texts = [line for line in text.split("\n") if line.strip()]
    for line in texts:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # ValueError: no JSON, or a number of thousands of digits
            continue
        if is_line(record):
            found.append(record)
    return found, len(texts) - len(found)


def line_digest(line: Mapping[str, Any]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a line."""
    return hashlib.sha256(_text(line).encode()).hexdigest()[:16]


def is_line(record: object) -> bool:
    """Whether a value has the form of a line of `metrics.jsonl`."""
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
    """Whether a value is a finite number, or None: not known."""
    return value is None or (isinstance(value, int | float) and abs(value) <= sys.float_info.max)


def _start_wandb(folder: Path, log: Log, config: dict[str, Any]) -> Any:
    import wandb  # 0.8 s, and needed by few

    try:
        return wandb.init(
            project=log.wandb_project,
            group=log.wandb_group,
            name=folder.name,
            dir=str(folder),
            mode="offline" if log.wandb == "offline" else "online",
            config=config,
            settings=wandb.Settings(silent=True),
        )
    except wandb.errors.UsageError as error:
        raise UsageError(
            f"Weights & Biases refused to start ({str(error).splitlines()[0]}); run `wandb login`, or use "
            "`log.wandb = offline`"
        ) from error
    except wandb.errors.CommError as error:
        raise TrainingError(f"Weights & Biases cannot be reached ({error}); use `log.wandb = offline`") from error
