"""The networks of the paper's public code, written anew after its description: its names of parameters, its arithmetic.

Images come normalised, as there.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PublicTT(nn.Module):
    """Factors K1 (I, a), K2 (a, k, k, b), K3 (b, O); alone K2 when the rank reaches both widths."""

    def __init__(self, conv: nn.Conv2d, rank: int | None, share: float | None = None) -> None:
        super().__init__()
        inputs, outputs = conv.in_channels, conv.out_channels
        if share is None:
            assert rank is not None
            a, b = min(inputs, rank), min(outputs, rank)
        else:
            a, b = int(share * inputs), int(share * outputs)
        self.stride, self.padding = conv.stride, conv.padding
        self.K2 = nn.Parameter(torch.randn(a, *conv.kernel_size, b) * (0.5 / (a * 9) ** 0.5))
        self.register_parameter("K1", None)
        self.register_parameter("K3", None)
        if share is not None or (rank is not None and rank < max(inputs, outputs)):
            self.K1 = nn.Parameter(torch.randn(inputs, a) / inputs**0.5)
            self.K3 = nn.Parameter(torch.randn(b, outputs) / b**0.5)
        self.register_parameter("bias", None if conv.bias is None else nn.Parameter(torch.randn(outputs)))

    def forward(self, x: Tensor) -> Tensor:
        if self.K1 is not None:
            x = torch.einsum("nihw,ia->nahw", x, self.K1)
        x = F.conv2d(x, self.K2.permute(3, 0, 1, 2), None, self.stride, self.padding)
        if self.K3 is not None:
            x = torch.einsum("nbhw,bo->nohw", x, self.K3)
        return x if self.bias is None else x + self.bias[:, None, None]


def public_tt(model: nn.Module, rank: int | None, share: float | None = None, spare: str | None = None) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and name != spare:
            model.set_submodule(name, PublicTT(module, rank, share))


class PublicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.stride, self.grown = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())
        x = F.avg_pool2d(x, self.stride)
        return y + F.pad(x, (0, 0, 0, 0, self.grown - self.grown // 2, self.grown // 2))


class PublicWrn(nn.Module):
    def __init__(self, depth: int, width: int, classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        for stage, (inputs, outputs) in enumerate(pairwise(widths), 1):
            chain = [PublicBlock(inputs, outputs, 1 if stage == 1 else 2)]
            chain += [PublicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*chain))
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(self.bn1(x).relu().mean((2, 3)))


class PublicVgg(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        chain: list[nn.Module] = []
        channels = 3
        for width, repeats in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
            for _ in range(repeats):
                chain += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width, eps=0.001), nn.ReLU()]
                channels = width
            chain.append(nn.MaxPool2d(2))
        head = [nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, classes)]
        self.model = nn.Sequential(*chain, nn.Flatten(), *head)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def settle(model: nn.Module) -> nn.Module:
    """BatchNorm with statistics and factors of its own, so that a mistake in them shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


