"""What a run folder holds of a training so far: its epochs, and the best network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from svdctl.checkpoint.checkpoint_file import Checkpoint, read_checkpoint
from svdctl.checkpoint.tensors import digest
from svdctl.config.migrate import migrate_training
from svdctl.config.train_config import TrainConfig
from svdctl.errors import CheckpointError
from svdctl.train.metrics_log import is_line, line_digest, make_line, scan_log
from svdctl.train.trainer import Counters

Data = Sequence[Mapping[str, str] | None]


@dataclass(frozen=True)
class History:
    """The epochs of a run up to a checkpoint: from the checkpoint; from the log where an older one lacks them."""

    checkpoint: Checkpoint
    training: dict[str, Any]
    """The checkpoint's state of training, with what older ones lack."""
    epochs: list[dict[str, Any]]
    """Lines of the log about the epochs that are finished."""
    steps: list[dict[str, Any]]
    """Lines of the log about steps, and proofs after them, up to the checkpoint's."""
    left_out: int
    """Lines of the log that are damaged, foreign, or contradicted by another about the same step."""
    extensions: list[dict[str, Any]]
    """Lines of the log about changes of the number of epochs, as they follow from the state of training."""

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Return all lines that the log should have, in their order."""
        order = ("step", "proof", "epoch", "extended")
        lines = [*self.steps, *self.epochs, *self.extensions]
        return sorted(lines, key=lambda line: (line["step"], order.index(line["kind"])))


def read_history(checkpoint: Checkpoint, folder: Path) -> History:
    """Read what is known of a run's epochs up to a checkpoint.

    Raises:
        KeyError, TypeError, ValueError: the state of training is not one.
    """
    training = checkpoint.training
    step = int(training["counters"]["step"])
    lines, left_out = scan_log(folder / "metrics.jsonl")
    lines = [line for line in lines if line["step"] <= step]
    about_steps = [line for line in lines if line["kind"] in ("step", "proof")]
    about_epochs = [line for line in lines if line["kind"] == "epoch"]
    steps = _unambiguous(about_steps, training.get("step_digests"))
    logged = _unambiguous(about_epochs, None)
    left_out += len(about_steps) - len(steps)
    if "epochs" not in training:
        left_out += len(about_epochs) - len(logged)
    training = migrate_training(training, logged, [*map(line_digest, steps)], checkpoint.config.max_steps)
    epochs = list(training["epochs"])
    if not all(is_line(line) and line["kind"] == "epoch" and line["step"] <= step for line in epochs):
        raise ValueError("its epochs are none")
    return History(checkpoint, training, epochs, steps, left_out, extension_lines(training, checkpoint.config.epochs))


def extension_lines(training: Mapping[str, Any], epochs: int) -> list[dict[str, Any]]:
    """Return the lines of the log about changes of the number of epochs.

    Args:
        training: a state of training.
        epochs: how many the run has now.

    Raises:
        KeyError, TypeError, ValueError, ArithmeticError: it is no state of training.
    """
    extensions = [(int(step), int(before)) for step, before in training["counters"].get("extensions", ())]
    if not extensions:
        return []
    per_epoch = int(training["steps_per_epoch"])
    return [
        make_line("extended", step, {"epoch": -(-step // per_epoch), "epochs": now, "epochs_before": before})
        for step, before, now in changes_of_epochs(extensions, epochs)
    ]


def changes_of_epochs(extensions: Sequence[tuple[int, int]], epochs: int) -> list[tuple[int, int, int]]:
    """Return steps after which a run went on for another number of epochs, the number before and the one since.

    A number that no step was trained with does not count.

    Args:
        extensions: those of `Counters`.
        epochs: how many the run has now.
    """
    found: dict[int, tuple[int, int]] = {}
    for place, (step, before) in enumerate(extensions, 1):
        now = extensions[place][1] if place < len(extensions) else epochs
        found[step] = found.get(step, (before, now))[0], now
    return [(step, before, now) for step, (before, now) in found.items() if before != now]


def _unambiguous(lines: Sequence[dict[str, Any]], digests: Sequence[str] | None) -> list[dict[str, Any]]:
    """Return one line a kind and step: with the checkpoint's digests; without any, one that no other contradicts."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    known = None if digests is None else frozenset(digests)
    for line in lines:
        if known is None or line_digest(line) in known:
            found.setdefault((line["kind"], line["step"]), []).append(line)
    return [first for first, *others in found.values() if all(other == first for other in others)]


