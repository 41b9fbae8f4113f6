"""A user's logger: figures of the epochs as a CSV file in the run folder."""

import csv
from collections.abc import Mapping
from typing import Any, Literal

import svdctl
from svdctl.config.base import Config
from svdctl.train.logger import Logger, LogWriter, RunInfo


class Csv(Config):
    """Figures of each epoch as a row."""

    kind: Literal["csv"] = "csv"
    columns: tuple[str, ...] = ("epoch", "loss", "val_acc")


@svdctl.register_logger
class CsvLogger(Logger):
    """Writes `epochs.csv`."""

    kind = "csv"
    config = Csv

    def open(self, run: RunInfo, config: Csv) -> LogWriter:
        """Begin the file; of a run that is resumed with the epochs so far."""
        writer = CsvWriter(run, config)
        for line in run.lines or ():
            writer.write(line)
        return writer


class CsvWriter:
    """The open file of one run."""

    def __init__(self, run: RunInfo, config: Csv) -> None:
        self._file = (run.folder / "epochs.csv").open("w", newline="")
        self._rows = csv.DictWriter(self._file, config.columns, extrasaction="ignore")
        self._rows.writeheader()

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a row for an epoch."""
        if line["kind"] == "epoch":
            self._rows.writerow(line)
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
