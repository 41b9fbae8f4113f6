"""Run folders and results of a stranger: what their files ask for is not done unless this command asks for it too."""

import json
import os
import urllib.request
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from svdctl.config.run_config import Log
from svdctl.data.cifar import Cifar10
from svdctl.data.data_source import load
from svdctl.errors import DataError, SvdctlError
from svdctl.evaluate.find_checkpoints import discover
from svdctl.evaluate.results import ResultStore, held, write_rows
from svdctl.evaluate.runner import run as evaluate
from svdctl.registry import LOGGERS
from svdctl.train import start as recipe
from svdctl.utils.atomic_write import remove_unfinished, write_atomically
from tests.evaluate.small import make as evaluation_of
from tests.faults.small import make
from tests.train.cifar_files import write_cifar
from tests.train.test_resume import draw_nothing
from tests.train.test_runs import Recorder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped in its second epoch."""
    draw_nothing(monkeypatch)
    part = recipe.run(make(tmp_path, epochs=3), base="test", reporter=Recorder(interrupt_after=6))
    assert not part.completed
    return part.folder


def _asks(run: Path, **sections: dict[str, Any]) -> None:
    """Have the checkpoint of a run ask for something else."""
    contents = torch.load(run / "last.pt", weights_only=True)
    table = json.loads(contents["config"])
    for name, section in sections.items():
        table[name] = section if name == "data" else {**table[name], **section}
    torch.save({**contents, "config": json.dumps(table)}, run / "last.pt")
    (run / "config.toml").unlink()


class _Silent:
    def write(self, line: object) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "log",
    [
        {"wandb": "online", "wandb_project": "theirs"},
        {"loggers": [{"kind": "wandb", "mode": "online", "project": "theirs"}]},
    ],
)
def test_no_log_goes_online_because_a_file_says_so(log: dict[str, Any], run: Path) -> None:
    _asks(run, log=log)
    recorder = Recorder()
    with patch.object(type(LOGGERS.get("wandb")), "open", return_value=_Silent()) as opened:
        assert recipe.resume(run, reporter=recorder).completed
    assert opened.call_args.args[1].mode == "offline"
    (said,) = [text for text in recorder.lines if "a file alone sends nothing" in text]
    assert "add `log.wandb = online`" in said


def test_it_does_when_the_command_says_so(run: Path) -> None:
    _asks(run, log={"wandb": "online"})
    with patch.object(type(LOGGERS.get("wandb")), "open", return_value=_Silent()) as opened:
        changes = {"log": {"wandb": Log(wandb="online").wandb}}
        assert recipe.resume(run, reporter=Recorder(), changes=changes).completed
    assert opened.call_args.args[1].mode == "online"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of the network, which is not there."""
    requests: list[Any] = []

    def no_network(request: Any, *arguments: Any, **named: Any) -> None:
        requests.append(request)
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return requests


