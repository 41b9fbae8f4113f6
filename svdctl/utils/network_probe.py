"""What a network answers to fixed images: tells networks of equal tensors and other forward passes apart."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from svdctl.utils.content_hash import content_digest, json_digest

SAME_NETWORK = 1e-3
"""Largest difference of two answers of one network, relative to the spread of an image's logits: devices and numbers of
threads round a hundred times more finely in float32."""
_DIGITS = 6
_ROUNDING = 1e-5
"""Of float32, relative to what all logits of an image may have in common."""
_FAR_BELOW = 0.05
"""Share of the largest logit of all images."""
_OWN = 4
"""Images of the data, and as many drawn ones."""


def probe_images(images: Tensor) -> Tensor:
    """Return the first of some images `(N, C, H, W)` uint8, and drawn ones of their shape: noise, and smooth noise."""
    generator = torch.Generator().manual_seed(0)
    shape = images.shape[1:]
    noise = torch.randint(0, 256, (2, *shape), generator=generator, dtype=torch.uint8)
    coarse = torch.rand(2, shape[0], 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=tuple(shape[1:]), mode="bilinear", align_corners=False)
    return torch.cat([images[:_OWN].cpu(), noise, (smooth * 255).to(torch.uint8)])


def same_answers(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Return whether logits `(N, K)` differ by no more than a share of each row's spread.

    Rows whose spread is far below the largest one count as a part of that, for networks that compute in 16 bits.
    """
    if first.shape != second.shape:
        return False
    both = torch.stack([first, second]).double().nan_to_num()
    spread = (both - both.mean(2, keepdim=True)).abs().amax((0, 2))
    allowed = tolerance * torch.maximum(spread, _FAR_BELOW * spread.amax()) + _ROUNDING * both.abs().amax()
    return bool(((both[0] - both[1]).abs().amax(1) <= allowed).all())


class Probe(BaseModel):
    """The answers of one network."""

    model_config = ConfigDict(frozen=True)

    images: str
    """SHA-256 of the images."""
    logits: tuple[tuple[float, ...], ...]
    """A row for each image, to six digits; 0 for what is not finite."""

    @classmethod
    def of(cls, images: Tensor, logits: Tensor) -> Self:
        """Return the probe of images `(N, C, H, W)` uint8 and logits `(N, K)`."""
        rows = logits.double().cpu().nan_to_num(0.0, 0.0, 0.0).tolist()
        rounded = tuple(tuple(float(f"{value:.{_DIGITS}g}") for value in row) for row in rows)
        return cls(images=content_digest(f"{list(images.shape)}", images), logits=rounded)

    @property
    def key(self) -> str:
        """Return SHA-256 of all of it."""
        return json_digest(self.model_dump(mode="json"), compact=False)

    def contradicts(self, other: "Probe") -> bool:
        """Return whether both are answers to the same images, and not those of one network."""
        if self.images != other.images:
            return False
        own, others = (torch.tensor(probe.logits, dtype=torch.float64) for probe in (self, other))
        return not same_answers(own, others, SAME_NETWORK)


def read_probes(contents: object) -> dict[str, Probe]:
    """Return the probes of a file by their keys; those that are not as they were written are left out."""
    probes = {}
    for key, value in contents.items() if isinstance(contents, Mapping) else ():
        with suppress(ValidationError):
            if (probe := Probe.model_validate(value)).key == key:
                probes[key] = probe
    return probes
