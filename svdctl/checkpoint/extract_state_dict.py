"""Where in a file's contents the network's weights are.

Training scripts wrap a state dict in all sorts of ways. The choice, when there are several: what is trained before its
moving average, and the last state before the best one, because that is the network that the run ended with; `key`
picks another. What is left out, another set of weights or the state of an optimiser, is listed by name.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor

from svdctl.checkpoint.pickled_calls import NumpyArray
from svdctl.checkpoint.pickles import CONVERT, ObjectRecord, tensors_in
from svdctl.checkpoint.tensors import holds_weights, words_of
from svdctl.errors import CheckpointError

TRAINED = (
    "state_dict", "model_state_dict", "last_model_state_dict", "model_state", "model", "net", "network", "module",
    "net_state_dict", "params", "weights", "best_model_state_dict",
)  # fmt: skip
AVERAGED = (
    "state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema", "params_ema",
    "averaged_model", "shadow", "shadow_params",
)  # fmt: skip
_OPTIMIZER = frozenset({"optim", "optims", "optimizer", "optimizers", "optimiser", "optimisers"})
_TRAINING = _OPTIMIZER | {
    *("sched", "scheds", "scheduler", "schedulers", "scaler", "scalers", "rng", "rngs", "random"),
    *("callback", "callbacks", "loop", "loops"),
}
"""Whole words in the names of parts that may be states of training."""
_RNG_STATES = (16, 5056)
"""Bytes of the states of torch's random generators on CUDA devices and on the CPU."""
_RNG_WORDS = {"rng", "rngs", "random", "randoms", "generator", "generators"}
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
_OF_NUMPY = "the state of a random generator of numpy's"
_OPTIMIZER_STATES = frozenset({
    "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_avg_diff", "exp_inf", "momentum_buffer", "momentum",
    "square_avg", "grad_avg", "acc_delta", "sum", "prev", "step_size", "eta", "mu", "ax", "mu_product", "neg_pre_grad",
    "slow_buffer", "slow_momentum_buffer", "exp_avg_sq_row", "exp_avg_sq_col", "row_var", "col_var", "variance", "RMS",
    "d", "al", "prev_flat_grad", "old_dirs", "old_stps", "ro", "H_diag", "prev_loss",
})  # fmt: skip
"""Names of tensors in the states of torch's optimisers, and of Adafactor, AdamP, Lion, LookAhead and Muon."""
_TRAINING_NUMBERS = frozenset({
    "lr", "initial_lr", "max_lr", "min_lr", "base_lrs", "_last_lr", "betas", "eps", "weight_decay", "momentum",
    "initial_momentum", "max_momentum", "base_momentum", "scale", "_scale", "_growth_tracker", "growth_tracker",
    "growth_factor", "backoff_factor", "best", "best_score", "best_model_score", "current_score", "kth_value",
    "best_k_models", "wait_count", "last_epoch",
})  # fmt: skip
"""Names of single numbers in groups of optimisers, schedules, scalers and callbacks."""
_FIGURES = {
    *("acc", "accuracy", "auc", "epoch", "err", "error", "f", "iou", "iteration", "loss", "lr", "map", "metric"),
    *("miou", "perplexity", "ppl", "prec", "precision", "psnr", "recall", "score", "seconds", "ssim", "step", "time"),
}
_OF_FIGURES = {
    *("avg", "best", "current", "eval", "final", "last", "max", "mean", "min", "test", "top", "train", "val", "valid"),
    "validation",
}
"""Words that the whole name of a figure of training is made of, as `best_val_acc` is and `loss_scale` is not."""
_COMPONENTS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
"""Parts of names that torch's and lightning-fabric's wrappers add; no network calls a module so."""
_MODULE = "module."
_OF_MODULE = re.compile(r"(module\.)*")
ANOTHER_SET = "another set of weights"
MAX_DEPTH = 32


@dataclass(frozen=True)
class LeftOut:
    """A part of the file that is not among the weights."""

    name: str
    """Its dotted path."""
    what: str
    """What it is taken for, in words."""
    may_hold_weights: bool
    """Whether it may be weights of a network: its structure does not say that it is something else."""


