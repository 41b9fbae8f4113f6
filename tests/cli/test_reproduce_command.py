"""`svdctl reproduce` gives the recipe exactly what the flags say; every mistake is a sentence and an exit code."""

import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
from rich.console import Console

from svdctl.cli.app import main
from svdctl.cli.reproduce import command_line
from svdctl.cli.reproduce_progress import RowState, SweepDisplay, most_urgent
from svdctl.cli.variadic import spread
from svdctl.errors import DataError, Interrupted, UsageError
from svdctl.reproduce import reproduction as recipe
from svdctl.reproduce.plan import everywhere, make_plan
from svdctl.reproduce.run_store import Outcome, RunStore
from svdctl.reproduce.table_files import Request


@pytest.fixture
def reproduce() -> Iterator[Mock]:
    result = recipe.ReproduceResult((), (Path("runs/tables/table2.md"),), ())
    with patch.object(recipe, "reproduce", return_value=result) as fake:
        yield fake


def svdctl_exits(*arguments: str) -> int:
    with patch.object(sys, "argv", ["svdctl", *arguments]), pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def asked(reproduce: Mock, *arguments: str) -> Request:
    assert svdctl_exits("reproduce", *arguments) == 0
    (plan, board, spelled), named = reproduce.call_args
    assert spelled is command_line
    assert named == {}
    assert isinstance(board, SweepDisplay)
    assert isinstance(plan.request, Request)
    return plan.request


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("table2", {"tables": ("table2",)}),
        ("table2 --scale smoke", {"tables": ("table2",), "scale": "smoke"}),
        (
            "table1 --seeds 3407 3408 3409 --dataset-root d",
            {"tables": ("table1",), "seeds": (3407, 3408, 3409), "dataset_root": Path("d")},
        ),
        (
            "--seeds 1 2 table3 table2 --rows divide* none-full --out-dir /data/x",
            {"tables": ("table3", "table2"), "seeds": (1, 2), "rows": ("divide*", "none-full"),
             "out_dir": Path("/data/x")},
        ),
        (
            "--rows clip* table2 --engine ray --address auto --wandb offline",
            {"tables": ("table2",), "rows": ("clip*",), "engine": "ray", "address": "auto", "wandb": "offline"},
        ),
        (
            "table2 --jobs 4 --cifar_c_root c --paper_numbers p.toml --reuse a b --set epochs=3 --set model.width=1",
            {"tables": ("table2",), "jobs": 4, "cifar_c_root": Path("c"), "paper_numbers": Path("p.toml"),
             "reuse": (Path("a"), Path("b")), "set": ("epochs=3", "model.width=1")},
        ),
        ("table2 --columns static", {"tables": ("table2",), "columns": "static"}),
    ],
)  # fmt: skip
def test_flags_reach_the_recipe(
    reproduce: Mock, line: str, expected: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.toml").write_text("[table2.none-full]\naccuracy = 90\n")
    wanted = Request.model_validate(expected)
    assert asked(reproduce, *line.split()) == (everywhere(wanted) if wanted.engine == "ray" else wanted)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tabel2", ["did you mean table2?"]),
        ("table2 --rows divid-e*", ["--rows divid-e*", "did you mean divide-"]),
        ("table2 --scale small", ["--scale: 'small'", "one of full and smoke is wanted"]),
        ("table2 --jobs 0 --seeds -1 --engine dask", ["--jobs: 0", "--seeds", "--engine: 'dask'"]),
        ("table2 --columns some", ["--columns: 'some'"]),
        ("table2 --row x", ["did you mean --rows"]),
        ("", ["say which table", "--list"]),
        ("table2 --set nonsense=1", ["row 'none-full'", "nonsense"]),
        ("table2 --seeds 1 1", ["--seeds: seeds has 1 twice"]),
        ("table2 --set seed=5", ["--set: seed=5: seed is set by --seeds"]),
    ],
)
def test_mistakes_are_sentences(
    reproduce: Mock, capsys: pytest.CaptureFixture[str], line: str, words: list[str]
) -> None:
    assert svdctl_exits("reproduce", *line.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(said.startswith("svdctl: ") for said in shown.err.splitlines())
    for word in words:
        assert word in shown.err
    reproduce.assert_not_called()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("no disk"), 2, "no disk"),
        (DataError("no cifar"), 2, "no cifar"),
        (Interrupted("stopped; go on"), 130, "stopped; go on"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
    ],
)
def test_failures(
    reproduce: Mock, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, words: str
) -> None:
    reproduce.side_effect = error
    assert svdctl_exits("reproduce", "table2") == code
    assert words in capsys.readouterr().err


