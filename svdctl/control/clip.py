"""Clip: singular values above the maximum become the maximum."""

from collections.abc import Sequence
from typing import Literal

from pydantic import PositiveInt

from svdctl.config.control_config import ControlConfig
from svdctl.control.control_method import ControlContext, ControlledLayer, ControlMethod, register_control


class Clip(ControlConfig):
    """Singular values above `max_sigma` become `max_sigma`; the kernel moves as little as it can."""

    kind: Literal["clip"] = "clip"
    every_steps: PositiveInt = 100
    """Steps between two applications of the control."""


@register_control
class ClipControl(ControlMethod):
    """Alternating projections and a proof, or one pass of the paper's clip."""

    kind = "clip"
    config = Clip

    def needs_sizes(self, config: Clip) -> bool:
        return config.procedure == "paper"

    def notices(self, layers: Sequence[ControlledLayer], config: Clip) -> list[str]:
        if config.procedure != "paper":
            return []
        from svdctl.layers.layer_operator import operator_of
        from svdctl.spectral.power_iteration import clip_grid, input_grid

        enlarged, strided = [], []
        for layer in layers:
            assert layer.input_size is not None
            conv = operator_of(layer.module)
            grid = clip_grid(conv, layer.input_size)
            if grid != input_grid(conv, layer.input_size):
                enlarged.append(f"{layer.name} (input {_by(layer.input_size)}, grid {_by(grid)})")
            if max(conv.stride) > 1 and layer.ops.core_operator(layer.module) is not None:
                strided.append(layer.name)
        found = []
        if strided:
            found.append(
                "the paper's code clips strided TT layers as if strides belonged to outputs, another operator; "
                f"here the layer's own is clipped, to another kernel than there: {', '.join(strided)}"
            )
        if enlarged:
            found.append(
                "the paper's clip works on the grid of a layer's input over its strides; where that is smaller than "
                f"the kernel, it is computed on the smallest grid that holds the kernel: {', '.join(enlarged)}"
            )
        return found

    def step_(self, layers: Sequence[ControlledLayer], config: Clip, context: ControlContext) -> list[bool]:
        from svdctl.control.actions import clip_layers_, paper_clip_layer_

        if config.procedure != "paper":
            modules, limits = [layer.module for layer in layers], [layer.max_sigma for layer in layers]
            return [moved > 0 for moved in clip_layers_(modules, limits, context.optimizer)]
        changed = []
        for layer in layers:
            assert layer.input_size is not None
            changed.append(paper_clip_layer_(layer.module, layer.max_sigma, layer.input_size, context.optimizer))
        return changed


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
