"""BatchNorm over the images of all processes together.

torch's SyncBatchNorm knows no CPU and waits for the host at every step. Here the sums travel in one message forward and
one backward, and nothing waits.

Note, gradient. With `z = (x - mean) / sqrt(var + eps)`, `y = weight z + bias`, n the count over all processes and g the
gradient by y, the gradient by x is `weight / sqrt(var + eps) (g - S(g) / n - z S(g z) / n)`, S the sum over images and
pixels of all processes. A process's own part of S(g) and S(g z) is its gradient by bias and weight. Each process
minimises the mean loss of its own images; after averaging, as DDP does, the gradients are those of the whole batch.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from svdctl.errors import ShapeError


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` whose statistics in training are those of all processes' images; no host sync."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        y, mean, variance, count = _Normalized.apply(input, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
                unbiased = variance * (count / (count - 1))
                self.running_mean.add_((mean - self.running_mean) * share)
                self.running_var.add_((unbiased - self.running_var) * share)
        return y


def share_statistics_(model: nn.Module) -> None:
    """Make every BatchNorm2d of a model one over all processes; parameters, buffers and their names stay.

    Raises:
        ShapeError: a BatchNorm of another number of axes, or of a class derived from torch's.
    """
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.BatchNorm2d:
                setattr(parent, name, _shared(layer))
            elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and not isinstance(
                layer, nn.SyncBatchNorm | GlobalBatchNorm2d
            ):
                raise ShapeError(f"{type(layer).__name__} cannot be trained on several processes; use one")


def _shared(layer: nn.BatchNorm2d) -> GlobalBatchNorm2d:
    with torch.device("meta"):
        made = GlobalBatchNorm2d(
            layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
        ).train(layer.training)
    for name, parameter in layer.named_parameters():
        made.register_parameter(name, parameter)
    for name, buffer in layer.named_buffers():
        made.register_buffer(name, buffer)
    return made


class _Normalized(torch.autograd.Function):
    """(y, mean `(C,)`, biased variance `(C,)`, count (0-d)) of x `(N, C, H, W)`; N may be 0."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean, variance, count = _moments(wide)
        y = F.batch_norm(wide, mean, variance, weight, bias, training=False, eps=eps).to(x.dtype)
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), count)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        channels = (1, -1, 1, 1)
        g = grad.to(mean.dtype)
        z = (x.to(mean.dtype) - mean.view(channels)) * inverse.view(channels)
        own = torch.stack([g.sum((0, 2, 3)), (g * z).sum((0, 2, 3))])
        whole = own.clone()
        dist.all_reduce(whole)
        whole = whole / count
        scale = inverse if weight is None else inverse * weight
        dx = (g - whole[0].view(channels) - z * whole[1].view(channels)) * scale.view(channels)
        with_weight = weight is not None
        return dx.to(x.dtype), own[1] if with_weight else None, own[0] if with_weight else None, None


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, biased variance and count of each channel over all processes, from their own by Chan's rule."""
    channels, world = x.shape[1], dist.get_world_size()
    if x.shape[0]:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    else:
        variance, mean = x.new_zeros(channels), x.new_zeros(channels)
    own = torch.cat([mean, variance, mean.new_full((1,), x.numel() // channels)])
    every = own.new_empty(world * len(own))
    # Called all_gather_into_tensor up to torch 2.11, a name that later ones deprecate.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(every, own)
    means, variances, counts = every.view(world, -1).split([channels, channels, 1], 1)
    count = counts.sum()
    mean = (means * counts).sum(0) / count
    squares = (variances + (means - mean).square()) * counts
    return mean, squares.sum(0) / count, count
