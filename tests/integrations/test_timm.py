"""The recipe for timm's training script."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch

import svdctl
from svdctl.layers.norms import is_layer_bounded

timm = pytest.importorskip("timm")
RECIPE = Path(__file__).parents[2] / "examples" / "timm_training.py"


def test_the_recipe_controls_a_network_of_timm() -> None:
    spec = importlib.util.spec_from_file_location("timm_recipe", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    average, control = recipe.train(steps=3)
    assert control.steps == 3
    assert len(control.controlled()) > 10
    for name, layer in control.controlled().items():
        assert is_layer_bounded(layer, control.maximum(name))
        averaged = average.get_submodule(name)
        assert averaged is not layer
        assert is_layer_bounded(averaged, control.maximum(name))


@pytest.mark.parametrize("name", ["ModelEma", "ModelEmaV2", "ModelEmaV3"])
def test_averages_of_timm_are_sealed_and_made_plain(name: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), svdctl.TTConv2d(4, 4, 3, rank=2))
    average = getattr(timm.utils, name)(model)
    inner = average.ema if name == "ModelEma" else average.module
    with torch.no_grad():
        inner[0].weight.fill_(1.0)
    control = svdctl.Controller(model, max_sigma=0.5)
    assert list(control.seal(average)) == ["0", "2"]
    assert all(is_layer_bounded(inner[place], 0.5) for place in (0, 2))
    assert list(svdctl.Controller(average, max_sigma=0.5).controlled()) == ["0", "2"]
    images = torch.rand(2, 3, 8, 8)
    plain = svdctl.to_plain(average, images)
    assert isinstance(plain, torch.fx.GraphModule)
    assert list(plain.meta["svdctl"]["layers"]) == ["2"]
    torch.testing.assert_close(plain(images), copy.deepcopy(inner).eval()(images))
