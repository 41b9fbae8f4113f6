"""What `import svdctl` offers: documented, typed, with examples that run."""

import copy
import doctest
import inspect
import math
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import svdctl
from svdctl.checkpoint.checkpoint_file import Checkpoint, load, write_checkpoint
from svdctl.cli.training_flags import resolve
from svdctl.models.build import build_model
from tests.dense import dense_values

NAMES = [name for name in svdctl.__all__ if not inspect.ismodule(getattr(svdctl, name))]


def parts_of(thing: Any) -> set[str]:
    """The sections of a docstring."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    return {line.removesuffix(":") for line in lines if line in ("Args:", "Returns:", "Raises:", "Source:")}


@pytest.mark.parametrize("name", NAMES)
def test_each_name_answers_a_users_questions(name: str) -> None:
    thing = getattr(svdctl, name)
    doc = inspect.getdoc(thing)
    assert doc
    assert len(doc.splitlines()[0]) <= 120
    arguments = [argument for argument in inspect.signature(thing).parameters if argument != "self"]
    if inspect.isclass(thing) and "__init__" not in vars(thing):
        arguments = []
    assert ">>> " in doc
    if len(arguments) > 1:
        assert "Args" in parts_of(thing)
        for argument in arguments:
            assert argument in doc, argument
    if not inspect.isclass(thing):
        assert "Raises" in parts_of(thing)


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_typed_throughout(name: str) -> None:
    thing = getattr(svdctl, name)
    call = thing.__init__ if inspect.isclass(thing) else inspect.unwrap(thing)
    if inspect.isclass(thing) and "__init__" not in vars(thing):
        return  # it has no arguments of its own
    hints = inspect.get_annotations(call)
    wanted = [argument for argument in inspect.signature(call).parameters if argument != "self"]
    assert set(hints) == {*wanted, "return"}
    assert Path(svdctl.__file__).with_name("py.typed").exists()
    assert typing.Any not in hints.values()


@pytest.mark.parametrize("name", NAMES)
def test_each_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    if getattr(svdctl, name) is load:
        save_untrained(tmp_path / "runs" / "quickstart")
    thing = getattr(svdctl, name)
    tests = [
        test
        for test in doctest.DocTestFinder(recurse=False).find(thing, name, globs={"svdctl": svdctl})
        if test.examples
    ]
    assert tests
    for test in tests:
        torch.manual_seed(0)
        assert doctest.DocTestRunner().run(test).failed == 0


def test_a_spectrum_reads_as_a_table_and_turns_into_a_data_frame() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    found = svdctl.spectrum(net, (3, 8, 8))
    assert repr(found).count("\n") > 6
    frame = found.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.index) == ["0", "2"]
    assert frame.loc["0", "largest_circular"] == found["0"].largest


@pytest.mark.drawn
def test_a_picture_of_a_spectrum_needs_no_file_and_leaves_the_backend_alone(tmp_path: Path) -> None:
    import matplotlib as mpl

    before = mpl.get_backend(auto_select=False)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    found = svdctl.spectrum(net, (3, 8, 8))
    figure = found.plot(max_sigma=1.0)
    assert [panel.get_title() for panel in figure.axes] == ["0", "2"]
    assert figure._repr_png_().startswith(b"\x89PNG")
    found.plot(tmp_path / "spectrum.svg")
    with pytest.raises(FileNotFoundError, match=r"none/x\.png cannot be written: .*none is no folder"):
        found.plot(tmp_path / "none" / "x.png")
    with pytest.raises(svdctl.errors.UsageError, match="path is the name of a file"):
        found.plot(3)
    assert "<svg" in (tmp_path / "spectrum.svg").read_text()
    assert mpl.get_backend(auto_select=False) == before


def test_a_spectrum_without_values_has_an_empty_picture() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    net[0].weight.data.fill_(float("nan"))
    assert svdctl.spectrum(net, (3, 4, 4)).plot()._repr_png_()


def test_layers_that_share_a_weight_are_all_within_the_bound() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Conv2d(8, 8, 3, stride=stride, bias=False) for stride in ((2, 1), (1, 2), (1, 1))))
    net[1].weight = net[0].weight
    moved = svdctl.clip_(net, max_sigma=0.4)
    assert list(moved) == ["0", "1", "2"]
    assert net[1].weight is net[0].weight
    for layer in net:
        assert svdctl.spectral_norm_bound(layer).upper <= 0.4


def weight_normed() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))


def old_hook() -> nn.Module:
    return nn.utils.spectral_norm(nn.Conv2d(3, 4, 3))


def pruned() -> nn.Module:
    layer = nn.Conv2d(3, 4, 3)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


class Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


def patched() -> nn.Module:
    layer = nn.Conv2d(3, 4, 3)
    layer.forward = lambda x: 10 * nn.Conv2d.forward(layer, x)  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize("make", [weight_normed, old_hook, pruned, lambda: Standardised(3, 4, 3), patched])
@pytest.mark.parametrize("change", [svdctl.clip_, svdctl.divide_])
def test_a_weight_that_would_not_last_is_refused_and_nothing_changed(
    make: Callable[[], nn.Module], change: Callable[..., Any]
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 3), make())
    before = [parameter.clone() for parameter in net.parameters()]
    with pytest.raises(svdctl.errors.ShapeError, match="layer 1 cannot be changed"):
        change(net, max_sigma=0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert change(net, max_sigma=0.1, layers="0")


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e300, "1", None, True])
@pytest.mark.parametrize("change", [svdctl.clip_, svdctl.divide_])
def test_a_maximum_that_is_none_is_refused(value: Any, change: Callable[..., Any]) -> None:
    with pytest.raises(svdctl.errors.ShapeError, match="max_sigma is a number"):
        change(nn.Conv2d(2, 2, 1), max_sigma=value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: svdctl.spectral_norm_bound(1j * torch.ones(1, 1, 3)), "real floating-point"),
        (lambda: svdctl.singular_values(torch.tensor([[[1, -1]]]), 4), "real floating-point"),
        (lambda: svdctl.spectral_norm_bound(torch.ones(0, 3, 3)), "no entries"),
        (lambda: svdctl.spectral_norm_bound(nn.Conv2d(3, 3, 3, device="meta")), "no values yet"),
        (lambda: svdctl.spectral_norm_bound(torch.ones(3, 3, 3), groups=0), "0 groups"),
        (lambda: svdctl.spectral_norm_bound(torch.ones(3, 3, 3), tolerance=math.inf), "says nothing"),
        (lambda: svdctl.spectral_norm_bound(torch.ones(3, 3, 3), tolerance=math.nan), "says nothing"),
        (lambda: svdctl.singular_values(torch.ones(3, 3, 3), 4, accuracy="bad"), "full or fast"),
        (lambda: svdctl.clip_(torch.ones(3, 3, 3), max_sigma=1), "give the network"),
        (lambda: svdctl.TTConv2d(3, 3, 3, rank=2, frames="bad"), "not 'bad'"),
        (lambda: svdctl.TTConv2d(3, 3, 3, rank=2, stride=0), "at least 1"),
        (lambda: svdctl.TTConv2d(3, 3, 3, rank=2, padding=-1), "at least 0"),
    ],
)
def test_wrong_input_is_a_sentence(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(svdctl.errors.ShapeError, match=words):
        call()


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv1d(1, 1, 2, padding=1, stride=2, padding_mode="circular"), 4),
        (nn.Conv1d(1, 1, 1, padding=1, padding_mode="circular"), 2),
        (nn.Conv2d(3, 4, 3, padding=1, stride=2, padding_mode="circular"), 5),
    ],
)
def test_a_circular_layer_as_it_runs_has_no_bound_of_the_kernel_where_there_is_none(
    layer: nn.Module, size: int
) -> None:
    axes = layer.weight.ndim - 2  # type: ignore[union-attr, operator]
    nn.init.ones_(layer.weight)  # type: ignore[arg-type]
    shape = (layer.in_channels, *[size] * axes)
    row = svdctl.spectrum(nn.Sequential(layer), shape)["0"]
    truth = float(dense_values(copy.deepcopy(layer).double(), shape)[0])
    assert row.zero_padded is not None
    assert row.zero_padded.lower <= truth * (1 + 1e-9)
    assert truth <= row.zero_padded.upper


@pytest.mark.parametrize("channels", [8, 32, 64])
def test_kernels_whose_krylov_space_is_small_are_known_exactly(channels: int) -> None:
    conv = nn.Conv2d(channels, channels, 3, bias=False)
    nn.init.dirac_(conv.weight)
    before = conv.weight.clone()
    for max_ in (1.001, 1.1, 2):
        assert svdctl.clip_(conv, max_sigma=max_) == {"": 0.0}
        assert svdctl.divide_(conv, max_sigma=max_) == {"": 1.0}
    assert torch.equal(conv.weight, before)
    one = nn.Conv2d(8, 4, 3, bias=False)
    nn.init.zeros_(one.weight)
    one.weight.data[0, 0, 1, 1] = 1.1
    found = svdctl.spectral_norm_bound(one)
    assert found.lower <= 1.1 * (1 + 1e-7)
    assert 1.1 * (1 - 1e-7) <= found.upper < 1.2
    svdctl.clip_(one, max_sigma=1.0)
    assert float(one.weight.detach().abs().max()) <= 1.0


def test_convolutions_of_fewer_columns_than_the_rank_are_tensorised() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 128, 1))
    x = torch.randn(2, 3, 8, 8)
    for frames in ("retract", "parametrize"):
        made = copy.deepcopy(net)
        errors = svdctl.tensorize_(made, rank=100, frames=frames)  # type: ignore[arg-type]
        assert max(errors.values()) < 1e-5
        assert torch.allclose(made(x), net(x), atol=1e-4)
        assert torch.allclose(made[0](x[0]), made[0](x)[0], atol=1e-5)


def test_tensorize_keeps_what_is_shared_and_frozen() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False)
    net = nn.Sequential(conv, nn.ReLU(), conv)
    assert set(svdctl.tensorize_(net, rank=4)) == {"0", "2"}
    assert net[0] is net[2]
    assert not any(parameter.requires_grad for parameter in net.parameters())
    other = nn.Sequential(nn.Conv2d(16, 16, 3))
    assert svdctl.tensorize_(other, rank=4, skip="0") == {}


def test_the_names_are_found_by_completion() -> None:
    assert set(svdctl.__all__) <= set(dir(svdctl))
    assert {name for name in dir(svdctl) if not name.startswith("__")} == set(svdctl.__all__)
    assert svdctl.__version__


def save_untrained(folder: Path) -> None:
    """A run folder as training leaves it, before its first step."""
    config = resolve({"preset": "quickstart"}).config
    classes = tuple(map(str, range(10)))
    state = build_model(config, len(classes)).state_dict()
    folder.mkdir(parents=True)
    write_checkpoint(folder / "last.pt", Checkpoint(config, classes, (3, 32, 32), state, {}, {}))


def test_the_examples_of_the_networks_run() -> None:
    tests = doctest.DocTestFinder(recurse=False).find(svdctl.models, "svdctl.models")
    assert [test.examples for test in tests]
    assert all(doctest.DocTestRunner().run(test).failed == 0 for test in tests)
