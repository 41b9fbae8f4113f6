"""Logits of many images: batches that shrink when memory runs out, nothing waited for between them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.data.batches import to_pixels
from svdctl.data.streamed_images import to_device
from svdctl.errors import CheckpointError, EvaluationError, ShapeError, UsageError
from svdctl.evaluate.auto_batch_size import MOST, AutoBatchSize, blocks_in_memory
from svdctl.spectral.exact_arithmetic import exact_arithmetic
from svdctl.utils.network_probe import same_answers

_SAME_IMAGE = 1e-2
"""Largest difference of two answers to one image, relative to the largest logit; networks may compute in 16 bits."""
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def choose_device(accelerator: str) -> torch.device:
    """Return the device that `accelerator` means.

    Raises:
        UsageError: it is not to be had.
    """
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        return torch.device(next(kind for kind, there in have.items() if there))
    kind = "cuda" if accelerator == "gpu" and not have["mps"] else "mps" if accelerator == "gpu" else accelerator
    if not have[kind]:
        raise UsageError(f"`accelerator = {accelerator}` is not to be had here; use `accelerator = auto` or cpu")
    return torch.device(kind)


class Classifier:
    """A network on its device, fed with bytes.

    Args:
        model: takes pixels in [0, 1] `(N, 3, H, W)`; it is moved and put into evaluation mode.
        log: takes a sentence when a batch did not fit.
    """

    def __init__(self, model: nn.Module, config: EvaluateConfig, log: Callable[[str], None]) -> None:
        self.device = choose_device(config.accelerator)
        self.precision = config.precision
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.halving = AutoBatchSize(config.batch_size or MOST, log)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Run the body without gradients, at the configured precision; parametrised weights are computed once."""
        dtype = _AUTOCAST.get(self.precision)
        autocast = torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)
        with torch.inference_mode(), parametrize.cached(), autocast:
            yield

    def logits(self, images: Tensor, tell: Callable[[int], None] | None = None) -> Tensor:
        """Return logits `(N, classes)` of uint8 images `(N, 3, H, W)` on the CPU, float32 or the network's float64.

        Raises:
            ShapeError: the network does not take such images, or returns something else.
            EvaluationError: logits that are not finite.
        """
        outputs = self.outputs(images, tell)
        check_finite(int((~outputs.isfinite()).any(1).sum()), len(outputs))
        return outputs

    def answers(self, images: Tensor) -> Tensor:
        """Return the same in full precision, finite or not, for a few images, each of which has one answer.

        Raises:
            ShapeError: as `logits`.
            CheckpointError: the answer to an image is random, or depends on those beside it.
        """
        precision, self.precision = self.precision, "32"
        try:
            # TF32 differs from other devices. On the CPU nothing is to be switched off, and convolutions stay fast.
            with exact_arithmetic(torch.get_default_dtype()) if self.device.type == "cuda" else nullcontext():
                together, again = self.outputs(images), self.outputs(images)
                singly = torch.cat([self.outputs(image) for image in images.split(1)])
        finally:
            self.precision = precision
        if not same_answers(together, again, _SAME_IMAGE):
            raise CheckpointError(
                "the network gives the same images other logits the second time, so that no figure of it can be "
                "measured twice; switch off what is random in its forward pass (dropout or noise outside of training), "
                "and what it changes in itself"
            )
        if not same_answers(together, singly, _SAME_IMAGE):
            raise CheckpointError(
                "the network's logits of an image depend on the images beside it in the batch, so that figures of "
                "single images mean nothing; evaluate it with the statistics of its training (BatchNorm with "
                "track_running_stats)"
            )
        return together

    def outputs(self, images: Tensor, tell: Callable[[int], None] | None = None) -> Tensor:
        """Return what `logits` checks, unchecked."""
        parts: list[Tensor] = []
        with self.ready():
            for part, found in self._parts(images):
                parts.append(found)
                if tell is not None:
                    tell(part.stop)
        return torch.cat(parts).cpu()

    def correct(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return how many uint8 images `(N, 3, H, W)` get their label, and how many logits that are not finite: `(2,)`.

        Both numbers are on the device: no waiting for them.
        """
        total = torch.zeros(2, dtype=torch.int64, device=self.device)
        with self.ready():
            for part, found in self._parts(images):
                right = found.argmax(1) == labels[part].to(self.device, non_blocking=True)
                total += torch.stack([right.sum(), (~found.isfinite()).any(1).sum()])
        return total

    def _parts(self, images: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for before, block in blocks_in_memory(images):
            parts = self.halving.parts(len(block), partial(self._part, block), self.device)
            yield from ((slice(before + part.start, before + part.stop), found) for part, found in parts)

    def _part(self, block: Tensor, part: slice) -> Tensor:
        images = block[part]
        pixels = to_pixels(to_device(images, self.device)).contiguous(memory_format=torch.channels_last)
        return checked_outputs(self.model(pixels), len(images))


def checked_outputs(outputs: Any, count: int) -> Tensor:
    """Return what a network made of `count` images, if it is logits `(N, classes)`, as float32 or float64.

    Raises:
        ShapeError: it is something else.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != count:
        what = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ShapeError(f"the network returns {what} for {count} images; it must return logits (N, classes)")
    if outputs.layout != torch.strided:
        raise ShapeError(f"the network returns a tensor of {outputs.layout}; it must return a dense one")
    if outputs.is_complex():
        raise ShapeError("the network returns complex numbers; it must return real logits (N, classes)")
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def check_finite(broken: int, count: int) -> None:
    """Refuse figures of logits that are no numbers: `broken` of `count` images.

    Raises:
        EvaluationError: there are such.
    """
    if broken:
        raise EvaluationError(
            f"the network's logits are not finite for {broken} of {count} images; its weights are unusable"
        )


def subset(count: int, examples: int | None, seed: int) -> Tensor:
    """Return the numbers of the images that are used, in order: all, or `examples` of them drawn from the seed."""
    if examples is None or examples >= count:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:examples].sort().values
