"""Divide: kernels are scaled by the maximum over an estimate of their norm, which power steps keep up to date."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from svdctl.config.base import Config
from svdctl.config.control_config import ControlConfig
from svdctl.control.control_method import ControlContext, ControlledLayer, ControlMethod, register_control

if TYPE_CHECKING:
    from torch import Tensor

    from svdctl.spectral.convolution import Convolution


class Divide(ControlConfig):
    """The kernel is scaled by `min(1, max_sigma / sigma)`, sigma from power steps with kept vectors."""

    kind: Literal["divide"] = "divide"


@register_control
class DivideControl(ControlMethod):
    """One power step from the vectors of the step before, or two from new random ones as the paper's code does."""

    kind = "divide"
    config: ClassVar[type[Config]] = Divide
    writes_operator = False

    def needs_sizes(self, config: ControlConfig) -> bool:
        return not self.has_factors(config)

    def in_order(self, config: ControlConfig) -> bool:
        return not self.has_factors(config)

    def has_factors(self, config: ControlConfig) -> bool:
        return config.procedure == "certified"

    def operators(self, layers: Sequence[ControlledLayer]) -> "list[Convolution]":
        """Return the convolution of each layer whose norm is followed."""
        return [layer.ops.operators_assuming_orthonormal([layer.module])[0] for layer in layers]

    def start(self, layers: Sequence[ControlledLayer], config: ControlConfig) -> None:
        if not self.has_factors(config):
            return
        from svdctl.spectral.power_iteration import KernelPower

        for layer, conv in zip(layers, self.operators(layers), strict=True):
            layer.memory = KernelPower(conv)
            layer.state["vectors"] = layer.memory.vectors

    def factors(
        self, layers: Sequence[ControlledLayer], config: ControlConfig, context: ControlContext
    ) -> "list[list[Tensor]]":
        from svdctl.control.actions import shrink

        found = []
        for layer, conv in zip(layers, self.operators(layers), strict=True):
            layer.memory.vectors = layer.state["vectors"]
            found.append([shrink(layer.memory.step(conv), layer.max_sigma)])
            layer.state["vectors"] = layer.memory.vectors
        return found

    def step_(self, layers: Sequence[ControlledLayer], config: ControlConfig, context: ControlContext) -> list[bool]:
        from svdctl.control.actions import paper_divide_layer_

        for layer in layers:
            assert layer.input_size is not None
            paper_divide_layer_(layer.module, layer.max_sigma, layer.input_size, context.generator)
        return [True] * len(layers)
