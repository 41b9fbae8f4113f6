"""The benchmarks run with the package as it is: every file is imported, and that for a GPU runs on tiny networks."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[1] / "benchmarks"


def imported(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    name = f"benchmark_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_exists(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported(path, monkeypatch)


def test_every_part_of_the_benchmark_for_a_gpu_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = imported(FOLDER / "gpu.py", monkeypatch)
    gpu.main(["--device", "cpu", "--quick"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if "error" in line or "skipped" in line] == []
    assert {line["part"] for line in lines} == {"machine", *gpu.PARTS, "end"}
    figures = [line for line in lines if line["part"] not in ("machine", "end")]
    assert all(line["median"] > 0 and line["n"] > 0 for line in figures)
    assert {line["row"] for line in figures if line["part"] == "steps"} == set(gpu.STEPS)


class Tiny(nn.Module):
    """Layers that are known, one that is not, and a parameter beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.conv = nn.Conv2d(4, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.groups, self.head = nn.GroupNorm(2, 6), nn.Linear(6, 3)
        self.shift = nn.Parameter(torch.zeros(6, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((self.groups(self.norm(self.conv(self.depthwise(x)))) + self.shift).mean((2, 3)))


def test_the_bounds_of_a_network_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bounds = imported(FOLDER / "torchvision_bounds.py", monkeypatch)
    monkeypatch.setattr(bounds, "built", lambda name, seed: (Tiny().eval(), (4, 12, 12)))
    bounds.main(["--one", "tiny", "--threads", str(torch.get_num_threads())])
    figures = json.loads(capsys.readouterr().out)
    assert figures["kinds"] == {"GroupNorm": 1, "Conv2d": 2, "BatchNorm": 1, "Linear": 1}
    assert figures["layers"] == 5
    assert figures["uncovered"] == {"groups": "layers of type GroupNorm have no spectrum known here"}
    assert figures["beside"] == {"(top)": ["shift"]}
    assert figures["assumed"] == {}
    assert 1.0 < figures["widest"]["bracket"] <= 1.02 * (1 + 1e-9)
    assert figures["parameters"] == sum(parameter.numel() for parameter in Tiny().parameters())
    assert figures["memory"] >= figures["memory_before"] > 2**20
    assert figures["seconds"] > 0


def test_a_bound_that_is_too_wide_is_not_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = imported(FOLDER / "torchvision_bounds.py", monkeypatch)
    reflected = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.Conv2d(2, 2, 3))
    figures = bounds.bounds_of(reflected.eval(), (2, 8, 8), 0.02)
    assert list(figures["uncovered"]) == ["0"]
    assert figures["widest"]["layer"] == "0"
    assert figures["widest"]["bracket"] > 1.5


def test_bounds_of_networks_go_on_where_they_were_cut_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bounds = imported(FOLDER / "torchvision_bounds.py", monkeypatch)
    monkeypatch.setattr(bounds, "networks", lambda most: {"small": 1, "fails": 2, "large": 3})
    asked, fails = [], True
    tiny = bounds.bounds_of(Tiny().eval(), (4, 12, 12), 0.02)

    def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
        asked.append(name)
        return {"failed": "no memory"} if fails and name == "fails" else tiny

    monkeypatch.setattr(bounds, "measure", measure)
    results = tmp_path / "results.jsonl"
    bounds.main(["--results", str(results), "--only", "small", "fails"])
    assert asked == ["small", "fails"]
    bounds.main(["--results", str(results), "--table"])
    assert "- failed: fails: no memory" in capsys.readouterr().out
    # A kill while a line was written.
    with results.open("a") as file:
        file.write('{"network": "large", "tol')
    fails = False
    bounds.main(["--results", str(results)])
    assert asked == ["small", "fails", "fails", "large"]
    bounds.main(["--results", str(results)])
    assert len(asked) == 4
    bounds.main(["--results", str(results), "--only", "small", "--again"])
    assert asked[4:] == ["small"]
    capsys.readouterr()
    bounds.main(["--results", str(results), "--table"])
    shown = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in shown.splitlines()[2:5]] == ["| small", "| fails", "| large"]
    assert "3 networks, 15 layers, 3 not covered." in shown
    assert (
        "- not covered: layers of type GroupNorm have no spectrum known here: small (1), fails (1), large (1)" in shown
    )
    assert "- beside layers: shift: small (1), fails (1), large (1)" in shown
    assert "failed" not in shown


def test_a_network_that_cannot_be_built_is_a_failure_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = imported(FOLDER / "torchvision_bounds.py", monkeypatch)
    options = argparse.Namespace(tolerance=0.02, threads=1, seed=0, seconds=120.0)
    assert "no_such_network" in bounds.measure("no_such_network", options)["failed"]
    options.seconds = 0.01
    assert bounds.measure("squeezenet1_1", options) == {"failed": "it took more than 0.01 seconds"}
