"""The benchmarks run with the package as it is: every file is imported, and that for a GPU runs on tiny networks."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

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
