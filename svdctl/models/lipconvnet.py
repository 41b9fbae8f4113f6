"""LipConvNet-N, N = 5 times the block size: convolutions and MinMax alone (Singla and Feizi 2021)."""

from collections.abc import Sequence

from torch import Tensor, nn

from svdctl.errors import ShapeError
from svdctl.layers.layer_ops import ConvFactory
from svdctl.layers.minmax import MinMax
from svdctl.layers.normalize import Normalize
from svdctl.models.lipconvnet_architecture import STAGES, misfits


class LipBlock(nn.Module):
    """A convolution and MinMax."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.activation = MinMax()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.conv(x))
        return y


class LipConvNet(nn.Module):
    """Five stages of `block_size` blocks; the last of each strides by 2 and doubles the width.

    Kernels are 3x3, in the last block of the last stage 1x1; then a 1x1 convolution from `32 * in_channels` channels to
    the classes, and the mean over what is left of the image (one pixel for images of side 32).

    Args:
        block_size: blocks of a stage.
        classes: at most `32 * in_channels`, or the last layer could not be orthogonal.
        in_channels: width of the first stage.
        conv: makes the convolutions; or six of them, one for each stage and the last layer.
        normalize: the first module.

    Raises:
        ShapeError: more classes than channels, or a width that MinMax cannot pair.
    """

    def __init__(
        self,
        block_size: int,
        classes: int,
        *,
        in_channels: int = 32,
        conv: ConvFactory | Sequence[ConvFactory],
        normalize: Normalize,
    ) -> None:
        super().__init__()
        for fault in misfits(in_channels, classes=classes):
            raise ShapeError(fault)
        makers = list(conv) if isinstance(conv, Sequence) else [conv] * (STAGES + 1)
        self.normalize, self.in_channels = normalize, in_channels
        channels = 3
        for stage in range(STAGES):
            blocks = nn.Sequential()
            for position in range(block_size):
                last = position == block_size - 1
                out = in_channels * 2**stage * (2 if last else 1)
                kernel = 1 if last and stage == STAGES - 1 else 3
                made = makers[stage](channels, out, kernel, stride=2 if last else 1, padding=kernel // 2, bias=True)
                blocks.append(LipBlock(made))
                channels = out
            setattr(self, f"layer{stage + 1}", blocks)
        self.final_conv = makers[-1](channels, classes, 1, stride=1, padding=0, bias=True)

    def forward(self, pixels: Tensor) -> Tensor:
        # A tracer of torch.fx gives no tensor, but what stands for one and has no sizes.
        for fault in misfits(self.in_channels, sides=pixels.shape[-2:]) if isinstance(pixels, Tensor) else ():
            raise ShapeError(fault)
        x = self.normalize(pixels)
        for stage in range(1, STAGES + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.final_conv(x).mean((2, 3))
