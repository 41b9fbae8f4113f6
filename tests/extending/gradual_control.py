"""A user's control method: layers above the maximum come down to it step by step."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field

import svdctl
from svdctl.config.control_config import ControlConfig
from svdctl.control.control_method import ControlContext, ControlledLayer


class Gradual(ControlConfig):
    """Kernels above `max_sigma` are scaled by a power of `max_sigma / norm`."""

    kind: Literal["gradual"] = "gradual"
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The power: 1 brings a layer to the maximum at once."""


@svdctl.register_control
class GradualControl(svdctl.ControlMethod):
    """Counts how often each layer was scaled; the count is in the checkpoint."""

    kind = "gradual"
    config = Gradual
    writes_operator = False

    def start(self, layers: Sequence[ControlledLayer], config: Gradual) -> None:
        for layer in layers:
            layer.state["scaled"] = torch.zeros((), dtype=torch.int64)

    def step_(self, layers: Sequence[ControlledLayer], config: Gradual, context: ControlContext) -> list[bool]:
        changed = []
        for layer in layers:
            norm = svdctl.spectral_norm_bound(layer.module).upper
            changed.append(norm > layer.max_sigma)
            if changed[-1]:
                layer.ops.scale_([layer.module], [(layer.max_sigma / norm) ** config.share])
                layer.state["scaled"] += 1
        return changed
