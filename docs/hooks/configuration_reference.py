"""The reference of configuration keys: type, default, meaning, flags and presets of each, made from code."""

import inspect
import json
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from svdctl.analysis.inspect_config import InspectConfig
from svdctl.cli.evaluation_flags import EVALUATION
from svdctl.cli.inspect_spectrum import INSPECT
from svdctl.cli.options import Flag, Flags, spelled
from svdctl.cli.reproduce import REQUEST
from svdctl.cli.training_flags import LIPCONV, TRAIN
from svdctl.config.base import Config
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.config.presets import list_presets, read_preset
from svdctl.config.schema_keys import alternatives, sections_by_kind
from svdctl.config.train_config import TrainConfig
from svdctl.reproduce.table_files import Collection, Request, ResultTable, SpeedFigure

ROOTS: dict[str, tuple[type[Config], str, tuple[tuple[str, Flags], ...]]] = {
    "Training": (
        TrainConfig,
        "`config.toml` of a run folder, files of `--preset`, `--set` of `svdctl train` and `svdctl train-lipconv`.",
        ((TRAIN.name, TRAIN.flags), (LIPCONV.name, LIPCONV.flags)),
    ),
    "Evaluation": (EvaluateConfig, "`--set` of `svdctl eval-robust`.", (("eval-robust", EVALUATION),)),
    "Spectra": (InspectConfig, "What the flags of `svdctl inspect-spectrum` set.", (("inspect-spectrum", INSPECT),)),
    "Reproduction": (Request, "What the flags of `svdctl reproduce` set.", (("reproduce", REQUEST),)),
    "Tables": (ResultTable, "Files of `svdctl reproduce FILE.toml`.", ()),
    "Figures of speed": (SpeedFigure, 'Files of `svdctl reproduce FILE.toml` with `kind = "speed"`.', ()),
    "Collections": (Collection, 'Files of `svdctl reproduce FILE.toml` with `kind = "collection"`.', ()),
}
"""The configurations, by heading: schema, where its keys are written, and the flags that set them, by command."""


@dataclass
class Key:
    """One key, as all variants of its section have it that share type, default and meaning.

    Attributes:
        path: dotted.
        type, default, text: in Markdown.
        kinds: the variants that have it; empty where the section has none.
    """

    path: str
    type: str
    default: str
    text: str
    kinds: list[str]


@dataclass
class Section:
    """A table of a configuration.

    Attributes:
        path: dotted; empty at the top.
        text: what it is.
        kinds: what each variant is, by its kind.
        keys: in the order of the schema.
    """

    path: str
    text: str
    kinds: dict[str, str]
    keys: list[Key]


def sections_of(model: type[Config], path: str = "") -> Iterator[Section]:
    """Yield the tables of a configuration, the top one first."""
    yield from _sections({"": model}, path)


def _sections(variants: Mapping[str, type[Config]], path: str) -> Iterator[Section]:
    named = len(variants) > 1 or _kind_of(next(iter(variants.values()))) is not None
    texts = {kind: sentence(variant.__doc__) for kind, variant in variants.items()} if named else {}
    text = "" if named else plain(inspect.getdoc(next(iter(variants.values()))) or "")
    section = Section(path, text if path else "", texts, [])
    inner: dict[str, dict[str, type[Config]]] = {}
    for kind, variant in variants.items():
        for name, field in variant.model_fields.items():
            dotted = f"{path}.{name}".lstrip(".")
            below = variants_of(field)
            if below:
                inner.setdefault(dotted, {}).update(below)
            elif name != "kind" or not named:
                _add(section, Key(dotted, type_of(field), default_of(field), plain(field.description or ""), [kind]))
    yield section
    for dotted, below in inner.items():
        yield from _sections(below, dotted)


def _add(section: Section, key: Key) -> None:
    for known in section.keys:
        if (known.path, known.type, known.default, known.text) == (key.path, key.type, key.default, key.text):
            known.kinds += key.kinds
            return
    section.keys.append(key)


def _kind_of(model: type[Config]) -> str | None:
    field = model.model_fields.get("kind")
    values = get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()
    return values[0] if len(values) == 1 else None


def variants_of(field: FieldInfo) -> dict[str, type[Config]]:
    """Return the tables that a field may hold, by their kinds; empty for one that holds none."""
    if (kinds := sections_by_kind(field)) is not None:
        return kinds
    tables = [kind for kind in alternatives(field) if inspect.isclass(kind) and issubclass(kind, Config)]
    if not tables and get_origin(field.annotation) is tuple:
        first = get_args(field.annotation)[0]
        tables = [first] if inspect.isclass(first) and issubclass(first, Config) else []
    return {_kind_of(table) or "": table for table in tables}


def type_of(field: FieldInfo) -> str:
    """Return what a field may be, in Markdown."""
    return _type(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)


_NAMES = {str: "text", bool: "`true` or `false`", int: "whole number", float: "number", Path: "path", Any: "any"}


