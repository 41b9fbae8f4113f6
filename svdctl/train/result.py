"""What a training leaves: numbers, sentences and files."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from svdctl.config.train_config import TrainConfig
from svdctl.control.control_report import LayerReport, Report
from svdctl.errors import CheckpointError
from svdctl.train.effect_of_control import effect_of_control
from svdctl.train.plots import draw
from svdctl.train.run_history import changes_of_epochs, read_best, what_lacks
from svdctl.train.setup import Parts
from svdctl.train.trainer import Trainer
from svdctl.train.validation import Accuracy
from svdctl.utils.progress import Reporter
from svdctl.utils.rounded_figures import exact
from svdctl.utils.table import html


@dataclass(frozen=True)
class CertifiedEpoch:
    """What is proved of one epoch's network on the test set."""

    name: str
    """`last` or `best`."""
    epoch: int
    accuracy: float
    certified: dict[float, float]
    """Share of images that are right and certified, by radius in 255ths."""
    mean_radius: float
    """Wrong answers counted as 0, in pixels of [0, 1]."""
    lipschitz: float
    """The network's proved constant L."""
    slack: dict[str, float]
    """The factors of L by kind: norms of operators, frames, truncated series, normalisation, ..."""


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves."""

    folder: Path
    metrics: dict[str, float]
    summary: list[str]
    layers: list[LayerReport]
    files: list[Path]
    config: TrainConfig
    completed: bool
    certified: tuple[CertifiedEpoch, ...] = ()
    """The last epoch and, where one was picked, the best; for runs with certificates."""

    def _repr_html_(self) -> str:
        """Return layers, accuracies and files as HTML, which a notebook shows."""
        notes = [*self.summary, *map(str, self.files)]
        return html(replace(Report(self.layers).table(), title=str(self.folder), notes=notes))


def interrupted(trainer: Trainer, folder: Path) -> TrainResult:
    """Return the result of a run that was stopped and saved."""
    return TrainResult(
        folder,
        {},
        [f"interrupted after step {trainer.counters.step}; the state is saved"],
        [],
        [folder / "last.pt"],
        trainer.config,
        completed=False,
    )


def finished(
    trainer: Trainer,
    parts: Parts,
    folder: Path,
    before: Mapping[str, Tensor],
    sizes: Mapping[str, tuple[int, ...]],
    reporter: Reporter,
) -> TrainResult:
    """Return the result of a run that reached its last step; the network is left as it was."""
    config, zero, test = trainer.config, trainer.fabric.is_global_zero, parts.test
    select = config.evaluation.select
    last = trainer.evaluate(test)
    metrics = {"test_acc": last.accuracy, "test_loss": last.loss}
    summary = [f"test accuracy {last.accuracy:.2%} after the last epoch ({len(test):,} images)"]
    layers = trainer.report()
    judged = {"last": (trainer.counters.step, last)}
    best: tuple[Mapping[str, Tensor], int] | None = None
    if select != "last":
        # Files are the first process's affair: others may not see them.
        best, fault = trainer.fabric.broadcast(_best(trainer, parts, folder) if zero else (None, None))
        if fault is not None:
            summary.append(fault)
    if best is not None:
        mine = {name: value.clone() for name, value in trainer.judged.state_dict().items()}
        model, step = best
        chosen = last
        if any(not torch.equal(value.cpu(), model[name]) for name, value in mine.items()):
            trainer.judged.load_state_dict(model)
            chosen = trainer.evaluate(test)
            trainer.judged.load_state_dict(mine)
        metrics["best_test_acc"] = chosen.accuracy
        summary.append(f"test accuracy {chosen.accuracy:.2%} of best.pt (step {step}), {_chosen(config)}")
        judged["best"] = (step, chosen)
    per_epoch = trainer.batches.steps_per_epoch
    certified = [row for name, (step, made) in judged.items() if (row := _row(config, name, step / per_epoch, made))]
    for row in certified:
        prefix = "test_" if row.name == "last" else "best_test_"
        metrics |= {f"{prefix}certified_acc_{exact(radius)}": share for radius, share in row.certified.items()}
        metrics |= {f"{prefix}mean_radius": row.mean_radius}
    files = [folder / name for name in ("config.toml", "environment.json", "metrics.jsonl", "last.pt")]
    files += [folder / "best.pt"] * (best is not None)
    summary += [
        f"{'extended' if now > before else 'shortened'}: up to step {step} it was a run of {before} epochs, with the "
        "schedule of such a run"
        for step, before, now in changes_of_epochs(trainer.counters.extensions, config.epochs)
    ]
    if trainer.counters.other_data_until:
        summary.append(
            f"trained on other data up to step {trainer.counters.other_data_until}, which have changed since"
            + f" ({trainer.counters.other_data})" * bool(trainer.counters.other_data)
        )
    if trainer.counters.unknown_data_until:
        summary.append(
            f"not known whether it was trained on the same data up to step {trainer.counters.unknown_data_until}: an "
            "older version began it"
        )
    summary += effect_of_control(trainer.controller.changes(), config, trainer.counters.step, layers)
    lacks = what_lacks(trainer.epochs, config)
    if lacks is None:
        metrics["seconds"] = sum(line["train_time"] + line.get("val_time", 0.0) for line in trainer.epochs)
    else:
        summary.append(f"curves.png is not whole: {lacks}")
    if zero:
        made = {name: made for name, (_, made) in judged.items()}
        with reporter.part("drawing pictures"):
            files += draw(trainer, folder, before, sizes, made, reporter)
    return TrainResult(folder, metrics, summary, layers, files, config, completed=True, certified=tuple(certified))


def _best(trainer: Trainer, parts: Parts, folder: Path) -> tuple[tuple[Mapping[str, Tensor], int] | None, str | None]:
    """Return weights and step of the network that was picked; or why there is none."""
    if not trainer.counters.best_step and trainer.max_scale not in (None, 1.0):
        why = "the run ended before `control.max_sigma` was reached"
        return None, f"{why}, so that no epoch is picked and the last one counts"
    if not trainer.counters.best_step:
        return None, "no epoch was evaluated since the data changed, so that none is picked and the last one counts"
    try:
        found = read_best(folder, trainer.config, trainer.counters, trainer.judged.state_dict(), [parts.fingerprint])
    except CheckpointError as error:
        return None, f"the network that was picked is lost, the last epoch counts: {error}"
    return (found.model, int(found.metrics["step"])), None


def _chosen(config: TrainConfig) -> str:
    """Return how the best epoch was picked."""
    by = f"by certified accuracy at {exact(config.certificate.epsilon)}/255 " if config.certificate is not None else ""
    validation = config.evaluation.select == "validation"
    where = "validation part" if validation else "test set itself (as the paper's code did)"
    return f"chosen {by}on the {where}"


def _row(config: TrainConfig, name: str, epoch: float, made: Accuracy) -> CertifiedEpoch | None:
    if config.certificate is None or made.certificates is None or made.bound is None:
        return None
    radii = dict.fromkeys((*config.certificate.radii, config.certificate.epsilon))
    return CertifiedEpoch(
        name,
        -int(-epoch // 1),
        made.accuracy,
        {radius: made.certificates.certified_accuracy(radius / 255) for radius in sorted(radii)},
        made.certificates.mean_radius,
        made.bound.value,
        made.bound.by_kind(),
    )
