"""Build the network and the optimiser that a configuration describes."""

import torch
from torch import nn

from svdctl.config.optimizer_config import Optimizer
from svdctl.config.train_config import TrainConfig
from svdctl.data.batches import derived_seed
from svdctl.errors import UsageError
from svdctl.layers.layer_ops import find_ops
from svdctl.layers.normalize import Normalize
from svdctl.layers.ops.tt_ops import Free, RankedConfig
from svdctl.layers.tt import TTConv
from svdctl.models.architecture import architecture_of
from svdctl.models.external_architecture import External
from svdctl.models.made_network import without_numbers
from svdctl.registry import LAYERS


def build_model(config: TrainConfig, classes: int, network: nn.Module | None = None) -> nn.Module:
    """Return the network of a configuration; its weights come from the configuration's seed, not torch's global one.

    Args:
        config: of the run.
        classes: width of the output.
        network: what the user's factory would make, for `model.kind = "external"`; it is changed in place.

    Raises:
        UsageError: a network that cannot be made, or one of a factory that the user has not named.
    """
    given = {} if network is None else {"network": network}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(config.seed, "weights"))
        architecture, ops = architecture_of(config.model), LAYERS.get(config.layer.kind)
        convs = [ops.factory(config.layer, group=group, model=config.model) for group in range(architecture.groups)]
        standard = LAYERS.get("standard")
        plain = standard.factory(standard.config(), group=0, model=config.model)
        model = architecture.build(
            config.model,
            classes=classes,
            convs=convs,
            stem=convs[0] if ops.compresses_first(config.layer) else plain,
            normalize=Normalize(config.normalize.mean, config.normalize.std),
            **given,
        )
        as_paper = config.init == "paper"
        if as_paper:
            with torch.no_grad():
                for module in model.modules():
                    if (found := find_ops(module)) is not None:
                        found.start_as_paper_(module)
                architecture.start_as_paper_(model)
        if getattr(config.layer, "init", None) is not None:
            _initialize_kernels(model, config.layer.init, as_paper=as_paper)
    return model


@torch.no_grad()
def _initialize_kernels(model: nn.Module, init: str, *, as_paper: bool) -> None:
    """Draw all kernels, and the cores of TT layers, from the distribution `torch.nn.init.<init>_`.

    As in the paper's public code, in its layout of the core, the frames of TT layers too.
    """
    start = getattr(nn.init, f"{init}_")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            start(module.weight)
        elif isinstance(module, TTConv):
            if as_paper:
                module.start_as_paper_(start, with_frames=True)
            else:
                start(module.core)


def build_optimizer(config: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser over all parameters, as one fused kernel; those of parametrised frames have no weight decay.

    Decay would pull the parameters of torch's `orthogonal` parametrization to an arbitrary point of the manifold.
    """
    coordinates = [value for name, value in model.named_parameters() if "parametrizations." in name]
    weights = [value for name, value in model.named_parameters() if "parametrizations." not in name]
    groups: list[dict[str, object]] = [{"params": weights, "weight_decay": config.weight_decay}]
    if coordinates:
        groups.append({"params": coordinates, "weight_decay": 0.0})
    settings = config.model_dump(exclude={"kind", "weight_decay", "clip_norm"})
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[config.kind](groups, fused=True, **settings)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters; a parametrised frame counts with all entries of its matrix."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_on_meta(config: TrainConfig, classes: int) -> int:
    """Return the number of parameters, counted on shapes without numbers.

    torch's parametrization, as large as the frame, would need numbers, so frames are counted as ordinary weights.
    """
    return count_parameters(shapes_of(config, classes))


def shapes_of(config: TrainConfig, classes: int) -> nn.Module:
    """Return the network of a configuration with shapes and no numbers, frames as ordinary weights."""
    if isinstance(config.layer, RankedConfig):
        config = config.model_copy(update={"layer": config.layer.model_copy(update={"frames": Free()})})
    if not isinstance(config.model, External):
        with torch.device("meta"):
            return build_model(config, classes)
    try:
        with without_numbers():
            return build_model(config, classes)
    except UsageError:  # such as of a constructor that computes with its weights; any other is raised once more
        return build_model(config, classes)
