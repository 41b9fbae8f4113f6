"""An archive is read when it has one reading only, whoever reads it; every file is opened through one function."""

import ast
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import svdctl
from svdctl.checkpoint.weight_file import read_tensors
from svdctl.errors import CheckpointError
from tests.checkpoint.files import rewrite_zip, state_dict

END, LOCATOR, END64 = 22, 20, 56


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(state_dict(), tmp_path / "a.pt")
    return tmp_path / "a.pt"


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parts(whole: bytes) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """Members, directory, end of 64 bits, its locator, end."""
    start = struct.unpack("<L", whole[-6:-2])[0]
    ends = len(whole) - END - LOCATOR - END64
    return whole[:start], whole[start:ends], whole[ends : ends + END64], whole[-END - LOCATOR : -END], whole[-END:]


def with_two_directories(whole: bytes) -> bytes:
    """The locator leads to one directory, zipfile reads the other: the one that counts names other places."""
    members, directory, end64, locator, end = parts(whole)
    hidden = directory.replace(b"a/data.pkl", b"a/data.pkx")
    first = members + hidden
    at = len(first)
    wide = end64[:48] + struct.pack("<Q", len(members))
    led = locator[:8] + struct.pack("<Q", at) + locator[16:]
    second = first + wide + directory
    own = end64[:48] + struct.pack("<Q", at + END64)
    return second + own + led + end[:16] + struct.pack("<L", at + END64) + end[20:]


def test_zipfile_takes_a_directory_that_the_locator_does_not_lead_to(path: Path) -> None:
    """What the next test refuses is a file with two readings, one of them sound."""
    path.write_bytes(with_two_directories(path.read_bytes()))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert "a/data.pkl" in archive.namelist()
    with pytest.raises(RuntimeError, match=r"data\.pkl"):
        torch.load(path, weights_only=True)


def changed(whole: bytes, mark: bytes, offset: int, to: bytes) -> bytes:
    """The first header of a kind, some bytes of it changed."""
    at = whole.index(mark) + offset
    return whole[:at] + to + whole[at + len(to) :]


LOCAL, ENTRY, DESCRIPTOR = b"PK\x03\x04", b"PK\x01\x02", b"PK\x07\x08"
CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "two directories": with_two_directories,
    "a locator that leads elsewhere": lambda whole: changed(whole, b"PK\x06\x07", 8, b"\x00"),
    "another number in the end of 64 bits": lambda whole: changed(whole, b"PK\x06\x06", 24, b"\x01"),
    "another place in the end of 64 bits": lambda whole: changed(whole, b"PK\x06\x06", 48, b"\x00"),
    "a comment": lambda whole: whole[:-2] + b"\x04\x00PK\x05\x06",
    "bytes behind": lambda whole: whole + b"\x00",
    "an end behind the end": lambda whole: whole + whole[-END:],
    "bytes before": lambda whole: whole[:30] + whole,
    "bytes before the directory": lambda whole: b"".join([parts(whole)[0], b"\x00" * 8, *parts(whole)[1:]]),
    "a header of another name": lambda whole: whole.replace(b"a/data/0", b"a/data/9", 1),
    "a directory of another name": lambda whole: whole[::-1].replace(b"a/data/0"[::-1], b"a/data/9"[::-1], 1)[::-1],
    "other flags in a header": lambda whole: changed(whole, LOCAL, 6, b"\x00"),
    "encryption in both": lambda whole: changed(changed(whole, LOCAL, 6, b"\x09"), ENTRY, 8, b"\x08"),
    "another method in a header": lambda whole: changed(whole, LOCAL, 8, b"\x08"),
    "another size in a header": lambda whole: changed(whole, LOCAL, 18, b"\x01\x00\x00\x00\x01\x00\x00\x00"),
    "another sum in a header": lambda whole: changed(whole, LOCAL, 14, b"\x01"),
    "a longer extra field": lambda whole: changed(whole, LOCAL, 28, b"\xff\x00"),
    "another size behind a member": lambda whole: changed(whole, DESCRIPTOR, 8, b"\x01"),
    "another place of a member": lambda whole: changed(whole, ENTRY, 42, b"\x01"),
    "another disk": lambda whole: changed(whole, ENTRY, 34, b"\x01"),
    "more members than entries": lambda whole: whole[:-14] + b"\xff\x00\xff\x00" + whole[-10:],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_archive_with_two_readings_is_refused(change: Callable[[bytes], bytes], path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    assert path.read_bytes() != whole
    assert "is damaged" in refused(path)


NAMES = [b"a/../a/dat.pk", b"/a/placeholde", b"a//laceholder", b"a/./aceholder", b"b/placeholder", b"a/place\x00older"]


@pytest.mark.parametrize("name", [*NAMES, b"/" * 13, b"a/placeholde/"])
def test_a_name_that_is_no_path_below_the_folder_is_refused(name: bytes, path: Path) -> None:
    rewrite_zip(path, lambda members: {**members, "a/placeholder": b""})
    read_tensors(path)
    path.write_bytes(path.read_bytes().replace(b"a/placeholder", name))
    assert "is damaged" in refused(path)


def test_a_name_that_differs_by_its_case_is_refused(path: Path) -> None:
    """torch's reader does not tell them apart."""
    rewrite_zip(path, lambda members: {**members, "a/DATA.pkl": members["a/data.pkl"]})
    assert "one name" in refused(path)


def test_sound_archives_of_other_writers_are_read(path: Path, tmp_path: Path) -> None:
    wanted = read_tensors(path).digest
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for wide in (False, True):
        with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
            for name, contents in members.items():
                with archive.open(name, "w", force_zip64=wide) as member:
                    member.write(contents)
        assert read_tensors(tmp_path / "b.pt").digest == wanted


def write_large(path: Path, members: dict[str, bytes | int]) -> None:
    """An archive as torch writes it, without checksums; a number stands for zeros, not on the disk."""
    directory = b""
    with path.open("wb") as file:
        for name, contents in members.items():
            at, size = file.tell(), contents if isinstance(contents, int) else len(contents)
            is_large, is_late = size >= 2**32 - 1, at >= 2**32 - 1
            places = [at] * is_late
            local = struct.pack(f"<{len([size, 0] * is_large + places)}Q", *[size, 0] * is_large, *places)
            wide = struct.pack(f"<{len([size, size] * is_large + places)}Q", *[size, size] * is_large, *places)
            extras = [struct.pack("<2H", 1, len(field)) + field if field else b"" for field in (local, wide)]
            padding = b"FB\x03\x00ZZZ"
            lengths = len(name), len(extras[0] + padding)
            file.write(LOCAL + struct.pack("<5H3L2H", 0, 0x808, 0, 0, 0, 0, 0, 0, *lengths) + name.encode())
            file.write(extras[0] + padding)
            file.write(contents) if isinstance(contents, bytes) else file.seek(size, 1)
            file.write(DESCRIPTOR + struct.pack("<LQQ" if is_large or is_late else "<LLL", 0, size, size))
            held = [min(number, 2**32 - 1) for number in (size, size, at)]
            fields = (0, 0, 0x808, 0, 0, 0, 0, *held[:2], len(name), len(extras[1]), 0, 0, 0, 0, held[2])
            directory += ENTRY + struct.pack("<6H3L5H2L", *fields) + name.encode() + extras[1]
        at, count = file.tell(), len(members)
        file.write(directory)
        file.write(b"PK\x06\x06" + struct.pack("<Q2H2L4Q", 44, 0, 0, 0, 0, count, count, len(directory), at))
        file.write(b"PK\x06\x07" + struct.pack("<LQL", 0, at + len(directory), 1))
        file.write(b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, count, count, len(directory), min(at, 2**32 - 1), 0))


