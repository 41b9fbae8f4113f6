"""Files changed at random, for each reader: a value or one sentence with the file, in bounded time and memory.

    SVDCTL_FUZZ_SECONDS=600 pytest tests/faults/test_fuzz_files.py -m slow -s

Each reader runs in a child process with a limit on its address space and an alarm for each file. Case n of a seed is
the same whenever it is made: a failure names both, and `_case` makes the file again.
"""

import io
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from svdctl.config.presets import preset_folder, read_preset
from svdctl.data.data_source import load
from svdctl.data.decode_image import ImageForm, read_image
from svdctl.data.npz import Npz
from svdctl.errors import SvdctlError
from svdctl.evaluate.corruptions.published_files import open_cifar_c
from svdctl.evaluate.results import ResultStore
from svdctl.reproduce.table_files import read_table, table_folder
from svdctl.train.metrics_log import scan_log
from svdctl.train.run_hash import config_in
from svdctl.utils.files import read_json

MEMORY = 2**30
"""Bytes of address space beyond what the process has when it begins."""
ALARM = 20
"""Seconds for one file."""
SECONDS = float(os.environ.get("SVDCTL_FUZZ_SECONDS", "20"))
SEED = int(os.environ.get("SVDCTL_FUZZ_SEED", "0"))
ROOT = Path(__file__).parents[2]

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**62, 2**64 - 1)
TEXTS = (
    b"[" * 3000, b"{" * 3000, b'{"a":' * 2000, b"9" * 5000, b"NaN", b"-Infinity", b"1e999", rb'"\ud800"', b"\xff\xfe",
    b"\0", b"a." * 300, b"a = {" * 2000, b"[[a]]\n" * 100, b'"""', b"'''", b"null", b"true", b"-1", b"1e308", b'""',
    b"[]", b"{}", b"\x1b[31m", "\u202e\u009b".encode(), b"inf", b"nan", b"1979-05-27T07:32:00Z",
    b"0x7fffffffffffffffffffff",
)  # fmt: skip


def _changed(rng: random.Random, contents: bytes, others: list[bytes], texts: tuple[bytes, ...] = ()) -> bytes:
    """Some changes of bytes, numbers and parts."""
    data = bytearray(contents)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 2, 4, 16, 200, 5000)))
        match rng.randrange(9 if texts else 8):
            case 0:
                data[at:end] = rng.randbytes(end - at)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end] * rng.choice((1, 2, 50))
            case 3:
                width = rng.choice((1, 2, 4, 8))
                number = (rng.choice(NUMBERS) & (1 << 8 * width) - 1).to_bytes(width, rng.choice(("little", "big")))
                data[at : at + width] = number
            case 4:
                del data[at:]
            case 5:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                data[at:end] = other[start : start + rng.choice((1, 8, 100, 5000))]
            case 6 | 7:
                for place in range(at, end):
                    if rng.random() < 0.2:
                        data[place] ^= 1 << rng.randrange(8)
            case 8:
                data[at:at] = rng.choice(texts)
    return bytes(data)


# Whole formats, so that changes get past their checksums.


def _png(rng: random.Random, contents: bytes, others: list[bytes]) -> bytes:
    """Changes within the chunks of a PNG, with right sums."""
    chunks, at = [], 8
    while at + 8 <= len(contents):
        (length,) = struct.unpack(">I", contents[at : at + 4])
        chunks.append((contents[at + 4 : at + 8], contents[at + 8 : at + 8 + length]))
        at += 12 + length
    for _ in range(rng.choice((1, 2))):
        place = rng.randrange(len(chunks))
        kind, inner = chunks[place]
        if kind == b"IDAT" and rng.random() < 0.5:
            # An earlier change may have cut it short.
            with suppress(zlib.error):
                inner = zlib.compress(_changed(rng, zlib.decompress(inner), others))
        else:
            inner = _changed(rng, inner, others)
        chunks.insert(
            rng.randrange(len(chunks)), (rng.choice((kind, b"iCCP", b"zTXt", b"tRNS", b"PLTE", b"eXIf")), inner)
        )
        if rng.random() < 0.8:
            chunks = [(kind, inner) if number == place else chunk for number, chunk in enumerate(chunks)]
    parts = (
        struct.pack(">I", len(inner)) + kind + inner + struct.pack(">I", zlib.crc32(kind + inner))
        for kind, inner in chunks
    )
    return contents[:8] + b"".join(parts)


