"""Singular values of convolutional networks: read, bounded and controlled.

Names are loaded on first use, so that `import svdctl` costs nothing until torch is needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from svdctl import errors
from svdctl.registry import Registry

if TYPE_CHECKING:
    from svdctl import models
    from svdctl.analysis.network_spectrum import spectrum
    from svdctl.certificates.lipschitz import lipschitz_bound
    from svdctl.checkpoint.checkpoint_file import load
    from svdctl.control.control_method import ControlMethod, register_control
    from svdctl.control.controller import Controller
    from svdctl.data.data_source import register_data
    from svdctl.evaluate.metric import register_metric
    from svdctl.functional import clip_, divide_, singular_values, spectral_norm_bound
    from svdctl.layers.layer_ops import LayerOps, register_layer
    from svdctl.layers.minmax import MinMax
    from svdctl.layers.soc import SOC
    from svdctl.layers.sott import SOTT
    from svdctl.layers.tensorize import tensorize_
    from svdctl.layers.tt import TTConv2d
    from svdctl.models.architecture import register_architecture
    from svdctl.spectral.convolution import Convolution
    from svdctl.train.logger import register_logger
    from svdctl.train.loss import register_loss

__all__ = [
    "SOC",
    "SOTT",
    "ControlMethod",
    "Controller",
    "Convolution",
    "LayerOps",
    "MinMax",
    "TTConv2d",
    "clip_",
    "divide_",
    "errors",
    "lipschitz_bound",
    "load",
    "models",
    "register_architecture",
    "register_control",
    "register_data",
    "register_layer",
    "register_logger",
    "register_loss",
    "register_metric",
    "singular_values",
    "spectral_norm_bound",
    "spectrum",
    "tensorize_",
]

_HOME = {
    "MinMax": "svdctl.layers.minmax",
    "SOC": "svdctl.layers.soc",
    "SOTT": "svdctl.layers.sott",
    "ControlMethod": "svdctl.control.control_method",
    "Controller": "svdctl.control.controller",
    "Convolution": "svdctl.spectral.convolution",
    "LayerOps": "svdctl.layers.layer_ops",
    "TTConv2d": "svdctl.layers.tt",
    "clip_": "svdctl.functional",
    "divide_": "svdctl.functional",
    "lipschitz_bound": "svdctl.certificates.lipschitz",
    "load": "svdctl.checkpoint.checkpoint_file",
    "register_architecture": "svdctl.models.architecture",
    "register_data": "svdctl.data.data_source",
    "register_logger": "svdctl.train.logger",
    "register_loss": "svdctl.train.loss",
    "register_metric": "svdctl.evaluate.metric",
    "register_control": "svdctl.control.control_method",
    "register_layer": "svdctl.layers.layer_ops",
    "singular_values": "svdctl.functional",
    "spectral_norm_bound": "svdctl.functional",
    "spectrum": "svdctl.analysis.network_spectrum",
    "tensorize_": "svdctl.layers.tensorize",
}


Registry.load_plugins = staticmethod(lambda: import_module("svdctl.plugins").load_installed())


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name == "models":
        return import_module("svdctl.models")
    if name == "__version__":
        from importlib.metadata import version

        return version("svdctl")
    raise AttributeError(f"module 'svdctl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
