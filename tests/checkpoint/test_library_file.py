"""Files of `svdctl.save`: any network with svdctl's layers comes back, and strangers' files do no harm."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import svdctl
from svdctl.analysis.inspect_config import InspectConfig
from svdctl.analysis.inspect_files import run as inspect_files
from svdctl.checkpoint.library_file import read_description
from svdctl.checkpoint.weight_file import read_tensors
from svdctl.errors import CheckpointError, UsageError

SUFFIXES = ("pt", "safetensors")


class Net(nn.Module):
    """A network of ordinary layers, one of which stands in two places."""

    def __init__(self, width: int = 8, stride: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act: nn.Module = nn.ReLU()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, stride=stride),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect", groups=2),
        )
        self.again = self.stem
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(self.act(self.norm(self.stem(x)))).mean((2, 3)))
        return found


def framed(kind: str) -> Net:
    net = Net()
    stem = svdctl.TTConv2d(3, 8, 3, rank=2, padding=1, frames=kind)  # type: ignore[arg-type]
    net.stem = net.again = stem  # type: ignore[assignment]
    return net


def orthogonal() -> Net:
    net = Net()
    svdctl.orthogonalize_(net, ["stem", "body.0", "head"])
    return net


def sott() -> Net:
    net = Net()
    net.body[0] = svdctl.SOTT(8, 8, 3, rank=(4, 3), stride=2, eval_terms=9)
    net.act = svdctl.MinMax()
    return net


def normed() -> Net:
    net = Net()
    svdctl.parametrize.spectral_norm(net.body[0], max_sigma=0.5)
    svdctl.parametrize.spectral_norm(net.body[1], max_sigma="learnable")
    svdctl.parametrize.spectral_norm(net.head, max_sigma=0.25, mode="normalize")
    return net


class OneTap(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body[0] = nn.Conv2d(8, 8, 1, groups=2)


def one_tap() -> OneTap:
    net = OneTap()
    svdctl.parametrize.orthogonal(net.body[0])
    svdctl.parametrize.orthogonal(net.head)
    return net


NETWORKS: dict[str, Callable[[], Net]] = {
    "ordinary": Net,
    "tt": lambda: framed("retract"),
    "tt, parametrised frames": lambda: framed("parametrize"),
    "orthogonal": orthogonal,
    "sott and minmax": sott,
    "spectral norms": normed,
    "orthogonal matrices": one_tap,
}


def in_use(net: Net) -> Net:
    """The network after a pass in training mode."""
    torch.manual_seed(0)
    net.train()(torch.randn(4, 3, 8, 8))
    return net.eval()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_a_network_comes_back(make: Callable[[], Net], suffix: str, tmp_path: Path) -> None:
    net, x = in_use(make()), torch.rand(2, 3, 8, 8)
    svdctl.save(net, tmp_path / f"net.{suffix}")
    given = OneTap() if isinstance(net, OneTap) else Net()
    found = svdctl.load(tmp_path / f"net.{suffix}", given)
    assert found is given
    assert not any(module.training for module in found.modules())
    assert torch.equal(found(x), net(x))
    assert found.again is found.stem
    assert str(found) == str(net)
    assert found.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_network_that_has_the_layers_already_keeps_them(suffix: str, tmp_path: Path) -> None:
    net = in_use(framed("retract"))
    svdctl.save(net, tmp_path / f"net.{suffix}")
    given = framed("retract")
    stem = given.stem
    assert svdctl.load(tmp_path / f"net.{suffix}", given).stem is stem
    assert torch.equal(given.stem.core, net.stem.core)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ours", "ordinary"),
    [
        (svdctl.TTConv1d(4, 6, 5, rank=2, stride=2), nn.Conv1d(4, 6, 5, stride=2)),
        (svdctl.TTConv3d(4, 6, 3, rank=2, padding=1), nn.Conv3d(4, 6, 3, padding=1)),
        (svdctl.SOC(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1)),
    ],
)
def test_a_bare_layer_is_returned_in_the_place_of_another(ours: nn.Module, ordinary: nn.Module, tmp_path: Path) -> None:
    svdctl.save(ours, tmp_path / "layer.pt")
    found = svdctl.load(tmp_path / "layer.pt", ordinary)
    assert str(found) == str(ours)
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in found.state_dict().items())


def test_types_stay_those_of_the_given_network(tmp_path: Path) -> None:
    net = in_use(framed("retract"))
    svdctl.save(net, tmp_path / "net.pt")
    assert {value.dtype for value in svdctl.load(tmp_path / "net.pt", Net().double()).parameters()} == {torch.float64}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_views_of_one_memory_in_two_shapes_are_written(suffix: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(3, 4, 1))
    net[1].weight = nn.Parameter(net[0].weight.detach().view(4, 3, 1, 1))
    svdctl.save(net, tmp_path / f"net.{suffix}")
    given = svdctl.load(tmp_path / f"net.{suffix}", nn.Sequential(nn.Linear(3, 4), nn.Conv2d(3, 4, 1)))
    assert all(torch.equal(given.state_dict()[name], tensor) for name, tensor in net.state_dict().items())


def test_tied_and_partial_tensors_are_written_once(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    net[1].weight = net[0].weight
    net.register_buffer("part", torch.rand(1000, 64)[3])
    for suffix in SUFFIXES:
        path = tmp_path / f"net.{suffix}"
        svdctl.save(net, path)
        assert path.stat().st_size < 2 * 64 * 64 * 4
        given = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
        given.register_buffer("part", torch.zeros(64))
        svdctl.load(path, given)
        assert torch.equal(given[1].weight, net[0].weight)
        assert torch.equal(given[0].weight, net[0].weight)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_configuration_and_control_are_kept(suffix: str, tmp_path: Path) -> None:
    net = Net()
    maxima = {"stem": 2.0, "body.*": 1.5}
    control = svdctl.Controller(net, method="clip", max_sigma=maxima, batchnorm_max=4.0, layers=["stem", "body.*"])
    svdctl.save(net, tmp_path / f"net.{suffix}", config={"epochs": [1, 2]}, control=control)
    told = read_description(tmp_path / f"net.{suffix}")
    assert told.network == "Net"
    assert told.config == {"epochs": [1, 2]}
    assert told.control is not None
    assert told.control["control"]["max_sigma"] == 2.0
    assert told.control["maxima"] == {"stem": 2.0, "body.0": 1.5, "body.1": 1.5}
    assert told.control["batchnorm"]["max_gain"] == 4.0


def test_others_read_the_weights(tmp_path: Path) -> None:
    net = framed("retract")
    svdctl.save(net, tmp_path / "net.pt")
    svdctl.save(net, tmp_path / "net.safetensors")
    state = torch.load(tmp_path / "net.pt", weights_only=True)["model"]
    assert torch.equal(state["stem.core"], net.stem.core)  # type: ignore[arg-type]
    assert torch.equal(safetensors.torch.load_file(tmp_path / "net.safetensors")["stem.core"], state["stem.core"])


def test_what_cannot_be_written_is_a_sentence_and_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(b"before")
    with pytest.raises(UsageError, match=r"neither \.pt nor \.safetensors"):
        svdctl.save(Net(), tmp_path / "net.bin")
    with pytest.raises(UsageError, match="what JSON does not"):
        svdctl.save(Net(), path, config={"a": object()})
    with pytest.raises(CheckpointError, match="meta device"):
        svdctl.save(Net().to("meta"), path)
    sparse = Net()
    sparse.register_buffer("mask", torch.eye(4).to_sparse())
    with pytest.raises(CheckpointError, match="sparse"):
        svdctl.save(sparse, path)
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_a_network_the_sentence_says_how(suffix: str, tmp_path: Path) -> None:
    svdctl.save(framed("retract"), tmp_path / f"net.{suffix}")
    with pytest.raises(CheckpointError, match=r"give the network: svdctl\.load\(path, model=Net\(\)\)$"):
        svdctl.load(tmp_path / f"net.{suffix}")


class Other(Net):
    """Another class of the same layers."""


class Own(nn.Conv2d):
    """A layer of somebody's own."""


