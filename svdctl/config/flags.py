"""Flags of `svdctl train`, the paper's among them, to a configuration; every fault is collected before one is reported.

A flag changes one field of a base: a preset, the paper's defaults, or the quick start.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from svdctl.config.faults import sentences
from svdctl.config.train import TrainConfig
from svdctl.errors import UsageError
from svdctl.presets import read_preset

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
NORMALIZE = {
    "cifar10": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "cifar100": {"mean": [0.5071, 0.4867, 0.4408], "std": [0.2675, 0.2565, 0.2761]},
}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
DIRECT = {
    "batch_size": "batch_size",
    "epochs": "epochs",
    "seed": "seed",
    "name": "name",
    "max_steps": "max_steps",
    "init_lr": "optimizer.lr",
    "weight_dec": "optimizer.weight_decay",
    "conv_init": "layer.init",
    "save_chp_every": "checkpoint.every",
    "select": "evaluation.select",
    "accelerator": "hardware.accelerator",
    "devices": "hardware.devices",
    "num_nodes": "hardware.num_nodes",
    "precision": "hardware.precision",
    "compile": "hardware.compile",
    "wandb": "log.wandb",
    "collect_sing_vals": "log.singular_values",
}


@dataclass(frozen=True)
class Resolved:
    """A configuration, what it was based on, and remarks about the flags."""

    config: TrainConfig
    base: str
    notices: tuple[str, ...]


def resolve(flags: Mapping[str, Any]) -> Resolved:
    """The configuration that the flags ask for; flags that were not given are absent or None.

    Raises:
        UsageError: with every fault of the flags and of the configuration.
    """
    given = {name: value for name, value in flags.items() if value is not None and value != []}
    return _Resolver(given).resolve()


@dataclass
class _Resolver:
    given: dict[str, Any]
    table: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def resolve(self) -> Resolved:
        base = self._base()
        self._data()
        self._model()
        self._layer()
        self._control()
        self._batchnorm()
        self._optimizer()
        for flag, path in DIRECT.items():
            if flag in self.given:
                self._put(path, self.given[flag])
        self._folder()
        if "multiply_by" in self.given:
            self.notices.append("--multiply-by has no effect: nothing in the paper's code reads it")
        for assignment in self.given.get("set", ()):
            self._assign(assignment)
        config = None
        try:
            config = TrainConfig.model_validate(self.table)
        except ValidationError as error:
            self.faults += sentences(error)
        if self.faults or config is None:
            raise UsageError(dict.fromkeys(self.faults))
        return Resolved(config, base, tuple(self.notices))

    # the base

    def _base(self) -> str:
        if "preset" in self.given:
            self.table = read_preset(self.given["preset"])
            return f"preset {self.given['preset']}"
        if self.given.keys() & {"dataset", "architecture", "new_layer"}:
            self.table = self._paper_defaults()
            return "the paper's defaults (a flag names data, network or layer)"
        self.table = read_preset("quickstart")
        return "preset quickstart (no flag names data, network or layer)"

    def _paper_defaults(self) -> dict[str, Any]:
        """The public code's defaults, which depend on data and architecture."""
        dataset = str(self.given.get("dataset", "cifar10")).split(":")[0]
        vgg = self.given.get("architecture") == "vgg19"
        schedule = {"at": [100 / 140, 120 / 140], "factor": 0.1} if vgg else {"at": [0.3, 0.6, 0.8], "factor": 0.2}
        adam = self.given.get("opt", "SGD").lower() == "adam"
        optimizer: dict[str, Any] = {"kind": "sgd", "lr": 0.01, "weight_decay": 1e-4}
        if adam:
            optimizer = {"kind": "adam", "lr": 0.01}
        kind = "vgg19" if vgg else "wrn16-10"
        return {
            "name": f"{kind}-{dataset}",
            "data": {"kind": "cifar10"},
            "augment": {"flip": True, "crop": 4, "pad": "zero"},
            "normalize": HALF if vgg else NORMALIZE.get(dataset, HALF),
            "model": {"kind": "vgg"} if vgg else {"kind": "wrn"},
            "optimizer": optimizer,
            "schedule": {"kind": "steps", **schedule},
            "checkpoint": {"every": 200},
        }

    # one method for each section of the configuration

    def _data(self) -> None:
        name = self.given.get("dataset")
        if name is not None:
            kind, _, path = str(name).partition(":")
            if kind not in ("cifar10", "cifar100", "digits", "folder", "npz"):
                self.faults.append(f"--dataset {name}: not one of cifar10, cifar100, digits, folder:PATH and npz:PATH")
            elif kind in ("folder", "npz") and not path:
                self.faults.append(f"--dataset {kind} needs a path: --dataset {kind}:PATH")
            else:
                self._kind("data", kind)
                if path:
                    self._put("data.path", path)
        if "dataset_root" in self.given:
            if self._seen("data").get("kind") in ("cifar10", "cifar100"):
                self._put("data.root", str(self.given["dataset_root"]))
            else:
                self.faults.append(
                    "--dataset-root is where CIFAR lies; add --dataset cifar10 or cifar100, or leave it out"
                )
        if self.given.get("gouk_transforms"):
            self._put("augment.pad", "symmetric")
            self.table["normalize"] = HALF

    def _model(self) -> None:
        name = self.given.get("architecture")
        if name is None:
            return
        match = re.fullmatch(r"wrn(\d+)-(\d+)", name)
        if match:
            self._kind("model", "wrn")
            self._put("model.depth", int(match[1]))
            self._put("model.width", int(match[2]))
        elif name == "vgg19":
            self._kind("model", "vgg")
        else:
            self.faults.append(f"--architecture {name}: not one of wrn16-10 (any wrnDEPTH-WIDTH) and vgg19")

    def _layer(self) -> None:
        given = self.given
        if "new_layer" in given:
            self._kind("layer", given["new_layer"])
        tt = self._seen("layer").get("kind") == "tt"
        if not tt:
            for flag, spelling in (
                ("dec_rank", "--dec-rank"),
                ("dec_scale", "--dec-scale"),
                ("orthogonal_k", "--orthogonal-k"),
                ("frames", "--frames"),
                ("no_compress_first", "--no-compress-first"),
            ):
                if flag in given:
                    self.faults.append(f"{spelling} belongs to TT layers; add --new-layer tt, or leave it out")
            return
        if "dec_rank" in given and "dec_scale" in given:
            self.faults.append("--dec-rank and --dec-scale exclude each other; give one of them")
        layer = self._section("layer")
        if "dec_rank" in given:
            layer.pop("rank_scale", None)
            layer["rank"] = given["dec_rank"]
        elif "dec_scale" in given:
            layer.pop("rank", None)
            layer["rank_scale"] = given["dec_scale"]
        if "no_compress_first" in given:
            layer["compress_first"] = not given["no_compress_first"]
        frames = given.get("frames")
        if "orthogonal_k" in given and frames not in (None, "penalty"):
            self.faults.append(f"--orthogonal-k weighs the penalty on frames; leave it or --frames {frames} out")
        if "orthogonal_k" in given:
            frames = "penalty"
        if frames is not None:
            self._kind("layer.frames", frames)
        elif "preset" not in given and "new_layer" in given:
            # The paper's code leaves frames alone unless it is given a weight.
            self._kind("layer.frames", "free")
        if "orthogonal_k" in given:
            self._put("layer.frames.weight", given["orthogonal_k"])

    def _control(self) -> None:
        given = self.given
        clipping = given.get("clipping")
        if clipping is not None:
            spelled = str(clipping).replace("_", "-")
            if spelled in CLIPPING:
                before = dict(self._seen("control"))
                shared = {k: before[k] for k in ("linear_max", "procedure") if k in before}
                self._kind("control", CLIPPING[spelled])
                if CLIPPING[spelled] != "none":
                    self.table["control"] = {**shared, **self._section("control")}
            else:
                self.faults.append(
                    f"--clipping {clipping}: not one of clip, assign, divide-by-largest, "
                    "divide-by-exact-largest, divide-each-by-largest and none"
                )
                return
        controlled = self._seen("control").get("kind", "none") != "none"
        for flag, spelling, path in (
            ("clip_to", "--clip_to", "control.max"),
            ("clip_freq", "--clip_freq", "control.every"),
            ("procedure", "--procedure", "control.procedure"),
        ):
            if flag in given:
                if controlled:
                    self._put(path, given[flag])
                else:
                    self.faults.append(f"{spelling} needs a control; add --clipping, or leave it out")
        linear = given.get("clip_linear")
        if "clip_linear_to" in given and not linear and "linear_max" not in self._seen("control"):
            self.faults.append("--clip_linear_to needs --clip-linear; add it, or leave --clip_linear_to out")
        elif linear and not controlled:
            self.faults.append("--clip-linear needs a control; add --clipping, or leave it out")
        elif "clip_linear_to" in given:
            self._put("control.linear_max", given["clip_linear_to"])
        elif linear:
            self._put("control.linear_max", self._seen("control").get("max", 1.0))

    def _batchnorm(self) -> None:
        given = self.given
        if given.get("lip_bn"):
            self._section("batchnorm").setdefault("max", 1.0)
        for flag, spelling, path in (
            ("bn_eps", "--bn-eps", "batchnorm.max"),
            ("freq_bn", "--freq-bn", "batchnorm.every"),
        ):
            if flag in given:
                if "batchnorm" in self.table:
                    self._put(path, given[flag])
                else:
                    self.faults.append(f"{spelling} belongs to the limit on BatchNorm; add --lip-bn, or leave it out")

    def _optimizer(self) -> None:
        given = self.given
        if "opt" in given:
            kind = str(given["opt"]).lower()
            if kind not in ("sgd", "adam"):
                self.faults.append(f"--opt {given['opt']}: not one of SGD and Adam")
                return
            lr = self._seen("optimizer").get("lr")
            self._kind("optimizer", kind)
            if lr is not None:
                self._section("optimizer").setdefault("lr", lr)
            if kind == "adam" and self._seen("model").get("kind") == "vgg":
                self._section("optimizer").update(amsgrad=True, eps=1e-7)
        if "nesterov" in given:
            if self._seen("optimizer").get("kind", "sgd") == "adam":
                self.notices.append("--nesterov has no effect with Adam")
            else:
                self._put("optimizer.nesterov", given["nesterov"])

    def _folder(self) -> None:
        folders = {str(self.given[flag]) for flag in ("out_dir", "checkpoints_path") if flag in self.given}
        if len(folders) > 1:
            self.faults.append("--out-dir and --checkpoints-path name the same folder; give one of them")
        elif folders:
            self.table["out_dir"] = folders.pop()

    def _assign(self, assignment: str) -> None:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            self.faults.append(f"--set {assignment}: write it as --set key.path=value")
            return
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        path = path.strip()
        if path.endswith(".kind"):
            self._kind(path.removesuffix(".kind"), value)
        else:
            self._put(path, value)

    # the nested table

    def _seen(self, name: str) -> dict[str, Any]:
        """A section as it stands, empty when there is none; reading makes none."""
        section = self.table.get(name)
        return section if isinstance(section, dict) else {}

    def _section(self, path: str) -> dict[str, Any]:
        table = self.table
        for part in path.split("."):
            inner = table.setdefault(part, {})
            if not isinstance(inner, dict):
                self.faults.append(f"{path}: {part} is a single value, not a table of keys")
                return {}
            table = inner
        return table

    def _put(self, path: str, value: Any) -> None:
        section, _, key = path.rpartition(".")
        (self._section(section) if section else self.table)[key] = value

    def _kind(self, path: str, kind: Any) -> None:
        """Set the tag of a union; another tag drops the old one's fields."""
        section = self._section(path)
        if section.get("kind") != kind:
            section.clear()
            section["kind"] = kind
