"""A checkpoint cut short or with a bit changed: a sentence that names it, or exactly what was saved.

Every other file that can be read: `tests/checkpoint/test_refuse.py`.
"""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import svdctl
from svdctl.checkpoint.checkpoint_file import Checkpoint, read_checkpoint
from svdctl.config.train_config import TrainConfig
from svdctl.errors import CheckpointError
from tests.faults.small import Command, assert_equal, make, only_run, resume, state, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: weights, momentum, vectors of the control, counters."""
    folder = tmp_path_factory.mktemp("run")
    assert train(folder, make(folder, epochs=1)).end().code == 0
    return only_run(folder)


@pytest.fixture
def damaged(run: Path, tmp_path: Path) -> tuple[Path, bytes, dict[str, torch.Tensor], Checkpoint]:
    """A place for a damaged copy, the bytes, and what they hold."""
    path = tmp_path / "last.pt"
    return path, (run / "last.pt").read_bytes(), state(run), read_checkpoint(run)


def read_or_refuse(path: Path) -> Checkpoint | None:
    """What is read; None when it is refused, in one line that names the file."""
    try:
        return read_checkpoint(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        return None


def test_cut_at_50_places(damaged: tuple[Path, bytes, dict[str, torch.Tensor], Checkpoint]) -> None:
    path, whole, _, _ = damaged
    places = np.random.default_rng(0).integers(0, len(whole), 50).tolist()
    for place in {*places, 0, 1, 30, len(whole) - 22, len(whole) - 1}:
        path.write_bytes(whole[:place])
        assert read_or_refuse(path) is None, place


@pytest.mark.parametrize("where", ["anywhere", "between the numbers", "in the directory"])
def test_200_changed_bits(
    damaged: tuple[Path, bytes, dict[str, torch.Tensor], Checkpoint], where: str, tmp_path: Path
) -> None:
    """Anywhere; and where checksums do not reach: in the headers of members and in the archive's directory."""
    path, whole, numbers, saved = damaged
    generator = np.random.default_rng({"anywhere": 1, "between the numbers": 2, "in the directory": 3}[where])
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        members, directory = archive.infolist(), archive.start_dir
    refused = 0
    for _ in range(200):
        if where == "anywhere":
            place = int(generator.integers(len(whole)))
        elif where == "in the directory":
            place = int(generator.integers(directory, len(whole)))
        else:
            place = members[int(generator.integers(len(members)))].header_offset + int(generator.integers(64))
        changed = bytearray(whole)
        changed[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(changed))
        found = read_or_refuse(path)
        if found is None:
            refused += 1
        else:
            assert_equal(state(tmp_path), numbers)
            assert (found.config, found.classes, found.metrics) == (saved.config, saved.classes, saved.metrics)
            assert found.training["counters"] == saved.training["counters"]
            assert found.training["schedule"] == saved.training["schedule"]
    # Padding and fields that nothing reads are the rest.
    assert refused > (140 if where == "anywhere" else 60)


def test_a_changed_bit_in_the_numbers_is_always_noticed(
    damaged: tuple[Path, bytes, dict[str, torch.Tensor], Checkpoint],
) -> None:
    """The CRC32 of each member, which torch writes and does not read, is compared."""
    path, whole, _, _ = damaged
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        numbers = [member for member in archive.infolist() if "/data/" in member.filename and member.file_size]
    generator = np.random.default_rng(4)
    for _ in range(100):
        member = numbers[int(generator.integers(len(numbers)))]
        name = int.from_bytes(whole[member.header_offset + 26 :][:2], "little")
        extra = int.from_bytes(whole[member.header_offset + 28 :][:2], "little")
        place = member.header_offset + 30 + name + extra + int(generator.integers(member.file_size))
        changed = bytearray(whole)
        changed[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(changed))
        with pytest.raises(CheckpointError, match="checksum"):
            read_checkpoint(path)


def test_every_command_says_it_in_a_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "last.pt"
    changed = bytearray((run / "last.pt").read_bytes())
    changed[len(changed) // 2] ^= 4
    path.write_bytes(bytes(changed))
    for command in (
        resume(tmp_path, tmp_path / "run"),
        Command(["inspect-spectrum", path], tmp_path / "log"),
        Command(["eval-robust", path, "--metrics", "accuracy"], tmp_path / "log"),
    ):
        ended = command.end()
        assert ended.code != 0
        assert "Traceback" not in ended.err
        last = ended.err.splitlines()[-1]
        assert last.startswith(f"svdctl: {path} is damaged")


PARTS = {
    "no version": {"version": None},
    "another version": {"version": "two"},
    "no configuration": {"config": None},
    "a configuration that is none": {"config": "{}}"},
    "a configuration of something else": {"config": '{"epochs": "many", "nonsense": 1}'},
    "no classes": {"classes": []},
    "classes that are numbers": {"classes": [1, 2, 3]},
    "a flat image": {"image_shape": [3, 12]},
    "no weights": {"model": {}},
    "weights that are none": {"model": {"fc.weight": "text"}},
    "weights in a list": {"model": [torch.ones(2)]},
    "no metrics": {"metrics": None},
    "metrics that are text": {"metrics": {"step": "ten"}},
}


@pytest.mark.parametrize("change", PARTS.values(), ids=PARTS)
def test_a_sound_file_with_unsound_contents(run: Path, tmp_path: Path, change: dict[str, object]) -> None:
    """Written by torch.save, checksums and all: what stands in it is looked at."""
    path = tmp_path / "last.pt"
    contents = {**torch.load(run / "last.pt", weights_only=True), **change}
    torch.save({name: value for name, value in contents.items() if value is not None}, path)
    with pytest.raises(CheckpointError, match=r"last\.pt") as caught:
        svdctl.load(path)
    assert "\n" not in str(caught.value)


STATES = {
    "nothing of the optimiser": {"optimizer": {}},
    "counters that are a tensor": {"counters": torch.zeros(3)},
    "a counter beyond all floats": {"epoch": {"train_time": 10**400}},
    "groups that are a tensor": {"optimizer": {"param_groups": torch.zeros(3)}},
    "counters that do not exist": {"counters": {"step": 1, "nonsense": 2}},
    "no vectors": {"controller": {}},
    "no schedule": {"schedule": None},
    "a schedule at another step": {"schedule": {"last_epoch": 10**6}},
    "accuracies that are none": {"counters": {"step": 3, "best_accuracy": []}},
}


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_a_state_that_training_cannot_go_on_from(run: Path, tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "last.pt"
    contents = torch.load(run / "last.pt", weights_only=True)
    torch.save({**contents, "training": {**contents["training"], **change}}, path)
    ended = resume(tmp_path, path).end()
    assert ended.code == 2
    assert "does not fit" in ended.sentence


@pytest.mark.timeout(60)
@pytest.mark.parametrize("model", [{"depth": 1_996}, {"width": 10_000}, {"depth": 16}, {"width": 2}])
def test_a_configuration_far_larger_than_the_weights(run: Path, tmp_path: Path, model: dict[str, int]) -> None:
    """A few bytes cannot make a network of terabytes be built."""
    path = tmp_path / "last.pt"
    contents = torch.load(run / "last.pt", weights_only=True)
    config = TrainConfig.model_validate_json(contents["config"]).model_dump()
    config["model"].update(model)
    torch.save({**contents, "config": TrainConfig.model_validate(config).model_dump_json()}, path)
    with pytest.raises(CheckpointError, match=r"not fit the configuration"):
        svdctl.load(path)
