"""Flags of `svdctl eval-robust` to its configuration; every fault is collected before one is told."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from svdctl.config.attack_settings import AttackName
from svdctl.config.corruption_names import BENCHMARK, CLEAN, CORRUPTIONS, corruption_name, read_corruption_list
from svdctl.config.evaluate_config import METRICS, EvaluateConfig
from svdctl.config.overrides import Overrides
from svdctl.config.validation_errors import told
from svdctl.errors import UsageError

FIELDS = {
    "which": "which",
    "metrics": "metrics",
    "dataset": "data.kind",
    "dataset_root": "dataset_root",
    "model": "network.model",
    "key": "network.key",
    "architecture": "network.architecture",
    "dec_rank": "network.rank",
    "gouk_transforms": "network.gouk_transforms",
    "mean": "network.mean",
    "std": "network.std",
    "batch_size": "batch_size",
    "seed": "seed",
    "accelerator": "accelerator",
    "precision": "precision",
    "out_dir": "out_dir",
    "force": "force",
    "shard": "shard",
    "merge_shards": "merge_shards",
    "radii": "radii",
    "corruptions": "corruptions.names",
    "severities": "corruptions.severities",
    "corruption_examples": "corruptions.examples",
    "cifar_c_root": "corruptions.root",
    "cifar_c_res": "cifar_c_res",
    "norm": "attack.norm",
    "eps": "attack.eps",
    "attacks": "attack.attacks",
    "protocol": "attack.protocol",
    "examples": "examples",
    "autoattacks_res": "autoattacks_res",
}
"""The field that each flag sets, by the flag's name with underscores."""
PAPER = ("architecture", "dec_rank", "gouk_transforms")
"""Flags about public checkpoints of the paper."""
VERSIONS = ("standard", "plus", "rand")


@dataclass(frozen=True)
class ResolvedEvaluation:
    """A configuration, and remarks about the flags."""

    config: EvaluateConfig
    notices: tuple[str, ...]


def resolve_evaluation(flags: Mapping[str, Any]) -> ResolvedEvaluation:
    """The configuration that the flags ask for; keys are names of flags with underscores, None is "not given".

    Raises:
        UsageError: with every fault of the flags and of the configuration.
    """
    given = {name: value for name, value in flags.items() if not (value is None or value is False or value in ([], ()))}
    faults: list[str] = []
    notices: list[str] = []
    to = Overrides({})
    for part in (_places, _metrics, _numbers, _data, _network, _corruptions, _attack, _shard):
        try:
            part(given, to, notices)
        except UsageError as error:
            faults += error.faults
    for name, path in FIELDS.items():
        if name in given and name not in _RULED:
            to.put(path, given[name])
    for assignment in given.get("set", ()):
        try:
            to.assign(assignment)
        except UsageError as error:
            faults += error.faults
    try:
        config = EvaluateConfig.model_validate(to.table)
    except ValidationError as error:
        faults += _sentences(error)
    if faults:
        raise UsageError(dict.fromkeys(faults))
    return ResolvedEvaluation(config, tuple(notices))


_RULED = ("mean", "std", "metrics", "dataset", "corruptions", "severities", "radii", "attacks", "examples", "shard")


def _places(given: Mapping[str, Any], to: Overrides, notices: list[str]) -> None:
    """Checkpoints as they stand on the line and in the paper's flag."""
    places = [str(path) for path in given.get("checkpoints", ())]
    if "checkpoints_dir" in given:
        places.append(str(given["checkpoints_dir"]))
    if places:
        to.put("checkpoints", list(dict.fromkeys(places)))


def _metrics(given: Mapping[str, Any], to: Overrides, notices: list[str]) -> None:
    if "metrics" not in given:
        if "shard" in given or "merge_shards" in given:
            to.put("metrics", ["autoattacks"])
            notices.append("shards are for attacks: --metrics autoattacks is taken")
        return
    asked = [name.lower().replace("_", "-") for name in _split(given["metrics"])]
    faults = [
        f"--metrics {name}: not one of {', '.join(METRICS)}{_nearest(name, METRICS)}"
        for name in asked
        if name not in METRICS
    ]
    if faults:
        raise UsageError(faults)
    to.put("metrics", [metric for metric in METRICS if metric in asked])


def _numbers(given: Mapping[str, Any], to: Overrides, notices: list[str]) -> None:
    for name in ("severities", "radii"):
        if name in given:
            to.put(FIELDS[name], _split(given[name]))
    for name in ("mean", "std"):
        if name in given:
            to.put(FIELDS[name], [part for value in given[name] for part in str(value).split(",") if part])


