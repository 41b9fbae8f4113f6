"""The flags of the two training commands, the paper's among them, and what they mean.

A flag changes one field of a base: a preset, the paper's defaults, or the quick start.
"""

import os
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from svdctl.checkpoint.paper_normalization import HALF
from svdctl.cli.help_page import Panel
from svdctl.cli.options import (
    Base,
    Flag,
    Flags,
    Merge,
    Resolved,
    flags_by_key,
    listed,
    spelled,
    unknown_word,
)  # fmt: skip
from svdctl.cli.paper_flags import CLIPPING, CLIPPING_WORDS, LAYERS, PEAK_MOMENTUM, paper_defaults
from svdctl.config.configuration import fill_normalization, grant_network, with_kinds
from svdctl.config.model_config import PUBLISHED
from svdctl.config.presets import faults_with_lines, list_presets, own_file, read_preset, run_name
from svdctl.config.train_config import TrainConfig
from svdctl.errors import UsageError, closest, nearest
from svdctl.plugins import is_factory, network_name
from svdctl.registry import DATA, LOGGERS


@dataclass(frozen=True)
class Command:
    """Describe one of the two training commands: its options, and the configuration that they change.

    Attributes:
        trains: what it trains, in words.
        quickstart: name of the preset that the options change without `--preset` and those of `PAPER_BASIS`.
        others: the networks that the other command trains, in words.
        examples: a sentence and a command line each.
    """

    name: str
    trains: str
    quickstart: str
    others: str
    examples: tuple[tuple[str, str], ...]

    @property
    def flags(self) -> Flags:
        """Return its options; of presets, a shell is offered those that it trains."""
        presets = replace(FLAGS["preset"], candidates=partial(list_presets, lipconv=self is LIPCONV))
        return {name: flag for name, flag in (FLAGS | {"preset": presets}).items() if flag.of in ("", self.name)}

    @property
    def base(self) -> Base:
        """Return the quick start, which holds where neither a preset nor an option of `PAPER_BASIS` is given."""
        return Base("quick start", TrainConfig.model_validate(read_preset(self.quickstart)))

    def to_resume(self, folder: Path, model: str | None = None) -> str:
        """Return the command line that goes on with the run in a folder; a factory that makes its `model` is named."""
        named = f" --model {model}" if model is not None and is_factory(model) else ""
        return f"svdctl {self.name} --resume {folder}{named}"

    @property
    def words(self) -> dict[str, str]:
        """Return the flag of each configuration key, and the command of the network's kind, for messages."""
        return {
            **flags_by_key(self.flags),
            **{key: "--architecture" for key in ("model.depth", "model.width") if "architecture" in self.flags},
            "model.kind = lipconv": f"svdctl {LIPCONV.name}",
        }

    def owns(self, table: Mapping[str, Any]) -> bool:
        """Return whether this command trains a configuration: LipConvNets belong to one, all others to the other."""
        model = table.get("model")
        return command_of(model.get("kind") if isinstance(model, Mapping) else None) is self

    def refused(self, config: TrainConfig) -> str | None:
        """Return why this command does not train a configuration; None if it does."""
        return None if command_of(config.model.kind) is self else self.why_foreign

    @property
    def why_foreign(self) -> str:
        """Return the end of a message about something that belongs to the other command."""
        other = TRAIN if self is LIPCONV else LIPCONV
        return f"is for {self.others}; use svdctl {other.name} in place of svdctl {self.name}"


def data_table(text: str) -> dict[str, Any]:
    """Return the configuration of data that `--dataset` names.

    Raises:
        UsageError: there is no such kind, or its path is missing.
    """
    kind, _, path = text.partition(":")
    source = DATA.find(kind)
    if source is None or (path and not source.takes_path):
        raise UsageError(unknown_word("--dataset", text, (one.form for one in DATA.variants())))
    table: dict[str, Any] = source.from_text(path)
    return table


def _data(merge: Merge, name: str, value: str) -> None:
    table = data_table(str(value))
    merge.to.switch("data", table["kind"])
    for key in table:
        merge.to.put(f"data.{key}", table[key])


def _root(merge: Merge, name: str, value: str) -> None:
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


def _resized_crop(merge: Merge, name: str, value: float) -> None:
    merge.to.put("augment.crop", 0)
    merge.to.put("augment.resized_crop", [value, 1.0])


