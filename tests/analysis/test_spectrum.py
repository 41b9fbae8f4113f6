"""Spectra of modules and networks against the dense matrix."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svdctl
from svdctl.analysis import network_spectrum
from svdctl.analysis.spectrum_table import layer_records, to_csv
from svdctl.errors import ShapeError
from svdctl.layers import shapes
from svdctl.layers.tt import TTConv2d
from svdctl.spectral import Bracket, Convolution, clip_kernel, norm_bound, scale_to_bound, singular_values, values
from tests.dense import dense_values

PADDED = {
    "zeros": lambda: nn.Conv2d(3, 4, 3, padding=1),
    "strided": lambda: nn.Conv2d(3, 4, 3, padding=1, stride=2),
    "even": lambda: nn.Conv2d(3, 4, (2, 4), padding=(1, 2)),
    "dilated": lambda: nn.Conv2d(3, 4, 3, padding=2, dilation=2),
    "grouped": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "none": lambda: nn.Conv2d(3, 4, 3),
    "circular": lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
    "reflect": lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
    "1d": lambda: nn.Conv1d(3, 4, 3, padding=1),
    "3d": lambda: nn.Conv3d(2, 3, 2),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1),
    "tt": lambda: TTConv2d(6, 5, 3, rank=3, padding=1),
}


@pytest.mark.parametrize("name", PADDED)
def test_bracket_of_the_layer_as_it_runs(name: str) -> None:
    torch.manual_seed(0)
    layer = PADDED[name]()
    shape = (layer.in_channels, *[6] * (layer.core.ndim - 2 if name == "tt" else layer.weight.ndim - 2))
    row = svdctl.spectrum(nn.Sequential(layer), shape)["0"]
    truth = float(dense_values(layer.double(), shape)[0])
    assert row.zero_padded.lower <= truth * (1 + 1e-9)
    assert row.zero_padded.lower >= 0.98 * truth
    assert truth <= row.zero_padded.upper
    assert row.zero_padded.upper == row.bound.upper
    # Reflection: sqrt(2) along each axis.
    assert row.bound.upper <= 1.0201 * row.bound.lower * (2 if name == "reflect" else 1)
    if name == "circular":
        assert row.largest == pytest.approx(truth, rel=1e-6)


def test_the_gain_of_a_batchnorm_that_float32_cannot_hold() -> None:
    norm = nn.BatchNorm2d(2)
    norm.weight.data.fill_(1e-30)
    norm.running_var.fill_(1e20)  # type: ignore[union-attr]
    row = svdctl.spectrum(nn.Sequential(nn.Conv2d(2, 2, 1), norm), (2, 3, 3))["1"]
    assert row.bound is not None
    assert row.bound.lower <= norm.weight[0].double().item() / 1e20**0.5 <= row.bound.upper


def test_a_bias_plays_no_part_in_the_bracket_of_the_layer_as_it_runs() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, padding=1)
    with torch.no_grad():
        layer.weight.mul_(1e-5)
        layer.bias.zero_()
        found = []
        for _ in range(2):
            found.append(svdctl.spectrum(nn.Sequential(layer), (2, 6, 6))["0"].zero_padded)
            layer.bias.fill_(1e12)
    assert found[0] is not None
    assert found[0] == found[1]


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e15, 1e25, 1e36])
def test_the_bracket_of_the_layer_as_it_runs_at_any_scale(scale: float) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.mul_(scale)
    bracket = svdctl.spectrum(nn.Sequential(layer), (2, 6, 6))["0"].zero_padded
    assert bracket is not None
    true = float(dense_values(copy.deepcopy(layer).double(), (2, 6, 6))[0])
    assert 0.99 * true <= bracket.lower <= true <= bracket.upper


def test_transposed_values_are_those_of_the_dense_matrix() -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(3, 2, 2, stride=2, bias=False).double()  # no overlap: padding plays no part
    assert torch.allclose(svdctl.singular_values(layer, 4), dense_values(layer, (3, 4, 4))[: 4 * 4 * 3])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("accuracy", "error"), [("full", 3e-7), ("fast", 1e-3)])
def test_single_precision_agrees_with_double(stride: int, dilation: int, accuracy: str, error: float) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(40, 32, 3, 3)
    settings = {"stride": stride, "dilation": dilation}
    want = svdctl.singular_values(kernel.double(), 8, **settings)
    got = svdctl.singular_values(kernel, 8, accuracy=accuracy, **settings)
    assert got.dtype == torch.float32
    assert (got.double() - want).abs().max() <= error * want[0]


def test_threads_change_nothing() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(32, 32, 3, 3)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = svdctl.singular_values(kernel, 8)
        torch.set_num_threads(2)
        assert torch.allclose(svdctl.singular_values(kernel, 8), alone, rtol=1e-6)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_memory_budget_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    conv = Convolution.make(torch.randn(6, 5, 3, 3))
    found = singular_values(conv, (9, 7))
    monkeypatch.setattr(values, "_BYTES_AT_ONCE", {"cpu": 1})
    assert torch.allclose(singular_values(conv, (9, 7)), found, atol=1e-5)


def test_clip_nears_the_projection_with_rounds_and_beats_division() -> None:
    torch.manual_seed(0)
    conv = Convolution.make(torch.randn(32, 32, 3, 3))
    conv = conv.with_kernel(conv.kernel * (2 / norm_bound(conv).upper))
    few, many, best = (
        float((clip_kernel(conv, 1.0, rounds=rounds, oversampling=over).kernel - conv.kernel).norm())
        for rounds, over in ((2, 1.0), (8, 1.0), (40, 2.0))
    )
    divided = float((scale_to_bound(conv, 1.0)[0].kernel - conv.kernel).norm())
    assert best < many < few < divided
    assert many < 0.8 * divided


def test_clip_and_divide_a_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, stride=2), nn.Flatten(), nn.Linear(72, 4))
    with torch.no_grad():
        model[0].weight.mul_(5)
        model[1].weight.mul_(5)
    fc = model[3].weight.clone()
    moved = svdctl.clip_(model, max_sigma=1.0, layers="0")
    assert set(moved) == {"0"}
    factors = svdctl.divide_(model, max_sigma=1.0)
    assert factors["0"] == 1.0
    assert factors["1"] < 1
    assert torch.equal(model[3].weight, fc)
    rows = svdctl.spectrum(model, (3, 9, 9), at_most=1.0)
    assert {row.name for row in rows.exceeding(1.0)} <= {"3"}
    with pytest.raises(ShapeError, match="matches nothing"):
        svdctl.clip_(model, max_sigma=1.0, layers="nothing")


def test_a_network_is_left_as_it_was_and_reads_as_a_table() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = svdctl.spectrum(model, (3, 8, 8), name="small")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    text = repr(found)
    assert text.startswith("small")
    assert all(len(line) <= 80 for line in text.splitlines())
    assert found.lipschitz == pytest.approx(found["0"].bound.upper * found["1"].bound.upper, rel=0.05)
    assert layer_records(found)[0]["count"] == 8 * 8 * 3
    assert to_csv([found]).count("\n") == 3
    assert found._repr_html_().count("<tr>") == 3


def test_layers_without_a_spectrum_are_listed() -> None:
    found = svdctl.spectrum(nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4)), (4, 4, 4))
    assert found["1"].bound is None
    assert "GroupNorm" in found["1"].note
    assert "not analysed" in repr(found)
    assert found.lipschitz is None
    assert found.lipschitz_note


@pytest.mark.parametrize(
    ("make", "shape", "words"),
    [
        (lambda: nn.Sequential(nn.ReLU()), (3, 4, 4), "no convolution"),
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 1)), (4, 4, 4), "does not take"),
    ],
)
def test_faults(make, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        svdctl.spectrum(make(), shape)


def test_weights_that_are_not_finite_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    model[1].weight.data[0, 0] = float("nan")
    found = svdctl.spectrum(model, (3, 4, 4))
    assert found["0"].is_analysed
    assert "not finite" in found["1"].note


def test_bound_of_every_kind() -> None:
    torch.manual_seed(0)
    assert isinstance(svdctl.spectral_norm_bound(torch.randn(4, 5)), Bracket)
    matrix = torch.randn(4, 5, dtype=torch.float64)
    assert svdctl.singular_values(matrix)[0] == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)))
    assert svdctl.singular_values(nn.Linear(3, 2)).shape == (2,)


class OnSizes(nn.Module):
    """One layer, on several sizes of its input."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.layer = nn.Conv2d(2, 2, 3, stride=2, padding=1, padding_mode="circular", bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.layer(x[..., :n, :n]).sum() for n in self.sizes])[None]