def _data(given: Mapping[str, Any], to: Overrides, notices: list[str]) -> None:
    if "dataset" not in given:
        return
    text = str(given["dataset"])
    kind, _, path = text.partition(":")
    if kind not in ("cifar10", "cifar100", "digits", "folder", "npz") or (path and kind not in ("folder", "npz")):
        raise UsageError(f"--dataset {text}: not one of cifar10, cifar100, digits, folder:PATH and npz:PATH")
    if kind in ("folder", "npz") and not path:
        raise UsageError(f"--dataset {kind} needs a path: --dataset {kind}:PATH")
    to.put("data", {"kind": kind, **({"path": path} if path else {})})
    if "dataset_root" in given and kind not in ("cifar10", "cifar100"):
        raise UsageError(f"--dataset-root is where CIFAR lies; leave it or --dataset {text} out")


def _network(given: Mapping[str, Any], to: Overrides, notices: list[str]) -> None:
    if "model" not in given:
        return
    if not re.fullmatch(r"[\w.]+:[\w.]+", str(given["model"])):
        raise UsageError(f"--model {given['model']}: write it as module:factory or torchvision:NAME")
    faults = [
        f"--{name.replace('_', '-')} describes one of the paper's networks; leave it or --model out"
        for name in PAPER
        if name in given
    ]
    if faults:
        raise UsageError(faults)


def _corruptions(given: Mapping[str, Any], to: Overrides, notices: list[str]) -> None:
    if "corruptions" not in given:
        to.put("corruptions.names", list(read_corruption_list()))
        return
    faults: list[str] = []
    names: list[str] = []
    for word in _split(given["corruptions"]):
        plain = word.lower().replace("-", "_")
        if plain in ("all", "benchmark"):
            names += CORRUPTIONS if plain == "all" else BENCHMARK
        elif plain == CLEAN:
            names.append(CLEAN)
        else:
            try:
                names.append(corruption_name(word, "--corruptions: "))
            except UsageError as error:
                faults += error.faults
    # Judged further as if the unknown ones were not there.
    to.put("corruptions.names", list(dict.fromkeys(names)) or [CLEAN])
    if faults:
        raise UsageError(faults)


def _attack(given: Mapping[str, Any], to: Overrides, notices: list[str]) -> None:
    faults: list[str] = []
    if "attacks" in given:
        names = [name.lower().replace("_", "-") for name in _split(given["attacks"])]
        single = get_args(AttackName)
        if len(names) == 1 and names[0] in VERSIONS:
            to.put("attack.attacks", names[0])
        else:
            faults += [
                f"--attacks {name}: not one of {', '.join(single)}, nor, alone, one of {', '.join(VERSIONS)}"
                f"{_nearest(name, (*single, *VERSIONS))}"
                for name in names
                if name not in single
            ]
            to.put("attack.attacks", [name for name in dict.fromkeys(names) if name in single] or "standard")
    if "examples" in given:
        text = str(given["examples"]).lower()
        if text != "all" and not re.fullmatch(r"0*[1-9]\d{0,8}", text):
            faults.append(f"--examples {text}: give a number of test images, or all")
        else:
            to.put("examples", text if text == "all" else int(text))
    if faults:
        raise UsageError(faults)


def _shard(given: Mapping[str, Any], to: Overrides, notices: list[str]) -> None:
    if "shard" not in given:
        return
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(given["shard"]))
    if match is None:
        raise UsageError(f"--shard {given['shard']}: write it as i/n, such as 3/8 for the third of eight parts")
    index, count = int(match[1]), int(match[2])
    if not 1 <= index <= count:
        raise UsageError(f"--shard {given['shard']}: there is no such shard; of {count} there are 1/{count} and so on")
    to.put("shard", {"index": index, "count": count})


def _split(values: Iterable[str]) -> list[str]:
    """Values given one by one or with commas between them, each once."""
    parts = (part.strip() for value in values for part in str(value).split(","))
    return list(dict.fromkeys(part for part in parts if part))


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _sentences(error: ValidationError) -> list[str]:
    """One sentence for each field at fault, named by its flag."""
    flag_of = {path: "--" + name.replace("_", "-") for name, path in FIELDS.items()}
    found: dict[str, list[str]] = {}
    for fault in told(error):
        if fault["type"] == "value_error":
            for line in str(fault["ctx"]["error"]).splitlines():
                found.setdefault(line, [])
            continue
        key = ".".join(str(part) for part in fault["loc"])
        path = next((path for path in sorted(flag_of, key=len, reverse=True) if f"{key}.".startswith(f"{path}.")), key)
        where = f"{flag_of[path]} ({path})" if path in flag_of else path
        if fault["type"] == "extra_forbidden":
            found.setdefault(f"{key}: there is no such key", [])
        elif fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
            found.setdefault(f"{where}: a kind of data is needed here; add --dataset", [])
        else:
            message = fault["msg"][0].lower() + fault["msg"][1:]
            found.setdefault(f"{where}: {fault['input']!r:.80} does not do; ", []).append(message)
    return [start + ", or ".join(dict.fromkeys(messages)) for start, messages in found.items()]
