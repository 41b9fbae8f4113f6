"""The board of `svdctl reproduce` on a real terminal, and the time that it says is left."""

import re
import shlex
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from svdctl.cli.reproduce_progress import RowState, SweepDisplay, SweepPace, board_lines
from svdctl.reproduce.plan import make_plan
from svdctl.reproduce.run_store import Outcome, RunStore
from svdctl.reproduce.table_files import Request
from tests.terminal import run_in_terminal

BOARD = """
import sys, time
from pathlib import Path
from svdctl.cli.reproduce_progress import SweepDisplay
from svdctl.reproduce.plan import make_plan
from svdctl.reproduce.run_store import Outcome, RunStore
from svdctl.reproduce.table_files import Request

folder = Path(sys.argv[1])
plan = make_plan(Request(tables=(sys.argv[2],), scale="smoke", out_dir=folder))
runs, store = plan.jobs(), RunStore(folder)
store.prepare()
board = SweepDisplay()
board.begin(plan)
values = {"accuracy": 0.9875, "cifar-c": 0.7512, "ece": 0.0123, "autoattack": 0.25, "control-time": 0.123}
board.finish(Outcome(runs[0].id, "done", values))
board.finish(Outcome(runs[1].id, "failed", reason="the loss was not finite after step 17 of epoch 3: " + "x" * 200))
store.write_status(runs[2].key, state="training", epoch=3.0, epochs=10.0, loss=0.5, val_acc=0.75, seconds_left=223200)
store.write_status(runs[3].key, state="evaluating", detail="autoattacks 2/4 fab-t")
with store.lock(runs[2].key), store.lock(runs[3].key):  # as those who work on them do
    time.sleep(1.2)
    board.close()
print("closed")
"""


DRY_RUN = """
import sys
from pathlib import Path
from unittest.mock import patch
from svdctl.cli.reproduce import _dry_run
from svdctl.reproduce import estimate
from svdctl.reproduce.run_store import RunState, RunStore
from svdctl.reproduce.table_files import Request

request = Request(tables=("table2",), out_dir=Path(sys.argv[1]))
def states(self, jobs):
    found = {job.key: None for job in jobs}
    keys = list(found)
    found[keys[0]] = RunState(Path(sys.argv[1], "done"), 7, finished=True)
    found[keys[1]] = RunState(Path(sys.argv[1], "half"), 78200 // 2, finished=False)
    return found

with (
    patch.object(estimate, "measure_network", return_value=estimate.Speed(forward=1e-5, gradient=3e-5)),
    patch.object(estimate, "measure_control", return_value=float(sys.argv[2])),
    patch.object(estimate, "unmeasured", return_value=[]),
    patch.object(RunStore, "states", states),
):
    _dry_run(request)
"""


@pytest.mark.parametrize("columns", [80, *(pytest.param(wide, marks=pytest.mark.slow) for wide in (120, 160))])
def test_the_lines_of_a_dry_run_fit_a_terminal(tmp_path: Path, columns: int) -> None:
    text = run_in_terminal([sys.executable, "-c", DRY_RUN, "runs", "2.9"], columns, 200, scrollback=True, cwd=tmp_path)
    assert all(len(line) <= columns for line in text.splitlines())
    # A shell takes a command line from the screen as it is.
    words = [shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line.startswith("  config ")]
    assert len(words) == 12
    wanted = ["--preset wrn-cifar10-tt", "checkpoint.every_epochs=1", "layer.rank=256", "seed=3407"]
    assert words[2] == shlex.split(f"config svdctl train {' --set '.join(wanted)}")
    table = text[text.rindex("  there ") :].split("\n\n", 1)[1].splitlines()
    cut = columns == 80
    assert cut == (table[0] == "run: all begin with table2-")
    rows = {line.split()[0]: line for line in table if "-s3407" in line}
    assert len(rows) == 12
    assert all(len(line) <= columns for line in table)
    begins = "" if cut else "table2-"
    assert rows[f"{begins}none-full-s3407"].split()[1:4] == ["done", "-", "-"]
    assert " at step 39,100 " in rows[f"{begins}none-tt192-s3407"]
    assert " new " in rows[f"{begins}clip-full-s3407"]
    assert "days)" in rows[f"{begins}clip-full-s3407"]


