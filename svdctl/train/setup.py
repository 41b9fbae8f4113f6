"""What a training needs before it starts: processes and data."""

import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from svdctl.config.control_config import PROVE_EVERY_STEPS_ON_CUDA
from svdctl.config.run_config import Hardware
from svdctl.config.train_config import TrainConfig
from svdctl.data.batches import derived_seed
from svdctl.data.data_source import load as load_data
from svdctl.data.fingerprint import fingerprint
from svdctl.data.images import ImageData
from svdctl.data.split import stratified_split
from svdctl.distributed.start_watch import WatchedFabric
from svdctl.errors import UsageError
from svdctl.models.architecture import architecture_of
from svdctl.utils.progress import Reporter

# Buffers need no broadcast: they come from sums over all processes, or from weights that are equal. The option is
# called broadcast_buffers up to torch 2.11, a name that later ones deprecate.
_OPTIONS = inspect.signature(DistributedDataParallel).parameters
_KEEP_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers": False
}
_MOST_ON_CPU = 64
"""Processes that may share the CPU of any machine; one of more cores may have as many as cores."""


def launch(config: TrainConfig) -> WatchedFabric:
    """Return the processes of a run, started.

    Raises:
        UsageError: a device that is not there, a batch smaller than their number, or what `_require_possible` refuses.
    """
    hardware = config.hardware
    devices, accelerator = hardware.devices, accelerator_of(hardware)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # who has joined is no news
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # of 1x1 kernels, where all do
    try:
        fabric = WatchedFabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=hardware.num_nodes,
            precision=None if hardware.precision == "32" else hardware.precision,
            strategy="auto" if devices == 1 and hardware.num_nodes == 1 else DDPStrategy(**_KEEP_BUFFERS),
        )
        processes = getattr(fabric.strategy, "num_processes", 1) * hardware.num_nodes
        if faults := config.faults_of_batch(processes):
            raise UsageError(faults)
        _require_possible(fabric, hardware)
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        text = str(error).strip()
        first = text.splitlines()[0] if text else ""
        if "You set" in text:
            raise UsageError(
                f"`hardware.devices` and `hardware.num_nodes` do not fit how the processes were started ({first})"
            ) from error
        if any(word in text.lower() for word in ("accelerator", "device", "cuda")):
            raise UsageError(
                f"`hardware.accelerator = {hardware.accelerator}` is not to be had here ({first[:150]})"
            ) from error
        raise
    return fabric


def accelerator_of(hardware: Hardware) -> str:
    """Return the kind of device that Fabric is asked for; `auto` is the CPU where it would be MPS.

    Raises:
        UsageError: MPS, Apple's GPUs, which have no float64.
    """
    asked: str = hardware.accelerator
    is_mps = asked == "mps"
    if asked in ("auto", "gpu") and torch.backends.mps.is_available() and not torch.cuda.is_available():
        if asked == "auto":
            return "cpu"
        is_mps = True
    if is_mps:
        raise UsageError(
            f"`hardware.accelerator = {asked}`: MPS has no float64, in which singular values are bounded; give cpu, or "
            "leave it out"
        )
    return asked


def _require_possible(fabric: Fabric, hardware: Hardware) -> None:
    """Refuse processes that would wait for others in vain, or be far too many for this machine.

    Raises:
        UsageError: what is missing.
    """
    started = getattr(fabric.strategy, "num_processes", 1)
    if fabric.device.type == "cpu" and started > (most := max(_MOST_ON_CPU, os.cpu_count() or 1)):
        raise UsageError(
            f"`hardware.devices = {started}` would be as many processes on {os.cpu_count()} CPU cores; give at most "
            f"{most}"
        )
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    environment = getattr(fabric.strategy, "cluster_environment", None)
    if hardware.num_nodes > 1 and missing and isinstance(environment, LightningEnvironment):
        raise UsageError(
            f"`hardware.num_nodes = {hardware.num_nodes}`: the nodes find each other by {' and '.join(missing)} in the "
            "environment of the command on each of them, beside NODE_RANK; set them, or give 1"
        )


def with_proofs(config: TrainConfig, device: torch.device) -> TrainConfig:
    """Return the configuration with a number in place of `control.prove_every_steps = "auto"`."""
    control = config.control
    if control.kind == "none" or control.prove_every_steps != "auto":
        return config
    every = PROVE_EVERY_STEPS_ON_CUDA if device.type == "cuda" else 0
    return config.model_copy(update={"control": control.model_copy(update={"prove_every_steps": every})})


@contextmanager
def chosen_kernels(hardware: Hardware, device: torch.device) -> Iterator[None]:
    """Let torch use deterministic kernels alone on a CUDA device, or the fastest ones; elsewhere nothing is changed."""
    if device.type != "cuda":
        yield
        return
    deterministic = bool(hardware.deterministic)
    cudnn, before = torch.backends.cudnn, torch.are_deterministic_algorithms_enabled()
    flags = cudnn.benchmark, cudnn.deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself with this alone
    try:
        torch.use_deterministic_algorithms(deterministic or before)
        cudnn.benchmark, cudnn.deterministic = not deterministic, deterministic
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        cudnn.benchmark, cudnn.deterministic = flags


@dataclass(frozen=True)
class Parts:
    """The images of a run: to train on, to follow it by, and to judge it by."""

    train: ImageData
    held_out: ImageData
    test: ImageData
    fingerprint: dict[str, str]
    """Of the parts as they were loaded, by name."""


def load_parts(
    config: TrainConfig,
    *,
    download: bool = True,
    reporter: Reporter | None = None,
    like: Mapping[str, str] | None = None,
) -> Parts:
    """Return the data of a run.

    Args:
        config: of the run.
        download: whether data that are absent may be downloaded.
        reporter: is told how far the reading is.
        like: fingerprints to compare with, by name; those of the data have their form.

    Raises:
        DataError: missing or broken data.
        UsageError: data that the network cannot take.
    """
    reporter = reporter or Reporter()
    data = load_data(config.data, download=download, reporter=reporter)
    images = data.train
    if faults := architecture_of(config.model).faults(
        config.model, image_shape=images.image_shape, classes=len(images.classes), layer=config.layer
    ):
        raise UsageError(faults)
    channels, wanted = images.image_shape[0], architecture_of(config.model).channels
    if wanted is not None and channels != wanted:
        raise UsageError(
            f"the network takes images of {wanted} channels, and these have {channels} (`data.channels`); change "
            "one of them"
        )
    numbers = len(config.normalize.mean)
    if numbers not in (1, channels):
        raise UsageError(
            f"`normalize.mean` and `normalize.std` have {numbers} numbers, and the images {channels} channel; give one "
            "number of each"
        )
    select = config.evaluation.select
    used = {name: part for name, part in data.parts().items() if name != "validation" or select == name}
    with reporter.part("computing the fingerprint of the data"):
        contents = {name: fingerprint(part, like=(like or {}).get(name)) for name, part in used.items()}
    train, held_out = data.train, data.test
    if select == "validation":
        if data.validation is not None:
            held_out = data.validation
        else:
            seed = derived_seed(config.seed, "validation")
            train, held_out = stratified_split(train, config.evaluation.validation_share, seed)
    return Parts(train, held_out, data.test, contents)
