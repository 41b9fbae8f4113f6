"""The images of an evaluation: which data set, what identifies it, and what is held out of it for calibration."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from svdctl.config.data_config import Data
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.config.train_config import TrainConfig
from svdctl.data.batches import derived_seed
from svdctl.data.data_source import at_place, describe, same_data, source_of
from svdctl.data.fingerprint import fingerprint, fingerprint_of_files
from svdctl.data.images import BLOCK, ImageData
from svdctl.data.split import stratified_split
from svdctl.data.streamed_images import is_streamed
from svdctl.data.train_test import TrainTest
from svdctl.errors import UsageError
from svdctl.evaluate.auto_batch_size import block_size_for
from svdctl.utils.content_hash import content_digest


def data_of(config: EvaluateConfig, trained_on: Data | None) -> Data | None:
    """Return the data to evaluate on: those asked for, else those of the training, `dataset_root` being their place.

    Data of the training's kind are those of the training at another place: settings that are not given stay, as sizes.

    Raises:
        UsageError: `dataset_root` for data that have no such place.
    """
    data = config.data or trained_on
    if data is None:
        return None
    source = source_of(data)
    if config.data is not None and trained_on is not None and trained_on.kind == data.kind:
        given = {*data.model_fields_set, *filter(None, [source.place])}
        data = trained_on.model_copy(update={name: getattr(data, name) for name in given})
    if config.dataset_root is not None and source.place is None:
        instead = "name their place with `data.path`" if source.takes_path else "leave it out"
        raise UsageError(f"`dataset_root` is where CIFAR lies; the data are {describe(data)}, {instead}")
    return at_place(data, config.dataset_root)


@dataclass(frozen=True)
class EvaluationData:
    """A data set, loaded."""

    data: Data
    parts: TrainTest

    @property
    def test(self) -> ImageData:
        """Return the images that figures are about."""
        return self.parts.test

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Return what a protocol says of the data: kind, count, and the fingerprint of the test part."""
        return {**self._about, "fingerprint": fingerprint(self.test)}

    @property
    def identity_before(self) -> dict[str, Any]:
        """Return the same as it stands in results without a checksum."""
        return {**self._about, "sha256": self.sha256}

    @property
    def _about(self) -> dict[str, Any]:
        return {"kind": self.data.kind, "part": "test", "count": len(self.test)}

    @cached_property
    def sha256(self) -> str:
        """Return the hash of the test images and labels; states of attacks are bound to it.

        Of files that are read when they are needed it is their fingerprint: no results of before are of such images.
        """
        images: Any = self.test.images
        if self.test.files is not None and not isinstance(images, Tensor):
            return fingerprint(self.test)
        if is_streamed(self.test.images) and (found := fingerprint_of_files(self.test)) is not None:
            return found  # all images need not be read for it
        tensors = (self.test.images, self.test.labels)
        block = block_size_for(self.test.image_shape, BLOCK)
        # In blocks, of which those that are streamed are read one at a time; the hash is that of the whole.
        return content_digest(*(p for t in tensors for p in (repr((tuple(t.shape), t.dtype)), *t.split(block))))


@dataclass(frozen=True)
class HeldOut:
    """Images that a temperature is fitted on, and the test images that it is judged by."""

    fit: ImageData
    judge: torch.Tensor
    """Numbers of test images."""
    text: str


def leaks(dataset: EvaluationData, trained_on: Mapping[str, str] | None) -> bool:
    """Return whether test images may be among those of the training: the test part is not the one beside them then."""
    return trained_on is not None and _differs(dataset.parts.test, trained_on.get("test"))


def _as_trained(dataset: EvaluationData, training: TrainConfig, trained_on: Mapping[str, str] | None) -> bool:
    """Return whether the parts are those of the training, wherever they lie; of older runs, by their settings."""
    if trained_on is None:
        return same_data(training.data) == same_data(dataset.data)
    return not any(_differs(part, trained_on.get(name)) for name, part in dataset.parts.parts().items())


def _differs(part: ImageData, known: str | None) -> bool:
    """Return whether a part is not the one with a known fingerprint, or none is known."""
    return fingerprint(part, like=known) != known


def held_out(
    dataset: EvaluationData, training: TrainConfig | None, trained_on: Mapping[str, str] | None, seed: int
) -> HeldOut:
    """Return the images that the run kept for validation; where it kept none or of other data, half of the test set."""
    if (
        training is not None
        and training.evaluation.select == "validation"
        and _as_trained(dataset, training, trained_on)
    ):
        if (own := dataset.parts.validation) is not None:
            text = f"the {len(own):,} images of the data set's own validation part"
            return HeldOut(own, torch.arange(len(dataset.test)), text)
        share = training.evaluation.validation_share
        _, part = stratified_split(dataset.parts.train, share, derived_seed(training.seed, "validation"))
        text = f"the {len(part):,} training images that the run kept for validation"
        return HeldOut(part, torch.arange(len(dataset.test)), text)
    generator = torch.Generator().manual_seed(derived_seed(seed, "temperature"))
    order = torch.randperm(len(dataset.test), generator=generator)
    half = len(order) // 2
    text = f"{half:,} test images drawn from the seed; the figure is that of the other {len(order) - half:,}"
    return HeldOut(dataset.test.select(order[:half].sort().values), order[half:].sort().values, text)
