"""The spectral norm in what torch does with modules: state, copies, compilation, processes, formats."""

import copy
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import svdctl
from svdctl.layers.norms import is_layer_bounded
from svdctl.parametrize import remove_parametrizations, spectral_norm
from tests.distributed.start import finish, members, start
from tests.parametrize.layers import LAYERS, layer

HERE = __file__.rpartition("/")[0]
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def network(max_sigma=0.5):
    torch.manual_seed(0)
    return nn.Sequential(
        spectral_norm(nn.Conv2d(3, 8, 3, padding=1), max_sigma=max_sigma),
        nn.ReLU(),
        spectral_norm(nn.Conv2d(8, 8, 3, stride=2), max_sigma="learnable"),
        nn.Flatten(),
        spectral_norm(nn.Linear(72, 4)),
    )


def sgd_step_(model, images=IMAGES):
    model(images).square().sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad, alpha=0.1)
            parameter.grad = None


def test_state_dict(tmp_path):
    model = network()
    sgd_step_(model)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    for state in (load_file(tmp_path / "weights.safetensors"), torch.load(tmp_path / "weights.pt")):
        other = network(max_sigma=0.7)
        other.load_state_dict(state, strict=True)
        assert other[0].parametrizations.weight[0].max_sigma == 0.5
        sgd_step_(other)
        again = copy.deepcopy(model)
        sgd_step_(again)
        for mine, theirs in zip(other.state_dict().values(), again.state_dict().values(), strict=True):
            assert torch.equal(mine, theirs)


class Adversaries:
    """A discriminator with spectral norms whose pass for the generator follows its own step."""

    def __init__(self):
        torch.manual_seed(0)
        self.critic = nn.Sequential(
            *(spectral_norm(nn.Conv2d(1, 16, 3, stride=2, padding=1), max_sigma=0.2), nn.LeakyReLU(0.2)),
            *(spectral_norm(nn.Conv2d(16, 8, 3, padding=1), max_sigma="learnable"), nn.Flatten()),
            spectral_norm(nn.Linear(128, 1), max_sigma=0.2),
        )
        self.maker = nn.Sequential(nn.Linear(8, 64), nn.Unflatten(1, (1, 8, 8)))
        self.optimizers = [torch.optim.Adam(net.parameters(), lr=1e-2) for net in (self.critic, self.maker)]

    def train(self, steps):
        for step in steps:
            drawn = torch.Generator().manual_seed(step)
            real, seeds = torch.rand(4, 1, 8, 8, generator=drawn), torch.randn(4, 8, generator=drawn)
            loss = (1 - self.critic(real)).relu().mean() + (1 + self.critic(self.maker(seeds).detach())).relu().mean()
            self._step(0, loss)
            self._step(1, -self.critic(self.maker(seeds)).mean())
        return self

    def _step(self, place, loss):
        self.optimizers[place].zero_grad()
        loss.backward()
        self.optimizers[place].step()

    def states(self):
        return [part.state_dict() for part in (self.critic, self.maker, *self.optimizers)]

    def load(self, states):
        for part, state in zip((self.critic, self.maker, *self.optimizers), states, strict=True):
            part.load_state_dict(copy.deepcopy(state))
        return self


def assert_same_states(first, second):
    for mine, theirs in zip(first.critic.state_dict().values(), second.critic.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_resumed_loop_is_the_undisturbed_one_bit_for_bit(tmp_path):
    undisturbed = Adversaries().train(range(8))
    torch.save(Adversaries().train(range(4)).states(), tmp_path / "states.pt")
    states = torch.load(tmp_path / "states.pt")
    assert_same_states(Adversaries().load(states).train(range(4, 8)), undisturbed)
    # A network that has made steps of its own before it takes the state over.
    assert_same_states(Adversaries().train(range(2)).load(states).train(range(4, 8)), undisturbed)
    # Stored again before any pass.
    assert_same_states(Adversaries().load(Adversaries().load(states).states()).train(range(4, 8)), undisturbed)


def test_a_pickled_norm_goes_on_as_the_norm():
    model = Adversaries().train(range(3)).critic
    state = model[0].parametrizations.weight[0]
    again = pickle.loads(pickle.dumps(state))
    weight = model[0].parametrizations.weight.original
    assert torch.equal(again(weight), state(weight))
    assert torch.equal(again.vectors, state.vectors)


def test_states_have_one_size():
    first, second = Adversaries(), Adversaries().train(range(2))
    for mine, theirs in zip(first.critic.state_dict().values(), second.critic.state_dict().values(), strict=True):
        assert mine.shape == theirs.shape


def test_state_without_a_checksum():
    """As stored by versions before it: a pass makes a step."""
    model = network()
    norm = model[0].parametrizations.weight[0]
    told = json.loads(bytes(norm.get_extra_state().tolist()))
    del told["stepped"]
    norm.set_extra_state(torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8))
    vectors = norm.vectors.clone()
    model(IMAGES)
    assert not torch.equal(norm.vectors, vectors)


