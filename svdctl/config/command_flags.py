"""The two training commands: what they call the fields of the configuration, and what else they differ in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COMMON = {
    **{name: name for name in ("name", "seed", "epochs", "max_steps", "batch_size", "out_dir")},
    "dataset": "data.kind",
    "dec_rank": "layer.rank",
    "frames": "layer.frames.kind",
    "orthogonal_k": "layer.frames.weight",
    "clipping": "control.kind",
    "clip_to": "control.max_sigma",
    "procedure": "control.procedure",
    "select": "evaluation.select",
    "wandb": "log.wandb",
    **{name: f"hardware.{name}" for name in ("accelerator", "devices", "num_nodes", "precision", "compile")},
}


@dataclass(frozen=True)
class Command:
    """A training command and its flags."""

    name: str
    fields: Mapping[str, str]
    """The field that a flag sets, by the flag's name with underscores."""
    quickstart: str
    """The preset that flags change when none of them is one of `basis`."""
    basis: frozenset[str]
    """Fields and flags that name data, network or layer."""
    minus_one_is_off: frozenset[str]
    """Fields whose flag says "not given" by -1, as in the paper's code."""
    layers: Mapping[str, str] = field(default_factory=dict)
    """Kinds of layers that the flag spells in another way, by that spelling."""
    also: Mapping[str, str] = field(default_factory=dict)
    """Flags by further fields that they set."""

    def by_field(self, flags: Mapping[str, Any]) -> dict[str, Any]:
        """The flags by the field that each sets; those without one keep their names."""
        return {self.fields.get(name, name): value for name, value in flags.items()}

    def flag(self, path: str) -> str | None:
        """The flag that sets a field, `--dec-rank` for `layer.rank`; None when there is none."""
        names = {path: name for name, path in self.fields.items()} | dict(self.also)
        return spelled(names[path]) if path in names else None

    def where(self, path: str) -> str:
        """A field as a user knows it: the flag and the key, or the key alone."""
        above, _, index = path.rpartition(".")
        flag = self.flag(above if index.isdigit() else path)
        return f"{flag} ({path})" if flag else path

    def owns(self, table: Mapping[str, Any]) -> bool:
        """Whether a configuration is of this command: LipConvNets are trained by one, other networks by the other."""
        model = table.get("model")
        return (isinstance(model, Mapping) and model.get("kind") == "lipconv") == (self is LIPCONV)

    def foreign(self, what: str) -> str:
        """That something belongs to the other command."""
        other = TRAIN if self is LIPCONV else LIPCONV
        nets = "a LipConvNet" if self is TRAIN else "networks other than LipConvNet"
        return f"{what} is for {nets}; use svdctl {other.name} in place of svdctl {self.name}"


def spelled(flag: str) -> str:
    """`clip_to` as `--clip-to`."""
    return "--" + flag.replace("_", "-")


TRAIN = Command(
    name="train",
    fields=COMMON
    | {
        "dataset_root": "data.root",
        "new_layer": "layer.kind",
        "dec_scale": "layer.rank_scale",
        "conv_init": "layer.init",
        "clip_freq": "control.every_steps",
        "clip_linear_to": "control.linear_max",
        "bn_eps": "batchnorm.max_gain",
        "freq_bn": "batchnorm.every_steps",
        "opt": "optimizer.kind",
        "init_lr": "optimizer.lr",
        "weight_dec": "optimizer.weight_decay",
        "nesterov": "optimizer.nesterov",
        "save_chp_every": "checkpoint.every_epochs",
        "collect_sing_vals": "log.singular_values",
    },
    quickstart="quickstart",
    basis=frozenset({"data.kind", "architecture", "layer.kind"}),
    minus_one_is_off=frozenset({"layer.rank", "layer.rank_scale", "layer.frames.weight", "control.linear_max"}),
    also={"model.depth": "architecture", "model.width": "architecture"},
)
LIPCONV = Command(
    name="train-lipconv",
    fields=COMMON
    | {
        "data_dir": "data.root",
        "block_size": "model.block_size",
        "in_channels": "model.in_channels",
        "checkpoint_activations": "model.checkpoint_activations",
        "conv_type": "layer.kind",
        "assigning_freq": "control.every_steps",
        "lr_schedule": "schedule.kind",
        "lr_min": "schedule.lr_min",
        "lr_max": "optimizer.lr",
        "weight_decay": "optimizer.weight_decay",
        "momentum": "optimizer.momentum",
        "epsilon": "certificate.epsilon",
    },
    quickstart="lipconv-quickstart",
    basis=frozenset({"data.kind", "data.root", "model.block_size", "model.in_channels", "layer.kind"}),
    minus_one_is_off=frozenset({"layer.rank"}),
    layers={"skew": "soc"},
)


def command_of(model: str) -> Command:
    """The command that trains a kind of network."""
    return LIPCONV if model == "lipconv" else TRAIN
