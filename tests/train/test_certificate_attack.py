"""Certificates under attack: no certified answer flips inside its radius, however the frames are kept."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from svdctl.certificates import Certificates, Certifier
from svdctl.cli.training_flags import LIPCONV, resolve
from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import Controller
from svdctl.data.batches import to_pixels
from svdctl.evaluate.attack.attack_batches import attack_batches, begin
from svdctl.evaluate.attack_settings import AttackSettings
from svdctl.layers.sott import SOTT
from svdctl.models.build import build_model
from svdctl.train.setup import launch, load_parts
from svdctl.train.trainer import EPOCH, Trainer

RAISED = {"retract": 0.2, "parametrize": 0.2, "penalty": 0.12}
FRAMES = tuple(RAISED)
EXACT = tuple(frames for frames in FRAMES if frames != "penalty")


@dataclass(frozen=True)
class Victim:
    """A trained network, the test images, and what is proved of them."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    certifier: Certifier
    proved: Certificates

    @classmethod
    def of(cls, model: nn.Module, images: Tensor, labels: Tensor) -> "Victim":
        certifier = Certifier(model.eval(), tuple(images.shape[1:]))
        return cls(model, images, labels, certifier, certifier.evaluate([(images, labels)]))

    def only(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and radii of some of them."""
        return self.images[chosen], self.labels[chosen], self.proved.radii[chosen]


def config_of(frames: str, *sets: str) -> TrainConfig:
    small = ["model.in_channels=4", "layer.rank=16", "certificate=", "evaluation.select=last", *sets]
    if frames == "penalty":
        # Of so small a network; the default weight is for wide ones.
        small.append("layer.frames.weight=300")
    return resolve({"preset": "lipconv-quickstart", "frames": frames, "set": small}, LIPCONV).config


def train_(model: nn.Module, config: TrainConfig, epochs: int) -> None:
    """Train in place, by the loop's own steps."""
    parts = load_parts(config)
    trainer = Trainer(
        config,
        model.train(),
        launch(config),
        parts.train,
        parts.test,
        Controller.from_config(model, None, config.control, None),
    )
    for epoch in range(epochs):
        for batch in trainer.batches.epoch(epoch):
            trainer.train_step(batch)
    trainer.read(trainer.totals[EPOCH], 0)


@cache
def victims(frames: str) -> tuple[Victim, Victim]:
    """After a short training, and after one more epoch at a learning rate above 0.1."""
    config = config_of(frames)
    test = load_parts(config).test
    model = build_model(config, 10)
    made = []
    for settings, epochs in (
        (config, 3),
        (config_of(frames, f"optimizer.lr={RAISED[frames]}", "schedule.kind=constant"), 1),
    ):
        train_(model, settings, epochs)
        made.append(Victim.of(model, to_pixels(test.images), test.labels))
        model = build_model(config, 10)
        model.load_state_dict(made[0].model.state_dict())
    return made[0], made[1]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the label is above all others."""
    own = logits.gather(1, labels[:, None])
    return own[:, 0] - logits.scatter(1, labels[:, None], -torch.inf).amax(1)


def pgd(
    model: nn.Module, images: Tensor, labels: Tensor, radii: Tensor, *, steps: int = 8, restarts: int = 2
) -> Tensor:
    """The images within their radii that the network is least sure of: descent of the margin, several starts.

    The box [0, 1] is left out of it, which only makes the attack stronger.
    """
    generator = torch.Generator().manual_seed(0)
    reach = (radii * (1 - 1e-9))[:, None, None, None]
    best, lowest = images.double(), margin(model(images), labels).double()
    for restart in range(restarts):
        moved = torch.randn(images.shape, generator=generator, dtype=torch.float64) * (restart > 0)
        moved = reach * torch.nn.functional.normalize(moved.flatten(1), dim=1).view_as(images)
        for step in range(steps):
            point = (images.double() + moved).requires_grad_()
            margins = margin(model(point.float()), labels)
            (gradient,) = torch.autograd.grad(margins.sum(), point)
            better = margins.double() < lowest
            lowest = torch.where(better, margins.detach().double(), lowest)
            best = torch.where(better[:, None, None, None], point.detach(), best)
            direction = torch.nn.functional.normalize(gradient.flatten(1), dim=1).view_as(images)
            # Long steps first: the networks are nearly linear over such distances.
            moved = moved - reach * direction / (1 + step / 2)
            length = moved.flatten(1).norm(dim=1)[:, None, None, None].clamp_min(1e-30)
            moved = moved * (reach / length).clamp_max(1)
    return best


@pytest.mark.parametrize("stage", [0, 1], ids=["trained", "one more epoch at a raised rate"])
@pytest.mark.parametrize("frames", ["penalty", *(pytest.param(each, marks=pytest.mark.slow) for each in EXACT)])
def test_no_certified_answer_flips_inside_its_radius(frames: str, stage: int) -> None:
    victim = victims(frames)[stage]
    certified = victim.proved.radii > 0
    # The network is worth an attack: it is right, and proved to be, on most images.
    assert victim.proved.accuracy > 0.6
    assert victim.proved.certified_accuracy(1 / 255) > 0.9 * victim.proved.accuracy
    # Every third image of the network that the default suite trains, all of the others.
    images, labels, radii = victim.only(certified.nonzero()[:: 3 if frames == "penalty" else 1, 0])
    attacked = pgd(victim.model, images, labels, radii)
    distance = (attacked - images.double()).flatten(1).norm(dim=1)
    assert bool((distance <= radii).all())
    flipped = victim.certifier.logits(attacked).argmax(1) != labels
    assert not flipped.any()
    # The attack is worth its name: a few times farther out it flips most of a sample.
    far = pgd(victim.model, images[:40], labels[:40], 6 * radii[:40])
    assert (victim.certifier.logits(far).argmax(1) != labels[:40]).double().mean() > 0.7


def autoattack(victim: Victim, index: Tensor, eps: float, attacks: tuple[str, ...]) -> tuple[int, int]:
    """Answers that AutoAttack flips within `eps`, and how many it tried."""
    settings = AttackSettings(eps=eps, attacks=attacks, batch_size=64)
    images, labels, _ = victim.only(index)
    state = begin(victim.model, images, labels, settings)
    flipped = 0
    for batch in attack_batches(victim.model, images, labels, settings, state):
        answers = victim.certifier.logits(batch.adversarial).argmax(1)
        flipped += int((answers != labels[batch.index[batch.broken]]).sum())
    return flipped, len(index)


@pytest.mark.parametrize(
    ("frames", "attacks", "bands"),
    [
        pytest.param("penalty", ("apgd-ce",), 1, marks=pytest.mark.slow),
        pytest.param("retract", ("apgd-ce",), 2, marks=pytest.mark.slow),
        pytest.param(
            "retract", ("apgd-ce", "apgd-t", "fab-t", "square"), 2, marks=[pytest.mark.slow, pytest.mark.timeout(1500)]
        ),
    ],
)
def test_autoattack_flips_none_either(frames: str, attacks: tuple[str, ...], bands: int) -> None:
    victim = victims(frames)[1]
    order = victim.proved.radii.argsort()
    order = order[victim.proved.radii[order] > 0]
    # One radius for all images of a band: the smallest.
    for band in order.chunk(8)[1::4][:bands]:
        band = band[:4]
        eps = float(victim.proved.radii[band[0]])
        assert autoattack(victim, band, eps, attacks)[0] == 0
    flipped, tried = autoattack(victim, order[:6], 4 * float(victim.proved.radii[order[5]]), attacks[:1])
    assert flipped > 0.8 * tried


@pytest.mark.parametrize("frames", [pytest.param("retract", marks=pytest.mark.slow), "penalty"])
def test_a_frame_scaled_behind_its_back_shows_in_the_constant(frames: str) -> None:
    victim = victims(frames)[0]
    model = build_model(config_of(frames), 10)
    model.load_state_dict(victim.model.state_dict())
    layer = next(module for module in model.modules() if isinstance(module, SOTT) and module.frame_out is not None)
    with torch.no_grad():
        layer.frame_out.mul_(1.1)
    broken = Certifier(model.eval(), (3, 32, 32))
    assert broken.bound.value == pytest.approx(1.1 * victim.certifier.bound.value, rel=1e-6)
    radii = broken.radii(broken.logits(victim.images), victim.labels)
    # What it answers now is another network's; the proof knows.
    assert (radii > 0).double().mean() > 0
    chosen = (radii > 0).nonzero()[::3, 0]
    images, labels = victim.images[chosen], victim.labels[chosen]
    attacked = pgd(model, images, labels, radii[chosen], steps=4, restarts=1)
    assert not (broken.logits(attacked).argmax(1) != labels).any()
