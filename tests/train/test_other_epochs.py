"""A run that is resumed for another number of epochs: schedule, files, log, and what a kill leaves on the way."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from svdctl.checkpoint.checkpoint_file import read_checkpoint, write_checkpoint
from svdctl.cli.training_flags import resolve
from svdctl.config.train_config import TrainConfig
from svdctl.errors import CheckpointError, UsageError
from svdctl.reproduce.run_store import RunStore, inspect_run
from svdctl.train import plots
from svdctl.train import start as recipe
from svdctl.train.metrics_log import read_log
from svdctl.train.run_hash import config_in, run_hash
from tests.train.test_resume import Moments, assert_same, draw_nothing, make, without_times
from tests.train.test_runs import Recorder

DRAW_CURVES = plots.plot_curves
STATES = ("finished", "stopped")
EPOCHS = 5


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("epochs")


@pytest.fixture(scope="module")
def states(place: Path) -> dict[str, Path]:
    """A run of three epochs of three steps that has ended, and one that was stopped in its fifth step."""
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        finished = recipe.run(make(place, "train"), base="test", reporter=Recorder()).folder
        stopped = recipe.run(make(place, "train"), base="test", reporter=Recorder(interrupt_after=5)).folder
    return {"finished": finished, "stopped": stopped}


@pytest.fixture
def copy(states: Mapping[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copies a run's folder."""
    return lambda state, name="run": Path(shutil.copytree(states[state], tmp_path / name))


def extend(folder: Path, epochs: int | None = EPOCHS, **named: Any) -> recipe.TrainResult:
    changes = None if epochs is None else {"epochs": epochs}
    return recipe.resume(folder, reporter=named.pop("reporter", Recorder()), changes=changes, **named)


def rates(folder: Path) -> dict[int, float]:
    """The rate of the next step, by step."""
    return {line["step"]: line["lr"] for line in read_log(folder / "metrics.jsonl") if line["kind"] == "step"}