def with_own() -> Net:
    net = Net()
    net.stem = net.again = Own(3, 8, 3, padding=1)
    return net


MISFITS: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: Net(width=4), "out_channels"),
    (lambda: Net(stride=1), "saved with stride"),
    (lambda: nn.Sequential(nn.Conv2d(3, 8, 3)), r"the file is of a 'Net', this is a Sequential\).*no layer 'stem'"),
    (with_own, "is a Own, which is not replaced"),
]


@pytest.mark.parametrize(("make", "text"), MISFITS)
def test_what_does_not_fit_changes_nothing(make: Callable[[], nn.Module], text: str, tmp_path: Path) -> None:
    svdctl.save(in_use(framed("retract")), tmp_path / "net.pt")
    given = make()
    before, printed = {name: value.clone() for name, value in given.state_dict().items()}, str(given)
    with pytest.raises(CheckpointError, match=text):
        svdctl.load(tmp_path / "net.pt", given)
    assert str(given) == printed
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


def test_further_tensors_of_the_network_are_named_and_another_class_is_none(tmp_path: Path) -> None:
    net = in_use(framed("retract"))
    svdctl.save(net, tmp_path / "net.pt")
    assert torch.equal(svdctl.load(tmp_path / "net.pt", Other()).head.weight, net.head.weight)
    given = Other()
    given.scale = nn.Parameter(torch.ones(1))  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match=r"'Net', this is a Other\): the file lacks 'scale'"):
        svdctl.load(tmp_path / "net.pt", given)
    assert isinstance(given.stem, nn.Conv2d)


