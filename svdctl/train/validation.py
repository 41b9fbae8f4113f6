"""Loss, accuracy and certified radii of a network on a data set, each process taking its share."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import nn

from svdctl.certificates import Certificates, Certifier, LipschitzBound
from svdctl.data.batches import evaluation_batches
from svdctl.data.images import ImageData
from svdctl.distributed.group import Group
from svdctl.utils.progress import Advance, no_advance


@dataclass(frozen=True)
class Accuracy:
    """What a network makes of a data set."""

    loss: float
    """Mean cross-entropy."""
    accuracy: float
    """Share of right answers."""
    certificates: Certificates | None = None
    """Of every image in its order, when they were asked for."""
    bound: LipschitzBound | None = None
    """The network's constant behind them."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: ImageData,
    fabric: Fabric,
    *,
    batch_size: int,
    memory_format: torch.memory_format,
    certifier: Certifier | None = None,
    advance: Advance = no_advance,
) -> Accuracy:
    """Run the network in evaluation mode, in the run's precision; its mode is left as it was.

    Args:
        model: pixels to logits, on the processes' devices.
        data: the whole data set, on the device, in every process.
        fabric: the processes.
        batch_size: images of one pass over all processes together.
        memory_format: layout of the images.
        certifier: of the network; answers with certificates, in float64 whatever the run's precision: a proof is about
            one arithmetic.
        advance: is told how many images of all are done.
    """
    training = model.training
    model.eval()
    group = Group.of(fabric)
    rank, world = group.rank, group.world
    mine = data if world == 1 else data.select(torch.arange(len(data), device=data.labels.device)[rank::world])
    totals = torch.zeros(2, dtype=torch.float64, device=fabric.device)
    radii = torch.zeros(len(data), dtype=torch.float64, device=fabric.device)
    correct = torch.zeros_like(radii)
    place = rank
    for images, labels in evaluation_batches(mine, max(1, batch_size // world)):
        batch = images.contiguous(memory_format=memory_format)
        here = slice(place, place + world * len(labels), world)
        place += world * len(labels)
        if certifier is not None:
            logits = certifier.logits(batch)
            radii[here] = certifier.radii(logits, labels)
        else:
            with fabric.autocast():
                logits = model(batch).float()
        correct[here] = (logits.argmax(1) == labels).double()
        loss = F.cross_entropy(logits, labels, reduction="sum").double()
        totals += torch.stack([loss, torch.full_like(loss, len(labels))])
        advance(min(place, len(data)), len(data), "images")
    model.train(training)
    loss_sum, count = group.summed_(totals).tolist()
    # Each process has filled its own places of the vectors: their sums are the whole.
    right = group.summed_(correct).cpu() > 0
    accuracy = float(right.double().mean())
    if certifier is None:
        return Accuracy(loss_sum / count, accuracy)
    proved = Certificates(group.summed_(radii).cpu(), right)
    return Accuracy(loss_sum / count, accuracy, proved, certifier.bound)
