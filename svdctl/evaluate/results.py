"""Results of one checkpoint on the disk: every figure with its protocol, none of them measured twice.

`results.json` holds one record for each metric and protocol. A record is found again by the fingerprint of its
protocol, in which everything stands that decides its figures, the hash of the weights included. Results of single
images lie beside it. Each record has a checksum over all of it (`measurement_cache`); one that fails it, or
whose figures cannot be right, is measured again.
"""

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self

from pydantic import Field, NonNegativeFloat, field_validator, model_validator

from svdctl.errors import EvaluationError, MalformedFileError, first_line
from svdctl.registry import METRICS
from svdctl.utils.atomic_write import remove_unfinished, write_atomically
from svdctl.utils.content_hash import content_digest, json_digest
from svdctl.utils.files import open_regular, read_bytes, read_json, read_text
from svdctl.utils.lock import held_folder
from svdctl.utils.measurement_cache import Kept, Measurement, MeasurementCache, fault_of, foreign
from svdctl.utils.network_probe import Probe
from svdctl.utils.run_dir import environment
from svdctl.utils.table import csv_text

OLD_FORMAT, OLD_VERSION = "svdctl.evaluation", 1
"""Of results without checksums."""
OTHER_DATA_MARK = "other data than in training"
OTHER_DATA = (
    "the data are not those of the training, or not those of all of it: test images may be among those that it was "
    "trained on"
)
NO_CHECKSUM = "no checksum"
DETAILS = "details"


class Record(Measurement):
    """One finished metric."""

    metric: str
    protocol: dict[str, Any]
    """Everything that decides the figures."""
    results: dict[str, Any]
    seconds: NonNegativeFloat
    environment: dict[str, Any]
    details: str | None = None
    """File with a row for each image, below the folder of results."""
    details_sha256: str | None = None
    """SHA-256 of that file."""
    kept: str = Field(default="", exclude=True)
    """How this call came by it: empty, measured now; else `kept`, asked for and found; or `earlier`, not asked for.
    Either may be followed by `, no checksum`."""
    other_data: bool = Field(default=False, exclude=True)
    """Whether the test images may be among those that the network was trained on."""

    @field_validator("details")
    @classmethod
    def _details_are_below_the_folder(cls, details: str | None) -> str | None:
        if details is not None and re.fullmatch(rf"{DETAILS}/[^/\0]*\.csv", details) is None:
            raise ValueError(f"is no file in {DETAILS}/")
        return details

    @model_validator(mode="after")
    def _figures_can_be_right(self) -> Self:
        # Records of metrics that are not there today, as of a plugin, stay in the file.
        if (metric := METRICS.find(self.metric)) is not None:
            metric.figures.check(self.results)
        return self

    @property
    def key(self) -> str:
        return key_of(self.metric, self.protocol)

    @property
    def mark(self) -> str:
        """Return ` (kept)` and the like behind a figure."""
        return f" ({self.marks})" if self.marks else ""

    @property
    def data_mark(self) -> str:
        """Return ` (...)` behind the title of a picture whose data are others than in training; how it was kept is no
        matter of its title."""
        return f" ({OTHER_DATA_MARK})" if self.other_data else ""

    @property
    def marks(self) -> str:
        """Return how this call came by it, and whether the data are others than in training; empty: neither."""
        return ", ".join(filter(None, (self.kept, OTHER_DATA_MARK if self.other_data else "")))


def fingerprint(protocol: Mapping[str, Any]) -> str:
    """Return twelve hexadecimal digits, equal for equal protocols."""
    return json_digest(protocol)[:12]


def key_of(metric: str, protocol: Mapping[str, Any]) -> str:
    """Return what a figure is found by: its metric, and what decides it."""
    without = found.same_but_for if (found := METRICS.find(metric)) is not None else ()
    return f"{metric} {fingerprint({key: value for key, value in protocol.items() if key not in without})}"


