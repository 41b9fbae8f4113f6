"""Networks whose convolutions are made by a factory, so that their type is chosen outside.

>>> import svdctl
>>> normalize = svdctl.models.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
>>> conv = svdctl.models.default_conv
>>> net = svdctl.models.WideResNet(10, 1, 10, conv=conv, stem=conv, normalize=normalize)
>>> sum(parameter.numel() for parameter in net.parameters())
75290
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svdctl.layers.normalize import Normalize
    from svdctl.models.lipconvnet import LipConvNet
    from svdctl.models.vgg import Vgg19
    from svdctl.models.wrn import WideResNet, default_conv

__all__ = ["LipConvNet", "Normalize", "Vgg19", "WideResNet", "default_conv"]

_HOME = {
    "LipConvNet": "svdctl.models.lipconvnet",
    "Normalize": "svdctl.layers.normalize",
    "Vgg19": "svdctl.models.vgg",
    "WideResNet": "svdctl.models.wrn",
    "default_conv": "svdctl.models.wrn",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'svdctl.models' has no attribute {name!r}")
