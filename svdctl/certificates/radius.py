"""Certified radii: how far, in pixel units, an image can move in l2 before the answer could change.

The answer i of x in [0, 1]^n stays before j at all distances below
`(z^_i(x) - z^_j(x) - 2 sqrt(2) e(D0)) / (L_ij + sqrt(2) e1)`, z^ the computed logits, L_ij a Lipschitz constant of
`z_i - z_j`, `e(D) = e0 + e1 D` the rounding error at distance D from the grey image, and `D0 = sqrt(n) / 2`;
docs/theory.md, "Certified radius", has the proof.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from svdctl.certificates.error_bounds import INWARD, ValueBounds, outward
from svdctl.certificates.interpreter import differ_by_at_most, prove, require_same
from svdctl.certificates.lipschitz import LipschitzBound, grey_image
from svdctl.errors import DataError, ShapeError
from svdctl.spectral.exact_arithmetic import exact_arithmetic
from svdctl.spectral.rounding import norm_above, times, times_power, to_unit_size

RADII = (36 / 255, 72 / 255, 108 / 255, 255 / 255)
_DEPENDENT = "the network's logits of one image depend on the others of its batch; it has no certificates"


@dataclass(frozen=True)
class Certificates:
    """What was proved of a set of images."""

    radii: Tensor
    """`(N,)` float64 on the host, in pixel units; 0 where the answer is wrong or nothing is proved."""
    correct: Tensor
    """`(N,)` bool: whether the network's answer is the label."""

    @property
    def accuracy(self) -> float:
        return float(self.correct.double().mean())

    @property
    def mean_radius(self) -> float:
        """Return the average certified radius, wrong answers counted as 0."""
        return float(self.radii.mean())

    def certified_accuracy(self, radius: float) -> float:
        """Return the share of images whose answer is right and proved to stay at every distance up to `radius`."""
        return float((self.radii > radius).double().mean())

    def table(self, radii: Sequence[float] = RADII) -> dict[float, float]:
        """Return certified accuracy at each radius."""
        return {radius: self.certified_accuracy(radius) for radius in radii}

    def curve(self) -> tuple[Tensor, Tensor]:
        """Return certified accuracy against radius, see `certified_curve`."""
        return certified_curve(self.radii)