def test_nothing_is_downloaded_and_no_folder_made_because_a_file_says_so(
    run: Path, tmp_path: Path, asked: list[Any]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    _asks(run, data={"kind": "cifar10", "root": str(elsewhere)})
    before = sorted(run.iterdir())
    with pytest.raises(DataError, match=r"a file alone downloads nothing; name its folder with `data\.root`"):
        recipe.resume(run, reporter=Recorder())
    assert not elsewhere.exists()
    assert not asked
    assert sorted(run.iterdir()) == before
    with pytest.raises(SvdctlError):
        recipe.resume(run, reporter=Recorder(), changes={"data": {"root": tmp_path / "mine"}})
    assert asked


def test_an_evaluation_downloads_nothing_because_a_file_says_so(
    run: Path, tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither to the place in the file nor elsewhere, unless the command names one."""
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    _asks(run, data={"kind": "cifar10", "root": str(elsewhere)})
    (failure,) = evaluate(evaluation_of(run, metrics=["accuracy"]), reporter=Recorder()).failures
    assert "a file alone downloads nothing; name its folder with `data.root`" in str(failure.error)
    assert not asked
    assert not elsewhere.exists()
    assert not (tmp_path / "data").exists()
    (failure,) = evaluate(
        evaluation_of(run, metrics=["accuracy"], dataset_root=tmp_path / "mine"), reporter=Recorder()
    ).failures
    assert asked
    assert not elsewhere.exists()


def test_data_that_are_there_are_read_without_the_right_to_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path, 10, monkeypatch)
    assert len(load(Cifar10(root=tmp_path), download=False).train) == 16
    (tmp_path / "cifar-10-batches-py/test").write_bytes(b"other")
    with pytest.raises(DataError, match="is not complete"):
        load(Cifar10(root=tmp_path), download=False)


def test_a_plugin_that_a_checkpoint_needs_is_named_and_not_imported(run: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "evil.py"
    plugin.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    contents = torch.load(run / "last.pt", weights_only=True)
    table = {**json.loads(contents["config"]), "plugins": [str(plugin)], "layer": {"kind": "theirs"}}
    torch.save({**contents, "config": json.dumps(table)}, run / "last.pt")
    with pytest.raises(SvdctlError, match=r"add `plugin = .*evil\.py`"):
        recipe.resume(run, reporter=Recorder())
    assert not (tmp_path / "ran").exists()


# Results.


def _results(folder: Path, details: str) -> ResultStore:
    """Results without checksums, as an older version wrote them, whose figures of images are said to be somewhere."""
    folder.mkdir(exist_ok=True)
    record = {"metric": "theirs", "protocol": {"a": 1}, "results": {"accuracy": 0.5, "count": 2}, "seconds": 1.0,
              "environment": {}, "details": details}  # fmt: skip
    old = {"format": "svdctl.evaluation", "version": 1, "checkpoint": {"weights": "w"}, "records": [record]}
    (folder / "results.json").write_text(json.dumps(old))
    return ResultStore(folder, "w", {})


@pytest.mark.parametrize(
    "details",
    ["../../secret.csv", "/etc/passwd", "details/../../secret.csv", "secret.csv", "details/..", "", "details/\0.csv"],
)  # fmt: skip
def test_details_are_files_in_their_folder(details: str, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    store = _results(tmp_path / "eval", details)
    assert not store.records
    assert "details" in "".join(store.notices)


def test_details_are_not_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    (tmp_path / "eval/details").mkdir(parents=True)
    (tmp_path / "eval/details/a.csv").symlink_to(tmp_path / "secret.csv")
    store = _results(tmp_path / "eval", "details/a.csv")
    assert store.find("theirs", {}, {"a": 1}) is None
    assert "is reached through a link" in "".join(store.notices)


def test_a_linked_run_folder_is_not_evaluated_in_place(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/last.pt").write_bytes(b"a")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    found = discover(evaluation_of(tmp_path / "link"))
    assert not found.checkpoints
    ((_, error),) = found.faults
    assert "is a link to" in str(error)
    assert "`out_dir`" in str(error)
    assert len(discover(evaluation_of(tmp_path / "link", out_dir=tmp_path / "out")).checkpoints) == 1
    assert not (tmp_path / "real/eval-last").exists()


# What a killed process leaves.


def test_what_a_killed_evaluation_left_half_written_is_removed_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "eval"
    left = [
        folder / ".results.json.123.part",
        folder / "details/.a.csv.9.part",
        folder / "unfinished/.attack.pt.77.part",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    (folder / "mine.part").write_text("a person's")
    with held(folder):
        assert not any(path.exists() for path in left)
    assert (folder / "mine.part").exists()


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    def slow(file: Any) -> None:
        file.write(b"new")
        if os.fork() == 0:  # flock is one of the open file: another process opens it anew
            remove_unfinished(tmp_path)
            os._exit(0)
        os.wait()

    write_atomically(tmp_path / "a", slow)
    assert (tmp_path / "a").read_bytes() == b"new"


def test_no_table_is_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "a.csv").symlink_to(victim)
    (tmp_path / f".a.csv.{os.getpid()}.part").symlink_to(victim)
    write_rows(tmp_path / "a.csv", [{"a": 1}])
    assert victim.read_text() == "mine"
    assert (tmp_path / "a.csv").read_text() == "a\n1\n"
    assert not (tmp_path / "a.csv").is_symlink()
