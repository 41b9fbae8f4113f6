"""Logits of many images: batches that shrink when memory runs out, nothing waited for between them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from svdctl.config.evaluate import EvaluateConfig
from svdctl.data.batches import derived_seed, to_pixels
from svdctl.errors import ShapeError, UsageError
from svdctl.robustness.memory import Halving

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def choose_device(accelerator: str) -> torch.device:
    """The device that `--accelerator` means.

    Raises:
        UsageError: it is not to be had.
    """
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        return torch.device(next(kind for kind, there in have.items() if there))
    kind = "cuda" if accelerator == "gpu" and not have["mps"] else "mps" if accelerator == "gpu" else accelerator
    if not have[kind]:
        raise UsageError(f"--accelerator {accelerator} is not to be had here; use --accelerator auto or cpu")
    return torch.device(kind)


class Classifier:
    """A network on its device, fed with bytes.

    Args:
        model: takes pixels in [0, 1] `(N, 3, H, W)`; it is moved and put into evaluation mode.
        log: told when a batch did not fit.
    """

    def __init__(self, model: nn.Module, config: EvaluateConfig, log: Callable[[str], None]) -> None:
        self.device = choose_device(config.accelerator)
        self.precision = config.precision
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.halving = Halving(config.batch_size, log)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """No gradients, the precision asked for, parametrised weights computed once."""
        dtype = _AUTOCAST.get(self.precision)
        autocast = torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)
        with torch.inference_mode(), parametrize.cached(), autocast:
            yield

    def logits(self, images: Tensor, tell: Callable[[int], None] | None = None) -> Tensor:
        """Logits `(N, classes)` in float32 (float64 for a float64 network) on the CPU for uint8 images `(N, 3, H, W)`.

        Raises:
            ShapeError: the network does not take such images, or returns something else.
        """
        parts: list[Tensor] = []
        done = 0
        with self.ready():
            while done < len(images):
                part = images[done : done + self.halving.size]
                found = self.halving.run(lambda size, part=part: self._some(part[:size]))  # type: ignore[misc]
                parts.append(found)
                done += len(found)
                if tell is not None:
                    tell(done)
        return torch.cat(parts).cpu()

    def correct(self, images: Tensor, labels: Tensor) -> Tensor:
        """How many of uint8 images `(N, 3, H, W)` get their label, as a number on the device: no waiting for it."""
        total = torch.zeros((), dtype=torch.int64, device=self.device)
        done = 0
        with self.ready():
            while done < len(images):
                part, wanted = (both[done : done + self.halving.size] for both in (images, labels))
                found = self.halving.run(lambda size, part=part: self._some(part[:size]))  # type: ignore[misc]
                total += (found.argmax(1) == wanted[: len(found)].to(self.device, non_blocking=True)).sum()
                done += len(found)
        return total

    def _some(self, images: Tensor) -> Tensor:
        pixels = to_pixels(images.to(self.device, non_blocking=True)).contiguous(memory_format=torch.channels_last)
        logits = self.model(pixels)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
            what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ShapeError(f"the network returns {what} for {len(images)} images; it must return logits (N, classes)")
        return logits if logits.dtype == torch.float64 else logits.float()


def subset(count: int, examples: int | None, seed: int, what: str) -> Tensor:
    """Numbers of the images that are used, in order: all, or `examples` of them drawn from the seed."""
    if examples is None or examples >= count:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(derived_seed(seed, what))
    return torch.randperm(count, generator=generator)[:examples].sort().values
