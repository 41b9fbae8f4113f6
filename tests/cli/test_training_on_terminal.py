"""A training on a real terminal: what it says at once, what fits, and how it answers Ctrl-C."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.terminal import run_in_terminal

TRAIN = [sys.executable, "-m", "svdctl", "train", "--set", "model.width=1", "--set", "layer.rank=6"]
ENOUGH = {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("columns", [80, *(pytest.param(wide, marks=pytest.mark.slow) for wide in (120, 160))])
def test_every_line_of_a_training_fits(columns: int, tmp_path: Path) -> None:
    command = [*TRAIN, "--epochs", "2"]
    shown = run_in_terminal(command, columns, 60, cwd=tmp_path, env=ENOUGH, scrollback=True)
    lines = shown.splitlines()
    assert lines[0].startswith("svdctl train: preset quickstart (no --preset")
    labels = [line.split(" ")[0] for line in lines if re.match(r"[a-z]+( on)? +\S", line) and line[8:9] == " "]
    wanted = ["device", "runs", "data", "model", "control", "training", "run"]
    assert [label for label in labels if label in wanted] == wanted
    assert "10 classes (0, 1, 2, 3, 4, ...)" in " ".join(shown.split())
    assert "counted with" not in shown
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 2
    assert [epochs[0].index(word) for word in ("loss", "held-out", " s")] == [
        epochs[1].index(word) for word in ("loss", "held-out", " s")
    ]
    layers = [line for line in lines if re.match(r"(conv1|layer\d\S*conv\d|fc) ", line)]
    assert all(len(re.findall(r"\d\.\d{4}", line)) == 2 for line in layers)
    assert len(layers) == 8
    assert "loading torch" not in shown  # what was at work is taken away


def test_ctrl_c_is_answered_with_the_real_path_and_the_run_goes_on(tmp_path: Path) -> None:
    command = [*TRAIN, "--epochs", "200"]
    keys = [("epoch   1/200", "C-c")]
    shown = run_in_terminal(command, 80, 60, keys, code=130, cwd=tmp_path, env=ENOUGH, scrollback=True)
    (run,) = (tmp_path / "runs").iterdir()
    text = " ".join(shown.split())
    assert "note: stopping: " in text
    assert f"saved in runs/{run.name}/last.pt; a second request ends the run at once, with " in text
    assert f"svdctl train --resume runs/{run.name}" in text
    assert (run / "last.pt").exists()


def test_ctrl_c_before_anything_is_there_is_answered_too(tmp_path: Path) -> None:
    keys = [("device   ", "C-c")]
    shown = run_in_terminal(TRAIN, 80, 30, keys, code=130, cwd=tmp_path, env=ENOUGH)
    assert "svdctl: interrupted; nothing was begun" in shown
    assert not (tmp_path / "runs").exists()


def test_lines_of_a_fault_end_at_words(tmp_path: Path) -> None:
    faults = ["--clipping", "divvy", "--architecture", "vgg12", "--opt", "lion", "--model", "torchvision:resnet19"]
    shown = run_in_terminal([*TRAIN, *faults], 80, 40, code=2, cwd=tmp_path, env=ENOUGH)
    piped = subprocess.run([*TRAIN, *faults], cwd=tmp_path, capture_output=True, text=True)
    assert piped.returncode == 2
    assert any(len(line) > 80 for line in piped.stderr.splitlines())
    assert shown.split() == piped.stderr.split()