@pytest.mark.slow
def test_files_of_more_than_4_gib_are_read(path: Path, tmp_path: Path) -> None:
    count = 2**32 + 5
    torch.save({"a": torch.zeros(7, dtype=torch.uint8), "b": torch.arange(3.0)}, path)
    with zipfile.ZipFile(path) as archive:
        contents = archive.read("a/data.pkl").replace(b"K\x07", b"\x8a\x05" + count.to_bytes(5, "little"))
    members = {"b/data.pkl": contents, "b/data/0": count, "b/data/1": struct.pack("<3f", 0, 1, 2), "b/version": b"3"}
    write_large(tmp_path / "b.pt", members)
    found = read_tensors(tmp_path / "b.pt").tensors
    assert found["a"].shape == (count,)
    assert found["b"].tolist() == [0, 1, 2]
    whole = tmp_path / "b.pt"
    with whole.open("r+b") as file:
        file.seek(30 + len("b/data.pkl") + 7 + len(contents) + 16 + 30 + len("b/data/0") + 4)
        file.write(b"\x06")
    assert "another header" in refused(whole)


def test_numbers_in_the_other_order_of_bytes_are_read(path: Path) -> None:
    """As a machine of the other kind writes them; float32 alone, whose numbers have four bytes."""
    torch.save({"w": torch.arange(3.0)}, path)

    def swapped(members: dict[str, bytes]) -> dict[str, bytes]:
        numbers = struct.pack(">3f", 0, 1, 2)
        return {**members, "a/byteorder": b"big", "a/data/0": numbers}

    rewrite_zip(path, swapped)
    assert read_tensors(path).tensors["w"].tolist() == [0, 1, 2]


UNSAFE = {
    *("torch.load", "torch.jit.load", "torch.hub.load", "torch.serialization.load", "pickle.load", "pickle.loads"),
    *("pickle.Unpickler", "joblib.load", "dill.load", "dill.loads", "cloudpickle.load", "shelve.open", "marshal.loads"),
}


def test_no_file_is_read_but_through_the_one_reader() -> None:
    """Nothing in the package calls torch's or Python's unpicklers, and one function interprets pickles."""
    called: dict[str, set[str]] = {}
    for path in Path(svdctl.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called.setdefault(ast.unparse(node.func), set()).add(path.name)
            if isinstance(node, ast.ImportFrom) and node.module in ("torch", "torch.serialization", "pickle"):
                assert not {"load", "loads", "Unpickler"} & {alias.name for alias in node.names}, path
    for name in UNSAFE & called.keys():
        # CIFAR's published files are pickles, known by their checksums.
        assert called[name] <= {"cifar.py"}, f"{name} in {called[name]}"
    assert called["Unpickler"] == {"torch_archive.py", "distributed_checkpoint.py"}
    assert called["safetensors.safe_open"] == {"safetensors_file.py"}
