"""A disk that is full, a folder that may not be written, and a folder that vanishes: nothing saved before is lost."""

import ctypes
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.evaluate.results import read_rows
from svdctl.train.metrics_log import read_log
from tests import dots
from tests.evaluate.small import write_data, write_linear
from tests.faults.small import (
    Command,
    Ended,
    assert_equal,
    halves,
    limit,
    make,
    only_run,
    resume,
    run_folder,
    state,
    train,
    unchanged,
)

FULL = "free space or choose another folder"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that stopped in its middle, as `train` leaves it."""
    folder = tmp_path_factory.mktemp("begun")
    command = train(folder, make(folder, "checkpoint.every_steps=3", epochs=40))
    command.wait_for(run_folder(folder))
    command.signal(2)
    assert command.end().code == 130
    return folder


def copy_of(begun: Path, to: Path) -> Path:
    """The run folder of a copy."""
    shutil.copytree(begun / "runs", to / "runs")
    return only_run(to)


def assert_intact(run: Path, ended: Ended) -> None:
    assert ended.code == 1
    assert not halves(run)
    assert read_checkpoint(run)


def test_a_file_that_may_not_grow_so_large(begun: Path, tmp_path: Path) -> None:
    """RLIMIT_FSIZE below the size of a checkpoint: the first one that is due fails."""
    run = copy_of(begun, tmp_path)
    size = (run / "last.pt").stat().st_size
    with unchanged(run / "last.pt"):
        ended = resume(tmp_path, run, limit, resource.RLIMIT_FSIZE, size // 2).end()
    assert_intact(run, ended)
    assert str(run / "last.pt") in ended.sentence
    assert FULL in ended.sentence


def test_a_log_that_may_not_grow(begun: Path, tmp_path: Path) -> None:
    run = copy_of(begun, tmp_path)
    size = (run / "metrics.jsonl").stat().st_size
    with unchanged(run / "last.pt"):
        ended = resume(tmp_path, run, limit, resource.RLIMIT_FSIZE, size + 40).end()
    assert_intact(run, ended)
    # The limit holds for the file that stdout is as well, which stops nothing.
    *notes, sentence = ended.err.strip().splitlines()
    assert FULL in sentence
    assert "metrics.jsonl" in sentence
    assert all("svdctl goes on without it" in note for note in notes)


def _draw_within(size: int) -> None:
    """For `Command`: pictures are drawn, and no file may be larger than this."""
    dots.looked_at = True
    limit(resource.RLIMIT_FSIZE, size)


def test_a_picture_that_may_not_grow_leaves_the_one_that_was_there(tmp_path: Path) -> None:
    assert train(tmp_path, make(tmp_path, epochs=1)).end().code == 0
    run = only_run(tmp_path)
    size = (run / "last.pt").stat().st_size
    (run / "curves.png").write_bytes(bytes(2 * size))
    with unchanged(run / "curves.png"):
        ended = resume(tmp_path, run, _draw_within, size).end()
    assert ended.code == 1
    assert str(run / "curves.png") in ended.sentence
    assert not halves(run)


def test_the_first_checkpoint_of_a_run(tmp_path: Path) -> None:
    """Without one before it there is none, and no half of one, afterwards."""
    command = train(tmp_path, make(tmp_path, "checkpoint.every_steps=3"), limit, resource.RLIMIT_FSIZE, 20_000)
    ended = command.end()
    assert ended.code == 1
    assert FULL in ended.sentence
    run = only_run(tmp_path)
    assert not (run / "last.pt").exists()
    assert not halves(run)


def _mount(place: Path, size: int) -> None:
    """For `Command`: a file system in memory of this many bytes, seen by this process alone, gone with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    own_mounts, private, recursive = 0x20000, 1 << 18, 1 << 14
    assert libc.unshare(own_mounts) == 0
    for arguments in (
        (b"none", b"/", None, private | recursive, None),
        (b"none", str(place).encode(), b"tmpfs", 0, f"size={size}".encode()),
    ):
        if libc.mount(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "mount")


def _full_disk(place: Path, kept: Path, size: int, begun: Path) -> Callable[[], object]:
    """For `Command`: the run folder on a small disk of its own; what is left there is copied out at the end."""
    _mount(place, size)
    shutil.copytree(begun, place / "run")
    return lambda: shutil.copytree(place / "run", kept)


