"""The tables of `svdctl inspect-spectrum` on real terminals, and what is said while it works."""

import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import svdctl
from svdctl.analysis import inspect_files
from svdctl.analysis.inspect_config import InspectConfig
from svdctl.analysis.spectrum_comparison import are_comparable, comparison_table, text_tables
from svdctl.analysis.spectrum_table import spectrum_table, text_table
from svdctl.errors import CheckpointError
from svdctl.utils.progress import Reporter
from svdctl.utils.table import records
from tests.terminal import run_in_terminal

WIDTHS = (80, 120, pytest.param(160, marks=pytest.mark.slow))
BLOCK = "encoder.stage1.block.{}.attention.projection_of_values"
NAMES = (BLOCK.format(0), BLOCK.format(1), "encoder.stage2.downsample", "encoder.head")
ALWAYS = ("layer", "kernel", "circular", "bound", "condition")


def command(*arguments: object) -> list[str | Path]:
    return [sys.executable, "-m", "svdctl", "inspect-spectrum", *map(str, arguments)]


def shown(columns: int, *arguments: object, **further: object) -> str:
    return run_in_terminal(command(*arguments), columns, 60, env={"OMP_NUM_THREADS": "1"}, **further)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of bare weights: long names and a long kernel."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    kernels = (torch.randn(6, 4, 3, 3), torch.randn(6, 6, 3, 3), torch.randn(12, 6, 1, 1), torch.randn(10, 12))
    torch.save({f"{name}.weight": kernel for name, kernel in zip(NAMES, kernels, strict=True)}, path)
    return path


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_layer_has_lines_that_fit_and_its_name_is_whole(weights: Path, columns: int) -> None:
    lines = shown(columns, weights, "--input-size", 8).splitlines()
    rule = next(at for at, line in enumerate(lines) if re.fullmatch(r"-+(  -+)+", line))
    header, rows = lines[rule - 1], lines[rule + 1 : lines.index("", rule)]
    assert all(word in header for word in ALWAYS)
    assert max(map(len, lines)) <= columns
    assert ("stable rank" in header) is (columns >= 120)
    # Names are whole, at most on two lines; what all begin with is said once.
    said = "encoder." * any("all begin with encoder." in line for line in lines)
    column = slice(0, lines[rule].index(" "))
    first = [at for at, row in enumerate(rows) if not row.startswith(" ")]
    names = ["".join(row[column].strip() for row in rows[at:end]) for at, end in pairwise([*first, len(rows)])]
    assert [said + name for name in names] == [*NAMES]
    assert len(rows) == (4 if columns == 160 else 6)


@pytest.mark.parametrize("columns", WIDTHS)
def test_two_files_stand_side_by_side(weights: Path, columns: int, tmp_path: Path) -> None:
    tensors = torch.load(weights)
    torch.save(
        {name: 2 * tensor for name, tensor in tensors.items()} | {"more.weight": torch.eye(3)}, tmp_path / "b.pt"
    )
    lines = shown(
        columns, weights, tmp_path / "b.pt", "--input-size", 8, "--layer", "*.h*", "--layer", "more"
    ).splitlines()
    rule = next(at for at, line in enumerate(lines) if re.fullmatch(r"-+(  -+)+", line))
    assert re.search(r"circular a +circular b +b / a +bound a +bound b", lines[rule - 1])
    (first,) = [line for line in lines[rule + 1 :] if re.search("head|projection", line)][:1]
    assert re.search(r" 2 ", first)
    assert max(map(len, lines)) <= columns
    assert lines[rule + 2].startswith("more")


def test_what_waits_is_said_and_ctrl_c_is_answered_at_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save({f"layer{n}.weight": torch.randn(256, 256, 3, 3) for n in range(40)}, tmp_path / "w.pt")
    found = shown(
        80, "w.pt", "--input-size", 32, cwd=tmp_path, code=130, keys=[("/40 layer", "C-c")], scrollback=True, seconds=90
    )
    assert found.startswith("svdctl inspect-spectrum: singular values and proved bounds of w.pt")
    assert "stopping: nothing is written; a second Ctrl-C ends at once" in found
    assert "svdctl: stopped; nothing was written" in found


def network(**changes: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    with torch.no_grad():
        for name, factor in changes.items():
            model[int(name[1:])].weight.mul_(factor)
    return model


def test_columns_without_anything_are_left_out_and_remarks_are_footnotes() -> None:
    found = svdctl.spectrum(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), (4,))
    text = text_table(found)
    assert "TT rank" not in text
    assert "as it runs" not in text
    small = svdctl.spectrum(nn.Sequential(nn.Conv2d(1, 2, 5, padding=2), nn.Conv2d(2, 2, 5, padding=2)), (1, 3, 3))
    lines = text_table(small, width=80).splitlines()
    assert sum(line.endswith("[1]") for line in lines) == 2
    assert sum("[1] the input is smaller than the kernel" in line for line in lines) == 1
    assert max(map(len, lines)) <= 80


def test_records_have_every_column_of_the_schema_whatever_is_shown() -> None:
    found = svdctl.spectrum(network(), (3, 8, 8), bounds_only=True)
    (first, *_) = records(spectrum_table(found))
    assert list(first)[:3] == ["name", "kind", "shape"]
    assert {"note", "assumption", "gate", "maximum", "stable_rank"} <= set(first)


