"""One attack of pyautoattack on one batch, seeded by its caller and free of history, and how much work it is.

The attacks are called one by one, as `AutoAttack.run_standard_evaluation` does it, and give the same images bit by
bit. That method itself is not used: it blinds coverage (`sys.settrace(None)`), repeats its checks at each call, and
resumes by the list of attacks alone.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from pyautoattack import AutoAttack
from torch import Tensor

from svdctl.evaluate.attack.attack_state import AttackState
from svdctl.evaluate.attack_settings import AttackSettings

Predict = Callable[[Tensor], Tensor]
Log = Callable[[str], None]


def perturb(predict: Predict, x: Tensor, labels: Tensor, settings: AttackSettings, state: AttackState) -> Tensor:
    """Return candidates `(B, C, H, W)` of the running attack for inputs x of the same shape; where it fails, any point.

    Args:
        predict: inputs to logits.
        x: float32, on the network's device.
        labels: `(B,)`.
        settings: norm, eps, seed and the version, whose numbers of restarts and steps are pyautoattack's.
        state: which attack runs and which came before, for `fab-t` changes a `fab` that comes later; and the width of
            the logits: targeted attacks aim at all other classes at most.
    """
    attack = state.attacks[state.attack]
    suite = _suite(predict, x.device, settings, state.attacks[: state.attack + 1], state.classes)
    if attack in ("fab", "fab-t"):
        suite.fab.targeted = attack == "fab-t"
        return suite.fab.perturb(x, labels)
    if attack == "apgd-t":
        return suite.apgd_targeted.perturb(x, labels)
    if attack == "square":
        return suite.square.perturb(x, labels)
    suite.apgd.loss = attack.removeprefix("apgd-")
    return suite.apgd.perturb(x, labels)


def _suite(
    predict: Predict, device: torch.device, settings: AttackSettings, attacks: Sequence[str], classes: int
) -> AutoAttack:
    """Return pyautoattack's attacks as the last of `attacks` runs, anew: they keep what the last one changed."""
    listed = None if isinstance(settings.attacks, str) else list(settings.attacks)
    suite = AutoAttack(
        predict,
        attacks=listed,
        device=device,
        eps=settings.eps,
        norm=settings.norm,
        seed=settings.seed,
        version=settings.attacks if listed is None else "custom",
    )
    suite.apgd_targeted.n_target_classes = min(suite.apgd_targeted.n_target_classes, classes - 1)
    suite.fab.n_target_classes = min(suite.fab.n_target_classes, classes - 1)
    if "fab-t" in attacks:
        suite.fab.n_restarts = 1
    return suite


@dataclass(frozen=True)
class MostWork:
    """What an attack does with a batch in which an image holds out to the end; where none does, it ends earlier."""

    passes: int
    """Forward."""
    backward: int
    """How often it goes backward besides."""

    @property
    def cost(self) -> float:
        """Return the cost of one pass, in forward passes: backward through the network takes twice as long."""
        return 1 + 2 * self.backward / self.passes


def most_work(settings: AttackSettings, attacks: Sequence[str], classes: int) -> list[MostWork]:
    """Return the work of each of the attacks, from pyautoattack's own numbers of restarts, targets and steps.

    Args:
        settings: norm and version; a list of attacks has more restarts than the same ones in a version.
        attacks: those that run, in order.
        classes: of the network.
    """
    found = []
    for number, attack in enumerate(attacks):
        suite = _suite(lambda x: x, torch.device("cpu"), settings, attacks[: number + 1], classes)
        if attack == "fab-t":
            # A step has a pass for the gradient and one for the label; besides, each run has three passes.
            runs = suite.fab.n_target_classes * suite.fab.n_restarts
            found.append(MostWork(1 + runs * (2 * suite.fab.n_iter + 3), runs * suite.fab.n_iter))
        elif attack == "fab":
            # It goes backward from every logit.
            passes = 1 + suite.fab.n_restarts * (2 * suite.fab.n_iter + 2)
            found.append(MostWork(passes, suite.fab.n_restarts * suite.fab.n_iter * classes))
        elif attack == "square":
            found.append(MostWork(1 + suite.square.n_restarts * (suite.square.n_queries + 2), 0))
        else:
            apgd = suite.apgd_targeted if attack == "apgd-t" else suite.apgd
            runs = apgd.n_restarts * (apgd.n_target_classes if attack == "apgd-t" else 1)
            # In L1 a run may have three parts; each begins with a pass of its own. A target takes one more.
            begins = 3 if apgd.use_largereps else 1
            steps = (apgd.n_iter + begins) * apgd.eot_iter
            found.append(MostWork(1 + runs * (steps + (attack == "apgd-t")), runs * steps))
    return found


@contextmanager
def captured(log: Log | None) -> Iterator[None]:
    """Send what pyautoattack logs to `log`, and nowhere else."""
    logger = logging.getLogger("auto-attack")

    def take(record: logging.LogRecord) -> bool:
        if log is not None and record.levelno >= logging.WARNING:
            log(record.getMessage())
        return False

    logger.addFilter(take)
    try:
        yield
    finally:
        logger.removeFilter(take)
