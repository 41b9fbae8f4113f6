"""What `import svdctl` offers: documented, typed, with examples that run."""

import doctest
import inspect
import typing
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from torch import nn

import svdctl
from svdctl.build import build_model
from svdctl.checkpoint import Checkpoint, load, write_checkpoint
from svdctl.config.flags import resolve


def parts_of(thing: Any) -> set[str]:
    """The sections of a docstring."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    return {line.removesuffix(":") for line in lines if line in ("Args:", "Returns:", "Raises:", "Source:")}


@pytest.mark.parametrize("name", svdctl.__all__)
def test_each_name_answers_a_users_questions(name: str) -> None:
    thing = getattr(svdctl, name)
    doc = inspect.getdoc(thing)
    assert doc
    assert len(doc.splitlines()[0]) <= 120
    arguments = [argument for argument in inspect.signature(thing).parameters if argument != "self"]
    assert ">>> " in doc
    if len(arguments) > 1:
        assert "Args" in parts_of(thing)
        for argument in arguments:
            assert argument in doc, argument
    if not inspect.isclass(thing):
        assert "Raises" in parts_of(thing)


@pytest.mark.parametrize("name", svdctl.__all__)
def test_each_name_is_typed_throughout(name: str) -> None:
    thing = getattr(svdctl, name)
    call = thing.__init__ if inspect.isclass(thing) else inspect.unwrap(thing)
    hints = inspect.get_annotations(call)
    wanted = [argument for argument in inspect.signature(call).parameters if argument != "self"]
    assert set(hints) == {*wanted, "return"}
    assert Path(svdctl.__file__).with_name("py.typed").exists()
    assert typing.Any not in hints.values()


@pytest.mark.parametrize("name", svdctl.__all__)
def test_each_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if getattr(svdctl, name) is load:
        save_untrained(tmp_path / "runs" / "quickstart")
        monkeypatch.chdir(tmp_path)
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


def test_a_picture_of_a_spectrum_needs_no_file_and_leaves_the_backend_alone(tmp_path: Path) -> None:
    import matplotlib as mpl

    before = mpl.get_backend(auto_select=False)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    found = svdctl.spectrum(net, (3, 8, 8))
    figure = found.plot(max=1.0)
    assert [panel.get_title() for panel in figure.axes] == ["0", "2"]
    assert figure._repr_png_().startswith(b"\x89PNG")
    found.plot(tmp_path / "spectrum.svg")
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
    moved = svdctl.clip_(net, max=0.4)
    assert list(moved) == ["0", "1", "2"]
    assert net[1].weight is net[0].weight
    for layer in net:
        assert svdctl.spectral_norm_bound(layer).upper <= 0.4


def save_untrained(folder: Path) -> None:
    """A run folder as training leaves it, before its first step."""
    config = resolve({"preset": "quickstart"}).config
    classes = tuple(map(str, range(10)))
    state = build_model(config, len(classes)).state_dict()
    folder.mkdir(parents=True)
    write_checkpoint(folder / "last.pt", Checkpoint(config, classes, (3, 32, 32), state, {}, {}))
