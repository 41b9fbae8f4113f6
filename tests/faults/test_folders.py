"""Run folders that are not what they seem: links are refused, and of two commands in one folder the second is."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from svdctl.errors import UnusableFolderError
from svdctl.evaluate.results import held
from svdctl.train import start as recipe
from svdctl.utils.progress import Reporter
from svdctl.utils.run_dir import create_run_folder
from tests.faults.small import Command, make, only_run, resume, run_folder, train, unchanged


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run")
    assert train(folder, make(folder, epochs=1)).end().code == 0
    return only_run(folder)


def test_a_link_for_a_run_folder(run: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(run)
    with unchanged(run / "last.pt", run / "metrics.jsonl"):
        for path in (link, link / "last.pt"):
            ended = resume(tmp_path, path).end()
            assert ended.code == 2
            assert f"{link} is a link to {run}" in ended.sentence


@pytest.mark.parametrize("name", ["metrics.jsonl", ".lock", "curves.png", "config.toml", "notes"])
def test_a_link_within_a_run_folder(run: Path, tmp_path: Path, name: str) -> None:
    """A log or a lock that is a link would overwrite what it points at."""
    target = tmp_path / "precious"
    target.write_text("mine")
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to(target)
    with unchanged(target):
        ended = resume(tmp_path, copy).end()
    assert ended.code == 2
    assert f"{copy / name} is a link to {target}" in ended.sentence


def test_a_link_where_results_would_go(run: Path, tmp_path: Path) -> None:
    for name in ("", "results.json"):
        folder = tmp_path / f"results{len(name)}"
        target = tmp_path / f"target{len(name)}"
        if name:
            folder.mkdir()
            target.write_text("{}")
            (folder / name).symlink_to(target)
        else:
            target.mkdir()
            folder.symlink_to(target)
        with pytest.raises(UnusableFolderError, match="is a link to"), held(folder):
            raise AssertionError("it was held")
    assert not list((tmp_path / "target0").iterdir())


def test_a_name_that_is_taken_by_a_link_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody foresees the name of the next run folder."""
    monkeypatch.setattr(time, "strftime", lambda form, *moment: "20300101-000000" if "%H%M" in form else "then")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run-20300101-000000").symlink_to(tmp_path / "elsewhere")
    assert create_run_folder(tmp_path, "run").name == "run-20300101-000000-2"


# Two commands.


def test_two_commands_in_one_folder(tmp_path: Path) -> None:
    """The second is refused while the first lives, however it is asked; death gives the folder back."""
    config = make(tmp_path, "checkpoint.every_steps=3", epochs=4000)
    first = train(tmp_path, config)
    first.wait_for(run_folder(tmp_path))
    run = only_run(tmp_path)
    seconds = [resume(tmp_path, run), resume(tmp_path, run / "last.pt"), resume(tmp_path, run)]
    for second in seconds:
        ended = second.end()
        assert ended.code == 2
        assert f"another process trains in {run}" in ended.sentence
    assert first.running
    first.signal(9)
    assert first.end().code == -9
    third = resume(tmp_path, run)
    third.wait_for(lambda: "resume" in third.out.read_text() if third.out.exists() else False)
    before = (run / "last.pt").stat().st_ino
    third.wait_for(lambda: (run / "last.pt").stat().st_ino != before)
    third.signal(15)
    assert third.end().code == 130


def test_a_folder_of_results_that_is_held_or_a_link(run: Path, tmp_path: Path) -> None:
    """Exit code 2: nothing was begun."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    arguments = ["eval-robust", copy, "--metrics", "accuracy"]
    with held(copy / "eval-last"):
        ended = Command(arguments, tmp_path / "log").end()
    assert ended.code == 2
    *_, sentence = ended.err.strip().splitlines()
    assert (
        f"svdctl: another process evaluates in {copy / 'eval-last'}; wait for it, or give another --out-dir" in sentence
    )
    assert not (copy / "eval-last/results.json").exists()
    shutil.rmtree(copy / "eval-last")
    (tmp_path / "target").mkdir()
    (copy / "eval-last").symlink_to(tmp_path / "target")
    ended = Command(arguments, tmp_path / "log").end()
    assert ended.code == 2
    assert f"{copy / 'eval-last'} is a link to {tmp_path / 'target'}" in ended.err
    assert not list((tmp_path / "target").iterdir())


def test_a_command_that_read_what_another_has_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading a checkpoint and holding its folder another command may come and go."""
    command = train(tmp_path, make(tmp_path, "checkpoint.every_steps=3", epochs=40))
    command.wait_for(run_folder(tmp_path))
    command.signal(15)
    assert command.end().code == 130
    run = only_run(tmp_path)
    real = recipe.load_parts

    def meanwhile(config: Any, **named: Any) -> Any:
        other = resume(tmp_path, run)
        before = (run / "last.pt").stat().st_ino
        other.wait_for(lambda: (run / "last.pt").stat().st_ino != before)
        other.signal(15)
        assert other.end().code == 130
        return real(config, **named)

    monkeypatch.setattr(recipe, "load_parts", meanwhile)
    with pytest.raises(UnusableFolderError, match="went on in"):
        recipe.resume(run, reporter=Reporter())
