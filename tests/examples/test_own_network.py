"""The page about a user's own network and pictures is true: all its lines run in order, and a kill changes nothing."""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import svdctl
from svdctl.checkpoint.checkpoint_file import read_checkpoint, write_checkpoint
from svdctl.train.metrics_log import read_log
from tests.train.test_resume import tensors, without_times

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/own-network.md"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)


def environment(folder: Path) -> dict[str, str]:
    """Commands of the page by their names: `svdctl` and `python` are those of this environment."""
    names = folder / "bin"
    names.mkdir(exist_ok=True)
    for name, call in (("svdctl", "-m svdctl"), ("python", "")):
        (names / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n')
        (names / name).chmod(0o755)
    path = f"{names}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "SVDCTL_CACHE": "off"}


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, shell=True, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )


def run_of(folder: Path, name: str) -> Path:
    (found,) = (folder / "runs").glob(f"{name}-*")
    return found


def kept(run: Path) -> dict[str, Any]:
    """Return all that a user keeps of a run but times and places."""
    found: dict[str, Any] = {"log": [without_times(line) for line in read_log(run / "metrics.jsonl")]}
    for file in ("last.pt", "best.pt"):
        checkpoint = read_checkpoint(run / file)
        found[file] = tensors({"model": checkpoint.model, "training": checkpoint.training})
        found[f"figures of {file}"] = without_times(checkpoint.metrics)
    return found


def killed(command: str, folder: Path, name: str) -> None:
    """Start a training, and kill it with all its threads once it has made an epoch."""
    process = subprocess.Popen(
        command, shell=True, cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL, start_new_session=True
    )
    while not list((folder / "runs").glob(f"{name}-*/last.pt")):
        assert process.poll() is None
        time.sleep(0.2)
    time.sleep(2)
    assert process.poll() is None
    os.killpg(process.pid, 9)
    process.wait()


def assert_same(run: Path, whole: Path) -> None:
    mine, undisturbed = kept(run), kept(whole)
    assert mine.keys() == undisturbed.keys()
    for what, wanted in undisturbed.items():
        if what.endswith(".pt") and not what.startswith("figures"):
            assert mine[what].keys() == wanted.keys()
            assert [key for key in wanted if not torch.equal(mine[what][key], wanted[key])] == [], what
        else:
            assert mine[what] == wanted, what


def assert_gate_closes(gate: str, run: Path, layer: str, folder: Path) -> None:
    """Check that the page's gate lets the run pass, and not once a layer reaches more than its maximum of 4."""
    done = shell(gate, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    checkpoint = read_checkpoint(run / "last.pt")
    lower = svdctl.spectral_norm_bound(svdctl.load(run).get_submodule(layer)).lower
    weight = checkpoint.model[f"{layer}.weight"] * (4.1 / lower)
    write_checkpoint(run / "last.pt", replace(checkpoint, model={**checkpoint.model, f"{layer}.weight": weight}))
    closed = shell(gate, folder)
    write_checkpoint(run / "last.pt", checkpoint)
    assert closed.returncode == 1
    assert layer in closed.stderr
    assert "above 4" in closed.stderr


def test_the_page_from_pictures_to_onnx(tmp_path: Path) -> None:
    draw, train, resume, evaluate, gate, _ = blocks("sh")
    (tmp_path / "draw_shapes.py").write_text((ROOT / "examples/draw_shapes.py").read_text())
    assert shell(draw, tmp_path).returncode == 0

    killed(train, tmp_path, "shapes")
    done = shell(resume, tmp_path)
    assert done.returncode == 0, done.stderr
    whole = shell(train.replace("--name shapes", "--name whole"), tmp_path)
    assert whole.returncode == 0, whole.stderr
    run = run_of(tmp_path, "shapes")
    assert_same(run, run_of(tmp_path, "whole"))
    assert max(line["val_acc"] for line in read_log(run / "metrics.jsonl") if line["kind"] == "epoch") > 0.6
    shell("rm -r runs/whole-*", tmp_path)

    done = shell(evaluate, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for metric in ("accuracy", "ECE", "3 corruptions", "AutoAttack", "certified 36/255"):
        assert metric in done.stdout, metric

    assert_gate_closes(gate, run, "model.layer3.0.conv1", tmp_path)

    (handed_on,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", handed_on], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    images = torch.rand(1, 3, 64, 64)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(tmp_path / "shapes.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, svdctl.load(run)(images).numpy(), rtol=1e-3, atol=1e-4)


def test_a_timm_network_is_killed_and_resumed_under_division(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    draw, _, _, evaluate, _, other = blocks("sh")
    train, gate = other.strip().replace("\\\n", "").splitlines()
    (tmp_path / "draw_shapes.py").write_text((ROOT / "examples/draw_shapes.py").read_text())
    assert shell(draw, tmp_path).returncode == 0
    killed(train, tmp_path, "convnext")
    resumed = shell("svdctl train --resume runs/convnext-*", tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert shell(train.replace("--name convnext", "--name whole"), tmp_path).returncode == 0
    run = run_of(tmp_path, "convnext")
    assert_same(run, run_of(tmp_path, "whole"))
    shell("rm -r runs/whole-*", tmp_path)
    done = shell(evaluate, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "certified" in done.stdout + done.stderr

    assert_gate_closes(gate, run, "model.stages.0.blocks.0.conv_dw", tmp_path)

    plain = svdctl.to_plain(svdctl.load(run), torch.rand(1, 3, 64, 64))
    torch.onnx.export(plain, (torch.rand(1, 3, 64, 64),), tmp_path / "net.onnx", dynamo=True)
    assert (tmp_path / "net.onnx").stat().st_size > 1000
