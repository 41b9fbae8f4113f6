"""Rules for torch's functions: what a call does to the bounds of its inputs; docs/theory.md, "Whole networks".

The signature of a rule declares the arguments of its functions, in their order, and of which kind each may be (`Image`,
`Constant`, `Setting`, ...). `Call.bind` refuses everything else, so that no argument is overlooked: what a rule does
not declare, a value that depends on the image where a constant is expected, tensors of a subclass, complex numbers.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdctl.certificates.error_bounds import Affine, AffineReadout, Arithmetic
from svdctl.certificates.intervals import UNBOUNDED, Interval
from svdctl.certificates.traced_tensor import Traced, Tracer, leaves
from svdctl.errors import ShapeError
from svdctl.spectral.rounding import gamma, norm_above, times

Rule = TypeVar("Rule", bound=Callable[..., Any])
Local = Callable[[Affine, Arithmetic], Affine]
NAMESPACES = (torch, Tensor, F, torch._C._nn)
ALIASES = {
    "input": "x", "self": "x", "tensor": "x", "mat2": "other", "axis": "dim", "keepdims": "keepdim",
    "train": "training", "min_val": "min", "max_val": "max", "vec": "other", "batch1": "mat1", "batch2": "other",
    "mat": "mat1",
}  # fmt: skip
"""Other names that torch has for one argument."""


def depends_on_image(value: Any) -> bool:
    """Return whether a value depends on the image."""
    return isinstance(value, Traced)


def is_constant(value: Any) -> bool:
    """Return whether a value is None, a real number or a real tensor that does not depend on the image."""
    if isinstance(value, Tensor):
        plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and not value.is_quantized
        return plain and not value.is_complex() and not value.is_meta
    return value is None or (isinstance(value, Real) and bool(value == value))


def is_number(value: Any) -> bool:
    """Return whether a value is None or one real number that does not depend on the image."""
    return is_constant(value) and (not isinstance(value, Tensor) or (value.numel() == 1 and bool(value == value)))


def is_real(value: Any) -> bool:
    """Return whether a value depends on the image or is a constant that is not None."""
    return isinstance(value, Traced) or (is_constant(value) and value is not None)


def are_real_tensors(value: Any) -> bool:
    """Return whether a value is a sequence of tensors, each as in `is_real`."""
    return isinstance(value, list | tuple) and all(isinstance(part, Tensor) and is_real(part) for part in value)


def is_setting(value: Any) -> bool:
    """Return whether a value is made of numbers, names, dtypes, devices, and tensors of integers or truth values."""
    return all(_is_setting(leaf) for leaf in leaves(value))


def is_like(value: Any) -> bool:
    """Return whether a value is a setting, or a tensor of which only shape, dtype and device are used."""
    return isinstance(value, Traced) or is_constant(value) or is_setting(value)


Image = Annotated[Traced, depends_on_image]
Constant = Annotated[Any, is_constant]
Number = Annotated[float, is_number]
Either = Annotated[Any, is_real]
Several = Annotated[Sequence[Any], are_real_tensors]
Setting = Annotated[Any, is_setting]
Like = Annotated[Any, is_like]

_SETTINGS = (Real, str, type(None), type(...), torch.dtype, torch.device, torch.layout, torch.memory_format)


def _is_setting(leaf: Any) -> bool:
    if isinstance(leaf, slice):
        return is_setting([leaf.start, leaf.stop, leaf.step])
    if isinstance(leaf, Tensor):
        return is_constant(leaf) and not leaf.is_floating_point()
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.kind in "iub"
    return isinstance(leaf, _SETTINGS)


def is_of_kind(value: Any, kind: Any) -> bool:
    """Return whether an argument is of a declared kind: one of the values of a `Literal`, of the same type, too."""
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    return bool(kind.__metadata__[0](value))


def number(value: Any) -> float:
    """Return a real number, or a tensor that holds one, in float64.

    Raises:
        ShapeError: an integer beyond float64.
    """
    try:
        return float(value.detach().double()) if isinstance(value, Tensor) else float(value)
    except OverflowError:
        raise ShapeError(f"a number of {len(str(abs(value)))} digits is too large for float64") from None


@dataclass
class Call:
    """One call of a torch function on traced tensors."""

    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tracer: Tracer
    first: Any = None
    """The first argument."""
    in_place: bool = False
    """Whether it writes into its first argument: it runs on a copy of that."""

    def bind(self, signature: inspect.Signature) -> inspect.BoundArguments:
        """Return the arguments of a rule: by the names that it gives them, None replaced by its defaults.

        Raises:
            ShapeError: an argument that the rule does not declare, or that is not of the declared kind.
        """
        named = {ALIASES.get(key, key): value for key, value in self.kwargs.items() if key != "inplace"}
        if named.pop("out", None) is not None:
            raise self.unknown("with out=")
        try:
            bound = signature.bind(self, *self.args, **named)
        except TypeError as error:
            by_name = [f"{key}=" for key, one in signature.parameters.items() if one.kind is one.KEYWORD_ONLY]
            advice = f" (by name alone: {', '.join(by_name)})" if by_name else ""
            raise self.unknown(f"with these arguments: {error}{advice}") from None
        for name, value in list(bound.arguments.items())[1:]:
            parameter = signature.parameters[name]
            several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            for part in leaves(value) if several else (value,):
                if not is_of_kind(part, parameter.annotation):
                    raise self.unknown(f"with {_described(part)} as {name}")
            if value is None and parameter.default is not parameter.empty:
                bound.arguments[name] = parameter.default
            elif value is not None and parameter.annotation is Number:
                bound.arguments[name] = number(value)
        self.first = bound.args[1]
        return bound

    @property
    def x(self) -> Traced:
        """Return the first argument, where it depends on the image."""
        assert isinstance(self.first, Traced)
        return self.first

    def plain(self, value: Any) -> Any:
        """Return the same structure with the numbers in place of traced tensors."""
        if isinstance(value, Traced):
            self.tracer.bounds(value)
            return value.value.clone() if self.in_place and value is self.first else value.value
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return value
        if isinstance(value, list | tuple):
            return type(value)(self.plain(item) for item in value)
        if isinstance(value, dict):
            return {key: self.plain(item) for key, item in value.items()}
        return value

    def run(self) -> Any:
        """Run the function on the numbers."""
        return self.func(*self.plain(self.args), **self.plain(self.kwargs))

    def rerun(self, x: Tensor) -> Any:
        """Run the function on other numbers in place of `x`, in their precision."""
        old, x = self.x, x.clone() if self.in_place else x
        args = tuple(x if value is old else value for value in self.args)
        kwargs = {key: x if value is old else value for key, value in self.kwargs.items()}
        if kwargs.get("dtype") is not None:
            kwargs["dtype"] = x.dtype
        return self.func(*self.plain(args), **self.plain(kwargs))

    def constant(self, value: Any) -> Tensor:
        """Return a number or tensor that does not depend on the image, as float64."""
        return (
            value.detach().double() if isinstance(value, Tensor) else torch.tensor(number(value), dtype=torch.float64)
        )

    def largest(self, value: Any) -> float:
        """Return the largest absolute value of the entries of a constant.

        Raises:
            ShapeError: it is not finite. Python's `max` would pass over one that is not a number.
        """
        exact = self.constant(value)
        found = float(exact.abs().max()) if exact.numel() else 0.0
        if not found < math.inf:
            raise self.unknown("with a constant that is not finite")
        return found

    def rounding(self, constants: Sequence[Any], arithmetic: Arithmetic) -> float:
        """Return the largest error of any entry of these constants when it is rounded to an arithmetic."""
        largest = 0.0
        for constant in constants:
            if constant is not None:
                exact = self.constant(constant).flatten()
                exact = exact[exact.isfinite()]
                errors = (exact.to(arithmetic.dtype).double() - exact).abs()
                largest = max(largest, float(errors.max())) if errors.numel() else largest
        return largest

    def interval(self, value: Any) -> Interval:
        """Return where the entries of a value lie, both exact and as computed; of None, anywhere."""
        if value is None:
            return UNBOUNDED
        if isinstance(value, Traced):
            found = self.tracer.bounds(value).interval
        else:
            exact = self.constant(value)
            if not exact.numel():
                return UNBOUNDED
            ends = torch.stack((*exact.aminmax(), *exact.to(self.tracer.dtype).double().aminmax()))
            found = Interval.of(*ends.tolist())
            # Integers beyond 2^53 are rounded once more.
            found = found if found.largest < 2.0**53 else found.widened(2.0**-52)
        # Subnormal numbers may be taken for 0.
        return found.hull(Interval(0.0, 0.0)) if 0 < found.smallest < self.tracer.arithmetic.tiny else found

    def unknown(self, why: str = "") -> ShapeError:
        """Return the error for a call without a rule."""
        call = f"{self.name} {why}".strip()
        return ShapeError(
            f"no Lipschitz bound is known for {call}, called in {self.tracer.where}; replace it, or teach the module's "
            "gain with svdctl.register_layer"
        )

    def elementwise(
        self,
        gain: float,
        units: float = 0.0,
        offset: float = 0.0,
        jump: float = 0.0,
        levels: Sequence[Any] = (),
        interval: Interval = UNBOUNDED,
    ) -> Traced:
        """Return a function of each entry, off by `units * u * (|x| + offset) + jump` and the rounding of `levels`.

        Args:
            gain: its largest slope.
            units, offset, jump: of the error.
            levels: numbers or tensors that the output takes over, as a bound of `clamp` is.
            interval: where its outputs lie, if known.
        """
        x, output = self.x, self.run()
        root = math.sqrt(output.numel())
        gain = times(gain, self.broadcast_factor(x, output))

        def local(size: Affine, arithmetic: Arithmetic) -> Affine:
            relative = units * arithmetic.unit
            floor = arithmetic.tiny * 8 if units else 0.0
            constant = root * (relative * offset + jump + floor + self.rounding(levels, arithmetic))
            return size * (relative + (arithmetic.tiny if units else 0.0)) + Affine(constant)

        return self.unary(x, output, gain, local, "activation", interval=interval)

    def rounded(self, interval: Interval, units: float, lost: float = 0.0) -> Interval:
        """Return where results lie that are off by `units * u` of themselves, underflow and `lost`; signs stay."""
        arithmetic = self.tracer.arithmetic
        return interval.widened(units * arithmetic.unit, 8 * arithmetic.tiny + lost)

    def broadcast_factor(self, operand: Any, output: Tensor) -> float:
        """Return by how much the norm of an operand grows when it is broadcast to the output's shape."""
        value = operand.value if isinstance(operand, Traced) else operand
        size = value.numel() if isinstance(value, Tensor) else 1
        return 1.0 if size == output.numel() else math.sqrt(output.numel() / max(size, 1)) * (1 + 2.0**-50)

    def unary(
        self,
        x: Traced,
        output: Tensor,
        gain: float,
        local: Local | None,
        kind: str,
        terms: int = 1,
        *,
        interval: Interval = UNBOUNDED,
    ) -> Traced:
        """Return the output of a function of one input: its gain, and its own error for an input of some magnitude.

        Args:
            x, output, gain: its input, its output's numbers, its Lipschitz constant.
            local: the error that it adds; None where it is exact.
            kind: for the report.
            terms: how many entries of the input it sums at most.
            interval: where its outputs lie, if known.
        """
        bounds = self.tracer.bounds(x)
        lipschitz = times(bounds.lipschitz, gain)
        if gain != 1:
            self.tracer.contribute(self.name, gain, {kind: gain}, lipschitz)
        error = bounds.error * gain
        if local is not None:
            error += local(bounds.magnitude, self.tracer.arithmetic)
        return self.tracer.traced(output, lipschitz, error, inner=bounds.magnitude * terms, interval=interval)

    def non_negative(self, terms: int, kind: str) -> Any:
        """Return a linear map with entries >= 0 and sums of at most `terms` numbers, its norm by Schur's test."""
        x = self.x
        outputs = self.run()
        bounds = self.tracer.bounds(x)
        results = []
        for output, (norm, sums) in zip(sequence(outputs), self._schur(x.value), strict=True):

            def summing(size: Affine, arithmetic: Arithmetic, norm: float = norm) -> Affine:
                return size * (gamma(terms + 2, arithmetic.unit) * norm) + Affine(arithmetic.tiny * x.value.numel())

            interval = self._of_sums(bounds.interval * sums, terms)
            local = summing if terms > 1 else None
            results.append(self.unary(x, output, norm, local, kind, terms, interval=interval))
        if not isinstance(outputs, Tensor):
            return tuple(results)
        if bounds.readout is not None and outputs.numel() <= x.value.numel():
            assert results[0].bounds is not None
            results[0].bounds = replace(results[0].bounds, readout=self._readout(bounds.readout, x.value))
        return results[0]

    def _of_sums(self, interval: Interval, terms: int) -> Interval:
        """Return where weighted sums of at most `terms` numbers lie as computed, given where the exact ones lie."""
        if terms <= 1:
            return interval
        arithmetic = self.tracer.arithmetic
        relative, lost = gamma(2 * terms + 4, arithmetic.unit), terms * arithmetic.tiny
        if interval.lo >= 0 or interval.hi <= 0:
            return interval.widened(relative, lost)
        # Terms may have both signs: the error is a share of the sum of their absolute values.
        error = relative * interval.largest + lost
        return (interval + Interval(-error, error)).widened(2.0**-52)

    def _readout(self, before: AffineReadout, like: Tensor) -> AffineReadout:
        """Return the readout after this linear map."""

        def rows() -> tuple[Tensor, float] | None:
            earlier = before.rows()
            if earlier is None:
                return None
            with torch.enable_grad():
                start = torch.zeros_like(like, dtype=torch.float64, requires_grad=True)
                entries = self.rerun(start).flatten()
                matrix = torch.stack([torch.autograd.grad(e, start, retain_graph=True)[0].flatten() for e in entries])
            found, error = earlier
            norm = norm_above(matrix)
            return matrix @ found, norm * error + gamma(2 * like.numel(), 2.0**-53) * norm * norm_above(found)

        return AffineReadout.of(before.lipschitz, self.rerun, like.double(), rows)

    def _schur(self, like: Tensor) -> list[tuple[float, Interval]]:
        """Return the norm of each output as a function of the first argument, and where its sums of weights lie."""
        with torch.enable_grad():
            ones = torch.ones_like(like, dtype=torch.float64, requires_grad=True)
            outputs = sequence(self.rerun(ones))
            found = []
            for output in outputs:
                if output.numel() == 0:
                    found.append((0.0, UNBOUNDED))
                    continue
                (columns,) = torch.autograd.grad(output.sum(), ones, retain_graph=True)
                least, most, column = torch.stack((*output.detach().aminmax(), columns.max())).tolist()
                norm = math.sqrt(most * column)
                # Sums of ones, and of equal weights, are exact up to roundings that vanish in the trace's own margin.
                found.append((1.0 if abs(norm - 1) < 1e-13 else norm, Interval(least, most)))
        return found