@dataclass(frozen=True)
class Unwrapped:
    """Flat names to whatever stood under them, and how they were found."""

    entries: dict[str, object]
    steps: tuple[str, ...]
    """What was unwrapped, outermost first, in words."""
    others: tuple[str, ...]
    """Values of `key` under which the file has another set of weights."""
    left_out: tuple[LeftOut, ...]
    """Parts of the file that are not among the entries, but for those that `key` leaves out."""


def unwrap(contents: object, where: str, key: str | None = None) -> Unwrapped:
    """Return the state dict within `contents`.

    Args:
        contents: what the file holds; `check_nesting` has seen it.
        where: the file, for messages.
        key: dotted path of the wanted part, through dicts and then through the names of a flat state dict.

    Raises:
        CheckpointError: no tensors, nothing under `key`, two tensors of one name, or far too deep.
    """
    holders = _holders(contents)
    at, path, prefix = contents, list[str](), ""
    if key is not None:
        at, path, prefix = _follow_key(holders, contents, key, where)
    left_out: list[LeftOut] = []
    while not prefix and len(path) < MAX_DEPTH:
        parts = _clashing(_parts(at), where)
        sets = {name: part for name, part in parts.items() if _has_tensors(part, holders)}
        known = [
            name
            for name in (*TRAINED, *AVERAGED)
            if name in sets and not isinstance(sets[name], Tensor) and _state_of_training(name, sets[name]) is None
        ]
        if not known:
            break
        found = [_left_out(".".join([*path, name]), name, part) for name, part in parts.items() if name != known[0]]
        left_out += [part for part in found if part is not None]
        path.append(known[0])
        at = sets[known[0]]
    others = tuple(part.name for part in left_out if part.may_hold_weights and part.what == ANOTHER_SET)
    entries = _clashing(_flatten(holders, at, where, ".".join(path), left_out), where)
    steps = [f"weights under {'.'.join(path)!r}"] if path else []
    if prefix:
        entries = {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}
        steps.append(f"names that begin with {prefix!r}, without it")
    if not any(isinstance(value, Tensor) for value in entries.values()):
        raise CheckpointError(f"{where} {_nothing(contents)}")
    entries, removed = _without_wrappers(entries, where)
    steps += [f"{part!r} removed from names" for part in removed]
    return Unwrapped(entries, tuple(steps), others, tuple(left_out))


def _holders(contents: object) -> set[int]:
    """Return the ids of containers with a tensor somewhere below; shared and cyclic containers are looked into once."""
    above: dict[int, list[int]] = {}
    waiting, seen, holding, reached = [contents], {id(contents)}, set[int](), list[int]()
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
        if container not in holding:
            holding.add(container)
            reached += above.get(container, ())
    return holding


def _has_tensors(value: object, holders: set[int]) -> bool:
    return isinstance(value, Tensor) or id(value) in holders


