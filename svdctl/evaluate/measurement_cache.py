"""Measurements in one file: a checksum over each of them, written whole or not at all, read or refused with a reason.

The file is JSON, or an archive of torch.save where measurements hold tensors (a path that ends in `.pt`). Its records
are bound to what they belong to (`about`: weights, data, settings) by their checksums: a record counts only if its
SHA-256 over itself and over `about` is right and its pydantic model accepts it. Weights do not say what a network
computes with them, so each record also names what its network answered to fixed images
(`svdctl.evaluate.network_probe`); one of a network that answers otherwise now does not count. A checksum shows damage
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

from svdctl.checkpoint.torch_archive import read_torch
from svdctl.errors import EvaluationError, SvdctlError
from svdctl.evaluate.network_probe import Probe, read_probes
from svdctl.utils.atomic_write import write_atomically
from svdctl.utils.content_hash import content_digest, json_digest

FORMAT, VERSION = "svdctl.measurements", 2
SEAL = "sha256"
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
    """A record that was read."""

    record: R
    sealed: bool
    """Whether its checksum was right; False: it has none, as the version before wrote it."""
    probe: Probe | None = None
    """What the network answered when it was measured; None: not known, or there is no network."""


class MeasurementCache(Generic[R]):
    """The sound records of a file, by key; each `put` writes the file anew.

    Args:
        path: the file; it may be absent. `.pt` for records that hold tensors, else JSON.
        schema: the model of a record.
        about: all that the records depend on and do not say themselves; numbers, texts, lists and dicts.
        remarks: what is written beside them and neither compared nor needed.
        old: reads a file without checksums; absent: such a file counts for nothing.
        probe: what the network answers now; absent: the measurements are of none.

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
    ) -> None:
        self.path, self._schema, self._old, self._probe = path, schema, old, probe
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
        self._kept: dict[str, Kept[R]] = {}
        if path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def kept(self) -> list[Kept[R]]:
        """Return all records, in the order in which they were put."""
        return list(self._kept.values())

    def get(self, key: str) -> Kept[R] | None:
        """Return the record of this key."""
        return self._kept.get(key)

    def put(self, record: R) -> None:
        """Keep a record in place of one of the same key, and write the file."""
        self._kept.pop(record.key, None)
        self._kept[record.key] = Kept(record, True, self._probe)
        self.write()

    def drop(self, key: str) -> None:
        """Forget a record; the file is written with the next `put`."""
        self._kept.pop(key, None)

    def once(self, key: str, work: Callable[[], R]) -> R:
        """Return the record of this key: kept, or measured now and kept from now on."""
        kept = self.get(key)
        if kept is not None:
            return kept.record
        record = work()
        self.put(record)
        return record

    def write(self) -> None:
        """Write the file beside its name, flush it to the disk, and rename it.

        A record that was read without a checksum is written without one.
        """
        records = []
        for kept in self._kept.values():
            record = kept.record.model_dump(mode="python" if self._tensors else "json")
            if kept.probe is not None:
                record[NETWORK] = kept.probe.key
            records.append({**record, SEAL: checksum(self.about, record)} if kept.sealed else record)
        head = {"format": FORMAT, "version": VERSION, "about": self.about}
        probes = {kept.probe.key: kept.probe.to_dict() for kept in self._kept.values() if kept.probe is not None}
        contents = {**head, SEAL: checksum(head, {}), "remarks": self._remarks, "networks": probes, "records": records}
        if self._tensors:
            file = io.BytesIO()
            torch.save(contents, file)
            data = file.getvalue()
        else:
            data = (json.dumps(contents, indent=2, allow_nan=False) + "\n").encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, data)

    @property
    def _tensors(self) -> bool:
        return self.path.suffix == ".pt"

    def _read(self) -> None:
        try:
            contents = read_torch(self.path) if self._tensors else _strict_json(self.path.read_bytes())
        except (SvdctlError, OSError, ValueError, RecursionError) as error:
            self._refuse(f"{self.path} is damaged ({_first_line(error)})")
            return
        if not isinstance(contents, dict):
            self._refuse(f"{self.path} is damaged (it holds a {type(contents).__name__})")
        elif SEAL not in contents and contents.get("format") != FORMAT:
            self._read_old(contents)
        else:
            self._read_sealed(contents)

    def _read_sealed(self, contents: dict[str, Any]) -> None:
        head = {name: contents.get(name) for name in ("format", "version", "about")}
        sound = _matches(contents.get(SEAL), head, {})
        version = head["version"]
        if sound and (head["format"] != FORMAT or not isinstance(version, int) or version > VERSION):
            raise foreign(self.path)
        if not sound:
            self.damaged = True
            self.notices.append(f"the head of {self.path} fails its checksum: each record counts by its own")
        records = contents.get("records")
        if not isinstance(records, list):
            self._refuse(f"{self.path} is damaged (its records are missing)")
            return
        if sound and head["about"] != self.about:
            self._leave()
        probes = read_probes(contents.get("networks"))
        for number, record in enumerate(records, 1):
            seal = record.pop(SEAL, None) if isinstance(record, dict) else None
            if not isinstance(record, dict):
                self._refuse(f"record {number} of {self.path} is damaged")
            elif _matches(seal, self.about, record):
                self._take_sealed(record, number, probes)
            elif seal is not None and sound and _matches(seal, head["about"], record):
                continue  # sound, of what the file belongs to
            elif seal is None and sound and head["about"] == self.about and self._old is not None:
                self._take(record, number, sealed=False)
            else:
                self._refuse(f"record {number} of {self.path} {'fails' if seal else 'lacks'} its checksum")

    def _read_old(self, contents: dict[str, Any]) -> None:
        if self._old is None:
            self._refuse(f"{self.path} has no checksum")
            return
        try:
            about, records = self._old(contents)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._refuse(f"{self.path} is damaged ({error!r:.80})")
            return
        if dict(about) != self.about:
            self._leave()
            return
        for number, record in enumerate(records, 1):
            self._take(record, number, sealed=False)

    def _take_sealed(self, contents: dict[str, Any], number: int, probes: Mapping[str, Probe]) -> None:
        """Take a record if it is of the network that there is now."""
        key = contents.pop(NETWORK, None)
        probe = probes.get(key) if isinstance(key, str) else None
        if self._probe is not None and (probe is None or probe.contradicts(self._probe)):
            if not self.of_another_network:
                self.notices.append(
                    f"{self.path}: the network of these weights answers otherwise than it did when this was measured "
                    "(its code or its settings have changed): measured again"
                )
            self.of_another_network = True
            return
        self._take(contents, number, sealed=True, probe=probe)

    def _take(self, contents: dict[str, Any], number: int, *, sealed: bool, probe: Probe | None = None) -> None:
        try:
            # JSON's arrays become tuples and its whole numbers floats in the strict mode of JSON alone.
            record = (
                self._schema.model_validate(contents)
                if self._tensors
                else self._schema.model_validate_json(json.dumps(contents, allow_nan=False))
            )
        except (ValueError, SvdctlError) as error:
            self._refuse(f"record {number} of {self.path} cannot be right ({fault_of(error)})")
            return
        self._kept[record.key] = Kept(record, sealed, probe)

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


def _matches(seal: object, about: Mapping[str, Any] | None, record: Mapping[str, Any]) -> bool:
    try:
        return isinstance(seal, str) and about is not None and seal == checksum(about, record)
    except (TypeError, ValueError, RecursionError):
        return False  # it holds what no record is made of


def fault_of(error: Exception) -> str:
    """Return the first fault that a model found, in a few words."""
    if not isinstance(error, ValidationError):
        return _first_line(error)
    fault = error.errors()[0]
    where = ".".join(map(str, fault["loc"]))
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where[:60]}: {message[:140]}" if where else message[:200]


def _strict_json(data: bytes) -> Any:
    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    # A byte that is damaged spoils the record that it stands in, not the file.
    return json.loads(data.decode("utf-8", errors="replace"), parse_constant=refuse)


def foreign(path: Path) -> EvaluationError:
    """Return the error for a file that is left as it is."""
    return EvaluationError(
        f"{path} was written by something else or by a newer svdctl; move it away, or give `out_dir`"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:150]
