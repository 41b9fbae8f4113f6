"""Files that are damaged, foreign or malicious: one sentence, nothing executed, no hang, no flood of memory."""

import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from svdctl.checkpoint import work_limit
from svdctl.checkpoint.torch_archive import read_torch
from svdctl.checkpoint.weight_file import read_tensors
from svdctl.errors import CheckpointError
from tests.checkpoint.files import TRACE, Evil, legacy_with, rewrite_zip, save_legacy, state_dict, with_pickle


def refused(path: Path) -> str:
    """The sentence, which names the file."""
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    return text


# What would run code.


def pickled(thing: object) -> bytes:
    return pickle.dumps(thing, 2)


EVIL: dict[str, Callable[[Path], None]] = {
    "in a state dict": lambda path: torch.save(state_dict() | {"x": Evil()}, path),
    "as everything": lambda path: torch.save(Evil(), path),
    "deep inside": lambda path: torch.save({"model": state_dict(), "args": {"a": [Evil()]}}, path),
    "eval": lambda path: torch.save({"x": Evil(eval, f"__import__('os').system('touch {TRACE}')")}, path),
    "import": lambda path: torch.save({"x": Evil(__import__, "os")}, path),
    "subprocess": lambda path: torch.save({"x": Evil(subprocess.run, ["touch", TRACE])}, path),
    "torch.load": lambda path: torch.save({"x": Evil(torch.load, "other.pt")}, path),
    "memory by bytearray": lambda path: torch.save({"x": Evil(bytearray, 10**12)}, path),
    "old file": lambda path: save_legacy(state_dict() | {"x": Evil()}, path),
    **{f"old file, pickle {place}": (lambda path, place=place: legacy_with(path, place, pickled(Evil())))
       for place in range(1, 5)},
    "protocol 4 by name on the stack": lambda path: with_pickle(path, pickle.dumps(Evil(), 4)),
    "protocol 0": lambda path: with_pickle(path, pickle.dumps(Evil(), 0)),
    "bare pickle": lambda path: path.write_bytes(pickle.dumps({"a": Evil()}, 2)),
    "bare pickle of the newest protocol": lambda path: path.write_bytes(pickle.dumps({"a": Evil()})),
}  # fmt: skip


@pytest.mark.parametrize("make", EVIL.values(), ids=EVIL)
def test_a_pickle_is_never_executed(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "evil.pt")
    text = refused(tmp_path / "evil.pt")
    assert not (tmp_path / TRACE).exists()
    assert "torch.save" in text


ACTING = (
    "os.system", "os.path.join", "posix.system", "nt.system", "sys.exit", "subprocess.Popen", "shutil.rmtree",
    "socket.create_connection", "runpy.run_path", "importlib.import_module", "ctypes.CDLL", "pty.spawn", "pdb.run",
    "webbrowser.open", "pickle.loads", "_pickle.loads", "marshal.loads", "urllib.request.urlopen",
    "http.client.HTTPConnection", "requests.api.get", "pip.main", "builtins.eval", "builtins.exec", "builtins.open",
    "builtins.compile", "builtins.__import__", "torch.load", "torch.hub.load", "numpy.load",
)  # fmt: skip


@pytest.mark.parametrize("name", ACTING)
def test_a_name_of_what_acts_is_refused_though_nothing_calls_it(name: str, tmp_path: Path) -> None:
    """Of the system, the interpreter or the network; any other is a record beside the weights."""
    path = tmp_path / "evil.pt"
    torch.save(state_dict(), path)
    with zipfile.ZipFile(path) as archive:
        sound = archive.read("evil/data.pkl")
    for asked, is_read in ((name, False), ("somebody.models.Head", True)):
        module, _, last = asked.rpartition(".")
        contents = sound[:-1] + b"X\x01\x00\x00\x00xc" + f"{module}\n{last}\n".encode() + b"s."
        rewrite_zip(path, lambda members, made=contents: {**members, "evil/data.pkl": made})
        if is_read:
            assert read_tensors(path).tensors.keys() == state_dict().keys()
        else:
            assert f"cannot be loaded safely: it asks for {asked!r} to be run" in refused(path)


