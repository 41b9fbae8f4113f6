"""An exponential average of a network's weights over the steps of a training, and the network that has them.

Parameters are averaged, and so are running means and variances of BatchNorm: those of the network in training belong to
its latest weights alone, while an average over the same steps stays near what the averaged weights give. Every other
buffer is a constant, a count or the state of an estimate, whose average means nothing, and is copied.

The average of frames is no frame. What is averaged stays as it is; in the network that is made of it, what the average
of frames lacks is moved into the cores, so that no layer computes anything else. Frames of a parametrization are
averaged in its coordinates, all of which give frames.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from svdctl.layers.layer_operator import BatchNorm
from svdctl.layers.layer_ops import find_ops

STATISTICS = ("running_mean", "running_var")


class WeightAverage:
    """Averages the weights of a network, step by step, on its device.

    Args:
        model: the network that is trained; its tensors stay where they are.
        decay: weight of the past at each step; at most `(1 + n) / (10 + n)` at the step after n, so that the random
            weights of the start are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.network = copy.deepcopy(model).eval()
        """Has the average, once `refresh_` is called; what is done to it does not change the average."""
        now = _tensors(model)
        self._average = {name: value.clone() for name, value in now.items()}
        averaged = _averaged_names(model)
        self._names = list(averaged), [name for name in now if name not in averaged]
        self._sources = tuple([now[name] for name in names] for names in self._names)
        device = next(iter(now.values())).device
        self._share = torch.zeros((), dtype=torch.float32, device=device)
        """Weight of the next step (0-d), which a CUDA graph reads from where it lies."""
        framed: dict[Any, list[nn.Module]] = {}
        for layer in self.network.modules():
            ops = find_ops(layer)
            if ops is not None and ops.retracts(layer):
                framed.setdefault(ops, []).append(layer)
        self._framed = framed
        for ops, layers in framed.items():
            # Averages of frames can be far from frames, where products do not converge.
            ops.retract_by_qr_(layers)

    def set_step(self, steps: int) -> None:
        """Set the weight of the next step, after so many; nothing waits for the device."""
        self._share.fill_(1 - min(self._decay, (1 + steps) / (10 + steps)))

    @torch.no_grad()
    def update_(self) -> None:
        """Add the weights of a step; work of the device alone, in place."""
        averaged, copied = ([self._average[name] for name in names] for names in self._names)
        now, others = self._sources
        differences = torch._foreach_sub(now, averaged)
        torch._foreach_mul_(differences, self._share)
        torch._foreach_add_(averaged, differences)
        if copied:
            torch._foreach_copy_(copied, others)

    @torch.no_grad()
    def refresh_(self) -> None:
        """Give `network` the average, its frames orthonormal."""
        tensors = _tensors(self.network)
        torch._foreach_copy_(list(tensors.values()), [self._average[name] for name in tensors])
        for ops, layers in self._framed.items():
            ops.after_optimizer_step_(layers, step=1, optimizer=None)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what of the average is not in `network`."""
        made = _tensors(self.network)
        return {name: value for name, value in self._average.items() if not torch.equal(value, made[name])}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict` and the state of `network` then.

        Raises:
            KeyError, RuntimeError: of another network.
        """
        self.network.load_state_dict(made)
        for name, value in _tensors(self.network).items():
            self._average[name].copy_(state.get(name, value))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, detached, by name."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach() for name, value in named.items()}


def _averaged_names(model: nn.Module) -> dict[str, None]:
    """Return names of what is averaged."""
    found = dict.fromkeys(name for name, value in model.named_parameters() if value.is_floating_point())
    for place, layer in model.named_modules():
        if isinstance(layer, BatchNorm):
            named = (f"{place}.{name}".lstrip(".") for name in STATISTICS if getattr(layer, name, None) is not None)
            found |= dict.fromkeys(named)
    return found
