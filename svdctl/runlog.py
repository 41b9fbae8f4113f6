"""Metrics of a run: one JSON object a line, always; Weights & Biases when asked for."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdctl.config.run import Log
from svdctl.errors import TrainingError, UsageError
from svdctl.runfolder import naming, write_text


class RunLog:
    """Appends to `metrics.jsonl`; lines of later steps than `step` are dropped first: a resumed run has each once."""

    def __init__(self, folder: Path, log: Log, config: dict[str, Any], *, step: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        if step and self.path.exists():
            kept = [line for line in read_log(self.path) if line["step"] <= step]
            write_text(self.path, "".join(_line(line) for line in kept))
        self._file = self.path.open("a", encoding="utf-8")
        self._wandb = _start_wandb(folder, log, config) if log.wandb != "off" else None

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics at a step; `kind` is `step` or `epoch`.

        Raises:
            TrainingError: the file was removed, as with its folder.
            OSError: it cannot be written, as on a full disk.
        """
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise TrainingError(
                f"{self.path} was removed while the run trained in its folder; stopped at step {step}, what is left in "
                f"{self.path.parent} is kept"
            )
        with naming(self.path):
            self._file.write(_line({"kind": kind, "step": step, **metrics}))
            self._file.flush()
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def close(self) -> None:
        """Flush and close."""
        with naming(self.path):
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


def _line(record: Mapping[str, Any]) -> str:
    # JSON has no NaN: such a value is written as null.
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(clean) + "\n"


def read_log(path: Path) -> list[dict[str, Any]]:
    """All records of a `metrics.jsonl`; a line that is none, as one cut off by a kill, is left out."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


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
            "--wandb offline"
        ) from error
    except wandb.errors.CommError as error:
        raise TrainingError(f"Weights & Biases cannot be reached ({error}); use --wandb offline") from error
