"""AutoAttack over a set of images, one finished batch after another.

With equal settings the adversarial images are those of `AutoAttack.run_standard_evaluation` with the same seed and
batch size, bit by bit on the CPU, however often the work is cut off and taken up again. Every batch of every attack is
seeded with the settings' seed, as pyautoattack seeds it, so no draw depends on what ran before.

Memory: a batch of images defines random draws, so it is never cut. When memory runs out only the forward passes
inside of it are halved (with recomputation in the backward pass); draws stay the same, and figures too up to the
rounding of kernels at another batch size.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from svdctl.errors import DataError, UsageError
from svdctl.evaluate.attack.adversary import Log, captured, perturb
from svdctl.evaluate.attack.attack_plan import plan
from svdctl.evaluate.attack.attack_state import MISCLASSIFIED, STANDS, AttackState
from svdctl.evaluate.attack.attacked_network import AttackedNetwork
from svdctl.evaluate.attack.checks import NO_GRADIENT, suspicions
from svdctl.evaluate.attack.verify import TIE, distances, verify_perturbation, verify_predictions
from svdctl.evaluate.attack_settings import AttackSettings
from svdctl.evaluate.auto_batch_size import AutoBatchSize, batch_size_for
from svdctl.evaluate.calibration import checked

Result = TypeVar("Result")


@dataclass(frozen=True)
class FinishedBatch:
    """One batch of one attack, already entered into the state and verified."""

    index: Tensor
    """Positions `(B,)` of the attacked images."""
    broken: Tensor
    """Which of them were broken `(B,)`, bool, on the CPU."""
    adversarial: Tensor
    """The broken ones, changed `(broken, C, H, W)`, on the network's device; normalised under `paper`."""
    distances: Tensor
    """Norms of their perturbations `(broken,)`, float64."""


def check_images(images: Tensor, labels: Tensor) -> None:
    """Raise `DataError` unless these are bytes or pixels in [0, 1], `(N, C, H, W)`, with one label `(N,)` each."""
    if images.ndim != 4 or len(images) != len(labels) or len(images) == 0:
        raise DataError(
            f"images {tuple(images.shape)} and labels {tuple(labels.shape)} cannot be attacked; "
            "give (N, C, H, W) and (N,) with N > 0"
        )
    if images.dtype == torch.uint8:
        return
    low, high = float(images.min()), float(images.max())
    if not images.is_floating_point() or not 0 <= low <= high <= 1:
        raise DataError(
            f"images run from {low:g} to {high:g} as {images.dtype}; give bytes or pixels in [0, 1], "
            "and normalise inside of the network"
        )


def begin(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: AttackSettings,
    *,
    fingerprint: str = "",
    log: Log | None = None,
) -> AttackState:
    """Classify the clean images, look for signs of cheating, and decide which attacks run.

    Args:
        model: pixels in [0, 1] to logits.
        images: `(N, C, H, W)`, uint8 or pixels in [0, 1], on any device.
        labels: `(N,)`.
        settings: `examples` has been applied by the caller (`svdctl.evaluate.inference.subset`).
        fingerprint: what the state is bound to.
        log: takes sentences for the user.

    Raises:
        DataError: images or labels that cannot be attacked.
        UsageError: a protocol or list of attacks that does not fit the network.
        EvaluationError: logits that are not finite, or no memory.
    """
    check_images(images, labels)
    network = AttackedNetwork(model, settings.protocol, images.device)
    most = min(settings.batch_size, len(images))
    # A GPU says when its memory runs out; a CPU's is shared with all else.
    halving = AutoBatchSize(most if network.device.type == "cuda" else batch_size_for(images.shape[1:], most), log)
    logits = []
    with network.frozen(), torch.no_grad():
        torch.manual_seed(settings.seed)
        for pixels in images.split(settings.batch_size):
            x = network.inputs(pixels)
            logits.append(_halved(network, halving, partial(network, x)).cpu())
        if settings.protocol == "paper":
            _check_split(model, network, images[:1])
        x, own = network.inputs(images[: settings.batch_size]), labels[: settings.batch_size].to(network.device)
        all_logits, labels = checked(torch.cat(logits), labels)
        look = partial(suspicions, network, x, own, averaged=settings.attacks == "rand")
        signs = _halved(network, halving, look)
    classes, shape = all_logits.shape[1], tuple(images.shape[1:])
    attacks, left_out = plan(settings, classes, shape, differentiable=NO_GRADIENT not in signs)
    predictions = all_logits.max(1).indices
    right = predictions == labels
    return AttackState(
        fingerprint=fingerprint,
        classes=classes,
        attacks=attacks,
        left_out=left_out,
        warnings=tuple(signs.values()),
        clean_predictions=predictions,
        predictions=predictions.clone(),
        broken_by=torch.where(right, STANDS, MISCLASSIFIED).to(torch.int8),
        distances=torch.where(right, math.inf, 0.0).double(),
        at_once=halving.size,
    )


