"""`to_plain`: the same outputs by torch's own modules and functions alone, the network left as it was."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

import svdctl
from svdctl.errors import ShapeError
from svdctl.layers.batchnorm import GlobalBatchNorm2d, share_statistics_
from svdctl.layers.layer_ops import ops_of
from svdctl.layers.normalize import Normalize
from svdctl.layers.ops.minmax_ops import MinMaxOps
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT
from svdctl.layers.tt import TTConv1d, TTConv2d, TTConv3d
from svdctl.models.lipconvnet import LipConvNet
from svdctl.models.vgg import Vgg19
from svdctl.models.wrn import WideResNet
from tests.dense import dense_matrix

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tt": (partial(TTConv2d, 6, 8, 3, rank=2, padding=1), (6, 6, 5)),
    "tt strided": (partial(TTConv2d, 6, 8, 3, rank=(2, 3), padding=1, stride=2, dilation=2, frames="free"), (6, 8, 8)),
    "tt nearly whole": (partial(TTConv2d, 6, 8, 3, rank=(6, 7)), (6, 5, 5)),
    "tt whole": (partial(TTConv2d, 6, 8, 3, rank=8, bias=False), (6, 5, 5)),
    "tt parametrized": (partial(TTConv2d, 6, 8, 3, rank=3, frames="parametrize"), (6, 5, 5)),
    "tt, one axis": (partial(TTConv1d, 6, 8, 3, rank=2, padding=1), (6, 9)),
    "tt, three axes": (partial(TTConv3d, 4, 4, 3, rank=2), (4, 4, 3, 4)),
    "soc": (partial(SOC, 6, 6), (6, 5, 6)),
    "soc narrowing": (partial(SOC, 6, 4, bias=False), (6, 5, 5)),
    "soc widening": (partial(SOC, 4, 6, 5), (4, 5, 5)),
    "soc strided": (partial(SOC, 2, 6, stride=2), (2, 6, 6)),
    "soc of one term": (partial(SOC, 4, 6, eval_terms=1), (4, 5, 5)),
    "soc, 1x1": (partial(SOC, 4, 6, 1), (4, 4, 4)),
    "soc, 1x1 strided": (partial(SOC, 2, 6, 1, stride=2), (2, 4, 4)),
    "sott": (partial(SOTT, 6, 8, rank=3, stride=2), (6, 6, 6)),
    "sott whole": (partial(SOTT, 4, 4, rank=9), (4, 5, 5)),
    "sott parametrized": (partial(SOTT, 6, 8, 1, rank=(2, 3), frames="parametrize"), (6, 4, 4)),
}


def moved(layer: nn.Module) -> nn.Module:
    """A layer in float64 whose biases and frames are not as they start."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer.double()


def assert_no_svdctl(plain: nn.Module) -> None:
    for name, module in plain.named_modules():
        for base in type(module).__mro__:
            assert base.__module__.partition(".")[0] != "svdctl", name
    if isinstance(plain, fx.GraphModule):
        assert all("svdctl" not in getattr(node.target, "__module__", "") for node in plain.graph.nodes)
        assert not any(node.meta for node in plain.graph.nodes)
        assert "svdctl" not in plain.code


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_the_dense_matrix_of_a_layer_stays(name: str, training: bool) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = moved(make()).train(training)
    before = copy.deepcopy(layer.state_dict())
    example = torch.randn(2, *shape, dtype=torch.float64)
    plain = svdctl.to_plain(layer, example)
    assert_no_svdctl(plain)
    assert layer.training == training
    assert not layer._forward_hooks
    wanted = copy.deepcopy(layer).eval()
    torch.testing.assert_close(dense_matrix(plain, shape), dense_matrix(wanted, shape), rtol=0, atol=1e-12)
    torch.testing.assert_close(plain(example), wanted(example), rtol=0, atol=1e-12)
    assert plain.meta["svdctl"]["error"] < 1e-14
    assert list(plain.meta["svdctl"]["layers"]) == [""]
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    mine = {tensor.untyped_storage().data_ptr() for tensor in (*layer.parameters(), *layer.buffers())}
    assert not any(tensor.untyped_storage().data_ptr() in mine for tensor in (*plain.parameters(), *plain.buffers()))
    assert not any(parameter.requires_grad for parameter in plain.parameters())


def kinds(network: nn.Module) -> list[str]:
    return [type(module).__name__ for module in network.modules() if isinstance(module, nn.modules.conv._ConvNd)]


