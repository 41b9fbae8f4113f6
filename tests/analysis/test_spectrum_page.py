"""Pages of spectra: the figures of the table, the origin of the weights, names of any kind."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from svdctl.analysis import inspect_files
from svdctl.analysis.inspect_config import InspectConfig
from svdctl.analysis.layer_spectrum import LayerSpectrum
from svdctl.analysis.network_spectrum import NetworkSpectrum
from svdctl.analysis.spectrum_page import spectrum_page
from svdctl.analysis.spectrum_table import spectrum_table
from svdctl.checkpoint.weight_file import read_tensors
from svdctl.errors import UsageError
from svdctl.spectral import Bracket
from svdctl.utils.content_hash import file_digest
from svdctl.utils.html_page import render
from svdctl.utils.printable import printable
from tests.browser import Browser, chromium

pytestmark = pytest.mark.drawn

HOSTILE = "</script><img src=x onerror='window.hit=1'>\"\u202e$x$" + "y" * 900
GATE_TEXT = "1 of 3 layers are proved to be at most the maximum (layers with weights 0.5)."


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def written(folder: Path, *files: Path, **asked: object) -> tuple[Path, list[NetworkSpectrum]]:
    """A page of files, and what it shows."""
    config = InspectConfig.model_validate({"files": files, "html": folder / "page.html", "input_size": "8", **asked})
    return folder / "page.html", inspect_files.run(config)


def weights(path: Path, *names: str) -> Path:
    torch.manual_seed(len(names))
    kernels = {f"{name}.weight": torch.randn(4, 3, 3, 3) * (place + 1) for place, name in enumerate(names)}
    torch.save(
        {**kernels, "bn.weight": torch.ones(3), "bn.running_mean": torch.zeros(3), "bn.running_var": torch.ones(3)},
        path,
    )
    return path


def test_the_page_has_the_figures_of_the_table_and_sorts_them(browser: Browser, tmp_path: Path) -> None:
    page, (network,) = written(tmp_path, weights(tmp_path / "w.pt", "a", "b", "c"))
    browser.open(page)
    table = spectrum_table(network)
    shown = [[cell.text for cell in row] for row in table.shown_rows]
    bound = table.headers.index("bound")
    assert browser.column("layer", 1) == ["a", "b", "c", "bn"]
    assert browser.column("bound", 1) == [row[bound] for row in shown]
    browser.header("bound", 1).click()
    largest_first = sorted(shown[:3], key=lambda row: -float(row[bound]))
    assert browser.column("bound", 1)[:3] == [row[bound] for row in largest_first]
    assert browser.column("layer", 1)[:3] == ["c", "b", "a"]
    assert browser.texts("#t0 tbody td:first-child") == [f"{tmp_path.name}/w.pt"]
    assert len(browser.all("figure svg")) == 1
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]


def test_the_page_says_where_the_weights_come_from_and_what_is_proved(browser: Browser, tmp_path: Path) -> None:
    file = weights(tmp_path / "w.pt", "a")
    page, _ = written(tmp_path, file, tolerance=0.1)
    browser.open(page)
    facts = dict(zip(browser.texts("dt"), browser.texts("dd"), strict=True))
    assert facts["file"] == str(file)
    assert facts["SHA-256 of the file"] == file_digest(file)
    assert facts["SHA-256 of its tensors"] == read_tensors(file).digest
    assert "10 %" in facts["tolerance"]
    assert {"written", "svdctl", "machine", "format", "singular values"} <= set(facts)
    classes = [cell.get_attribute("class") for cell in browser.all("#t1 tbody td.proved, #t1 tbody td.assumed")]
    # That of the BatchNorm rests on the eps that a file does not tell.
    assert classes == ["figures proved", "figures assumed"]


def test_layers_of_any_name_are_text(browser: Browser, tmp_path: Path) -> None:
    """A name of a file is at most 1,000 signs long."""
    odd = tmp_path / "</title><script>window.hit=1</script>'\".pt"
    odd.mkdir(parents=True)
    files = odd / "w.safetensors", tmp_path / "v.safetensors"
    for file in files:
        save_file({f"{HOSTILE}.weight": torch.randn(4, 3, 3, 3)}, file)
    page, _ = written(tmp_path, *files)
    browser.open(page)
    assert browser.run("return window.hit ?? null") is None
    assert browser.column("layer", 1)[0] == browser.column("layer", 2)[0] == printable(HOSTILE)
    assert len(browser.all("script")) == 1
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]


def test_layers_above_the_maximum_are_named(browser: Browser, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 1, 1))
    network[2].weight.data /= 100
    torch.save(network.state_dict(), tmp_path / "w.pt")
    page, found = written(tmp_path, tmp_path / "w.pt", max_sigma=0.5)
    browser.open(page)
    verdict, told, *_ = browser.texts("section > p")
    assert verdict == "FAIL: 2 of 3 layers do not pass the maximum that the gate was given (layers with weights 0.5)."
    assert told == GATE_TEXT
    assert browser.texts("h2")[0] == "Gate"
    assert browser.texts("details[open] li")[:2] == browser.texts("details li")[:2]
    config = InspectConfig(files=(tmp_path / "w.pt",), max_sigma=0.5)
    assert browser.texts("details li")[:2] == inspect_files.faults(found, config)


def test_a_gate_that_passes_says_so_and_the_maximum_of_a_training_has_its_name(tmp_path: Path) -> None:
    layer = replace(LayerSpectrum("a", "Conv2d", (4, 4, 3, 3), Bracket(0.9, 1.1)), maximum=1.2, gate="proved")
    config = InspectConfig(files=(tmp_path / "w.pt",), max_sigma=4)
    page = render(spectrum_page([NetworkSpectrum("w.pt", (layer,))], config))
    assert "Passed: every layer is within the maximum that the gate was given (layers with weights 4)." in page
    assert "w.pt, the maximum of its training: all 1 layers with a maximum are proved" in page


def test_a_page_in_a_folder_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    config = InspectConfig(files=(tmp_path / "no file either.pt",), html=tmp_path / "none" / "page.html")
    with pytest.raises(UsageError, match=r"`html = .*there is no folder .*none; make it first"):
        inspect_files.run(config)


def test_the_page_of_a_resnet18_is_small(tmp_path: Path) -> None:
    import torchvision

    network = torchvision.models.resnet18()
    named = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    rows = []
    for name, layer in named:
        values = torch.rand(50_000).sort(descending=True).values if layer.weight.ndim == 4 else None
        row = LayerSpectrum(name, type(layer).__name__, tuple(layer.weight.shape), Bracket(0.9, 1.1), values)
        rows.append(replace(row, stride=(1, 1), input_size=(224, 224), zero_padded=Bracket(0.9, 1.1)))
    page = render(spectrum_page([NetworkSpectrum("w.pt", tuple(rows))], InspectConfig(files=(tmp_path / "w.pt",))))
    assert len(rows) == 40
    assert page.count("<tr") == 1 + 1 + 1 + 40
    assert len(page.encode()) < 300_000
