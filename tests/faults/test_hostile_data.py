"""Data and settings that were made to do harm: archives, pictures, links, what is no file, and a `matplotlibrc`."""

import io
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svdctl.data.data_source import load
from svdctl.data.decode_image import _FORMATS, ImageForm, read_image
from svdctl.data.download import Archive, fetch
from svdctl.data.folder import Folder
from svdctl.data.npz import Npz
from svdctl.errors import DataError, UnusableFileError, UnusableFolderError
from svdctl.evaluate.corruptions import published_files
from svdctl.utils.lock import held, held_folder
from tests.evaluate.test_cifar_c import LABELS, SHAPE, write_cifar_c
from tests.faults.small import write_data
from tests.faults.test_malice import _header

# Archives.


def _arrays(path: Path) -> dict[str, np.ndarray]:
    return dict(np.load(write_data(path)))


def _refused(path: Path, match: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=match) as caught:
            load(Npz(path=path))
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


def test_two_members_of_one_name(tmp_path: Path) -> None:
    """`x_train`, a bomb in bzip2, beside a harmless `x_train.npy`: one of them was checked and the other one read."""
    path = tmp_path / "data.npz"
    _arrays(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_BZIP2) as archive, archive.open("x_train", "w") as file:
        file.write(_header((200, 1000, 1000)))
        for _ in range(20):
            file.write(bytes(10**7))
    assert path.stat().st_size < 100_000
    _refused(path, "has the array 'x_train' twice")
    _arrays(path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x_train.npy", "other")
    _refused(path, "has the array 'x_train' twice")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packed_as_numpy_never_packs(method: int, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    arrays = _arrays(path)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", _header(array.shape, array.dtype.str) + array.tobytes())
    _refused(path, "x_train is packed in a way that numpy does not use")


def test_a_directory_that_can_be_read_in_two_ways(tmp_path: Path) -> None:
    """A locator of zip64 that points elsewhere, a directory that is not before the end, a comment behind it."""
    path = tmp_path / "data.npz"
    _arrays(path)
    whole = path.read_bytes()
    end = whole[-22:]
    count, length, offset = struct.unpack("<HLL", end[10:20])

    def large(points_to: int) -> bytes:
        record = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, offset)
        return whole[:-22] + record + struct.pack("<4sLQL", b"PK\6\7", 0, points_to, 1) + end

    path.write_bytes(large(len(whole) - 22))
    assert len(load(Npz(path=path)).train) == 60
    for elsewhere in (0, offset, len(whole) - 21, 2**60):
        path.write_bytes(large(elsewhere))
        _refused(path, "can be read in two ways")
    path.write_bytes(whole[:-22] + b"between" + end)
    _refused(path, "not where it is said to be")
    path.write_bytes(whole[:-2] + b"\7\0comment")
    _refused(path, "does not end as an archive of numpy does")
    path.write_bytes(whole + b"behind")
    _refused(path, "does not end as an archive of numpy does")


def test_more_members_than_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        for number in range(1001):
            archive.writestr(f"{number}", b"")
    _refused(tmp_path / "data.npz", "has more than 1000 members")


HEADERS: dict[str, bytes] = {
    "brackets": b"(" * 9000,
    "deep types": b"{'descr': "
    + b"[('a', " * 900
    + b"'|u1'"
    + b")]" * 900
    + b", 'fortran_order': False, 'shape': (1,)}",
    "no size": b"{'descr': '|S0', 'fortran_order': False, 'shape': (4611686018427387904,)}",
    "below 0": b"{'descr': '|u1', 'fortran_order': False, 'shape': (-2, -4)}",
    "digits": b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"7" * 5000 + b",)}",
    "no text": b"\xff\x00\x1b[31m",
    "a sum": b"{'descr': '|u1', 'fortran_order': False, 'shape': (9**9**9,)}",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_are_broken(kind: str, tmp_path: Path) -> None:
    """Of an array in an npz, and of a published file of CIFAR-C."""
    text = HEADERS[kind]
    contents = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(8)
    path = tmp_path / "data.npz"
    arrays = _arrays(path)
    del arrays["x_train"]
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_train.npy", contents)
    with pytest.raises(DataError, match=r"data\.npz is not a readable .npz of plain arrays \(the header of x_train"):
        load(Npz(path=path))
    found = published_files.open_cifar_c(write_cifar_c(tmp_path / "c"), LABELS, SHAPE)
    (tmp_path / "c/fog.npy").write_bytes(contents)
    with pytest.raises(DataError, match=r"fog\.npy is damaged or cut short \(the header of the array is broken"):
        found.require(["fog"])


def test_orders_and_kinds_that_numpy_writes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    arrays = _arrays(path)
    before = load(Npz(path=path))
    turned = {name: np.asfortranarray(array).astype(array.dtype.newbyteorder(">")) for name, array in arrays.items()}
    for save in (np.savez, np.savez_compressed):
        save(path, **turned)
        after = load(Npz(path=path))
        assert (after.train.images == before.train.images).all()
        assert (after.test.labels == before.test.labels).all()


# Pictures.


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int) -> bytes:
    """White, one bit a pixel."""
    rows = zlib.compress((b"\0" + b"\xff" * -(-width // 8)) * height, 9)
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _classes(folder: Path, contents: bytes, name: str = "0.png") -> Path:
    for part in ("train/a", "train/b", "test/a", "test/b"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / name).write_bytes(contents)
    return folder


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (1, 500_000, "1 x 500000, one side more than 64 times the other"),
        (500_000, 1, "500000 x 1, one side more than 64 times the other"),
        (11_000, 11_000, "11000 x 11000, far more than a photograph of 32"),
    ],
)
def test_pictures_whose_size_is_out_of_proportion(width: int, height: int, reason: str, tmp_path: Path) -> None:
    contents = _png(width, height)
    assert len(contents) < 40_000
    tracemalloc.start()
    try:
        for storage in ("resident", "streamed"):
            with pytest.raises(DataError, match=reason):
                load(Folder(path=_classes(tmp_path, contents), size=32, resize=True, storage=storage))
            with pytest.raises(DataError, match=f"is {width} x {height}, not 32 x 32"):
                load(Folder(path=tmp_path, size=32, storage=storage))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(ran) print flush\n%%EOF\n"


def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives EPS to Ghostscript, whatever the file is called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for name in ("0.png", "0.jpg", "0.tif"):
        for storage in ("resident", "streamed"):
            with pytest.raises(DataError, match=r"0\.\w+ cannot be read as an image"):
                load(Folder(path=_classes(tmp_path / name, EPS, name), size=32, resize=True, storage=storage))
    assert not (tmp_path / "ran").exists()
    assert {"EPS", "FPX", "WMF", "MIC"}.isdisjoint(_FORMATS)


def test_pictures_of_every_format_that_is_named_are_read(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for form in _FORMATS:
        path = tmp_path / form
        _classes(path, b"")
        for file in path.rglob("0.png"):
            image.save(file, form)
        assert len(load(Folder(path=path, size=32)).train) == 2


@pytest.mark.parametrize(
    ("side", "kind", "words"),
    [
        (46336, 4, "8 x 8 in tiles of 46336 x 46336, far more than"),
        (2**30, 4, f"8 x 8 in tiles of {2**30} x {2**30}, far more than"),
        (16, 17, "types that Pillow does not know"),
        (16, 18, "types that Pillow does not know"),
    ],
)
def test_a_tiff_picture_of_a_tile_far_larger_than_itself(tmp_path: Path, side: int, kind: int, words: str) -> None:
    """For the tile, 2 GB, libtiff takes memory whatever the size of the picture; Pillow does not see some entries."""
    values = {256: 8, 257: 8, 258: 8, 259: 5, 262: 1, 277: 1, 322: side, 323: side, 324: 200, 325: 16}
    entries = b"".join(struct.pack("<HHII", tag, kind if tag == 322 else 4, 1, value) for tag, value in values.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(head.ljust(200, b"\0") + b"\x80\x0b\x60\x50\x22\x0c\x0c\x85\x01".ljust(40, b"\0"))
    with pytest.raises(DataError, match=rf"a\.tif .*{words}"):
        read_image(tmp_path / "a.tif", ImageForm(8))


def test_of_damaged_tiff_pictures_nothing_is_shown_but_plain_lines(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """libtiff prints lines of its own, which Pillow cannot switch off: nothing of a file that a terminal obeys."""
    generator, drawn, wholes = np.random.default_rng(0), random.Random(0), []
    image = Image.fromarray(generator.integers(0, 256, (40, 36, 3), dtype=np.uint8))
    texts = {"description": "\x1b[31mred\x9b31m", "software": "\x1b]0;title\x07"}
    for compression in ("raw", "tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate", "group4"):
        contents = io.BytesIO()
        (image.convert("1") if compression == "group4" else image).save(
            contents, "TIFF", compression=compression, **texts
        )
        wholes.append(contents.getvalue())
    refused = 0
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(300):
            changed = bytearray(drawn.choice(wholes))
            for _ in range(drawn.randint(1, 6)):
                changed[drawn.randrange(len(changed))] = drawn.randrange(256)
            (tmp_path / "a.tif").write_bytes(changed)
            try:
                read_image(tmp_path / "a.tif", ImageForm(32, resize=True))
            except DataError as error:
                refused += 1
                assert str(error).startswith(f"{tmp_path / 'a.tif'} ")
    assert refused > 50
    assert not warned
    shown = capfd.readouterr()
    assert not shown.out
    assert all(line.isascii() and line.isprintable() for line in shown.err.splitlines())


# What is no file, and links.

NO_FILE: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("kind", NO_FILE)
def test_no_npz_no_labels_and_no_lock_is_read_from_what_is_no_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "it"
    NO_FILE[kind](path)
    with pytest.raises(DataError, match=f"it is a {kind}.*give `data.path` an .npz file"):
        load(Npz(path=path))
    write_cifar_c(tmp_path / "c")
    (tmp_path / "c/labels.npy").unlink()
    path.rename(tmp_path / "c/labels.npy")
    with pytest.raises(DataError, match=rf"labels\.npy is a {kind}.*the folder of the published"):
        published_files.open_cifar_c(tmp_path / "c", LABELS, SHAPE)
    (tmp_path / "run").mkdir()
    (tmp_path / "c/labels.npy").rename(tmp_path / "run/.lock")
    with (
        pytest.raises(UnusableFolderError, match=r"\.lock is a ") as caught,
        held_folder(tmp_path / "run", work="trains", instead="stop it"),
    ):
        pass
    assert "make it writable" not in str(caught.value)


@pytest.mark.slow
def test_a_device_as_npz_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "fifo").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "fifo")
    for name, what in (("/dev/zero", "device"), (f"{tmp_path}/fifo", "FIFO"), (str(tmp_path), "folder")):
        done = subprocess.run(
            [sys.executable, "-m", "svdctl", "train", "--dataset", f"npz:{name}", "--out-dir", tmp_path / "runs"],
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert f"{name} is a {what}" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "runs").exists()


def test_a_picture_that_is_a_fifo_is_no_picture(tmp_path: Path) -> None:
    _classes(tmp_path, _png(32, 32))
    os.mkfifo(tmp_path / "train/a/1.png")
    assert len(load(Folder(path=tmp_path, size=32)).train) == 2


def test_no_download_and_no_lock_goes_through_a_planted_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    root = tmp_path / "data"
    root.mkdir()
    archive = Archive((tmp_path / "there").as_uri(), "CIFAR-10-C.tar", "0" * 32, 100)
    (tmp_path / "there").write_bytes(b"x" * 100)
    monkeypatch.setitem(published_files.PUBLISHED, "cifar10", archive)
    (root / ".CIFAR-10-C.lock").symlink_to(victim)
    with pytest.raises(DataError, match=r"is a link to .*victim"):
        published_files.find_or_fetch("cifar10", root)
    (root / ".CIFAR-10-C.lock").unlink()
    for target in (victim, tmp_path / "absent"):
        (root / "CIFAR-10-C.tar.part").unlink(missing_ok=True)
        (root / "CIFAR-10-C.tar.part").symlink_to(target)
        with pytest.raises(DataError, match="is not the published"):
            fetch(archive, root / "CIFAR-10-C.tar", attempts=1)
    assert victim.read_text() == "mine"
    assert not (tmp_path / "absent").exists()
    with pytest.raises(UnusableFileError), held(_linked(root / "lock", victim)):
        pass


def _linked(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


# matplotlib.

DRAW = """
import sys
from svdctl.utils.matplotlib_defaults import Figure, with_defaults
from svdctl.utils.atomic_write import write_picture
from pathlib import Path
import matplotlib
assert not matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["font.size"] == 10
matplotlib.rcParams["text.usetex"] = True
with with_defaults():
    figure = Figure()
    figure.suptitle("a")
write_picture(figure, Path("out.png"))
"""


def test_no_matplotlibrc_of_the_folder_or_the_environment_is_read(tmp_path: Path) -> None:
    """It would have TeX typeset every text, after its own preamble."""
    (tmp_path / "matplotlibrc").write_text(
        "text.usetex: True\nfont.size: 33\ntext.latex.preamble: \\immediate\\write18{touch ran}\nno.such.key: 3\n"
    )
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("latex", "dvipng", "kpsewhich"):
        (programs / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (programs / name).chmod(0o755)
    root = Path(published_files.__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-P", "-c", DRAW], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": str(root), "PATH": f"{programs}:{os.environ['PATH']}",
             "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert (tmp_path / "out.png").is_file()
    assert not (tmp_path / "ran").exists()


def test_matplotlib_is_imported_in_one_place() -> None:
    files = {
        path.name
        for path in Path(published_files.__file__).parents[2].rglob("*.py")
        for line in path.read_text().splitlines()
        if line.strip().startswith(("import matplotlib", "from matplotlib"))
    }
    assert files == {"matplotlib_defaults.py"}
