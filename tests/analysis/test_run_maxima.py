"""The maxima of the run that wrote a checkpoint: asked of the weights in the file, and never a proof themselves."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from svdctl.analysis import inspect_files
from svdctl.analysis.inspect_config import InspectConfig
from svdctl.analysis.network_spectrum import NetworkSpectrum
from svdctl.analysis.spectrum_page import spectrum_page
from svdctl.analysis.spectrum_table import text_table, to_csv, to_json
from svdctl.checkpoint.checkpoint_file import Checkpoint, read_checkpoint, write_checkpoint
from svdctl.checkpoint.run_maxima import run_maxima
from svdctl.config.control_config import BatchNormControl
from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import Controller
from svdctl.layers.layer_operator import BatchNorm, batchnorm_gain
from svdctl.layers.ops.standard_ops import Standard
from svdctl.layers.ops.tt_ops import TT
from svdctl.models.build import build_model
from svdctl.models.wrn_architecture import Wrn
from svdctl.registry import CONTROLS
from svdctl.utils.html_page import render

MAX, LINEAR_MAX, GAIN = 0.7, 0.3, 1.5
SIZE = 8
KINDS = {
    "standard": (Standard(), "clip"),
    "TT": (TT(rank=6), "divide"),
    "TT, each factor": (TT(rank=6), "divide-each"),
    "assign": (Standard(), "assign"),
}


def config_of(layer: Any, control: str, **settings: object) -> TrainConfig:
    section = CONTROLS.get(control).config(max_sigma=MAX, linear_max=LINEAR_MAX, **settings)
    return TrainConfig(
        model=Wrn(depth=10, width=1), layer=layer, control=section, batchnorm=BatchNormControl(max_gain=GAIN)
    )


def sealed(config: TrainConfig, scale: float = 1.0) -> nn.Module:
    """A network whose layers are far above their maxima, then sealed as a run seals it."""
    torch.manual_seed(0)
    network = build_model(config, 10).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.mul_(20)
            elif isinstance(module, BatchNorm):
                module.weight.mul_(7)
            elif hasattr(module, "core"):
                module.core.mul_(20)
    controller = Controller.from_config(network, None, config.control, config.batchnorm)
    controller.scale_maxima(scale)
    controller.seal(sharp=False)
    return network


def written(folder: Path, config: TrainConfig, state: dict[str, Tensor], **metrics: float) -> Path:
    path = folder / "last.pt"
    write_checkpoint(path, Checkpoint(config, tuple("0123456789"), (3, SIZE, SIZE), state, {}, {"step": 1, **metrics}))
    return path


def inspected(path: Path, **asked: Any) -> NetworkSpectrum:
    config = InspectConfig.model_validate({"files": (path,), "bounds_only": True, **asked})
    return inspect_files.run(config)[0]


def with_weight(state: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The same with one kernel of the second block multiplied, `core` of a TT layer."""
    names = [name for name in state if "layer2" in name and name.endswith(("conv1.weight", "conv1.core"))]
    return {**state, names[0]: state[names[0]] * factor}


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_of_a_sealed_network_is_proved_to_be_within_its_maximum(kind: str, tmp_path: Path) -> None:
    config = config_of(*KINDS[kind])
    found = inspected(written(tmp_path, config, sealed(config).state_dict()))
    limited = [row for row in found if row.maximum is not None]
    assert {row.maximum for row in limited} == {MAX, LINEAR_MAX, GAIN}
    assert all(row.is_proved and row.bound is not None and row.bound.upper <= row.maximum for row in limited)
    # Scaled to their maxima, they are so close to them that a bracket alone is above.
    assert any(row.bound.upper == row.maximum for row in limited if row.bound is not None)
    text = text_table(found)
    assert f"<= {MAX}, proved" in text
    assert f"<= {LINEAR_MAX}, proved" in text
    assert f"all {len(limited)} layers with a maximum are proved to be within it" in text


