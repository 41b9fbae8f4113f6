"""Write the fixture of checkpoint format 1: a run folder and its results, as the version of commit 5837a72 made them.

Run it with a checkout of that commit, in a folder of its own:

    PYTHONPATH=CHECKOUT python tests/checkpoint/write_format_1.py tests/checkpoint/format_1.json

The run is stopped by Ctrl-C in its third epoch; `end` are the weights that it ends with when nothing stops it.
"""

import json
import os
import signal
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from text_arrays import to_text  # type: ignore[import-not-found]  # it lies beside this script

PRESET = """
name = "old"
epochs = 4
batch_size = 256

[data]
kind = "digits"

[augment]
flip = false
crop = 2
pad = "zero"

[model]
kind = "wrn"
depth = 10
width = 1

[layer]
kind = "tt"
rank = 2
frames = { kind = "retract", method = "polar" }

[control]
kind = "divide"
max = 2.5
every = 3
linear_max = 4

[batchnorm]
max = 8
every = 2

[optimizer]
kind = "sgd"
lr = 0.05
momentum = 0.9
nesterov = true
weight_decay = 1e-4

[schedule]
kind = "cosine"
warmup = 0.05

[checkpoint]
every = 2

[evaluation]
select = "validation"
every = 1

[log]
every = 1
singular_values = true
"""
STOP = 16
"""The step after which the run is stopped: the fourth of its third epoch."""
METRICS = ("accuracy", "ece", "cifar-c", "autoattacks", "certified")
SETTINGS = (
    "--corruptions",
    "contrast",
    "--severities",
    "1",
    "--corruption-examples",
    "40",
    "--attacks",
    "apgd-ce",
    "--examples",
    "8",
)


class Silent:
    """A reporter that stops the run at a step as Ctrl-C would."""

    def __init__(self, stop: int | None) -> None:
        self.stop = stop

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        if done == self.stop:
            os.kill(os.getpid(), signal.SIGINT)

    def start(self, total_steps: int, done: int) -> None: ...

    def evaluated(self, metrics: Mapping[str, float]) -> None: ...

    def plan(self, lines: Sequence[str]) -> None: ...

    def notice(self, text: str) -> None: ...

    def finished(self, result: Any) -> None: ...


def main(target: Path) -> None:
    from svdctl.cli.main import main as command
    from svdctl.config.train import TrainConfig
    from svdctl.recipes import train

    torch.set_num_threads(1)
    os.chdir(tempfile.mkdtemp())
    config = TrainConfig.model_validate(tomllib.loads(PRESET))
    folder, whole = (train.run(config, base="fixture", reporter=Silent(stop)).folder for stop in (STOP, None))
    sys.argv = ["svdctl", "eval-robust", str(folder), "--metrics", *METRICS, *SETTINGS]
    try:
        command()
    except SystemExit as ended:
        assert not ended.code
    (results,) = Path().rglob("results.json")
    details = (results.parent / "details").iterdir()
    files = {
        str(path): path.read_text() for path in (folder / "config.toml", folder / "metrics.jsonl", results, *details)
    }
    contents = json.loads(files[str(results)])
    for record in contents["records"]:
        record["environment"] = {}  # of the machine that wrote the fixture
    files[str(results)] = json.dumps(contents)
    state = {
        "files": files,
        "folder": str(folder),
        "checkpoints": {name: torch.load(folder / name, weights_only=True) for name in ("last.pt", "best.pt")},
        "end": torch.load(whole / "last.pt", weights_only=True)["model"],
    }
    target.write_text(to_text(state), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
