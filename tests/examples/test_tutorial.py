"""The tutorial is true: all its lines run in order, and do what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/tutorial.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    names = folder / "bin"
    names.mkdir(exist_ok=True)
    (names / "svdctl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m svdctl "$@"\n')
    (names / "svdctl").chmod(0o755)
    path = f"{names}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SVDCTL_CACHE": "off"}
    return subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_tutorial_from_training_to_certificates(tmp_path: Path) -> None:
    train, look, gate, free, compare, certify = blocks("sh")
    done = shell(train, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4.0000" in done.stdout
    (run,) = (tmp_path / "runs").glob("first-*")
    assert (run / "curves.png").exists()

    done = shell(look, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "<= 4, proved" in done.stdout
    assert (tmp_path / "spectrum.png").exists()
    assert (tmp_path / "spectrum.html").exists()
    assert shell(gate, tmp_path).returncode == 0
    closed = shell(gate.replace("--max 4", "--max 3"), tmp_path)
    assert closed.returncode == 1
    assert "layer3.0.conv2" in closed.stderr

    assert shell(free, tmp_path).returncode == 0
    (python,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", python], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "layer3.0.conv2" in done.stdout

    done = shell(compare, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "apgd-ce L2 0.5" in done.stdout
    again = shell(compare, tmp_path)
    assert "kept" in again.stdout

    done = shell(certify, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "at 36/255" in done.stdout


def test_the_tutorial_promises_ten_minutes() -> None:
    minutes = [int(number) for number in re.findall(r"^## .*, (\d+) minutes?$", PAGE.read_text(), re.M)]
    assert len(minutes) >= 5
    assert sum(minutes) <= 10
