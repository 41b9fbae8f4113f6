"""How often control changed each layer: by comparison with the weights before and after, and kept in states."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svdctl.control.change_counts import Applications, ChangeCounter, Changes
from svdctl.control.controller import Controller
from svdctl.errors import UsageError
from svdctl.layers.tt import TTConv2d
from tests.dispatched_operations import DispatchedOperations
from tests.synchronisation import NoHostReads

METHODS = ("clip", "assign", "divide", "divide-exact", "divide-each")
ON_DEVICE = ("divide", "divide-each")
STEPS = 6


def network() -> nn.Sequential:
    """Two layers of one shape, one that stays far below its maximum, TT layers, a linear layer and BatchNorm."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3),
        TTConv2d(6, 6, 3, rank=3, frames="free"), TTConv2d(6, 4, 3, rank=3, frames="free"),
        nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    return nn.Sequential(*layers)


MAXIMA = {"3": 100.0, "4": 100.0, "*": 0.8}
"""By layer; two are not reached."""


def controller(net: nn.Module, method: str, **given: Any) -> Controller:
    return Controller(net, method=method, max_sigma=MAXIMA, batchnorm_max=0.5, **given)


def move(net: nn.Module, generator: torch.Generator) -> None:
    """Do what an optimiser does: by so much that some layers are above their maximum in some steps alone."""
    with torch.no_grad():
        for parameter in net.parameters():
            factor = 0.5 + torch.rand((), generator=generator)
            parameter.mul_(factor).add_(0.01 * torch.randn(parameter.shape, generator=generator))


def written(net: nn.Module) -> dict[str, list[Tensor]]:
    return {name: [value.clone() for value in layer.parameters()] for name, layer in net.named_children()}


def changed(before: dict[str, list[Tensor]], net: nn.Module) -> set[str]:
    now = written(net)
    return {name for name in now if not all(map(torch.equal, before[name], now[name]))}


def count_by_hand(net: nn.Module, control: Controller, steps: int) -> dict[str, int]:
    generator, found = torch.Generator().manual_seed(1), dict.fromkeys(dict(net.named_children()), 0)
    for _ in range(steps):
        move(net, generator)
        before = written(net)
        control.step()
        for name in changed(before, net):
            found[name] += 1
    return found


@pytest.mark.parametrize("method", METHODS)
def test_counts_are_of_the_steps_in_which_weights_changed(method: str) -> None:
    net = network()
    control = controller(net, method, every_steps=1)
    wanted = count_by_hand(net, control, STEPS)
    found = control.changes()
    assert (found.since, found.control.applied, found.batchnorm.applied) == (0, STEPS, STEPS)
    assert found.batchnorm.changed == {"1": wanted["1"]}
    assert found.control.changed == {name: wanted[name] for name in ("0", "2", "3", "4", "5", "8")}
    assert 0 < wanted["1"] < STEPS
    assert found.control.changed["3"] == (STEPS if method == "assign" else 0)
    if method != "divide-each":  # which brings frames to 1, whatever the maximum is
        assert found.control.changed["4"] == found.control.changed["3"]
    if method != "assign":
        assert any(0 < count < STEPS for count in found.control.changed.values())


def test_applications_are_counted_and_not_steps() -> None:
    net = network()
    control = controller(net, "clip", every_steps=4)
    count_by_hand(net, control, 3)
    assert control.changes().control == Applications(0, dict.fromkeys(control.controlled(), 0))
    assert count_by_hand(net, control, 3)["0"] == control.changes().control.changed["0"] == 1
    assert control.changes().control.applied == 1


def test_layers_that_share_memory_count_together() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    net[1].weight = net[0].weight
    nn.init.orthogonal_(net[0].weight, gain=9.0)
    control = Controller(net, method="clip", max_sigma={"0": 0.5, "*": 1e3}, every_steps=1)
    control.step()
    assert control.changes().control.changed == {"0": 1, "1": 1, "2": 0}


def test_a_moving_maximum_is_the_one_of_the_moment() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    nn.init.constant_(net[0].weight, 1.0)  # its norm is 6 sqrt(3) or more
    control = Controller(net, method="divide", max_sigma=1.0)
    for scale in (1e3, 1e3, 1.0):
        control.scale_maxima(scale)
        control.step()
    assert control.changes().control == Applications(3, {"0": 1})


