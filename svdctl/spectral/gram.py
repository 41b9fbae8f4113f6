"""The Gram matrices `A(w)^H A(w)` of a kernel at any frequencies, by trigonometric interpolation.

Along an axis of k taps the Gram matrix is a trigonometric polynomial of degree k - 1, so its values at 2k - 1
equispaced points determine it; a 3x3 kernel needs 13 products of matrices. docs/theory.md, "Interpolation" and
"Rounding of the Gram matrices", has the proofs. They presume `exact_arithmetic`.
"""

import hashlib
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from svdctl.errors import ShapeError
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.symbol import angles, gram, half_grid, phases

# For soundness; docs/theory.md, "Constants".
UNIT64 = 2.0**-53
SECOND_ORDER = 1.1
_WEIGHT_ROUNDINGS = 100
_QUOTIENT_ROUNDINGS = 8
# For speed.
_BLOCK = 32  # length of inner products in float32: a shorter one rounds less, and takes more time
_LEBESGUE_GRID = 128
_MOST_TAPS_ON_A_GRID = 512
_CHUNK_BYTES = 1 << 24
_WORTH_READING = 12
_KEPT_FROM = 256  # the smaller side of kernels whose products take much longer than to read all entries
_KEPT_BYTES = 1 << 30
_FEW_BYTES = 1 << 24  # of samples of which a CPU keeps the parts in both precisions, six times as much


