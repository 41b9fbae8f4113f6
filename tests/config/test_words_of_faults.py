"""Every fault of a value that the schemas know is told in words of svdctl, none in those of pydantic."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from svdctl.config.base import Config
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.config.schema_keys import schema_keys
from svdctl.config.train_config import TrainConfig
from svdctl.config.validation_errors import WANTED, validated
from svdctl.registry import ARCHITECTURES, CONTROLS, DATA, LAYERS, LOGGERS, LOSSES, METRICS
from svdctl.reproduce.table_files import Request

KINDS = {
    "int": {"int_type", "int_parsing", "int_parsing_size", "int_from_float"},
    "float": {"float_type", "float_parsing", "finite_number"},
    "bool": {"bool_type", "bool_parsing"},
    "str": {"string_type"},
    "tuple": {"tuple_type"},
    "dict": {"dict_type"},
    "model": {"model_type"},
    "gt": {"greater_than"},
    "ge": {"greater_than_equal"},
    "lt": {"less_than"},
    "le": {"less_than_equal"},
    "multiple_of": {"multiple_of"},
    "pattern": {"string_pattern_mismatch"},
    "str min_length": {"string_too_short"},
    "str max_length": {"string_too_long"},
    "tuple min_length": {"too_short"},
    "tuple max_length": {"too_long"},
    "dict min_length": {"too_short"},
    "dict max_length": {"too_long"},
}
"""Pydantic's kinds of fault by what it is told of a field: its type, and limits on it."""
OF_PYDANTIC = re.compile(r"input should|unable to|should (be|have|match)|valid (number|integer|string|boolean)", re.I)
"""How pydantic speaks."""


def schemas() -> Iterator[type[Config]]:
    for registry in (ARCHITECTURES, CONTROLS, DATA, LAYERS, LOGGERS, LOSSES, METRICS):
        yield from (variant.config for variant in registry.variants() if variant.config is not None)
    yield from (TrainConfig, EvaluateConfig, Request)


def told(schema: Any, found: set[str]) -> set[str]:
    """Return the types and limits that are anywhere in a schema of pydantic's core."""
    if isinstance(schema, dict):
        kind = schema.get("type")
        found |= {str(kind)} | {f"{kind} {name}" for name in schema} | {name for name in schema if name in KINDS}
        for inner in schema.values():
            told(inner, found)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            told(inner, found)
    return found


def test_every_kind_of_fault_has_words() -> None:
    found: set[str] = set()
    for config in schemas():
        told(config.__pydantic_core_schema__, found)
    kinds = set[str]().union(*(KINDS[name] for name in found & KINDS.keys()))
    assert {"int_parsing", "greater_than", "less_than_equal", "too_long", "string_pattern_mismatch"} <= kinds
    assert kinds - {"too_short"} <= WANTED.keys()


@pytest.mark.parametrize("model", [TrainConfig, EvaluateConfig, Request])
def test_no_fault_of_a_value_is_told_in_words_of_pydantic(model: type[Config]) -> None:
    for key, _ in schema_keys(model):
        for value in ("", "x,y", "9" * 5000, -1, 1e30, 2.5, float("nan"), [], ["x"], [-1.5], {"x": 1}, True):
            table: Any = value
            for part in reversed(key.split(".")):
                table = {part: table}
            for sentence in validated(model, table)[1]:
                assert not OF_PYDANTIC.search(sentence), f"{key} = {value!r:.40}: {sentence}"