def test_state_of_another_layer():
    state = spectral_norm(nn.Conv2d(4, 4, 3, stride=2)).state_dict()
    with pytest.raises(svdctl.errors.ShapeError, match="stride"):
        spectral_norm(nn.Conv2d(4, 4, 3)).load_state_dict(state)


@pytest.mark.parametrize("mode", ["train", "eval", "inference"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled(mode, backend):
    torch._dynamo.reset()
    model = network().train(mode == "train")
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    if mode == "inference":
        # Conjugate views are ignored in operators here unless they see to it.
        with torch.inference_mode():
            torch.testing.assert_close(compiled(IMAGES), plain(IMAGES))
        return
    for _ in range(2):
        compiled(IMAGES).square().sum().backward()
        plain(IMAGES).square().sum().backward()
        for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)
            with torch.no_grad():
                theirs.copy_(mine.sub_(mine.grad, alpha=0.1))
            mine.grad = theirs.grad = None
    for mine, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.slow
def test_training_compiled_by_inductor():
    torch._dynamo.reset()
    plain, own = network(), network()
    compiled = torch.compile(own)
    for seed in range(10):
        images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        losses = []
        for model, called in ((plain, plain), (own, compiled)):
            loss = (called(images) - 1).square().mean()
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(parameter.grad, alpha=0.1)
                    parameter.grad = None
            losses.append(loss.detach())
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(plain.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_exported(training):
    model = network().train(training)
    program = torch.export.export(model, (IMAGES,)).module()
    torch.testing.assert_close(program(IMAGES), model(IMAGES))


def test_functional_gradient():
    model = network()
    parameters = dict(model.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (IMAGES,)).square().sum()

    found = torch.func.grad(loss)({name: value.detach() for name, value in parameters.items()})
    loss(parameters).backward()
    for name, value in parameters.items():
        torch.testing.assert_close(found[name], value.grad)


def test_checkpointed_and_autocast_and_channels_last():
    model, other = network(), network()
    checkpoint(model, IMAGES, use_reentrant=False).square().sum().backward()
    other(IMAGES).square().sum().backward()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network()(IMAGES)
        assert torch.equal(network()[0].weight, other[0].weight)
    torch.testing.assert_close(found.float(), other(IMAGES), rtol=0.05, atol=0.05)
    last = network().to(memory_format=torch.channels_last)
    assert last[0].parametrizations.weight.original.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last(IMAGES.to(memory_format=torch.channels_last)), network()(IMAGES))
    three = layer("conv3d").to(memory_format=torch.channels_last_3d)
    three = spectral_norm(three, max_sigma=0.3).to(memory_format=torch.channels_last_3d)
    for _ in range(2):
        sgd_step_(three, torch.randn(1, *LAYERS["conv3d"][1]))
    assert is_layer_bounded(three, 0.3)


def test_copies_do_not_depend_on_each_other():
    model = network()
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    third = copy.deepcopy(first)
    weight = model[0].weight.detach().clone()
    with torch.no_grad():
        second[0].parametrizations.weight.original.mul_(-1)
    with parametrize.cached():
        assert torch.equal(model[0].weight, weight)
        assert torch.allclose(second[0].weight, -weight, atol=1e-4)
        assert torch.equal(third[0].weight, weight)
    remove_parametrizations(first[0])
    assert torch.equal(model[0].weight, weight)
    parametrize.remove_parametrizations(model[0], "weight")
    assert torch.equal(third[0].weight, weight)
    assert torch.allclose(second[0].weight, -weight, atol=1e-4)
    with torch.no_grad():
        third[0].weight = torch.ones_like(weight)
    assert torch.equal(third[0].parametrizations.weight.original, torch.ones_like(weight))
    assert float(second[0].weight.detach().std()) > 0.01


def test_average_of_weights():
    model = network()
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    for _ in range(3):
        sgd_step_(model)
        averaged.update_parameters(model)
    for place, maximum in ((0, 0.5), (4, 1.0)):
        assert is_layer_bounded(averaged.module[place], maximum)
    averaged(IMAGES).sum().backward()


@pytest.mark.slow
def test_processes_keep_the_same_bits():
    started = [start([f"{HERE}/ddp_checks.py"], **variables) for variables in members(2)]
    for process in started:
        finish(process, 100)
