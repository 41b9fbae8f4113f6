"""Registries: the variants of one kind of thing (layers, control methods, data sets, ...), by their kind."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Generic, Protocol, TypeVar

from svdctl.errors import UsageError, nearest


class Variant(Protocol):
    """What a registry holds: an object without state, known by its kind."""

    @property
    def kind(self) -> str:
        """Name of the variant in configurations."""
        ...


V = TypeVar("V", bound=Variant)


class Registry(Generic[V]):
    """Variants by kind; those that ship with svdctl are imported when something is looked up for the first time.

    Args:
        what: what the variants are, in the singular, as `data set`.
        builtin: modules that register the variants of svdctl when they are imported.
    """

    load_plugins: Callable[[], None] | None = None
    """Called once, by any registry, when a kind is not found: plugins that are installed may bring it."""

    def __init__(self, what: str, builtin: Sequence[str]) -> None:
        self.what = what
        self._builtin = tuple(builtin)
        self._variants: dict[str, V] = {}
        self._builtin_kinds: tuple[str, ...] | None = None

    def register(self, variant: V | type[V]) -> V | type[V]:
        """Add a variant, or an instance of a class that takes no arguments; returns what was given, for decorators.

        Raises:
            UsageError: another class has this kind already.
        """
        instance = variant() if isinstance(variant, type) else variant
        known = self._variants.get(instance.kind)
        if known is not None and _name(known) != _name(instance):
            raise UsageError(f"{self.what} {instance.kind!r} is registered twice: {_name(known)} and {_name(instance)}")
        self._variants[instance.kind] = instance
        return variant

    def find(self, kind: str) -> V | None:
        """Return the variant of a kind; None if there is none."""
        self._import_builtin()
        if kind not in self._variants and Registry.load_plugins is not None:
            load, Registry.load_plugins = Registry.load_plugins, None
            load()
        return self._variants.get(kind)

    def get(self, kind: str) -> V:
        """Return the variant of a kind.

        Raises:
            UsageError: there is none; the sentence lists what there is.
        """
        found = self.find(kind)
        if found is None:
            kinds = self.kinds()
            raise UsageError(
                f"there is no {self.what} {kind!r}: there are {', '.join(kinds)}{nearest(str(kind), kinds)}"
            )
        return found

    def variants(self) -> tuple[V, ...]:
        """Return all variants, those of svdctl first."""
        self._import_builtin()
        return tuple(self._variants.values())

    def kinds(self) -> tuple[str, ...]:
        """Return all kinds, those of svdctl first, each in the order of registration."""
        self._import_builtin()
        return tuple(self._variants)

    def builtin_kinds(self) -> tuple[str, ...]:
        """Return the kinds that ship with svdctl."""
        self._import_builtin()
        assert self._builtin_kinds is not None
        return self._builtin_kinds

    def is_builtin(self, variant: V) -> bool:
        """Return whether one of svdctl's modules defines the variant; no module is imported for it."""
        return type(variant).__module__ in self._builtin

    def _import_builtin(self) -> None:
        if self._builtin_kinds is not None:
            return
        users, self._variants = self._variants, {}
        for module in self._builtin:
            import_module(module)
            # Where somebody imported it before, it has registered itself already.
            self._variants |= {kind: own for kind, own in users.items() if type(own).__module__ == module}
        self._builtin_kinds = tuple(self._variants)
        for variant in users.values():
            self.register(variant)


def _name(variant: object) -> str:
    return f"{type(variant).__module__}.{type(variant).__qualname__}"


CONTROLS: Registry[Any] = Registry(
    "control method",
    [f"svdctl.control.{name}" for name in ("no_control", "clip", "divide", "divide_exact", "divide_each", "assign")],
)
"""Of `svdctl.control.control_method.ControlMethod`."""
LAYERS: Registry[Any] = Registry(
    "layer",
    [
        f"svdctl.layers.ops.{name}_ops"
        for name in (
            "standard",
            "tt",
            "soc",
            "sott",
            "linear",
            "transposed",
            "attention",
            "normalization",
            "scale",
            "minmax",
        )
    ],
)
"""Of `svdctl.layers.layer_ops.LayerOps`."""
LOGGERS: Registry[Any] = Registry(
    "logger", [f"svdctl.train.loggers.{name}_logger" for name in ("jsonl", "wandb", "tensorboard", "mlflow")]
)
"""Of `svdctl.train.logger.Logger`."""
LOSSES: Registry[Any] = Registry("loss", ["svdctl.train.losses.cross_entropy"])
"""Of `svdctl.train.loss.Loss`."""
DATA: Registry[Any] = Registry("data set", [f"svdctl.data.{name}" for name in ("digits", "cifar", "folder", "npz")])
"""Of `svdctl.data.data_source.DataSource`."""
METRICS: Registry[Any] = Registry(
    "metric", [f"svdctl.evaluate.metrics.{name}" for name in ("accuracy", "ece", "cifar_c", "autoattacks", "certified")]
)
"""Of `svdctl.evaluate.metric.Metric`, in the order in which they are measured and shown."""
ARCHITECTURES: Registry[Any] = Registry(
    "architecture", [f"svdctl.models.{name}_architecture" for name in ("wrn", "vgg", "lipconvnet", "external")]
)
"""Of `svdctl.models.architecture.Architecture`."""
