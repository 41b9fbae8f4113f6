"""Folders that hold one network in several files."""

import io
import json
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.distributed import checkpoint as distributed
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import WriteItemType

from svdctl.analysis.inspect_config import InspectConfig
from svdctl.analysis.inspect_files import run
from svdctl.checkpoint.model_factory import load_into
from svdctl.checkpoint.weight_file import read_tensors
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.errors import CheckpointError
from svdctl.evaluate.find_checkpoints import discover
from tests.checkpoint.files import TRACE, Evil, small_network, state_dict, with_pickle

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


def test_shards_share_one_limit_of_work(tmp_path: Path) -> None:
    """Each of them asks for half of what a file may ask for, and keeps it."""
    text = b"X" + struct.pack("<I", 20_000) + b"a" * 20_000 + b"q\x01X\x06\0\0\0latin1q\x02"
    encoded = b"c_codecs\nencode\nq\x03" + b"h\x03h\x01h\x02\x86R" * 700
    for number in range(6):
        with_pickle(tmp_path / f"{number}.bin", b"\x80\x02}X\2\0\0\0w%d](" % number + text + encoded + b"es.")
    placed = {f"w{number}": f"{number}.bin" for number in range(6)}
    write_index(tmp_path, dict(list(placed.items())[:1]), "pytorch_model.bin")
    assert "holds no weights" in refused(tmp_path)
    write_index(tmp_path, placed, "pytorch_model.bin")
    assert re.search(r"[1-5]\.bin asks for far more memory or work", refused(tmp_path))


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


def write_distributed(folder: Path) -> dict[str, object]:
    network = small_network()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    saved = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    distributed.save(saved, checkpoint_id=folder)
    return saved


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_is_the_dict_that_was_saved(tmp_path: Path) -> None:
    saved = write_distributed(tmp_path / "net")
    wanted = saved["model"]
    assert isinstance(wanted, dict)
    found = read_tensors(tmp_path / "net")
    assert found.tensors.keys() == wanted.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in wanted.items())
    assert found.extra["epoch"] == 3
    assert [part.what for part in found.left_out if part.name == "optimizer"] == ["the state of an optimiser"]
    rows = discover(EvaluateConfig(checkpoints=(tmp_path,))).checkpoints
    assert [row.path for row in rows] == [tmp_path / "net" / ".metadata"]


class InRows(distributed.DefaultSavePlanner):
    """Writes each tensor of two axes and more in two parts, as two processes would."""

    def create_local_plan(self):  # type: ignore[no-untyped-def]
        plan = super().create_local_plan()
        items = []
        for item in plan.items:
            size = None if item.tensor_data is None else item.tensor_data.size
            if size is None or len(size) < 2:
                items.append(item)
                continue
            for start, length in ((0, size[0] // 2), (size[0] // 2, size[0] - size[0] // 2)):
                offsets = torch.Size([start, *(0,) * (len(size) - 1)])
                chunk = ChunkStorageMetadata(offsets, torch.Size([length, *size[1:]]))
                data = replace(item.tensor_data, chunk=chunk)
                index = replace(item.index, offset=offsets, index=None)
                items.append(replace(item, index=index, type=WriteItemType.SHARD, tensor_data=data))
        return replace(plan, items=items)

    def resolve_data(self, write_item):  # type: ignore[no-untyped-def]
        if write_item.type is not WriteItemType.SHARD:
            return super().resolve_data(write_item)
        chunk = write_item.tensor_data.chunk
        whole = self.lookup_object(replace(write_item.index, offset=None))
        return whole[chunk.offsets[0] : chunk.offsets[0] + chunk.sizes[0]].clone()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_parts_of_several_processes_are_joined(tmp_path: Path) -> None:
    planner = InRows(flatten_state_dict=True, dedup_save_to_lowest_rank=False)
    distributed.save(state_dict(), checkpoint_id=tmp_path, planner=planner)
    found = read_tensors(tmp_path).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in state_dict().items())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_damaged_distributed_checkpoints_are_refused(tmp_path: Path) -> None:
    write_distributed(tmp_path)
    whole = (tmp_path / ".metadata").read_bytes()
    (tmp_path / ".metadata").write_bytes(whole.replace(b"storage_data", b"storage_dati"))
    assert "dcp_to_torch" in refused(tmp_path)
    (tmp_path / ".metadata").write_bytes(whole.replace(b"__0_0.distcp", b"../../b.disc"))
    assert "no name of a file in its folder" in refused(tmp_path)
    (tmp_path / ".metadata").write_bytes(whole[:-100])
    assert "damaged" in refused(tmp_path)
    (tmp_path / ".metadata").write_bytes(whole)
    part = (tmp_path / "__0_0.distcp").read_bytes()
    (tmp_path / "__0_0.distcp").write_bytes(part[:-5000])
    refused(tmp_path)
    (tmp_path / "__0_0.distcp").unlink()
    assert "lists '__0_0.distcp', which is not in" in refused(tmp_path)


def test_metadata_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps(Evil(), protocol=4)
    (tmp_path / ".metadata").write_bytes(evil[:2] + b"\x8c\x25torch.distributed.checkpoint.metadata0" + evil[2:])
    assert "cannot be loaded safely" in refused(tmp_path)
    assert not (tmp_path / TRACE).exists()


@pytest.mark.parametrize("count", [1, 2])
def test_parts_that_claim_far_more_than_the_folder_has_are_refused(count: int, tmp_path: Path) -> None:
    size, half = torch.Size([2**20, 2**12]), torch.Size([2**20 // count, 2**12])
    properties = TensorProperties(torch.float32)
    chunks = [ChunkStorageMetadata(torch.Size([at * half[0], 0]), half) for at in range(count)]
    places, contents = {}, b""
    for chunk in chunks:
        buffer = io.BytesIO()
        torch.save(torch.ones(1).expand(half), buffer)
        index = MetadataIndex("a", chunk.offsets)
        places[index] = _StorageInfo("__0_0.distcp", len(contents), len(buffer.getvalue()))
        contents += buffer.getvalue()
    metadata = Metadata({"a": TensorStorageMetadata(properties, size, chunks)}, None, places)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    (tmp_path / "__0_0.distcp").write_bytes(contents)
    assert "claims" in refused(tmp_path)
