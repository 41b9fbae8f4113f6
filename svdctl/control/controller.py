"""Control of a whole network while it trains: which layer, which action, when, and in which process."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from svdctl.config.control_config import BatchNormControl, Control, NoControl
from svdctl.control import actions
from svdctl.distributed.group import Group
from svdctl.distributed.scheduling import LayerScheduler
from svdctl.layers.layer_operator import BatchNorm, batchnorm_gain, operator_of
from svdctl.layers.layer_ops import find_ops, is_controllable
from svdctl.layers.norms import layer_norm_bound
from svdctl.spectral.power_iteration import KernelPower, clip_grid


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

    Several processes hold the same model and share the work layer by layer. `after_step`, `seal`, `report` and
    `state_dict` are then called in all of them, and leave all of them with the same bits.

    Args:
        model: the network, its layers found once.
        control: what is done to convolutions and linear layers.
        batchnorm: the limit on BatchNorm, if any.
        sizes: input size of each layer by name; needed by the paper's procedures alone.
        seed: for the paper's random vectors.
        group: the processes; one, if not given.
        only: the name of the one layer that is controlled; all, if not given.
    """

    def __init__(
        self,
        model: nn.Module,
        control: Control,
        batchnorm: BatchNormControl | None,
        *,
        sizes: dict[str, tuple[int, ...]] | None = None,
        seed: int = 0,
        group: Group | None = None,
        only: str | None = None,
    ) -> None:
        self.control = control
        self.control_seconds = 0.0
        """Seconds that control has taken, what keeps layers in their form left out."""
        self.batchnorm = batchnorm
        chosen = [(name, layer) for name, layer in model.named_modules() if only in (None, name)]
        self.layers = {name: layer for name, layer in chosen if is_controllable(layer)}
        self.ops = {name: ops for name, layer in model.named_modules() if (ops := find_ops(layer)) is not None}
        self._known = {name: layer for name, layer in model.named_modules() if name in self.ops}
        self.norms = {name: layer for name, layer in model.named_modules() if isinstance(layer, BatchNorm)}
        self._sizes = sizes or {}
        self._generator = torch.Generator().manual_seed(seed)
        self._powers: dict[str, KernelPower] = {}
        if control.kind == "divide-each" or (control.kind == "divide" and control.procedure == "certified"):
            for name, layer in self.controlled().items():
                core = self.ops[name].core_operator(layer) if control.kind == "divide-each" else None
                self._powers[name] = KernelPower(core or self.ops[name].operators_assuming_orthonormal([layer])[0])
        group = group or Group()
        costs = {name: actions.expected_cost(layer) for name, layer in self.layers.items()}
        controlled = {name: costs[name] for name in self.controlled()}
        # One for each kind of work, whose times differ. Powers stay where their vectors are.
        threads = actions.on_cpu(self.layers.values())
        self._action, self._seal = (LayerScheduler(controlled, group, threads) for _ in range(2))
        self._reading = LayerScheduler(costs, group, threads)
        self._power = LayerScheduler(controlled, group)
        self._group = group

    def controlled(self) -> dict[str, nn.Module]:
        """The layers that have an allowed maximum."""
        return {name: layer for name, layer in self.layers.items() if self.allowed(name) is not None}

    def allowed(self, name: str) -> float | None:
        """The largest singular value allowed for a layer."""
        if isinstance(self.control, NoControl):
            return None
        return self.control.linear_max if self.ops[name].is_linear else self.control.max_sigma

    def enlarged_grids(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return the (input size, grid of the clip) of the layers that the paper's clip treats on a larger grid."""
        if self.control.kind != "clip" or self.control.procedure != "paper":
            return {}
        grids = {name: clip_grid(operator_of(layer), self._sizes[name]) for name, layer in self.controlled().items()}
        return {name: (self._sizes[name], grid) for name, grid in grids.items() if grid != self._sizes[name]}

    def penalty(self) -> Tensor | None:
        """Return the term that the layers add to the loss (0-d), as for frames kept by a penalty; None: there is none.

        Defects are summed in the network's order, over their number in all layers of one weight.
        """
        sums: dict[float, tuple[Tensor, int]] = {}
        for name, layer in self._known.items():
            share = self.ops[name].penalty(layer)
            for index, defect in enumerate(share[0] if share is not None else ()):
                assert share is not None
                total, count = sums.get(share[2], (None, 0))
                sums[share[2]] = defect if total is None else total + defect, count + (share[1] if index == 0 else 0)
        terms = [total * (weight / count) for weight, (total, count) in sums.items()]
        return torch.stack(terms).sum() if len(terms) > 1 else next(iter(terms), None)

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Apply what is due after the optimiser's step of this number, counted from 1."""
        for name, layer in self._known.items():
            self.ops[name].after_optimizer_step_(layer, step=step, optimizer=optimizer)
        began = time.perf_counter()
        self._control(step, optimizer)
        self.control_seconds += time.perf_counter() - began

    def _control(self, step: int, optimizer: torch.optim.Optimizer | None) -> None:
        if self.batchnorm is not None and step % self.batchnorm.every_steps == 0:
            self._limit_norms()
        if isinstance(self.control, NoControl) or step % self.control.every_steps:
            return
        if self._powers:
            self._power.scaled(self._factors, self._scaled)
        elif self.control.kind == "divide":
            # Every process draws all of the random vectors, which come from one stream.
            for name, layer in self.controlled().items():
                actions.paper_divide_layer_(layer, self._maximum(name), self._sizes[name], self._generator)
        else:
            self._action.each(
                lambda name: self._apply(name, optimizer),
                lambda name: self.ops[name].tensors(self.layers[name], optimizer),
            )

    def _maximum(self, name: str) -> float:
        allowed = self.allowed(name)
        assert allowed is not None
        return allowed

    def _apply(self, name: str, optimizer: torch.optim.Optimizer | None) -> bool:
        """One action that proves, or the paper's clip; whether it changed the layer."""
        assert not isinstance(self.control, NoControl)
        layer, allowed = self.layers[name], self._maximum(name)
        match self.control.kind:
            case "clip" if self.control.procedure == "paper":
                actions.paper_clip_layer_(layer, allowed, self._sizes[name], optimizer)
                return True
            case "clip":
                return actions.clip_layer_(layer, allowed, optimizer) > 0
            case "assign":
                actions.assign_layer_(layer, allowed, optimizer)
                return True
            case _:
                return actions.divide_exact_layer_(layer, allowed) != 1

    def _factors(self, name: str) -> list[Tensor]:
        layer, power = self.layers[name], self._powers[name]
        if self.control.kind == "divide-each":
            return actions.divide_each_factors(layer, self._maximum(name), power)
        return actions.divide_factors(layer, self._maximum(name), power)

    def _scaled(self, name: str) -> list[Tensor]:
        """What the factors multiply."""
        tensors = self.ops[name].tensors(self.layers[name])
        return tensors if self.control.kind == "divide-each" else tensors[:1]

    def _limit_norms(self) -> None:
        assert self.batchnorm is not None
        for layer in self.norms.values():
            actions.limit_batchnorm_(layer, self.batchnorm.max_gain)

    @torch.no_grad()
    def seal(self) -> None:
        """Make every bound hold by proof, before an evaluation or a checkpoint; nothing under the paper's procedure."""
        if self.batchnorm is not None:
            self._limit_norms()
        if isinstance(self.control, NoControl) or self.control.procedure == "paper":
            return
        self._seal.each(
            lambda name: actions.divide_exact_layer_(self.layers[name], self._maximum(name)) != 1,
            lambda name: self.ops[name].tensors(self.layers[name])[:1],
        )

    def report(self) -> list[LayerReport]:
        """Largest value, proved bound and allowed maximum of every convolution, linear layer and BatchNorm."""
        rows = []
        brackets = self._reading.collected(lambda name: layer_norm_bound(self.layers[name], allowed=self.allowed(name)))
        for name, bracket in brackets.items():
            layer, allowed = self.layers[name], self.allowed(name)
            kind = type_before_parametrizations(layer).__name__
            rows.append(
                LayerReport(name, kind, self.ops[name].shape_text(layer), bracket.lower, bracket.upper, allowed)
            )
        limit = self.batchnorm.max_gain if self.batchnorm else None
        for name, norm in self.norms.items():
            gain = float(batchnorm_gain(norm))
            rows.append(LayerReport(name, type(norm).__name__, str(norm.num_features), gain, gain, limit))
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Vectors of the power steps and the state of the random generator."""
        owners = self._power.owners()
        parcels: dict[int, list[Tensor]] = {rank: [] for rank in range(self._group.world)}
        for name, power in self._powers.items():
            parcels[owners[name]].append(power.vectors)
        self._group.spread_(parcels)
        return {
            "vectors": {name: power.vectors for name, power in self._powers.items()},
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        for name, power in self._powers.items():
            power.vectors = state["vectors"][name].to(power.vectors.device, power.vectors.dtype)
        self._generator.set_state(state["generator"].cpu())
