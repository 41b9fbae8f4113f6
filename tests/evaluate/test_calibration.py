"""Calibration figures against torchmetrics, scipy and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from svdctl.errors import DataError, EvaluationError, ShapeError
from svdctl.evaluate import calibration as calibration_module
from svdctl.evaluate.calibration import are_probabilities, calibration, reliability
from svdctl.evaluate.figures import wilson_interval
from svdctl.evaluate.temperature import fit_temperature


def draw(count: int, classes: int, scale: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of a network that is right more often than not, with labels drawn from softer logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    labels = torch.multinomial((2 * logits).softmax(1), 1, generator=generator)[:, 0]
    return scale * logits, labels


def oracle(logits: Tensor, labels: Tensor) -> float:
    """torchmetrics on 15 bins; confidences of exactly 1, which it puts beyond the last one, are moved below 1."""
    metric = MulticlassCalibrationError(num_classes=logits.shape[1], n_bins=15, norm="l1")
    # Probabilities: torchmetrics would take logits that all lie in [0, 1] for probabilities.
    return float(metric(logits.softmax(1).clamp_max(1 - 2**-23), labels))


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0, 40.0])
@pytest.mark.parametrize("count", [1, 17, 800])
def test_ece_is_that_of_torchmetrics(classes: int, scale: float, count: int) -> None:
    logits, labels = draw(count, classes, scale)
    assert calibration(logits, labels).ece == pytest.approx(oracle(logits, labels), abs=1e-6)


def test_confidences_on_edges_and_at_one() -> None:
    """Confidences of 1/15, 1/5, 1/3, 1, and two that lie beside 2/3 in float32; most bins stay empty."""
    rows = [[0.0] * ways + [-200.0] * (15 - ways) for ways in (15, 5, 3, 1, 1)]
    rows += [[math.log(2) + shift, 0.0] + [-200.0] * 13 for shift in (-1e-7, 1e-7)]
    logits = torch.tensor(rows).repeat(4, 1)
    labels = torch.arange(len(logits)) % 3 % 2
    confidences, edges = logits.softmax(1).max(1).values, torch.linspace(0, 1, 16)
    assert (confidences == 1).sum() == 8
    assert torch.isin(confidences[confidences < 1], edges).sum() >= 8
    assert calibration(logits, labels).ece == pytest.approx(oracle(logits, labels), abs=1e-6)


def test_reliability_by_hand() -> None:
    confidence = torch.tensor([0.7, 0.7, 0.9, 0.9])
    logits = torch.stack([confidence.log(), (1 - confidence).log()], 1)
    found = reliability(logits, torch.tensor([0, 1, 0, 0]), bins=5)
    assert found.counts.tolist() == [0, 0, 0, 2, 2]
    assert found.accuracy.tolist() == [0, 0, 0, 0.5, 1]
    assert found.calibration_error == pytest.approx(0.5 * 0.2 + 0.5 * 0.1, abs=1e-6)


@pytest.mark.parametrize(
    ("confidences", "correct", "expected"),
    [
        ([0.95, 1.0], [True, False], 0.475),  # one bin: |1/2 - 0.975|; apart they would come to 0.525
        ([1.0], [False], 1.0),
        ([1.0] * 4, [True] * 4, 0.0),
        ([1.0, 1.0], [True, False], 0.5),
        ([0.94, 1.0, 1.0], [True, True, False], abs(2 / 3 - 2.94 / 3)),
        ([14 / 15 - 0.01, 1.0], [False, False], (14 / 15 - 0.01 + 1) / 2),  # below the last bin's edge: apart
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_last_of_15_bins_holds_confidences_of_exactly_one(
    confidences: list[float], correct: list[bool], expected: float, dtype: torch.dtype
) -> None:
    first = torch.tensor(confidences, dtype=dtype)
    logits = torch.stack([first.log(), (1 - first).log().clamp_min(-1000)], 1)
    labels = torch.tensor([0 if right else 1 for right in correct])
    assert (logits.softmax(1)[:, 0] == 1).sum() == confidences.count(1.0)
    found = reliability(logits, labels)
    assert found.counts.shape == found.confidence.shape == found.accuracy.shape == (15,)
    assert found.counts.sum() == len(labels)
    assert calibration(logits, labels).ece == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (torch.randn(9, 5).softmax(1), True),
        (torch.randn(9, 1000).softmax(1).bfloat16(), True),
        (torch.eye(4), True),
        (torch.randn(9, 5).log_softmax(1), False),
        (torch.randn(9, 5), False),
        (torch.randn(9, 5).sigmoid(), False),
        (torch.cat((torch.randn(8, 5).softmax(1), torch.tensor([[2.0, -1.0, 0.0, 0.0, 0.0]]))), False),
        (torch.zeros(0, 5), False),
    ],
)
def test_outputs_that_are_probabilities_are_known(outputs: Tensor, expected: bool) -> None:
    assert are_probabilities(outputs) is expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scores_against_their_definitions(dtype: torch.dtype) -> None:
    logits, labels = draw(200, 7, 3.0)
    logits = logits.to(dtype)
    found = calibration(logits, labels)
    probabilities = logits.double().softmax(1)
    one_hot = F.one_hot(labels, 7).double()
    assert found.nll == pytest.approx(float(-(probabilities.log() * one_hot).sum(1).mean()), rel=1e-12)
    assert found.brier == pytest.approx(float((probabilities - one_hot).square().sum(1).mean()), rel=1e-12)
    assert found.accuracy == float((logits.argmax(1) == labels).double().mean())


@pytest.mark.parametrize(("successes", "count"), [(0, 1), (1, 1), (0, 50), (50, 50), (7, 9), (9934, 10_000)])
def test_wilson_interval_is_scipys(successes: int, count: int) -> None:
    wanted = binomtest(successes, count).proportion_ci(method="wilson")
    assert wilson_interval(successes, count) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@pytest.mark.parametrize("scale", [1e-4, 0.3, 1.0, 20.0, 1e4])
def test_temperature_has_the_smallest_likelihood_and_undoes_a_scale(scale: float) -> None:
    logits, labels = draw(600, 10, 1.0)
    base = fit_temperature(logits.double(), labels)
    temperature = fit_temperature(logits.double() * scale, labels)
    assert base is not None
    assert temperature == pytest.approx(base * scale, rel=1e-9)
    best = F.cross_entropy(logits.double() * scale / temperature, labels)
    for other in (0.5, 0.99, 1.01, 3.0):
        assert best < F.cross_entropy(logits.double() * scale / (temperature * other), labels)


def test_temperature_repairs_an_overconfident_network() -> None:
    held_out, logits = draw(2000, 10, 6.0, seed=1), draw(2000, 10, 6.0, seed=2)
    before = calibration(*logits)
    temperature = fit_temperature(*held_out)
    assert temperature == pytest.approx(3.0, rel=0.1)  # logits are 6 x, labels follow 2 x
    after = calibration(logits[0].double() / temperature, logits[1])
    assert after.ece < 0.3 * before.ece
    assert after.nll < before.nll
    assert after.accuracy == before.accuracy


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ([[3.0, 0.0], [0.0, 1.0]], [0, 1]),  # all right: the likelihood grows for ever as T falls
        ([[3.0, 0.0], [0.0, 1.0]], [1, 0]),  # all wrong: it grows for ever as T rises
        ([[2.0, 2.0], [2.0, 2.0]], [1, 0]),  # nothing to scale
    ],
)
def test_there_is_not_always_a_best_temperature(logits: list, labels: list) -> None:
    assert fit_temperature(torch.tensor(logits), torch.tensor(labels)) is None


def test_one_slight_mistake_gives_a_finite_temperature() -> None:
    logits = torch.cat([torch.tensor([[40.0, 0.0]]).expand(500, 2), torch.tensor([[1e-3, 0.0]])]).double()
    labels = torch.tensor([0] * 500 + [1])
    temperature = fit_temperature(logits, labels)
    assert temperature is not None
    assert math.isfinite(temperature)
    best = F.cross_entropy(logits / temperature, labels)
    assert best <= min(F.cross_entropy(logits / (temperature * factor), labels) for factor in (0.8, 1.25))


@pytest.mark.parametrize(
    ("logits", "labels", "error"),
    [
        (torch.zeros(3, 4), torch.zeros(2, dtype=torch.long), ShapeError),
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), ShapeError),
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.long), ShapeError),
        (torch.zeros(2, 4), torch.tensor([0, 4]), DataError),
        (torch.zeros(2, 4), torch.tensor([-1, 0]), DataError),
        (torch.tensor([[0.0, torch.nan], [0.0, 1.0]]), torch.tensor([0, 1]), EvaluationError),
    ],
)
def test_bad_input_is_named(logits: Tensor, labels: Tensor, error: type[Exception]) -> None:
    for function in (calibration, reliability, fit_temperature):
        with pytest.raises(error):
            function(logits, labels)


def test_figures_of_many_logits_are_those_of_their_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(500, 7, generator=generator)
    labels = torch.where(torch.rand(500, generator=generator) < 0.6, logits.argmax(1), 2)
    before = logits.clone()
    whole = calibration(logits, labels), reliability(logits, labels), fit_temperature(logits, labels)
    monkeypatch.setattr(calibration_module, "_BLOCK", 100)
    assert [len(rows) for rows in calibration_module.row_blocks(logits)[:2]] == [14, 14]
    found = calibration(logits, labels), reliability(logits, labels), fit_temperature(logits, labels)
    assert torch.equal(logits, before)
    assert (found[0].nll, found[0].brier, found[0].ece) == pytest.approx(
        (whole[0].nll, whole[0].brier, whole[0].ece), rel=1e-12
    )
    assert torch.equal(found[1].counts, whole[1].counts)
    assert found[2] == pytest.approx(whole[2], rel=1e-9)