def _architecture(merge: Merge, name: str, value: str) -> None:
    if match := re.fullmatch(r"wrn-?([0-9]{1,9})-([0-9]{1,9})", value):
        merge.to.switch("model", "wrn")
        merge.to.put("model.depth", int(match[1]))
        merge.to.put("model.width", int(match[2]))
    elif value == "vgg19":
        merge.to.switch("model", "vgg")
    else:
        raise UsageError(unknown_word(spelled(name), value, ("wrn16-10 (any wrnDEPTH-WIDTH)", "vgg19")))


def _model(merge: Merge, name: str, value: str) -> None:
    if "architecture" in merge.given:
        merge.faults.append("--model and --architecture both name the network; give one of them")
    network = network_name(value)
    if merge.to.section("model").get("network") != network:
        merge.to.switch("model", "external")
        merge.to.drop("normalize")  # that of another network
    merge.to.put("model.network", network)


def _channels(merge: Merge, name: str, value: list[str]) -> None:
    """Set one number for each channel, or one for all; numbers may have commas between them."""
    if ("mean" in merge.given) != ("std" in merge.given):
        merge.faults.append("--mean and --std belong together; give both or neither")
    merge.put(name, [part for text in value for part in str(text).split(",") if part])


def _init_from(merge: Merge, name: str, value: str) -> None:
    merge.to.put("initial", {"file": value if value == PUBLISHED else os.path.abspath(os.path.expanduser(value))})


def _initialized(merge: Merge, name: str, value: Any) -> bool:
    """Return whether weights come from a file."""
    if "init_from" in merge.given or merge.to.section("initial"):
        return True
    raise UsageError(f"{spelled(name)} is about the file of weights that a run starts from; add --init-from FILE")


def _ranked(merge: Merge, name: str, value: Any) -> bool:
    """Return whether layers have a rank and frames."""
    if merge.to.kind("layer") not in ("standard", "soc"):
        return True
    if value is False:
        return False
    ranked, add = ("TT layers", "--new-layer tt")
    if "conv_type" in merge.flags:
        ranked, add = "SOTT and TT layers", "--conv-type sott"
    raise UsageError(f"{spelled(name)} belongs to {ranked}; add {add}, or leave it out")


def _controlled(merge: Merge, name: str, value: Any) -> bool:
    """Return whether there is a control; 0 steps are the paper's "never"."""
    if merge.to.kind("control") == "none" and value:
        raise UsageError(f"{spelled(name)} needs a control; add --clipping, or leave it out")
    return bool(merge.to.kind("control") != "none")


def _batchnorm_limited(merge: Merge, name: str, value: Any) -> bool:
    """Return whether BatchNorm has a limit; 0 steps are the paper's "never"."""
    if not merge.to.section("batchnorm") and value:
        raise UsageError(f"{spelled(name)} belongs to the limit on BatchNorm; add --lip-bn, or leave it out")
    return bool(merge.to.section("batchnorm"))


def _rank(merge: Merge, name: str, value: Any) -> None:
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


def _rank_scale(merge: Merge, name: str, value: float) -> None:
    if "dec_rank" in merge.given:
        raise UsageError("--dec-rank and --dec-scale exclude each other; give one of them")
    merge.to.drop("layer.rank")
    merge.to.put("layer.rank_scale", value)


def _frames_weight(merge: Merge, name: str, value: float) -> None:
    if (frames := merge.given.get("frames")) not in (None, "penalty"):
        merge.faults.append(f"--orthogonal-k weighs the penalty on frames; leave it or --frames {frames} out")
    merge.to.switch("layer.frames", "penalty")
    merge.to.put("layer.frames.weight", value)


def _control_kind(merge: Merge, name: str, value: str) -> None:
    kind = value.replace("_", "-")
    if kind not in (*CLIPPING_WORDS, *CLIPPING.values()):
        merge.faults.append(unknown_word(spelled(name), value, CLIPPING_WORDS))
        # An unknown kind counts as some kind: the flags below it are then judged as usual.
        kind = "divide"
    merge.put(name, kind)


def _clip_linear(merge: Merge, name: str, value: bool) -> None:
    section = merge.to.section("control")
    if value and (section.get("linear_max") is None or "clip_to" in merge.given):
        merge.to.put("control.linear_max", section.get("max_sigma", 1.0))


