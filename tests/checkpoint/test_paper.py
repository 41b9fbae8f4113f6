"""Checkpoints of the paper's public code: the same logits from svdctl's own networks."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import svdctl
from svdctl.analysis import inspect_files
from svdctl.analysis.inspect_config import InspectConfig
from svdctl.analysis.network_spectrum import spectrum
from svdctl.checkpoint.paper_checkpoints import architecture_of, normalization, paper_network
from svdctl.checkpoint.stored_layers import stored_layers
from svdctl.checkpoint.weight_file import read_tensors
from svdctl.errors import CheckpointError, UsageError
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT
from svdctl.layers.tt import TTConv2d
from tests.checkpoint.files import small_network
from tests.checkpoint.public import PublicLipConv, PublicVgg, PublicWrn, public_tt, settle

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def save(model: nn.Module, path: Path) -> Path:
    torch.save({"epoch": 3, "model_state_dict": model.state_dict(), "optimizer_state_dict": {"state": {}},
                "loss": torch.tensor(0.3, requires_grad=True)}, path)  # fmt: skip
    return path


def assert_same_logits(public: nn.Module, path: Path, **told: object) -> nn.Module:
    found = read_tensors(path)
    assert found.format == "paper"
    ours = paper_network(found.tensors, where=path.name, mean=MEAN, std=STD, **told)
    pixels = torch.rand(3, 3, 32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    with torch.no_grad():
        wanted, logits = public((pixels - mean) / std), ours(pixels)
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert float(wanted.std()) > 1e-3
    return ours


@pytest.mark.parametrize(
    ("depth", "width", "classes", "rank", "share", "spare"),
    [
        (16, 1, 10, None, None, None),
        (10, 2, 100, None, None, None),
        (16, 2, 10, 24, None, None),
        (10, 2, 7, 40, None, "conv1"),
        (10, 1, 10, 500, None, None),
        (10, 2, 10, None, 0.5, None),
        (10, 1, 10, None, 1.0, None),
    ],
)
def test_wide_residual_networks(
    depth: int, width: int, classes: int, rank: int | None, share: float | None, spare: str | None, tmp_path: Path
) -> None:
    torch.manual_seed(depth + width)
    public = PublicWrn(depth, width, classes)
    if rank or share:
        public_tt(public, rank, share, spare)
    path = save(settle(public), tmp_path / "wrn.pth")
    told = architecture_of(public.state_dict())
    assert told is not None
    assert (told.name, told.classes) == (f"wrn{depth}-{width}", classes)
    ours = assert_same_logits(public, path, architecture=told.name, rank=rank)
    if rank or share:
        assert sum(isinstance(layer, TTConv2d) for layer in ours.modules()) == depth - 3 - (spare is not None)


@pytest.mark.parametrize("rank", [None, 40])
def test_vgg(rank: int | None, tmp_path: Path) -> None:
    torch.manual_seed(1)
    public = PublicVgg(10)
    if rank:
        public_tt(public, rank)
    ours = assert_same_logits(settle(public), save(public, tmp_path / "vgg.pth"), architecture="vgg19", rank=rank)
    assert not any(parameter.is_meta for parameter in ours.parameters())


@pytest.mark.parametrize(
    ("blocks", "classes", "width", "rank"),
    [(1, 10, 4, None), (2, 100, 8, None), (1, 10, 8, 24), (2, 10, 4, 16), (1, 10, 4, 500)],
)
def test_lipschitz_networks(blocks: int, classes: int, width: int, rank: int | None, tmp_path: Path) -> None:
    torch.manual_seed(blocks + width)
    public = PublicLipConv(blocks, classes, width, rank).eval()
    told = architecture_of(public.state_dict())
    assert told is not None
    assert (told.name, told.classes, told.depth, told.width) == ("lipconv", classes, 5 * blocks, width)
    best = PublicLipConv(blocks, classes, width, rank).state_dict()
    contents = {"epoch": 1, "best_model_state_dict": best, "last_model_state_dict": public.state_dict()}
    torch.save(contents, tmp_path / "lip.pth")
    ours = assert_same_logits(public, tmp_path / "lip.pth", architecture="lipconv", rank=rank)
    kind = SOC if rank is None else SOTT
    assert sum(isinstance(layer, kind) for layer in ours.modules()) == 5 * blocks + 1
    assert not any(parameter.is_meta for parameter in [*ours.parameters(), *ours.buffers()])


@pytest.mark.parametrize("rank", [None, 20])
def test_lipschitz_networks_of_other_layers(rank: int | None, tmp_path: Path) -> None:
    torch.manual_seed(3)
    public = PublicLipConv(1, 10, 4, None, plain=True)
    if rank:
        public_tt(public, rank)
    torch.save(public.state_dict(), tmp_path / "last.pth")
    assert_same_logits(public.eval(), tmp_path / "last.pth", rank=rank)


def test_a_skew_layer_that_cannot_be_run_is_told() -> None:
    tensors = dict(PublicLipConv(1, 10, 4, None).state_dict())
    tensors["layer2.0.conv.u3"] = -tensors["layer2.0.conv.u3"]
    with pytest.raises(CheckpointError, match=r"layer2\.0\.conv cannot be run"):
        paper_network(tensors, where="a.pth", mean=MEAN, std=STD)
    tensors["layer2.0.conv.random_conv_filter"] = torch.ones(3, 3, 3, 3)
    with pytest.raises(CheckpointError, match=r"layer2\.0\.conv"):
        paper_network(tensors, where="a.pth", mean=MEAN, std=STD)


def test_the_network_does_not_hang_on_to_the_file(tmp_path: Path) -> None:
    public = settle(PublicWrn(10, 1, 10))
    tensors = read_tensors(save(public, tmp_path / "a.pth")).tensors
    ours = paper_network(tensors, where="a.pth", mean=MEAN, std=STD)
    before = ours.state_dict()["fc.weight"].clone()
    tensors["fc.weight"].zero_()
    assert torch.equal(ours.state_dict()["fc.weight"], before)
    ours(torch.rand(1, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


def test_what_the_user_says_is_checked() -> None:
    public = PublicWrn(10, 2, 10)
    public_tt(public, 24)
    tensors = dict(public.state_dict())
    for told, why in (({"architecture": "vgg19"}, "holds a wrn10-2, not vgg19"), ({"rank": 32}, "of rank 24, not 32")):
        with pytest.raises(CheckpointError, match=why):
            paper_network(tensors, where="a.pth", mean=MEAN, std=STD, **told)
    with pytest.raises(CheckpointError, match="of rank 0, not 24"):
        paper_network(dict(PublicWrn(10, 1, 10).state_dict()), where="a.pth", mean=MEAN, std=STD, rank=24)
    with pytest.raises(CheckpointError, match="does not have the names"):
        paper_network(dict(small_network().state_dict()), where="a.pth", mean=MEAN, std=STD)


def test_parts_that_do_not_fit_are_told() -> None:
    public = PublicWrn(10, 2, 10)
    public_tt(public, 24)
    tensors = dict(public.state_dict())
    name = "layer2.0.conv1"
    with pytest.raises(CheckpointError, match=rf"parts of {name}"):
        paper_network(tensors | {f"{name}.K1": torch.ones(5, 24)}, where="a.pth", mean=MEAN, std=STD)
    with pytest.raises(CheckpointError, match="does not fit a wrn10-2"):
        paper_network(tensors | {"layer2.0.bn1.weight": torch.ones(5)}, where="a.pth", mean=MEAN, std=STD)


def test_other_networks_are_not_taken_for_the_papers() -> None:
    torchvision = pytest.importorskip("torchvision")
    for model in (torchvision.models.resnet18(), torchvision.models.vgg11_bn(), small_network()):
        assert architecture_of(dict(model.state_dict())) is None


def test_normalisation_of_the_public_code() -> None:
    wrn = architecture_of(PublicWrn(10, 1, 100).state_dict())
    vgg = architecture_of(PublicVgg(10).state_dict())
    assert wrn is not None
    assert vgg is not None
    assert tuple(normalization(wrn)["mean"]) == (0.5071, 0.4867, 0.4408)
    assert tuple(normalization(wrn, gouk_transforms=True)["std"]) == (0.5, 0.5, 0.5)
    assert tuple(normalization(vgg)["mean"]) == (0.5, 0.5, 0.5)


def test_every_layer_of_a_tt_file_is_analysed() -> None:
    public = settle(PublicWrn(10, 2, 10))
    public_tt(public, 24)
    layers = stored_layers(dict(public.state_dict()))
    assert not [layer.reason for layer in layers if layer.reason]
    assert {layer.kind for layer in layers} == {"tt", "batchnorm", "linear"}


@pytest.mark.parametrize("kind", ["wrn", pytest.param("vgg", marks=pytest.mark.slow), "lipconv"])
def test_the_library_and_the_spectrum_know_network_sizes_and_normalisation(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    if kind == "wrn":
        public: nn.Module = PublicWrn(10, 1, 100)
        public_tt(public, 8)
        mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    elif kind == "vgg":
        public = PublicVgg(10)
        mean, std = (0.5,) * 3, (0.5,) * 3
    else:
        public = PublicLipConv(1, 10, 4, rank=6)
        mean, std = (0.4914, 0.4822, 0.4465), (0.2507,) * 3
    path = save(settle(public), tmp_path / f"{kind}.pth")
    pixels = torch.rand(2, 3, 32, 32)

    def assert_same(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
        with torch.no_grad():
            wanted, logits = public((pixels - shift) / scale), model(pixels)
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))

    model = svdctl.load(path)
    assert not model.training
    assert_same(model, mean, std)
    assert_same(svdctl.load(path, mean=MEAN, std=STD), MEAN, STD)
    with pytest.raises(UsageError, match="belong together"):
        svdctl.load(path, mean=MEAN)
    if kind == "wrn":
        assert_same(svdctl.load(path, gouk_transforms=True), (0.5,) * 3, (0.5,) * 3)
    chosen = "features.43" if kind == "vgg" else "*"
    [found] = inspect_files.run(InspectConfig(files=(path,), layers=(chosen,)))
    assert "a checkpoint of the paper's code" in found.name
    rows = {row.name: row for row in found}
    expected = {row.name: row for row in spectrum(model, (3, 32, 32), layers=chosen)}
    assert {name: rows[name].bound for name in expected} == {name: row.bound for name, row in expected.items()}
    assert rows.keys() - expected.keys() <= {"loss", "optimizer_state_dict"}
    name, size, stride = {
        "wrn": ("layer3.0.conv1", (16, 16), (2, 2)),
        "vgg": ("features.43", (2, 2), (1, 1)),
        "lipconv": ("layer3.0.conv", None, None),
    }[kind]
    assert size is None or (rows[name].input_size, rows[name].stride) == (size, stride)
