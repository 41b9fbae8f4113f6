"""Wrong keys and values in TOML files are told with file, line and key path."""

from collections.abc import Callable
from pathlib import Path

import pytest

from svdctl.cli.training_flags import resolve
from svdctl.config.configuration import configuration
from svdctl.config.presets import to_toml
from svdctl.errors import UsageError
from svdctl.reproduce.plan import make_plan, read_paper_numbers
from svdctl.reproduce.table_files import Request, read_table


def faults_of(call: Callable[[], object]) -> list[str]:
    with pytest.raises(UsageError) as caught:
        call()
    return [*caught.value.faults]


@pytest.mark.parametrize(
    ("text", "flags", "start", "line"),
    [
        ('epochs = 3\n\n[layer]\nkind = "tt"\nrank = -3\n', {}, "layer.rank: -3 is not valid", 5),
        ("# first\nepochs = 0\n", {}, "epochs: 0 is not valid", 2),
        ("epochs = 0\n", {"seed": 1}, "epochs: 0 is not valid", 1),
        ("[control]\nkind = 'clip'\n\nmax_sigm = 3\n", {}, "control.max_sigm: there is no such key", 4),
        ("control.kind = 'clip'\ncontrol.'max_sigm' = 3\n", {}, "control.max_sigm: there is no such key", 2),
        ("[layer]\nkind = 'tt'\nrank = 3\nframes = { kind = 'retract', method = 'q' }\n", {},
         "layer.frames.method: 'q' is not valid", 4),
        ("[optimizer]\nkind = 'sgd'\nlr = 0.1\n[schedule]\nkind = 'cyclic'\nlr_min = 0.2\n", {},
         "schedule.lr_min = 0.2 must be below", 6),
        ("[model]\nkind = 'wrn'\ndepth = 11\n", {}, "a WRN's depth is", 3),
        ("[data]\nkind = 'folder'\n", {}, "data.path: a value is needed", 1),
        ("[[log.loggers]]\nkind = 'mlflow'\n[[log.loggers]]\nkind = 'tensorbord'\n", {}, "log.loggers.1.kind", 4),
        ("[layer]\nkind = 'soc'\n", {}, "layer.kind = 'soc' belongs to LipConvNet", 2),
    ],
)  # fmt: skip
def test_a_users_preset(tmp_path: Path, text: str, flags: dict, start: str, line: int) -> None:
    file = tmp_path / "own.toml"
    file.write_text(text)
    (fault, *_) = faults_of(lambda: resolve({"preset": str(file), **flags}))
    assert fault.startswith(start)
    assert fault.endswith(f" ({file}, line {line})")
    (same, *_) = faults_of(lambda: configuration(str(file)))
    assert same.endswith(f" ({file}, line {line})")


@pytest.mark.parametrize(
    "flags",
    [{"epochs": -1}, {"set": ["epochs=-1"]}, {"set": ["optimizer.lr=-1"]}, {"init_lr": -1.0}, {"set": ["control.x=1"]}],
)
def test_what_a_flag_has_set_is_not_the_files(tmp_path: Path, flags: dict) -> None:
    file = tmp_path / "own.toml"
    file.write_text("epochs = 0\n[optimizer]\nkind = 'sgd'\nlr = 0\n[control]\nkind = 'clip'\n")
    faults = faults_of(lambda: resolve({"preset": str(file), **flags}))
    assert len([fault for fault in faults if ", line " not in fault]) == 1


def test_the_configuration_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    text = to_toml(configuration("quickstart")).replace("max_gain", "max_gian")
    file.write_text(text)
    line = next(number for number, one in enumerate(text.splitlines(), 1) if one.startswith("max_gian"))
    faults = faults_of(lambda: resolve({"preset": str(file)}))
    assert any(fault.startswith("batchnorm.max_gian: ") and fault.endswith(f", line {line})") for fault in faults)


def test_faults_of_shipped_presets_are_those_of_flags() -> None:
    (fault,) = faults_of(lambda: resolve({"preset": "quickstart", "set": ["layer.rank=-1"]}))
    assert ".toml" not in fault


TABLE = """title = "T"
columns = ["accuracy"]

[[rows]]
name = "a"
preset = "wrn-cifar10"

[[rows]]
name = "b"
preset = "wrn-cifar10"
"""


@pytest.mark.parametrize(
    ("text", "fault", "line"),
    [
        (TABLE + "prest = 1\n", "row 'b': prest: there is no such key", 11),
        (TABLE.replace('"accuracy"', '"acuracy"'), "columns: there is no column 'acuracy'", 2),
        (TABLE.replace('"T"', "3"), "title: 3 is not valid", 1),
        (TABLE + "label = 3\n", "row 'b': label: 3 is not valid", 11),
        (TABLE + "[evaluate]\n\nradii = [1]\n", "evaluate.radii: there is no such key", 13),
        ('title = "T"\ncolumns = ["ece"]\nrows = [3]\n', "row 1: 3 is not valid here", 3),
        (TABLE.replace('preset = "wrn-cifar10"\n', "", 1), "row 'a': preset: a value is needed", 4),
        (TABLE + 'set = ["layer.rnak=3"]\n', "row 'b': layer.rnak: there is no such key", 11),
        (TABLE.replace("wrn-cifar10", "wrn-cifr10", 1), "row 'a': there is no preset wrn-cifr10", 6),
    ],
)
def test_a_table_file(tmp_path: Path, text: str, fault: str, line: int) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    (told, *_) = faults_of(lambda: make_plan(Request(tables=(str(file),))))
    assert told.startswith(f"{file}: {fault}")
    assert told.endswith(f" (line {line})")


def test_a_row_whose_preset_is_a_file_names_the_line_there(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("\nepochs = 0\n")
    file = tmp_path / "mine.toml"
    file.write_text(TABLE.replace("wrn-cifar10", "own.toml", 1))
    (told,) = faults_of(lambda: make_plan(Request(tables=(str(file),))))
    assert told.startswith(f"{file}: row 'a': epochs: 0 is not valid")
    assert told.endswith(f" ({tmp_path / 'own.toml'}, line 2)")


def test_a_file_of_the_papers_numbers(tmp_path: Path) -> None:
    table = tmp_path / "tiny.toml"
    table.write_text(TABLE)
    plan = make_plan(Request(tables=(str(table),)))
    file = tmp_path / "paper.toml"
    file.write_text("[tiny.a]\naccuracy = '95'\n[tiny.b]\naccuracy = 1\nacuracy = 3\n[tiny.c]\naccuracy = 2\n")
    assert read_table(table).title == "T"
    faults = faults_of(lambda: read_paper_numbers(file, plan.tables))
    assert sorted(fault.rpartition(" (")[2] for fault in faults) == ["line 2)", "line 5)", "line 6)"]
