"""Divide: kernels are scaled by the maximum over an estimate of their norm, which power steps keep up to date."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from svdctl.config.base import Config
from svdctl.config.control_config import ControlConfig
from svdctl.control.control_method import ControlContext, ControlledLayer, ControlMethod, register_control
from svdctl.layers.layer_ops import layers_alike

if TYPE_CHECKING:
    from torch import Tensor

    from svdctl.spectral.power_iteration import FactoredOperators


class Divide(ControlConfig):
    """The kernel is scaled by `min(1, max_sigma / sigma)`, sigma from power steps with kept vectors."""

    kind: Literal["divide"] = "divide"


@register_control
class DivideControl(ControlMethod):
    """One power step from the vectors of the step before, or two from new random ones as the paper's code does."""

    kind = "divide"
    config: ClassVar[type[Config]] = Divide
    writes_operator = False
    reads_scale = True

    def needs_sizes(self, config: ControlConfig) -> bool:
        return not self.has_factors(config)

    def in_order(self, config: ControlConfig) -> bool:
        return not self.has_factors(config)

    def has_factors(self, config: ControlConfig) -> bool:
        return config.procedure == "certified"

    def followed(self, layers: Sequence[ControlledLayer]) -> "list[tuple[str, FactoredOperators, float | None]]":
        """Return (key in `state`, operators, maximum; None: each layer's) of each factor of layers of one shape."""
        ops, modules = layers[0].ops, [layer.module for layer in layers]
        return [("vectors", ops.factored_operators(modules), None)]

    def start(self, layers: Sequence[ControlledLayer], config: ControlConfig) -> None:
        if not self.has_factors(config):
            return
        from svdctl.spectral.power_iteration import KernelPower

        for rows in layers_alike([layer.module for layer in layers]):
            group = [layers[row] for row in rows]
            for key, operators, _ in self.followed(group):
                power = KernelPower(operators)
                for layer, vectors in zip(group, power.start(operators), strict=True):
                    layer.memory = {**(layer.memory or {}), key: power}
                    layer.state[key] = vectors.clone()

    def factors(
        self, layers: Sequence[ControlledLayer], config: ControlConfig, context: ControlContext
    ) -> "list[list[Tensor]]":
        import torch

        from svdctl.control.actions import coarse_unit, shrink

        # Norms of one maximum are compared with it at once.
        places: dict[tuple[float, float, bool], list[tuple[int, int]]] = {}
        norms: dict[tuple[float, float, bool], list[Tensor]] = {}
        for rows in layers_alike([layer.module for layer in layers]):
            group = [layers[row] for row in rows]
            unit = coarse_unit(group[0].ops.tensors(group[0].module)[0])
            for part, (key, operators, fixed) in enumerate(self.followed(group)):
                kept = [layer.state[key] for layer in group]
                found, vectors = group[0].memory[key].step(operators, torch.stack(kept))
                torch._foreach_copy_(kept, vectors.unbind())
                limits = [layer.final_max if fixed is None else fixed for layer in group]
                alike = len(set(limits)) == 1
                for limit, some, norm in zip(
                    limits[:1] if alike else limits,
                    [rows] if alike else [[row] for row in rows],
                    [found] if alike else found.split(1),
                    strict=True,
                ):
                    which = limit, unit, fixed is None and context.scale is not None
                    places.setdefault(which, []).extend((row, part) for row in some)
                    norms.setdefault(which, []).append(norm)
        factors: dict[tuple[int, int], Tensor] = {}
        for which, found_norms in norms.items():
            limit, unit, is_moved = which
            sigma = torch.cat(found_norms)
            if is_moved and context.scale is not None:
                sigma = sigma / context.scale
            factors |= zip(places[which], shrink(sigma, limit, unit).unbind(), strict=True)
        return [[factors[place] for place in sorted(factors) if place[0] == row] for row in range(len(layers))]

    def step_(
        self, layers: Sequence[ControlledLayer], config: ControlConfig, context: ControlContext
    ) -> "list[bool | Tensor]":
        import torch

        from svdctl.control.actions import paper_divide_layer_

        factors = []
        for layer in layers:
            assert layer.input_size is not None
            factors.append(paper_divide_layer_(layer.module, layer.max_sigma, layer.input_size, context.generator))
        return list((torch.stack(factors) != 1).unbind())
