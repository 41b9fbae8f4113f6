"""Folders that hold one network in several files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from svdctl.analysis.inspect_config import InspectConfig
from svdctl.analysis.inspect_files import run
from svdctl.checkpoint.model_factory import load_into
from svdctl.checkpoint.weight_file import read_tensors
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.errors import CheckpointError
from svdctl.evaluate.find_checkpoints import discover
from tests.checkpoint.files import small_network, state_dict

Save = Callable[[dict[str, Tensor], Path], None]
SAVES: dict[str, Save] = {
    "model.safetensors": lambda tensors, path: safetensors.torch.save_file(tensors, path, {"format": "pt"}),
    "pytorch_model.bin": torch.save,
}


def write_shards(folder: Path, name: str = "model.safetensors", parts: int = 3) -> dict[str, str]:
    """Write a state dict as `save_pretrained` does; return the `weight_map`."""
    stem, suffix = name.rsplit(".", 1)
    tensors = state_dict()
    placed: dict[str, str] = {}
    folder.mkdir(exist_ok=True)
    for part in range(parts):
        shard = f"{stem}-{part + 1:05}-of-{parts:05}.{suffix}"
        held = {name: tensors[name] for name in list(tensors)[part::parts]}
        SAVES[name](held, folder / shard)
        placed |= dict.fromkeys(held, shard)
    write_index(folder, placed, name)
    return placed


def write_index(folder: Path, placed: object, name: str = "model.safetensors") -> None:
    contents = {"metadata": {"total_size": 1}, "weight_map": placed}
    (folder / f"{name}.index.json").write_text(json.dumps(contents, indent=2))


@pytest.mark.parametrize("name", SAVES)
def test_shards_are_one_file(name: str, tmp_path: Path) -> None:
    write_shards(tmp_path / "net", name)
    (tmp_path / "net" / "config.json").write_text("{}")
    for path in (tmp_path / "net", tmp_path / "net" / f"{name}.index.json"):
        found = read_tensors(path)
        assert found.tensors.keys() == state_dict().keys()
        assert all(torch.equal(found.tensors[key], tensor) for key, tensor in state_dict().items())
        assert found.format == ("safetensors" if name == "model.safetensors" else "state dict")
    torch.save(state_dict(), tmp_path / "whole.pt")
    assert found.digest == read_tensors(tmp_path / "whole.pt").digest
    assert torch.equal(load_into(small_network(), found)[0].weight, state_dict()["0.weight"])
    folder, whole = run(InspectConfig(files=(tmp_path / "net", tmp_path / "whole.pt"), max_sigma=1e3))
    figures = ({row.name: (row.bound, row.gate) for row in network} for network in (folder, whole))
    assert next(figures) == next(figures)


@pytest.mark.parametrize("name", SAVES)
def test_the_one_file_of_a_folder(name: str, tmp_path: Path) -> None:
    SAVES[name](state_dict(), tmp_path / name)
    assert read_tensors(tmp_path).path == tmp_path / name


def test_eval_robust_takes_shards_for_one_checkpoint(tmp_path: Path) -> None:
    write_shards(tmp_path / "net")
    found = discover(EvaluateConfig(checkpoints=(tmp_path,)))
    assert [checkpoint.path for checkpoint in found.checkpoints] == [tmp_path / "net" / "model.safetensors.index.json"]
    assert not found.faults


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    told = refused(tmp_path)
    assert "lists 'model-00002-of-00003.safetensors', which is not in" in told
    assert "download" in told


@pytest.mark.parametrize("name", ["../b.safetensors", "/b.safetensors", "..", ".", "", "a/../b", "a\0b", "..\\b"])
def test_names_outside_of_the_folder_are_not_read(name: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(state_dict(), tmp_path / "b.safetensors")
    write_index(tmp_path, dict.fromkeys(state_dict(), name))
    assert "no name of a file in its folder" in refused(tmp_path)


def test_links_out_of_the_folder_are_not_read(tmp_path: Path) -> None:
    placed = write_shards(tmp_path / "net")
    shard = tmp_path / "net" / placed["0.weight"]
    shutil.move(shard, tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    assert "is a link out of" in refused(tmp_path / "net")


def test_snapshots_of_the_hub_are_links_to_its_blobs(tmp_path: Path) -> None:
    write_shards(tmp_path / "net")
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0f3c", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted((tmp_path / "net").iterdir())):
        shutil.move(file, blobs / f"{number:064x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:064x}")
    assert read_tensors(snapshot).tensors.keys() == state_dict().keys()


def test_each_tensor_is_there_once(tmp_path: Path) -> None:
    placed = write_shards(tmp_path)
    write_index(tmp_path, placed | {"further.weight": placed["0.weight"]})
    assert "lists 'further.weight', which no shard holds" in refused(tmp_path)
    safetensors.torch.save_file({"0.weight": torch.ones(1)}, tmp_path / "again.safetensors")
    write_index(tmp_path, placed | {"further.weight": "again.safetensors"})
    assert "'0.weight' is in two of its shards" in refused(tmp_path)


@pytest.mark.parametrize("placed", [None, {}, [], {"a": 3}, {"a": None}])
def test_an_index_without_names(placed: object, tmp_path: Path) -> None:
    write_index(tmp_path, placed)
    assert "no index of weights" in refused(tmp_path)


def test_shards_of_other_kinds_are_refused(tmp_path: Path) -> None:
    placed = write_shards(tmp_path)
    (tmp_path / placed["0.weight"]).write_text('{"weight_map": {}}')
    assert "a text (a web page or JSON?), not a file of weights" in refused(tmp_path)
    torch.save([torch.ones(2)], tmp_path / placed["0.weight"])
    assert "no dict of weights" in refused(tmp_path)
    write_index(tmp_path, {"a": "model.safetensors.index.json"})
    assert "which is no file of weights" in refused(tmp_path)