def test_another_file_is_not_put_into_a_network(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "bare.pt")
    with pytest.raises(CheckpointError, match=r"not a file of svdctl\.save"):
        svdctl.load(tmp_path / "bare.pt", Net())


# Strangers' files.


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A file whose description is another."""
    contents = torch.load(path, weights_only=True)
    table = json.loads(contents["description"])
    change(table)
    torch.save({**contents, "description": json.dumps(table)}, path)
    return path


def arguments(**given: Any) -> Callable[[dict[str, Any]], object]:
    return lambda table: table["layers"]["stem"]["arguments"].update(given)


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a billion channels": arguments(in_channels=10**9, out_channels=10**9),
    "one channel more": arguments(out_channels=9),
    "a number of thousands of digits": arguments(in_channels=10**18),
    "negative channels": arguments(in_channels=-1),
    "a rank that is no number": arguments(rank="all"),
    "a stride without end": arguments(stride=[10**6, 10**6]),
    "a stride that makes much of little": arguments(stride=[4096, 4096]),
    "padding without end": arguments(padding=[10**9, 10**9]),
    "no stride": arguments(stride=[]),
    "a further argument": arguments(device="cuda"),
    "flags that are numbers": arguments(bias=3),
    "frames that need as many numbers squared": arguments(frames="parametrize"),
    "another class": lambda table: table["layers"]["stem"].update({"class": "os.system"}),
    "a class of torch's": lambda table: table["layers"]["stem"].update({"class": "Bilinear"}),
    "no class": lambda table: table["layers"]["stem"].pop("class"),
    "a class that is a list": lambda table: table["layers"]["stem"].update({"class": ["SOC"]}),
    "layers that are a list": lambda table: table.update(layers=[1]),
    "a layer of a series without end": lambda table: table["layers"].update(
        {"": {"class": "SOC", "arguments": {"in_channels": 1, "out_channels": 1, "train_terms": 10**9}}}
    ),
    "a parametrization of another class": lambda table: table.update(
        parametrizations={"head": {"weight": [{"class": "eval", "arguments": {}}]}}
    ),
    "a parametrization of another map": lambda table: table.update(
        parametrizations={"head": {"weight": [{"class": "orthogonal", "arguments": {"orthogonal_map": "eval"}}]}}
    ),
    "a parametrization of nothing": lambda table: table.update(
        parametrizations={"head": {"forward": [{"class": "orthogonal", "arguments": {}}]}}
    ),
    "an orthogonal matrix that needs as many numbers squared": lambda table: table.update(
        parametrizations={
            "head": {
                "weight": [
                    {"class": "orthogonal", "arguments": {"orthogonal_map": "cayley", "use_trivialization": True}}
                ]
            }
        }
    ),
    "a spectral norm of a word": lambda table: table.update(
        parametrizations={
            "head": {"weight": [{"class": "spectral_norm", "arguments": {"max_sigma": "none", "mode": "limit"}}]}
        }
    ),
    "a name that is shared with itself": lambda table: table.update(shared={"head.weight": "head.weight"}),
    "a name that is shared with nothing": lambda table: table.update(shared={"x": "y"}),
    "a newer version": lambda table: table.update(version=2),
    "no version": lambda table: table.pop("version"),
    "a deep one": lambda table: table.update(config=json.loads("[" * 200 + "]" * 200)),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_strangers_file_is_refused_and_the_network_left(
    change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    svdctl.save(framed("retract"), tmp_path / "net.pt")
    path, given = changed(tmp_path / "net.pt", change), Net()
    printed = str(given)
    with pytest.raises((CheckpointError, ValueError)) as caught:
        svdctl.load(path, given)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(given) == printed


def test_a_layer_that_the_network_has_not_is_not_made_from_a_name(tmp_path: Path) -> None:
    svdctl.save(framed("retract"), tmp_path / "net.pt")
    entry = {"class": "MinMax", "arguments": {}}
    path = changed(tmp_path / "net.pt", lambda table: table["layers"].update({"forward": entry, "a\x1b[31m": entry}))
    with pytest.raises(CheckpointError, match="no layer 'forward'"):
        svdctl.load(path, Net())


# The command.


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_inspect_spectrum_reads_layers_with_their_geometry(suffix: str, tmp_path: Path) -> None:
    net = in_use(sott())
    net.stem = net.again = svdctl.TTConv2d(3, 8, 3, rank=2, padding=1, stride=2)  # type: ignore[assignment]
    path = tmp_path / f"net.{suffix}"
    svdctl.save(net, path)
    assert read_tensors(path).tensors
    (found,) = inspect_files(InspectConfig(files=(path,), input_size=(8, 8)))
    rows = {row.name: row for row in found}
    assert [row.name for row in found if row.bound is not None] == ["stem", "norm", "body.0", "body.1", "head"]
    for name, layer in (("stem", net.stem), ("body.1", net.body[1]), ("head", net.head)):
        bracket, upper = rows[name].bound, svdctl.spectral_norm_bound(layer).upper
        assert bracket is not None
        assert bracket.upper == pytest.approx(upper, rel=0.02)
        assert rows[name].assumption == ""
    assert rows["stem"].kind == "TTConv2d"
    assert rows["stem"].values is not None
    assert torch.allclose(rows["stem"].values, svdctl.singular_values(net.stem, 8), rtol=1e-4)


def test_inspect_spectrum_proves_the_maximum_of_a_spectral_norm(tmp_path: Path) -> None:
    conv = svdctl.parametrize.spectral_norm(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, padding_mode="reflect"), max_sigma=0.5
    )
    svdctl.save(nn.Sequential(conv), tmp_path / "net.pt")
    (found,) = inspect_files(InspectConfig(files=(tmp_path / "net.pt",), max_sigma=0.5))
    assert found["0"].bound is not None
    assert found["0"].bound.upper <= 0.5


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_that_is_not_there_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "none" / f"a.{suffix}"
    with pytest.raises(FileNotFoundError, match=r"cannot be written: .*none is no folder; make the folder") as caught:
        svdctl.save(nn.Linear(2, 2), path)
    assert caught.value.filename == str(path)
    assert ".part" not in str(caught.value)


def test_what_is_no_path_or_control_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"path is the name of a file, .* not a int"):
        svdctl.save(nn.Linear(2, 2), 3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"control is the svdctl\.Controller of the training, not a int"):
        svdctl.save(nn.Linear(2, 2), tmp_path / "a.pt", control=3)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
