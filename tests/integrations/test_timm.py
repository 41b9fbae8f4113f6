"""The recipe for timm's training script."""

import importlib.util
from pathlib import Path

import pytest

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
        assert is_layer_bounded(layer, control.allowed(name))
        averaged = average.get_submodule(name)
        assert averaged is not layer
        assert is_layer_bounded(averaged, control.allowed(name))