@pytest.mark.parametrize("sizes", [(5, 6), (6, 5), (5, 5, 6), (7, 6, 8)])
def test_a_bound_holds_for_every_size_that_a_layer_is_called_on(sizes: tuple[int, ...]) -> None:
    for seed in range(6):
        torch.manual_seed(seed)
        model = OnSizes(*sizes).double()
        row = svdctl.spectrum(model, (2, 9, 9), at_most=0.1)["layer"]
        for n in sizes:
            assert dense_values(model.layer, (2, n, n))[0] <= row.bound.upper * (1 + 1e-12)
        assert row.input_size == (sizes[-1],) * 2
        assert all(f"{n}x{n}" in row.note for n in sizes)


def test_weights_that_are_not_called_or_used_elsewhere_are_an_assumption() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(3, 3) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) @ self.c.weight + self.c(x)

    found = svdctl.spectrum(Half(), (3,))
    assert found["a"].assumption == ""
    assert "not reached" in found["b"].assumption
    assert "matmul" in found["c"].assumption


@torch.jit.script
def scripted_linear(x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, weight * 7.0)


def unseen_linear(x: Tensor, weight: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return x @ (weight * 7)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "use",
    [
        lambda x, layer: scripted_linear(x, layer.weight),
        lambda x, layer: unseen_linear(x, layer.weight),
        lambda x, layer: x * layer.bias,
        lambda x, layer: (x @ layer.bias)[..., None].expand_as(x),
    ],
)
def test_uses_that_are_no_call_of_a_function_of_torch_or_multiply_by_a_bias_are_an_assumption(use: Any) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return use(self.layer(x), self.layer)

    row = svdctl.spectrum(Network(), (4, 4), bounds_only=True)["layer"]
    assert "outside of its own calls" in row.assumption


