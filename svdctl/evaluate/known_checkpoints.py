"""Which checkpoints the report of a folder is about: those of this call, of earlier calls, and whose results lie there.

`report-checkpoints.json` beside the report names them, with what `results.json` of each does not say. Its records have
checksums as all kept measurements have (`svdctl.utils.measurement_cache`); figures are in `results.json` alone.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from pydantic import Field

from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.errors import first_line
from svdctl.evaluate.evaluated_model import open_evaluated_model
from svdctl.evaluate.find_checkpoints import RESULTS, FileStamp, file_stamp
from svdctl.evaluate.measure_checkpoint import Evaluation
from svdctl.evaluate.results import StoredResults, copy_into, read_results
from svdctl.utils.atomic_write import write_atomically
from svdctl.utils.escapes import one_line
from svdctl.utils.measurement_cache import Kept, Measurement, MeasurementCache

INDEX = "report-checkpoints.json"
REMOVED = "removed"
"""State of a checkpoint that is not there any more."""
CHANGED = "weights changed since"
NOT_COMPARED = "file not compared"


class KnownCheckpoint(Measurement):
    """A checkpoint whose figures are in a report."""

    path: str
    """Relative to the report's folder where it lies below it; quoted as in an address, for names can be any bytes."""
    results: str
    """Folder of its results, written in the same way."""
    weights: str
    """Hash of the weights that were measured."""
    stamp: FileStamp | None
    """Size and time of change of the file with these weights; None: not known."""
    data: dict[str, str] = Field(default_factory=dict)
    """What a user calls the data of its figures, by the key of the data."""
    other_data: tuple[str, ...] = ()
    """Keys of data that may hold images that it was trained on."""
    order: str = ""
    """A sentence on figures of several metrics on the same images."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """By metric, why it gives no figures."""

    @property
    def key(self) -> str:
        return self.results


class KnownCheckpoints:
    """The checkpoints of a report.

    Args:
        folder: of the report.
        search: whether results that lie in it belong to it too: not in the current folder, which can hold anything.
    """

    def __init__(self, folder: Path, *, search: bool) -> None:
        self.folder = folder
        self._index = MeasurementCache(folder / INDEX, KnownCheckpoint, {"of": "report.md"})
        self.notices = [notice.removesuffix(": measured again") for notice in self._index.notices]
        """A sentence for everything that the index says no more."""
        self.stored: dict[str, StoredResults] = {}
        """What is in `results.json` of each, by its key."""
        if self._index.damaged:
            aside = self._index.path.with_suffix(".damaged.json")
            write_atomically(aside, partial(copy_into, file=self._index.path))
            self.notices.append(f"{INDEX} as it was found is kept as {aside}")
        for key, known in self.known.items():
            if not all(map(_can_be_named, (self.where(known.path), self.where(known.results)))):
                self.notices.append(f"{INDEX} names a checkpoint by what is no path ({one_line(known.path[:80])})")
                del self._index.kept[key]
                continue
            results = self.where(known.results)
            try:
                self.stored[key] = read_results(results)
            except OSError as error:
                self.notices.append(f"the results in {results} cannot be read ({first_line(error)})")
                if isinstance(error, FileNotFoundError):
                    del self._index.kept[key]
                else:  # as of a disk that does not answer today: they are tried again, and named until then
                    self.stored[key] = StoredResults(known.weights, "")
        for place in self._folders_of_results(folder) if search else ():
            if (key := self._text(place)) not in self.known:
                self._find(key, place)

    @property
    def known(self) -> dict[str, KnownCheckpoint]:
        """Return all checkpoints by their keys."""
        return {key: kept.record for key, kept in self._index.kept.items()}

    def where(self, text: str) -> Path:
        """Return a place that a record names."""
        return self.folder / os.fsdecode(unquote_to_bytes(text))

    def _text(self, place: Path) -> str:
        whole, here = place.resolve(), self.folder.resolve()
        return quote(os.fsencode(whole.relative_to(here) if whole.is_relative_to(here) else whole))

    def _put(self, known: KnownCheckpoint) -> None:
        self._index.kept.pop(known.key, None)
        self._index.kept[known.key] = Kept(known)

    def _find(self, key: str, results: Path) -> None:
        """Add the checkpoint whose results lie in a folder, if they say which it is."""
        is_beside = results.name.startswith(RESULTS)
        with suppress(OSError):
            stored = read_results(results)
            if stored.path and stored.weights:
                path = Path(stored.path)
                path = results.parent / path.name if is_beside else path
                if not _can_be_named(path):
                    self.notices.append(f"the results in {results} are of what is no path")
                    return
                self.stored[key] = stored
                self._put(KnownCheckpoint(path=self._text(path), results=key, weights=stored.weights, stamp=None))
            elif is_beside:
                self.notices.extend(stored.damage)

    def add(self, evaluation: Evaluation) -> str:
        """Add a checkpoint of this call, with what was known of these weights before; return its key."""
        key, weights, data = self._text(evaluation.found.results), evaluation.model.weights, evaluation.data_key
        before = self.known.get(key)
        before = before if before is not None and before.weights == weights else None
        is_other = any(record.other_data for record in evaluation.records.values())
        others = {*(before.other_data if before else ())} - {data} | ({data} if is_other else set())
        left_out = {**(before.left_out if before else {}), **evaluation.left_out}
        order = evaluation.order.text if evaluation.order is not None else before.order if before else ""
        self._put(
            KnownCheckpoint(
                path=self._text(evaluation.found.path),
                results=key,
                weights=weights,
                stamp=evaluation.stamp,
                data={**(before.data if before else {}), data: one_line(evaluation.data)},
                other_data=tuple(sorted(others)),
                order=one_line(order),
                left_out={kind: one_line(text) for kind, text in left_out.items() if kind not in evaluation.records},
            )
        )
        self.stored[key] = read_results(evaluation.found.results)
        return key

    def states(self, measured: Collection[str], config: EvaluateConfig) -> dict[str, tuple[str, str]]:
        """Return by key how each checkpoint stands to its figures: a few words, and why; empty: it is as measured.

        Args:
            measured: keys of the checkpoints of this call.
            config: says how weights are read that do not say of which network they are.
        """
        now = {self.where(self.known[key].path).resolve(): self.known[key].weights for key in measured}
        found = {}
        for key, known in self.known.items():
            stored = self.stored[key]
            if stored.weights and known.weights != stored.weights:  # evaluated anew, for another report
                known = known.model_copy(update={"weights": stored.weights, "stamp": None})
            state, stamp = self._state(known, now, config)
            found[key] = state
            self._put(known.model_copy(update={"stamp": stamp}))
        return found

    def _state(
        self, known: KnownCheckpoint, now: Mapping[Path, str], config: EvaluateConfig
    ) -> tuple[tuple[str, str], FileStamp | None]:
        path = self.where(known.path)
        stamp = file_stamp(path)
        if stamp is None:
            try:
                path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return (REMOVED, f"{path} is not there any more"), known.stamp
            except OSError as error:
                return (NOT_COMPARED, f"{path}: {first_line(error)}"), known.stamp
        changed = CHANGED, f"{path} holds other weights than those that were measured ({known.weights[:12]})"
        if (weights := now.get(path.resolve())) is not None:
            return (("", "") if weights == known.weights else changed), known.stamp
        if stamp is not None and stamp == known.stamp:
            return ("", ""), stamp
        try:
            weights = open_evaluated_model(path, config).weights
        except Exception as error:  # whatever is wrong with it now, its figures were measured
            return (NOT_COMPARED, f"{path}: {first_line(error)}"), known.stamp
        return (("", ""), stamp) if weights == known.weights else (changed, known.stamp)

    def write(self) -> None:
        """Write the index."""
        self._index.write()

    def _folders_of_results(self, folder: Path) -> Iterator[Path]:
        """Yield folders with `results.json` in and below a folder of runs, or in one that is given for all results."""
        waiting = [folder]
        while waiting:
            here = waiting.pop()
            try:
                inner = sorted(path for path in here.iterdir() if path.is_dir() and not path.is_symlink())
                found = [path for path in inner if (path / "results.json").is_file()]
            except OSError as error:  # removed meanwhile, or not to be looked into
                if not isinstance(error, FileNotFoundError):
                    self.notices.append(f"{here} cannot be searched for results ({first_line(error)})")
                continue
            yield from found
            waiting += [path for path in reversed(inner) if not path.name.startswith((".", RESULTS, "wandb"))]


def _can_be_named(path: Path) -> bool:
    """Return whether the system takes a path that a file names: no zero byte is in it, and no link leads to itself."""
    try:
        path.resolve()
    except (OSError, ValueError, RuntimeError):
        return False
    return True
