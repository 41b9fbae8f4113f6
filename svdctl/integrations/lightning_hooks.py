"""What a callback of Lightning does, for the packages `lightning` and `pytorch_lightning` alike."""

import os
import warnings
from collections.abc import Sequence
from copy import deepcopy
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import nn

from svdctl.control.controller import Controller
from svdctl.errors import UsageError, nearest

_OF_TRAINING = (
    *("callbacks", "optimizer_states", "lr_schedulers", "loops"),
    *("current_model_state", "averaging_state"),  # of WeightAveraging; "state_dict" is the average
)
"""Entries of a checkpoint that only a training needs that goes on from it."""


class LightningHooks:
    """The hooks of `Control`; see there. The class beside it is the package's `Callback`."""

    sharded_strategies: ClassVar[tuple[type, ...]]
    """Strategies whose processes hold parts of weights."""
    checkpoint_io: ClassVar[type]
    """The package's writer of files, local and remote."""

    def __init__(self, *, module: str = "", seal: bool = True, best: bool = True, **settings: Any) -> None:
        signature(Controller).bind(None, None, **settings)  # a TypeError now, not when training begins
        if not isinstance(module, str):
            raise UsageError(
                f"module is the name of a part of the LightningModule, as 'generator', not a {type(module).__name__}"
            )
        self.module, self.settings = module, settings
        self.seal, self.best = seal, best
        self.controller: Controller | None = None
        """Of the latest fit; None before."""
        self._handle: torch.utils.hooks.RemovableHandle | None = None
        self._loaded: dict[str, Any] = {}
        """The state of a checkpoint, which comes before there is a controller."""
        self._copy: nn.Module | None = None
        """A copy of the whole LightningModule on the CPU, for `best.pt`."""
        self._sealed: tuple[str, float] | None = None
        """Which best checkpoint `best.pt` was made of."""

    @property
    def state_key(self) -> str:
        return self._generate_state_key(module=self.module)  # type: ignore[attr-defined]  # of the package's Callback

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        # Before a checkpoint is read; a fit that an exception ended had no teardown.
        self._loaded = {}
        self._stop()
        if stage == "fit":
            self.controller = self._copy = self._sealed = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if isinstance(trainer.strategy, self.sharded_strategies):
            raise UsageError(
                f"{type(trainer.strategy).__name__} gives each process parts of the weights, which have no singular "
                "values of their own; use one process or DDP"
            )
        others = [control for control in self._controls(trainer) if control is not self]
        network = _part(pl_module, self.module)
        own = {id(parameter) for parameter in network.parameters()}
        for other in others:
            if own & {id(parameter) for parameter in _part(pl_module, other.module).parameters()}:
                raise UsageError(
                    "two Control callbacks act on the same layers; give each a module= of its own, or one of them "
                    "max_sigma= by patterns"
                )
        optimizer = _optimizer_of(trainer.optimizers, own, self.module)
        self.controller = Controller(network, optimizer, **self.settings)
        if self._loaded:
            self.controller.load_state_dict(self._loaded)
        # Once after each step that is made: neither accumulation nor a step that GradScaler skips counts, and the step
        # of a manual optimisation does. It precedes all callbacks, so that averages are of controlled weights.
        self._handle = optimizer.register_step_post_hook(lambda *_: self._controller.step())
        is_first = self is self._controls(trainer)[0]
        if self.best and is_first and trainer.is_global_zero and trainer.checkpoint_callback is not None:
            # Now, while no tensor of a step is in the module, which could not be copied.
            self._copy = deepcopy(pl_module).cpu()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        # The tuning callbacks of Lightning make steps before on_fit_start.
        if self.controller is None or optimizer is not self.controller.optimizer:
            return
        with torch.enable_grad():
            penalty = self.controller.penalty()
        if not penalty.requires_grad:
            return
        # Gradients are averaged over processes and unscaled here, but where the optimiser itself unscales them.
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            penalty = penalty * scaler.get_scale()
        penalty.backward()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._write_best(trainer, pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        # ModelCheckpoint may save in its on_train_end, after that of all other callbacks.
        self._write_best(trainer, pl_module)
        if self._copy is not None and self._sealed != (found := _best_checkpoint(trainer)) and found is not None:
            warnings.warn(f"{found[0]} is not there, so that best.pt is not made of it", stacklevel=1)
        if self.seal:
            self._controller.seal(sharp=False)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._stop()

    def state_dict(self) -> dict[str, Any]:
        # It may be called in one process alone; the controller sends nothing to others.
        return self._loaded if self.controller is None else self.controller.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict
        if self._handle is not None:
            self._controller.load_state_dict(state_dict)

    @property
    def _controller(self) -> Controller:
        assert self.controller is not None
        return self.controller

    @staticmethod
    def _controls(trainer: Any) -> "Sequence[LightningHooks]":
        return [callback for callback in trainer.callbacks if isinstance(callback, LightningHooks)]

    def _stop(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _write_best(self, trainer: Any, pl_module: Any) -> None:
        """Write a sealed copy of the best checkpoint beside it, if there is one that was not sealed before."""
        found = _best_checkpoint(trainer)
        if self._copy is None or found is None or found == self._sealed:
            return
        try:
            checkpoint = trainer.strategy.checkpoint_io.load_checkpoint(found[0])
        except FileNotFoundError:
            # Another thread is writing it, or a resumed run names one of a folder that is gone.
            return
        self._copy.to(pl_module.device)
        self._copy.load_state_dict(checkpoint["state_dict"], strict=pl_module.strict_loading)
        for control in self._controls(trainer):
            control._controller.seal(self._copy.get_submodule(control.module), sharp=False)
        self._copy.cpu()
        contents = {key: value for key, value in checkpoint.items() if key not in _OF_TRAINING}
        contents["state_dict"] = self._copy.state_dict()
        self.checkpoint_io().save_checkpoint(contents, os.path.join(os.path.dirname(found[0]), "best.pt"))
        self._sealed = found


def _part(pl_module: nn.Module, name: str) -> nn.Module:
    """Return the part of a LightningModule that has this name.

    Raises:
        UsageError: there is none.
    """
    parts = dict(pl_module.named_modules(remove_duplicate=False))
    if name not in parts:
        there = ", ".join(part for part in parts if part and part.count(".") <= name.count("."))[:300]
        raise UsageError(
            f"Control(module={name!r}): the LightningModule has no part of this name{nearest(name, parts)} "
            f"(there are {there})"
        )
    return parts[name]


def _best_checkpoint(trainer: Any) -> tuple[str, float] | None:
    """Return the path of the best checkpoint and its score, or, without a score, the step that is reached."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if not path:
        return None
    # A file name without the step or the score in it stays the same.
    score = trainer.checkpoint_callback.best_model_score
    return str(path), float(trainer.global_step if score is None else score)


def _optimizer_of(
    optimizers: Sequence[torch.optim.Optimizer], parameters: set[int], module: str
) -> torch.optim.Optimizer:
    """Return the only optimiser that steps one of the parameters with these ids.

    Raises:
        UsageError: there is none, or several.
    """
    found = [
        optimizer
        for optimizer in optimizers
        if any(id(parameter) in parameters for group in optimizer.param_groups for parameter in group["params"])
    ]
    where = f"the module {module}" if module else "the LightningModule"
    if not found:
        raise UsageError(f"no optimiser steps a parameter of {where}, so there is nothing to control")
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} optimisers step parameters of {where}; give one Control for each, with the name of the part "
            "that it steps as module="
        )
    return found[0]
