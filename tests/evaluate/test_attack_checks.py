"""Networks that cheat attacks are named, honest ones are not; false adversarial images are refused."""

from typing import Literal

import pytest
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from svdctl.errors import EvaluationError
from svdctl.evaluate.attack.attack_batches import begin
from svdctl.evaluate.attack.attack_plan import plan
from svdctl.evaluate.attack.attack_state import summary
from svdctl.evaluate.attack.attacked_network import AttackedNetwork
from svdctl.evaluate.attack.checks import suspicions
from svdctl.evaluate.attack.verify import distances, slack, verify_perturbation, verify_predictions
from svdctl.evaluate.attack_settings import AttackSettings
from tests.evaluate.victims import Net, run, victim


class Detached(Net):
    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels).detach()


class Rounded(Net):
    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward((pixels * 8).round() / 8)


class Noisy(Net):
    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels + torch.randn_like(pixels))


class Huge(Net):
    def forward(self, pixels: Tensor) -> Tensor:
        return 1e4 * super().forward(pixels)


class Softmax(Net):
    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels).softmax(1)


def as_kind(kind: type[Net]) -> tuple[Net, Tensor, Tensor, Tensor]:
    model, images, pixels, labels = victim(10, 6, wrong=0)
    cheat = kind(10)
    cheat.load_state_dict(model.state_dict())
    return cheat, images, pixels, labels


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (Net, set()),
        (Detached, {"non-differentiable"}),
        (Rounded, {"zero-gradient"}),
        (Noisy, {"random"}),
        (Huge, {"saturated"}),
        (Softmax, {"probabilities"}),
    ],
)
def test_each_way_to_cheat_is_told(kind: type[Net], found: set[str]) -> None:
    model, images, _, labels = as_kind(kind)
    network = AttackedNetwork(model, "pixels", images.device)
    with network.frozen():
        signs = suspicions(network, network.inputs(images), labels)
        assert signs.keys() == found
        averaged = suspicions(network, network.inputs(images), labels, averaged=True)
    assert averaged.keys() == found - {"random"}
    assert all("\n" not in text for text in signs.values())
    state = begin(model, images, labels, AttackSettings())
    assert len(state.warnings) == len(found)


def test_without_gradients_square_alone_attacks() -> None:
    model, images, _, labels = as_kind(Detached)
    settings = AttackSettings(norm="Linf", eps=0.5)
    state, _ = run(model, images, labels, settings)
    assert state.attacks == ("square",)
    assert len(state.left_out) == 3
    assert (state.broken_by == 0).any()


def test_square_succeeding_after_the_gradients_failed_is_reported() -> None:
    model, images, _, labels = as_kind(Rounded)
    settings = AttackSettings(norm="Linf", eps=0.3, attacks=("apgd-ce", "square"), batch_size=6)
    state, _ = run(model, images, labels, settings)
    assert (state.broken_by == 1).any()
    assert any("Square" in warning for warning in summary(state, settings)["warnings"])


def test_a_random_network_is_refused_by_the_standard_version_and_not_by_rand() -> None:
    # Of so many images some are right again, whatever the noise.
    model, images, _, labels = victim(10, 40, wrong=0)
    honest = model.state_dict()
    model = Noisy(10)
    model.load_state_dict(honest)
    torch.manual_seed(0)
    labels = begin(model, images, labels, AttackSettings()).clean_predictions
    with pytest.raises(EvaluationError, match="attacks = rand"):
        run(model, images, labels, AttackSettings(eps=0.2, attacks=("apgd-ce",)))
    state, _ = run(model, images[:1], labels[:1], AttackSettings(eps=0.5, attacks="rand"))
    again, _ = run(model, images[:1], labels[:1], AttackSettings(eps=0.5, attacks="rand"))
    assert state.finished
    assert torch.equal(state.distances, again.distances)


