"""The paper's flags, presets and `--set`."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svdctl.cli.messages import with_flags
from svdctl.cli.training_flags import TRAIN, resolve
from svdctl.config.presets import list_presets, to_toml
from svdctl.config.train_config import TrainConfig
from svdctl.errors import UsageError


def test_bases() -> None:
    assert "quickstart" in resolve({}).base
    assert resolve({"epochs": 3}).config.data.kind == "digits"
    assert "paper" in resolve({"new_layer": "standard"}).base
    paper = resolve({"dataset": "cifar100", "architecture": "wrn16-10"}).config
    assert (paper.optimizer.lr, paper.epochs, paper.batch_size, paper.seed) == (0.01, 200, 128, 3407)
    assert paper.normalize.mean == (0.5071, 0.4867, 0.4408)
    assert paper.control.kind == "none"
    assert paper.name == "wrn16-10-cifar100"


@pytest.mark.parametrize(
    ("flags", "base"),
    [
        ({}, "preset quickstart (no --preset, --architecture or --new-layer is given)"),
        ({"dataset": "cifar10", "dataset_root": "x"}, "preset quickstart (no "),
        ({"preset": "wrn-cifar10", "new_layer": "standard"}, "preset wrn-cifar10 (--preset names it)"),
        ({"architecture": "vgg19"}, "the paper's defaults (--architecture given)"),
        ({"new_layer": "standard", "dataset": "digits"}, "the paper's defaults (--new-layer given)"),
        ({"new_layer": "standard", "architecture": "vgg19"},
         "the paper's defaults (--architecture and --new-layer given)"),
    ],
)  # fmt: skip
def test_the_base_says_why(flags: dict, base: str) -> None:
    assert resolve(flags).base.startswith(base)


@pytest.mark.parametrize(
    ("flags", "augmented"),
    [
        ({}, (False, 2, "zero")),
        ({"dataset": "digits"}, (False, 2, "zero")),
        ({"dataset": "cifar10"}, (True, 4, "zero")),
        ({"dataset": "cifar100", "gouk_transforms": True}, (True, 4, "symmetric")),
        ({"dataset": "folder:x"}, (True, 4, "zero")),
        ({"dataset": "folder:x", "set": ["data.size=64"]}, (True, 8, "zero")),
        ({"set": ["data={kind='folder', path='x', size=224}"]}, (True, 28, "zero")),
        ({"dataset": "folder:x", "set": ["data.size=64", "augment.crop=3"]}, (True, 3, "zero")),
        ({"dataset": "npz:x"}, (False, 0, "zero")),
        ({"preset": "quickstart", "dataset": "cifar10"}, (False, 2, "zero")),
    ],
)
def test_the_quick_start_is_augmented_as_suits_the_data(flags: dict, augmented: tuple) -> None:
    config = resolve(flags).config
    assert (config.augment.flip, config.augment.crop, config.augment.pad) == augmented
    assert (config.epochs, config.model.width, config.init) == (20, 2, "svdctl")


@pytest.mark.parametrize("more", [{}, {"clipping": "clip", "clip_to": 2.0}, {"new_layer": "tt", "dec_rank": "4"}])
def test_a_network_of_others_takes_optimiser_and_schedule_of_the_quick_start_alone(more: dict) -> None:
    resolved, quick = resolve({"model": "torchvision:resnet18", "dataset": "folder:x", **more}), resolve({}).config
    config = resolved.config
    assert resolved.base == (
        "optimiser and schedule of preset quickstart (--model is given: layers stay as they are, without a control "
        "unless flags say so)"
    )
    for section in ("optimizer", "schedule", "epochs", "batch_size", "evaluation", "init"):
        assert getattr(config, section) == getattr(quick, section), section
    assert config.layer.kind == more.get("new_layer", "standard")
    assert config.control.kind == more.get("clipping", "none")
    assert config.batchnorm is None
    assert (config.augment.flip, config.augment.crop) == (True, 4)
    assert config.name == "resnet18-folder"


def test_runs_on_other_data_are_named_after_them() -> None:
    assert resolve({}).config.name == "quickstart"
    assert resolve({"dataset": "folder:x"}).config.name == "quickstart-folder"
    assert resolve({"dataset": "npz:x", "epochs": 1}).config.name == "quickstart-npz"


def test_set_reaches_every_field_and_switches_kinds() -> None:
    config = resolve({"preset": "wrn-cifar100-clip", "set": ["control.max_sigma=5", "log.wandb=offline"]}).config
    assert (config.control.max_sigma, config.log.wandb) == (5, "offline")
    config = resolve({"preset": "wrn-cifar100-clip", "set": ["control.kind=none", "layer.kind=standard"]}).config
    assert (config.control.kind, config.layer.kind) == ("none", "standard")
    config = resolve({"preset": "wrn-cifar100-clip", "dec_scale": 0.5}).config
    assert (config.layer.rank, config.layer.rank_scale) == (None, 0.5)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"new_layer": "standard", "dec_rank": 3}, "--new-layer tt"),
        ({"new_layer": "standard", "clip_to": 3}, "--clipping"),
        ({"new_layer": "standard", "clip_freq": 3}, "--clipping"),
        ({"new_layer": "standard", "bn_eps": 3}, "--lip-bn"),
        ({"architecture": "wrn16-10", "clipping": "clip", "clip_linear_to": 3}, "--clip-linear"),
        ({"new_layer": "standard", "orthogonal_k": 3}, "--new-layer tt"),
        ({"new_layer": "standard", "clipping": "divide_each_by_largest"}, "--new-layer tt"),
        ({"new_layer": "tt", "dec_rank": 3, "dec_scale": 0.5}, "exclude each other"),
        ({"new_layer": "tt"}, "--dec-rank"),
        ({"new_layer": "tt", "dec_rank": 0}, "--dec-rank"),
        ({"preset": "wrn-cifr10"}, "did you mean wrn-cifar10"),
        ({"set": ["control.max_sigm=3"]}, "did you mean control.max_sigma"),
        ({"set": ["nonsense"]}, "key.path=value"),
        ({"architecture": "resnet50"}, "wrn16-10"),
        ({"architecture": "wrn17-10"}, "6n \\+ 4"),
        ({"dataset": "imagenet"}, "folder:PATH"),
        ({"dataset": "folder:"}, "needs a path"),
        ({"dataset_root": "x"}, "--dataset cifar10"),
        ({"out_dir": "a", "checkpoints_path": "b"}, "the same folder"),
        ({"epochs": 0}, "--epochs"),
    ],
)
def test_each_fault_is_a_sentence_with_the_way_out(flags: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve(flags)


def test_all_faults_are_reported_together() -> None:
    with pytest.raises(UsageError) as caught:
        resolve({"new_layer": "standard", "dec_rank": 3, "clip_to": 2, "bn_eps": 3, "epochs": -1})
    assert len(caught.value.faults) == 4


def test_notices() -> None:
    assert "no effect" in resolve({"multiply_by": 2.0}).notices[0]
    assert "Adam" in resolve({"architecture": "vgg19", "opt": "Adam", "nesterov": True}).notices[0]


VALUES: dict[str, Any] = {
    "dataset": st.sampled_from(["cifar10", "digits", "folder:x", "npz:y", "folder", "what"]),
    "architecture": st.sampled_from(["wrn16-10", "vgg19", "wrn5-1", "x"]),
    "new_layer": st.sampled_from(["tt", "standard", "skew"]),
    "dec_rank": st.integers(-2, 400),
    "dec_scale": st.floats(-1, 2),
    "clipping": st.sampled_from(["clip", "divide_by_largest", "assign", "none", "divide-each-by-largest", "?"]),
    "clip_to": st.floats(-1, 10),
    "clip_freq": st.integers(-1, 10),
    "clip_linear": st.just(True),
    "clip_linear_to": st.floats(-1, 10),
    "lip_bn": st.just(True),
    "bn_eps": st.floats(allow_nan=True),
    "opt": st.sampled_from(["SGD", "Adam", "lion"]),
    "nesterov": st.booleans(),
    "frames": st.sampled_from(["free", "retract", "penalty", "parametrize", "none"]),
    "orthogonal_k": st.floats(-1, 1e6),
    "preset": st.sampled_from([*list_presets(), "nothing"]),
    "set": st.lists(
        st.sampled_from(["a=1", "control=3", "control.max_sigma=", "layer.frames=1", "=", "epochs=x", "a.b.c=[1]"])
    ),
    "epochs": st.integers(-1, 3),
    "devices": st.sampled_from(["auto", "2", "0", "x"]),
    "name": st.text(max_size=3),
    "dataset_root": st.just("x"),
    "out_dir": st.just("x"),
    "checkpoints_path": st.sampled_from(["x", "y"]),
    "multiply_by": st.floats(),
    "gouk_transforms": st.booleans(),
    "no_compress_first": st.booleans(),
    "weight_dec": st.floats(-1, 1),
}


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_any_flags_give_a_configuration_or_faults(flags: dict[str, Any]) -> None:
    try:
        config = resolve(flags).config
    except UsageError as error:
        assert all(error.faults)
    else:
        assert TrainConfig.model_validate(tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("`layer.rank`: 'x' is not valid", "--dec-rank (layer.rank): 'x' is not valid"),
        ("`layer.rank.5`: 0 is not valid", "--dec-rank (layer.rank, item 6): 0 is not valid"),
        ("add `layer.kind = tt`, or leave `out_dir` out", "add --new-layer tt, or leave --out-dir out"),
        ("use `data.resize = true` or `hardware.x`", "use --set data.resize=true or hardware.x"),
        ("start it with `ray start --head`", "start it with `ray start --head`"),
        ("it needs `model.kind = lipconv`", "it needs svdctl train-lipconv"),
    ],
)
def test_keys_in_messages_become_flags(message: str, shown: str) -> None:
    assert with_flags(message, TRAIN.words) == shown


def test_a_message_without_flags_names_keys() -> None:
    assert with_flags("`layer.rank`: no", {}) == "layer.rank: no"
    assert with_flags("add `out_dir = x`", {}) == "add out_dir = x"


def test_a_plugin_that_cannot_be_imported_is_a_fault_among_others() -> None:
    with pytest.raises(UsageError) as caught:
        resolve({"plugin": ["no_such_module", "nor_this"], "epochs": 0, "clipping": "clop"})
    text = str(caught.value)
    for part in ("no_such_module", "nor_this", "--epochs", "--clipping clop"):
        assert part in text


@pytest.mark.parametrize(
    ("contents", "flags", "fault"),
    [
        ('[layer]\nkind = "tt"\nrank = -3\n', {}, "layer.rank: -3 is not valid"),
        ("epochs = 0\n", {"seed": 1}, "epochs: 0 is not valid"),
        ("epochs = 0\n", {"epochs": -1}, "--epochs: -1 is not valid"),
        ('[layer]\nkind = "soc"\n', {}, "layer.kind = 'soc' belongs to LipConvNet; use model.kind = lipconv, or"),
        ('[optimizer]\nkind = "sgd"\nlr = 0.1\n[schedule]\nkind = "cyclic"\nlr_min = 0.2\n', {},
         "schedule.lr_min = 0.2 must be below optimizer.lr = 0.1: "),
        ('[optimizer]\nkind = "sgd"\nlr = 0.3\n[schedule]\nkind = "cyclic"\nlr_min = 0.2\n', {"init_lr": 0.1},
         "schedule.lr_min = 0.2 must be below --init-lr 0.1: "),
        ("[control]\nkind = 'clip'\nmax_sigm = 3\n", {}, "control.max_sigm: there is no such key"),
        ("plugins = ['no_such_module']\n", {}, "plugin = no_such_module: there is no module 'no_such_module' here"),
    ],
)  # fmt: skip
def test_faults_of_a_preset_file_name_its_keys(tmp_path: Path, contents: str, flags: dict, fault: str) -> None:
    file = tmp_path / "own.toml"
    file.write_text(contents)
    with pytest.raises(UsageError) as caught:
        resolve({"preset": str(file), **flags})
    assert caught.value.faults[0].startswith(fault)
    own = {f"--{name.replace('_', '-')}" for name in flags}
    assert {word.rstrip(":") for word in caught.value.faults[0].split() if word.startswith("--")} <= own
