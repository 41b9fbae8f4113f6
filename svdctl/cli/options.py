"""Options of the commands: tables of flags give the options, their help and their effects."""

import inspect
import keyword
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import typer
from pydantic.fields import FieldInfo

from svdctl.cli.help_page import Panel
from svdctl.cli.messages import with_flags
from svdctl.config.base import Config
from svdctl.config.overrides import Overrides, assigned_key
from svdctl.config.schema_keys import alternatives, schema_keys
from svdctl.config.validation_errors import validated
from svdctl.errors import UsageError, nearest
from svdctl.plugins import load_plugins

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Flag:
    """An option of a command.

    Args:
        key: the key of the configuration that it sets; type, choices, default and help come from its field.
        panel: its group in the help.
        text: help, where the field's docstring does not do.
        type: the type of the value, where the field's does not do or there is none.
        rule: sets what the value means, in place of the key alone; gets the flag's name and value.
        needs: returns whether the value means anything with the flags before it; it may raise a fault.
        words: other spellings of values, as those of the paper's code.
        off: values that mean "not given", as in the paper's code.
        spellings: further names.
        negatable: whether there is a `--no-` form.
        of: the command that has it; empty: every command of its table.
        choices: the words that it takes, where the field does not list them; a part in capitals, as of `folder:PATH`,
            stands for what the user puts there.
        candidates: returns words that a shell offers, where they are too many to be shown.
        value: what the help shows for the value, as FILE, where there are no choices.
        default: what holds without it, where the field does not tell; empty: the text says it, or it does nothing then.
    """

    key: str = ""
    panel: Panel = Panel.RUN
    text: str = ""
    type: Any = None
    rule: Callable[["Merge", str, Any], None] | None = None
    needs: Callable[["Merge", str, Any], bool] = lambda merge, name, value: True
    words: Mapping[str, str] | None = None
    off: tuple[Any, ...] = ()
    spellings: tuple[str, ...] = ()
    negatable: bool = False
    of: str = ""
    choices: tuple[str, ...] = ()
    candidates: Callable[[], Iterable[str]] | None = None
    value: str = ""
    default: str | None = None


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
    """Return the flag of each key of a configuration that has one; the first, where there are several.

    A value that the flag has another word for is a key too: `control.kind = divide` is `--clipping divide-by-largest`.
    """
    found: dict[str, str] = {}
    for name, flag in flags.items():
        found.setdefault(flag.key, spelled(name))
    for name in flags:
        found.setdefault(name, spelled(name))
    for name, flag in flags.items():
        for word, value in (flag.words or {}).items():
            if word in flag.choices:
                found.setdefault(f"{flag.key} = {value}", f"{spelled(name)} {word}")
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

    @property
    def changed_keys(self) -> list[str]:
        """Return the keys that flags and assignments have set."""
        keys = (self.flags[name].key for name in self.given if name in self.flags)
        return [*filter(None, keys), *map(assigned_key, self.given.get("set", ()))]

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


@dataclass(frozen=True)
class Base:
    """The configuration that the flags of a command change, which tells what holds without them.

    Attributes:
        name: what the help calls it.
        config: the configuration; None: each flag has its field's default.
        other: what `other_config` is called.
        other_config: what holds instead with another flag; what differs is told too. None: there is none.
    """

    name: str = "default"
    config: Config | None = None
    other: str = ""
    other_config: Config | None = None


