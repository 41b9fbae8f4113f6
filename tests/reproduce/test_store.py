"""What the disk says of runs: which folders are whose, finished by proof of the checkpoint, held by one process."""

import io
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from rich.console import Console

from svdctl.cli.reproduce_progress import SweepDisplay
from svdctl.config.presets import to_toml
from svdctl.errors import UsageError
from svdctl.reproduce.execute import train_run
from svdctl.reproduce.plan import Plan
from svdctl.reproduce.run_store import RunStore, inspect_run
from svdctl.train import start as recipe
from svdctl.utils.progress import Reporter


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    made = RunStore(tmp_path / "runs")
    made.prepare()
    return made


def test_a_real_run_is_found_by_its_configuration_and_confirmed_by_its_checkpoint(
    planned: Callable[..., Plan], store: RunStore, tmp_path: Path
) -> None:
    run = planned(set=("max_steps=2",)).jobs()[1]
    assert store.best(run.key) is None
    result = recipe.run(run.config, base="test", reporter=Reporter())
    found = store.best(run.key)
    assert found is not None
    assert (found.folder, found.step, found.finished) == (result.folder, 2, True)
    # What the log says does not matter: the checkpoint tells.
    (result.folder / "metrics.jsonl").unlink()
    assert inspect_run(result.folder).finished is True
    (result.folder / "last.pt").write_bytes((result.folder / "last.pt").read_bytes()[:-1000])
    assert inspect_run(result.folder).finished is False
    (result.folder / "last.pt").unlink()
    assert inspect_run(result.folder).finished is False


def test_the_best_folder_of_a_run_and_the_places_that_are_searched(
    planned: Callable[..., Plan], store: RunStore, tmp_path: Path
) -> None:
    run = planned(set=("max_steps=2",)).jobs()[0]
    whole = recipe.run(run.config, base="test", reporter=Reporter()).folder
    begun = store.out_dir / "begun"
    begun.mkdir()
    shutil.copy(whole / "config.toml", begun)
    (store.out_dir / "other").mkdir()
    (store.out_dir / "other" / "config.toml").write_text("epochs = = 3")
    assert [folder.name for folder in store.index()[run.key]] == ["begun", whole.name]
    best = store.best(run.key)
    assert best is not None
    assert best.folder == whole
    elsewhere = RunStore(tmp_path / "new", (store.out_dir,))
    best = elsewhere.best(run.key)
    assert best is not None
    assert best.folder == whole
    # Of other places only what is finished counts: nothing is written there.
    (whole / "last.pt").unlink()
    assert elsewhere.best(run.key) is None
    assert RunStore(tmp_path / "nowhere").index() == {}


def test_a_checkpoint_of_another_row_does_not_count(planned: Callable[..., Plan], store: RunStore) -> None:
    first, second = planned(set=("max_steps=2",)).jobs()[:2]
    folder, other = (recipe.run(run.config, base="test", reporter=Reporter()).folder for run in (first, second))
    reporter = MagicMock()
    assert train_run(first, reporter) == folder
    reporter.pass_over.assert_not_called()
    shutil.copyfile(other / "last.pt", folder / "last.pt")
    assert store.best(first.key) is None
    anew = train_run(first, reporter)
    assert anew is not None
    assert anew not in (folder, other)
    assert "is of another configuration than config.toml" in reporter.pass_over.call_args_list[0].args[0]
    assert str(folder / "last.pt") in reporter.pass_over.call_args_list[0].args[0]
    best = store.best(second.key)
    assert best is not None
    assert best.folder == other


def test_paths_of_data_do_not_hide_a_run(planned: Callable[..., Plan], store: RunStore) -> None:
    run = planned(set=("data.kind=cifar10",), dataset_root=Path("/here")).jobs()[0]
    folder = store.out_dir / "x"
    folder.mkdir()
    moved = run.config.model_copy(update={"data": run.config.data.model_copy(update={"root": Path("/there")})})
    (folder / "config.toml").write_text(to_toml(moved))
    assert store.index()[run.key] == [folder]


def test_a_lock_is_one_processs_and_goes_with_it(store: RunStore) -> None:
    code = (
        "import sys, time; from pathlib import Path; from svdctl.reproduce.run_store import RunStore\n"
        f"with RunStore(Path({str(store.out_dir)!r})).lock('k') as held:\n"
        "    print(held, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert not store.is_free("k")
        assert store.is_free("another")
    finally:
        other.kill()
        other.wait()
    assert store.is_free("k")
    with store.lock("k") as first, store.lock("k") as second:
        assert (first, second) == (True, False)


def test_status_is_told_and_a_broken_one_is_nothing(store: RunStore) -> None:
    assert store.read_status("k") == {}
    store.write_status("k", state="training", epoch=3)
    status = store.read_status("k")
    assert (status["state"], status["epoch"]) == ("training", 3)
    assert {"time", "host", "pid"} <= status.keys()
    (store.out_dir / ".reproduce" / "k.json").write_text("{")
    assert store.read_status("k") == {}


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="another `out_dir`"):
        RunStore(tmp_path / "file" / "runs").prepare()


ODD = (
    None, True, -1, 1e300, 10**400, math.nan, math.inf, "training", "x", "", [], [1], ["a", None], {}, {"a": 1},
)  # fmt: skip


@pytest.mark.parametrize("name", ["time", "state", "epoch", "epochs", "loss", "val_acc", "seconds_left", "detail",
                                  "passed_over"])  # fmt: skip
def test_odd_values_in_a_status_file_are_left_out(name: str, tmp_path: Path) -> None:
    """Progress is shown of whatever a status file holds, and nothing of it raises."""
    store = RunStore(tmp_path)
    store.prepare()
    whole = {"state": "training", "time": 2e9, "epoch": 1, "epochs": 2, "loss": 0.5, "val_acc": 0.5, "passed_over": []}
    job = SimpleNamespace(id="a", key="a", store=store, config=SimpleNamespace(name="a"))
    display = SweepDisplay(live=False)
    display.console = Console(file=io.StringIO())
    display._jobs, display._began = {"a": job}, 1.0  # type: ignore[dict-item]
    for value in ODD:
        (tmp_path / ".reproduce/a.json").write_text(json.dumps({**whole, "seconds_left": 3, name: value}))
        status = store.read_status("a")
        assert all(status.get(key) in (value, None) or key != name for key in status)
        assert status.get("time", 0) < 2e12
        (row,) = display.states()
        assert isinstance(row.state, str)
        display.console.print(display.table())
    (tmp_path / ".reproduce/a.json").write_text(json.dumps(whole))
    assert store.read_status("a") == whole


def test_reports_of_eval_robust_among_the_runs_are_no_runs(planned: Callable[..., Plan], store: RunStore) -> None:
    job = planned().jobs()[0]
    folder = store.out_dir / "run"
    (folder / "eval-last").mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(job.config))
    for place in (store.out_dir, folder):
        for name in ("report.md", "report.html", "report-checkpoints.json", "report.png"):
            (place / name).write_text("x")
    (folder / "eval-last" / "results.json").write_text("{}")
    (store.out_dir / "eval-last").mkdir()
    (store.out_dir / "eval-last" / "results.json").write_text("{}")
    assert store.index() == {job.key: [folder]}
    assert [state.folder for state in store.usable(job.key)] == [folder]
