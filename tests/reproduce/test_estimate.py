"""Estimates: measured once for each network, multiplied as the configuration says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest

from svdctl.evaluate.results import StoredResults
from svdctl.evaluate.table_evaluation import Evaluate
from svdctl.reproduce import estimate as module
from svdctl.reproduce.estimate import Hours, Speed, evaluation_seconds, hours, hours_left, measure_control
from svdctl.reproduce.plan import Plan
from svdctl.reproduce.run_store import RunState

SPEED = Speed(forward=0.001, gradient=0.003)


def test_a_real_measurement(planned: Callable[..., Plan]) -> None:
    for run in planned().jobs():
        found = hours(run, {})
        assert found is not None
        assert 0 < found.train < 1
        assert found.evaluate > 0
    none, divide = planned().jobs()
    assert measure_control(none.config) == 0
    assert measure_control(divide.config) > 0


def test_each_network_and_control_is_measured_once(planned: Callable[..., Plan]) -> None:
    with (
        patch.object(module, "measure_network", return_value=SPEED) as network,
        patch.object(module, "measure_control", return_value=0.5) as control,
    ):
        measured: dict[str, Any] = {}
        for plan in (planned(seeds=(1, 2)), planned(set=("epochs=9", "max_steps=", "data.kind=cifar10"))):
            for run in plan.jobs():
                hours(run, measured)
        assert (network.call_count, control.call_count) == (2, 2)


def test_hours_follow_the_configuration(planned: Callable[..., Plan]) -> None:
    with (
        patch.object(module, "measure_network", return_value=SPEED),
        patch.object(module, "measure_control", return_value=0.5),
    ):
        words = ("max_steps=", "data.kind=cifar10", "epochs=10", "batch_size=100")
        run = planned(set=words).jobs()[0]
        assert hours(run, {}).train == pytest.approx((10 * 500 * (0.3 + 0.5) + 10 * 10_000 * 0.001) / 3600)
        stopped = planned(set=(*words, "max_steps=100")).jobs()[0]
        assert hours(stopped, {}).train == pytest.approx((100 * (0.3 + 0.5) + 100) / 3600)
        unknown = planned(set=("data.kind=npz", "data.path=/nowhere.npz")).jobs()[0]
        assert hours(unknown, {}) is None


@pytest.mark.parametrize(
    ("evaluate", "metrics", "seconds"),
    [
        (Evaluate(), ("accuracy", "ece"), 10.0),
        (Evaluate(), ("accuracy", "cifar-c"), 10 + 19 * 5 * 10),
        (Evaluate(corruptions=("benchmark",), severities=(1,), corruption_examples=100), ("cifar-c",), 15 * 0.1),
        (Evaluate(), (), 0.0),
    ],
)
def test_passes_of_an_evaluation(evaluate: Evaluate, metrics: tuple[str, ...], seconds: float) -> None:
    assert evaluation_seconds(evaluate, metrics, 10_000, 10, SPEED) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("attacks", "classes", "forward", "backward"),
    [
        # Of the standard list only targets are many: 9 of 10 classes, 2 of 3.
        ((), 10, 101 + 909 + 1800 + 5000, 101 + 909 + 900),
        ((), 3, 101 + 202 + 400 + 5000, 101 + 202 + 200),
        # In a list of one's own APGD and FAB begin five times; FAB goes backward from every logit.
        (("apgd-ce",), 10, 505, 505),
        (("fab",), 10, 1000, 5000),
        (("square",), 10, 5000, 0),
        # `rand` takes the mean of 20 gradients.
        (("rand",), 10, 2 * 101 * 20, 2 * 101 * 20),
    ],
)
def test_an_attack_takes_at_most_the_passes_of_all_its_restarts(
    attacks: tuple[str, ...], classes: int, forward: int, backward: int
) -> None:
    seconds = evaluation_seconds(Evaluate(examples=10, attacks=attacks), ("autoattacks",), 10_000, classes, SPEED)
    forward = max(forward, backward)
    assert seconds == pytest.approx(10 * (forward * 0.001 + backward * 0.002), rel=0.02)


def test_layers_beyond_the_budget_follow_the_model(planned: Callable[..., Plan]) -> None:
    config = planned().jobs()[1].config
    with patch.object(module, "CONTROL_BUDGET", 1e-9), patch.object(module, "timed", return_value=1.0) as timed:
        measure_control(config)
    # BatchNorm, and the cheapest layer alone.
    assert timed.call_count == 2


def test_nothing_is_left_of_what_is_trained_and_measured(planned: Callable[..., Plan], tmp_path: Path) -> None:
    job, whole = planned().jobs()[0], Hours(train=8.0, evaluate=2.0, steps=400)
    assert hours_left(job, whole, None) == whole
    assert hours_left(job, whole, RunState(tmp_path, 100, finished=False)) == Hours(6.0, 2.0, 300)
    trained = RunState(tmp_path, 400, finished=True)
    assert hours_left(job, whole, trained) == Hours(0.0, 2.0, 0)
    results = tmp_path / "eval-last" / "results.json"
    results.parent.mkdir()
    for metrics, left in ((job.metrics[1:], 2.0), (job.metrics, 0.0)):
        records = tuple(Mock(metric=metric) for metric in metrics)
        with patch.object(module, "read_results", return_value=StoredResults("", "", records)):
            assert hours_left(job, whole, trained) == Hours(0.0, left, 0)
    for damaged in ("", "[]", '{"records": 3}', '{"records": [3]}'):
        results.write_text(damaged)
        assert hours_left(job, whole, trained) == Hours(0.0, 2.0, 0)