def test_json_csv_and_page_say_the_same(tmp_path: Path) -> None:
    config = config_of(*KINDS["standard"])
    path = written(tmp_path, config, sealed(config).state_dict())
    found = inspected(path)
    (file,) = json.loads(to_json([found]))["files"]
    rows = {row["name"]: row for row in file["layers"]}
    table = {row["name"]: row for row in csv.DictReader(io.StringIO(to_csv([found])))}
    page = render(spectrum_page([found], InspectConfig(files=(path,))))
    for row in found:
        assert rows[row.name]["maximum"] == row.maximum
        assert rows[row.name]["maximum_proved"] is row.is_proved
        assert table[row.name]["maximum"] == str(row.maximum)
        assert table[row.name]["maximum_proved"] == str(row.is_proved)
        assert row.bound is not None
        assert rows[row.name]["bound_upper"] == float(table[row.name]["bound_upper"]) == row.bound.upper
    assert page.count(f"&lt;= {MAX}, proved") == sum(row.maximum == MAX for row in found)


@pytest.mark.parametrize("factor", [1.02, 1.5])
@pytest.mark.parametrize("kind", ["standard", "TT"])
def test_a_layer_that_was_changed_in_the_file_is_not_proved(kind: str, factor: float, tmp_path: Path) -> None:
    config = config_of(*KINDS[kind])
    state = with_weight(sealed(config).state_dict(), factor)
    found = inspected(written(tmp_path, config, state))
    (open_,) = [row for row in found if row.is_proved is False]
    assert open_.name.startswith("layer2")
    assert open_.bound is not None
    assert open_.bound.upper > MAX
    text = text_table(found)
    assert "NOT proved: layer2" in text
    if factor > 1.1:
        assert f"above {MAX} by 0.3" in text
        assert re.search(rf"(49\.\d|50) % above {MAX}", text)


def test_a_maximum_that_the_file_states_too_small_proves_nothing(tmp_path: Path) -> None:
    """What a file says only chooses the question."""
    config = config_of(*KINDS["standard"])
    state = sealed(config).state_dict()
    smaller = config.model_copy(update={"control": config.control.model_copy(update={"max_sigma": MAX / 2})})
    found = inspected(written(tmp_path, smaller, state))
    assert any(row.is_proved is False for row in found if row.maximum == MAX / 2)
    for said in (float("nan"), float("inf"), -1.0, 0.0):
        again = inspected(written(tmp_path, config, state, max_sigma=said))
        assert all(row.is_proved for row in again if row.maximum is not None)


@pytest.mark.parametrize("scale", [3.0, 1.1, 1 / 3])
def test_a_maximum_that_moves_is_where_it_was(scale: float, tmp_path: Path) -> None:
    config = config_of(*KINDS["TT"], max_sigma_start=3 * MAX, max_sigma_epochs=3)
    state = sealed(config, scale).state_dict()
    found = inspected(written(tmp_path, config, state, max_sigma=MAX * scale))
    assert all(row.is_proved for row in found if row.maximum is not None)
    maxima = {row.maximum for row in found if not row.is_normalization}
    assert MAX * scale in maxima
    assert any(maximum == pytest.approx(LINEAR_MAX * scale, rel=1e-12) for maximum in maxima if maximum is not None)
    assert f"on its way to {MAX:g}" in text_table(found)


def test_the_papers_procedure_proves_nothing_and_says_by_how_much_layers_are_above(tmp_path: Path) -> None:
    config = config_of(*KINDS["standard"], procedure="paper")
    torch.manual_seed(0)
    network = build_model(config, 10).eval()
    found = inspected(written(tmp_path, config, network.state_dict()))
    above = [row for row in found if row.is_proved is False]
    assert above
    text = text_table(found)
    assert all(f"above {row.maximum:g} by" in text for row in above[:1])
    assert "the run proves nothing of its maxima: `control.procedure` is paper" in text


