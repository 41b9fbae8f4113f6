"""The one door to files: only regular files are opened, what is parsed is bounded, what is made follows no link."""

import ast
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svdctl.errors import FileError, MalformedFileError, MissingFileError, UnusableFileError
from svdctl.utils import files

PACKAGE = Path(files.__file__).parents[1]


def _folder(path: Path) -> None:
    path.mkdir()


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (_folder, "is a folder, and a file belongs here"),
    "FIFO": (os.mkfifo, "is a FIFO"),
    "socket": (_socket, "is a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
}
READERS = (files.open_regular, files.read_bytes, files.read_text, files.read_json, files.read_toml)


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path short enough for a socket."""
    monkeypatch.chdir(tmp_path)
    return Path("it")


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_what_is_no_file_is_refused_at_once(read: Callable[[Path], Any], kind: str, short: Path) -> None:
    make, reason = NO_FILES[kind]
    make(short)
    start = time.monotonic()
    with pytest.raises(UnusableFileError) as caught:
        read(short)
    assert time.monotonic() - start < 2
    assert str(caught.value).startswith(f"it {reason}")
    assert isinstance(caught.value, OSError)
    assert caught.value.filename == "it"


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("write", [files.open_to_append, files.open_to_lock], ids=["append", "lock"])
def test_nothing_is_written_into_what_is_no_file(write: Callable[[Path], Any], kind: str, short: Path) -> None:
    make, reason = NO_FILES[kind]
    make(short)
    with pytest.raises(UnusableFileError, match="is a link to /dev/zero" if kind == "device" else reason):
        write(short)


def test_a_fifo_that_takes_the_place_of_a_file_does_not_hang(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(short)
    seen = os.stat(__file__)
    monkeypatch.setattr(os, "stat", lambda path: seen)
    with pytest.raises(UnusableFileError, match="is a FIFO"):
        files.open_regular(short)


@pytest.mark.parametrize(
    "write", [files.create_new, files.open_to_append, files.open_to_lock], ids=["new", "+", "lock"]
)
def test_no_link_is_written_through(write: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    for target in ("victim", "absent"):
        link = tmp_path / f"to-{target}"
        link.symlink_to(tmp_path / target)
        with pytest.raises(UnusableFileError, match=f"to-{target} is "):
            write(link)
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "absent").exists()


def test_nor_one_that_appears_in_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    monkeypatch.setattr(os.path, "islink", lambda path: False)
    for write in (files.open_to_append, files.open_to_lock):
        with pytest.raises(OSError, match="link"):
            write(tmp_path / "link")
    assert not (tmp_path / "absent").exists()


def test_files_are_made_appended_to_and_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with files.create_new(path) as file:
        file.write(b"one\r\n")
    with files.open_to_append(path) as file:
        file.write("zwei \u00fc\r".encode())
    with files.open_to_lock(path):
        assert files.read_text(path) == "one\nzwei \u00fc\n"
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
    with files.open_regular(path) as file:
        assert os.get_blocking(file.fileno())
    (tmp_path / "link").symlink_to(path)  # read, not written
    assert files.read_bytes(tmp_path / "link") == path.read_bytes()
    with pytest.raises(MissingFileError, match=r"b cannot be read \(no such file"):
        files.read_bytes(tmp_path / "b")
    with pytest.raises(MalformedFileError, match="has more than 4 bytes"):
        files.read_bytes(path, limit=4)
    with pytest.raises(FileError, match="null byte"):
        files.read_bytes(f"{path}\0")


JSON = {
    "nested lists": (b"[" * 200_000, "nests deeper than 100 levels"),
    "nested tables": (b'{"a":' * 200_000, "nests deeper than 100 levels"),
    "nested, and whole": (b"[" * 101 + b"]" * 101, "nests deeper than 100 levels"),
    "digits": (b'{"a": ' + b"7" * 5000 + b"}", "a number has thousands of digits"),
    "beyond 64 bits": (b'{"a": [18446744073709551616]}', "a whole number of more than 64 bits"),
    "beyond 64 bits below 0": (b"-9223372036854775809", "a whole number of more than 64 bits"),
    "beyond floats": (b"[1e999]", "a number beyond all floats"),
    "NaN": (b'{"a": NaN}', "NaN is no number of JSON"),
    "half of a pair": (rb'{"a": "\ud800"}', r"a text that is no Unicode \('\\ud800'\)"),
    "half of a pair as a key": (rb'{"\udc00": 1}', "a text that is no Unicode"),
    "other bytes": (b'{"a": "\xff"}', "is no JSON: it is not UTF-8 .its byte 7 is 0xff"),
    "UTF-16": ("{}".encode("utf-16"), "is not UTF-8"),
    "nothing": (b"", "is no JSON that svdctl reads"),
    "cut short": (b'{"a": [1, ', "is no JSON that svdctl reads"),
}
TOML = {
    "digits in hexadecimal": (b"a = 0x" + b"F" * 20_000, "a whole number of more than 64 bits"),
    "digits in binary": (b"a = [{ b = 0b" + b"1" * 100_000 + b" }]", "a whole number of more than 64 bits"),
    "nested lists": (b"a = " + b"[" * 200_000, "nests deeper than 100 levels"),
    "nested tables": (b"a = " + b"{a = " * 5000, "nests deeper than 100 levels"),
    "a table of 5,000 levels": (b"[" + b"a." * 4999 + b"a]", "a key of more than 100 parts"),
    "a key of 250,000 parts": (b"a." * 250_000 + b"a = 1", "a key of more than 100 parts"),
    "nested, and whole": (b"a = " + b"[" * 101 + b"]" * 101, "nests deeper than 100 levels"),
    "digits": (b"a = " + b"7" * 5000, "a number has thousands of digits"),
    "half of a pair": (rb'a = "\ud800"', "is no TOML"),
    "other bytes": (b'a = "\xff"', "is not UTF-8"),
    "large": (b"# " + b"-" * 2**20, "has more than 1,048,576 bytes"),
    "cut short": (b"a = [1, ", "is no TOML"),
}


@pytest.mark.parametrize("kind", JSON)
def test_json_that_is_refused(kind: str, tmp_path: Path) -> None:
    _refused(files.read_json, tmp_path / "a.json", *JSON[kind])


@pytest.mark.parametrize("kind", TOML)
def test_toml_that_is_refused(kind: str, tmp_path: Path) -> None:
    _refused(files.read_toml, tmp_path / "a.toml", *TOML[kind])


def _refused(read: Callable[[Path], Any], path: Path, contents: bytes, reason: str) -> None:
    path.write_bytes(contents)
    start = time.monotonic()
    with pytest.raises(MalformedFileError, match=reason) as caught:
        read(path)
    assert time.monotonic() - start < 5
    assert isinstance(caught.value, ValueError)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path} ")
    assert "\n" not in sentence
    assert sentence.isprintable()


def test_json_and_toml_that_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text('{"a": [1, 2.5, null, "\\ud83d\\ude00", ' + "[" * 97 + "]" * 97 + "]}")
    assert files.read_json(path)["a"][:4] == [1, 2.5, None, "\U0001f600"]
    path.write_text("a.b = [1, 2.5]\r\n[c]\r\nd = inf\r\n" + "# " + "." * 200 + "\n")
    assert files.read_toml(path) == {"a": {"b": [1, 2.5]}, "c": {"d": float("inf")}}


ELSEWHERE = {
    "train/loggers/tensorboard_logger.py": "a picture that this run drew, opened by open_regular",
    "checkpoint/torch_archive.py": "weights: archives and pickles are checked before torch reads them",
    "checkpoint/checkpoint_file.py": "a text of JSON in a checkpoint",
    "cli/standard_streams.py": "opens the null device in the place of a closed stream",
    "data/download.py": "archives, whose checksums are compared",
    "data/decode_image.py": "pictures",
    "data/read_npz.py": "arrays",
    "distributed/failure_detector.py": "messages of svdctl's own processes",
    "evaluate/corruptions/digital.py": "a JPEG in memory that it has just written",
    "evaluate/results.py": "JSON of figures that it has just made",
    "utils/lock.py": "the system's own list of locks",
    "utils/matplotlib_defaults.py": "the current folder, to return to",
    "reproduce/worker.py": "a job of svdctl's own command",
    "utils/atomic_write.py": "the folder, flushed",
    "utils/measurement_cache.py": "JSON of what it was just given",
}
"""Files that open or parse by other means, and what."""
OPENING = {
    *("open", "io.open", "os.open", "os.fdopen", "json.load", "json.loads", "tomllib.load", "tomllib.loads"),
    *("np.load", "np.loadtxt", "np.genfromtxt", "np.fromfile", "np.memmap", "np.lib.format.open_memmap"),
    *("Image.open", "zipfile.ZipFile", "tarfile.open", "gzip.open", "bz2.open", "lzma.open", "pickle.load"),
    *("torch.load", "safe_open", "mmap.mmap"),
}
METHODS = ("read_text", "read_bytes", "write_text", "write_bytes", "open", "open_memmap")


def _opens(tree: ast.AST) -> list[str]:
    """The calls in a file that open or parse one by another way than the door."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        mode = bool(node.args) and isinstance(node.args[0], ast.Constant) and str(node.args[0].value)[:1] in "rwxab"
        of_a_path = last != "open" or not node.args or mode
        is_door = name.startswith("files.") or name in ("read_text", "read_bytes")
        if name in OPENING or ("." in name and last in METHODS and of_a_path and not is_door):
            found.append(f"{name} in line {node.lineno}")
    return found


def test_files_are_opened_by_the_door_alone() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name != "utils/files.py" and (calls := _opens(ast.parse(path.read_text(encoding="utf-8")))):
            found[name] = calls
    assert {name: calls for name, calls in found.items() if name not in ELSEWHERE} == {}
    assert set(ELSEWHERE) <= set(found), "an exception that is not needed"


@pytest.mark.parametrize(
    "line",
    [
        "open('a')", "path.open()", "path.open('rb')", "path.read_text()", "(a / b).read_bytes()", "json.loads(text)",
        "tomllib.load(file)", "np.load(path)", "Image.open(path)", "zipfile.ZipFile(path)", "tarfile.open(path, 'r:')",
        "self.path.write_text('a')", "os.open(path, 0)", "np.lib.format.open_memmap(path)",
    ],
)  # fmt: skip
def test_the_search_finds(line: str) -> None:
    assert _opens(ast.parse(line))
    assert not _opens(
        ast.parse("files.read_text(path); read_json(path); logger.open(run, config); archive.open(member)")
    )
