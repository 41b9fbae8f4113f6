"""One controlled training from a configuration to a run folder; `svdctl train` and `svdctl train-lipconv` call it."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from svdctl.checkpoint.checkpoint_file import Checkpoint, checkpoint_error_on_mismatch, read_checkpoint
from svdctl.config.presets import to_toml
from svdctl.config.train_config import TrainConfig
from svdctl.config.validation_errors import validated
from svdctl.data.batches import steps_per_epoch
from svdctl.data.data_source import relocated
from svdctl.distributed.failure_detector import end_together
from svdctl.errors import CheckpointError, DataError, Interrupted, UsageError
from svdctl.models.external_architecture import missing_factory
from svdctl.train.result import TrainResult
from svdctl.train.resumed_requests import without_online_logs
from svdctl.train.run import TrainingRun
from svdctl.train.run_hash import config_in, differing
from svdctl.train.run_history import History, extension_lines, read_history
from svdctl.train.run_plan import data_line, found_device_line, plan, selection, settings_lines
from svdctl.train.setup import Parts, launch, load_parts, with_proofs
from svdctl.train.starting_network import FILE as INITIAL
from svdctl.train.starting_network import starting_network
from svdctl.train.trainer import Counters
from svdctl.utils.atomic_write import write_atomically
from svdctl.utils.progress import Reporter
from svdctl.utils.run_dir import create_run_folder, named_path, require_folder, write_environment
from svdctl.utils.signals import answer_to_stop

__all__ = ["TrainResult", "plan", "resume", "run"]


def run(
    config: TrainConfig,
    *,
    base: str,
    reporter: Reporter,
    download_weights: bool = False,
    to_resume: Callable[[Path], str] = "resume {}".format,
) -> TrainResult:
    """Train from the start in a new run folder.

    Args:
        config: of the run.
        base: what it was made from, which `environment.json` keeps.
        reporter: shows the run.
        download_weights: whether the weights that torchvision publishes may be downloaded to start from.
        to_resume: returns how a run in a folder is resumed; printed when a process is lost.

    Raises:
        UsageError, DataError: before anything is written.
        TrainingError: for a loss that is not finite; what was saved stays.
    """
    folder: Path | None = None
    with _interrupted(lambda: _after_loss(folder, to_resume)), answer_to_stop(lambda: _kept(folder)):
        with reporter.part("starting the processes"):
            fabric = launch(config)
        config = with_proofs(config, fabric.device)
        shown = reporter if fabric.is_global_zero else Reporter()
        with end_together(fabric, lambda: _after_loss(folder, to_resume)) as detector:
            shown.say(found_device_line(config, fabric.device, fabric.world_size))
            require_folder(config.out_dir)
            with shown.part("making the network"):
                settings_lines(config)  # what cannot be made is refused before data are read
            with fabric.rank_zero_first(local=True):  # data may have to be downloaded
                parts = load_parts(config, reporter=shown)
                shown.say(data_line(config, parts))
                shape, classes = parts.train.image_shape, len(parts.train.classes)
                with shown.part("making the network"):
                    start = starting_network(config, shape, classes, download=download_weights)
                    lines = settings_lines(start.config, classes) if fabric.is_global_zero else []
            config = start.config
            folder = fabric.broadcast(create_run_folder(config.out_dir, config.name) if fabric.is_global_zero else None)
            assert folder is not None
            for line in (*lines, *start.lines, f"run      {folder}, {selection(config, parts)}"):
                shown.say(line)
            if fabric.is_global_zero:
                write_atomically(folder / "config.toml", to_toml(config))
                if start.record is not None:
                    write_atomically(folder / INITIAL, json.dumps(start.record, indent=1) + "\n")
                write_environment(folder, str(fabric.device), config.seed, base)
            return TrainingRun(config, parts, fabric, folder, reporter, detector, start.model).execute(None)


def resume(
    path: Path,
    *,
    reporter: Reporter,
    changes: Mapping[str, Any] | None = None,
    refused: Callable[[TrainConfig], str | None] | None = None,
    allow_changed_data: bool = False,
    needs_best: bool = False,
    to_resume: Callable[[Path], str] = "resume {}".format,
) -> TrainResult:
    """Continue a training where a run folder's `last.pt` stands.

    Args:
        path: the run folder, or the checkpoint in it.
        reporter: shows the run.
        changes: fields to override, a nested table: what has no effect on the results, as devices and log; where the
            same data lie now (`data`, as `relocated` takes it); `epochs`, by which the schedule is another from the
            next step on. Only with a place of data may data be downloaded, only with `log.wandb` does a log go online.
        refused: returns why a run with this configuration is not to go on, None if it is.
        allow_changed_data: go on though the data are not those that the run was trained on so far.
        needs_best: fail where the network that was picked is lost; else a sentence says so, and the last one counts.
        to_resume: as in `run`.

    Raises:
        CheckpointError: missing, damaged, refused, without a state of training, of another run than the
            configuration beside it, or other data than then.
        UsageError, DataError: as in `run`; also where no step is left in that many epochs.
    """
    changes = changes or {}
    path = named_path(path)
    folder, file = (path, path / "last.pt") if path.is_dir() else (path.parent, path)
    _refuse_folders(folder)
    stamp = _stamp(file)
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        kept = _newest_epoch(folder) if file.name == "last.pt" else None
        raise CheckpointError(f"{error}{f'; go on from {kept}, the newest sound one' if kept else ''}") from error
    if refused is not None and (why := refused(checkpoint.config)) is not None:
        raise CheckpointError(f"{path} {why}")
    if (missing := missing_factory(checkpoint.config.model)) is not None:
        raise CheckpointError(f"{path}: {missing}")
    if not checkpoint.training:
        raise CheckpointError(f"{path} holds no state of training; {_instead(folder, file)}")
    beside = config_in(folder)
    if beside is not None and (others := _unlike(checkpoint, beside, changes.get("epochs"), path)):
        extend = f"extend it by `epochs = {beside.epochs}`, " if others == ["epochs"] else ""
        raise CheckpointError(
            f"{file} is of another run than {folder / 'config.toml'} (other {', '.join(others)}), and a run cannot "
            f"change on its way; {extend}restore the files of one run, go on with {file.name} in a folder of its own, "
            "or remove config.toml if that is what is wrong"
        )
    config, requests = without_online_logs(_changed(checkpoint.config, changes), changes)
    _require_place(config, path)
    with _interrupted(lambda: _after_loss(folder, to_resume)), answer_to_stop(lambda: _kept(folder)):
        with reporter.part("starting the processes"):
            fabric = launch(config)
        shown = reporter if fabric.is_global_zero else Reporter()
        with end_together(fabric, lambda: _after_loss(folder, to_resume)) as detector:
            with fabric.rank_zero_first(local=True):  # data may have to be downloaded
                shown.say(f"resume   {folder} after step {int(checkpoint.metrics.get('step', 0))}")
                by_qr = _retracts_by_qr(checkpoint, path)
                shown.say(found_device_line(config, fabric.device, fabric.world_size, by_qr=by_qr))
                may_download = bool(changes.get("data", {}).keys() - {"kind"})
                parts = load_parts(config, download=may_download, reporter=shown, like=checkpoint.data)
            with checkpoint_error_on_mismatch(path):
                history = read_history(checkpoint, folder)
            notice, changed, judged_anew = _compared(history, parts, path, allow_changed_data)
            with checkpoint_error_on_mismatch(path):
                picked = int(history.training["counters"]["best_step"]) if judged_anew else 0
                history = _going_on(history, file, changed, judged_anew)
            history, extended = _extended(history, config, steps_per_epoch(len(parts.train), config.batch_size))
            if picked:
                lost = f"the network that was picked in step {picked} was judged by the others and does not count"
                notice = f"{notice}; {lost}"
            if fabric.is_global_zero:
                settings = settings_lines(config, len(parts.train.classes))
                for line in (*extended, data_line(config, parts), *settings):
                    reporter.say(line)
                for text in (*requests, *filter(None, [notice])):
                    reporter.notice(text)
            # Of a run with other epochs, data at another place or no config.toml; what else it says stays.
            settled = (beside or config).model_copy(update={"epochs": config.epochs, "data": config.data})
            said = [(one.epochs, one.data) for one in (checkpoint.config, beside or config)]
            is_said = (folder / "config.toml").exists() and said == [(config.epochs, config.data)] * 2
            run = TrainingRun(config, parts, fabric, folder, reporter, detector)
            return run.execute(
                history,
                is_current=lambda: _stamp(file) == stamp,
                needs_best=needs_best,
                settled=fabric.broadcast(None if is_said else settled),  # files are the first process's affair
            )


def _unlike(checkpoint: Checkpoint, beside: TrainConfig, epochs: int | None, path: Path) -> list[str]:
    """Return names of the sections by which a checkpoint and `config.toml` are not of one run.

    The run may have been extended, and killed before `config.toml` was written: the number of epochs may be one that
    the run had, or the one that is asked for.

    Raises:
        CheckpointError: the state of training is not one.
    """
    with checkpoint_error_on_mismatch(path):
        counters = checkpoint.training["counters"]
        had = [int(before) for _, before in counters.get("extensions", ())]
    if beside.epochs in (epochs, *had):
        beside = beside.model_copy(update={"epochs": checkpoint.config.epochs})
    return differing(checkpoint.config, beside)


def _retracts_by_qr(checkpoint: Checkpoint, path: Path) -> bool:
    """Return whether the run has gone over to QR for its frames.

    Raises:
        CheckpointError: the state of training is not one.
    """
    with checkpoint_error_on_mismatch(path):
        return bool(checkpoint.training["controller"].get("retraction", {}).get("by_qr", False))


def _changed(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """Return a configuration with the changes of `resume`.

    Raises:
        UsageError: what they make does not fit together.
    """
    if not changes:
        return config
    table = config.model_dump()
    for name, value in changes.items():
        if name == "data":
            table[name] = relocated(config.data, value).model_dump()
        elif isinstance(value, Mapping):
            table[name].update(value)
        else:
            table[name] = value
    found, faults = validated(TrainConfig, table)
    if found is None:
        raise UsageError(faults)
    return found


def _require_place(config: TrainConfig, path: Path) -> None:
    """Refuse data that are no longer where the run says, with the way to name their new place.

    Raises:
        DataError: nothing is there.
    """
    place = getattr(config.data, "path", None)
    if place is not None and not os.path.exists(os.path.expanduser(place)):
        raise DataError(
            f"there is nothing at {place}, where the data of {path} were; name their new place with `data.path`, and "
            "they are compared with those of the run"
        )


def _extended(history: History, config: TrainConfig, per_epoch: int) -> tuple[History, list[str]]:
    """Return the history of a run that goes on for another number of epochs, where it does, and lines that say so.

    Raises:
        UsageError: no step is left to make.
    """
    counters, epochs, before = history.training["counters"], config.epochs, history.checkpoint.config.epochs
    if epochs == before:
        return history, []
    step, most = int(counters["step"]), config.max_steps
    if epochs * per_epoch <= step:
        raise UsageError(
            f"`epochs = {epochs}`: {step} steps are made, {per_epoch} an epoch; give more than {step // per_epoch}"
        )
    if most is not None and most <= step:
        raise UsageError(
            f"`epochs = {epochs}`: the run ended after `max_steps = {most}` steps, whatever its epochs are; start a "
            "new run"
        )
    verb = "extended" if epochs > before else "shortened"
    text = f"{verb} from {before} to {epochs} epochs after step {step}; the next step is the first of the new schedule"
    # Also a number that no step was trained with: after a kill, config.toml may say it still.
    changes = (*map(tuple, counters.get("extensions", ())), (step, before))
    counters = {**counters, "extensions": changes, "departures": counters.get("departures", 0) + 1}
    training = {**history.training, "counters": counters, "steps_per_epoch": per_epoch}
    text += f"; it ends after step {most}" * (most is not None)
    lines = extension_lines(training, epochs)
    return replace(history, training=training, extensions=lines), [f"epochs   {text}"]


def _going_on(history: History, file: Path, changed: str | None, judged_anew: bool) -> History:
    """Return the history with counters that record that the run went on from it.

    Args:
        history: what was read.
        file: where its checkpoint stands.
        changed: what is other in the data, in words.
        judged_anew: the images that networks are picked by are others, so that earlier accuracies are of no use.

    Raises:
        KeyError, TypeError, ValueError: the state of training is not one.
    """
    counters = dict(history.training["counters"])
    step = int(counters["step"])
    last = counters if file.name == "last.pt" else _counters(file.with_name("last.pt"))
    if changed or step != last.get("step"):
        counters["departures"] = max(int(one.get("departures", 0)) for one in (counters, last)) + 1
    if changed:
        others = dict.fromkeys([*filter(None, [counters.get("other_data")]), changed])
        counters |= {"other_data_until": step, "other_data": "; ".join(others)}
    if judged_anew:
        none = Counters()
        names = ("best_accuracy", "best_plain_accuracy", "best_step", "best_weights")
        counters |= {name: getattr(none, name) for name in names}
    if history.checkpoint.data is None:
        counters["unknown_data_until"] = step
    return replace(history, training={**history.training, "counters": counters})


def _counters(file: Path) -> Mapping[str, Any]:
    """Return the counters in a checkpoint; none where it cannot be read."""
    try:
        found = read_checkpoint(file).training.get("counters", {})
    except CheckpointError:
        return {}
    return found if isinstance(found, Mapping) else {}


def _compared(history: History, parts: Parts, path: Path, allowed: bool) -> tuple[str | None, str | None, bool]:
    """Compare the data with those of the checkpoint: return a notice and what has changed in them, None if nothing.

    The last is whether the part that networks are picked by has changed.

    Raises:
        CheckpointError: they have changed, and may not have.
    """
    checkpoint, there = history.checkpoint, history.training["steps_per_epoch"]
    found, then = parts.train, (len(checkpoint.classes), checkpoint.image_shape)
    if (len(found.classes), found.image_shape) != then:
        raise CheckpointError(
            f"the data are not those of {path}: {len(found.classes)} classes of {found.image_shape}, there {then[0]} "
            f"of {then[1]}; restore the data of the run"
        )
    data = parts.fingerprint if checkpoint.data is None else checkpoint.data
    changed = [name for name in data | parts.fingerprint if data.get(name) != parts.fingerprint.get(name)]
    where = " and ".join(filter(None, [", ".join(changed[:-1]), *changed[-1:]]))
    what = f"images, labels or names of classes in the {where} part" if changed else "names of classes"
    is_other = bool(changed) or found.classes != checkpoint.classes
    here = steps_per_epoch(len(found), checkpoint.config.batch_size)
    if there not in (None, here):
        raise CheckpointError(
            f"the data are not those of {path}: {here} steps an epoch, there {there}; a run cannot change "
            "that: restore the data of the run, or start a new one"
        )
    if is_other and not allowed:
        raise CheckpointError(
            f"the data are not those of {path}: other {what}; restore the data of the run, or go on with these by "
            "`allow_changed_data`"
        )
    if is_other:
        parts_of = {
            "test": "test",
            "validation": "validation" if "validation" in data | parts.fingerprint else "training",
        }
        judged_anew = parts_of.get(checkpoint.config.evaluation.select) in changed
        return f"the data are not those of {path}: other {what}; the run goes on with these", what, judged_anew
    unknown = f"{path} does not tell its data: not known whether these are the same"
    return (unknown if checkpoint.data is None else None), None, False


def _refuse_folders(folder: Path) -> None:
    """Refuse to go on where a file could not be written hours later.

    Raises:
        CheckpointError: with the folder that is in the place of a file.
    """
    for file in (folder / "best.pt", folder / "metrics.jsonl", *sorted(folder.glob("epoch-*.pt"))):
        if file.is_dir():
            raise CheckpointError(f"{file} is a folder, in the place of a file of the run; move it away")


def _newest_epoch(folder: Path) -> Path | None:
    """Return the kept checkpoint of the latest epoch that can be read."""
    kept = [file for file in folder.glob("epoch-*.pt") if file.stem.removeprefix("epoch-").isdecimal()]
    for file in sorted(kept, key=lambda file: int(file.stem.removeprefix("epoch-")), reverse=True):
        if _counters(file):
            return file
    return None


def _instead(folder: Path, file: Path) -> str:
    """Return what to do where a file holds a network and no state of training, as `best.pt` does."""
    last = folder / "last.pt"
    if file.name != last.name and _counters(last):
        return f"resume from {last}"
    if (kept := _newest_epoch(folder)) is not None:
        return f"resume from {kept}, the newest that holds one"
    return f"restore {last} from a copy, or train anew: no file of this run holds one"


@contextmanager
def _interrupted(advice: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C into a sentence that says what is saved."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted; {advice()}") from error


def _kept(folder: Path | None) -> str:
    """Return what a request to stop leaves of a run that makes no steps now."""
    last = None if folder is None else folder / "last.pt"
    return "nothing has been saved yet" if last is None or not last.exists() else f"{last} stays as it is"


def _after_loss(folder: Path | None, to_resume: Callable[[Path], str]) -> str:
    """Return what to do when a process was lost."""
    if folder is None or not (folder / "last.pt").exists():
        return "nothing had been saved yet, run the command again"
    return f"go on from what was saved with {to_resume(folder)}"


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Return inode, size and time of a file, which change when it is written anew; None if it cannot be seen."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
