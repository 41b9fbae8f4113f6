"""What the gate of `svdctl inspect-spectrum --model` says of networks that compute with more than their layers list."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from svdctl.cli.app import main
from tests.cli.flags import after_opening

Gate = Callable[..., tuple[int, str]]

NETS = """
from collections import deque
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from svdctl.layers.minmax import MinMax
from svdctl.layers.normalize import Normalize


class Net(nn.Module):
    def __init__(self, forward=None):
        super().__init__()
        self.a = nn.Conv2d(3, 3, 1)
        self.c = nn.Conv2d(3, 3, 3, padding=1)
        self.way = forward

    def forward(self, x):
        return self.way(self, self.a(x))


def _replaced(s, x):
    kept = s.c.weight
    s.c.weight = nn.Parameter(100 * kept)
    y = s.c(x)
    s.c.weight = kept
    return y


def _data(s, x):
    kept = s.c.weight.data
    s.c.weight.data = 100 * kept
    y = s.c(x)
    s.c.weight.data = kept
    return y


def _in_place(s, x):
    s.c.weight.data.mul_(100)
    y = s.c(x)
    s.c.weight.data.div_(100)
    return y


def _left(s, x):
    s.c.weight.data.mul_(1.01)
    return s.c(x)


def _hooked(s, x):
    handle = s.c.register_forward_hook(lambda layer, inputs, output: 100 * output)
    y = s.c(x)
    handle.remove()
    return y


def _global(s, x):
    handle = nn.modules.module.register_module_forward_hook(lambda layer, inputs, output: 100 * output)
    y = s.c(x)
    handle.remove()
    return y


def _patched(s, x):
    kept = s.c.forward
    s.c.forward = lambda x: 100 * F.conv2d(x, s.c.weight, padding=1)
    y = s.c(x)
    s.c.forward = kept
    return y


def _torch_patched(s, x):
    kept = F.conv2d
    F.conv2d = lambda x, w, *rest: kept(x, 100 * w, *rest)
    y = s.c(x)
    F.conv2d = kept
    return y


def _geometry(s, x):
    s.c.dilation, s.c.padding = (2, 2), (2, 2)
    y = s.c(x)
    s.c.dilation, s.c.padding = (1, 1), (1, 1)
    return y


def _class(s, x):
    class Other(nn.Conv2d):
        def forward(self, x):
            return 100 * super().forward(x)

    s.c.__class__ = Other
    y = s.c(x)
    s.c.__class__ = nn.Conv2d
    return y


def _second(s, x):
    s.c(x)
    return functional_call(s.c, {"weight": 100 * s.c.weight}, (x,))


class Beside(Net):
    def __init__(self, **tensors):
        super().__init__()
        for name, value in tensors.items():
            if isinstance(value, torch.Tensor) and name.startswith("buffer"):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x):
        return self.c(self.a(x))


class Scaled(Normalize):
    def __init__(self):
        super().__init__((0.0,) * 3, (1.0,) * 3)
        self.gain = nn.Parameter(torch.full((3, 1, 1), 100.0))

    def forward(self, x):
        return super().forward(x) * self.gain


class Holder(MinMax):
    pass


def _of_minmax(kind):
    def forward(s, x):
        return s.way_out(F.conv2d(s.c(x).repeat(1, 2, 1, 1), s.way_out.weight[:, :, None, None]))

    net = Net(forward)
    net.way_out = kind()
    net.way_out.weight = nn.Parameter(1000 * torch.eye(6))
    return net


def _with(name, value):
    net = Net(lambda s, x: s.c(x))
    setattr(net.c, name, value)
    return net


def _closure(w):
    return Net(lambda s, x: s.c(x) * w[0, :, None, None])


