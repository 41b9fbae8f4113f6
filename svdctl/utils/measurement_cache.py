"""Measurements in one file: a checksum over each of them, written whole or not at all, read or refused with a reason.

The file is JSON, or an archive of torch.save where measurements hold tensors. Its records
are bound to what they belong to (`about`: weights, data, settings) by their checksums: a record counts only if its
SHA-256 over itself and over `about` is right and its pydantic model accepts it. Weights do not say what a network
computes with them, so each record also names what its network answered to fixed images
(`svdctl.utils.network_probe`); one of a network that answers otherwise now does not count. A checksum shows damage
and careless edits; it does not stop a person who computes it anew for a changed figure (docs/reliability.md).
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from svdctl.errors import EvaluationError, FileError, SvdctlError, first_line
from svdctl.utils.atomic_write import write_atomically
from svdctl.utils.content_hash import content_digest, json_digest
from svdctl.utils.files import read_json
from svdctl.utils.network_probe import Probe, read_probes

FORMAT, VERSION = "svdctl.measurements", 2
CHECKSUM = "sha256"
NETWORK = "network"
"""Of a record: key of the answers of its network, which stand in the file once."""


class Measurement(BaseModel):
    """One record of a cache; types are not converted, and a field that is not known is an error."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False
    )

    @property
    def key(self) -> str:
        """Return what tells it from the other records of its file."""
        raise NotImplementedError  # each kind of record has its own


R = TypeVar("R", bound=Measurement)
Old = Callable[[dict[str, Any]], tuple[Mapping[str, Any], list[dict[str, Any]]]]
"""From the contents of a file without checksums to its `about` and its records in today's form.

It raises KeyError, TypeError, ValueError or AttributeError for contents that are no such file.
"""


@dataclass(frozen=True)
class Kept(Generic[R]):
    """A record that was read or put."""

    record: R
    has_checksum: bool = True
    """False: the version before wrote it, and its checksum was not there to be compared."""
    probe: Probe | None = None
    """What the network answered when it was measured; None: not known, or there is no network."""


