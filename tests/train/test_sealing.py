"""What is written as sealed was proved of the weights as they are, and no weights are proved twice."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from svdctl.checkpoint import checkpoint_file
from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.config.train_config import TrainConfig
from svdctl.control import actions
from svdctl.control.actions import is_layer_bounded
from svdctl.control.controller import Controller
from svdctl.layers import norms
from svdctl.spectral.convolution import Convolution
from svdctl.train import run as training_run
from svdctl.train import start as recipe
from svdctl.train import trainer as training
from tests.train.test_resume import no_pictures
from tests.train.test_runs import Recorder, data, make

__all__ = ["data", "no_pictures"]

LIMIT = 0.5
"""Low enough that each step passes it."""


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, float]]:
    """How often each state of the weights was proved, by the kind of proof; the sum of weights tells states."""
    found: Counter[tuple[str, float]] = Counter()

    def state(model: torch.nn.Module) -> float:
        return sum(float(value.double().abs().sum()) for value in model.state_dict().values())

    def counted(kind: str, method: Any) -> Any:
        def call(self: Controller, *arguments: Any, **options: Any) -> Any:
            result = method(self, *arguments, **options)
            found[kind, sum(float(layer.weight.detach().double().abs().sum()) for layer in self.norms.values())] += 1
            return result

        return call

    class CountedCertifier(training.Certifier):
        def __init__(self, model: torch.nn.Module, *rest: Any, **settings: Any) -> None:
            super().__init__(model, *rest, **settings)
            found["certifier", state(model)] += 1

    for kind in ("seal", "report"):
        monkeypatch.setattr(Controller, kind, counted(kind, getattr(Controller, kind)))
    monkeypatch.setattr(training, "Certifier", CountedCertifier)
    return found


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the checkpoints that were written; each is checked."""
    names: list[str] = []

    def write(path: Path, checkpoint: checkpoint_file.Checkpoint) -> None:
        checkpoint_file.write_checkpoint(path, checkpoint)
        model = checkpoint_file.load(path)
        layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
        assert len(layers) == 8
        assert all(is_layer_bounded(layer, LIMIT) for layer in layers)
        names.append(path.name)

    monkeypatch.setattr(training_run, "write_checkpoint", write)
    return names


def config(data: Path, *sets: str) -> TrainConfig:
    table = make(data, *sets, epochs=2).model_dump()
    table["layer"] = {"kind": "standard"}
    # Steps that are not controlled leave the seal something to do.
    table["control"] = {"kind": "clip", "max_sigma": LIMIT, "linear_max": LIMIT, "every_steps": 1000}
    table["certificate"] = {}
    table["log"]["singular_values"] = True
    return TrainConfig.model_validate(table)


def test_each_state_is_proved_once(data: Path, proofs: Counter[tuple[str, float]], written: list[str]) -> None:
    sets = ("checkpoint.every_steps=4", "checkpoint.keep=true", "evaluation.select=last")
    result = recipe.run(config(data, *sets), base="test", reporter=Recorder())
    assert set(written) == {"last.pt", "epoch-1.pt", "epoch-2.pt"}
    assert set(proofs.values()) == {1}
    kinds = Counter(kind for kind, _ in proofs)
    # Saved, evaluated, logged, printed and certified after each epoch, which are two states.
    assert kinds == {"seal": 2, "report": 2, "certifier": 2}
    step = read_checkpoint(result.folder).metrics["step"]
    (line,) = [line for line in training_lines(result.folder) if line["step"] == step and line["kind"] == "epoch"]
    rows = {row.name: row for row in result.layers}
    for name, row in rows.items():
        assert (line[f"sigma/{name}"], line[f"bound/{name}"]) == (row.largest, row.bound)


def test_a_layer_is_proved_once_an_epoch(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Counter[bytes] = Counter()

    def counted(function: Any) -> Any:
        def call(convs: list[Convolution], *arguments: Any, **options: Any) -> Any:
            for conv in convs:
                found[conv.kernel.numpy().tobytes()] += 1
            return function(convs, *arguments, **options)

        return call

    for module, name in ((actions, "norm_bounds"), (norms, "norm_bounds"), (norms, "are_bounded")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    table = config(data, "evaluation.select=last").model_dump()
    result = recipe.run(TrainConfig.model_validate(table | {"certificate": None}), base="test", reporter=Recorder())
    # Sealed, evaluated, logged, saved and printed: eight layers after each of two epochs, those that the seal scaled
    # before and after it.
    assert set(found.values()) == {1}
    assert 16 <= len(found) <= 32
    assert [row.largest <= row.bound <= LIMIT for row in result.layers if row.maximum == LIMIT] == [True] * 8


def training_lines(folder: Path) -> list[dict[str, Any]]:
    from svdctl.train.metrics_log import read_log

    return read_log(folder / "metrics.jsonl")


def test_an_interrupted_run_is_sealed_when_it_is_saved(data: Path, written: list[str]) -> None:
    result = recipe.run(config(data), base="test", reporter=Recorder(interrupt_after=2))
    assert not result.completed
    assert written == ["last.pt"]
    assert read_checkpoint(result.folder).training["unsealed"]


def test_a_state_that_was_changed_after_its_seal_is_sealed_again(
    data: Path, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = training.Trainer.evaluate

    def changing(self: training.Trainer, *rest: Any) -> Any:
        found = evaluate(self, *rest)
        with torch.no_grad():
            self.model.get_parameter("conv1.weight").mul_(2)
        return found

    monkeypatch.setattr(training.Trainer, "evaluate", changing)
    recipe.run(config(data), base="test", reporter=Recorder())
    assert set(written) == {"last.pt", "best.pt"}