def certified_curve(radii: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of images with a larger certified radius, as a function of the radius.

    Args:
        radii: `(N,)`.

    Returns:
        Radii `(M,)`, ascending from 0, and shares `(M,)`: `y[i]` holds from `x[i]` to `x[i + 1]` (draw steps "post").
    """
    finite = radii[torch.isfinite(radii)].double()
    x = torch.cat((finite.new_zeros(1), finite)).unique()
    larger = len(radii) - torch.searchsorted(radii.double().sort().values, x, right=True)
    return x, larger.double() / max(len(radii), 1)


class Certifier:
    """Certifies the answers of a network; all that does not depend on the images is computed once, here.

    The claim is about the network as evaluated by `logits`: a frozen copy in `dtype`, without autocast, whatever
    precision it was trained in. At every call that copy, and what its code reaches besides, is compared with what was
    proved: a change is an error. In float64 the rounding term is negligible. In float32 it is honest and, for wide
    networks, often so large that nothing can be certified: see `rounding_bound`.

    The network is presumed to be a function as in `lipschitz_bound`. That the images of a batch take no part in one
    another's logits is tested here, on all images of batches of 3 and 9, and by `logits`, on three images of the first
    batch of each size; beyond that it is presumed.

    Args:
        model: from images in [0, 1] `(N, *input_shape)` to logits `(N, classes)`; normalisation is its own affair.
        input_shape: `(C, H, W)`.
        dtype: float64 or float32.
        tolerance: see `lipschitz_bound`.
        maxima: of layers by name, as of the run that trained them: where one is proved it is the bound of that layer,
            and bounds of the others are within 0.5 %; absent: within `tolerance`.

    Raises:
        ShapeError: what `lipschitz_bound` refuses, another dtype, an output that is not `(N, classes)`, or logits that
            depend on the other images of a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        input_shape: tuple[int, ...],
        *,
        dtype: torch.dtype = torch.float64,
        tolerance: float | None = None,
        maxima: Mapping[str, float] | None = None,
    ) -> None:
        if dtype not in (torch.float64, torch.float32):
            raise ShapeError(f"certificates are evaluated in float64 or float32, not {dtype}")
        self.dtype = dtype
        # Constants that the network makes in its forward pass are of the default dtype.
        self._default_dtype = torch.get_default_dtype()
        grey = grey_image(model, input_shape, dtype)
        self._unread: list[Callable[[], None]] | None = None
        """What `checks_at_the_end` leaves for the end; None: nothing is left."""
        with self._arithmetic():
            self.network, result = prove(model, grey, tolerance=tolerance, maxima=maxima)
            if result.output.ndim != 2 or result.output.shape[1] < 2:
                shape = tuple(result.output.shape)
                raise ShapeError(f"certificates need logits of shape (1, classes) for one image, not {shape}")
            self._proved, self._input_shape = result, tuple(input_shape)
            self.bound = LipschitzBound(result.bounds.lipschitz, result.contributions)
            self.rounding = result.bounds.error
            self.half_diagonal = math.sqrt(grey.numel()) / 2
            self._sizes: set[int] = set()
            generator = torch.Generator().manual_seed(2)
            for count in (3, 9):
                images = torch.rand((count, *input_shape), generator=generator, dtype=torch.float64).to(grey)
                _, check = self._batch_logits(images, range(count))
                check()
            self.pairwise = pairwise_constants(result.bounds, result.output.shape[1]).to(grey.device)

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        with ExitStack() as stack:
            for setting in (torch.inference_mode(False), torch.no_grad()):
                stack.enter_context(setting)
            direct = self.dtype == torch.float32
            stack.enter_context(exact_arithmetic(self._default_dtype, direct_convolutions=direct))
            yield

    @contextmanager
    def checks_at_the_end(self) -> Iterator[None]:
        """Let `logits` in the body compare as always, but read what it found when the body ends.

        So that no batch waits for a CUDA device. Logits of the body are good once it has ended without an error.

        Raises:
            ShapeError: what `logits` would have raised.
        """
        self._unread = []
        try:
            yield
            with self._arithmetic():
                for check in self._unread:
                    check()
        except BaseException:
            self._sizes.clear()  # not all of them were compared
            raise
        finally:
            self._unread = None

    def _later(self, check: Callable[[], None]) -> None:
        """Make a check, or leave it for the end of `checks_at_the_end`."""
        if self._unread is None:
            check()
        else:
            self._unread.append(check)

    def _batch_logits(self, images: Tensor, places: Iterable[int]) -> tuple[Tensor, Callable[[], None]]:
        """Return the logits of a batch, and what compares those at these places with those of the image alone.

        Raises:
            ShapeError: at once or by the comparison: the other images take part in them.
        """
        # The whole batch last, so that hooks which keep activations keep those of the batch.
        alone = [(place, self.network(images[place : place + 1].to(self.dtype, copy=True))) for place in places]
        # A copy: the network may write into its input.
        logits: Tensor = self.network(images.to(self.dtype, copy=True))
        if alone and len(logits) != len(images):
            raise ShapeError(_DEPENDENT)
        pairs = [(logits[place : place + 1].clone(), single) for place, single in alone]
        return logits, partial(self._require_independent, pairs)

    def _require_independent(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        for among_others, single in pairs:
            size = norm_above(single)
            # Where the proved rounding is far too large, a size that rounding does not reach in practice.
            allowed = min(
                2 * self.rounding(self.half_diagonal) + 1e-12 * size, math.sqrt(torch.finfo(self.dtype).eps) * size
            )
            if not differ_by_at_most(among_others, single, allowed):
                raise ShapeError(_DEPENDENT)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return logits `(N, classes)` in `dtype`, the ones that the certificates are about.

        Raises:
            ShapeError: images of another shape or of a finer precision, or a network that is not what was proved.
        """
        if images.dtype == torch.float64 and self.dtype != torch.float64:
            raise ShapeError("float64 images would be rounded by a float32 certifier; convert them first")
        if images.is_complex() or tuple(images.shape[1:]) != self._input_shape:
            raise ShapeError(
                f"the certificates are for real images of shape {self._input_shape}, not {tuple(images.shape[1:])} "
                f"({images.dtype})"
            )
        with self._arithmetic():
            self._later(partial(require_same, self._proved.compared(self.network)))
            count = len(images)
            places = {0, count // 2, count - 1} if count and count not in self._sizes else set()
            logits, check = self._batch_logits(images, sorted(places))
            self._later(check)
            self._sizes.add(count)
            self._later(partial(require_same, self._proved.compared(self.network)))
        return logits

    @torch.no_grad()
    def radii(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return certified l2 radii `(N,)` in float64, on the device of the logits.

        Args:
            logits: `(N, classes)` from `logits`, of images in [0, 1].
            labels: `(N,)`; an image that is answered otherwise has radius 0.
        """
        wide = logits.double()
        margins = wide.gather(1, labels[:, None]) - wide
        constants = self.pairwise[labels] + outward(math.sqrt(2) * self.rounding.slope)
        proved = margins * (1 - INWARD) - outward(2 * math.sqrt(2) * self.rounding(self.half_diagonal))
        radii = (proved / constants).nan_to_num(nan=0.0, posinf=math.inf)
        # The label's own column has margin 0.
        radii.scatter_(1, labels[:, None], math.inf)
        # Farther away a value inside of the network might overflow.
        farthest = max(self._proved.farthest - self.half_diagonal, 0.0)
        return radii.amin(1).clamp(0.0, farthest) * (1 - INWARD)

    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Certificates:
        """Certify batches of (images in [0, 1], labels).

        Raises:
            DataError: pixels outside of [0, 1], or no image at all.
        """
        radii, correct = [], []
        for images, labels in batches:
            if not bool(((images >= 0) & (images <= 1)).all()):
                raise DataError("certificates are for pixels in [0, 1]; give images as they are before normalisation")
            logits = self.logits(images)
            radii.append(self.radii(logits, labels))
            correct.append(logits.argmax(1) == labels)
        if not radii:
            raise DataError("there is no image to certify; give at least one batch")
        return Certificates(torch.cat(radii).cpu(), torch.cat(correct).cpu())


def pairwise_constants(bounds: ValueBounds, classes: int) -> Tensor:
    """Return Lipschitz constants `(classes, classes)` of differences of logits, by the last layer's rows if known."""
    constants = torch.full((classes, classes), math.sqrt(2) * bounds.lipschitz, dtype=torch.float64)
    known = None if bounds.readout is None else bounds.readout.rows()
    if bounds.readout is not None and known is not None:
        rows, error = known
        # Of unit size, so that no square underflows.
        unit, exponent = to_unit_size(rows.cpu())
        apart = torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist") * (1 + 2.0**-40)
        sizes = [times_power(size, exponent) + math.sqrt(2) * error for size in apart.flatten().tolist()]
        exact = torch.tensor([times(bounds.readout.lipschitz, size) for size in sizes], dtype=torch.float64)
        exact = exact.reshape(apart.shape)
        constants = torch.minimum(constants, exact)
    return constants * (1 + 1e-10)