def _npz(rng: random.Random, contents: bytes, others: list[bytes]) -> bytes:
    """Changes within the arrays of an npz, with right sums."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(contents)) as before, zipfile.ZipFile(out, "w") as after:
        names = before.namelist()
        hit = rng.choice(names)
        for name in names:
            inner = before.read(name)
            if name == hit:
                head = 10 + int.from_bytes(inner[8:10], "little")
                inner = _changed(rng, inner[:head], [inner[:head]], TEXTS) + inner[head:] if rng.random() < 0.8 else b""
            method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
            after.writestr(zipfile.ZipInfo(name), inner, method if rng.random() < 0.2 else zipfile.ZIP_DEFLATED)
    return out.getvalue()


# What is read, and from what it begins.


def _npz_files() -> list[bytes]:
    generator = np.random.default_rng(0)
    files = []
    for save in (np.savez, np.savez_compressed):
        for shape in ((6, 8, 8), (6, 8, 8, 3)):
            arrays: dict[str, Any] = {}
            for part in ("train", "test"):
                arrays[f"x_{part}"] = generator.integers(0, 256, shape, dtype=np.uint8)
                arrays[f"y_{part}"] = np.arange(6) % 2
            file = io.BytesIO()
            save(file, **arrays)
            files.append(file.getvalue())
    for dtype in ("u1", "<i8", ">u2"):
        file = io.BytesIO()
        np.save(file, np.tile(np.arange(6) % 2, 5).astype(dtype))
        files.append(file.getvalue())
    return files


def _pictures() -> list[bytes]:
    generator = np.random.default_rng(0)
    colour = Image.fromarray(generator.integers(0, 256, (40, 36, 3), dtype=np.uint8))
    grey = Image.fromarray(generator.integers(0, 256, (40, 36), dtype=np.uint8))
    wide = Image.fromarray(generator.integers(0, 65536, (40, 36), dtype=np.uint16))
    files = []
    for image, form, named in (
        *((colour, form, {}) for form in ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP", "GIF")),
        *((colour, "TIFF", {"compression": name}) for name in ("tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate")),
        *((grey, form, {}) for form in ("PNG", "JPEG", "PPM", "BMP", "TIFF")),
        (wide, "PNG", {}), (wide, "TIFF", {}), (colour.quantize(), "PNG", {}), (grey.convert("1"), "PNG", {}),
        (grey.convert("1"), "TIFF", {"compression": "group4"}), (colour, "JPEG", {"progressive": True}),
        (colour, "WEBP", {"lossless": True}), (colour.convert("CMYK"), "TIFF", {}),
    ):  # fmt: skip
        file = io.BytesIO()
        image.save(file, form, **named)
        files.append(file.getvalue())
    return files


def _results() -> list[bytes]:
    record = {"metric": "accuracy", "protocol": {"data": {"kind": "digits"}}, "results": {"accuracy": 0.5, "count": 2}}
    more = {"seconds": 1.0, "environment": {"device": "cpu"}, "details": "details/a.csv", "details_sha256": "0" * 64}
    head = {"format": "svdctl.measurements", "version": 2, "about": {"weights": "w"}, "sha256": "0" * 64}
    line = {"kind": "step", "step": 1, "epoch": 1, "loss": 1.0, "orthogonal_loss": 0.0, "acc": 0.5, "lr": 0.1}
    old = {"format": "svdctl.evaluation", "version": 1, "checkpoint": {"weights": "w"}, "records": [record | more]}
    contents = [{**head, "remarks": {}, "networks": {}, "records": [{**record, **more, "sha256": "0" * 64}]}, old, line]
    return [json.dumps(value, indent=2).encode() for value in contents] + [(json.dumps(line) + "\n").encode() * 20]


def _read_npz(path: Path) -> None:
    if path.read_bytes()[:6] == b"\x93NUMPY":
        folder = path.parent / "c"
        folder.mkdir(exist_ok=True)
        (folder / "labels.npy").unlink(missing_ok=True)
        (folder / "labels.npy").symlink_to(path)
        open_cifar_c(folder, np.arange(6) % 2, (3, 8, 8))
    else:
        load(Npz(path=path))


def _read_results(path: Path) -> None:
    folder = path.parent / "eval"
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_bytes(path.read_bytes())
    store = ResultStore(folder, "w", {})
    for record in store.records:
        store.find(record.metric, record.protocol)
    scan_log(path)
    read_json(path)


def _read_toml(path: Path) -> None:
    (path.parent / "config.toml").write_bytes(path.read_bytes())
    config_in(path.parent)
    failed = None
    for read in (lambda: read_preset(str(path)), lambda: read_table(path)):
        try:
            read()
        except SvdctlError as error:
            assert str(path) in str(error)
            failed = error
    if failed is not None:
        raise failed


@dataclass(frozen=True)
class Kind:
    """A kind of files."""

    name: str
    read: Callable[[Path], object]
    files: Callable[[], list[bytes]]
    texts: tuple[bytes, ...] = ()
    within: Callable[[random.Random, bytes, list[bytes]], bytes] | None = None
    begins: bytes = b""
    """Of the files that `within` changes."""


def _tables() -> list[bytes]:
    return [path.read_bytes() for path in (*preset_folder().glob("*.toml"), *table_folder().glob("*.toml"))]


def _read_picture(path: Path) -> None:
    read_image(path, ImageForm(32, resize=True))


KINDS = {
    "npz": Kind("data.npz", _read_npz, _npz_files, within=_npz, begins=b"PK"),
    "images": Kind("0.png", _read_picture, _pictures, within=_png, begins=b"\x89PNG"),
    "toml": Kind("a.toml", _read_toml, _tables, TEXTS),
    "json": Kind("a.json", _read_results, _results, TEXTS),
}


def _case(kind: Kind, files: list[bytes], seed: int, number: int) -> bytes:
    """The file of a case."""
    rng = random.Random(f"{seed} {number}")
    contents = rng.choice(files)
    if kind.within is not None and contents.startswith(kind.begins) and rng.random() < 0.6:
        return kind.within(rng, contents, files)
    return _changed(rng, contents, files, kind.texts)


def fuzz(name: str, seed: int, seconds: float, folder: Path) -> None:
    """Read one changed file after the other; the number of the one at hand is in `case`, what was wrong in `fault`."""
    kind = KINDS[name]
    files, path = kind.files(), folder / kind.name
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    deadline, number, refused = time.monotonic() + seconds, 0, 0
    while time.monotonic() < deadline:
        (folder / "case").write_text(str(number))
        path.write_bytes(_case(kind, files, seed, number))
        signal.alarm(ALARM)
        try:
            kind.read(path)
        except SvdctlError as error:
            refused += 1
            text = str(error)
            names_it = any(name in text for name in (kind.name, "labels.npy", "results.json"))
            if not names_it or "more memory than there is" in text or max(map(len, text.splitlines())) > 1000:
                (folder / "fault").write_text(f"case {number}: {text}")
                sys.exit(1)
        except BaseException:
            (folder / "fault").write_text(f"case {number}: {traceback.format_exc()}")
            sys.exit(1)
        signal.alarm(0)
        number += 1
    (folder / "fault").write_text(f"{number:,} files of {name}, {refused:,} refused, no fault")


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 180)
@pytest.mark.parametrize("name", KINDS)
def test_changed_files_end_in_a_value_or_a_sentence(name: str, tmp_path: Path) -> None:
    code = f"from tests.faults.test_fuzz_files import *; fuzz({name!r}, {SEED}, {SECONDS}, Path({str(tmp_path)!r}))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=SECONDS + 120, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    case = (tmp_path / "case").read_text()
    fault = (tmp_path / "fault").read_text() if (tmp_path / "fault").exists() else done.stderr[-500:]
    print(f"{name}: {fault}")
    assert done.returncode == 0, f"{name}, seed {SEED}, case {case}, code {done.returncode}: {fault}"
