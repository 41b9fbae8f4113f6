"""Folders that are read when they are needed: the same pixels, batches and runs as in memory, to the bit."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from svdctl.cli.evaluation_flags import resolve_evaluation
from svdctl.cli.training_flags import resolve
from svdctl.config.configuration import configuration
from svdctl.config.data_config import Augment
from svdctl.data import image_cache, read_folder
from svdctl.data.batches import Batches, evaluation_batches
from svdctl.data.data_source import load
from svdctl.data.fingerprint import FILES, fingerprint
from svdctl.data.folder import Folder
from svdctl.data.streamed_images import StreamedImages
from svdctl.data.train_test import TrainTest
from svdctl.errors import CheckpointError, DataError, UsageError
from svdctl.evaluate.evaluation_data import EvaluationData
from svdctl.train import start as recipe
from svdctl.utils.progress import Reporter
from tests.data.test_image_cache import Told
from tests.train.test_runs import assert_equal, weights

SIZE = 32


def draw(root: Path, count: int = 20, size: int = SIZE) -> Path:
    """Images of two classes in `train/` and `val/`, every other one of another size than is wanted."""
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for label, name in enumerate("ab"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                shape = (size + 5 * (number % 2), size, 3)
                pixels = generator.integers(0, 128, shape, dtype=np.uint8) + np.uint8(100 * label)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


def read(root: Path, storage: str = "streamed", **settings: object) -> TrainTest:
    reporter = settings.pop("reporter", None)
    return load(Folder(path=root, **{"size": SIZE, "resize": True, "storage": storage, **settings}), reporter=reporter)


@pytest.mark.parametrize("workers", [1, 3])
def test_pixels_are_those_in_memory(workers: int, tmp_path: Path) -> None:
    resident, streamed = read(draw(tmp_path), "resident"), read(tmp_path, workers=workers)
    assert isinstance(streamed.train.images, StreamedImages)
    for one, other in ((resident.train, streamed.train), (resident.test, streamed.test)):
        assert torch.equal(one.images, other.images[:])
        assert torch.equal(one.labels, other.labels)
        assert (one.classes, one.image_shape) == (other.classes, other.image_shape)
    for one, other in zip(evaluation_batches(resident.test, 7), evaluation_batches(streamed.test, 7), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("world", [1, 3])
def test_batches_with_resized_crops_are_those_of_any_number_of_processes_and_any_start(
    world: int, tmp_path: Path
) -> None:
    draw(tmp_path)
    augmentation = Augment(resized_crop=(0.08, 1))
    whole = Batches(read(tmp_path, "resident").train, 12, 7, augmentation)
    data = read(tmp_path, workers=2).train
    for start in (0, 2):
        parts = [Batches(data, 12, 7, augmentation, rank, world) for rank in range(world)]
        steps = zip(whole.epoch(1, start), *(part.epoch(1, start) for part in parts), strict=True)
        for batch, *own in steps:
            found = torch.cat([part.pixels(mine) for part, mine in zip(parts, own, strict=True)])
            assert torch.equal(whole.pixels(batch), found)
            assert not torch.equal(found, batch.images.float() / 255)


def test_where_the_images_are_is_chosen_by_their_size_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path)
    assert isinstance(load(Folder(path=tmp_path, size=SIZE, resize=True)).train.images, torch.Tensor)
    monkeypatch.setattr(read_folder, "MOST_RESIDENT", 80 * 3 * SIZE * SIZE - 1)
    assert isinstance(load(Folder(path=tmp_path, size=SIZE, resize=True)).train.images, StreamedImages)


def test_a_folder_that_svdctl_divides_is_divided_in_the_same_way(tmp_path: Path) -> None:
    draw(tmp_path)
    resident, streamed = read(tmp_path / "train", "resident"), read(tmp_path / "train")
    for one, other in ((resident.train, streamed.train), (resident.test, streamed.test)):
        assert torch.equal(one.images, other.images[:])
        assert fingerprint(one, like=FILES) == fingerprint(other)
        assert fingerprint(one) == fingerprint(other, like=fingerprint(one))
    assert fingerprint(resident.train) != fingerprint(resident.test)
    assert fingerprint(streamed.train) != fingerprint(streamed.test)


def smaller(root: Path) -> None:
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(root / "train/a/0.png")


CHANGES: dict[str, tuple[Callable[[Path], object], dict[str, object], bool]] = {
    "nothing": (lambda root: None, {}, False),
    "times alone": (lambda root: os.utime(root / "train/a/0.png", (0, 0)), {}, False),
    "another place": (lambda root: root.rename(root.with_name("moved")), {}, False),
    "a size": (smaller, {}, True),
    "a name": (lambda root: (root / "train/a/0.png").rename(root / "train/a/x.png"), {}, True),
    "a label": (lambda root: (root / "train/a/0.png").rename(root / "train/b/x.png"), {}, True),
    "one more": (lambda root: (root / "train/b/x.png").write_bytes((root / "train/a/0.png").read_bytes()), {}, True),
    "the size of images": (lambda root: None, {"size": 16}, True),
    "the channels": (lambda root: None, {"channels": 1}, True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_is_of_names_sizes_labels_and_settings(change: str, tmp_path: Path) -> None:
    root = draw(tmp_path / "data", count=3)
    before = read(root)
    act, settings, differs = CHANGES[change]
    act(root)
    after = read(root if root.exists() else root.with_name("moved"), **settings)
    assert fingerprint(before.train).startswith(FILES)
    assert (fingerprint(after.train) != fingerprint(before.train)) is differs
    if not settings:
        assert fingerprint(after.test) == fingerprint(before.test)


def test_names_are_the_same_on_every_system(tmp_path: Path) -> None:
    """macOS spells an accented letter as a letter and an accent."""
    found = set()
    for place, name in (("composed", "caf\u00e9"), ("decomposed", "cafe\u0301")):
        for label in "ab":
            (tmp_path / place / label).mkdir(parents=True)
            for number in range(5):
                image = Image.fromarray(np.full((SIZE, SIZE, 3), number, np.uint8))
                image.save(tmp_path / place / label / f"{name}{number}.png")
        found.add(fingerprint(read(tmp_path / place).train))
    assert len(found) == 1


def test_files_that_are_no_images_are_found_before_anything_is_read(tmp_path: Path) -> None:
    draw(tmp_path, count=10)
    for number in range(7):
        (tmp_path / "train/b" / f"{number}.png").write_bytes(b"PNG?")
    with pytest.raises(
        DataError, match=r"7 of 40 images cannot be used: .*train/b/0\.png cannot be read.* and 2 more;"
    ):
        read(tmp_path)
    draw(tmp_path / "other", count=3)
    with pytest.raises(DataError, match=r"4 of 12 images cannot be used: .*1\.png is 32 x 37, not 32 x 32"):
        read(tmp_path / "other", resize=False)
    (tmp_path / "other/val/a/0.png").unlink()
    (tmp_path / "other/val/a/0.png").symlink_to("/dev/zero")
    assert len(read(tmp_path / "other").test) == 5


def test_a_file_that_changes_while_it_is_needed_is_named(tmp_path: Path) -> None:
    data = read(draw(tmp_path, count=3))
    (tmp_path / "train/b/1.png").write_bytes(b"PNG?")
    with pytest.raises(DataError, match=r"train/b/1\.png cannot be read as an image"):
        data.train.images[:]
    (tmp_path / "train/b/1.png").unlink()
    os.mkfifo(tmp_path / "train/b/1.png")
    with pytest.raises(DataError, match=r"train/b/1\.png .*is a FIFO"):
        list(evaluation_batches(data.train, 4))


def test_headers_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVDCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_cache, "FEWEST", 1)
    draw(tmp_path / "data", count=4)
    told, again, resident = Told(), Told(), Told()
    read(tmp_path / "data", reporter=told)
    assert set(told.notices) == {
        "8 of 16 images are scaled to 32 x 32 pixels",
        f"{tmp_path / 'data'} has no test part: its validation part is the test part",
    }
    assert told.steps[-1] == (16, 16)
    read(tmp_path / "data", reporter=again)
    assert (again.notices, again.steps) == (told.notices, [])
    # What is kept of headers is no set of pixels.
    read(tmp_path / "data", "resident", reporter=resident)
    assert resident.steps[-1] == (16, 16)
    assert sum(file.stat().st_size < 10_000 for file in (tmp_path / "cache/images").iterdir()) == 1


def test_another_current_folder_makes_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "data", count=3)
    monkeypatch.chdir(tmp_path)
    data = read(Path("data"))
    monkeypatch.chdir("/")
    assert len(data.train.images[:]) == 6


SETTINGS = ["model.kind=wrn", "model.depth=10", "model.width=1", "layer.kind=standard", "batch_size=16", "epochs=2"]


def config(root: Path, out: Path, *more: str) -> object:
    data = [
        "data.kind=folder",
        f"data.path={root}",
        "data.size=32",
        "data.resize=true",
        "augment.crop=0",
        "augment.resized_crop=[0.3, 1]",
    ]
    assignments = [*SETTINGS, *data, "evaluation.select=last", f"out_dir={out}", *more]
    return configuration("quickstart", assignments)


def test_a_run_is_the_same_in_memory_and_streamed(tmp_path: Path) -> None:
    root = draw(tmp_path / "data")
    whole = recipe.run(config(root, tmp_path / "one"), base="t", reporter=Reporter())
    again = recipe.run(config(root, tmp_path / "two", "data.storage=streamed"), base="t", reporter=Reporter())
    assert_equal(weights(whole.folder), weights(again.folder))


def test_a_run_that_is_stopped_among_the_steps_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from svdctl.train.loop import Loop

    root = draw(tmp_path / "data")
    whole = recipe.run(config(root, tmp_path / "one", "data.storage=streamed"), base="t", reporter=Reporter())

    def stopped(self: Loop) -> bool:
        original = self.trainer.train_step

        def step(batch: object) -> None:
            original(batch)
            if self.trainer.counters.step == 4:
                self.stop.set()

        self.trainer.train_step = step
        return run(self)

    run = Loop.run
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "run", stopped)
        cut = recipe.run(config(root, tmp_path / "two", "data.storage=streamed"), base="t", reporter=Reporter())
    assert not cut.completed
    recipe.resume(cut.folder, reporter=Reporter())
    assert_equal(weights(whole.folder), weights(cut.folder))


def test_other_files_are_other_data_on_resume(tmp_path: Path) -> None:
    root = draw(tmp_path / "data")
    run = recipe.run(config(root, tmp_path, "data.storage=streamed", "max_steps=2"), base="t", reporter=Reporter())
    smaller(root)
    with pytest.raises(CheckpointError, match="other images, labels or names of classes in the training part"):
        recipe.resume(run.folder, reporter=Reporter())


def test_flags_of_storage_and_resized_crops(tmp_path: Path) -> None:
    found = resolve({"dataset": f"folder:{tmp_path}", "storage": "streamed", "resized_crop": 0.08}).config
    assert isinstance(found.data, Folder)
    assert found.data.storage == "streamed"
    assert (found.augment.crop, found.augment.resized_crop) == (0, (0.08, 1.0))
    with pytest.raises(UsageError, match="takes the place of"):
        resolve({"set": ["augment.crop=4", "augment.resized_crop=[0.1, 1]"]})


def test_the_test_images_of_an_evaluation_are_not_read_to_be_told_apart(tmp_path: Path) -> None:
    root = draw(tmp_path / "data", count=3)
    flags = {"checkpoints": ["x.pt"], "dataset": f"folder:{root}", "image_size": SIZE, "workers": 2}
    data = resolve_evaluation(flags).config.data
    assert isinstance(data, Folder)
    assert (data.size, data.resize, data.workers) == (SIZE, True, 2)
    before, after = read(root, "resident"), read(root)
    (root / "val/a/0.png").unlink()
    streamed = EvaluationData(data, after)
    assert streamed.sha256.startswith(FILES)
    assert streamed.identity["fingerprint"] == fingerprint(before.test, like=FILES)
    assert len(EvaluationData(data, before).sha256) == 64
