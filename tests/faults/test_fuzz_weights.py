"""Files of weights changed at random, each read in a process with little memory and time: weights or a sentence.

`python -m tests.faults.test_fuzz_weights KIND SEED SECONDS FOLDER` is what a test runs as a process of its own; the
file that it ended on is left in the folder.
"""

import argparse
import collections
import datetime
import faulthandler
import io
import json
import os
import pickletools
import random
import resource
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from svdctl.checkpoint.checkpoint_file import Checkpoint, read_checkpoint, write_checkpoint
from svdctl.checkpoint.weight_file import read_tensors
from svdctl.config.train_config import TrainConfig
from svdctl.errors import CheckpointError
from svdctl.models.build import build_model
from svdctl.models.wrn_architecture import Wrn
from tests.checkpoint.files import save_legacy, state_dict

SECONDS = float(os.environ.get("SVDCTL_FUZZ_SECONDS", "30"))
MEMORY = 512 * 2**20
"""Bytes of address space beside those of the program; files are below 1 MB, so that the stated limit is 128 MB."""
HANGS = 30
"""Seconds after which one file is a hang; 5 are too many to be right on a busy machine."""


def _saved(contents: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    return buffer.getvalue()


def _samples() -> list[object]:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    nested = defaultdict(list, {"curve": [0.5, 2**70, -1, None, True, 1j], "counts": collections.Counter("aab")})
    return [
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3},
        {"state_dict": OrderedDict(module=nn.Parameter(torch.ones(2, 2))), "args": argparse.Namespace(lr=0.1)},
        {"w": torch.ones(2, 2), "a": np.arange(6.0).reshape(2, 3), "f": np.float32(3), "b": b"\xff\x00", "s": {1, 2}},
        {"w": torch.eye(3).to_sparse(), "c": torch.ones(2, dtype=torch.complex64).conj(), "t": torch.ones(1).expand(9)},
        {"w": torch.ones(2), "log": nested, "when": datetime.datetime(2024, 1, 1), ("a", 1): torch.Size([2, 3])},
    ]  # fmt: skip


def _own(folder: Path) -> bytes:
    config = TrainConfig(model=Wrn(depth=10, width=1))
    model = build_model(config, 10)
    write_checkpoint(
        folder / "own.pt",
        Checkpoint(config, tuple("0123456789"), (3, 32, 32), model.state_dict(), {"a": 1}, {"b": 1.0}),
    )
    return (folder / "own.pt").read_bytes()


# Pickles.

GLOBALS = [
    "collections OrderedDict", "collections Counter", "collections defaultdict", "torch Size", "_codecs encode",
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_meta_tensor_no_storage", "torch FloatStorage",
    "torch._utils _rebuild_qtensor", "torch._tensor _rebuild_from_type_v2", "torch float32", "torch DoubleStorage",
    "torch._utils _rebuild_device_tensor_from_numpy", "numpy dtype", "numpy ndarray", "__builtin__ set",
    "numpy.core.multiarray _reconstruct", "numpy.core.multiarray scalar", "__builtin__ bytearray", "user Thing",
    "torch.serialization _get_layout", "torch.nn.parameter Parameter", "__builtin__ complex", "pathlib PosixPath",
]  # fmt: skip
TEXTS = ["", "a", "storage", "0", "cpu", "latin1", "punycode", "model", "module.", "x" * 900, "\ud800", "é" * 100]


def _operation(draw: random.Random) -> bytes:
    """One operation of a pickle, or a few that go together."""
    text = draw.choice(TEXTS).encode("utf-8", "surrogatepass")
    return draw.choice([
        b"N", b"\x88", b"K" + bytes([draw.randrange(256)]), b"J" + draw.randbytes(4), b"G" + draw.randbytes(8),
        b"\x8a\x09" + draw.randbytes(9), b"X" + struct.pack("<I", len(text)) + text, b")", b"]", b"}", b"\x8f",
        b"(", b"t", b"\x85", b"\x86", b"\x87", b"a", b"e", b"\x90", b"s", b"u", b"R", b"\x81", b"b", b"Q",
        b"q" + bytes([draw.randrange(8)]), b"h" + bytes([draw.randrange(8)]), b"h" + bytes([draw.randrange(60)]),
        b"c" + draw.choice(GLOBALS).replace(" ", "\n").encode() + b"\n",
        b"h" + bytes([draw.randrange(4)]) + b"\x86" + b"q" + bytes([draw.randrange(4)]),
        b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ",
    ])  # fmt: skip