class Large(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        found = super().__torch_function__(function, types, args, kwargs or {})
        return 100 * found if function is F.conv2d else found


def _of_a_class(s, x):
    return s.c(x.as_subclass(Large)).as_subclass(torch.Tensor)


def _aliases():
    # Lists of what is registered are no further weights.
    net = Net(lambda s, x: s.c(x))
    net.layers = {"all": [net.a, (net.c, net.c.weight)], "up": net}
    return net


def _codes():
    net = Net(lambda s, x: s.c(x))
    net.c.register_buffer("codes", torch.full((3, 3), 100))
    return net


HUGE = torch.full((3, 3), 100.0)
ways = {
    "functional": lambda s, x: functional_call(s.c, {"weight": 100 * s.c.weight}, (x,)),
    "second call": _second,
    "kernel taken": lambda s, x: F.conv2d(x, s.c.weight * 100),
    "kernel taken too": lambda s, x: s.c(x) + F.conv2d(x, s.c.weight * 100, padding=1),
    "kernel taken by data": lambda s, x: s.c(x) + F.conv2d(x, s.c.weight.data * 100, padding=1),
    "conv_forward": lambda s, x: s.c._conv_forward(x, 100 * s.c.weight, None),
    "forward": lambda s, x: s.c.forward(100 * x),
    "replaced": _replaced,
    "data": _data,
    "in place": _in_place,
    "left": _left,
    "hook": _hooked,
    "hook of all": _global,
    "patched": _patched,
    "torch patched": _torch_patched,
    "geometry": _geometry,
    "class": _class,
    "class of tensors": _of_a_class,
}
PLAIN = {"plain": lambda s, x: s.c(x), "twice": lambda s, x: s.c(s.c(x)),
    "its type": lambda s, x: s.c(x.to(s.c.weight.dtype)) + s.c.weight.new_zeros(1)}
class Attending(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.inner = nn.MultiheadAttention(6, 2, batch_first=True, **settings)

    def forward(self, x):
        rows = self.norm(x).flatten(1, 2)
        return self.inner(rows, rows, rows, need_weights=False)[0]


networks = {
    "attention": lambda: Attending(),
    "attention of other keys": lambda: Attending(kdim=6, vdim=6),
    "attention with a key": lambda: Attending(add_bias_kv=True),
    "integers": lambda: Beside(buffer=(100 * torch.ones(3, 3)).long()),
    "bools": lambda: Beside(buffer=torch.ones(200, 200, dtype=torch.bool)),
    "a tensor": lambda: Beside(mix=HUGE),
    "tensors": lambda: Beside(mix=[HUGE]),
    "a dict of tensors": lambda: Beside(mix={"x": (HUGE,)}),
    "a conv in a list": lambda: Beside(mix=[nn.Conv2d(3, 3, 1)]),
    "a net in a list": lambda: Beside(mix=[nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1))]),
    "a tensor of a layer": lambda: _with("mix", HUGE),
    "a list of a layer": lambda: _with("mix", [HUGE]),
    "a buffer of a layer": _codes,
    "a deque": lambda: Beside(mix=deque([HUGE])),
    "an object": lambda: Beside(mix=SimpleNamespace(w=HUGE)),
    "a partial": lambda: Beside(mix=partial(torch.mul, HUGE)),
    "a closure": lambda: _closure(HUGE),
    "of Normalize": lambda: nn.Sequential(Net(PLAIN["plain"]), Scaled()),
    "of Normalize first": lambda: nn.Sequential(Scaled(), Net(PLAIN["plain"])),
    "deviations": lambda: nn.Sequential(Net(PLAIN["plain"]), Normalize((0.0,) * 3, (1e-6,) * 3)),
    "of MinMax": lambda: _of_minmax(MinMax),
    "of a subclass of MinMax": lambda: _of_minmax(Holder),
    "aliases": lambda: _aliases(),
    "pixels": lambda: nn.Sequential(Normalize((0.0,) * 3, (1e-6,) * 3), Net(PLAIN["plain"])),
} | {name: lambda way=way: Net(way) for name, way in (ways | PLAIN).items()}
"""


@pytest.fixture
def gate(capsys, monkeypatch, tmp_path: Path) -> Gate:
    (tmp_path / "networks_for_the_gate.py").write_text(
        NETS
        + "\n\ndef __getattr__(name):\n"
        + "    return networks[name.replace('_', ' ')] if name.replace('_', ' ') in networks else networks[name]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "networks_for_the_gate", raising=False)

    def call(name: str, *flags: object) -> tuple[int, str]:
        import networks_for_the_gate

        model = networks_for_the_gate.networks[name]()
        for parameter in model.parameters():
            parameter.data.mul_(0.1)
        torch.save(model.state_dict(), tmp_path / "a.pt")
        spec = f"networks_for_the_gate:{name.replace(' ', '_')}"
        words = ("inspect-spectrum", tmp_path / "a.pt", "--model", spec, "--input-size", "3x6x6", "--max", 2, *flags)
        monkeypatch.setattr(sys, "argv", ["svdctl", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        err = after_opening(capsys.readouterr().err)
        assert "Traceback" not in err
        return int(ended.value.code or 0), err

    return call


@pytest.mark.parametrize("name", ["attention", "attention of other keys"])
def test_attention_passes_and_layernorm_is_held_as_batchnorm_is(name: str, gate: Gate) -> None:
    assert gate(name) == (0, "4 of 4 layers proved to be at most 2 (`max_sigma`)\n".replace("`max_sigma`", "--max"))
    # 0.1 / sqrt(1e-5)
    assert gate(name, "--batchnorm-max", 31.7)[0] == 0
    code, err = gate(name, "--batchnorm-max", 31.6)
    assert code == 1
    assert "norm reaches 31.62" in err


def test_what_attention_holds_beside_its_projections_is_not_proved(gate: Gate) -> None:
    code, err = gate("attention with a key")
    assert code == 1
    assert "not proved: inner, inner.bias_k" in err
    assert gate("attention with a key", "--except", "inner")[0] == 0


@pytest.mark.parametrize("name", ["plain", "twice", "its type", "pixels", "aliases"])
def test_networks_that_compute_with_their_weights_pass(name: str, gate: Gate) -> None:
    assert gate(name)[0] == 0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("functional", "its weight is another one"),
        ("second call", "its weight is another one"),
        ("kernel taken", "not reached"),
        ("kernel taken too", "outside of its own calls"),
        ("kernel taken by data", "outside of its own calls"),
        ("conv_forward", "not reached"),
        ("forward", "not reached"),
        ("replaced", "its weight is another one"),
        ("data", "its weight is another one"),
        ("in place", "its weight is another one"),
        ("left", "its weight is another one"),
        ("hook", "its forward is another one"),
        ("hook of all", "its hooks of all modules is another one"),
        ("patched", "forward pass is not that"),
        ("torch patched", "its output when the network runs"),
        ("geometry", "is another one"),
        ("class", "its forward is another one"),
        ("class of tensors", "its output when the network runs"),
    ],
)
def test_other_weights_than_those_of_the_row_are_seen(name: str, told: str, gate: Gate) -> None:
    code, err = gate(name)
    assert code == 1
    assert "not proved: c, " in err
    assert told in err
    assert gate(name, "--except", "c")[0] == 0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("integers", "not proved: (top), buffer"),
        ("bools", "not proved: (top), buffer"),
        ("a tensor", "not proved: mix, mix"),
        ("tensors", "not proved: mix.0, mix.0"),
        ("a dict of tensors", "not proved: mix.x.0, mix.x.0"),
        ("a conv in a list", "not proved: mix.0, mix.0.weight"),
        ("a net in a list", "not proved: mix.0.1, mix.0.1.weight"),
        ("a tensor of a layer", "not proved: c.mix, c.mix"),
        ("a list of a layer", "not proved: c.mix.0, c.mix.0"),
        ("a deque", "not proved: mix.0, mix.0"),
        ("an object", "not proved: mix.w, mix.w"),
        ("a partial", "not proved: mix.1, mix.1"),
        ("a closure", "not proved: way.w, way.w"),
        ("a buffer of a layer", "not proved: c.codes, c.codes"),
        ("of Normalize", "not proved: 1, its forward pass is not that of Normalize"),
        ("of Normalize first", "not proved: 0, its forward pass is not that of Normalize"),
        ("of MinMax", "not proved: way_out, layers of type MinMax"),
        ("of a subclass of MinMax", "not proved: way_out, layers of type Holder"),
        ("deviations", "1 reaches 999"),
    ],
)
def test_every_tensor_of_a_network_has_a_row(name: str, told: str, gate: Gate) -> None:
    code, err = gate(name)
    assert code == 1
    assert told in err
    if name != "deviations":
        excepted = told.split()[2].rstrip(",")
        assert gate(name, "--except", excepted)[0] == 0
