"""Figures with few digits: no bound is shown below itself, nothing that is reached above itself."""

import math
import random
from dataclasses import replace
from decimal import Decimal

import pytest
import torch
from torch import nn

from svdctl.analysis.layer_spectrum import LayerSpectrum
from svdctl.analysis.network_spectrum import NetworkSpectrum
from svdctl.analysis.spectrum_table import cell_of, maxima_lines
from svdctl.certificates.lipschitz import LipschitzBound
from svdctl.certificates.traced_tensor import Contribution
from svdctl.cli.training_progress import certified_lines, evaluation_line, layer_table
from svdctl.control.control_report import LayerReport, Report
from svdctl.control.controller import Controller
from svdctl.spectral.bounds import Bracket
from svdctl.train.layer_curves import _told_of_maxima
from svdctl.train.logger import RunEnd
from svdctl.train.loggers.tracking import summary_text
from svdctl.train.result import CertifiedEpoch
from svdctl.utils.rounded_figures import at_least, at_most, exact, with_decimals

ABOVE = [4.000051, 4.0000001, 0.70000003, 1.0000000002, 12.34564, 3.9999451, 1e-300 * 1.23454, 1.23454e300]
"""Numbers that are less when they are rounded to four to seven digits."""


@pytest.mark.parametrize("digits", [2, 4, 5, 6, 7])
def test_bounds_are_rounded_up_and_what_is_reached_down(digits: int) -> None:
    generator = random.Random(digits)
    drawn = [generator.uniform(0.5, 10) * 10.0 ** generator.randint(-300, 300) for _ in range(2000)]
    for value in [*ABOVE, *drawn, 4.0, 0.7, 0.0]:
        upper, lower = Decimal(at_most(value, digits)), Decimal(at_least(value, digits))
        assert lower <= Decimal(value) <= upper
        assert upper - lower <= 2 * Decimal(value) * Decimal(10) ** (1 - digits)
        assert float(exact(value)) == value
        fixed = [Decimal(with_decimals(value, digits, up=up)) for up in (False, True)]
        assert fixed[0] <= Decimal(value) <= fixed[1]
        assert value > 1e9 or fixed[1] <= fixed[0] + Decimal(10) ** -digits
    assert at_most(math.inf) == at_least(math.inf) == "inf"
    assert at_most(None) == at_least(None) == "-"


@pytest.mark.parametrize("bound", ABOVE[:6])
def test_no_report_shows_a_bound_below_the_proved_one(bound: float) -> None:
    row = LayerReport("layer", "Conv2d", "8 x 3 x 3 x 3", bound * (1 - 1e-7), bound, bound)
    (line,) = Report([row]).table().rows
    texts = [(line[3].text, line[4].text, line[5].text)]
    (shown,) = layer_table([row]).rows
    texts.append((shown[1].text, shown[2].text, shown[3].text))
    (cells,) = [
        text.split("|") for text in summary_text(RunEnd(1, {}, (), (row,), {})).splitlines() if "Conv2d" in text
    ]
    texts.append((cells[3], cells[4], cells[5]))
    for largest, upper, allowed in texts:
        assert float(largest) <= row.largest < row.bound <= float(upper)
        assert float(allowed) >= bound


@pytest.mark.parametrize("bound", ABOVE[:6])
def test_no_line_of_a_training_shows_a_constant_below_the_proved_one(bound: float) -> None:
    metrics = dict.fromkeys(("loss", "acc", "val_loss", "val_acc", "val_certified_acc", "train_time"), 0.5)
    metrics |= {"epoch": 1.0, "epochs": 2.0, "epsilon": 36.0, "lipschitz": bound, "clipping_time": 0.0}
    assert float(evaluation_line(metrics).partition(" L ")[2].split()[0]) >= bound
    epoch = CertifiedEpoch("last", 1, 0.5, {36.0: 0.25, 35.9999999: 0.25}, 0.123456, bound, {"norm": bound})
    lines = certified_lines([epoch])
    assert "35.9999999/255" in lines[1]
    (row,) = [line.split() for line in lines if line.startswith("last")]
    assert float(row[-1]) >= bound
    assert float(row[-2]) <= 0.123456
    assert float(next(line for line in lines if line.startswith("L of last")).rpartition(" ")[2]) >= bound
    told = str(LipschitzBound(bound, (Contribution("0", "Conv2d", bound, {"norm": bound}, bound),)))
    found = [float(word.strip(",()")) for word in told.replace("->", " ").split() if word[0].isdigit() and word != "0"]
    assert len(found) == 3
    assert min(found) >= bound


@pytest.mark.parametrize("bound", ABOVE[:6])
def test_no_table_of_spectra_shows_a_bound_below_the_proved_one(bound: float) -> None:
    norm = LayerSpectrum("bn", "BatchNorm", (8,), Bracket(bound * (1 - 1e-7), bound))
    assert float(cell_of("bound_upper", norm).text.removeprefix("gain ")) >= bound
    kernel = LayerSpectrum("conv", "Conv2d", (8, 3, 3, 3), Bracket(bound * (1 - 1e-7), bound))
    assert float(cell_of("bound_upper", kernel).text) >= bound
    padded = replace(kernel, zero_padded=Bracket(3.99996, bound))
    assert float(cell_of("zero_padded_lower", padded).text) <= 3.99996
    above = replace(kernel, maximum=bound / 1.01)
    assert above.bound is not None
    (told,) = [line for line in maxima_lines(NetworkSpectrum("", (above,))) if "NOT proved" in line]
    assert float(told.partition("reaches ")[2].split(",")[0]) <= above.bound.lower


def test_a_gain_that_float32_rounds_to_its_limit_is_not_said_to_be_proved() -> None:
    limit = 1.5
    norm = nn.BatchNorm2d(4).eval()
    found = 0
    for step in range(40):
        with torch.no_grad():
            norm.weight.fill_(limit * (1 + step * 1e-8))
            norm.running_var.fill_(1 - norm.eps - step * 3e-8)
        true = float((norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()).abs().max())
        (row,) = [
            row
            for row in Controller(nn.Sequential(nn.Conv2d(4, 4, 1), norm), max_sigma=9.0, batchnorm_max=limit).report()
            if row.kind == "BatchNorm2d"
        ]
        assert row.largest <= true <= row.bound
        assert not (row.is_proved and true > limit)
        found += limit < true < limit * (1 + 1e-6)
    assert found


def test_a_limited_gain_is_proved_though_float32_sees_it_at_the_limit() -> None:
    limit = 1.5
    norm = nn.BatchNorm2d(4).eval()
    control = Controller(nn.Sequential(nn.Conv2d(4, 4, 1), norm), max_sigma=9.0, batchnorm_max=limit)
    for step in range(14):
        with torch.no_grad():
            norm.weight.fill_(limit * (1 + (step - 7) * 2.0**-24))
            norm.running_var.fill_(1 - norm.eps + (step % 7) * 2.0**-24)
        control.seal()
        assert all(row.is_proved for row in control.report() if row.kind == "BatchNorm2d")
        kept = norm.weight.clone()
        control.seal()
        assert torch.equal(kept, norm.weight)


def test_curves_say_that_layers_are_within_their_maxima_only_where_bounds_are() -> None:
    assert _told_of_maxima([[0.5, 1.0]], [[0.6, 1.0]]) == "all within the maximum"
    assert _told_of_maxima([[0.5, 1.0]], [[0.6, 1.001]]) == "none seen above the maximum"
    assert _told_of_maxima([[0.5, 1.001]], [[0.6, 1.002]]) == "1 above the maximum"
