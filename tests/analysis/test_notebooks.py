"""What notebooks show of results, and what is said where pandas is not installed."""

import builtins
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import svdctl
from svdctl.control.control_report import LayerReport, Report
from svdctl.errors import MissingExtraError
from svdctl.evaluate.runner import EvaluationResult
from svdctl.train.result import TrainResult

HOSTILE = "<script>alert(1)</script>"
VOID = {"br", "meta"}


class Elements(HTMLParser):
    """Elements and texts of HTML that is well formed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_spectra_of_networks_and_layers() -> None:
    found = svdctl.spectrum(network(), (3, 8, 8), name=HOSTILE)
    whole = Elements(found._repr_html_())
    assert whole.tags.count("tr") == 3
    assert HOSTILE in whole.texts
    assert not {"stride rank", "TT rank", "maximum"} & set(whole.texts)
    assert any("Lipschitz bound of the network, proved" in text for text in whole.texts)
    row = Elements(found["0"]._repr_html_())
    assert row.tags.count("tr") == 2
    assert {"Conv2d", "4x3x3x3"} <= set(row.texts)


def test_brackets_reports_and_constants() -> None:
    net = network()
    bracket = svdctl.spectral_norm_bound(net[0])
    low, high = Elements(bracket._repr_html_()).texts[0].split(" ≤ norm ≤ ")
    assert (float(low), float(high)) == (bracket.lower, bracket.upper)
    report = svdctl.Controller(net, max_sigma=1.0).report()
    assert Elements(report._repr_html_()).tags.count("tr") == 1 + len(report)
    bound = svdctl.lipschitz_bound(net, (3, 8, 8))
    assert Elements(bound._repr_html_()).texts == [str(bound)]
    assert HOSTILE in Elements(Report([LayerReport(HOSTILE, "Conv2d", "1", 1.0, 1.0, None)])._repr_html_()).texts


def test_results_of_trainings_and_evaluations(tmp_path: Path) -> None:
    rows = [LayerReport("conv", "Conv2d", "1 x 1", 0.9, 1.0, 1.0)]
    done: Any = TrainResult(tmp_path, {}, ["test accuracy 90.00%"], rows, [tmp_path / "last.pt"], None, completed=True)  # type: ignore[arg-type]
    shown = Elements(done._repr_html_())
    assert {"conv", "yes", "test accuracy 90.00%", str(tmp_path / "last.pt")} <= set(shown.texts)
    assert Elements(EvaluationResult((), (), None)._repr_html_()).tags.count("tr") == 1


def test_without_pandas_a_sentence_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = svdctl.spectrum(network(), (3, 8, 8))
    imported = builtins.__import__

    def without(name: str, *given: Any, **named: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'")
        return imported(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        MissingExtraError, match="this needs pandas, not installed here; get it by pip install 'pandas'"
    ):
        found.to_frame()
    with pytest.raises(ImportError):
        found.to_frame()
