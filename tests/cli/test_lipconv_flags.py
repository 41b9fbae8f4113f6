"""Flags of `train-lipconv`: bases, defaults, unions and faults."""

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svdctl.cli.training_flags import LIPCONV, TRAIN, resolve
from svdctl.config.optimizer_config import Cyclic, Steps
from svdctl.config.presets import list_presets, to_toml
from svdctl.config.train_config import TrainConfig
from svdctl.errors import UsageError
from svdctl.layers.ops.soc_ops import Soc
from svdctl.layers.ops.sott_ops import Sott
from svdctl.layers.ops.standard_ops import Standard
from svdctl.layers.ops.tt_ops import TT, Free, Parametrize, Penalty, Retract

SOTT: dict[str, Any] = {"conv_type": "sott", "dec_rank": "128"}


def config(**flags: Any) -> TrainConfig:
    return resolve(flags, LIPCONV).config


@pytest.mark.parametrize(
    ("flags", "quickstart"),
    [
        ({}, True),
        ({"epochs": 3}, True),
        ({"dec_rank": "8"}, True),
        ({"lr_max": 0.2, "frames": "penalty"}, True),
        ({"dataset": "cifar10"}, True),
        ({"dataset": "cifar10", "data_dir": "x"}, True),
        ({"block_size": 2}, True),
        ({"in_channels": 16}, True),
        ({"conv_type": "skew"}, False),
        ({"conv_type": "standard", "dataset": "digits"}, False),
    ],
)
def test_the_papers_defaults_are_the_base_when_a_flag_names_the_layer(flags: dict[str, Any], quickstart: bool) -> None:
    resolved = resolve(flags, LIPCONV)
    why = "(no --preset or --conv-type is given)" if quickstart else "(--conv-type given)"
    assert resolved.base == ("preset lipconv-quickstart " if quickstart else "the paper's defaults ") + why
    assert resolved.config.epochs == flags.get("epochs", 15 if quickstart else 200)


def test_the_papers_defaults() -> None:
    found = config(dataset="cifar10", conv_type="standard")
    assert (found.model.block_size, found.model.in_channels, found.layer) == (4, 32, Standard())
    assert (found.epochs, found.batch_size, found.seed, found.certificate.epsilon) == (200, 128, 3407, 36)
    sgd = found.optimizer
    assert (sgd.lr, sgd.momentum, sgd.nesterov, sgd.weight_decay) == (0.1, 0.9, False, 0)
    assert found.schedule == Steps(at=(0.5, 0.75), factor=0.1)
    assert found.normalize.std == (0.2507,) * 3
    assert config(conv_type="skew").optimizer.weight_decay == 5e-4
    assert config(**SOTT).optimizer.weight_decay == 0
    assert config(conv_type="tt", dec_rank="8").optimizer.weight_decay == 0
    assert (found.init, config(lr_schedule="cyclic").init) == ("paper", "svdctl")
    assert config(**SOTT, weight_decay=1e-3).optimizer.weight_decay == 1e-3