def test_the_evil_object_would_leave_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickled(Evil()))
    assert (tmp_path / TRACE).exists()


def test_a_whole_module_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    text = refused(tmp_path / "whole.pt")
    assert "torch.nn.modules.linear.Linear" in text
    assert "torch.save(model.state_dict(), 'weights.pt')" in text


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    members = {"m/data.pkl": b"", "m/constants.pkl": b"", "m/code/a.py": b""}
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        for name, contents in members.items():
            archive.writestr(name, contents)
    assert "TorchScript" in refused(tmp_path / "m.pt")


# Damage.


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    generator = np.random.default_rng(0)
    saves: list[Callable[[Any, Path], None]] = [torch.save, save_legacy, safetensors.torch.save_file]
    for save in saves:
        save(state_dict(), path)
        whole = path.read_bytes()
        places = {0, 1, 4, 8, 20, len(whole) - 1, len(whole) - 22, *generator.integers(0, len(whole), 50).tolist()}
        for cut in places:
            path.write_bytes(whole[:cut])
            refused(path)


def test_a_changed_bit_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    """The format with checksums: never other weights."""
    path = tmp_path / "flip.pt"
    torch.save(state_dict(), path)
    whole, good = path.read_bytes(), read_tensors(path).digest
    generator = np.random.default_rng(1)
    noticed = 0
    for place in generator.integers(0, len(whole), 200):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(flipped))
        try:
            assert read_tensors(path).digest == good
        except CheckpointError as error:
            noticed += 1
            assert path.name in str(error)
    assert noticed > 50


@pytest.mark.parametrize("save", [save_legacy, safetensors.torch.save_file], ids=["old", "safetensors"])
def test_a_changed_bit_without_checksums_is_a_sentence_or_weights(save: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "flip.pt"
    save(state_dict(), path)
    whole = path.read_bytes()
    generator = np.random.default_rng(2)
    header = min(len(whole), 2500)
    for place in generator.integers(0, header, 300):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(flipped))
        try:
            assert read_tensors(path).tensors
        except CheckpointError as error:
            assert path.name in str(error)


def test_an_old_file_with_numbers_that_nothing_asks_for_is_refused(tmp_path: Path) -> None:
    save_legacy(state_dict(), tmp_path / "old.pt")
    with (tmp_path / "old.pt").open("ab") as file:
        file.write(b"\0" * 8)
    assert "do not add up" in refused(tmp_path / "old.pt")


# Foreign files.

FOREIGN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "text": (b"epochs: 3\n", "not a file of weights"),
    "page": (b"<!DOCTYPE html><html>404</html>", "web page"),
    "index": (b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "JSON"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "numpy": (b"\x93NUMPY" + bytes(100), "numpy"),
    "gzip": (b"\x1f\x8b" + bytes(100), "gzip"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "noise": (bytes(range(255, 5, -1)), "not a file of weights"),
    "zeros": (bytes(1000), "not a file of weights"),
    "no archive": (b"PK\x03\x04" + bytes(100), "damaged"),
}


@pytest.mark.parametrize(("contents", "told"), FOREIGN.values(), ids=FOREIGN)
def test_foreign_files_are_named(contents: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(contents)
    assert told in refused(tmp_path / "file.pt")


def test_archives_of_other_kinds_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([Evil()], dtype=object))
    assert "numpy" in refused(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "another zip archive" in refused(tmp_path / "b.zip")
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        archive.add(tmp_path / "b.zip", "storages")
    assert "tar archive" in refused(tmp_path / "c.tar")


@pytest.mark.parametrize("contents", [torch.ones(3), [torch.ones(3)], 3, "text", {}, {"epoch": 1}, None])
def test_contents_without_named_weights_are_refused(contents: Any, tmp_path: Path) -> None:
    torch.save(contents, tmp_path / "a.pt")
    refused(tmp_path / "a.pt")


def test_a_file_of_the_optimiser_alone_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "optimizer_state_dict": {"state": {0: {"m": torch.ones(2)}}}}, tmp_path / "opt.pth")
    assert "only 'epoch', 'optimizer_state_dict'" in refused(tmp_path / "opt.pth")


