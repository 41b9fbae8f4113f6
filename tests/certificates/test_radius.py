"""Certified radii: arithmetic that can be checked by hand, and attacks that must fail inside them."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdctl.certificates import Certificates, Certifier, certified_curve
from svdctl.errors import DataError, ShapeError
from svdctl.layers.normalize import Normalize
from svdctl.layers.tt import TTConv2d


def linear(rows: Tensor, bias: Tensor | None = None) -> nn.Module:
    layer = nn.Linear(rows.shape[1], rows.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(rows)
        layer.bias.copy_(torch.zeros(len(rows)) if bias is None else bias)
    return nn.Sequential(nn.Flatten(), layer)


class TestByHand:
    def test_a_linear_classifier_has_the_distance_to_its_boundary(self) -> None:
        torch.manual_seed(0)
        rows = torch.randn(4, 12, dtype=torch.float64)
        certifier = Certifier(linear(rows), (3, 2, 2))
        images = torch.rand(50, 3, 2, 2, dtype=torch.float64)
        logits = certifier.logits(images)
        labels = logits.argmax(1)
        gaps = logits.gather(1, labels[:, None]) - logits
        exact = gaps / torch.cdist(rows, rows)[labels]
        exact[gaps == 0] = math.inf
        radii = certifier.radii(logits, labels)
        assert bool((radii <= exact.amin(1)).all())
        assert torch.allclose(radii, exact.amin(1), rtol=1e-6)

    def test_wrong_answers_and_ties_have_radius_zero(self) -> None:
        certifier = Certifier(linear(torch.eye(3, 12, dtype=torch.float64)), (3, 2, 2))
        logits = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
        radii = certifier.radii(logits, torch.tensor([0, 0, 0]))
        assert radii[0] == pytest.approx(1 / math.sqrt(2), rel=1e-6)
        assert radii[1] == radii[2] == 0

    def test_rounding_is_taken_off(self) -> None:
        network = linear(torch.eye(3, 12, dtype=torch.float64))
        narrow = Certifier(network, (3, 2, 2), dtype=torch.float32)
        wide = Certifier(network, (3, 2, 2))
        logits = torch.tensor([[1.0, 0.0, 0.0], [1e-7, 0.0, 0.0]])
        labels = torch.tensor([0, 0])
        assert 0 < narrow.radii(logits, labels)[0] < wide.radii(logits, labels)[0]
        assert narrow.radii(logits, labels)[1] == 0 < wide.radii(logits, labels)[1]

    def test_rows_are_used_where_they_are_tighter(self) -> None:
        rows = torch.eye(3, 12, dtype=torch.float64) * torch.tensor([[1.0], [0.1], [0.1]], dtype=torch.float64)
        certifier = Certifier(linear(rows), (3, 2, 2))
        assert certifier.pairwise[1, 2] == pytest.approx(0.1 * math.sqrt(2), rel=1e-6)
        assert certifier.pairwise[0, 1] == pytest.approx(math.hypot(1, 0.1), rel=1e-6)
        assert certifier.bound.value == pytest.approx(1.0, rel=1e-5)

    def test_rows_through_a_last_convolution(self) -> None:
        torch.manual_seed(0)
        last = nn.Conv2d(8, 3, 1).double()
        network = nn.Sequential(nn.Conv2d(3, 8, 4), nn.ReLU(), last, nn.Flatten()).double()
        certifier = Certifier(network, (3, 4, 4))
        before = certifier.bound.layers[-2].lipschitz
        rows = last.weight.flatten(1)
        expected = torch.cdist(rows, rows) * before
        assert torch.allclose(certifier.pairwise, expected.detach(), rtol=1e-5)
        assert bool((certifier.pairwise >= expected * (1 - 1e-12)).all())

    def test_rows_follow_a_reshape_and_a_reordering(self) -> None:
        torch.manual_seed(0)
        network = linear(torch.randn(4, 12, dtype=torch.float64))
        plain = Certifier(network, (3, 2, 2)).pairwise
        kept = nn.Sequential(network, nn.Unflatten(1, (2, 2)), nn.Flatten())
        assert torch.allclose(Certifier(kept, (3, 2, 2)).pairwise, plain, atol=1e-11)

        class Turned(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.flip(1)

        turned = Certifier(nn.Sequential(network, Turned()), (3, 2, 2)).pairwise
        assert torch.allclose(turned, plain.flip(0, 1), atol=1e-11)


class ChangesAfterUse(nn.Module):
    """What the last layer computes with is changed at the end of the pass, and as before when the next one starts."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.last, self.conv = kind, nn.Linear(4, 3, bias=False), nn.Conv2d(1, 1, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.last.weight.detach().clone()
        if self.kind == "weight":
            y = F.linear(x.flatten(1), weight)
            weight.mul_(0.01)
        elif self.kind == "index":
            index = torch.tensor([0, 1, 2])
            y = F.linear(x.flatten(1), weight)[:, index]
            index.fill_(1)
        elif self.kind == "variance":
            variance = x.new_full((4,), 0.01)
            y = F.batch_norm(x.flatten(1), torch.zeros_like(variance), variance)
            variance.fill_(100.0)
        elif self.kind == "weight of a layer":
            self.last.weight.data.mul_(4)
            y = self.last(x.flatten(1))
            self.last.weight.data.div_(4)
        else:
            self.conv.stride = (1, 1)
            y = self.conv(x).flatten(1)
            self.conv.stride = (2, 2)
        return y


