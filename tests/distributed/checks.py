"""What processes tell each other, checked in each of them: three, started with a launcher's variables."""

from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn

from svdctl.control.assign import Assign
from svdctl.control.clip import Clip
from svdctl.control.controller import Controller
from svdctl.control.divide import Divide
from svdctl.control.divide_each import DivideEach
from svdctl.control.divide_exact import DivideExact
from svdctl.distributed.group import Group
from svdctl.distributed.scheduling import LayerScheduler
from svdctl.layers.batchnorm import GlobalBatchNorm2d, share_statistics_
from svdctl.layers.tt import TTConv2d
from tests.synchronisation import NoHostReads


def spread(group: Group) -> None:
    """Everybody's tensors arrive bit for bit, whatever their type, layout and value."""
    torch.manual_seed(1)  # the same in every process
    sent = [
        torch.randn(3, 5, 2, 2).contiguous(memory_format=torch.channels_last),
        torch.tensor(7, dtype=torch.int64),
        torch.randn(3, dtype=torch.complex64),
        torch.tensor([float("nan"), -0.0, 1e-40]),
        torch.randn(5, 3).T,
        torch.randn(3).double(),
    ]
    for owner in range(group.world):
        mine = [value.clone() if group.rank == owner else torch.zeros_like(value) for value in sent]
        group.spread_({owner: mine})
        for got, value in zip(mine, sent, strict=True):
            assert got.numpy().tobytes() == value.numpy().tobytes(), (owner, value)
            assert got.stride() == value.stride()


def sharing(group: Group) -> None:
    """Measured times move the layers, to the same place for all."""
    names = [f"layer{number}" for number in range(8)]
    values = {name: torch.zeros(4) for name in names}
    shares = LayerScheduler(dict.fromkeys(names, 1.0), group, threads=True)

    def work(one: list[str]) -> dict[str, bool]:
        (name,) = one
        # The first layer takes as long as all others together.
        end = torch.tensor(1.0)
        for _ in range(70_000 if name == "layer0" else 10_000):
            end = end * 1.0
        values[name] += group.rank + 1
        return {name: name != "layer1"}

    shares.each(work, lambda name: [values[name]])
    everybody = group.gathered({name: value.tolist() for name, value in values.items()})
    owners = group.gathered(shares.owners())
    assert all(found == owners[0] for found in owners)
    for name in names[2:]:
        assert all(seen[name] == everybody[0][name] for seen in everybody), name
    # What says that it changed nothing is not sent.
    assert sorted(seen["layer1"][0] for seen in everybody) == [0.0] * (group.world - 1) + [everybody[1]["layer1"][0]]
    for _ in range(3):
        shares.each(work, lambda name: [values[name]])
    alone = shares.owners()["layer0"]
    assert [name for name, owner in shares.owners().items() if owner == alone] == ["layer0"]


def controllers(group: Group) -> None:
    """The work of all processes together is that of one alone, and the same bits everywhere."""

    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3),
            TTConv2d(8, 12, 3, rank=5, frames="retract"),
            nn.Conv2d(12, 12, 3, stride=2),
            TTConv2d(12, 8, 3, rank=(4, 3), frames="free"),
            nn.Linear(8, 5),
        )

    for control in (
        Clip(max_sigma=0.5, every_steps=1, linear_max=0.5),
        Divide(max_sigma=0.5),
        DivideEach(max_sigma=0.5, linear_max=0.4),
    ):
        made = []
        for own in (Group(), group):
            model = network()
            controller = Controller.from_config(model, None, control, None, group=own)
            for _ in range(3):
                with NoHostReads() if isinstance(control, Divide) else nullcontext():
                    controller.step()
            with torch.no_grad():
                model[2].weight.mul_(2)
            proved = controller.prove(), controller.smallest_factor
            assert controller.smallest_factor < 1
            controller.seal()
            made.append((model.state_dict(), (controller.report(), proved), controller.state_dict()["vectors"]))
        (alone, reported, vectors), (shared, together, kept) = made
        assert all(torch.equal(shared[name], value) for name, value in alone.items()), control
        assert together == reported
        assert all(torch.equal(kept[name], value) for name, value in vectors.items())
        seen = group.gathered({name: value.numpy().tobytes() for name, value in shared.items()})
        assert all(other == seen[0] for other in seen)


