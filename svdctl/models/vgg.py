"""VGG-19 with batch normalisation, as in the paper's experiments."""

import torch.nn.functional as F
from torch import Tensor, nn

from svdctl.errors import ShapeError
from svdctl.layers.layer_ops import ConvFactory
from svdctl.layers.normalize import Normalize

GROUPS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))


class Vgg19(nn.Module):
    """VGG-19 for images in [0, 1] of shape `(N, 3, H, W)`, sides of 32 or more.

    Args:
        classes: width of the last layer.
        conv: makes the convolutions, with bias.
        stem: makes the first one.
        normalize: the first module.
    """

    def __init__(self, classes: int, *, conv: ConvFactory, stem: ConvFactory, normalize: Normalize) -> None:
        super().__init__()
        self.normalize = normalize
        layers: list[nn.Module] = []
        channels = 3
        for width, repeats in GROUPS:
            for _ in range(repeats):
                make = conv if layers else stem
                layers += [
                    make(channels, width, 3, stride=1, padding=1, bias=True),
                    nn.BatchNorm2d(width, eps=1e-3),
                    nn.ReLU(),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, classes)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        # A tracer of torch.fx gives no tensor, but what stands for one and has no sizes.
        if isinstance(pixels, Tensor) and min(pixels.shape[-2:]) < 32:
            raise ShapeError(f"VGG-19 needs images of side 32 or more, not {tuple(pixels.shape[-2:])}")
        x = self.features(self.normalize(pixels))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
