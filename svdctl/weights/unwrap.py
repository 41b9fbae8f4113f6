"""Where in a file's contents the network's weights are.

Training scripts wrap a state dict in all sorts of ways. The choice, when there are several: what is trained before its
moving average, and the last state before the best one, because that is the network that the run ended with; `key`
picks another. States of optimisers, schedules and scalers are never taken for weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from torch import Tensor

from svdctl.errors import CheckpointError

TRAINED = (
    "state_dict",
    "model_state_dict",
    "last_model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "net_state_dict",
    "params",
    "weights",
    "best_model_state_dict",
)
AVERAGED = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "ema_model",
    "ema",
    "params_ema",
    "averaged_model",
    "shadow",
    "shadow_params",
)
_TRAINING = ("optim", "sched", "scaler", "rng", "callbacks", "loops")
_COMPONENTS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
"""Parts of names that torch's and lightning-fabric's wrappers add; no network calls a module so."""
MAX_DEPTH = 32
MAX_ENTRIES = 1_000_000


@dataclass(frozen=True)
class Unwrapped:
    """Flat names to whatever stood under them, and how they were found."""

    entries: dict[str, object]
    steps: tuple[str, ...]
    """What was unwrapped, outermost first, in words."""
    others: tuple[str, ...]
    """Values of `key` under which the file has another set of weights."""


def unwrap(contents: object, where: str, key: str | None = None) -> Unwrapped:
    """The state dict within `contents`.

    Args:
        contents: what the file holds.
        where: the file, for messages.
        key: dotted path of the wanted part, through dicts and then through the names of a flat state dict.

    Raises:
        CheckpointError: no tensors, nothing under `key`, two tensors of one name, or endless nesting.
    """
    graph = _Graph(contents)
    at, path, prefix = contents, list[str](), ""
    if key is not None:
        at, path, prefix = _follow_key(graph, contents, key, where)
    others: list[str] = []
    while not prefix and len(path) < MAX_DEPTH:
        sets = {name: part for name, part in _parts(at) if graph.has_tensors(part) and not _is_of_training(name)}
        known = [name for name in (*TRAINED, *AVERAGED) if name in sets and not isinstance(sets[name], Tensor)]
        if not known:
            break
        others += [".".join([*path, name]) for name, part in sets.items() if name != known[0] and not _is_number(part)]
        path.append(known[0])
        at = sets[known[0]]
    entries = _clashing(_flatten(graph, at, where), where)
    steps = [f"weights under {'.'.join(path)!r}"] if path else []
    if prefix:
        entries = {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}
        steps.append(f"names that begin with {prefix!r}, without it")
    if not any(isinstance(value, Tensor) for value in entries.values()):
        raise CheckpointError(f"{where} holds no weights, only {_listed(contents)}; give the file of the network")
    entries, removed = _without_wrappers(entries, where)
    steps += [f"{part!r} removed from names" for part in removed]
    return Unwrapped(entries, tuple(steps), tuple(others))


class _Graph:
    """Which containers have a tensor somewhere below; one pass, so that shared and cyclic containers cost nothing."""

    def __init__(self, contents: object) -> None:
        above: dict[int, list[int]] = {}
        waiting, seen, self._holding = [contents], {id(contents)}, set[int]()
        reached: list[int] = []
        while waiting:
            value = waiting.pop()
            for _, part in _parts(value):
                if isinstance(part, Tensor):
                    reached.append(id(value))
                elif isinstance(part, Mapping | list | tuple):
                    above.setdefault(id(part), []).append(id(value))
                    if id(part) not in seen:
                        seen.add(id(part))
                        waiting.append(part)
        while reached:
            container = reached.pop()
            if container not in self._holding:
                self._holding.add(container)
                reached += above.get(container, ())

    def has_tensors(self, value: object) -> bool:
        return isinstance(value, Tensor) or id(value) in self._holding


def _parts(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield _name(name), part
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield str(place), part


def _name(name: object) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def _flatten(graph: _Graph, contents: object, where: str) -> Iterator[tuple[str, object]]:
    """Dotted names and values in the file's order; a container without a tensor is one value."""
    waiting: list[tuple[str, object, int]] = [("", contents, 0)]
    entries = 0
    while waiting:
        name, value, depth = waiting.pop()
        if depth and (isinstance(value, Tensor) or not graph.has_tensors(value)):
            yield name, value
            continue
        below = list(_parts(value))
        entries += len(below)
        if depth > MAX_DEPTH or entries > MAX_ENTRIES:
            raise CheckpointError(
                f"{where} nests its contents without end or lists more than {MAX_ENTRIES:,} things; "
                "save the state dict alone"
            )
        for part, inner in reversed(below):
            if not (isinstance(inner, Mapping | list | tuple) and _is_of_training(part)):
                waiting.append((f"{name}.{part}" if name else part, inner, depth + 1))


def _is_of_training(name: str) -> bool:
    return any(word in name.lower() for word in _TRAINING)


def _is_number(part: object) -> bool:
    return isinstance(part, Tensor) and part.numel() <= 1


def _clashing(entries: Iterator[tuple[str, object]], where: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in entries:
        if name in found:
            raise CheckpointError(f"{where} has two entries of the name {name!r}; save the state dict alone")
        found[name] = value
    return found


def _follow_key(graph: _Graph, contents: object, key: str, where: str) -> tuple[object, list[str], str]:
    """The part under `key`, the path to it, and the rest of `key` as a prefix of flat names."""
    at, path, rest = contents, list[str](), key
    while rest:
        named = {name: part for name, part in _parts(at) if graph.has_tensors(part)}
        words = rest.split(".")
        heads = [".".join(words[:count]) for count in range(len(words), 0, -1)]
        head = next((head for head in heads if head in named), None)
        if head is None:
            if any(name.startswith(f"{rest}.") for name in named):
                return at, path, f"{rest}."
            near = get_close_matches(rest, named, 3) or sorted({name.partition(".")[0] for name in named})[:8]
            raise CheckpointError(f"{where} has no weights under {key!r}; it has {', '.join(near) or 'none at all'}")
        at, rest = named[head], rest[len(head) + 1 :]
        if isinstance(at, Tensor):
            return {head: at}, path, ""
        path.append(head)
    return at, path, ""


def _without_wrappers(entries: dict[str, object], where: str) -> tuple[dict[str, object], list[str]]:
    """Take off what DataParallel, DistributedDataParallel, AveragedModel and torch.compile put into names."""
    removed: dict[str, None] = {}
    cleaned: dict[str, object] = {}
    for name, value in entries.items():
        words = name.split(".")
        removed |= {f"{word}.": None for word in words if word in _COMPONENTS}
        cleaned[".".join(word for word in words if word not in _COMPONENTS)] = value
    if len(cleaned) < len(entries):
        raise CheckpointError(f"{where} has two tensors of one name once wrappers are taken off; save the model alone")
    while (named := [name for name in cleaned if name != "n_averaged"]) and all(
        name.startswith("module.") for name in named
    ):
        removed["module."] = None
        cleaned = {name.removeprefix("module."): cleaned[name] for name in named}
    return cleaned, list(removed)


def _listed(contents: object) -> str:
    names = [repr(name[:40]) for name, _ in _parts(contents)]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "nothing"
