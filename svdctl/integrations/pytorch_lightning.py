"""Control of singular values as a callback of `pytorch_lightning.Trainer`."""

from svdctl.errors import MissingExtraError
from svdctl.integrations.lightning_hooks import LightningHooks

try:
    from pytorch_lightning import Callback
    from pytorch_lightning.plugins.io import TorchCheckpointIO
    from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
except ModuleNotFoundError as error:
    raise MissingExtraError("pytorch_lightning", "pytorch-lightning") from error


class Control(LightningHooks, Callback):  # type: ignore[misc]  # the package may be missing
    """Keeps singular values within their maxima in a training by `pytorch_lightning.Trainer`.

    It is `svdctl.integrations.lightning.Control` for that package, whose trainer takes its own callbacks alone; the
    documentation and the arguments are those there.
    """

    sharded_strategies = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)
    checkpoint_io = TorchCheckpointIO
