"""The maxima of the run that wrote a checkpoint, layer by layer: questions for a proof, and no proof themselves."""

import math
from dataclasses import dataclass, field

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from svdctl.checkpoint.checkpoint_file import Checkpoint
from svdctl.control.layer_choice import maxima_of
from svdctl.layers.layer_operator import BatchNorm
from svdctl.layers.layer_ops import find_ops, is_controllable
from svdctl.layers.norms import stated_maximum
from svdctl.registry import CONTROLS


@dataclass(frozen=True)
class RunMaxima:
    """What a run allowed when it wrote a checkpoint."""

    of_layers: dict[str, float] = field(default_factory=dict)
    """Largest singular value of each layer under control, largest gain of each limited BatchNorm, by name."""
    note: str = ""
    """What is to be known of them besides."""


def run_maxima(checkpoint: Checkpoint, network: nn.Module) -> RunMaxima:
    """Return the maxima of the run that wrote a checkpoint.

    Args:
        checkpoint: what was read; nothing of it is trusted to hold.
        network: its network (`network_of`).
    """
    config, found, notes = checkpoint.config, dict[str, float](), []
    control = config.control
    if control.kind != "none":
        known = {name: (ops, layer) for name, layer in network.named_modules() if (ops := find_ops(layer))}
        known = {name: pair for name, pair in known.items() if is_controllable(pair[1])}
        # While a schedule moves it, a checkpoint says where it was.
        moved = checkpoint.metrics.get("max_sigma", control.max_sigma)
        moved = moved if 0 < moved < math.inf else control.max_sigma
        # Rounded up: what the run multiplied itself may be the next number.
        scale = moved / control.max_sigma * (1 + 2.0**-50)
        for name, maximum in maxima_of(known, "*", control.max_sigma, control.linear_max).items():
            keeps_itself = is_parametrized(known[name][1], "weight") and stated_maximum(known[name][1]) is not None
            if keeps_itself or moved == control.max_sigma:
                found[name] = maximum
            else:
                found[name] = moved if maximum == control.max_sigma else maximum * scale
        if moved != control.max_sigma:
            notes.append(f"the maximum was on its way to {control.max_sigma:g}, at {moved:.6g}, when this was written")
        if not CONTROLS.get(control.kind).seals(control):
            notes.append("the run proves nothing of its maxima: `control.procedure` is paper")
    if config.batchnorm is not None:
        norms = (name for name, layer in network.named_modules() if isinstance(layer, BatchNorm))
        found |= dict.fromkeys(norms, config.batchnorm.max_gain)
    # A configuration may hold any numbers; beyond all floats there is nothing to prove.
    return RunMaxima({name: maximum for name, maximum in found.items() if maximum < math.inf}, "; ".join(notes))
