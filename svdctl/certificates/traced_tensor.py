"""Tensors that carry, beside their numbers for one image, bounds that are proved for all images.

They are a subclass, so Python's control flow on shapes works as always. Every torch function that meets one is looked
up in a table (`rules`); one that is not there is an error that names it. The subclass's own storage lies on the meta
device: whatever slips past the table in C++ gets no numbers, and fails.
"""

import math
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from svdctl.certificates.contents import Contents
from svdctl.certificates.error_bounds import Affine, AffineReadout, Arithmetic, ValueBounds
from svdctl.certificates.intervals import UNBOUNDED, Interval
from svdctl.errors import ShapeError
from svdctl.layers.layer_bounds import Gain, exact
from svdctl.spectral.rounding import gamma, norm_above, times

# For speed: larger outputs are not taken for logits.
_MOST_LOGITS = 1000
_LARGEST_READOUT = 1 << 22


@dataclass(frozen=True)
class Contribution:
    """What one layer or function adds to a Lipschitz constant."""

    name: str
    """Path of the innermost module that was running."""
    kind: str
    gain: float
    """Proved factor from its input to its output; of a sum, constant of the output over the largest of the operands."""
    factors: Mapping[str, float]
    """The gain by kind of slack."""
    lipschitz: float
    """Constant of the output with respect to the image."""


@dataclass(frozen=True)
class Origin:
    """That the entries of a value are entries of an earlier one, or the largest or smallest of some of them."""

    root: Tensor
    """Numbers of the earlier value; held, so that its memory stays its own."""
    bounds: ValueBounds
    """Of the earlier value."""
    views: tuple[Tensor, ...]
    """Views of `root`; each entry of the value is picked among the entries at its place in these."""
    picks: str
    """`entry` of one view, `largest` or `smallest` of several."""

    def of_views(self, views: Sequence[Tensor], picks: str) -> "Origin | None":
        """Return the origin of entries picked from views of a value with this origin; None if it has entries picked."""
        return replace(self, views=tuple(views), picks=picks) if self.picks == "entry" else None

    @property
    def key(self) -> Any:
        """Return what is the same for picks from the same entries."""
        return sorted((view.storage_offset(), tuple(view.shape), view.stride()) for view in self.views)

    def counts(self) -> Tensor:
        """Return how often each element of the memory of `root` is among the views."""
        storage = self.root.untyped_storage()
        elements = torch.arange(storage.nbytes() // self.root.element_size())
        places = [
            elements.as_strided(view.shape, view.stride(), view.storage_offset()).flatten() for view in self.views
        ]
        return torch.bincount(torch.cat(places), minlength=len(elements))

    @staticmethod
    def joint_gain(origins: Sequence["Origin"]) -> float:
        """Return the constant of all these values together with respect to their root, which is the same.

        The squared change of a value is at most that of the entries it is picked from; a largest and a smallest entry
        of the same two or more are two of the sorted ones, so these entries count once. docs/theory.md, "Whole
        networks".
        """
        counts, left = [], list(origins)
        while left:
            first = left.pop()
            opposite = {"largest": "smallest", "smallest": "largest"}.get(first.picks)
            pairs = (place for place, one in enumerate(left) if one.picks == opposite and one.key == first.key)
            place = next(pairs, None) if len(first.views) > 1 else None
            if place is not None:
                del left[place]  # this one alone: a value may stand here several times, as one and the same object
            counts.append(first.counts())
        total = torch.stack(counts).sum(0)
        most = int(total.max()) if total.numel() else 0
        return math.sqrt(most) * (1 + 2.0**-50) if most > 1 else float(most)


class Traced(Tensor):
    """A tensor with bounds; made by a `Tracer`."""

    value: Tensor
    bounds: ValueBounds | None
    tracer: "Tracer"
    memory: torch.UntypedStorage
    """Its own, without numbers; held, so that no other has its address."""
    origin: Origin | None
    why_lost: str
    """Why it has no bounds, where it has none."""

    @classmethod
    def make(cls, tracer: "Tracer", value: Tensor, bounds: ValueBounds | None) -> Self:
        made = torch.Tensor._make_subclass(cls, torch.empty(value.shape, dtype=value.dtype, device="meta"))
        made.value, made.bounds, made.tracer, made.origin = value, bounds, tracer, None
        with torch._C.DisableTorchFunction():
            made.memory = made.untyped_storage()
        made.why_lost = "uses a view of a tensor that was changed in place; clone it before"
        tracer.live.append(weakref.ref(made))
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        traced = [value for value in leaves((args, kwargs)) if isinstance(value, Traced)]
        if any("tracer" not in vars(value) for value in traced):
            raise ShapeError(
                "the network makes a tensor from the image by code that cannot be followed, as nn.Parameter"
            )
        first = traced[0]
        with torch._C.DisableTorchFunctionSubclass():
            try:
                return first.tracer.dispatch(first.tracer, func, tuple(args), kwargs)
            except Exception as failure:  # here too: modes of torch do not reach other threads
                raise first.tracer.refuse(failure) from failure.__cause__


class FailureRecorder(TorchFunctionMode):
    """Lets a tracer remember every failure of a torch function on what depends on the image.

    Those of plain tensors on the meta device are among them: C++ code that passes over the subclass makes such.
    """

    def __init__(self, tracer: "Tracer") -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except Exception as failure:
            with torch._C.DisableTorchFunction():
                if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves((args, kwargs or {}))):
                    self.tracer.refuse(failure)
            raise