def test_without_control_there_is_no_maximum(tmp_path: Path) -> None:
    config = TrainConfig(model=Wrn(depth=10, width=1))
    found = inspected(written(tmp_path, config, build_model(config, 10).state_dict()))
    assert {row.maximum for row in found} == {None}
    assert {row.is_proved for row in found} == {None}
    assert "maximum" not in text_table(found)


@pytest.mark.parametrize("limit", [MAX / 2, MAX * 0.999, MAX, MAX * 1.001, 5.0])
def test_a_gate_has_the_verdict_that_it_has_without_the_runs_maxima(
    limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(*KINDS["TT"])
    path = written(tmp_path, config, sealed(config).state_dict())
    with_maxima = {row.name: row.gate for row in inspected(path, max_sigma=limit)}
    monkeypatch.setattr(inspect_files, "run_maxima", lambda checkpoint, network: inspect_files.RunMaxima())
    assert with_maxima == {row.name: row.gate for row in inspected(path, max_sigma=limit)}


def test_a_limited_batchnorm_passes_a_gate_of_its_limit(tmp_path: Path) -> None:
    config = config_of(*KINDS["standard"])
    network = sealed(config)
    gains = [
        float(batchnorm_gain(module, torch.float64)) for module in network.modules() if isinstance(module, BatchNorm)
    ]
    assert max(gains) > GAIN * (1 - 1e-5)
    found = inspected(written(tmp_path, config, network.state_dict()), batchnorm_max=GAIN)
    assert {row.gate for row in found if row.kind == "BatchNorm"} == {"proved"}


def test_bounds_are_those_of_the_dense_matrices(
    tmp_path: Path, dense_norms: Callable[[nn.Module], dict[str, float]]
) -> None:
    """No layer whose norm on inputs of this size is above its maximum is said to be within it."""
    config = config_of(*KINDS["TT"])
    network = sealed(config)
    for name, norm in dense_norms(network).items():
        row = inspected(written(tmp_path, config, network.state_dict()))[name]
        assert row.bound is not None
        assert norm <= row.bound.upper <= MAX * (1 + 1e-12)


@pytest.fixture
def dense_norms() -> Callable[[nn.Module], dict[str, float]]:
    """The norm of each TT layer on 5 x 5 with its own padding, of its dense matrix in float64."""

    def compute(network: nn.Module) -> dict[str, float]:
        found = {}
        for name, layer in network.named_modules():
            if hasattr(layer, "core"):
                double = layer.double()
                units = torch.eye(layer.in_channels * 25, dtype=torch.float64).view(-1, layer.in_channels, 5, 5)
                with torch.no_grad():
                    matrix = double(units) - double(torch.zeros_like(units[:1]))
                found[name] = float(np.linalg.norm(matrix.flatten(1).numpy(), 2))
                layer.float()
        return found

    return compute


def test_the_maxima_of_a_run_are_those_of_its_controller(tmp_path: Path) -> None:
    config = config_of(*KINDS["TT"])
    network = sealed(config)
    controller = Controller.from_config(network, None, config.control, config.batchnorm)
    maxima = run_maxima(read_checkpoint(written(tmp_path, config, network.state_dict())), network).of_layers
    names = [*controller.layers, *controller.norms]
    assert {name: controller.maximum(name) for name in names} == {name: maxima.get(name) for name in names}


def test_maxima_beyond_all_floats_are_none() -> None:
    table = {"data": {"kind": "digits"}, "model": {"kind": "wrn", "depth": 10, "width": 1}}
    config = TrainConfig.model_validate(
        {**table, "control": {"kind": "clip", "max_sigma": 1e-300, "linear_max": 1e308}}
    )
    network = build_model(config, 4)
    stored = Checkpoint(config, ("a", "b", "c", "d"), (3, 8, 8), {}, {}, {"max_sigma": 1e300}, None)
    found = run_maxima(stored, network).of_layers
    assert found
    assert set(found.values()) == {1e300}