@pytest.mark.parametrize(("order", "names"), [
    ("network", ["a", "b", "c", "n"]), ("name", ["a", "b", "c", "n"]), ("bound", ["b", "c", "n", "a"]),
    ("largest", ["b", "c", "a", "n"]), ("condition", ["c", "a", "b", "n"]),
])  # fmt: skip
def test_layers_are_sorted_and_those_without_a_figure_come_last(order: str, names: list[str], tmp_path: Path) -> None:
    matrices = {
        "a": torch.diag(torch.tensor([1.0, 0.5])),
        "b": 9 * torch.eye(2),
        "c": torch.diag(torch.tensor([4, 0.1])),
    }
    norm = {"n.weight": torch.full((2,), 2.0), "n.running_var": torch.ones(2), "n.bias": torch.ones(2)}
    torch.save({f"{name}.weight": matrix for name, matrix in matrices.items()} | norm, tmp_path / "w.pt")
    config = InspectConfig.model_validate({"files": [tmp_path / "w.pt"], "sort": order})
    assert [row.name for row in inspect_files.run(config)[0]] == names


class Heard(Reporter):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


def test_of_several_places_those_without_weights_are_left_out_and_named(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "last.pt").write_bytes(weights.read_bytes())
    for name in ("report.md", "report.html"):
        (tmp_path / name).write_text("#")
    heard = Heard()
    found = inspect_files.run(InspectConfig(files=tuple(sorted(tmp_path.iterdir()))), heard)
    assert [network.name for network in found] == [str(tmp_path / "run")]
    (notice,) = heard.notices
    assert all(name in notice for name in ("empty", "report.md", "report.html"))
    with pytest.raises(CheckpointError, match="none of these places holds weights"):
        inspect_files.run(InspectConfig(files=(tmp_path / "empty", tmp_path / "report.md")))
    # One that is named alone, or is another file, is a fault as before.
    for files in ((tmp_path / "empty",), (tmp_path / "run", tmp_path / "notes.txt")):
        with pytest.raises(CheckpointError, match=r"empty|notes"):
            inspect_files.run(InspectConfig(files=files))


@pytest.mark.parametrize("asked", [{}, {"bounds_only": True}])
def test_bounds_alone_are_those_beside_values(asked: dict[str, bool], weights: Path) -> None:
    whole, *_ = inspect_files.run(InspectConfig.model_validate({"files": [weights], "input_size": "8"}))
    found, *_ = inspect_files.run(InspectConfig.model_validate({"files": [weights], "input_size": "8", **asked}))
    assert [(row.name, row.bound) for row in found] == [(row.name, row.bound) for row in whole]
    assert all((row.values is None) is bool(asked) for row in found)


@pytest.mark.parametrize("asked", [{"every": True}, {"top": 3}, {"plot": "a.png"}, {"sort": "largest"}])
def test_bounds_alone_and_values_exclude_each_other(asked: dict[str, object], weights: Path) -> None:
    with pytest.raises(ValueError, match="needs singular values, and `bounds_only` computes none"):
        InspectConfig.model_validate({"files": [weights], "bounds_only": True, **asked})


@pytest.mark.parametrize(("asked", "has_values"), [({}, False), ({"top": 2}, True), ({"format": "json"}, True)])
@pytest.mark.parametrize("model", [None, "tests.cli.test_inspect_layout:build"])
def test_a_gate_computes_no_values_where_they_take_long(
    asked: dict[str, object], has_values: bool, model: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_files, "_AFFORDABLE", 0.0)
    torch.save(build().state_dict(), tmp_path / "w.pt")
    given = {"files": [tmp_path / "w.pt"], "input_size": "3x8x8", "max_sigma": 100, "model": model, **asked}
    heard = Heard()
    (found,) = inspect_files.run(InspectConfig.model_validate(given), heard)
    assert any(row.values is not None for row in found) is has_values
    assert any("bounds alone are proved" in text for text in heard.notices) is not has_values
    assert {row.gate for row in found if not row.is_normalization} == {"proved"}


def build() -> nn.Module:
    return network()


def test_the_ratio_is_of_largest_values_and_layers_of_one_file_have_dashes() -> None:
    first = svdctl.spectrum(network(), (3, 8, 8), name="one")
    second = svdctl.spectrum(nn.Sequential(*network(_0=2.0), nn.Conv2d(4, 2, 1)), (3, 8, 8), name="two")
    assert are_comparable([first, second])
    table = comparison_table(first, second)
    rows = {row["name"]: row for row in records(table)}
    assert rows["0"]["ratio"] == pytest.approx(2.0, rel=1e-5)
    assert rows["3"]["ratio"] == pytest.approx(1.0)
    assert rows["4"]["ratio"] is None
    assert rows["4"]["largest_circular_a"] is None
    text = text_tables([first, second], width=100)
    assert text.startswith("a: one\nb: two\n")
    assert text.count("Lipschitz bound") == 2


def test_files_with_other_layers_stand_one_below_the_other() -> None:
    first = svdctl.spectrum(network(), (3, 8, 8), name="one")
    other = svdctl.spectrum(nn.ModuleDict({"x": nn.Conv2d(3, 3, 1)})["x"], (3, 8, 8), name="two")
    assert not are_comparable([first, other])
    assert not are_comparable([first, first, first])
    assert text_tables([first, other]).startswith("one\nlayer")


def test_a_bound_is_never_rounded_down() -> None:
    found = svdctl.spectrum(network(), (3, 8, 8))
    for row, line in zip(found, text_table(found).splitlines()[2:], strict=False):
        assert row.bound is not None
        assert row.is_normalization or any(
            float(word) >= row.bound.upper > float(word) * 0.998
            for word in line.split()
            if re.fullmatch(r"[\d.]+", word)
        )
