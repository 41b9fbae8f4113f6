"""Registries: variants by kind, errors that list what there is, and open unions in configurations."""

from typing import Any, Literal

import pytest
from pydantic import ValidationError

from svdctl.config.base import Config
from svdctl.config.variants import variant
from svdctl.errors import UsageError
from svdctl.registry import Registry


class Square(Config):
    kind: Literal["square"] = "square"
    side: int = 1


class Shape:
    kind = "square"
    config: type[Config] | None = Square


class OtherShape(Shape):
    pass


def shapes() -> Registry[Any]:
    registry: Registry[Any] = Registry("shape", ())
    registry.register(Shape)
    return registry


def test_a_variant_is_found_by_its_kind() -> None:
    registry = shapes()
    assert isinstance(registry.get("square"), Shape)
    assert registry.kinds() == ("square",)
    assert registry.find("circle") is None


def test_an_unknown_kind_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"no shape .squar.: there are square; did you mean square"):
        shapes().get("squar")


def test_the_same_class_may_be_registered_again_and_another_one_may_not() -> None:
    registry = shapes()
    registry.register(Shape())
    with pytest.raises(UsageError, match="registered twice"):
        registry.register(OtherShape)


def test_a_field_takes_any_registered_variant() -> None:
    registry = shapes()

    class Picture(Config):
        shape: variant(registry) = Square()  # type: ignore[valid-type]

    found = Picture.model_validate({"shape": {"kind": "square", "side": 3}})
    assert found.shape == Square(side=3)  # type: ignore[attr-defined]
    assert found.model_dump() == {"shape": {"kind": "square", "side": 3}}
    for table, place, kind in (
        ({"kind": "square", "side": "x"}, ("shape", "side"), "int_parsing"),
        ({"kind": "square", "edge": 1}, ("shape", "edge"), "extra_forbidden"),
        ({"kind": "circle"}, ("shape",), "union_tag_invalid"),
        ({"side": 1}, ("shape",), "union_tag_not_found"),
        (3, ("shape",), "dict_type"),
    ):
        with pytest.raises(ValidationError) as caught:
            Picture.model_validate({"shape": table})
        (fault,) = caught.value.errors()
        assert (fault["loc"], fault["type"]) == (place, kind)