@dataclass
class Tracer:
    """State of one trace.

    Args:
        dispatch: runs a torch function on traced tensors.
        tolerance: passed to `layer_gain`.
        arithmetic: of the pass, whose rounding is bounded.
    """

    dispatch: Callable[["Tracer", Any, tuple[Any, ...], dict[str, Any]], Any]
    tolerance: float | None
    arithmetic: Arithmetic
    largest: Affine = field(default_factory=Affine)
    """At least the magnitude of every value so far."""
    contributions: list[Contribution] = field(default_factory=list)
    path: list[tuple[str, nn.Module]] = field(default_factory=list)
    live: list[weakref.ref[Traced]] = field(default_factory=list)
    gains: dict[Any, list[tuple[Contents, Gain]]] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    """Of one image, for messages."""
    refusal: ShapeError | None = None
    """The first one: it holds though the network's own code may catch it."""

    def refuse(self, failure: Exception) -> ShapeError:
        """Remember why the trace cannot go on; the error that says so."""
        error = failure
        if not isinstance(error, ShapeError):
            reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
            if isinstance(failure, OverflowError) and re.search(r"\bint\b", reason):
                reason = "it computes with a whole number of more than 64 bits; write it as a float, as 2.0**70"
            error = ShapeError(f"{self.where} fails on an image of shape {self.shape}: {reason}")
            error.__cause__ = failure
        self.refusal = self.refusal or error
        return error

    @property
    def dtype(self) -> torch.dtype:
        return self.arithmetic.dtype

    @property
    def where(self) -> str:
        """Return the module being run, for messages."""
        if not self.path:
            return "the network"
        name, module = self.path[-1]
        return f"module {name!r} ({type(module).__name__})" if name else f"the network ({type(module).__name__})"

    def cached_gain(self, key: Any, owner: Any, compute: Callable[[], Gain]) -> Gain:
        """Return a gain, computed again unless all that `owner` holds is bit for bit what it was for the same key."""
        contents = Contents.of(owner)
        for kept, gain in self.gains.setdefault(key, []):
            if contents.difference(kept) is None:
                return gain
        try:
            with torch._C.DisableTorchFunction():  # nothing of the image takes part
                gain = compute()
        except ShapeError as error:
            raise ShapeError(f"{self.where}: {error}") from error
        self.gains[key].append((contents.kept(), gain))
        return gain

    def keep_gain(self, key: Any, owner: Any, gain: Gain) -> None:
        """Let `cached_gain` return a gain that is already known of `owner` as it is."""
        self.gains.setdefault(key, []).append((Contents.of(owner).kept(), gain))

    def traced(
        self,
        value: Tensor,
        lipschitz: float,
        error: Affine,
        readout: AffineReadout | None = None,
        inner: Affine | None = None,
        interval: Interval = UNBOUNDED,
    ) -> Traced:
        """Return a new traced tensor; `inner` is at least the magnitude of what was computed on the way to it."""
        if value.dtype != self.dtype:
            raise ShapeError(
                f"{self.where} changes the precision from {self.dtype} to {value.dtype}; keep one precision"
            )
        centre = norm_above(value)
        if not (lipschitz < float("inf") and centre < float("inf")):
            raise ShapeError(f"{self.where} gives values or a gain that are not finite; the network has no bound")
        bounds = ValueBounds(lipschitz, centre, error, readout, interval)
        self.largest = self.largest.maximum(bounds.magnitude).maximum(inner or Affine())
        return Traced.make(self, value, bounds)

    def contribute(self, kind: str, gain: float, factors: Mapping[str, float], lipschitz: float) -> None:
        """Note what the innermost module adds."""
        name = self.path[-1][0] if self.path else ""
        self.contributions.append(Contribution(name or "(network)", kind, gain, factors, lipschitz))

    def bounds(self, tensor: Traced) -> ValueBounds:
        """Return the bounds of a tensor that is still what it was."""
        if tensor.bounds is None:
            raise ShapeError(f"{self.where} {tensor.why_lost}")
        with torch._C.DisableTorchFunction():
            # `Tensor.set_` passes over the table.
            if tensor.untyped_storage()._cdata != tensor.memory._cdata:
                raise ShapeError(f"{self.where} uses a tensor that was given the memory of another; assign it instead")
        return tensor.bounds

    def origin(self, tensor: Traced) -> Origin:
        """Return of what a tensor's entries are entries: of itself, if nothing else is known."""
        return tensor.origin or Origin(tensor.value, self.bounds(tensor), (tensor.value,), "entry")

    def places(self, function: str, places: Tensor) -> Traced:
        """Return places of entries that a function picked: they have no bounds, since they jump."""
        made = Traced.make(self, places, None)
        made.why_lost = f"computes with the places that {function} returns, which jump as the image changes"
        return made

    def replace(self, tensor: Traced, new: Traced) -> Traced:
        """Give `tensor` the value and bounds of `new`: an operation in place. Views that share its memory go stale."""
        pointer = tensor.value.untyped_storage().data_ptr()
        alive = [other for other in (reference() for reference in self.live) if other is not None]
        for other in alive:
            if other is not tensor and other is not new and other.value.untyped_storage().data_ptr() == pointer:
                other.bounds = None
        tensor.value, tensor.bounds, tensor.origin = new.value, new.bounds, new.origin
        self.live = [weakref.ref(other) for other in alive]
        return tensor

    def layer(self, kind: str, x: Traced, output: Tensor, gain: Gain, run: Callable[[Tensor], Tensor]) -> Traced:
        """Return the output of a layer with this gain.

        Args:
            kind: for the report.
            x, output: its input, and its output's numbers.
            gain: what is proved of it.
            run: the layer, for the rows of a readout.
        """
        bounds = self.bounds(x)
        if gain.is_broadcast and output.numel() > x.value.numel():
            # As if each entry of the input were repeated `root**2` times before.
            root, once = math.sqrt(output.numel() / x.value.numel()), gain.rounding
            factors = {**gain.factors, "broadcast": root}
            gain = replace(gain, factors=factors, rounding=lambda unit: once(unit) * root * (1 + 1e-15))
        bias = 0.0 if gain.bias is None else norm_above(gain.bias) * (output.numel() / gain.bias.numel()) ** 0.5

        error, inner, unit = bounds.error * gain.value, None, self.arithmetic.unit
        if gain.rounding is not exact:
            relative = gain.rounding(unit)
            tiny = self.arithmetic.tiny * gain.enlarged * (gain.terms + 8) * output.numel()
            error += bounds.magnitude * relative + Affine(gamma(gain.terms + 1, unit) * bias + tiny)
            # One rounding of a sum of absolute products costs at most a unit of it.
            inner = bounds.magnitude * (relative / unit) + Affine(bias)
        lipschitz = times(bounds.lipschitz, gain.value)
        self.contribute(kind, gain.value, gain.factors, lipschitz)
        readout = self._readout(x, output, gain, run) if gain.is_affine else None
        return self.traced(output, lipschitz, error, readout, inner)

    def _readout(self, x: Traced, output: Tensor, gain: Gain, run: Callable[[Tensor], Tensor]) -> AffineReadout | None:
        """Return the affine map's rows, where they are few enough to be the logits'."""
        count, shape, value, first = output.numel(), tuple(output.shape[1:]), x.value, self.arithmetic
        if len(output) != 1 or count > _MOST_LOGITS or count * value.numel() > _LARGEST_READOUT:
            return None

        def rows() -> tuple[Tensor, float]:
            start = value.new_zeros(count, *value.shape[1:]).requires_grad_()
            units = torch.eye(count, dtype=value.dtype, device=value.device).reshape(count, *shape)
            with torch.enable_grad():
                found = torch.autograd.grad(run(start), start, units)[0].double().flatten(1)
            # A backward pass takes the same stages in turn: it errs as the forward pass does, up to second order.
            tiny = first.tiny * gain.enlarged * (gain.terms + 8) * found.numel()
            return found, 4 * gain.rounding(first.unit) * count**0.5 + tiny

        return AffineReadout.of(self.bounds(x).lipschitz, run, value, rows)


def leaves(value: Any) -> list[Any]:
    """Return all items of nested sequences and mappings."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]
