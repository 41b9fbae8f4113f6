"""A user's logger is trained with, resumed and refused as one of svdctl's is; `csv_logger.py` is all that it takes."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import pytest

import tests.extending.csv_logger  # noqa: F401  # registers it
from svdctl.config.base import Config
from svdctl.config.run_config import Log
from svdctl.errors import TrainingError, UsageError
from svdctl.registry import LOGGERS
from svdctl.train import start as recipe
from svdctl.train.logger import Logger, LogWriter, RunInfo, RunLog, register_logger
from svdctl.train.metrics_log import read_log
from tests.train.test_runs import Recorder, data, make

__all__ = ["data"]

CSV = 'log.loggers=[{kind="csv", columns=["epoch", "val_acc"]}]'


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "epochs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_has_the_figures_of_the_log_also_after_a_resume(data: Path) -> None:
    config = make(data, CSV, epochs=3)
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=6))
    assert not part.completed
    assert [row["epoch"] for row in rows(part.folder)] == ["1"]
    assert recipe.resume(part.folder, reporter=Recorder()).completed
    lines = [line for line in read_log(part.folder / "metrics.jsonl") if line["kind"] == "epoch"]
    assert rows(part.folder) == [{"epoch": str(line["epoch"]), "val_acc": str(line["val_acc"])} for line in lines]
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[{kind="cvs"}]', "log.loggers.0.kind"),
        ('[{kind="csv", colums=["loss"]}]', "log.loggers.0.colums"),
        ('[{kind="csv", columns=3}]', "log.loggers, item 1"),
    ],
)
def test_a_wrong_section_is_refused_before_the_run(data: Path, text: str, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        make(data, f"log.loggers={text}")


class Faulty(Config):
    """A logger that fails."""

    kind: Literal["faulty"] = "faulty"
    where: Literal["open", "write", "close"] = "write"


class FaultyWriter:
    closed = 0

    def __init__(self, where: str) -> None:
        self._where = where

    def write(self, line: Mapping[str, Any]) -> None:
        if self._where == "write":
            raise ValueError("no room\nfor more")

    def close(self) -> None:
        FaultyWriter.closed += 1
        if self._where == "close":
            raise ValueError("not open")


class FaultyLogger(Logger):
    kind = "faulty"
    config = Faulty

    def open(self, run: RunInfo, config: Faulty) -> LogWriter:
        if config.where == "open":
            raise ValueError("no such place")
        return FaultyWriter(config.where)


@pytest.fixture
def faulty() -> Iterator[None]:
    register_logger(FaultyLogger)
    FaultyWriter.closed = 0
    yield
    LOGGERS._variants.pop("faulty")


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize(("where", "text"), [("open", "no such place"), ("write", "no room"), ("close", "not open")])
def test_a_logger_that_fails_stops_the_run_with_a_sentence_and_all_are_closed(
    data: Path, tmp_path: Path, where: str, text: str
) -> None:
    log = make(data, f'log.loggers=[{{kind="csv"}}, {{kind="faulty", where="{where}"}}]').log
    line = {"kind": "epoch", "step": 1, "epoch": 1, "loss": 1.0, "val_acc": 0.5}

    def use() -> None:
        opened = RunLog(RunInfo(tmp_path, {}), log)
        try:
            opened.write(line)
        finally:
            opened.close()

    with pytest.raises(TrainingError, match=rf"the logger faulty failed \(ValueError: {text}\)"):
        use()
    assert FaultyWriter.closed == (where != "open")
    assert (tmp_path / "metrics.jsonl").is_file()


def test_a_second_logger_of_a_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="registered twice"):
        register_logger(type("Other", (FaultyLogger,), {"kind": "csv"}))


def test_wandb_that_is_named_twice_is_one_run(tmp_path: Path) -> None:
    log = Log.model_validate({"wandb": "offline", "loggers": [{"kind": "wandb", "project": "mine"}]})
    with patch.object(type(LOGGERS.get("wandb")), "open") as opened:
        RunLog(RunInfo(tmp_path, {}), log).close()
    ((_, config),) = (call.args for call in opened.call_args_list)
    assert (config.mode, config.project) == ("offline", "mine")
