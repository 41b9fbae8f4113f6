"""One attack of pyautoattack on one batch, seeded by its caller and free of history.

The attacks are called one by one, as `AutoAttack.run_standard_evaluation` does it, and give the same images bit by
bit. That method itself is not used: it blinds coverage (`sys.settrace(None)`), repeats its checks at each call, and
resumes by the list of attacks alone.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    attack, classes = state.attacks[state.attack], state.classes
    # Built anew for every batch: its objects keep what the last attack changed in them.
    listed = None if isinstance(settings.attacks, str) else list(settings.attacks)
    suite = AutoAttack(
        predict,
        attacks=listed,
        device=x.device,
        eps=settings.eps,
        norm=settings.norm,
        seed=settings.seed,
        version=settings.attacks if listed is None else "custom",
    )
    suite.apgd_targeted.n_target_classes = min(suite.apgd_targeted.n_target_classes, classes - 1)
    suite.fab.n_target_classes = min(suite.fab.n_target_classes, classes - 1)
    if "fab-t" in state.attacks[: state.attack + 1]:
        suite.fab.n_restarts = 1
    if attack in ("fab", "fab-t"):
        suite.fab.targeted = attack == "fab-t"
        return suite.fab.perturb(x, labels)
    if attack == "apgd-t":
        return suite.apgd_targeted.perturb(x, labels)
    if attack == "square":
        return suite.square.perturb(x, labels)
    suite.apgd.loss = attack.removeprefix("apgd-")
    return suite.apgd.perturb(x, labels)


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