def _parts(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield _name(name), part
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield str(place), part


def _line(name: object) -> str:
    return " ".join(str(name).split())


def _name(name: object) -> str:
    text = name if isinstance(name, str) else name.decode(errors="replace") if isinstance(name, bytes) else _line(name)
    # A file may hold halves of characters, which no name that is hashed or printed can have.
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _flatten(
    holders: set[int], contents: object, where: str, path: str, left_out: list[LeftOut]
) -> Iterator[tuple[str, object]]:
    """Yield dotted names and values in the file's order; a container without a tensor is one value.

    States of training go to `left_out`, their names below `path`.
    """
    waiting: list[tuple[str, object, int]] = [("", contents, 0)]
    while waiting:
        name, value, depth = waiting.pop()
        if depth and (isinstance(value, Tensor) or not _has_tensors(value, holders)):
            yield name, value
            continue
        below = list(_parts(value))
        if depth > MAX_DEPTH:
            raise CheckpointError(f"{where} nests its weights more than {MAX_DEPTH} deep; save the state dict alone")
        for part, inner in reversed(below):
            full = f"{name}.{part}" if name else part
            state = _state_of_training(part, inner) if _has_tensors(inner, holders) else None
            if state is not None:
                left_out.append(LeftOut(f"{path}.{full}" if path else full, *state))
            else:
                waiting.append((full, inner, depth + 1))


def _left_out(full: str, name: str, part: object) -> LeftOut | None:
    """Return what a part beside the weights is: a state of training, or other weights, perhaps; None of a number."""
    state = _state_of_training(name, part)
    if state is not None:
        return LeftOut(full, *state)
    words = set(words_of(name))
    is_number = isinstance(part, Tensor) and part.numel() == 1 and part.ndim <= 1
    if is_number and words & _FIGURES and words <= _FIGURES | _OF_FIGURES:
        return LeftOut(full, "a figure of training, by its name", False)
    if may_hold_weights(part, name):
        return LeftOut(full, ANOTHER_SET, True)
    tensors = [value for _, value in _leaves(part) if isinstance(value, Tensor)]
    is_listed = tensors and (not isinstance(part, Tensor) or holds_weights(part))
    return LeftOut(full, "no weights", False) if is_listed else None


def _state_of_training(name: str, part: object) -> tuple[str, bool] | None:
    """Return what state of training a container is, and whether it may be weights all the same; None when it is none.

    An optimiser's state is known by its structure. By a whole word of its name a container is a state when it has no
    matrix or kernel, as those of schedules, scalers and random generators have none; a container that is called
    optimiser and has some is left out as well. Either may be weights when it holds what no optimiser, schedule,
    scaler or random generator calls so.
    """
    if not isinstance(part, Mapping | list | tuple):
        return None
    words, is_optimizer = set(words_of(name)), _is_optimizer(part)
    if not is_optimizer and not words & _TRAINING:
        return None
    leaves = list(_leaves(part, (name,)))
    has_matrix = any(isinstance(value, Tensor) and value.ndim > 1 for _, value in leaves)
    if not is_optimizer and has_matrix and not words & _OPTIMIZER:
        return None
    held = any(_may_be_weight(path, value) and not _is_training(path, value) for path, value in leaves)
    return "the state of an optimiser" if is_optimizer else "a state of training, by its name", held


def _is_training(path: tuple[str, ...], value: object) -> bool:
    """Return whether a tensor has a name of optimisers' tensors, or a single number one of schedules or scalers."""
    name = next((word for word in reversed(path) if not word.isdigit()), "")
    is_number = isinstance(value, Tensor) and value.numel() == 1
    return name in _OPTIMIZER_STATES or (is_number and bool(_TRAINING_NUMBERS & {name, *path[-2:-1]}))


def _is_optimizer(part: object, depth: int = 0) -> bool:
    """Return whether it is `torch.optim.Optimizer.state_dict()`, or a collection of nothing else."""
    if isinstance(part, Mapping) and "state" in part and "param_groups" in part:
        groups = part["param_groups"]
        listed = isinstance(groups, list | tuple) and len(groups) > 0
        return (
            listed
            and all(isinstance(group, Mapping) and "params" in group for group in groups)
            and isinstance(part["state"], Mapping)
            and all(isinstance(state, Mapping) for state in part["state"].values())
        )
    inner = [value for _, value in _parts(part)]
    return bool(inner) and depth < 2 and all(_is_optimizer(value, depth + 1) for value in inner)


def _leaves(
    part: object, path: tuple[str, ...] = (), *, training: bool = True
) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield everything below a part that is no container, with its path; each container is looked into once.

    With `training=False` states of training are left out unless they may be weights.
    """
    waiting, seen = [(path, part)], {id(part)}
    while waiting:
        path, value = waiting.pop()
        if not isinstance(value, Mapping | list | tuple):
            yield path, value
            continue
        if isinstance(value, ObjectRecord) and not value:
            yield path, value
        if _is_of_numpy(value):
            path = (*path, _OF_NUMPY)
        for name, inner in _parts(value):
            if not isinstance(inner, Mapping | list | tuple):
                waiting.append(((*path, name), inner))
            elif id(inner) not in seen:
                seen.add(id(inner))
                state = None if training else _state_of_training(name, inner)
                if state is None or state[1]:
                    waiting.append(((*path, name), inner))


def _is_of_numpy(value: object) -> bool:
    """Return whether it is the state of a random generator of numpy's, as a tuple or as a dict."""
    name = value.get("bit_generator") if isinstance(value, Mapping) else next((part for _, part in _parts(value)), None)
    return isinstance(name, str) and name in _BIT_GENERATORS


def may_hold_weights(part: object, name: str = "") -> bool:
    """Return whether something below the part `name` could be a weight: no counter, no state of a random generator."""
    return any(_may_be_weight(path, value) for path, value in _leaves(part, (name,), training=False))


def _may_be_weight(path: tuple[str, ...], value: object) -> bool:
    if isinstance(value, ObjectRecord):
        return any(holds_weights(tensor) for tensor in tensors_in(value))
    if not isinstance(value, Tensor) or not holds_weights(value) or _OF_NUMPY in path:
        return False
    is_rng = value.dtype == torch.uint8 and value.ndim == 1 and value.numel() in _RNG_STATES
    return not (is_rng and any(_RNG_WORDS.intersection(words_of(word)) for word in path))


def holds_numbers(value: object) -> bool:
    """Return whether an entry of a state dict that is no tensor may be a weight: all but texts, and one integer."""
    leaves = [leaf for _, leaf in _leaves(value)]
    whole = [leaf for leaf in leaves if isinstance(leaf, int) and not isinstance(leaf, bool)]
    others = float | complex | bytes | bytearray | NumpyArray
    return len(whole) > 1 or any((isinstance(leaf, others) and leaf != b"") or _wraps_tensors(leaf) for leaf in leaves)


def _wraps_tensors(value: object) -> bool:
    return isinstance(value, ObjectRecord) and next(tensors_in(value), None) is not None


def _clashing(entries: Iterator[tuple[str, object]], where: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in entries:
        if name in found:
            raise CheckpointError(f"{where} has two entries of the name {name!r}; save the state dict alone")
        found[name] = value
    return found


def _follow_key(holders: set[int], contents: object, key: str, where: str) -> tuple[object, list[str], str]:
    """Return the part under `key`, the path to it, and the rest of `key` as a prefix of flat names."""
    at, path, rest = contents, list[str](), key
    while rest:
        named = {name: part for name, part in _parts(at) if _has_tensors(part, holders)}
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
    counter = cleaned.get("n_averaged")
    is_counted = isinstance(counter, Tensor) and not holds_weights(counter)
    named = [name for name in cleaned if not (is_counted and name == "n_averaged")]
    times = min((_OF_MODULE.match(name).end() // len(_MODULE) for name in named), default=0)  # type: ignore[union-attr]
    if times:
        removed[_MODULE] = None
        cleaned = {name[times * len(_MODULE) :]: cleaned[name] for name in named}
    return cleaned, list(removed)


def _is_empty(part: object) -> bool:
    return isinstance(part, Mapping | list | tuple) and not part and not isinstance(part, ObjectRecord)


def _nothing(contents: object) -> str:
    """Return what a file without weights holds, and what to do."""
    record = next((value for _, value in _leaves(contents) if _wraps_tensors(value)), None)
    if isinstance(record, ObjectRecord):
        return f"holds its weights in an object of the class {record.name[:80]}, not in a dict; {CONVERT}"
    names = [f"{name[:40]!r}{' (empty)' if _is_empty(part) else ''}" for name, part in _parts(contents)]
    if not names:
        return "holds nothing; give the file of the network, as torch.save(model.state_dict(), 'weights.pt') writes it"
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return (
        f"holds no weights, only {', '.join(names[:6])}{more}; give the file of the network, as "
        "torch.save(model.state_dict(), 'weights.pt') writes it"
    )
