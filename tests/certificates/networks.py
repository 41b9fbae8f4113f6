"""Small networks of many kinds, and the largest Jacobian norm that a search finds on them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdctl.layers.normalize import Normalize
from svdctl.layers.tt import TTConv2d
from svdctl.models.vgg import Vgg19
from svdctl.models.wrn import WideResNet, default_conv

NORMALIZE = Normalize((0.4, 0.5, 0.6), (0.25, 0.5, 0.2))


class Calls(nn.Module):
    """A network written as a function of a few layers."""

    def __init__(self, function: Callable[[nn.ModuleDict, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layers, x)


def residual(m: nn.ModuleDict, x: Tensor) -> Tensor:
    return F.relu(x + 0.5 * m["b"](torch.tanh(m["a"](x))))


def dense_block(m: nn.ModuleDict, x: Tensor) -> Tensor:
    x = torch.cat((x, m["a"](x)), 1)
    x = torch.cat((x, F.relu(m["b"](x), inplace=True)), 1)
    return F.avg_pool2d(x, 2).flatten(1)


def branches(m: nn.ModuleDict, x: Tensor) -> Tensor:
    left, right = m["a"](x).chunk(2, 1)
    y = torch.maximum(left, -right)
    y += right
    return torch.stack((y.mean((2, 3)), y.amax((2, 3))), 1).flatten(1)


def written_in_place(m: nn.ModuleDict, x: Tensor) -> Tensor:
    x = m["a"](x)
    x.mul_(-2).add_(1).relu_()
    return x.reshape(len(x), -1).t().t()


def by_functions(m: nn.ModuleDict, x: Tensor) -> Tensor:
    x = F.conv2d(x, m["a"].weight, None, stride=2, padding=1)
    return (x.permute(0, 2, 3, 1) @ torch.ones(4, 2, dtype=x.dtype) / 3).flatten(1)


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def conv(i: int, o: int, k: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **options)


SHAPE = (3, 6, 6)
TABLE: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: conv(3, 4, padding=1),
    "strided": lambda: conv(3, 4, stride=2, padding=1),
    "dilated": lambda: conv(3, 4, dilation=2),
    "grouped": lambda: conv(3, 6, groups=3, padding=1),
    "circular": lambda: conv(3, 4, padding=1, padding_mode="circular"),
    "circular strided": lambda: conv(3, 4, stride=2, padding=1, padding_mode="circular"),
    "circular wide": lambda: conv(3, 4, padding=4, padding_mode="circular"),
    "reflect": lambda: conv(3, 4, padding=1, padding_mode="reflect"),
    "replicate": lambda: conv(3, 4, padding=2, padding_mode="replicate"),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1),
    "tt": lambda: TTConv2d(3, 5, 3, rank=2, padding=1, frames="free"),
    "tt core": lambda: TTConv2d(3, 3, 3, rank=5, padding=1),
    "tt strided": lambda: TTConv2d(3, 6, 3, rank=(2, 4), stride=2, padding=1, frames="penalty"),
    "tt parametrized": lambda: TTConv2d(3, 6, 3, rank=2, padding=1, frames="parametrize"),
    "linear": lambda: sequence(nn.Flatten(), nn.Linear(108, 7)),
    "normalized": lambda: sequence(NORMALIZE, conv(3, 4), nn.ReLU()),
    "batch norm": lambda: sequence(conv(3, 4, bias=False), nn.BatchNorm2d(4), nn.LeakyReLU(0.2, inplace=True)),
    "max pool": lambda: sequence(conv(3, 4, padding=1), nn.MaxPool2d(3, 2, 1), nn.GELU()),
    "max pool odd": lambda: nn.MaxPool2d((2, 3), (1, 2), (1, 0), dilation=(1, 2), ceil_mode=True),
    "average pool": lambda: sequence(nn.AvgPool2d(3, 2, 1), conv(3, 4, 1), nn.SiLU()),
    "adaptive": lambda: sequence(nn.AdaptiveAvgPool2d(4), nn.AdaptiveMaxPool2d(3), nn.Softplus()),
    "upsample": lambda: sequence(nn.Upsample(scale_factor=2), conv(3, 2), nn.ELU(1.5), nn.Flatten()),
    "pads": lambda: sequence(nn.ReflectionPad2d(2), conv(3, 2), nn.ReplicationPad2d(1), nn.ZeroPad2d(1), nn.Mish()),
    "shuffles": lambda: sequence(nn.PixelUnshuffle(2), nn.ChannelShuffle(3), conv(12, 4, 1), nn.PixelShuffle(2)),
    "unfold": lambda: sequence(nn.Unfold(3, padding=1), nn.Tanh()),
    "residual": lambda: Calls(residual, a=conv(3, 3, padding=1), b=conv(3, 3, padding=1)),
    "concatenated": lambda: Calls(dense_block, a=conv(3, 2, padding=1), b=conv(5, 2, padding=1)),
    "branches": lambda: Calls(branches, a=conv(3, 4)),
    "in place": lambda: Calls(written_in_place, a=conv(3, 2)),
    "functions": lambda: Calls(by_functions, a=conv(3, 4, bias=False)),
    "softmax": lambda: sequence(nn.Flatten(), nn.Linear(108, 4), nn.Softmax(1)),
    "many": lambda: sequence(conv(3, 4), nn.PReLU(4), nn.Hardswish(), nn.SELU(), nn.Dropout(), nn.CELU(), nn.Sigmoid()),
}


def wrn(classes: int = 10) -> nn.Module:
    return WideResNet(10, 1, classes, conv=default_conv, stem=default_conv, normalize=NORMALIZE)


def vgg(classes: int = 10) -> nn.Module:
    return Vgg19(classes, conv=default_conv, stem=default_conv, normalize=NORMALIZE)


def made(name: str) -> nn.Module:
    """A network of the table in float64, evaluation mode, its weights seeded and its statistics moved."""
    torch.manual_seed(sum(map(ord, name)))
    network = TABLE[name]().double().eval()
    return stirred(network)


def stirred(network: nn.Module) -> nn.Module:
    """Weights of BatchNorm and its statistics away from the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.5)
            nn.init.uniform_(module.running_var, 0.3, 3)
            nn.init.normal_(module.running_mean)
    return network


