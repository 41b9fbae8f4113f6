"""Singular values of convolutional networks: read, bounded and controlled.

Names are loaded on first use, so that `import svdctl` costs nothing until torch is needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from svdctl import errors as errors
from svdctl.registry import Registry

if TYPE_CHECKING:
    from svdctl import integrations as integrations
    from svdctl import models as models
    from svdctl import parametrize as parametrize
    from svdctl.analysis.network_spectrum import spectrum as spectrum
    from svdctl.certificates.lipschitz import lipschitz_bound as lipschitz_bound
    from svdctl.checkpoint.checkpoint_file import load as load
    from svdctl.checkpoint.library_file import save as save
    from svdctl.control.control_method import ControlMethod as ControlMethod
    from svdctl.control.control_method import register_control as register_control
    from svdctl.control.controller import Controller as Controller
    from svdctl.data.data_source import register_data as register_data
    from svdctl.evaluate.metric import register_metric as register_metric
    from svdctl.functional import clip_ as clip_
    from svdctl.functional import divide_ as divide_
    from svdctl.functional import singular_values as singular_values
    from svdctl.functional import spectral_norm_bound as spectral_norm_bound
    from svdctl.layers.layer_ops import LayerOps as LayerOps
    from svdctl.layers.layer_ops import register_layer as register_layer
    from svdctl.layers.minmax import MinMax as MinMax
    from svdctl.layers.soc import SOC as SOC
    from svdctl.layers.sott import SOTT as SOTT
    from svdctl.layers.tensorize import tensorize_ as tensorize_
    from svdctl.layers.tensorize import untensorize_ as untensorize_
    from svdctl.layers.tt import TTConv1d as TTConv1d
    from svdctl.layers.tt import TTConv2d as TTConv2d
    from svdctl.layers.tt import TTConv3d as TTConv3d
    from svdctl.models.architecture import register_architecture as register_architecture
    from svdctl.orthogonalize import orthogonalize_ as orthogonalize_
    from svdctl.plain_network import to_plain as to_plain
    from svdctl.spectral.convolution import Convolution as Convolution
    from svdctl.train.logger import register_logger as register_logger
    from svdctl.train.loss import register_loss as register_loss

_HOME = {
    "MinMax": "svdctl.layers.minmax",
    "SOC": "svdctl.layers.soc",
    "SOTT": "svdctl.layers.sott",
    "ControlMethod": "svdctl.control.control_method",
    "Controller": "svdctl.control.controller",
    "Convolution": "svdctl.spectral.convolution",
    "LayerOps": "svdctl.layers.layer_ops",
    "TTConv1d": "svdctl.layers.tt",
    "TTConv2d": "svdctl.layers.tt",
    "TTConv3d": "svdctl.layers.tt",
    "clip_": "svdctl.functional",
    "divide_": "svdctl.functional",
    "lipschitz_bound": "svdctl.certificates.lipschitz",
    "load": "svdctl.checkpoint.checkpoint_file",
    "orthogonalize_": "svdctl.orthogonalize",
    "register_architecture": "svdctl.models.architecture",
    "register_data": "svdctl.data.data_source",
    "register_logger": "svdctl.train.logger",
    "register_loss": "svdctl.train.loss",
    "register_metric": "svdctl.evaluate.metric",
    "register_control": "svdctl.control.control_method",
    "register_layer": "svdctl.layers.layer_ops",
    "save": "svdctl.checkpoint.library_file",
    "singular_values": "svdctl.functional",
    "spectral_norm_bound": "svdctl.functional",
    "spectrum": "svdctl.analysis.network_spectrum",
    "tensorize_": "svdctl.layers.tensorize",
    "to_plain": "svdctl.plain_network",
    "untensorize_": "svdctl.layers.tensorize",
}
_MODULES = ("integrations", "models", "parametrize")
__all__ = ["errors", *_MODULES, *_HOME]


Registry.load_plugins = staticmethod(lambda: import_module("svdctl.plugins").load_installed())


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _MODULES:
        return import_module(f"svdctl.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version("svdctl")
    raise AttributeError(f"module 'svdctl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__, "__version__"})