def proving_actions(group: Group) -> None:
    """Actions that prove end with what one process finds alone, though one layer is most of the work."""
    for control in (
        Clip(max_sigma=0.5, every_steps=1, linear_max=0.5),
        Assign(max_sigma=0.5, every_steps=1),
        DivideExact(max_sigma=0.5, every_steps=1),
    ):
        made = []
        for own in (Group(), group):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Conv2d(40, 40, 3), nn.Conv2d(40, 3, 3), TTConv2d(3, 30, 3, rank=(3, 26)))
            controller = Controller.from_config(model, None, control, None, group=own)
            for _ in range(2):
                controller.step()
            controller.seal()
            made.append((model.state_dict(), controller.report()))
        (alone, reported), (shared, together) = made
        assert together == reported
        assert all(torch.equal(shared[name], value) for name, value in alone.items()), control


def batchnorm(group: Group) -> None:
    """Forward, backward and statistics are those of torch's layer on the whole batch, shares of any size."""
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        for momentum, affine in ((0.1, True), (None, True), (0.1, False)):
            torch.manual_seed(2)
            plain = nn.BatchNorm2d(6, momentum=momentum, affine=affine)
            if affine:
                nn.init.normal_(plain.weight)
                nn.init.normal_(plain.bias)
            plain = plain.to(dtype if dtype != torch.bfloat16 else torch.float32)
            model = nn.Sequential(nn.BatchNorm2d(6, momentum=momentum, affine=affine)).to(next(plain.buffers()).dtype)
            model.load_state_dict({f"0.{name}": value for name, value in plain.state_dict().items()})
            names = list(model.state_dict())
            share_statistics_(model)
            assert isinstance(model[0], GlobalBatchNorm2d)
            assert list(model.state_dict()) == names
            # The last process has no images at all.
            cuts = (0, 1, 5, 5)
            for step in range(2):
                x = (3 + torch.randn(5, 6, 4, 3)).contiguous(memory_format=torch.channels_last).to(dtype)
                weights = torch.randn(5, 6, 4, 3).to(dtype)
                whole = x.clone().requires_grad_()
                expected = plain(whole)
                (expected * weights).sum().backward()
                mine = slice(cuts[group.rank], cuts[group.rank + 1])
                own = x[mine].clone().requires_grad_()
                y = model(own)
                (y * weights[mine]).sum().backward()
                assert y.dtype == dtype
                torch.testing.assert_close(y, expected[mine], atol=close * 10, rtol=close, msg=f"{dtype} {step}")
                torch.testing.assert_close(own.grad, whole.grad[mine], atol=close * 10, rtol=close)
                for parameter, reference in zip(model.parameters(), plain.parameters(), strict=True):
                    torch.testing.assert_close(
                        group.summed_(parameter.grad.clone()), reference.grad, atol=close * 100, rtol=close
                    )
                    parameter.grad = reference.grad = None
            for mine_, theirs in zip(model.buffers(), plain.buffers(), strict=True):
                torch.testing.assert_close(mine_, theirs, atol=close, rtol=close)
            model.eval(), plain.eval()
            torch.testing.assert_close(model(x), plain(x), atol=close * 10, rtol=close)


def compiled(group: Group) -> None:
    """The messages of BatchNorm break no graph."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    share_statistics_(model)
    found = torch._dynamo.explain(model)(torch.randn(2, 3, 6, 6))
    assert found.graph_break_count == 0, found.break_reasons


if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    everyone = Group(dist.get_rank(), dist.get_world_size())
    for check in (spread, sharing, controllers, proving_actions, batchnorm, compiled):
        check(everyone)
    dist.barrier()
    dist.destroy_process_group()
