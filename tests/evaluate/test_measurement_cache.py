"""A file of measurements is read as it was written, or the reason is told; random damage included."""

import json
import random
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from pydantic import Field
from torch import Tensor

from svdctl.checkpoint.torch_archive import read_torch
from svdctl.errors import EvaluationError
from svdctl.utils.measurement_cache import Measurement, MeasurementCache, checksum


class Length(Measurement):
    name: str
    value: Annotated[float, Field(ge=0)]

    @property
    def key(self) -> str:
        return self.name


class Image(Measurement):
    pixels: Tensor
    name: str = "image"

    @property
    def key(self) -> str:
        return self.name


ABOUT = {"weights": "w", "sizes": (1, 2)}


def cache(path: Path, about: dict[str, Any] | None = None) -> MeasurementCache[Length]:
    return MeasurementCache(path, Length, about or ABOUT)


def image(path: Path) -> MeasurementCache[Image]:
    return MeasurementCache(path, Image, ABOUT, read_tensors=read_torch)


def values(read: MeasurementCache[Length]) -> dict[str, float]:
    return {kept.record.name: kept.record.value for kept in read.kept.values()}


def test_records_come_back_and_are_measured_once(tmp_path: Path) -> None:
    file = tmp_path / "below" / "lengths.json"
    first = cache(file)
    for name, value in (("a", 0.5), ("bcd", 1.5)):
        assert first.once(name, partial(Length, name=name, value=value)).value == value
    again = cache(file)
    assert values(again) == {"a": 0.5, "bcd": 1.5}
    assert again.once("a", lambda: pytest.fail("measured again")).value == 0.5
    again.put(Length(name="a", value=2.0))
    assert values(cache(file)) == {"bcd": 1.5, "a": 2.0}
    assert not [*file.parent.glob(".*")]
    assert not cache(file).notices


@pytest.mark.parametrize(
    "about", [{"weights": "v", "sizes": [1, 2]}, {"weights": "w"}, {"weights": "w", "sizes": [2, 1]}]
)
def test_records_of_something_else_do_not_count(tmp_path: Path, about: dict[str, Any]) -> None:
    file = tmp_path / "x.json"
    cache(file).put(Length(name="a", value=1.0))
    other = cache(file, about)
    assert not other.kept
    assert other.belongs_elsewhere
    # Nor when they are put into a file of this one.
    records = json.loads(file.read_text())["records"]
    mine = tmp_path / "mine.json"
    cache(mine, about).write()
    mine.write_text(json.dumps({**json.loads(mine.read_text()), "records": records}))
    assert not cache(mine, about).kept
    assert "fails its checksum" in cache(mine, about).notices[0]


def test_one_bad_record_leaves_the_others(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    written = cache(file)
    for name in ("a", "b", "c"):
        written.put(Length(name=name, value=1.0))
    contents = json.loads(file.read_text())
    contents["records"][1]["value"] = 1
    del contents["records"][2]["sha256"]
    contents["about"]["weights"] = "v"  # the head alone is damaged: records are bound to what they belong to themselves
    file.write_text(json.dumps(contents))
    read = cache(file)
    assert values(read) == {"a": 1.0}
    assert [text.split(": ")[-1] for text in read.notices[1:]] == ["measured again"] * 2
    assert "each record counts by its own" in read.notices[0]
    assert "record 2" in read.notices[1]
    assert "record 3" in read.notices[2]


@pytest.mark.parametrize("value", [-1.0, "1.0", None, True, [1.0], 1e400])
def test_a_checksum_does_not_help_what_cannot_be(tmp_path: Path, value: object) -> None:
    file = tmp_path / "x.json"
    cache(file).put(Length(name="a", value=1.0))
    contents = json.loads(file.read_text())
    record = {"name": "a", "value": value}
    seal = "0" * 64 if value == 1e400 else checksum(contents["about"], record)
    contents["records"] = [{**record, "sha256": seal}]
    file.write_text(json.dumps(contents))
    assert not cache(file).kept
    assert "measured again" in cache(file).notices[0]


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", "{", '{"records": 3}', "[" * 100_000, '{"a": ' + "9" * 5000 + "}", '{"a": NaN}', "\xff",
     '{"format": "svdctl.measurements"}', '{"format": 3, "sha256": 4, "about": 5, "records": [6]}'],
)  # fmt: skip
def test_what_is_no_such_file_is_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text, encoding="latin-1")
    read = cache(file)
    assert not read.kept
    assert read.damaged
    assert str(file) in read.notices[0]


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    cache(file).put(Length(name="a", value=1.0))
    contents = json.loads(file.read_text())
    contents["version"] += 1
    contents["sha256"] = checksum({name: contents[name] for name in ("format", "version", "about")}, {})
    file.write_text(json.dumps(contents))
    with pytest.raises(EvaluationError, match="newer svdctl"):
        cache(file)


def test_no_flipped_bit_gives_another_value(tmp_path: Path) -> None:
    """Of JSON and of tensors: each reading is the value that was written, or nothing and a reason."""
    draw = random.Random(1)
    pixels = torch.rand(64, generator=torch.Generator().manual_seed(0))
    text, tensors = tmp_path / "x.json", tmp_path / "x.pt"
    cache(text).put(Length(name="a", value=0.123456789))
    image(tensors).put(Image(pixels=pixels))
    assert torch.equal(image(tensors).kept["image"].record.pixels, pixels)
    told = 0
    for file in (text, tensors):
        sound = file.read_bytes()
        for _ in range(150):
            damaged = bytearray(sound)
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
            file.write_bytes(damaged)
            read = cache(text) if file is text else image(tensors)
            told += bool(read.notices)
            if file is text:
                assert values(read) in ({}, {"a": 0.123456789})  # type: ignore[arg-type]
            elif read.kept:
                assert torch.equal(read.kept["image"].record.pixels, pixels)  # type: ignore[union-attr]
            assert read.kept or read.notices
        file.write_bytes(sound)
    assert told > 150


def test_a_disk_that_is_full_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.json"
    written = cache(file)
    written.put(Length(name="a", value=1.0))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        written.put(Length(name="b", value=1.0))
    assert values(cache(file)) == {"a": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
