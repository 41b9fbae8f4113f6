"""Small networks and images for tests of attacks."""

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from svdctl.evaluate.attack.attack_batches import attack_batches, begin
from svdctl.evaluate.attack.attack_state import AttackState
from svdctl.evaluate.attack_settings import AttackSettings
from svdctl.layers.normalize import Normalize


class Net(nn.Module):
    """Normalisation, one convolution with BatchNorm, one linear layer."""

    def __init__(self, classes: int, size: int = 8, width: int = 4) -> None:
        super().__init__()
        self.normalize = Normalize((0.5, 0.4, 0.6), (0.25, 0.2, 0.3))
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.head = nn.Linear(width * size * size, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.bn(self.conv(self.normalize(pixels))).relu().flatten(1))


def victim(classes: int = 10, count: int = 8, wrong: int = 1, size: int = 8, seed: int = 0) -> tuple:
    """A network, images as bytes, the same as pixels, and labels of which `wrong` are not its answers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Net(classes, size)
        model(torch.rand(32, 3, size, size))  # moves the statistics of BatchNorm
        images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    model.eval()
    pixels = images.float() / 255
    labels = model(pixels).argmax(1)
    labels[1 : 1 + wrong] = (labels[1 : 1 + wrong] + 1) % classes
    model.train()
    return model, images, pixels, labels


def run(model: nn.Module, images: Tensor, labels: Tensor, settings: AttackSettings, **given) -> tuple:
    """The finished state, and the inputs with every broken image replaced."""
    state = begin(model, images, labels, settings, **given)
    return state, carry_on(model, images, labels, settings, state, **given)


def carry_on(
    model: nn.Module, images: Tensor, labels: Tensor, settings: AttackSettings, state: AttackState, **given
) -> Tensor:
    adversarial = images.float() / 255 if images.dtype == torch.uint8 else images.clone()
    for batch in attack_batches(model, images, labels, settings, state, **given):
        adversarial[batch.index[batch.broken]] = batch.adversarial.to(adversarial)
    return adversarial


def direct(model: nn.Module, pixels: Tensor, labels: Tensor, settings: AttackSettings) -> tuple[Tensor, Tensor]:
    """pyautoattack itself: adversarial images and their predictions."""
    named = isinstance(settings.attacks, str)
    suite = AutoAttack(
        model.eval(),
        attacks=None if named else list(settings.attacks),
        eps=settings.eps,
        norm=settings.norm,
        seed=settings.seed,
        version=settings.attacks if named else "custom",
    )
    classes = model(pixels[:1]).shape[1]
    suite.apgd_targeted.n_target_classes = min(suite.apgd_targeted.n_target_classes, classes - 1)
    suite.fab.n_target_classes = min(suite.fab.n_target_classes, classes - 1)
    return suite.run_standard_evaluation(pixels, labels, batch_size=settings.batch_size)
