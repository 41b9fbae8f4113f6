"""Plain calls with odd networks and data: what comes out is a result or a sentence, never torch's or Python's error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import svdctl
from svdctl.certificates.radius import Certifier
from svdctl.cli.app import main
from svdctl.control.controller import Controller
from svdctl.data.images import ImageData
from svdctl.data.read_npz import read_npz
from svdctl.errors import DataError, ShapeError, SvdctlError
from svdctl.layers.tt import TTConv2d
from svdctl.registry import CONTROLS
from svdctl.train import start
from svdctl.utils.progress import Reporter
from tests.faults.small import make, only_run


def with_weight(layer: nn.Module, weight: Tensor | None) -> nn.Module:
    layer.register_parameter("weight", None if weight is None else nn.Parameter(weight))
    return layer


def conv_by(weight: Tensor | None) -> nn.Module:
    return with_weight(nn.Conv2d(2, 2, 3, padding=1), weight)


def made_for_inference(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.inference_mode():
        return make()


def without_weight() -> nn.Module:
    layer = nn.Conv2d(2, 2, 3, padding=1)
    del layer.weight
    return layer


def freed(layer: nn.Module) -> nn.Module:
    """A layer as FSDP leaves it between passes: with shapes, without memory."""
    for parameter in layer.parameters():
        parameter.untyped_storage().resize_(0)
    return layer


def small_tt() -> nn.Module:
    return TTConv2d(4, 4, 3, rank=2, padding=1)


MODELS: dict[str, Callable[[], Any]] = {
    "lazy convolution": lambda: nn.LazyConv2d(2, 3, padding=1),
    "lazy transposed convolution": lambda: nn.LazyConvTranspose2d(2, 3),
    "lazy linear": lambda: nn.LazyLinear(3),
    "lazy beside others": lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.LazyLinear(3)),
    "lazy norm": lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.LazyBatchNorm2d()),
    "expanded": lambda: conv_by(torch.randn(2, 1, 3, 3).expand(2, 2, 3, 3)),
    "expanded linear": lambda: with_weight(nn.Linear(3, 3), torch.randn(1, 3).expand(3, 3)),
    "overlapping": lambda: conv_by(torch.randn(200).as_strided((2, 2, 3, 3), (1, 1, 1, 1))),
    "overlapping linear": lambda: with_weight(nn.Linear(10, 10), torch.randn(200).as_strided((10, 10), (1, 1))),
    "negative": lambda: conv_by(torch._neg_view(torch.randn(2, 2, 3, 3))),
    "negative linear": lambda: with_weight(nn.Linear(3, 3), torch._neg_view(torch.randn(3, 3))),
    "inference": lambda: made_for_inference(lambda: nn.Conv2d(2, 2, 3, padding=1)),
    "inference linear": lambda: made_for_inference(lambda: nn.Linear(3, 3)),
    "inference TT": lambda: made_for_inference(small_tt),
    "meta": lambda: nn.Conv2d(2, 2, 3, padding=1, device="meta"),
    "meta linear": lambda: nn.Linear(3, 3, device="meta"),
    "meta TT": lambda: small_tt().to("meta"),
    "meta network": lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)).to("meta"),
    "no outputs": lambda: conv_by(torch.zeros(0, 2, 3, 3)),
    "no inputs": lambda: conv_by(torch.zeros(2, 0, 3, 3)),
    "no taps": lambda: conv_by(torch.zeros(2, 2, 0, 3)),
    "made without inputs": lambda: nn.Conv2d(0, 2, 3),
    "made without outputs": lambda: nn.Conv2d(2, 0, 3),
    "made without taps": lambda: nn.Conv2d(2, 2, 0),
    "linear without inputs": lambda: nn.Linear(0, 3),
    "linear without outputs": lambda: nn.Linear(3, 0),
    "1-D weight": lambda: with_weight(nn.Linear(3, 3), torch.ones(3)),
    "1-D kernel": lambda: conv_by(torch.ones(3)),
    "kernel of another axis count": lambda: conv_by(torch.randn(2, 2, 3)),
    "kernel of other channels": lambda: conv_by(torch.randn(4, 2, 3, 3)),
    "kernel None": lambda: conv_by(None),
    "weight None": lambda: with_weight(nn.Linear(3, 3), None),
    "deleted weight": without_weight,
    "complex": lambda: nn.Conv2d(2, 2, 3, dtype=torch.complex64),
    "sparse": lambda: with_weight(nn.Linear(3, 3), torch.eye(3).to_sparse()),
    "not finite": lambda: conv_by(torch.full((2, 2, 3, 3), float("nan"))),
    "freed": lambda: freed(nn.Conv2d(2, 2, 3, padding=1)),
    "freed linear": lambda: freed(nn.Linear(3, 3)),
    "freed TT": lambda: freed(small_tt()),
    "freed norm": lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), freed(nn.BatchNorm2d(2))),
    "requires grad": lambda: nn.Conv2d(2, 2, 3, padding=1),
    "no layers": nn.Sequential,
    "None": lambda: None,
    "a list": lambda: [nn.Conv2d(2, 2, 3)],
    "a class": lambda: nn.Conv2d,
}


def image_shape(model: Any) -> tuple[int, ...]:
    if isinstance(model, nn.Linear) and model.in_features > 0:
        return (model.in_features,)
    layers = list(model.modules()) if isinstance(model, nn.Module) else []
    if any(isinstance(layer, TTConv2d) for layer in layers):
        return (4, 6, 6)
    flat = not any(isinstance(layer, nn.modules.conv._ConvNd) for layer in layers)
    return (3,) if flat else (2, 6, 6)


def control(kind: str) -> Callable[[Any], None]:
    def call(model: Any) -> None:
        config = CONTROLS.get(kind).config(max_sigma=0.1, every_steps=1)
        controller = Controller.from_config(model, None, config, None)
        controller.step()
        controller.seal()
        controller.report()

    return call


WRITERS: dict[str, Callable[[Any], object]] = {
    "clip_": lambda model: svdctl.clip_(model, max_sigma=0.1, linear=True),
    "divide_": lambda model: svdctl.divide_(model, max_sigma=0.1, linear=True),
} | {kind: control(kind) for kind in ("clip", "divide", "divide-each", "divide-exact", "assign")}
READERS: dict[str, Callable[[Any], object]] = {
    "spectral_norm_bound": svdctl.spectral_norm_bound,
    "singular_values": lambda model: svdctl.singular_values(model, 6),
    "spectrum": lambda model: svdctl.spectrum(model, image_shape(model)),
    "lipschitz_bound": lambda model: svdctl.lipschitz_bound(model, image_shape(model)),
    "Certifier": lambda model: Certifier(model, image_shape(model)),
    "tensorize_": lambda model: svdctl.tensorize_(
        nn.Sequential(model) if isinstance(model, nn.Module) else model, rank=2
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("function", WRITERS | READERS)
@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_a_result_or_a_sentence(model: str, function: str) -> None:
    torch.manual_seed(0)
    try:
        (WRITERS | READERS)[function](MODELS[model]())
    except SvdctlError as error:
        assert len(str(error)) > 20


@pytest.mark.parametrize("function", WRITERS | READERS)
@pytest.mark.parametrize("model", ["freed", "freed linear", "freed TT"])
def test_freed_weights_are_refused(model: str, function: str) -> None:
    if (model, function) in (("freed linear", "tensorize_"), ("freed TT", "tensorize_")):
        (WRITERS | READERS)[function](MODELS[model]())  # it has no convolution to replace
        return
    with pytest.raises(ShapeError, match=r"was freed .*gather the parameters first"):
        (WRITERS | READERS)[function](MODELS[model]())


def test_freed_kernels_are_refused() -> None:
    kernel = torch.randn(2, 2, 3, 3)
    part = kernel[1:]
    kernel.untyped_storage().resize_(100)  # bytes: less than the second output needs
    for function in (svdctl.spectral_norm_bound, svdctl.singular_values):
        with pytest.raises(ShapeError, match="was freed"):
            function(part)


@pytest.mark.parametrize(
    ("model", "function"),
    [
        *((model, function) for model in ("expanded", "overlapping") for function in WRITERS),
        *(
            (model, function)
            for model in ("expanded linear", "overlapping linear")
            for function in ("clip_", "divide_")
        ),
    ],
)
def test_weights_that_overlap_themselves_are_not_written(model: str, function: str) -> None:
    torch.manual_seed(0)
    layer = MODELS[model]()
    before = layer.weight.clone()
    with pytest.raises(ShapeError, match="share their memory"):
        WRITERS[function](layer)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(4, 3).T,
        torch.randn(3, 8)[:, ::2],
        torch.randn(3, 1, 4)[:, 0],
        torch.randn(30).as_strided((3, 4), (8, 2)),
    ],
)
def test_views_that_do_not_overlap_are_written(weight: Tensor) -> None:
    layer = with_weight(nn.Linear(4, 3), weight)
    svdctl.clip_(layer, max_sigma=0.1, linear=True)
    assert 0.09 < float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2)) <= 0.1


@pytest.mark.parametrize("function", WRITERS)
def test_negated_weights_are_not_written(function: str) -> None:
    with pytest.raises(ShapeError, match="resolve_neg"):
        WRITERS[function](MODELS["negative"]())


def test_negated_weights_are_read_as_they_are() -> None:
    """torch has the sign in a flag of the tensor; its memory holds the opposite numbers."""
    layer = MODELS["negative linear"]()
    norm = float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))
    assert norm <= svdctl.lipschitz_bound(nn.Sequential(layer), (3,)).value <= norm * 1.001
    assert norm <= svdctl.spectral_norm_bound(layer).upper <= norm * 1.01


def test_a_default_device_without_values() -> None:
    """Weights that have values are read and written though new tensors of the caller have none."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    wanted = svdctl.lipschitz_bound(network, (2, 6, 6)).value, svdctl.singular_values(network[0], 6)
    with torch.device("meta"):
        found = svdctl.lipschitz_bound(network, (2, 6, 6)).value, svdctl.singular_values(network[0], 6)
        svdctl.spectral_norm_bound(network[0])
        svdctl.clip_(network, max_sigma=0.1)
        svdctl.divide_(network, max_sigma=0.05)
        assert torch.zeros(1).is_meta
    assert found[0] == wanted[0]
    assert torch.equal(found[1], wanted[1])
    assert svdctl.spectral_norm_bound(network[0]).upper <= 0.05


