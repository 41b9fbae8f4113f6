"""What the plan of a training says of its device."""

from pathlib import Path
from typing import Any

import pytest

from svdctl.cli.training_flags import LIPCONV, TRAIN, resolve
from svdctl.errors import UsageError
from svdctl.train.run_plan import plan


def device_line(command: Any = TRAIN, **flags: Any) -> str:
    preset = "quickstart" if command is TRAIN else "lipconv-quickstart"
    (line,) = [line for line in plan(resolve({"preset": preset, **flags}, command).config, "test") if "device" in line]
    return line


@pytest.mark.parametrize(
    ("flags", "wanted", "unwanted"),
    [
        ({"new_layer": "standard", "accelerator": "cuda"}, "5.4 ms a step, 7.4 ms without", "not measured"),
        ({"new_layer": "standard", "accelerator": "cuda", "capture": "off"}, "measured for CUDA graphs alone", " ms"),
        ({"new_layer": "standard", "accelerator": "cpu"}, "measured for CUDA graphs alone", " ms"),
        ({"accelerator": "cuda"}, "not measured for TT layers", " ms"),
        ({"accelerator": "cuda", "command": LIPCONV, "conv_type": "skew"}, "not measured for SOC layers", " ms"),
        ({"accelerator": "cuda", "command": LIPCONV}, "not measured for SOTT layers", " ms"),
    ],
)
def test_the_plan_says_what_compiling_is_known_to_gain(flags: dict[str, Any], wanted: str, unwanted: str) -> None:
    compiled = device_line(**flags, compile=True)
    assert wanted in compiled
    assert unwanted not in compiled
    assert "compiling takes some 20 s" in compiled
    assert "compil" not in device_line(**flags)


def test_a_place_for_runs_that_is_no_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("/dev/null", tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UsageError, match="is a file; give `out_dir` a folder"):
            device_line(out_dir=place)
    assert device_line(out_dir=tmp_path / "new/below")
    assert not (tmp_path / "new").exists()
