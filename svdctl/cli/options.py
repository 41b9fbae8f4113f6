"""Options of the commands: tables of flags give the options, their help and their effects."""

import inspect
import keyword
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import typer
from pydantic.fields import FieldInfo

from svdctl.cli.messages import with_flags
from svdctl.config.base import Config
from svdctl.config.overrides import Overrides
from svdctl.config.schema_keys import alternatives, schema_keys
from svdctl.config.validation_errors import validated
from svdctl.errors import UsageError
from svdctl.plugins import load_plugins

PAPER = "Flags of the paper's code (a dash or an underscore)"
RUN = "Run"
RECIPE = "Recipe"
DEVICES = "Devices"
C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Flag:
    """An option of a command.

    Args:
        key: the key of the configuration that it sets; type, choices and help come from its field.
        panel: heading in the help.
        text: help, where the field's docstring does not do.
        type: the type of the value, where the field's does not do or there is none.
        rule: sets what the value means, in place of the key alone; gets the flag's name and value.
        needs: returns whether the value means anything with the flags before it; it may raise a fault.
        words: other spellings of values, as those of the paper's code.
        off: values that mean "not given", as in the paper's code.
        spellings: further names.
        negatable: whether there is a `--no-` form.
        of: the command that has it; empty: every command of its table.
    """

    key: str = ""
    panel: str = PAPER
    text: str = ""
    type: Any = None
    rule: Callable[["Merge", str, Any], None] | None = None
    needs: Callable[["Merge", str, Any], bool] = lambda merge, name, value: True
    words: Mapping[str, str] | None = None
    off: tuple[Any, ...] = ()
    spellings: tuple[str, ...] = ()
    negatable: bool = False
    of: str = ""


Flags = dict[str, Flag]


@dataclass(frozen=True)
class Resolved(Generic[C]):
    """A configuration, remarks about the flags, and the name of the preset or defaults behind it."""

    config: C
    notices: tuple[str, ...]
    base: str = ""


def spelled(name: str) -> str:
    """Return the flag of a name: `--clip-to` for `clip_to`."""
    return "--" + name.replace("_", "-")


def flags_by_key(flags: Flags) -> dict[str, str]:
    """Return the flag of each key of a configuration that has one; the first, where there are several."""
    found: dict[str, str] = {}
    for name, flag in flags.items():
        found.setdefault(flag.key, spelled(name))
    for name in flags:
        found.setdefault(name, spelled(name))
    # Sections of other commands' configurations, which messages of shared code name.
    shared = {"data.root": "dataset_root", "settings.cifar-c.root": "cifar_c_root"}
    found = {key: spelled(name) for key, name in shared.items() if name in flags} | found
    return found | ({"data.path": "--dataset KIND:PATH"} if "dataset" in flags else {})


class Merge:
    """A nested table, the flags given, and what is found wrong with them.

    Attributes:
        given: values by the flag's name with underscores.
        to: the table, changed flag by flag.
        faults, notices: sentences.
    """

    def __init__(self, flags: Flags, given: Mapping[str, Any], table: dict[str, Any]) -> None:
        self.flags, self.to = flags, Overrides(table)
        self.given = {name: value for name, value in given.items() if name not in flags or value not in flags[name].off}
        self.faults: list[str] = []
        self.notices: list[str] = []

    def load_plugins(self, more: Iterable[str] = ()) -> tuple[str, ...]:
        """Import the plugins that a base and the flags name; return their names."""
        try:
            return load_plugins([*more, *self.given.get("plugin", ())])
        except UsageError as error:
            self.faults += error.faults
            return ()

    def put(self, name: str, value: Any) -> None:
        """Set the key of a flag; another `kind` of a section drops the fields of the old one."""
        flag = self.flags[name]
        value = flag.words.get(value, value) if flag.words else value
        section, _, last = flag.key.rpartition(".")
        if last == "kind":
            self.to.switch(section, value)
        else:
            self.to.put(flag.key, value)

    def apply(self) -> None:
        """Set what the flags mean, in the order of the table; assignments of `set` last."""
        for name, flag in self.flags.items():
            if name not in self.given or not (flag.key or flag.rule):
                continue
            try:
                if flag.needs(self, name, self.given[name]):
                    (flag.rule or Merge.put)(self, name, self.given[name])
            except UsageError as error:
                self.faults += error.faults
        self.faults += self.to.assign_all(self.given.get("set", ()))

    def result(self, model: type[C], words: Mapping[str, str] | None = None) -> C:
        """Return the configuration; `words`: flags by key, for messages, where they are not those of the table.

        Raises:
            UsageError: with every fault of the flags and of the configuration.
        """
        config, more = validated(model, self.to.table)
        if config is None or self.faults:
            words = flags_by_key(self.flags) if words is None else words
            raise UsageError(dict.fromkeys(with_flags(fault, words) for fault in [*self.faults, *more]))
        return config


def with_options(
    flags: Flags, model: type[Config], argument: tuple[str, str] | None = None, *, defaults: bool = False
) -> Callable[[Callable[[dict[str, Any]], None]], Callable[..., None]]:
    """Return a decorator that gives a command the options of a table; the command gets the values given, by name.

    Args:
        flags: the table.
        model: the schema in which the keys stand.
        argument: name and help of the values without a flag.
        defaults: whether the help of an option ends with the schema's default.
    """
    fields: dict[str, list[FieldInfo]] = {}
    for key, field in schema_keys(model):
        fields.setdefault(key, []).append(field)
    parameters = []
    if argument is not None:
        name, text = argument
        parameters.append((name, Annotated[list[Path] | None, typer.Argument(help=text, show_default=False)], None))
    for name, flag in flags.items():
        known = fields.get(flag.key, [])
        kind = flag.type or _type(known)
        form = [spelled(name) + "/--no-" + name] if flag.negatable else [spelled(name), *flag.spellings]
        option = typer.Option(
            *form, help=flag.text or _help(known, defaults=defaults), rich_help_panel=flag.panel, show_default=False
        )
        parameters.append((name + "_" * keyword.iskeyword(name), Annotated[kind | None, option], None))

    def decorate(run: Callable[[dict[str, Any]], None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            run({name.removesuffix("_"): value for name, value in values.items() if value not in (None, [], ())})

        signature = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for name, kind, default in parameters
        ]
        vars(command).update(__signature__=inspect.Signature(signature))
        # Of all but the first paragraph the parser would keep the line ends.
        paragraphs = inspect.cleandoc(run.__doc__ or "").split("\n\n")
        command.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        return command

    return decorate


def _type(fields: Sequence[FieldInfo]) -> Any:
    kinds = {kind for field in fields for kind in alternatives(field)} - {type(None)}
    for simple in (bool, int, float):
        if kinds == {simple}:
            return simple
    return list[str] if any(getattr(kind, "__origin__", None) is tuple for kind in kinds) else str


def _help(fields: Sequence[FieldInfo], *, defaults: bool) -> str:
    """Return the first sentence of a field's docstring, with its choices, and its default where that is wanted."""
    text = next((" ".join(field.description.split()) for field in fields if field.description), "")
    text = text.partition(". ")[0].rstrip(".")
    words = dict.fromkeys(word for field in fields for word in alternatives(field) if isinstance(word, str))
    if not all(word in text for word in words):
        text += f": {listed(words)}"
    default = fields[0].default if fields else None
    if defaults and isinstance(default, str | int | float) and not isinstance(default, bool):
        text += f" ({default})"
    return text + "."


def listed(words: Iterable[str], last: str = "or") -> str:
    """Return `a, b or c`."""
    *first, final = words
    return f"{', '.join(first)} {last} {final}" if first else final
