"""Results of one checkpoint on the disk: every figure with its protocol, none of them measured twice.

`results.json` holds one record for each metric and protocol. A record is found again by the fingerprint of its
protocol, in which everything stands that decides its figures, the hash of the weights included. Results of single
images lie beside it.
"""

import csv
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from svdctl import lock as locks
from svdctl.errors import EvaluationError
from svdctl.lock import link_in
from svdctl.runfolder import environment, write_text

FORMAT = "svdctl.evaluation"
VERSION = 1
DETAILS = "details"


@dataclass(frozen=True)
class Record:
    """One finished metric."""

    metric: str
    protocol: dict[str, Any]
    """Everything that decides the figures."""
    results: dict[str, Any]
    seconds: float
    environment: dict[str, Any]
    details: str | None = None
    """File with a row for each image, below the folder of results."""

    @property
    def fingerprint(self) -> str:
        """Of the protocol."""
        return fingerprint(self.protocol)


def fingerprint(protocol: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits, equal for equal protocols."""
    text = json.dumps(protocol, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Store:
    """The results of one checkpoint.

    Args:
        folder: made when absent.
        weights: hash of the weights that the results belong to.
        about: what is known of the checkpoint; written, not compared.
    """

    def __init__(self, folder: Path, weights: str, about: Mapping[str, Any]) -> None:
        self.folder, self.weights, self.about = folder, weights, dict(about)
        self.notices: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.json"
        self.records = self._read()
        if not self.path.exists():
            # From now on another checkpoint under this name is noticed, whatever is unfinished.
            self._write()

    def find(self, metric: str, protocol: Mapping[str, Any]) -> Record | None:
        """The finished record of a metric under exactly this protocol, if its per-image file is there too."""
        wanted = fingerprint(protocol)
        for record in self.records:
            if record.metric == metric and record.fingerprint == wanted:
                return record if record.details is None or (self.folder / record.details).is_file() else None
        return None

    def put(
        self,
        metric: str,
        protocol: Mapping[str, Any],
        results: Mapping[str, Any],
        *,
        seconds: float,
        device: str,
        rows: Sequence[Mapping[str, Any]] | None = None,
    ) -> Record:
        """Keep a finished metric; it replaces what was measured under the same protocol before."""
        details = None
        if rows is not None:
            details = f"{DETAILS}/{metric}-{fingerprint(protocol)}.csv"
            write_rows(self.folder / details, rows)
        around = environment(device, int(protocol.get("seed", 0)))
        record = Record(metric, dict(protocol), finite(dict(results)), round(seconds, 3), around, details)
        kept = [old for old in self.records if (old.metric, old.fingerprint) != (metric, record.fingerprint)]
        self.records = [*kept, record]
        self._write()
        return record

    def rows(self, record: Record) -> list[dict[str, str]]:
        """The per-image results of a record."""
        assert record.details is not None
        return read_rows(self.folder / record.details)

    @property
    def unfinished(self) -> Path:
        """Folder for the state of what is being measured."""
        return self.folder / "unfinished"

    def unfinished_file(self, metric: str, protocol: Mapping[str, Any], suffix: str, *, fresh: bool) -> Path:
        """Where a metric keeps what it has of this protocol; `fresh` throws away what is there."""
        path = self.unfinished / f"{metric}-{fingerprint(protocol)}{suffix}"
        if fresh:
            path.unlink(missing_ok=True)
        return path

    def tidy(self) -> None:
        """Remove the folder of unfinished work when nothing is in it."""
        if self.unfinished.is_dir() and not any(self.unfinished.iterdir()):
            self.unfinished.rmdir()

    def _read(self) -> list[Record]:
        if not self.path.exists():
            return []
        try:
            contents = json.loads(self.path.read_text(encoding="utf-8"))
            if contents["format"] != FORMAT or contents["version"] > VERSION:
                raise EvaluationError(
                    f"{self.path} was written by something else or by a newer svdctl; move it away, or give --out-dir"
                )
            found = contents["checkpoint"]["weights"]
            records = [Record(**record) for record in contents["records"]]
        except (ValueError, KeyError, TypeError) as error:
            aside = self.path.with_suffix(".damaged.json")
            self.path.replace(aside)
            self.notices.append(f"{self.path} was damaged ({error!r:.80}): kept as {aside.name}, measuring anew")
            return []
        if found != self.weights:
            self.notices.append(
                f"{self.folder} holds results of other weights ({found[:12]}, now {self.weights[:12]}): starting anew"
            )
            shutil.rmtree(self.unfinished, ignore_errors=True)
            self.path.unlink()
            return []
        return records

    def _write(self) -> None:
        contents = {
            "format": FORMAT,
            "version": VERSION,
            "checkpoint": {"weights": self.weights, **self.about},
            "records": [asdict(record) for record in self.records],
        }
        write_text(self.path, json.dumps(contents, indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same with null for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table with a header, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(path)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of `write_rows`."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@contextmanager
def held(folder: Path, part: str = "") -> Iterator[None]:
    """Hold a folder of results (or one part of it): a second process that wants it is refused.

    Raises:
        EvaluationError: another process evaluates there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if link := link_in(folder):
        raise EvaluationError(f"{link} is a link to {link.readlink()}; remove it, or give another --out-dir")
    with locks.held(folder / f".lock{part and '-'}{part}") as mine:
        if not mine:
            raise EvaluationError(f"another process evaluates in {folder}; wait for it, or give another --out-dir")
        yield
