"""Norms of convolutions by power steps at the frequency where the norm is, which is found anew at each step.

For fixed unit vectors u, v the value `u^H A(w) v` is a trigonometric polynomial of w with as many coefficients as the
kernel has taps: where it is largest is read off a fine grid by a small product. Power steps there and such searches in
turn can only raise the value, and it is never above the norm (docs/theory.md, "Norms during training").
"""

import math

import torch
from torch import Tensor

from svdctl.spectral.convolution import Convolution
from svdctl.spectral.power_iteration import FactoredOperators, KernelPower
from svdctl.spectral.symbol import grid_product, phases, tap_positions

_ROUNDS = 2  # searches and power steps at each point, for each step on the grid
_FROM_GRID = 3  # points of the grid that are refined beside the one that is kept
_START = 15  # steps from the seed's vectors
_MOST_ENTRIES = 1 << 20  # of the phases of the fine grid
_LOCAL = 4  # points on either side of a point of the fine grid that divide it further, on each axis


class RefinedPower:
    """Power steps on a half grid, and at one frequency of any value; they never wait for the host.

    What is kept between steps, in tensors of the caller: `vectors` `(F * G + 1, I, 2)`, real pairs, one of each
    frequency of the grid and group, and in the last row that of the refined point; `place` `(d + 1,)`, its frequency in
    radians and its group. Whatever they hold is a valid start: they are normalised at each use.

    Args:
        conv: of the shape, precision and device.
    """

    def __init__(self, conv: Convolution) -> None:
        kernel = conv.polyphase()
        self._taps = taps = tuple(kernel.shape[3:])
        self._power = KernelPower(FactoredOperators.of([conv]))
        self._grid = self._power.frequencies.to(kernel)
        drawn = torch.randn(len(self._grid) * len(kernel) + 1, kernel.shape[2], 2, generator=_generator())
        self._seeds = (drawn / drawn.norm(dim=(1, 2), keepdim=True)).to(kernel)
        self._positions = tap_positions(taps).to(kernel)
        density = next((n for n in (8, 6, 4, 3) if math.prod((n * k) * k for k in taps) <= _MOST_ENTRIES), 2)
        sizes = [1 if k == 1 else density * k for k in taps]
        self._fine = self._frequencies([torch.arange(n).double() * (2 * math.pi / n) for n in sizes], kernel)
        near = torch.arange(-_LOCAL, _LOCAL + 1).double() / (2 * _LOCAL)
        self._near = self._frequencies([near * (2 * math.pi / n) if n > 1 else torch.zeros(1) for n in sizes], kernel)

    def _frequencies(self, axes: list[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
        """Return all frequencies `(N, d)` of a grid, and their phases `(prod(k), N)`."""
        found = grid_product([axis.double() for axis in axes])
        return found.to(like), phases(found, self._taps, like).T.contiguous()

    @torch.no_grad()
    def start(self, conv: Convolution) -> tuple[Tensor, Tensor]:
        """Return accurate vectors and place, of steps from those that a fixed seed gives."""
        vectors, place = self._seeds, self._seeds.new_zeros(len(self._taps) + 1)
        for _ in range(_START):
            vectors, place = self.step(conv, vectors, place)
        return vectors.clone(), place

    @torch.no_grad()
    def step(self, conv: Convolution, vectors: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors and place after a power step on the grid and some at the point.

        The point goes on from where it was or from the grid's largest values, whichever leads highest.
        """
        matrices, groups = self._matrices(conv), len(conv.kernel)
        vectors, place = self._unit(vectors), place.nan_to_num(0.0, 0.0, 0.0)
        on_grid, kept = vectors[:-1], vectors[-1]
        complex_vectors = torch.view_as_complex(on_grid.contiguous())[None, :, :, None]
        lengths, moved = self._power.step_each(FactoredOperators.of([conv]), complex_vectors)
        on_grid = torch.view_as_real(moved).view(on_grid.shape)
        best = lengths.flatten().topk(min(_FROM_GRID, lengths.numel())).indices
        frequency, group = best % len(self._grid), best // len(self._grid)
        chosen = torch.cat([self._group(place, groups)[None], group])
        points = torch.cat([kept[None], on_grid.index_select(0, frequency * groups + group)])
        places = torch.cat([place[None, :-1], self._grid.index_select(0, frequency)])
        if groups > 1:
            matrices = matrices.index_select(0, chosen)
        values, points, places = self._climbed(matrices, points, places)
        winner = values.argmax()[None]
        place = torch.cat([places.index_select(0, winner)[0], chosen.index_select(0, winner).to(places)])
        return torch.cat([on_grid, points.index_select(0, winner)]), place

    def _climbed(self, matrices: Tensor, points: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return values `(P,)`, unit vectors `(P, I, 2)` and frequencies `(P, d)` after searches and power steps.

        Args:
            matrices: of each point or of all, taps outermost, `(P, T O, I)` or `(1, T O, I)`.
            points, places: where they start.
        """
        phase = self._phases(places)
        for _ in range(_ROUNDS):
            images = self._images(matrices, points)
            forward = (images * phase[:, :, None]).sum(1)
            if len(self._fine[0]) > 1:
                coefficients = (images * forward.conj()[:, None]).sum(2)  # (P, T), of the polynomial, but for |forward|
                places = torch.zeros_like(places)
                for frequencies, fine in (self._fine, self._near):
                    highest = (coefficients @ fine).abs().argmax(1)
                    places = places + frequencies.index_select(0, highest)
                    coefficients = coefficients * fine.T.index_select(0, highest)
                phase = self._phases(places)
                forward = (images * phase[:, :, None]).sum(1)
            spread = torch.view_as_real(forward[:, None] * phase.conj()[:, :, None]).flatten(1, 2)
            back = _products(matrices.mT, spread)
            size = torch.linalg.vector_norm(back, dim=(1, 2), keepdim=True)
            points = torch.where(size > torch.finfo(size.dtype).tiny, back / size, points)
        values = (self._images(matrices, points) * phase[:, :, None]).sum(1)
        return torch.linalg.vector_norm(torch.view_as_real(values), dim=(1, 2)), points, places

    @torch.no_grad()
    def direction(self, conv: Convolution, vectors: Tensor, place: Tensor) -> Tensor:
        """Return the derivative `(G, O, I, *k)` of the value at the point by the kernel, its vectors fixed.

        Its inner product with the kernel is the value, at most the norm but for rounding.
        """
        groups, out, channels = len(conv.kernel), *conv.polyphase_shape[1:3]
        place = place.nan_to_num(0.0, 0.0, 0.0)
        group, point = self._group(place, groups)[None], self._unit(vectors)[-1]
        phase = self._phases(place[None, :-1])[0]
        images = self._images(self._matrices(conv).index_select(0, group), point[None])[0]
        left = (images * phase[:, None]).sum(0)
        size = torch.linalg.vector_norm(torch.view_as_real(left)).clamp_min(torch.finfo(point.dtype).tiny)
        turned = torch.view_as_real(left / size * phase.conj()[:, None]).flatten(0, 1)
        # Re(conj(left) phase v) = Re((left conj(phase))^* v)
        found = (turned @ point.T).view(-1, out, channels).permute(1, 2, 0).reshape(1, out, channels, *self._taps)
        whole = found.new_zeros(groups, *found.shape[1:]).index_copy_(0, group, found)
        return conv.from_polyphase(whole).kernel

    def _matrices(self, conv: Convolution) -> Tensor:
        """Return the polyphase kernel `(G, T O, I)`, taps outermost."""
        kernel = conv.polyphase()
        return kernel.flatten(3).permute(0, 3, 1, 2).reshape(len(kernel), -1, kernel.shape[2])

    def _images(self, matrices: Tensor, points: Tensor) -> Tensor:
        """Return the image `(P, T, O)`, complex, of each point by each tap."""
        found = _products(matrices, points).unflatten(1, (self._positions.shape[0], -1))
        return torch.view_as_complex(found.contiguous())

    def _phases(self, places: Tensor) -> Tensor:
        turn = places @ self._positions.T
        return torch.polar(torch.ones_like(turn), -turn)

    def _group(self, place: Tensor, groups: int) -> Tensor:
        return place[-1].round().clamp(0, groups - 1).long()

    def _unit(self, vectors: Tensor) -> Tensor:
        """Return unit vectors; those that are not finite or nearly zero are drawn from the seed again."""
        sizes = torch.linalg.vector_norm(vectors, dim=(1, 2), keepdim=True)
        usable = sizes.isfinite() & (sizes > math.sqrt(torch.finfo(sizes.dtype).tiny))
        return torch.where(usable, vectors / sizes, self._seeds)


def _products(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Return the products `(P, m, 2)` of matrices, one for each or one for all, with vectors `(P, n, 2)`."""
    if len(matrices) == len(vectors):
        return torch.bmm(matrices, vectors)
    beside = vectors.transpose(0, 1).flatten(1)
    return (matrices[0] @ beside).unflatten(1, (-1, 2)).transpose(0, 1)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
