"""The pictures of a training, and what they show."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from svdctl.config.train_config import TrainConfig
from svdctl.layers.layer_operator import operator_of
from svdctl.layers.layer_ops import find_ops
from svdctl.spectral.values import singular_values
from svdctl.train.metrics_log import read_log
from svdctl.train.trainer import Trainer
from svdctl.train.validation import Accuracy

GRID = 8


def spectra(model: nn.Module, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return singular values of each layer, descending: exact, on inputs of at most 8 output points an axis.

    Of SOC and SOTT layers, whose own values are 1, those of the skew convolution that they exponentiate.

    Args:
        model: the network.
        sizes: input size by name of the layers that are convolutions or linear.
    """
    found = {}
    for name, module in model.named_modules():
        ops = find_ops(module)
        if ops is None or ops.parts(module):
            continue
        generator = ops.generator(module)
        if generator is not None:
            conv, _ = generator
            found[name] = singular_values(conv, (GRID,) * conv.axes if max(conv.taps) > 1 else (1, 1), accuracy="fast")
        elif name in sizes:
            conv = operator_of(module)
            small = tuple(
                max(1, min(GRID, length // stride)) * stride
                for length, stride in zip(sizes[name], conv.stride, strict=True)
            )
            found[name] = singular_values(conv, small, accuracy="fast")
    return {name: _thinned(values) for name, values in found.items()}


def _thinned(values: Tensor) -> Tensor:
    """Return at most 400 of the values, evenly spread: a picture has no more pixels across."""
    index = torch.linspace(0, len(values) - 1, min(len(values), 400)).round().long()
    return values[index.to(values.device)].cpu()


def draw(
    trainer: Trainer, folder: Path, before: Mapping[str, Tensor], sizes: Mapping[str, tuple[int, ...]]
) -> list[Path]:
    """Write the pictures; returns their files."""
    from svdctl.train.plots import plot_curves, plot_spectra  # matplotlib takes a second to import

    curves, spectrum = folder / "curves.png", folder / "spectrum.png"
    held_out = "validation part" if trainer.config.evaluation.select == "validation" else "test set"
    steps = [line for line in read_log(folder / "metrics.jsonl") if line["kind"] == "step"]
    plot_curves([*steps, *trainer.epochs], curves, held_out=held_out, loss_name=trainer.config.loss.kind)
    controller = trainer.controller
    after = spectra(trainer.model, sizes)
    allowed = {name: controller.allowed(name) if name in controller.layers else None for name in after}
    skew = [name for name in after if name not in controller.layers]
    plot_spectra(before, after, allowed, spectrum, skew=skew)
    return [curves, spectrum]


def draw_certified(judged: Mapping[str, Accuracy], config: TrainConfig, folder: Path) -> list[Path]:
    """Write the picture of certified accuracy, when there are certificates; returns its file."""
    from svdctl.train.plots import plot_certified

    curves = {name: made.certificates.curve() for name, made in judged.items() if made.certificates is not None}
    if config.certificate is None or not curves:
        return []
    path = folder / "certified.png"
    plot_certified({f"{name} epoch": curve for name, curve in curves.items()}, config.certificate.radii, path)
    return [path]
