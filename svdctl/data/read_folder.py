"""Images out of folders: in memory, decoded in threads and kept in the user's cache, or read when they are needed."""

import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from svdctl.data.decode_image import ImageForm, UnusableImageError, check_image, read_image
from svdctl.data.folder_layout import Layout, classes_in_folders
from svdctl.data.image_cache import Decoded, ImageCache
from svdctl.data.image_files import FileRows, ImageFiles
from svdctl.data.imagenet_layouts import published_layout
from svdctl.data.images import ImageData
from svdctl.data.read_images import ImageReader
from svdctl.data.split import stratified_split
from svdctl.data.streamed_images import streamed_images
from svdctl.data.train_test import TrainTest
from svdctl.errors import DataError, first_line
from svdctl.utils.progress import Reporter

MOST_RESIDENT = 2 * 2**30
"""Bytes of images in memory. It is no share of what is free: the same data are read in the same way everywhere."""
_BLOCK = 32
"""Files that a thread takes at a time."""
_MOST_WORKERS = 16
_NAMED = 5
"""Files that are named where more cannot be used."""
T = TypeVar("T")


def read_folder(
    path: Path, form: ImageForm, *, streamed: bool | None, workers: int | None, reporter: Reporter
) -> TrainTest:
    """Return the images of a folder, one sub-folder a class.

    Args:
        path: the folder, with `train/`, `val/` and `test/` in it or with the classes alone.
        form: of the images.
        streamed: whether they are read when they are needed; None: where they would take more than 2 GiB of memory.
        workers: threads that decode; None: one for each core, at most 16.
        reporter: is told how far it is.

    Raises:
        DataError: folders that are none, files that are no images.
    """
    path = path.expanduser()
    threads = workers or min(_MOST_WORKERS, _cores())
    try:
        with reporter.part(f"listing the files of {path}"):
            layout = published_layout(path) or classes_in_folders(path)
        if streamed is None:
            streamed = len(layout.files) * math.prod(form.shape) > MOST_RESIDENT
        read = _streamed if streamed else _resident
        images = read(path, layout.files, form, threads, reporter)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({first_line(error)}); check its folders, links and rights") from error
    except MemoryError as error:
        raise DataError(
            f"{path}: {len(layout.files):,} images need more memory than there is; read them when they are needed "
            "(`data.storage = streamed`)"
        ) from error
    if "val" in layout.parts and "test" not in layout.parts:
        reporter.notice(f"{path} has no test part: its validation part is the test part")
    return _parts(path, layout, images, form).checked(str(path))


def _cores() -> int:
    """Return the cores that this process may use, as far as the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parts(path: Path, layout: Layout, images: Tensor, form: ImageForm) -> TrainTest:
    rows = FileRows(layout.files, torch.arange(len(layout.files)), f"{form.size} {form.resize} {form.channels}")
    everything = ImageData(images, layout.labels, layout.classes, rows)
    if "all" in layout.parts:
        return TrainTest(*stratified_split(everything.checked(str(path)), 0.2, seed=0))
    found, start = {}, 0
    for part, count in layout.parts.items():
        found[part] = everything.span(start, start + count)
        start += count
    test = found.pop("test" if "test" in found else "val")
    return TrainTest(found["train"], test, found.get("val"))


def _resident(path: Path, files: ImageFiles, form: ImageForm, threads: int, reporter: Reporter) -> Tensor:
    cache = ImageCache(path, files, form, len(files))
    with reporter.part("reading the images that were decoded before"):
        decoded, damage = cache.read()
    if damage is not None:
        reporter.notice(damage)
    if decoded is None:
        images = np.empty((len(files), *form.shape), dtype=np.uint8)

        def decode(row: int) -> bool:
            images[row], scaled = read_image(files.path(row), form)
            return scaled

        decoded = Decoded(images, sum(_of_all(path, files, decode, threads, "reading images", reporter)))
        with reporter.part("keeping the decoded images"):
            why = cache.write(decoded)
        if why is not None:
            reporter.notice(why)
    _announce(decoded, files, form, reporter)
    return torch.from_numpy(decoded.images)


def _streamed(path: Path, files: ImageFiles, form: ImageForm, threads: int, reporter: Reporter) -> Tensor:
    """Return images that are read when they are needed; the headers of all files are looked at now, or were before."""
    cache = ImageCache(path, files, form, 0)
    checked, damage = cache.read()
    if damage is not None:
        reporter.notice(damage)
    if checked is None:
        checks = _of_all(
            path, files, lambda row: check_image(files.path(row), form), threads, "looking at images", reporter
        )
        scaled = sum(checks)
        checked = Decoded(np.empty((0, *form.shape), dtype=np.uint8), scaled)
        if (why := cache.write(checked)) is not None:
            reporter.notice(why)
    _announce(checked, files, form, reporter)
    return streamed_images(ImageReader(files, form, threads), len(files), form.shape)


def _announce(decoded: Decoded, files: ImageFiles, form: ImageForm, reporter: Reporter) -> None:
    if decoded.scaled:
        size = f"{form.size} x {form.size}"
        reporter.notice(f"{decoded.scaled:,} of {len(files):,} images are scaled to {size} pixels")


def _of_all(
    path: Path, files: ImageFiles, work: Callable[[int], T], threads: int, name: str, reporter: Reporter
) -> Iterable[T]:
    """Return what `work` makes of each file, in no order; files that cannot be used are counted, and then refused.

    Raises:
        DataError: how many of them cannot be used, and what is wrong with the first ones.
    """
    found: list[T] = []
    faults: list[tuple[int, UnusableImageError]] = []

    def some(rows: range) -> int:
        for row in rows:
            try:
                found.append(work(row))
            except UnusableImageError as fault:
                faults.append((row, fault))
        return len(rows)

    count, done = len(files), 0
    pool = ThreadPoolExecutor(max_workers=threads)
    with reporter.part(name) as advance:
        try:
            blocks = [pool.submit(some, range(start, min(start + _BLOCK, count))) for start in range(0, count, _BLOCK)]
            for block in as_completed(blocks):
                done += block.result()
                advance(done, count, "images")
        finally:
            pool.shutdown(cancel_futures=True)
    _refuse(path, count, [fault for _, fault in sorted(faults, key=lambda each: each[0])])
    return found


def _refuse(path: Path, count: int, faults: list[UnusableImageError]) -> None:
    """Refuse files that cannot be used.

    Raises:
        DataError: there are such.
    """
    if not faults:
        return
    if len(faults) == 1:
        raise faults[0]
    named = "; ".join(f"{fault.file} {fault.reason}" for fault in faults[:_NAMED])
    more = f"; and {len(faults) - _NAMED:,} more" if len(faults) > _NAMED else ""
    advice = "; ".join(dict.fromkeys(fault.advice for fault in faults[:_NAMED]))
    raise DataError(f"{path}: {len(faults):,} of {count:,} images cannot be used: {named}{more}; {advice}")
