"""What Windows lacks is missed in a sentence, and no import fails for it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import svdctl
from tests.distributed.start import ROOT

WITHOUT = """
import os, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
del signal.SIGHUP
for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NOCTTY", "O_NONBLOCK", "O_PATH", "sched_getaffinity", "set_blocking"):
    delattr(os, name)
sys.path.insert(0, {root!r})
"""


def run_without(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code where Python has none of what Windows lacks."""
    whole = WITHOUT.format(root=str(ROOT)) + code
    return subprocess.run([sys.executable, "-c", whole, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_library_works(tmp_path: Path) -> None:
    svdctl.save(torch.nn.Conv2d(3, 4, 3), tmp_path / "a.pt")
    code = """
import pkgutil, importlib
import svdctl, torch
layer = torch.nn.Conv2d(3, 4, 3)
svdctl.clip_(layer, max_sigma=0.1)
assert svdctl.spectral_norm_bound(layer).upper <= 0.1
svdctl.load(sys.argv[1], torch.nn.Conv2d(3, 4, 3))
skipped = ("svdctl.__main__", "svdctl.integrations", "svdctl.train.loggers", "svdctl.reproduce.worker")
for found in pkgutil.walk_packages(svdctl.__path__, "svdctl."):
    if not found.name.startswith(skipped):
        importlib.import_module(found.name)
"""
    done = run_without(code, str(tmp_path / "a.pt"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["train", "train-lipconv", "eval-robust", "reproduce"])
def test_commands_that_hold_folders_are_refused_in_a_sentence(command: str, tmp_path: Path) -> None:
    code = "sys.argv[0] = 'svdctl'\nfrom svdctl.cli.app import main\nmain()"
    done = run_without(code, command, "--out-dir", str(tmp_path))
    assert done.returncode == 2
    assert "locks that Windows does not have; run this in WSL" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
