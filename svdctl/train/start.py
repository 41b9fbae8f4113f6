"""One controlled training from a configuration to a run folder; `svdctl train` and `svdctl train-lipconv` call it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from svdctl.checkpoint.checkpoint_file import checkpoint_error_on_mismatch, read_checkpoint
from svdctl.config.presets import to_toml
from svdctl.config.train_config import TrainConfig
from svdctl.data.batches import steps_per_epoch
from svdctl.data.data_source import source_of
from svdctl.distributed.failure_detector import end_together
from svdctl.errors import CheckpointError, Interrupted, UsageError
from svdctl.train.result import TrainResult
from svdctl.train.resumed_requests import without_online_logs
from svdctl.train.run import TrainingRun
from svdctl.train.run_hash import config_in, differing
from svdctl.train.run_history import History, read_history
from svdctl.train.run_plan import SELECTION, plan
from svdctl.train.setup import Parts, launch, load_parts, with_proofs
from svdctl.train.trainer import Counters
from svdctl.utils.atomic_write import write_atomically
from svdctl.utils.progress import Reporter
from svdctl.utils.run_dir import create_run_folder, write_environment

__all__ = ["TrainResult", "plan", "resume", "run"]


def run(
    config: TrainConfig, *, base: str, reporter: Reporter, to_resume: Callable[[Path], str] = "resume {}".format
) -> TrainResult:
    """Train from the start in a new run folder.

    Args:
        config: of the run.
        base: what it was made from, as the plan says.
        reporter: shows the run.
        to_resume: returns how a run in a folder is resumed; printed when a process is lost.

    Raises:
        UsageError, DataError: before anything is written.
        TrainingError: for a loss that is not finite; what was saved stays.
    """
    folder: Path | None = None
    with _interrupted(lambda: _after_loss(folder, to_resume)):
        fabric = launch(config)
        config = with_proofs(config, fabric.device)
        with end_together(fabric, lambda: _after_loss(folder, to_resume)) as detector:
            first, *lines = plan(config, base)
            if fabric.is_global_zero:
                reporter.say(first)  # ahead of what loading has to say
            with fabric.rank_zero_first(local=True):  # data may have to be downloaded
                parts = load_parts(config, reporter=reporter if fabric.is_global_zero else None)
            folder = fabric.broadcast(create_run_folder(config.out_dir, config.name) if fabric.is_global_zero else None)
            assert folder is not None
            lines[-1] = f"run      {folder}, {SELECTION[config.evaluation.select]}"
            if fabric.is_global_zero:
                for line in lines:
                    reporter.say(line)
                write_atomically(folder / "config.toml", to_toml(config))
                write_environment(folder, str(fabric.device), config.seed)
            return TrainingRun(config, parts, fabric, folder, reporter, detector).execute(None)


def resume(
    path: Path,
    *,
    reporter: Reporter,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    refused: Callable[[TrainConfig], str | None] | None = None,
    allow_changed_data: bool = False,
    needs_best: bool = False,
    to_resume: Callable[[Path], str] = "resume {}".format,
) -> TrainResult:
    """Continue a training where a run folder's `last.pt` stands.

    Args:
        path: the run folder, or the checkpoint in it.
        reporter: shows the run.
        changes: fields to override, by section: what has no effect on the results, as devices, log and `data.root`.
            Only with `data.root` may data be downloaded, only with `log.wandb` does a log go online.
        refused: returns why a run with this configuration is not to go on, None if it is.
        allow_changed_data: go on though the data are not those that the run was trained on so far.
        needs_best: fail where the network that was picked is lost; else a sentence says so, and the last one counts.
        to_resume: as in `run`.

    Raises:
        CheckpointError: missing, damaged, refused, without a state of training, of another run than the
            configuration beside it, or other data than then.
        UsageError, DataError: as in `run`.
    """
    folder, file = (path, path / "last.pt") if path.is_dir() else (path.parent, path)
    _refuse_folders(folder)
    stamp = _stamp(file)
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        kept = _newest_epoch(folder) if file.name == "last.pt" else None
        raise CheckpointError(f"{error}{f'; go on from {kept}, the newest sound one' if kept else ''}") from error
    config = checkpoint.config
    if refused is not None and (why := refused(config)) is not None:
        raise CheckpointError(f"{path} {why}")
    if not checkpoint.training:
        raise CheckpointError(f"{path} holds no state of training; {_instead(folder, file)}")
    if (beside := config_in(folder)) is not None and (others := differing(config, beside)):
        raise CheckpointError(
            f"{file} is of another run than {folder / 'config.toml'} (other {', '.join(others)}), and a run cannot "
            f"change on its way; restore the files of one run, go on with {file.name} in a folder of its own, or "
            "remove config.toml if that is what is wrong"
        )
    if changes:
        if "data" in changes and source_of(config.data).place not in changes["data"]:
            raise UsageError(
                f"`data.root` is a place of files; the data of {path} are {config.data.kind}, leave it out"
            )
        table = config.model_dump()
        for section, fields in changes.items():
            table[section].update(fields)
        config = TrainConfig.model_validate(table)
    config, requests = without_online_logs(config, changes or {})
    with _interrupted(lambda: _after_loss(folder, to_resume)):
        fabric = launch(config)
        with end_together(fabric, lambda: _after_loss(folder, to_resume)) as detector:
            with fabric.rank_zero_first(local=True):  # data may have to be downloaded
                shown = reporter if fabric.is_global_zero else None
                parts = load_parts(config, download="data" in (changes or {}), reporter=shown)
            with checkpoint_error_on_mismatch(path):
                history = read_history(checkpoint, folder)
            notice, changed, judged_anew = _compared(history, parts, path, allow_changed_data)
            with checkpoint_error_on_mismatch(path):
                picked = int(history.training["counters"]["best_step"]) if judged_anew else 0
                history = _going_on(history, file, changed, judged_anew)
            if picked:
                lost = f"the network that was picked in step {picked} was judged by the others and does not count"
                notice = f"{notice}; {lost}"
            if fabric.is_global_zero:
                step = int(checkpoint.metrics.get("step", 0))
                reporter.say(f"resume   {folder} after step {step}")
                for line in plan(config, str(folder / "config.toml"))[1:-1]:
                    reporter.say(line)
                for text in (*requests, *filter(None, [notice])):
                    reporter.notice(text)
            run = TrainingRun(config, parts, fabric, folder, reporter, detector)
            return run.execute(history, is_current=lambda: _stamp(file) == stamp, needs_best=needs_best)


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
