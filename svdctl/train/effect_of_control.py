"""What control did in a training, in sentences: how many layers it changed, how often, and whether it did anything."""

from collections.abc import Iterator, Mapping, Sequence

from svdctl.config.train_config import TrainConfig
from svdctl.control.change_counts import Applications, Changes
from svdctl.control.control_report import LayerReport
from svdctl.registry import CONTROLS
from svdctl.utils.rounded_figures import at_least, at_most

_FRAMES = {
    "retract": "frames are put back to orthonormal columns after every step",
    "parametrize": "frames are orthonormal by their parametrization",
    "penalty": "frames are held by a penalty in the loss",
}


def effect_of_control(
    changes: Changes, config: TrainConfig, step: int, layers: Sequence[LayerReport] = ()
) -> Iterator[str]:
    """Yield sentences for the end of a run; none where nothing is controlled.

    Args:
        changes: of the run.
        config: of the run.
        step: its last step.
        layers: their norms at the end, by which a smaller maximum is named where none was reached.
    """
    untold = f"; not counted up to step {changes.since:,}, which an older version made" if changes.since else ""
    if changes.control.changed:
        text = _of_method(changes, config, step)
        if changes.is_none:
            text += _what_would(changes, config, layers)
        yield text + untold
        frames = getattr(getattr(config.layer, "frames", None), "kind", None)
        if frames in _FRAMES:
            yield f"not counted among these changes: {_FRAMES[frames]}"
    if config.batchnorm is not None and changes.batchnorm.changed:
        yield _of_batchnorm(changes, config.batchnorm.max_gain, config.batchnorm.every_steps) + untold


def note_without_effect(changes: Changes, config: TrainConfig) -> str | None:
    """Return the footnote of a row of a table whose control changed nothing; None: it did, or that is not known."""
    if config.control.kind == "none" or config.ema is not None or not changes.control.changed or not changes.is_none:
        return None
    return "Control changed no layer in a run of this row: none was found above its maximum."


def _of_method(changes: Changes, config: TrainConfig, step: int) -> str:
    """Return what the control method and the proofs did."""
    control, every = changes.control, config.control.every_steps
    names = control.changed.keys()
    scaled = [name for name in names if changes.proofs.get(name)]
    proofs = f"proofs at evaluations and checkpoints scaled {_layers(len(scaled))}" if scaled else ""
    if not control.applied:
        text = f"control was never applied: it is due every {every} steps, and the run made {step - changes.since:,}"
        return f"{text}; {proofs or 'no proof found a layer above its maximum'}" if _seals(config) else text
    if not control.layers:
        text = f"control changed none of {_layers(len(names))} in {_applications(control.applied, every)}"
        # What seals do to the averaged copy is not counted.
        where = " in the weights that are trained" * (config.ema is not None)
        return f"{text}; {proofs}" if proofs else f"{text}: none was found above its maximum{where}"
    text = f"control changed {control.layers} of {_layers(len(names))}, {_most(control, every)}"
    below = sum(not control.changed[name] and name not in scaled for name in names)
    if below:
        text += f"; {_layers(below)} {'was' if below == 1 else 'were'} never found above the maximum"
    return f"{text}; {proofs}" if proofs else text


def _what_would(changes: Changes, config: TrainConfig, layers: Sequence[LayerReport]) -> str:
    """Return which maximum would have changed a layer, as far as its norms at the end tell."""
    # Only the proof at the end meets the norms that are known here; the paper's estimates may be below them.
    is_sealed = _seals(config)
    if not is_sealed and not changes.control.applied:
        return ""
    shares: Mapping[float, LayerReport] = {
        row.largest / row.maximum: row for row in layers if row.name in changes.control.changed and row.maximum
    }
    if config.ema is not None or not shares:
        return "; a lower `control.max_sigma` would" if is_sealed else ""
    row = shares[max(shares)]
    key = "linear_max" if "Linear" in row.kind and config.control.linear_max is not None else "max_sigma"
    reached = at_least(row.largest)
    nearest = f"; the nearest, {row.name or '(top)'}, is at {reached} of {at_most(row.maximum)}"
    if not is_sealed:
        return f"{nearest} at the end"
    return f"{nearest}, so that a `control.{key}` below {reached} would have changed this training"


def _of_batchnorm(changes: Changes, most: float, every: int) -> str:
    limit, names = changes.batchnorm, changes.batchnorm.changed.keys()
    at_proofs = sum(bool(changes.proofs.get(name)) for name in names)
    if not limit.layers and not at_proofs:
        return f"none of {_layers(len(names))} of BatchNorm was above the gain of {most:g}"
    if not limit.layers:
        return f"{at_proofs} of {_layers(len(names))} of BatchNorm limited, at evaluations and checkpoints alone"
    return f"{limit.layers} of {_layers(len(names))} of BatchNorm limited, {_most(limit, every)}"


def _most(one: Applications, every: int) -> str:
    """Return which layer was changed most often, and how often."""
    name = max(one.changed, key=one.changed.__getitem__)
    where = "" if one.layers == 1 and len(one.changed) == 1 else f"{name or '(top)'} most often, "
    return f"{where}in {one.changed[name]:,} of {_applications(one.applied, every)}"


def _applications(count: int, every: int) -> str:
    plural = "s" * (count != 1)
    return f"{count:,} step{plural}" if every == 1 else f"{count:,} application{plural} (one every {every:,} steps)"


def _layers(count: int) -> str:
    return f"{count} layer{'s' * (count != 1)}"


def _seals(config: TrainConfig) -> bool:
    return CONTROLS.get(config.control.kind).seals(config.control)
