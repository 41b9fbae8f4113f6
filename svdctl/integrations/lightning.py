"""Control of singular values as a callback of `lightning.Trainer`."""

from svdctl.errors import MissingExtraError
from svdctl.integrations.lightning_hooks import LightningHooks

try:
    from lightning.pytorch import Callback
    from lightning.pytorch.plugins.io import TorchCheckpointIO
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
except ModuleNotFoundError as error:
    raise MissingExtraError("lightning", "svdctl[lightning]") from error


class Control(LightningHooks, Callback):  # type: ignore[misc]  # the package may be missing
    """Keeps singular values within their maxima in a training by `lightning.Trainer`.

    The control acts after each step of the optimiser that is made: not at batches that are only accumulated, nor at
    steps that GradScaler skips; in manual optimisation too. What layers add to the loss (`Controller.penalty`) is added
    to the gradients once per step, before they are clipped. Processes of DDP do the same work, each for itself.

    Checkpoints hold the training weights as they are, and the controller's state, so that a run goes on from one as if
    it had not stopped. Beside the best one `best.pt` is written, a checkpoint for inference: the same weights, each
    layer scaled where it is above its maximum, and proved. It is renewed at the start of an epoch and after the fit.
    A WeightAveraging callback may stand before or after this one: `best.pt` is of the average.

    Args:
        module: the part of the LightningModule to control, as `"generator"`; all of it, if not given. Where several
            optimisers step different parts, each part has a Control of its own.
        seal: prove the maxima of the module when the fit has ended, too.
        best: write `best.pt`; of several such callbacks the first one says so, and the copy is sealed by all of them.
        settings: those of `svdctl.Controller`, as max_sigma, method, every_steps, linear_max, batchnorm_max and layers.

    Raises:
        TypeError: a setting that `Controller` does not have.
        UsageError: when the fit begins: a strategy that shards weights, no part of the name `module`, no layer to
            control, or several optimisers.
        ShapeError: then too: a layer whose weight cannot be written.

    The attribute `controller` is the `svdctl.Controller` of the latest fit, None before.
    """

    sharded_strategies = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)
    checkpoint_io = TorchCheckpointIO