def test_a_tt_layer_becomes_what_multiplies_less() -> None:
    """9 * 32 * 32 for each output in one; in three 32 r for each input, and r (9 r + 32) for each output."""
    for rank, stride, count in ((4, 1, 3), (28, 1, 3), (29, 1, 1), (28, 2, 1), (20, 2, 3), (20, 3, 1)):
        layer = TTConv2d(32, 32, 3, rank=rank, stride=stride, padding=1)
        assert len(kinds(svdctl.to_plain(nn.Sequential(layer)))) == count, (rank, stride)
    # An image of one pixel: stride 2 leaves it one.
    layer = TTConv2d(32, 32, 3, rank=28, stride=2, padding=1)
    assert len(kinds(svdctl.to_plain(nn.Sequential(layer), torch.randn(1, 32, 1, 1)))) == 3
    assert len(kinds(svdctl.to_plain(nn.Sequential(TTConv1d(8, 8, 3, rank=2))))) == 3


def lipconvnet(conv: Callable[..., nn.Module]) -> LipConvNet:
    def made(i: int, o: int, k: int, *, padding: int, **settings: object) -> nn.Module:
        return conv(i, o, k, **settings)

    return LipConvNet(1, 4, in_channels=4, conv=made, normalize=Normalize((0.5,) * 3, (0.25,) * 3))