def jacobian(network: nn.Module, x: Tensor) -> Tensor:
    """`(outputs, inputs)` at one image `(1, *shape)`."""
    return torch.autograd.functional.jacobian(network, x, vectorize=True).reshape(-1, x.numel())


def steepest(network: nn.Module, shape: tuple[int, ...], *, starts: int = 6, climbs: int = 3) -> float:
    """The largest Jacobian norm found: random images of several sizes, then steps along the strongest direction."""
    generator = torch.Generator().manual_seed(0)
    best = 0.0
    for start in range(starts):
        x = torch.randn(1, *shape, generator=generator, dtype=torch.float64) * 10.0 ** (start % 3 - 1)
        for _ in range(climbs):
            _, values, directions = torch.linalg.svd(jacobian(network, x), full_matrices=False)
            best = max(best, float(values[0]))
            x = x + directions[0].reshape(x.shape) * float(x.norm()) * 0.3
    return best


def steepest_chord(network: nn.Module, shape: tuple[int, ...], *, pairs: int = 20, steps: int = 15) -> float:
    """The largest quotient of distances found by gradient ascent on pairs of images."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(pairs, *shape, generator=generator, dtype=torch.float64)
    y = x + torch.randn(pairs, *shape, generator=generator, dtype=torch.float64) * 0.1
    best = 0.0
    for _ in range(steps):
        x.requires_grad_(True)
        y.requires_grad_(True)
        far = (network(x) - network(y)).flatten(1).norm(dim=1)
        quotient = far / (x - y).flatten(1).norm(dim=1)
        best = max(best, float(quotient.detach().max()))
        grads = torch.autograd.grad(quotient.sum(), (x, y))
        with torch.no_grad():
            x, y = (
                v + 0.05 * g / g.flatten(1).norm(dim=1)[:, None, None, None].clamp_min(1e-12)
                for v, g in zip((x, y), grads, strict=True)
            )
    return best
