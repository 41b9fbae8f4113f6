"""A table of tiny runs on the embedded digits: seconds each, every step of the way real."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svdctl.reproduce.plan import Plan, make_plan
from svdctl.reproduce.table_files import Request

TINY = """
title = "Tiny networks"
columns = ["compression", "accuracy", "cifar-c", "ece", "autoattack", "control-time"]
set = [
    "data.kind=digits", "augment.flip=false", "model.depth=10", "model.width=1", "batch_size=16", "epochs=2",
    "max_steps=6", "optimizer.lr=0.05", "checkpoint.every_steps=2",
]

[evaluate]
corruptions = ["brightness"]
severities = [1]
corruption_examples = 20
examples = 3
attacks = ["apgd-ce"]

[smoke]
set = ["max_steps=3"]

[[rows]]
name = "none-full"
label = "no control & full_width"
group = "none"
preset = "wrn-cifar10"

[[rows]]
name = "divide-tt8"
label = "divide, TT 8"
group = "divide"
preset = "wrn-cifar10-divide"
set = ["layer.rank=8", "layer.frames.kind=retract"]
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The table file."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def planned(tiny: Path, tmp_path: Path) -> Callable[..., Plan]:
    """The plan of it, for a request with these fields."""

    def plan(**fields: Any) -> Plan:
        return make_plan(Request.model_validate({"tables": [str(tiny)], "out_dir": tmp_path / "runs", **fields}))

    return plan
