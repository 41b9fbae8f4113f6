"""AutoAttack on test images: its state kept after every batch, its adversarial images brought closer."""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from svdctl.data.streamed_images import rows_of
from svdctl.evaluate.attack.adversary import MostWork, most_work
from svdctl.evaluate.attack.attack_batches import FinishedBatch, attack_batches, begin
from svdctl.evaluate.attack.attack_progress import KEY, Assignment, AttackProgress
from svdctl.evaluate.attack.attack_state import MISCLASSIFIED, STANDS, AttackState, summary
from svdctl.evaluate.attack.attacked_network import AttackedNetwork
from svdctl.evaluate.attack_settings import AttackSettings
from svdctl.evaluate.inference import Classifier
from svdctl.evaluate.metric import MeasurementContext
from svdctl.utils.measurement_cache import MeasurementCache

HALVINGS = 12
"""Steps of bisection towards the clean image: the distance is known to 1/4096 of itself."""
LOOKS = 5
"""Forward passes over an image apart from attacks and bisection, at most: clean, those that look for signs of cheating,
and the one that shows an adversarial image again; what an attack found is looked at once more each."""
SHOWN_EVERY = 0.5
"""Seconds between two reports of how far an attack is."""


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
    work_of, passes, shown = most_work(settings, state.attacks, state.classes), 0, -math.inf  # passes: of this batch

    def show() -> None:
        nonlocal shown
        shown = time.monotonic()
        number, total = min(state.attack, len(state.attacks) - 1), len(state.attacks)
        attack = f"{state.attacks[number]} ({number + 1} of {total})"
        done = int(100 * share_done(state, settings.batch_size, work_of, passes))
        # What is left after the last pass, as the check of what was found, may take a while too.
        done = done if state.finished else min(done, 99)
        context.progress(done, 100, f"{attack}, {outcome_so_far(state, settings)}, pass {passes:,} of the batch")

    def count() -> None:
        nonlocal passes
        passes += 1
        if time.monotonic() - shown >= SHOWN_EVERY:
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


def share_done(state: AttackState, batch_size: int, work: Sequence[MostWork], passes: int) -> float:
    """Return how much of an attack is done, in [0, 1]: by passes of single images, as if all that stand held out.

    Args:
        state: what is broken so far.
        batch_size: images attacked together.
        work: of each attack (`most_work`).
        passes: those made of the batch at work.
    """
    cost = [each.passes * each.cost for each in work]
    entered = [len(_entered(state, at)) for at in range(len(cost))]
    whole = sum(each * images for each, images in zip(cost, entered, strict=True))
    if state.attack >= len(cost) or whole == 0:
        return 1.0
    finished = min(state.batches_done * batch_size, entered[state.attack])
    at_work = min(batch_size, entered[state.attack] - finished) * min(passes / work[state.attack].passes, 1.0)
    before = sum(each * images for each, images in list(zip(cost, entered, strict=True))[: state.attack])
    return (before + cost[state.attack] * (finished + at_work)) / whole


def outcome_so_far(state: AttackState, settings: AttackSettings) -> str:
    """Return how many images are robust so far, which an attack has been tried on, and how many none was tried on."""
    standing = int((state.broken_by == STANDS).sum())
    untried = len(_entered(state, 0)[state.batches_done * settings.batch_size :]) if state.attack == 0 else 0
    parts = [f"{standing - untried} robust so far"] if standing > untried or not untried else []
    parts += [f"{untried} still to be attacked"] if untried else []
    return f"of {len(state)} images {', '.join(parts)}"


def _entered(state: AttackState, attack: int) -> Tensor:
    """Return the places of the images that an attack is given, in order: all that it or a later one broke, or none."""
    return ((state.broken_by == STANDS) | (state.broken_by >= attack)).nonzero()[:, 0]


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
