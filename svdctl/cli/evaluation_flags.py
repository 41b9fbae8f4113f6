"""The flags of `svdctl eval-robust`, and what they mean."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from svdctl.cli.options import DEVICES, Flag, Flags, Merge, Resolved, spelled
from svdctl.cli.training_flags import DEBUG, FORMS_OF_DATA, PLUGIN, SET, data_table, set_image_size, set_of_folder
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.errors import UsageError, nearest
from svdctl.registry import DATA, METRICS

WHAT = "What is measured"
NETWORK = "Networks that svdctl did not train"
CORRUPTED = "Corruptions (cifar-c)"
ATTACKS = "Attacks (autoattacks)"
OUTPUT = "Results"


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
    if (form := given.get("format", "table")) not in ("table", "json"):
        merge.faults.append(f"--format {form}: not one of table and json")
    merge.apply()
    return Resolved(merge.result(EvaluateConfig), tuple(merge.notices))


def _metrics(merge: Merge, name: str, value: Iterable[str]) -> None:
    names = [name.lower().replace("_", "-") for name in split(value)]
    kinds = METRICS.kinds()
    merge.to.put("metrics", [kind for kind in kinds if kind in names] or list(kinds))
    merge.faults += [
        f"--metrics {name}: not one of {', '.join(kinds)}{nearest(name, kinds)}"
        for name in names
        if METRICS.find(name) is None
    ]


def _data(merge: Merge, name: str, value: str) -> None:
    table = data_table(value)
    merge.to.put("data", table)
    if "dataset_root" in merge.given and DATA.get(table["kind"]).place is None:
        raise UsageError(f"--dataset-root is where CIFAR lies; leave it or --dataset {value} out")


def _model(merge: Merge, name: str, value: str) -> None:
    if not re.fullmatch(r"([\w.]+|.+\.py):[\w.]+", value):
        raise UsageError(f"--model {value}: write it as module:factory, ./file.py:factory or torchvision:NAME")
    merge.to.put("network.model", value)
    merge.faults += [
        f"{spelled(name)} describes one of the paper's networks; leave it or --model out"
        for name in ("architecture", "dec_rank", "gouk_transforms")
        if name in merge.given
    ]


def _several(merge: Merge, name: str, value: Iterable[Any]) -> None:
    """Set values given one by one or with commas between them, each once."""
    merge.put(name, split(value))


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
    "checkpoints_dir": Flag(
        panel=WHAT, text="The same as the argument, in the words of the paper's code (checkpoints).", type=str
    ),
    "which": Flag("which", WHAT),
    "metrics": Flag("metrics", WHAT, f"Some of {', '.join(METRICS.builtin_kinds())} (all).", list[str], _metrics),
    "dataset": Flag(
        "data.kind",
        WHAT,
        f"Test data: {FORMS_OF_DATA} (those of the training); of its kind, the same data at another place.",
        str,
        rule=_data,
    ),
    "image_size": Flag(
        "data.size", WHAT, "Side of images of --dataset folder:PATH, scaled and cropped to it.", rule=set_image_size
    ),
    "workers": Flag("data.workers", WHAT, rule=set_of_folder),
    "dataset_root": Flag("dataset_root", WHAT),
    "radii": Flag("settings.certified.radii", WHAT, rule=_several),
    "seed": Flag("seed", WHAT),
    "set": SET,
    "plugin": PLUGIN,
    "model": Flag("network.model", NETWORK, rule=_model),
    "lenient": Flag(
        "network.lenient",
        NETWORK,
        "With --model: leave out what the network has no place for, as further heads, and name it.",
    ),
    "mean": Flag("network.mean", NETWORK, rule=_channels),
    "std": Flag("network.std", NETWORK, rule=_channels),
    "key": Flag("network.key", NETWORK),
    "architecture": Flag("network.architecture", NETWORK),
    "dec_rank": Flag("network.rank", NETWORK),
    "gouk_transforms": Flag("network.gouk_transforms", NETWORK),
    "corruptions": Flag(
        "settings.cifar-c.names",
        CORRUPTED,
        "Names, benchmark (15) or all (19) (the 18 of corruptions.txt).",
        rule=_several,
    ),
    "severities": Flag("settings.cifar-c.severities", CORRUPTED, "Some of 1 to 5 (all).", rule=_several),
    "corruption_examples": Flag("settings.cifar-c.examples", CORRUPTED, "Test images, drawn from the seed (all)."),
    "cifar_c_root": Flag(
        "settings.cifar-c.root",
        CORRUPTED,
        "Folder of the published CIFAR-C files, downloaded there when absent (default: below the data's folder). Data "
        "other than CIFAR are corrupted by svdctl's own functions, unless this is given.",
    ),
    "cifar_c_res": Flag("cifar_c_res", CORRUPTED),
    "show_corruptions": Flag(panel=CORRUPTED, text="Draw all corruptions into this file, and stop.", type=str),
    "norm": Flag("settings.autoattacks.norm", ATTACKS),
    "eps": Flag("settings.autoattacks.eps", ATTACKS),
    "attacks": Flag("settings.autoattacks.attacks", ATTACKS, type=list[str], rule=_several),
    "examples": Flag("settings.autoattacks.examples", ATTACKS, rule=_examples),
    "protocol": Flag("settings.autoattacks.protocol", ATTACKS),
    "shard": Flag("shard", ATTACKS, "i/n: attack the i-th of n parts of the images alone.", str, _shard),
    "merge_shards": Flag("merge_shards", ATTACKS),
    "autoattacks_res": Flag("autoattacks_res", ATTACKS),
    "out_dir": Flag("out_dir", OUTPUT),
    "format": Flag(panel=OUTPUT, text="table or json, on stdout (table).", type=str),
    "force": Flag("force", OUTPUT),
    "batch_size": Flag("batch_size", DEVICES),
    "accelerator": Flag("accelerator", DEVICES),
    "precision": Flag("precision", DEVICES),
    "capture": Flag("capture", DEVICES),
    "debug": DEBUG,
}
