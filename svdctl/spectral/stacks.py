"""Tensors of one shape, stacked, so that one operation serves all of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def stacked(*columns: Sequence[Tensor]) -> list[tuple[list[int], list[Tensor]]]:
    """Return rows of tensors in stacks: rows of the same shapes, dtypes and devices together.

    Args:
        columns: lists of the same length; a row has one tensor of each.

    Returns:
        For each kind of row, in the order of their first ones: the numbers of its rows, and a stack `(rows, *shape)`
        for each column. Of a single row the stacks are views of its tensors.
    """
    alike: dict[tuple[object, ...], list[int]] = {}
    for index, row in enumerate(zip(*columns, strict=True)):
        alike.setdefault(tuple((part.shape, part.dtype, part.device) for part in row), []).append(index)
    return [(rows, [_stack([column[row] for row in rows]) for column in columns]) for rows in alike.values()]


def in_stacks(work: Callable[..., tuple[Tensor, ...]], *columns: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Return what `work` gives for each row of tensors, called once for each kind of row.

    Args:
        work: takes a stack for each column, which it must not change, and returns stacks of as many rows.
        columns: as those of `stacked`.
    """
    found: dict[int, tuple[Tensor, ...]] = {}
    for rows, stacks in stacked(*columns):
        results = (result.unbind() for result in work(*stacks))
        found.update(zip(rows, zip(*results, strict=True), strict=True))
    return [found[row] for row in range(len(found))]


@torch.no_grad()
def multiply_(tensors: Sequence[Tensor], factors: Sequence[Tensor]) -> None:
    """Multiply each tensor by a number (0-d), in place, those of half precision in float32 and rounded once."""
    fine = [place for place, tensor in enumerate(tensors) if tensor.itemsize >= 4]
    coarse = [place for place, tensor in enumerate(tensors) if tensor.itemsize < 4]
    if fine:
        torch._foreach_mul_(
            [tensors[place] for place in fine], [factors[place].to(tensors[place].dtype) for place in fine]
        )
    if coarse:
        chosen = [tensors[place] for place in coarse]
        # The factor itself would be rounded, to 1 where it is near.
        wide = torch._foreach_mul([tensor.float() for tensor in chosen], [factors[place].float() for place in coarse])
        torch._foreach_copy_(chosen, wide)


def _stack(tensors: list[Tensor]) -> Tensor:
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)