def _linear_max(merge: Merge, name: str, value: float) -> None:
    if not merge.given.get("clip_linear") and merge.to.section("control").get("linear_max") is None:
        raise UsageError("--clip-linear-to needs --clip-linear; add it, or leave --clip-linear-to out")
    if merge.to.kind("control") != "none":
        merge.put(name, value)


def _optimizer(merge: Merge, name: str, value: str) -> None:
    if value.lower() not in OPTIMIZERS:
        raise UsageError(unknown_word(spelled(name), value, OPTIMIZERS))
    merge.put(name, value.lower())


def _weight_decay(merge: Merge, name: str, value: float) -> None:
    if value and merge.to.kind("optimizer") == "adam":
        merge.notices.append("--weight-dec is passed on to Adam; the paper's code ignored it there")
    merge.put(name, value)


def _nesterov(merge: Merge, name: str, value: bool) -> None:
    if merge.to.kind("optimizer") not in ("adam", "adamw"):
        merge.put(name, value)
    elif value:
        merge.notices.append("--nesterov has no effect with Adam")


def _schedule(merge: Merge, name: str, value: str) -> None:
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


def _warmup(merge: Merge, name: str, value: float) -> None:
    if merge.to.kind("schedule") == "cosine":
        merge.put(name, value)
    elif value:
        raise UsageError("--warmup belongs to the cosine schedule; add --lr-schedule cosine, or leave it out")


def _lr_min(merge: Merge, name: str, value: float) -> None:
    if merge.to.kind("schedule") == "cyclic":
        merge.put(name, value)
    elif value and merge.given.get("lr_schedule") in (None, "multistep"):  # 0 is the paper's default
        raise UsageError("--lr-min is where cyclic rates start; add --lr-schedule cyclic, or leave it out")


def _kept_epochs(merge: Merge, name: str, value: int) -> None:
    merge.put(name, value)
    merge.to.put("checkpoint.keep", True)


def _loggers(merge: Merge, name: str, value: list[str]) -> None:
    there = list(merge.to.section("log").get("loggers", ()))
    known = {table.get("kind") for table in there if isinstance(table, Mapping)}
    for kind in dict.fromkeys(value):
        LOGGERS.get(kind)
        if kind not in known:
            there.append({"kind": kind})
    merge.put(name, there)


def _folder(merge: Merge, name: str, value: str) -> None:
    if merge.given.get("out_dir", value) != value:
        raise UsageError("--out-dir and --checkpoints-path name the same folder; give one of them")
    merge.to.put("out_dir", str(value))


def _without_effect(merge: Merge, name: str, value: Any) -> None:
    retired = "belongs to a retired mixed-precision library and has no effect; use --precision bf16-mixed or 16-mixed"
    unread = "has no effect: nothing in the paper's code reads it"
    merge.notices.append(f"{spelled(name)} {unread if name == 'multiply_by' else retired}")


def _always(*fields: tuple[str, Any]) -> Callable[[Merge, str, bool], None]:
    """Return a rule that sets the same fields whenever the flag is on."""

    def rule(merge: Merge, name: str, value: bool) -> None:
        for key, content in fields if value else ():
            merge.to.put(key, content)

    return rule


