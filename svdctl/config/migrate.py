"""Checkpoints of format 1 in today's form: keys of configurations, and what their versions did not save."""

from collections.abc import Mapping, Sequence
from typing import Any

RENAMED: Mapping[str, Mapping[str, str]] = {
    "control": {"max": "max_sigma", "every": "every_steps"},
    "batchnorm": {"max": "max_gain", "every": "every_steps"},
    "checkpoint": {"every": "every_epochs"},
    "evaluation": {"every": "every_epochs"},
    "log": {"every": "every_steps"},
}
"""New key by old key, by section."""


def migrate_configuration(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a training configuration as a nested table with today's keys; one that has them already stays as it is."""
    return {name: _migrated(section, RENAMED.get(name, {})) for name, section in table.items()}


def _migrated(section: Any, renamed: Mapping[str, str]) -> Any:
    if not isinstance(section, Mapping):
        return section
    kept = {key: value for key, value in section.items() if key not in renamed}
    # What stands under both keys stays, and is refused as any unknown key is.
    return {renamed[key] if key in renamed and renamed[key] not in kept else key: section[key] for key in section}


def migrate_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the figures of a checkpoint with the plain accuracy of the best network, which is no smaller than that."""
    return {"best_val_plain_acc": metrics.get("best_val_acc", -1.0), **metrics}


def migrate_training(
    training: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]], step_digests: Sequence[str], max_steps: int | None
) -> dict[str, Any]:
    """Return a state of training with what older versions did not save: epochs, digests of lines, sums of an epoch.

    An epoch is taken as finished where the log has a line about it at the state's step. Where it is not, the sums over
    its steps are not known: not a number.

    Args:
        training: a state, of an older version or of today's.
        epochs: the lines of the log about epochs up to its step.
        step_digests: of the lines of the log about steps up to its step.
        max_steps: where the run ends, which may be within an epoch.

    Raises:
        KeyError, TypeError, ValueError: it is no state of training.
    """
    whole = [line for line in epochs if line["step"] != max_steps]
    step = int(training["counters"]["step"])
    state = {
        "step_digests": [*step_digests],
        "steps_per_epoch": whole[0]["step"] // whole[0]["epoch"] if whole else None,
        **training,
        # The controller did not count steps itself.
        "controller": {"step": step, **training["controller"]},
    }
    if "epochs" in state:
        return state
    import torch  # presets are read without it

    finished = step == 0 or any(line["step"] == step for line in epochs)
    totals = torch.zeros(1, 2, 5, dtype=torch.float64)
    totals[..., :3] = 0.0 if finished else torch.nan
    seconds = 0.0 if finished else float("nan")
    return {
        **state,
        "counters": {**state["counters"], "epoch_finished": finished},
        "epoch": {"totals": totals, "train_time": seconds, "clipping_time": seconds},
        "epochs": [*epochs],
    }