def attack_batches(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: AttackSettings,
    state: AttackState,
    *,
    log: Log | None = None,
    capture: bool = True,
    on_pass: Callable[[], None] | None = None,
) -> Iterator[FinishedBatch]:
    """Attack what still stands, yielding after every batch; `state` then is whole and can be saved.

    Arguments and errors are those of `begin`, on whose state this goes on, and further:

    Args:
        capture: whether passes on a CUDA device may be recorded as CUDA graphs and replayed.
        on_pass: called at each pass of an attack.

    Raises:
        UsageError: the state is of other images.
        EvaluationError: an adversarial image does not hold what it claims.
    """
    check_images(images, labels)
    if len(state) != len(images):
        raise UsageError(f"the state is of {len(state)} images, and there are {len(images)}; begin anew")
    # The version `rand` is for networks that are random.
    capture = capture and settings.attacks != "rand"
    network = AttackedNetwork(model, settings.protocol, images.device, capture=capture)
    network.on_pass = on_pass
    halving = AutoBatchSize(state.at_once, log)
    while not state.finished:
        # In this attack's batches are the images that it has broken, too.
        entered = ((state.broken_by == STANDS) | (state.broken_by == state.attack)).nonzero()[:, 0]
        index = entered[state.batches_done * settings.batch_size :][: settings.batch_size]
        if not len(index):
            state.attack, state.batches_done = state.attack + 1, 0
            continue
        with captured(log), network.frozen(), torch.no_grad():
            x = network.inputs(images[index.to(images.device)])
            own = labels[index.to(labels.device)].to(network.device)
            broken, adversarial, predictions, found = _halved(
                network, halving, partial(_attack, network, x, own, settings, state)
            )
        broken = broken.cpu()
        hit = index[broken]
        state.broken_by[hit] = state.attack
        state.predictions[hit] = predictions.cpu()
        state.distances[hit] = found
        state.at_once = halving.size
        state.batches_done += 1
        yield FinishedBatch(index, broken, adversarial, found)


def _attack(
    network: AttackedNetwork, x: Tensor, labels: Tensor, settings: AttackSettings, state: AttackState
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return which of x broke, and of those the adversarial inputs, their predictions and distances; all verified."""
    attack = state.attacks[state.attack]
    candidates = perturb(network, x, labels, settings, state)
    # No claim of the attack is taken over: this pass alone says which images are broken.
    predictions = network.eagerly(candidates).max(1).indices
    broken = predictions != labels
    adversarial = candidates[broken].detach()
    found = distances(x[broken], adversarial, settings.norm)
    if settings.protocol == "pixels":
        # Under `paper` clean images lie outside of [0, 1], and the attacks' clamp carries them farther than eps.
        verify_perturbation(adversarial, found, settings.norm, settings.eps, attack)
    if settings.attacks != "rand":
        verify_predictions(network.eagerly, adversarial, labels[broken], attack, max(TIE, 8 * network.unit_roundoff))
    return broken, adversarial, predictions[broken], found


def _halved(network: AttackedNetwork, halving: AutoBatchSize, work: Callable[[], Result]) -> Result:
    def attempt(size: int) -> Result:
        network.at_once = size
        return work()

    return halving.run(attempt)


def _check_split(model: nn.Module, network: AttackedNetwork, images: Tensor) -> None:
    whole = AttackedNetwork(model, "pixels", images.device)
    expected, got = whole(whole.inputs(images)), network(network.inputs(images))
    if not torch.allclose(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise UsageError(
            "`settings.autoattacks.protocol = paper`: the network's normalize is not its first module; leave it out "
            "for this one"
        )