class ResultStore:
    """The results of one checkpoint.

    Args:
        folder: made when absent.
        weights: hash of the weights that the results belong to.
        about: what is known of the checkpoint; written, not compared.
        probe: what the network answers.
    """

    def __init__(self, folder: Path, weights: str, about: Mapping[str, Any], probe: Probe | None = None) -> None:
        self.folder, self.weights = folder, weights
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.json"
        self._cache = MeasurementCache(
            self.path, Record, {"weights": weights}, remarks=about, old=partial(_old_contents, self.path), probe=probe
        )
        self.notices: list[str] = [] if self._cache.belongs_elsewhere else list(self._cache.notices)
        if self._cache.damaged:
            aside = self.path.with_suffix(".damaged.json")
            write_atomically(aside, partial(copy_into, file=self.path))
            self.notices.append(f"{self.path.name} as it was found is kept as {aside}")
        if self._cache.belongs_elsewhere:
            self.notices.append(f"{folder} holds results of other weights (now {weights[:12]}): starting anew")
        if self._cache.belongs_elsewhere or self._cache.of_another_network:
            self._clear()
        if not self.path.exists() or self._cache.belongs_elsewhere:
            # From now on another checkpoint under this name is noticed, whatever is unfinished.
            self._cache.write()

    def _clear(self) -> None:
        """Remove what was written of other figures: pictures, tables, unfinished work. Shards say whose they are."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        for name in (name for metric in METRICS.variants() for name in metric.owned_files):
            (self.folder / name).unlink(missing_ok=True)
        kept = {record.details for record in self.records}
        for path in (self.folder / DETAILS).glob("*.csv"):
            if f"{DETAILS}/{path.name}" not in kept:
                path.unlink()

    @property
    def records(self) -> list[Record]:
        """Return all finished metrics."""
        return [kept.record for kept in self._cache.kept.values()]

    def find(self, metric: str, protocol: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> Record | None:
        """Return the finished record of a metric under exactly this protocol, if those of single images are right too.

        Args:
            metric: its name.
            protocol: everything that decides the figures.
            before: the same protocol as a record without a checksum states it.
        """
        for wanted, has_checksum in ((protocol, True), (before, False)):
            kept = None if wanted is None else self._cache.kept.get(key_of(metric, wanted))
            if kept is None or kept.has_checksum != has_checksum:
                continue
            record = kept.record
            if reason := fault_of_details(self.folder, record):
                self.notices.append(f"{metric}: {reason}: measured again")
                continue
            return _marked(kept, "kept")
        return None

    def sound(self, metric: str) -> list[Record]:
        """Return the records of a metric that have checksums, whatever their protocols."""
        found = (kept.record for kept in self._cache.kept.values() if kept.has_checksum)
        return [record for record in found if record.metric == metric]

    def find_other(self, metric: str, data: Mapping[str, Any]) -> Record | None:
        """Return the latest sound record of a metric on some data under any protocol; None if there is none."""
        for record in reversed(self.sound(metric)):
            if record.protocol.get("data") == data and fault_of_details(self.folder, record) is None:
                return record.model_copy(update={"kept": "earlier"})
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
        before: Mapping[str, Any] | None = None,
    ) -> Record:
        """Keep a finished metric; it replaces what was measured under the same protocol, or under `before`.

        Raises:
            EvaluationError: the figures cannot be right.
        """
        details = details_sha256 = None
        if rows is not None:
            details = f"{DETAILS}/{metric}-{fingerprint(protocol)}.csv"
            details_sha256 = write_rows(self.folder / details, rows)
        try:
            record = Record(
                metric=metric,
                protocol=dict(protocol),
                results=json.loads(json.dumps(dict(results), allow_nan=False)),
                seconds=round(seconds, 3),
                environment=environment(device, int(protocol.get("seed", 0))),
                details=details,
                details_sha256=details_sha256,
            )
        except ValueError as error:
            raise EvaluationError(f"BUG: figures of {metric} contradict one another ({fault_of(error)})") from error
        if before is not None:
            self._cache.kept.pop(key_of(metric, before), None)
        self._cache.put(record)
        return record

    def rows(self, record: Record) -> list[dict[str, str]]:
        """Return the per-image results of a record."""
        return rows_of(self.folder, record)

    @property
    def unfinished(self) -> Path:
        """Return the folder for the state of what is being measured."""
        return self.folder / "unfinished"


def rows_of(folder: Path, record: Record) -> list[dict[str, str]]:
    """Return the per-image results of a record of a folder of results."""
    assert record.details is not None
    return read_rows(folder / record.details)


def fault_of_details(folder: Path, record: Record) -> str | None:
    """Return why the figures of single images do not count; None if they do, or if there are none."""
    if record.details is None:
        return None
    path = folder / record.details
    if path.is_symlink() or path.parent.is_symlink():
        return f"{path} is reached through a link"
    if not path.is_file():
        return f"{path} is missing"
    if record.details_sha256 not in (None, content_digest(read_bytes(path))):
        return f"{path} fails its checksum"
    try:
        contradicts = METRICS.get(record.metric).fault_of_rows(record.results, read_rows(path))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        return f"{path} is damaged ({type(error).__name__})"
    return f"{path} contradicts the figures" if contradicts else None


def _marked(kept: Kept[Record], mark: str) -> Record:
    """Return a record of an earlier call with its mark."""
    return kept.record.model_copy(update={"kept": mark if kept.has_checksum else f"{mark}, {NO_CHECKSUM}"})


def _old_contents(path: Path, contents: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what a file of the version without checksums belongs to, and its records in today's form."""
    if contents["format"] != OLD_FORMAT or contents["version"] != OLD_VERSION:
        raise foreign(path)
    records = [{**record} for record in contents["records"]]
    for record in records:
        if (metric := METRICS.find(str(record["metric"]))) is not None:
            record["results"] = metric.migrate(record["results"])
    return {"weights": contents["checkpoint"]["weights"]}, records


