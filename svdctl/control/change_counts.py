"""How often control changed each layer: counted on the device, kept in checkpoints, read when it is told."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from svdctl.errors import UsageError

_MOST = 2**53
"""What no count reaches."""


@dataclass(frozen=True)
class Applications:
    """How often something was applied to layers, and which it changed."""

    applied: int = 0
    changed: dict[str, int] = field(default_factory=dict)
    """Applications that changed a layer, by the names of all layers."""

    @property
    def layers(self) -> int:
        """Return the number of layers that were changed at least once."""
        return sum(count > 0 for count in self.changed.values())


@dataclass(frozen=True)
class Changes:
    """What control has changed so far.

    A layer counts where it was scaled by another number than 1, clipped or assigned. What keeps frames orthonormal, a
    penalty, and layers that keep themselves within their maximum are not counted.
    """

    since: int = 0
    """Step after which it is counted; above 0 where an older version made the steps before."""
    control: Applications = Applications()
    """Of the control method."""
    batchnorm: Applications = Applications()
    """Of the limit on BatchNorm."""
    proofs: dict[str, int] = field(default_factory=dict)
    """Proofs and seals that scaled a layer, by the names of all layers and limited BatchNorm."""

    @property
    def is_none(self) -> bool:
        """Return whether nothing was changed since the first step."""
        counts = (*self.control.changed.values(), *self.batchnorm.changed.values(), *self.proofs.values())
        return not self.since and not any(counts)

    def state(self) -> dict[str, Any]:
        """Return it as a nested table of numbers."""
        return asdict(self)

    @classmethod
    def of_state(cls, state: Any) -> "Changes":
        """Return what `state` made.

        Raises:
            UsageError: it is something else, or says that more applications changed a layer than there were.
        """
        needed = {"since": int, "control": dict, "batchnorm": dict, "proofs": dict}
        if not isinstance(state, dict) or not all(type(state.get(key)) is kind for key, kind in needed.items()):
            raise UsageError("what is stored of the layers that control changed is no table of counts")
        tables = [state[key] for key in ("control", "batchnorm")]
        if not all(table.keys() == {"applied", "changed"} and type(table["changed"]) is dict for table in tables):
            raise UsageError("what is stored of the layers that control changed is no table of counts")
        by_layer = [table["changed"] for table in tables]
        counts = [state["since"], *(table["applied"] for table in tables), *state["proofs"].values()]
        for count in [*counts, *(count for table in by_layer for count in table.values())]:
            if type(count) is not int or not 0 <= count < _MOST:
                raise UsageError("a count of what control changed is no whole number from 0 to 2^53")
        if any(count > table["applied"] for table in tables for count in table["changed"].values()):
            raise UsageError("control is said to have changed a layer more often than it was applied")
        control, batchnorm = (Applications(**table) for table in tables)
        return cls(state["since"], control, batchnorm, state["proofs"])

    def require_names(self, like: "Changes") -> None:
        """Raise a UsageError if they are of other layers."""
        pairs = (
            (self.control.changed, like.control.changed),
            (self.batchnorm.changed, like.batchnorm.changed),
            (self.proofs, like.proofs),
        )
        if any(own.keys() != other.keys() for own, other in pairs):
            raise UsageError("the counts of what control changed are of other layers")


class ChangeCounter:
    """Counts the applications that change layers, without waiting for the device.

    Args:
        names: of the layers.
        device: where the numbers lie that say whether a layer changes.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = tuple(names)
        self._counts = torch.zeros(len(self.names) + 1, dtype=torch.int64, device=device)
        """Of each layer, then of all applications."""
        # Factors: one that changes nothing, and one that does.
        self._kept, self._changed = torch.ones((), device=device), torch.zeros((), device=device)
        self._always = torch.ones((), dtype=torch.bool, device=device)

    def count_(self, factors: Sequence[Sequence[Tensor]]) -> None:
        """Count an application that multiplies each layer's tensors by numbers (0-d); a CUDA graph can hold it."""
        device = next((factor.device for row in factors for factor in row), None)
        if device is None:
            return
        self._move_(device)
        # The last row changes each time, so that it counts applications.
        rows = [*factors, [self._changed]]
        widest = max(map(len, rows))
        changed = torch.stack([factor for row in rows for factor in (*row, *[self._kept] * (widest - len(row)))]) != 1
        self._counts += changed if widest == 1 else changed.view(len(rows), widest).any(1)

    def note_(self, changed: Sequence[bool | Tensor]) -> None:
        """Count an application of which it is known whether it changed each layer; tensors (0-d) are not read."""
        read = [bool(one) for one in changed if not isinstance(one, Tensor)]
        if len(read) == len(changed):
            self._counts += torch.tensor([*read, True]).to(self._counts.device)
            return
        self._move_(next(one.device for one in changed if isinstance(one, Tensor)))
        device = self._counts.device
        self._counts += torch.stack([*(torch.as_tensor(one, device=device) for one in changed), self._always])

    def _move_(self, device: torch.device) -> None:
        """Count on another device, where the layers were moved since."""
        if self._counts.device != device:
            for name in ("_counts", "_kept", "_changed", "_always"):
                setattr(self, name, getattr(self, name).to(device))

    def read(self) -> Applications:
        """Return the counts; waits for the device."""
        *changed, applied = self._counts.tolist()
        return Applications(applied, dict(zip(self.names, changed, strict=True)))

    def load_(self, counts: Applications) -> None:
        """Go on from counts of the same layers."""
        found = [*(counts.changed[name] for name in self.names), counts.applied]
        self._counts.copy_(torch.tensor(found, dtype=torch.int64))
