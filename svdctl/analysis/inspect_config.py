"""What `svdctl inspect-spectrum` is asked for."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from svdctl.config.base import Config


class InspectConfig(Config):
    """Files, what to compute of them, and what to show."""

    files: Annotated[tuple[Path, ...], Field(min_length=1)]
    """Files of weights, or folders."""
    model: str | None = None
    """`torchvision:NAME`, `timm:NAME` or `package.module:factory`.

    Absent: an svdctl checkpoint's own network, or the bare file.
    """
    lenient: bool = False
    """Fill the network with what fits of the file, and name the rest."""
    input_size: tuple[PositiveInt, ...] | None = None
    """`(H, W)` or `(C, H, W)`, or one number for all spatial axes."""
    layers: tuple[str, ...] = ("*",)
    """Patterns of layer names."""
    gouk_transforms: bool = False
    """The checkpoint of the paper's code was trained with mean and standard deviation 0.5. Its file does not tell."""
    key: str | None = None
    """Which weights of a file that has several sets of them, as `ema`."""
    tolerance: Annotated[float, Field(ge=1e-6, le=1)] | None = None
    """Wanted slack of the proved bounds. Absent: 0.02; of a checkpoint of svdctl 0.001 up to 128
    channels and 0.005 above, as in its certificates."""
    accuracy: Literal["full", "fast"] = "full"
    """`fast`: values to 1e-3 of the largest."""
    bounds_only: bool = False
    """Prove bounds and nothing else, in a small part of the time."""
    sort: Literal["network", "bound", "largest", "condition", "name"] = "network"
    """Order of the layers: the network's, by name, or the largest figure first."""
    every: bool = False
    """Show every singular value."""
    top: PositiveInt | None = None
    """Show this many of each layer."""
    format: Literal["table", "json", "csv"] = "table"
    """Form of the result on stdout."""
    plot: Path | None = None
    """Where to draw the spectra."""
    html: Path | None = None
    """Where to write the spectra as a page."""
    max_sigma: PositiveFloat | None = None
    """A gate: fail when a layer with weights, BatchNorm apart, is not proved to be at most this."""
    batchnorm_max: PositiveFloat | None = None
    """A gate: fail when a BatchNorm is not proved to be at most this."""
    excepted: tuple[str, ...] = ()
    """Patterns of names of layers that a gate lets pass although they are not proved."""

    @field_validator("input_size", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if not re.fullmatch(r"[0-9]{1,6}(x[0-9]{1,6}){0,3}", value):
            raise ValueError(f"`input_size = {value}`: write it as 32, 32x32 or 3x224x224")
        return tuple(int(part) for part in value.split("x"))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.every and self.top is not None:
            raise ValueError("`every` and `top` exclude each other; give one of them")
        needing = {"every": self.every, "top": self.top is not None, "plot": self.plot is not None}
        needing |= {f"sort = {key}": self.sort == key for key in ("largest", "condition")}
        if self.bounds_only and any(needing.values()):
            asked = next(key for key, is_asked in needing.items() if is_asked)
            raise ValueError(f"`{asked}` needs singular values, and `bounds_only` computes none; leave one out")
        if self.excepted and not self.has_gate:
            raise ValueError("`excepted` names layers that a gate lets pass; add `max_sigma` or `batchnorm_max`")
        if self.lenient and self.model is None:
            raise ValueError("`lenient` is for weights of the network of `model`; add it, or leave `lenient` out")
        return self

    @property
    def needs_values(self) -> bool:
        """Return whether singular values are asked for, not only whether layers pass a gate."""
        drawn = self.plot is not None or self.html is not None
        shown = self.every or self.top is not None or drawn or self.format != "table"
        return shown or not self.has_gate or self.sort in ("largest", "condition")

    @property
    def has_gate(self) -> bool:
        """Return whether layers are held against a maximum."""
        return self.max_sigma is not None or self.batchnorm_max is not None
