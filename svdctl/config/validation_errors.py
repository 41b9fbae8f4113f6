"""Faults of a configuration as sentences that name the key, in backticks, and the way out."""

import difflib
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import ValidationError

from svdctl.config.base import Config
from svdctl.config.schema_keys import schema_keys

TAG_FAULTS = ("union_tag_not_found", "union_tag_invalid")
C = TypeVar("C", bound=Config)


def validated(model: type[C], table: dict[str, Any]) -> tuple[C | None, list[str]]:
    """Return the configuration of a nested table, or None and all its faults, a sentence each."""
    try:
        return model.model_validate(table), []
    except ValidationError as error:
        return None, [*sentences(error, model, table), *_sentences_of_mixes(error, model, table)]


def sentences(error: ValidationError, model: type[Config], table: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each field at fault; several alternatives of one field make one sentence."""
    keys = {key for key, _ in schema_keys(model)}
    found: dict[str, list[str]] = {}
    for fault in worth_reporting(error):
        kind, place = fault["type"], fault["loc"]
        key = _key(place, kind, keys)
        message = fault["msg"][0].lower() + fault["msg"][1:]
        if kind == "value_error":
            is_field = key in keys and not any(inner.startswith(f"{key}.") for inner in keys)
            for line in str(fault["ctx"]["error"]).splitlines():
                found[f"`{key}`: {line}" if is_field and not line.startswith("`") else line] = []
        elif kind == "extra_forbidden":
            found[f"{key}: {_unknown(key, keys, table)}"] = []
        elif kind == "missing":
            found[f"`{key}`: a value is needed here"] = []
        elif kind in TAG_FAULTS:
            found[f"`{key}`: {_tags(fault)}"] = []
        elif message not in (messages := found.setdefault(f"`{key}`: {fault['input']!r:.80} does not do; ", [])):
            messages.append(message)
    return [start + ", or ".join(messages) for start, messages in found.items()]


def _sentences_of_mixes(error: ValidationError, model: type[Config], table: dict[str, Any]) -> list[str]:
    """Return what does not go together, found without the fields at fault; none when a whole section is at fault."""
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
        model.model_validate(table)
    except ValidationError as second:
        if all(not fault["loc"] for fault in second.errors()):
            return sentences(second, model, table)
    return []


def worth_reporting(error: ValidationError) -> list[Any]:
    """Return the faults without the consequences of others: pydantic counts a list without its faulty items."""
    faults = error.errors()
    places = [fault["loc"] for fault in faults]
    return [
        fault
        for fault in faults
        if fault["type"] != "too_short"
        or not any(len(place) > len(fault["loc"]) and place[: len(fault["loc"])] == fault["loc"] for place in places)
    ]


def _unknown(key: str, keys: set[str], table: Mapping[str, Any]) -> str:
    above, _, last = key.rpartition(".")
    if key in keys:
        section: Any = table
        for part in above.split("."):
            section = section.get(part, {}) if isinstance(section, Mapping) else {}
        return f"kind = {section.get('kind')!r} has no such key; choose another {above}.kind first"
    same_end = [path for path in sorted(keys) if path.rpartition(".")[2] == last]
    near = same_end or difflib.get_close_matches(key, sorted(keys), n=1, cutoff=0.5)
    return f"there is no such key{f'; did you mean {near[0]}?' if near else ''}"


def _tags(fault: Any) -> str:
    expected = fault.get("ctx", {}).get("expected_tags")
    return f"{fault['ctx']['tag']!r} is not one of {expected}" if expected else "a kind is needed here"


def _key(location: tuple[Any, ...], kind: str, keys: set[str]) -> str:
    """Return `layer.rank` for `('layer', 'tt', 'rank')`: pydantic's tags of unions and names of types are left out."""
    names = {name for path in keys for name in path.split(".")}
    parts = [
        str(part)
        for position, part in enumerate(location)
        if part in names or isinstance(part, int) or (kind == "extra_forbidden" and position == len(location) - 1)
    ]
    return ".".join(parts + ["kind"] * (kind in TAG_FAULTS))