@pytest.mark.parametrize("method", ON_DEVICE)
def test_counting_reads_nothing_and_is_few_operations(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    control = controller(network(), method)
    control.step()
    with NoHostReads():
        control.step()
    with DispatchedOperations() as counted:
        control.step()
    monkeypatch.setattr(ChangeCounter, "count_", lambda *_: None)
    with DispatchedOperations() as uncounted:
        control.step()
    # For layers and BatchNorm: stack, compare, add; where layers have several factors, any.
    assert counted.total - uncounted.total == (7 if method == "divide-each" else 6)


@pytest.mark.parametrize("method", METHODS)
def test_proofs_count_what_they_scale_but_where_they_are_undone(method: str) -> None:
    net = network()
    control = controller(net, method, every_steps=1000)
    before = written(net)
    average = copy.deepcopy(net)
    control.seal(average)
    assert not any(control.changes().proofs.values())
    with control.uncounted():
        control.seal()
    assert control.changes().is_none
    scaled = changed(before, net)
    assert {"0", "2"} <= scaled
    with torch.no_grad():
        for parameters, layer in zip(before.values(), net.children(), strict=True):
            for value, parameter in zip(parameters, layer.parameters(), strict=True):
                parameter.copy_(value)
    control.prove()
    assert {name for name, count in control.changes().proofs.items() if count} == scaled - {"1"}
    for _ in range(2):  # once BatchNorm is limited there is nothing to do
        control.seal()
    found = control.changes()
    assert {name: count for name, count in found.proofs.items() if count} == dict.fromkeys(scaled, 1)
    assert not found.is_none
    assert found.control.applied == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_state_goes_on_and_one_of_an_older_version_from_its_step(method: str) -> None:
    net = network()
    control = controller(net, method, every_steps=1)
    count_by_hand(net, control, 2)
    state = copy.deepcopy(control.state_dict())
    other = controller(copy.deepcopy(net), method, every_steps=1)
    other.load_state_dict(state)
    assert other.changes() == control.changes()
    del state["changes"]
    other.load_state_dict(state)
    assert other.changes() == Changes(
        2, Applications(0, dict.fromkeys(other.controlled(), 0)), Applications(0, {"1": 0}),
        dict.fromkeys([*other.controlled(), "1"], 0),
    )  # fmt: skip
    assert not other.changes().is_none  # what was changed before is not known
    other.step()
    assert other.changes().control.applied == 1


def with_count(state: dict[str, Any], path: str, value: Any) -> Any:
    """Return counts with another value in a place; with an empty path, the value itself."""
    if not path:
        return value
    *above, last = path.split("/")
    table = state = copy.deepcopy(state)
    for key in above:
        table = table[key]
    table[last] = value
    return state


HOSTILE: dict[str, tuple[str, Any]] = {
    "a list": ("", [1, 2]),
    "empty": ("", {}),
    "a tensor": ("control", torch.zeros(3)),
    "no table": ("control/changed", 3),
    "negative": ("control/changed/0", -1),
    "huge": ("control/applied", 2**63),
    "a fraction": ("since", 0.5),
    "true": ("proofs/0", True),
    "a number that is none": ("control/changed/0", float("nan")),
    "a tensor in the place of a number": ("batchnorm/changed/1", torch.zeros(2, 3)),
    "more than there were": ("control/changed/0", 1),
    "another layer": ("control/changed/7", 0),
    "fewer layers": ("proofs", {}),
    "after its step": ("since", 9),
    "a further key": ("control/more", 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_counts_that_cannot_be_are_refused_in_a_sentence_and_nothing_is_loaded(name: str) -> None:
    control = controller(network(), "divide")
    state = copy.deepcopy(control.state_dict())
    control.step()
    before = copy.deepcopy(control.state_dict())
    with pytest.raises(UsageError) as caught:
        control.load_state_dict({**state, "changes": with_count(state["changes"], *HOSTILE[name])})
    assert "control" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
    assert control.changes().state() == before["changes"]
    assert control.steps == 1


def test_a_counter_follows_its_layers_to_another_device() -> None:
    counter = ChangeCounter(["a"], torch.device("cpu"))
    counter.count_([[torch.tensor(0.5)]])
    counter.count_([[torch.ones((), device="meta")]])
    assert counter._counts.device.type == "meta"
