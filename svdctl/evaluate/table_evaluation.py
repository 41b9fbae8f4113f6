"""How the networks of a table are evaluated."""

from typing import Annotated, Any, get_args

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, field_validator

from svdctl.config.base import Config
from svdctl.config.corruption_names import BENCHMARK, CORRUPTIONS, corruption_name, read_corruption_list
from svdctl.errors import UsageError
from svdctl.evaluate.attack_settings import VERSIONS, AttackName, Norm
from svdctl.registry import METRICS


def _attacks(names: tuple[str, ...]) -> tuple[str, ...]:
    single = get_args(AttackName)
    unknown = [name for name in names if name not in single and (name not in VERSIONS or len(names) > 1)]
    if unknown:
        raise ValueError(
            f"there is no attack {', '.join(unknown)}; choose of {', '.join(single)}, or, alone, "
            f"one of {', '.join(VERSIONS)}"
        )
    return names


def _corruptions(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in ("all", "benchmark"):
            try:
                corruption_name(name)
            except UsageError as error:
                raise ValueError(str(error)) from error
    return names


class Evaluate(Config):
    """How `eval-robust` is asked, in the words of its flags; a field that is absent means the paper's protocol."""

    examples: PositiveInt | None = None
    """Test images under attack; absent: all of them."""
    attacks: Annotated[tuple[str, ...], AfterValidator(_attacks)] = ()
    """Attacks by name, or another version; absent: AutoAttack's standard list."""
    eps: PositiveFloat = 0.5
    """Radius of the attack in pixels of [0, 1]."""
    norm: Norm = "L2"
    corruptions: Annotated[tuple[str, ...], AfterValidator(_corruptions)] = ()
    """Corruptions by name; absent: those of `corruptions.txt`."""
    severities: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (1, 2, 3, 4, 5)
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
        if not self.corruptions:
            return read_corruption_list()
        lists = {"all": CORRUPTIONS, "benchmark": BENCHMARK}
        return tuple(dict.fromkeys(n for word in self.corruptions for n in lists.get(word) or (corruption_name(word),)))
