"""Faults of a configuration as sentences that name the flag or key and the way out."""

import difflib
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any

from pydantic import ValidationError

from svdctl.config.command_flags import Command
from svdctl.config.train_config import TrainConfig

TAG_FAULTS = ("union_tag_not_found", "union_tag_invalid")


def sentences(error: ValidationError, command: Command) -> list[str]:
    """One sentence for each field at fault; several alternatives of one field make one sentence."""
    found: dict[str, list[str]] = {}
    for fault in error.errors():
        if fault["type"] == "value_error":
            for line in str(fault["ctx"]["error"]).splitlines():
                found.setdefault(line, [])
            continue
        key = _key(fault["loc"], fault["type"])
        if fault["type"] == "extra_forbidden":
            found.setdefault(f"{key}: {_unknown(key, fault['loc'])}", [])
        elif fault["type"] == "missing":
            found.setdefault(f"{command.where(key)}: a value is needed here", [])
        elif fault["type"] in TAG_FAULTS:
            found.setdefault(f"{command.where(key)}: {_tags(fault)}", [])
        else:
            message = fault["msg"][0].lower() + fault["msg"][1:]
            found.setdefault(f"{command.where(key)}: {fault['input']!r:.80} does not do; ", []).append(message)
    return [start + ", or ".join(messages) for start, messages in found.items()]


def sentences_of_mixes(table: dict[str, Any], error: ValidationError, command: Command) -> list[str]:
    """What does not go together, found with the fields at fault left out; nothing when a whole section is at fault."""
    table = deepcopy(table)
    for fault in error.errors():
        if fault["type"] in ("missing", "value_error", *TAG_FAULTS):
            return []
        inside, key = table, ""
        for part in map(str, fault["loc"]):
            within = inside.get(key)
            if not key and part in inside:
                key = part
            elif isinstance(within, dict) and part in within:
                inside, key = within, part
        inside.pop(key, None)
    try:
        TrainConfig.model_validate(table)
    except ValidationError as second:
        if all(not fault["loc"] for fault in second.errors()):
            return sentences(second, command)
    return []


def told(error: ValidationError) -> list[Any]:
    """The faults worth telling: pydantic counts a list without its faulty items, and such a count is left out."""
    faults = error.errors()
    places = [fault["loc"] for fault in faults]
    return [
        fault
        for fault in faults
        if fault["type"] != "too_short"
        or not any(len(place) > len(fault["loc"]) and place[: len(fault["loc"])] == fault["loc"] for place in places)
    ]


@cache
def known_keys() -> frozenset[str]:
    """Every key of the schema, as a dotted path without the tags of unions."""
    schema = TrainConfig.model_json_schema()
    return frozenset(_paths(schema, schema["$defs"]))


def _paths(node: dict[str, Any], definitions: dict[str, Any]) -> Iterator[str]:
    if "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    for name, field in node.get("properties", {}).items():
        yield name
        yield from (f"{name}.{path}" for path in _paths(field, definitions))
    for alternative in (*node.get("oneOf", ()), *node.get("anyOf", ())):
        yield from _paths(alternative, definitions)


def _unknown(key: str, location: tuple[Any, ...]) -> str:
    paths = known_keys()
    if key in paths:
        return f"kind = {location[-2]!r} has no such key; choose another {key.rpartition('.')[0]}.kind first"
    same_end = [path for path in sorted(paths) if path.rpartition(".")[2] == key.rpartition(".")[2]]
    near = same_end or difflib.get_close_matches(key, sorted(paths), n=1, cutoff=0.5)
    return (
        f"there is no such key; did you mean {near[0]}?" if near else "there is no such key (--print-config shows all)"
    )


def _tags(fault: Any) -> str:
    expected = fault["ctx"].get("expected_tags")
    return f"{fault['ctx']['tag']!r} is not one of {expected}" if expected else "a kind is needed here"


def _key(location: tuple[Any, ...], kind: str) -> str:
    """`('layer', 'tt', 'rank')` is `layer.rank`: pydantic's tags of unions and names of types are left out."""
    names = {name for path in known_keys() for name in path.split(".")}
    parts = [
        str(part)
        for position, part in enumerate(location)
        if part in names or isinstance(part, int) or (kind == "extra_forbidden" and position == len(location) - 1)
    ]
    return ".".join(parts + ["kind"] * (kind in TAG_FAULTS))
