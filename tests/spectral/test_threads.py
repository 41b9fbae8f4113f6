"""Pieces of work side by side: results, gradients, errors and the number of threads."""

import threading

import pytest
import torch

from svdctl.spectral.parallel_map import parallel_map


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_in_order_by_other_threads_of_one_core_each() -> None:
    def work(number: int) -> tuple[int, int, bool, bool]:
        inside = parallel_map(
            lambda n: n + number, [1, 2, 3]
        )  # splits nothing any further, and does not wait for itself
        assert inside == [number + 1, number + 2, number + 3]
        return (
            number**2,
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            threading.current_thread().name == "MainThread",
        )

    found = parallel_map(work, range(9))
    assert found == [(number**2, 1, False, False) for number in range(9)]
    assert torch.get_num_threads() == 2


def test_threads_keep_to_one_core_when_the_number_changes_meanwhile() -> None:
    parallel_map(abs, [1, 2])
    for number in (2, 1, 2):
        torch.set_num_threads(number)
    assert (
        parallel_map(lambda _: torch.randn(300, 300).sum().isfinite() and torch.get_num_threads(), range(4)) == [1] * 4
    )


def test_other_threads_have_the_callers_number() -> None:
    parallel_map(abs, [1, 2])
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [2]


def test_an_error_comes_after_all_have_ended() -> None:
    done = []

    def work(number: int) -> None:
        if number == 0:
            raise ValueError("nothing at 0")
        done.append(number)

    with pytest.raises(ValueError, match="nothing at 0"):
        parallel_map(work, range(20))
    assert sorted(done) == list(range(1, 20))


def test_inference_mode_goes_along() -> None:
    with torch.inference_mode():
        value = torch.zeros(2)
        parallel_map(lambda place: value[place].add_(1), [0, 1])
        assert value.tolist() == [1, 1]
        assert parallel_map(lambda _: torch.is_inference_mode_enabled(), [0, 1]) == [True, True]
