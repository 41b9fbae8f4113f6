"""What a resumed training makes of data that have changed, of a lost `best.pt`, of a damaged log, of older files."""

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.app import main
from svdctl.config.train_config import TrainConfig
from svdctl.errors import CheckpointError
from svdctl.train import start as recipe
from svdctl.train.metrics_log import read_log
from tests.train.test_resume import assert_same, draw_nothing, without_times
from tests.train.test_resume import make as make_run
from tests.train.test_runs import Recorder

FIELDS = (
    "data", "epoch", "epochs", "epoch_finished", "best_weights", "unknown_data_until", "departures", "steps_per_epoch",
    "best_val_plain_acc", "other_data", "step_lines", "step_digests", "precision",
)  # fmt: skip


def slow(case: Any) -> Any:
    return pytest.param(case, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


def make(folder: Path, *sets: str) -> TrainConfig:
    return make_run(folder, "train", "control.kind=none", *sets)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resumed")


@pytest.fixture(scope="module")
def whole(place: Path) -> recipe.TrainResult:
    """An undisturbed run of 9 steps; the first epoch of three is the best one."""
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        return recipe.run(make(place), base="test", reporter=Recorder())


@pytest.fixture(scope="module")
def stopped(place: Path, whole: recipe.TrainResult) -> Path:
    """The same run, stopped in the fifth step, the second of its epoch."""
    config = make(place)
    return recipe.run(config, base="test", reporter=Recorder(interrupt_after=5)).folder


@pytest.fixture
def part(stopped: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run."""
    return Path(shutil.copytree(stopped, tmp_path / "part"))


def resume(folder: Path, **named: Any) -> tuple[recipe.TrainResult, list[str]]:
    """The result, and what was said before the training went on."""
    recorder = Recorder()
    before: list[str] = []
    recorder.begin = lambda work: before.extend(recorder.lines)  # type: ignore[method-assign]
    return recipe.resume(folder, reporter=recorder, **named), before


def made_old(file: Path) -> None:
    """Take from a checkpoint what those of the first versions lack."""
    contents = torch.load(file, weights_only=True)
    training = {k: v for k, v in contents["training"].items() if k not in FIELDS}
    if training:
        training["counters"] = {k: v for k, v in training["counters"].items() if k not in FIELDS}
    contents = {k: v for k, v in contents.items() if k not in FIELDS}
    metrics = {k: v for k, v in contents["metrics"].items() if k not in FIELDS}
    torch.save({**contents, "training": training, "metrics": metrics}, file)


# Data.


def _one_pixel(arrays: dict[str, Any]) -> dict[str, Any]:
    arrays["x_train"][3, 4, 5, 1] ^= 1
    return arrays


CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "one pixel": _one_pixel,
    "shuffled labels": lambda a: {"y_train": np.roll(a["y_train"], 1)},
    "half": lambda a: {name: a[name][:12] for name in ("x_train", "y_train")},
    "twice": lambda a: {name: np.concatenate([a[name]] * 2) for name in ("x_train", "y_train")},
    "another order": lambda a: {name: a[name][::-1].copy() for name in ("x_train", "y_train")},
    "a test label": lambda a: {"y_test": np.roll(a["y_test"], 1)},
    "test pixels": lambda a: {"x_test": a["x_test"] // 2},
}  # fmt: skip


@pytest.fixture
def other_data(place: Path) -> Any:
    """Change the data of the runs, and put them back."""
    file, kept = place / "train.npz", (place / "train.npz").read_bytes()

    def change(name: str) -> None:
        arrays = dict(np.load(file))
        np.savez(file, **{**arrays, **CHANGES[name](arrays)})

    yield change
    file.write_bytes(kept)


@pytest.mark.parametrize("change", CHANGES)
def test_data_that_have_changed_are_refused(part: Path, other_data: Callable[[str], None], change: str) -> None:
    other_data(change)
    before = (part / "last.pt").read_bytes()
    which = "test" if "test" in change else "training"
    words = f".* in the {which} part; .*`allow_changed_data`"
    if change in ("half", "twice"):  # which the flag would not help
        words = ".* steps an epoch, there 3"
    with pytest.raises(CheckpointError, match="the data are not those of " + words):
        recipe.resume(part, reporter=Recorder())
    assert (part / "last.pt").read_bytes() == before


@pytest.mark.parametrize("change", ["shuffled labels", slow("one pixel"), slow("another order")])
def test_changed_data_are_gone_on_with_on_request(part: Path, other_data: Callable[[str], None], change: str) -> None:
    then = read_checkpoint(part).data
    other_data(change)
    result, said = resume(part, allow_changed_data=True)
    assert result.completed
    assert [line for line in said if "in the training part; the run goes on with these" in line]
    now = read_checkpoint(part).data
    assert then is not None
    assert now is not None
    assert (now["test"], now["training"] == then["training"]) == (then["test"], False)
    assert (
        "trained on other data up to step 5, which have changed since (images, labels or names of classes in the "
        "training part)"
    ) in result.summary
    # They are the run's data from here on.
    assert not [line for line in resume(part)[1] if "not those" in line]


@pytest.mark.parametrize(("change", "restarts"), [("shuffled labels", True), ("test pixels", False)])
def test_a_best_accuracy_on_other_data_blocks_no_network(
    part: Path, other_data: Callable[[str], None], change: str, restarts: bool
) -> None:
    """The validation part is drawn from the training part; where that is as it was, accuracies can be compared."""
    contents = torch.load(part / "last.pt", weights_only=True)
    contents["training"]["counters"].update(best_accuracy=1.0, best_plain_accuracy=1.0)
    torch.save(contents, part / "last.pt")
    other_data(change)
    result, said = resume(part, allow_changed_data=True)
    told = "the network that was picked in step 3 was judged by the others and does not count"
    assert [line.endswith(told) for line in said if "goes on with these" in line] == [restarts]
    counters = read_checkpoint(part).training["counters"]
    best = read_checkpoint(part / "best.pt").metrics
    assert best["step"] == counters["best_step"]
    epochs = {line["step"]: line["val_acc"] for line in read_log(part / "metrics.jsonl") if line["kind"] == "epoch"}
    if restarts:
        assert (
            counters["best_accuracy"] == max(epochs[6], epochs[9]) == epochs[int(best["step"])] == best["best_val_acc"]
        )
    else:
        assert (counters["best_step"], counters["best_accuracy"]) == (3, 1.0)
    assert any(f"of best.pt (step {best['step']:.0f})" in line for line in result.summary)


def test_a_finished_run_has_no_best_network_on_other_data(
    whole: recipe.TrainResult, other_data: Callable[[str], None], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole.folder, tmp_path / "run"))
    other_data("shuffled labels")
    result, _ = resume(folder, allow_changed_data=True)
    assert "best_test_acc" not in result.metrics
    assert any("no epoch was evaluated since the data changed" in line for line in result.summary)


@pytest.mark.parametrize("change", ["half", "twice"])
@pytest.mark.parametrize("old", [False, True])
def test_another_number_of_steps_an_epoch_is_refused_even_on_request(
    part: Path, other_data: Callable[[str], None], change: str, old: bool
) -> None:
    if old:
        made_old(part / "last.pt")
    other_data(change)
    before = {file.name: file.read_bytes() for file in part.iterdir()}
    number = {"half": 1, "twice": 6}[change]
    with pytest.raises(
        CheckpointError, match=f"{number} steps an epoch, there 3; .* restore the data of the run, or st"
    ):
        recipe.resume(part, reporter=Recorder(), allow_changed_data=True)
    assert {file.name: file.read_bytes() for file in part.iterdir()} == before


def test_unchanged_data_need_no_word_and_a_move_is_no_change(
    part: Path, place: Path, whole: recipe.TrainResult
) -> None:
    file, arrays = place / "train.npz", dict(np.load(place / "train.npz"))
    np.savez_compressed(file, **dict(reversed(arrays.items())))
    result, said = resume(part)
    assert not [line for line in said if "data are" in line or "known" in line]
    assert_same(result, whole, "another file of the same data")


def test_the_flag_is_about_resumed_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("train", "train-lipconv"):
        monkeypatch.setattr(sys, "argv", ["svdctl", command, "--allow-changed-data"])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        assert "--allow-changed-data is about a run that is resumed; add --resume RUN" in capsys.readouterr().err


def test_the_flag_reaches_the_run(
    part: Path,
    other_data: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other_data("shuffled labels")
    codes = []
    for more in ([], ["--allow-changed-data"]):
        monkeypatch.setattr(sys, "argv", ["svdctl", "train", "--resume", str(part), *more])
        with pytest.raises(SystemExit) as caught:
            main()
        codes.append(caught.value.code)
        shown = capsys.readouterr().err
        assert shown.count("the data are not those of") == 1
    assert codes == [2, 0]
    assert "goes on with these" in shown


# Files of older versions.


def test_an_older_checkpoint_goes_on_to_the_same_weights_and_says_once_what_is_not_known(
    part: Path, whole: recipe.TrainResult
) -> None:
    for file in part.glob("*.pt"):
        made_old(file)
    recorder = Recorder(interrupt_after=7)
    assert not recipe.resume(part, reporter=recorder).completed
    assert sum("not known whether" in line for line in recorder.lines) == 1
    result, said = resume(part)
    assert not [line for line in said if "not known" in line]
    # Where its data have a fingerprint from then on, what it was trained on before is still not known.
    assert any("not known whether it was trained on the same data up to step 5" in line for line in result.summary)
    last, wanted = read_checkpoint(part).model, read_checkpoint(whole.folder).model
    assert all(torch.equal(value, wanted[name]) for name, value in last.items())
    epochs = [line for line in read_log(part / "metrics.jsonl") if line["kind"] == "epoch"]
    right = [line for line in read_log(whole.folder / "metrics.jsonl") if line["kind"] == "epoch"]
    # Of the epoch that it stood in only a part is known: no figure is made of it.
    assert [epochs[1][name] for name in ("loss", "acc", "train_time", "clipping_time")] == [None] * 4
    assert epochs[1]["val_loss"] == right[1]["val_loss"]
    assert [without_times(epochs[n]) for n in (0, 2)] == [without_times(right[n]) for n in (0, 2)]
    assert any("of 1 of 3 epochs only a part is known" in line for line in result.summary)


def test_an_older_checkpoint_of_an_epoch_that_is_not_in_the_log_has_it_finished(
    stopped: Path, place: Path, tmp_path: Path, whole: recipe.TrainResult
) -> None:
    config = make(tmp_path, f"data.path={place / 'train.npz'}")
    folder = recipe.run(config, base="test", reporter=Recorder(interrupt_after=6)).folder
    made_old(folder / "last.pt")
    result, _ = resume(folder)
    epochs = [line for line in read_log(folder / "metrics.jsonl") if line["kind"] == "epoch"]
    right = [line for line in read_log(whole.folder / "metrics.jsonl") if line["kind"] == "epoch"]
    assert [line["val_loss"] for line in epochs] == [line["val_loss"] for line in right]
    assert result.metrics["best_test_acc"] == whole.metrics["best_test_acc"]


# best.pt.


def _flip(file: Path) -> None:
    contents = bytearray(file.read_bytes())
    # More than the up to 64 bytes of padding before a tensor, which nothing reads.
    middle = len(contents) // 2
    contents[middle : middle + 100] = bytes(byte ^ 8 for byte in contents[middle : middle + 100])
    file.write_bytes(bytes(contents))


def _of_another_run(file: Path) -> None:
    contents = torch.load(file, weights_only=True)
    torch.save({**contents, "config": contents["config"].replace('"seed":1', '"seed":2')}, file)


def _earlier(file: Path) -> None:
    contents = torch.load(file, weights_only=True)
    torch.save({**contents, "metrics": {**contents["metrics"], "step": 1.0, "best_val_acc": -0.5}}, file)


LOSSES: dict[str, tuple[Callable[[Path], None], str]] = {
    "lost": (Path.unlink, "is not there"),
    "a flipped bit": (_flip, "is damaged"),
    "cut short": (lambda file: file.write_bytes(file.read_bytes()[:999]), "best.pt"),
    "empty": (lambda file: file.write_bytes(b""), "best.pt"),
    "of another run": (_of_another_run, "is of another run"),
    "of an earlier step": (_earlier, "is of step 1, and the network that was picked is of 3"),
}


@pytest.mark.parametrize("loss", ["lost", "a flipped bit", *map(slow, list(LOSSES)[2:])])
def test_a_lost_best_network_is_told_before_training_and_the_last_one_is_reported(
    part: Path, whole: recipe.TrainResult, loss: str
) -> None:
    damage, words = LOSSES[loss]
    damage(part / "best.pt")
    result, said = resume(part)
    assert result.completed
    (told,) = [line for line in said if "the network that was picked is lost" in line]
    assert words in told
    assert "reported instead" in told
    assert any("the last epoch counts" in line and words in line for line in result.summary)
    assert "best_test_acc" not in result.metrics
    assert part / "best.pt" not in result.files
    assert result.metrics["test_acc"] == whole.metrics["test_acc"]
    # A finished run is no dead end either.
    assert resume(part)[0].metrics["test_acc"] == whole.metrics["test_acc"]


@pytest.mark.parametrize("name", ["last.pt", "epoch-2.pt"])
def test_a_checkpoint_of_another_run_is_not_gone_on_with(part: Path, whole: recipe.TrainResult, name: str) -> None:
    shutil.copy(whole.folder / "epoch-2.pt", part / name)
    _of_another_run(part / name)
    before = {file: file.read_bytes() for file in part.iterdir()}
    with pytest.raises(CheckpointError, match=rf"{name} is of another run than .*config.toml \(other seed\)"):
        recipe.resume(part / name, reporter=Recorder())
    assert {file: file.read_bytes() for file in part.iterdir()} == before


def test_an_edited_configuration_is_refused_and_what_has_no_effect_is_not(part: Path) -> None:
    config = (part / "config.toml").read_text()
    (part / "config.toml").write_text(config.replace("epochs = 3", "epochs = 4"))
    with pytest.raises(CheckpointError, match=r"is of another run than .*config.toml \(other epochs\)"):
        recipe.resume(part, reporter=Recorder())
    (part / "config.toml").write_text(config.replace('name = "quickstart"', 'name = "renamed"'))
    assert resume(part)[0].completed


def test_a_lost_configuration_is_written_again(part: Path, whole: recipe.TrainResult) -> None:
    config = (part / "config.toml").read_bytes()
    (part / "config.toml").unlink()
    result, _ = resume(part)
    assert_same(result, whole, "no config.toml")
    assert (part / "config.toml").read_bytes() == config


@pytest.mark.parametrize("name", ["best.pt", "epoch-2.pt", "metrics.jsonl"])
def test_a_folder_in_the_place_of_a_file_is_told_before_training(part: Path, name: str) -> None:
    (part / name).unlink(missing_ok=True)
    (part / name).mkdir()
    recorder = Recorder()
    with pytest.raises(CheckpointError, match=f"{name} is a folder, in the place of a file of the run"):
        recipe.resume(part, reporter=recorder)
    assert not recorder.lines


def test_a_damaged_last_checkpoint_names_the_newest_sound_epoch(whole: recipe.TrainResult, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole.folder, tmp_path / "run"))
    for name in ("last.pt", "epoch-3.pt"):
        _flip(folder / name)
    with pytest.raises(CheckpointError, match=r"last.pt is damaged.*; go on from .*epoch-2.pt, the newest sound one"):
        recipe.resume(folder, reporter=Recorder())
    assert resume(folder / "epoch-2.pt")[0].completed


def test_a_later_epoch_that_is_better_takes_the_place_of_a_lost_one(part: Path) -> None:
    (part / "best.pt").unlink()
    contents = torch.load(part / "last.pt", weights_only=True)
    contents["training"]["counters"].update(best_accuracy=-0.5, best_plain_accuracy=-0.5)
    torch.save(contents, part / "last.pt")
    result, _ = resume(part)
    assert read_checkpoint(part / "best.pt").metrics["step"] > 5
    assert "best_test_acc" in result.metrics


def changed(file: Path, **fields: Any) -> None:
    """Write a checkpoint anew with other fields, and metrics in place of some."""
    contents = torch.load(file, weights_only=True)
    metrics = {**contents["metrics"], **fields.pop("metrics", {})}
    torch.save({**contents, **fields, "metrics": metrics}, file)


LATER = {"step": 6.0, "best_val_acc": 1.5, "best_val_plain_acc": 1.5}
"""Metrics of a better network than any, of an epoch after the checkpoint at step 5."""


def _other_weights(file: Path, whole: Path) -> None:
    model = torch.load(whole / "last.pt", weights_only=True)["model"]
    changed(file, model=model)


IMPOSTORS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "last.pt": (lambda file, whole: shutil.copy(file.with_name("last.pt"), file), "is of step 5"),
    "a later epoch": (lambda file, whole: shutil.copy(whole / "epoch-2.pt", file), "is of step 6"),
    "the end": (lambda file, whole: shutil.copy(whole / "last.pt", file), "is of step 9"),
    "other weights": (_other_weights, "holds other weights than the network that was picked in step 3"),
    "later, on other data": (lambda file, whole: changed(file, metrics=LATER, data={"training": "0"}), "is of step 6"),
    "later, data not told": (lambda file, whole: changed(file, metrics=LATER, data=None), "is of step 6"),
    "later, departed": (lambda file, whole: changed(file, metrics={**LATER, "departures": 1.0}), "is of step 6"),
    "later, no better": (lambda file, whole: changed(file, metrics={"step": 6.0}), "is of step 6"),
}


@pytest.mark.parametrize("impostor", IMPOSTORS)
def test_another_network_in_the_place_of_the_picked_one_is_not_reported(
    part: Path, whole: recipe.TrainResult, impostor: str
) -> None:
    put, words = IMPOSTORS[impostor]
    put(part / "best.pt", whole.folder)
    result, said = resume(part)
    (told,) = [line for line in said if "the network that was picked is lost" in line]
    assert words in told
    assert "best_test_acc" not in result.metrics
    assert any("the last epoch counts" in line for line in result.summary)


@pytest.mark.parametrize("name", ["last.pt", "epoch-2.pt", "epoch-3.pt"])
def test_a_finished_run_does_not_take_a_later_epoch_for_the_picked_network(
    whole: recipe.TrainResult, name: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole.folder, tmp_path / "run"))
    shutil.copy(folder / name, folder / "best.pt")
    result, said = resume(folder)
    assert [line for line in said if "the network that was picked is lost" in line]
    assert "best_test_acc" not in result.metrics
    # The kept epoch that was picked is as good as best.pt.
    shutil.copy(folder / "epoch-1.pt", folder / "best.pt")
    assert resume(folder)[0].metrics["best_test_acc"] == whole.metrics["best_test_acc"]


def test_an_older_file_of_an_earlier_step_blocks_no_better_network(part: Path) -> None:
    """Older files do not tell the plain accuracy; they are compared by their steps."""
    contents = torch.load(part / "last.pt", weights_only=True)
    contents["training"]["counters"].update(best_accuracy=-0.5, best_plain_accuracy=-0.5)
    torch.save(contents, part / "last.pt")
    changed(part / "best.pt", metrics={"best_val_acc": 1.0})
    for file in part.glob("*.pt"):
        made_old(file)
    result, said = resume(part)
    assert not [line for line in said if "is lost" in line]
    best, last = read_checkpoint(part / "best.pt"), read_checkpoint(part)
    assert best.metrics["step"] == last.training["counters"]["best_step"] > 5
    assert "best_test_acc" in result.metrics


@pytest.mark.parametrize("start", ["epoch-1.pt", "epoch-2.pt"])
def test_an_earlier_checkpoint_gone_on_with_leaves_the_old_trajectory(
    whole: recipe.TrainResult, other_data: Callable[[str], None], tmp_path: Path, start: str
) -> None:
    folder = Path(shutil.copytree(whole.folder, tmp_path / "run"))
    changed(folder / "best.pt", metrics={**LATER, "step": 7.0})
    other_data("shuffled labels")
    result, said = resume(folder / start, allow_changed_data=True)
    assert not [line for line in said if "is lost" in line]
    assert [line for line in said if "does not count" in line]
    assert not [line for line in result.summary if "best.pt (step 7)" in line]
    assert read_checkpoint(folder).training["counters"]["departures"] == 1
    assert ("best_test_acc" in result.metrics) == (
        read_checkpoint(folder / "best.pt").metrics["step"] == read_checkpoint(folder).training["counters"]["best_step"]
    )


def test_an_earlier_checkpoint_without_changes_ends_as_the_run_did(whole: recipe.TrainResult, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole.folder, tmp_path / "run"))
    result, said = resume(folder / "epoch-1.pt")
    assert not [line for line in said if "is lost" in line]
    assert without_times(result.metrics) == without_times(whole.metrics)


def test_a_better_network_of_a_later_step_is_not_overwritten_by_a_worse_one(part: Path) -> None:
    """Written after the checkpoint that the run goes on from; what comes now may differ, as on a GPU."""
    contents = torch.load(part / "best.pt", weights_only=True)
    metrics = {**contents["metrics"], "step": 6.0, "best_val_acc": 1.5, "best_val_plain_acc": 1.5}
    torch.save({**contents, "metrics": metrics}, part / "best.pt")
    before = (part / "best.pt").read_bytes()
    result, _ = resume(part)
    assert (part / "best.pt").read_bytes() == before
    assert any("of best.pt (step 6)" in line for line in result.summary)


# The log.

FOREIGN = [
    "", "   ", "{", "null", "7", "[]", '"text"', "{}", "\x00\x00", "é\u2028",
    '{"kind": "epoch", "step": 3}',
    '{"kind": "epoch", "step": 3, "epoch": 1, "loss": 1}',
    '{"kind": "step", "step": 2.5, "epoch": 1, "loss": 1, "orthogonal_loss": 0, "acc": 1, "lr": 1}',
    '{"kind": "step", "step": true, "epoch": 1, "loss": 1, "orthogonal_loss": 0, "acc": 1, "lr": 1}',
    '{"kind": "step", "step": 2, "epoch": 1, "loss": "1", "orthogonal_loss": 0, "acc": 1, "lr": 1}',
    '{"kind": "step", "step": 2, "epoch": 1, "loss": NaN, "orthogonal_loss": 0, "acc": 1, "lr": 1}',
    '{"kind": "step", "step": 2, "epoch": 1, "loss": 1e999, "orthogonal_loss": 0, "acc": 1, "lr": 1}',
    '{"kind": "step", "step": 2, "epoch": 1, "loss": [1], "orthogonal_loss": 0, "acc": 1, "lr": 1}',
    '{"kind": ["step"], "step": 2, "epoch": 1, "loss": 1, "orthogonal_loss": 0, "acc": 1, "lr": 1}',
    '{"kind": "other", "step": 2, "epoch": 1, "loss": 1, "orthogonal_loss": 0, "acc": 1, "lr": 1}',
    '{"kind": "step", "step": 2, "epoch": 1, "loss": ' + "9" * 4000 + ', "orthogonal_loss": 0, "acc": 1, "lr": 1}',
    '{"kind": "step", "step": ' + "9" * 5000 + "}",
    "[" * 100_000,
]  # fmt: skip


def test_foreign_lines_are_left_out_and_counted(part: Path, whole: recipe.TrainResult) -> None:
    log = part / "metrics.jsonl"
    lines = log.read_text().splitlines()
    random.Random(0).shuffle(mixed := [*lines, *FOREIGN])
    log.write_text("\n".join(mixed) + "\n")
    result, said = resume(part)
    count = sum(bool(line.strip()) for line in FOREIGN)
    assert f"{count} lines of {log} are damaged or foreign; left out" in said
    assert_same(result, whole, "foreign lines")


@pytest.mark.parametrize("trial", [0, 1, *map(slow, range(2, 30))])
def test_a_damaged_log_changes_no_line_about_an_epoch(part: Path, whole: recipe.TrainResult, trial: int) -> None:
    """Half of it, none of it, bytes changed, lines in another order: what it tells of epochs is in the checkpoint."""
    log, drawn = part / "metrics.jsonl", random.Random(trial)
    contents = bytearray(log.read_bytes())
    if trial == 0:
        log.write_bytes(contents[: len(contents) // 2])
    elif trial == 1:
        log.unlink()
    else:
        for _ in range(60):
            contents[drawn.randrange(len(contents))] = drawn.randrange(256)
        log.write_bytes(contents)
    result, _ = resume(part)
    epochs = [line for line in read_log(log) if line["kind"] == "epoch"]
    right = [line for line in read_log(whole.folder / "metrics.jsonl") if line["kind"] == "epoch"]
    assert [without_times(line) for line in epochs] == [without_times(line) for line in right]
    assert without_times(result.metrics) == without_times(whole.metrics)


def test_lines_about_steps_that_are_lost_are_counted(part: Path) -> None:
    log = part / "metrics.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join(line for line in lines if json.loads(line)["step"] not in (2, 4)) + "\n")
    _, said = resume(part)
    assert [line for line in said if f"{log} lacks 2 of 5 lines about steps" in line]


@pytest.mark.parametrize("place_of_it", ["first", "last", "twice", "before it", "after it", "in place of it"])
def test_a_foreign_line_about_a_step_is_left_out_wherever_it_stands(
    part: Path, whole: recipe.TrainResult, place_of_it: str
) -> None:
    log = part / "metrics.jsonl"
    lines = log.read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if json.loads(line)["step"] == 2)
    foreign = json.dumps({**json.loads(lines[at]), "loss": 99})
    mixed = {
        "first": [foreign, *lines],
        "last": [*lines, foreign],
        "twice": [foreign, *lines, foreign],
        "before it": [*lines[:at], foreign, *lines[at:]],
        "after it": [*lines[: at + 1], foreign, *lines[at + 1 :]],
        "in place of it": [*lines[:at], foreign, *lines[at + 1 :]],
    }[place_of_it]
    log.write_text("\n".join(mixed) + "\n")
    result, said = resume(part)
    assert f"{mixed.count(foreign)} lines of {log} are damaged or foreign; left out" in said
    assert bool([line for line in said if "lacks 1 of 5 lines" in line]) == (place_of_it == "in place of it")
    if place_of_it != "in place of it":
        assert_same(result, whole, place_of_it)


@pytest.mark.parametrize("kind", ["step", "epoch"])
def test_of_an_older_run_lines_that_contradict_each_other_are_left_out(part: Path, kind: str) -> None:
    """Nothing tells the genuine one."""
    for file in part.glob("*.pt"):
        made_old(file)
    log = part / "metrics.jsonl"
    line = next(line for line in log.read_text().splitlines() if json.loads(line)["kind"] == kind)
    foreign = json.dumps({**json.loads(line), "loss": 99})
    log.write_text(f"{log.read_text()}{foreign}\n{line}\n")
    step = json.loads(line)["step"]
    result, said = resume(part)
    assert f"3 lines of {log} are damaged or foreign; left out" in said
    assert not [found for found in read_log(log) if (found["kind"], found["step"]) == (kind, step)]
    assert any("metrics.jsonl lacks 1 of 3 epochs" in found for found in result.summary) == (kind == "epoch")


def test_the_times_of_an_epoch_go_on_where_it_was_stopped(part: Path) -> None:
    contents = torch.load(part / "last.pt", weights_only=True)
    contents["training"]["epoch"].update(train_time=1000.0, clipping_time=500.0)
    torch.save(contents, part / "last.pt")
    resume(part)
    lines = [line for line in read_log(part / "metrics.jsonl") if line["kind"] == "epoch"]
    assert [line["train_time"] > 1000 for line in lines] == [False, True, False]
    assert [line["clipping_time"] > 500 for line in lines] == [False, True, False]


# Output.


@pytest.mark.parametrize("streams", [("stdout",), ("stdout", "stderr")])
def test_output_that_nobody_reads_stops_no_run(
    part: Path, whole: recipe.TrainResult, streams: tuple[str, ...], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """As in `svdctl train --resume RUN | head -1`, and with `2>&1` before the pipe."""
    for name in streams:
        reading, writing = os.pipe()
        os.close(reading)
        monkeypatch.setattr(sys, name, os.fdopen(writing, "w"))
    monkeypatch.setattr(sys, "argv", ["svdctl", "train", "--resume", str(part)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    last, wanted = read_checkpoint(part).training, read_checkpoint(whole.folder).training
    assert last["counters"] == wanted["counters"]
    if "stderr" not in streams:
        assert capsys.readouterr().err == "note: stdout: broken pipe; svdctl goes on without it\n"
    lines = [json.loads(line) for line in (part / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 9
