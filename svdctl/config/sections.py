"""Flags applied to a base configuration, section by section; each flag changes one field."""

import re
from typing import Any

from svdctl.config.overrides import Overrides
from svdctl.config.paper import CLIPPING, HALF
from svdctl.config.train import TrainConfig
from svdctl.errors import UsageError
from svdctl.presets import run_name

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


def flag_name(name: str) -> str:
    """`clip_to` as `--clip-to`."""
    return "--" + name.replace("_", "-")


class Sections:
    """The flags applied to a base, one method for each section of the configuration."""

    def __init__(self, given: dict[str, Any], table: dict[str, Any], faults: list[str]) -> None:
        for section, default in TrainConfig().model_dump(mode="json").items():
            if isinstance(default, dict) and "kind" in default:
                table.setdefault(section, {"kind": default["kind"]})
        self.given, self.to, self.faults = given, Overrides(table), faults
        self.notices: list[str] = []

    def config(self) -> TrainConfig:
        """The configuration.

        Raises:
            ValidationError: for what pydantic finds; faults of the flags themselves are added to the list given.
        """
        parts = (self._data, self._model, self._layer, self._control, self._batchnorm, self._optimizer)
        for section in (*parts, self._direct, self._own):
            try:
                section()
            except UsageError as error:
                self.faults += error.faults
        if self.to.kind("control") == "divide-each" and self.to.kind("layer") == "standard":
            self.faults.append(
                "--clipping divide-each-by-largest divides the factors of TT layers; add --new-layer tt --dec-rank R, "
                "or use --clipping divide-by-largest"
            )
            self.to.switch("control", "divide")
        return TrainConfig.model_validate(self.to.table)

    def _data(self) -> None:
        given, to = self.given, self.to
        if "dataset" in given:
            kind, _, path = str(given["dataset"]).partition(":")
            if kind not in ("cifar10", "cifar100", "digits", "folder", "npz") or (
                path and kind not in ("folder", "npz")
            ):
                self.faults.append(
                    f"--dataset {given['dataset']}: not one of cifar10, cifar100, digits, folder:PATH and npz:PATH"
                )
            elif kind in ("folder", "npz") and not path:
                self.faults.append(f"--dataset {kind} needs a path: --dataset {kind}:PATH")
            else:
                to.switch("data", kind)
                if path:
                    to.put("data.path", path)
        if "dataset_root" in given:
            if to.kind("data") in ("cifar10", "cifar100"):
                to.put("data.root", str(given["dataset_root"]))
            else:
                self.faults.append(
                    "--dataset-root is where CIFAR lies; add --dataset cifar10 or cifar100, or leave it out"
                )
        if given.get("gouk_transforms"):
            to.put("augment.pad", "symmetric")
            to.put("normalize", HALF)

    def _model(self) -> None:
        name = self.given.get("architecture")
        match = re.fullmatch(r"wrn-?([0-9]{1,9})-([0-9]{1,9})", str(name))
        if match:
            self.to.switch("model", "wrn")
            self.to.put("model.depth", int(match[1]))
            self.to.put("model.width", int(match[2]))
        elif name == "vgg19":
            self.to.switch("model", "vgg")
        elif name is not None:
            self.faults.append(f"--architecture {name}: not one of wrn16-10 (any wrnDEPTH-WIDTH) and vgg19")
        if "preset" not in self.given and self.given.keys() & {"dataset", "architecture", "new_layer"}:
            data = str(self.given.get("dataset", "cifar10")).partition(":")[0]
            self.to.put("name", run_name(f"{name or 'wrn16-10'}-{data}"))

    def _layer(self) -> None:
        given, to = self.given, self.to
        if "new_layer" in given:
            to.switch("layer", given["new_layer"])
        if to.kind("layer") == "standard":
            self._refuse(
                "belongs to TT layers; add --new-layer tt, or leave it out",
                *("dec_rank", "dec_scale", "orthogonal_k", "frames", "no_compress_first"),
            )
            return
        if "dec_rank" in given and "dec_scale" in given:
            self.faults.append("--dec-rank and --dec-scale exclude each other; give one of them")
        if "dec_rank" in given:
            to.drop("layer.rank_scale")
            to.put("layer.rank", given["dec_rank"])
        elif "dec_scale" in given:
            to.drop("layer.rank")
            to.put("layer.rank_scale", given["dec_scale"])
        if "no_compress_first" in given:
            to.put("layer.compress_first", not given["no_compress_first"])
        self._frames()

    def _frames(self) -> None:
        given, to = self.given, self.to
        frames = given.get("frames")
        if "orthogonal_k" in given:
            if frames not in (None, "penalty"):
                self.faults.append(f"--orthogonal-k weighs the penalty on frames; leave it or --frames {frames} out")
            to.switch("layer.frames", "penalty")
            to.put("layer.frames.weight", given["orthogonal_k"])
        elif frames is not None:
            to.switch("layer.frames", frames)
        elif "preset" not in given:
            # The paper's code leaves frames alone unless it is given a weight; the quick start names its own.
            to.section("layer").setdefault("frames", {"kind": "free"})

    def _control(self) -> None:
        given, to = self.given, self.to
        if "clipping" in given:
            kind = CLIPPING.get(str(given["clipping"]).replace("_", "-"))
            if kind is None:
                self.faults.append(
                    f"--clipping {given['clipping']}: not one of clip, assign, divide-by-largest, "
                    "divide-by-exact-largest, divide-each-by-largest and none"
                )
            # An unknown kind counts as some kind: the flags below it are then judged as usual.
            to.switch("control", kind or "divide")
        if to.kind("control") == "none":
            self._refuse("needs a control; add --clipping, or leave it out", "clip_to", "procedure", "clip_linear")
            if given.get("clip_freq"):  # 0 is the paper's "never"
                self._refuse("needs a control; add --clipping, or leave it out", "clip_freq")
        else:
            for flag, path in (("clip_to", "max"), ("clip_freq", "every"), ("procedure", "procedure")):
                if flag in given:
                    to.put(f"control.{path}", given[flag])
        present = to.section("control").get("linear_max")
        if "clip_linear_to" in given and not given.get("clip_linear") and present is None:
            self.faults.append("--clip_linear_to needs --clip-linear; add it, or leave --clip_linear_to out")
        elif to.kind("control") != "none" and "clip_linear_to" in given:
            to.put("control.linear_max", given["clip_linear_to"])
        elif to.kind("control") != "none" and given.get("clip_linear") and (present is None or "clip_to" in given):
            to.put("control.linear_max", to.section("control").get("max", 1.0))

    def _batchnorm(self) -> None:
        given, to = self.given, self.to
        if given.get("lip_bn") and not to.section("batchnorm"):
            to.put("batchnorm", {"max": 1.0})
        if to.section("batchnorm"):
            for flag, path in (("bn_eps", "batchnorm.max"), ("freq_bn", "batchnorm.every")):
                if flag in given:
                    to.put(path, given[flag])
        else:
            self._refuse("belongs to the limit on BatchNorm; add --lip-bn, or leave it out", "bn_eps")
            if given.get("freq_bn"):  # 0 is the paper's "never"
                self._refuse("belongs to the limit on BatchNorm; add --lip-bn, or leave it out", "freq_bn")

    def _optimizer(self) -> None:
        given, to = self.given, self.to
        if "opt" in given:
            if str(given["opt"]).lower() in ("sgd", "adam"):
                to.switch("optimizer", str(given["opt"]).lower())
            else:
                self.faults.append(f"--opt {given['opt']}: not one of SGD and Adam")
        if to.kind("optimizer") == "adam":
            if given.get("nesterov"):
                self.notices.append("--nesterov has no effect with Adam")
            if given.get("weight_dec"):
                self.notices.append("--weight-dec is passed on to Adam; the paper's code ignored it there")
        elif "nesterov" in given:
            to.put("optimizer.nesterov", given["nesterov"])

    def _direct(self) -> None:
        for flag, path in DIRECT.items():
            if flag in self.given:
                self.to.put(path, self.given[flag])

    def _own(self) -> None:
        """What has no rules of its own: the folder, a flag without effect, and --set last of all."""
        folders = {str(self.given[flag]) for flag in ("out_dir", "checkpoints_path") if flag in self.given}
        if len(folders) > 1:
            self.faults.append("--out-dir and --checkpoints-path name the same folder; give one of them")
        for folder in folders:
            self.to.put("out_dir", folder)
        if "multiply_by" in self.given:
            self.notices.append("--multiply-by has no effect: nothing in the paper's code reads it")
        for assignment in self.given.get("set", ()):
            try:
                self.to.assign(assignment)
            except UsageError as error:
                self.faults += error.faults

    def _refuse(self, why: str, *flags: str) -> None:
        self.faults += [f"{flag_name(flag)} {why}" for flag in flags if self.given.get(flag) not in (None, False)]
