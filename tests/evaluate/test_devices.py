"""What is measured on a GPU is what is measured on the CPU; sizes of passes come from memory, images are sent ahead."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from svdctl.data.images import ImageData
from svdctl.data.npz import Npz
from svdctl.data.streamed_images import made_ahead
from svdctl.data.train_test import TrainTest
from svdctl.evaluate import auto_batch_size
from svdctl.evaluate.auto_batch_size import AutoBatchSize
from svdctl.evaluate.corruptions.corruption_functions import corrupt
from svdctl.evaluate.evaluation_data import EvaluationData
from svdctl.evaluate.inference import Classifier
from svdctl.evaluate.metric import METRICS, MeasurementContext, Unfinished
from svdctl.models.build import build_model
from svdctl.utils.network_probe import Probe
from tests.evaluate.small import make
from tests.train.test_runs import make as make_training

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
COUNT = 600


def measured(folder: Path, device: str, kind: str, **flags: Any) -> tuple[dict[str, Any], Classifier]:
    """Figures of a random network on random images that it is given its own answers for, but for every fifth."""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 3, 16, 16), dtype=torch.uint8, generator=generator)
    model = build_model(make_training(folder / "none.npz"), 10).train()
    model(images.float() / 255)
    labels = model.eval()(images.float() / 255).argmax(1)
    labels[::5] = (labels[::5] + 1) % 10
    data = ImageData(images, labels, tuple("0123456789"))
    test = EvaluationData(Npz(path=Path("none")), TrainTest(data, data))
    config = make(accelerator=device, **flags)
    classifier = Classifier(model, config, print)
    probe = Probe.of(images[:1], classifier.answers(images[:1]))
    origin = cast("Any", SimpleNamespace(weights="weights", maxima=None))
    context = MeasurementContext(classifier, origin, test, config, probe, folder, lambda *_: None, print)
    metric = METRICS.get(kind)
    found = metric.measure(context, metric.settings(config, test.data), Unfinished(folder / "unfinished.json", {}))
    assert not isinstance(found, str)
    return dict(found.results), classifier


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_corrupted_images_on_cuda(tmp_path: Path, precision: str) -> None:
    names = ["gaussian_noise", "shot_noise", "fog", "jpeg_compression", "spatter"]
    found, classifier = measured(tmp_path / "cuda", "cuda", "cifar-c", corruptions=names, precision=precision)
    wanted, _ = measured(tmp_path / "cpu", "cpu", "cifar-c", corruptions=names, precision=precision)
    assert classifier.halving.size > 250
    near = 0.01 if precision == "32" else 0.05
    assert found["clean"] == pytest.approx(wanted["clean"], abs=near)
    for name in names:
        for severity, share in wanted["accuracy"][name].items():
            assert found["accuracy"][name][severity] == pytest.approx(share, abs=near), (name, severity)


@pytest.mark.cuda
@pytest.mark.long
@needs_cuda
def test_certificates_on_cuda(tmp_path: Path) -> None:
    found, _ = measured(tmp_path / "cuda", "cuda", "certified")
    wanted, _ = measured(tmp_path / "cpu", "cpu", "certified")
    # Each proof ends within 0.5 % of a layer's norm, on every device in its own way; the margins are the same.
    assert found["lipschitz"] == pytest.approx(wanted["lipschitz"], rel=0.1)
    margins = [each["lipschitz"] * each["mean_radius"] for each in (found, wanted)]
    assert margins[0] == pytest.approx(margins[1], rel=1e-5)
    assert found["clean"] == wanted["clean"]


def test_certificates_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    first, _ = measured(tmp_path, "cpu", "certified", batch_size=COUNT)
    second, _ = measured(tmp_path, "cpu", "certified", batch_size=37)
    assert second["accuracy"] == first["accuracy"]
    assert second["mean_radius"] == pytest.approx(first["mean_radius"], rel=1e-9)


def test_what_is_made_ahead_comes_in_order_and_one_at_a_time() -> None:
    begun: list[int] = []

    def call(number: int) -> torch.Tensor:
        begun.append(number)
        if number == 5:
            raise ValueError("the fifth")
        return torch.tensor(number)

    found = made_ahead((lambda number=number: call(number)) for number in range(9))
    assert [int(next(found)) for _ in range(3)] == [0, 1, 2]
    assert len(begun) <= 5
    assert [int(next(found)) for _ in range(2)] == [3, 4]
    with pytest.raises(ValueError, match="the fifth"):
        next(found)


def test_a_device_may_be_named_for_corruptions() -> None:
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    for name in ("gaussian_noise", "brightness"):
        assert torch.equal(corrupt(images, name, 2, device="cpu"), corrupt(images, name, 2))
    empty = corrupt(images[:0], "fog", 1, device="cpu")
    assert empty.shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("free", "wanted"), [(10_000, 250), (10_000_000, auto_batch_size.LARGEST), (400_000, 1_000), (1, 250)]
)
def test_sizes_of_passes_come_from_memory(free: int, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass needs 200 bytes an image beside 5,000 that are there."""
    cuda = torch.cuda
    asked: list[slice] = []
    monkeypatch.setattr(cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(cuda, "memory_allocated", lambda device: 5_000)
    monkeypatch.setattr(cuda, "memory_reserved", lambda device: 5_000)
    monkeypatch.setattr(cuda, "max_memory_allocated", lambda device: 5_000 + 200 * 250)
    monkeypatch.setattr(cuda, "mem_get_info", lambda device: (free, 10**9))
    size = AutoBatchSize(250)
    parts = size.parts(10_000, asked.append, torch.device("cuda"))
    assert next(parts)[0] == slice(0, 250)
    assert size.size == wanted
    next(parts)
    # Nothing is computed only to see how much memory it needs.
    assert asked == [slice(0, 250), slice(250, 250 + wanted)]
    for count in (250, 10):
        few = AutoBatchSize(250)
        assert len(list(few.parts(count, asked.append, torch.device("cuda")))) == 1
        assert few.size == 250
    alone = AutoBatchSize(250)
    assert len(list(alone.parts(1_000, asked.append, torch.device("cpu")))) == 4
    assert alone.size == 250