@pytest.mark.parametrize("kind", ["weight", "index", "variance", "weight of a layer", "stride of a layer"])
def test_rows_are_those_of_the_pass(kind: str) -> None:
    torch.manual_seed(0)
    network = ChangesAfterUse(kind).double()
    units = torch.eye(4, dtype=torch.float64).reshape(4, 1, 2, 2)
    rows = (network(units) - network(torch.zeros_like(units))).detach().T
    pairwise = Certifier(network, (1, 2, 2)).pairwise
    assert bool((pairwise >= torch.cdist(rows, rows) * (1 - 1e-9)).all())


class TestCurve:
    def test_certified_curve(self) -> None:
        x, y = certified_curve(torch.tensor([0.0, 0.5, 0.5, 1.0, math.inf]))
        assert x.tolist() == [0.0, 0.5, 1.0]
        assert y.tolist() == pytest.approx([0.8, 0.4, 0.2])

    def test_agrees_with_the_table(self) -> None:
        radii = torch.rand(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.2
        certificates = Certificates(radii.clamp_min(0), radii > 0)
        x, y = certificates.curve()
        for radius, share in certificates.table().items():
            assert share == pytest.approx(float(y[torch.searchsorted(x, radius, right=True) - 1]))
        assert certificates.mean_radius == pytest.approx(float(radii.clamp_min(0).mean()))
        assert certificates.certified_accuracy(0.0) <= certificates.accuracy


class TestRefused:
    def test_half_precision(self) -> None:
        with pytest.raises(ShapeError, match="float64 or float32"):
            Certifier(linear(torch.eye(3, 12)), (3, 2, 2), dtype=torch.bfloat16)

    def test_outputs_that_are_no_logits(self) -> None:
        with pytest.raises(ShapeError, match=r"\(1, 4, 2, 2\)"):
            Certifier(nn.Conv2d(3, 4, 1), (3, 2, 2))

    def test_pixels_outside_of_the_cube(self) -> None:
        certifier = Certifier(linear(torch.eye(3, 12)), (3, 2, 2))
        with pytest.raises(DataError, match=r"\[0, 1\]"):
            certifier.evaluate([(torch.full((2, 3, 2, 2), 1.5), torch.tensor([0, 0]))])
        with pytest.raises(DataError, match="no image"):
            certifier.evaluate([])


def network_of(frames: str) -> nn.Module:
    torch.manual_seed(3)

    def layer(i: int, o: int, **options: object) -> nn.Module:
        return (
            TTConv2d(i, o, 3, rank=8, padding=1, frames=frames, **options)
            if frames
            else nn.Conv2d(i, o, 3, padding=1, **options)
        )

    return nn.Sequential(
        Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        layer(3, 12, stride=2),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        layer(12, 12),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(12 * 4, 3),
    )


def blobs(count: int) -> tuple[Tensor, Tensor]:
    """Images of three classes that a small network tells apart."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(count) % 3
    centres = torch.rand(3, 3, 8, 8, generator=generator)
    return (centres[labels] + 0.15 * torch.randn(count, 3, 8, 8, generator=generator)).clamp(0, 1), labels


def trained(frames: str, steps: int = 40) -> nn.Module:
    network = network_of(frames)
    images, labels = blobs(96)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        frame_defects = sum(
            (frame.T @ frame - torch.eye(frame.shape[1])).square().sum()
            for module in network.modules()
            if isinstance(module, TTConv2d) and frames == "penalty"
            for frame in (module.frame_in, module.frame_out)
            if frame is not None
        )
        (F.cross_entropy(network(images), labels) + 0.1 * frame_defects).backward()
        optimizer.step()
        if frames == "retract":
            for module in network.modules():
                if isinstance(module, TTConv2d):
                    module.retract_("polar", optimizer)
    return network.eval()


def attack(
    certifier: Certifier, images: Tensor, labels: Tensor, radii: Tensor, restarts: int = 3, steps: int = 25
) -> Tensor:
    """Which images were flipped by l2 gradient ascent that stays within each image's own radius (not within [0, 1])."""
    generator = torch.Generator().manual_seed(7)
    images, size = images.double(), radii.double()[:, None, None, None]
    flipped = torch.zeros(len(images), dtype=torch.bool)
    network = certifier.network
    for _ in range(restarts):
        delta = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        delta = delta / delta.flatten(1).norm(dim=1)[:, None, None, None] * size
        for _ in range(steps):
            delta.requires_grad_(True)
            logits = network(images + delta)
            others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
            (grad,) = torch.autograd.grad((others - logits.gather(1, labels[:, None])[:, 0]).sum(), delta)
            with torch.no_grad():
                delta = delta + 0.3 * size * grad / grad.flatten(1).norm(dim=1)[:, None, None, None].clamp_min(1e-30)
                norm = delta.flatten(1).norm(dim=1)[:, None, None, None].clamp_min(1e-30)
                delta = delta * (size / norm).clamp_max(1.0)
            flipped |= certifier.logits(images + delta).argmax(1) != labels
    return flipped


@pytest.mark.parametrize("frames", ["", "penalty", "retract", "parametrize"])
def test_no_attack_succeeds_inside_a_certified_radius(frames: str) -> None:
    network = trained(frames)
    certifier = Certifier(network, (3, 8, 8))
    images, labels = blobs(60)
    certificates = certifier.evaluate([(images[:40], labels[:40]), (images[40:], labels[40:])])
    assert certificates.accuracy > 0.9
    certified = certificates.radii > 0
    assert certified.float().mean() > 0.9
    assert not bool(attack(certifier, images[certified], labels[certified], certificates.radii[certified]).any())
    # The attack is no straw man: given many times the radius it succeeds.
    far = attack(certifier, images[certified], labels[certified], 100 * certificates.radii[certified])
    assert far.float().mean() > 0.5


def test_evaluation_is_not_touched_by_autocast() -> None:
    network = trained("", steps=2)
    certifier = Certifier(network, (3, 8, 8))
    images, _ = blobs(10)
    plain = certifier.logits(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(certifier.logits(images), plain)
        assert torch.equal(Certifier(network, (3, 8, 8)).pairwise, certifier.pairwise)
    assert plain.dtype == torch.float64


def test_a_network_trained_in_bfloat16_is_certified_as_it_is() -> None:
    network = trained("", steps=2).bfloat16()
    certifier = Certifier(network, (3, 8, 8))
    assert torch.equal(certifier.network[1].weight, network[1].weight.double())
    assert network[1].weight.dtype == torch.bfloat16


def test_float32_precision_settings_are_given_back() -> None:
    network = trained("", steps=2)
    torch.set_float32_matmul_precision("medium")
    try:
        Certifier(network, (3, 8, 8), dtype=torch.float32).logits(blobs(3)[0])
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_float64_images_are_not_rounded_silently() -> None:
    certifier = Certifier(trained("", steps=1), (3, 8, 8), dtype=torch.float32)
    with pytest.raises(ShapeError, match="float64 images"):
        certifier.logits(blobs(3)[0].double())
