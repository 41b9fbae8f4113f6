"""What options of the training commands set where one key is not enough, and when they have a meaning."""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from svdctl.cli.options import Merge, flags_by_key, spelled, unknown_word
from svdctl.cli.paper_flags import CLIPPING, CLIPPING_WORDS, PEAK_MOMENTUM
from svdctl.config.model_config import PUBLISHED
from svdctl.errors import UsageError, nearest
from svdctl.plugins import network_name
from svdctl.registry import DATA, LOGGERS

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("multistep", "cyclic", "cosine", "constant")


def data_table(text: str) -> dict[str, Any]:
    """Return the configuration of data that `--dataset` names.

    Raises:
        UsageError: there is no such kind, or its path is missing.
    """
    kind, _, path = text.partition(":")
    source = DATA.find(kind)
    if source is None and "imagenet" in kind.lower().replace("-", "").replace("_", ""):
        raise UsageError(f"--dataset {text}: write folder:PATH, the folder in which it was unpacked")
    if source is None or (path and not source.takes_path):
        raise UsageError(unknown_word("--dataset", text, (one.form for one in DATA.variants())))
    table: dict[str, Any] = source.from_text(path)
    return table


def set_data(merge: Merge, name: str, value: str) -> None:
    """Set the data that a word names."""
    table = data_table(str(value))
    merge.to.switch("data", table["kind"])
    for key in table:
        merge.to.put(f"data.{key}", table[key])


def set_root(merge: Merge, name: str, value: str) -> None:
    """Set the folder that CIFAR lies in."""
    if getattr(DATA.find(str(merge.to.kind("data"))), "place", None) != "root":
        flag = flags_by_key(merge.flags)["data.root"]
        raise UsageError(f"{flag} is where CIFAR lies; add --dataset cifar10 or cifar100, or leave it out")
    merge.to.put("data.root", str(value))


def set_of_folder(merge: Merge, name: str, value: Any) -> None:
    """Set a key of data in folders."""
    if merge.to.kind("data") != "folder":
        raise UsageError(f"{spelled(name)} belongs to images in folders; add --dataset folder:PATH, or leave it out")
    merge.put(name, value)


def set_image_size(merge: Merge, name: str, value: int) -> None:
    """Set the side of images in folders, which are scaled to it."""
    set_of_folder(merge, name, value)
    merge.to.put("data.resize", True)


def set_resized_crop(merge: Merge, name: str, value: float) -> None:
    """Crop to a random share of an image, in place of shifted crops."""
    merge.to.put("augment.crop", 0)
    merge.to.put("augment.resized_crop", [value, 1.0])


def set_architecture(merge: Merge, name: str, value: str) -> None:
    """Set network, depth and width from one word."""
    if match := re.fullmatch(r"wrn-?([0-9]{1,9})-([0-9]{1,9})", value):
        merge.to.switch("model", "wrn")
        merge.to.put("model.depth", int(match[1]))
        merge.to.put("model.width", int(match[2]))
    elif value == "vgg19":
        merge.to.switch("model", "vgg")
    else:
        raise UsageError(unknown_word(spelled(name), value, ("wrn16-10 (any wrnDEPTH-WIDTH)", "vgg19")))


def set_model(merge: Merge, name: str, value: str) -> None:
    """Set a network of torchvision, timm or a factory."""
    if "architecture" in merge.given:
        merge.faults.append("--model and --architecture both name the network; give one of them")
    network = network_name(value)
    if merge.to.section("model").get("network") != network:
        merge.to.switch("model", "external")
        merge.to.drop("normalize")  # that of another network
    merge.to.put("model.network", network)


def set_channels(merge: Merge, name: str, value: list[str]) -> None:
    """Set one number for each channel, or one for all; numbers may have commas between them."""
    if ("mean" in merge.given) != ("std" in merge.given):
        merge.faults.append("--mean and --std belong together; give both or neither")
    merge.put(name, [part for text in value for part in str(text).split(",") if part])


def set_init_from(merge: Merge, name: str, value: str) -> None:
    """Set the file of weights that a run starts from."""
    merge.to.put("initial", {"file": value if value == PUBLISHED else os.path.abspath(os.path.expanduser(value))})


