"""Faults of a configuration as sentences that name the key, in backticks, and the way out."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from itertools import islice
from typing import Any, TypeVar

from pydantic import ValidationError

from svdctl.config.base import Config
from svdctl.config.overrides import Overrides
from svdctl.config.schema_keys import schema_keys, sections_by_kind
from svdctl.errors import nearest

TAG_FAULTS = ("union_tag_not_found", "union_tag_invalid")
SECTION = "write a section with its keys, as [name], or [[name]] for one of several"
WANTED = {
    **dict.fromkeys(("tuple_type", "list_type"), "write a list, in [ ]"),
    **dict.fromkeys(("string_type", "path_type"), "write a text, in quotation marks"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), SECTION),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "write a whole number"),
    "int_parsing_size": "the number has too many digits",
    **dict.fromkeys(("float_type", "float_parsing"), "write a number, as 0.5"),
    "finite_number": "write a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "write true or false"),
    "greater_than": "a number above {gt} is wanted",
    "greater_than_equal": "a number of at least {ge} is wanted",
    "less_than": "a number below {lt} is wanted",
    "less_than_equal": "a number of at most {le} is wanted",
    "too_long": "at most {max_length} are wanted",
    "string_too_short": "a text of at least {min_length} letters is wanted",
    "string_too_long": "a text of at most {max_length} letters is wanted",
    "string_pattern_mismatch": "a text of the form {pattern} is wanted",
}
"""What to write instead, by pydantic's kind of fault, with the names of what it tells of the fault in braces."""
MOST_FAULTS = 20
"""Fields at fault that are told of; the others are counted."""
C = TypeVar("C", bound=Config)


def validated(model: type[C], table: dict[str, Any]) -> tuple[C | None, list[str]]:
    """Return the configuration of a nested table, or None and all its faults, a sentence each."""
    try:
        return model.model_validate(table), []
    except ValidationError as error:
        return None, [*sentences(error, model, table), *_sentences_of_mixes(error, model, table)]