def tensorised_wrn() -> nn.Module:
    conv = partial(TTConv2d, rank=4, frames="parametrize")
    return WideResNet(10, 1, 4, conv=conv, stem=nn.Conv2d, normalize=Normalize((0.5,) * 3, (0.25,) * 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "soc": lambda: lipconvnet(SOC),
    "sott": lambda: lipconvnet(partial(SOTT, rank=3)),
    "tt": tensorised_wrn,
    "vgg": lambda: Vgg19(
        4, conv=partial(TTConv2d, rank=4), stem=nn.Conv2d, normalize=Normalize((0.5,) * 3, (0.25,) * 3)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_svdctl_become_graphs(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    network(torch.rand(4, 3, 32, 32))  # statistics of BatchNorm, and power vectors
    x = torch.rand(3, 3, 32, 32)
    plain = svdctl.to_plain(network, x)
    assert isinstance(plain, fx.GraphModule)
    assert_no_svdctl(plain)
    assert network.training
    wanted = copy.deepcopy(network).eval()
    torch.testing.assert_close(plain(x), wanted(x), rtol=1e-4, atol=1e-5)
    report = plain.meta["svdctl"]
    assert report["error"] < 1e-5
    assert "normalize" in report["layers"]
    assert max(report["layers"].values()) < 1e-5
    torch.testing.assert_close(plain(x[:1]), plain(x)[:1], rtol=1e-4, atol=1e-5)
    without = svdctl.to_plain(network)
    torch.testing.assert_close(without(x), plain(x), rtol=1e-4, atol=1e-5)
    assert without.meta["svdctl"] == {"error": None, "layers": dict.fromkeys(report["layers"])}
    network(x).sum().backward()  # it can still be trained
    assert all(parameter.grad is not None for parameter in network.parameters())


class Imaginary(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1j


class FirstHalfRelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.chunk(2, 1)[0].relu()


def test_errors_are_those_of_outputs_and_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MinMaxOps, "plain", lambda self, layer, size=None: nn.Identity())
    network = nn.Sequential(svdctl.MinMax(), nn.ReLU(), SOC(4, 4, 1, bias=False), svdctl.MinMax()).double().eval()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    found = svdctl.to_plain(network, x).meta["svdctl"]
    first, inner, last = network[0](x), network[:3](x), network(x)
    assert found["layers"]["0"] == pytest.approx(float((first - x).norm() / first.norm()))
    assert found["layers"]["3"] == pytest.approx(float(((last - inner).norm() / last.norm()).detach()))
    assert found["layers"]["2"] < 1e-14
    assert found["error"] == pytest.approx(float(((last - network[2](x.relu())).norm() / last.norm()).detach()))


def test_the_error_of_outputs_that_are_zero_is_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MinMaxOps, "plain", lambda self, layer, size=None: nn.ReflectionPad2d(0))
    x = torch.cat([torch.ones(1, 2, 2, 2), -torch.ones(1, 2, 2, 2)], 1)
    found = svdctl.to_plain(nn.Sequential(svdctl.MinMax(), FirstHalfRelu()), x).meta["svdctl"]
    assert found["error"] == float("inf")


def test_imaginary_parts_count_as_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MinMaxOps, "plain", lambda self, layer, size=None: nn.ReLU())
    x = -torch.rand(2, 4, dtype=torch.float64)
    found = svdctl.to_plain(nn.Sequential(svdctl.MinMax(), Imaginary()), x).meta["svdctl"]
    assert found["error"] == pytest.approx(1.0)


def test_reports_stay_through_copies_and_pickles() -> None:
    plain = svdctl.to_plain(nn.Sequential(SOC(4, 4), svdctl.MinMax()), torch.rand(1, 4, 4, 4))
    report = plain.meta["svdctl"]
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    buffer.seek(0)
    copies = [
        *(copy.deepcopy(plain), pickle.loads(pickle.dumps(plain)), torch.load(buffer, weights_only=False)),
        *(pickle.loads(pickle.dumps(copy.deepcopy(plain))), copy.deepcopy(pickle.loads(pickle.dumps(plain)))),
    ]
    x = torch.rand(2, 4, 4, 4)
    for other in copies:
        assert other.meta["svdctl"] == report
        assert torch.equal(other(x), plain(x))


UNPICKLE = """
import sys
sys.modules["svdctl"] = None  # it cannot be imported
import torch
for path in sys.argv[1:]:
    plain, x, wanted, report = torch.load(path, weights_only=False)
    assert torch.equal(plain(x), wanted), path
    assert plain.meta["svdctl"] == report, path
assert not any(name.startswith("svdctl.") for name in sys.modules)
"""


class Untraceable(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = part(x)
        return x if float(x.sum()) > 1e9 else -x


def test_pickles_are_read_where_svdctl_cannot_be_imported(tmp_path) -> None:
    network = nn.ModuleDict({name: NETWORKS[name]() for name in NETWORKS})
    x, paths = torch.rand(2, 3, 32, 32), []
    for name, module in network.items():
        plain = svdctl.to_plain(module, x)
        path = tmp_path / f"{name}.pt"
        torch.save((plain, x, plain(x), plain.meta["svdctl"]), path)
        assert b"svdctl." not in path.read_bytes().replace(b'"svdctl"', b"")
        paths.append(path)
    done = subprocess.run([sys.executable, "-c", UNPICKLE, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_network_that_cannot_be_traced_is_copied_with_its_layers_replaced() -> None:
    torch.manual_seed(0)
    network = Untraceable(a=TTConv2d(4, 4, 3, rank=2), b=svdctl.MinMax(), c=SOC(4, 4))
    x = torch.rand(2, 4, 6, 6)
    plain = svdctl.to_plain(network, x)
    assert type(plain) is Untraceable
    assert not plain.training
    assert_no_svdctl(plain)
    torch.testing.assert_close(plain(x), copy.deepcopy(network).eval()(x))
    assert set(plain.meta["svdctl"]["layers"]) == {"parts.a", "parts.b", "parts.c"}
    assert pickle.loads(pickle.dumps(copy.deepcopy(plain))).meta == plain.meta
    assert type(network.parts["a"]) is TTConv2d


class Doubled(svdctl.MinMax):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_what_is_left_of_svdctl_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3), Doubled())
    with pytest.raises(ShapeError, match=r"1 \(Doubled\) is a module of svdctl, and the network cannot be traced"):
        svdctl.to_plain(network)


@pytest.mark.parametrize("where", ["0", "1", ""])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_are_refused(where: str, kind: str) -> None:
    network = nn.Sequential(SOC(4, 4), nn.Conv2d(4, 4, 3))
    getattr(network.get_submodule(where), kind)(lambda *_: None)
    with pytest.raises(ShapeError, match=rf"{where or 'the network'} \(\w+\) has forward hooks"):
        svdctl.to_plain(network)


class Branching(nn.Module):
    """Layers in several places, a list outside of the modules, a parametrised weight, functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = TTConv2d(3, 8, 3, rank=2, padding=1, frames="parametrize")
        self.shared = SOC(8, 8)
        self.again = nn.Sequential(self.shared, svdctl.MinMax())
        self.norm = nn.BatchNorm2d(8)
        self.linear = parametrizations.orthogonal(nn.Linear(8, 4), orthogonal_map="householder")
        self.head = parametrizations.spectral_norm(nn.Linear(4, 4))
        self.order = [self.shared, self.again]

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = self.first(x)
        for layer in self.order:
            x = x + layer(x)
        x = F.dropout(F.relu(self.norm(x)), training=self.training)
        return scale * self.head(self.linear(x.mean((2, 3))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shared_layers_and_parametrised_weights(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = Branching().to(dtype)
    share_statistics_(network)
    assert type(network.norm) is GlobalBatchNorm2d
    x = torch.rand(4, 3, 8, 8, dtype=dtype)
    network(x)
    before = copy.deepcopy(network.state_dict())
    plain = svdctl.to_plain(network, (x, 2.0))
    assert_no_svdctl(plain)
    wanted = copy.deepcopy(network).eval()
    torch.testing.assert_close(plain(x, 2.0), wanted(x, 2.0))
    torch.testing.assert_close(plain(x), wanted(x))
    assert set(plain.meta["svdctl"]["layers"]) == {"first", "shared", "again.0", "again.1", "norm"}
    kernels = {name for name, _ in plain.named_parameters(remove_duplicate=True) if name.endswith("kernel")}
    assert len(kernels) == 1
    assert type(plain.linear) is nn.Linear
    # The original has its parametrizations, and trains.
    assert "parametrizations" in dict(network.linear.named_children())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    network.train()
    network(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert torch.equal(plain.linear.weight, wanted.linear.weight)
    with torch.no_grad():
        network.linear.parametrizations.weight.original.add_(1)
    assert not torch.equal(plain.linear.weight, copy.deepcopy(network).eval().linear.weight)


def test_parametrizations_of_svdctl_become_the_weights_of_evaluation_mode() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        svdctl.parametrize.spectral_norm(nn.Conv2d(3, 8, 3, padding=1), max_sigma=0.5),
        svdctl.parametrize.spectral_norm(nn.Conv2d(8, 8, 3, padding_mode="reflect", padding=1), max_sigma="learnable"),
        *(svdctl.parametrize.orthogonal(nn.Conv2d(8, 8, 1)), nn.Flatten()),
        svdctl.parametrize.spectral_norm(nn.Linear(128, 4), mode="normalize"),
    )
    x = torch.rand(2, 3, 4, 4)
    network(x)
    plain = svdctl.to_plain(network, x)
    assert_no_svdctl(plain)
    assert plain.meta["svdctl"]["error"] < 1e-6
    assert {type(module) for module in plain.children()} == {nn.Conv2d, nn.Flatten, nn.Linear}
    assert svdctl.spectral_norm_bound(plain.get_submodule("0")).upper <= 0.5 * 1.006
    network(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    torch.testing.assert_close(plain(x), svdctl.to_plain(network)(x))
    assert pickle.loads(pickle.dumps(plain)).meta == plain.meta


def test_no_random_number_is_drawn() -> None:
    network = Branching()
    state = torch.get_rng_state()
    svdctl.to_plain(network, torch.zeros(1, 3, 4, 4))
    assert torch.equal(state, torch.get_rng_state())


def test_layers_of_torch_have_no_other_form() -> None:
    for layer in (nn.Conv2d(2, 2, 3), nn.Linear(2, 2), nn.BatchNorm2d(2), nn.ConvTranspose1d(2, 2, 3)):
        assert ops_of(layer).plain(layer) is None


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_compiled_networks_are_those_which_were_compiled(inner: bool, wrapped: bool) -> None:
    part = nn.Sequential(SOC(4, 4))
    network = nn.Sequential(torch.compile(part, backend="eager") if inner else part, svdctl.MinMax())
    x = torch.rand(1, 4, 4, 4)
    plain = svdctl.to_plain(torch.compile(network, backend="eager") if wrapped else network, x)
    assert isinstance(plain, fx.GraphModule)
    assert_no_svdctl(plain)
    assert list(plain.meta["svdctl"]["layers"]) == ["0.0", "1"]
    torch.testing.assert_close(plain(x), svdctl.MinMax()(part.eval()(x)))


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "DataParallel": nn.DataParallel,
    "DDP": nn.parallel.DistributedDataParallel,
}
WRAPPERS["all"] = lambda net: WRAPPERS["DDP"](WRAPPERS["AveragedModel"](WRAPPERS["DataParallel"](net)))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_networks_become_graphs(wrapper: str, process_group: None) -> None:
    model = WRAPPERS[wrapper](nn.Sequential(SOC(4, 4), svdctl.MinMax()))
    x = torch.rand(1, 4, 4, 4)
    plain = svdctl.to_plain(model, x)
    assert isinstance(plain, fx.GraphModule)
    assert_no_svdctl(plain)
    assert list(plain.meta["svdctl"]["layers"]) == ["0", "1"]
    assert model.training
    with torch.no_grad():
        torch.testing.assert_close(plain(x), model.eval()(x))
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(ShapeError, match=r"the network \(\w+\) has forward hooks"):
        svdctl.to_plain(model)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_networks_that_were_never_run_are_refused() -> None:
    with pytest.raises(ShapeError, match="run the network once first"):
        svdctl.to_plain(nn.Sequential(SOC(4, 4), nn.LazyConv2d(4, 3)))


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (torch.zeros(1, 5, 8, 8), r"a tensor of shape \(1, 5, 8, 8\)"),
        ([[0.0]], "a list"),
        (torch.zeros(1, 4, 8, 8).numpy(), "a ndarray"),
        ((torch.zeros(1, 4, 8, 8), 3), r"a tensor of shape \(1, 4, 8, 8\), a int"),
    ],
)
def test_an_example_that_the_network_does_not_take(example: Any, words: str) -> None:
    with pytest.raises(ShapeError, match=f"does not take the example, {words} .*; give an input tensor") as caught:
        svdctl.to_plain(nn.Sequential(SOC(4, 4), TTConv2d(4, 4, 3, rank=2)), example)
    assert len(str(caught.value)) < 400
