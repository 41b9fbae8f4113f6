"""What the plan of a training says of its device."""

from pathlib import Path
from typing import Any

import pytest
import torch

from svdctl.cli.training_flags import LIPCONV, TRAIN, resolve
from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import Controller
from svdctl.data.images import ImageData
from svdctl.errors import UsageError
from svdctl.models.build import build_model
from svdctl.train.run_plan import data_line, found_device_line, plan, selection
from svdctl.train.setup import Parts
from tests.train.test_captured_steps import KINDS as CAPTURED_KINDS
from tests.train.test_captured_steps import STEPS
from tests.train.test_captured_steps import make as make_captured

QR = {"kind": "tt", "rank": 6, "frames": {"kind": "retract", "method": "qr"}}


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


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, "steps are CUDA graphs."),
        ({"layer": QR}, "steps run eagerly: QR of frames may wait for the device."),
        ({"layer": QR, "control": {"kind": "clip"}}, "steps run eagerly: QR of frames may wait for the device."),
        (
            {"control": {"kind": "clip", "every_steps": 1}},
            "steps run eagerly: clip reads singular values back in every step.",
        ),
        ({"control": {"kind": "clip", "every_steps": 50}}, "steps are CUDA graphs, but those with a clip."),
        (
            {"control": {"kind": "divide", "procedure": "paper"}},
            "steps run eagerly: divide reads singular values back in every step.",
        ),
        ({"control": {"kind": "none"}, "layer": {"kind": "standard"}}, "steps are CUDA graphs."),
        ({"hardware": {"precision": "16-mixed"}}, "steps run eagerly: 16-mixed reads the scale of the loss"),
        ({"hardware": {"devices": 2}}, "steps run eagerly: messages between processes are not captured: torch"),
    ],
)
def test_the_plan_says_which_steps_are_cuda_graphs(changes: dict[str, Any], wanted: str) -> None:
    table = resolve({"preset": "quickstart"}).config.model_dump()
    hardware = {"accelerator": "cuda", **changes.get("hardware", {})}
    lines = plan(TrainConfig.model_validate({**table, **changes, "hardware": hardware}), "test")
    (line,) = [line for line in lines if line.startswith("device")]
    assert f", {wanted}" in f"{line}."


@pytest.mark.parametrize("kind", CAPTURED_KINDS)
def test_the_plan_says_of_every_kind_of_training_what_its_controller_does(tmp_path: Path, kind: str) -> None:
    config = make_captured(tmp_path / "data.npz", kind, accelerator="cuda")
    controller = Controller.from_config(build_model(config, 3), None, config.control, config.batchnorm)
    (line,) = [line for line in plan(config, "test") if line.startswith("device")]
    captured = {controller.why_not_captured(step) is None for step in range(1, STEPS + 1)}
    wanted = {(True,): "graphs", (False,): "device", (False, True): f"but those with a {config.control.kind}"}
    assert line.endswith(wanted[tuple(sorted(captured))])


def test_a_run_that_has_gone_over_to_qr_is_said_to_be_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    config = resolve({"preset": "quickstart", "accelerator": "cuda"}).config
    lines = [found_device_line(config, torch.device("cuda"), 1, by_qr=by_qr) for by_qr in (False, True)]
    assert lines == [
        "runs on  card, steps are CUDA graphs",
        "runs on  card, steps run eagerly: QR of frames may wait for the device",
    ]


def test_a_place_for_runs_that_is_no_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("/dev/null", tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UsageError, match="is a file; give `out_dir` a folder"):
            device_line(out_dir=place)
    (tmp_path / "link").symlink_to("none")
    for place in (tmp_path / "link", tmp_path / "link/below"):
        with pytest.raises(UsageError, match="link is a link to nothing; give `out_dir` a folder"):
            device_line(out_dir=place)
    assert device_line(out_dir=tmp_path / "new/below")
    assert not (tmp_path / "new").exists()


def parts(images: torch.Tensor, *own: str) -> Parts:
    data = ImageData(images, torch.zeros(len(images), dtype=torch.int64), ("a",))
    return Parts(data, data, data, dict.fromkeys(("training", "test", *own), ""))


def test_it_is_told_what_the_channels_are_and_how_images_change() -> None:
    config = resolve({"preset": "quickstart", "set": ["augment.crop=2", "augment.flip=true"]}).config
    grey = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1).repeat(1, 3, 4, 4)
    coloured = grey.clone()
    coloured[99, 1, 2, 2] += 1  # of the last image, one pixel
    assert "4 x 4 grey, as three equal channels; " in data_line(config, parts(grey))
    assert "4 x 4 colour; " in data_line(config, parts(coloured))
    assert "4 x 4 grey; " in data_line(config, parts(grey[:, :1]))
    assert data_line(config, parts(grey)).endswith("augmentation: random flips, random crops after padding by 2 zeros")
    mirrored = resolve({"preset": "quickstart", "set": ["augment.crop=3", "augment.pad=symmetric"]}).config
    assert "padding by 3 mirrored pixels" in data_line(mirrored, parts(grey))


def test_it_is_told_which_images_pick_the_best_epoch() -> None:
    images = torch.zeros(90, 3, 4, 4, dtype=torch.uint8)
    config = resolve({"preset": "quickstart", "select": "validation"}).config
    wanted = "90 images set apart from the training part pick the best epoch"
    assert selection(config, parts(images)) == wanted
    assert selection(config, parts(images, "validation")) == "the data set's validation part picks the best epoch"


def test_the_device_that_was_found_repeats_nothing_of_the_one_asked_for() -> None:
    config = resolve({"preset": "quickstart", "accelerator": "cpu"}).config
    threads = torch.get_num_threads()
    cpu = f"runs on  {threads} thread{'s' * (threads > 1)} of the CPU"
    # Of CUDA graphs nothing is said where there is no CUDA device.
    assert found_device_line(config, torch.device("cpu"), 1) == cpu
    compiled = resolve({"preset": "quickstart", "accelerator": "cpu", "compile": True}).config
    assert found_device_line(compiled, torch.device("cpu"), 1).startswith(f"{cpu}, compiled (")
    (line,) = [line for line in plan(config, "test") if line.startswith("device")]
    assert line == "device   cpu, precision 32"