class GramField:
    """Gram matrices `(F, G, n, n)` of a convolution's polyphase symbol on its smaller side.

    Axes of one tap are dropped, and the kernel is scaled by a power of two, so that no square can over- or underflow:
    `norm of the convolution = norm of the field * scale`. The field's norm is between `below` and `above`, which may be
    far from it. `gram_fields` makes several at once.

    Args:
        conv: the convolution.
        product: precision of the products `A^H A`; float32 takes a third of the time and is right to 1e-3 or so.
    """

    samples: Tensor
    """Gram matrices `(samples, G, n, n)` at `sample_points`, of precision `product`."""

    def __init__(self, conv: Convolution, product: torch.dtype = torch.float64) -> None:
        kernel = normal_form(conv)
        self._describe(kernel, product)
        _sample([self], [kernel])

    def _describe(self, kernel: Tensor, product: torch.dtype) -> None:
        """Keep what the shape of the normal form tells."""
        self.taps = tuple(kernel.shape[3:])
        self.groups = kernel.shape[0]
        self.rows = max(kernel.shape[1:3])
        self.side = min(kernel.shape[1:3])
        self.device = kernel.device
        self.product = product
        self.sample_points = sample_points(self.taps)

    def _take(self, batch: "_Batch", place: int, numbers: list[float]) -> None:
        """Keep what `_sample` found."""
        largest, trace, per_tap, self.frobenius = numbers
        if not math.isfinite(largest):
            raise ShapeError("the kernel holds values that are not finite; its norm has no bound")
        self.is_zero = largest == 0.0
        self.trace = trace
        self.scale = power_of_two(largest)
        self.samples = batch.samples[:, place]
        self._batch, self._place = batch, place
        self.above = per_tap * (1 + 1e-10)
        unit = torch.finfo(self.product).eps / 2
        rounded = unit if self.product != torch.float64 else 0.0
        angle = 2 * math.pi * (len(self.taps) + 5) * sum(k - 1 for k in self.taps)
        symbol_error = (4 * (math.prod(self.taps) + 8) + angle) * UNIT64 * per_tap + rounded * math.sqrt(trace)
        self._lebesgue = lebesgue(self.taps)
        self._weights_error = lebesgue(self.taps, error=True) - self._lebesgue
        product = product_roundings(self.rows, self.product) * unit * trace
        self._sample_error = 2 * math.sqrt(trace) * symbol_error + symbol_error**2 + product
        # The largest of some numbers that are not negative is at least the sum of their squares over their sum.
        least = max(self.frobenius * (1 - 1e-10) - math.sqrt(self.side) * self._sample_error, 0.0)
        most = trace * (1 + 1e-10) + self.side * self._sample_error
        self.below = 0.0 if self.is_zero else least / math.sqrt(most) * (1 - 1e-10)

    def error(self, dtype: torch.dtype) -> float:
        """Return how far `matrices(..., dtype)` can be from the true Gram matrices, in norm."""
        unit = torch.finfo(dtype).eps / 2
        interpolation = 2 * (len(self.sample_points) + 16) * unit * self.frobenius
        samples = self._lebesgue * (self._sample_error + interpolation)
        return SECOND_ORDER * (samples + self._weights_error * self.frobenius)

    def quotient_rounding(self, frobenius: float) -> float:
        """Return how far a Rayleigh quotient of a matrix of this Frobenius norm, in float64, can be off."""
        return _QUOTIENT_ROUNDINGS * (self.side + 8) * UNIT64 * frobenius

    def matrices(self, frequencies: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return Gram matrices `(F, G, n, n)` at frequencies `(F, d)` in radians, complex of precision `dtype`."""
        return self.weighted(torch.cat(interpolation(frequencies, self.taps), 1).to(self.device, dtype), dtype)

    def weighted(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """Return `matrices` at the frequencies of weights `(F, 2 samples)`, both of `interpolation` side by side."""
        values = weights @ self.parts(dtype)
        return torch.view_as_complex(values.reshape(len(weights), self.groups, self.side, self.side, 2))

    @property
    def batch_key(self) -> tuple[int, ...]:
        """Return what fields whose samples were computed in one stack have in common."""
        return (id(self._batch),)

    @staticmethod
    def samples_of(fields: "Sequence[GramField]") -> Tensor:
        """Return `samples` of fields of one stack, `(samples, fields, G, n, n)`."""
        samples, places = fields[0]._batch.samples, [field._place for field in fields]
        if places == list(range(samples.shape[1])):
            return samples
        return torch.stack([samples[:, place] for place in places], 1)

    def parts(self, dtype: torch.dtype) -> Tensor:
        """Return what the weights of `interpolation`, side by side, multiply, `(2 samples, G * n * n * 2)`.

        The real parts of the samples stand where a complex number has its real part, the imaginary ones below where it
        has its imaginary part, zeros elsewhere: one product gives complex numbers as they lie in memory.
        """
        return self._batch.parts(dtype)[:, :, self._place].flatten(2).flatten(0, 1)

    def chunk(self, dtype: torch.dtype) -> int:
        """Return how many frequencies to compute at once."""
        each = 6 * dtype.itemsize * self.groups * self.side**2
        # All samples are read for each chunk, so that a few at least should come of it.
        return max(1, _CHUNK_BYTES // each, min(_WORTH_READING, 8 * _CHUNK_BYTES // each))


class _Batch:
    """Samples of several fields of one shape.

    Args:
        samples: `(samples, L, G, n, n)`.
    """

    def __init__(self, samples: Tensor) -> None:
        self.samples = samples
        self._parts: dict[torch.dtype, Tensor] = {}

    def parts(self, dtype: torch.dtype) -> Tensor:
        """Return `GramField.parts` of all fields, `(2, samples, L, G, n, n, 2)`, made when first asked for."""
        if dtype not in self._parts:
            if self.samples.device.type == "cpu" and self.samples.nbytes > _FEW_BYTES:
                self._parts.clear()  # those of another precision are made again where they are needed
            parts = torch.zeros(2, *self.samples.shape, 2, dtype=dtype, device=self.samples.device)
            parts[0, ..., 0] = self.samples.real
            parts[1, ..., 1] = self.samples.imag
            self._parts[dtype] = parts
        return self._parts[dtype]


def gram_fields(convs: Sequence[Convolution], products: Sequence[torch.dtype]) -> list[GramField]:
    """Return the `GramField` of each convolution, those of one shape computed together, with one read for a device.

    Raises:
        ShapeError: a kernel is not finite.
    """
    kernels = [normal_form(conv) for conv in convs]
    fields = []
    for kernel, product in zip(kernels, products, strict=True):
        fields.append(GramField.__new__(GramField))
        fields[-1]._describe(kernel, product)
    _sample(fields, kernels)
    return fields


def operations_of_grams(conv: Convolution) -> int:
    """Return the real operations of the products of all samples of a kernel `(G, O, I, *k)`, taken as whole ones."""
    groups, out, channels, *taps = conv.polyphase_shape
    samples = (math.prod(2 * k - 1 for k in taps) + 1) // 2
    return 2 * (4 if samples > 1 else 1) * samples * groups * out * channels * min(out, channels)


def bytes_of_bound(shape: tuple[int, ...]) -> int:
    """Return about how much memory a bound of a kernel `(O, I, *k)` takes on a CPU: 0.3 GB of 512 channels and 3x3."""
    out, channels, *taps = shape
    side, samples = min(out, channels), (math.prod(2 * k - 1 for k in taps) + 1) // 2
    # The kernel in float64 and a copy; symbols with what they are made of, or Gram matrices, their parts and a batch.
    return 16 * math.prod(shape) + 16 * samples * side * max(2 * max(out, channels) + side, 5 * side)


def looks_flat(field: GramField, tolerance: float) -> bool:
    """Return whether a spectrum may be so flat that `ranges_by_flatness` is within about a tolerance of the norm."""
    # Cauchy and Schwarz: n F^2 = T^2 of a multiple of the identity.
    return field.side * field.frobenius**2 <= field.trace**2 * (1 + 4 * tolerance**2 + 1e-6)


def ranges_by_flatness(fields: Sequence[GramField]) -> list[tuple[float, float]]:
    """Return proved bounds from below and above of all eigenvalues of all Gram matrices of each field.

    They are close where all matrices of a field are nearly one multiple of I, and 0 at least.
    """
    middles, spreads = [], []
    for field in fields:
        samples = field.samples.to(torch.complex128)
        middle = samples.diagonal(dim1=-2, dim2=-1).real.mean()
        gap = samples - torch.diag_embed(middle.expand(field.side))
        middles.append(middle)
        spreads.append(_norms_above(gap.flatten(0, 1)).amax())
    read = on_host([torch.stack(pair) for pair in zip(middles, spreads, strict=True)])
    ranges = []
    for field, (middle, spread) in zip(fields, (pair.tolist() for pair in read), strict=True):
        reach = (lebesgue(field.taps) * spread + field.error(torch.float64)) * (1 + 1e-12)
        ranges.append((max((middle - reach) * (1 - 1e-12), 0.0), (middle + reach) * (1 + 1e-12)))
    return ranges


def _norms_above(matrices: Tensor) -> Tensor:
    """Return at least the norm of each matrix `(B, n, n)`: `||(E^H E)^2||_F^(1/4)`, roundings added; no host sync."""
    side = matrices.shape[-1]
    rounding = SECOND_ORDER * complex_roundings(side + 2) * UNIT64
    first = gram(matrices)
    second = gram(first)
    of_norms = 1 + (2 * side**2 + 16) * UNIT64
    frobenius = [torch.linalg.vector_norm(each.flatten(1), dim=1) * of_norms for each in (matrices, first, second)]
    square = (frobenius[2] + rounding * frobenius[1].square()).sqrt() + rounding * frobenius[0].square()
    # Products of smaller entries underflow.
    return square.sqrt().clamp_min(1e-60) * (1 + 1e-12)


def normal_form(conv: Convolution) -> Tensor:
    """Return the polyphase kernel without its axes of one tap."""
    kernel = conv.polyphase()
    return kernel.reshape(*kernel.shape[:3], *(k for k in kernel.shape[3:] if k > 1))


def _sample(fields: Sequence[GramField], kernels: Sequence[Tensor]) -> None:
    """Compute the samples and the error bounds of fields from their normal forms."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, (field, kernel) in enumerate(zip(fields, kernels, strict=True)):
        alike.setdefault((kernel.shape, kernel.dtype, field.device, field.product), []).append(place)
    batches: dict[int, tuple[_Batch, int]] = {}
    numbers: dict[int, Tensor] = {}
    for places in alike.values():
        chosen = [kernels[place] for place in places]
        stack = chosen[0][None] if len(places) == 1 else torch.stack(chosen)
        samples, rows = _kept_samples_of(stack, fields[places[0]].product)
        batch = _Batch(samples)
        batches |= {place: (batch, turn) for turn, place in enumerate(places)}
        numbers |= dict(zip(places, rows.unbind(), strict=True))
    read = on_host([numbers[place] for place in range(len(fields))])
    for place, field in enumerate(fields):
        field._take(*batches[place], read[place].tolist())


@contextmanager
def kept_grams() -> Iterator[None]:
    """Compute the Gram matrices of each large kernel on a CPU once inside, in all threads: equal entries share them.

    What is kept is told by the entries, not by the tensor, so that a kernel that is written meanwhile is computed anew.
    """
    with _kept_lock:
        _kept_inside.append(None)
    try:
        yield
    finally:
        with _kept_lock:
            _kept_inside.pop()
            if not _kept_inside:
                _kept.clear()


_kept_lock = threading.Lock()
_kept_inside: list[None] = []
"""One entry for each `kept_grams` that has been entered and not left."""
_kept: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}


