"""What a training would do, said before it does it."""

import torch
from torch import nn

from svdctl.config.control_config import NOT_CONTROLLED
from svdctl.config.train_config import CROSS_ENTROPY, TrainConfig
from svdctl.data.data_source import describe, source_of
from svdctl.data.images import ImageData
from svdctl.data.streamed_images import is_streamed
from svdctl.layers.ops.tt_ops import Retract
from svdctl.models.architecture import architecture_of
from svdctl.models.build import count_on_meta, shapes_of
from svdctl.registry import CONTROLS, LAYERS
from svdctl.train.captured_step import why_not_captured
from svdctl.train.setup import Parts, accelerator_of
from svdctl.utils.rounded_figures import exact
from svdctl.utils.run_dir import require_folder

NAMED_CLASSES = 5
"""Classes that are named where data are described."""
_CLASSES = 10
"""That parameters are counted with until the data tell their number."""
_SELECTION = {
    "last": "the last epoch counts",
    "validation": "the data set's validation part picks the best epoch",
    "test": "the test set picks the best epoch, as in the paper's code",
}


def plan(config: TrainConfig, base: str) -> list[str]:
    """Return what a run would do, without its data.

    A line each for base, model, initial weights where there are any, data, control, training, device and run.

    Raises:
        UsageError: the place for runs is no folder.
    """
    require_folder(config.out_dir)
    return [
        f"base     {base}",
        f"model    {_model_line(config)}",
        *([] if config.initial is None else [f"weights  from {config.initial.file}"]),
        f"data     {describe(config.data).replace(':', ' ', 1)}, {_augmentation(config)}",
        f"control  {_control_line(config)}",
        f"training {_training_line(config)}",
        f"device   {_device_line(config)}",
        f"run      {config.out_dir}/{config.name}-<time>, select: {config.evaluation.select}"
        + (f" ({_SELECTION['test']})" if config.evaluation.select == "test" else ""),
    ]


def found_device_line(config: TrainConfig, device: torch.device, processes: int, *, by_qr: bool = False) -> str:
    """Return on which devices a run makes its steps, and how, once its processes are there.

    Args:
        config: of the run.
        device: of this process.
        processes: their number.
        by_qr: whether a run that is resumed has gone over to QR for its frames.
    """
    threads = torch.get_num_threads()
    name = f"{threads} thread{'s' if threads > 1 else ''} of the CPU"
    if device.type != "cpu":
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    where = name if processes == 1 else f"{name}, {processes} processes"
    return f"runs on  {where}{_capture_text(config, device, processes, by_qr=by_qr)}"


def selection(config: TrainConfig, parts: Parts) -> str:
    """Return which epoch counts, and by which images it is picked."""
    select = config.evaluation.select
    if select == "validation" and select not in parts.fingerprint:
        return f"{len(parts.held_out):,} images set apart from the training part pick the best epoch"
    return _SELECTION[select]


def data_line(config: TrainConfig, parts: Parts) -> str:
    """Return what data a run has, once they are read."""
    train, held_out, test = parts.train, parts.held_out, parts.test
    counts = [f"{len(train):,} training", f"{len(held_out):,} validation", f"{len(test):,} test"]
    if held_out is test:
        del counts[1]
    _, height, width = train.image_shape
    named = train.classes[:NAMED_CLASSES]
    more = ", ..." if len(train.classes) > len(named) else ""
    storage = ", read when they are needed" if is_streamed(train.images) else ""
    return (
        f"data     {describe(config.data).replace(':', ' ', 1)}: {' + '.join(counts)} images, {height} x {width} "
        f"{_colour(train)}{storage}; {len(train.classes)} classes ({', '.join(named)}{more}); {_augmentation(config)}"
    )