def sentences(error: ValidationError, model: type[Config], table: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each field at fault, the first ones; several alternatives of one field make one."""
    keys = {key for key, _ in schema_keys(model)}
    found: dict[str, list[str]] = {}
    faults = worth_reporting(error)
    for fault in faults[:MOST_FAULTS]:
        kind, place = fault["type"], fault["loc"]
        key = _key(place, kind, keys)
        message = _wanted(fault)
        start = f"`{key}`: {fault['input']!r:.80} is not valid" if key else f"{fault['input']!r:.80} is not valid here"
        if kind == "value_error":
            is_field = key in keys and not any(inner.startswith(f"{key}.") for inner in keys)
            for line in str(fault["ctx"]["error"]).splitlines():
                found[f"`{key}`: {line}" if is_field and not line.startswith("`") else line] = []
        elif kind == "extra_forbidden":
            for line in _unknown(key, keys, model, table, fault["input"]):
                found[line] = []
        elif kind == "missing":
            needed = "a value is needed here" if isinstance(place[-1], int) else "a value is needed"
            found[f"`{key}`: {needed}" + f": the key {key} is missing; add it" * (not isinstance(place[-1], int))] = []
        elif kind in TAG_FAULTS:
            found[f"`{key}`: {_tags(fault)}"] = []
        elif message not in (messages := found.setdefault(f"{start}; ", [])):
            messages.append(message)
    more = [f"{len(faults) - MOST_FAULTS:,} further faults are not told"] if len(faults) > MOST_FAULTS else []
    return [start + ", or ".join(messages) for start, messages in found.items()] + more


def of_a_file(faults: Iterable[str]) -> list[str]:
    """Return faults of a user's file: no flag replaces the key at the start and dotted ones, which stand in the file.

    Faults in the rows of a table name their row already.
    """
    return [re.sub(r"^`rows`: (?=row )|^`([^`]+)`|`([^` ]+\.[^`]+)`", r"\1\2", fault) for fault in faults]


def _sentences_of_mixes(error: ValidationError, model: type[Config], table: Any) -> list[str]:
    """Return what does not go together, found without the fields at fault; none when a whole section is at fault."""
    if not isinstance(table, dict):
        return []
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


def _wanted(fault: Any) -> str:
    if fault["type"] == "too_short":
        least = fault["ctx"]["min_length"]
        return "one at least is needed" if least == 1 else f"{least} at least are needed"
    if fault["type"] == "literal_error":
        words = re.findall(r"'([^']*)'", fault["ctx"]["expected"]) or [fault["ctx"]["expected"]]
        *first, last = words
        wanted = f"one of {', '.join(first)} and {last}" if first else last
        return f"{wanted} is wanted{nearest(str(fault['input']), words)}"
    if (wanted := WANTED.get(fault["type"])) is None:
        return str(fault["msg"][0].lower() + fault["msg"][1:])
    return wanted.format_map({name: _plain(limit) for name, limit in fault.get("ctx", {}).items()})


def _plain(limit: Any) -> Any:
    return f"{limit:g}" if isinstance(limit, float) else limit


def _unknown(key: str, keys: set[str], model: type[Config], table: Mapping[str, Any], value: Any) -> Iterator[str]:
    """Yield sentences about a key that there is not: one, or one for each key below it that a variant's section has."""
    above, _, last = key.rpartition(".")
    if key in keys:
        yield f"{key}: kind = {Overrides(dict(table)).kind(above)!r} has no such key; choose another {above}.kind first"
        return
    by_kind = [name for name, field in model.model_fields.items() if sections_by_kind(field) is not None]
    of_variants = [path for path in keys if path.partition(".")[0] in by_kind]
    below = islice(_leaves(value), MOST_FAULTS)
    moved = {f"{key}.{inner}": same for inner in below if (same := _same_end(inner, of_variants))}
    for path, same in moved.items():
        yield f"{path}: there is no such key; did you mean {' or '.join(same)}?"
    if moved:
        return
    siblings = _known(model, table, above)
    here = {sibling: f"{above}.{sibling}" if above else sibling for sibling in siblings}
    near = _same_end(key, keys) or [here[name] for name in difflib.get_close_matches(last, siblings, n=1, cutoff=0.5)]
    if not near:
        alike = {path for path in keys if difflib.SequenceMatcher(None, last, path.rpartition(".")[2]).ratio() >= 0.6}
        near = difflib.get_close_matches(key, sorted(alike), n=1, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    known = f"known: {', '.join(siblings)}" if siblings else f"{above} has none"
    yield f"{key}: there is no such key{hint} ({known})"


def _leaves(value: Any) -> Iterator[str]:
    """Yield the dotted paths of single values in a nested table."""
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        yield from (f"{name}.{path}" for path in _leaves(inner)) if isinstance(inner, Mapping) else (str(name),)


def _same_end(key: str, keys: Iterable[str]) -> list[str]:
    """Return the known keys that end as this one does; where there are several, those nearest to it."""
    last = key.rpartition(".")[2]
    found = sorted(path for path in keys if path.rpartition(".")[2] == last) if last != "kind" else []
    return found if len(found) < 3 else difflib.get_close_matches(key, found, n=1, cutoff=0.0)


def _known(model: type[Config], table: Any, above: str) -> list[str]:
    """Return the keys that a table may have at a place, those of the kind that it names."""
    places = [key.rpartition(".") for key, _ in schema_keys(model, table=table)]
    return list(dict.fromkeys(last for place, _, last in places if place == above))


def _tags(fault: Any) -> str:
    expected = fault.get("ctx", {}).get("expected_tags")
    if not expected:
        return "a kind is needed here"
    tag, words = fault["ctx"]["tag"], re.findall(r"'([^']*)'", expected)
    return f"{tag!r} is not one of {expected}{nearest(tag, words)}"


def _key(location: tuple[Any, ...], kind: str, keys: set[str]) -> str:
    """Return `layer.rank` for `('layer', 'tt', 'rank')`: pydantic's tags of unions and names of types are left out."""
    names = {name for path in keys for name in path.split(".")}
    parts = [
        str(part)
        for position, part in enumerate(location)
        if part in names or isinstance(part, int) or (kind == "extra_forbidden" and position == len(location) - 1)
    ]
    return ".".join(parts + ["kind"] * (kind in TAG_FAULTS))