def _type(kind: Any, limits: tuple[Any, ...] = ()) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type(inner[0], (*inner[1:], *limits))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(one, limits) for one in inner if one is not type(None)))
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`" for value in inner)
    if origin is tuple:
        kinds = [_type(one) for one in inner if one is not Ellipsis]
        return f"list: {kinds[0]}" if Ellipsis in inner else f"list of {len(kinds)}: {kinds[0]}"
    if origin is dict:
        return "table"
    if inspect.isclass(kind) and issubclass(kind, Config):
        return "table"
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind))) + _limits(limits)


def _limits(extras: Iterable[Any]) -> str:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    found = [
        f"{word} {getattr(extra, name):g}"
        for extra in (part for one in extras for part in getattr(one, "metadata", [one]))
        for name, word in words.items()
        if isinstance(getattr(extra, name, None), int | float) and abs(getattr(extra, name)) < 2**60
    ]
    return ", " + ", ".join(dict.fromkeys(found)) if found else ""


def default_of(field: FieldInfo) -> str:
    """Return the default of a field, in Markdown."""
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "absent"
    return f"`{toml_text(value)}`"


def toml_text(value: Any) -> str:
    """Return a value as it stands in TOML."""
    if isinstance(value, Config):
        return toml_text(value.model_dump(mode="json", exclude_none=True))
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(toml_text, value)) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml_text(one)}" for key, one in value.items()) + " }"
    return json.dumps(value if isinstance(value, bool | int | float) else str(value), ensure_ascii=False)


def flags_of(tables: Iterable[tuple[str, Flags]]) -> dict[str, dict[str, list[str]]]:
    """Return, for each key, the flags that set it and the commands that have them."""
    found: dict[str, dict[str, list[str]]] = {}
    for command, flags in tables:
        for name, flag in flags.items():
            for key in keys_set_by(flag):
                found.setdefault(key, {}).setdefault(spelled(name), []).append(command)
    return found


def keys_set_by(flag: Flag) -> list[str]:
    """Return the keys that a flag sets: its own, and those that its rule names."""
    keys = [flag.key] if flag.key else []
    if flag.rule is not None:
        keys += _keys_in(flag.rule)
    return list(dict.fromkeys(keys))


def _keys_in(rule: Callable[..., None]) -> Iterator[str]:
    for switched, key in re.findall(r'\.(?:put|(switch))\(\s*"([\w.]+)"', inspect.getsource(rule)):
        yield f"{key}.kind" if switched else key
    # Rules that set the same fields always hold them as (key, value).
    for name, fields in inspect.getclosurevars(rule).nonlocals.items():
        if name == "fields":
            yield from (
                f"{key}.{inner}" if isinstance(value, dict) else key
                for key, value in fields
                for inner in (value if isinstance(value, dict) else [""])
            )


def preset_values() -> dict[str, dict[str, list[str]]]:
    """Return, for each key, its values in the shipped presets, and the presets that have them."""
    found: dict[str, dict[str, list[str]]] = {}
    for preset in list_presets():
        for key, value in _flat(read_preset(preset)):
            found.setdefault(key, {}).setdefault(toml_text(value), []).append(preset)
    found.pop("name", None)  # each has its own
    return found


def _flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def plain(text: str) -> str:
    """Return a docstring as one line of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def sentence(text: str | None) -> str:
    """Return the first sentence of a docstring."""
    return plain(text or "").partition(". ")[0].rstrip(".") + "."


def configuration_page() -> str:
    """Return the page, in Markdown."""
    lines = [
        "# Configuration keys",
        "",
        "Made from the schema of each configuration, the tables of flags and the shipped presets. A key that is not "
        "here is an error, which names the nearest one. `svdctl train --print-config` prints a whole configuration.",
        "",
    ]
    presets = preset_values()
    for title, (model, where, tables) in ROOTS.items():
        lines += [f"## {title}", "", where, ""]
        flags = flags_of(tables)
        for section in sections_of(model):
            lines += _section_lines(section, title, flags, presets if model is TrainConfig else {})
    return "\n".join(lines)


def _section_lines(
    section: Section,
    title: str,
    flags: Mapping[str, Mapping[str, list[str]]],
    presets: Mapping[str, Mapping[str, list[str]]],
) -> Iterator[str]:
    if section.path:
        yield from (f"### {title}: `{section.path}`", "", section.text, "")
    if section.kinds:
        path = f"{section.path}.kind".lstrip(".")
        about = " ".join(filter(None, [_flag_text(flags.get(path, {})), _preset_text(presets.get(path, {}))]))
        yield from (f"`{path}` chooses one of these. {about}", "", "| kind | what |", "|---|---|")
        yield from (f"| `{kind}` | {text} |" for kind, text in section.kinds.items() if kind)
        yield ""
    if not section.keys:
        return
    yield from ("| key | type, default | meaning | set by |", "|---|---|---|---|")
    every = {kind for key in section.keys for kind in key.kinds}
    for key in section.keys:
        only = "" if len(section.kinds) < 2 or {*key.kinds} == {*section.kinds} else _only(key, every)
        changed = {value: names for value, names in presets.get(key.path, {}).items() if f"`{value}`" != key.default}
        ways = " ".join(filter(None, [_flag_text(flags.get(key.path, {})), _preset_text(changed)]))
        yield f"| `{key.path}` | {key.type}; {key.default} | {only}{key.text} | {ways} |"
    yield ""


def _only(key: Key, every: set[str]) -> str:
    return f"({', '.join(key.kinds)}) "


def _families(names: list[str]) -> Iterator[str]:
    """Yield presets, those of a family that are all there as one pattern."""
    families: dict[str, set[str]] = {}
    for preset in list_presets():
        families.setdefault(preset.partition("-")[0], set()).add(preset)
    for family, members in families.items():
        there = [name for name in names if name in members]
        yield from [f"`{family}-*`"] if len(there) == len(members) > 1 else [f"`{name}`" for name in there]


def _flag_text(flags: Mapping[str, list[str]]) -> str:
    """Return the flags of a key; of commands that have the same one, none is named."""
    commands = {command for several in flags.values() for command in several}
    return ", ".join(
        f"`{flag}`" + (f" ({' and '.join(several)})" if len(flags) > 1 and len(several) < len(commands) else "")
        for flag, several in flags.items()
    )


def _preset_text(values: Mapping[str, list[str]]) -> str:
    texts = [f"`{value}` in {', '.join(_families(names))}" for value, names in values.items()]
    return f"<details><summary>presets</summary>{'; '.join(texts)}</details>" if texts else ""
