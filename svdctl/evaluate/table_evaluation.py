"""How the networks of a table are evaluated."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, PositiveInt, field_validator

from svdctl.config.base import Config
from svdctl.config.corruption_names import CORRUPTIONS, expand_corruptions
from svdctl.evaluate.attack_settings import Norm, Radius, attack_names
from svdctl.registry import METRICS


class Evaluate(Config):
    """How `eval-robust` is asked, in the words of its flags; a field that is absent means the paper's protocol."""

    examples: PositiveInt | None = None
    """Test images under attack; absent: all of them."""
    attacks: Annotated[tuple[str, ...], AfterValidator(lambda names: attack_names(names) and names)] = ()
    """Attacks by name, or another version; absent: AutoAttack's standard list."""
    eps: Radius = 0.5
    """Radius of the attack in pixels of [0, 1], as 0.5 or 8/255."""
    norm: Norm = "L2"
    """Norm of the attack."""
    corruptions: Annotated[tuple[str, ...], AfterValidator(lambda names: expand_corruptions(names) and names)] = ()
    """Corruptions by name; absent: all 19, as the paper's code."""
    severities: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (1, 2, 3, 4, 5)
    """Severities of the corruptions, of 1 to 5."""
    corruption_examples: PositiveInt | None = None
    """Test images that are corrupted; absent: all of them."""
    batch_size: PositiveInt = 250
    """Images at once; AutoAttack's random draws depend on it."""
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of metrics that do not ship with svdctl, by metric."""

    @field_validator("settings")
    @classmethod
    def _of_others(cls, settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if builtin := sorted(settings.keys() & set(METRICS.builtin_kinds())):
            raise ValueError(f"{', '.join(builtin)} ships with svdctl; these are for other metrics")
        return settings

    @property
    def corruption_names(self) -> tuple[str, ...]:
        """Return the corruptions, lists by name written out."""
        return expand_corruptions(self.corruptions) or CORRUPTIONS