FORMS_OF_DATA = tuple(DATA.get(kind).form for kind in DATA.builtin_kinds())
PLUGIN = Flag(
    panel=Panel.RUN,
    text="Import a Python module or ./file.py of your own, which registers data sets, layers or other parts. "
    "Repeatable.",
    type=list[str],
    value="MODULE|FILE",
    default="",
)
SET = Flag(
    panel=Panel.RUN,
    text="Set any key of the configuration, as control.max_sigma=2. Repeatable.",
    type=list[str],
    value="KEY=VALUE",
    default="",
)
DEBUG = Flag(panel=Panel.RUN, text="Show the whole traceback of an error.", type=bool)
WRN, LIP = "train", "train-lipconv"
HARDWARE = ("accelerator", "devices", "num_nodes", "precision", "compile", "capture", "deterministic")
OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("multistep", "cyclic", "cosine", "constant")
FLAGS: Flags = {
    "preset": Flag(
        panel=Panel.RUN,
        text="Settings to begin with: a shipped preset (see --list-presets) or a TOML file, such as config.toml of a "
        "run.",
        type=str,
        value="NAME|FILE",
        default="",
    ),
    "set": SET,
    "plugin": PLUGIN,
    "resume": Flag(
        panel=Panel.RUN,
        text="Go on with a run that was stopped: its folder or its last.pt. With --epochs it becomes longer; --dataset "
        "says where its images lie now.",
        type=Path,
        value="RUN",
        default="",
    ),
    "allow_changed_data": Flag(
        panel=Panel.RUN, text="With --resume: go on although the images have changed since.", type=bool
    ),
    "list_presets": Flag(panel=Panel.RUN, text="List the presets and stop.", type=bool),
    "print_config": Flag(panel=Panel.RUN, text="Print the whole configuration as TOML and stop.", type=bool),
    "dry_run": Flag(panel=Panel.RUN, text="Print what would be done, without the images, and stop.", type=bool),
    "debug": DEBUG,
    "out_dir": Flag("out_dir", Panel.OUTPUT, value="FOLDER"),
    "name": Flag("name", Panel.OUTPUT, value="NAME"),
    "select": Flag(
        "evaluation.select",
        Panel.RUN,
        "Epoch that best.pt is of: none beside last.pt (last); the best on a part of the training images (validation); "
        "or the best on the test images, as in the paper's code, which is said in every output.",
    ),
    "max_steps": Flag(
        "max_steps", Panel.RUN, "Stop after this many steps; the learning-rate schedule still spans --epochs."
    ),
    "wandb": Flag("log.wandb", Panel.OUTPUT),
    "log": Flag(
        "log.loggers",
        Panel.OUTPUT,
        "A further log beside metrics.jsonl, which is always written; NAME is one of your own. Repeatable.",
        type=list[str],
        rule=_loggers,
        choices=("tensorboard", "mlflow", "wandb", "NAME"),
    ),
    "checkpoint_activations": Flag("model.checkpoint_activations", Panel.DEVICES, of=LIP),
    "dataset": Flag(
        "data.kind",
        Panel.DATA,
        "Images to train and test on. A folder holds train/ and test/, or train/ and val/, which is then what is "
        "tested on, with a folder for each class; CIFAR is downloaded.",
        type=str,
        rule=_data,
        choices=FORMS_OF_DATA,
    ),
    "dataset_root": Flag("data.root", Panel.DATA, rule=_root, value="FOLDER", of=WRN),
    "data_dir": Flag("data.root", Panel.DATA, rule=_root, spellings=("--dataset-root",), value="FOLDER", of=LIP),
    "image_size": Flag(
        "data.size",
        Panel.DATA,
        "Scale and crop the images of a folder to this side in pixels.",
        rule=set_image_size,
        default="none is scaled, all must be 32 x 32",
    ),
    "storage": Flag("data.storage", Panel.DATA, rule=set_of_folder, default="resident up to 2 GiB"),
    "workers": Flag("data.workers", Panel.DATA, rule=set_of_folder, default="one for each core, at most 16"),
    "resized_crop": Flag(
        panel=Panel.DATA,
        text="Train on random parts of an image, of at least this share of its area, scaled up to the whole size.",
        type=float,
        rule=_resized_crop,
        default="off",
    ),
    "architecture": Flag(
        panel=Panel.MODEL,
        text="Wide residual network of this depth and width, or VGG-19.",
        type=str,
        rule=_architecture,
        of=WRN,
        choices=("wrn16-10", "wrnDEPTH-WIDTH", "vgg19"),
        default="wrn10-2",
    ),
    "model": Flag(
        "model.network",
        Panel.MODEL,
        "Network of torchvision, of timm, or made by a function of yours, which is imported and called.",
        type=str,
        rule=_model,
        of=WRN,
        choices=("torchvision:NAME", "timm:NAME", "MODULE:FUNCTION", "FILE.py:FUNCTION"),
        default="that of --architecture",
    ),
    "init_from": Flag(
        "initial.file",
        Panel.MODEL,
        "Trained weights to start from: a file of any kind that inspect-spectrum reads, or those that torchvision "
        "publishes for its network, which it downloads.",
        type=str,
        rule=_init_from,
        of=WRN,
        choices=("FILE", PUBLISHED),
        default="random weights",
    ),
    "lenient": Flag(
        "initial.lenient",
        Panel.MODEL,
        "With --init-from: take the weights that fit, and list the others.",
        needs=_initialized,
        of=WRN,
    ),
    "key": Flag(
        "initial.key",
        Panel.MODEL,
        "With --init-from: which weights of a file that has several sets of them, as ema.",
        needs=_initialized,
        value="NAME",
        default="",
        of=WRN,
    ),
    "mean": Flag(
        "normalize.mean",
        Panel.MODEL,
        "Mean of each channel of the pixels in [0, 1], by which the network normalises its input: 1 or 3 numbers.",
        list[str],
        _channels,
        value="FLOAT,...",
        default="the network's own, else 0.5",
        of=WRN,
    ),
    "std": Flag(
        "normalize.std",
        Panel.MODEL,
        "Standard deviation of each channel: as many numbers as --mean has.",
        list[str],
        _channels,
        value="FLOAT,...",
        default="the network's own, else 0.5",
        of=WRN,
    ),
    "block_size": Flag("model.block_size", Panel.MODEL, of=LIP),
    "in_channels": Flag("model.in_channels", Panel.MODEL, of=LIP),
    "new_layer": Flag(
        "layer.kind",
        Panel.LAYER,
        "Kind of the convolutions: ordinary ones, or tensor-train (TT).",
        words=LAYERS,
        of=WRN,
        choices=("standard", "tt"),
    ),
    "conv_type": Flag(
        "layer.kind",
        Panel.LAYER,
        "Kind of the convolutions: ordinary, skew orthogonal (SOC), tensor-train (TT), or skew orthogonal in "
        "tensor-train form (SOTT).",
        words=LAYERS,
        of=LIP,
        choices=("standard", "skew", "tt", "sott"),
    ),
    "dec_rank": Flag(
        "layer.rank",
        Panel.LAYER,
        "Rank of the TT or SOTT layers; of LipConvNet also '64, 64, 64, 128, 128, 128': one for each of the five "
        "stages and for the last layer.",
        type=str,
        off=(-1, "-1"),
        rule=_rank,
        needs=_ranked,
        value="INT",
    ),
    "dec_scale": Flag(
        "layer.rank_scale",
        Panel.LAYER,
        "Ranks as this share of the channels of each layer, in place of --dec-rank.",
        off=(-1,),
        rule=_rank_scale,
        needs=_ranked,
        of=WRN,
    ),
    "no_compress_first": Flag(
        panel=Panel.LAYER,
        text="Leave the first convolution as it is, not in TT form.",
        type=bool,
        rule=_always(("layer.compress_first", False)),
        needs=_ranked,
        of=WRN,
    ),
    "orthogonal_k": Flag(
        "layer.frames.weight",
        Panel.LAYER,
        "Keep frames orthonormal by a penalty in the loss, of this weight, as the paper does (--frames penalty).",
        off=(-1,),
        rule=_frames_weight,
        needs=_ranked,
        default="1e5 with --frames penalty",
    ),
    "frames": Flag(
        "layer.frames.kind",
        Panel.LAYER,
        "How the frames, the two outer matrices of a TT layer, keep orthonormal columns: put right after each step "
        "(retract), by torch's parametrization, by a penalty in the loss, or not at all (free).",
        needs=_ranked,
    ),
    "clipping": Flag(
        "control.kind",
        Panel.CONTROL,
        "What is done to singular values above --clip-to. clip: each becomes --clip-to; divide-by-largest, "
        "divide-by-exact-largest: the layer is scaled down, by an estimate or a proved bound of the largest; "
        "divide-each-by-largest: so is each factor of a TT layer; assign: all become --clip-to, the smaller ones too.",
        rule=_control_kind,
        words=CLIPPING,
        choices=CLIPPING_WORDS,
    ),
    "clip_to": Flag("control.max_sigma", Panel.CONTROL, needs=_controlled),
    "clip_from": Flag(
        "control.max_sigma_start",
        Panel.CONTROL,
        "Largest singular value allowed at the first step, from which it moves to --clip-to.",
        needs=_controlled,
        default="--clip-to",
    ),
    "clip_epochs": Flag(
        "control.max_sigma_epochs",
        Panel.CONTROL,
        "With --clip-from: epochs until it has moved to --clip-to.",
        needs=_controlled,
        default="",
    ),
    "clip_freq": Flag("control.every_steps", Panel.CONTROL, needs=_controlled, of=WRN),
    "assigning_freq": Flag("control.every_steps", Panel.CONTROL, needs=_controlled, of=LIP),
    "clip_linear": Flag(
        panel=Panel.CONTROL,
        text="Control linear layers too, up to --clip-linear-to or, without it, up to --clip-to.",
        type=bool,
        rule=_clip_linear,
        needs=_controlled,
        of=WRN,
    ),
    "clip_linear_to": Flag(
        "control.linear_max",
        Panel.CONTROL,
        "Largest singular value that linear layers may have.",
        off=(-1,),
        rule=_linear_max,
        of=WRN,
    ),
    "procedure": Flag("control.procedure", Panel.CONTROL, needs=_controlled),
    "lip_bn": Flag(
        panel=Panel.CONTROL,
        text="Limit the gain of BatchNorm, the largest |gamma / sqrt(running_var + eps)|, to --bn-eps.",
        type=bool,
        rule=_always(("batchnorm", {"max_gain": 1.0})),
        needs=lambda merge, name, value: not merge.to.section("batchnorm"),
        of=WRN,
    ),
    "bn_eps": Flag("batchnorm.max_gain", Panel.CONTROL, needs=_batchnorm_limited, of=WRN),
    "freq_bn": Flag("batchnorm.every_steps", Panel.CONTROL, needs=_batchnorm_limited, of=WRN),
    "opt": Flag(
        "optimizer.kind", Panel.OPTIMISER, "Optimiser, in capitals or not.", rule=_optimizer, choices=OPTIMIZERS
    ),
    "init_lr": Flag("optimizer.lr", Panel.OPTIMISER, of=WRN),
    "weight_dec": Flag("optimizer.weight_decay", Panel.OPTIMISER, rule=_weight_decay, of=WRN),
    "nesterov": Flag("optimizer.nesterov", Panel.OPTIMISER, rule=_nesterov, negatable=True, of=WRN),
    "lr_schedule": Flag(
        "schedule.kind",
        Panel.OPTIMISER,
        "Learning rate over the run: a tenth after 50 and 75 % of it (multistep), up and down over and over (cyclic), "
        "half a cosine down to 0, or constant.",
        rule=_schedule,
        spellings=("--schedule",),
        choices=SCHEDULES,
    ),
    "lr_min": Flag(
        "schedule.lr_min",
        Panel.OPTIMISER,
        "With --lr-schedule cyclic: lowest learning rate, where each cycle begins and ends.",
        rule=_lr_min,
        of=LIP,
    ),
    "warmup": Flag(
        "schedule.warmup",
        Panel.OPTIMISER,
        "With --lr-schedule cosine: share of all steps in which the learning rate first rises from nearly 0.",
        rule=_warmup,
    ),
    "clip_grad": Flag("optimizer.clip_norm", Panel.OPTIMISER, default="off"),
    "mixup": Flag(
        "augment.mixup",
        Panel.DATA,
        "Train on mixtures of two images each (mixup), their shares drawn from Beta(a, a): the number a.",
        default="off",
    ),
    "accumulate": Flag("accumulate", Panel.OPTIMISER, default="1"),
    "ema": Flag(
        "ema.decay",
        Panel.OPTIMISER,
        "Evaluate and save a moving average of the weights, of this decay, as 0.999.",
        default="off",
    ),
    "label_smoothing": Flag("loss.label_smoothing", Panel.OPTIMISER, type=float, default="0"),
    "lr_max": Flag("optimizer.lr", Panel.OPTIMISER, of=LIP),
    "weight_decay": Flag("optimizer.weight_decay", Panel.OPTIMISER, of=LIP),
    "momentum": Flag("optimizer.momentum", Panel.OPTIMISER, of=LIP),
    "epsilon": Flag("certificate.epsilon", Panel.RUN, of=LIP),
    "epochs": Flag("epochs", Panel.OPTIMISER),
    "batch_size": Flag("batch_size", Panel.OPTIMISER),
    "init": Flag("init", Panel.MODEL),
    "conv_init": Flag("layer.init", Panel.LAYER, default="the network's own way", of=WRN),
    "gouk_transforms": Flag(
        panel=Panel.PAPER,
        text="Pad images by mirroring their edges, and normalise pixels by mean and standard deviation 0.5.",
        type=bool,
        rule=_always(("augment.pad", "symmetric"), ("normalize", HALF)),
        of=WRN,
    ),
    "seed": Flag("seed", Panel.RUN),
    "save_chp_every": Flag(
        "checkpoint.every_epochs",
        Panel.OUTPUT,
        "Keep a checkpoint epoch-<n>.pt every so many epochs; last.pt is written after each of them anyway.",
        rule=_kept_epochs,
        default="none is kept",
        of=WRN,
    ),
    "checkpoints_path": Flag(
        panel=Panel.PAPER, text="The same as --out-dir.", type=str, rule=_folder, value="FOLDER", default="", of=WRN
    ),
    "collect_sing_vals": Flag("log.singular_values", Panel.OUTPUT, of=WRN),
    "multiply_by": Flag(
        panel=Panel.PAPER,
        text="Accepted without effect: nothing in the paper's code reads it.",
        type=float,
        rule=_without_effect,
        default="",
        of=WRN,
    ),
    **dict.fromkeys(
        ("opt_level", "loss_scale"),
        Flag(
            panel=Panel.PAPER,
            text="Accepted without effect; use --precision.",
            type=str,
            rule=_without_effect,
            default="",
            of=LIP,
        ),
    ),
    **{name: Flag(f"hardware.{name}", Panel.DEVICES) for name in HARDWARE},
}
"""Options of both training commands, in the order in which they take effect."""
PAPER_BASIS = ("architecture", "new_layer", "conv_type")
"""Options of the paper's code that name network or layer: with one of them, flags change that code's defaults."""
TRAIN = Command(
    WRN,
    "network under singular-value control",
    "quickstart",
    "a LipConvNet",
    examples=(
        (
            "Images of your own, a network of torchvision, singular values of at most 2:",
            "svdctl train --dataset folder:PATH --image-size 64 "
            "--model torchvision:resnet18 --clipping clip --clip-to 2",
        ),
        ("A preset, one key of it changed, shown before it is trained:",
         "svdctl train --preset wrn-cifar100-clip --set control.max_sigma=1 --dry-run"),
    ),
)  # fmt: skip
LIPCONV = Command(
    LIP,
    "LipConvNet whose answers are certified",
    "lipconv-quickstart",
    "networks other than LipConvNet",
    examples=(
        ("Embedded images, the accuracy certified within a radius of 72/255:", "svdctl train-lipconv --epsilon 72"),
        ("LipConvNet-20 of SOC layers on CIFAR-10, bit by bit repeatable on a GPU:",
         "svdctl train-lipconv --dataset cifar10 --block-size 4 --conv-type skew "
         "--lr-schedule multistep --deterministic"),
    ),
)  # fmt: skip


