"""Layers told from a flat state dict: the right kind, the right operator, nothing dropped."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from svdctl.checkpoint.stored_layer import StoredLayer
from svdctl.checkpoint.stored_layers import stored_layers
from svdctl.layers.layer_operator import operator_of
from svdctl.layers.normalize import Normalize
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT
from svdctl.layers.tt import TTConv2d
from svdctl.spectral import singular_values
from tests.checkpoint.public import PublicSkew, PublicTT
from tests.dense import dense_matrix, dense_values

EPS32 = 1e-5


def only(model: nn.Module | dict[str, Tensor]) -> StoredLayer:
    tensors = model if isinstance(model, dict) else dict(model.state_dict())
    layers = stored_layers(tensors)
    assert len(layers) == 1, [layer.name for layer in layers]
    assert set(layers[0].tensors) == set(tensors)
    return layers[0]


def kernel(layer: StoredLayer) -> Tensor:
    assert layer.make is not None, layer.reason
    return layer.make().weight


PLAIN: dict[str, tuple[nn.Module, str]] = {
    "conv1d": (nn.Conv1d(3, 4, 5), "conv1d"),
    "conv2d": (nn.Conv2d(3, 4, (2, 5)), "conv2d"),
    "conv2d without bias": (nn.Conv2d(3, 4, 1, bias=False), "conv2d"),
    "conv3d": (nn.Conv3d(2, 3, 3), "conv3d"),
    "linear": (nn.Linear(3, 5), "linear"),
    "double": (nn.Linear(3, 5, dtype=torch.float64), "linear"),
}


@pytest.mark.parametrize(("module", "kind"), PLAIN.values(), ids=PLAIN)
def test_plain_layers_by_their_number_of_axes(module: nn.Module, kind: str) -> None:
    layer = only(module)
    assert layer.kind == kind
    assert torch.equal(kernel(layer), operator_of(module).weight)
    assert layer.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert not layer.reason


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_short_numbers_are_widened(dtype: torch.dtype) -> None:
    layer = only({"a.weight": torch.randn(3, 2, 3, 3).to(dtype)})
    assert kernel(layer).dtype == torch.float32


def trained(module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """After some passes in training mode, which move warm-started vectors."""
    for _ in range(3):
        module(torch.randn(shape))
    return module.eval()


NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "old weight_norm": nn.utils.weight_norm,
    "new weight_norm": nn.utils.parametrizations.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "new spectral_norm": nn.utils.parametrizations.spectral_norm,
}
NORMED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: nn.Conv2d(3, 5, 3), (2, 3, 6, 6)),
    "one channel": (lambda: nn.Conv2d(1, 1, 3), (2, 1, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 5, 3), (2, 3, 6, 6)),
    "transposed square": (lambda: nn.ConvTranspose2d(4, 4, 3), (2, 4, 6, 6)),
    "square": (lambda: nn.Conv2d(4, 4, 3), (2, 4, 6, 6)),
    "linear": (lambda: nn.Linear(4, 6), (2, 4)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize(("make", "shape"), NORMED.values(), ids=NORMED)
def test_weights_stored_in_parts(
    make: Callable[[], nn.Module], shape: tuple[int, ...], norm: Callable[[nn.Module], nn.Module]
) -> None:
    torch.manual_seed(0)
    module = trained(norm(make()), shape)
    layer = only(module)
    module(torch.randn(shape))
    weight = module.weight.detach()
    torch.testing.assert_close(
        kernel(layer), weight if weight.ndim > 2 else weight[:, :, None], rtol=EPS32, atol=1e-6, check_dtype=False
    )
    assert "norm" in layer.told_by


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_weight_norm_over_another_axis_or_all() -> None:
    for axis in (1, None):
        for norm in (nn.utils.weight_norm, nn.utils.parametrizations.weight_norm):
            module = norm(nn.Conv2d(3, 5, 3), dim=axis)
            torch.testing.assert_close(
                kernel(only(module)), module.weight.detach(), rtol=EPS32, atol=1e-7, check_dtype=False
            )


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


def test_a_parametrization_that_cannot_be_undone_is_listed() -> None:
    for module in (
        nn.utils.parametrize.register_parametrization(nn.Linear(4, 4), "weight", Symmetric()),
        nn.utils.parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="cayley", use_trivialization=False),
    ):
        layer = only(module)
        assert layer.make is None
        assert "parametrization" in layer.reason


def moved(module: nn.Module) -> nn.Module:
    """After steps of gradient descent on a loss that turns the weight."""
    target = torch.randn_like(module.weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        (module.weight * target).sum().backward()
        optimizer.step()
    return module


@pytest.mark.parametrize(
    ("kind", "is_based"), [("matrix_exp", True), ("cayley", True), ("householder", True), ("householder", False)]
)
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 4), (3, 7), (7, 3)])
def test_orthogonal_matrices_have_their_values(inputs: int, outputs: int, kind: str, is_based: bool) -> None:
    torch.manual_seed(0)
    orthogonal = nn.utils.parametrizations.orthogonal
    module = moved(orthogonal(nn.Linear(inputs, outputs), orthogonal_map=kind, use_trivialization=is_based))
    layer = only(module)
    assert "orthogonal" in layer.assumption
    torch.testing.assert_close(
        torch.linalg.svdvals(kernel(layer)[:, :, 0]), torch.linalg.svdvals(module.weight.double()), rtol=1e-5, atol=1e-5
    )
    if not is_based:
        torch.testing.assert_close(kernel(layer)[:, :, 0], module.weight.double(), rtol=1e-5, atol=1e-5)


def test_orthogonal_kernels_need_their_map() -> None:
    torch.manual_seed(0)
    orthogonal = nn.utils.parametrizations.orthogonal
    module = moved(orthogonal(nn.Conv2d(3, 5, 3), orthogonal_map="householder", use_trivialization=False))
    torch.testing.assert_close(kernel(only(module)), module.weight.double(), rtol=1e-5, atol=1e-5)
    layer = only(orthogonal(nn.Conv2d(3, 5, 3)))
    assert layer.make is None
    assert "map (matrix_exp, cayley, householder)" in layer.reason


def test_a_base_that_is_not_orthonormal_is_refused() -> None:
    tensors = dict(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)).state_dict())
    tensors["parametrizations.weight.0.base"] = tensors["parametrizations.weight.0.base"] * 2
    assert only(tensors).make is None


def test_pruned_layers_are_the_product_with_their_mask() -> None:
    torch.manual_seed(0)
    for module in (nn.Conv2d(3, 5, 3), nn.Linear(4, 6)):
        nn.utils.prune.l1_unstructured(module, "weight", amount=0.4)
        nn.utils.prune.random_unstructured(module, "bias", amount=0.4)
        layer = only(module)
        weight = module.weight.detach().double()
        assert torch.equal(kernel(layer), weight if weight.ndim > 2 else weight[:, :, None])
        assert "pruning" in layer.assumption
        tensors = dict(module.state_dict())
        assert torch.equal(kernel(only(tensors | {"weight_mask": tensors["weight_mask"].bool()})), kernel(layer))
    assert stored_layers(tensors | {"weight_u": torch.ones(6)})[0].make is None
    assert stored_layers(tensors | {"weight_mask": torch.ones(2)})[0].make is None


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (4, 4, 3, 3), (6, 4)])
def test_spectral_norm_of_weight_bar(shape: tuple[int, ...]) -> None:
    """The code that calls its parts so iterates once more before each pass: its weight is at most that of the file."""
    torch.manual_seed(0)
    bar = torch.randn(shape)
    matrix = bar.flatten(1)
    u, v = (nn.functional.normalize(torch.rand(size), dim=0) for size in matrix.shape)
    sigmas = []
    for _ in range(2):
        v = nn.functional.normalize(matrix.T @ u, dim=0)
        u = nn.functional.normalize(matrix @ v, dim=0)
        sigmas.append(float(u @ matrix @ v))
        if len(sigmas) == 1:
            stored = {"weight_bar": bar, "weight_u": u, "weight_v": v, "bias": torch.zeros(shape[0])}
    layer = only(stored)
    wanted = bar.double() / sigmas[0]
    torch.testing.assert_close(kernel(layer), wanted if wanted.ndim > 2 else wanted[:, :, None], rtol=EPS32, atol=1e-7)
    assert sigmas[1] >= sigmas[0]
    assert "weight can only shrink" in layer.assumption


def test_batchnorm_as_factors() -> None:
    for affine in (True, False):
        module = nn.BatchNorm2d(4, affine=affine)
        module(torch.randn(8, 4, 3, 3) * 3)
        if affine:
            nn.init.normal_(module.weight)
        (layer,) = stored_layers(dict(module.eval().state_dict()))
        assert layer.kind == "batchnorm"
        assert layer.scale is not None
        moved = module(torch.ones(1, 4, 1, 1)) - module(torch.zeros(1, 4, 1, 1))
        torch.testing.assert_close(layer.scale, moved.detach().flatten())


def test_normalisation_as_factors() -> None:
    layer = only(Normalize((0.1, 0.2), (0.5, 0.25)))
    assert layer.kind == "normalize"
    assert layer.scale is not None
    assert layer.scale.tolist() == [2.0, 4.0]


def free_tt(inputs: int, outputs: int, rank: int | tuple[int, int]) -> TTConv2d:
    torch.manual_seed(inputs)
    layer = TTConv2d(inputs, outputs, 3, rank=rank, frames="free").double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("rank", [1, 3, (2, 4), 20])
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 7), (6, 4), (3, 8), (4, 4)])
def test_tt_layers_have_the_values_of_the_dense_matrix(inputs: int, outputs: int, rank: int | tuple[int, int]) -> None:
    """Frames far from orthonormal, in svdctl's names and in the paper's."""
    module = free_tt(inputs, outputs, rank)
    ring = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="circular", bias=False).double()
    with torch.no_grad():
        ring.weight.copy_(module.contracted())
    wanted = dense_values(ring, (inputs, 4, 4))
    paper = {"m.K2": module.core.detach().permute(1, 2, 3, 0).contiguous(), "m.bias": module.bias.detach()}
    if module.frame_in is not None:
        paper |= {"m.K1": module.frame_in.detach(), "m.K3": module.frame_out.detach().T.contiguous()}
    for tensors in (dict(module.state_dict()), paper):
        layer = only(tensors)
        assert layer.kind == "tt"
        assert layer.shape == (outputs, inputs, 3, 3)
        assert layer.rank == module.rank
        assert layer.make is not None
        values = singular_values(layer.make(), (4, 4)).flatten().sort(descending=True).values
        values = torch.cat([values, values.new_zeros(len(wanted))])[: len(wanted)]
        torch.testing.assert_close(values, wanted, rtol=1e-9, atol=1e-9 * float(wanted[0]))


def test_frame_error_is_zero_for_frames_and_told_otherwise() -> None:
    exact = TTConv2d(8, 6, 3, rank=4)
    assert only(exact).frame_error == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        exact.frame_in *= 2
    assert only(exact).frame_error == pytest.approx(3, abs=1e-5)
    assert only(TTConv2d(4, 4, 3, rank=9)).frame_error == 0


def test_parametrised_frames_leave_the_core() -> None:
    module = TTConv2d(8, 6, 3, rank=4, frames="parametrize")
    layer = only(module)
    assert layer.frame_error == 0
    assert layer.shape == (6, 8, 3, 3)
    assert torch.equal(kernel(layer), module.core.detach())


@pytest.mark.parametrize(("inputs", "outputs", "size", "stride"), [(4, 4, 3, 1), (3, 8, 3, 2), (8, 3, 1, 1)])
def test_svdctls_own_skew_layers_by_their_generator(inputs: int, outputs: int, size: int, stride: int) -> None:
    torch.manual_seed(0)
    module = SOC(inputs, outputs, size, stride=stride)
    layer = only(module)
    assert layer.kind == "soc"
    assert layer.make_generator is not None
    assert layer.shape[0] == outputs
    torch.testing.assert_close(
        layer.make_generator().weight, module.skew_kernel(), rtol=1e-5, atol=1e-7, check_dtype=False
    )
    for frames in ("retract", "parametrize"):
        framed = SOTT(inputs + 4, outputs + 3, size, rank=(inputs, outputs), stride=stride, frames=frames)
        framed.core.load_state_dict({name: tensor for name, tensor in module.state_dict().items() if name != "bias"})
        layer = only(framed)
        assert layer.kind == "sott"
        assert layer.shape == (outputs + 3, inputs + 4, size, size)
        assert layer.rank == (inputs, outputs)
        assert layer.frame_norms == pytest.approx((1, 1), abs=1e-5)
        assert layer.make_generator is not None
        torch.testing.assert_close(
            layer.make_generator().weight, module.skew_kernel(), rtol=1e-5, atol=1e-7, check_dtype=False
        )
    assert only(SOTT(inputs, outputs, size, rank=9, stride=stride)).frame_error == 0


SKEW = [
    (4, 4, 3, 1, None),
    (3, 8, 3, 1, None),
    (3, 8, 3, 2, None),
    (8, 3, 1, 1, None),
    (8, 6, 3, 2, 4),
    (4, 4, 3, 1, 9),
]


@pytest.mark.parametrize(("inputs", "outputs", "size", "stride", "rank"), SKEW)
def test_skew_layers_by_their_generator(inputs: int, outputs: int, size: int, stride: int, rank: int | None) -> None:
    torch.manual_seed(0)
    module = PublicSkew(inputs, outputs, size, stride, rank)
    layer = only(module)
    assert layer.kind == ("soc" if rank is None else "sott")
    assert layer.make is None
    assert not layer.reason
    assert layer.make_generator is not None
    torch.testing.assert_close(
        layer.make_generator().weight, module.generator().detach(), rtol=1e-5, atol=1e-7, check_dtype=False
    )
    assert layer.shape[0] == outputs
    same = nn.Conv2d(1, 1, 1, bias=False)
    same.weight = nn.Parameter(layer.make_generator().weight.double())
    same.forward = lambda x: torch.nn.functional.conv2d(x, same.weight, padding=size // 2)
    matrix = dense_matrix(same, (layer.make_generator().weight.shape[0], 4, 4))
    torch.testing.assert_close(matrix, -matrix.T)


def test_skew_layers_with_frames_tell_their_norms() -> None:
    module = PublicSkew(8, 6, 3, 1, rank=4)
    layer = only(module)
    assert layer.rank == (4, 4)
    assert layer.shape == (6, 8, 3, 3)
    norms = [float(torch.linalg.matrix_norm(frame.detach(), 2)) for frame in (module.K1, module.K3)]
    assert layer.frame_norms == pytest.approx(norms, rel=1e-5)
    assert layer.frame_error is not None
    assert layer.frame_error > 0.1


def test_skew_layers_that_cannot_be_run_say_why() -> None:
    tensors = dict(PublicSkew(4, 4).state_dict())
    assert "before any training" in only(tensors | {"u3": -tensors["u3"]}).reason
    assert "u2 is missing" in only({name: tensor for name, tensor in tensors.items() if name != "u2"}).reason
    assert "do not fit" in only(tensors | {"v1": torch.ones(9, 1, 3, 1)}).reason
    assert "v1 has 12 NaN" in only(tensors | {"v1": tensors["v1"] * torch.nan}).reason
    assert "middle tap" in only(tensors | {"random_conv_filter": torch.ones(4, 4, 2, 2)}).reason


def test_nothing_is_dropped_and_every_reason_is_told() -> None:
    model = nn.ModuleDict({
        "token_emb": nn.Embedding(9, 4), "norm": nn.LayerNorm(4), "attention": nn.MultiheadAttention(4, 2),
        "cell": nn.LSTM(4, 4), "act": nn.PReLU(), "conv": nn.Conv2d(3, 4, 3), "bilinear": nn.Bilinear(2, 3, 4),
    })  # fmt: skip
    tensors = dict(model.state_dict()) | {
        "pos": torch.zeros(1, 5, 4), "steps": torch.tensor(3), "mask": torch.ones(2, 2, dtype=torch.bool),
        "counts.weight": torch.ones(3, 3, dtype=torch.int64), "wave.weight": torch.ones(2, 2, dtype=torch.complex64),
        "big.weight": torch.ones(1, 1, 1, 1, 1, 1),
    }  # fmt: skip
    layers = stored_layers(tensors, others={"state": "a dict"})
    listed = [name for layer in layers for name in layer.tensors]
    assert sorted(listed) == sorted(tensors)
    assert all(layer.reason or layer.make is not None for layer in layers)
    by_name = {layer.name: layer for layer in layers}
    assert by_name["token_emb"].kind == "embedding"
    assert "LayerNorm" in by_name["norm"].reason
    assert by_name["attention"].kind == by_name["attention.out_proj"].kind == "linear"
    assert "recurrent" in by_name["cell.weight_hh_l0"].reason
    assert "int64" in by_name["counts"].reason
    assert "complex64" in by_name["wave"].reason
    assert "a dict" in by_name["state"].reason
    assert by_name["conv"].make is not None


LEAVES = (
    *("weight", "bias", "core", "frame_in", "frame_out", "K1", "K2", "K3", "correction", "u1", "v1", "running_var"),
    *("weight_g", "weight_v", "weight_u", "weight_orig", "weight_mask", "weight_bar"),
    *("in_proj_weight", "mean", "std", "random_conv_filter", "x"),
    *(f"parametrizations.weight.{part}" for part in ("original", "original0", "original1", "0._u", "0._v", "0.base")),
    *("parametrizations.frame_in.original", "parametrizations.frame_out.original", "parametrizations"),
)
TYPES = [torch.float32, torch.float32, torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64]
TENSORS = st.builds(
    lambda shape, dtype: torch.ones(shape).to(dtype),
    st.lists(st.integers(0, 3), max_size=5) | st.sampled_from([(3, 3, 3, 3), (2, 1, 1, 2), (3, 2), (2,)]),
    st.sampled_from(TYPES),
)


@settings(max_examples=150)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["", "a.", "a.b.", "weight."]), st.sampled_from(LEAVES)).map("".join),
        TENSORS,
        max_size=12,
    )
)
def test_any_names_and_shapes_are_listed_once(tensors: dict[str, Tensor]) -> None:
    layers = stored_layers(tensors)
    assert sorted(name for layer in layers for name in layer.tensors) == sorted(tensors)
    for layer in layers:
        made = (layer.make, layer.make_generator, layer.scale)
        assert all(part is None for part in made) == bool(layer.reason)


WHOLE = [
    dict(PublicSkew(4, 4).state_dict()),
    dict(SOC(4, 4).state_dict()),
    dict(SOTT(6, 4, rank=3).state_dict()),
    dict(SOTT(6, 4, rank=3, frames="parametrize").state_dict()),
    dict(PublicSkew(6, 4, 3, 2, 3).state_dict()),
    dict(PublicTT(nn.Conv2d(5, 6, 3), 3).state_dict()),
    dict(TTConv2d(5, 6, 3, rank=3).state_dict()),
    dict(TTConv2d(5, 6, 3, rank=3, frames="parametrize").state_dict()),
    dict(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 3)).state_dict()),
]


@settings(max_examples=150)
@given(st.sampled_from(WHOLE), st.data())
def test_layers_with_parts_exchanged_are_listed_once(whole: dict[str, Tensor], data: st.DataObject) -> None:
    tensors = whole | data.draw(st.dictionaries(st.sampled_from(list(whole)), TENSORS, max_size=3))
    for name in data.draw(st.lists(st.sampled_from(list(whole)), max_size=2)):
        tensors.pop(name, None)
    layers = stored_layers(tensors)
    assert sorted(name for layer in layers for name in layer.tensors) == sorted(tensors)
    for layer in layers:
        made = (layer.make, layer.make_generator, layer.scale)
        assert all(part is None for part in made) == bool(layer.reason)


def test_order_is_that_of_the_file() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    assert [layer.name for layer in stored_layers(dict(model.state_dict()))] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("0.weight", float("nan"), "0.weight has 1 NaN of 108 numbers"),
        ("0.bias", float("inf"), "0.bias has 1 infinite of 4 numbers"),
        ("1.running_var", float("nan"), "1.running_var has 1 NaN of 4 numbers"),
        ("1.running_var", -1.0, "not positive"),
    ],
)
def test_bad_numbers_are_told_by_name(name: str, value: float, told: str) -> None:
    tensors = dict(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict())
    tensors[name] = tensors[name].clone()
    tensors[name].flatten()[0] = value
    layer = {layer.name: layer for layer in stored_layers(tensors)}[name[0]]
    assert told in layer.reason
    assert layer.make is None
    assert layer.scale is None


def test_bad_frames_and_empty_tensors_are_told() -> None:
    tensors = dict(TTConv2d(8, 6, 3, rank=4).state_dict())
    broken = tensors | {"frame_in": torch.full((8, 4), torch.nan)}
    assert "frame_in has 32 NaN" in only(broken).reason
    assert "different ranks" in only(tensors | {"frame_in": torch.ones(8, 5)}).reason
    assert "missing" in only({name: tensor for name, tensor in tensors.items() if name != "frame_out"}).reason
    zero = {"a.weight_g": torch.ones(3, 1), "a.weight_v": torch.zeros(3, 2)}
    assert "divides by zero" in only(zero).reason
    assert "empty" in only({"a.weight": torch.ones(0, 3, 3, 3)}).reason
