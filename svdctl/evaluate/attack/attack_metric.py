"""AutoAttack on test images: its state kept after every batch, its adversarial images brought closer."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from svdctl.config.attack_settings import AttackSettings
from svdctl.evaluate.attack import FinishedBatch, attack_batches, begin, summary
from svdctl.evaluate.attack.attack_progress import Assignment, AttackProgress, ProgressFile
from svdctl.evaluate.attack.attack_state import MISCLASSIFIED, STANDS
from svdctl.evaluate.attack.attacked_network import AttackedNetwork
from svdctl.evaluate.inference import Classifier
from svdctl.evaluate.metric import MeasurementContext

HALVINGS = 12
"""Steps of bisection towards the clean image: the distance is known to 1/4096 of itself."""


def run(context: MeasurementContext, work: Assignment, file: ProgressFile) -> AttackProgress:
    """Attack, going on from what `file` holds; it is kept there after every batch.

    Raises:
        EvaluationError: a figure that cannot be right.
        DataError, UsageError: images or a network that cannot be attacked.
    """
    classifier, say, tell = context.classifier, context.notice, context.progress
    images, labels = context.data.test.images[work.index], work.labels
    progress = file.progress
    if progress is None:
        state = begin(classifier.model, images, labels, work.settings, fingerprint=work.bound_to, log=say)
        progress = AttackProgress(state=state, nearest=state.distances.clone())
        file.write(progress)
    elif not progress.state.finished:
        number, done = min(progress.state.attack, len(progress.state.attacks) - 1), progress.state.batches_done
        say(f"going on after batch {done} of {progress.state.attacks[number]}")
    for warning in progress.state.warnings:
        say(warning)
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1
        if passes % 20 == 0:
            _tell(progress, tell, passes)

    hook = classifier.model.register_forward_hook(count)
    try:
        for batch in attack_batches(classifier.model, images, labels, work.settings, progress.state, log=say):
            progress.nearest[batch.index[batch.broken]] = _closer(classifier, images, labels, batch, work.settings)
            file.write(progress)
            _tell(progress, tell, passes)
    finally:
        hook.remove()
    # The state of the last batch does not know yet that nothing comes after it.
    file.write(progress)
    return progress


def _tell(progress: AttackProgress, tell: Callable[[int, int, str], None], passes: int) -> None:
    state = progress.state
    stand = int((state.broken_by == STANDS).sum())
    name = state.attacks[min(state.attack, len(state.attacks) - 1)]
    tell(min(state.attack, len(state.attacks)), len(state.attacks), f"{name}, {stand} stand, {passes:,} passes")


@torch.no_grad()
def _closer(
    classifier: Classifier, images: Tensor, labels: Tensor, batch: FinishedBatch, settings: AttackSettings
) -> Tensor:
    """Return how near to the clean images the predictions already change, for the broken ones of a batch: `(broken,)`.

    The line between both is halved; the upper end was always seen to be misclassified, so it is a perturbation that
    exists, though not the smallest one.
    """
    if len(batch.adversarial) == 0:
        return batch.distances
    network = AttackedNetwork(classifier.model, settings.protocol, classifier.device)
    hit = batch.index[batch.broken]
    own = labels[hit].to(network.device)
    network.at_once = classifier.halving.size
    low = torch.zeros(len(hit), device=network.device)
    high = torch.ones_like(low)
    with network.frozen():
        clean = network.inputs(images[hit])
        away = batch.adversarial.to(clean) - clean
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            wrong = network(clean + middle[:, None, None, None] * away).argmax(1) != own
            high, low = torch.where(wrong, middle, high), torch.where(wrong, low, middle)
    return high.double().cpu() * batch.distances


def results(progress: AttackProgress, settings: AttackSettings) -> dict[str, Any]:
    """Return figures of a finished attack, the curve of the nearest perturbations included."""
    near = progress.nearest[progress.nearest.isfinite()].sort().values
    return {**summary(progress.state, settings), "nearest": [round(value, 6) for value in near.tolist()]}


def rows(progress: AttackProgress, work: Assignment, labels: Tensor) -> list[dict[str, Any]]:
    """Return one row for each attacked image."""
    state = progress.state
    table = []
    for place, image in enumerate(work.index.tolist()):
        by = int(state.broken_by[place])
        outcome = "robust" if by == STANDS else "misclassified" if by == MISCLASSIFIED else "broken"
        table.append(
            {
                "image": image,
                "label": int(labels[image]),
                "clean_prediction": int(state.clean_predictions[place]),
                "outcome": outcome,
                "attack": state.attacks[by] if by >= 0 else "",
                "prediction": int(state.predictions[place]),
                "distance": _number(float(state.distances[place])),
                "nearest": _number(float(progress.nearest[place])),
            }
        )
    return table


def _number(value: float) -> str:
    return "" if math.isinf(value) else f"{value:.6f}"
