"""Control of singular values as a callback of `transformers.Trainer`."""

from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from svdctl.checkpoint.torch_archive import read_torch
from svdctl.control.controller import Controller
from svdctl.errors import MissingExtraError, UsageError
from svdctl.utils.atomic_write import write_atomically

try:
    from accelerate.state import AcceleratorState
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise MissingExtraError("transformers and accelerate", "svdctl[transformers]") from error

_SHARDED = {"deepspeed_plugin": "DeepSpeed", "fsdp_plugin": "FSDP", "megatron_lm_plugin": "Megatron"}
"""What gives each process parts of the weights, by where accelerate keeps its settings."""


class Control(TrainerCallback):  # type: ignore[misc]  # the package may be missing
    """Keeps singular values within their maxima in a training by `transformers.Trainer`.

    The control acts after each step of the optimiser, once where gradients are accumulated. What layers add to the loss
    (`Controller.penalty`) is added to the gradients before the step, after they were clipped. Several processes do the
    same work, each for itself.

    Checkpoints hold the training weights as they are, with the controller's state beside them in `svdctl.pt`. A resumed
    training reads it in the arguments' `output_dir`, where the trainer writes; from a checkpoint moved elsewhere it
    goes on without it.

    When the training has ended, and the best model is loaded if the arguments ask for it, the maxima are proved of it:
    what `trainer.save_model()` writes then is within them.

    Args:
        seal: prove the maxima when the training has ended.
        settings: those of `svdctl.Controller`, as max_sigma, method, every_steps, linear_max, batchnorm_max and layers.

    Raises:
        TypeError: a setting that `Controller` does not have.
        UsageError: when training begins: DeepSpeed, FSDP or Megatron, or no layer to control, as in a network of linear
            layers without linear_max.
        ShapeError: then too: a layer whose weight cannot be written.

    The attribute `controller` is the `svdctl.Controller` of the latest training, None before.
    """

    def __init__(self, *, seal: bool = True, **settings: Any) -> None:
        signature(Controller).bind(None, None, **settings)  # a TypeError now, not when training begins
        self.seal, self.settings = seal, settings
        self.controller: Controller | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **others: Any) -> None:
        for plugin, name in _SHARDED.items():
            if getattr(AcceleratorState(), plugin, None) is not None:
                raise UsageError(
                    f"{name} gives each process parts of the weights, which have no singular values of their own; use "
                    "one process or DDP"
                )
        self.controller = Controller(model, optimizer, **self.settings)
        self.controller.steps = state.global_step
        kept = _file_of_state(args, state)
        if state.global_step > 0 and kept.is_file():
            told = read_torch(kept)
            if not isinstance(told, dict):
                raise UsageError(f"{kept} is not the state of a Controller; remove it, or resume another checkpoint")
            self.controller.load_state_dict(told)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, *, optimizer: Any = None, **others: Any
    ) -> None:
        penalty = self._controller.penalty()
        if not penalty.requires_grad:
            return
        scaler = getattr(optimizer, "scaler", None)
        if scaler is not None and not args.max_grad_norm:
            # Only clipping unscales gradients before the step.
            penalty = penalty * scaler.get_scale()
        penalty.backward()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._controller.step()

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        # The trials of a search for hyperparameters, in folders of their own, are not continued.
        if state.is_world_process_zero and not state.is_hyper_param_search:
            write_atomically(_file_of_state(args, state), partial(torch.save, self._controller.state_dict()))

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.seal:
            self._controller.seal(sharp=False)

    @property
    def _controller(self) -> Controller:
        assert self.controller is not None
        return self.controller


def _file_of_state(args: Any, state: Any) -> Path:
    """Return where the controller's state is in the checkpoint of this step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "svdctl.pt"