class PublicSkew(nn.Module):
    """SOC, or with a rank SOTT: the Taylor series of a skew convolution, after space-to-depth for stride 2."""

    def __init__(
        self, inputs: int, outputs: int, size: int = 3, stride: int = 1, rank: int | None = None, factor: float = 0.7
    ) -> None:
        super().__init__()
        a, b = (inputs, outputs) if rank is None else (min(inputs, rank), min(outputs, rank))
        self.stride, self.size, self.outputs = stride, size, b
        width = max(a * stride**2, b)
        free = nn.Parameter(torch.randn(width, width, size, size) / width**0.5)
        self.free = "random_conv_filter" if rank is None else "K2"
        self.register_parameter(self.free, free)
        if rank is not None:
            framed = rank < max(inputs, outputs)
            self.register_parameter("K1", nn.Parameter(torch.randn(inputs, a) / inputs**0.5) if framed else None)
            self.register_parameter("K3", nn.Parameter(torch.randn(b, outputs) / b**0.5) if framed else None)
        for pair, (u, v) in enumerate(self.vectors(), 1):
            self.register_parameter(f"u{pair}", nn.Parameter(u, requires_grad=False))
            self.register_parameter(f"v{pair}", nn.Parameter(v, requires_grad=False))
        pointwise = rank is None and size == 1
        self.correction = nn.Parameter(torch.tensor([1.0 if pointwise else factor]), requires_grad=False)
        self.bias = nn.Parameter(torch.randn(outputs))

    def skew(self) -> Tensor:
        kernel = getattr(self, self.free)
        return (kernel - kernel.transpose(0, 1).flip(2, 3)) / 2

    @torch.no_grad()
    def vectors(self) -> list[tuple[Tensor, Tensor]]:
        """A pair for each unfolding, shaped so that it multiplies the kernel: not quite converged, as in training."""
        kernel = self.skew()
        c, _, k, _ = kernel.shape
        pairs = []
        for rows in ((0, 2), (0, 3), (0,), (1,)):
            columns = [axis for axis in range(4) if axis not in rows]
            matrix = kernel.permute(*rows, *columns).reshape(c * k ** (len(rows) - 1), -1)
            v = torch.ones(matrix.shape[1])
            for _ in range(8):
                u = F.normalize(matrix @ v, dim=0)
                v = F.normalize(matrix.T @ u, dim=0)
            left = u.reshape([kernel.shape[axis] if axis in rows else 1 for axis in range(4)])
            right = v.reshape([kernel.shape[axis] if axis not in rows else 1 for axis in range(4)])
            pairs.append((right, left))
        return pairs

    def generator(self) -> Tensor:
        """J, `(c, c, k, k)`."""
        skew = self.skew()
        norms = [(skew * getattr(self, f"u{pair}") * getattr(self, f"v{pair}")).sum() for pair in range(1, 5)]
        return self.correction * skew / torch.stack(norms).min()

    def forward(self, x: Tensor) -> Tensor:
        first, last = getattr(self, "K1", None), getattr(self, "K3", None)
        if first is not None:
            x = torch.einsum("nihw,ia->nahw", x, first)
        x = F.pixel_unshuffle(x, self.stride)
        kernel = self.generator()
        x = F.pad(x, (0, 0, 0, 0, 0, kernel.shape[0] - x.shape[1]))
        total, term = x, x
        for order in range(1, 13):
            term = F.conv2d(term, kernel, padding=self.size // 2) / order
            total = total + term
        total = total[:, : self.outputs]
        if last is not None:
            total = torch.einsum("nbhw,bo->nohw", total, last)
        return total + self.bias[:, None, None]


class PublicLipBlock(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x).chunk(2, 1)
        return torch.cat([torch.min(a, b), torch.max(a, b)], 1)


class PublicLipConv(nn.Module):
    """Five stages of `blocks` convolutions; the last of each strides by 2 and doubles, in stage 5 with a 1x1 kernel."""

    def __init__(self, blocks: int, classes: int, width: int, rank: int | None, plain: bool = False) -> None:
        super().__init__()
        channels = 3
        for stage in range(5):
            planes = width * 2**stage
            chain = []
            for block in range(blocks):
                last = block == blocks - 1
                size = 1 if last and stage == 4 else 3
                outputs = 2 * planes if last else planes
                conv: nn.Module = PublicSkew(channels, outputs, size, 1 + last, rank)
                if plain:
                    conv = nn.Conv2d(channels, outputs, size, 1 + last, size // 2)
                chain.append(PublicLipBlock(conv))
                channels = outputs
            self.add_module(f"layer{stage + 1}", nn.Sequential(*chain))
        self.final_conv = nn.Conv2d(channels, classes, 1) if plain else PublicSkew(channels, classes, 1, 1, rank)

    def forward(self, x: Tensor) -> Tensor:
        for stage in range(1, 6):
            x = getattr(self, f"layer{stage}")(x)
        return self.final_conv(x).flatten(1)