def _pieces(contents: bytes) -> list[bytes]:
    places = [place for _, _, place in pickletools.genops(contents)]
    return [contents[a:b] for a, b in zip(places, [*places[1:], len(contents)], strict=True)]


def change_pickle(contents: bytes, draw: random.Random) -> bytes:
    """A pickle with bytes or whole operations changed, or one of random operations."""
    how = draw.randrange(6)
    if how < 2:
        changed = bytearray(contents)
        for _ in range(draw.choice([1, 1, 2, 6])):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        return bytes(changed)
    if how == 2:
        return b"\x80\x02" + b"".join(_operation(draw) for _ in range(draw.randint(1, 200))) + b"."
    pieces = _pieces(contents)
    for _ in range(draw.choice([1, 1, 2, 5])):
        a, b = sorted(draw.randrange(len(pieces)) for _ in range(2))
        b = min(b, a + draw.choice([1, 2, 30]))
        span = pieces[a : b + 1]
        kind = draw.randrange(5)
        if kind == 0:
            del pieces[a : b + 1]
        elif kind == 1:
            pieces[a:a] = span * draw.choice([1, 2, 40, 100_000 // max(1, sum(map(len, span)))])
        elif kind == 2:
            pieces[a:a] = [_operation(draw) for _ in range(draw.randint(1, 4))]
        elif kind == 3:
            pieces[a] = draw.choice(pieces)
        else:
            place = draw.randrange(len(pieces))
            pieces[place:place] = span
        if not pieces or sum(map(len, pieces)) > 500_000:
            break
    return b"".join(pieces)


def fuzz_pickles(folder: Path) -> Callable[[random.Random], bytes]:
    """From a generator to a file whose archive is sound and whose pickle is changed."""
    archives = [_saved(contents) for contents in _samples()] + [_own(folder)]
    members = []
    for archive in archives:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            members.append({name.split("/", 1)[1]: opened.read(name) for name in opened.namelist()})
    olds = []
    for contents in _samples():
        save_legacy(contents, folder / "old.pt")
        olds.append((folder / "old.pt").read_bytes())

    def make(draw: random.Random) -> bytes:
        if draw.random() < 0.2:
            stream = io.BytesIO(draw.choice(olds))
            parts = [_next_pickle(stream) for _ in range(5)]
            place = draw.choice([1, 2, 3, 3, 3, 4])
            parts[place] = change_pickle(parts[place], draw)
            return b"".join(parts) + stream.read()
        held = draw.choice(members)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, contents in held.items():
                archive.writestr(f"a/{name}", change_pickle(contents, draw) if name == "data.pkl" else contents)
        return buffer.getvalue()

    return make


def _next_pickle(stream: io.BytesIO) -> bytes:
    start = stream.tell()
    for _ in pickletools.genops(stream):
        pass
    return stream.getvalue()[start : stream.tell()]


# Archives.

NUMBERS = [0, 1, 8, 255, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1]


def change_archive(whole: bytes, draw: random.Random) -> bytes:
    """An archive with fields of its headers, or whole headers, changed."""
    marks = [at for mark in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08")
             for at in _places(whole, mark)]  # fmt: skip
    changed = bytearray(whole)
    for _ in range(draw.randint(1, 3)):
        at = draw.choice(marks)
        kind = draw.randrange(6)
        size = draw.choice([1, 2, 4, 8])
        place = min(at + draw.randrange(64), len(changed) - size)
        if kind <= 1:
            number = draw.choice([*NUMBERS, draw.choice(marks), len(whole) - draw.randrange(200)]) % 2 ** (8 * size)
            changed[place : place + size] = number.to_bytes(size, "little")
        elif kind == 2:
            changed[place] ^= 1 << draw.randrange(8)
        elif kind == 3:
            other = draw.choice(marks)
            length = draw.choice([20, 22, 30, 46, 56, 76])
            changed[at : at + length] = whole[other : other + length]
        elif kind == 4:
            other = draw.choice(marks)
            changed[at:at] = whole[min(at, other) : max(at, other)][:5_000]
        else:
            del changed[at : at + draw.choice([1, 4, 20, 56, 200])]
        if not changed:
            break
    return bytes(changed)


def _places(whole: bytes, mark: bytes) -> list[int]:
    found, at = [], whole.find(mark)
    while at >= 0:
        found.append(at)
        at = whole.find(mark, at + 1)
    return found


def fuzz_archives(folder: Path) -> Callable[[random.Random], bytes]:
    """From a generator to a file of the one state dict with its archive changed."""
    torch.save(state_dict(), folder / "whole.pt")
    with zipfile.ZipFile(folder / "whole.pt") as archive, zipfile.ZipFile(folder / "other.pt", "w") as other:
        for name in archive.namelist():
            with other.open(name, "w", force_zip64=True) as member:
                member.write(archive.read(name))
    wholes = [(folder / name).read_bytes() for name in ("whole.pt", "other.pt")]
    return lambda draw: change_archive(draw.choice(wholes), draw)


def fuzz_safetensors(folder: Path) -> Callable[[random.Random], bytes]:
    """From a generator to a file of safetensors with its header changed."""
    whole = safetensors.torch.save({**state_dict(), "half": torch.ones(2, dtype=torch.bfloat16)}, {"format": "pt"})
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    types = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F4", "I64", "U8", "BOOL", "C64", "Q9", "", None, 3]

    def make(draw: random.Random) -> bytes:
        if draw.random() < 0.4:
            changed = bytearray(whole)
            for _ in range(draw.randint(1, 4)):
                changed[draw.randrange(8 + size)] = draw.randrange(256)
            return bytes(changed)
        fields: dict[str, Any] = json.loads(json.dumps(header))
        for _ in range(draw.randint(1, 3)):
            name = draw.choice(list(fields))
            entry = fields[name]
            kind = draw.randrange(7)
            if kind == 0 and "dtype" in entry:
                entry["dtype"] = draw.choice(types)
            elif kind == 1 and isinstance(entry.get("shape"), list) and entry["shape"]:
                entry["shape"][draw.randrange(len(entry["shape"]))] = draw.choice([*NUMBERS, -1, 1.5, None, "a"])
            elif kind == 2 and "shape" in entry:
                entry["shape"] = draw.choice([[], [0], [1] * 100, [2**32, 2**32], "a", None, [[1]]])
            elif kind == 3 and "data_offsets" in entry:
                entry["data_offsets"][draw.randrange(2)] = draw.choice([*NUMBERS, -1, None])
            elif kind == 4:
                fields[draw.choice(["", "__metadata__", "a" * 50_000, "\x00", "\u202e", name + "."])] = fields.pop(name)
            elif kind == 5:
                fields[name] = draw.choice([None, [], {}, 1, "a", {"a": [1]}])
            else:
                fields["__metadata__"] = draw.choice([{}, {"a": 1}, {"a": "b" * 10_000}, [], None, {"format": "jax"}])
            if not all(isinstance(part, dict) for part in fields.values()) or not fields:
                break
        text = json.dumps(fields).encode()
        length = draw.choice([len(text)] * 8 + NUMBERS) % 2**64
        return length.to_bytes(8, "little") + text + whole[8 + size :]

    return make


KINDS = {"pickles": fuzz_pickles, "archives": fuzz_archives, "safetensors": fuzz_safetensors}


def fuzz(kind: str, seed: int, seconds: float, folder: Path) -> None:
    """Read changed files for some time; ends with a traceback where one is not weights or a sentence."""
    make = KINDS[kind](folder)
    sound = read_tensors(folder / "whole.pt").digest if kind == "archives" else ""
    path = folder / "fuzz.pt"
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
    end, count, read, slowest = time.monotonic() + seconds, 0, 0, 0.0
    while time.monotonic() < end:
        path.write_bytes(make(random.Random(f"{seed} {count}")))
        faulthandler.dump_traceback_later(HANGS, exit=True)
        for reader in (read_tensors, read_checkpoint):
            began = time.monotonic()
            try:
                found = reader(path)
                read += 1
                # An archive with checksums: nothing but what was saved.
                assert not sound or found.digest == sound
            except CheckpointError as error:
                assert path.name in str(error)
                assert "\n" not in str(error)
                assert "weights_only" not in str(error)
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 5
        count += 1
    faulthandler.cancel_dump_traceback_later()
    print(f"{kind}: {count} files, {read} readings of sound ones, the slowest {slowest:.2f} s")


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_changed_at_random_gives_weights_or_a_sentence(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.test_fuzz_weights", kind, "0", str(SECONDS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 100, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3_000:]


if __name__ == "__main__":
    fuzz(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
