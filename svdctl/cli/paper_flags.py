"""The paper's code: what it assumes when a flag is not given, and how it spells kinds of control and of layers."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from svdctl.checkpoint.paper_normalization import HALF, LIPCONV_NORMALIZE, NORMALIZE

CLIPPING = {
    "divide-by-largest": "divide",
    "divide-by-exact-largest": "divide-exact",
    "divide-each-by-largest": "divide-each",
}
CLIPPING_WORDS = ("clip", "assign", *CLIPPING, "none")
LAYERS = {"skew": "soc"}
MULTISTEP = {"kind": "steps", "at": [0.5, 0.75], "factor": 0.1}
COMMON: dict[str, Any] = {
    "name": "run",
    "seed": 3407,
    "epochs": 200,
    "batch_size": 128,
    "data": {"kind": "cifar10"},
    "control": {"kind": "none"},
}


def train_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of `train`, which depend on data, network and optimiser.

    Frames are ordinary weights unless the penalty is given a weight. Data that the paper does not know are normalised
    by 0.5; digits are not mirrored, since that makes another sign. Adam's weight decay is 0, because the paper's code
    passes none to it.
    """
    vgg = str(given.get("architecture", "wrn16-10")).startswith("vgg")
    optimizer: dict[str, Any] = {
        "kind": "sgd",
        "lr": 0.01,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 1e-4,
    }
    if str(given.get("opt", "sgd")).lower() == "adam":
        eps, amsgrad = (1e-7, True) if vgg else (1e-8, False)
        optimizer = {"kind": "adam", "lr": 0.01, "eps": eps, "amsgrad": amsgrad, "weight_decay": 0.0}
    return deepcopy(COMMON) | {
        "augment": _augment(given),
        "normalize": dict(HALF) if vgg else dict(NORMALIZE.get(_dataset(given), HALF)),
        "model": {"kind": "wrn", "depth": 16, "width": 10},
        "layer": {"kind": "tt", "frames": {"kind": "free"}} if given.get("new_layer") == "tt" else {"kind": "standard"},
        "optimizer": optimizer,
        "schedule": {"kind": "steps", "at": [100 / 140, 120 / 140], "factor": 0.1}
        if vgg
        else {"kind": "steps", "at": [0.3, 0.6, 0.8], "factor": 0.2},
        "checkpoint": {"every_epochs": 200},
    }


def lipconv_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of `train-lipconv`, which depend on data and layer; SOTT has no weight decay."""
    named = str(given.get("conv_type", "standard"))
    layer: dict[str, Any] = {"kind": LAYERS.get(named, named)}
    if layer["kind"] in ("tt", "sott"):
        layer["frames"] = {"kind": "penalty", "weight": 1.0}
    return deepcopy(COMMON) | {
        "augment": _augment(given),
        "normalize": dict(LIPCONV_NORMALIZE),
        "model": {"kind": "lipconv", "block_size": 4, "in_channels": 32},
        "layer": layer,
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


def _dataset(given: Mapping[str, Any]) -> str:
    return str(given.get("dataset", "cifar10")).partition(":")[0]


def _augment(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"flip": _dataset(given) != "digits", "crop": 4, "pad": "zero"}
