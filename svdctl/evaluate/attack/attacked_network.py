"""A network as attacks see it: in evaluation mode, parameters frozen, its caller's state given back afterwards."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from svdctl.errors import UsageError
from svdctl.evaluate.attack_settings import Protocol
from svdctl.evaluate.captured_network import CapturedNetwork
from svdctl.evaluate.inference import checked_outputs
from svdctl.layers.normalize import Normalize


class AttackedNetwork:
    """Callable `(B, C, H, W) -> logits (B, K)` on the network's device.

    Args:
        model: takes pixels in [0, 1].
        protocol: `paper` splits the network's first module, `model.normalize`, off: what is attacked is the rest.
        device: where the model has neither parameters nor buffers to tell.
        capture: whether passes may be recorded as CUDA graphs, inside of `frozen`.

    Raises:
        UsageError: `paper`, and the network does not begin with `Normalize`.
    """

    def __init__(self, model: nn.Module, protocol: Protocol, device: torch.device, *, capture: bool = False) -> None:
        self.model = model
        tensors = [*model.parameters(), *model.buffers()]
        floating = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
        self.device = tensors[0].device if tensors else device
        self.dtype = floating[0] if floating else torch.float32
        self.at_once: int | None = None
        """Images in one forward pass; None for all that are given."""
        self.on_pass: Callable[[], None] | None = None
        """Called at each pass that an attack makes, replays included."""
        self._normalize, self._rest = (nn.Identity(), model) if protocol == "pixels" else _split(model)
        self._captured = CapturedNetwork(self._rest) if capture else None

    @property
    def unit_roundoff(self) -> float:
        """Return the relative error of one operation in the coarsest format that the network computes in."""
        formats = [self.dtype]
        if torch.is_autocast_enabled(self.device.type):
            formats.append(torch.get_autocast_dtype(self.device.type))
        return max(torch.finfo(dtype).eps for dtype in formats)

    def inputs(self, images: Tensor) -> Tensor:
        """Return what is attacked, for bytes or pixels `(B, C, H, W)`: pixels in [0, 1], normalised under `paper`."""
        # A copy even of float images: a network that works in place must not change the caller's.
        pixels = images[:].to(self.device, torch.float32, copy=True)
        return self._normalize(pixels.div_(255) if images.dtype == torch.uint8 else pixels)

    def __call__(self, x: Tensor) -> Tensor:
        if self.on_pass is not None:
            self.on_pass()
        return self._passes(x, self._captured or self._rest)

    def eagerly(self, x: Tensor) -> Tensor:
        """Return the same without replays, for what judges an attack."""
        return self._passes(x, self._rest)

    def _passes(self, x: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
        x = x.to(self.dtype)
        if self.at_once is None or len(x) <= self.at_once:
            return checked_outputs(forward(x), len(x))
        if self._captured is not None:
            self._captured.forget()  # memory is short
        parts = x.split(self.at_once)
        if torch.is_grad_enabled() and x.requires_grad:
            # Without recomputation the graph would keep the activations of all parts, and nothing would be saved.
            return torch.cat([checkpoint(self._logits, part, use_reentrant=False) for part in parts])
        return torch.cat([self._logits(part) for part in parts])

    def _logits(self, x: Tensor) -> Tensor:
        return checked_outputs(self._rest(x), len(x))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Run the body in evaluation mode, without gradients of parameters, then restore modes and random states.

        Parametrised weights are computed once, as the parameters behind them do not change in the body.
        """
        # Under `paper` the rest is a module of its own.
        training = {module: module.training for whole in (self.model, self._rest) for module in whole.modules()}
        wanting = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        devices = [self.device] if self.device.type == "cuda" else []
        parametrised = any(parametrize.is_parametrized(module) for module in training)
        self.model.eval()
        self._rest.eval()
        for parameter in wanting:
            parameter.requires_grad_(False)
        try:
            with torch.random.fork_rng(devices=devices), parametrize.cached() if parametrised else nullcontext():
                if self._captured is not None:
                    self._captured.refresh()
                yield
        finally:
            for parameter in wanting:
                parameter.requires_grad_(True)
            for module, mode in training.items():
                module.training = mode


def _split(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    normalize = getattr(model, "normalize", None)
    if not isinstance(normalize, Normalize):
        raise UsageError(
            "`settings.autoattacks.protocol = paper` needs a network whose first module is svdctl's Normalize, named "
            "normalize; leave `settings.autoattacks.protocol` out for this one"
        )
    # A shallow copy: the rest shares every weight and lacks the normalisation, and the caller's model stays whole.
    rest = copy.copy(model)
    rest._modules = {**model._modules, "normalize": nn.Identity()}
    return normalize, rest