@pytest.mark.parametrize("function", [svdctl.spectral_norm_bound, lambda kernel: svdctl.singular_values(kernel, 6)])
@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad])
def test_kernels_inside_of_a_transform(transform: Any, function: Callable[[Tensor], Any]) -> None:
    with pytest.raises(ShapeError, match=r"torch\.func"):
        transform(function)(torch.randn(2, 2, 2, 3, 3))


KERNELS: dict[str, Callable[[], object]] = {
    "complex": lambda: svdctl.Convolution(torch.ones(1, 2, 2, 3, dtype=torch.complex64), (1,), (1,)),
    "whole numbers": lambda: svdctl.Convolution(torch.ones(1, 2, 2, 3, dtype=torch.int64), (1,), (1,)),
    "half precision": lambda: svdctl.Convolution(torch.ones(1, 2, 2, 3, dtype=torch.float16), (1,), (1,)),
    "two strides for one axis": lambda: svdctl.Convolution(torch.ones(1, 2, 2, 3), (1, 1), (1,)),
    "no groups": lambda: svdctl.Convolution(torch.ones(2, 2), (1,), (1,)),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_convolution_is_checked_however_it_is_made(kernel: str) -> None:
    with pytest.raises(ShapeError, match=r"\.float\(\)|Convolution\.make"):
        KERNELS[kernel]()


WRONG = ("x", b"a", None, [], {}, object, object(), np.ones((2, 2)), float("nan"), -1, 10**30, torch.ones(2))
TYPES: dict[str, Callable[[Any], object]] = {
    "spectral_norm_bound": svdctl.spectral_norm_bound,
    "tolerance": lambda value: svdctl.spectral_norm_bound(torch.ones(1, 1, 2), tolerance=value),
    "stride": lambda value: svdctl.spectral_norm_bound(torch.ones(1, 1, 2), stride=value),
    "groups": lambda value: svdctl.spectral_norm_bound(torch.ones(1, 1, 2), groups=value),
    "input_size": lambda value: svdctl.singular_values(torch.ones(1, 1, 2), value),
    "sizes": lambda value: svdctl.singular_values(torch.ones(1, 1, 2, 2), (value, 8)),
    "network": lambda value: svdctl.lipschitz_bound(value, (2, 6, 6)),
    "input_shape": lambda value: svdctl.lipschitz_bound(nn.Linear(3, 3), value),
    "input_shapes": lambda value: svdctl.lipschitz_bound(nn.Linear(3, 3), (value,)),
    "shape of a spectrum": lambda value: svdctl.spectrum(nn.Linear(3, 3), value),
    "clip_": lambda value: svdctl.clip_(value, max_sigma=1.0),
    "max_sigma": lambda value: svdctl.clip_(nn.Conv2d(1, 1, 3), max_sigma=value),
    "divide_": lambda value: svdctl.divide_(nn.Conv2d(1, 1, 3), max_sigma=value),
    "rank": lambda value: svdctl.tensorize_(nn.Sequential(nn.Conv2d(4, 4, 3)), rank=value),
    "load": svdctl.load,
}


@pytest.mark.parametrize("argument", TYPES)
@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
def test_values_of_wrong_types(value: Any, argument: str) -> None:
    """What torch takes for a number is a number, too; anything else is refused in a sentence."""
    try:
        TYPES[argument](value)
    except SvdctlError as error:
        assert len(str(error)) > 20
    except TypeError as error:
        assert str(error).startswith("path is the name of a file")


@pytest.mark.parametrize("function", ["clip_", "divide_", "clip", "divide", "divide-each", "divide-exact", "assign"])
def test_inference_tensors_are_written_inside_of_inference_mode_alone(function: str) -> None:
    torch.manual_seed(0)
    layer = MODELS["inference"]()
    before = layer.weight.clone()
    with pytest.raises(ShapeError, match=r"layer \(top\) cannot be changed: its weight was made under torch.inference"):
        WRITERS[function](layer)
    assert torch.equal(layer.weight, before)
    with torch.inference_mode():
        WRITERS[function](layer)
    assert not torch.equal(layer.weight, before)


def test_spectra_in_inference_mode_are_those_outside() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), small_tt())
    wanted = str(svdctl.spectrum(network, (2, 6, 6)))
    with torch.inference_mode():
        assert str(svdctl.spectrum(network, (2, 6, 6))) == wanted


