"""What `eval-robust` costs besides the network: ratios within one run, on a CPU.

    python benchmarks/evaluation.py [--repeats 3] [--threads 2]

CIFAR-C: share of the time that is spent in forward passes, files being read where they lie. Attacks: the recipe, which
verifies, keeps its state after every batch and brings images closer, over a direct call of pyautoattack; both ways are
timed in turn within every round, by the processor's time.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from svdctl.cli.evaluation_flags import resolve_evaluation
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.data.images import ImageData
from svdctl.data.npz import Npz
from svdctl.data.train_test import TrainTest
from svdctl.evaluate.attack import attack_metric
from svdctl.evaluate.attack.attack_progress import Assignment, kept_progress
from svdctl.evaluate.evaluation_data import EvaluationData
from svdctl.evaluate.inference import Classifier
from svdctl.evaluate.metric import METRICS, MeasurementContext, Unfinished
from svdctl.layers.normalize import Normalize
from svdctl.models.wrn import WideResNet, default_conv
from svdctl.utils.machine import machine
from svdctl.utils.network_probe import Probe


class Timed(nn.Module):
    """A network that knows how long its passes took."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seconds = model, 0.0

    def forward(self, pixels: Tensor) -> Tensor:
        began = time.perf_counter()
        logits = self.model(pixels)
        self.seconds += time.perf_counter() - began
        return logits


def network(width: int, side: int) -> nn.Module:
    torch.manual_seed(0)
    conv = default_conv
    model = WideResNet(10, width, 10, conv=conv, stem=conv, normalize=Normalize((0.5,) * 3, (0.25,) * 3))
    model(torch.rand(64, 3, side, side))  # BatchNorm's statistics
    return model.eval().requires_grad_(False)


def material(count: int, side: int, labels: Tensor | None = None) -> EvaluationData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    found = torch.randint(0, 10, (count,), generator=generator) if labels is None else labels
    data = ImageData(images, found, tuple("0123456789"))
    return EvaluationData(Npz(path=Path("none")), TrainTest(data, data))


def measurement_context(
    classifier: Classifier, test: EvaluationData, config: EvaluateConfig, folder: Path
) -> MeasurementContext:
    """Return what metrics measure with, saying nothing."""
    images = test.test.images[:1]
    probe = Probe.of(images, classifier.answers(images))
    model = cast("Any", SimpleNamespace(weights="weights", maxima=None))
    return MeasurementContext(classifier, model, test, config, probe, folder, lambda *_: None, lambda _: None)


def forward_share(width: int, count: int) -> float:
    """Of the time of one evaluation on two files in CIFAR-C's format."""
    test = material(count, 32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "labels.npy", np.tile(test.test.labels.numpy(), 5))
        for corruption in ("fog", "frost"):
            images = test.test.images.permute(0, 2, 3, 1).repeat(5, 1, 1, 1).numpy()
            np.save(folder / f"{corruption}.npy", images)
        config = resolve_evaluation({"corruptions": ["fog", "frost"], "cifar_c_root": folder}).config
        model = Timed(network(width, 32))
        classifier = Classifier(model, config, print)
        classifier.logits(test.test.images[:250])
        model.seconds = 0.0
        began = time.perf_counter()
        context = measurement_context(classifier, test, config, folder)
        metric = METRICS.get("cifar-c")
        metric.measure(context, metric.settings(config, test.data), Unfinished(folder / "unfinished.json", {}))
        return model.seconds / (time.perf_counter() - began)


def attack_ratio(count: int) -> float:
    """Time of the recipe over that of a direct call, on the same images and with the same figures."""
    model = network(1, 8)
    pixels = material(count, 8).test.images
    test = material(count, 8, labels=model(pixels.float() / 255).argmax(1))
    flags = {"attacks": ["apgd-ce", "fab-t"], "eps": 0.05, "batch_size": 8, "examples": "all"}
    config = resolve_evaluation(flags).config
    settings = METRICS.get("autoattacks").settings(config, test.data)
    classifier = Classifier(model, config, print)

    def recipe() -> float:
        with tempfile.TemporaryDirectory() as name:
            context = measurement_context(classifier, test, config, Path(name))
            work = Assignment.make(settings, "weights", test, context.probe)
            progress = attack_metric.run(context, work, kept_progress(Path(name) / "state.pt", work, print))
            return progress.state.robust_accuracy()

    def direct() -> float:
        suite = AutoAttack(
            model, attacks=list(flags["attacks"]), eps=0.05, norm="L2", seed=config.seed, version="custom"
        )
        suite.verbose = False
        x, y = test.test.images.float() / 255, test.test.labels
        changed, _ = suite.run_standard_evaluation(x, y, batch_size=8)
        return float((model(changed).argmax(1) == y).double().mean())

    # Processor time: what else runs on the machine is no matter.
    began = time.process_time()
    first = recipe()
    middle = time.process_time()
    second = direct()
    end = time.process_time()
    assert abs(first - second) < 1e-9, (first, second)
    return (middle - began) / (end - middle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=1000, help="of CIFAR-C")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{machine()}, medians of {arguments.repeats} rounds")  # fmt: skip
    for width in (1, 4):
        shares = [forward_share(width, arguments.images) for _ in range(arguments.repeats)]
        print(f"CIFAR-C, WRN-10-{width}: {statistics.median(shares):.1%} of the time in forward passes")
    ratios = [attack_ratio(24) for _ in range(arguments.repeats)]
    print(f"attack, recipe over pyautoattack alone: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
