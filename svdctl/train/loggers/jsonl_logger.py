"""`metrics.jsonl` of a run folder: one JSON object a line, of every run."""

import os
from collections.abc import Mapping
from io import TextIOWrapper
from typing import Any, Literal

from svdctl.config.base import Config
from svdctl.errors import TrainingError
from svdctl.train.logger import Logger, LogWriter, RunInfo, register_logger
from svdctl.train.metrics_log import line_text
from svdctl.utils.atomic_write import error_names, write_atomically
from svdctl.utils.files import open_to_append


class JsonlConfig(Config):
    """The lines are in `metrics.jsonl` of the run folder."""

    kind: Literal["jsonl"] = "jsonl"


@register_logger
class JsonlLogger(Logger):
    """Appends to `metrics.jsonl`; of a run that is resumed the file is first written anew from the lines that stay."""

    kind = "jsonl"
    config = JsonlConfig

    def open(self, run: RunInfo, config: JsonlConfig) -> LogWriter:
        """Return the log, open for appending."""
        return _JsonlWriter(run)


class _JsonlWriter:
    def __init__(self, run: RunInfo) -> None:
        self._path = run.folder / "metrics.jsonl"
        if run.lines is not None:
            write_atomically(self._path, "".join(map(line_text, run.lines)))
        self._file = TextIOWrapper(open_to_append(self._path), encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            TrainingError: the file was removed, as with its folder.
            OSError: it cannot be written, as on a full disk.
        """
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise TrainingError(
                f"{self._path} was removed while the run trained in its folder; stopped at step {line['step']}, what "
                f"is left in {self._path.parent} is kept"
            )
        with error_names(self._path):
            self._file.write(line_text(line))
            self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        with error_names(self._path):
            self._file.close()