def with_options(
    flags: Flags, model: type[Config], argument: tuple[str, str] | None = None, *, base: Base = Base()
) -> Callable[[Callable[[dict[str, Any]], None]], Callable[..., None]]:
    """Return a decorator that gives a command the options of a table; the command gets the values given, by name.

    Args:
        flags: the table.
        model: the schema in which the keys stand.
        argument: name and help of the values without a flag.
        base: what flags that are not given are taken from.
    """
    fields: dict[str, list[FieldInfo]] = {}
    for key, field in schema_keys(model):
        fields.setdefault(key, []).append(field)
    parameters = []
    if argument is not None:
        name, text = argument
        given = typer.Argument(help=text, show_default=False, metavar=name.upper(), rich_help_panel=Panel.WHAT)
        parameters.append((name, Annotated[list[Path] | None, given], None))
    for name, flag in flags.items():
        known = fields.get(flag.key, [])
        kind = flag.type or _type(known)
        form = [spelled(name) + "/--no-" + name] if flag.negatable else [spelled(name), *flag.spellings]
        choices = flag.choices or _choices(known)
        option = typer.Option(
            *form,
            help=flag.text or _help(known),
            rich_help_panel=flag.panel,
            show_default=_default(flag, known, kind, base) or False,
            metavar=None if kind is bool else _value(flag, choices, kind),
            autocompletion=_completion(flag.candidates or partial(_words, choices)),
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


def _choices(fields: Sequence[FieldInfo]) -> tuple[str, ...]:
    """Return the words that a field takes; INT among them, where it takes numbers too."""
    kinds = dict.fromkeys(kind for field in fields for kind in alternatives(field))
    words = tuple(kind for kind in kinds if isinstance(kind, str))
    return (*words, *(["INT"] if words and int in kinds else []))


def _value(flag: Flag, choices: Sequence[str], kind: Any) -> str:
    """Return what the help shows for the value of a flag."""
    if flag.value:
        return flag.value
    if choices:
        return f"[{'|'.join(choices)}]"
    return {int: "INT", float: "FLOAT"}.get(kind, "TEXT")


def _words(choices: Iterable[str]) -> list[str]:
    """Return the choices that can be typed as they are, and the beginning of `folder:PATH`."""
    forms = (re.sub(r"(?<=:)[A-Z]+$", "", choice) for choice in choices)
    return [form for form in forms if not re.search(r"[A-Z]{3}", form)]


def _completion(words: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return what a shell calls for the words that begin with what was typed."""

    def candidates(incomplete: str) -> list[str]:
        return [word for word in words() if word.startswith(incomplete)]

    return candidates


def _default(flag: Flag, fields: Sequence[FieldInfo], kind: Any, base: Base) -> str:
    """Return what holds when a flag is not given, as `quick start: 20`; of a switch that is off: nothing."""
    if flag.default == "":
        return ""
    try:
        name, value = base.name, flag.default if not flag.key else _value_at(base.config, flag.key)
    except LookupError:
        if flag.default is not None:
            return f"default: {flag.default}"
        # A key of another variant than the base has: what all variants that have it agree on.
        defaults = [field.get_default(call_default_factory=True) for field in fields if not field.is_required()]
        if not defaults or any(default != defaults[0] for default in defaults):
            return "default: as the method has it" if kind is not bool else ""
        name, value = "default", defaults[0]
    if kind is bool:
        return f"{name}: on" if value else ""
    if flag.default is not None:
        return f"{name}: {flag.default}"
    spelling = {word: text for text, word in (flag.words or {}).items()}

    def told(value: Any) -> str:
        return spelling.get(str(value)) or _shown(value)

    also = ""
    if base.other_config is not None and flag.key:
        with suppress(LookupError):  # it has no such key
            if (other := _value_at(base.other_config, flag.key)) != value:
                also = f"; {base.other}: {told(other)}"
    return f"{name}: {told(value)}{also}"


def _value_at(config: Any, key: str) -> Any:
    """Return the value of a dotted key.

    Raises:
        LookupError: there is no such key in this configuration.
    """
    for part in key.split("."):
        if not isinstance(config, Config) or part not in type(config).model_fields:
            raise LookupError(key)
        config = getattr(config, part)
    return config


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(_shown, value)) or "none"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _help(fields: Sequence[FieldInfo]) -> str:
    """Return the first sentence of a field's docstring."""
    text = next((" ".join(field.description.split()) for field in fields if field.description), "")
    return text.partition(". ")[0].rstrip(".").replace("`", "") + "."


def listed(words: Iterable[str], last: str = "or") -> str:
    """Return `a, b or c`."""
    *first, final = words
    return f"{', '.join(first)} {last} {final}" if first else final


def unknown_word(flag: str, word: str, known: Iterable[str]) -> str:
    """Return a fault: the words that a flag takes, and the one that was probably meant."""
    known = list(known)
    return f"{flag} {word}: not one of {listed(known, 'and')}{nearest(word, known)}"