def marks(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_log(folder / "metrics.jsonl") if line["kind"] == "extended"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def scheduled(config: TrainConfig, step: int, epochs: int) -> float:
    lr = config.optimizer.lr
    return lr * config.schedule.lr_factor(step, 3 * epochs, lr)


@pytest.mark.parametrize(("state", "step"), [("finished", 9), ("stopped", 5)])
def test_the_schedule_is_that_of_more_epochs_from_the_next_step_on(
    copy: Callable[[str], Path], state: str, step: int
) -> None:
    folder = copy(state)
    before = config_in(folder)
    recorder = Recorder()
    result = extend(folder, reporter=recorder)
    assert before is not None
    assert result.completed
    found = rates(folder)
    assert sorted(found) == list(range(1, 3 * EPOCHS + 1))
    for number, rate in found.items():
        assert rate == pytest.approx(scheduled(before, number, EPOCHS if number > step else 3), rel=1e-12), number
    epochs = [line for line in read_log(folder / "metrics.jsonl") if line["kind"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4, 5]
    assert config_in(folder) == before.model_copy(update={"epochs": EPOCHS})
    last = read_checkpoint(folder)
    assert last.config.epochs == EPOCHS
    assert last.training["counters"]["step"] == 3 * EPOCHS
    said = f"epochs   extended from 3 to 5 epochs after step {step}; the next step is the first of the new schedule"
    assert said in recorder.lines
    assert f"extended: up to step {step} it was a run of 3 epochs, with the schedule of such a run" in result.summary
    assert marks(folder) == [
        {"kind": "extended", "step": step, "epoch": -(-step // 3), "epochs": EPOCHS, "epochs_before": 3}
    ]


@pytest.mark.parametrize("state", STATES)
def test_what_was_done_stays(copy: Callable[[str], Path], states: Mapping[str, Path], state: str) -> None:
    folder = copy(state)
    extend(folder)
    before, after = (read_log(one / "metrics.jsonl") for one in (states[state], folder))
    assert [line for line in after if line["kind"] != "extended"][: len(before)] == before
    kept = states[state] / "epoch-1.pt"
    assert (folder / "epoch-1.pt").read_bytes() == kept.read_bytes()


@pytest.mark.parametrize("state", STATES)
def test_two_extensions_of_one_state_are_equal_to_the_bit(copy: Callable[..., Path], state: str) -> None:
    first, second = (extend(copy(state, name)) for name in ("first", "second"))
    assert_same(second, first, state)


def test_an_extended_run_that_is_stopped_goes_on_as_an_undisturbed_one(copy: Callable[..., Path]) -> None:
    whole = extend(copy("finished", "whole"))
    part = copy("finished", "part")
    assert not extend(part, reporter=Recorder(interrupt_after=11)).completed
    assert_same(extend(part, None), whole, "stopped")


@pytest.mark.parametrize("state", ["finished", pytest.param("stopped", marks=pytest.mark.slow)])
def test_a_kill_at_each_write_of_the_extension(copy: Callable[..., Path], tmp_path: Path, state: str) -> None:
    """Up to the first step that is made; from there on a run is as any other."""
    moments = Moments(tmp_path / "moments", lambda name: not any(" line of " in passed for passed in moments.folders))
    with moments.copied():
        whole = extend(copy(state))
    names = [name.split(" ", 1)[1] for name, folder in moments.folders.items() if folder.exists()]
    files = ["last.pt", "config.toml", "metrics.jsonl"]
    assert names == [f"{when} {file}" for file in files for when in ("before", "after")]
    for name, folder in moments.folders.items():
        if not folder.exists():
            continue
        again = Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-again")))
        assert_same(extend(again), whole, name)
        if not name.endswith("before last.pt"):
            # The checkpoint knows of the extension, whatever config.toml says.
            assert_same(extend(folder, None), whole, name)
        assert config_in(folder if name != next(iter(moments.folders)) else again) == config_in(whole.folder)


def test_a_run_of_the_papers_defaults(tmp_path: Path) -> None:
    """Its rate, which has fallen three times, is that of the middle of two epochs again."""
    flags = {"architecture": "wrn10-1", "clipping": "clip", "procedure": "paper", "clip_freq": 2, "epochs": 1}
    data = make(tmp_path, "train").data.path
    places = {
        "dataset": f"npz:{data}",
        "batch_size": 8,
        "out_dir": str(tmp_path / "runs"),
        "set": ["log.every_steps=1"],
    }
    config = resolve({**flags, **places}).config
    assert config.init == "paper"
    folder = recipe.run(config, base="test", reporter=Recorder()).folder
    assert extend(folder, 2).completed
    powers = {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3}  # at 0.3, 0.6 and 0.8 of 3 steps, then of 6
    assert rates(folder) == pytest.approx({step: 0.01 * 0.2**power for step, power in powers.items()})
    found = config_in(folder)
    assert found is not None
    assert found.epochs == 2
    assert extend(folder, None).completed


RECIPES = {
    "average": ("ema={decay=0.9}", "accumulate=2"),
    "falling maximum": ("control.max_sigma_start=8", "control.max_sigma_epochs=3"),
    "mixed": ("augment.mixup=0.4", "optimizer={kind='adamw', lr=0.01}", "schedule={kind='cosine', warmup=0.2}"),
}


@pytest.mark.parametrize(
    "sets",
    [pytest.param(sets, id=name, marks=[pytest.mark.slow] * (name != "average")) for name, sets in RECIPES.items()],
)
def test_extensions_of_other_recipes_repeat_themselves(tmp_path: Path, sets: tuple[str, ...]) -> None:
    """Also after a kill between the checkpoint that knows of the extension and the first step."""
    config = make(tmp_path, "train", *sets)
    first = recipe.run(config, base="test", reporter=Recorder(interrupt_after=5)).folder
    second = Path(shutil.copytree(first, tmp_path / "second"))
    moments = Moments(tmp_path / "moments", lambda name: name == "1 after last.pt")
    with moments.copied():
        whole = extend(first)
    assert_same(extend(second), whole, "again")
    assert_same(extend(moments.folders["1 after last.pt"], None), whole, "killed")


TOGETHER = (
    *("ema.decay=0.8", "accumulate=2", "augment.mixup=0.4", "optimizer={kind='adamw', lr=0.01, clip_norm=0.5}"),
    *("schedule={kind='cosine', warmup=0.2}", "layer.frames.kind=retract", "control.kind=clip"),
    *("control.every_steps=2", "control.max_sigma=0.3", "control.max_sigma_start=8", "control.max_sigma_epochs=2"),
    *("checkpoint.every_steps=2", "checkpoint.every_epochs=2", "evaluation.every_epochs=2"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "sets"), [("train", ()), ("train-lipconv", ()), ("train", TOGETHER)], ids=["train", "lipconv", "recipe"]
)
def test_a_kill_at_every_change_of_a_file(command: str, sets: tuple[str, ...], tmp_path: Path) -> None:
    folder = recipe.run(make(tmp_path, command, *sets), base="test", reporter=Recorder(interrupt_after=5)).folder
    moments = Moments(tmp_path / "moments", lambda name: True)
    with moments.copied():
        whole = extend(folder, 4)
    for name, left in moments.folders.items():
        assert_same(extend(left, 4), whole, name)


@pytest.mark.parametrize(
    ("state", "epochs", "words"),
    [
        ("finished", 2, "`epochs = 2`: 9 steps are made, 3 an epoch; give more than 3"),
        ("stopped", 1, "`epochs = 1`: 5 steps are made, 3 an epoch; give more than 1"),
    ],
)
def test_fewer_epochs_than_are_made_are_refused(
    copy: Callable[[str], Path], state: str, epochs: int, words: str
) -> None:
    folder = copy(state)
    before = contents(folder)
    with pytest.raises(UsageError, match=words):
        extend(folder, epochs)
    assert contents(folder) == before


def test_a_run_can_be_shortened_to_what_is_not_made_yet(copy: Callable[[str], Path]) -> None:
    folder = copy("stopped")
    assert extend(folder, 2).completed
    assert max(rates(folder)) == 6
    assert [(line["epochs"], line["epochs_before"]) for line in marks(folder)] == [(2, 3)]


@pytest.mark.parametrize("state", STATES)
def test_the_same_number_of_epochs_changes_nothing(copy: Callable[..., Path], state: str) -> None:
    without, given = copy(state, "without"), copy(state, "given")
    assert_same(extend(given, 3), extend(without, None), state)
    assert not marks(given)
    assert (given / "config.toml").read_bytes() == (without / "config.toml").read_bytes()


def test_the_steps_after_which_a_run_ends_stay(tmp_path: Path) -> None:
    config = make(tmp_path, "train", "max_steps=7")
    stopped = recipe.run(config, base="test", reporter=Recorder(interrupt_after=5)).folder
    recorder = Recorder()
    assert extend(stopped, reporter=recorder).completed
    assert max(rates(stopped)) == 7
    assert rates(stopped)[6] == pytest.approx(scheduled(config, 6, EPOCHS), rel=1e-12)
    assert any(line.endswith("; it ends after step 7") for line in recorder.lines)
    before = contents(stopped)
    with pytest.raises(UsageError, match="`epochs = 9`: the run ended after `max_steps = 7` steps"):
        extend(stopped, 9)
    assert contents(stopped) == before


def test_marks_stand_once_and_come_back_where_the_log_is_lost(copy: Callable[[str], Path]) -> None:
    folder = copy("stopped")
    assert not extend(folder, 4, reporter=Recorder(interrupt_after=7)).completed
    step = read_checkpoint(folder).training["counters"]["step"]
    assert step == 7
    assert not extend(folder, 6, reporter=Recorder(interrupt_after=8)).completed
    (folder / "metrics.jsonl").unlink()
    assert extend(folder, None).completed
    found = [(line["step"], line["epochs_before"], line["epochs"]) for line in marks(folder)]
    assert found == [(5, 3, 4), (7, 4, 6)]


def test_a_second_extension_before_any_step_takes_the_place_of_the_first(copy: Callable[..., Path]) -> None:
    folder, straight = copy("finished", "twice"), copy("finished", "straight")
    killed = Moments(folder.parent / "moments", lambda name: name.endswith("after metrics.jsonl"))
    with killed.copied():
        extend(folder, 4)
    (left,) = [one for one in killed.folders.values() if one.exists()]
    twice, once = extend(left), extend(straight)
    assert (
        marks(left)
        == marks(straight)
        == [{"kind": "extended", "step": 9, "epoch": 3, "epochs": EPOCHS, "epochs_before": 3}]
    )
    assert without_times(twice.metrics) == without_times(once.metrics)
    first, second = (read_checkpoint(one).model for one in (left, straight))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("then", [3, EPOCHS], ids=["as before", "another number"])
def test_a_kill_while_the_number_changes_again_before_any_step(
    copy: Callable[..., Path], tmp_path: Path, then: int
) -> None:
    """The checkpoint knows of it, config.toml does not yet."""
    first = Moments(tmp_path / "first", lambda name: name.endswith("after metrics.jsonl"))
    with first.copied():
        extend(copy("stopped"), 4)
    (left,) = [folder for folder in first.folders.values() if folder.exists()]
    second = Moments(tmp_path / "second", lambda name: name == "1 after last.pt")
    with second.copied():
        whole = extend(left, then)
    (killed,) = [folder for folder in second.folders.values() if folder.exists()]
    for epochs in (None, then):
        again = Path(shutil.copytree(killed, tmp_path / f"again-{epochs}"))
        assert_same(extend(again, epochs), whole, f"{epochs}")
        found = config_in(again)
        assert found is not None
        assert found.epochs == then
    assert [line["epochs"] for line in marks(left)] == [then] * (then != 3)
    assert inspect_run(left).extended == (then != 3)
    assert any("extended" in line for line in whole.summary) == (then != 3)


def test_the_network_that_was_picked_before_still_counts(copy: Callable[[str], Path]) -> None:
    folder = copy("finished")
    last = read_checkpoint(folder)
    counters = {**last.training["counters"], "best_accuracy": 1.0, "best_plain_accuracy": 1.0}
    write_checkpoint(folder / "last.pt", _with_counters(last, counters))
    picked = (folder / "best.pt").read_bytes()
    result = extend(folder)
    assert (folder / "best.pt").read_bytes() == picked
    assert any(f"of best.pt (step {counters['best_step']})" in line for line in result.summary)
    # A finished run is no dead end.
    again = extend(folder, None)
    assert again.metrics["best_test_acc"] == result.metrics["best_test_acc"]


def test_a_network_of_steps_that_are_not_made_is_not_taken(copy: Callable[[str], Path]) -> None:
    """It was picked by the schedule of before, after the checkpoint that the run goes on from."""
    folder = copy("stopped")
    best = torch.load(folder / "best.pt", weights_only=True)
    later = {"step": 6.0, "best_val_acc": 1.5, "best_val_plain_acc": 1.5}
    torch.save({**best, "metrics": {**best["metrics"], **later}}, folder / "best.pt")
    recorder = Recorder()
    result = extend(folder, reporter=recorder)
    assert any("the network that was picked is lost" in line for line in recorder.lines)
    assert not any("of best.pt (step 6)" in line and "150" in line for line in result.summary)


def _with_counters(checkpoint: Any, counters: Mapping[str, Any]) -> Any:
    object.__setattr__(checkpoint, "training", {**checkpoint.training, "counters": dict(counters)})
    return checkpoint


def test_a_kept_epoch_of_before_needs_the_number_again(copy: Callable[[str], Path]) -> None:
    folder = copy("finished")
    extend(folder)
    with pytest.raises(CheckpointError, match=r"is of another run than .*config.toml \(other epochs\).*`epochs = 5`"):
        extend(folder / "epoch-2.pt", None)
    assert extend(folder / "epoch-2.pt").completed
    assert [(line["step"], line["epochs_before"]) for line in marks(folder)] == [(6, 3)]
    assert extend(folder / "epoch-4.pt", None).completed


def test_an_older_checkpoint_can_be_extended(copy: Callable[[str], Path]) -> None:
    folder = copy("stopped")
    last = read_checkpoint(folder)
    counters = {name: value for name, value in last.training["counters"].items() if name != "extensions"}
    write_checkpoint(folder / "last.pt", _with_counters(last, counters))
    assert extend(folder).completed
    assert marks(folder)[0]["step"] == 5


@pytest.mark.parametrize("extensions", [7, [[1]], [["a", 2]], [[1, 2, 3]], "ab"])
def test_damaged_extensions_are_a_sentence(copy: Callable[[str], Path], extensions: Any) -> None:
    folder = copy("stopped")
    last = read_checkpoint(folder)
    write_checkpoint(folder / "last.pt", _with_counters(last, {**last.training["counters"], "extensions": extensions}))
    with pytest.raises(CheckpointError, match="does not fit"):
        extend(folder, None)


def test_the_tables_take_no_extended_run_for_a_straight_one(copy: Callable[[str], Path]) -> None:
    folder = copy("finished")
    extend(folder)
    state = inspect_run(folder)
    assert (state.extended, state.finished) == (True, True)
    config, told = config_in(folder), []
    assert config is not None
    store = RunStore(folder.parent)
    assert folder in store.index()[run_hash(config)]
    assert folder not in [found.folder for found in store.usable(run_hash(config), on_notice=told.append)]
    assert any("was extended on its way" in line for line in told)


def test_the_configuration_of_an_extended_run_is_a_preset(copy: Callable[[str], Path]) -> None:
    folder = copy("finished")
    extend(folder)
    assert resolve({"preset": str(folder / "config.toml")}).config.epochs == EPOCHS


def test_curves_show_where_a_run_was_extended(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "write_picture", lambda figure, path: figures.append(figure))
    monkeypatch.setattr(plots, "plot_curves", DRAW_CURVES)
    folder = copy("stopped")
    extend(folder)
    (figure,) = figures
    panels = {panel.get_title(loc="left"): panel for panel in figure.axes}
    for title in ("Loss", "Accuracy"):
        assert [5 / 3, 5 / 3] in [list(line.get_xdata()) for line in panels[title].lines]
    legend = panels["Loss"].get_legend()
    assert "here the number of epochs was set to 5" in [text.get_text() for text in legend.get_texts()]


def test_lines_that_are_written_are_read_again(copy: Callable[[str], Path]) -> None:
    folder = copy("finished")
    recorder = Recorder()
    extend(folder)
    extend(folder, None, reporter=recorder)
    assert not any("damaged or foreign" in line or "lacks" in line for line in recorder.lines)
    kinds = [json.loads(line)["kind"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("extended") == 1
    assert kinds.index("extended") == 9 + 3
