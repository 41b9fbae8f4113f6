"""Control of a whole network while it trains: which layer, which action, when."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from svdctl.config.control import BatchNormControl, Control, NoControl
from svdctl.control import actions
from svdctl.layers.operator import BatchNorm, batchnorm_gain, is_controllable, operator_of, quick_operator
from svdctl.layers.tt import TTConv2d
from svdctl.spectral.power import KernelPower


@dataclass(frozen=True)
class LayerReport:
    """The spectrum of one layer in a line."""

    name: str
    kind: str
    shape: str
    largest: float
    """A value that is reached."""
    bound: float
    """A proved bound at every input size."""
    allowed: float | None


class Controller:
    """Applies a control to the layers of a model; `seal` makes the bound hold by proof.

    Args:
        model: the network, its layers found once.
        control: what is done to convolutions and linear layers.
        batchnorm: the limit on BatchNorm, if any.
        sizes: input size of each layer by name; needed by the paper's procedures alone.
        seed: for the paper's random vectors.
    """

    def __init__(
        self,
        model: nn.Module,
        control: Control,
        batchnorm: BatchNormControl | None,
        *,
        sizes: dict[str, tuple[int, ...]] | None = None,
        seed: int = 0,
    ) -> None:
        self.control = control
        self.batchnorm = batchnorm
        self.layers = {name: layer for name, layer in model.named_modules() if is_controllable(layer)}
        self.norms = {name: layer for name, layer in model.named_modules() if isinstance(layer, BatchNorm)}
        self._sizes = sizes or {}
        self._generator = torch.Generator().manual_seed(seed)
        self._powers: dict[str, KernelPower] = {}
        if control.kind in ("divide", "divide-each") and control.procedure == "certified":
            for name, layer in self.controlled().items():
                if control.kind == "divide-each" and isinstance(layer, TTConv2d):
                    self._powers[name] = KernelPower(operator_of(layer).with_kernel(layer.core.detach()[None]))
                else:
                    self._powers[name] = KernelPower(quick_operator(layer))

    def controlled(self) -> dict[str, nn.Module]:
        """The layers that have an allowed maximum."""
        return {name: layer for name, layer in self.layers.items() if self.allowed(name) is not None}

    def allowed(self, name: str) -> float | None:
        """The largest singular value allowed for a layer."""
        if isinstance(self.control, NoControl):
            return None
        return self.control.linear_max if isinstance(self.layers[name], nn.Linear) else self.control.max

    def after_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Apply what is due after the optimiser's step of this number, counted from 1."""
        if self.batchnorm is not None and step % self.batchnorm.every == 0:
            self._limit_norms()
        if not isinstance(self.control, NoControl) and step % self.control.every == 0:
            for name, layer in self.controlled().items():
                allowed = self.allowed(name)
                assert allowed is not None
                self._apply(name, layer, allowed, optimizer)

    @torch.no_grad()
    def _apply(self, name: str, layer: nn.Module, allowed: float, optimizer: torch.optim.Optimizer | None) -> None:
        assert not isinstance(self.control, NoControl)
        kind = self.control.kind
        if self.control.procedure == "paper" and kind in ("divide", "clip"):
            size = self._sizes[name]
            if kind == "divide":
                actions.paper_divide_layer_(layer, allowed, size, self._generator)
            else:
                actions.paper_clip_layer_(layer, allowed, size, optimizer)
        elif kind == "clip":
            actions.clip_layer_(layer, allowed, optimizer)
        elif kind == "assign":
            actions.assign_layer_(layer, allowed, optimizer)
        elif kind == "divide-exact":
            actions.divide_exact_layer_(layer, allowed)
        elif kind == "divide-each" and isinstance(layer, TTConv2d):
            actions.divide_each_layer_(layer, allowed, self._powers[name])
        else:
            actions.divide_layer_(layer, allowed, self._powers[name])

    def _limit_norms(self) -> None:
        assert self.batchnorm is not None
        for layer in self.norms.values():
            actions.limit_batchnorm_(layer, self.batchnorm.max)

    @torch.no_grad()
    def seal(self) -> None:
        """Make every bound hold by proof, before an evaluation or a checkpoint; nothing under the paper's procedure."""
        if self.batchnorm is not None:
            self._limit_norms()
        if isinstance(self.control, NoControl) or self.control.procedure == "paper":
            return
        for name, layer in self.controlled().items():
            allowed = self.allowed(name)
            assert allowed is not None
            actions.divide_exact_layer_(layer, allowed)

    def report(self) -> list[LayerReport]:
        """Largest value, proved bound and allowed maximum of every convolution, linear layer and BatchNorm."""
        rows = []
        for name, layer in self.layers.items():
            allowed = self.allowed(name)
            largest, bound = actions.layer_bracket(layer, allowed)
            kind = type_before_parametrizations(layer).__name__
            rows.append(LayerReport(name, kind, _shape(layer), largest, bound, allowed))
        limit = self.batchnorm.max if self.batchnorm else None
        for name, norm in self.norms.items():
            gain = float(batchnorm_gain(norm))
            rows.append(LayerReport(name, type(norm).__name__, str(norm.num_features), gain, gain, limit))
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Vectors of the power steps and the state of the random generator."""
        return {
            "vectors": {name: power.vectors for name, power in self._powers.items()},
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        for name, power in self._powers.items():
            power.vectors = state["vectors"][name].to(power.vectors.device, power.vectors.dtype)
        self._generator.set_state(state["generator"].cpu())


def _shape(layer: nn.Module) -> str:
    if isinstance(layer, TTConv2d):
        taps = " x ".join(map(str, layer.kernel_size))
        return f"{layer.out_channels} x {layer.in_channels} x {taps}, rank {layer.rank[1]} x {layer.rank[0]}"
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return " x ".join(map(str, weight.shape))