def command_of(model: Any) -> Command:
    """Return the command that trains a kind of network."""
    return LIPCONV if model == "lipconv" else TRAIN


def resolve(given: Mapping[str, Any], command: Command = TRAIN) -> Resolved[TrainConfig]:
    """Return the configuration that flags make; keys are names of flags with underscores.

    Raises:
        UsageError: with every fault of the flags and of the configuration.
    """
    faults: list[str] = []
    table, base = _base(command, given, faults)
    merge = Merge(command.flags, given, with_kinds(table))
    merge.faults += faults
    if plugins := merge.load_plugins(table.get("plugins", ())):
        merge.to.put("plugins", list(plugins))
    if _is_quickstart(given) and (augmentation := _augmentation(merge)):
        merge.to.put("augment", augmentation)
    if "preset" not in given and given.keys() & {*PAPER_BASIS, "dataset", "model"}:
        merge.to.put("name", _name(command, merge))
    merge.apply()
    merge.faults += fill_normalization(merge.to.table)
    grant_network(merge.to)
    if not command.owns(merge.to.table):
        merge.faults.append(f"--set model.kind={merge.to.kind('model')} {command.why_foreign}")
    words, preset = command.words, str(given.get("preset", ""))
    if not os.path.isfile(own_file(preset) or ""):
        return Resolved(merge.result(TrainConfig, words), tuple(merge.notices), base)
    # What stands in a user's file is mended there: only keys that flags have set are called by their flags.
    words = {key: flag for key, flag in words.items() if flag in map(spelled, merge.given)}
    try:
        config = merge.result(TrainConfig, words)
    except UsageError as error:
        raise UsageError(faults_with_lines(error.faults, preset, merge.changed_keys)) from error
    return Resolved(config, tuple(merge.notices), base)