def test_a_failed_row_is_exit_code_1(reproduce: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    reproduce.return_value = recipe.ReproduceResult((), (), ("table2: clip-full, seed 1: no",))
    assert svdctl_exits("reproduce", "table2") == 1
    assert "1 failed; the same command tries them again" in capsys.readouterr().out


def test_tables_are_listed_without_torch() -> None:
    code = (
        "import sys; from svdctl.cli.app import main\n"
        "for line in (['--list'], ['tabel2'], ['table2', '--rows', 'x*'], ['table2', '--set', 'epochs=0']):\n"
        "    sys.argv = ['svdctl', 'reproduce', *line]\n"
        "    try: main()\n"
        "    except SystemExit as e: assert e.code == 0 if line == ['--list'] else e.code == 2\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "all", "figure-speed", "table-vgg", "table1", "table2", "table3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("--seeds 1 2 t", "--seeds 1 --seeds 2 t"),
        ("t --seeds 1 2 3 --x 4 5", "t --seeds 1 --seeds 2 --seeds 3 --x 4 5"),
        ("--seeds 1 t 2", "--seeds 1 t 2"),
        ("--seeds=1 2", "--seeds=1 2"),
        ("--other 1 2", "--other 1 2"),
        ("--seeds x 2", "--seeds x --seeds 2"),
        ("--seeds", "--seeds"),
    ],
)
def test_values_are_spread(given: str, found: str) -> None:
    assert spread(given.split(), {"--seeds": str.isdigit}) == found.split()


@dataclass(frozen=True)
class Work:
    plain: SweepDisplay
    live: SweepDisplay
    screen: io.StringIO
    end: Callable[[SweepDisplay], None]
    """Tells a board of the runs that ended."""


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    """Two boards on one plan: a run done, one failed, one training, one measured, the rest waiting."""
    plan = make_plan(Request(tables=("table2",), scale="smoke", out_dir=tmp_path))
    runs = plan.jobs()
    store = RunStore(tmp_path)
    store.prepare()
    plain, live, screen = SweepDisplay(live=False), SweepDisplay(live=True), io.StringIO()
    live.console = Console(file=screen, force_terminal=True, width=120, highlight=False)
    outcomes = [
        Outcome(runs[0].id, "done", {"accuracy": 0.987, "control-time": 0.1}),
        Outcome(runs[1].id, "failed", reason="the loss was not finite"),
    ]
    for board in (plain, live):
        board.every = 0.05
        board.begin(plan)
    store.write_status(runs[2].key, state="training", epoch=3.0, epochs=10.0, loss=0.5, val_acc=0.75, seconds_left=65)
    store.write_status(runs[3].key, state="evaluating", detail="autoattacks 2/4 fab-t")

    def end(board: SweepDisplay) -> None:
        for outcome in outcomes:
            board.finish(outcome)

    # Somebody is at work on both.
    with store.lock(runs[2].key), store.lock(runs[3].key):
        yield Work(plain, live, screen, end)
        plain.close()
        live.close()