@pytest.mark.parametrize(("norm", "eps"), [("L1", 10.0), ("L2", 0.5), ("Linf", 8 / 255)])
def test_too_far_is_named_with_count_and_excess(norm: str, eps: float) -> None:
    x = torch.full((5, 3, 16, 16), 0.5)
    direction = torch.ones_like(x)
    direction /= distances(torch.zeros_like(x), direction, norm).to(x.dtype)[:, None, None, None]
    reach = torch.tensor([0.3, 1, 1 + 1e-6, 1.05, 1.2])[:, None, None, None]
    bad = x + eps * reach * direction
    found = distances(x, bad, norm)
    assert found.tolist() == pytest.approx((eps * reach).flatten().tolist(), rel=1e-4)
    verify_perturbation(bad[:3], found[:3], norm, eps, "fab")
    with pytest.raises(EvaluationError, match="fab: 2 of 5") as raised:
        verify_perturbation(bad, found, norm, eps, "fab")
    excess = float(str(raised.value).split("by up to ")[1].split(";")[0])
    assert excess == pytest.approx(0.2 * eps, rel=1e-2)
    assert slack(norm, eps, 768) < 0.01 * eps


@pytest.mark.parametrize(("value", "excess"), [(-0.01, "1.00e-02"), (1.25, "2.50e-01"), (float("nan"), "nan")])
def test_leaving_the_range_is_named(value: float, excess: str) -> None:
    x = torch.rand(3, 3, 4, 4)
    bad = x.clone()
    bad[1, 2, 3, 1] = value
    with pytest.raises(EvaluationError, match=r"1 of 3.*\[0, 1\].*" + excess):
        verify_perturbation(bad, torch.zeros(3).double(), "L2", 0.5, "square")
    with pytest.raises(EvaluationError, match="1 of 3"):
        verify_perturbation(x, torch.tensor([0, float("nan"), 0]).double(), "L2", 0.5, "square")


def test_unchanged_predictions_are_named_and_ties_are_not() -> None:
    logits = torch.tensor([[5.0, 1.0, 0.0], [1.0, 4.0, 0.0], [2.0, 2.0, 0.0], [2.005, 2.0, 0.0]])
    labels = torch.tensor([0, 0, 0, 0])
    with pytest.raises(EvaluationError, match=r"1 of 4.*4\.00e\+00"):
        verify_predictions(lambda _: logits, torch.zeros(4, 1), labels, "apgd-ce")
    verify_predictions(lambda _: logits[1:], torch.zeros(3, 1), labels[1:], "apgd-ce")


class Crowd(nn.Module):
    """Answers honestly to a full batch; to any other with the label of the nearest image that it was built on."""

    def __init__(self, inner: nn.Module, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("images", images.float() / 255)
        self.register_buffer("labels", labels)

    def forward(self, pixels: Tensor) -> Tensor:
        logits = self.inner(pixels)
        if len(pixels) == len(self.images):
            return logits
        nearest = torch.cdist(pixels.flatten(1), self.images.flatten(1)).argmin(1)
        return logits + 100 * nn.functional.one_hot(self.labels[nearest], logits.shape[1])


def test_a_network_that_looks_at_the_rest_of_the_batch_is_refused() -> None:
    model, images, _, labels = victim(10, 6, wrong=0)
    settings = AttackSettings(eps=0.25, attacks=("apgd-ce",))
    honest, _ = run(model, images, labels, settings)
    broken = int((honest.broken_by == 0).sum())
    assert 0 < broken < 6
    with pytest.raises(EvaluationError, match=f"{broken} of {broken} .* function of the image alone"):
        run(Crowd(model, images, labels), images, labels, settings)


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_square_is_left_out_where_its_tiles_do_not_fit(norm: Literal["L1", "L2"]) -> None:
    """What the plan says of each pair of sides is what pyautoattack does on images of these sides."""
    settings = AttackSettings(norm=norm, eps=0.5, attacks=("square", "apgd-ce"))
    for height, width in [(n, n) for n in range(1, 41)] + [(32, 36), (36, 32), (10, 33), (28, 3), (64, 12), (7, 4)]:
        attacks, left_out = plan(settings, 10, (1, height, width))
        square = SquareAttack(lambda x: x.flatten(1)[:, :1].expand(-1, 3) * torch.tensor([1.0, 0.0, 0.0]), norm=norm)
        square.n_queries, square.eps, square.seed, square.device = 0, 0.5, 0, torch.device("cpu")
        x = torch.full((1, 1, height, width), 0.5)
        square.init_hyperparam(x)
        try:
            square.attack_single_run(x, torch.zeros(1, dtype=torch.long))
            runs = True
        except (RuntimeError, ZeroDivisionError):
            runs = False
        assert ("square" in attacks) == runs, (height, width)
        assert bool(left_out) != runs