def test_a_lazy_layer_beside_is_left_alone() -> None:
    """Its memory is not there yet, so that nothing is shared with it."""
    network = MODELS["lazy beside others"]()
    assert list(svdctl.clip_(network, max_sigma=0.1)) == ["0"]
    with pytest.raises(ShapeError, match="a LazyLinear has no weight yet; run the network once first"):
        Controller(network, max_sigma=0.1)


@pytest.mark.parametrize("model", ["None", "a list", "a class"])
@pytest.mark.parametrize("function", ["clip_", "clip", "spectrum", "tensorize_", "Certifier", "lipschitz_bound"])
def test_what_is_no_module_is_named(model: str, function: str) -> None:
    with pytest.raises(ShapeError, match=r"torch\.nn\.Module, not "):
        (WRITERS | READERS)[function](MODELS[model]())


class Computes(nn.Module):
    """A linear layer and a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(3, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


@pytest.mark.parametrize(
    "function", [lambda x: x * 2**70, lambda x: -(2**70) * x, lambda x: x + 2**70, lambda x: x.clamp(max=2**70)]
)
def test_whole_numbers_beyond_64_bits_are_refused_in_our_words(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ShapeError, match="a whole number of more than 64 bits; write it as a float") as error:
        svdctl.lipschitz_bound(Computes(function), (3,))
    assert "convert" not in str(error.value)


SHAPES = {
    "no pixels, channels last": ((20, 0, 0, 3), "0 x 0 pixels"),
    "no rows": ((20, 3, 0, 5), "0 x 5 pixels"),
    "no columns, grey": ((20, 5, 0), "5 x 0 pixels"),
    "no channels": ((20, 8, 8, 0), "images must be"),
    "no images": ((0, 8, 8, 3), "there are no images"),
}


def write_npz(path: Path, shape: tuple[int, ...]) -> None:
    images, labels = np.zeros(shape, np.uint8), np.arange(shape[0]) % 2
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)


@pytest.mark.parametrize("name", SHAPES)
def test_images_without_pixels_are_refused(name: str, tmp_path: Path) -> None:
    shape, words = SHAPES[name]
    write_npz(tmp_path / "a.npz", shape)
    with pytest.raises(DataError, match=words):
        read_npz(tmp_path / "a.npz")


def test_images_without_pixels_of_a_users_data_set_are_refused() -> None:
    data = ImageData(torch.zeros(4, 3, 0, 5, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), ("a", "b"))
    with pytest.raises(DataError, match="mine: its images are 0 x 5 pixels"):
        data.checked("mine")


@pytest.mark.parametrize("command", ["train", "train-lipconv"])
def test_no_run_folder_is_made_for_images_without_pixels(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_npz(tmp_path / "a.npz", (20, 0, 0, 3))
    monkeypatch.chdir(tmp_path)
    data = ["--set", "data.kind=npz", "--set", f"data.path={tmp_path / 'a.npz'}"]
    monkeypatch.setattr("sys.argv", ["svdctl", command, *data, "--out-dir", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "its images are 0 x 0 pixels" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def _nan_network() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    nn.init.constant_(network[1].weight, float("nan"))  # type: ignore[arg-type]
    return network


KERNEL = torch.ones(2, 2, 3, 3)
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a parameter not made": (lambda: svdctl.spectral_norm_bound(nn.UninitializedParameter()), "run the network once"),
    "a size of 2.5": (lambda: svdctl.singular_values(KERNEL, 2.5), "size of the input needs 2 positive numbers"),
    "no size": (lambda: svdctl.singular_values(KERNEL, None), "size of the input needs 2 positive numbers"),
    "a size of 0": (lambda: svdctl.singular_values(KERNEL, (0, 6)), "size of the input needs 2 positive numbers"),
    "three sizes": (
        lambda: svdctl.singular_values(nn.ConvTranspose2d(2, 2, 3, stride=2), (6, 6, 6)),
        "size of the input needs 2 positive numbers",
    ),
    "a stride of 0": (lambda: svdctl.spectral_norm_bound(KERNEL, stride=0), "stride and dilation need 2 positive"),
    "a stride of 2.5": (lambda: svdctl.spectral_norm_bound(KERNEL, stride=2.5), "stride and dilation need 2 positive"),
    "a dilation None": (lambda: svdctl.spectral_norm_bound(KERNEL, dilation=None), "stride and dilation need 2"),
    "groups of a tuple": (lambda: svdctl.spectral_norm_bound(KERNEL, groups=(1, 1)), "do not divide into"),
    "an image of 8": (lambda: Certifier(nn.Linear(3, 3), 8), "the shape of an image is made of positive numbers"),
    "an image of no rows": (lambda: Certifier(nn.Flatten(), (3, 0, 8)), "the shape of an image is made of positive"),
    "a rank of 2.5": (lambda: svdctl.TTConv2d(2, 2, 3, rank=2.5), "a TT rank is a whole number"),
    "three ranks": (lambda: svdctl.TTConv2d(2, 2, 3, rank=(1, 2, 3)), "a TT rank is a whole number"),
    "no channels": (lambda: svdctl.TTConv2d(0, 2, 3, rank=1), "at least one channel on each side"),
    "an image itself": (
        lambda: svdctl.lipschitz_bound(nn.Linear(3, 3), torch.zeros(1, 3, 8, 8)),  # type: ignore[arg-type]
        r"as \(3, 32, 32\), not a Tensor of shape \(1, 3, 8, 8\)$",
    ),
    "an image itself, of a spectrum": (
        lambda: svdctl.spectrum(nn.Linear(3, 3), np.zeros((3, 8, 8))),  # type: ignore[arg-type]
        r"as \(3, 32, 32\), not a ndarray of shape \(3, 8, 8\)$",
    ),
    "an image as lists": (
        lambda: svdctl.spectrum(nn.Linear(3, 3), torch.zeros(3, 80).tolist()),
        r"not \[\[0\.0, [0., ]{70,80}\.\.\.$",
    ),
    "a tensor as a size": (
        lambda: svdctl.singular_values(KERNEL, torch.zeros(9, 9)),  # type: ignore[arg-type]
        r"2 positive numbers, not a Tensor of shape \(9, 9\)$",
    ),
    "a NaN kernel": (lambda: svdctl.tensorize_(_nan_network(), rank=1), "layer '1': its weight holds .* not finite"),
    "how to skip it": (lambda: svdctl.tensorize_(_nan_network(), rank=1), "leave this layer as it is, give skip='1'"),
    "skip of 2": (lambda: svdctl.tensorize_(_nan_network(), rank=1, skip=2), "skip is a pattern of module names"),
    "skip of [2]": (lambda: svdctl.tensorize_(_nan_network(), rank=1, skip=[2]), "skip is a pattern of module names"),
    "a rank of no layer": (lambda: svdctl.tensorize_(_nan_network(), rank=0), "^a TT rank .* not 0$"),
    "other frames": (lambda: svdctl.tensorize_(_nan_network(), rank=1, frames="tight"), "^frames are kept by one of"),
    "a weight of the penalty": (
        lambda: svdctl.tensorize_(_nan_network(), rank=1, frames="penalty", penalty_weight="much"),
        "penalty_weight is a number from 0 on, not 'much'",
    ),
    "same padding of a stride": (
        lambda: svdctl.TTConv2d(2, 2, 3, rank=1, padding="same", stride=2),
        "padding='same' of a TT layer needs stride 1",
    ),
    "same padding of an even kernel": (
        lambda: svdctl.TTConv2d(2, 2, (3, 2), rank=1, padding="same"),
        "as many zeros on both sides",
    ),
    "another padding": (lambda: svdctl.TTConv2d(2, 2, 3, rank=1, padding="full"), "'same' or 'valid', not 'full'"),
    "TT channels of letters": (lambda: svdctl.TTConv2d("a", 4, 3, rank=1), "whole number of channels, .* not 'a' and"),
    "SOTT of letters": (lambda: svdctl.SOTT("a", 4, 3, rank=1), "at least one channel on each side, not 'a' and 4"),
    "SOTT of three ranks": (lambda: svdctl.SOTT(4, 4, 3, rank=(1, 2, 3)), "a SOTT rank is a whole number"),
    "a spectrum's tolerance": (lambda: svdctl.spectrum(nn.Linear(3, 3), (3,), tolerance="a"), "tolerance is a number"),
    "a spectrum's maximum": (lambda: svdctl.spectrum(nn.Linear(3, 3), (3,), at_most="a"), "at_most is a number"),
    "SOC of letters": (lambda: svdctl.SOC("a", 3), "not in_channels='a', out_channels=3"),
    "SOC of two sizes": (lambda: svdctl.SOC(3, 3, (3, 5)), r"square, its size one odd number, not \(3, 5\)"),
    "SOC of a size in words": (lambda: svdctl.SOC(3, 3, "3"), "square, its size one odd number, not '3'"),
    "SOC of uneven sides": (
        lambda: svdctl.SOC(3, 3, stride=2)(torch.zeros(1, 3, 7, 8)),
        "stride 2 takes images whose sides are divisible by 2, not 7x8",
    ),
    "a spectrum's accuracy": (
        lambda: svdctl.spectrum(nn.Linear(3, 3), (3,), accuracy="zz"),
        "accuracy is full or fast, not 'zz'",
    ),
    "a spectrum's layers": (
        lambda: svdctl.spectrum(nn.Linear(3, 3), (3,), layers=3),
        "layers is a pattern of module names, .* not 3",
    ),
    "MinMax of a number": (lambda: svdctl.MinMax()(torch.tensor(1.0)), r"MinMax takes \(N, C"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_odd_settings_are_refused(name: str) -> None:
    call, words = REFUSED[name]
    with pytest.raises(ShapeError, match=words):
        call()


@pytest.mark.parametrize("command", ["eval-robust", "train"])
def test_a_checkpoint_whose_images_lost_their_pixels(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither results are begun nor is the run gone on with."""
    monkeypatch.chdir(tmp_path)
    start.run(make(tmp_path, max_steps=1), base="test", reporter=Reporter())
    run = only_run(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    write_npz(tmp_path / "data.npz", (20, 0, 0, 3))
    more = ["--metrics", "accuracy", "--out-dir", "found"] if command == "eval-robust" else []
    flags = [str(run)] if command == "eval-robust" else ["--resume", str(run)]
    monkeypatch.setattr("sys.argv", ["svdctl", command, *flags, *more])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "its images are 0 x 0 pixels" in " ".join(capsys.readouterr().err.split())
    assert sorted(tmp_path.rglob("*")) == before