def _colour(data: ImageData) -> str:
    """Return what the channels of images are."""
    channels = data.image_shape[0]
    if channels == 3 and not is_streamed(data.images):
        # Those in colour are told by the first ones; only grey images are compared to the last.
        parts = (images for images in (data.images[:64], data.images))
        if all(bool((images == images[:, :1]).all()) for images in parts):
            return "grey, as three equal channels"
    return {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")


def settings_lines(config: TrainConfig, classes: int | None = None) -> list[str]:
    """Return model, control and training of a run, a line each.

    Args:
        config: of the run.
        classes: their number, which the data tell; None: they are not read yet.

    Raises:
        UsageError: a network that cannot be made.
    """
    return [
        f"model    {_model_line(config, classes)}",
        f"control  {_control_line(config)}",
        f"training {_training_line(config)}",
    ]


def _training_line(config: TrainConfig) -> str:
    optimizer = config.optimizer
    parts = [f"{config.epochs} epochs", f"batch {config.batch_size}"]
    if config.accumulate is not None:
        parts[-1] += f" in {config.accumulate} parts"
    parts += [f"{optimizer.kind} lr {optimizer.lr:g}", f"schedule {config.schedule.kind}", f"seed {config.seed}"]
    if config.loss.kind != CROSS_ENTROPY:
        parts.append(f"loss {config.loss.kind}")
    elif config.loss.label_smoothing:
        parts.append(f"labels smoothed by {config.loss.label_smoothing:g}")
    if optimizer.clip_norm is not None:
        parts.append(f"gradients clipped to {optimizer.clip_norm:g}")
    if config.ema is not None:
        parts.append(f"weights averaged with decay {config.ema.decay:g}")
    return ", ".join(parts)


def _device_line(config: TrainConfig) -> str:
    hardware = config.hardware
    kind = accelerator_of(hardware)
    if kind in ("auto", "gpu"):
        found = torch.accelerator.current_accelerator(check_available=True)
        kind = "cpu" if found is None else found.type
    processes = 1 if hardware.devices == 1 and hardware.num_nodes == 1 else 2
    return f"{kind}, precision {hardware.precision}{_capture_text(config, torch.device(kind), processes)}"


def _capture_text(config: TrainConfig, device: torch.device, processes: int, *, by_qr: bool = False) -> str:
    """Return whether steps are compiled, and whether they are CUDA graphs, each behind a comma; none without CUDA."""
    control, method = config.control, CONTROLS.get(config.control.kind)
    reads_back = control.kind != "none" and not method.has_factors(control)
    reason = why_not_captured(config.hardware, device, processes, config.schedule)
    if reason is None and (by_qr or _retracts_by_qr(config)):
        reason = "QR of frames may wait for the device"
    if reason is None and reads_back and control.every_steps == 1:
        reason = f"{control.kind} reads singular values back in every step"
    parts = []
    if config.hardware.compile:
        parts.append(f"compiled ({_expected_of_compiling(config, is_captured=reason is None)})")
    if device.type == "cuda" and reason is not None:
        parts.append(f"steps run eagerly: {reason}")
    elif reason is None:
        parts.append("steps are CUDA graphs" + f", but those with a {control.kind}" * reads_back)
    return "".join(f", {part}" for part in parts)


def _retracts_by_qr(config: TrainConfig) -> bool:
    frames = getattr(config.layer, "frames", None)
    return isinstance(frames, Retract) and frames.method == "qr"


def _expected_of_compiling(config: TrainConfig, *, is_captured: bool) -> str:
    """Return what is known of the time that `hardware.compile` saves; docs/benchmarks.md has the figures."""
    if config.layer.kind != "standard":
        found = f"what it gains is not measured for {config.layer.kind.upper()} layers"
    elif not is_captured:
        found = "what it gains is measured for CUDA graphs alone"
    else:
        found = "measured for WRN-16-10 in bf16 on an H100: 5.4 ms a step, 7.4 ms without"
    return f"{found}; compiling takes some 20 s"


def _model_line(config: TrainConfig, classes: int | None = None) -> str:
    """Return the network and its size.

    Args:
        config: of the run.
        classes: their number, which the data tell; None: they are not read yet.
    """
    known = classes or source_of(config.data).classes(config.data)
    count = known or _CLASSES
    parameters = count_on_meta(config, count)
    # SOTT is measured against the layer that it compresses, as in the paper.
    plain = LAYERS.get(LAYERS.get(config.layer.kind).uncompressed(config.layer))
    whole = count_on_meta(config.model_copy(update={"layer": plain.config()}), count)
    than = "" if plain.kind == "standard" else f"{plain.kind.upper()}'s "
    compression = f", {whole / parameters:.2f}x smaller than {than}{whole:,}" if parameters != whole else ""
    heads = "" if known else f" (counted with {_CLASSES} classes)"
    name = architecture_of(config.model).name(config.model)
    text = f"{LAYERS.get(config.layer.kind).text(config.layer)}{_kept_as_they_are(config, count)}"
    return f"{name}, {text}; {parameters:,} parameters{compression}{heads}"


def _kept_as_they_are(config: TrainConfig, classes: int) -> str:
    """Return how many convolutions of a network that svdctl does not define stay, where layers take their places."""
    if config.layer.kind == "standard" or architecture_of(config.model).is_defined_here:
        return ""
    found = shapes_of(config, classes)
    kept = sum(isinstance(layer, nn.Conv2d) for layer in found.modules())
    why = "grouped, of another class, or no wider than the rank"
    return f" ({kept} convolutions stay as they are: {why})" if kept else ""


def _augmentation(config: TrainConfig) -> str:
    augment = config.augment
    changes = ["random flips"] * augment.flip
    if augment.crop:
        what = {"zero": "zeros", "symmetric": "mirrored pixels"}[augment.pad]
        changes.append(f"random crops after padding by {augment.crop} {what}")
    if augment.resized_crop is not None:
        changes.append("random crops of {:g} to {:g} of the area, resized".format(*augment.resized_crop))
    if augment.mixup is not None:
        changes.append(f"mixup {augment.mixup:g}")
    return f"augmentation: {', '.join(changes) or 'none'}"


def _control_line(config: TrainConfig) -> str:
    control = config.control
    parts = [NOT_CONTROLLED]
    if config.layer.is_orthogonal:
        parts = [f"none, singular values of {config.layer.kind.upper()} are 1"]
    elif control.kind != "none":
        often = "at every step" if control.every_steps == 1 else f"every {control.every_steps} steps"
        parts = [f"{control.kind} convolutions to {control.max_sigma:g} {often}"]
        if control.max_sigma_start is not None:
            parts.append(f"from {control.max_sigma_start:g} at the start, in {control.max_sigma_epochs} epochs")
        if control.linear_max is not None:
            parts.append(f"linear layers to {control.linear_max:g}")
        if control.prove_every_steps not in ("auto", 0) and control.procedure == "certified":
            parts.append(f"proved every {control.prove_every_steps} steps")
        parts.append("sealed by proof" if control.procedure == "certified" else "paper's procedure, no seal")
    if config.batchnorm is not None:
        parts.append(f"BatchNorm to {config.batchnorm.max_gain:g}")
    if config.certificate is not None:
        parts.append(f"certified accuracy at {exact(config.certificate.epsilon)}/255")
    return ", ".join(parts)
