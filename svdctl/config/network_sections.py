"""Sections in which the training commands differ: network, BatchNorm, optimiser, schedule."""

import re

from svdctl.config.merge import Merge
from svdctl.config.paper_defaults import MULTISTEP
from svdctl.config.presets import run_name


def network(merge: Merge) -> None:
    """`model`, and the run's name when the flags alone make the run."""
    if merge.command.name == "train":
        _architecture(merge)
    else:
        _lipconv(merge)


def _architecture(merge: Merge) -> None:
    name = merge.given.get("architecture")
    match = re.fullmatch(r"wrn-?([0-9]{1,9})-([0-9]{1,9})", str(name))
    if match:
        merge.to.switch("model", "wrn")
        merge.to.put("model.depth", int(match[1]))
        merge.to.put("model.width", int(match[2]))
    elif name == "vgg19":
        merge.to.switch("model", "vgg")
    elif name is not None:
        merge.faults.append(f"--architecture {name}: not one of wrn16-10 (any wrnDEPTH-WIDTH) and vgg19")
    if merge.bare:
        merge.to.put("name", run_name(f"{name or 'wrn16-10'}-{merge.to.kind('data')}"))


def _lipconv(merge: Merge) -> None:
    merge.take("model.block_size", "model.in_channels")
    if merge.bare:
        given = merge.given
        kind, rank = given.get("layer.kind", "standard"), str(given.get("layer.rank", ""))
        net = f"lipconv{5 * merge.to.section('model')['block_size']}"
        merge.to.put("name", run_name(f"{net}-{kind}{rank if rank.isdigit() else ''}-{merge.to.kind('data')}"))


def batchnorm(merge: Merge) -> None:
    """`batchnorm`."""
    given, to = merge.given, merge.to
    if given.get("lip_bn") and not to.section("batchnorm"):
        to.put("batchnorm", {"max_gain": 1.0})
    if to.section("batchnorm"):
        merge.take("batchnorm.max_gain", "batchnorm.every_steps")
    else:
        why = "belongs to the limit on BatchNorm; add --lip-bn, or leave it out"
        merge.refuse(why, ("batchnorm.max_gain",))
        if given.get("batchnorm.every_steps"):  # 0 is the paper's "never"
            merge.refuse(why, ("batchnorm.every_steps",))


def optimizer(merge: Merge) -> None:
    """`optimizer.kind` and what depends on it."""
    given, to = merge.given, merge.to
    if "optimizer.kind" in given:
        kind = str(given["optimizer.kind"]).lower()
        if kind in ("sgd", "adam"):
            to.switch("optimizer", kind)
        else:
            merge.faults.append(f"--opt {given['optimizer.kind']}: not one of SGD and Adam")
    if to.kind("optimizer") == "adam":
        if given.get("optimizer.nesterov"):
            merge.notices.append("--nesterov has no effect with Adam")
        if given.get("optimizer.weight_decay") and merge.command.name == "train":
            merge.notices.append("--weight-dec is passed on to Adam; the paper's code ignored it there")
    else:
        merge.take("optimizer.nesterov")


def schedule(merge: Merge) -> None:
    """`schedule`, by the names of the paper's code for LipConvNet."""
    given, to = merge.given, merge.to
    flag = merge.flag("schedule.kind")
    kind = given.get("schedule.kind")
    if kind == "multistep":
        if to.kind("schedule") != "steps":
            to.put("schedule", dict(MULTISTEP))
    elif kind == "cyclic":
        to.switch("schedule", "cyclic")
    elif kind is not None:
        merge.faults.append(f"{flag} {kind}: not one of multistep and cyclic")
    if to.kind("schedule") == "cyclic":
        merge.take("schedule.lr_min")
    elif kind in (None, "multistep") and given.get("schedule.lr_min"):  # 0 is the paper's default
        merge.refuse(f"is where cyclic rates start; add {flag} cyclic, or leave it out", ("schedule.lr_min",))
