"""Messages between the processes of a run; a process alone sends nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    # It takes torchmetrics, torchvision and matplotlib with it, several seconds that a library must not take.
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Group:
    """All processes of the run, seen from one of them.

    Every method but `alone` is called by all processes together, in the same order.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where messages lie: NCCL sends from GPUs only."""

    @classmethod
    def of(cls, fabric: "Fabric") -> "Group":
        """Return the processes that were launched."""
        return cls(fabric.global_rank, fabric.world_size, fabric.device)

    @property
    def alone(self) -> bool:
        return self.world == 1

    def summed_(self, values: Tensor) -> Tensor:
        """Add up `values`, on `device`, over all processes, in place; the same bits everywhere."""
        if not self.alone:
            dist.all_reduce(values)
        return values

    def gathered(self, value: Any) -> list[Any]:
        """Return the value of every process, in the order of ranks; what is sent is pickled, so keep it small."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    @torch.no_grad()
    def spread_(self, tensors: Mapping[int, Sequence[Tensor]]) -> None:
        """Give every process the tensors of their owners, bit for bit, in place.

        Args:
            tensors: by the owner's rank; number, shapes and dtypes are the same in every process.
        """
        if self.alone:
            return
        parcels = []
        for owner, owned in sorted(tensors.items()):
            if not owned:
                continue
            # One message an owner, all of them under way at once.
            parcel = torch.cat([_bytes(tensor).to(self.device) for tensor in owned])
            parcels.append((owner, owned, parcel, dist.broadcast(parcel, owner, async_op=True)))
        for owner, owned, parcel, work in parcels:
            assert work is not None
            work.wait()
            if owner == self.rank:
                continue
            for tensor, part in zip(owned, parcel.split([t.numel() * t.element_size() for t in owned]), strict=True):
                # A copy, because a view of another dtype needs a whole number of its elements before it.
                tensor.copy_(part.clone().view(tensor.dtype).reshape(tensor.shape))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
