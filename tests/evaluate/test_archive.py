"""Downloads that are cut off go on, wrong files are refused, and no archive writes outside its folder."""

import hashlib
import http.server
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from svdctl.data.download import Archive, check, fetch, unpack
from svdctl.errors import DataError

CONTENT = bytes(range(256)) * 8192  # 2 MiB


class Server(http.server.ThreadingHTTPServer):
    """Gives CONTENT, in pieces of at most `cut` bytes before it hangs up; remembers what was asked."""

    cut: int = len(CONTENT)
    ranges: bool = True
    status: int | None = None
    asked: list[str | None]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.server.status is not None:
            self.send_error(self.server.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(CONTENT[start : start + self.server.cut])

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def archive_of(server: Server, content: bytes = CONTENT) -> Archive:
    url = f"http://127.0.0.1:{server.server_address[1]}/x.tar"
    return Archive(url, "x.tar", hashlib.md5(content).hexdigest(), len(content))


def test_a_download_is_whole_and_leaves_nothing_else(server: Server, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    fetch(archive_of(server), tmp_path / "x.tar", tell=lambda *what: told.append(what))
    assert (tmp_path / "x.tar").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]
    assert ("downloading x.tar", len(CONTENT), len(CONTENT)) in told


def test_a_connection_that_is_cut_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.cut = 900_000
    fetch(archive_of(server), tmp_path / "x.tar", pause=0.001)
    assert (tmp_path / "x.tar").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=900000-", "bytes=1800000-"]


def test_a_later_call_goes_on_with_what_is_kept(server: Server, tmp_path: Path) -> None:
    server.cut = 700_000
    with pytest.raises(DataError, match=r"700,000 bytes are kept, and the same command goes on"):
        fetch(archive_of(server), tmp_path / "x.tar", attempts=1)
    server.cut = len(CONTENT)
    fetch(archive_of(server), tmp_path / "x.tar")
    assert server.asked == [None, "bytes=700000-"]
    assert (tmp_path / "x.tar").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "x.tar.part").write_bytes(b"not the beginning")
    fetch(archive_of(server), tmp_path / "x.tar")
    assert (tmp_path / "x.tar").read_bytes() == CONTENT


@pytest.mark.parametrize("kept", [b"", b"wrong" * 1000, CONTENT + b"more"])
def test_a_wrong_file_is_refused_and_removed(server: Server, tmp_path: Path, kept: bytes) -> None:
    archive = archive_of(server)
    if not kept:
        archive = Archive(archive.url, archive.name, "0" * 32, archive.size)
    else:
        (tmp_path / "x.tar.part").write_bytes(kept)
    with pytest.raises(DataError, match=r"is not the published x\.tar"):
        fetch(archive, tmp_path / "x.tar")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("status", [404, 503])
def test_a_refusing_server_is_a_sentence(server: Server, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(DataError, match=rf"could not be downloaded .*{status}"):
        fetch(archive_of(server), tmp_path / "x.tar", attempts=3, pause=0.001)
    assert len(server.asked) == (1 if status == 404 else 3)


def test_no_server_is_a_sentence(tmp_path: Path) -> None:
    archive = Archive("http://127.0.0.1:9/x.tar", "x.tar", "0" * 32, 10)
    with pytest.raises(DataError, match="could not be downloaded"):
        fetch(archive, tmp_path / "x.tar", attempts=1)


def test_the_users_own_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"mine")
    with pytest.raises(DataError, match="remove it, then run again"):
        check(Archive("", "x.tar", "0" * 32, 4), path)
    assert path.exists()


def test_a_file_of_another_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.touch()
    os.truncate(path, 10**12)
    with pytest.raises(DataError, match="not the published x"):
        check(Archive("", "x.tar", "0" * 32, 4), path)


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


GOOD = member("C/labels.npy", b"0123")


def test_good_members_are_unpacked_with_plain_rights(tmp_path: Path) -> None:
    folder = member("C", type=tarfile.DIRTYPE, mode=0o000)
    path = tar_of(tmp_path / "x.tar", folder, GOOD, member("C/a.npy", b"a", mode=0o4777))
    unpack(path, tmp_path / "out", limit=100)
    assert {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.npy")} == {
        "C/labels.npy",
        "C/a.npy",
    }
    assert not (tmp_path / "out/C/a.npy").stat().st_mode & 0o7000


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (member("../evil", b"x"), "would leave its folder"),
        (member("C/../../evil", b"x"), "would leave its folder"),
        (member("/tmp/evil", b"x"), "would leave its folder"),
        (member("..\\evil", b"x"), "would leave its folder"),
        (member("c:evil", b"x"), "would leave its folder"),
        (member("C/link", type=tarfile.SYMTYPE, linkname="/etc"), "is a link"),
        (member("C/link", type=tarfile.LNKTYPE, linkname="../../x"), "is a link"),
        (member("C/pipe", type=tarfile.FIFOTYPE), "neither a file nor a folder"),
        (member("C/disk", type=tarfile.BLKTYPE, devmajor=8), "neither a file nor a folder"),
        (member("C/tty", type=tarfile.CHRTYPE), "neither a file nor a folder"),
        (member("C/labels.npy", b"other"), "is there twice"),
        (member("./C/labels.npy", b"other"), "is there twice"),
        (member("C/labels.npy/below", b"x"), "lies below a file"),
        (member("C/big.npy", b"x" * 200), "larger than 100 bytes"),
    ],
    ids=lambda value: value[0].name if isinstance(value, tuple) else "",
)
def test_a_malicious_archive_writes_nothing_anywhere(
    tmp_path: Path, bad: tuple[tarfile.TarInfo, bytes], words: str
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    path = tar_of(tmp_path / "x.tar", GOOD, bad)
    with pytest.raises(DataError, match=words):
        unpack(path, inside / "out", limit=100)
    assert not list(inside.iterdir())
    assert sorted(os.listdir(tmp_path)) == ["inside", "x.tar"]


def test_many_members_are_refused(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", *(member(f"{number}") for number in range(1001)))
    with pytest.raises(DataError, match="more than 1000 members"):
        unpack(path, tmp_path / "out", limit=100)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep", [0, 100, 700, 1500])
def test_a_cut_or_foreign_archive_is_a_sentence(tmp_path: Path, keep: int) -> None:
    path = tar_of(tmp_path / "x.tar", member("a", b"x" * 4000))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"x\.tar is (damaged|cut off)"):
        unpack(path, tmp_path / "out", limit=10_000)
    assert not (tmp_path / "out").exists()


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(GOOD[0], io.BytesIO(GOOD[1]))
    with pytest.raises(DataError, match="no tar archive"):
        unpack(path, tmp_path / "out", limit=100)
