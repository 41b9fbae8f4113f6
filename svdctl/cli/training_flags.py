"""The flags of the two training commands, the paper's among them, and what they mean.

A flag changes one field of a base: a preset, the paper's defaults, or the quick start.
"""

import os
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from svdctl.checkpoint.paper_normalization import HALF
from svdctl.cli.options import (
    DEVICES,
    RECIPE,
    RUN,
    Flag,
    Flags,
    Merge,
    Resolved,
    flags_by_key,
    listed,
    spelled,
)  # fmt: skip
from svdctl.cli.paper_flags import CLIPPING, CLIPPING_WORDS, LAYERS, PEAK_MOMENTUM, paper_defaults
from svdctl.config.configuration import fill_normalization, grant_network, with_kinds
from svdctl.config.model_config import PUBLISHED
from svdctl.config.presets import list_presets, read_preset, run_name
from svdctl.config.train_config import TrainConfig
from svdctl.errors import UsageError, closest
from svdctl.plugins import is_factory, network_name
from svdctl.registry import DATA, LOGGERS


@dataclass(frozen=True)
class Command:
    """Describe one of the two training commands: its options, and the configuration that they change.

    Attributes:
        trains: what it trains, in words.
        quickstart: name of the preset that the options change without `--preset` and those of `PAPER_BASIS`.
        others: the networks that the other command trains, in words.
    """

    name: str
    trains: str
    quickstart: str
    others: str

    @property
    def flags(self) -> Flags:
        """Return its options."""
        return {name: flag for name, flag in FLAGS.items() if flag.of in ("", self.name)}

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
        raise UsageError(f"--dataset {text}: not one of {listed((one.form for one in DATA.variants()), 'and')}")
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
        raise UsageError(f"--architecture {value}: not one of wrn16-10 (any wrnDEPTH-WIDTH) and vgg19")


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
        merge.faults.append(f"--clipping {value}: not one of {listed(CLIPPING_WORDS, 'and')}")
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
    if value.lower() not in ("sgd", "adam", "adamw"):
        raise UsageError(f"--opt {value}: not one of SGD, Adam and AdamW")
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
        raise UsageError(f"{spelled(name)} {value}: not one of multistep and cyclic, nor cosine or constant")
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