def resolve_resume(given: Mapping[str, Any], command: Command, run: Path) -> dict[str, Any]:
    """Return what a resumed run takes from its flags, a nested table: epochs, devices, W&B, the place of the data.

    Args:
        given: the flags.
        command: whose flags they are.
        run: its folder or a checkpoint in it, for messages.

    Raises:
        UsageError: with every fault; other flags are refused.
    """
    merge = Merge(command.flags, given, {})
    merge.load_plugins()
    changes: dict[str, Any] = {}
    for name in given.keys() - {"plugin"}:
        key = command.flags[name].key
        section, _, last = key.rpartition(".")
        if key == "data.root":
            changes.setdefault("data", {})["root"] = Path(given[name])
        elif name == "dataset":
            try:
                changes.setdefault("data", {}).update(data_table(given[name]))
            except UsageError as error:
                merge.faults += error.faults
        elif key in ("epochs", "log.wandb") or section == "hardware":
            merge.put(name, given[name])
            (changes.setdefault(section, {}) if section else changes)[last] = given[name]
        elif name in ("print_config", "dry_run"):
            merge.faults.append(f"{spelled(name)} shows a new run; leave it or --resume out")
        else:
            merge.faults.append(
                f"{spelled(name)} cannot change a run that is resumed; leave it out, or start a new run with "
                f"--preset {(run.parent if run.suffix == '.pt' else run) / 'config.toml'}"
            )
    config = merge.result(TrainConfig, command.words)
    # As the schema reads them: devices may be a number or `auto`. The data are those of the run.
    for section in changes.keys() & {"log", "hardware"}:
        changes[section] = {key: getattr(getattr(config, section), key) for key in changes[section]}
    return changes


