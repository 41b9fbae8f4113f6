"""The two training commands, and the configuration that their flags make of a base.

A flag changes one field of a base: a preset, the paper's defaults, or the quick start.
"""

import os
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from svdctl.cli.options import Base, Flags, Merge, Resolved, flags_by_key, listed, spelled
from svdctl.cli.paper_flags import paper_defaults
from svdctl.cli.training_rules import data_table
from svdctl.cli.training_table import FLAGS, LIP, PAPER_BASIS, WRN
from svdctl.config.configuration import fill_normalization, grant_network, with_kinds
from svdctl.config.presets import faults_with_lines, list_presets, own_file, read_preset, run_name
from svdctl.config.train_config import TrainConfig
from svdctl.errors import UsageError, closest
from svdctl.plugins import is_factory
from svdctl.registry import DATA


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
        """Return its options, with what they mean for it; of presets, a shell is offered those that it trains."""
        own = {"preset": replace(FLAGS["preset"], candidates=partial(list_presets, lipconv=self is LIPCONV))}
        if self is TRAIN:
            own["dec_rank"] = replace(FLAGS["dec_rank"], text="Rank of the TT layers.")
        return {name: flag for name, flag in (FLAGS | own).items() if flag.of in ("", self.name)}

    @property
    def base(self) -> Base:
        """Return the quick start, which holds where neither a preset nor an option of `PAPER_BASIS` is given."""
        table = read_preset(self.quickstart)
        base = Base("quick start", TrainConfig.model_validate(table))
        if "model" not in self.flags:
            return base
        return replace(base, other="with --model", other_config=TrainConfig.model_validate(_without_layers(table)))

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
        table = _without_layers(table)
        why = "--model is given: layers stay as they are, without a control unless flags say so"
        return table, f"optimiser and schedule of preset {command.quickstart} ({why})"
    named = listed((spelled(name) for name in PAPER_BASIS if name in given), "and")
    return defaults, f"the paper's defaults ({named} given)"


def _without_layers(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a preset without its network and what is done to layers, for a network of the user's."""
    return {key: value for key, value in table.items() if key not in ("model", "layer", "control", "batchnorm")}


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
