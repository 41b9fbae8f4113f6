"""`orthogonalize_`: which layers become orthogonal, what of them stays, and that nothing changes where it refuses."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import svdctl
from svdctl.errors import ShapeError
from tests.dense import dense_values


def network() -> nn.Sequential:
    torch.manual_seed(0)
    shared = nn.Conv2d(8, 8, 1)
    return nn.Sequential(
        *(
            nn.Conv2d(4, 8, 3, padding=1),
            shared,
            nn.ReLU(),
            nn.Conv2d(8, 8, 5, stride=2, padding=2, bias=False),
            shared,
        ),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_singular_values_of_the_dense_matrices_are_one(dtype: torch.dtype) -> None:
    net = network().to(dtype)
    before = copy.deepcopy(net)
    x = torch.randn(2, 4, 8, 8, dtype=dtype)
    shape = net(x).shape
    made = svdctl.orthogonalize_(net)
    assert made.replaced == {"0": "SOC", "1": "SOC", "3": "SOC", "4": "SOC", "7": "orthogonal"}
    assert made.skipped == {}
    assert net[1] is net[4]
    assert net(x).shape == shape
    net(x).sum().backward()
    assert all(parameter.grad is not None and parameter.dtype == dtype for parameter in net.parameters())
    assert torch.equal(net[0].bias, before[0].bias)
    assert torch.equal(net[7].bias, before[7].bias)
    assert net[3].bias is None
    exact = copy.deepcopy(net).double().eval()
    for name, image in (("1", (8, 4, 4)), ("3", (8, 4, 4)), ("7", (32,))):
        values = dense_values(exact.get_submodule(name), image)
        # The stride turns 4 * 8 channels into 8: a coisometry.
        wanted = torch.ones_like(values)
        torch.testing.assert_close(values, wanted, rtol=0, atol=2e-4)


def test_an_orthogonal_matrix_stays_and_others_become_the_factor_q() -> None:
    linear = nn.Linear(6, 4).double()
    q = torch.linalg.qr(linear.weight.detach().T)
    signs = q.R.diagonal().sign()
    net = nn.Sequential(linear)
    svdctl.orthogonalize_(net)
    torch.testing.assert_close(linear.weight.detach().abs(), (q.Q * signs).T.abs())
    kept = nn.Linear(4, 4).double()
    with torch.no_grad():
        kept.weight.copy_(torch.linalg.qr(kept.weight).Q)
    before = kept.weight.detach().clone()
    assert svdctl.orthogonalize_(kept).replaced == {"": "orthogonal"}
    torch.testing.assert_close(kept.weight.detach(), before)


def test_settings_of_training_stay() -> None:
    net = network()
    net[0].eval()
    net[0].weight.requires_grad_(False)
    net[3].weight.requires_grad_(False)
    net[7].requires_grad_(False)
    net[1].bias.requires_grad_(False)
    svdctl.orthogonalize_(net)
    assert [net[place].training for place in (0, 1, 3, 7)] == [False, True, True, True]
    assert [net[place].kernel.requires_grad for place in (0, 1, 3)] == [False, True, False]
    assert [net[place].bias.requires_grad for place in (0, 1)] == [True, False]
    assert not any(parameter.requires_grad for parameter in net[7].parameters())


def hooked() -> nn.Module:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    layer.register_forward_hook(lambda *_: None)
    return layer


def filled(layer: nn.Linear, value: float) -> nn.Module:
    nn.init.constant_(layer.weight, value)
    return layer


def pruned() -> nn.Module:
    layer = nn.Linear(4, 4)
    prune.l1_unstructured(layer, "weight", 1)
    return layer


class Loud(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "even": (lambda: nn.Conv2d(4, 4, 2), "its kernel is 2 x 2, and SOC needs a square one of odd size"),
    "oblong": (lambda: nn.Conv2d(4, 4, (3, 1), padding=(1, 0)), "its kernel is 3 x 1"),
    "stride 3": (lambda: nn.Conv2d(4, 4, 3, stride=3, padding=1), r"its stride is \(3, 3\)"),
    "uneven stride": (lambda: nn.Conv2d(4, 4, 3, stride=(1, 2), padding=1), r"its stride is \(1, 2\)"),
    "groups": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2), "it has 2 groups"),
    "dilation": (lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2), r"dilation \(2, 2\)"),
    "reflected": (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "its padding mode is 'reflect'"),
    "valid": (lambda: nn.Conv2d(4, 4, 3), r"its padding is \(0, 0\), and SOC has that which keeps the size, 1"),
    "one axis": (lambda: nn.Conv1d(4, 4, 3, padding=1), "it is a Conv1d, and only a Conv2d or Linear itself"),
    "own class": (lambda: Loud(4, 4, 3, padding=1), "it is a Loud, and only"),
    "hook": (hooked, "it has a forward hook"),
    "pruned": (pruned, "its weight is computed from others"),
    "lazy": (lambda: nn.LazyConv2d(4, 3, padding=1), "it is a LazyConv2d"),
    "parametrised": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "its weight is parametrised already"),
    "half": (
        lambda: nn.Linear(4, 4).bfloat16(),
        r"its weight is torch.bfloat16, .*with .float\(\)",
    ),
    "half conv": (lambda: nn.Conv2d(4, 4, 3, padding=1).half(), r"its weight is torch.float16, .*\.float\(\) first"),
    "not finite": (lambda: filled(nn.Linear(4, 4), float("nan")), "its weight holds values that are not finite"),
    "meta": (lambda: nn.Linear(4, 4, device="meta"), "on the meta device"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_made_orthogonal_is_named_with_its_reason(name: str) -> None:
    make, reason = REFUSED[name]
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), nn.Sequential(make()), nn.Conv2d(4, 4, 1, padding="valid"))
    with pytest.raises(ShapeError, match=rf"layer '1\.0' cannot be made orthogonal: .*{reason}"):
        svdctl.orthogonalize_(net, layers="*")
    assert type(net[0]) is nn.Conv2d, "changed before the error"
    made = svdctl.orthogonalize_(net)
    assert made.replaced == {"0": "SOC", "2": "SOC"}
    assert list(made.skipped) == ["1.0"]
    assert svdctl.orthogonalize_(net).replaced == {}


def test_patterns_choose_layers_and_one_that_names_none_is_an_error() -> None:
    net = network()
    made = svdctl.orthogonalize_(net, layers=["[01]", "7"])
    assert list(made.replaced) == ["0", "1", "4", "7"], "a shared convolution is replaced in its other place too"
    assert net[1] is net[4]
    assert type(net[3]) is nn.Conv2d
    with pytest.raises(ShapeError, match="no convolution or linear layer has a name like 'conv"):
        svdctl.orthogonalize_(net, layers=["3", "conv*"])
    assert type(net[3]) is nn.Conv2d


def test_types_and_predicates_choose_layers() -> None:
    net = network()
    assert list(svdctl.orthogonalize_(net, layers=nn.Linear).replaced) == ["7"]
    assert list(svdctl.orthogonalize_(net, layers=lambda name, _: name == "3").replaced) == ["3"]
    assert list(svdctl.orthogonalize_(net, layers=["4", nn.Conv2d]).replaced) == ["0", "1", "4"]
    assert svdctl.orthogonalize_(network(), layers=[]).replaced == {}
    with pytest.raises(ShapeError, match="`layers` chooses no convolution or linear layer of the network"):
        svdctl.orthogonalize_(network(), layers=nn.Conv3d)
    with pytest.raises(ShapeError, match=r"chosen by patterns of names, types and predicates .* not by 3$"):
        svdctl.orthogonalize_(network(), layers=3)  # type: ignore[arg-type]


def test_what_is_orthogonal_already_stays() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        svdctl.parametrize.orthogonal(nn.Conv2d(4, 4, 1)),
        parametrizations.orthogonal(nn.Linear(4, 4)),
        parametrizations.orthogonal(nn.Conv2d(4, 4, 1)),  # of the kernels' axes, not of the matrix
        nn.Linear(4, 4),
    )
    assert svdctl.orthogonalize_(net, layers=["0", "1", "3"]).replaced == {"3": "orthogonal"}
    skipped = svdctl.orthogonalize_(net).skipped
    assert [name for name, reason in skipped.items() if reason == "it is orthogonal already"] == ["0", "1", "3"]
    assert "remove the parametrization first, by svdctl.parametrize.remove_parametrizations" in skipped["2"]


def test_a_weight_with_two_owners_stays() -> None:
    net = nn.ModuleDict({"embedding": nn.Embedding(5, 8), "head": nn.Linear(8, 5)})
    net["head"].weight = net["embedding"].weight
    before = net["embedding"].weight.detach().clone()
    made = svdctl.orthogonalize_(net)
    assert made.skipped == {"head": "'embedding' and 'head' share its weight; give each one of its own"}
    assert torch.equal(net["embedding"].weight, before)


def test_a_bare_convolution_has_no_place() -> None:
    with pytest.raises(ShapeError, match=r"make a svdctl\.SOC of its sizes"):
        svdctl.orthogonalize_(nn.Conv2d(4, 4, 3, padding=1))
