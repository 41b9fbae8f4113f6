"""Proofs between steps of a training, `control.prove_every_steps`."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.training_flags import resolve
from svdctl.cli.training_progress import evaluation_line
from svdctl.config.train_config import TrainConfig
from svdctl.control.actions import is_layer_bounded
from svdctl.control.controller import Controller
from svdctl.errors import TrainingError
from svdctl.spectral.bounds import Bracket
from svdctl.train import start as recipe
from svdctl.train.metrics_log import read_log
from svdctl.train.plots import plot_curves
from svdctl.train.run_hash import run_hash
from svdctl.train.run_plan import plan
from svdctl.train.setup import with_proofs
from tests.dense import dense_values
from tests.train.test_resume import crash, make, no_pictures, stop_in_every_step
from tests.train.test_runs import Recorder

__all__ = ["no_pictures"]

LIMIT = 0.5
"""Low enough that each step passes it."""
CONTROL = ("control.max_sigma=0.5", "control.linear_max=0.5", "control.every_steps=1000")
SELDOM = ("evaluation.every_epochs=3", "checkpoint.every_epochs=3", "evaluation.select=last", "checkpoint.keep=false")


def config(folder: Path, every: int, *sets: str, kind: str = "clip") -> TrainConfig:
    """Nine steps in three epochs, without control but for proofs."""
    return make(folder, "train", f"control.kind={kind}", *CONTROL, f"control.prove_every_steps={every}", *sets)


def lines_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_log(folder / "metrics.jsonl") if line["kind"] == kind]


@pytest.mark.parametrize(
    ("every", "sets", "steps"),
    [
        # Steps 3, 6 and 9 end epochs; evaluations and checkpoints seal.
        (2, (), [2, 4, 8]),
        (2, ("checkpoint.every_steps=4",), [2]),
        (3, SELDOM, [3, 6]),
        (1, (*SELDOM, "max_steps=5"), [1, 2, 3, 4]),
        (0, (), []),
    ],
)
def test_layers_are_within_their_maxima_after_each_proof(
    every: int, sets: tuple[str, ...], steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove, above = Controller.prove, []

    def checked(self: Controller) -> dict[str, Bracket]:
        layers = self.controlled()
        above.append(not all(is_layer_bounded(layer, LIMIT) for layer in layers.values()))
        found = prove(self)
        assert list(found) == list(layers)
        assert all(bracket.upper <= LIMIT for bracket in found.values())
        assert all(is_layer_bounded(layer, LIMIT) for layer in layers.values())
        assert (self.smallest_factor < 1) == above[-1]
        return found

    monkeypatch.setattr(Controller, "prove", checked)
    run = recipe.run(config(tmp_path, every, *sets), base="test", reporter=Recorder())
    proofs = lines_of(run.folder, "proof")
    assert [line["step"] for line in proofs] == steps
    assert [line["found"] > 1 for line in proofs] == above == [True] * len(steps)
    names = {row.name for row in run.layers if row.maximum == LIMIT}
    assert len(names) > 6
    for line in proofs:
        assert {f"bound/{name}" for name in names} == {key for key in line if key.startswith("bound/")}
        assert all(line[f"bound/{name}"] <= LIMIT for name in names)
    for line in (line for line in lines_of(run.folder, "epoch") if "val_acc" in line):
        assert {line.get(f"max/{name}") for name in names} == {LIMIT}
        assert all(0 < line[f"sigma/{name}"] <= line[f"bound/{name}"] <= LIMIT for name in names)
    proved = {(step - 1) // 3 for step in steps}
    assert [line.get("proof_time", 0) > 0 for line in lines_of(run.folder, "epoch")] == [
        line["epoch"] - 1 in proved for line in lines_of(run.folder, "epoch")
    ]


def test_a_proof_scales_what_is_above_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
    controller = Controller(model, method="divide", max_sigma=0.7, batchnorm_max=0.1)
    sizes = [(3, 12, 12), (4, 12, 12)]
    tops = [float(dense_values(layer.double(), size).max()) for layer, size in zip(model, sizes, strict=False)]
    model.float()
    with torch.no_grad():
        model[0].weight.mul_(0.65 / tops[0])
        model[1].weight.mul_(1.4 / tops[1])
    before = [value.clone() for value in model.state_dict().values()]
    found = controller.prove()
    after = list(model.state_dict().values())
    assert [bracket.upper for bracket in found.values()] == [0.7, 0.7]
    assert [torch.equal(one, other) for one, other in zip(before, after, strict=True)] == [True, False] + [True] * 5
    assert controller.smallest_factor == pytest.approx(0.5, rel=1e-2)
    assert 0.69 < float(dense_values(model[1].double(), sizes[1]).max()) <= 0.7
    assert controller.proof_seconds > 0


@pytest.mark.parametrize("kind", ["clip", "divide"])
def test_stopped_in_every_step(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config(tmp_path, 2, "epochs=2", "checkpoint.every_steps=3", kind=kind)
    monkeypatch.setattr("tests.train.test_resume.make", lambda *given: chosen)
    stop_in_every_step("train", (), tmp_path)


def test_a_kill_at_each_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config(tmp_path, 3, *SELDOM, "checkpoint.every_steps=2")
    monkeypatch.setattr("tests.train.test_resume.make", lambda *given: chosen)
    names = crash("train", (), tmp_path, lambda name: "line of proof" in name)
    assert sum("line of proof 3" in name for name in names) == 3


def test_auto_is_resolved_at_the_start_and_stored(tmp_path: Path) -> None:
    auto = make(tmp_path, "train", "control.kind=clip", *CONTROL, "max_steps=2")
    assert auto.control.prove_every_steps == "auto"
    assert with_proofs(auto, torch.device("cuda")).control.prove_every_steps == 100
    run = recipe.run(auto, base="test", reporter=Recorder())
    stored = tomllib.loads((run.folder / "config.toml").read_text())
    assert stored["control"]["prove_every_steps"] == 0
    assert read_checkpoint(run.folder).config.control.prove_every_steps == 0
    given = config(tmp_path, 7)
    assert with_proofs(given, torch.device("cuda")) == given
    none = make(tmp_path, "train", "control={kind='none'}")
    assert with_proofs(none, torch.device("cuda")) == none
    assert "proved every 7 steps" in "\n".join(plan(given, "test"))


def test_auto_that_was_not_resolved_means_no_proofs() -> None:
    """A checkpoint of an older version has no such key: its run goes on as it began."""
    controller = Controller(nn.Conv2d(1, 1, 1), max_sigma=1)
    assert controller.config.prove_every_steps == "auto"
    assert not any(map(controller.is_proof_due, range(1, 301)))


def test_hashes_are_those_from_before_there_were_proofs() -> None:
    known = {"wrn-cifar10-divide": "63ee43c665a3", "wrn-cifar100-clip": "4d2e56344540", "quickstart": "eed0a207a5f7"}
    for preset, wanted in known.items():
        for every, same in (("auto", True), (0, True), (100, True), (50, False)):
            sets = ["init=svdctl", f"control.prove_every_steps={every}"]
            assert (run_hash(resolve({"preset": preset, "set": sets}).config) == wanted) == same
        plain = resolve({"preset": preset, "set": ["init=svdctl"]}).config
        assert run_hash(plain) == wanted == run_hash(with_proofs(plain, torch.device("cuda")))


def test_the_papers_procedure_proves_nothing(tmp_path: Path) -> None:
    chosen = config(tmp_path, 1, "max_steps=2", "control.procedure=paper")
    run = recipe.run(chosen, base="test", reporter=Recorder())
    assert lines_of(run.folder, "proof") == []
    assert "proved every" not in "\n".join(plan(chosen, "test"))


def test_weights_that_are_not_finite_stop_the_run_before_a_proof(tmp_path: Path) -> None:
    chosen = config(tmp_path, 1, "log.every_steps=1000", "optimizer.lr=1e30")
    with pytest.raises(TrainingError, match="not finite"):
        recipe.run(chosen, base="test", reporter=Recorder())


def test_proofs_are_drawn_and_their_time_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of pictures, which other tests here leave out
    from matplotlib.figure import Figure

    from svdctl.train import plots

    step = {"epoch": 1, "loss": 1.0, "orthogonal_loss": 0.0, "acc": 0.5, "lr": 0.1}
    epoch = {**step, "kind": "epoch", "step": 3, "epochs": 1, "train_time": 1.0, "clipping_time": 0.1}
    proof = {"kind": "proof", "step": 2, "epoch": 1, "found": 1.25, "bound/conv": 0.5}
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "write_picture", lambda figure, path: drawn.append(figure))
    plot_curves([{**step, "kind": "step", "step": 1}, proof, epoch], tmp_path / "a.png", held_out="test set")
    plot_curves([{**step, "kind": "step", "step": 1}, epoch], tmp_path / "b.png", held_out="test set")
    assert [len(figure.axes) for figure in drawn] == [3, 2]
    panel = drawn[0].subfigs[1].axes[-1]
    assert panel.lines[0].get_xydata().tolist() == [[pytest.approx(2 / 3), 1.25]]  # epochs: step 2 of 3
    figures = {**epoch, "val_loss": 1.0, "val_acc": 0.5}
    assert "proofs" not in evaluation_line(figures)
    known = {**figures, "proof_time": 0.0175, "train_time": 1.25}
    assert evaluation_line(known).endswith("  1.2 s  (proofs 0.0 s, 1.4%)  (control 0.1 s)")
    assert evaluation_line(known, 80).endswith("  1.2 s  (proofs 0.0 s, 1.4%)")  # what is wanted stays in 80 columns
