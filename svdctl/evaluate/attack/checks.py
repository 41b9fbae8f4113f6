"""Signs, in one batch of images, that a network resists AutoAttack without being robust."""

import torch
import torch.nn.functional as F
from torch import Tensor

from svdctl.errors import first_line
from svdctl.evaluate.attack.attacked_network import AttackedNetwork
from svdctl.evaluate.calibration import are_probabilities

_RANDOM = 1e-4
_SATURATED_SHARE = 0.05
NO_GRADIENT = "non-differentiable"


def suspicions(network: AttackedNetwork, x: Tensor, labels: Tensor, *, averaged: bool = False) -> dict[str, str]:
    """Return what makes an attack on `network` unreliable: names of the field, with a sentence for each.

    Judged on inputs `(B, C, H, W)` with labels `(B,)`.

    Args:
        network: inside its `frozen()`.
        x: inputs on its device.
        labels: on the same device.
        averaged: the attacks average over the network's randomness (version `rand`), which is then no matter.
    """
    found = {}
    with torch.no_grad():
        first, second = network(x), network(x)
    difference = float((F.normalize(first, dim=1) - F.normalize(second, dim=1)).norm(dim=1).max())
    if not averaged and difference > _RANDOM:
        found["random"] = (
            f"two passes over the same images differ (by up to {difference:.1e} of the logits' norm): "
            "the network is random, and `settings.autoattacks.attacks = rand` averages over that"
        )
    if are_probabilities(first):
        found["probabilities"] = (
            "the outputs are probabilities, not logits: their gradients vanish where the network is sure; "
            "attack the layer before the softmax"
        )
    # Zero in float32 means that the label's probability rounds to 1: steps can no longer be told apart by their loss.
    certain = int((F.cross_entropy(first.float(), labels, reduction="none") == 0).sum())
    if certain > _SATURATED_SHARE * len(x):
        found["saturated"] = (
            f"the cross-entropy of {certain} of {len(x)} images is exactly 0 in float32: the logits are so large "
            "that APGD-CE sees no slope; rely on the other attacks"
        )
    try:
        gradient = _margin_gradient(network, x, labels).flatten(1)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # torch's word for an operation without a derivative.
        why = first_line(error, 160)
        found[NO_GRADIENT] = f"the network gives no gradient ({why}): only Square can attack it"
        return found
    if useless := int(((gradient == 0).all(1) | ~gradient.isfinite().all(1)).sum()):
        found["zero-gradient"] = (
            f"the gradient of {useless} of {len(x)} images is exactly zero or not finite: attacks that follow it fail "
            "without any robustness of the network; trust Square alone there"
        )
    return found


def _margin_gradient(network: AttackedNetwork, x: Tensor, labels: Tensor) -> Tensor:
    with torch.enable_grad():
        inputs = x.detach().clone().requires_grad_()
        logits = network(inputs)
        own = logits.gather(1, labels[:, None])[:, 0]
        others = logits.scatter(1, labels[:, None], -torch.inf).max(1).values
        return torch.autograd.grad((own - others).sum(), inputs)[0]
