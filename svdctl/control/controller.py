"""Control of a whole network while it trains: which layer, which method, when, and in which process."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from svdctl.config.control_config import BatchNormControl, ControlConfig
from svdctl.control import actions
from svdctl.control.control_method import ControlContext, ControlledLayer, ControlMethod
from svdctl.distributed.group import Group
from svdctl.distributed.scheduling import LayerScheduler
from svdctl.errors import UsageError
from svdctl.layers.layer_operator import BatchNorm, batchnorm_gain
from svdctl.layers.layer_ops import LayerOps, find_ops, is_controllable, require_module
from svdctl.layers.norms import layer_norm_bounds
from svdctl.layers.stored_weight import require_memory
from svdctl.registry import CONTROLS
from svdctl.spectral.bounds import Bracket
from svdctl.spectral.exact_arithmetic import exact_products


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
    """Keeps the singular values of a network's layers at most `max_sigma` while it trains.

    Call `step` after each step of the optimiser, add `penalty` to the loss if the network has layers with one, and call
    `seal` before an evaluation or a checkpoint: then the maximum is proved of every controlled layer. All of these
    compute in the weights' own precision, whatever TF32, autocast and the like are set to.

    Args:
        model: the network; its layers are found once.
        optimizer: whose momentum is carried along where a method moves factors of a layer.
        method: `clip`, `divide`, `divide-exact`, `divide-each`, `assign`, or one given to `register_control`.
        max_sigma: the largest singular value allowed for convolutions.
        every_steps: steps between two applications; 100 for clip and assign and 1 for the others, if not given.
        linear_max: the maximum for linear layers, which are left alone if it is not given.
        batchnorm_max: the largest gain allowed for BatchNorm, which is left alone if it is not given.
        layers: patterns of names of layers to control, as `layer3.*`.

    Raises:
        UsageError: a method that there is not, or a setting that it does not take.
        ShapeError: a layer whose weight cannot be written, as one that is parametrised; see `svdctl.clip_`.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 10))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> controller = svdctl.Controller(net, optimizer, method="divide", max_sigma=0.5, linear_max=0.5)
    >>> for _ in range(2):
    ...     loss = net(torch.rand(4, 1, 8, 8)).square().mean()
    ...     loss.backward()
    ...     optimizer.step()
    ...     controller.step()
    >>> all(bracket.upper <= 0.5 for bracket in controller.seal().values())
    True
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        method: str = "clip",
        max_sigma: float,
        every_steps: int | None = None,
        linear_max: float | None = None,
        batchnorm_max: float | None = None,
        layers: str | Sequence[str] = "*",
    ) -> None:
        given = {"kind": method, "max_sigma": max_sigma, "every_steps": every_steps, "linear_max": linear_max}
        try:
            config = CONTROLS.get(method).config(**{name: value for name, value in given.items() if value is not None})
            batchnorm = None if batchnorm_max is None else BatchNormControl(max_gain=batchnorm_max)
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise UsageError(f"control {method!r}: {'; '.join(faults)}") from error
        self._start(model, optimizer, config, batchnorm, {}, 0, Group(), layers)

    @classmethod
    def from_config(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        control: ControlConfig | None,
        batchnorm: BatchNormControl | None,
        *,
        sizes: Mapping[str, tuple[int, ...]] | None = None,
        seed: int = 0,
        group: Group | None = None,
        layers: str | Sequence[str] = "*",
    ) -> "Controller":
        """Return the controller of a configured training.

        Several processes hold the same model and share the work layer by layer. `step`, `seal`, `report` and
        `state_dict` are then called in all of them, and leave all of them with the same bits.

        Args:
            model: the network.
            optimizer: its optimiser, which may be set later.
            control: the section `control` of a configuration; None: singular values are left alone.
            batchnorm: the limit on BatchNorm, if any.
            sizes: input size of each layer by name; needed by the paper's procedures alone.
            seed: for the paper's random vectors.
            group: the processes; one, if not given.
            layers: patterns of names of layers to control.
        """
        made = cls.__new__(cls)
        config = CONTROLS.get("none").config() if control is None else control
        made._start(model, optimizer, config, batchnorm, sizes or {}, seed, group or Group(), layers)
        return made

    @exact_products()
    def _start(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        config: ControlConfig,
        batchnorm: BatchNormControl | None,
        sizes: Mapping[str, tuple[int, ...]],
        seed: int,
        group: Group,
        layers: str | Sequence[str],
    ) -> None:
        require_module(model)
        require_memory(model)
        self.optimizer, self.config, self.batchnorm = optimizer, config, batchnorm
        self.steps = 0
        """Steps of the optimiser so far."""
        self.control_seconds = 0.0
        """Seconds that control has taken, what keeps layers in their form left out."""
        self.proof_seconds = 0.0
        """Seconds that `prove` has taken."""
        self.smallest_factor = 1.0
        """By which the last proof or seal scaled a layer; 1: none was above its maximum."""
        self._method: ControlMethod = CONTROLS.get(config.kind)
        self._known = {name: (ops, layer) for name, layer in model.named_modules() if (ops := find_ops(layer))}
        self._by_type: dict[LayerOps, list[nn.Module]] = {}
        """Known layers by their LayerOps, in the network's order."""
        for ops, layer in self._known.values():
            self._by_type.setdefault(ops, []).append(layer)
        retracted = [ops.frames(layer)[0] for ops, layer in self._known.values() if ops.retracts(layer)]
        self.frame_residual = torch.zeros((), device=retracted[0].device) if retracted else None
        """Largest `||U^T U - I||_F` (0-d, float32) of retracted frames since it was set to zero; None: no frames."""
        self.retracts_by_qr = False
        self.layers = {name: layer for name, (_, layer) in self._known.items() if is_controllable(layer)}
        self.norms = {name: layer for name, layer in model.named_modules() if isinstance(layer, BatchNorm)}
        self._generator = torch.Generator().manual_seed(seed)
        patterns = (layers,) if isinstance(layers, str) else tuple(layers)
        self._controlled: dict[str, ControlledLayer] = {}
        for name, layer in self.layers.items():
            ops = self._known[name][0]
            limit = None
            if config.kind != "none" and any(fnmatchcase(name, pattern) for pattern in patterns):
                limit = config.linear_max if ops.is_linear else config.max_sigma
            if limit is not None:
                self._controlled[name] = ControlledLayer(name, layer, ops, limit, sizes.get(name))
        controlled = list(self._controlled.values())
        actions.refuse_unwritable(model, self.controlled())
        unknown = [layer.name for layer in controlled if layer.input_size is None]
        if unknown and self._method.needs_sizes(config):
            raise UsageError(
                f"control {config.kind!r} needs the input sizes of layers; that of {unknown[0]} is missing"
            )
        self._method.start(controlled, config)
        self._groups = actions.LayerGroups(self.controlled(), {layer.name: layer.max_sigma for layer in controlled})
        costs = {name: actions.expected_cost(layer) for name, layer in self.layers.items()}
        # One for each kind of work, whose times differ. State stays where it is made.
        threads = actions.on_cpu(self.layers.values())
        self._action, self._seal = (LayerScheduler(self._groups.costs, group, threads) for _ in range(2))
        self._reading = LayerScheduler(costs, group, threads)
        self._factors = LayerScheduler({name: costs[name] for name in self._controlled}, group)
        self._group = group

    def controlled(self) -> dict[str, nn.Module]:
        """Return the layers that have an allowed maximum."""
        return {name: layer.module for name, layer in self._controlled.items()}

    def allowed(self, name: str) -> float | None:
        """Return the largest singular value allowed for a layer; None: any."""
        return self._controlled[name].max_sigma if name in self._controlled else None

    def notices(self) -> list[str]:
        """Return what a user should know before training."""
        return self._method.notices(list(self._controlled.values()), self.config)

    @exact_products()
    def penalty(self) -> Tensor | None:
        """Return the term that the layers add to the loss (0-d), as for frames kept by a penalty; None: there is none.

        It is the mean of the defects of all layers of one weight, times that weight.
        """
        sums: dict[float, tuple[Tensor, int]] = {}
        for ops, alike in self._by_type.items():
            for total, count, weight in ops.penalty(alike):
                before = sums.get(weight)
                sums[weight] = (total, count) if before is None else (before[0] + total, before[1] + count)
        terms = [total * (weight / count) for weight, (total, count) in sums.items()]
        return torch.stack(terms).sum() if len(terms) > 1 else next(iter(terms), None)

    @torch.no_grad()
    def step(self) -> None:
        """Keep layers in their form, limit BatchNorm and apply the control, as far as due after the optimiser's step.

        Raises:
            ShapeError: weights that are not finite.
        """
        self.steps += 1
        self.apply_(self.steps)

    @torch.no_grad()
    @exact_products()
    def apply_(self, step: int) -> None:
        """Do what is due after the optimiser's step of this number, counted from 1; `step` calls it.

        Where `why_not_captured` is None this is work of the device alone: all that is kept is written in place, so that
        a CUDA graph of it can be replayed at any step with the same `due`.

        Raises:
            ShapeError: weights that are not finite.
        """
        for ops, alike in self._by_type.items():
            defect = ops.after_optimizer_step_(alike, step=step, optimizer=self.optimizer)
            if defect is not None and self.frame_residual is not None:
                self.frame_residual.copy_(torch.maximum(self.frame_residual, defect))
        self.control_(step)

    @torch.no_grad()
    @exact_products()
    def control_(self, step: int) -> None:
        """Limit BatchNorm and apply the control, as far as due at this step."""
        began = time.perf_counter()
        if self._is_norm_due(step):
            self._limit_norms()
        if self._is_control_due(step):
            self._apply(ControlContext(step, self.optimizer, self._generator))
        self.control_seconds += time.perf_counter() - began

    def due(self, step: int) -> tuple[str, ...]:
        """Return names of what `apply_` does at this step, but for what it does at every step."""
        found = {"batchnorm"} if self._is_norm_due(step) else set()
        if self._is_control_due(step):
            found.add("control")
        for ops, alike in self._by_type.items():
            found.update(ops.due(alike, step) or ())
        return tuple(sorted(found))

    def why_not_captured(self, step: int) -> str | None:
        """Return why the work of a step is not work of the device alone, a sentence; None: it is."""
        if self._is_control_due(step) and not self._method.has_factors(self.config):
            return f"control {self.config.kind!r} reads values back from the device"
        for ops, alike in self._by_type.items():
            if ops.due(alike, step) is None:
                return f"what keeps {ops.kind} layers in their form may wait for the device"
        return None

    def retract_by_qr(self) -> None:
        """Retract frames by QR from now on, which needs no start near a frame, as the default's products do."""
        self.retracts_by_qr = True
        for ops, alike in self._by_type.items():
            ops.retract_by_qr_([layer for layer in alike if ops.retracts(layer)])

    def _is_norm_due(self, step: int) -> bool:
        return self.batchnorm is not None and bool(self.norms) and step % self.batchnorm.every_steps == 0

    def _is_control_due(self, step: int) -> bool:
        return bool(self._controlled) and step % self.config.every_steps == 0

    def _apply(self, context: ControlContext) -> None:
        method, config = self._method, self.config
        if method.in_order(config):
            method.step_(list(self._controlled.values()), config, context)
        elif method.has_factors(config):
            self._factors.scaled(
                lambda names: self._factors_of([self._controlled[name] for name in names], context),
                lambda name: method.tensors(self._controlled[name]),
            )
        else:
            self._action.each(lambda firsts: self._act(firsts, context), self._written)

    def _factors_of(self, layers: list[ControlledLayer], context: ControlContext) -> list[list[Tensor]]:
        """Return the method's factors; what it keeps stays in the same memory, as a CUDA graph needs it."""
        before = [dict(layer.state) for layer in layers]
        found = self._method.factors(layers, self.config, context)
        for layer, kept in zip(layers, before, strict=True):
            for key, value in kept.items():
                if layer.state[key] is not value:
                    value.copy_(layer.state[key])
                    layer.state[key] = value
        return found

    def _act(self, firsts: list[str], context: ControlContext) -> dict[str, bool]:
        """Apply the method to groups of layers that share memory; whether anything of each may have changed."""

        def work(names: list[str]) -> list[bool]:
            return self._method.step_([self._controlled[name] for name in names], self.config, context)

        if self._method.seals(self.config):
            changed = self._groups.act_(firsts, work, writes_operator=self._method.writes_operator)
        else:
            names = [name for first in firsts for name in self._groups.names[first]]
            changed = dict(zip(names, work(names), strict=True))
        return {
            first: len(self._groups.names[first]) > 1 or changed[first] or bool(self._controlled[first].state)
            for first in firsts
        }

    def _written(self, first: str) -> list[Tensor]:
        """Return all that the method may have changed of a group."""
        group = [self._controlled[name] for name in self._groups.names[first]]
        tensors = [tensor for layer in group for tensor in layer.ops.tensors(layer.module, self.optimizer)]
        return tensors + [layer.state[key] for layer in group for key in sorted(layer.state)]

    def _limit_norms(self) -> None:
        assert self.batchnorm is not None
        actions.limit_batchnorms_(list(self.norms.values()), self.batchnorm.max_gain)

    @torch.no_grad()
    @exact_products()
    def seal(self, *, sharp: bool = True) -> dict[str, Bracket]:
        """Make the maximum of every controlled layer hold by proof, before an evaluation or a checkpoint.

        Args:
            sharp: return brackets of 0.5 %, for two to three times the time; else those from 0 to the maximum.

        Returns:
            What was proved, by layer; nothing under the paper's procedure.

        Raises:
            ShapeError: weights that are not finite.
        """
        if self.batchnorm is not None:
            self._limit_norms()
        return self._scaled_within(sharp=sharp)

    @torch.no_grad()
    def prove(self) -> dict[str, Bracket]:
        """Prove every controlled layer to be at most its maximum, all together; one found above is scaled there.

        Unlike `seal` it leaves BatchNorm alone. It waits for the device, and belongs between two steps.

        Returns:
            What was proved, by layer: brackets from 0 to the maximum, which say nothing of how near to it the norm is;
            nothing under the paper's procedure.

        Raises:
            ShapeError: weights that are not finite.
        """
        began = time.perf_counter()
        found = self._scaled_within(sharp=False)
        self.proof_seconds += time.perf_counter() - began
        return found

    def is_proof_due(self, step: int) -> bool:
        """Return whether `prove` is due after this step; never for `auto`, which a run replaces when it starts."""
        if not self._controlled or not self._method.seals(self.config):
            return False
        every = self.config.prove_every_steps
        return isinstance(every, int) and every > 0 and step % every == 0

    def _scaled_within(self, *, sharp: bool) -> dict[str, Bracket]:
        """Scale controlled layers until all are proved to be within their maxima; return what was proved."""
        self.smallest_factor = 1.0
        if not self._controlled or not self._method.seals(self.config):
            return {}
        mine: dict[str, Bracket] = {}
        factors = [1.0]

        def seal(firsts: list[str]) -> dict[str, bool]:
            found = self._groups.seal_(firsts, sharp=sharp)
            for factor, brackets in found.values():
                mine.update(brackets)
                factors.append(factor)
            return {first: factor != 1 for first, (factor, _) in found.items()}

        self._seal.each(seal, lambda first: [self._groups.tensors[name][0] for name in self._groups.names[first]])
        gathered = self._group.gathered((min(factors), mine))
        self.smallest_factor = min(factor for factor, _ in gathered)
        found = {name: bracket for _, part in gathered for name, bracket in part.items()}
        return {name: found[name] for name in self._controlled}

    @exact_products()
    def report(self, proved: Mapping[str, Bracket] = MappingProxyType({})) -> list[LayerReport]:
        """Return largest value, proved bound and allowed maximum of every convolution, linear layer and BatchNorm.

        Args:
            proved: brackets that `seal` returned of these weights, so that they are not proved again.
        """

        def brackets(names: list[str]) -> dict[str, Bracket]:
            unknown = [name for name in names if name not in proved]
            layers, maxima = [self.layers[name] for name in unknown], [self.allowed(name) for name in unknown]
            found = dict(zip(unknown, layer_norm_bounds(layers, allowed=maxima), strict=True))
            return {name: proved[name] if name in proved else found[name] for name in names}

        rows = []
        for name, bracket in self._reading.collected(brackets).items():
            ops, layer = self._known[name]
            kind, shape = type_before_parametrizations(layer).__name__, ops.shape_text(layer)
            rows.append(LayerReport(name, kind, shape, bracket.lower, bracket.upper, self.allowed(name)))
        limit = self.batchnorm.max_gain if self.batchnorm else None
        for name, norm in self.norms.items():
            gain = float(batchnorm_gain(norm))
            rows.append(LayerReport(name, type(norm).__name__, str(norm.num_features), gain, gain, limit))
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Return steps, the method's state of each layer by its key, the frames' defect, and that of the generator."""
        if self._method.has_factors(self.config):
            owners = self._factors.owners()
            parcels: dict[int, list[Tensor]] = {rank: [] for rank in range(self._group.world)}
            for name, layer in self._controlled.items():
                parcels[owners[name]] += [layer.state[key] for key in sorted(layer.state)]
            self._group.spread_(parcels)
        state: dict[str, dict[str, Tensor]] = {"vectors": {}}
        for name, layer in self._controlled.items():
            for key, value in layer.state.items():
                state.setdefault(key, {})[name] = value
        if self.frame_residual is not None:
            state["retraction"] = {"residual": self.frame_residual.clone(), "by_qr": torch.tensor(self.retracts_by_qr)}
        return {**state, "step": self.steps, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.steps = int(state["step"])
        for name, layer in self._controlled.items():
            for key, value in layer.state.items():
                # What a newer version keeps beside it starts anew.
                if key == "vectors" or key in state:
                    value.copy_(state[key][name])
        retraction = state.get("retraction", {})
        if retraction and self.frame_residual is not None:
            self.frame_residual.copy_(retraction["residual"])
            if retraction["by_qr"]:
                self.retract_by_qr()
        self._generator.set_state(state["generator"].cpu())
