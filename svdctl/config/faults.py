"""Faults of a configuration as sentences that name the flag or key and the way out."""

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from svdctl.config.train import TrainConfig

FLAG_OF = {
    "epochs": "--epochs",
    "batch_size": "--batch-size",
    "seed": "--seed",
    "name": "--name",
    "max_steps": "--max-steps",
    "out_dir": "--out-dir",
    "optimizer.lr": "--init-lr",
    "optimizer.weight_decay": "--weight-dec",
    "layer.rank": "--dec-rank",
    "layer.rank_scale": "--dec-scale",
    "layer.frames.weight": "--orthogonal-k",
    "layer.init": "--conv-init",
    "control.max": "--clip_to",
    "control.every": "--clip_freq",
    "control.linear_max": "--clip_linear_to",
    "batchnorm.max": "--bn-eps",
    "batchnorm.every": "--freq-bn",
    "checkpoint.every": "--save_chp_every",
    "hardware.devices": "--devices",
    "hardware.num_nodes": "--num-nodes",
}


def sentences(error: ValidationError) -> list[str]:
    """One sentence for each fault that pydantic found."""
    found: list[str] = []
    for fault in error.errors():
        if fault["type"] == "value_error":
            found += str(fault["ctx"]["error"]).splitlines()
            continue
        key = _key(fault["loc"])
        if fault["type"] in ("union_tag_not_found", "union_tag_invalid"):
            found.append(f"{key}.kind: {_tags(fault)}")
            continue
        where = f"{FLAG_OF[key]} ({key})" if key in FLAG_OF else key
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key.rsplit(".", 1)[-1], sorted(set(known_keys())), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else "; svdctl train --print-config shows every key"
            found.append(f"{key}: there is no such key{hint}")
        elif fault["type"] == "missing":
            found.append(f"{where}: a value is needed here")
        else:
            message = fault["msg"][0].lower() + fault["msg"][1:]
            found.append(f"{where}: {message}, not {fault['input']!r:.80}")
    return list(dict.fromkeys(found))


def known_keys() -> Iterator[str]:
    """Every key of the schema, without its path."""
    schema = TrainConfig.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        yield from part.get("properties", {})


def _tags(fault: Any) -> str:
    expected = fault.get("ctx", {}).get("expected_tags")
    if expected is None:
        return "a kind is needed here; svdctl train --print-config shows an example"
    return f"{fault['ctx']['tag']!r} is not one of {expected}"


UNIONS = {"data", "model", "layer", "frames", "control", "optimizer", "schedule"}


def _key(location: tuple[Any, ...]) -> str:
    """`('layer', 'tt', 'rank')` is `layer.rank`: the tags of unions are left out."""
    parts: list[str] = []
    known = set(known_keys())
    for position, part in enumerate(location):
        is_tag = position > 0 and location[position - 1] in UNIONS and part not in known
        # The tag stands between the union and its field; the last part is always a field.
        if not is_tag or position == len(location) - 1:
            parts.append(str(part))
    return ".".join(parts)