def _kept_samples_of(kernels: Tensor, product: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return `_samples_of` kernels `(L, G, O, I, *k)` of any precision, kept where `kept_grams` says so."""
    if not _kept_inside or kernels.device.type != "cpu" or min(kernels.shape[2:4]) < _KEPT_FROM:
        return _samples_of(kernels, product)
    # Bit for bit: 0 and -0 may differ, equal entries of another precision do.
    entries = hashlib.blake2b(kernels.detach().flatten().view(torch.uint8).numpy().data).digest()
    key = (kernels.shape, kernels.dtype, product, entries)
    with _kept_lock:
        if key in _kept:
            return _kept[key]
    found = _samples_of(kernels, product)
    with _kept_lock:
        if _kept_inside:
            _kept[key] = found
            while len(_kept) > 1 and sum(samples.nbytes for samples, _ in _kept.values()) > _KEPT_BYTES:
                del _kept[next(iter(_kept))]
    return found


def _samples_of(kernels: Tensor, product: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return Gram matrices at the sample points, and the numbers that their error bounds are made of.

    Args:
        kernels: `(L, G, O, I, *k)`, of any precision.
        product: precision of the products.

    Returns:
        Matrices `(samples, L, G, n, n)` of the kernels over their powers of two; for each kernel `(L, 4)` its largest
        entry, not finite if any is not, and of the scaled one the largest trace, the sum of the taps' Frobenius norms,
        and the largest Frobenius norm of a sample.
    """
    layers, groups = kernels.shape[:2]
    # No step makes a further copy: the first linear layer of VGG takes 0.8 GB in float64.
    largest = torch.linalg.vector_norm(kernels.flatten(1), torch.inf, dim=1).double()
    # Exact, but for entries that become subnormal; the error bound covers them.
    factors = powers_of_two(largest).reshape(-1, *[1] * (kernels.ndim - 1))
    kernels = kernels.to(torch.float64, copy=True).div_(factors)
    taps = tuple(kernels.shape[4:])
    flat = kernels.flatten(0, 1)
    points = sample_points(taps)
    if taps:
        phase = _sample_phases(taps, flat.device)
        # Two real products: half the work of one complex product with a real kernel.
        values = (phase @ flat.reshape(-1, math.prod(taps)).T).unflatten(0, (2, len(points)))
        complete = torch.complex(*values).reshape(-1, *flat.shape[1:3])
        del values  # of a kernel of 512 channels and 3x3 taps 54 MB, as much as what is made of it
        symbols = complete.to(product.to_complex())
        del complete
    else:
        # A matrix is its own symbol, which is real: a quarter of the work.
        symbols = flat.to(product)
    grams = gram(symbols, _block(product)).to(product.to_complex()).unflatten(0, (len(points), layers, groups))
    del symbols
    trace = grams.diagonal(dim1=-2, dim2=-1).real.double().sum(-1).amax((0, 2))
    per_tap = torch.linalg.vector_norm(flat.flatten(3), dim=(1, 2)).sum(-1) if taps else flat.flatten(1).norm(dim=1)
    per_tap = per_tap.unflatten(0, (layers, groups))
    entries = torch.view_as_real(grams).flatten(3)
    frobenius = torch.linalg.vector_norm(entries, dim=3, dtype=torch.float64).amax((0, 2))
    return grams, torch.stack((largest, trace, per_tap.amax(1), frobenius), 1)


@lru_cache(maxsize=64)
def _sample_phases(taps: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the real and below them the imaginary parts of the phases at the sample points, `(2 samples, prod(k))`."""
    found = phases(sample_points(taps), taps, torch.empty(0, dtype=torch.float64))
    return torch.cat((found.real, found.imag)).to(device)


def on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors on the host, in float64 where they come from a device, after one read of each device."""
    found = list(tensors)
    by_device: dict[torch.device, dict[torch.dtype, list[int]]] = {}
    for place, tensor in enumerate(tensors):
        if tensor.device.type != "cpu":
            by_device.setdefault(tensor.device, {}).setdefault(tensor.dtype, []).append(place)
    for by_dtype in by_device.values():
        joined = [torch.cat([tensors[place].flatten() for place in places]).double() for places in by_dtype.values()]
        flat = (joined[0] if len(joined) == 1 else torch.cat(joined)).cpu()
        order = [place for places in by_dtype.values() for place in places]
        for place, part in zip(order, flat.split([tensors[place].numel() for place in order]), strict=True):
            found[place] = part.reshape(tensors[place].shape)
    return found


def interpolation(frequencies: Tensor, taps: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return weights `(F, samples)` of the samples' real and imaginary parts at frequencies `(F, d)`, float64."""
    if not taps:
        own = torch.ones(len(frequencies), 1, dtype=torch.float64)
        return own, torch.zeros_like(own)
    nodes = _nodes(taps)
    points = frequencies[:, nodes.axes]
    ratios = _dirichlet(torch.stack((points - nodes.angles, points + nodes.angles)), nodes.counts)
    first, *others = (ratios[..., chosen] for chosen in nodes.of_samples)
    for ratio in others:
        first *= ratio
    there, mirrored = first
    return (there + mirrored) * nodes.shares, there - mirrored


def power_of_two(value: float) -> float:
    """Return the largest power of two up to a positive number, 1 for 0."""
    return 2.0 ** (math.frexp(value)[1] - 1) if value > 0 else 1.0


def powers_of_two(values: Tensor) -> Tensor:
    """Return `power_of_two` of each value, exactly, without a read of the device."""
    return torch.where(values > 0, values / (2 * torch.frexp(values).mantissa), 1.0)


def complex_roundings(length: int) -> float:
    """Return the unit roundoffs by which a complex inner product, in any order, errs relative to `|x|.|y|`."""
    return 2 * math.sqrt(2) * length


def product_roundings(length: int, product: torch.dtype) -> float:
    """Return the unit roundoffs by which an inner product of the samples errs relative to `|x|.|y|`."""
    block = _block(product) or max(length, 1)
    return complex_roundings(min(length, block) + 2) + math.ceil(length / block)


def _block(product: torch.dtype) -> int | None:
    return _BLOCK if product == torch.float32 else None


def lebesgue(taps: tuple[int, ...], *, error: bool = False) -> float:
    """Return at least the Lebesgue constant of the interpolation; with `error`, of its weights as computed."""
    own = _WEIGHT_ROUNDINGS * UNIT64 if error else 0.0
    return math.prod(_lebesgue_of_axis(k) + own * k**2 for k in taps)


@lru_cache(maxsize=64)
def _lebesgue_of_axis(taps: int) -> float:
    """Return at least the largest sum of absolute weights along one axis of n = 2 taps - 1 points."""
    points = 2 * taps - 1
    if taps > _MOST_TAPS_ON_A_GRID:
        return 2 + (2 / math.pi) * math.log(points)
    step = 2 * math.pi / points / _LEBESGUE_GRID
    # In the middle of two grid points, so that none is a node, where the sum is 1.
    place = (torch.arange(_LEBESGUE_GRID, dtype=torch.float64)[:, None] + 0.5) * step
    gap = place - torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
    weights = torch.sin(points * gap / 2) / (points * torch.sin(gap / 2))
    return float(weights.abs().sum(1).max()) / (1 - (taps - 1) * step / 2) * (1 + 1e-10)


def sample_points(taps: tuple[int, ...]) -> Tensor:
    """Return the frequencies `(samples, d)` whose Gram matrices determine all others; 0 first."""
    return _samples(taps)[0]


@lru_cache(maxsize=64)
def _samples(taps: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the half grid `(samples, d)` that determines the Gram matrices, and half of how often each counts."""
    sizes = tuple(2 * k - 1 for k in taps)
    index, counts = half_grid(sizes)
    return angles(index, sizes), counts.double() / 2


@dataclass(frozen=True)
class _Nodes:
    """What the samples are made of: along an axis few angles are different, 5 of the 13 samples of 3x3 taps."""

    angles: Tensor
    """The different ones of all axes, one axis after the other."""
    axes: Tensor
    """Of each angle."""
    counts: Tensor
    """`2 taps - 1` of each angle's axis, float64."""
    of_samples: tuple[Tensor, ...]
    """For each axis, which of the angles each sample has."""
    shares: Tensor
    """Half of how often each sample counts."""


@lru_cache(maxsize=64)
def _nodes(taps: tuple[int, ...]) -> _Nodes:
    samples, shares = _samples(taps)
    found = [samples[:, axis].unique(return_inverse=True) for axis in range(len(taps))]
    lengths = torch.tensor([len(each) for each, _ in found])
    begins = (lengths.cumsum(0) - lengths).tolist()
    axes = torch.arange(len(taps)).repeat_interleave(lengths)
    counts = 2.0 * torch.tensor(taps, dtype=torch.float64)[axes] - 1
    of_samples = tuple(places + begin for (_, places), begin in zip(found, begins, strict=True))
    return _Nodes(torch.cat([each for each, _ in found]), axes, counts, of_samples, shares)


def _dirichlet(gap: Tensor, points: Tensor) -> Tensor:
    """Return `sin(n g / 2) / (n sin(g / 2))` of gaps `(..., m)` between points of n `(m,)` on a circle, float64."""
    # Half the gap to the nearest multiple of 2 pi: rounding is then small against the denominator.
    half = torch.sub(gap, (gap / (2 * math.pi)).round_(), alpha=2 * math.pi).div_(2)
    ratios = torch.sin(half * points).div_(torch.sin(half).mul_(points))
    return ratios.masked_fill_(half == 0, 1.0)
