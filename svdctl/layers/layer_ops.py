"""What svdctl knows of a type of layer, one object for each; torch is imported when a layer is looked at.

`svdctl.register_layer` adds a type; `ops_of` finds the object of a module. Nothing outside `layers/` and `models/`
asks for the class of a layer.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from svdctl.config.base import Config
from svdctl.errors import ShapeError
from svdctl.registry import LAYERS
from svdctl.utils.printable import shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from svdctl.layers.layer_bounds import Gain
    from svdctl.spectral.convolution import Convolution
    from svdctl.spectral.power_iteration import FactoredOperators


class ConvFactory(Protocol):
    """Makes a convolution of a network; `padding` is half of the kernel in all networks of svdctl."""

    def __call__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int, padding: int, bias: bool
    ) -> "nn.Module": ...


class LayerOps:
    """How layers of some classes are read, written and kept in shape.

    Only `kind`, `modules` and `operator` are needed, or `gain` of a layer that is no convolution (`can_control` False).
    An object has no state: one of them serves all networks. A method that takes `layers` is given any of those that
    the object knows, but for `factored_operators`, which is given layers of one class and of one shape.

    >>> import torch
    >>> class Halving(torch.nn.Conv2d):
    ...     def forward(self, x):
    ...         return super().forward(x) / 2
    >>> class HalvingOps(svdctl.LayerOps):
    ...     kind = "halving"
    ...     modules = (Halving,)
    ...     def operator(self, layer):
    ...         return svdctl.Convolution.make(layer.weight.detach() / 2, stride=layer.stride)
    ...     def write_(self, layers, convs, optimizer=None):
    ...         for layer, conv in zip(layers, convs, strict=True):
    ...             layer.weight.copy_(2 * conv.weight)
    >>> _ = svdctl.register_layer(HalvingOps)
    >>> layer = Halving(3, 8, 3)
    >>> moved = svdctl.clip_(layer, max_sigma=0.1)
    >>> svdctl.spectral_norm_bound(layer).upper <= 0.1
    True
    """

    kind: ClassVar[str]
    """Name of the type; with `config`, the `layer.kind` of a configuration."""
    config: ClassVar[type[Config] | None] = None
    """The section `layer` of a configuration that chooses it; None: it cannot be chosen there."""
    modules: ClassVar[tuple[str | type, ...]]
    """The classes, or their names as `package.module:Class`; a class that is derived from them counts too."""
    can_control: ClassVar[bool] = True
    """Whether `operator` and `write_` are there: the layer has singular values, and they can be changed."""
    has_spectrum: ClassVar[bool] = True
    """Whether spectra of networks have a row for it; False of activations."""
    is_linear: ClassVar[bool] = False
    """Whether it maps vectors, without positions; then `linear_max` bounds it."""
    is_adjoint: ClassVar[bool] = False
    """Whether `operator` is the adjoint of what the layer does, so that its input size is that of the output."""

    def factory(self, config: Any, *, group: int, model: Config) -> "ConvFactory":
        """Return what makes the layers of a configured network; needed with `config`.

        Args:
            config: the section `layer`.
            group: which group of the architecture's layers, counted from 0.
            model: the section `model`.
        """
        raise NotImplementedError  # of layers that no configuration names

    def start_as_paper_(self, layer: Any) -> None:
        """Draw the weights that the paper's public code starts in another way; called without gradients."""

    def compresses_first(self, config: Any) -> bool:
        """Return whether a network's first convolution is of this type too."""
        return True

    def uncompressed(self, config: Any) -> str:
        """Return the kind of layers that a network of these is compared with; its own: none."""
        return self.kind

    def faults(self, config: Any, *, groups: int) -> list[str]:
        """Return what does not fit an architecture with so many groups of layers, a sentence each."""
        return []

    def text(self, config: Any) -> str:
        """Return what a plan of a training says of the layers."""
        return f"{self.kind} convolutions"

    def operator(self, layer: Any) -> "Convolution":
        """Return the convolution that the layer computes under zero padding of any width, detached.

        It is read in evaluation mode. The layer's bound rests on it: what `forward` does beyond it is not counted.
        """
        raise ShapeError(f"a layer of type {type(layer).__name__} is no convolution or linear layer")

    def exact_operator(self, layer: Any) -> "tuple[Convolution, float]":
        """Return the operator for proofs, and how far its norm can be from that of the layer.

        Its kernel is that of `operator` up to rounding, so that `write_` can write one that was made of it.
        """
        return self.operator(layer), 0.0

    def exact_operators(self, layers: Sequence[Any]) -> "list[tuple[Convolution, float]]":
        """Return `exact_operator` of each layer, of any class and shape."""
        return [self.exact_operator(layer) for layer in layers]

    def factored_operators(self, layers: Sequence[Any]) -> "FactoredOperators":
        """Return estimates of the operators of layers of one shape: frames that are kept orthonormal are taken for it.

        Nothing waits for the device.
        """
        from svdctl.spectral.power_iteration import FactoredOperators

        return FactoredOperators.of([self.operator(layer) for layer in layers])

    def core_operator(self, layer: Any) -> "Convolution | None":
        """Return the convolution by the first of several factors, `tensors(layer)[0]`; None: it is the whole layer."""
        return None

    def tensors(self, layer: Any, optimizer: "torch.optim.Optimizer | None" = None) -> "list[Tensor]":
        """Return all that `write_` changes: first the tensor that a factor on the operator multiplies, then other
        factors, then, of an optimiser, the state that moves with them."""
        return [layer.weight]

    def write_(
        self, layers: Sequence[Any], convs: "Sequence[Convolution]", optimizer: "torch.optim.Optimizer | None" = None
    ) -> None:
        """Give each layer the kernel of its convolution, in place; called without gradients."""
        for layer, conv in zip(layers, convs, strict=True):
            weight = self.tensors(layer)[0]
            weight.copy_(conv.weight.reshape(weight.shape))

    def scale_(self, layers: Sequence[Any], factors: "Sequence[Tensor | float]") -> None:
        """Multiply each layer's operator by a number or 0-d tensor, in place; biases stay. Called without gradients."""
        import torch

        numbers: dict[int, float] = {}
        weights = [self.tensors(layer)[0] for layer in layers]
        for place, factor in enumerate(factors):
            if isinstance(factor, float | int):
                numbers[place] = factor
            else:
                weights[place].mul_(factor)
        if numbers:
            chosen = [weights[place] for place in numbers]
            # A small factor on large weights would be no number of their own precision.
            wide = torch._foreach_mul([weight.double() for weight in chosen], list(numbers.values()))
            torch._foreach_copy_(chosen, wide)

    def gain(self, layer: Any, *, tolerance: float | None = None) -> "Gain | None":
        """Return the layer's proved `svdctl.certificates.Gain`; None: certificates look into its forward pass.

        Not inherited together with other `modules`: it is proved of the forward pass of those that its class lists.
        """
        return None

    def frozen(self, layer: Any) -> "nn.Module | None":
        """Return a module that computes the same in evaluation mode, weights made from others replaced by constants.

        Certificates follow it in the layer's place; None: the layer itself.
        """
        return None

    def plain(self, layer: Any, size: tuple[int, ...] | None = None) -> "nn.Module | None":
        """Return a module of torch's own that computes the same in evaluation mode, sharing no tensor with the layer.

        `svdctl.to_plain` puts it in the layer's place; None: the layer itself. Called without gradients.

        Args:
            layer: in evaluation mode.
            size: the spatial size of its input, if that is known.
        """
        return None

    def generator(self, layer: Any) -> "tuple[Convolution, int] | None":
        """Return the skew convolution that the layer exponentiates and the last power of its series; None: none."""
        return None

    def frames(self, layer: Any) -> "list[Tensor]":
        """Return the matrices whose columns are to be orthonormal."""
        return []

    def rank(self, layer: Any) -> tuple[int, int] | None:
        """Return (rank_in, rank_out) of a layer between two frames; None of other layers."""
        return None

    def projections(self, layer: Any) -> "dict[str, nn.Linear]":
        """Return the linear maps that the layer is made of, by name, sharing its weights; they have rows in its place.

        Empty: the layer has a row of its own.
        """
        return {}

    def parts(self, layer: Any) -> "tuple[nn.Module, ...]":
        """Return the modules inside the layer that are no layers of their own."""
        return ()

    def stride(self, layer: Any) -> tuple[int, ...]:
        """Return the layer's stride on each axis."""
        stride = getattr(layer, "stride", 1)
        return (stride,) * len(self.shape(layer)[2:]) if isinstance(stride, int) else tuple(stride)

    def shape(self, layer: Any) -> tuple[int, ...]:
        """Return the shape of the layer's kernel, `(O, I, *k)`."""
        return tuple(self.tensors(layer)[0].shape)

    def cost(self, layer: Any, size: tuple[int, ...]) -> float:
        """Return modelled operations of an exact pass of control over the layer, its input of this spatial size."""
        if not self.can_control:
            return 0.0
        stride = self.stride(layer) or (1,) * len(size)
        rows, channels = self.tensors(layer)[0].shape[:2]
        columns = channels * math.prod(stride)
        points = math.prod(-(-length // step) for length, step in zip(size, stride, strict=True))
        return float(points * rows * columns * min(rows, columns))

    def shape_text(self, layer: Any) -> str:
        """Return its shape for a report."""
        return " x ".join(map(str, self.shape(layer)))

    def after_optimizer_step_(
        self, layers: Sequence[Any], *, step: int, optimizer: "torch.optim.Optimizer | None"
    ) -> "Tensor | None":
        """Bring the layers back into their form after the optimiser's step of this number, counted from 1.

        Args:
            layers: all of the network, of any class and shape.
            step: its number.
            optimizer: whose momentum is carried along.

        Returns:
            The largest defect `||U^T U - I||_F` of frames that are retracted (0-d); None: there are none.
        """
        return None

    def before_compiling_(self, layers: Sequence[Any], sizes: Sequence[tuple[int, ...]], *, batch: int) -> None:
        """Choose what `forward` else chooses by the shape of its input, so that a compiler finds it chosen.

        Args:
            layers: all of the network, of any class and shape.
            sizes: spatial size of each layer's input.
            batch: number of images.
        """

    def due(self, layers: Sequence[Any], step: int) -> tuple[str, ...] | None:
        """Return names of what `after_optimizer_step_` does at this step and not at every one.

        None: not known, or it may wait for the device, or keep what is not written in place; then no CUDA graph is made
        of the step.
        """
        return () if type(self).after_optimizer_step_ is LayerOps.after_optimizer_step_ else None

    def retracts(self, layer: Any) -> bool:
        """Return whether `after_optimizer_step_` makes the layer's frames orthonormal."""
        return False

    def retract_by_qr_(self, layers: Sequence[Any]) -> None:
        """Have frames that are retracted be so by QR from now on: to rounding, whatever they are, but slower."""

    def penalty(self, layers: Sequence[Any]) -> "list[tuple[Tensor, int, float]]":
        """Return shares in a term of the loss, each of some of the layers: (sum of defects (0-d), their count, weight).

        The term is, over all shares of one weight, the sum of the defects times the weight over the sum of the counts.
        """
        return []


class NormalizationOps(LayerOps):
    """Of a layer that normalises or scales channels, and has a gain and no kernel."""

    can_control = False
    title: ClassVar[str]
    """What its rows are called."""

    def has_row(self, layer: Any) -> bool:
        """Return whether there is something to tell of the layer."""
        return True

    def factors(self, layer: Any) -> tuple[str, ...]:
        """Return names of the layer's own tensors that the gain is about, where they are not `weight` and `bias`."""
        return ()

    def channel_gain(self, layer: Any) -> float:
        """Return the largest gain, of BatchNorm the largest absolute scale.

        Raises:
            ShapeError: it is not fixed, or not finite.
        """
        raise NotImplementedError  # each normalisation has its own


O = TypeVar("O", bound=LayerOps | type[LayerOps])


def register_layer(ops: O) -> O:
    """Add a type of layer to those that svdctl knows; returns what it was given, so that it decorates a class.

    Args:
        ops: an object of a class derived from `LayerOps`, or that class.

    Raises:
        UsageError: its kind is taken.

    >>> import torch
    >>> class Flip(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x.flip(-1)
    >>> @svdctl.register_layer
    ... class FlipOps(svdctl.LayerOps):
    ...     kind = "flip"
    ...     modules = (Flip,)
    ...     can_control = False
    ...     def gain(self, layer, *, tolerance=None):
    ...         from svdctl.certificates import Gain
    ...         return Gain({"norm": 1.0}, lambda unit: 0.0)
    >>> svdctl.lipschitz_bound(Flip(), (3, 8, 8)).value < 1.001
    True
    """
    LAYERS.register(ops)
    return ops


def require_module(model: object) -> None:
    """Raise a ShapeError if what was given as a network or layer is none, as a list of layers, or a class."""
    import torch

    if not isinstance(model, torch.nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise ShapeError(f"a network or layer is a torch.nn.Module, not {what}; give the network or layer itself")


def name_patterns(given: object, argument: str) -> tuple[str, ...]:
    """Return patterns of module names that were given as one or as several.

    Raises:
        ShapeError: they are no texts; it names the argument.
    """
    patterns = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else None
    if patterns is None or not all(isinstance(pattern, str) for pattern in patterns):
        raise ShapeError(
            f"{argument} is a pattern of module names, as 'layer4.*', or a list of them, not {shown(given)}"
        )
    return patterns


def known_class(layer: "nn.Module") -> type | None:
    """Return the class of the layer, or the nearest one that it is derived from, that is registered; None: none is."""
    found = _registered(type(layer))
    return None if found is None else found[0]


def find_ops(layer: "nn.Module") -> LayerOps | None:
    """Return what is known of the type of a layer; None: nothing."""
    found = _registered(type(layer))
    return None if found is None else found[1]


def ops_of(layer: "nn.Module") -> LayerOps:
    """Return what is known of the type of a layer.

    Raises:
        ShapeError: nothing.
    """
    ops = find_ops(layer)
    if ops is None:
        raise ShapeError(
            f"a layer of type {type(layer).__name__} is no convolution or linear layer that svdctl can read"
        )
    return ops


def layers_alike(layers: "Sequence[nn.Module]") -> list[list[int]]:
    """Return the places of layers of one type and geometry together, in the order of the first ones."""
    found: dict[tuple[object, ...], list[int]] = {}
    for place, layer in enumerate(layers):
        ops = ops_of(layer)
        shapes = tuple((parameter.shape, parameter.dtype) for parameter in layer.parameters())
        geometry = (ops.stride(layer), getattr(layer, "dilation", None), getattr(layer, "groups", 1))
        key = (ops, type(layer), shapes, geometry)
        found.setdefault(key, []).append(place)
    return list(found.values())


def layers_of_types(layers: "Sequence[nn.Module]") -> list[tuple[LayerOps, list[int]]]:
    """Return what is known of each type of layer, and the places of its layers, in the order of the first ones."""
    found: dict[LayerOps, list[int]] = {}
    for place, layer in enumerate(layers):
        found.setdefault(ops_of(layer), []).append(place)
    return list(found.items())


def is_controllable(layer: "nn.Module") -> bool:
    """Return whether a layer has singular values that can be read and written."""
    ops = find_ops(layer)
    return ops is not None and ops.can_control


def _registered(kind: type) -> tuple[type, LayerOps] | None:
    table: dict[type, LayerOps] = {}
    for ops in LAYERS.variants():
        for entry in ops.modules:
            known = entry if isinstance(entry, type) else _imported(entry)
            if known is not None:
                table[known] = ops
    return next(((base, table[base]) for base in kind.__mro__ if base in table), None)


def _imported(name: str) -> type | None:
    """Return the class of this name; None while its module is not imported, so that no layer of it can exist."""
    module, _, attribute = name.partition(":")
    found = getattr(sys.modules.get(module), attribute, None)
    return found if isinstance(found, type) else None