def is_initialized(merge: Merge, name: str, value: Any) -> bool:
    """Return whether weights come from a file."""
    if "init_from" in merge.given or merge.to.section("initial"):
        return True
    raise UsageError(f"{spelled(name)} is about the file of weights that a run starts from; add --init-from FILE")


def is_ranked(merge: Merge, name: str, value: Any) -> bool:
    """Return whether layers have a rank and frames."""
    if merge.to.kind("layer") not in ("standard", "soc"):
        return True
    if value is False:
        return False
    ranked, add = ("TT layers", "--new-layer tt")
    if "conv_type" in merge.flags:
        ranked, add = "SOTT and TT layers", "--conv-type sott"
    raise UsageError(f"{spelled(name)} belongs to {ranked}; add {add}, or leave it out")


def is_controlled(merge: Merge, name: str, value: Any) -> bool:
    """Return whether there is a control; 0 steps are the paper's "never"."""
    if merge.to.kind("control") == "none" and value:
        raise UsageError(f"{spelled(name)} needs a control; add --clipping, or leave it out")
    return bool(merge.to.kind("control") != "none")


def is_batchnorm_limited(merge: Merge, name: str, value: Any) -> bool:
    """Return whether BatchNorm has a limit; 0 steps are the paper's "never"."""
    if not merge.to.section("batchnorm") and value:
        raise UsageError(f"{spelled(name)} belongs to the limit on BatchNorm; add --lip-bn, or leave it out")
    return bool(merge.to.section("batchnorm"))


def set_rank(merge: Merge, name: str, value: Any) -> None:
    """Set one rank, or one for each group of layers."""
    merge.to.drop("layer.rank_scale")
    text = str(value).strip().removeprefix("[").removesuffix("]")
    ranks = [1]
    if re.fullmatch(r"\s*-?\d{1,9}\s*(,\s*-?\d{1,9}\s*)*", text):
        ranks = [int(part) for part in text.split(",")]
    else:
        merge.faults.append(
            f"--dec-rank {value}: write one rank, or one for each group of layers, as --dec-rank '64, 64, 64'"
        )
    merge.to.put("layer.rank", ranks[0] if len(ranks) == 1 else ranks)


def set_rank_scale(merge: Merge, name: str, value: float) -> None:
    """Set ranks by the layers' own widths."""
    if "dec_rank" in merge.given:
        raise UsageError("--dec-rank and --dec-scale exclude each other; give one of them")
    merge.to.drop("layer.rank")
    merge.to.put("layer.rank_scale", value)


def set_frames_weight(merge: Merge, name: str, value: float) -> None:
    """Set the weight of the penalty on frames, and that frames have one."""
    if (frames := merge.given.get("frames")) not in (None, "penalty"):
        merge.faults.append(f"--orthogonal-k weighs the penalty on frames; leave it or --frames {frames} out")
    merge.to.switch("layer.frames", "penalty")
    merge.to.put("layer.frames.weight", value)


def set_control_kind(merge: Merge, name: str, value: str) -> None:
    """Set the control method from the paper's word for it, or svdctl's."""
    kind = value.replace("_", "-")
    if kind not in (*CLIPPING_WORDS, *CLIPPING.values()):
        merge.faults.append(unknown_word(spelled(name), value, CLIPPING_WORDS))
        # An unknown kind counts as some kind: the flags below it are then judged as usual.
        kind = "divide"
    merge.put(name, kind)


def set_clip_linear(merge: Merge, name: str, value: bool) -> None:
    """Have linear layers controlled too."""
    section = merge.to.section("control")
    if value and (section.get("linear_max") is None or "clip_to" in merge.given):
        merge.to.put("control.linear_max", section.get("max_sigma", 1.0))


def set_linear_max(merge: Merge, name: str, value: float) -> None:
    """Set the maximum for linear layers."""
    if not merge.given.get("clip_linear") and merge.to.section("control").get("linear_max") is None:
        raise UsageError("--clip-linear-to needs --clip-linear; add it, or leave --clip-linear-to out")
    if merge.to.kind("control") != "none":
        merge.put(name, value)