def board(folder: Path, columns: int, rows: int, **env: str) -> list[str]:
    shown = run_in_terminal([sys.executable, "-c", BOARD, folder, "table2"], columns, rows, env=env)
    lines = shown.splitlines()
    assert lines[-1] == "closed"
    assert all(len(line) <= columns for line in lines)
    return lines[:-1]


@pytest.mark.parametrize("columns", [80, *(pytest.param(wide, marks=pytest.mark.slow) for wide in (120, 160))])
def test_every_run_has_its_state_on_a_terminal(tmp_path: Path, columns: int) -> None:
    lines = board(tmp_path, columns, 40)
    text = "\n".join(lines)
    begins = "table2-smoke-"
    if columns == 80:
        assert text.count(begins) == 1
        assert f"run: all begin with {begins}" in lines
        begins = ""
    header = next(line for line in lines if line.startswith("run "))
    at = header.index("state")
    states = {line.split()[0]: line[at:].split()[0] for line in lines if "-s3407" in line}
    assert len(states) == 12
    assert set(list(states.values())[4:]) == {"waiting"}
    assert states[f"{begins}none-full-s3407"] == "done"
    assert states[f"{begins}none-tt192-s3407"] == "failed"
    assert states[f"{begins}none-tt256-s3407"] == "training"
    assert states[f"{begins}none-tt320-s3407"] == "evaluating"
    assert "62 h (2.6 days) left  epoch 3/10 loss 0.500" in text
    assert "autoattacks 2/4 fab-t" in text
    assert "the loss was not finite" in text
    assert "accuracy 98.75  ece 1.23" in text
    assert "2 of 12 done (1 failed)" in text


def test_a_screen_too_small_shows_those_at_work_failed_and_next_and_counts_the_rest(tmp_path: Path) -> None:
    lines = board(tmp_path, 80, 14)
    text = "\n".join(lines)
    for state in ("training", "evaluating", "failed", "waiting"):
        assert f" {state} " in text or f" {state}\n" in text
    (folded,) = (line for line in lines if line.startswith("and "))
    shown = sum("-s3407" in line for line in lines)
    assert sum(int(word) for word in folded.split() if word.isdigit()) == 12 - shown
    assert "2 of 12 done" in lines[-1]


