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


def _stack(tensors: list[Tensor]) -> Tensor:
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)
