"""Is an adversarial image what it claims to be? Judged apart from the attack that made it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from svdctl.errors import EvaluationError
from svdctl.evaluate.attack_settings import Norm

_RELATIVE = 1e-5
_ROUNDING = 2.0**-23
_RANGE = 1e-5
"""By how much a pixel may leave [0, 1], 1/400 of a grey level: the L1 attacks project in float32 and do not clamp."""

TIE = 1e-2
"""Share of a row's range of logits that kernels may err by at another batch size, TF32 included."""


def distances(x: Tensor, adversarial: Tensor, norm: Norm) -> Tensor:
    """Return norm of each image's perturbation `(B,)`, summed in float64 on the CPU."""
    difference = (adversarial.detach().cpu().double() - x.detach().cpu().double()).flatten(1)
    order = {"L1": 1.0, "L2": 2.0, "Linf": math.inf}[norm]
    return torch.linalg.vector_norm(difference, order, dim=1)


def slack(norm: Norm, eps: float, pixels: int) -> float:
    """Return by how much rounding may carry an image of `pixels` values past eps.

    A float32 value near 1 is stored to 2^-24, and arithmetic on it errs by a few of those; here 2^-23 for each value,
    in the norm in question, and 1e-5 of eps for the norms that attacks compute in float32.
    """
    count = {"L1": float(pixels), "L2": math.sqrt(pixels), "Linf": 1.0}[norm]
    return _RELATIVE * eps + _ROUNDING * count


def verify_perturbation(adversarial: Tensor, distance: Tensor, norm: Norm, eps: float, attack: str) -> None:
    """Raise unless every image `(B, C, H, W)` is within eps of its original (`slack`) and within [0, 1] (1e-5).

    `distance` `(B,)` is that of `distances`.

    Raises:
        EvaluationError: names how many images are at fault and the largest excess.
    """
    if len(adversarial) == 0:
        return
    outside = (adversarial - 1).maximum(-adversarial).flatten(1).max(1).values.cpu().double()
    for excess, allowed, fault in (
        (distance - eps, slack(norm, eps, adversarial[0].numel()), f"lie outside the {norm} ball of {eps:g}"),
        (outside, _RANGE, "leave [0, 1]"),
    ):
        # The negated comparison counts NaN as a fault.
        wrong = ~(excess <= allowed)
        if wrong.any():
            raise EvaluationError(
                f"{attack}: {int(wrong.sum())} of {len(wrong)} adversarial images {fault}, by up to "
                f"{float(excess[wrong].max()):.2e}; this is a bug in the attack, use none of its figures"
            )


def verify_predictions(
    predict: Callable[[Tensor], Tensor], adversarial: Tensor, labels: Tensor, attack: str, tie: float = TIE
) -> None:
    """Raise unless a forward pass over `(B, C, H, W)` gives every image another class than its label `(B,)`.

    The pass has other neighbours than the one that found the images, so that a network that is random, keeps a
    memory or looks at the rest of the batch is found out. Kernels round differently with them: a label that leads by
    no more than `tie` of its row's range of logits is accepted.

    Raises:
        EvaluationError: names how many images are at fault and the largest lead of a label.
    """
    if len(adversarial) == 0:
        return
    logits = predict(adversarial)
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -math.inf).max(1).values
    lead = own - others
    still = lead > tie * (logits.max(1).values - logits.min(1).values)
    if still.any():
        raise EvaluationError(
            f"{attack}: {int(still.sum())} of {len(adversarial)} adversarial images are classified rightly when they "
            f"are shown again, their label leading by up to {float(lead[still].max()):.2e}; the network's answers are "
            "not a function of the image alone, so attack it with `settings.autoattacks.attacks = rand`"
        )