@pytest.mark.parametrize(
    ("contents", "told"),
    [
        ({}, "holds nothing; give the file of the network"),
        ({"state_dict": {}, "epoch": 3}, "holds no weights, only 'state_dict' (empty), 'epoch'; give the file"),
    ],
)
def test_what_is_empty_is_said_to_be(contents: Any, told: str, tmp_path: Path) -> None:
    torch.save(contents, tmp_path / "a.pt")
    assert told in refused(tmp_path / "a.pt")


def test_places_that_are_no_files(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.pt")
    assert "folder without last.pt" in refused(tmp_path)
    (tmp_path / "link.pt").symlink_to(tmp_path / "nowhere")
    assert "link to nothing" in refused(tmp_path / "link.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    assert "no ordinary file" in refused(tmp_path / "pipe.pt")
    for device in ("/dev/zero", "/dev/null"):
        assert "no ordinary file" in refused(Path(device))
    for name in ("pipe.pt", "run.pt"):
        (tmp_path / "run.pt").mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match=name):
            read_torch(tmp_path / name)
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read_tensors(str(tmp_path / "a\0b"))
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read_tensors(tmp_path / ("long" * 1000))
    (tmp_path / "run").mkdir()
    torch.save(state_dict(), tmp_path / "run" / "last.pt")
    assert read_tensors(tmp_path / "run").path == tmp_path / "run" / "last.pt"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "a.pt")
    (tmp_path / "a.pt").chmod(0)
    assert "permission" in refused(tmp_path / "a.pt").lower()


# Bombs.


