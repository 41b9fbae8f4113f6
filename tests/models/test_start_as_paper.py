"""By `init = "paper"` weights start as in the paper's public code; by `svdctl`, what older files mean, as ever."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svdctl.config.configuration import configuration
from svdctl.config.migrate import migrate_configuration
from svdctl.config.presets import list_presets
from svdctl.config.train_config import TrainConfig
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT
from svdctl.layers.tt import TTConv2d
from svdctl.models.build import build_model
from svdctl.train.run_hash import run_hash

WRN_TT = ("model.depth=10", "model.width=2", "layer.kind=tt", "layer.rank=24")
LIPCONV = ("model.in_channels=4", "layer.rank=12")


def built(preset: str, *sets: str) -> nn.Module:
    return build_model(configuration(preset, sets), 10)


def layers_of(model: nn.Module, kind: type) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kind)]


def assert_uniform(bias: Tensor, limit: float) -> None:
    assert float(bias.abs().max()) <= limit
    assert float(bias.std()) > 0.3 * limit


def test_cores_of_tt_layers_are_orthogonal_in_the_layout_of_the_public_code() -> None:
    model = built("quickstart", *WRN_TT, "init=paper")
    found = layers_of(model, TTConv2d)
    assert len(found) == 7
    for layer in found:
        # That code keeps (r_in, kh, kw, r_out), whose rows torch makes orthonormal.
        rows = layer.core.detach().permute(1, 2, 3, 0).flatten(1)
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-5, rtol=0)
    assert_uniform(model.fc.bias.detach(), 1 / math.sqrt(128))


def test_biases_of_tt_layers_have_the_fan_of_their_core() -> None:
    model = built("vgg-cifar10-clip", "layer.rank=16")
    for layer in layers_of(model, TTConv2d):
        assert_uniform(layer.bias.detach(), 1 / math.sqrt(9 * layer.rank[1]))
    assert all(not layer.bias.any() for layer in layers_of(model, nn.Linear))


@pytest.mark.parametrize("kind", ["soc", "sott"])
def test_biases_of_skew_layers(kind: str) -> None:
    sets = LIPCONV if kind == "sott" else ("model.in_channels=4", "layer.kind=soc")
    for layer in layers_of(built("lipconv-quickstart", *sets, "init=paper"), SOTT if kind == "sott" else SOC):
        if layer.bias is not None:
            assert_uniform(layer.bias.detach(), 1 / math.sqrt(layer.out_channels))


def test_blocks_of_ordinary_convolutions_are_xaviers() -> None:
    sets = ("model.in_channels=4", "layer.kind=standard")
    paper, own = (built("lipconv-quickstart", *sets, f"init={init}") for init in ("paper", "svdctl"))
    conv = paper.layer3[0].conv
    fan = 9 * (conv.in_channels + conv.out_channels)
    assert_uniform(conv.weight.detach(), math.sqrt(6 / fan))
    assert not torch.equal(conv.weight, own.layer3[0].conv.weight)
    assert torch.equal(paper.final_conv.weight, own.final_conv.weight)


def test_conv_init_draws_frames_too_where_the_public_code_does() -> None:
    sets = (*WRN_TT, "layer.init=kaiming_uniform")
    free = built("quickstart", *sets, "init=paper", "layer.frames.kind=free")
    for layer in layers_of(free, TTConv2d):
        rank_in, rank_out = layer.rank
        # Bounds of torch's rule, sqrt(6 / fan_in), in that code's layouts (I, r), (r_in, kh, kw, r_out) and (r_out, O).
        for tensor, fan in (
            (layer.core, 9 * rank_out),
            *(((layer.frame_in, rank_in), (layer.frame_out, layer.out_channels)) if layer.has_frames else ()),
        ):
            assert_uniform(tensor.detach(), math.sqrt(6 / fan))
    retracted = built("quickstart", *sets, "init=paper", "layer.frames.kind=retract")
    for one, other in zip(layers_of(free, TTConv2d), layers_of(retracted, TTConv2d), strict=True):
        torch.testing.assert_close(one.contracted(), other.contracted(), rtol=1e-4, atol=1e-5)
        for frame in (other.frame_in, other.frame_out):
            if frame is not None:
                torch.testing.assert_close(frame.T @ frame, torch.eye(frame.shape[1]), atol=1e-5, rtol=0)
    own = built("quickstart", *sets)
    frames = [layer.frame_in for layer in layers_of(own, TTConv2d) if layer.has_frames]
    assert all(torch.allclose(frame.T @ frame, torch.eye(frame.shape[1]), atol=1e-5) for frame in frames)


@pytest.mark.parametrize("frames", ["free", "penalty", "retract", "parametrize"])
def test_a_start_repeats_itself(frames: str) -> None:
    sets = (*WRN_TT, "init=paper", f"layer.frames.kind={frames}", "layer.init=orthogonal")
    first, second = (built("quickstart", *sets).state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    own = built("quickstart", *WRN_TT, f"layer.frames.kind={frames}").state_dict()
    assert not torch.equal(first["layer2.0.conv1.core"], own["layer2.0.conv1.core"])
    assert not own["fc.bias"].any()


def test_presets_of_the_paper_start_as_it_does_and_scale_its_pointwise_layers() -> None:
    for name in list_presets():
        config = configuration(name)
        ours = "quickstart" in name
        assert config.init == ("svdctl" if ours else "paper"), name
        if config.layer.kind == "sott":
            assert config.layer.pointwise_scale == (1.0 if ours else 0.7)
    scales = [layer.core.scale for layer in layers_of(built("lipconv5-sott128", *LIPCONV), SOTT)]
    assert scales == [0.7] * 6


def test_configurations_of_older_versions_mean_what_they_meant() -> None:
    old = {"model": {"kind": "lipconv"}, "layer": {"kind": "sott", "rank": 8}, "schedule": {"kind": "cyclic"}}
    found = TrainConfig.model_validate(migrate_configuration(json.loads(json.dumps(old))))
    assert found.init == "svdctl"
    assert found.layer.pointwise_scale == 1.0
    assert [found.schedule.momentum(step, 40, 0.9) for step in range(5)] == [0.9] * 5
    # Digits that runs of older versions are known by.
    plain = TrainConfig()
    assert run_hash(plain) == "f31ea81ea8c6"
    assert run_hash(TrainConfig.model_validate({"schedule": {"kind": "cyclic"}})) == "fe30a8570cd8"
    assert run_hash(plain.model_copy(update={"init": "paper"})) != run_hash(plain)
