"""Control methods: what is done to singular values after a step; a user's own are registered as those of svdctl are."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from svdctl.config.base import Config
from svdctl.config.control_config import ControlConfig
from svdctl.layers.layer_ops import LayerOps
from svdctl.registry import CONTROLS

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass
class ControlledLayer:
    """A layer under control."""

    name: str
    module: "nn.Module"
    ops: LayerOps
    max_sigma: float
    """The largest singular value allowed, at present."""
    input_size: tuple[int, ...] | None = None
    """Of one input, without channels; None where it is not known."""
    state: "dict[str, Tensor]" = field(default_factory=dict)
    """What the method keeps from one application to the next; saved and loaded with a checkpoint."""
    memory: Any = None
    """What the method has computed of the layer's shape alone; made anew by `start`."""

    def __post_init__(self) -> None:
        self.final_max = self.max_sigma
        """`max_sigma` where no schedule moves it any more."""


@dataclass(frozen=True)
class ControlContext:
    """What an application may need beside the layers."""

    step: int
    """The optimiser's step, counted from 1."""
    optimizer: "torch.optim.Optimizer | None"
    generator: "torch.Generator"
    """A stream of random numbers, the same in every process."""
    scale: "Tensor | None" = None
    """`max_sigma` over `final_max` (0-d), the same of all layers; None: no schedule moves it."""


class ControlMethod:
    """A way to keep singular values at most `max_sigma`.

    `step_` is needed, or `factors` with `has_factors`. An object has no state: it serves all networks; what it keeps
    is in the layers' `state`. `step_` gets layers that share no memory: on the CPU one, several such calls at a time in
    threads, else all of its process; `in_order`, all of the network. `factors` gets all layers of its process. The
    proof that the maximum holds, at checkpoints and evaluations, is not the method's: `Controller.seal` scales what is
    above it.

    >>> from typing import Literal
    >>> from svdctl.config.control_config import ControlConfig
    >>> class Halve(ControlConfig):
    ...     kind: Literal["halve"] = "halve"
    >>> @svdctl.register_control
    ... class HalveControl(svdctl.ControlMethod):
    ...     kind, config = "halve", Halve
    ...     def step_(self, layers, config, context):
    ...         for layer in layers:
    ...             layer.ops.scale_([layer.module], [0.5])
    ...         return [True] * len(layers)
    >>> import torch
    >>> conv = torch.nn.Conv2d(1, 1, 1)
    >>> _ = torch.nn.init.constant_(conv.weight, 4.0)
    >>> svdctl.Controller(conv, method="halve", max_sigma=3.0).step()
    >>> conv.weight.item()
    2.0
    """

    kind: ClassVar[str]
    """Its name in `control.kind` of a configuration."""
    config: ClassVar[type[Config]]
    """Its section there, derived from `ControlConfig`; `kind` is a field of it, a literal."""
    writes_operator: ClassVar[bool] = True
    """Whether it writes kernels anew; False: it only multiplies them by numbers."""
    reads_scale: ClassVar[bool] = False
    """Whether `factors` takes the moving maximum from `scale` of its context, as a CUDA graph needs it; else steps are
    not recorded while it moves."""

    def needs_sizes(self, config: Any) -> bool:
        """Return whether it needs each layer's input size."""
        return False

    def in_order(self, config: Any) -> bool:
        """Return whether `step_` is given all layers at once, in the network's order, in every process.

        For methods with random numbers, whose order decides which layer gets which.
        """
        return False

    def has_factors(self, config: Any) -> bool:
        """Return whether `factors` does the work, without a synchronisation with the host."""
        return False

    def faults(self, config: Any, layer: Config) -> list[str]:
        """Return why it cannot control layers of this configuration, a sentence each."""
        return []

    def notices(self, layers: Sequence[ControlledLayer], config: Any) -> list[str]:
        """Return what a user should know before training."""
        return []

    def start(self, layers: Sequence[ControlledLayer], config: Any) -> None:
        """Make the layers' `state` and `memory`."""

    def factors(self, layers: Sequence[ControlledLayer], config: Any, context: ControlContext) -> "list[list[Tensor]]":
        """Return the numbers (0-d) that multiply each layer's `tensors`."""
        raise NotImplementedError  # for methods with `has_factors` alone

    def tensors(self, layer: ControlledLayer) -> "list[Tensor]":
        """Return what `factors` multiply."""
        return layer.ops.tensors(layer.module)[:1]

    def step_(
        self, layers: Sequence[ControlledLayer], config: Any, context: ControlContext
    ) -> "Sequence[bool | Tensor]":
        """Change the layers, and return for each whether it was changed.

        With `in_order` that may be a tensor (0-d, of bools), which is counted and not read.
        """
        raise NotImplementedError  # for methods without `has_factors` alone

    def seals(self, config: ControlConfig) -> bool:
        """Return whether the maximum is proved at evaluations and checkpoints."""
        return config.procedure == "certified"


M = TypeVar("M", bound=ControlMethod | type[ControlMethod])


def register_control(method: M) -> M:
    """Add a control method, so that `control.kind` of a configuration can name it; returns what it was given.

    Args:
        method: an object of a class derived from `ControlMethod`, or that class, so that it decorates one.

    Raises:
        UsageError: its kind is taken.

    >>> from typing import Literal
    >>> from svdctl.config.control_config import ControlConfig
    >>> class Leave(ControlConfig):
    ...     kind: Literal["leave"] = "leave"
    >>> @svdctl.register_control
    ... class LeaveControl(svdctl.ControlMethod):
    ...     kind, config = "leave", Leave
    ...     def step_(self, layers, config, context):
    ...         return [False] * len(layers)
    """
    CONTROLS.register(method)
    return method
