"""`metrics.jsonl` of a run folder: one JSON object a line, of every run."""

import os
from collections.abc import Mapping
from io import TextIOWrapper
from typing import Any, Literal

from svdctl.config.base import Config
from svdctl.errors import TrainingError, UnusableFileError
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
        self._notice, self._request_save = run.notice, run.request_save
        if run.lines is not None:
            write_atomically(self._path, "".join(map(line_text, run.lines)))
        self._file = self._open()

    def _open(self) -> TextIOWrapper:
        return TextIOWrapper(open_to_append(self._path), encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; where the file was removed, to a new one, and have the run saved.

        Raises:
            TrainingError: the run folder was removed, or a link, folder or device has taken the file's place.
            OSError: it cannot be written, as on a full disk.
        """
        if os.fstat(self._file.fileno()).st_nlink == 0:
            self._begin_anew(line["step"])
        with error_names(self._path):
            self._file.write(line_text(line))
            self._file.flush()

    def _begin_anew(self, step: int) -> None:
        """Open a new file in the place of one that was removed, and say so."""
        if not self._path.parent.is_dir():
            raise TrainingError(
                f"{self._path} was removed with its folder while the run trained in it; stopped at step {step}"
            )
        self._file.close()
        try:
            self._file = self._open()
        except UnusableFileError as error:
            raise TrainingError(
                f"{error}; the log was removed while the run trained, stopped at step {step}"
            ) from error
        self._request_save()
        self._notice(
            f"{self._path} was removed while the run trained; the run saves, and goes on with a new log from step "
            f"{step} on. The lines before are lost but for those about epochs, which are in the checkpoints"
        )

    def close(self) -> None:
        """Flush and close."""
        with error_names(self._path):
            self._file.close()