def _base(command: Command, given: Mapping[str, Any], faults: list[str]) -> tuple[dict[str, Any], str]:
    defaults = paper_defaults(given, lipconv=command is LIPCONV)
    if "preset" in given:
        name = str(given["preset"])
        try:
            table = read_preset(name)
            if not command.owns(table):
                faults.append(f"--preset {name} {command.why_foreign}")
        except UsageError as error:
            faults += error.faults
            # The other flags are judged as if the nearest preset was meant.
            near = closest(name.replace("_", "-"), list_presets())
            table = read_preset(near) if near else defaults
        return (table if command.owns(table) else defaults), f"preset {name} (--preset names it)"
    if _is_quickstart(given):
        table = read_preset(command.quickstart)
        if "model" not in given:
            basis = listed(spelled(name) for name in ("preset", *PAPER_BASIS) if name in command.flags)
            return table, f"preset {command.quickstart} (no {basis} is given)"
        for section in ("model", "layer", "control", "batchnorm"):
            table.pop(section, None)
        why = "--model is given: layers stay as they are, without a control unless flags say so"
        return table, f"optimiser and schedule of preset {command.quickstart} ({why})"
    named = listed((spelled(name) for name in PAPER_BASIS if name in given), "and")
    return defaults, f"the paper's defaults ({named} given)"