@dataclass(frozen=True)
class StoredResults:
    """What a folder of results holds, read without a change to it."""

    weights: str
    """Hash of the weights that they belong to; empty: the file does not say."""
    path: str
    """The checkpoint's path as the call that began the file was given it; empty: not known."""
    records: tuple[Record, ...] = ()
    """In the order in which they were measured, each with its mark."""
    damage: tuple[str, ...] = ()
    """A sentence for everything in the file that does not count."""


def read_results(folder: Path) -> StoredResults:
    """Return the sound results in `results.json` of a folder, whatever network they are of.

    Raises:
        FileError: there is no such file, or it cannot be read.
    """
    path = folder / "results.json"
    try:
        contents = read_json(path, errors="replace")
    except MalformedFileError as error:
        return StoredResults("", "", damage=(f"{path} is damaged ({error.reason})",))
    remarks, weights = _head(contents, "remarks"), _head(contents, "about").get("weights")
    if weights is None:  # of the version without checksums
        remarks = _head(contents, "checkpoint")
        weights = remarks.get("weights")
    weights, place = (value if isinstance(value, str) else "" for value in (weights, remarks.get("path")))
    try:
        cache = MeasurementCache(path, Record, {"weights": weights}, old=partial(_old_contents, path))
    except EvaluationError as error:
        return StoredResults(weights, place, damage=(str(error),))
    damage = [notice.removesuffix(": measured again") for notice in cache.notices]
    sound = []
    for number, kept in enumerate(cache.kept.values(), 1):
        if (fault := _fault_of_protocol(kept.record)) is None:
            sound.append(_marked(kept, "earlier"))
        else:
            damage.append(f"sound record {number} of {path} does not say how it was measured ({fault})")
    return StoredResults(weights, place, tuple(sound), tuple(damage))


def _fault_of_protocol(record: Record) -> str | None:
    """Return why a metric cannot say what a record holds and how it was measured; None if it can.

    A protocol may hold anything: what its figures are found by, it need not be what this version writes.
    """
    if (metric := METRICS.find(record.metric)) is None:
        return None
    try:
        metric.summary(record), metric.protocol_text(record), metric.conditions(record), metric.cells(record)
        metric.intervals(record), [*metric.remarks(record)], [*metric.notes(record)]
    except Exception as error:  # of whatever type the values in it bring about
        return f"{type(error).__name__}: {first_line(error, 60)}"
    return None


def _head(contents: Any, name: str) -> Mapping[str, Any]:
    """Return a part of a file that may hold anything."""
    part = contents.get(name) if isinstance(contents, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write a table with a header, whole or not at all; the SHA-256 of the file."""
    data = csv_text(rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
    return content_digest(data)


def copy_files(files: Sequence[Path], folder: Path, name: str) -> list[Path]:
    """Write files a second time, into a folder that is made when absent, under one name; return the copies."""
    folder.expanduser().mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder.expanduser())
    copies = [folder.expanduser() / f"{name}{file.suffix}" for file in files]
    for file, copy in zip(files, copies, strict=True):
        write_atomically(copy, partial(copy_into, file=file))
    return copies


def copy_into(copy: BinaryIO, file: Path) -> None:
    """Copy the contents of a file into one that is open."""
    with open_regular(file) as source:
        shutil.copyfileobj(source, copy)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return rows of `write_rows`."""
    return list(csv.DictReader(io.StringIO(read_text(path), newline="")))


@contextmanager
def held(folder: Path, part: str = "") -> Iterator[None]:
    """Hold a folder of results (or one part of it), made when absent: a second process that wants it is refused.

    What killed processes left half written in it is removed.

    Raises:
        BusyFolderError: another process evaluates there.
        UnusableFolderError: it cannot be written, or a link in it leads elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with held_folder(folder, work="evaluates", instead="give another `out_dir`", part=part):
        for place in (folder, *(inner for inner in folder.iterdir() if inner.is_dir())):
            remove_unfinished(place)
        yield
