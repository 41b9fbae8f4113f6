"""`Controller` in loops of one's own: choices of layers, wrappers, copies, refusals, skipped steps, resumed loops."""

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import svdctl
from svdctl.control.control_report import LayerReport, Report
from svdctl.control.controller import Controller
from svdctl.errors import ShapeError, UsageError
from tests.dense import dense_values

METHODS = ["clip", "assign", "divide", "divide-each", "divide-exact"]


class Network(nn.Module):
    """Names as those of a residual network; images of 3 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.layer1 = nn.Sequential(self._block(), self._block())
        self.fc = nn.Linear(8, 4)

    def _block(self) -> nn.Sequential:
        names = ("conv1", "bn1", "conv2")
        parts = (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), svdctl.TTConv2d(8, 8, 3, rank=4, padding=1))
        block = nn.Sequential()
        for name, part in zip(names, parts, strict=True):
            block.add_module(name, part)
        return block

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(self.conv1(x)).relu().mean((2, 3)))


def network() -> Network:
    torch.manual_seed(0)
    return Network()


CONVS = {"conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2"}
PLAIN = {"conv1", "layer1.0.conv1", "layer1.1.conv1"}
CHOICES: dict[str, tuple[Any, float | Mapping[str, float], float | None, dict[str, float]]] = {
    # layers, max_sigma, linear_max, what is allowed
    "all": ("*", 0.5, None, dict.fromkeys(CONVS, 0.5)),
    "all and linear": ("*", 0.5, 2.0, {**dict.fromkeys(CONVS, 0.5), "fc": 2.0}),
    "a pattern": ("layer1.0.*", 0.5, None, {"layer1.0.conv1": 0.5, "layer1.0.conv2": 0.5}),
    "patterns": (["conv1", "*.1.conv?"], 0.5, None, dict.fromkeys(("conv1", "layer1.1.conv1", "layer1.1.conv2"), 0.5)),
    "a type": (nn.Conv2d, 0.5, None, dict.fromkeys(PLAIN, 0.5)),
    "types": ((svdctl.TTConv2d, nn.Linear), 0.5, 1.5, dict.fromkeys(CONVS - PLAIN, 0.5) | {"fc": 1.5}),
    "a predicate": (lambda name, layer: getattr(layer, "in_channels", 0) == 3, 0.5, None, {"conv1": 0.5}),
    "a mixture": (
        ["fc", svdctl.TTConv2d, lambda name, _: name == "conv1"], 0.5, 1.0,
        dict.fromkeys({"conv1", *(CONVS - PLAIN)}, 0.5) | {"fc": 1.0},
    ),
    "a mapping": ("*", {"layer1.0.*": 0.5, "layer1*": 1.0, "fc": 4.0}, None, {
        "layer1.0.conv1": 0.5, "layer1.0.conv2": 0.5, "layer1.1.conv1": 1.0, "layer1.1.conv2": 1.0, "fc": 4.0,
    }),
    "a mapping, the first wins": ("*", {"*": 2.0, "conv1": 0.5}, 1.0, dict.fromkeys({*CONVS, "fc"}, 2.0)),
    "a mapping and linear_max": ("*", {"conv1": 0.5}, 1.0, {"conv1": 0.5, "fc": 1.0}),
    "a mapping from types": ("*", {nn.Conv2d: 0.5, "*": 2.0}, None, {
        **dict.fromkeys(PLAIN, 0.5), **dict.fromkeys(CONVS - PLAIN, 2.0), "fc": 2.0,
    }),
    "a mapping from predicates": ("*", {lambda name, layer: name[-1] == "2": 0.5}, 4.0, {
        **dict.fromkeys(CONVS - PLAIN, 0.5), "fc": 4.0,
    }),
    "a mapping of chosen types": (nn.Conv2d, {"layer1*": 0.5}, None, dict.fromkeys(PLAIN - {"conv1"}, 0.5)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_layers_and_their_maxima(name: str) -> None:
    layers, max_sigma, linear_max, wanted = CHOICES[name]
    net = network()
    before = copy.deepcopy(net)
    given: dict[str, Any] = {"layers": layers, "max_sigma": max_sigma, "linear_max": linear_max}
    control = Controller(net, method="divide-exact", every_steps=1, **given)
    known = {row.name: row.maximum for row in control.report() if row.kind != "BatchNorm2d"}
    assert {layer: limit for layer, limit in known.items() if limit is not None} == wanted
    for parameter in net.parameters():
        parameter.data.mul_(3)
    control.step()
    assert {name: bracket.upper for name, bracket in control.seal(sharp=False).items()} == wanted
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and name not in wanted:
            assert torch.equal(layer.weight, 3 * before.get_submodule(name).weight)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            shape = (layer.in_channels, 6, 6) if isinstance(layer, nn.Conv2d) else (layer.in_features,)
            assert float(dense_values(copy.deepcopy(layer).double(), shape)[0]) <= wanted[name]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a pattern of the start": ({"layers": "block*"}, r"full names \('\*conv1' fits 'layer1.0.conv1', 'conv\*' does"),
    "the end of names": (
        {"layers": "conv2"}, r"'\*conv2' fits 'layer1.0.conv2'\); the layers are conv1, layer1.0.conv1, layer1.0.conv2",
    ),
    "one of two patterns": ({"layers": ["conv1", "cnov*"]}, "the pattern 'cnov"),
    "a pattern of max_sigma": ({"max_sigma": {"conv1": 1.0, "conv2": 2.0}}, "the pattern 'conv2' fits no layer"),
    "a type": ({"layers": nn.Conv3d}, "`layers` chooses none: the layers are conv1"),
    "a predicate": ({"layers": lambda *_: False}, "`layers` chooses none"),
    "linear layers alone": ({"layers": nn.Linear}, "only linear layers are chosen.* give linear_max"),
    "a number": ({"layers": 3}, "chosen by patterns of names, types and predicates .* not by 3"),
    "an empty mapping": ({"max_sigma": {}}, "at least one pattern"),
    "a mapping of numbers": ({"max_sigma": {0: 1.0}}, "one pattern of names"),
    "a maximum of a pattern": (
        {"max_sigma": {"conv1": 1.0, "fc": -1.0}},
        r"^`max_sigma\['fc'\]`: -1.0 is not valid; a number above 0 is wanted$",
    ),
    "a maximum": ({"max_sigma": "a"}, "^`max_sigma`: 'a' is not valid; write a number, as 0.5"),
    "a maximum of linear layers": ({"linear_max": "a"}, "^`linear_max`: 'a' is not valid; write a number"),
    "a gain": ({"batchnorm_max": "a"}, "^`batchnorm_max`: 'a' is not valid; write a number, as 0.5"),
    "steps": ({"every_steps": 0}, "^`every_steps`: 0 is not valid; a number above 0 is wanted"),
    "a type of max_sigma": ({"max_sigma": {nn.Conv3d: 1.0}}, "Conv3d of max_sigma fits no layer; the layers are conv1"),
    "a predicate of one argument": ({"layers": lambda n: True}, "takes two arguments, as `lambda name, layer: "),
    "a predicate of one argument in max_sigma": ({"max_sigma": {lambda n: True: 1.0}}, "takes two arguments"),
    "an optimiser by name": ({"optimizer": "sgd"}, "is one of torch, as torch.optim.SGD.* not 'sgd'"),
    "a class of optimisers": ({"optimizer": torch.optim.SGD}, "is one of torch, as torch.optim.SGD.* not <class"),
    "an optimiser of another network": (
        {"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters())}, "has none of the network's parameters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_choices_of_nothing_are_sentences(name: str) -> None:
    given, words = WRONG[name]
    with pytest.raises(UsageError, match=words) as caught:
        Controller(network(), **{"max_sigma": 1.0, **given})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["0.5", torch.tensor(0.5), np.float32(0.5)])
def test_maxima_are_python_numbers_whatever_is_given(value: Any) -> None:
    for given in (value, {"conv1": value}):
        control = Controller(network(), max_sigma=given, linear_max=value)
        assert [type(control.maximum(name)) for name in ("conv1", "fc")] == [float, float]
        assert control.seal()["conv1"].upper <= 0.5


def test_intervals_that_are_not_given_are_those_of_the_table() -> None:
    document = (Path(__file__).parents[2] / "docs" / "library.md").read_text(encoding="utf-8")
    table = document.split("| `method` | what a step of control does | `every_steps` if not given |")[1].split("\n\n")[
        0
    ]
    rows = dict(re.findall(r"^\| `([a-z-]+)` \|.*\| (\d+) \|$", table, re.MULTILINE))
    assert set(rows) == {"clip", "divide", "divide-exact", "divide-each", "assign"}
    for method, steps in rows.items():
        model = network()
        control = Controller(model, torch.optim.SGD(model.parameters(), lr=0.1), method=method, max_sigma=1.0)
        assert [step for step in range(1, 202) if control.due(step)] == list(range(int(steps), 202, int(steps)))


def test_a_network_without_layers_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="the network has no convolution or linear layer"):
        Controller(nn.Sequential(nn.ReLU()), max_sigma=1.0)


@pytest.fixture
def process_group(tmp_path: Any) -> Any:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrapper", ["compile", "DDP", "DataParallel", "AveragedModel", "all"])
def test_wrappers_are_taken_off(wrapper: str, process_group: Any) -> None:
    wrap: dict[str, Callable[[nn.Module], Any]] = {
        "compile": torch.compile,
        "DDP": nn.parallel.DistributedDataParallel,
        "DataParallel": nn.DataParallel,
        "AveragedModel": torch.optim.swa_utils.AveragedModel,
    }
    wrap["all"] = lambda net: wrap["compile"](wrap["DDP"](wrap["AveragedModel"](net)))
    model = wrap[wrapper](network())
    control = Controller(model, method="clip", max_sigma={"layer1.0.conv1": 0.3, "fc": 0.4}, every_steps=1)
    control.step()
    assert set(control.seal(model)) == {"layer1.0.conv1", "fc"}
    [layer] = [part for name, part in model.named_modules() if name.endswith("layer1.0.conv1")]
    assert float(dense_values(copy.deepcopy(layer).double(), (8, 6, 6))[0]) <= 0.3


@pytest.mark.parametrize("method", METHODS)
def test_an_average_is_sealed_and_the_controller_left_as_it_is(method: str) -> None:
    net = network()
    control = Controller(net, method=method, max_sigma=0.4, linear_max=0.5, batchnorm_max=0.3)
    control.step()
    control.seal()
    kept, weights, factor = (
        copy.deepcopy(control.state_dict()),
        copy.deepcopy(net.state_dict()),
        control.smallest_factor,
    )
    average = torch.optim.swa_utils.AveragedModel(net)
    for parameter in average.parameters():
        parameter.data.mul_(2).add_(0.01)
    found = control.seal(average)
    assert set(found) == {*CONVS, "fc"}
    assert svdctl.spectral_norm_bound(average.module.conv1).upper <= 0.4 * (1 + 1e-9)
    for name, bracket in found.items():
        layer = copy.deepcopy(average.module.get_submodule(name)).double()
        shape = (8,) if name == "fc" else (layer.in_channels, 6, 6)
        assert float(dense_values(layer, shape)[0]) <= bracket.upper <= (0.5 if name == "fc" else 0.4)
    norm = average.module.layer1[0].bn1
    assert float((norm.weight.detach() / (norm.running_var + norm.eps).sqrt()).abs().max()) <= 0.3
    assert torch.equal(net.conv1.weight, weights["conv1.weight"])
    assert_same(control.state_dict(), kept)
    assert control.smallest_factor == factor
    again = copy.deepcopy(average.state_dict())
    control.seal(average.half())
    assert not any(torch.equal(value, again[name]) for name, value in average.state_dict().items() if value.ndim > 1)
    assert control.seal(average, sharp=False)["conv1"].upper == 0.4


def test_copies_that_are_none_are_sentences() -> None:
    net = network()
    control = Controller(net, max_sigma=0.4)
    other = copy.deepcopy(net)
    other.layer1[0].conv1 = nn.Conv2d(8, 8, 5, padding=2)
    with pytest.raises(UsageError, match=r"of layer1.0.conv1 it has another type or shape there"):
        control.seal(other)
    with pytest.raises(UsageError, match="of conv1 it has no such layer"):
        control.seal(nn.Sequential(nn.Conv2d(3, 8, 3)))
    parametrised = copy.deepcopy(net)
    parametrizations.weight_norm(parametrised.conv1)
    with pytest.raises((UsageError, ShapeError), match="conv1"):
        control.seal(parametrised)


def sharded(net: nn.Module, *, keep: bool = False) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(net, device_id=torch.device("cpu"), use_orig_params=keep)


class Scaled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def with_conv1(layer: nn.Module) -> Callable[[Network], nn.Module]:
    def change(net: Network) -> nn.Module:
        net.conv1 = layer
        return net

    return change


def pruned(net: Network) -> nn.Module:
    prune.l1_unstructured(net.conv1, "weight", 0.5)
    return net


def quantized(net: Network) -> nn.Module:
    net.conv1.weight = nn.Parameter((100 * net.conv1.weight).to(torch.int8), requires_grad=False)
    return net


def quantized_by_torch(net: Network) -> nn.Module:
    made = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    made.conv1 = nn.Identity()
    return made


def sharded_by_fsdp2(net: Network) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(net)


def normed(add: Callable[[nn.Module], Any]) -> Callable[[Network], nn.Module]:
    def change(net: Network) -> nn.Module:
        add(net.conv1)
        return net

    return change


REFUSED: dict[str, tuple[Callable[[Any], nn.Module], str]] = {
    "weight_norm": (normed(parametrizations.weight_norm), r"conv1 .* parametrised \(_WeightNorm\)"),
    "torch's spectral_norm": (normed(parametrizations.spectral_norm), r"conv1 .* parametrised \(_SpectralNorm\)"),
    "older spectral_norm": (normed(nn.utils.spectral_norm), r"conv1 .* by a hook \(SpectralNorm\)"),
    "pruned": (pruned, r"conv1 .* pruned \(L1Unstructured\)"),
    "integers": (quantized, r"conv1 .* quantised \(torch.int8\)"),
    "quantised": (quantized_by_torch, r"layer fc .* quantised \(Linear of torch.ao\)"),
    "complex": (with_conv1(nn.Conv2d(3, 8, 3, dtype=torch.complex64)), r"conv1 .* complex \(torch.complex64\)"),
    "own forward": (with_conv1(Scaled(3, 8, 3)), "conv1 .* its forward pass is not that of Conv2d"),
    "FSDP": (sharded, r"conv1 .* FSDP \(FullyShardedDataParallel\)"),
    "FSDP of parameters": (lambda net: sharded(net, keep=True), r"conv1 .* FSDP \(FullyShardedDataParallel\)"),
    "inside FSDP": (lambda net: sharded(net).module, r"conv1 .* FSDP \(FullyShardedDataParallel\)"),
    "FSDP2": (sharded_by_fsdp2, r"conv1 .* sharded over processes \(DTensor, as of FSDP2"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_controlled_is_refused_by_name(name: str, process_group: Any) -> None:
    change, words = REFUSED[name]
    model = change(network())
    before = [value.clone() for value in model.parameters()]
    with pytest.raises(ShapeError, match=words) as caught:
        Controller(model, method="clip", max_sigma=0.1, linear_max=0.1)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))
    if "FSDP" not in name:  # whose names have those of its wrappers inside
        rows = {row.name: row for row in Controller(model, max_sigma=0.1, layers="layer1*").report()}
        assert rows["layer1.0.conv1"].maximum == 0.1
        if name in ("own forward", "complex", "integers"):
            assert (rows["conv1"].largest, rows["conv1"].bound, rows["conv1"].is_proved) == (0, torch.inf, None)


@pytest.mark.parametrize("maximum", [0.3, 0.4, 0.5])
def test_layers_under_svdctls_own_spectral_norm_are_kept_proved_and_reported(maximum: float) -> None:
    net = network()
    svdctl.parametrize.spectral_norm(net.conv1, max_sigma=maximum)
    if maximum > 0.4:
        with pytest.raises(ShapeError, match=r"layer conv1 has a spectral norm with a maximum of 0.5, above 0.4"):
            Controller(net, max_sigma=0.4)
        return
    control = Controller(net, max_sigma=0.4, every_steps=1)
    stored = net.conv1.parametrizations.weight.original.clone()
    control.step()
    assert set(control.controlled()) == CONVS - {"conv1"}
    assert control.seal()["conv1"].upper <= 0.4
    assert control.seal(sharp=False)["conv1"].upper == 0.4
    [row] = [row for row in control.report() if row.name == "conv1"]
    assert (row.maximum, row.is_proved) == (0.4, True)
    assert torch.equal(net.conv1.parametrizations.weight.original, stored)
    assert set(control.seal(copy.deepcopy(net))) == CONVS
    net.conv1.parametrizations.weight[0].max_sigma = 0.6
    with pytest.raises(ShapeError, match=r"conv1 has a spectral norm of its own, and is at 0\.59"):
        control.seal()


def test_the_penalty_is_a_tensor_to_add_whatever_the_layers() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), svdctl.TTConv2d(4, 4, 3, rank=2, frames="penalty"))
    control = Controller(net, max_sigma=1.0)
    assert control.has_penalty
    assert control.penalty().requires_grad
    plain = Controller(nn.Conv2d(3, 4, 3), max_sigma=1.0)
    assert not plain.has_penalty
    assert plain.penalty().shape == ()
    assert float(plain.penalty()) == 0


def loop(net: nn.Module, optimizer: torch.optim.Optimizer, control: Controller, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images, labels = torch.randn(6, 3, 6, 6, generator=generator), torch.arange(6) % 4
        optimizer.zero_grad()
        for part in (slice(0, 3), slice(3, 6)):  # accumulated
            (F.cross_entropy(net(images[part]), labels[part]) / 2 + control.penalty() / 2).backward()
        optimizer.step()
        control.step()


def assert_same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, Mapping):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert_same(found[key], value)
    elif isinstance(wanted, Tensor):
        assert torch.equal(found, wanted)
    else:
        assert found == wanted


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_loop_is_the_undisturbed_one_bit_for_bit(method: str) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer, Controller]:
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
        return (
            net,
            optimizer,
            Controller(net, optimizer, method=method, max_sigma=0.4, every_steps=2, batchnorm_max=0.9),
        )

    whole = start()
    loop(*whole, range(6))
    half = start()
    loop(*half, range(3))
    states = [copy.deepcopy(part.state_dict()) for part in half]
    resumed = start()
    with torch.no_grad():
        for parameter in resumed[0].parameters():
            parameter.add_(1)
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    loop(*resumed, range(3, 6))
    assert resumed[2].steps == 6
    assert_same(resumed[0].state_dict(), whole[0].state_dict())
    assert_same(resumed[2].state_dict(), whole[2].state_dict())
    assert not torch.equal(whole[0].conv1.weight, half[0].conv1.weight)


def test_layers_side_by_side_in_threads_have_the_same_bits_each_time() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = None
        for _ in range(20):
            net = network()
            control = Controller(net, method="clip", max_sigma=0.4)
            control.step()
            found = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
            first = found if first is None else first
            assert torch.equal(found, first)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_that_the_scaler_skipped_does_no_harm(method: str) -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    control = Controller(net, optimizer, method=method, max_sigma=0.4, every_steps=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    images, labels = torch.randn(4, 3, 6, 6), torch.arange(4)
    for step in range(6):
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(net(images), labels) + control.penalty()).backward()
        is_skipped = step in (0, 3)
        if is_skipped:
            net.conv1.weight.grad[0, 0, 0, 0] = torch.inf
        before = copy.deepcopy(net.state_dict())
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(net.conv1.weight, before["conv1.weight"]) == is_skipped
        control.step()
        if is_skipped and step:
            for name, value in net.state_dict().items():
                torch.testing.assert_close(value, before[name], rtol=0.05, atol=0.02)
        assert all(value.isfinite().all() for value in net.state_dict().values())
    assert scaler.get_scale() == 2.0**8
    assert control.steps == 6
    assert all(bracket.upper <= 0.4 for bracket in control.seal().values())


def test_batchnorm_over_processes_is_limited_too() -> None:
    net = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    assert isinstance(net.layer1[0].bn1, nn.SyncBatchNorm)
    control = Controller(net, max_sigma=1.0, batchnorm_max=0.5)
    control.step()
    assert [row.largest <= 0.5 for row in control.report() if row.kind == "SyncBatchNorm"] == [True, True]


def test_a_state_of_another_network_is_a_sentence() -> None:
    control = Controller(network(), method="divide", max_sigma=1.0)
    state = control.state_dict()
    other = Controller(nn.Sequential(nn.Conv2d(3, 4, 3)), method="divide", max_sigma=1.0)
    with pytest.raises(UsageError, match="no vectors of this shape for layer 0: it is of another network"):
        other.load_state_dict(state)
    with pytest.raises(UsageError, match="the state is not one of"):
        other.load_state_dict({})
    assert other.steps == 0


def test_a_report_is_a_list_and_a_table_of_80_columns() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder_of_the_first_stage = nn.ModuleDict({"bottleneck_projection_1": nn.ConvTranspose2d(64, 64, 3)})
            self.a = svdctl.TTConv2d(512, 512, 3, rank=192)
            self.norm = nn.BatchNorm2d(8)
            self.fc = nn.Linear(8, 4)

    torch.manual_seed(1)  # a bound of four digits below 1 is wide
    control = Controller(Deep(), max_sigma={"a": 0.5, "enc*": 1e-3}, batchnorm_max=1.0)
    report = control.report()
    assert isinstance(report, list)
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 80
    # A long name is folded, and what matters least has no room beside it.
    assert lines[0].split() == ["layer", "reached", "bound", "maximum", "proved"]
    assert [line.split()[-1] for line in lines[2:] if line[0] != " "] == ["no", "no", "-", "yes"]
    assert lines[2].split()[0] + lines[3].strip() == "encoder_of_the_first_stage.bottleneck_projection_1"
    control.seal()
    assert [row.is_proved for row in control.report()] == [True, True, None, True]
    assert "512x512x3x3 r192x192" in [cell.text for cell in report.table().rows[1]]
    assert report.table().rows[0][0].text == "encoder_of_the_first_stage.bottleneck_projection_1"


def replaced_layer(net: Any) -> None:
    svdctl.tensorize_(net.layer1[0], rank=4)


def replaced_batchnorm(net: Any) -> None:
    net.layer1[0].bn1 = nn.BatchNorm2d(8)


def deleted_layer(net: Any) -> None:
    del net.layer1[1].conv2


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (replaced_layer, "'layer1.0.conv1'"),
        (replaced_batchnorm, "'layer1.0.bn1'"),
        (deleted_layer, "'layer1.1.conv2'"),
    ],
)
def test_a_layer_that_was_replaced_is_a_sentence(change: Callable[[nn.Module], None], name: str) -> None:
    net = network()
    control = Controller(net, max_sigma=0.1, batchnorm_max=1.0)
    control.seal()
    change(net)
    words = f"layer {name} was replaced since the Controller was made; make a new one"
    for call in (control.seal, control.report, *([control.prove] if "bn" not in name else [])):
        with pytest.raises(UsageError, match=words):
            call()


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_were_replaced_are_read_anew(method: str) -> None:
    net = network()
    control = Controller(net, method=method, max_sigma=0.3, every_steps=1)
    control.step()
    net.conv1.weight = nn.Parameter(4 * net.conv1.weight.detach())
    # From now on one weight, which is to be scaled once.
    net.layer1[1].conv1.weight = net.layer1[0].conv1.weight
    assert control.report()[0].is_proved is False
    assert control.seal()["conv1"].upper <= 0.3
    assert float(dense_values(copy.deepcopy(net.conv1).double(), (3, 6, 6))[0]) <= 0.3
    assert ["layer1.0.conv1", "layer1.1.conv1"] in list(control._groups.names.values())
    net.layer1[0].conv1.weight = nn.Parameter(torch.full_like(net.layer1[0].conv1.weight, 9.0))
    control.step()
    assert control.report()[1].largest < 2  # of 648
    net.conv1.weight = nn.Parameter(torch.ones(8, 3, 5, 5))
    with pytest.raises(UsageError, match="the weight of layer 'conv1' has another shape than when"):
        control.seal()
    prune.l1_unstructured(net.layer1[0].conv1, "weight", 0.5)
    with pytest.raises(ShapeError, match=r"layer layer1\.0\.conv1 cannot be changed: its weight is pruned"):
        control.prove()


@pytest.mark.parametrize("call", ["step", "seal", "prove", "report", "clip_", "divide_"])
def test_weights_that_are_not_finite_are_named(call: str) -> None:
    net = network()
    control = Controller(net, max_sigma=0.3, every_steps=1)
    net.layer1[1].conv1.weight.data[0, 0, 0, 0] = torch.nan
    calls: dict[str, Callable[[], Any]] = {
        "clip_": lambda: svdctl.clip_(net, max_sigma=0.3),
        "divide_": lambda: svdctl.divide_(net, max_sigma=0.3),
    }
    with pytest.raises(ShapeError, match=r"^layer layer1\.1\.conv1: the kernel holds values that are not finite"):
        calls.get(call, getattr(control, call, None))()


def test_weights_under_a_spectral_norm_that_are_not_finite_are_named() -> None:
    net = nn.Sequential(svdctl.parametrize.spectral_norm(nn.Conv2d(2, 2, 3), max_sigma=1.0))
    control = Controller(net, max_sigma=1.0)
    net[0].parametrizations.weight.original.data.fill_(torch.nan)
    for call in (control.seal, control.prove, control.report):
        with pytest.raises(ShapeError, match=r"^layer 0: the kernel holds values that are not finite"):
            call()


def test_rows_of_a_report_are_told_apart_by_their_names() -> None:
    shape = "2048x2048x3x3"
    names = [f"resnet.encoder.stages.{stage}.layers.0.shortcut.normalization" for stage in range(5)]
    rows = [LayerReport(name, "ConvTranspose2d", shape, 123.4567, 123.4567, 0.001234) for name in [*names, "fc"]]
    lines = str(Report(rows)).splitlines()
    assert max(map(len, lines)) <= 80
    header, rule, *shown, last = lines
    column = slice(0, rule.index(" "))
    assert "shape" in header
    assert "type" not in header  # there is no room for it
    assert [one[column] + other.strip() for one, other in zip(shown[::2], shown[1::2], strict=True)] == names
    assert all(line.endswith("123.4  123.5  0.001235      no") for line in [*shown[::2], last])
    assert last.startswith("fc ")
    short = str(Report([rows[-1]])).splitlines()
    assert short[2].split()[:2] == ["fc", "ConvTranspose2d"]
    assert len(str(Report([])).splitlines()) == 2


def of_clip(net: nn.Module, **given: Any) -> Controller:
    return Controller(net, **{"max_sigma": 0.4, **given})


STATES: dict[str, tuple[Any, Any, str]] = {
    # the state, who loads it, words
    "nothing": (dict, of_clip, "the state is not one of Controller.state_dict"),
    "a text": (lambda: "a", of_clip, "the state is not one of Controller.state_dict"),
    "of an optimiser": (
        lambda: torch.optim.SGD(network().parameters()).state_dict(), of_clip, "the state is not one of Controller",
    ),
    "of something else": (
        lambda: {**of_clip(network()).state_dict(), "controller": 3}, of_clip, "the state is not one of Controller",
    ),
    "another generator": (
        lambda: {**of_clip(network()).state_dict(), "generator": torch.zeros(3)}, of_clip, "the state is not one of",
    ),
    "another method": (
        lambda: of_clip(network(), method="assign").state_dict(), of_clip, "is of method 'assign', not of 'clip'",
    ),
    "fewer layers": (
        lambda: of_clip(network(), layers="conv1").state_dict(), of_clip, "layer 'layer1.0.conv1' is not in it",
    ),
    "more layers": (
        lambda: of_clip(network(), linear_max=1.0).state_dict(), of_clip, "layer 'fc' is not controlled here",
    ),
    "another shape": (
        lambda: of_clip(nn.Sequential(nn.Conv2d(3, 4, 3))).state_dict(),
        lambda _: of_clip(nn.Sequential(nn.Conv2d(3, 4, 5))), "layer '0' is of another shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_states_of_other_controllers_are_sentences(name: str) -> None:
    state, make, words = STATES[name]
    control = make(network())
    with pytest.raises(UsageError, match=words):
        control.load_state_dict(state())
    assert control.steps == 0


@pytest.mark.parametrize("method", METHODS)
def test_states_of_older_versions_are_loaded(method: str) -> None:
    control = Controller(network(), method=method, max_sigma=0.4)
    control.step()
    state = {key: value for key, value in copy.deepcopy(control.state_dict()).items() if key != "controller"}
    other = Controller(network(), method=method, max_sigma=0.4)
    other.load_state_dict(state)
    assert other.steps == 1
    assert_same(other.state_dict(), control.state_dict())


def test_arguments_of_methods_that_are_none_are_sentences() -> None:
    control = Controller(network(), max_sigma=0.4, batchnorm_max=0.9)
    with pytest.raises(UsageError, match="report takes brackets by layer, as seal returns them, not 'x'"):
        control.report("x")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"has the name 'layer1\.0\.conv'; did you mean layer1\.0\.conv"):
        control.maximum("layer1.0.conv")
    with pytest.raises(UsageError, match="a step is a whole number, counted from 1, not 'a'"):
        control.due("a")  # type: ignore[arg-type]
    assert [control.maximum(name) for name in ("conv1", "fc", "layer1.0.bn1")] == [0.4, None, 0.9]
