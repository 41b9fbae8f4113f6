"""Singular values of a network before its training, in the run folder: computed once, however often it is resumed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from svdctl.errors import FileError
from svdctl.utils.atomic_write import write_atomically
from svdctl.utils.content_hash import json_digest
from svdctl.utils.files import read_json

FILE = "starting_spectrum.json"
"""File of a run folder with the singular values of each layer before the first step."""

_LARGEST = 1e40
"""More than any value of a network whose weights are float32; beyond it matplotlib fails to draw an axis."""


class _StartingSpectrum(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["svdctl.starting_spectrum"]
    version: Literal[1]
    network: str
    """`starting_hash` of the network that they are of."""
    values: dict[str, list[Annotated[float, Field(ge=0, le=_LARGEST)]]]
    """Of each layer by name, descending, as `spectra` returns them."""
    sha256: str
    """Over all the others."""


def write_starting_spectrum(folder: Path, network: str, values: Mapping[str, Tensor]) -> None:
    """Write the singular values of a network before its training into its run folder, unless one is not finite.

    Args:
        folder: of the run.
        network: `starting_hash` of the run.
        values: of each layer by name, `(N,)`, descending.

    Raises:
        OSError: they cannot be written.
    """
    if not all(bool(own.isfinite().all()) for own in values.values()):
        return
    contents: dict[str, Any] = {
        "format": "svdctl.starting_spectrum",
        "version": 1,
        "network": network,
        "values": {name: own.tolist() for name, own in values.items()},
    }
    write_atomically(folder / FILE, json.dumps({**contents, "sha256": json_digest(contents)}) + "\n")


def read_starting_spectrum(folder: Path, network: str) -> dict[str, Tensor] | None:
    """Return the singular values in a run folder; None: there are none, or they are damaged or of another network.

    Args:
        folder: of the run.
        network: `starting_hash` of the run.

    Returns:
        Values by the layer's name, `(N,)`, float64.
    """
    try:
        found = _StartingSpectrum.model_validate(read_json(folder / FILE))
    except (FileError, ValidationError):
        return None
    if found.network != network or found.sha256 != json_digest(found.model_dump(exclude={"sha256"})):
        return None
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.values.items()}