class MeasurementCache(Generic[R]):
    """The sound records of a file, by key; each `put` writes the file anew.

    Args:
        path: the file; it may be absent.
        schema: the model of a record.
        about: all that the records depend on and do not say themselves; numbers, texts, lists and dicts.
        remarks: what is written beside them and neither compared nor needed.
        old: reads a file without checksums; absent: such a file counts for nothing.
        probe: what the network answers now; absent: the measurements are of none.
        read_tensors: reads an archive of torch.save, for records that hold tensors; absent: the file is JSON.

    Raises:
        EvaluationError: the file belongs to something else or to a newer svdctl; it is left as it is.
    """

    def __init__(
        self,
        path: Path,
        schema: type[R],
        about: Mapping[str, Any],
        *,
        remarks: Mapping[str, Any] | None = None,
        old: Old | None = None,
        probe: Probe | None = None,
        read_tensors: Callable[[Path], Any] | None = None,
    ) -> None:
        self.path, self._schema, self._old, self._probe, self._read_tensors = path, schema, old, probe, read_tensors
        self.about: dict[str, Any] = json.loads(json.dumps(about, allow_nan=False))
        self._remarks = dict(remarks or {})
        self.notices: list[str] = []
        """A sentence for everything in the file that does not count."""
        self.damaged = False
        """Whether the file holds something that is not as it was written."""
        self.belongs_elsewhere = False
        """Whether it holds sound records of something else."""
        self.of_another_network = False
        """Whether it holds sound records of a network that answers otherwise than this one."""
        self.kept: dict[str, Kept[R]] = {}
        """All records by their keys, in the order in which they were put."""
        if path.exists():
            self._read()

    def put(self, record: R) -> None:
        """Keep a record in place of one of the same key, and write the file."""
        self.kept.pop(record.key, None)
        self.kept[record.key] = Kept(record, probe=self._probe)
        self.write()

    def once(self, key: str, work: Callable[[], R]) -> R:
        """Return the record of this key: kept, or measured now and kept from now on."""
        if key not in self.kept:
            self.put(work())
        return self.kept[key].record

    def write(self) -> None:
        """Write the file whole or not at all; a record that was read without a checksum is written without one."""
        records, probes = [], {}
        for kept in self.kept.values():
            record = kept.record.model_dump(mode="json" if self._read_tensors is None else "python")
            if kept.probe is not None:
                record[NETWORK] = kept.probe.key
                probes[kept.probe.key] = kept.probe.model_dump(mode="json")
            records.append({**record, CHECKSUM: checksum(self.about, record)} if kept.has_checksum else record)
        head = {"format": FORMAT, "version": VERSION, "about": self.about}
        more = {"remarks": self._remarks, "networks": probes, "records": records}
        contents = {**head, CHECKSUM: checksum(head, {}), **more}
        file = io.BytesIO()
        if self._read_tensors is None:
            file.write((json.dumps(contents, indent=2, allow_nan=False) + "\n").encode())
        else:
            torch.save(contents, file)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, file.getvalue())

    def _read(self) -> None:
        try:
            contents = (self._read_tensors or _read_json)(self.path)
        except (SvdctlError, OSError, ValueError, RecursionError) as error:
            self._refuse(f"{self.path} is damaged ({fault_of(error)})")
            return
        if not isinstance(contents, dict):
            self._refuse(f"{self.path} is damaged (it holds a {type(contents).__name__})")
        elif CHECKSUM in contents or contents.get("format") == FORMAT:
            self._read_contents(contents)
        elif self._old is None:
            self._refuse(f"{self.path} has no checksum")
        else:
            try:
                about, records = self._old(contents)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                self._refuse(f"{self.path} is damaged ({error!r:.80})")
                return
            if dict(about) != self.about:
                self._leave()
            else:
                self._take_all(records, about)

    def _read_contents(self, contents: dict[str, Any]) -> None:
        head = {name: contents.get(name) for name in ("format", "version", "about")}
        sound, version, records = _matches(contents.get(CHECKSUM), head, {}), head["version"], contents.get("records")
        if sound and (head["format"] != FORMAT or not isinstance(version, int) or version > VERSION):
            raise foreign(self.path)
        if not sound:
            self.damaged = True
            self.notices.append(f"the head of {self.path} fails its checksum: each record counts by its own")
        if not isinstance(records, list):
            self._refuse(f"{self.path} is damaged (its records are missing)")
            return
        if sound and head["about"] != self.about:
            self._leave()
        self._take_all(records, head["about"] if sound else None, read_probes(contents.get("networks")))

    def _take_all(
        self, records: list[Any], about: Mapping[str, Any] | None, probes: Mapping[str, Probe] | None = None
    ) -> None:
        """Take the records that count; `about` is what the file says that it belongs to, None where it is damaged."""
        for number, record in enumerate(records, 1):
            name = f"record {number} of {self.path}"
            found = record.pop(CHECKSUM, None) if isinstance(record, dict) else None
            if not isinstance(record, dict):
                self._refuse(f"{name} is damaged")
            elif _matches(found, self.about, record):
                self._take(record, name, probes or {})
            elif found is not None and about is not None and _matches(found, about, record):
                continue  # sound, of what the file belongs to
            elif found is None and about == self.about and self._old is not None:
                self._take(record, name, None)
            else:
                self._refuse(f"{name} {'fails' if found else 'lacks'} its checksum")

    def _take(self, contents: dict[str, Any], name: str, probes: Mapping[str, Probe] | None) -> None:
        """Take a record if it is of the network that there is now; one without a checksum where `probes` is None."""
        probe = None
        if probes is not None:
            key = contents.pop(NETWORK, None)
            probe = probes.get(key) if isinstance(key, str) else None
            if self._probe is not None and (probe is None or probe.contradicts(self._probe)):
                if not self.of_another_network:
                    self.notices.append(
                        f"{self.path}: the network of these weights answers otherwise than it did when this was "
                        "measured (its code or its settings have changed): measured again"
                    )
                self.of_another_network = True
                return
        try:
            # JSON's arrays become tuples and its whole numbers floats in the strict mode of JSON alone.
            record = (
                self._schema.model_validate_json(json.dumps(contents, allow_nan=False))
                if self._read_tensors is None
                else self._schema.model_validate(contents)
            )
        except (ValueError, SvdctlError) as error:
            self._refuse(f"{name} cannot be right ({fault_of(error)})")
            return
        self.kept[record.key] = Kept(record, probes is not None, probe)

    def _leave(self) -> None:
        self.belongs_elsewhere = True
        self.notices.append(f"{self.path} holds measurements of something else: measured again")

    def _refuse(self, reason: str) -> None:
        self.damaged = True
        self.notices.append(f"{reason}: measured again")


def checksum(about: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Return the SHA-256, 64 hexadecimal digits, over a record of JSON values and tensors and what it belongs to."""
    return json_digest({"about": _plain(about), "record": _plain(record)})


def _plain(value: Any) -> Any:
    """Return the same with the hash of its type, shape and bytes in place of each tensor."""
    if isinstance(value, Tensor):
        return [str(value.dtype), list(value.shape), content_digest(value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _matches(found: object, about: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    try:
        return isinstance(found, str) and found == checksum(about, record)
    except (TypeError, ValueError, RecursionError):
        return False  # it holds what no record is made of


def fault_of(error: Exception) -> str:
    """Return the first fault that a model found, or the first line of another error, in a few words."""
    if isinstance(error, FileError):
        return error.reason
    if not isinstance(error, ValidationError):
        return first_line(error, 150)
    fault = error.errors()[0]
    where = ".".join(map(str, fault["loc"]))
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where[:60]}: {message[:140]}" if where else message[:200]


def _read_json(path: Path) -> Any:
    # A byte that is damaged spoils the record that it stands in, not the file.
    return read_json(path, errors="replace")


def foreign(path: Path) -> EvaluationError:
    """Return the error for a file that is left as it is."""
    return EvaluationError(
        f"{path} was written by something else or by a newer svdctl; move it away, or give `out_dir`"
    )