def has_ended(epochs: Sequence[Mapping[str, Any]], config: TrainConfig) -> bool:
    """Return whether the last of the epochs is the run's last."""
    return bool(epochs) and (
        epochs[-1]["epoch"] >= config.epochs
        or (config.max_steps is not None and epochs[-1]["step"] >= config.max_steps)
    )


def what_lacks(epochs: Sequence[Mapping[str, Any]], config: TrainConfig, left_out: int = 0) -> str | None:
    """Return what the lines of a finished run lack; None when all epochs are there with their figures."""
    there = {line["epoch"] for line in epochs}
    last = max(there, default=0) if has_ended(epochs, config) else config.epochs
    missing = last - len(there)
    partly = sum(line["train_time"] is None or line["clipping_time"] is None or line["loss"] is None for line in epochs)
    if not missing and not partly:
        return None
    parts = []
    if missing:
        damaged = f" ({left_out} of its lines are damaged or foreign)" if left_out else ""
        parts.append(f"metrics.jsonl lacks {missing} of {last} epochs{damaged}")
    if partly:
        parts.append(
            f"of {partly} of {last} epochs only a part is known, since an older version's checkpoint was resumed in it"
        )
    return "; ".join(parts)


def read_best(
    folder: Path, config: TrainConfig, counters: Counters, like: Mapping[str, Tensor], data: Data
) -> Checkpoint:
    """Read the network that was picked: that of `counters`, or one that was written after the last save.

    The one of `counters` is known by its step and its weights (of an older version's checkpoint, by its step). A later
    one must be of this run: its configuration, its data, as many departures, and better than the other.

    Args:
        folder: the run folder.
        config: the run's configuration.
        counters: of the last checkpoint.
        like: a state of the same network.
        data: fingerprints that a later one may have, None for an older version's.

    Raises:
        CheckpointError: it is lost, damaged, of another run, or another network than the one that was picked.
    """
    path = folder / "best.pt"
    if not path.is_file():
        raise CheckpointError(f"{path} is not there")
    try:
        best = read_checkpoint(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({(error.strerror or str(error)).lower()})") from error
    elsewhere: dict[str, Any] = {
        "hardware": config.hardware,
        "log": config.log,
        "data": config.data,
        "plugins": config.plugins,
    }
    shapes = {name: value.shape for name, value in best.model.items()}
    if best.config.epochs in (before for _, before in counters.extensions):
        elsewhere["epochs"] = config.epochs
    if best.config.model_copy(update=elsewhere) != config or shapes != {n: value.shape for n, value in like.items()}:
        raise CheckpointError(f"{path} is of another run")
    step = best.metrics.get("step", 0)
    if counters.best_weights:
        is_picked = step == counters.best_step and digest(best.model) == counters.best_weights
    else:
        is_picked = step == counters.best_step > 0 and not best.training
    if is_picked or _is_later(best, counters, data):
        return best
    if step == counters.best_step:
        raise CheckpointError(f"{path} holds other weights than the network that was picked in step {step:.0f}")
    raise CheckpointError(f"{path} is of step {step:.0f}, and the network that was picked is of {counters.best_step}")


def _is_later(best: Checkpoint, counters: Counters, data: Data) -> bool:
    """Return whether a network was picked by the same run after its last checkpoint, as when it was killed then."""
    step = best.metrics.get("step", 0)
    return (
        not best.training
        and (step > counters.step or (step == counters.step and not counters.epoch_finished))
        and best.data in data
        and best.metrics.get("departures", 0) == counters.departures
        and picked_by(best.metrics) > (counters.best_accuracy, counters.best_plain_accuracy)
    )


def picked_by(metrics: Mapping[str, float]) -> tuple[float, float]:
    """Return the accuracies by which the network of `best.pt` was picked, certified before plain."""
    return metrics.get("best_val_acc", -1.0), metrics.get("best_val_plain_acc", -1.0)
