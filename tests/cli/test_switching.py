"""Tagged unions, limits that belong together, and what the paper's code assumes when a flag is absent."""

from typing import Any

import pytest

from svdctl.cli.training_flags import resolve
from svdctl.config.optimizer_config import Adam
from svdctl.control.clip import Clip
from svdctl.control.divide import Divide
from svdctl.errors import UsageError
from svdctl.layers.ops.tt_ops import TT, Free, Parametrize, Penalty, Retract

DIVIDE: dict[str, Any] = {"preset": "wrn-cifar100-divide"}
PAPER_TT: dict[str, Any] = {"new_layer": "tt", "dec_rank": 8}


def faults_of(flags: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(UsageError) as caught:
        resolve(flags)
    return caught.value.faults


@pytest.mark.parametrize(
    ("flags", "control"),
    [
        ({}, Divide(max_sigma=10, linear_max=3.9)),
        ({"clipping": "divide_by_largest", "clip_to": 5.0}, Divide(max_sigma=5, linear_max=3.9)),
        ({"clipping": "clip"}, Clip(max_sigma=1, every_steps=100)),
        ({"set": ["control.kind=clip", "control.max_sigma=2"]}, Clip(max_sigma=2)),
        ({"set": ["control.kind=divide"]}, Divide(max_sigma=10, linear_max=3.9)),
        ({"set": ["control.linear_max="]}, Divide(max_sigma=10)),
        ({"set": ['control={kind="clip", every_steps=7}']}, Clip(every_steps=7)),
        ({"clip_linear": True}, Divide(max_sigma=10, linear_max=3.9)),
        ({"clip_linear": True, "clip_to": 4.0}, Divide(max_sigma=4, linear_max=4)),
        ({"clip_linear_to": 2.0}, Divide(max_sigma=10, linear_max=2)),
        ({"clip_linear": True, "clip_to": 4.0, "clip_linear_to": -1.0}, Divide(max_sigma=4, linear_max=4)),
        ({"procedure": "paper"}, Divide(max_sigma=10, linear_max=3.9, procedure="paper")),
    ],
)
def test_another_kind_drops_the_old_fields_and_the_same_kind_keeps_them(flags: dict[str, Any], control: object) -> None:
    assert resolve({**DIVIDE, **flags}).config.control == control


@pytest.mark.parametrize(
    ("spelled", "kind"),
    [
        ("divide-by-largest", "divide"),
        ("divide_by_exact_largest", "divide-exact"),
        ("divide-each-by-largest", "divide-each"),
        ("divide-exact", "divide-exact"),
        ("divide_each", "divide-each"),
        ("assign", "assign"),
        ("none", "none"),
    ],
)
def test_spellings_of_clipping(spelled: str, kind: str) -> None:
    assert resolve({**PAPER_TT, "clipping": spelled}).config.control.kind == kind


@pytest.mark.parametrize(
    ("flags", "frames"),
    [
        (PAPER_TT, Free()),
        ({**PAPER_TT, "orthogonal_k": -1.0}, Free()),
        ({**PAPER_TT, "orthogonal_k": 5.0}, Penalty(weight=5)),
        ({**PAPER_TT, "frames": "penalty"}, Penalty()),
        ({**PAPER_TT, "frames": "parametrize"}, Parametrize()),
        ({"preset": "wrn-cifar10", **PAPER_TT}, Retract()),
        ({"preset": "wrn-cifar10-tt", "frames": "retract"}, Retract()),
        ({"preset": "wrn-cifar10-tt", "dec_rank": 9}, Penalty(weight=1e5)),
        ({"preset": "quickstart"}, Retract()),
    ],
)
def test_frames(flags: dict[str, Any], frames: object) -> None:
    layer = resolve(flags).config.layer
    assert isinstance(layer, TT)
    assert layer.frames == frames


def test_the_papers_defaults_follow_data_network_and_optimiser() -> None:
    vgg = resolve({"architecture": "vgg19", "opt": "Adam"}).config
    assert vgg.optimizer == Adam(lr=0.01, eps=1e-7, amsgrad=True)
    assert vgg.normalize.std == (0.5, 0.5, 0.5)
    wrn = resolve({"architecture": "wrn28-10", "opt": "Adam", "dataset": "cifar10"}).config
    assert wrn.optimizer == Adam(lr=0.01)
    assert wrn.normalize.std == (0.229, 0.224, 0.225)
    assert wrn.name == "wrn28-10-cifar10"
    assert wrn.augment.pad == "zero"
    assert resolve({"architecture": "wrn16-10", "gouk_transforms": True}).config.augment.pad == "symmetric"
    assert not resolve({"architecture": "wrn16-10", "dataset": "digits"}).config.augment.flip


def test_notices_name_what_differs_from_the_papers_code() -> None:
    resolved = resolve({"architecture": "vgg19", "opt": "Adam", "weight_dec": 0.1})
    assert resolved.config.optimizer.weight_decay == 0.1
    assert any("--weight-dec" in notice for notice in resolved.notices)
    assert not resolve({"architecture": "vgg19", "opt": "Adam", "weight_dec": 0.0, "nesterov": False}).notices


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"set": ["control.rank=3"]}, "control.rank: there is no such key; did you mean layer.rank?"),
        (
            {"preset": "wrn-cifar10", "set": ["control.max_sigma=3"]},
            "control.max_sigma: kind = 'none' has no such key; choose another control.kind first",
        ),
        (
            {"set": ["layer.frames.weight=3"]},
            "layer.frames.weight: kind = 'retract' has no such key; choose another layer.frames.kind first",
        ),
        ({"set": ["epochs.x=1"]}, "epochs.x: epochs is a single value and has no keys below it"),
        ({**PAPER_TT, "new_layer": "cp"}, "--new-layer (layer.kind): 'cp' is not one of 'standard', 'tt'"),
        (
            {"set": ["normalize.mean=[1, 2]"]},
            "--mean (normalize.mean): 2 numbers are given; give 3, one for each channel, or 1 for all",
        ),
        ({"clipping": "none", "clip_linear": True}, "--clip-linear needs a control; add --clipping, or leave it out"),
        ({"preset": "wrn-cifar10-divide", "clip_freq": 0}, "--clip-freq (control.every_steps): 0 is not valid; "),
        ({"devices": "two"}, "--devices (hardware.devices): 'two' is not valid; "),
        ({**PAPER_TT, "frames": "retract", "orthogonal_k": 3.0}, "--orthogonal-k weighs the penalty on frames; "),
    ],
)
def test_sentences(flags: dict[str, Any], sentence: str) -> None:
    (fault,) = faults_of(flags)
    assert fault.startswith(sentence)


def test_an_unknown_preset_hides_no_other_fault() -> None:
    faults = faults_of({"preset": "wrn-cifar10-divid", "epochs": 0, "dec_scale": 2.0, "set": ["oops"]})
    assert len(faults) == 4
    assert len(faults_of({"new_layer": "standard", "clipping": "divide-each", "epochs": 0})) == 2


def test_never_in_the_papers_spelling_is_no_control() -> None:
    config = resolve({"architecture": "wrn16-10", "clip_freq": 0, "freq_bn": 0}).config
    assert config.control.kind == "none"
    assert config.batchnorm is None
