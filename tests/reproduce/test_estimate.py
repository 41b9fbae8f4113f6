"""Estimates: measured once for each network, multiplied as the configuration says."""

from collections.abc import Callable
from unittest.mock import patch

import pytest

from svdctl.evaluate.table_evaluation import Evaluate
from svdctl.reproduce import estimate as module
from svdctl.reproduce.estimate import Meter, Speed, evaluation_seconds
from svdctl.reproduce.plan import Plan

SPEED = Speed(step=1.0, forward=0.001, gradient=0.003)


def test_a_real_measurement(planned: Callable[..., Plan]) -> None:
    meter = Meter()
    for run in planned().jobs():
        hours = meter.hours(run)
        assert hours is not None
        assert 0 < hours.train < 1
        assert hours.evaluate > 0
    none, divide = planned().jobs()
    assert meter.control(none.config) == 0
    assert meter.control(divide.config) > 0


def test_each_network_and_control_is_measured_once(planned: Callable[..., Plan]) -> None:
    with (
        patch.object(module, "_measure_network", return_value=SPEED) as network,
        patch.object(module, "_measure_control", return_value=0.5) as control,
    ):
        meter = Meter()
        for plan in (planned(seeds=(1, 2)), planned(set=("epochs=9", "max_steps=", "data.kind=cifar10"))):
            for run in plan.jobs():
                meter.hours(run)
        assert (network.call_count, control.call_count) == (2, 2)


def test_hours_follow_the_configuration(planned: Callable[..., Plan]) -> None:
    with (
        patch.object(module, "_measure_network", return_value=SPEED),
        patch.object(module, "_measure_control", return_value=0.5),
    ):
        words = ("max_steps=", "data.kind=cifar10", "epochs=10", "batch_size=100")
        run = planned(set=words).jobs()[0]
        hours = Meter().hours(run)
        assert hours.train == pytest.approx((10 * 500 * 1.5 + 10 * 10_000 * 0.001) / 3600)
        stopped = planned(set=(*words, "max_steps=100")).jobs()[0]
        assert Meter().hours(stopped).train == pytest.approx((100 * 1.5 + 100) / 3600)
        unknown = planned(set=("data.kind=npz", "data.path=/nowhere.npz")).jobs()[0]
        assert Meter().hours(unknown) is None


@pytest.mark.parametrize(
    ("evaluate", "metrics", "seconds"),
    [
        (Evaluate(), ("accuracy", "ece"), 10.0),
        (Evaluate(), ("accuracy", "cifar-c"), 10 + 19 * 5 * 10),
        (Evaluate(corruptions=("benchmark",), severities=(1,), corruption_examples=100), ("cifar-c",), 15 * 0.1),
        (Evaluate(examples=10), ("autoattacks",), 10 * (1900 * 0.003 + 5000 * 0.001)),
        (Evaluate(examples=10, attacks=("apgd-ce",)), ("autoattacks",), 10 * 100 * 0.003),
        (Evaluate(), (), 0.0),
    ],
)
def test_passes_of_an_evaluation(evaluate: Evaluate, metrics: tuple[str, ...], seconds: float) -> None:
    assert evaluation_seconds(evaluate, metrics, 10_000, SPEED) == pytest.approx(seconds)


def test_layers_beyond_the_budget_follow_the_model(planned: Callable[..., Plan]) -> None:
    config = planned().jobs()[1].config
    with patch.object(module, "CONTROL_BUDGET", 1e-9), patch.object(module, "timed", return_value=1.0) as timed:
        module._measure_control(config)
    # BatchNorm, and the cheapest layer alone.
    assert timed.call_count == 2
