"""Data that were moved: a resumed run and an evaluation find them at their new place, and know them again."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.evaluation_flags import resolve_evaluation
from svdctl.cli.training_flags import resolve
from svdctl.config.data_config import DataConfig
from svdctl.data.cifar import Cifar10
from svdctl.data.data_source import relocated
from svdctl.data.folder import Folder
from svdctl.data.npz import Npz
from svdctl.errors import CheckpointError, DataError, UsageError
from svdctl.evaluate.evaluation_data import data_of
from svdctl.evaluate.runner import run as evaluate
from svdctl.train import start as recipe
from svdctl.train.run_hash import config_in, differing
from tests.evaluate.small import Recorder as EvaluationRecorder
from tests.train.cifar_files import write_cifar
from tests.train.test_resume import Moments, assert_same, draw_nothing, make
from tests.train.test_runs import Recorder

SIDE = 16


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


@pytest.fixture(autouse=True)
def current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of a checkpoint that is given as a file goes to the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def moved(tmp_path: Path) -> tuple[Path, Path, recipe.TrainResult]:
    """A run that was stopped, the new place of its data, and the undisturbed run."""
    config = make(tmp_path, "train")
    whole = recipe.run(config, base="test", reporter=Recorder())
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=5)).folder
    (tmp_path / "new").mkdir()
    return part, Path(shutil.move(tmp_path / "train.npz", tmp_path / "new" / "data.npz")), whole


def go_on(folder: Path, place: Path | None = None, kind: str = "npz", **named: Any) -> recipe.TrainResult:
    changes = None if place is None else {"data": {"kind": kind, "path": str(place)}}
    return recipe.resume(folder, reporter=named.pop("reporter", Recorder()), changes=changes, **named)


def write_pictures(root: Path) -> Path:
    """Two classes of 16 pixels, 16 to train on, 8 to test on."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 4)):
        for name, shade in (("dark", 20), ("light", 200)):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = shade + generator.integers(0, 40, (SIDE, SIDE, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{number}.png")
    return root


def on_pictures(root: Path, out: Path) -> Any:
    return resolve(
        {"dataset": f"folder:{root}", "epochs": 2, "batch_size": 8, "out_dir": str(out), "select": "validation",
         "set": [f"data.size={SIDE}", "model.width=1", "layer.rank=4", "evaluation.validation_share=0.25"]}
    ).config  # fmt: skip


def test_a_resumed_run_ends_as_the_undisturbed_one_and_keeps_the_new_place(
    moved: tuple[Path, Path, recipe.TrainResult],
) -> None:
    part, place, whole = moved
    before = config_in(part)
    with pytest.raises(DataError, match=r"there is nothing at .*train.npz.*name their new place with `data.path`"):
        go_on(part)
    recorder = Recorder()
    result = go_on(part, place, reporter=recorder)
    assert_same(result, whole, "moved")
    assert before is not None
    assert read_checkpoint(part).config.data == Npz(path=place)
    assert config_in(part) == before.model_copy(update={"data": Npz(path=place)})
    assert not any("not those" in line or "other" in line for line in recorder.lines)
    # No flag is needed again, by a run that has ended either.
    assert go_on(part).metrics["test_acc"] == whole.metrics["test_acc"]


def test_a_run_that_has_ended_keeps_the_new_place_too(moved: tuple[Path, Path, recipe.TrainResult]) -> None:
    _, place, whole = moved
    go_on(whole.folder, place)
    assert read_checkpoint(whole.folder).config.data == Npz(path=place)
    assert evaluated(whole.folder).failures == ()


@pytest.mark.parametrize("change", ["test", "train"])
def test_other_data_at_the_new_place_are_refused_unless_they_are_wanted(
    moved: tuple[Path, Path, recipe.TrainResult], change: str
) -> None:
    part, place, _ = moved
    arrays = dict(np.load(place))
    np.savez(place, **{**arrays, f"y_{change}": np.roll(arrays[f"y_{change}"], 1)})
    before = {file.name: file.read_bytes() for file in part.iterdir()}
    which = "test" if change == "test" else "training"
    with pytest.raises(CheckpointError, match=f"the data are not those of .* in the {which} part"):
        go_on(part, place)
    assert {file.name: file.read_bytes() for file in part.iterdir()} == before
    assert go_on(part, place, allow_changed_data=True).completed
    last = read_checkpoint(part)
    assert (last.config.data, last.training["counters"]["other_data_until"]) == (Npz(path=place), 5)


@pytest.mark.parametrize(
    "when",
    [
        "before config.toml",
        "after last.pt",
        *(pytest.param(when, marks=pytest.mark.slow) for when in ("before last.pt", "after config.toml")),
    ],
)
def test_a_kill_on_the_way(moved: tuple[Path, Path, recipe.TrainResult], tmp_path: Path, when: str) -> None:
    part, place, whole = moved
    moments = Moments(tmp_path / "moments", lambda name: name in [f"{n} {when}" for n in range(4)])
    with moments.copied():
        go_on(part, place)
    (left,) = [folder for folder in moments.folders.values() if folder.exists()]
    again = Path(shutil.copytree(left, tmp_path / "again"))
    assert_same(go_on(again, place), whole, when)
    if when != "before last.pt":
        assert_same(go_on(left), whole, when)
        assert config_in(left) == config_in(part)


def test_epochs_and_place_change_together(moved: tuple[Path, Path, recipe.TrainResult]) -> None:
    part, place, _ = moved
    changes = {"epochs": 4, "data": {"kind": "npz", "path": str(place)}}
    assert recipe.resume(part, reporter=Recorder(), changes=changes).completed
    found = config_in(part)
    assert found is not None
    assert (found.epochs, found.data) == (4, Npz(path=place))


def test_pictures_that_were_moved(tmp_path: Path) -> None:
    config = on_pictures(write_pictures(tmp_path / "old"), tmp_path / "runs")
    whole = recipe.run(config, base="test", reporter=Recorder())
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=1)).folder
    place = Path(shutil.move(tmp_path / "old", tmp_path / "new"))
    assert_same(go_on(part, place, "folder"), whole, "pictures")
    data = read_checkpoint(part).config.data
    assert data == config.data.model_copy(update={"path": place})
    # What the flag does not say is as it was in the training: 16 pixels, not 32.
    result = evaluated(whole.folder, dataset=f"folder:{place}")
    assert not result.failures
    record = result.evaluations[0].records["ece"]
    assert not record.marks
    assert "training images that the run kept for validation" in record.results["temperature"]["fitted_on"]


