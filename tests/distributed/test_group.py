"""What processes tell each other, and how they share work: three real ones."""

import queue
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from svdctl.distributed.failure_detector import FailureDetector
from svdctl.distributed.group import Group
from svdctl.distributed.scheduling import LayerScheduler
from svdctl.errors import ShapeError
from svdctl.layers.batchnorm import share_statistics_
from tests.distributed.start import HERE, finish, members, start


@pytest.mark.slow
def test_messages_shared_control_and_batch_statistics() -> None:
    started = [start([str(HERE / "checks.py")], **variables) for variables in members(3)]
    for process in started:
        finish(process, 100)


def test_connections_find_a_machine_that_is_gone_in_fifteen_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the system's settings of them; no machine is cut off here."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    told: queue.Queue[object] = queue.Queue()

    def told_by_first(value: object) -> object:
        if value is None:
            return told.get(timeout=30)
        told.put(value)
        return value

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda rank: FailureDetector(rank, 2, [], told_by_first, str), range(2))
    for connection in (first._peers[1], second._peers[0]):
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, interval, count = (
            connection.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + interval * count <= 15
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(FailureDetector.finish, (first, second)))


def test_every_layer_has_one_owner_and_none_has_much_more_to_do_than_another() -> None:
    costs = {f"layer{number}": float(1 + number % 5) for number in range(40)}
    shares = [LayerScheduler(costs, Group(rank, 7)) for rank in range(7)]
    owned = [name for share in shares for name in share.mine()]
    assert sorted(owned) == sorted(costs)
    loads = [sum(costs[name] for name in share.mine()) for share in shares]
    assert max(loads) - min(loads) <= max(costs.values())
    assert LayerScheduler(costs, Group()).mine() == list(costs)


def test_more_processes_than_layers_leave_some_idle() -> None:
    shares = [LayerScheduler({"a": 1.0, "b": 2.0}, Group(rank, 5)) for rank in range(5)]
    assert [share.mine() for share in shares] == [["b"], ["a"], [], [], []]


@pytest.mark.parametrize("threads", [1, 2])
def test_layers_are_counted_as_they_are_done(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        scheduler = LayerScheduler({"a": 1.0, "b": 3.0, "c": 2.0}, Group(), threads=True)
        told: list[tuple[int, int, str]] = []
        scheduler.advance = lambda done, total, now: told.append((done, total, now))
        assert scheduler.collected(lambda names: {name: 2 * scheduler.costs[name] for name in names}) == {
            "a": 2.0, "b": 6.0, "c": 4.0,
        }  # fmt: skip
    finally:
        torch.set_num_threads(before)
    assert told == [(1, 3, "layers"), (2, 3, "layers"), (3, 3, "layers")]


def test_batchnorm_of_other_shapes_is_refused() -> None:
    with pytest.raises(ShapeError, match="BatchNorm1d cannot be trained on several processes"):
        share_statistics_(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def test_sharing_takes_over_the_layer_it_replaces() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4, eps=1e-3, momentum=0.3)))
    before = {name: value.data_ptr() for name, value in model.state_dict().items()}
    share_statistics_(model)
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == before
    assert (model[1][0].eps, model[1][0].momentum, model[1][0].training) == (1e-3, 0.3, True)
    # Alone it is torch's own layer.
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(model[1](x), nn.BatchNorm2d(4, eps=1e-3)(x))
