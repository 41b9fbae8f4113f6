"""Wide residual networks with pre-activation blocks (Zagoruyko and Komodakis 2016), WRN-16-10 first of all."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdctl.layers.layer_ops import ConvFactory
from svdctl.layers.normalize import Normalize


class Shortcut(nn.Module):
    """Shortcut without parameters: average pooling by the stride, zero channels half before and half after."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        missing = out_channels - in_channels
        self.before, self.after = missing // 2, missing - missing // 2

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride)
        return F.pad(x, (0, 0, 0, 0, self.before, self.after)) if self.before + self.after else x


class Block(nn.Module):
    """BatchNorm, ReLU, convolution, twice, beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, conv: ConvFactory) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3, stride=1, padding=1, bias=False)
        self.shortcut = Shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.relu(self.bn1(x)))
        inner = self.conv2(F.relu(self.bn2(inner)))
        return inner + self.shortcut(x)


class WideResNet(nn.Module):
    """WRN-depth-width for images in [0, 1] of shape `(N, 3, H, W)`.

    Args:
        depth: 6n + 4.
        width: factor on 16, 32 and 64 channels of the stages.
        classes: width of the last layer.
        conv: makes the convolutions of the blocks.
        stem: makes the first one.
        normalize: the first module.
    """

    def __init__(
        self, depth: int, width: int, classes: int, *, conv: ConvFactory, stem: ConvFactory, normalize: Normalize
    ) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.normalize = normalize
        self.conv1 = stem(3, 16, 3, stride=1, padding=1, bias=False)
        stages = []
        channels = 16
        for base, stride in ((16, 1), (32, 2), (64, 2)):
            stage = nn.Sequential()
            for position in range(blocks):
                stage.append(Block(channels, base * width, stride if position == 0 else 1, conv))
                channels = base * width
            stages.append(stage)
        self.layer1, self.layer2, self.layer3 = stages
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv1(self.normalize(pixels))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.relu(self.bn1(x)).mean((2, 3))
        return self.fc(x)


def default_conv(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int, padding: int, bias: bool
) -> nn.Conv2d:
    """Return the ordinary convolution."""
    return torch.nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias)