@pytest.mark.parametrize(
    ("data", "given", "words"),
    [
        (Npz(path=Path("a")), {"kind": "folder", "path": "b"}, "`data.kind = folder`: the data are npz"),
        (Npz(path=Path("a")), {"root": Path("b")}, "the data are npz, name their new place with `data.path`"),
        (Cifar10(), {"kind": "cifar100"}, "`data.kind = cifar100`: the data are cifar10"),
    ],
)
def test_only_the_place_can_change(data: DataConfig, given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        relocated(data, given)


def test_settings_of_moved_data_stay() -> None:
    before = Folder(path=Path("a"), size=64, resize=True)
    assert relocated(before, {"kind": "folder", "path": "b"}) == Folder(path=Path("b"), size=64, resize=True)
    assert relocated(Cifar10(), {"root": Path("b")}) == Cifar10(root=Path("b"))
    assert relocated(Cifar10(root=Path("a")), {"kind": "cifar10"}) == Cifar10(root=Path("a"))


def test_a_place_makes_no_other_run_but_a_setting_does(tmp_path: Path) -> None:
    config = on_pictures(tmp_path / "a", tmp_path)
    other = config.model_copy(update={"data": config.data.model_copy(update={"path": tmp_path / "b"})})
    assert differing(config, other) == []
    other = config.model_copy(update={"data": config.data.model_copy(update={"resize": True})})
    assert differing(config, other) == ["data"]


# Evaluation.


def evaluated(folder: Path, **flags: Any) -> Any:
    flags = {"metrics": ["accuracy", "ece"], **flags}
    return evaluate(
        resolve_evaluation({"checkpoints": [folder / "last.pt"], **flags}).config, reporter=EvaluationRecorder()
    )


def test_an_evaluation_of_a_run_whose_data_were_moved(moved: tuple[Path, Path, recipe.TrainResult]) -> None:
    _, place, whole = moved
    assert evaluated(whole.folder).failures
    result = evaluated(whole.folder, dataset=f"npz:{place}")
    assert not result.failures
    assert not result.evaluations[0].records["accuracy"].marks
    accuracy = result.evaluations[0].records["accuracy"].results["accuracy"]
    assert accuracy == pytest.approx(whole.metrics["test_acc"])


def test_other_test_images_at_the_new_place_are_marked(moved: tuple[Path, Path, recipe.TrainResult]) -> None:
    _, place, whole = moved
    arrays = dict(np.load(place))
    np.savez(place, **{**arrays, "x_test": arrays["x_test"] // 2})
    result = evaluated(whole.folder, dataset=f"npz:{place}")
    assert not result.failures
    assert "other data than in training" in result.evaluations[0].records["accuracy"].marks


def test_what_a_call_says_of_data_of_the_trainings_kind_counts() -> None:
    trained = Folder(path=Path("a"), size=64, resize=True)
    moved = resolve_evaluation({"dataset": "folder:b", "checkpoints": ["x"]}).config
    assert data_of(moved, trained) == Folder(path=Path("b"), size=64, resize=True)
    told = resolve_evaluation({"dataset": "folder:b", "set": ["data.size=32"], "checkpoints": ["x"]}).config
    assert data_of(told, trained) == Folder(path=Path("b"), size=32, resize=True)
    assert data_of(moved, Npz(path=Path("a"))) == Folder(path=Path("b"))
    # A file alone names no place where something may be downloaded to.
    named = resolve_evaluation({"dataset": "cifar10", "checkpoints": ["x"]}).config
    assert data_of(named, Cifar10(root=Path("strange"))) == Cifar10()


def test_a_root_is_for_cifar(moved: tuple[Path, Path, recipe.TrainResult]) -> None:
    _, place, whole = moved
    (failure,) = evaluated(whole.folder, dataset_root=str(place.parent)).failures
    assert "`dataset_root` is where CIFAR lies; the data are npz:" in str(failure.error)


def test_another_root_of_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "old", 10, monkeypatch)
    flags = ["model.width=1", "model.depth=10", "layer.rank=4"]
    config = resolve(
        {"dataset": "cifar10", "dataset_root": str(tmp_path / "old"), "epochs": 2, "batch_size": 8, "select": "last",
         "out_dir": str(tmp_path / "runs"), "set": flags}
    ).config  # fmt: skip
    whole = recipe.run(config, base="test", reporter=Recorder()).folder
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=1)).folder
    place = Path(shutil.move(tmp_path / "old", tmp_path / "new"))
    recipe.resume(part, reporter=Recorder(), changes={"data": {"kind": "cifar10", "root": place}})
    assert read_checkpoint(part).config.data == Cifar10(root=place)
    result = evaluated(whole, dataset_root=str(place))
    assert not result.failures
    assert not result.evaluations[0].records["accuracy"].marks
    shutil.rmtree(place)
    write_other: Callable[..., None] = write_cifar
    monkeypatch.setattr(np.random, "default_rng", lambda seed, made=np.random.default_rng: made(seed + 1))
    write_other(place, 10, monkeypatch)
    (failure,) = evaluated(whole, dataset_root=str(place), force=True).failures
    assert "are not those of" in str(failure.error)
