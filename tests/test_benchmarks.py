"""The benchmarks run with the package as it is: every file is imported, and that for a GPU runs on tiny networks."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from textwrap import dedent
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


@pytest.mark.slow
def test_every_part_of_the_benchmark_for_a_gpu_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = imported(FOLDER / "gpu.py", monkeypatch)
    gpu.main(["--device", "cpu", "--quick"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if "error" in line or "skipped" in line] == []
    assert {line["part"] for line in lines} == {"machine", *gpu.PARTS, "end"} - {"paper"}
    figures = [line for line in lines if line["part"] not in ("machine", "end")]
    assert all(line["median"] > 0 and line["n"] > 0 for line in figures)
    assert {line["row"] for line in figures if line["part"] == "steps"} == set(gpu.STEPS)
    (epoch,) = [line for line in figures if line["way"] == "an epoch with proofs and evaluation"]
    assert epoch["200 epochs, minutes"] == pytest.approx(epoch["median"] / 300, abs=0.006)


def test_a_part_that_fails_costs_itself_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = imported(FOLDER / "gpu.py", monkeypatch)

    def fails(bench: Any) -> None:
        raise RuntimeError("no such preset")

    monkeypatch.setattr(gpu, "PARTS", {"steps": fails, "control": lambda bench: bench.say(part="control", n=1)})
    gpu.main(["--device", "cpu"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["part"] for line in lines] == ["machine", "steps", "control", "end"]
    assert lines[1]["error"] == "RuntimeError: no such preset"
    assert not any("error" in line for line in lines[2:])


PAPER = {
    "WideResNet": """
        from torch import nn

        def wide_resnet16_10(num_classes):
            end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
            return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), *end)
        """,
    "tt_dec_layer": """
        from torch import nn

        class ConvDecomposed2D_t(nn.Conv2d):
            pass

        def conv2tt(model, kind, no_compress_first, decomposition_rank):
            model[0] = kind(3, 4, 3, 2)
        """,
    "SOTT": """
        def orthogonal_loss(model):
            return model[0].weight.square().sum(), 1
        """,
    "utils": """
        called = []

        def clip_batch_norm(model, limit):
            called.append(("batch norm", limit))

        def constrain_conv(model, mode, outputs, **limits):
            called.append((mode, type(model[0]).__name__, outputs))
        """,
}


def test_the_code_of_the_paper_is_measured_from_its_checkout_or_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    gpu = imported(FOLDER / "gpu.py", monkeypatch)

    def lines() -> list[dict[str, Any]]:
        for name in [name for name in sys.modules if name.partition(".")[0] == "src"]:
            monkeypatch.delitem(sys.modules, name)
        gpu.main(["--device", "cpu", "--quick", "--paper-code", str(tmp_path), "--rows", "the paper's"])
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [line for line in found if line["part"] not in ("machine", "end")]

    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("wandb", "torchsummary"):  # which it may put in their place
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    parts = ["steps", "steps", "paper", "paper"]
    missing = lines()
    assert [line["part"] for line in missing] == parts
    assert all(f"{tmp_path} holds no checkout of the paper's code" in line["error"] for line in missing)
    (tmp_path / "src").mkdir()
    for name, text in PAPER.items():
        (tmp_path / f"src/{name}.py").write_text(dedent(text))
    found = lines()
    assert [(line["part"], line["row"], line["n"]) for line in found] == [
        ("steps", "dense", 1), ("steps", "TT 192, penalty, division, BatchNorm limit", 1),
        ("paper", "TT 192", 1), ("paper", "dense", 1),
    ]  # fmt: skip
    divided = ("divide-by-largest", "ConvDecomposed2D_t", [(15, 15)])
    clips = [("clip", "ConvDecomposed2D_t", [(15, 15)]), ("clip", "Conv2d", [(15, 15)])]
    assert sys.modules["src.utils"].called == [*[("batch norm", 10), divided] * 2, *clips]
    (tmp_path / "src/utils.py").write_text("import einops_that_is_not_there\n")
    needs = "the paper's code needs einops_that_is_not_there: pip install einops_that_is_not_there"
    assert [line["error"] for line in lines()] == [f"ModuleNotFoundError: {needs}"] * 4


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
