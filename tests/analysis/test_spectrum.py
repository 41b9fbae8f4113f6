"""Spectra of modules and networks against the dense matrix."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svdctl
from svdctl.analysis import network_spectrum
from svdctl.analysis.spectrum_table import layer_records, to_csv
from svdctl.errors import ShapeError
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
