"""The sections of a configuration that both training commands have flags for: data, layers, control and the rest."""

import re
from typing import Any

from svdctl.config.merge import Merge
from svdctl.config.paper_defaults import CLIPPING, HALF
from svdctl.errors import UsageError

RULED = {
    "data.kind", "data.root", "layer.kind", "layer.rank", "layer.rank_scale", "layer.frames.kind",
    "layer.frames.weight", "control.kind", "control.max_sigma", "control.every_steps", "control.procedure",
    "control.linear_max", "batchnorm.max_gain", "batchnorm.every_steps", "optimizer.kind",
    "optimizer.nesterov", "schedule.kind", "schedule.lr_min",
    "model.block_size", "model.in_channels", "out_dir",
}  # fmt: skip
"""Fields whose flags have rules; the others are set as they are given."""
RANKED = ("tt", "sott")


def data(merge: Merge) -> None:
    """`data`, and what the paper's transforms change with it."""
    given, to = merge.given, merge.to
    flag = merge.flag("data.kind")
    if "data.kind" in given:
        kind, _, path = str(given["data.kind"]).partition(":")
        if kind not in ("cifar10", "cifar100", "digits", "folder", "npz") or (path and kind not in ("folder", "npz")):
            merge.faults.append(
                f"{flag} {given['data.kind']}: not one of cifar10, cifar100, digits, folder:PATH and npz:PATH"
            )
        elif kind in ("folder", "npz") and not path:
            merge.faults.append(f"{flag} {kind} needs a path: {flag} {kind}:PATH")
        else:
            to.switch("data", kind)
            if path:
                to.put("data.path", path)
    if "data.root" in given:
        if to.kind("data") in ("cifar10", "cifar100"):
            to.put("data.root", str(given["data.root"]))
        else:
            merge.faults.append(
                f"{merge.flag('data.root')} is where CIFAR lies; add {flag} cifar10 or cifar100, or leave it out"
            )
    if given.get("gouk_transforms"):
        to.put("augment.pad", "symmetric")
        to.put("normalize", HALF)


def layer(merge: Merge) -> None:
    """`layer`: its kind, ranks and frames."""
    given, to = merge.given, merge.to
    if "layer.kind" in given:
        to.switch("layer", merge.command.layers.get(given["layer.kind"], given["layer.kind"]))
    rank = merge.flag("layer.rank")
    if to.kind("layer") in ("standard", "soc"):
        ranked = "TT layers" if merge.command.name == "train" else "SOTT and TT layers"
        kind = "tt" if merge.command.name == "train" else "sott"
        merge.refuse(
            f"belongs to {ranked}; add {merge.flag('layer.kind')} {kind}, or leave it out",
            ("layer.rank", "layer.rank_scale", "layer.frames.weight", "layer.frames.kind", "no_compress_first"),
        )
        return
    if "layer.rank" in given and "layer.rank_scale" in given:
        merge.faults.append(f"{rank} and {merge.flag('layer.rank_scale')} exclude each other; give one of them")
    if "layer.rank" in given:
        to.drop("layer.rank_scale")
        to.put("layer.rank", _ranks(merge, given["layer.rank"]))
    elif "layer.rank_scale" in given:
        to.drop("layer.rank")
        merge.take("layer.rank_scale")
    if "no_compress_first" in given:
        to.put("layer.compress_first", not given["no_compress_first"])
    _frames(merge)


def _ranks(merge: Merge, value: Any) -> int | list[int]:
    """`128`, or `128, 128, 128, 256, 256, 256` with or without brackets."""
    if isinstance(value, int):
        return value
    text = str(value).strip().removeprefix("[").removesuffix("]")
    if not re.fullmatch(r"\s*-?\d{1,9}\s*(,\s*-?\d{1,9}\s*)*", text):
        flag = merge.flag("layer.rank")
        merge.faults.append(f"{flag} {value}: write one rank, or one for each group of layers, as {flag} '64, 64, 64'")
        return 1
    ranks = [int(part) for part in text.split(",")]
    return ranks[0] if len(ranks) == 1 else ranks


def _frames(merge: Merge) -> None:
    given, to = merge.given, merge.to
    frames = given.get("layer.frames.kind")
    if "layer.frames.weight" in given:
        if frames not in (None, "penalty"):
            weight = merge.flag("layer.frames.weight")
            merge.faults.append(
                f"{weight} weighs the penalty on frames; leave it or {merge.flag('layer.frames.kind')} {frames} out"
            )
        to.switch("layer.frames", "penalty")
        merge.take("layer.frames.weight")
    elif frames is not None:
        to.switch("layer.frames", frames)


def control(merge: Merge) -> None:
    """`control`: its kind and limits."""
    given, to = merge.given, merge.to
    clipping = merge.flag("control.kind")
    if "control.kind" in given:
        kind = CLIPPING.get(str(given["control.kind"]).replace("_", "-"))
        if kind is None:
            merge.faults.append(
                f"{clipping} {given['control.kind']}: not one of clip, assign, divide-by-largest, "
                "divide-by-exact-largest, divide-each-by-largest and none"
            )
        # An unknown kind counts as some kind: the flags below it are then judged as usual.
        to.switch("control", kind or "divide")
    if to.kind("control") == "none":
        why = f"needs a control; add {clipping}, or leave it out"
        merge.refuse(why, ("control.max_sigma", "control.procedure", "clip_linear"))
        if given.get("control.every_steps"):  # 0 is the paper's "never"
            merge.refuse(why, ("control.every_steps",))
    else:
        merge.take("control.max_sigma", "control.every_steps", "control.procedure")
    present = to.section("control").get("linear_max")
    if "control.linear_max" in given and not given.get("clip_linear") and present is None:
        flag = merge.flag("control.linear_max")
        merge.faults.append(f"{flag} needs --clip-linear; add it, or leave {flag} out")
    elif to.kind("control") != "none" and "control.linear_max" in given:
        merge.take("control.linear_max")
    elif (
        to.kind("control") != "none" and given.get("clip_linear") and (present is None or "control.max_sigma" in given)
    ):
        to.put("control.linear_max", to.section("control").get("max_sigma", 1.0))


def direct(merge: Merge) -> None:
    """Every field whose flag has no rules."""
    merge.take(*(path for path in merge.command.fields.values() if path not in RULED))


def own(merge: Merge) -> None:
    """What belongs to no section: the folder, flags without effect, and --set last of all."""
    given = merge.given
    folders = {str(given[flag]) for flag in ("out_dir", "checkpoints_path") if flag in given}
    if len(folders) > 1:
        merge.faults.append("--out-dir and --checkpoints-path name the same folder; give one of them")
    for folder in folders:
        merge.to.put("out_dir", folder)
    if "multiply_by" in given:
        merge.notices.append("--multiply-by has no effect: nothing in the paper's code reads it")
    for flag in ("opt_level", "loss_scale"):
        if flag in given:
            merge.notices.append(
                f"--{flag.replace('_', '-')} belongs to a retired mixed-precision library and has no effect; use "
                "--precision bf16-mixed or 16-mixed"
            )
    for assignment in given.get("set", ()):
        try:
            merge.to.assign(assignment)
        except UsageError as error:
            merge.faults += error.faults
