"""Columns that need no training are the paper's, exactly, at full scale."""

from pathlib import Path
from typing import Any, Literal, cast

import pytest
from torch import Tensor, nn

from svdctl.cli.training_flags import resolve
from svdctl.config.configuration import configuration
from svdctl.config.model_config import ModelConfig
from svdctl.models.architecture import Architecture, register_architecture
from svdctl.models.build import build_model, count_parameters
from svdctl.reproduce.estimate import control_cost, run_bytes, shape_model, static_figures
from svdctl.reproduce.plan import make_plan
from svdctl.reproduce.table_files import Request

WRN, VGG = 16_858_074, 20_565_834
COMPRESSION = {
    "table2": {"full": 1.0, "tt192": 3.58, "tt256": 2.39, "tt320": 1.84},
    "table3": {"full": 1.0, "tt192": 3.55, "tt256": 2.38, "tt320": 1.83},
    "table-vgg": {"cifar10-full": 1.0, "cifar10-tt192": 3.13, "cifar10-tt256": 2.14,
                  "cifar100-full": 1.0, "cifar100-tt192": 3.12, "cifar100-tt256": 2.13},
    "table1": {"lipconv5-sott128": 2.90, "lipconv20-sott128": 3.29, "lipconv30-sott128": 3.47,
               "lipconv5-sott256": 1.23, "lipconv20-sott256": 1.40, "lipconv30-sott256": 1.48,
               "lipconv5-soc": 1.0, "lipconv20-soc": 1.0, "lipconv30-soc": 1.0},
}  # fmt: skip
MODELLED = {"full": 1.0, "tt192": 5.1, "tt256": 3.2, "tt320": 2.0}
"""Cost of control, full against TT, of WRN-16-10."""


def figures(table: str) -> dict[str, dict[str, float]]:
    (plan,) = make_plan(Request(tables=(table,))).tables
    return {row.row.name: static_figures(row.config) for row in plan.rows}


@pytest.mark.parametrize("table", ["table2", "table3"])
def test_wrn(table: str) -> None:
    found = figures(table)
    assert len(found) == 12
    for name, row in found.items():
        rank = name.split("-")[1]
        assert round(row["compression"], 2) == COMPRESSION[table][rank]
        assert round(row["control-cost"], 1) == MODELLED[rank]
    if table == "table2":
        assert found["none-full"]["parameters"] == WRN
        assert found["divide-tt192"]["parameters"] == 4_706_266


def test_vgg() -> None:
    found = figures("table-vgg")
    assert found["cifar10-none-full"]["parameters"] == VGG
    for name, row in found.items():
        data, _, rank = name.split("-")
        assert round(row["compression"], 2) == COMPRESSION["table-vgg"][f"{data}-{rank}"]


def test_lipconv() -> None:
    found = figures("table1")
    assert [found[f"lipconv{n}-soc"]["parameters"] for n in (5, 20, 30)] == [17_668_042, 27_209_578, 33_496_874]
    assert {name: round(row["compression"], 2) for name, row in found.items()} == COMPRESSION["table1"]


@pytest.mark.parametrize("preset", ["quickstart", "wrn-cifar10-tt"])
def test_shapes_without_numbers_count_as_the_network_itself(preset: str) -> None:
    config = resolve({"preset": preset}).config
    assert static_figures(config)["parameters"] == count_parameters(build_model(config, 10))


def test_the_model_of_the_cost_by_hand() -> None:
    config = resolve({"preset": "wrn-cifar10", "set": ["model.depth=10", "model.width=1"]}).config
    layers = [(3, 16, 32, 1), (16, 16, 32, 1), (16, 16, 32, 1), (16, 32, 32, 2), (32, 32, 16, 1), (32, 64, 16, 2),
              (64, 64, 8, 1)]  # fmt: skip
    expected = sum((n // s) ** 2 * o * s * s * i * min(o, s * s * i) for i, o, n, s in layers)
    assert control_cost(shape_model(config), 32) == expected


def test_work_and_disk_grow_as_they_must() -> None:
    base = resolve({"preset": "quickstart"}).config
    twice = base.model_copy(update={"batch_size": 2 * base.batch_size})
    flops = [static_figures(config)["step-flops"] for config in (base, twice)]
    assert flops[1] == pytest.approx(2 * flops[0], rel=0.2)
    adam = resolve({"preset": "quickstart", "opt": "adam", "set": ["optimizer.amsgrad=true"]}).config
    assert run_bytes(adam) > run_bytes(base) > 2 * 2 * 4 * static_figures(base)["parameters"]


class NumbersConfig(ModelConfig):
    """A network whose code looks at numbers."""

    kind: Literal["numbers"] = "numbers"
    when_built: bool = False


class NumbersNetwork(nn.Module):
    def __init__(self, classes: int, *, when_built: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(3, classes)
        self.scale = float(self.linear.weight.detach().sum()) if when_built else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.linear(x.mean((2, 3)))) * (1 + (float(x.mean()) > 2))


class NumbersArchitecture(Architecture):
    kind = "numbers"
    config = NumbersConfig

    def build(self, config: NumbersConfig, *, classes: int, **factories: Any) -> nn.Module:
        return NumbersNetwork(classes, when_built=config.when_built)


@pytest.mark.parametrize("when_built", [False, True])
def test_a_network_that_needs_numbers_has_no_modelled_work(when_built: bool, tmp_path: Path) -> None:
    register_architecture(NumbersArchitecture)
    (tmp_path / "net.toml").write_text(f'model = {{ kind = "numbers", when_built = {str(when_built).lower()} }}\n')
    config = configuration(str(tmp_path / "net.toml"))
    assert static_figures(config) == {"parameters": 40.0, "compression": 1.0}
    assert run_bytes(config) > 0
