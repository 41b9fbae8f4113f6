"""What holds for all tests, on a terminal, in the background and on a shared machine."""

import gc
import os
import signal
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import dots

# Hypothesis does not judge how fast the machine draws its examples.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")

# Worker processes share the cores: one thread each, and one for every command that a test starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Worker processes are told the width of the terminal that the tests were started from, which output would be fitted to.
os.environ.pop("COLUMNS", None)

# Processes that tests start import this checkout's packages, and no torchmetrics.
HERE = Path(__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join(
    dict.fromkeys(
        [str(HERE / "without_torchmetrics"), str(HERE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    )
).rstrip(os.pathsep)

# A shell starts what runs in the background with Ctrl-C ignored, and children inherit that: tests send it to theirs.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Leave the ten thousand tests and what their modules import out of what Python's collector looks through."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    dots.looked_at = item.get_closest_marker("drawn") is not None


@pytest.fixture(autouse=True, scope="session")
def pictures_cost_nothing() -> None:
    """Before those that are drawn by any other fixture."""
    dots.put()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with a long test in each of several worker processes, so that none is left alone with them at the end.

    `--dist load` gives each process a quarter of its share of the tests at first, in their order.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if item.get_closest_marker("long") is not None]
    if workers == 1 or not long:
        return
    others = iter([item for item in items if item.get_closest_marker("long") is None])
    at_first = max(len(items) // workers // 4, 2)
    ordered = [item for first in long for item in (first, *islice(others, at_first - 1))]
    items[:] = [*ordered, *others]
