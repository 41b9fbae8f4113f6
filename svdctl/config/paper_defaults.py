"""What the paper's code assumes when a flag is not given, and how it spells the kinds of control."""

from collections.abc import Mapping
from typing import Any

from svdctl.config.command_flags import Command

CLIPPING = {
    "none": "none",
    "clip": "clip",
    "assign": "assign",
    "divide-by-largest": "divide",
    "divide-by-exact-largest": "divide-exact",
    "divide-each-by-largest": "divide-each",
    "divide": "divide",
    "divide-exact": "divide-exact",
    "divide-each": "divide-each",
}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
NORMALIZE = {
    "cifar10": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "cifar100": {"mean": [0.5071, 0.4867, 0.4408], "std": [0.2675, 0.2565, 0.2761]},
}
MULTISTEP = {"kind": "steps", "at": [0.5, 0.75], "factor": 0.1}
LIPCONV_NORMALIZE = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2507, 0.2507, 0.2507]}


def paper_defaults(command: Command, given: Mapping[str, Any]) -> dict[str, Any]:
    """The public code's defaults of a command; those that depend on other flags look at the flags given, by field."""
    return train_defaults(given) if command.name == "train" else lipconv_defaults(command, given)


def train_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of `train`, which depend on data, network and optimiser.

    Frames are ordinary weights unless the penalty is given a weight. Data that the paper does not know are normalised
    by 0.5; digits are not mirrored, since that makes another sign. Adam's weight decay is 0, because the paper's code
    passes none to it.
    """
    dataset = str(given.get("data.kind", "cifar10")).partition(":")[0]
    vgg = str(given.get("architecture", "wrn16-10")).startswith("vgg")
    if str(given.get("optimizer.kind", "sgd")).lower() != "adam":
        optimizer: dict[str, Any] = {
            "kind": "sgd",
            "lr": 0.01,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 1e-4,
        }
    elif vgg:
        optimizer = {"kind": "adam", "lr": 0.01, "eps": 1e-7, "amsgrad": True, "weight_decay": 0.0}
    else:
        optimizer = {"kind": "adam", "lr": 0.01, "eps": 1e-8, "amsgrad": False, "weight_decay": 0.0}
    return {
        "name": "run",
        "seed": 3407,
        "epochs": 200,
        "batch_size": 128,
        "data": {"kind": "cifar10"},
        "augment": {"flip": dataset != "digits", "crop": 4, "pad": "zero"},
        "normalize": HALF if vgg else NORMALIZE.get(dataset, HALF),
        "model": {"kind": "wrn", "depth": 16, "width": 10},
        "layer": {"kind": "tt", "frames": {"kind": "free"}}
        if given.get("layer.kind") == "tt"
        else {"kind": "standard"},
        "control": {"kind": "none"},
        "optimizer": optimizer,
        "schedule": {"kind": "steps", "at": [100 / 140, 120 / 140], "factor": 0.1}
        if vgg
        else {"kind": "steps", "at": [0.3, 0.6, 0.8], "factor": 0.2},
        "checkpoint": {"every_epochs": 200},
    }


def lipconv_defaults(command: Command, given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of `train-lipconv`, which depend on data and layer; SOTT has no weight decay."""
    dataset = str(given.get("data.kind", "cifar10")).partition(":")[0]
    named = str(given.get("layer.kind", "standard"))
    layer: dict[str, Any] = {"kind": command.layers.get(named, named)}
    if layer["kind"] in ("tt", "sott"):
        layer["frames"] = {"kind": "penalty", "weight": 1.0}
    return {
        "name": "run",
        "seed": 3407,
        "epochs": 200,
        "batch_size": 128,
        "data": {"kind": "cifar10"},
        "augment": {"flip": dataset != "digits", "crop": 4, "pad": "zero"},
        "normalize": LIPCONV_NORMALIZE,
        "model": {"kind": "lipconv", "block_size": 4, "in_channels": 32},
        "layer": layer,
        "control": {"kind": "none"},
        "optimizer": {
            "kind": "sgd",
            "lr": 0.1,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 0.0 if layer["kind"] == "sott" else 5e-4,
        },
        "schedule": dict(MULTISTEP),
        "certificate": {"epsilon": 36.0},
        "checkpoint": {"every_epochs": 10},
    }
