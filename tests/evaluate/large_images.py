"""Images of any size that are drawn from their numbers, and every metric of a small network on them.

    python -m tests.evaluate.large_images FOLDER COUNT SIDE SEVERITIES METRIC,...

prints the peak of the resident memory, in bytes, once all is imported, and at the end.
"""

import resource
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from svdctl.data.images import ImageData
from svdctl.data.npz import Npz
from svdctl.data.streamed_images import streamed_images
from svdctl.data.train_test import TrainTest
from svdctl.evaluate.auto_batch_size import batch_size_for
from svdctl.evaluate.evaluation_data import EvaluationData
from svdctl.evaluate.inference import Classifier
from svdctl.evaluate.metric import METRICS, MeasurementContext, Unfinished
from svdctl.utils.network_probe import Probe, probe_images
from tests.evaluate.small import make

CLASSES = 5


def drawn(rows: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Smooth images `(len(rows), *shape)` uint8, all different, whose mean level grows with `row % CLASSES`."""
    channels, height, width = shape
    images = torch.empty(len(rows), *shape, dtype=torch.uint8)
    for place, row in enumerate(rows.tolist()):
        generator = torch.Generator().manual_seed(row)
        coarse = torch.rand(1, channels, 6, 6, generator=generator) * 60 + 30 + 25 * (row % CLASSES)
        images[place] = nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0].byte()
    return images


def labels_of(count: int) -> Tensor:
    """Labels `(count,)`; every seventh is another one than its image shows."""
    rows = torch.arange(count)
    return torch.where(rows % 7 == 6, rows + 1, rows) % CLASSES


def parts(count: int, shape: tuple[int, int, int], *, streamed: bool) -> ImageData:
    """The data set, in memory or read when it is needed."""
    names = tuple(f"class {number}" for number in range(CLASSES))
    rows = torch.arange(count)
    images = streamed_images(lambda rows: drawn(rows, shape), count, shape) if streamed else drawn(rows, shape)
    return ImageData(images, labels_of(count), names)


class Levels(nn.Module):
    """A convolution, ReLU, pooling, and logits of the mean level, which is what tells the classes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, 8, 3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(8, CLASSES)
        with torch.no_grad():
            self.convolution.weight.fill_(1 / (9 * channels))
            self.convolution.bias.zero_()
            # The nearest of levels 60, 85, ...: twice the product with the level less its square.
            levels = (60 + 25 * torch.arange(CLASSES)) / 255
            self.linear.weight.copy_((40 * levels / 8)[:, None].expand(-1, 8))
            self.linear.bias.copy_(-20 * levels**2)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(self.pool(self.convolution(pixels).relu()).flatten(1))


def context(folder: Path, data: ImageData, model: nn.Module, **flags: Any) -> MeasurementContext:
    """What metrics measure with, the batch size included that follows from the images."""
    folder.mkdir(exist_ok=True)
    test = EvaluationData(Npz(path=Path("none")), TrainTest(data, data))
    config = make(accelerator="cpu", **flags)
    config = config.model_copy(update={"batch_size": config.batch_size or batch_size_for(data.image_shape)})
    classifier = Classifier(model, config, print)
    images = probe_images(data.images)
    probe = Probe.of(images, classifier.answers(images))
    origin = cast("Any", SimpleNamespace(weights="weights", training=None, trained_on=None, maxima=None))
    return MeasurementContext(classifier, origin, test, config, probe, folder, lambda *_: None, print)


def measured(setting: MeasurementContext, kind: str) -> dict[str, Any]:
    """The figures of one metric."""
    metric = METRICS.get(kind)
    settings = metric.settings(setting.config, setting.data.data)
    found = metric.measure(setting, settings, Unfinished(setting.folder / f"unfinished-{kind}", {}))
    assert not isinstance(found, str)
    return dict(found.results)


def peak() -> int:
    """Return the largest resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(folder: str, count: str, side: str, severities: str, metrics: str) -> None:
    shape = (3, int(side), int(side))
    data = parts(int(count), shape, streamed=True)
    settings = {"severities": [int(number) for number in severities]}
    setting = context(Path(folder), data, Levels(3), corruptions=["all"], **settings)
    begin = peak()
    for kind in metrics.split(","):
        measured(setting, kind)
    print(begin, peak())


if __name__ == "__main__":
    main(*sys.argv[1:])