def may_mount() -> bool:
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="a disk of one's own needs rights that this user does not have")
@pytest.mark.parametrize("copies", [0, 1], ids=["at the first write", "some writes later"])
def test_a_full_disk(begun: Path, tmp_path: Path, copies: int) -> None:
    """A tmpfs with some room beside the run: the log fills it, or the second copy of the checkpoint."""
    run = only_run(begun)
    place, kept = tmp_path / "disk", tmp_path / "kept"
    place.mkdir()
    pages = {file.name: -(-file.stat().st_size // 4096) for file in run.iterdir()}
    room = copies * pages["last.pt"] + 1
    prepare = (_full_disk, place, kept, 4096 * (sum(pages.values()) + room), run)
    ended = Command(["train", "--resume", place / "run"], tmp_path / "log", *prepare).end()
    assert_intact(kept, ended)
    assert "no space left" in ended.sentence.lower() or "could not be written" in ended.sentence
    assert FULL in ended.sentence


def _obey_modes() -> None:
    """For `Command`: take from root the right to write where the mode of a file forbids it."""
    dac_override = 1
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0
    for place in range(3):
        sets[place] &= ~(1 << dac_override)
    assert libc.capset(header, sets) == 0


def test_a_folder_that_may_not_be_written(begun: Path, tmp_path: Path) -> None:
    run = copy_of(begun, tmp_path)
    (run / ".lock").unlink()
    run.chmod(0o555)
    try:
        with unchanged(run / "last.pt", run / "metrics.jsonl"):
            ended = resume(tmp_path, run, _obey_modes).end()
    finally:
        run.chmod(0o755)
    assert ended.code == 2
    assert f"nothing can be written in {run} (permission denied)" in ended.sentence
    shutil.copytree(run, tmp_path / "copy")
    stopped = Command(["train", "--resume", tmp_path / "copy"], tmp_path / "log")
    stopped.wait_for(lambda: (tmp_path / "copy/.lock").exists())
    stopped.signal(15)
    assert stopped.end().code in (130, -15)


def test_a_place_for_runs_that_may_not_be_written(tmp_path: Path) -> None:
    config = make(tmp_path)
    (tmp_path / "runs").mkdir(mode=0o555)
    ended = train(tmp_path, config, _obey_modes).end()
    assert ended.code == 2
    assert "permission denied" in ended.sentence.lower()
    assert "--out-dir" in ended.sentence


def test_a_folder_that_is_removed(tmp_path: Path) -> None:
    """Noticed at the next line of the log, long before the checkpoint of the epoch."""
    command = train(tmp_path, make(tmp_path, "checkpoint.every_steps=3", epochs=2000))
    command.wait_for(run_folder(tmp_path))
    run = only_run(tmp_path)
    shutil.rmtree(run, ignore_errors=True)
    ended = command.end(30)
    assert ended.code == 1
    assert "removed" in ended.sentence
    assert str(run) in ended.sentence


def test_a_folder_that_is_renamed(begun: Path, tmp_path: Path) -> None:
    """The training stops at its next checkpoint; the renamed folder goes on from the one before."""
    run = copy_of(begun, tmp_path)
    command = resume(tmp_path, run)
    before = (run / "last.pt").stat().st_ino
    command.wait_for(lambda: (run / "last.pt").stat().st_ino != before)
    moved = run.rename(tmp_path / "moved")
    ended = command.end(60)
    assert ended.code == 1
    assert "removed or renamed" in ended.sentence
    assert not run.exists()
    assert read_checkpoint(moved).metrics["step"] >= read_checkpoint(only_run(begun)).metrics["step"]
    again = Command(["train", "--resume", moved], tmp_path / "log")
    again.wait_for(lambda: "resume" in again.out.read_text() if again.out.exists() else False)
    again.signal(9)
    again.end()


def test_a_lost_log_is_no_lost_run(begun: Path, tmp_path: Path) -> None:
    """Without `metrics.jsonl`, or with one that is no text, the run goes on to the same weights."""
    ends = []
    for damage in (lambda log: log.unlink(), lambda log: log.write_bytes(b"\xff{\n" + log.read_bytes()[:90])):
        folder = tmp_path / f"{len(ends)}"
        folder.mkdir()
        run = copy_of(begun, folder)
        damage(run / "metrics.jsonl")
        command = resume(folder, run)
        log = run / "metrics.jsonl"
        command.wait_for(lambda log=log: log.exists() and b'"step": 20,' in log.read_bytes())
        command.signal(15)
        assert command.end().code == 130
        ends.append(read_checkpoint(run).metrics["step"])
        assert ends[-1] >= 20


@pytest.mark.slow
def test_a_log_that_is_removed_while_the_run_trains(tmp_path: Path) -> None:
    """The run goes on and saves, in a new log, and says so; what is lost of the log is told on resuming."""
    command = train(tmp_path, make(tmp_path, "checkpoint.every_steps=3", epochs=12))
    command.wait_for(run_folder(tmp_path))
    run = only_run(tmp_path)
    (run / "metrics.jsonl").unlink()
    ended = command.end()
    assert ended.code == 0
    (note,) = ended.err.strip().splitlines()
    assert f"note: {run / 'metrics.jsonl'} was removed while the run trained; the run saves, and goes on" in note
    assert read_checkpoint(run).metrics["step"] == 48
    logged = [line["step"] for line in read_log(run / "metrics.jsonl") if line["kind"] == "step"]
    assert logged == list(range(logged[0], 49))
    assert f"from step {logged[0]} on" in note
    again = resume(tmp_path, run).end()
    assert again.code == 0
    assert f"lacks {logged[0] - 1} of 48 lines about steps" in again.err
    assert sum(line["kind"] == "epoch" for line in read_log(run / "metrics.jsonl")) == 12


def test_a_folder_that_takes_the_place_of_the_log(tmp_path: Path) -> None:
    command = train(tmp_path, make(tmp_path, "checkpoint.every_steps=3", epochs=4000))
    command.wait_for(run_folder(tmp_path))
    log = only_run(tmp_path) / "metrics.jsonl"
    while not log.is_dir():
        with suppress(OSError):  # the run may have made a new file
            log.unlink()
        with suppress(OSError):
            log.mkdir()
    ended = command.end(30)
    assert ended.code == 1
    assert f"{log} is a folder" in ended.err


def test_the_disk_is_full_and_then_is_not(begun: Path, tmp_path: Path) -> None:
    """After a failed write the run goes on from what it has, to the weights of an undisturbed one."""
    config = make(tmp_path, "checkpoint.every_steps=3")
    whole = train(tmp_path, config)
    assert whole.end().code == 0
    wanted = state(only_run(tmp_path))
    (tmp_path / "again").mkdir()
    command = train(tmp_path / "again", make(tmp_path / "again", "checkpoint.every_steps=3"))
    command.wait_for(run_folder(tmp_path / "again"))
    command.signal(9)
    command.end()
    run = only_run(tmp_path / "again")
    assert resume(tmp_path, run, limit, resource.RLIMIT_FSIZE, 30_000).end().code == 1
    assert resume(tmp_path, run).end().code == 0
    assert_equal(state(run), wanted)


ATTACKED = ("autoattacks", "--attacks", "apgd-ce", "--examples", "40", "--eps", "1.2", "--batch-size", "20")


def _there(folder: Path, prepare: Any = None, *given: object) -> Any:
    """Go to a folder, where the report of a file is written, and prepare the process."""
    os.chdir(folder)
    return None if prepare is None else prepare(*given)


def _evaluation(folder: Path, metric: Sequence[str], *prepare: Any) -> Ended:
    arguments = ["eval-robust", folder / "linear.pth", "--dataset", f"npz:{folder / 'data.npz'}"]
    arguments += ["--model", "tests.evaluate.small:build", "--metrics", *metric]
    return Command(arguments, folder / "log", _there, folder, *prepare).end()


@pytest.mark.parametrize(
    ("metric", "file", "again"),
    [
        (ATTACKED, "unfinished/attack-*.pt", False),
        (("certified",), "details/certified-*.csv", False),
        (("certified",), "certified.csv", True),
        (ATTACKED, "attacks.csv", True),
    ],
)
def test_results_that_may_not_grow(metric: tuple[str, ...], file: str, again: bool, tmp_path: Path) -> None:
    """The file is named and no half of it stays; once there is room, the same command makes it.

    Args:
        metric: the metric and its flags.
        file: the one that becomes too large, in the folder of results.
        again: whether the metric is measured before, and only the file made anew.
    """
    write_linear(tmp_path / "linear.pth", write_data(tmp_path / "data.npz", test=200))
    results, size = tmp_path / "eval-linear", 2000
    if again:
        assert _evaluation(tmp_path, metric).code == 0
        size = (results / file).stat().st_size - 1
        (results / file).unlink()
    ended = _evaluation(tmp_path, metric, limit, resource.RLIMIT_FSIZE, size)
    assert ended.code == 1
    named = re.escape(str(results / file)).replace(r"\*", "[0-9a-f]*")
    # The report, which is larger, may have no room either.
    lines = [line for line in ended.err.splitlines() if line.startswith(("svdctl: ", "  "))]
    assert any(re.search(f"{named}: file too large; {FULL}", line) for line in lines[-2:])
    assert "did not expect" not in ended.err
    assert not list(results.glob(file))
    assert not list(results.rglob("*.part"))
    assert _evaluation(tmp_path, metric).code == 0
    tables = list(results.rglob("*.csv"))
    assert tables
    assert all(read_rows(path) for path in tables)