def test_layers_that_are_computed_together_have_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2, padding=1, bias=False),
        nn.ConvTranspose2d(6, 4, 2, stride=2),
        TTConv2d(4, 6, 3, rank=3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    alone = svdctl.spectrum(net, (3, 9, 9))
    asked = []

    def counted(*args: Any, **options: Any) -> list[Tensor]:
        asked.append(len(args[0]))
        return values.all_singular_values(*args, **options)

    monkeypatch.setattr(network_spectrum, "few_batches_are_faster", lambda device: True)
    monkeypatch.setattr(network_spectrum, "all_singular_values", counted)
    together = svdctl.spectrum(net, (3, 9, 9))
    assert asked == [5]
    assert len(together) == len(alone) == 5
    for one, other in zip(together, alone, strict=True):
        assert (one.name, one.note, one.input_size, one.bound) == (
            other.name,
            other.note,
            other.input_size,
            other.bound,
        )
        assert one.zero_padded == other.zero_padded
        torch.testing.assert_close(one.values, other.values)
    with torch.no_grad():
        net[2].weight[0, 0, 0, 0] = torch.nan
    broken = svdctl.spectrum(net, (3, 9, 9))
    assert broken["2"].bound is None
    assert "not finite" in broken["2"].note
    assert torch.equal(broken["0"].values, alone["0"].values)


@pytest.mark.parametrize("layers", ["*", "?"])
def test_bounds_alone_are_those_of_the_whole_spectrum(layers: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=3), nn.PReLU())
    whole = svdctl.spectrum(network, (3, 8, 8), layers=layers)
    bounds = svdctl.spectrum(network, (3, 8, 8), layers=layers, bounds_only=True)
    assert [(row.name, row.bound, row.stride, row.input_size, row.note) for row in bounds] == [
        (row.name, row.bound, row.stride, row.input_size, row.note) for row in whole
    ]
    assert all(row.values is None and row.zero_padded is None for row in bounds)
    assert bounds.lipschitz is None
    assert bounds.lipschitz_note == "only the bounds of layers were asked for"
    assert "only the bounds of layers were asked for" in repr(bounds)
    truth = float(dense_values(network[0].double(), (3, 8, 8))[0])
    assert 0 < truth <= bounds["0"].bound.upper


class Attention(nn.Module):
    """Attention of images' rows."""

    def __init__(self, attention: nn.Module, way: Any = None) -> None:
        super().__init__()
        self.inner, self.way = attention, way

    def forward(self, x: Tensor) -> Tensor:
        if self.way is not None:
            return self.way(self.inner, x)
        return self.inner(x, x, x, need_weights=False)[0]


class Louder(nn.MultiheadAttention):
    def forward(self, query: Tensor, *others: Any, **named: Any) -> Any:
        return 2 * super().forward(query, *others, **named)[0], None


@pytest.mark.parametrize("other", [None, 6])
def test_projections_of_attention_have_rows(other: int | None) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, kdim=other, vdim=other, batch_first=True)
    nn.init.normal_(attention.out_proj.weight)
    nets = Attention(attention, lambda inner, x: inner(x, x[..., :other], x[..., :other])[0])
    found = svdctl.spectrum(nets, (5, 8))
    assert [row.name for row in found] == [f"inner.{name}_proj" for name in ("q", "k", "v", "out")]
    if other is None:
        stored = attention.in_proj_weight.chunk(3)
    else:
        stored = attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight
    for row, weight in zip(found, (*stored, attention.out_proj.weight), strict=True):
        truth = float(torch.linalg.matrix_norm(weight.detach().double(), 2))
        assert row.bound is not None
        assert row.bound.lower <= truth <= row.bound.upper <= 1.0001 * row.bound.lower
        assert (row.kind, row.shape, row.assumption, row.note) == ("Linear", tuple(weight.shape), "", "")
        assert row.largest == pytest.approx(truth, rel=1e-5)