def test_a_terminal_without_an_ellipsis_gets_a_sign_that_it_has(tmp_path: Path) -> None:
    lines = board(tmp_path, 80, 40, LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    text = "\n".join(lines)
    assert text.isascii()
    assert "\\u" not in text
    assert re.search(r"none-tt192-s3407 +failed +the loss was not finite", text)


def test_no_line_is_wider_than_the_terminal_and_none_are_more_than_it_has() -> None:
    rows = [RowState(f"{'层' * 30}-{n}", "training", "detail " * 50, 3.0) for n in range(100)]
    for width, height in ((20, 10), (80, 24), (300, 80)):
        lines = board_lines(rows, width, height, "caption")
        assert len(lines) <= height
    for width, height in ((1, 1), (7, 3), (20, 5)):  # nobody can read it, and nothing breaks
        assert any(text for text, _ in board_lines(rows, width, height, "caption " * 10))
    assert all("training" in line for line, style in board_lines(rows, 80, 24, "c") if style == "bold" and "层" in line)


def test_a_board_that_has_room_is_all_there() -> None:
    rows = [RowState(f"a-{n}", "waiting", "", None) for n in range(5)]
    assert [line.split()[0] for line, _ in board_lines(rows, 80, 24, "end")] == [
        "run", "a-0", "a-1", "a-2", "a-3", "a-4", "end",
    ]  # fmt: skip


WAITING = [RowState(f"w{n}", "waiting", "", None) for n in range(10)]


def test_the_time_left_ignores_reused_and_failed_runs() -> None:
    with patch("svdctl.cli.reproduce_progress.time.monotonic") as clock:
        clock.return_value = 0.0
        pace = SweepPace(1)
        assert pace.left(WAITING) is None
        clock.return_value = 1.0
        pace.ended(is_work=False)
        assert pace.left(WAITING) is None  # a reused run tells nothing
        clock.return_value = 101.0
        pace.ended(is_work=True)
        assert pace.left(WAITING) == 1000.0
        clock.return_value = 131.0
        assert pace.left(WAITING) == 970.0
        clock.return_value = 500.0
        assert pace.left(WAITING) == 900.0  # never less than those that have not begun
        assert pace.left([RowState("d", "done", "", None)]) is None


def test_the_time_left_of_several_runs_at_a_time() -> None:
    with patch("svdctl.cli.reproduce_progress.time.monotonic") as clock:
        clock.return_value = 0.0
        pace = SweepPace(2)
        for end in (100.0, 100.0):  # two side by side took 100 seconds each
            clock.return_value = end
            pace.ended(is_work=True)
        assert pace.left(WAITING) == 500.0
        clock.return_value = 200.0
        pace.ended(is_work=True)
        assert pace.left(WAITING[1:]) == 450.0


def test_the_time_left_is_known_from_the_first_run_that_trains() -> None:
    with patch("svdctl.cli.reproduce_progress.time.monotonic") as clock:
        clock.return_value = 0.0
        pace = SweepPace(1)
        clock.return_value = 40.0
        assert pace.left([RowState("t", "training", "", 60.0), *WAITING]) == 60.0 + 10 * 100.0
        two = [RowState("t", "training", "", 60.0), RowState("u", "training", "", 60.0)]
        assert pace.left([*two, *WAITING]) == 60.0 + 5 * 100.0


@pytest.mark.parametrize(
    ("outcome", "reused"),
    [
        (Outcome("a", "done", {"accuracy": 0.9, "train-hours": 1.0}, kept={"accuracy": "kept"}), False),
        (Outcome("a", "done", {"accuracy": 0.9}, kept={"accuracy": "kept, no checksum"}), True),
        (Outcome("a", "done", {"accuracy": 0.9}), False),
        (Outcome("a", "failed", {"accuracy": 0.9}, kept={"accuracy": "kept"}), False),
    ],
)
def test_a_run_is_reused_when_all_of_its_figures_are(outcome: Outcome, reused: bool) -> None:
    assert outcome.is_reused is reused


def test_a_run_that_nobody_works_on_any_more_is_stopped(tmp_path: Path) -> None:
    """Killed before it could write so; another command's run goes on."""
    plan = make_plan(Request(tables=("table2",), scale="smoke", out_dir=tmp_path))
    killed, others, told, *_ = runs = plan.jobs()
    store = RunStore(tmp_path)
    store.prepare()
    board = SweepDisplay(live=False)
    board.begin(plan)
    for run in (killed, others):
        store.write_status(run.key, state="training", epoch=3.0, epochs=10.0, loss=0.5)
    store.write_status(told.key, state="interrupted", epoch=3.0, epochs=10.0)

    def shown() -> list[str]:
        return [row.state for row in board.states()]

    with store.lock(others.key):
        assert shown() == ["training", "training", "stopped", *["waiting"] * (len(runs) - 3)]
        board.close()
        assert shown() == ["stopped", "training", "stopped", *["waiting"] * (len(runs) - 3)]
    assert next(board.states()).detail == "epoch 3/10 loss 0.500"


def test_the_list_of_tables_fits_a_terminal() -> None:
    lines = run_in_terminal([sys.executable, "-m", "svdctl", "reproduce", "--list"], 80).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [
        "all", "figure-speed", "table-vgg", "table1", "table2", "table3",
    ]  # fmt: skip
    text = " ".join(" ".join(lines).split())
    assert "table2 WRN-16-10 on CIFAR-10: none, clip and divide, full and TT of rank 192, 256, 320 table3" in text


def test_a_row_that_was_stopped_while_it_was_evaluated_says_where() -> None:
    from svdctl.cli.reproduce_progress import _detail

    trained = {"epoch": 2.0, "epochs": 2.0, "loss": 1.278}
    stopped = {"state": "interrupted", **trained}
    assert _detail(stopped) == "epoch 2/2 loss 1.278"
    assert _detail({**stopped, "detail": "autoattacks 13/100 % apgd-t"}) == "autoattacks 13/100 % apgd-t"