@pytest.mark.parametrize(
    ("flags", "layer"),
    [
        ({"conv_type": "skew"}, Soc()),
        ({"conv_type": "soc"}, Soc()),
        (SOTT, Sott(rank=128, frames=Penalty(weight=1), pointwise_scale=0.7)),
        ({**SOTT, "orthogonal_k": 5e3}, Sott(rank=128, frames=Penalty(weight=5e3), pointwise_scale=0.7)),
        ({**SOTT, "frames": "retract"}, Sott(rank=128, frames=Retract(), pointwise_scale=0.7)),
        ({**SOTT, "frames": "parametrize"}, Sott(rank=128, frames=Parametrize(), pointwise_scale=0.7)),
        ({**SOTT, "frames": "free"}, Sott(rank=128, frames=Free(), pointwise_scale=0.7)),
        (
            {**SOTT, "dec_rank": "1, 2,3,4,5 ,6", "frames": "free"},
            Sott(rank=(1, 2, 3, 4, 5, 6), frames=Free(), pointwise_scale=0.7),
        ),
        (
            {**SOTT, "dec_rank": "[1, 2, 3, 4, 5, 6]", "frames": "free"},
            Sott(rank=(1, 2, 3, 4, 5, 6), frames=Free(), pointwise_scale=0.7),
        ),
        ({**SOTT, "set": ["layer.pointwise_scale=1.0"]}, Sott(rank=128, frames=Penalty(weight=1), pointwise_scale=1)),
        ({"conv_type": "tt", "dec_rank": "64"}, TT(rank=64, frames=Penalty(weight=1))),
        ({"preset": "lipconv5-sott128", "frames": "retract"}, Sott(rank=128, frames=Retract(), pointwise_scale=0.7)),
        (
            {"preset": "lipconv5-sott128", "dec_rank": "9"},
            Sott(rank=9, frames=Penalty(weight=5e3), pointwise_scale=0.7),
        ),
        ({"preset": "lipconv5-soc", **SOTT}, Sott(rank=128)),
        ({"preset": "lipconv5-sott128", "conv_type": "skew"}, Soc()),
    ],
)
def test_layers(flags: dict[str, Any], layer: object) -> None:
    assert config(**flags).layer == layer


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({**SOTT, "dec_rank": "1,2,3"}, "6 ranks are needed, one for each stage"),
        ({**SOTT, "dec_rank": "one"}, "--dec-rank '64, 64, 64'"),
        ({**SOTT, "dec_rank": "1,2,3,4,5,0"}, r"--dec-rank \(layer.rank, item 6\): 0 is not valid"),
        ({"conv_type": "sott"}, "--dec-rank"),
        ({"conv_type": "sot"}, r"--conv-type \(layer.kind\): 'sot' is not one of"),
        ({"block_size": 0}, r"--block-size \(model.block_size\): 0 is not valid"),
        ({"block_size": 1, "in_channels": 3}, "MinMax pairs channels"),
        ({"dataset": "cifar100", "in_channels": 2, "block_size": 1}, "100 classes are more than the 64 channels"),
        ({"conv_type": "standard", "checkpoint_activations": True}, "is for the series of SOC and SOTT layers"),
        ({"dataset": "folder:x", "set": ["data.size=48"]}, "sides that 32 does not divide"),
        ({"lr_schedule": "cyclic", "lr_min": 0.2, "block_size": 1}, "must be below --lr-max"),
        ({"lr_schedule": "cyclic", "lr_min": 0.1, "lr_max": 0.1}, "must be below --lr-max"),
        ({"block_size": 1, "lr_min": 0.01}, "add --lr-schedule cyclic"),
        ({"lr_schedule": "linear"}, "not one of multistep and cyclic"),
        ({"conv_type": "skew", "dec_rank": "3"}, "add --conv-type sott"),
        ({"conv_type": "skew", "orthogonal_k": 3.0}, "add --conv-type sott"),
        ({"conv_type": "standard", "frames": "retract"}, "add --conv-type sott"),
        ({"conv_type": "skew", "clipping": "clip"}, "SOC layers, whose singular values are 1 already"),
        ({**SOTT, "clipping": "clip"}, "SOTT layers, whose singular values are 1 already"),
        ({"conv_type": "standard", "clip_to": 1.0}, "needs a control; add --clipping"),
        ({"conv_type": "standard", "assigning_freq": 3}, "needs a control; add --clipping"),
        ({"epsilon": 0.0}, r"--epsilon \(certificate.epsilon\)"),
        ({"set": ["model.kind=wrn", "layer.kind=standard"]}, "use svdctl train in place of"),
        ({"set": ["certificate.epsilom=3"]}, "did you mean certificate.epsilon"),
        ({"data_dir": "x", "dataset": "digits"}, "--data-dir is where CIFAR lies"),
        ({"set": ["normalize.std=[0, 1, 1]"]}, "normalize.std.0"),
    ],
)
def test_each_fault_is_one_sentence_with_the_way_out(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        config(**flags)
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize("flags", [{"clipping": "clip", "clip_to": 2.0}, {"clipping": "assign", "assigning_freq": 9}])
def test_standard_and_tt_layers_take_a_control(flags: dict[str, Any]) -> None:
    assert config(conv_type="standard", **flags).control.kind == flags["clipping"]
    assert config(conv_type="tt", dec_rank="3", **flags).control.kind == flags["clipping"]


@pytest.mark.parametrize(
    ("set_", "words"),
    [
        (["layer.kind=soc"], "belongs to LipConvNet"),
        (["layer.kind=tt", "layer.rank=[1,2,3,4,5,6]"], "a rank for each group of layers belongs to LipConvNet"),
        (["model.kind=lipconv"], "use svdctl train-lipconv in place of"),
    ],
)
def test_other_networks_refuse_what_is_lipconvnets(set_: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve({"dataset": "cifar10", "set": set_}, TRAIN)


def test_cyclic_rates() -> None:
    schedule = config(lr_schedule="cyclic", lr_min=0.02, lr_max=0.2).schedule
    assert schedule == Cyclic(lr_min=0.02, peak_momentum=0.8)
    rates = [0.2 * schedule.lr_factor(step, 400, 0.2) for step in range(400)]
    for cycle in range(5):
        start = 80 * cycle
        assert rates[start] == pytest.approx(0.02)
        assert rates[start + 10] == pytest.approx(0.11)
        assert rates[start + 20] == pytest.approx(0.2)
        assert rates[start + 50] == pytest.approx(0.11)
    assert max(rates) <= 0.2 + 1e-12
    assert min(rates) >= 0.02 - 1e-12


VALUES: dict[str, Any] = {
    "dataset": st.sampled_from(["cifar10", "digits", "folder:x", "npz:y", "folder", "what"]),
    "data_dir": st.just("x"),
    "block_size": st.integers(-1, 7),
    "in_channels": st.integers(-1, 40),
    "conv_type": st.sampled_from(["standard", "skew", "tt", "sott", "?"]),
    "dec_rank": st.sampled_from(["3", "-1", "0", "1,2", "1,2,3,4,5,6", "", "x", "[1", "9" * 30]),
    "orthogonal_k": st.floats(-1, 1e6),
    "frames": st.sampled_from(["free", "retract", "penalty", "parametrize", "none"]),
    "clipping": st.sampled_from(["clip", "assign", "none", "divide_by_largest", "?"]),
    "clip_to": st.floats(-1, 10),
    "assigning_freq": st.integers(-1, 10),
    "lr_schedule": st.sampled_from(["multistep", "cyclic", "?"]),
    "lr_min": st.floats(-1, 1),
    "lr_max": st.floats(-1, 1),
    "momentum": st.floats(-1, 2),
    "weight_decay": st.floats(-1, 1),
    "epsilon": st.floats(allow_nan=True),
    "preset": st.sampled_from([*list_presets(), "nothing"]),
    "set": st.lists(st.sampled_from(["model=3", "certificate=", "layer.rank=[]", "schedule.up=2", "data.size=48"])),
    "opt_level": st.just("O1"),
    "checkpoint_activations": st.booleans(),
}


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_any_flags_give_a_configuration_or_faults(flags: dict[str, Any]) -> None:
    try:
        found = config(**flags)
    except UsageError as error:
        assert all(error.faults)
    else:
        assert found.model.kind == "lipconv"
        assert TrainConfig.model_validate(tomllib.loads(to_toml(found))) == found
