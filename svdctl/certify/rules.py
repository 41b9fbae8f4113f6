"""Rules for torch's functions: what a call does to the facts of its inputs. See `trace`.

Note, non-negative maps. A linear map with entries >= 0 (moving, copying, summing and averaging entries) has norm at
most `sqrt(largest row sum * largest column sum)` (Schur's test). The row sums are its value at all ones, the column
sums that of its adjoint, and both are computed by the function itself. For copies and for equal disjoint windows this
is the norm exactly: overlapping windows, reflected edges and repeated pixels are counted, whatever the arguments are.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svdctl.certify.facts import Affine, Arithmetic, Readout, gamma, norm_above
from svdctl.certify.trace import Traced, Tracer, leaves
from svdctl.errors import ShapeError

Rule = Callable[["Call"], Any]
Local = Callable[[Affine, Arithmetic], Affine]
NAMESPACES = (torch, Tensor, F, torch._C._nn)


@dataclass
class Call:
    """One call of a torch function on traced tensors."""

    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tracer: Tracer

    def plain(self, value: Any) -> Any:
        """The same structure with the numbers in place of traced tensors."""
        if isinstance(value, Traced):
            self.tracer.facts(value)
            return value.value
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return value
        if isinstance(value, list | tuple):
            return type(value)(self.plain(item) for item in value)
        if isinstance(value, dict):
            return {key: self.plain(item) for key, item in value.items()}
        return value

    def run(self) -> Any:
        """What the function gives for the numbers."""
        return self.func(*self.plain(self.args), **self.plain(self.kwargs))

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by place or name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def source(self) -> Traced:
        """The first argument, the only one that may depend on the image."""
        x = self.args[0] if self.args else self.kwargs.get("input")
        rest = (*self.args[1:], *(value for key, value in self.kwargs.items() if key != "input"))
        if not isinstance(x, Traced) or any(isinstance(value, Traced) for value in leaves(rest)):
            raise self.unknown("with an argument, besides the first, that depends on the image")
        return x

    def rerun(self, x: Tensor) -> Any:
        """The function for another first argument."""
        kwargs = {key: value for key, value in self.plain(self.kwargs).items() if key != "input"}
        return self.func(x, *self.plain(self.args[1:]), **kwargs)

    def constant(self, value: Any) -> Tensor:
        """A number or tensor that does not depend on the image, as float64."""
        return torch.as_tensor(value).detach().double()

    def unknown(self, why: str = "") -> ShapeError:
        """The error for a call without a rule."""
        call = f"{self.name} {why}".strip()
        return ShapeError(
            f"no Lipschitz bound is known for {call}, called in {self.tracer.where}; replace it, or teach the module's "
            "gain with svdctl.certify.layer_gain.register"
        )

    def elementwise(
        self, gain: float, units: float = 0.0, offset: float = 0.0, kind: str = "activation", jump: float = 0.0
    ) -> Traced:
        """A function of each entry that errs by `units * u * (|x| + offset) + jump`."""
        x, output = self.source(), self.run()
        root = math.sqrt(output.numel())

        def local(size: Affine, arithmetic: Arithmetic) -> Affine:
            relative = units * arithmetic.unit
            floor = arithmetic.tiny * 8 if units else 0.0
            return size * relative + Affine(root * (relative * offset + jump + floor))

        return self.through(x, output, gain, local, kind)

    def through(self, x: Traced, output: Tensor, gain: float, local: Local | None, kind: str) -> Traced:
        """The output of a function of one input: its gain, and its own error for an input of some magnitude."""
        facts = self.tracer.facts(x)
        lipschitz = facts.lipschitz * gain
        if gain != 1:
            self.tracer.contribute(self.name, gain, {kind: gain}, lipschitz)

        def error(index: int, arithmetic: Arithmetic) -> Affine:
            before = facts.errors[index] * gain
            return before if local is None else before + local(facts.magnitude(index), arithmetic)

        return self.tracer.wrap(output, lipschitz, self.tracer.errors(error))

    def non_negative(self, terms: int, kind: str) -> Any:
        """A linear map with entries >= 0 and sums of at most `terms` numbers; see the Note."""
        x = self.source()
        outputs = self.run()
        facts = self.tracer.facts(x)
        results = []
        for output, norm in zip(sequence(outputs), self._schur(x.value), strict=True):

            def summing(size: Affine, arithmetic: Arithmetic, norm: float = norm) -> Affine:
                return size * (gamma(terms + 2, arithmetic.unit) * norm)

            results.append(self.through(x, output, norm, summing if terms > 1 else None, kind))
        if not isinstance(outputs, Tensor):
            return tuple(results)
        if facts.readout is not None and outputs.numel() <= x.value.numel():
            assert results[0].facts is not None
            results[0].facts = replace(results[0].facts, readout=self._readout(facts.readout, x.value))
        return results[0]

    def _readout(self, before: Readout, like: Tensor) -> Readout:
        """The readout after this linear map."""

        def rows() -> tuple[Tensor, float]:
            with torch.enable_grad():
                start = torch.zeros_like(like, dtype=torch.float64, requires_grad=True)
                entries = self.rerun(start).flatten()
                matrix = torch.stack([torch.autograd.grad(e, start, retain_graph=True)[0].flatten() for e in entries])
            found, error = before.rows()
            norm = norm_above(matrix)
            return matrix @ found, norm * error + gamma(2 * like.numel(), 2.0**-53) * norm * norm_above(found)

        return Readout(before.lipschitz, rows)

    def _schur(self, like: Tensor) -> list[float]:
        """Norm of each output as a function of the first argument."""
        with torch.enable_grad():
            ones = torch.ones_like(like, dtype=torch.float64, requires_grad=True)
            outputs = sequence(self.rerun(ones))
            norms = []
            for output in outputs:
                if output.numel() == 0:
                    norms.append(0.0)
                    continue
                (columns,) = torch.autograd.grad(output.sum(), ones, retain_graph=True)
                norm = math.sqrt(float(output.detach().max()) * float(columns.max()))
                # Sums of ones, and of equal weights, are exact up to roundings that vanish in the trace's own margin.
                norms.append(1.0 if abs(norm - 1) < 1e-13 else norm)
        return norms


RULES: dict[Any, tuple[str, Rule, bool]] = {}
"""By function: its name, its rule, and whether it works in place."""


def rule(*names: str, spaces: Sequence[Any] = NAMESPACES) -> Callable[[Rule], Rule]:
    """Register a rule for all of torch's spellings of these functions, in place or not.

    All of them must take their arguments in the same order; `spaces` leaves out those that do not.
    """

    def register(function: Rule) -> Rule:
        for name in names:
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
                    RULES.setdefault(key, (f"{space.__name__}.{spelling}", function, in_place))
            assert found, name
        return function

    return register


def apply(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one torch function, called on at least one traced tensor."""
    name, function, in_place = RULES.get(func, (describe(func), None, False))
    call = Call(func, name, args, kwargs, tracer)
    if function is None or kwargs.get("out") is not None:
        raise call.unknown("with out=" if function is not None else "")
    for value in leaves((args, kwargs)):
        if isinstance(value, Tensor) and not isinstance(value, Traced) and value.is_meta:
            raise call.unknown("on a tensor without numbers, made from the image by code that cannot be followed")
    in_place = in_place or bool(kwargs.get("inplace"))
    if not in_place:
        return function(call)
    target = args[0] if args else kwargs.get("input")
    if not isinstance(target, Traced):
        raise call.unknown("writing into a tensor that does not depend on the image")
    # On a copy: the original's numbers belong to other traced tensors too.
    facts = tracer.facts(target)
    scratch = Traced.make(tracer, target.value.clone(), facts)
    call.args = tuple(scratch if value is target else value for value in args)
    call.kwargs = {key: scratch if value is target else value for key, value in kwargs.items()}
    return tracer.replace(target, function(call))


def describe(func: Any) -> str:
    """A readable name of any function that torch passes on."""
    owner = getattr(func, "__self__", None)
    if inspect.isgetsetdescriptor(owner):
        return f"the attribute Tensor.{owner.__name__}"
    module = getattr(func, "__module__", None) or getattr(getattr(func, "__objclass__", None), "__name__", "torch")
    module = "Tensor" if module == "TensorBase" else module
    return f"{module}.{getattr(func, '__name__', func)}"


def sequence(outputs: Any) -> Sequence[Tensor]:
    """One output or several, as several."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
