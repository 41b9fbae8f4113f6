"""Accuracy on corrupted test sets: published files for CIFAR, svdctl's own corruptions for every other data set."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from svdctl.config.corruption_names import CLEAN, NOTES, SEVERITIES, general_note, list_name, named_lists
from svdctl.data.batches import derived_seed
from svdctl.data.data_source import place_of, source_of
from svdctl.data.streamed_images import made_ahead, to_device
from svdctl.evaluate.auto_batch_size import LARGEST, block_size_for
from svdctl.evaluate.corruptions.corruption_functions import corrupt
from svdctl.evaluate.corruptions.published_constants import GENERATORS, generator_of
from svdctl.evaluate.corruptions.published_files import CifarC, find_or_fetch, open_cifar_c
from svdctl.evaluate.inference import Classifier, check_finite, subset
from svdctl.evaluate.metric import MeasurementContext, Unfinished
from svdctl.evaluate.metrics.cifar_c import CorruptionSettings
from svdctl.utils.content_hash import content_digest, file_digest, json_digest
from svdctl.utils.files import open_regular
from svdctl.utils.measurement_cache import Kept, Measurement, MeasurementCache

CHUNK = 1000
"""Images that are drawn, or copied from a file, at a time; fewer of large ones."""


@dataclass(frozen=True)
class Source:
    """Where corrupted images come from."""

    images: Callable[[str, int, Tensor], Tensor]
    """Uint8 `(n, C, H, W)` for a corruption, a severity, and numbers `(n,)` of test images."""
    identity: dict[str, Any]
    """What a protocol says of it."""
    identity_before: dict[str, Any]
    """The same as it stands in results without a checksum."""
    notes: list[str]
    identity_for: Callable[[list[str]], dict[str, Any]]
    """Returns `identity` as it is where other corruptions are asked for."""


def _published(files: CifarC, name: str, severity: int, index: Tensor) -> Tensor:
    first, end = int(index.min()), int(index.max()) + 1
    part = torch.from_numpy(files.images(name, severity, first, end))
    return part[index - first].permute(0, 3, 1, 2)


def _drawn(test: Tensor, device: torch.device, seed: int, name: str, severity: int, index: Tensor) -> Tensor:
    return corrupt(test[index], name, severity, seed, device)


def open_source(context: MeasurementContext, settings: CorruptionSettings) -> Source:
    """Return the published files where they belong to the data or a root names them, else svdctl's own.

    Raises:
        DataError: files that are missing, damaged, or of another test set.
    """
    names = [name for name in settings.names or () if name != CLEAN]
    data, test, seed = context.data.data, context.data.test, context.config.seed
    source = source_of(data)
    if source.published_corruptions is None and settings.root is None:
        generator = generator_of(*test.image_shape[1:])
        general = general_note(generator.name, generator.side)
        notes = [general, *(f"{name}: {NOTES[name]}" for name in names if NOTES[name])]
        identity: dict[str, Any] = {"source": "drawn", "seed": seed}
        if generator is not GENERATORS[0]:  # those of CIFAR-C are what a protocol without this key has
            identity["constants"] = generator.name
        images = partial(_drawn, test.images, context.classifier.device, seed)
        return Source(images, identity, identity, notes, lambda names: identity)
    if source.published_corruptions is not None:
        folder = find_or_fetch(
            source.published_corruptions,
            settings.root or place_of(data),
            tell=lambda text, done, total: context.progress(done, total, text),
        )
    else:
        assert settings.root is not None
        folder = settings.root.expanduser()
    files = open_cifar_c(folder, test.labels.numpy(), test.image_shape)
    files.require(names)
    before = {"source": "published", "files": _ends_of(folder, names)}

    def identity_for(names: list[str]) -> dict[str, Any]:
        return {"source": "published", "contents": _digest_of(folder, names)}

    return Source(partial(_published, files), identity_for(names), before, [], identity_for)


def _digest_of(folder: Path, names: list[str]) -> str:
    """Return the SHA-256 over the contents of the files of these corruptions."""
    files = [folder / f"{name}.npy" for name in sorted(names)]
    # hashlib releases the GIL.
    with ThreadPoolExecutor(max_workers=min(8, torch.get_num_threads())) as pool:
        digests = list(pool.map(file_digest, files))
    return json_digest([[file.name, digest] for file, digest in zip(files, digests, strict=True)], compact=False)


def _ends_of(folder: Path, names: list[str]) -> str:
    """Return what identified the files before: a hash of their sizes, beginnings and ends."""
    parts: list[str | bytes] = []
    for name in sorted(names):
        path = folder / f"{name}.npy"
        size = path.stat().st_size
        with open_regular(path) as file:
            parts += [f"{name} {size}", file.read(1 << 16)]
            file.seek(max(0, size - (1 << 16)))
            parts.append(file.read())
    return content_digest(*parts)


class Count(Measurement):
    """How many images of one corruption and severity (0: the clean images) are classified rightly."""

    name: str
    severity: Annotated[int, Field(ge=0, le=SEVERITIES[-1])]
    correct: NonNegativeInt
    of: PositiveInt

    @property
    def key(self) -> str:
        return f"{self.name} {self.severity}"

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        if self.correct > self.of:
            raise ValueError(f"{self.correct} of {self.of} images")
        return self


def measure(
    context: MeasurementContext, settings: CorruptionSettings, source: Source, unfinished: Unfinished
) -> dict[str, Any]:
    """Return accuracy for each corruption and severity; counts that are done are kept."""
    classifier, test = context.classifier, context.data.test
    names = [name for name in settings.names or () if name != CLEAN]
    index = subset(len(test), settings.examples, derived_seed(context.config.seed, "corruptions"))
    labels = test.labels[index]
    total = len(names) * len(settings.severities) + 1
    kept = MeasurementCache(unfinished.path, Count, unfinished.protocol, probe=context.probe)
    for notice in kept.notices:
        context.notice(notice)
    for known in _counted_before(context, source, unfinished.protocol):
        kept.kept.setdefault(known.key, Kept(known, probe=context.probe))
    wanted = [(CLEAN, 0), *((name, severity) for name in names for severity in settings.severities)]
    missing = [(name, severity) for name, severity in wanted if f"{name} {severity}" not in kept.kept]
    if len(missing) < total:
        context.notice(f"going on: {total - len(missing)} of {total} counts of corrupted images are kept")

    def images(name: str, severity: int, part: Tensor) -> Tensor:
        found = test.images[part] if name == CLEAN else source.images(name, severity, part)
        return to_device(found, classifier.device)

    def tell(name: str, severity: int) -> None:
        if name != CLEAN:
            context.progress(wanted.index((name, severity)), total, f"{name}, severity {severity}")

    def keep(name: str, severity: int, count: Tensor) -> None:
        right, broken = count.tolist()
        check_finite(broken, len(index))
        kept.put(Count(name=name, severity=severity, correct=right, of=len(index)))

    # A GPU has the images of the next count to classify while one is read and written to the file.
    behind, begun = int(classifier.device.type == "cuda"), deque[tuple[str, int, Tensor]]()
    for pair, count in zip(
        missing, _counts(classifier, images, missing, index, labels, test.image_shape, tell), strict=True
    ):
        begun.append((*pair, count))
        if len(begun) > behind:
            keep(*begun.popleft())
    for unread in begun:
        keep(*unread)
    context.progress(total, total, "done")
    done = {key: kept.kept[key].record.correct for key in (f"{name} {severity}" for name, severity in wanted)}
    done[CLEAN] = done.pop(f"{CLEAN} 0")
    found = summary(done, names, settings.severities, len(index))
    constants = {"constants": source.identity["constants"]} if "constants" in source.identity else {}
    return {**found, "source": source.identity["source"], **constants, "notes": source.notes}


def _counted_before(context: MeasurementContext, source: Source, protocol: Mapping[str, Any]) -> Iterator[Count]:
    """Yield what was counted on the same images for other lists of corruptions or other severities."""

    def shared(protocol: Mapping[str, Any]) -> dict[str, Any]:
        own = {"names", "severities", *source.identity}
        return {key: value for key, value in protocol.items() if key not in own}

    for record in context.known("cifar-c"):
        results, names = record.results, [name for name in record.protocol["names"] if name != CLEAN]
        if shared(record.protocol) != shared(protocol):
            continue
        try:
            identity = source.identity_for(names)
        except OSError:  # files of other corruptions are not there any more
            continue
        if {key: record.protocol.get(key) for key in identity} != identity:
            continue
        shares = {CLEAN: {"0": results["clean"]}, **results["accuracy"]}
        for name, row in shares.items():
            for severity, share in row.items():
                right = round(share * results["count"])
                yield Count(name=name, severity=int(severity), correct=right, of=results["count"])


def _counts(
    classifier: Classifier,
    images: Callable[[str, int, Tensor], Tensor],
    wanted: Sequence[tuple[str, int]],
    index: Tensor,
    labels: Tensor,
    image_shape: tuple[int, int, int],
    tell: Callable[[str, int], None],
) -> Iterator[Tensor]:
    """Yield for each corruption and severity what `Classifier.correct` counts of its images: `(2,)`, on the device."""
    cuda = classifier.device.type == "cuda"
    size = block_size_for(image_shape, LARGEST if cuda else CHUNK)
    parts, own = index.split(size), to_device(labels, classifier.device).split(size)
    calls = (partial(images, *pair, part) for pair in wanted for part in parts)
    # While a GPU works on some, the next ones are read, or drawn there; a CPU has no core to spare.
    made = made_ahead(calls) if cuda else (call() for call in calls)
    for pair in wanted:
        tell(*pair)
        yield torch.stack([classifier.correct(next(made), right) for right in own]).sum(0)


def summary(correct: Mapping[str, int], names: list[str], severities: tuple[int, ...], count: int) -> dict[str, Any]:
    """Return accuracies and their means from counts of correct answers by `"<name> <severity>"`."""
    table = {name: {str(severity): correct[f"{name} {severity}"] / count for severity in severities} for name in names}
    return {"count": count, "clean": correct[CLEAN] / count, "accuracy": table, **means_of(table)}


def means_of(table: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return the means of a table of accuracies by corruption and severity.

    `figures` has the mean over each of the named lists (`svdctl.config.corruption_names.named_lists`) all of whose
    corruptions are in the table, and, under a name of its own, `mean`: that over the whole table.
    """
    means = {name: fmean(row.values()) for name, row in table.items()}
    severities = [int(severity) for severity in next(iter(table.values()), {})]
    lists = [listed for listed in named_lists().values() if set(listed) <= set(means)]
    if means and set(means) not in map(set, lists):
        lists.append(tuple(means))
    return {
        "mean_by_corruption": means,
        "mean_by_severity": {
            str(severity): fmean(row[str(severity)] for row in table.values()) for severity in severities
        },
        "figures": {list_name(listed, severities): fmean(means[name] for name in listed) for listed in lists},
        "mean": fmean(means.values()) if means else None,
    }
