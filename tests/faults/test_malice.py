"""Files made to do harm: no code in them runs, nothing unfolds without end, nothing is written where a link leads.

More of the kind: files of weights in `tests/checkpoint/test_refuse.py`, tar archives in
`tests/evaluate/test_archive.py`, CIFAR-C in `tests/evaluate/test_cifar_c.py`.
"""

import os
import pickle
import struct
import tracemalloc
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from svdctl.data.cifar import Cifar10
from svdctl.data.data_source import load
from svdctl.data.folder import Folder
from svdctl.data.npz import Npz
from svdctl.errors import DataError
from svdctl.evaluate.attack.attack_progress import Assignment, kept_progress
from svdctl.evaluate.attack_settings import AttackSettings
from tests.checkpoint.files import TRACE, Evil, save_legacy, with_pickle
from tests.faults.small import Command, make, only_run, train, write_data
from tests.train.cifar_files import write_cifar

# Pickles.


def _in_checkpoint(path: Path, own: Path) -> None:
    torch.save({**torch.load(own, weights_only=True), "training": Evil()}, path)


def _object_arrays(path: Path, own: Path) -> None:
    np.savez(path, **{name: np.array([Evil()], dtype=object) for name in ("x_train", "y_train", "x_test", "y_test")})


CHECKPOINTS: dict[str, Callable[[Path, Path], None]] = {
    "in an own checkpoint": _in_checkpoint,
    "as a file of torch.save": lambda path, own: torch.save({"model": Evil()}, path),
    "as an old file of torch.save": lambda path, own: save_legacy({"model": Evil()}, path),
    "as a bare pickle": lambda path, own: path.write_bytes(pickle.dumps(Evil(), 2)),
    "as an npz of objects": lambda path, own: (
        _object_arrays(path.with_suffix(".npz"), own) or (path.with_suffix(".npz").rename(path) and None)
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run")
    assert train(folder, make(folder, epochs=1)).end().code == 0
    return only_run(folder)


@pytest.mark.parametrize("write", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_no_command_runs_what_a_checkpoint_says(write: Callable[[Path, Path], None], run: Path, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    write(path, run / "last.pt")
    for arguments in (["train", "--resume"], ["inspect-spectrum"], ["eval-robust", "--metrics", "accuracy"]):
        ended = Command([*arguments, path], tmp_path / "log", os.chdir, tmp_path).end()
        assert ended.code == 2, ended.err
        assert "Traceback" not in ended.err
        assert str(path) in ended.err.splitlines()[-1]
        assert not list(tmp_path.rglob(TRACE))


def test_nor_what_a_kept_state_of_an_attack_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that an interrupted evaluation left, put back by somebody else."""
    monkeypatch.chdir(tmp_path)
    work = Assignment(AttackSettings(), torch.arange(4), torch.zeros(4, dtype=torch.int64), "bound")
    for contents in ({"nearest": Evil()}, Evil(), {"attack": [Evil()]}):
        torch.save(contents, tmp_path / "attack.pt")
        said: list[str] = []
        assert not kept_progress(tmp_path / "attack.pt", work, said.append).kept
        assert "cannot be loaded safely" in said[0]
    assert not (tmp_path / TRACE).exists()


def test_a_kept_state_of_an_attack_that_nests_without_end(tmp_path: Path) -> None:
    """Read as every other file of torch.save: a deep tuple ends no process."""
    work = Assignment(AttackSettings(), torch.arange(4), torch.zeros(4, dtype=torch.int64), "bound")
    for contents in (b")" + b"\x85" * 200_000, b"}" + b")" + b"\x85" * 200_000 + b"Ns"):
        with_pickle(tmp_path / "attack.pt", b"\x80\x02" + contents + b".")
        said: list[str] = []
        assert not kept_progress(tmp_path / "attack.pt", work, said.append).kept
        assert "attack.pt" in said[0]


def test_names_that_a_terminal_would_obey(tmp_path: Path) -> None:
    """Codes in the names of files and of what is in them are shown, not sent."""
    path = tmp_path / "\x1b[31mred\x07.pt"
    torch.save({"\x1b]0;title\x07": "no tensor"}, path)
    for arguments in (["inspect-spectrum", path], ["train", "--resume", path], ["eval-robust", path]):
        ended = Command(arguments, tmp_path / "log").end()
        assert ended.code == 2
        sentence = ended.err.splitlines()[-1]
        assert sentence.isprintable()
        assert r"\x1b[31mred\x07.pt" in sentence


def test_objects_in_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _object_arrays(tmp_path / "data.npz", tmp_path)
    with pytest.raises(DataError, match="holds Python objects, which svdctl does not load"):
        load(Npz(path=tmp_path / "data.npz"))
    plain = dict(np.load(write_data(tmp_path / "data.npz")))
    np.savez(tmp_path / "data.npz", **{**plain, "y_test": np.array([Evil()], dtype=object)})
    with pytest.raises(DataError, match="y_test holds Python objects"):
        load(Npz(path=tmp_path / "data.npz"))
    # An array that nobody asks for is not looked into.
    np.savez(tmp_path / "data.npz", **plain, other=np.array([Evil()], dtype=object))
    assert len(load(Npz(path=tmp_path / "data.npz")).train) == 60
    assert not (tmp_path / TRACE).exists()


def test_cifar_that_is_not_the_published_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are pickles: they are opened after their checksums were compared, and these differ."""
    monkeypatch.chdir(tmp_path)
    asked = []

    def no_network(request: Any, *arguments: Any, **named: Any) -> None:
        asked.append(request)
        raise OSError("no network")

    write_cifar(tmp_path, 10, monkeypatch)
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    assert len(load(Cifar10(root=tmp_path)).train) == 16
    assert not asked
    for name in ("train", "batches.meta"):
        kept = (tmp_path / "cifar-10-batches-py" / name).read_bytes()
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps({"data": Evil(), "labels": []}))
        with pytest.raises(DataError, match="not complete"):
            load(Cifar10(root=tmp_path))
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(kept)
    assert asked
    assert not (tmp_path / TRACE).exists()


# Bombs.


def _npz(path: Path, name: str, contents: Callable[[zipfile.ZipFile], None]) -> Path:
    """An npz of sound arrays but one, which `contents` writes."""
    write_data(path)
    arrays = {key: value for key, value in np.load(path).items() if key != name}
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        contents(archive)
    return path


def _header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    padded = text + " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode()


def test_an_npz_that_unfolds_without_end(tmp_path: Path) -> None:
    """Half a gigabyte of zeros in half a megabyte: refused by its table of contents, before it takes memory."""
    shape = (500_000, 10, 10, 10)

    def bomb(archive: zipfile.ZipFile) -> None:
        with archive.open("x_train.npy", "w", force_zip64=True) as file:
            file.write(_header(shape))
            for _ in range(50):
                file.write(bytes(10**7))

    path = _npz(tmp_path / "data.npz", "x_train", bomb)
    assert path.stat().st_size < 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="x_train unpacks from"):
            load(Npz(path=path))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("claimed", [(10**6, 10**6, 3), (2**62, 4), (61, 12, 12, 3), (59, 12, 12, 3), (2**70,)])
def test_an_npz_whose_arrays_claim_what_is_not_there(tmp_path: Path, claimed: tuple[int, ...]) -> None:
    content = _header(claimed) + bytes(60 * 12 * 12 * 3)
    path = _npz(tmp_path / "data.npz", "x_train", lambda archive: archive.writestr("x_train.npy", content))
    with pytest.raises(DataError, match="x_train claims"):
        load(Npz(path=path))


def test_labels_that_make_a_class_of_every_number(tmp_path: Path) -> None:
    plain = dict(np.load(write_data(tmp_path / "data.npz")))
    for label in (10**15, 2**62, 91):
        plain["y_test"] = np.full(30, label)
        np.savez(tmp_path / "data.npz", **plain)
        with pytest.raises(DataError, match="number the classes from 0"):
            load(Npz(path=tmp_path / "data.npz"))
    for labels in (np.full(30, np.nan), np.full(30, "cat"), np.zeros(30, "M8[s]")):
        np.savez(tmp_path / "data.npz", **{**plain, "y_test": labels})
        with pytest.raises(DataError, match="labels must be whole numbers"):
            load(Npz(path=tmp_path / "data.npz"))


def test_an_npz_with_any_bytes_changed(tmp_path: Path) -> None:
    """A sentence, or data that can be trained on."""
    write_data(tmp_path / "data.npz")
    np.savez_compressed(tmp_path / "data.npz", **dict(np.load(tmp_path / "data.npz")))
    whole = (tmp_path / "data.npz").read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        changed = bytearray(whole)
        for place in generator.integers(0, len(whole), int(generator.integers(1, 5))):
            changed[place] = int(generator.integers(256))
        (tmp_path / "changed.npz").write_bytes(bytes(changed))
        try:
            load(Npz(path=tmp_path / "changed.npz"))
        except DataError as error:
            refused += 1
            assert "changed.npz" in str(error)
    assert refused > 300


def test_a_picture_that_of_absurd_size(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    )
    for part in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / part).mkdir(parents=True)
        (tmp_path / part / "0.png").write_bytes(bomb)
    with pytest.raises(DataError, match=r"0\.png cannot be read as an image"):
        load(Folder(path=tmp_path, size=32))
