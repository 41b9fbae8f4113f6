"""The singular values before the first step: computed once, kept in the run folder, and used when the run goes on."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, tensor

import svdctl.train.plots
import svdctl.train.run
from svdctl.config.model_config import InitialWeights
from svdctl.config.train_config import TrainConfig
from svdctl.train import start as recipe
from svdctl.train.plots import spectra
from svdctl.train.run_hash import starting_hash
from svdctl.train.starting_spectrum import FILE, read_starting_spectrum, write_starting_spectrum
from svdctl.utils.content_hash import json_digest
from tests.train.test_resume import draw_nothing, make
from tests.train.test_runs import Recorder


class Watched:
    """Which spectra were drawn as those of the start, and how often they were computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        draw_nothing(monkeypatch)
        self.drawn: list[dict[str, list[float]]] = []
        self.computed = 0
        monkeypatch.setattr(svdctl.train.plots, "plot_spectra", self._draw)
        monkeypatch.setattr(svdctl.train.run, "spectra", self._compute)

    def _draw(self, before: Mapping[str, Tensor], *given: Any, **named: Any) -> None:
        self.drawn.append({name: values.tolist() for name, values in before.items()})

    def _compute(self, *given: Any) -> dict[str, Tensor]:
        self.computed += 1
        return spectra(*given)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def random_start(folder: Path) -> TrainConfig:
    return make(folder, "train", "control.kind=none", "layer.kind=standard")


def trained_start(folder: Path) -> TrainConfig:
    first = recipe.run(random_start(folder), base="test", reporter=Recorder()).folder / "last.pt"
    return random_start(folder).model_copy(update={"epochs": 2, "initial": InitialWeights(file=str(first))})


@pytest.mark.parametrize("configured", [random_start, trained_start])
def test_a_resumed_run_draws_what_was_computed_before_its_first_step(
    tmp_path: Path, watched: Watched, configured: Callable[[Path], TrainConfig]
) -> None:
    config = configured(tmp_path)
    watched.drawn.clear()
    recipe.run(config, base="test", reporter=Recorder())
    (whole,) = watched.drawn
    assert whole
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=2)).folder
    watched.computed = 0
    assert recipe.resume(part, reporter=Recorder(interrupt_after=4)).completed is False
    assert recipe.resume(part, reporter=Recorder()).completed
    assert watched.computed == 0
    assert watched.drawn == [whole, whole]


def test_what_is_damaged_or_of_another_network_is_computed_again(tmp_path: Path, watched: Watched) -> None:
    config = random_start(tmp_path)
    recipe.run(config, base="test", reporter=Recorder())
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=2)).folder
    file = part / FILE
    sound = file.read_text()
    contents = json.loads(sound)
    changed = {**contents, "values": {name: [9.0] * len(own) for name, own in contents["values"].items()}}
    of_another = {**changed, "network": "0" * 64}
    of_no_float32 = {**changed, "values": {name: [1e300] for name in contents["values"]}}
    for one in (of_another, of_no_float32):
        del one["sha256"]
        one["sha256"] = json_digest(one)
    bad = (json.dumps(changed), json.dumps(of_another), json.dumps(of_no_float32), sound[:-9], "[" * 200, None)
    for step, text in enumerate(bad, 3):
        watched.computed = 0
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
        recipe.resume(part, reporter=Recorder(interrupt_after=step))
        assert watched.computed == 1
        assert file.read_text() == sound
    assert recipe.resume(part, reporter=Recorder()).completed
    assert watched.drawn[0] == watched.drawn[1]


def test_what_they_belong_to(tmp_path: Path) -> None:
    """Longer runs at another place begin with the same network; another seed, layer or number of classes does not."""
    config = random_start(tmp_path)
    same = config.model_copy(update={"epochs": 9, "out_dir": tmp_path / "b", "name": "b"})
    known = starting_hash(config, 3, (3, 12, 12))
    assert starting_hash(same, 3, (3, 12, 12)) == known
    others = [
        starting_hash(config.model_copy(update={"seed": 5}), 3, (3, 12, 12)),
        starting_hash(make(tmp_path, "train"), 3, (3, 12, 12)),
        starting_hash(config, 4, (3, 12, 12)),
        starting_hash(config, 3, (3, 24, 24)),
    ]
    assert len({known, *others}) == 5


def test_values_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    write_starting_spectrum(tmp_path, "x", {"a": tensor([float("inf"), 1.0])})
    assert not (tmp_path / FILE).exists()
    write_starting_spectrum(tmp_path, "x", {"a": tensor([0.1, 0.0]), "b": tensor([])})
    found = read_starting_spectrum(tmp_path, "x")
    assert found is not None
    assert {name: own.tolist() for name, own in found.items()} == {"a": tensor([0.1, 0.0]).tolist(), "b": []}
    assert read_starting_spectrum(tmp_path, "y") is None