def test_plain_lines(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    work.end(work.plain)
    time.sleep(0.3)
    work.plain.close()
    work.plain.close()
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[1/12] table2-smoke-none-full-s3407: done" in shown
    assert "[2/12] table2-smoke-none-tt192-s3407: failed: the loss was not finite" in shown
    assert "none-tt256-s3407: training epoch 3/10 loss 0.500 held-out 75.0%, 1:05 left" in shown
    assert "none-tt320-s3407: evaluating autoattacks 2/4 fab-t" in shown


def test_the_live_board_is_drawn_and_taken_away(work: Work) -> None:
    work.end(work.live)
    work.live.close()
    work.live.close()
    shown = work.screen.getvalue()
    for part in ("\x1b[", "done", "98.70", "failed", "training", "epoch 3/10", "1:05", "waiting", "2 of 12 done"):
        assert part in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1


def test_a_board_of_more_rows_than_lines_shows_those_at_work() -> None:
    rows = [RowState(f"r{n}", "done", "", None) for n in range(20)]
    rows += [RowState("bad", "failed", "", None), RowState("now", "training", "", 3.0)]
    rows += [RowState(f"w{n}", "waiting", "", None) for n in range(20)]
    assert most_urgent(rows, 100) == rows
    assert [row.name for row in most_urgent(rows, 6)] == ["r18", "r19", "bad", "now", "w0", "w1"]
    assert [row.name for row in most_urgent(rows, 0)] == ["now"]


def test_a_long_plan_fits_a_small_terminal(tmp_path: Path) -> None:
    plan = make_plan(Request(tables=("table-vgg",), out_dir=tmp_path))
    runs, store = plan.jobs(), RunStore(tmp_path)
    store.prepare()
    board, screen = SweepDisplay(live=True), io.StringIO()
    board.console = Console(file=screen, force_terminal=True, width=100, height=14, highlight=False)
    board.begin(plan)
    store.write_status(runs[-1].key, state="training", epoch=3.0, epochs=10.0, loss=0.5)
    with store.lock(runs[-1].key):
        time.sleep(0.8)
        board.close()
    last = screen.getvalue().rpartition("run ")[2]
    assert "training" in last
    assert "0 of 18 done" in last
    assert "more waiting" in last


def test_no_text_of_a_status_gives_the_terminal_a_code(tmp_path: Path) -> None:
    plan = make_plan(Request(tables=("table-vgg",), out_dir=tmp_path))
    store = RunStore(tmp_path)
    store.prepare()
    board, screen = SweepDisplay(live=True), io.StringIO()
    board.console = Console(file=screen, width=400, height=60, highlight=False)
    board.begin(plan)
    store.write_status(plan.jobs()[0].key, state="evaluating", detail="a\x1b[31m\x9b1m\u202e\nb")
    board.console.print(board.table())
    board.close()
    shown = screen.getvalue()
    assert "evaluating" in shown
    assert "a\\x1b[31m\\x9b1m\\u202e\\nb" in shown
    assert "\x1b" not in shown


def test_a_status_of_an_earlier_call_is_waiting(tmp_path: Path) -> None:
    plan = make_plan(Request(tables=("table2",), out_dir=tmp_path))
    store = RunStore(tmp_path)
    store.prepare()
    store.write_status(plan.jobs()[0].key, state="training", epoch=1.0, epochs=2.0)
    board = SweepDisplay(live=False)
    board.begin(plan)
    board.close()
    assert {row.state for row in board.states()} == {"waiting"}


@pytest.mark.parametrize("terminal", [True, False])
def test_stdout_chooses(terminal: bool) -> None:
    with patch("svdctl.cli.progress_display.sys.stdout") as stdout:
        stdout.isatty.return_value = terminal
        assert SweepDisplay().live is terminal


def test_a_dry_run_shows_every_run_and_needs_no_data(tmp_path: Path) -> None:
    from svdctl.reproduce import estimate
    from svdctl.reproduce.estimate import dry_run

    speed = estimate.Speed(forward=0.001, gradient=0.003)
    with (
        patch.object(estimate, "measure_network", return_value=speed),
        patch.object(estimate, "measure_control", return_value=0.5),
    ):
        request = Request(tables=("table2", "figure-speed"), out_dir=tmp_path / "runs")
        text = "\n".join(dry_run(make_plan(request), command_line, lambda text: None))
        one = Request(tables=("table2",), rows=("clip-tt192",), out_dir=tmp_path / "runs")
        assert "1 run, " in "\n".join(dry_run(make_plan(one), command_line, lambda text: None))
    assert text.count("  serves ") == 12
    for part in (
        "table2-divide-tt192-s3407",
        "svdctl train --preset wrn-cifar10-divide --set checkpoint.every_epochs=1 --set seed=3407",
        "4,706,266 parameters, 3.58x smaller",
        "FLOPs a step of 128",
        "there     nothing",
        "12 runs, ",
        "a few measured steps",
        "figure-speed",
        "free",
    ):
        assert part in text
    assert not (tmp_path / "runs").exists()


def test_keys_of_a_table_file_stay_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.toml"
    good = 'title = "T"\ncolumns = ["accuracy"]\n'
    row = '[[rows]]\nname = "a"\npreset = "wrn-cifar10"\n'
    for text, fault in (
        (good + "rows = 3\n", "rows: 3 is not valid; write a list, in [ ] (line 3)"),
        (good + row + "set = 'epochs=3'\n", "row 'a': set: 'epochs=3' is not valid; write a list, in [ ] (line 6)"),
        (good + row + "set = ['nonsense']\n", "row 'a': set = nonsense: write it as key.path=value (line 6)"),
        ("seeds = []\n" + good + row, "seeds: [] is not valid; one at least is needed (line 1)"),
        (
            good + row + "set = ['layer.kind=soc']\n",
            "row 'a': layer.kind = 'soc' belongs to LipConvNet; use model.kind = lipconv, or another kind (line 6)",
        ),
        ("plugins = ['no_such']\n" + good + row, "plugin = no_such: there is no module 'no_such' here; install it"),
    ):
        path.write_text(text)
        assert svdctl_exits("reproduce", str(path)) == 2
        assert capsys.readouterr().err == f"svdctl: {path}: {fault}\n"