def _is_quickstart(given: Mapping[str, Any]) -> bool:
    """Return whether flags change the quick start: they name no preset, and no network or layer of the paper's code."""
    return "preset" not in given and ("model" in given or not any(name in given for name in PAPER_BASIS))


def _augmentation(merge: Merge) -> dict[str, Any] | None:
    """Return the augmentation that belongs to the data of the flags; None where these are at fault."""
    about_data = {name: value for name, value in merge.given.items() if merge.flags[name].key.startswith("data.")}
    about_data["set"] = [text for text in merge.given.get("set", ()) if re.match(r"\s*data\b", text)]
    # Flags about augmentation change what this returns: the data are known before these are applied.
    ahead = Merge(merge.flags, about_data, deepcopy(merge.to.table))
    ahead.apply()
    source = DATA.find(str(ahead.to.kind("data")))
    if source is None:
        return None
    try:
        config = source.config.model_validate(ahead.to.section("data"))
    except ValidationError:
        return None
    augmentation: dict[str, Any] = source.augmentation(config).model_dump(exclude_none=True)
    return augmentation


def _name(command: Command, merge: Merge) -> str:
    """Return the name of a run that its flags alone make."""
    given = merge.given
    if "model" in given:
        net = str(given["model"]).rpartition(":")[2]
    elif _is_quickstart(given):
        net = command.quickstart
    elif command is TRAIN:
        net = str(given.get("architecture", "wrn16-10"))
    else:
        kind, rank = given.get("conv_type", "standard"), str(given.get("dec_rank", ""))
        blocks = given.get("block_size", merge.to.section("model").get("block_size", 1))
        net = f"lipconv{5 * blocks}-{kind}{rank if rank.isdigit() else ''}"
    return run_name(f"{net}-{str(given.get('dataset', merge.to.kind('data'))).partition(':')[0]}")
