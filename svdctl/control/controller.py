"""Control of a whole network while it trains: which layer, which method, when, and in which process."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from svdctl.config.base import Config
from svdctl.config.control_config import BatchNormControl, ControlConfig
from svdctl.config.validation_errors import sentences
from svdctl.control import actions
from svdctl.control.change_counts import Applications, ChangeCounter, Changes
from svdctl.control.control_method import ControlContext, ControlledLayer, ControlMethod
from svdctl.control.control_report import LayerReport, Report
from svdctl.control.layer_choice import (
    Choices,
    Maxima,
    choice_text,
    keeps_itself,
    kept_brackets,
    maxima_of,
    refuse_quantized,
    refuse_sharded,
    require_matches,
    single_choices,
    unwrapped,
)
from svdctl.distributed.group import Group
from svdctl.distributed.scheduling import LayerScheduler
from svdctl.errors import ShapeError, UsageError, nearest
from svdctl.layers.layer_operator import BatchNorm, batchnorm_gain
from svdctl.layers.layer_ops import LayerOps, find_ops, is_controllable, require_module
from svdctl.layers.norms import layer_norm_bounds
from svdctl.layers.stored_weight import require_memory
from svdctl.registry import CONTROLS
from svdctl.spectral.bounds import TOLERANCE, Bracket
from svdctl.spectral.exact_arithmetic import exact_products
from svdctl.utils.progress import Advance

C = TypeVar("C", bound=Config)
Known = Mapping[str, tuple[LayerOps, nn.Module]]
"""Layers that can be controlled, by name, with what is known of their types."""
_GAIN_ERROR = 1e-12  # at least of `batchnorm_gain` in float64


class Controller:
    """Keeps the singular values of a network's layers at most `max_sigma` while it trains, in a loop of one's own.

    Call `step` once after each step of the optimiser, also where gradients of several passes are accumulated for it; a
    step that GradScaler skipped does no harm. Add `penalty` to the loss: it is zero but for layers whose frames are
    kept orthonormal by it. Call `seal` before an evaluation or a checkpoint: then the maximum is proved of every
    controlled layer, and `report` shows it. All of these compute in the weights' own precision, whatever TF32, autocast
    and the like are set to; float16 and bfloat16 weights are proved as they are stored.

    Methods, and steps between two applications if `every_steps` is not given. Between two applications the optimiser
    moves weights freely; `seal` is what proves, for each of them.

    - `clip` (100): singular values above the maximum come down to it, the kernel moves as little as it can; proved.
    - `assign` (100): all singular values become the maximum, or a little less; proved.
    - `divide` (1): kernels are scaled by the maximum over an estimate of their norm, by one power step; not proved.
    - `divide-each` (1): as `divide`, each factor of a TT layer on its own.
    - `divide-exact` (1): kernels are scaled by the maximum over their proved bound.

    TT layers with `frames="retract"` are retracted after each step, with the momentum of the optimiser carried along.
    A layer under `svdctl.parametrize.spectral_norm` keeps itself: it is left alone, proved and reported. Wrappers are
    taken off: torch.compile, DistributedDataParallel, DataParallel, AveragedModel, timm's ModelEma.

    Where a loop replays a CUDA graph of its step, call `step` after each replay, or capture `apply_(n)` with the step:
    it is work of the device alone where `why_not_captured(n)` is None, and a graph of it may be replayed at every step
    with the same `due(n)`.

    Args:
        model: the network; its layers are found once.
        optimizer: whose momentum is carried along where a method moves factors of a layer.
        method: `clip`, `divide`, `divide-exact`, `divide-each`, `assign`, or one given to `register_control`.
        max_sigma: the largest singular value allowed for convolutions; or a mapping from patterns of names, types or
            predicates, of which the first that fits decides, for linear layers too, and layers that none fits are left
            alone.
        every_steps: steps between two applications.
        linear_max: the maximum for linear layers that no pattern of `max_sigma` fits; left out: they are left alone.
        batchnorm_max: the largest gain allowed for BatchNorm, which is left alone if it is not given.
        layers: which convolutions and linear layers to control: patterns of their full names (`layer3.*`, `*conv1`),
            types (`nn.Conv2d`), or predicates `(name, layer) -> bool`; several in a sequence: one of them is enough.

    Raises:
        UsageError: a method that there is not, a setting that it does not take, patterns that fit no layer, or an
            optimiser that has none of the network's parameters.
        ShapeError: a layer whose weight cannot be written: parametrised by others, pruned, quantised, complex, sharded
            by FSDP, with a forward pass of its own, or with a spectral norm above the maximum. Nothing is changed then.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 10))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> control = svdctl.Controller(net, optimizer, method="divide", max_sigma={"0": 0.5, "*": 1.0})
    >>> for images, labels in [(torch.rand(4, 1, 8, 8), torch.arange(4))] * 3:
    ...     optimizer.zero_grad()
    ...     loss = torch.nn.functional.cross_entropy(net(images), labels) + control.penalty()
    ...     loss.backward()
    ...     optimizer.step()
    ...     control.step()
    >>> all(bracket.upper <= 1.0 for bracket in control.seal().values())
    True
    >>> [(row.name, row.kind, row.is_proved) for row in control.report()]  # print shows it as a table
    [('0', 'Conv2d', True), ('2', 'Linear', True)]
    >>> average = torch.optim.swa_utils.AveragedModel(net)
    >>> list(control.seal(average))
    ['0', '2']
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        method: str = "clip",
        max_sigma: Maxima,
        every_steps: int | None = None,
        linear_max: float | None = None,
        batchnorm_max: float | None = None,
        layers: Choices = "*",
    ) -> None:
        chosen = single_choices(layers)
        given_maxima = max_sigma if isinstance(max_sigma, Mapping) else {"*": max_sigma}
        if not given_maxima or not all(isinstance(choice, str) or callable(choice) for choice in given_maxima):
            raise UsageError(
                "max_sigma is a number, or at least one pattern of names, type or predicate with its number"
            )
        single_choices(given_maxima)
        given = {"kind": method, "every_steps": every_steps, "linear_max": linear_max}
        settings = {name: value for name, value in given.items() if value is not None}
        kind = CONTROLS.get(method).config
        unknown = [name for name in ("max_sigma", *settings) if name not in kind.model_fields]
        if unknown:
            raise UsageError(f"the control method {method!r} takes no {' or '.join(unknown)}")
        configs = {}
        for choice, value in given_maxima.items():
            called = {"max_sigma": f"max_sigma[{choice_text(choice)}]"} if isinstance(max_sigma, Mapping) else {}
            configs[choice] = _checked(kind, {**settings, "max_sigma": value}, called)
        # The largest stands in the configuration, each layer's own with the layer.
        config: ControlConfig = max(configs.values(), key=lambda made: made.max_sigma)
        batchnorm = None
        if batchnorm_max is not None:
            batchnorm = _checked(BatchNormControl, {"max_gain": batchnorm_max}, {"max_gain": "batchnorm_max"})

        by_choice = {choice: made.max_sigma for choice, made in configs.items()}
        checked = by_choice if isinstance(max_sigma, Mapping) else config.max_sigma

        def limits(known: Known) -> dict[str, float]:
            refuse_quantized(unwrapped(model), chosen, checked, config.linear_max)
            found = maxima_of(known, chosen, checked, config.linear_max)
            require_matches(known, chosen, checked, found)
            return found

        self._start(model, optimizer, config, batchnorm, {}, 0, Group(), limits)

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
        layers: Choices = "*",
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
            layers: patterns of names of layers to control, or other choices of the constructor.
        """
        made = cls.__new__(cls)
        config = CONTROLS.get("none").config() if control is None else control

        def limits(known: Known) -> dict[str, float]:
            return {} if config.kind == "none" else maxima_of(known, layers, config.max_sigma, config.linear_max)

        made._start(model, optimizer, config, batchnorm, sizes or {}, seed, group or Group(), limits)
        return made

    def for_copy(self, model: nn.Module) -> "Controller":
        """Return a controller of a copy of the network, as an average of its weights, with the same settings."""
        made = type(self).__new__(type(self))
        sizes = {name: layer.input_size for name, layer in self._controlled.items() if layer.input_size is not None}
        limits = {name: layer.final_max for name, layer in self._controlled.items()} | self._kept
        made._start(model, None, self.config, self.batchnorm, sizes, 0, self._group, lambda known: limits)
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
        limits: Callable[[Known], dict[str, float]],
    ) -> None:
        self._model = model = unwrapped(model)
        require_module(model)
        require_memory(model)
        _require_optimizer(optimizer, model)
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
        self._scale: Tensor | None = None
        self._scaled_by = 1.0
        self._controlled: dict[str, ControlledLayer] = {}
        self._kept: dict[str, float] = {}
        """Maxima of layers that keep themselves within them, by svdctl's own spectral norm."""
        for name, limit in limits({name: self._known[name] for name in self.layers}).items():
            ops, layer = self._known[name]
            if keeps_itself(name, layer, limit):
                self._kept[name] = limit
            else:
                self._controlled[name] = ControlledLayer(name, layer, ops, limit, sizes.get(name))
        controlled = list(self._controlled.values())
        refuse_sharded(model, self._controlled)
        actions.refuse_unwritable(model, self.controlled())
        unknown = [layer.name for layer in controlled if layer.input_size is None]
        if unknown and self._method.needs_sizes(config):
            raise UsageError(
                f"control {config.kind!r} needs the input sizes of layers; that of {unknown[0]} is missing"
            )
        self._method.start(controlled, config)
        self._group = group
        costs = {name: actions.expected_cost(layer) for name, layer in self.layers.items()}
        self._group_layers()
        self._counted_since = 0
        """Step after which changes are counted."""
        on_device = controlled and (self._method.has_factors(config) or self._method.in_order(config))
        where = controlled[0].ops.tensors(controlled[0].module)[0].device if on_device else torch.device("cpu")
        self._changes = ChangeCounter([*self._controlled], where)
        limited = {name: norm.weight for name, norm in self.norms.items() if batchnorm and norm.weight is not None}
        where = next((weight.device for weight in limited.values()), torch.device("cpu"))
        self._norm_changes = ChangeCounter([*limited], where)
        self._proof_changes = dict.fromkeys([*self._controlled, *limited], 0)
        self._reading = LayerScheduler(costs, group, actions.on_cpu(self.layers.values()))
        # State stays where it is made.
        self._factors = LayerScheduler({name: costs[name] for name in self._controlled}, group)
        with torch.no_grad():
            self.has_penalty = any(ops.penalty(alike) for ops, alike in self._by_type.items())
            """Whether a layer adds a term to the loss; else `penalty` is a zero that need not be added."""

    def _group_layers(self) -> None:
        """Find which controlled layers share memory, and which process works on them."""
        self._maxima = {name: layer.max_sigma for name, layer in self._controlled.items()}
        self._groups = actions.LayerGroups(self.controlled(), self._maxima)
        threads = actions.on_cpu(self.layers.values())
        # One for each kind of work, whose times differ.
        self._action, self._seal = (LayerScheduler(self._groups.costs, self._group, threads) for _ in range(2))

    def _require_same(self, layers: Mapping[str, nn.Module]) -> None:
        """Raise a UsageError if a layer does not stand under its name any more; read tensors anew that were replaced.

        Raises:
            UsageError: a layer was replaced, or the weight of a controlled one by one of another shape.
            ShapeError: the weight of a controlled one by what cannot be written.
        """
        for name, layer in layers.items():
            try:
                found = self._model.get_submodule(name)
            except AttributeError:
                found = None
            if found is not layer:
                raise UsageError(
                    f"layer {name or '(top)'!r} was replaced since the Controller was made; make a new one"
                )
        before = self._groups.tensors
        after = {name: layer.ops.tensors(layer.module) for name, layer in self._controlled.items()}
        if all(list(map(id, after[name])) == list(map(id, before[name])) for name in after):
            return
        require_memory(self._model)
        actions.refuse_unwritable(self._model, self.controlled())
        for name, tensors in after.items():
            if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in before[name]]:
                raise UsageError(
                    f"the weight of layer {name or '(top)'!r} has another shape than when the Controller was made; "
                    "make a new one"
                )
        self._group_layers()

    def _limited(self) -> dict[str, nn.Module]:
        """Return layers that have a maximum, those that keep themselves and limited BatchNorm among them."""
        kept = {name: self.layers[name] for name in self._kept}
        return {**self.controlled(), **kept, **(self.norms if self.batchnorm is not None else {})}

    def controlled(self) -> dict[str, nn.Module]:
        """Return the layers that have a maximum."""
        return {name: layer.module for name, layer in self._controlled.items()}

    def maximum(self, name: str) -> float | None:
        """Return the largest singular value that a layer may have, or gain of BatchNorm; None: any.

        Raises:
            UsageError: no convolution, linear layer or BatchNorm has this name.
        """
        if name in self.norms:
            return None if self.batchnorm is None else self.batchnorm.max_gain
        if name not in self.layers:
            names = [*self.layers, *self.norms]
            raise UsageError(
                f"no convolution, linear layer or BatchNorm has the name {name!r}{nearest(str(name), names)}"
            )
        return self._controlled[name].max_sigma if name in self._controlled else self._kept.get(name)

    def scale_maxima(self, scale: float) -> None:
        """Make the maximum of every controlled layer its final one times a number; nothing waits for the device.

        Layers that keep themselves have a maximum of their own, which stays.
        """
        if not self._controlled or (self._scale is not None and scale == self._scaled_by):
            return
        for name, layer in self._controlled.items():
            layer.max_sigma = self._maxima[name] = layer.final_max * scale
        if self._scale is None:
            first = next(iter(self._controlled.values()))
            device = first.ops.tensors(first.module)[0].device
            self._scale = torch.full((), scale, dtype=torch.float64, device=device)
        self._scale.fill_(scale)
        self._scaled_by = scale

    def notices(self) -> list[str]:
        """Return what a user should know before training."""
        return self._method.notices(list(self._controlled.values()), self.config)

    @exact_products()
    def penalty(self) -> Tensor:
        """Return the term that the layers add to the loss (0-d), as for frames kept by a penalty; else zero.

        It is the mean of the defects of all layers of one weight, times that weight; `has_penalty` says whether any is.
        """
        sums: dict[float, tuple[Tensor, int]] = {}
        for ops, alike in self._by_type.items():
            for total, count, weight in ops.penalty(alike):
                before = sums.get(weight)
                sums[weight] = (total, count) if before is None else (before[0] + total, before[1] + count)
        terms = [total * (weight / count) for weight, (total, count) in sums.items()]
        if not terms:
            weights = next(self._model.parameters(), None)
            return torch.zeros((), device=None if weights is None else weights.device)
        return torch.stack(terms).sum() if len(terms) > 1 else terms[0]

    @torch.no_grad()
    def step(self) -> None:
        """Keep layers in their form, limit BatchNorm and apply the control, as far as due after the optimiser's step.

        Call it once for each step of the optimiser, whatever number of passes it took; after one that GradScaler
        skipped too, which it counts.

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
            self._norm_changes.count_([[factor] for factor in self._limit_norms()])
        if self._is_control_due(step):
            self._apply(ControlContext(step, self.optimizer, self._generator, self._scale))
        self.control_seconds += time.perf_counter() - began

    def due(self, step: int) -> tuple[str, ...]:
        """Return names of what `apply_` does at this step, but for what it does at every step.

        Raises:
            UsageError: it is no whole number.
        """
        if not hasattr(step, "__index__"):
            raise UsageError(f"a step is a whole number, counted from 1, not {step!r}")
        found = {"batchnorm"} if self._is_norm_due(step) else set()
        if self._is_control_due(step):
            found.add("control")
        for ops, alike in self._by_type.items():
            found.update(ops.due(alike, step) or ())
        return tuple(sorted(found))

    def reads_back(self, step: int) -> bool:
        """Return whether control is due at this step and waits for the device, as all but scaling by estimates does."""
        return self._is_control_due(step) and not self._method.has_factors(self.config)

    def why_not_captured(self, step: int) -> str | None:
        """Return why the work of a step is not work of the device alone, a sentence; None: it is."""
        if self.reads_back(step):
            return f"control {self.config.kind!r} reads values back from the device"
        if self._is_control_due(step) and self._scaled_by != 1 and not self._method.reads_scale:
            return f"control {self.config.kind!r} takes the maximum as a number, which moves"
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
            with actions.naming_what_is_not_finite(self.controlled()):
                self._changes.note_(method.step_(list(self._controlled.values()), config, context))
        elif method.has_factors(config):
            factors = self._factors.scaled(
                lambda names: self._factors_of([self._controlled[name] for name in names], context),
                lambda name: method.tensors(self._controlled[name]),
            )
            self._changes.count_([factors[name] for name in self._controlled])
        else:
            mine: dict[str, bool] = {}
            self._action.each(lambda firsts: self._act(firsts, context, mine), self._written)
            changed = torch.tensor([mine.get(name, False) for name in self._controlled], dtype=torch.float64)
            if not self._group.alone:
                changed = self._group.summed_(changed.to(self._group.device))
            self._changes.note_([value > 0 for value in changed.tolist()])

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

    def _act(self, firsts: list[str], context: ControlContext, known: dict[str, bool]) -> dict[str, bool]:
        """Apply the method to groups of layers that share memory; whether anything of each may have changed.

        Args:
            firsts: which groups.
            context: of the application.
            known: is told of each layer whether it was changed, with those that share its memory.
        """

        def work(names: list[str]) -> list[bool]:
            return list(map(bool, self._method.step_([self._controlled[name] for name in names], self.config, context)))

        if self._method.seals(self.config):
            changed = self._groups.act_(firsts, work, writes_operator=self._method.writes_operator)
        else:
            names = [name for first in firsts for name in self._groups.names[first]]
            with actions.naming_what_is_not_finite({name: self._controlled[name].module for name in names}):
                changed = dict(zip(names, work(names), strict=True))
        for first in firsts:
            group = self._groups.names[first]
            known |= dict.fromkeys(group, any(changed[name] for name in group))
        return {
            first: len(self._groups.names[first]) > 1 or changed[first] or bool(self._controlled[first].state)
            for first in firsts
        }

    def _written(self, first: str) -> list[Tensor]:
        """Return all that the method may have changed of a group."""
        group = [self._controlled[name] for name in self._groups.names[first]]
        tensors = [tensor for layer in group for tensor in layer.ops.tensors(layer.module, self.optimizer)]
        return tensors + [layer.state[key] for layer in group for key in sorted(layer.state)]

    def _limit_norms(self) -> list[Tensor]:
        """Limit BatchNorm; return the factors (0-d) of those that are counted."""
        assert self.batchnorm is not None
        return actions.limit_batchnorms_(list(self.norms.values()), self.batchnorm.max_gain)

    @torch.no_grad()
    @exact_products()
    def seal(self, model: nn.Module | None = None, *, sharp: bool = True) -> dict[str, Bracket]:
        """Make the maximum of every controlled layer hold by proof, before an evaluation or a checkpoint.

        Args:
            model: a copy of the network to seal instead, as an average of its weights (AveragedModel, timm's ModelEma,
                or any of the same structure); what this object keeps does not change.
            sharp: return brackets of 0.5 %, for two to three times the time; else those from 0 to the maximum.

        Returns:
            What was proved, by layer; nothing under the paper's procedure.

        Raises:
            ShapeError: weights that are not finite, or a layer with a spectral norm that has left its maximum.
            UsageError: a layer that was replaced since, or a copy without a layer of the network, or with one of
                another type or shape.
        """
        if model is not None:
            network = unwrapped(model)
            require_module(network)
            if network is not self._model:
                return self._seal_copy(network, sharp=sharp)
        self._require_same(self._limited())
        if self.batchnorm is not None and (factors := self._limit_norms()):
            limited = zip(self._norm_changes.names, torch.stack(factors).tolist(), strict=True)
            self._count_proof(name for name, factor in limited if factor != 1)
        return self._scaled_within(sharp=sharp)

    def _seal_copy(self, model: nn.Module, *, sharp: bool) -> dict[str, Bracket]:
        """Do what `seal` does to a copy of the network."""
        names = [*self._controlled, *self._kept]
        modules = dict(model.named_modules())
        layers = {name: _copy_of(self.layers[name], modules, name) for name in names}
        norms = [_copy_of(norm, modules, name) for name, norm in self.norms.items() if self.batchnorm is not None]
        actions.refuse_unwritable(model, {name: layers[name] for name in self._controlled})
        if self.batchnorm is not None:
            actions.limit_batchnorms_(norms, self.batchnorm.max_gain)
        if not self._is_sealed():
            return {}
        maxima = {name: layer.max_sigma for name, layer in self._controlled.items()}
        groups = actions.LayerGroups({name: layers[name] for name in maxima}, maxima)
        threads = actions.on_cpu(layers[name] for name in maxima)
        found, _, _ = self._sealed(groups, LayerScheduler(groups.costs, self._group, threads), sharp=sharp)
        return found | kept_brackets({name: layers[name] for name in self._kept}, self._kept, sharp=sharp)

    @torch.no_grad()
    @exact_products()
    def prove(self) -> dict[str, Bracket]:
        """Prove every controlled layer to be at most its maximum, all together; one found above is scaled there.

        Unlike `seal` it leaves BatchNorm alone. It waits for the device, and belongs between two steps.

        Returns:
            What was proved, by layer: brackets from 0 to the maximum, which say nothing of how near to it the norm is;
            nothing under the paper's procedure.

        Raises:
            ShapeError: weights that are not finite.
            UsageError: a layer that was replaced since.
        """
        began = time.perf_counter()
        self._require_same({**self.controlled(), **{name: self.layers[name] for name in self._kept}})
        found = self._scaled_within(sharp=False)
        self.proof_seconds += time.perf_counter() - began
        return found

    @contextmanager
    def reporting(self, advance: Advance) -> Iterator[None]:
        """Have `advance` told how many layers are done, while the body controls, seals, proves or reports.

        On a GPU all layers are worked on at once, and nothing is told.
        """
        schedulers = (self._action, self._seal, self._reading)
        before = [scheduler.advance for scheduler in schedulers]
        for scheduler in schedulers:
            scheduler.advance = advance
        try:
            yield
        finally:
            for scheduler, former in zip(schedulers, before, strict=True):
                scheduler.advance = former

    def is_proof_due(self, step: int) -> bool:
        """Return whether `prove` is due after this step; never for `auto`, which a run replaces when it starts."""
        if not self._is_sealed():
            return False
        every = self.config.prove_every_steps
        return isinstance(every, int) and every > 0 and step % every == 0

    def _is_sealed(self) -> bool:
        """Return whether there are layers whose maximum is proved."""
        return bool(self._controlled or self._kept) and self._method.seals(self.config)

    def _scaled_within(self, *, sharp: bool) -> dict[str, Bracket]:
        """Scale controlled layers until all are proved to be within their maxima; return what was proved."""
        self.smallest_factor = 1.0
        if not self._is_sealed():
            return {}
        found, self.smallest_factor, scaled = self._sealed(self._groups, self._seal, sharp=sharp)
        self._count_proof(scaled)
        return found | kept_brackets({name: self.layers[name] for name in self._kept}, self._kept, sharp=sharp)

    def _sealed(
        self, groups: actions.LayerGroups, scheduler: LayerScheduler, *, sharp: bool
    ) -> tuple[dict[str, Bracket], float, set[str]]:
        """Scale layers until all are proved to be within their maxima.

        Returns:
            What was proved, the smallest factor, and the layers that were scaled, with those that share their memory.
        """
        if not groups.layers:
            return {}, 1.0, set()
        mine: dict[str, Bracket] = {}
        factors = [1.0]
        scaled: set[str] = set()

        def seal(firsts: list[str]) -> dict[str, bool]:
            found = groups.seal_(firsts, sharp=sharp)
            for first, (factor, brackets) in found.items():
                mine.update(brackets)
                factors.append(factor)
                scaled.update(groups.names[first] if factor != 1 else ())
            return {first: factor != 1 for first, (factor, _) in found.items()}

        scheduler.each(seal, lambda first: [groups.tensors[name][0] for name in groups.names[first]])
        gathered = self._group.gathered((min(factors), mine, scaled))
        found = {name: bracket for _, part, _ in gathered for name, bracket in part.items()}
        smallest = min(factor for factor, _, _ in gathered)
        return {name: found[name] for name in groups.layers}, smallest, set().union(*(names for *_, names in gathered))

    def _count_proof(self, scaled: Iterable[str]) -> None:
        for name in scaled:
            self._proof_changes[name] += 1

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave what proofs and seals scale in the body out of `changes`, as where that is undone later."""
        before = dict(self._proof_changes)
        try:
            yield
        finally:
            self._proof_changes = before

    def changes(self) -> Changes:
        """Return how often control was applied, and which layers it has changed; waits for the device.

        Steps are counted where they are made by `step` or `apply_`, and in replays of a CUDA graph of `apply_`.

        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Conv2d(8, 8, 3))
        >>> control = svdctl.Controller(net, method="divide", max_sigma={"0": 1e-3, "*": 1e3})
        >>> control.step()
        >>> control.changes().control
        Applications(applied=1, changed={'0': 1, '1': 0})
        """
        proofs = dict(self._proof_changes)
        return Changes(self._counted_since, self._changes.read(), self._norm_changes.read(), proofs)

    @exact_products()
    def report(self, proved: Mapping[str, Bracket] = MappingProxyType({}), *, tolerance: float = TOLERANCE) -> Report:
        """Return largest value, proved bound and maximum of every convolution, linear layer and BatchNorm.

        It is a list of rows, and `print` shows it as a table. Weights stay as they are: where the last `seal` lies some
        steps back, layers may be above their maximum, and are shown so. A layer that is left alone and cannot be read
        has the bound `inf`.

        Args:
            proved: brackets that `seal` returned of these weights, so that they are not proved again; of those from 0
                the largest value is found here.
            tolerance: wanted `upper / lower - 1` of what is found here.

        Raises:
            ShapeError: weights of a controlled layer that are not finite.
            UsageError: a layer that was replaced since the Controller was made, or `proved` is something else.
        """
        if not isinstance(proved, Mapping) or not all(isinstance(bracket, Bracket) for bracket in proved.values()):
            raise UsageError(f"report takes brackets by layer, as seal returns them, not {proved!r:.80}")
        self._require_same({**self.layers, **self.norms})

        def brackets(names: list[str]) -> dict[str, Bracket]:
            sharp = {name: proved[name] for name in names if name in proved and proved[name].lower > 0}
            unknown = [name for name in names if name not in sharp]
            maxima = [None if name in proved else self.maximum(name) for name in unknown]
            try:
                found = self._bounds(unknown, maxima, tolerance)
            except ShapeError:
                # One that is left alone may be of a kind whose weight does not tell what it computes.
                found = {
                    name: self._bounds_if_left_alone(name, maximum, tolerance)
                    for name, maximum in zip(unknown, maxima, strict=True)
                }
            within = {name: min(bracket.upper, proved[name].upper) for name, bracket in found.items() if name in proved}
            found |= {name: Bracket(found[name].lower, upper) for name, upper in within.items()}
            return {name: sharp[name] if name in sharp else found[name] for name in names}

        rows = Report()
        for name, bracket in self._reading.collected(brackets).items():
            ops, layer = self._known[name]
            kind, shape = type_before_parametrizations(layer).__name__, ops.shape_text(layer)
            rows.append(LayerReport(name, kind, shape, bracket.lower, bracket.upper, self.maximum(name)))
        limit = self.batchnorm.max_gain if self.batchnorm else None
        for name, norm in self.norms.items():
            gain = float(batchnorm_gain(norm, torch.float64))
            reached, bound = gain * (1 - _GAIN_ERROR), gain * (1 + _GAIN_ERROR)
            rows.append(LayerReport(name, type(norm).__name__, str(norm.num_features), reached, bound, limit))
        return rows

    def _bounds(self, names: list[str], maxima: list[float | None], tolerance: float) -> dict[str, Bracket]:
        """Return a bracket of the norm of each layer, its maximum proved instead where that is possible and sharper."""
        layers = [self.layers[name] for name in names]
        with actions.naming_what_is_not_finite(dict(zip(names, layers, strict=True))):
            return dict(zip(names, layer_norm_bounds(layers, tolerance=tolerance, maxima=maxima), strict=True))

    def _bounds_if_left_alone(self, name: str, maximum: float | None, tolerance: float) -> Bracket:
        """Return a bracket of the norm of a layer; from 0 to infinity where it has no maximum and cannot be read."""
        try:
            return self._bounds([name], [maximum], tolerance)[name]
        except ShapeError:
            if self.maximum(name) is not None:
                raise
            return Bracket(0.0, math.inf)

    def state_dict(self) -> dict[str, Any]:
        """Return steps, the method's state of each layer, changes, the frames' defect, and the generator's state."""
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
        made_by = {"method": self.config.kind, "layers": self._shapes()}
        state["changes"] = self.changes().state()
        return {**state, "step": self.steps, "generator": self._generator.get_state(), "controller": made_by}

    def _shapes(self) -> dict[str, list[list[int]]]:
        """Return the shapes of what is written of each controlled layer."""
        return {name: [list(tensor.shape) for tensor in parts] for name, parts in self._groups.tensors.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, bit for bit where model and optimiser do.

        Raises:
            UsageError: a state of another network or method, or of something else.
        """
        needed = {"vectors": Mapping, "step": int, "generator": Tensor}
        made_by = state.get("controller") if isinstance(state, Mapping) else None
        if (
            not isinstance(state, Mapping)
            or not all(isinstance(state.get(key), needed[key]) for key in needed)
            or state["generator"].shape != self._generator.get_state().shape
            or not (made_by is None or (isinstance(made_by, Mapping) and isinstance(made_by.get("layers"), Mapping)))
        ):
            raise UsageError("the state is not one of Controller.state_dict")
        wanted = [(layer, key) for layer in self._controlled.values() for key in layer.state]
        # What a newer version keeps beside it starts anew.
        wanted = [(layer, key) for layer, key in wanted if key == "vectors" or key in state]
        for layer, key in wanted:
            stored = state[key].get(layer.name) if isinstance(state[key], Mapping) else None
            if not isinstance(stored, Tensor) or stored.shape != layer.state[key].shape:
                raise UsageError(
                    f"the state of the control has no {key} of this shape for layer {layer.name or '(top)'}: it is of "
                    "another network, or of a controller with other layers or another method"
                )
        self._require_alike(made_by)
        changes = self._changes_in(state)
        self.steps = int(state["step"])
        for layer, key in wanted:
            layer.state[key].copy_(state[key][layer.name])
        self._counted_since, self._proof_changes = changes.since, dict(changes.proofs)
        self._changes.load_(changes.control)
        self._norm_changes.load_(changes.batchnorm)
        retraction = state.get("retraction", {})
        if retraction and self.frame_residual is not None:
            self.frame_residual.copy_(retraction["residual"])
            if retraction["by_qr"]:
                self.retract_by_qr()
        self._generator.set_state(state["generator"].cpu())

    def _changes_in(self, state: Mapping[str, Any]) -> Changes:
        """Return what a state of this controller says of changes; of older versions: counted from its step on."""
        nothing = Changes(
            max(int(state["step"]), 0),
            Applications(0, dict.fromkeys(self._changes.names, 0)),
            Applications(0, dict.fromkeys(self._norm_changes.names, 0)),
            dict.fromkeys(self._proof_changes, 0),
        )
        if "changes" not in state:
            return nothing
        found = Changes.of_state(state["changes"])
        found.require_names(nothing)
        if found.since > nothing.since:
            raise UsageError("the counts of what control changed begin after the step of the state")
        return found

    def _require_alike(self, made_by: Any) -> None:
        """Raise a UsageError if a state was made by a controller with another method or other layers.

        Args:
            made_by: what `state_dict` says of it; None: nothing, as in states of older versions.
        """
        if made_by is None:
            return
        if made_by.get("method") != self.config.kind:
            raise UsageError(
                f"the state of the control is of method {made_by.get('method')!r}, not of {self.config.kind!r}"
            )
        stored, own = made_by["layers"], self._shapes()
        for name in [*own, *stored]:
            if stored.get(name) == own.get(name):
                continue
            what = "of another shape" if name in own and name in stored else "not in it"
            raise UsageError(
                "the state of the control is of other layers: "
                f"layer {name or '(top)'!r} is {what if name in own else 'not controlled here'}"
            )


def _checked(model: type[C], settings: dict[str, Any], called: Mapping[str, str]) -> C:
    """Return a configuration of these settings, of which some are called otherwise by who gave them.

    Raises:
        UsageError: a setting of another type or out of its range, by the name that it was given by.
    """
    try:
        return model(**settings)
    except ValidationError as error:
        faults = "; ".join(sentences(error, model, settings))
        for name, given in called.items():
            faults = faults.replace(f"`{name}`", f"`{given}`")
        raise UsageError(faults) from error


def _require_optimizer(optimizer: Any, model: nn.Module) -> None:
    """Raise a UsageError if it is no optimiser, or one of another network; None is one that is set later."""
    if optimizer is None:
        return
    groups = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, list):
        raise UsageError(
            "the optimizer of a Controller is one of torch, as torch.optim.SGD(model.parameters(), lr=0.1), or None, "
            f"not {optimizer!r:.80}"
        )
    own = set(map(id, model.parameters()))
    if not any(id(parameter) in own for group in groups for parameter in group["params"]):
        raise UsageError(
            "the optimizer has none of the network's parameters: it is of another network, or was made of other "
            "parameters; give the one that trains this network, or None"
        )


def _copy_of(layer: Any, modules: Mapping[str, nn.Module], name: str) -> Any:
    """Return the layer of a name among the modules of a copy of a network.

    Raises:
        UsageError: it is not there, or of another type or shape.
    """
    found = modules.get(name)
    kinds = [type_before_parametrizations(one) if one is not None else None for one in (layer, found)]
    shapes = [[tensor.shape for tensor in one.parameters()] if one is not None else None for one in (layer, found)]
    if kinds[0] is not kinds[1] or shapes[0] != shapes[1]:
        what = "no such layer" if found is None else "another type or shape there"
        raise UsageError(f"a copy to seal has the layers of the network; of {name or '(top)'} it has {what}")
    return found
