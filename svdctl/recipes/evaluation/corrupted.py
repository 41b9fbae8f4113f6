"""Accuracy on corrupted test sets: published files for CIFAR, svdctl's own corruptions for every other data set."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svdctl.config.corruptions import BENCHMARK, CLEAN, NOTES
from svdctl.config.data import Cifar10, Cifar100
from svdctl.config.evaluate import CorruptionSettings, EvaluateConfig
from svdctl.recipes.evaluation.forward import Classifier, subset
from svdctl.recipes.evaluation.material import Material
from svdctl.robustness.archive import Tell
from svdctl.robustness.cifar_c import CifarC, find_or_fetch, open_cifar_c
from svdctl.robustness.corruptions.registry import corrupt
from svdctl.runfolder import write_text

CHUNK = 1000
"""Images that are drawn, or copied from a file, at a time."""


@dataclass(frozen=True)
class Published:
    """The published files, read where they lie."""

    files: CifarC
    identity: dict[str, Any]
    notes: list[str]

    def images(self, name: str, severity: int, index: Tensor) -> Tensor:
        array = self.files.images(name, severity)
        first, last = int(index[0]), int(index[-1]) + 1
        # A slice of the map where the images stand together, which is almost always.
        part = array[first:last] if last - first == len(index) else array[index.numpy()]
        return torch.from_numpy(np.array(part)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Drawn:
    """svdctl's own corruptions of the test images."""

    test: Tensor
    seed: int
    identity: dict[str, Any]
    notes: list[str]

    def images(self, name: str, severity: int, index: Tensor) -> Tensor:
        return corrupt(self.test[index.to(self.test.device)], name, severity, self.seed)


Source = Published | Drawn
"""Where corrupted images come from; `identity` is what a protocol says of it."""


def open_source(
    settings: CorruptionSettings, material: Material, seed: int, device: torch.device, tell: Tell
) -> Source:
    """The published files where they belong to the data or `--cifar-c-root` names them, else svdctl's own.

    Raises:
        DataError: files that are missing, damaged, or of another test set.
    """
    names = [name for name in settings.names if name != CLEAN]
    data = material.data
    if not isinstance(data, Cifar10 | Cifar100) and settings.root is None:
        notes = [NOTES["all"], *(f"{name}: {NOTES[name]}" for name in names if name in NOTES)]
        return Drawn(material.test.images.to(device), seed, {"source": "drawn", "seed": seed}, notes)
    if isinstance(data, Cifar10 | Cifar100):
        folder = find_or_fetch(data.kind, settings.root or data.root, tell=tell)
    else:
        assert settings.root is not None
        folder = settings.root.expanduser()
    labels = material.test.labels.numpy()
    files = open_cifar_c(folder, labels, material.test.image_shape)
    files.require(names)
    return Published(files, {"source": "published", "files": _glance(folder, names)}, [])


def _glance(folder: Path, names: list[str]) -> str:
    """A hash of the files' sizes, beginnings and ends: it tells one set from another without reading gigabytes."""
    digest = hashlib.sha256()
    for name in sorted(names):
        path = folder / f"{name}.npy"
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(1 << 16)
            file.seek(max(0, size - (1 << 16)))
            digest.update(f"{name} {size}".encode() + head + file.read())
    return digest.hexdigest()


def protocol(config: EvaluateConfig, source: Source) -> dict[str, Any]:
    """What decides the figures, besides the network and the test images."""
    settings = config.corruptions
    return {
        **source.identity,
        "names": list(settings.names),
        "severities": list(settings.severities),
        "examples": settings.examples,
        **({"seed": config.seed} if settings.examples is not None else {}),
    }


def measure(
    classifier: Classifier,
    source: Source,
    material: Material,
    config: EvaluateConfig,
    unfinished: Path,
    tell: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Accuracy for each corruption and severity; what is done is kept in `unfinished` until all is."""
    settings = config.corruptions
    names = [name for name in settings.names if name != CLEAN]
    index = subset(len(material.test), settings.examples, config.seed, "corruptions")
    labels = material.test.labels[index]
    done = _read(unfinished)
    total = len(names) * len(settings.severities) + 1
    if CLEAN not in done:
        done[CLEAN] = int(classifier.correct(material.test.images[index], labels))
    for name in names:
        for severity in settings.severities:
            key = f"{name} {severity}"
            tell(len(done), total, f"{name}, severity {severity}")
            if key not in done:
                done[key] = _correct(classifier, source, name, severity, index, labels)
                unfinished.parent.mkdir(parents=True, exist_ok=True)
                write_text(unfinished, json.dumps(done))
    tell(total, total, "done")
    results = summary(done, names, settings.severities, len(index))
    results["source"] = source.identity["source"]
    results["notes"] = source.notes
    unfinished.unlink(missing_ok=True)
    return results


def _correct(classifier: Classifier, source: Source, name: str, severity: int, index: Tensor, labels: Tensor) -> int:
    counts = [
        classifier.correct(source.images(name, severity, part), wanted)
        for part, wanted in zip(index.split(CHUNK), labels.split(CHUNK), strict=True)
    ]
    return int(torch.stack(counts).sum())


def summary(correct: Mapping[str, int], names: list[str], severities: tuple[int, ...], count: int) -> dict[str, Any]:
    """Accuracies and their means from counts of correct answers by `"<name> <severity>"`."""
    table = {name: {str(severity): correct[f"{name} {severity}"] / count for severity in severities} for name in names}
    means = {name: fmean(row.values()) for name, row in table.items()}
    benchmark = [name for name in BENCHMARK if name in means]
    return {
        "count": count,
        "clean": correct[CLEAN] / count,
        "accuracy": table,
        "mean_by_corruption": means,
        "mean_by_severity": {
            str(severity): fmean(row[str(severity)] for row in table.values()) for severity in severities
        }
        if table
        else {},
        "benchmark": benchmark,
        "benchmark_mean": fmean(means[name] for name in benchmark) if benchmark else None,
        "mean": fmean(means.values()) if means else None,
    }


def _read(path: Path) -> dict[str, int]:
    """What an earlier call had finished."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {str(key): int(value) for key, value in found.items()}
