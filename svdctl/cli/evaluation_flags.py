"""The flags of `svdctl eval-robust`, and what they mean."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args

from svdctl.cli.help_page import Panel
from svdctl.cli.options import Flag, Flags, Merge, Resolved, spelled, unknown_word
from svdctl.cli.training_rules import data_table, set_image_size, set_of_folder
from svdctl.cli.training_table import DEBUG, FORMS_OF_DATA, PLUGIN, SET
from svdctl.config.corruption_names import CORRUPTIONS, SEVERITIES
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.errors import UsageError
from svdctl.evaluate.attack_settings import VERSIONS, AttackName, AttackSettings, notice_of_radius
from svdctl.registry import DATA, METRICS

FORMATS = ("table", "json")
ATTACKS: tuple[AttackName, ...] = get_args(AttackName)


def resolve_evaluation(flags: Mapping[str, Any]) -> Resolved[EvaluateConfig]:
    """Return the configuration that flags make; keys are names of flags with underscores.

    Raises:
        UsageError: with every fault of the flags and of the configuration.
    """
    given = {name: value for name, value in flags.items() if value is not False}
    merge = Merge(EVALUATION, given, {})
    merge.load_plugins()
    places = [str(path) for path in given.get("checkpoints", ())]
    places += [str(given["checkpoints_dir"])] if "checkpoints_dir" in given else []
    if places:
        merge.to.put("checkpoints", list(dict.fromkeys(places)))
    if "metrics" not in given and ("shard" in given or "merge_shards" in given):
        merge.to.put("metrics", ["autoattacks"])
        merge.notices.append("shards are for attacks: --metrics autoattacks is taken")
    if (form := given.get("format", FORMATS[0])) not in FORMATS:
        merge.faults.append(unknown_word("--format", form, FORMATS))
    merge.apply()
    config = merge.result(EvaluateConfig)
    if "autoattacks" in config.metrics:
        attack = AttackSettings.model_validate(config.settings.get("autoattacks") or {})
        merge.notices += filter(None, [notice_of_radius(attack.norm, attack.eps, attack.protocol)])
    return Resolved(config, tuple(merge.notices))


def _metrics(merge: Merge, name: str, value: Iterable[str]) -> None:
    names = [name.lower().replace("_", "-") for name in split(value)]
    kinds = METRICS.kinds()
    merge.to.put("metrics", [kind for kind in kinds if kind in names] or list(kinds))
    merge.faults += [unknown_word("--metrics", name, kinds) for name in names if METRICS.find(name) is None]


def _data(merge: Merge, name: str, value: str) -> None:
    table = data_table(value)
    merge.to.put("data", table)
    if "dataset_root" in merge.given and DATA.get(table["kind"]).place is None:
        raise UsageError(f"--dataset-root is where CIFAR lies; leave it or --dataset {value} out")


def _model(merge: Merge, name: str, value: str) -> None:
    if not re.fullmatch(r"([\w.]+|.+\.py):[\w.]+", value):
        raise UsageError(
            f"--model {value}: write it as module:factory, ./file.py:factory, torchvision:NAME or timm:NAME"
        )
    merge.to.put("network.model", value)
    merge.faults += [
        f"{spelled(name)} describes one of the paper's networks; leave it or --model out"
        for name in ("architecture", "dec_rank", "gouk_transforms")
        if name in merge.given
    ]


def _several(merge: Merge, name: str, value: Iterable[Any]) -> None:
    """Set values given one by one or with commas between them, each once."""
    merge.put(name, split(value))


def _radii(merge: Merge, name: str, value: Iterable[Any]) -> None:
    """Set radii in 255ths, written as `36` or `36/255`."""
    texts = [text.removesuffix("/255") for text in split(value)]
    if wrong := [text for text in texts if "/" in text]:
        raise UsageError(f"--radii {', '.join(wrong)}: radii are in 255ths of a pixel's range; write 36 or 36/255")
    merge.put(name, texts)


def _channels(merge: Merge, name: str, value: Iterable[Any]) -> None:
    """Set one number a channel."""
    merge.put(name, [part for text in value for part in str(text).split(",") if part])


def _examples(merge: Merge, name: str, value: str) -> None:
    text = str(value).lower()
    if text != "all" and not re.fullmatch(r"0*[1-9]\d{0,8}", text):
        raise UsageError(f"--examples {text}: give a number of test images, or all")
    merge.put("examples", text if text == "all" else int(text))


def _shard(merge: Merge, name: str, value: str) -> None:
    match = re.fullmatch(r"0*([1-9]\d{0,5})/0*([1-9]\d{0,5})", value)
    if match is None:
        raise UsageError(f"--shard {value}: write it as i/n, such as 3/8 for the third of eight parts")
    merge.to.put("shard", {"index": int(match[1]), "count": int(match[2])})


def split(values: Iterable[str]) -> list[str]:
    """Return values given one by one or with commas between them, each once."""
    parts = (part.strip() for value in values for part in str(value).split(","))
    return list(dict.fromkeys(part for part in parts if part))


EVALUATION: Flags = {
    "checkpoints_dir": Flag(panel=Panel.PAPER, text="The same as CHECKPOINTS.", type=str, value="FOLDER", default=""),
    "which": Flag("which", Panel.WHAT),
    "metrics": Flag(
        "metrics",
        Panel.WHAT,
        "What is measured: one or several, or NAME of your own.",
        list[str],
        _metrics,
        choices=(*METRICS.builtin_kinds(), "NAME"),
        default="all",
    ),
    "dataset": Flag(
        "data.kind",
        Panel.DATA,
        "Images to test on; of the kind trained on, the same images at another place.",
        str,
        rule=_data,
        choices=FORMS_OF_DATA,
        default="the test images of the training",
    ),
    "image_size": Flag(
        "data.size",
        Panel.DATA,
        "Scale and crop the images of --dataset folder:PATH to this side in pixels.",
        rule=set_image_size,
        default="none is scaled",
    ),
    "workers": Flag("data.workers", Panel.DATA, rule=set_of_folder, default="one for each core, at most 16"),
    "dataset_root": Flag("dataset_root", Panel.DATA, value="FOLDER", default="as in the training"),
    "radii": Flag("settings.certified.radii", Panel.WHAT, rule=_radii, value="FLOAT..."),
    "seed": Flag("seed", Panel.RUN),
    "set": replace(SET, text="Set any key of the configuration, as settings.cifar-c.severities=[3]. Repeatable."),
    "plugin": PLUGIN,
    "model": Flag(
        "network.model",
        Panel.MODEL,
        "Network of weights that svdctl did not train: one of torchvision, or made by a function of yours, which is "
        "imported and called.",
        rule=_model,
        choices=("torchvision:NAME", "timm:NAME", "MODULE:FUNCTION", "FILE.py:FUNCTION"),
        default="as in the checkpoint",
    ),
    "lenient": Flag(
        "network.lenient",
        Panel.MODEL,
        "With --model: leave out weights that the network has no place for, and list them.",
    ),
    "mean": Flag("network.mean", Panel.MODEL, rule=_channels, value="FLOAT,...", default="as in the checkpoint"),
    "std": Flag("network.std", Panel.MODEL, rule=_channels, value="FLOAT,...", default="as in the checkpoint"),
    "key": Flag("network.key", Panel.MODEL, value="NAME", default=""),
    "architecture": Flag("network.architecture", Panel.PAPER, value="NAME", default="any"),
    "dec_rank": Flag("network.rank", Panel.PAPER, default="any"),
    "gouk_transforms": Flag("network.gouk_transforms", Panel.PAPER),
    "corruptions": Flag(
        "settings.cifar-c.names",
        Panel.CORRUPTIONS,
        "Corruptions of the test images: names, the benchmark's 15 or all 19.",
        rule=_several,
        choices=("benchmark", "all", *CORRUPTIONS),
        default="benchmark; all of a network that follows the paper",
    ),
    "severities": Flag(
        "settings.cifar-c.severities",
        Panel.CORRUPTIONS,
        "How strong: some of the five severities.",
        rule=_several,
        choices=tuple(map(str, SEVERITIES)),
        default="all",
    ),
    "corruption_examples": Flag(
        "settings.cifar-c.examples",
        Panel.CORRUPTIONS,
        "Number of test images that are corrupted, drawn by the seed.",
        default="all",
    ),
    "cifar_c_root": Flag(
        "settings.cifar-c.root",
        Panel.CORRUPTIONS,
        "Folder of the published CIFAR-C files, downloaded to it when missing. Other images than CIFAR are corrupted "
        "by svdctl's own functions, unless this is given.",
        value="FOLDER",
        default="below the folder of CIFAR",
    ),
    "cifar_c_res": Flag("cifar_c_res", Panel.PAPER, value="FOLDER", default=""),
    "show_corruptions": Flag(
        panel=Panel.CORRUPTIONS,
        text="Draw all corruptions into this picture and stop.",
        type=str,
        value="FILE",
        default="",
    ),
    "norm": Flag("settings.autoattacks.norm", Panel.ATTACKS),
    "eps": Flag(
        "settings.autoattacks.eps",
        Panel.ATTACKS,
        "Largest perturbation that is allowed, as 0.5 or 8/255; pixels are in [0, 1].",
        type=str,
        value="FLOAT",
    ),
    "attacks": Flag(
        "settings.autoattacks.attacks",
        Panel.ATTACKS,
        "A version of AutoAttack (standard, plus or rand), or attacks in the order in which they are to run.",
        type=list[str],
        rule=_several,
        choices=(*VERSIONS, *ATTACKS),
    ),
    "examples": Flag(
        "settings.autoattacks.examples",
        Panel.ATTACKS,
        "Number of test images that are attacked, drawn by the seed.",
        rule=_examples,
        choices=("INT", "all"),
        default="32 of the digits, all of other data",
    ),
    "protocol": Flag(
        "settings.autoattacks.protocol",
        Panel.ATTACKS,
        "What is attacked: pixels or, for comparison only and as in the paper's code, normalised images (paper).",
    ),
    "shard": Flag(
        "shard",
        Panel.ATTACKS,
        "Attack one part of the images alone: 3/8 is the third of eight parts.",
        str,
        _shard,
        value="I/N",
        default="",
    ),
    "merge_shards": Flag(
        "merge_shards",
        Panel.ATTACKS,
        "Join the parts of --shard, when all are finished, to the accuracy over all images.",
    ),
    "autoattacks_res": Flag("autoattacks_res", Panel.PAPER, value="FOLDER", default=""),
    "out_dir": Flag(
        "out_dir",
        Panel.OUTPUT,
        "Folder for all results.",
        value="FOLDER",
        default="eval-<checkpoint>/ beside each, report.md in the one folder given, else in the current one",
    ),
    "format": Flag(
        panel=Panel.OUTPUT, text="What is printed on stdout.", type=str, choices=FORMATS, default=FORMATS[0]
    ),
    "force": Flag("force", Panel.RUN),
    "batch_size": Flag("batch_size", Panel.DEVICES, default="250; fewer of images above 64 x 64, 20 of 224 x 224"),
    "accelerator": Flag("accelerator", Panel.DEVICES),
    "precision": Flag("precision", Panel.DEVICES),
    "capture": Flag("capture", Panel.DEVICES),
    "debug": DEBUG,
}
