"""Every form in which weights come, read to the same tensors."""

import argparse
import datetime
import hashlib
import pathlib
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from svdctl.checkpoint import torch_archive
from svdctl.checkpoint.weight_file import read_tensors
from svdctl.errors import CheckpointError
from tests.checkpoint.files import rewrite_zip, save_legacy, small_network, state_dict

Save = Callable[[Any, Path], None]
SAVES: dict[str, Save] = {"new": torch.save, "old": save_legacy}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach())


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state_dict().items()}


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(7, 7, 3, 3)}}, "param_groups": [{"lr": 0.1}]}
OTHER = {name: tensor + 1 for name, tensor in state_dict().items()}
WRAPPINGS: dict[str, tuple[Any, str]] = {
    "plain": (state_dict(), ""),
    "ordered": (OrderedDict(state_dict()), ""),
    "state_dict": ({"state_dict": state_dict(), "epoch": 3}, "weights under 'state_dict'"),
    "model_state_dict": ({"model_state_dict": state_dict(), "optimizer_state_dict": OPTIMIZER}, "model_state_dict"),
    "model": ({"model": state_dict(), "optimizer": OPTIMIZER, "lr_scheduler": {"last": torch.ones(2)}}, "'model'"),
    "net": ({"net": state_dict(), "acc": 93.1}, "'net'"),
    "twice": ({"model": {"state_dict": state_dict()}}, "'model.state_dict'"),
    "data parallel": (prefixed("module."), "'module.'"),
    "compiled": (prefixed("_orig_mod."), "'_orig_mod.'"),
    "compiled and parallel": (prefixed("module._orig_mod."), "'_orig_mod.'"),
    "parallel within": ({"state_dict": prefixed("module.module.")}, "'module.'"),
    "averaged": (prefixed("module.") | {"n_averaged": torch.tensor(5)}, "'module.'"),
    "trained before average": ({"ema": OTHER, "model": state_dict(), "best": torch.tensor(0.5)}, "'model'"),
    "average alone": ({"state_dict_ema": state_dict(), "optimizer": OPTIMIZER}, "'state_dict_ema'"),
    "last before best": (
        {"best_model_state_dict": OTHER, "last_model_state_dict": state_dict(), "loss": torch.tensor(1.0)},
        "'last_model_state_dict'",
    ),
    "lightning": (
        {"state_dict": state_dict(), "pytorch-lightning_version": "2.4", "callbacks": {"x": {"best": torch.ones(3)}},
         "optimizer_states": [OPTIMIZER], "loops": {}, "hparams_name": "kwargs", "hyper_parameters": {"lr": 0.1}},
        "'state_dict'",
    ),
    "beside plain objects": (
        {"model": state_dict(), "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("a/b")),
         "when": datetime.datetime(2024, 1, 1), "best": np.float64(0.9), "curve": np.ones(3),
         "version": torch.__version__},
        "'model'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
@pytest.mark.parametrize(("contents", "told"), WRAPPINGS.values(), ids=WRAPPINGS)
def test_wrappings_are_taken_off_and_told(contents: Any, told: str, save: Save, tmp_path: Path) -> None:
    save(contents, tmp_path / "file.pt")
    found = read_tensors(tmp_path / "file.pt")
    assert_same(found.tensors, state_dict())
    assert told in found.wrapping
    assert bool(told) == bool(found.wrapping)
    assert found.format == "state dict"


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
def test_paths_as_python_3_13_writes_them(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PosixPath:
        def __reduce__(self) -> tuple[type, tuple[str, str]]:
            return type(self), ("a", "b")

    module = types.ModuleType("pathlib._local")
    module.PosixPath = PosixPath
    PosixPath.__module__, PosixPath.__qualname__ = module.__name__, "PosixPath"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        save({"model": state_dict(), "path": PosixPath()}, tmp_path / "file.pt")
    assert_same(read_tensors(tmp_path / "file.pt").tensors, state_dict())


def test_another_set_is_taken_by_its_key(tmp_path: Path) -> None:
    contents = {"epoch": 2, "model": state_dict(), "ema": {"shadow": OTHER}, "nets": {"critic": prefixed("body.")}}
    torch.save(contents, tmp_path / "file.pt")
    assert read_tensors(tmp_path / "file.pt").alternatives == ("ema", "nets")
    for key in ("ema", "ema.shadow"):
        assert_same(read_tensors(tmp_path / "file.pt", key=key).tensors, OTHER)
    for key in ("nets.critic.body",):
        assert_same(read_tensors(tmp_path / "file.pt", key=key).tensors, state_dict())
    with pytest.raises(CheckpointError, match="no weights under 'emma'; it has ema"):
        read_tensors(tmp_path / "file.pt", key="emma")
    with pytest.raises(CheckpointError, match="no weights under 'epoch'"):
        read_tensors(tmp_path / "file.pt", key="epoch")


def test_several_networks_without_a_known_name_come_together(tmp_path: Path) -> None:
    torch.save({"encoder": {"w": torch.ones(2, 2)}, "heads": [{"w": torch.zeros(3)}], "g_optim": OPTIMIZER},
               tmp_path / "file.pt")  # fmt: skip
    found = read_tensors(tmp_path / "file.pt")
    assert list(found.tensors) == ["encoder.w", "heads.0.w"]


def test_safetensors_with_their_metadata(tmp_path: Path) -> None:
    tensors = state_dict() | {"half": torch.ones(2, dtype=torch.bfloat16)}
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors", {"made": "by hand"})
    found = read_tensors(tmp_path / "w.safetensors")
    assert found.format == "safetensors"
    assert found.extra == {"made": "by hand"}
    assert {name: tuple(tensor.shape) for name, tensor in found.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())


def test_names_of_files_tell_nothing(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "w.safetensors")
    safetensors.torch.save_file(state_dict(), tmp_path / "w.pt")
    assert read_tensors(tmp_path / "w.safetensors").format == "state dict"
    assert read_tensors(tmp_path / "w.pt").format == "safetensors"


def test_the_digest_depends_on_names_and_numbers_alone(tmp_path: Path) -> None:
    torch.save({"state_dict": state_dict()}, tmp_path / "a.pt")
    save_legacy(dict(reversed(prefixed("module.").items())), tmp_path / "b.pt")
    safetensors.torch.save_file(state_dict(), tmp_path / "c.pt")
    digests = {read_tensors(tmp_path / f"{name}.pt").digest for name in "abc"}
    assert len(digests) == 1
    changed = state_dict()
    changed["0.weight"][0, 0, 0, 0] += 1e-3
    torch.save(changed, tmp_path / "d.pt")
    assert read_tensors(tmp_path / "d.pt").digest not in digests
    one = torch.arange(6.0).reshape(2, 3)
    torch.save({"w": one.T}, tmp_path / "e.pt")
    header = b"w\x00torch.float32\x00(3, 2)\x00"
    assert read_tensors(tmp_path / "e.pt").digest == hashlib.sha256(header + one.T.numpy().tobytes()).hexdigest()


def test_a_large_file_is_mapped_and_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(state_dict(), tmp_path / "a.pt")

    def is_mapped() -> bool:
        return "memfd:svdctl" in Path("/proc/self/maps").read_text(encoding="utf-8")

    plain = read_tensors(tmp_path / "a.pt")
    assert not is_mapped()
    monkeypatch.setattr(torch_archive, "VIEW_FROM", 1)
    mapped = read_tensors(tmp_path / "a.pt")
    assert_same(mapped.tensors, plain.tensors)
    assert is_mapped()
    # What is written into a tensor stays out of the file.
    mapped.tensors["0.weight"].zero_()
    assert_same(read_tensors(tmp_path / "a.pt").tensors, plain.tensors)


def test_files_written_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state_dict(), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_tensors(tmp_path / "a.pt").tensors, state_dict())


def test_parameters_views_and_tied_tensors_are_read(tmp_path: Path) -> None:
    shared = torch.randn(4, 5)
    contents = {"p": nn.Parameter(torch.randn(3)), "tied": shared, "tied again": shared, "t": shared.T,
                "row": shared[1], "wide": torch.ones(1).expand(4, 4), "none": torch.empty(0, 3)}  # fmt: skip
    torch.save(contents, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt").tensors
    assert_same(found, contents)
    assert type(found["p"]) is Tensor
    assert not found["p"].requires_grad


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation")
def test_what_is_no_ordinary_tensor_is_told_and_kept_apart(tmp_path: Path) -> None:
    contents = {
        "w": torch.ones(2, 2), "sparse": torch.eye(3).to_sparse(), "meta": torch.empty(2, device="meta"),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "state": {"a": 1}, "none": None,
    }  # fmt: skip
    torch.save(contents, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt")
    assert list(found.tensors) == ["w"]
    assert found.others == {
        "sparse": "a sparse coo tensor", "meta": "a shape without numbers", "quantized": "quantized numbers",
        "state": "a dict", "none": "nothing",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["float4_e2m1fn_x2", "bits8", "bits4x2"])
def test_tensors_that_torch_does_not_decode_are_kept_apart(name: str, tmp_path: Path) -> None:
    codes = torch.zeros(4, 4, dtype=torch.uint8).view(getattr(torch, name))
    torch.save(state_dict() | {"6.weight": codes}, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt")
    assert_same(found.tensors, state_dict())
    assert name in found.others["6.weight"]
    assert found.unread == {"6.weight"}


def test_a_checkpoint_of_an_older_torch_by_its_members(tmp_path: Path) -> None:
    """Versions before 2.1 wrote fewer members."""
    torch.save(state_dict(), tmp_path / "a.pt")
    rewrite_zip(
        tmp_path / "a.pt", lambda members: {n: c for n, c in members.items() if "/." not in n and "byteorder" not in n}
    )
    assert_same(read_tensors(tmp_path / "a.pt").tensors, state_dict())


def test_weights_inside_an_installed_package() -> None:
    package = pytest.importorskip("pyautoattack")
    path = Path(package.__file__).parent / "examples" / "model_test.pt"
    if not path.exists():
        pytest.skip("this version ships no weights")
    found = read_tensors(path)
    assert found.format == "state dict"
    assert found.tensors["conv1.weight"].shape == (64, 3, 3, 3)


NAMES = st.text(st.sampled_from("abé_1"), min_size=1, max_size=3)
TENSORS = st.lists(st.integers(0, 3), max_size=4).map(torch.zeros)
TREES = st.recursive(
    TENSORS | st.integers() | st.none() | st.text(max_size=3),
    lambda inner: st.dictionaries(NAMES | st.integers(0, 3), inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=12,
)


def shapes_below(tree: Any, at: str = "") -> dict[str, tuple[int, ...]]:
    if isinstance(tree, Tensor):
        return {at: tuple(tree.shape)}
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found: dict[str, tuple[int, ...]] = {}
    for name, part in parts:
        found |= shapes_below(part, f"{at}.{name}" if at else str(name))
    return found


@given(tree=st.dictionaries(NAMES, TREES, max_size=4), old=st.booleans())
def test_any_nesting_is_flattened_or_refused(
    tree: dict[str, Any], old: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tree") / "file.pt"
    SAVES["old" if old else "new"](tree, path)
    wanted = shapes_below(tree)
    try:
        found = read_tensors(path).tensors
    except CheckpointError as error:
        assert not wanted or "of the name" in str(error)
    else:
        assert {name: tuple(tensor.shape) for name, tensor in found.items()} == wanted


def test_a_network_of_parametrised_modules_keeps_every_name(tmp_path: Path) -> None:
    model = small_network()
    nn.utils.parametrizations.weight_norm(model[0])
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert_same(read_tensors(tmp_path / "a.pt").tensors, dict(model.state_dict()))
