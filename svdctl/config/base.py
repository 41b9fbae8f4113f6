"""The base of every configuration model: frozen, keyword-only, and an unknown key is an error."""

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


class Config(BaseModel):
    """A frozen pydantic model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*")
    @classmethod
    def _within_64_bits(cls, value: Any) -> Any:
        """Refuse whole numbers that neither torch nor a log can hold; a text of digits is read as one too."""
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError("a whole number of at most 63 bits is wanted here")
        return value
