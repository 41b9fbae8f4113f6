"""The keys of a configuration, those of every variant of its unions included."""

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from svdctl.config.base import Config
from svdctl.registry import Registry


def schema_keys(model: type[Config], above: str = "", table: Any = None) -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key as a dotted path, with its field; a key of several variants comes several times.

    Where a nested table names the kind of a union's section, only the keys of that variant come.
    """
    for name, field in model.model_fields.items():
        inner = table.get(name) if isinstance(table, Mapping) else None
        named = inner.get("kind") if isinstance(inner, Mapping) else None
        yield above + name, field
        if (kinds := sections_by_kind(field)) is not None:
            for kind, section in kinds.items():
                yield f"{above}{name}.{kind}", field
                yield from schema_keys(section, f"{above}{name}.{kind}.")
            continue
        sections = [kind for kind in alternatives(field) if isinstance(kind, type) and issubclass(kind, Config)]
        of_kind = [one for one in sections if named is not None and named in _kinds(one)]
        for section in of_kind or sections:
            yield from schema_keys(section, f"{above}{name}.", inner)


def _kinds(section: type[Config]) -> list[Any]:
    return alternatives(section.model_fields["kind"]) if "kind" in section.model_fields else []


def sections_by_kind(field: FieldInfo) -> dict[str, type[Config]] | None:
    """Return the sections that a field has by the kinds of a registry; None for a field of another type."""
    registries = [extra for extra in field.metadata if isinstance(extra, Registry)]
    if get_origin(field.annotation) is not dict or not registries:
        return None
    return {found.kind: found.config for found in registries[0].variants()}


def alternatives(field: FieldInfo) -> list[Any]:
    """Return the types that a field may have: members of unions, values of literals, variants of a registry."""
    return list(_alternatives(field.annotation, field.metadata))


def _alternatives(annotation: Any, extras: Any = ()) -> Iterator[Any]:
    origin = get_origin(annotation)
    if registries := [extra for extra in extras if isinstance(extra, Registry)]:
        yield from (variant.config for variant in registries[0].variants() if variant.config is not None)
    elif origin is Annotated:
        inner, *metadata = get_args(annotation)
        yield from _alternatives(inner, metadata)
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from _alternatives(member)
    elif origin is Literal:
        yield from get_args(annotation)
    else:
        yield annotation