FORMS_OF_DATA = listed(DATA.get(kind).form for kind in DATA.builtin_kinds())
PLUGIN = Flag(
    panel=RUN,
    text="Module or ./file.py that registers data sets, layers and other variants. It is imported. Repeatable.",
    type=list[str],
)
SET = Flag(panel=RUN, text="key.path=value: any field of the configuration. Repeatable.", type=list[str])
DEBUG = Flag(panel=RUN, text="Show tracebacks.", type=bool)
WRN, LIP = "train", "train-lipconv"
NETWORK = "Networks that svdctl does not define, and trained weights"
RANKS = "Rank of TT and SOTT layers, or '64, 64, 64, 128, 128, 128': one for each stage and the last layer."
HARDWARE = ("accelerator", "devices", "num_nodes", "precision", "compile", "capture", "deterministic")
FLAGS: Flags = {
    "preset": Flag(panel=RUN, text="Shipped preset by name, or a TOML file.", type=str),
    "set": SET,
    "plugin": PLUGIN,
    "resume": Flag(
        panel=RUN,
        text="Run folder or last.pt to go on with; --epochs extends it, --dataset says where its data lie now.",
        type=Path,
    ),
    "allow_changed_data": Flag(panel=RUN, text="Go on with --resume though the data have changed.", type=bool),
    "list_presets": Flag(panel=RUN, text="List the presets and stop.", type=bool),
    "print_config": Flag(panel=RUN, text="Print the resolved configuration as TOML and stop.", type=bool),
    "dry_run": Flag(panel=RUN, text="Print the plan and stop; needs no data.", type=bool),
    "debug": DEBUG,
    "out_dir": Flag("out_dir", RUN),
    "name": Flag("name", RUN),
    "select": Flag("evaluation.select", RUN),
    "max_steps": Flag(
        "max_steps", RUN, "Stop after this many steps, wherever in an epoch; the schedule still spans --epochs."
    ),
    "wandb": Flag("log.wandb", RUN),
    "log": Flag(
        "log.loggers",
        RUN,
        "A further log: tensorboard, mlflow, wandb, or one of your own; metrics.jsonl is always written. Repeatable.",
        type=list[str],
        rule=_loggers,
    ),
    "checkpoint_activations": Flag("model.checkpoint_activations", RUN, of=LIP),
    "dataset": Flag("data.kind", text=f"{FORMS_OF_DATA}.", type=str, rule=_data),
    "dataset_root": Flag("data.root", rule=_root, of=WRN),
    "data_dir": Flag("data.root", rule=_root, spellings=("--dataset-root",), of=LIP),
    "image_size": Flag("data.size", text="Side of images of a folder, scaled and cropped to it.", rule=set_image_size),
    "storage": Flag("data.storage", rule=set_of_folder),
    "workers": Flag("data.workers", rule=set_of_folder),
    "resized_crop": Flag(
        text="Train on random crops of at least this share of an image, scaled up to it, in place of padded ones.",
        type=float,
        rule=_resized_crop,
    ),
    "architecture": Flag(text="wrn16-10, any wrnDEPTH-WIDTH, or vgg19.", type=str, rule=_architecture, of=WRN),
    "model": Flag(
        "model.network",
        NETWORK,
        "torchvision:NAME, timm:NAME, package.module:factory or ./file.py:factory; a factory is imported.",
        type=str,
        rule=_model,
        of=WRN,
    ),
    "init_from": Flag(
        "initial.file",
        NETWORK,
        "File of trained weights to start from, any that inspect-spectrum reads; or torchvision: it downloads its own.",
        type=str,
        rule=_init_from,
        of=WRN,
    ),
    "lenient": Flag(
        "initial.lenient", NETWORK, "With --init-from: take what fits, and name the rest.", needs=_initialized, of=WRN
    ),
    "key": Flag("initial.key", NETWORK, needs=_initialized, of=WRN),
    "mean": Flag(
        "normalize.mean", NETWORK, "Means of the pixels, in [0, 1] (the network's own).", list[str], _channels, of=WRN
    ),
    "std": Flag("normalize.std", NETWORK, "Their standard deviations.", list[str], _channels, of=WRN),
    "block_size": Flag("model.block_size", of=LIP),
    "in_channels": Flag("model.in_channels", of=LIP),
    "new_layer": Flag("layer.kind", text="Convolutions: standard or tt.", words=LAYERS, of=WRN),
    "conv_type": Flag("layer.kind", text="Convolutions: standard, skew (SOC), tt or sott.", words=LAYERS, of=LIP),
    "dec_rank": Flag("layer.rank", text=RANKS, type=str, off=(-1, "-1"), rule=_rank, needs=_ranked),
    "dec_scale": Flag(
        "layer.rank_scale",
        text="Ranks as a share of each layer's widths, instead of --dec-rank.",
        off=(-1,),
        rule=_rank_scale,
        needs=_ranked,
        of=WRN,
    ),
    "no_compress_first": Flag(
        text="Leave the first convolution as it is.",
        type=bool,
        rule=_always(("layer.compress_first", False)),
        needs=_ranked,
        of=WRN,
    ),
    "orthogonal_k": Flag("layer.frames.weight", off=(-1,), rule=_frames_weight, needs=_ranked),
    "frames": Flag(
        "layer.frames.kind", text="Frames: retract, parametrize, penalty, free (svdctl's own).", needs=_ranked
    ),
    "clipping": Flag("control.kind", text=f"Control: {listed(CLIPPING_WORDS)}.", rule=_control_kind, words=CLIPPING),
    "clip_to": Flag("control.max_sigma", needs=_controlled),
    "clip_from": Flag("control.max_sigma_start", RECIPE, needs=_controlled),
    "clip_epochs": Flag("control.max_sigma_epochs", RECIPE, needs=_controlled),
    "clip_freq": Flag("control.every_steps", needs=_controlled, of=WRN),
    "assigning_freq": Flag("control.every_steps", needs=_controlled, of=LIP),
    "clip_linear": Flag(
        text="Control linear layers too: up to --clip-linear-to, without it up to --clip-to.",
        type=bool,
        rule=_clip_linear,
        needs=_controlled,
        of=WRN,
    ),
    "clip_linear_to": Flag("control.linear_max", off=(-1,), rule=_linear_max, of=WRN),
    "procedure": Flag("control.procedure", needs=_controlled),
    "lip_bn": Flag(
        text="Limit the gain of BatchNorm.",
        type=bool,
        rule=_always(("batchnorm", {"max_gain": 1.0})),
        needs=lambda merge, name, value: not merge.to.section("batchnorm"),
        of=WRN,
    ),
    "bn_eps": Flag("batchnorm.max_gain", needs=_batchnorm_limited, of=WRN),
    "freq_bn": Flag("batchnorm.every_steps", needs=_batchnorm_limited, of=WRN),
    "opt": Flag("optimizer.kind", text="SGD, Adam or AdamW.", rule=_optimizer),
    "init_lr": Flag("optimizer.lr", of=WRN),
    "weight_dec": Flag("optimizer.weight_decay", rule=_weight_decay, of=WRN),
    "nesterov": Flag("optimizer.nesterov", rule=_nesterov, negatable=True, of=WRN),
    "lr_schedule": Flag(
        "schedule.kind",
        text="Learning rate: multistep (a tenth at 50 and 75 %), cyclic, cosine or constant.",
        rule=_schedule,
        spellings=("--schedule",),
    ),
    "lr_min": Flag("schedule.lr_min", rule=_lr_min, of=LIP),
    "warmup": Flag("schedule.warmup", RECIPE, rule=_warmup),
    "clip_grad": Flag("optimizer.clip_norm", RECIPE),
    "mixup": Flag("augment.mixup", RECIPE, "Mix each two images by shares drawn from Beta(a, a): the number a."),
    "accumulate": Flag("accumulate", RECIPE),
    "ema": Flag("ema.decay", RECIPE, "Evaluate and save an average of the weights, of this decay, as 0.999."),
    "label_smoothing": Flag("loss.label_smoothing", RECIPE, type=float),
    "lr_max": Flag("optimizer.lr", text="Learning rate, or its maximum (0.1).", of=LIP),
    "weight_decay": Flag("optimizer.weight_decay", text="Weight decay (5e-4 of SOC, else 0).", of=LIP),
    "momentum": Flag("optimizer.momentum", of=LIP),
    "epsilon": Flag("certificate.epsilon", of=LIP),
    "epochs": Flag("epochs"),
    "batch_size": Flag("batch_size"),
    "init": Flag("init", text="How weights start: svdctl, or paper: as in the paper's public code (svdctl's own)."),
    "conv_init": Flag("layer.init", of=WRN),
    "gouk_transforms": Flag(
        text="Symmetric padding; mean and std 0.5.",
        type=bool,
        rule=_always(("augment.pad", "symmetric"), ("normalize", HALF)),
        of=WRN,
    ),
    "seed": Flag("seed"),
    "save_chp_every": Flag(
        "checkpoint.every_epochs",
        text="Epochs between two checkpoints that are kept, as epoch-<n>.pt. last.pt is written after every epoch.",
        rule=_kept_epochs,
        of=WRN,
    ),
    "checkpoints_path": Flag(text="The same as --out-dir.", type=str, rule=_folder, of=WRN),
    "collect_sing_vals": Flag("log.singular_values", of=WRN),
    "multiply_by": Flag(text="Accepted; has no effect.", type=float, rule=_without_effect, of=WRN),
    **dict.fromkeys(
        ("opt_level", "loss_scale"),
        Flag(text="Accepted; --precision replaces it.", type=str, rule=_without_effect, of=LIP),
    ),
    **{name: Flag(f"hardware.{name}", DEVICES) for name in HARDWARE},
}
"""Options of both training commands, in the order in which they take effect."""
PAPER_BASIS = ("architecture", "new_layer", "conv_type")
"""Options of the paper's code that name network or layer: with one of them, flags change that code's defaults."""
TRAIN = Command(WRN, "network under singular-value control", "quickstart", "a LipConvNet")
LIPCONV = Command(LIP, "LipConvNet whose answers are certified", "lipconv-quickstart", "networks other than LipConvNet")


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
    words = command.words
    if os.path.isfile(os.path.expanduser(str(given.get("preset", "")))):
        # What stands in a user's file is mended there: only keys that flags have set are called by their flags.
        words = {key: flag for key, flag in words.items() if flag in map(spelled, merge.given)}
    return Resolved(merge.result(TrainConfig, words), tuple(merge.notices), base)


def resolve_resume(given: Mapping[str, Any], command: Command = TRAIN) -> dict[str, Any]:
    """Return what a resumed run takes from its flags, a nested table: epochs, devices, W&B, the place of the data.

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
                "--preset RUN/config.toml"
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
