"""No process of any command imports a module of the current folder, where a download may have put anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.small import make, write_preset
from tests.reproduce.conftest import tiny

__all__ = ["tiny"]

ROOT = Path(__file__).parents[2]
NAMES = (
    "torch",
    "numpy",
    "sitecustomize",
    "usercustomize",
    "typer",
    "pydantic",
    "matplotlib",
    "lightning_fabric",
    "PIL",
)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with modules that leave a trace and end whatever imports them."""
    folder = tmp_path / "download"
    folder.mkdir()
    for name in NAMES:
        code = f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\nraise SystemExit('the wrong module')\n"
        (folder / f"{name}.py").write_text(code)
    return folder


def _run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "svdctl", *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False,
        timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert not (folder.parent / "ran").exists(), done.stderr
    assert "the wrong module" not in done.stderr + done.stdout
    return done


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect-spectrum", "none.pt"),
        *(
            pytest.param(arguments, marks=pytest.mark.slow)
            for arguments in (
                ("train", "--resume", "none"), ("train-lipconv", "--resume", "none"), ("eval-robust", "none.pt"),
                ("reproduce", "none"),
            )
        ),
    ],
)  # fmt: skip
def test_no_command_imports_modules_of_the_current_folder(arguments: tuple[str, ...], hostile: Path) -> None:
    (hostile / "none.pt").touch()  # of files that are not there it is said before anything heavy is imported
    done = _run(hostile, *arguments)
    assert done.returncode == 2, done.stderr
    assert "none" in done.stderr


@pytest.mark.slow
def test_nor_do_the_processes_of_a_training_and_what_follows_it(hostile: Path, tmp_path: Path) -> None:
    preset = write_preset(tmp_path, make(tmp_path, epochs=1))
    done = _run(hostile, "train", "--preset", preset, "--devices", "2", "--accelerator", "cpu")
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    plot = tmp_path / "a.png"
    assert _run(hostile, "inspect-spectrum", run / "last.pt", "--plot", plot).returncode == 0
    assert plot.is_file()
    assert _run(hostile, "eval-robust", run, "--metrics", "accuracy", "ece").returncode == 0


@pytest.mark.slow
def test_nor_do_the_workers_of_a_sweep(hostile: Path, tmp_path: Path, tiny: Path) -> None:
    done = _run(hostile, "reproduce", tiny, "--jobs", "2", "--out-dir", tmp_path / "runs", "--seeds", "1", "2")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_nor_do_the_workers_of_ray(hostile: Path, tmp_path: Path, tiny: Path) -> None:
    """Ray adds the current folder to the places where its workers look for modules."""
    pytest.importorskip("ray")
    wanted = ("--scale", "smoke", "--rows", "none-full", "--seeds", "1")
    done = _run(hostile, "reproduce", tiny, *wanted, "--engine", "ray", "--out-dir", "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((hostile / "runs").glob("*/last.pt"))
