"""What a person sees of a training: a live bar on a terminal, plain lines elsewhere."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from svdctl.cli.progress_display import ProgressDisplay
from svdctl.cli.training_flags import command_of
from svdctl.plugins import granted_factory, is_factory
from svdctl.utils.escapes import one_line

if TYPE_CHECKING:
    from svdctl.train.result import CertifiedEpoch, TrainResult


class TrainingDisplay(ProgressDisplay):
    """What is shown of a training, on stdout.

    Args:
        flags: flags by key, for notices.
        live: whether to draw a bar; None: on a terminal.
    """

    def __init__(self, flags: Mapping[str, str] = MappingProxyType({}), *, live: bool | None = None) -> None:
        super().__init__("stdout", flags=flags, live=live)

    def begin(self, work: object) -> None:
        self._form = "step {done}/{total}  {text}" if work == "training" else "{work}  {amount} {text}"
        super().begin(work)

    def finish(self, result: object) -> None:
        if isinstance(result, Mapping):
            self.say(evaluation_line(result))
        else:
            self.close()
            for line in result_lines(cast("TrainResult", result)):
                self.say(line)


def evaluation_line(metrics: Mapping[str, float]) -> str:
    """Return one line for an evaluation."""
    certified = ""
    if "val_certified_acc" in metrics:
        certified = f"  at {metrics['epsilon']:g}/255 {metrics['val_certified_acc']:.2%}  L {metrics['lipschitz']:.5g}"
        if "frame_deviation" in metrics:
            certified += f"  frames {metrics['frame_deviation']:.1e}"
    proofs = f", proofs {metrics['proof_time']:.1f} s" if "proof_time" in metrics else ""
    return (
        f"epoch {metrics['epoch']:3.0f}/{metrics['epochs']:.0f}  loss {_known(metrics['loss'], '.4f')}  "
        f"acc {_known(metrics['acc'], '.2%')}  "
        f"held-out loss {metrics['val_loss']:.4f}  acc {metrics['val_acc']:.2%}{certified}  "
        f"{_known(metrics['train_time'], '.1f')} s (control {_known(metrics['clipping_time'], '.1f')} s{proofs})"
    )


def _known(value: float, form: str) -> str:
    """Return a figure, or a dash where it is not known: not a number."""
    return "-" if math.isnan(value) else format(value, form)


def certified_lines(rows: Sequence["CertifiedEpoch"]) -> list[str]:
    """Return the table of certificates, and what L is made of."""
    radii = [f"{radius:g}/255" for radius in rows[0].certified]
    lines = ["", f"{'network':<8} {'epoch':>5} {'accuracy':>9} " + " ".join(f"{name:>8}" for name in radii)]
    lines[-1] += f" {'mean radius':>12} {'L':>9}"
    for row in rows:
        shares = " ".join(f"{share:8.2%}" for share in row.certified.values())
        lines.append(
            f"{row.name:<8} {row.epoch:5} {row.accuracy:9.2%} {shares} {row.mean_radius:12.4f} {row.lipschitz:9.5g}"
        )
    lines.append("certified: right, and proved to stay at every l2 distance up to the radius, pixels in [0, 1]")
    for row in rows:
        factors = " x ".join(f"{kind} {factor:.7g}" for kind, factor in sorted(row.slack.items(), key=lambda f: -f[1]))
        # Where branches are added the factors of all of them are no product.
        exact = math.isclose(math.prod(row.slack.values()), row.lipschitz, rel_tol=1e-6)
        lines.append(f"L of {row.name} = {factors}" if exact else f"L of {row.name} has factors {factors}, by branches")
    return lines


def result_lines(result: "TrainResult") -> list[str]:
    """Return accuracy, the spectrum of every controlled layer, files, and what to type next."""
    lines = ["", *result.summary]
    if result.certified:
        lines += certified_lines(result.certified)
    controlled = [row for row in result.layers if row.allowed is not None]
    rows = controlled or result.layers
    if rows:
        names = [one_line(row.name) for row in rows]
        width = max(map(len, names))
        lines += ["", f"{'layer':<{width}}  {'largest':>8}  {'bound':>8}  {'allowed':>8}  shape"]
        lines += [
            f"{name:<{width}}  {row.largest:8.4f}  {row.bound:8.4f}  "
            f"{'-' if row.allowed is None else format(row.allowed, '8.4g'):>8}  {row.kind} {row.shape}"
            for name, row in zip(names, rows, strict=True)
        ]
        lines.append("largest: a singular value that is reached; bound: proved, at every input size")
    lines += ["", "files", *(f"  {path}" for path in result.files)]
    lines += ["", "next", *(f"  svdctl {command}" for command in _next_commands(result))]
    return lines


def _next_commands(result: "TrainResult") -> list[str]:
    """Return what may be typed next, without the name of the program."""
    train, folder = command_of(result.config.model.kind).name, result.folder
    network = getattr(result.config.model, "network", "")
    # A factory that has moved is where the user has named it, and not where config.toml says.
    factory = granted_factory(network) or network if network and is_factory(network) else ""
    model = f" --model {factory}" if factory else ""
    if not result.completed:
        return [f"{train} --resume {folder}{model}"]
    moved = model if factory != network else ""
    again = f"{train} --preset {folder / 'config.toml'}{moved} --seed {result.config.seed + 1}"
    return [f"inspect-spectrum {folder / 'last.pt'}{model}", f"eval-robust {folder}{model}", again]
