"""What stands beside weights, of any library, is described and never built; tensors of others are read where plain."""

import datetime
import enum
import sys
import types
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from svdctl.checkpoint.weight_file import read_tensors
from svdctl.errors import CheckpointError
from tests.checkpoint.files import save_legacy, state_dict

SAVES = {"new": torch.save, "old": save_legacy}


def class_of(name: str, bases: tuple[type, ...] = (object,), **body: Any) -> type:
    """A class of a library that is not installed, importable while the test writes its file."""
    module, _, last = name.rpartition(".")
    made = type(last, bases, {"__module__": module, "__qualname__": last, **body})
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:count]), types.ModuleType(".".join(parts[:count])))
    setattr(sys.modules[module], last, made)
    return made


@contextmanager
def foreign_modules() -> Iterator[None]:
    """Modules of libraries that `class_of` adds are removed afterwards; those that are installed are there again."""
    installed = {name: module for name, module in sys.modules.items() if name.split(".")[0] in FOREIGN}
    for name in installed:
        del sys.modules[name]
    yield
    for name in list(sys.modules):
        if name.split(".")[0] in FOREIGN:
            del sys.modules[name]
    sys.modules.update(installed)


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Modules that a test adds are removed."""
    with foreign_modules():
        yield


FOREIGN = {"mmengine", "omegaconf", "lightning", "pytorch_lightning", "users", "addict"}


class Color(enum.Enum):
    RED = 1


def things() -> dict[str, Any]:
    attribute_dict = class_of("lightning.fabric.utilities.data.AttributeDict", (dict,))
    config_dict = class_of("mmengine.config.config.ConfigDict", (dict,))
    history = class_of("mmengine.logging.history_buffer.HistoryBuffer")()
    history.log = np.ones(3)
    node = class_of("omegaconf.dictconfig.DictConfig")()
    child = class_of("omegaconf.nodes.AnyNode")()
    node.content, child.parent = {"lr": child}, node
    listed = class_of("omegaconf.listconfig.ListConfig", (list,))([1, 2])
    own = class_of("users.train.Settings")()
    own.values = {"a": [1, own]}
    reduced = class_of("users.train.State", __reduce__=lambda self: (type(self), ("a", {"b": 1})))()
    return {
        "hparams": attribute_dict(lr=0.1, sizes=[1, 2]), "cfg": config_dict(model=config_dict(type="ResNet")),
        "history": history, "conf": node, "list": listed, "own": own, "reduced": reduced, "enum": Color.RED,
        "counts": defaultdict(list, a=[1]), "when": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), "class": Color,
        "delta": datetime.timedelta(1), "range": range(3), "slice": slice(1), "frozen": frozenset({1}),
        "function": np.mean, "strings": np.array(["a", "b"]), "number": np.int64(3),
    }  # fmt: skip


def number_of_things() -> int:
    with foreign_modules():
        return len(things())


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
def test_objects_of_any_library_beside_weights_hinder_nothing(save: Any, tmp_path: Path, forgotten: None) -> None:
    save({"state_dict": state_dict(), **things()}, tmp_path / "a.pt")
    for name in [name for name in sys.modules if name.split(".")[0] in FOREIGN]:
        del sys.modules[name]
    found = read_tensors(tmp_path / "a.pt")
    assert {name: tensor.tolist() for name, tensor in found.tensors.items()} == {
        name: tensor.tolist() for name, tensor in state_dict().items()
    }
    assert not [name for name in sys.modules if name.split(".")[0] in FOREIGN]
    assert found.extra["number"] == 3
    assert found.alternatives in ((), ("history",))


def test_objects_among_weights_are_named(tmp_path: Path) -> None:
    contents = {**state_dict(), "when": datetime.datetime(2024, 1, 1), "names": np.array(["a"]), "kind": Color.RED}
    torch.save(contents, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt")
    assert list(found.tensors) == list(state_dict())
    assert found.others["when"] == "an object of the class datetime.datetime"
    assert found.others["names"] == "a numpy array"
    assert "Color" in found.others["kind"]


def test_a_network_saved_whole_is_named(tmp_path: Path) -> None:
    for contents in ({"model": nn.Linear(2, 2), "epoch": 3}, {"epoch": 1, "ema": {"x": nn.Linear(2, 2)}}):
        torch.save(contents, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=r"a\.pt .*torch\.nn\.modules\.linear\.Linear.*state_dict\(\)"):
            read_tensors(tmp_path / "a.pt")
    torch.save({"state_dict": state_dict(), "ema": nn.Linear(2, 2)}, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt")
    assert list(found.tensors) == list(state_dict())
    assert [part.name for part in found.left_out if part.may_hold_weights] == ["ema"]


def test_dicts_and_lists_of_other_classes_are_looked_into(tmp_path: Path, forgotten: None) -> None:
    wrapped = class_of("addict.addict.Dict", (dict,))(state_dict=class_of("users.StateDict", (dict,))(state_dict()))
    torch.save(wrapped, tmp_path / "a.pt")
    assert list(read_tensors(tmp_path / "a.pt").tensors) == list(state_dict())
    torch.save({"layers": class_of("users.Layers", (list,))([torch.ones(2), torch.ones(3)])}, tmp_path / "a.pt")
    assert list(read_tensors(tmp_path / "a.pt").tensors) == ["layers.0", "layers.1"]
    torch.save(defaultdict(dict, a={"w": torch.ones(2)}), tmp_path / "a.pt")
    assert list(read_tensors(tmp_path / "a.pt").tensors) == ["a.w"]


NUMBERS = ["f2", "f4", "f8", ">f4", "i1", "i2", ">i8", "u1", "u2", "b1", "c8", "c16"]


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
def test_arrays_of_numpy_are_tensors(save: Any, tmp_path: Path) -> None:
    arrays = {kind: np.arange(6).reshape(2, 3).astype(kind) for kind in NUMBERS}
    arrays |= {
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "one": np.array(2.5),
        "none": np.zeros((0, 3)),
    }
    save({"w": torch.ones(1), **arrays}, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt").tensors
    for name, array in arrays.items():
        wanted = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        assert found[name].dtype == wanted.dtype
        assert found[name].shape == wanted.shape
        assert torch.equal(found[name], wanted)


class OfXla:
    """As torch-xla's tensors are pickled, in the forms of several versions."""

    def __init__(self, name: str, data: Any, dtype: torch.dtype) -> None:
        self.parts = getattr(torch._utils, name), (data, dtype, "xla:0", False)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def test_tensors_of_torch_xla_are_read(tmp_path: Path) -> None:
    numbers = torch.arange(4.0).reshape(2, 2)
    contents = {
        "a": OfXla("_rebuild_device_tensor_from_numpy", numbers.numpy(), torch.float32),
        "b": OfXla("_rebuild_device_tensor_from_cpu_tensor", numbers, torch.bfloat16),
        "c": OfXla("_rebuild_xla_tensor", numbers.numpy(), torch.float64),
    }
    torch.save(contents, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt").tensors
    for name, dtype in (("a", torch.float32), ("b", torch.bfloat16), ("c", torch.float64)):
        assert torch.equal(found[name], numbers.to(dtype))


@pytest.fixture
def processes() -> Iterator[Any]:
    """A mesh of two processes, of which this is the first and the other does not exist."""
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    destroy_process_group()


def test_distributed_tensors_are_read_where_a_process_has_all_of_them(processes: Any, tmp_path: Path) -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    whole, half = torch.arange(8.0).reshape(4, 2), torch.ones(2, 2)
    contents = {
        "whole": DTensor.from_local(whole, processes, [Replicate()], run_check=False),
        "half": DTensor.from_local(half, processes, [Shard(0)], run_check=False),
        "terms": DTensor.from_local(whole, processes, [Partial()], run_check=False),
    }
    torch.save(contents, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt")
    assert list(found.tensors) == ["whole"]
    assert torch.equal(found.tensors["whole"], whole)
    assert type(found.tensors["whole"]) is Tensor
    assert "DTensor" in found.others["half"]
    assert "DTensor" in found.others["terms"]
    assert found.unread == {"half", "terms"}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_that_only_their_library_reads_are_named(tmp_path: Path) -> None:
    jagged = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])
    torch.save({"w": torch.ones(2), "n": jagged}, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt")
    assert list(found.tensors) == ["w"]
    assert "a tensor of the class" in found.others["n"]
    assert found.unread == {"n"}
    torch.save({"n": jagged}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="'n' is a tensor of the class"):
        read_tensors(tmp_path / "a.pt")


# Programs.


def advice(path: Path) -> str:
    """What the sentence says to run."""
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    _, _, told = str(caught.value).partition("where it came from, ")
    return told.removesuffix(" writes its weights")


@pytest.mark.filterwarnings("ignore")
def test_the_advice_for_torchscript_and_exported_programs_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU()).eval()
    torch.jit.trace(model, torch.ones(1, 2)).save(tmp_path / "program.pt")
    torch.export.save(torch.export.export(model, (torch.ones(1, 2),)), tmp_path / "program.pt2")
    for name in ("program.pt", "program.pt2"):
        exec(advice(tmp_path / name), {"torch": torch, "path": name})
        found = read_tensors(tmp_path / "weights.pt").tensors
        assert torch.equal(found["0.weight"], model[0].weight)
        (tmp_path / "weights.pt").unlink()


def test_files_that_hold_nothing_say_so(tmp_path: Path) -> None:
    for contents in ({}, {"a": {}}):
        torch.save(contents, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=r"a\.pt holds no(thing;| weights, only 'a' \(empty\);)"):
            read_tensors(tmp_path / "a.pt")
