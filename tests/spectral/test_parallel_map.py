"""Work side by side: results in the items' order, and no more memory at once than there is for all."""

import threading
from collections.abc import Iterator

import pytest
import torch

from svdctl.spectral import parallel_map as module
from svdctl.spectral.parallel_map import parallel_map


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_what_is_computed_at_once_fits_and_what_is_large_is_alone() -> None:
    most = 2 * module._BYTES_PER_THREAD
    sizes = [most // 4, most, 3 * most, most // 2, most // 2, most // 3, 1, most // 2 + 1]
    lock, now, at_once, threads = threading.Lock(), 0, [], {}
    halves = threading.Barrier(2, timeout=30)  # what fits beside each other is computed at once

    def work(place: int) -> int:
        nonlocal now
        with lock:
            now += sizes[place]
            at_once.append((place, now))
            threads[place] = torch.get_num_threads()
        if sizes[place] == most // 2:
            halves.wait()
        with lock:
            now -= sizes[place]
        return 10 * place

    assert parallel_map(work, range(len(sizes)), sizes.__getitem__) == [10 * place for place in range(len(sizes))]
    assert all(total <= most or total == sizes[place] for place, total in at_once)
    assert (2, 3 * most) in at_once
    assert set(threads.values()) == {1}


@pytest.mark.usefixtures("two_threads")
def test_an_error_leaves_room_for_the_others() -> None:
    done = []

    def work(place: int) -> None:
        if place < 2:
            raise ValueError(f"item {place}")
        done.append(place)

    with pytest.raises(ValueError, match="item 0"):
        parallel_map(work, range(6), lambda _: module._BYTES_PER_THREAD)
    assert sorted(done) == [2, 3, 4, 5]
