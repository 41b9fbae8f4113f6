"""Open unions: a section of a configuration whose `kind` names a registered variant."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, create_model
from pydantic_core import PydanticCustomError

from svdctl.config.base import Config
from svdctl.errors import UsageError
from svdctl.registry import Registry


def variant(registry: Registry[Any], default: str | None = None) -> Any:
    """Return the type of a field that holds the configuration of any variant of a registry.

    A table is validated by the `config` of the variant that its `kind` names; errors keep their places in it.

    Args:
        registry: variants with an attribute `config`, a subclass of `Config` whose field `kind` is a literal.
        default: the kind of a table that names none; None: it is an error.
    """

    def validated(value: Any) -> Any:
        if isinstance(value, Config):
            return value
        if not isinstance(value, Mapping):
            raise PydanticCustomError("dict_type", "Input should be a valid dictionary")
        kind = value.get("kind", default)
        if kind is None:
            raise PydanticCustomError("union_tag_not_found", "Unable to extract tag using discriminator 'kind'")
        found = registry.find(kind) if isinstance(kind, str) else None
        if found is None or found.config is None:
            kinds = [known.kind for known in registry.variants() if known.config is not None]
            raise PydanticCustomError(
                "union_tag_invalid",
                "Input tag '{tag}' found using 'kind' does not match any of the expected tags: {expected_tags}",
                {"tag": str(kind), "expected_tags": ", ".join(map(repr, kinds)), "discriminator": "'kind'"},
            )
        return found.config.model_validate({**value, "kind": kind})

    # The registry is there for `schema_keys`; pydantic passes over it.
    return Annotated[SerializeAsAny[Config], BeforeValidator(validated), registry]


def sections(registry: Registry[Any]) -> Any:
    """Return the type of a field that holds configurations of variants by their kinds, of as many as are given.

    Args:
        registry: variants with an attribute `config`, a subclass of `Config`.
    """

    def validated(table: Any) -> Any:
        if not isinstance(table, Mapping):
            return table
        try:
            fields: dict[str, Any] = {kind: (registry.get(kind).config, ...) for kind in table}
        except UsageError as error:
            raise ValueError(str(error)) from error
        # A model of these fields: errors keep their places.
        return dict(create_model("Sections", **fields).model_validate(dict(table)))

    return Annotated[dict[str, SerializeAsAny[Config]], BeforeValidator(validated), registry]
