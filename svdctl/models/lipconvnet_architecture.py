"""LipConvNet as an architecture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from svdctl.config.model_config import ModelConfig
from svdctl.models.architecture import Architecture, register_architecture

if TYPE_CHECKING:
    from torch import nn

STAGES = 5
STRIDE = 2**STAGES
"""What the stages divide the sides of an image by, and multiply the first width by."""


def misfits(in_channels: int, *, classes: int | None = None, sides: Sequence[int] = ()) -> list[str]:
    """Return why no LipConvNet has this first width, so many classes or images of these sides, a sentence each."""
    faults = []
    if any(side % STRIDE for side in sides):
        faults.append(
            f"LipConvNet halves its input five times: images of {' x '.join(map(str, sides))} have sides that {STRIDE} "
            "does not divide (`data.size`); resize or pad them"
        )
    if in_channels % 2:
        faults.append(f"`model.in_channels = {in_channels}`: MinMax pairs channels; use an even number")
    channels = STRIDE * in_channels
    if classes is not None and classes > channels:
        faults.append(
            f"{classes} classes are more than the {channels} channels before LipConvNet's last convolution, which could"
            f" then not be orthogonal; widen it to `model.in_channels = {2 * -(-classes // (2 * STRIDE))}` or more"
        )
    return faults


class LipConv(ModelConfig):
    """LipConvNet: five stages of `block_size` convolutions with MinMax, sides of the images divisible by 32."""

    kind: Literal["lipconv"] = "lipconv"
    block_size: Annotated[int, Field(ge=1, le=500)] = 4
    """Convolutions in each of the five stages: 1, 4 and 6 make LipConvNet-5, -20 and -30."""
    in_channels: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Channels of the first stage; each further one has twice as many."""
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""


@register_architecture
class LipConvArchitecture(Architecture):
    """LipConvNet-N, N = 5 times the block size; a rank for each stage and one for the last convolution."""

    kind = "lipconv"
    channels = 3
    config = LipConv
    groups = STAGES + 1
    orthogonal = True

    def build(self, config: LipConv, **parts: Any) -> "nn.Module":
        from svdctl.models.lipconvnet import LipConvNet

        classes, convs, normalize = (parts[name] for name in ("classes", "convs", "normalize"))
        return LipConvNet(config.block_size, classes, in_channels=config.in_channels, conv=convs, normalize=normalize)

    def start_as_paper_(self, model: "nn.Module") -> None:
        from torch import nn

        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d) and name != "final_conv":
                nn.init.xavier_uniform_(layer.weight)

    def name(self, config: LipConv) -> str:
        narrow = "" if config.in_channels == 32 else f" of width {config.in_channels}"
        return f"LipConvNet-{5 * config.block_size}{narrow}"

    def faults(
        self, config: LipConv, *, image_shape: tuple[int, int, int] | None, classes: int | None, layer: Any
    ) -> list[str]:
        faults = misfits(config.in_channels, classes=classes, sides=() if image_shape is None else image_shape[1:])
        if config.checkpoint_activations and not layer.is_orthogonal:
            faults.append(
                "`model.checkpoint_activations` is for the series of SOC and SOTT layers; leave it out, or use "
                "`layer.kind = sott`"
            )
        return faults

    def smallest(self, config: LipConv) -> int:
        return STAGES * config.block_size