def test_compressed_and_overlapping_archives_are_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(500_000)}, path)
    rewrite_zip(path, lambda members: members, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    assert "compressed archive" in refused(path)
    torch.save({"a": torch.zeros(10)}, path)
    with zipfile.ZipFile(path) as archive:
        target = next(member for member in archive.infolist() if member.filename.endswith("data.pkl"))
    whole = path.read_bytes()
    # The directory's entry of the first member, its sizes raised.
    at = whole.rindex(b"PK\x01\x02", 0, whole.index(b"PK\x01\x02") + 4)
    size = target.file_size.to_bytes(4, "little")
    assert whole[at + 20 : at + 28] == size + size
    path.write_bytes(whole[: at + 20] + (10**9).to_bytes(4, "little") * 2 + whole[at + 28 :])
    refused(path)


def test_a_member_marked_as_a_folder_is_refused(tmp_path: Path) -> None:
    """torch would take what its memory happened to hold for the weights."""
    path = tmp_path / "folder.pt"
    torch.save(state_dict(), path)
    whole = bytearray(path.read_bytes())
    entry = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"folder/data/3"))
    whole[entry + 38] ^= 0x10
    path.write_bytes(bytes(whole))
    assert "folder" in refused(path).removeprefix(str(path))


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.pt"
    torch.save(state_dict(), path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("twice/data.pkl", pickled({}))
    assert "one name" in refused(path)


def test_bytes_around_the_archive_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "around.pt"
    torch.save(state_dict(), path)
    whole = path.read_bytes()
    for changed in (whole + b"\n", whole[:30] + whole, b"PK\x03\x04" + whole):
        path.write_bytes(changed)
        refused(path)


def test_shapes_larger_than_the_file_are_refused(tmp_path: Path) -> None:
    for name, tensor in {
        "expanded": torch.zeros(1).expand(10**6, 10**6),
        "overlapping": torch.zeros(10**4).as_strided((5000, 5000), (1, 1)),
    }.items():
        torch.save({"fine": torch.zeros(3), name: tensor}, tmp_path / "a.pt")
        assert f"{name!r} claims" in refused(tmp_path / "a.pt")
        save_legacy({name: tensor}, tmp_path / "a.pt")
        assert f"{name!r} claims" in refused(tmp_path / "a.pt")
    torch.save({f"w{n}": torch.zeros(1).expand(1000, 1000) for n in range(2000)}, tmp_path / "a.pt")
    assert "claim" in refused(tmp_path / "a.pt")


def test_storage_larger_than_the_file_is_refused(tmp_path: Path) -> None:
    save_legacy({"w": torch.zeros(50)}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    # K 50 is the storage's length, J the same as four bytes.
    assert whole.count(b"K2") >= 1
    (tmp_path / "a.pt").write_bytes(whole.replace(b"K2", b"J\x00\x00\x00\x70"))
    refused(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "contents",
    [
        b"\x80\x02}(" + b")" + b"\x85" * 25_000 + b"K\x01u.",  # a very deep tuple, as a key
        b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 9_000 + b"N" + b"s" * 9_000 + b".",  # dicts
        b"\x80\x02" + b"]" * 12_000 + b"a" * 11_999 + b".",  # lists
        b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (n + 1, n, n) for n in range(60)) + b".",  # two to the 60
        b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.",  # contains itself
        b"\x80\x02" + b"\x8f" * 30_001 + b".",  # sets, 200 bytes for each byte of the file
    ],
    ids=["key", "dicts", "lists", "doubling", "cycle", "sets"],
)
def test_nesting_without_end_is_refused(contents: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_limit, "FLOOR", 2**20)
    with_pickle(tmp_path / "deep.pt", contents)
    refused(tmp_path / "deep.pt")


def test_a_mapping_that_contains_itself_beside_weights(tmp_path: Path) -> None:
    cyclic: dict[str, Any] = {"w": torch.ones(1)}
    cyclic["model"] = cyclic
    torch.save(cyclic, tmp_path / "a.pt")
    assert "without end" in refused(tmp_path / "a.pt")
    doubling: dict[str, Any] = {"w": torch.ones(1)}
    for _ in range(30):
        doubling = {"a": doubling, "b": doubling}
    torch.save(doubling, tmp_path / "a.pt")
    assert "without end" in refused(tmp_path / "a.pt")


def test_little_memory_gives_a_sentence(tmp_path: Path) -> None:
    """In a process of its own, whose address space is limited."""
    torch.save({"w": torch.zeros(30_000_000)}, tmp_path / "a.pt")
    code = (
        "import resource, sys\n"
        "from svdctl.errors import CheckpointError\n"
        "from svdctl.checkpoint.weight_file import read_tensors\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**26,) * 2)\n"
        "try:\n    read_tensors(sys.argv[1])\nexcept CheckpointError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.pt")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "a.pt" in done.stdout
    assert "memory" in done.stdout


def test_a_newer_format_of_our_own_is_told(tmp_path: Path) -> None:
    torch.save({"format": "svdctl.checkpoint", "version": 99, "model": state_dict()}, tmp_path / "a.pt")
    assert "upgrade svdctl" in refused(tmp_path / "a.pt")


def test_garbage_of_all_sorts(tmp_path: Path) -> None:
    """Random pickles within a sound archive: a sentence, or nothing worse."""
    generator = np.random.default_rng(3)
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        sound = archive.read("archive/data.pkl")
    for _ in range(150):
        changed = bytearray(sound)
        for place in generator.integers(0, len(sound), int(generator.integers(1, 6))):
            changed[place] = int(generator.integers(256))
        with_pickle(tmp_path / "a.pt", bytes(changed))
        try:
            read_tensors(tmp_path / "a.pt")
        except CheckpointError as error:
            assert "a.pt" in str(error)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".ckpt"])
def test_ten_gigabytes_of_something_else_are_refused_unread(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"large{suffix}"
    path.touch()
    os.truncate(path, 10 * 10**9)  # of zeros, none of them on the disk
    assert "not a file of weights" in refused(path)