def set_optimizer(merge: Merge, name: str, value: str) -> None:
    """Set the optimiser, in capitals or not."""
    if value.lower() not in OPTIMIZERS:
        raise UsageError(unknown_word(spelled(name), value, OPTIMIZERS))
    merge.put(name, value.lower())


def set_weight_decay(merge: Merge, name: str, value: float) -> None:
    """Set weight decay, also of Adam."""
    if value and merge.to.kind("optimizer") == "adam":
        merge.notices.append("--weight-dec is passed on to Adam; the paper's code ignored it there")
    merge.put(name, value)


def set_nesterov(merge: Merge, name: str, value: bool) -> None:
    """Set Nesterov's momentum where there is an optimiser that has it."""
    if merge.to.kind("optimizer") not in ("adam", "adamw"):
        merge.put(name, value)
    elif value:
        merge.notices.append("--nesterov has no effect with Adam")


def set_schedule(merge: Merge, name: str, value: str) -> None:
    """Set the schedule of learning rates, the paper's steps among them."""
    if value == "cyclic":
        merge.to.switch("schedule", "cyclic")
        merge.to.put("schedule.peak_momentum", PEAK_MOMENTUM)
    elif value in ("constant", "cosine"):
        merge.to.switch("schedule", value)
    elif value not in ("multistep", "steps"):
        hint = nearest(value, SCHEDULES)
        raise UsageError(f"{spelled(name)} {value}: not one of multistep and cyclic, nor cosine or constant{hint}")
    elif merge.to.kind("schedule") != "steps":
        merge.to.put("schedule", {"kind": "steps", "at": [0.5, 0.75], "factor": 0.1})


def set_warmup(merge: Merge, name: str, value: float) -> None:
    """Set the share of steps in which a cosine schedule rises."""
    if merge.to.kind("schedule") == "cosine":
        merge.put(name, value)
    elif value:
        raise UsageError("--warmup belongs to the cosine schedule; add --lr-schedule cosine, or leave it out")


def set_lr_min(merge: Merge, name: str, value: float) -> None:
    """Set the rate at which cycles begin."""
    if merge.to.kind("schedule") == "cyclic":
        merge.put(name, value)
    elif value and merge.given.get("lr_schedule") in (None, "multistep"):  # 0 is the paper's default
        raise UsageError("--lr-min is where cyclic rates start; add --lr-schedule cyclic, or leave it out")


def set_kept_epochs(merge: Merge, name: str, value: int) -> None:
    """Set after which epochs a checkpoint is kept."""
    merge.put(name, value)
    merge.to.put("checkpoint.keep", True)


def set_loggers(merge: Merge, name: str, value: list[str]) -> None:
    """Add logs to those that there are."""
    there = list(merge.to.section("log").get("loggers", ()))
    known = {table.get("kind") for table in there if isinstance(table, Mapping)}
    for kind in dict.fromkeys(value):
        LOGGERS.get(kind)
        if kind not in known:
            there.append({"kind": kind})
    merge.put(name, there)


def set_folder(merge: Merge, name: str, value: str) -> None:
    """Set the folder of runs, by the paper's name for it."""
    if merge.given.get("out_dir", value) != value:
        raise UsageError("--out-dir and --checkpoints-path name the same folder; give one of them")
    merge.to.put("out_dir", str(value))


def notice_without_effect(merge: Merge, name: str, value: Any) -> None:
    """Say that an option of the paper's code does nothing."""
    retired = "belongs to a retired mixed-precision library and has no effect; use --precision bf16-mixed or 16-mixed"
    unread = "has no effect: nothing in the paper's code reads it"
    merge.notices.append(f"{spelled(name)} {unread if name == 'multiply_by' else retired}")


def setting(*fields: tuple[str, Any]) -> Callable[[Merge, str, bool], None]:
    """Return a rule that sets the same fields whenever the flag is on."""

    def rule(merge: Merge, name: str, value: bool) -> None:
        for key, content in fields if value else ():
            merge.to.put(key, content)

    return rule
