"""AutoAttack on test images: its state kept after every batch, its adversarial images brought closer."""

import math
from typing import Any

import torch
from torch import Tensor

from svdctl.data.streamed_images import rows_of
from svdctl.evaluate.attack.attack_batches import FinishedBatch, attack_batches, begin
from svdctl.evaluate.attack.attack_progress import KEY, Assignment, AttackProgress
from svdctl.evaluate.attack.attack_state import MISCLASSIFIED, STANDS, AttackState, summary
from svdctl.evaluate.attack.attacked_network import AttackedNetwork
from svdctl.evaluate.attack_settings import AttackSettings
from svdctl.evaluate.inference import Classifier
from svdctl.evaluate.metric import MeasurementContext
from svdctl.evaluate.metrics.autoattacks import QUERIES, STEPS
from svdctl.utils.measurement_cache import MeasurementCache

HALVINGS = 12
"""Steps of bisection towards the clean image: the distance is known to 1/4096 of itself."""


def run(context: MeasurementContext, work: Assignment, kept: MeasurementCache[AttackProgress]) -> AttackProgress:
    """Attack, going on from what `kept` holds (`kept_progress`); it is kept there after every batch.

    Raises:
        EvaluationError: a figure that cannot be right.
        DataError, UsageError: images or a network that cannot be attacked.
    """
    classifier, say, settings = context.classifier, context.notice, work.settings
    images, labels = rows_of(context.data.test.images, work.index), work.labels
    if KEY not in kept.kept:
        state = begin(classifier.model, images, labels, settings, fingerprint=work.bound_to, log=say)
        kept.put(AttackProgress(state=state, nearest=state.distances.clone()))
    elif not kept.kept[KEY].record.state.finished:
        state = kept.kept[KEY].record.state
        number = min(state.attack, len(state.attacks) - 1)
        say(f"going on after batch {state.batches_done} of {state.attacks[number]}")
    progress = kept.kept[KEY].record
    state = progress.state
    for warning in state.warnings:
        say(warning)
    passes = 0  # of this batch

    def show() -> None:
        number, total = min(state.attack, len(state.attacks) - 1), len(state.attacks)
        stand = int((state.broken_by == STANDS).sum())
        attack = f"{state.attacks[number]} ({number + 1} of {total})"
        done = share_done(state, settings.batch_size, passes)
        context.progress(int(100 * done), 100, f"% {attack}, {stand} of {len(state)} robust")

    def count() -> None:
        nonlocal passes
        passes += 1
        if passes % 20 == 0:
            show()

    show()
    capture = context.config.capture == "auto"
    for batch in attack_batches(
        classifier.model, images, labels, settings, state, log=say, capture=capture, on_pass=count
    ):
        progress.nearest[batch.index[batch.broken]] = _closer(classifier, images, labels, batch, settings)
        kept.put(progress)
        passes = 0
        show()
    # The state of the last batch does not yet say that nothing comes after it.
    kept.put(progress)
    return progress


def share_done(state: AttackState, batch_size: int, passes: int) -> float:
    """Return how much of an attack is done, in [0, 1]: by passes of single images, as if all that stand held out.

    Args:
        state: what is broken so far.
        batch_size: images attacked together.
        passes: those made of the batch at work.
    """
    needed = [QUERIES if name == "square" else STEPS.get(name, STEPS["apgd-ce"]) for name in state.attacks]
    # A step goes forward and backward, a query forward alone.
    cost = [(1 if name == "square" else 3) * count for name, count in zip(state.attacks, needed, strict=True)]
    entered = [int(((state.broken_by == STANDS) | (state.broken_by >= at)).sum()) for at in range(len(cost))]
    whole = sum(each * images for each, images in zip(cost, entered, strict=True))
    if state.attack >= len(cost) or whole == 0:
        return 1.0
    finished = min(state.batches_done * batch_size, entered[state.attack])
    at_work = min(batch_size, entered[state.attack] - finished) * min(passes / needed[state.attack], 1.0)
    before = sum(each * images for each, images in list(zip(cost, entered, strict=True))[: state.attack])
    return (before + cost[state.attack] * (finished + at_work)) / whole


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
        found = {"distance": float(state.distances[place]), "nearest": float(progress.nearest[place])}
        table.append(
            {
                "image": image,
                "label": int(labels[image]),
                "clean_prediction": int(state.clean_predictions[place]),
                "outcome": {STANDS: "robust", MISCLASSIFIED: "misclassified"}.get(by, "broken"),
                "attack": state.attacks[by] if by >= 0 else "",
                "prediction": int(state.predictions[place]),
                **{name: "" if math.isinf(value) else f"{value:.6f}" for name, value in found.items()},
            }
        )
    return table