def _shouting(inner: nn.MultiheadAttention, x: Tensor) -> Tensor:
    kept = inner.in_proj_weight
    inner.in_proj_weight = nn.Parameter(100 * kept)
    y = inner(x, x, x)[0]
    inner.in_proj_weight = kept
    return y


def _taken(inner: nn.MultiheadAttention, x: Tensor) -> Tensor:
    return inner(x, x, x)[0] + x @ inner.out_proj.weight


def test_attention_that_is_not_torchs_has_no_proved_projections() -> None:
    found = svdctl.spectrum(nn.Sequential(nn.Linear(8, 8), Attention(Louder(8, 2, batch_first=True))), (5, 8))
    assert [row.name for row in found] == ["0", "1.inner", "1.inner.out_proj"]
    assert found["1.inner"].bound is None
    assert "forward pass is not that" in found["1.inner"].note
    assert "not reached" in found["1.inner.out_proj"].assumption
    own = nn.MultiheadAttention(8, 2, batch_first=True)
    for row in svdctl.spectrum(Attention(own, _shouting), (5, 8)):
        assert row.bound is None
        assert "in_proj_weight is another one" in row.note
    for row in svdctl.spectrum(Attention(own, _taken), (5, 8)):
        assert "though matmul takes it there" in row.assumption
    for row in svdctl.spectrum(Attention(own, lambda inner, x: torch.relu(x)), (5, 8)):
        assert "not reached" in row.assumption
    own.register_forward_hook(lambda module, inputs, output: (2 * output[0], None))
    assert "hook" in svdctl.spectrum(Attention(own), (5, 8))["inner"].note


class Given(nn.Module):
    """Gives the weight of a linear layer to a function."""

    def __init__(self, way: Any) -> None:
        super().__init__()
        self.own, self.way = nn.Linear(3, 3), way
        self.louder, self.kept = 100 * self.own.weight.detach(), self.own.weight.data

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def _swapped(net: Given, x: Tensor) -> Tensor:
    net.own.weight.data = net.louder
    y = nn.functional.linear(x, net.own.weight)
    net.own.weight.data = net.kept
    return y


def test_a_weight_that_is_given_to_the_function_linear_counts_as_a_call() -> None:
    linear = nn.functional.linear
    for way in (
        lambda net, x: linear(x, net.own.weight, net.own.bias),
        lambda net, x: linear(x, net.own.weight, 2 * net.own.bias.clone()),
        lambda net, x: net.own(linear(x, net.own.weight)),
    ):
        row = svdctl.spectrum(Given(way), (3,))["own"]
        assert (row.assumption, row.note, row.input_size) == ("", "", (1,))
    for way, why in (
        (lambda net, x: linear(x, 2 * net.own.weight), "though mul"),
        (lambda net, x: linear(x, net.own.weight.T), "though __get__"),
        (lambda net, x: linear(net.own.weight, net.own.weight), "though linear"),
        (lambda net, x: linear(x, net.own.weight) @ net.own.weight, "though matmul"),
    ):
        assert svdctl.spectrum(Given(way), (3,))["own"].assumption != "", why
    row = svdctl.spectrum(Given(_swapped), (3,))["own"]
    assert row.bound is None
    assert "its weight is another one" in row.note


def test_little_memory_for_what_layers_are_given_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Patched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(self.a(self.a(x)[..., :6]))
            kept, nn.functional.conv2d = nn.functional.conv2d, lambda *given: 2 * kept(*given)
            try:
                return self.c(x)
            finally:
                nn.functional.conv2d = kept

    runs = []
    torch.manual_seed(0)
    network = Patched()
    network.register_forward_hook(lambda *given: runs.append(1))

    def rows() -> list[tuple[Any, ...]]:
        runs.clear()
        found = svdctl.spectrum(network, (3, 8, 8), bounds_only=True)
        return [(row.name, row.bound, row.note, row.assumption, row.input_size) for row in found]

    whole = rows()
    assert len(runs) == 1
    assert [row[1] is None for row in whole] == [False, False, True]
    assert "its output when the network runs" in whole[2][2]
    monkeypatch.setattr(shapes, "_MOST_KEPT", 1)
    assert rows() == whole
    assert len(runs) == 3