@dataclass(frozen=True)
class Entry:
    """What is known of one torch function."""

    name: str
    rule: Callable[..., Any]
    in_place: bool
    signature: inspect.Signature


RULES: dict[Any, Entry] = {}


def rule(names: str, *, spaces: Sequence[Any] = NAMESPACES) -> Callable[[Rule], Rule]:
    """Register a rule for all of torch's spellings of these functions, in place or not.

    All of them must take their arguments in the same order; `spaces` leaves out those that do not.

    Args:
        names: of the functions, separated by spaces.
        spaces: where to look for the functions.
    """

    def register(function: Rule) -> Rule:
        signature = inspect.signature(function)
        for name in names.split():
            found = False
            for space in spaces:
                for spelling in (name, f"{name}_", f"__{name}__", f"__i{name}__"):
                    func = getattr(space, spelling, None)
                    if func is None:
                        continue
                    found = True
                    in_place = spelling.startswith("__i") or spelling == f"{name}_"
                    # `Tensor.T` and the like arrive as the getter of a descriptor.
                    key = func.__get__ if inspect.isgetsetdescriptor(func) else func
                    RULES.setdefault(key, Entry(f"{space.__name__}.{spelling}", function, in_place, signature))
            assert found, name
        return function

    return register


def apply(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one torch function, called on at least one traced tensor."""
    entry = RULES.get(func)
    call = Call(func, describe(func) if entry is None else entry.name, args, kwargs, tracer)
    if entry is None:
        raise call.unknown()
    bound, inplace = call.bind(entry.signature), kwargs.get("inplace", False)
    if type(inplace) is not bool:
        raise call.unknown(f"with {_described(inplace)} as inplace")
    if not (entry.in_place or inplace):
        return entry.rule(*bound.args, **bound.kwargs)
    target = call.first
    if not isinstance(target, Traced):
        raise call.unknown("writing into a tensor that does not depend on the image")
    for value in (*args, *kwargs.values()):
        if isinstance(value, Traced):
            tracer.bounds(value)
    # In place of the original, so that rules tell the operand from the result.
    scratch, call.in_place = Traced.make(tracer, target.value, tracer.bounds(target)), True
    call.args = tuple(scratch if value is target else value for value in args)
    call.kwargs = {key: scratch if value is target else value for key, value in kwargs.items()}
    bound = call.bind(entry.signature)
    result = entry.rule(*bound.args, **bound.kwargs)
    if not isinstance(result, Traced):
        raise call.unknown()
    return tracer.replace(target, result)


def _described(value: Any) -> str:
    if isinstance(value, Traced):
        return "a value that depends on the image"
    if isinstance(value, Tensor):
        kind = "meta device, made from the image by code that cannot be followed" if value.is_meta else value.dtype
        return f"a {type(value).__name__} of shape {tuple(value.shape)} ({kind})"
    text = repr(value)
    return text if len(text) < 60 else f"a {type(value).__name__}"


def describe(func: Any) -> str:
    """Return a readable name of any function that torch passes on."""
    owner = getattr(func, "__self__", None)
    if inspect.isgetsetdescriptor(owner):
        return f"the attribute Tensor.{owner.__name__}"
    module = getattr(func, "__module__", None) or getattr(getattr(func, "__objclass__", None), "__name__", "torch")
    module = "Tensor" if module == "TensorBase" else module
    return f"{module}.{getattr(func, '__name__', func)}"


def sequence(outputs: Any) -> Sequence[Tensor]:
    """Return one output or several as a sequence."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
