"""The frames of the TT form that is nearest to a given kernel."""

import torch
from torch import Tensor


def fitted_frames(kernel: Tensor, rank_in: int, rank_out: int) -> tuple[Tensor, Tensor]:
    """Return frames `(I, rank_in)` and `(O, rank_out)` for a kernel `(O, I, *k)`.

    Truncated SVDs of both unfoldings, then two sweeps of alternating refinement (HOOI; De Lathauwer et al. 2000).
    """
    frame_in = _leading(kernel.movedim(1, 0), rank_in)
    frame_out = _leading(kernel, rank_out)
    for _ in range(2):
        frame_out = _leading(torch.einsum("oi...,ia->oa...", kernel, frame_in), rank_out)
        frame_in = _leading(torch.einsum("oi...,ob->ib...", kernel, frame_out), rank_in)
    return frame_in, frame_out


def _leading(tensor: Tensor, rank: int) -> Tensor:
    """Return the leading left singular vectors `(n, rank)` of the unfolding along the first axis."""
    unfolding = tensor.flatten(1)
    # A kernel of fewer columns than the rank has none to give beyond them: any frame that completes it will do.
    complete = rank > min(unfolding.shape)
    return torch.linalg.svd(unfolding, full_matrices=complete).U[:, :rank].contiguous()
